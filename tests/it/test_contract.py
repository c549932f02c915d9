"""The contract, over real HTTP against the real hub: every status of the plan's calls, and their effects."""

import json
import os
import re
import subprocess
import time

import pytest

from lib.api import quote
from lib.job import change_id, coverage, disk, nbdcopy, qemu_io
from lib.patience import patience
from lib.world import MIB, make_image

CONTRACT_SQL = """SELECT id, vm_name, backup_type, change_id, status, created_at, completed_at FROM backup_jobs
                  WHERE vm_name = 'pgtest1' ORDER BY created_at DESC LIMIT 1;"""
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
VMWARE_ID = "52d0eb97-27ad-4c3d-874a-c34e85f2ea95/446"


# ---- POST /backups

def test_start(world, vm):
    body = {"vm_name": "pgtest1", "repository_id": world.repository_id, "backup_type": "full", "start_client": False}
    before = int(time.time())
    started = world.api.post("/backups", body).expect(201)
    match = re.fullmatch(r"backup-pgtest1-(\d+)", started["backup_id"])
    assert match and before <= int(match.group(1)) <= time.time()
    assert started["vm_name"] == "pgtest1"
    assert started["backup_type"] == "full"
    assert started["status"] == "pending"


@pytest.mark.parametrize("form", [str, int])
def test_start_takes_the_repository_as_text_or_number(world, vm, form):
    body = {"vm_name": "pgtest1", "repository_id": form(world.repository_id), "start_client": False}
    assert world.api.post("/backups", body).expect(201)["repository_id"] == world.repository_id


def test_start_without_type(world, vm):
    assert world.job().started["backup_type"] == "full"


def test_start_without_type_is_incremental_after_a_first(world, vm):
    first = world.backup(vm)
    started = world.job().started
    assert started["backup_type"] == "incremental"
    assert started["parent_id"] == first.id


@pytest.mark.parametrize("change, status", [
    ({"vm_name": "nobody"}, 404),
    ({"repository_id": "99"}, 404),
    ({"repository_id": 99}, 404),
    ({"backup_type": "differential"}, 400),
    ({"backup_type": ""}, 400),
    ({"backup_type": 1}, 400),
    ({"vm_name": None}, 400),
    ({"vm_name": ""}, 400),
    ({"vm_name": 7}, 400),
    ({"repository_id": None}, 400),
    ({"repository_id": ["1"]}, 400),
    ({"repository_id": 1.5}, 400),
    ({"start_client": "no"}, 400),
])
def test_start_refused(world, vm, change, status):
    body = {"vm_name": "pgtest1", "repository_id": world.repository_id, "start_client": False, **change}
    world.api.post("/backups", body).expect(status)
    assert world.sql("SELECT COUNT(*) AS n FROM backup_jobs")[0]["n"] == 0


def test_start_while_another_runs(world, vm):
    job = world.job()
    body = {"vm_name": "pgtest1", "repository_id": world.repository_id, "start_client": False}
    world.api.post("/backups", body).expect(409)
    job.claim()
    world.api.post("/backups", body).expect(409)
    assert len(world.sql("SELECT id FROM backup_jobs")) == 1


def test_start_ignores_unknown_members(world, vm):
    body = {"vm_name": "pgtest1", "repository_id": world.repository_id, "start_client": False, "enable_cleanup": True}
    world.api.post("/backups", body).expect(201)


def test_pitfall_15_two_backups_in_one_second(world, vm):
    """IDs to the second collided: the next free second is taken."""
    ids, ahead = [], 0
    while ahead < 3:
        job = world.job()
        ids.append(job.id)
        ahead += int(job.id.rsplit("-", 1)[1]) > time.time()
        world.api.post(f"{job.path}/cancel").expect(202)
        assert len(ids) < 50, "no second that was taken"
    assert len(set(ids)) == len(ids)
    seconds = [int(i.rsplit("-", 1)[1]) for i in ids]
    assert seconds == sorted(seconds)


# ---- POST /backups/{id}/complete

def test_complete(world, vm):
    job = world.written_job(vm, change=VMWARE_ID)
    size = os.path.getsize(vm)
    answer = job.complete(VMWARE_ID, world.done(job, size), bytes_transferred=107374182400).expect(200)
    assert RFC3339.fullmatch(answer.pop("timestamp"))
    assert answer == {"status": "completed", "backup_id": job.id, "change_id": VMWARE_ID,
                      "message": "Backup completed successfully, change_id recorded"}
    row, = world.sql(CONTRACT_SQL)
    assert RFC3339.fullmatch(row.pop("created_at")) and RFC3339.fullmatch(row.pop("completed_at"))
    assert row == {"id": job.id, "vm_name": "pgtest1", "backup_type": "full", "change_id": VMWARE_ID,
                   "status": "completed"}
    assert world.sql("SELECT bytes_transferred AS n FROM backup_jobs")[0]["n"] == 107374182400


def test_complete_as_the_plan_has_it(world, vm):
    """No "disks", no bytes: what a client of the plan sends for a VM of one disk."""
    job = world.written_job(vm)
    job.complete(job.change).expect(200)
    shown = job.show()
    assert shown["status"] == "completed"
    assert shown["change_id"] == shown["disks"][0]["change_id"] == job.change


def test_pitfall_13_complete_again(world, vm):
    job = world.written_job(vm)
    size = os.path.getsize(vm)
    job.complete(job.change, world.done(job, size), bytes_transferred=5).expect(200)
    before = world.sql("SELECT * FROM backup_jobs")
    for _ in range(3):
        job.complete(job.change, world.done(job, size), bytes_transferred=5).expect(200)
    job.complete(job.change).expect(200)
    assert world.sql("SELECT * FROM backup_jobs") == before


def test_pitfall_13_complete_again_with_another_change_id(world, vm):
    job = world.backup(vm)
    before = world.sql("SELECT * FROM backup_jobs"), world.sql("SELECT * FROM backup_disks")
    job.complete(change_id()).expect(409)
    job.complete(job.change + " ").expect(409)
    assert (world.sql("SELECT * FROM backup_jobs"), world.sql("SELECT * FROM backup_disks")) == before


def test_complete_after_a_restart_of_the_hub(world, vm):
    job = world.backup(vm)
    world.hub.restart()
    job.complete(job.change).expect(200)
    job.complete(change_id()).expect(409)


def test_complete_keeps_a_change_id_as_it_came(world, vm):
    """VMware's change IDs can hold blanks."""
    change = "52 d0 eb 97 27 ad 4c 3d-87 4a c3 4e 85 f2 ea 95/446"
    job = world.written_job(vm, change=change)
    assert job.complete(change).expect(200)["change_id"] == change
    assert world.sql(CONTRACT_SQL)[0]["change_id"] == change


BAD_BODIES = [
    (b"", "invalid request body"),
    (b"{", "invalid request body"),
    (b"change_id=1", "invalid request body"),
    (b"[]", "invalid request body"),
    (b'"x"', "invalid request body"),
    (b"null", "invalid request body"),
    (b'{"change_id": 5}', "invalid request body"),
    (b'{"change_id": ["a"]}', "invalid request body"),
    (b'{"change_id": true}', "invalid request body"),
    (b'{"change_id": "a/1", "bytes_transferred": "5"}', "invalid request body"),
    (b'{"change_id": "a/1", "bytes_transferred": -5}', "invalid request body"),
    (b'{"change_id": "a/1", "bytes_transferred": 1.5}', "invalid request body"),
    (b'{"change_id": "a/1", "bytes_transferred": 99999999999999999999}', "invalid request body"),
    (b'{"change_id": "a/1", "disks": {}}', "invalid request body"),
    (b'{"change_id": "a/1", "disks": [1]}', "invalid request body"),
    (b'{"change_id": "a/1", "disks": [{"disk_id": "2000", "change_id": "a/1"}]}', "invalid request body"),
    (b'{"change_id": "a/1", "change_id": "a/2"}', "invalid request body"),
    (b'{"change_id": "a\\u0000b"}', "invalid request body"),
    (b'{"change_id": "\xff"}', "invalid request body"),
    (b"{}", "missing change_id"),
    (b'{"change_id": ""}', "missing change_id"),
    (b'{"change_id": null}', "missing change_id"),
    (b'{"bytes_transferred": 5}', "missing change_id"),
]


@pytest.mark.parametrize("body, error", BAD_BODIES)
def test_complete_with_a_bad_body(shared, body, error):
    """All checked before the job is looked up: the same for a job that there is and for one that there is not."""
    world, job = shared
    world.api.request("POST", f"{job.path}/complete", raw=body).expect(400, error)
    world.api.request("POST", "/backups/backup-none-1/complete", raw=body).expect(400, error)
    assert job.show()["status"] == "running"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A hub with a running job, for the many requests that must change nothing."""
    from lib import system
    from lib.hub import Hub
    from lib.world import World
    folder = tmp_path_factory.mktemp("shared")
    hub = Hub(folder / "hub").start()
    try:
        world = World(hub, folder)
        world.add_repository()
        world.add_vm()
        yield world, world.running_job()
        world.close()
    finally:
        hub.close()
        left = system.leftovers(folder)
    assert not left, left


def test_complete_without_an_id(shared):
    world, _ = shared
    world.api.post("/backups//complete", {"change_id": "a/1"}).expect(400, "missing backup_id")


def test_complete_an_unknown_job(shared):
    world, _ = shared
    for backup_id in ("backup-none-1", "replication-x", "%2F", "backup-pgtest1-%25"):
        world.api.post(f"/backups/{backup_id}/complete", {"change_id": "a/1"}).expect(404, "backup job not found")


def test_complete_with_a_wrong_token(shared):
    world, job = shared
    for token in ("wrong", job.token + "x", job.token[:-1]):
        world.api.with_token(token).post(f"{job.path}/complete", {"change_id": "a/1"}).expect(403)
    world.api.post(f"{job.path}/complete", {"change_id": "a/1"},
                   headers={"Authorization": "Basic YTpi"}).expect(403)
    assert job.show()["status"] == "running"


def test_complete_with_the_right_token(world, vm):
    job = world.written_job(vm)
    job.api.post(f"{job.path}/complete", {"change_id": job.change}).expect(200)


def test_complete_ignores_unknown_members(world, vm):
    job = world.written_job(vm)
    job.complete(job.change, vm_name="pgtest1", client_version="2.1").expect(200)


def test_pitfall_13_complete_a_job_that_does_not_run(world, vm):
    job = world.job()
    job.complete(change_id()).expect(409)
    assert job.show()["status"] == "pending"
    world.api.post(f"{job.path}/cancel").expect(202)
    job.complete(change_id()).expect(409)
    assert job.show()["status"] == "cancelled"
    failed = world.running_job()
    failed.call("fail", {"error": "read error", "details": "as asked for"}).expect(200)
    failed.complete(failed.change).expect(409)
    row, = world.sql("SELECT status, change_id, completed_at FROM backup_jobs WHERE id = ?", failed.id)
    assert row["status"] == "failed" and row["change_id"] is None


def test_rule_06_complete_when_not_everything_arrived(world, vm):
    """A full whose blocks are not all there is refused, and never listed as good."""
    job = world.running_job()
    job.complete(job.change, world.done(job, 4 * MIB)).expect(409)
    assert job.show()["status"] != "completed"
    assert world.sql("SELECT change_id FROM backup_jobs")[0]["change_id"] is None


def test_complete_announced_with_another_change_id(world, vm):
    job = world.written_job(vm)
    job.complete(change_id(), world.done(job, os.path.getsize(vm))).expect(400)
    assert job.show()["status"] == "running"


def test_disks_have_change_ids_of_their_own(world):
    _, paths = world.add_vm("two", sizes=(2 * MIB, MIB + 512), seed=5)
    job = world.job("two")
    job.claim()
    changes = {"disk-0": change_id(), "disk-1": change_id()}
    disks = job.announce([disk(f"disk-{n}", os.path.getsize(p), changes[f"disk-{n}"]) for n, p in enumerate(paths)])
    assert len({d["disk_id"] for d in disks.values()}) == 2
    for n, path in enumerate(paths):
        nbdcopy(path, disks[f"disk-{n}"]["uri"])
    done = [{"disk_id": d["disk_id"], "change_id": changes[key], "tracking": "none",
             **coverage([(0, os.path.getsize(paths[int(key[-1])]))])} for key, d in disks.items()]
    job.complete(changes["disk-0"], done).expect(200)
    shown = job.show()
    assert {d["disk_key"]: d["change_id"] for d in shown["disks"]} == changes
    assert shown["change_id"] == changes["disk-0"]


def test_completion_that_names_one_disk_of_two(world):
    """Each disk has a change ID of its own: one that is not named has none."""
    _, paths = world.add_vm("two", sizes=(MIB, MIB), seed=6)
    job = world.job("two")
    job.claim()
    changes = [change_id(), change_id()]
    disks = job.announce([disk(f"disk-{n}", MIB, change) for n, change in enumerate(changes)])
    for n, path in enumerate(paths):
        nbdcopy(path, disks[f"disk-{n}"]["uri"])
    job.complete(changes[0], [{"disk_id": disks["disk-0"]["disk_id"], "change_id": changes[0], "tracking": "none",
                               **coverage([(0, MIB)])}]).expect(400)
    assert job.show()["status"] != "completed"


def test_completion_of_a_disk_that_was_not_announced(world, vm):
    job = world.written_job(vm)
    done = world.done(job, os.path.getsize(vm))
    job.complete(job.change, [{**done[0], "disk_id": 4711}]).expect(400)
    assert job.show()["status"] != "completed"


# ---- what must be true at the end

def test_incremental_names_the_full_as_backing_file(world, vm):
    full = world.backup(vm)
    with open(vm, "r+b") as f:
        f.seek(MIB)
        f.write(b"changed" * 1000)
    increment = world.backup(vm)
    assert increment.show()["backup_type"] == "incremental"
    images = [job.show()["disks"][0]["image"] for job in (full, increment)]
    info = json.loads(subprocess.run(["qemu-img", "info", "--output=json", images[1]], check=True,
                                     capture_output=True).stdout)
    assert info["backing-filename"] == os.path.basename(images[0])
    assert info["backing-filename-format"] == "qcow2"
    assert re.fullmatch(r".*/ctx-pgtest1-[^/]+/disk-0/backup-pgtest1-\d+-full\.qcow2", images[0])
    assert re.fullmatch(r".*/ctx-pgtest1-[^/]+/disk-0/backup-pgtest1-\d+-incr\.qcow2", images[1])
    for image in images:
        subprocess.run(["qemu-img", "check", "-q", image], check=True)
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(vm), images[1]], check=True,
                   capture_output=True)


def test_incremental_is_small(world):
    _, (image,) = world.add_vm(sizes=(64 * MIB,))
    make_image(image, 64 * MIB, seed=9, runs=300)
    full = world.backup(image).show()
    with open(image, "r+b") as f:
        f.seek(7 * MIB + 13)
        f.write(b"day" * 20_000)
    increment = world.backup(image).show()
    assert 0 < increment["stored_bytes"] <= full["stored_bytes"] / 10
    sizes = [os.stat(b["disks"][0]["image"]).st_blocks * 512 for b in (full, increment)]
    assert sizes[1] <= sizes[0] / 10


def test_every_point_of_a_chain_is_the_vm_at_its_moment(world, vm, place):
    jobs, copies = [], []
    for day in range(4):
        if day:
            make_image(vm, 4 * MIB, seed=day, runs=3)
        copies.append(place / f"copy-{day}.raw")
        copies[-1].write_bytes(vm.read_bytes())
        jobs.append(world.backup(vm))
    for job, copy in zip(jobs, copies):
        image = job.show()["disks"][0]["image"]
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(copy), image], check=True,
                       capture_output=True)


@pytest.fixture
def tracked(world, vm):
    """A full backup of a disk whose changes are tracked."""
    size = os.path.getsize(vm)
    job = world.job()
    job.claim()
    job.change = VMWARE_ID
    disks = job.announce([disk("disk-0", size, job.change, tracking="bitmap")])
    nbdcopy(vm, disks["disk-0"]["uri"])
    job.complete(job.change, world.done(job, size, tracking="bitmap")).expect(200)
    return job


def test_tracked_incremental_moves_only_what_changed(world, vm, tracked):
    size = os.path.getsize(vm)
    increment = world.tracked_backup(tracked, [(0, 65536, 0x11), (3 * MIB, 131072, 0x22)], size, zeros=[(MIB, 65536)])
    shown = increment.show()
    assert shown["disks"][0]["mode"] == "tracked" and shown["disks"][0]["parent_backup_id"] == tracked.id
    assert shown["stored_bytes"] < size / 4     # tables included
    with open(vm, "r+b") as f:
        f.write(b"\x11" * 65536)
        f.seek(3 * MIB)
        f.write(b"\x22" * 131072)
        f.seek(MIB)
        f.write(bytes(65536))
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(vm), shown["disks"][0]["image"]],
                   check=True, capture_output=True)


def test_the_next_client_is_told_the_parents_change_ids(world, tracked):
    parent = world.job("pgtest1", "incremental").claim()
    assert parent["parent_backup_id"] == tracked.id
    assert [(d["disk_key"], d["change_id"], d["tracking"]) for d in parent["parent_disks"]] == [
        ("disk-0", VMWARE_ID, True)]


def tracked_job(world, vm, tracked, base):
    job = world.job("pgtest1", "incremental")
    job.claim()
    job.change = change_id()
    return job, job.announce([disk("disk-0", os.path.getsize(vm), job.change, tracking="bitmap",
                                   base_change_id=base)])["disk-0"]


def test_changes_since_another_point_are_not_taken(world, vm, tracked):
    """Base and change ID apart leaves holes: the increment is then made by comparison, and says so."""
    _, announced = tracked_job(world, vm, tracked, VMWARE_ID + "0")
    assert (announced["mode"], announced["reason"]) == ("compare", "tracking_lost")


@pytest.mark.parametrize("declared", [
    None,
    [],
    [(0, 131072)],
    [(65536, 65536)],
    [(0, 65536), (MIB, 65536)],
])
def test_rule_06_tracked_incremental_that_is_not_what_was_declared(world, vm, tracked, declared):
    """An extent that got lost on the way, or too many: refused, and never listed as good."""
    job, announced = tracked_job(world, vm, tracked, VMWARE_ID)
    assert announced["mode"] == "tracked"
    qemu_io(announced["uri"], "write -P 1 0 65536", "flush")
    sent = {} if declared is None else coverage(declared)
    job.complete(job.change, [{"disk_id": announced["disk_id"], "change_id": job.change, "tracking": "bitmap",
                               **sent}]).expect(400 if declared is None else 409)
    assert job.show()["status"] != "completed"


def test_a_failed_backup_is_no_parent(world, vm):
    """The parent is the newest completed point; it stays valid when a later one fails."""
    first = world.backup(vm)
    failed = world.running_job()
    failed.call("fail", {"error": "read error", "details": "as asked for"}).expect(200)
    assert world.job().started["parent_id"] == first.id


# ---- POST /replications/{id}/changeid

@pytest.fixture
def replication(world):
    return world.api.post("/replications", {"vm_name": "pgtest1", "job_id": "replication-pgtest1"}).expect(201)


def test_change_id_of_a_replication(world, replication):
    path = "/replications/replication-pgtest1/changeid"
    answer = world.api.post(path, {"change_id": VMWARE_ID, "disk_id": 2016}).expect(200)
    assert (answer["status"], answer["change_id"], answer["disk_id"]) == ("recorded", VMWARE_ID, 2016)
    world.api.post(path, {"change_id": "a/1", "disk_id": 2000, "more": 1}).expect(200)
    assert world.api.post(path, {"change_id": "a/2"}).expect(200)["disk_id"] is None
    shown = world.api.get("/replications/replication-pgtest1").expect(200)
    assert shown["change_id"] == "a/2"
    assert {d["disk_id"]: d["change_id"] for d in shown["disks"]} == {2016: VMWARE_ID, 2000: "a/1", None: "a/2"}
    assert world.sql("SELECT change_id FROM replication_jobs")[0]["change_id"] == "a/2"


@pytest.mark.parametrize("body, error", [b for b in BAD_BODIES if b"disks" not in b[0]] + [
    (b'{"change_id": "a/1", "disk_id": "2000"}', "invalid request body"),
    (b'{"change_id": "a/1", "disk_id": -1}', "invalid request body"),
])
def test_change_id_with_a_bad_body(shared, body, error):
    world, _ = shared
    world.api.request("POST", "/replications/replication-none/changeid", raw=body).expect(400, error)


def test_change_id_of_an_unknown_replication(shared):
    world, _ = shared
    for job_id in ("replication-none", "anything", "backup-pgtest1-1"):
        answer = world.api.post(f"/replications/{job_id}/changeid", {"change_id": "a/1"}).expect(404, "Job not found")
        assert answer["details"] == "Replication job not found"
    world.api.post("/replications//changeid", {"change_id": "a/1"}).expect(400, "missing job_id")


def test_change_id_with_a_wrong_token(world, replication):
    world.api.with_token("wrong").post("/replications/replication-pgtest1/changeid", {"change_id": "a/1"}).expect(403)


# ---- errors

def test_every_error_is_json(shared):
    world, _ = shared
    for base, path in (("", "/"), ("", "/api"), ("", "/api/v1"), ("", "/api/v2/health"), ("", "/favicon.ico"),
                       ("/api/v1", "/backup"), ("/api/v1", "/backups/x/y/z"), ("/api/v1", "/health/")):
        for method in ("GET", "POST", "DELETE", "PUT"):
            world.api.request(method, path, base=base).expect(404)
    for method, path in (("PUT", "/backups"), ("POST", "/health"), ("GET", f"/backups/{quote('a/b')}/complete"),
                         ("PATCH", "/backups/x"), ("OPTIONS", "/vms"), ("BREW", "/vms")):
        answer = world.api.request(method, path)
        answer.expect(405)
        assert answer.headers["allow"]


# ---- the hub's command line

def hub_status(hub, *options):
    done = subprocess.run([hub.binary, *options], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=patience(30), check=False)
    return done.returncode, done.stdout + done.stderr


def test_options_that_are_wrong(make_hub):
    hub = make_hub(start=False)
    data = ["--data-dir", str(hub.data)]
    for options in ([*data, "-port=0x10", "-auth=false"], [*data, "-port=65536", "-auth=false"], [*data, "-auth=maybe"],
                    [*data, "-auth=false", "--no-such-option"], [*data, "-auth=false", "extra"], [*data, "-port"],
                    [*data, "-auth=false", "--listen=0.0.0.0"]):
        status, text = hub_status(hub, *options)
        assert status == 2, (options, text)


def test_options_in_their_other_forms(make_hub):
    hub = make_hub(start=False)
    hub.command = lambda: [hub.binary, f"--data-dir={hub.data}", "--port", str(hub.port), "--auth=false",
                           f"-run-dir={hub.run_dir}"]
    hub.start()
    assert hub.api.get("/health").expect(200)["database"] == "sqlite"


def test_one_hub_a_data_folder(make_hub):
    first = make_hub()
    status, text = hub_status(first, "--data-dir", str(first.data), "-port=0", "-auth=false")
    assert status == 1, text


def test_the_hub_listens_on_this_machine_only(hub):
    listening = []
    for table in ("tcp", "tcp6"):
        with open(f"/proc/net/{table}", encoding="ascii") as file:
            rows = [line.split() for line in file][1:]
        listening += [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{hub.port:04X}")]
    assert listening == [f"0100007F:{hub.port:04X}"]
