"""Faults that the hub once had, each with its story in one line."""

import contextlib
import glob
import os
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from pathlib import Path

import nbd
import pytest

from lib import faults, system
from lib.api import quote
from lib.cli import Cli
from lib.history import wait_for
from lib.hub import FINAL, HubError
from lib.job import Job, change_id, coverage, disk, nbdcopy
from lib.line import Line
from lib.patience import patience
from lib.world import MIB, World


def same_bytes(image, point):
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(image), point], check=True,
                   capture_output=True)


def change(image, text=b"changed" * 1000):
    with open(image, "r+b") as f:
        f.seek(MIB)
        f.write(text)


def image_of(job):
    return job.show()["disks"][0]["image"]


class Away:
    """The repository is not there for a while, as on a share that is not mounted."""

    def __init__(self, world):
        self.info = os.path.join(world.repository["path"], "repository.json")

    def __enter__(self):
        os.rename(self.info, self.info + ".away")

    def __exit__(self, *_):
        os.rename(self.info + ".away", self.info)


# ---- deletions

def test_a_deletion_holds_nobody_up(world, vm):
    """The hub held the database's lock until the last file was gone: heartbeats waited, jobs were ended as silent."""
    first, second = world.backup(vm), world.backup(vm)
    other = world.add_vm("other", seed=7)[1][0]
    results = []
    thread = threading.Thread(target=lambda: results.append(
        world.api.delete(f"/backups/{quote(first.id)}?with_dependents=true")))
    # as for a file of terabytes: it is not over before we let it go on
    with faults.slow_calls(world.hub.process.pid, "unlink,unlinkat", patience(60)):
        thread.start()
        wait_for(lambda: world.show(first.id)["deleting"], "the deletion begins")
        assert world.show(second.id)["deleting"]
        # nothing comes to rest on what is going
        refused = world.api.post("/backups", {"vm_name": "pgtest1", "repository_id": world.repository_id,
                                              "start_client": False}).expect(409)
        assert second.id in refused["details"]
        world.api.post("/exports", {"backup_id": first.id, "disk": "disk-0", "purpose": "restore"}).expect(409)
        world.api.delete(f"/backups/{quote(first.id)}?with_dependents=true").expect(409)
        world.api.delete(f"/repositories/{world.repository_id}").expect(409)
        # everybody else goes on
        job = world.written_job(other, "other")
        job.progress()
        assert not results, "the deletion was over before"
    thread.join()
    job.complete(job.change).expect(200)
    assert results[0].expect(200)["deleted"] == [second.id, first.id]
    world.api.get(f"/backups/{quote(first.id)}").expect(404)
    assert not list(Path(world.repository["path"]).rglob(f"{first.id}*"))
    world.backup(vm)


def test_a_mark_of_a_deletion_does_not_stay(make_hub, world, vm):
    """A hub that was killed before the record was renamed leaves the point as it was."""
    point = world.backup(vm)
    world.hub.kill()
    with sqlite3.connect(world.hub.database) as database:
        database.execute("UPDATE backup_jobs SET deleting = 1")
    world.hub.start()
    world.api = world.hub.api
    assert not world.show(point.id)["deleting"]
    same_bytes(vm, image_of(point))
    world.backup(vm)


# ---- commits

def test_complete_that_comes_too_early_is_not_the_end(world, vm):
    """The refused seal broke the engine: what came after it, and every other complete, failed."""
    job = world.running_job(size=os.path.getsize(vm))
    refused = job.complete(job.change).expect(409)
    assert "not everything has arrived" in refused["details"]
    assert job.show()["status"] == "running"
    nbdcopy(vm, job.disks["disk-0"]["uri"])
    job.complete(job.change).expect(200)
    same_bytes(vm, image_of(job))


def test_a_commit_waits_for_its_repository(world, vm):
    """The status was whatever had failed (404, 422, 503, 507), where the contract has 500."""
    job = world.written_job(vm)
    with Away(world):
        job.complete(job.change).expect(500, "failed to complete backup")
        assert job.show()["status"] == "committing"
        job.complete(job.change).expect(500, "failed to complete backup")
        job.complete(change_id()).expect(409)
    assert world.api.wait_status(job.id, FINAL)["status"] == "completed"
    job.complete(job.change).expect(200)
    same_bytes(vm, image_of(job))


def test_a_late_heartbeat_does_not_spoil_a_commit(world, vm):
    """It changed the rows that the record is made of: a second try of the commit met "another hub's" record."""
    job = world.written_job(vm)
    with Away(world):
        job.complete(job.change, world.done(job, 4 * MIB), bytes_transferred=4711).expect(500)
        assert job.progress("completing", transferred_bytes=7, done_bytes=9)["status"] == "committing"
    shown = world.api.wait_status(job.id, FINAL)
    assert (shown["status"], shown["bytes_transferred"]) == ("completed", 4711)


def test_a_commit_that_waits_can_be_given_up(world, vm):
    """It could be neither cancelled nor deleted, and its VM not backed up, for as long as the repository was away."""
    job = world.written_job(vm)
    with Away(world):
        job.complete(job.change).expect(500)
        shown = world.api.post(f"{job.path}/cancel").expect(202)
        assert shown["status"] == "failed" and "repository" in shown["details"]
        job.complete(job.change).expect(409)
    assert world.backup(vm).show()["status"] == "completed"


def test_a_commit_that_cannot_succeed_fails(world, vm):
    """It was tried for ever when what had been sealed was gone, and its VM was never backed up again."""
    job = world.written_job(vm)
    with Away(world):
        job.complete(job.change).expect(500)
        for folder, _, names in os.walk(world.repository["path"]):
            for name in names:
                if ".hashes.partial-" in name:
                    os.unlink(os.path.join(folder, name))
    shown = world.api.wait_status(job.id, FINAL)
    assert (shown["status"], shown["error"]) == ("failed", "commit failed")
    assert world.backup(vm).show()["status"] == "completed"


def test_complete_again_with_another_disks_change_id(world):
    """Only the first disk's change ID was compared."""
    world.add_vm("two", sizes=(MIB, MIB), seed=5)
    job = world.job("two")
    job.claim()
    changes = {"disk-0": change_id(), "disk-1": change_id()}
    disks = job.announce([disk(key, MIB, c) for key, c in changes.items()])
    for n, d in enumerate(disks.values()):
        nbdcopy(world.folder / f"vm-5-{n}.raw", d["uri"])
    done = [{"disk_id": d["disk_id"], "change_id": changes[key], "tracking": "none", **coverage([(0, MIB)])}
            for key, d in disks.items()]
    job.complete(changes["disk-0"], done).expect(200)
    before = world.sql("SELECT * FROM backup_disks")
    job.complete(changes["disk-0"], done).expect(200)
    job.complete(changes["disk-0"]).expect(200)
    job.complete(changes["disk-0"], [done[0], {**done[1], "change_id": change_id()}]).expect(409)
    job.complete(changes["disk-0"], [done[0], {**done[1], "disk_id": 4711}]).expect(409)
    assert world.sql("SELECT * FROM backup_disks") == before


def test_complete_with_huge_numbers(world):
    """Bytes that no database can add up made a row that broke every list, and a record that no hub could start with."""
    _, paths = world.add_vm("two", sizes=(MIB, MIB), seed=5)
    job = world.job("two")
    job.claim()
    changes = [change_id(), change_id()]
    disks = job.announce([disk(f"disk-{n}", MIB, c) for n, c in enumerate(changes)])
    huge = 2 ** 63 - 1
    job.progress(done_bytes=huge, transferred_bytes=huge, zero_bytes=huge, changed_bytes=huge)
    for path, d in zip(paths, disks.values()):
        nbdcopy(path, d["uri"])
    done = [{"disk_id": d["disk_id"], "change_id": c, "bytes_transferred": huge, "tracking": "none",
             **coverage([(0, MIB)])} for d, c in zip(disks.values(), changes)]
    job.complete(changes[0], done, bytes_transferred=huge).expect(200)
    assert job.show()["bytes_transferred"] > 0
    world.api.get("/backups").expect(200)
    world.hub.restart()
    assert world.api.post(f"/repositories/{world.repository_id}/scan").expect(200)["problems"] == []


def test_a_seal_does_not_keep_the_hub_from_stopping(world, vm):
    """SIGTERM waited for the seal, an hour at most; and giving up must not cost the job."""
    job = world.written_job(vm)
    pid = world.sql("SELECT exporter_pid AS pid FROM backup_disks")[0]["pid"]
    results = []
    thread = threading.Thread(target=lambda: results.append(job.complete(job.change)))
    os.kill(pid, signal.SIGSTOP)
    try:
        thread.start()
        control = world.sql("SELECT control AS path FROM backup_disks")[0]["path"]
        wait_for(lambda: system.connections_to(control) > 0, "the hub asks for the seal")
        world.hub.stop()
    finally:
        os.kill(pid, signal.SIGCONT)
        thread.join()
    assert results[0].status == 500, results
    world.hub.start()
    assert job.show()["status"] == "running"
    job.complete(job.change).expect(200)
    same_bytes(vm, image_of(job))


def test_partial_images_go_when_their_repository_is_back(world, vm):
    """They stayed until the hub was started anew."""
    job = world.written_job(vm)
    with Away(world):
        world.api.post(f"{job.path}/cancel").expect(202)
        job.call("fail", {"error": "cancelled", "details": "as asked", "cancelled": True}).expect(200)
        assert list(Path(world.repository["path"]).rglob("*.partial-*"))
    wait_for(lambda: world.sql("SELECT attempt FROM backup_jobs WHERE id = ?", job.id) == [{"attempt": None}],
             "the partial images go")
    assert not list(Path(world.repository["path"]).rglob("*.partial-*"))


# ---- damage

def say_damaged(world, point, **where):
    return world.api.post(f"{point.path}/verification", {"result": "damaged", "disk_id": 2000, **where}).expect(200)


def test_damage_is_not_forgotten_by_a_verify_that_could_not_read(world, vm):
    """ "failed" overwrote "damaged": the next backup was an increment on the damaged point, and listed as good."""
    point = world.backup(vm)
    assert say_damaged(world, point)["affected"] == [point.id]
    world.api.post(f"{point.path}/verification", {"result": "failed"}).expect(200)
    assert world.show(point.id)["suspect"]
    shown = world.backup(vm).show()
    assert (shown["backup_type"], shown["disks"][0]["reason"]) == ("full", "parent_damaged")
    with Away(world):
        world.api.post(f"{point.path}/verification", {"result": "damaged", "disk_id": 2000}).expect(503)
    # only a verify that finds all well takes the mark away
    world.api.post(f"{point.path}/verification", {"result": "ok"}).expect(200)
    assert not world.show(point.id)["suspect"]


def test_damage_met_while_a_child_is_written(world, vm):
    """Only completed points were marked: the child, on its way then, was listed as good."""
    parent = world.backup(vm)
    child = world.written_job(vm)
    assert child.show()["parent_id"] == parent.id
    assert say_damaged(world, parent)["affected"] == [parent.id]
    child.complete(child.change).expect(200)
    assert child.show()["suspect"]
    shown = world.backup(vm).show()
    assert (shown["disks"][0]["reason"], shown["suspect"]) == ("parent_damaged", False)


def test_a_suspect_parent_is_compared(world, vm):
    """Rule 4: damage makes a full; what is suspect for another reason still holds what its hashes say."""
    parent = world.job()
    parent.claim()
    parent.change = change_id()
    size = os.path.getsize(vm)
    parent.announce([disk("disk-0", size, parent.change, tracking="bitmap")])
    nbdcopy(vm, parent.disks["disk-0"]["uri"])
    parent.complete(parent.change, [{"disk_id": parent.disks["disk-0"]["disk_id"], "change_id": parent.change,
                                     "tracking": "bitmap", **coverage([(0, size)])}]).expect(200)
    with sqlite3.connect(world.hub.database) as database:
        database.execute("UPDATE backup_jobs SET suspect = 1")
    job = world.job()
    job.claim()
    announced = job.announce([disk("disk-0", size, change_id(), tracking="bitmap", base_change_id=parent.change)])
    assert (announced["disk-0"]["mode"], announced["disk-0"]["reason"]) == ("compare", "parent_suspect")


# ---- deleting

def take_seconds(world, count):
    """As if so many jobs had been started, and cancelled, in this very second: IDs have a second in them."""
    job = world.job()
    world.api.post(f"{job.path}/cancel").expect(202)
    stem, _, second = job.id.rpartition("-")
    with contextlib.closing(sqlite3.connect(world.hub.database, timeout=30)) as database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(backup_jobs)") if row[1] != "id"]
        database.executemany(f"INSERT INTO backup_jobs (id, {', '.join(columns)}) SELECT ?, {', '.join(columns)} "
                             "FROM backup_jobs WHERE id = ?",
                             [(f"{stem}-{int(second) + n}", job.id) for n in range(1, count)])
        database.commit()


def test_the_id_of_a_deleted_point_is_not_given_again(world):
    """Points made faster than one a second have IDs of seconds to come: one was deleted, and the next one had its ID.
    Files are named after it, and a hub that comes back late goes on with deletions."""
    _, (image,) = world.add_vm()
    take_seconds(world, 3600)
    made = [world.backup(image).id for _ in range(2)]
    assert int(made[-1].rsplit("-", 1)[1]) > time.time(), "no ID is ahead of the clock; this test shows nothing"
    world.api.delete(f"/backups/{quote(made[-1])}").expect(200)
    made.append(world.backup(image).id)
    assert len(set(made)) == 3, made
    world.hub.stop()
    world.hub.start()
    world.api.delete(f"/backups/{quote(made[-1])}").expect(200)
    made.append(world.backup(image).id)
    assert len(set(made)) == 4, made


# ---- announcing

HUGE = 1 << 42      # no repository of a test has room for it


def announce_huge(world, **more):
    """The answer to an announcement of one huge disk."""
    job = world.job("huge")
    job.claim()
    answer = job.call("disks", {"disks": [disk("disk-0", HUGE, change_id(), **more)], "left_out": [],
                                "consistency": "crash", "consistency_detail": None})
    job.call("fail", {"error": "the test is over", "details": ""})
    return answer


def zeros(uri):
    """What nbdcopy sends of a sparse file. It asks the kernel, mincore(), which pages of all of it are in the cache:
    that kept a processor busy for 50 s, and everybody on it, so that tests beside this one failed."""
    connection = nbd.NBD()
    connection.connect_uri(uri)
    for at in range(0, HUGE, 1 << 31):
        connection.zero(1 << 31, at)
    connection.flush()
    connection.shutdown()


def test_room_is_asked_for_by_mode(make_hub, place):
    """An increment by comparison was refused unless the repository had room for the whole disk again."""
    world = World(make_hub(options=["--lease=600"]), place)     # a client is silent while it sends 4 TiB of zeros
    world.add_repository()
    world.add_vm("huge", seed=9)
    announce_huge(world, estimated_bytes=HUGE).expect(507)
    parent = world.job("huge")
    parent.claim()
    parent.change = change_id()
    parent.announce([disk("disk-0", HUGE, parent.change, tracking="bitmap", estimated_bytes=0)])
    zeros(parent.disks["disk-0"]["uri"])
    parent.complete(parent.change, [{"disk_id": parent.disks["disk-0"]["disk_id"], "change_id": parent.change,
                                     "tracking": "bitmap", **coverage([(0, HUGE)])}]).expect(200)
    compared = announce_huge(world, estimated_bytes=HUGE, allocated_bytes=HUGE).expect(200)
    assert compared["disks"][0]["mode"] == "compare"
    tracked = {"tracking": "bitmap", "base_change_id": parent.change, "allocated_bytes": HUGE}
    assert announce_huge(world, estimated_bytes=0, **tracked).expect(200)["disks"][0]["mode"] == "tracked"
    announce_huge(world, estimated_bytes=HUGE, **tracked).expect(507)
    # what was to be tracked becomes a full, and needs the room of a full
    say_damaged(world, parent)
    announce_huge(world, estimated_bytes=0, **tracked).expect(507)


def test_an_announcement_can_be_repeated(world, vm):
    """A slow share made the client give up before the hub had looked at the parent's hashes, every time."""
    job = world.running_job(size=os.path.getsize(vm))
    body = {"disks": [disk("disk-0", os.path.getsize(vm), job.change)], "left_out": [], "consistency": "crash",
            "consistency_detail": None}
    assert job.call("disks", body).expect(200)["disks"] == list(job.disks.values())
    body["disks"][0]["size"] += 512
    job.call("disks", body).expect(409)
    body["disks"][0]["size"] -= 512
    body["disks"].append(disk("disk-1", MIB, change_id()))
    job.call("disks", body).expect(409)
    nbdcopy(vm, job.disks["disk-0"]["uri"])
    job.complete(job.change).expect(200)
    same_bytes(vm, image_of(job))


def test_two_disks_of_one_number(world):
    """One that the source gave and one that the hub gave: no record can hold that, and the commit failed for ever."""
    world.add_vm("two", sizes=(MIB, MIB), seed=5)
    job = world.job("two")
    job.claim()
    body = {"disks": [disk("a", MIB, change_id()), disk("b", MIB, change_id(), disk_id=2000)], "left_out": [],
            "consistency": "crash", "consistency_detail": None}
    job.call("disks", body).expect(400)
    assert job.show()["status"] == "failed"
    world.api.get("/backups").expect(200)


def test_sizes_that_do_not_add_up(world, vm):
    """The sum of the sizes wrapped around, and the job's row broke every list."""
    job = world.job()
    job.claim()
    body = {"disks": [disk(f"disk-{n}", 1 << 56, change_id(), estimated_bytes=0) for n in range(200)], "left_out": [],
            "consistency": "crash", "consistency_detail": None}
    answer = job.call("disks", body)
    assert answer.status >= 400, answer
    world.api.get("/backups").expect(200)
    assert job.show()["status"] == "failed"


def test_announce_without_nbdkit(make_hub, place):
    """404 for the program was taken for a job that there is not: the job went on without exporters."""
    world = World(make_hub(environment={"PATH": str(place)}), place)
    world.add_repository()
    world.add_vm()
    job = world.job()
    job.claim()
    answer = job.call("disks", {"disks": [disk("disk-0", 4 * MIB, change_id())], "left_out": [],
                                "consistency": "crash", "consistency_detail": None})
    assert answer.status >= 400 and "nbdkit" in answer.json["details"], answer
    shown = job.show()
    assert shown["status"] == "failed" and "nbdkit" in shown["details"]


def test_client_logs_do_not_grow_without_end(make_hub, place):
    """All clients of a VM wrote to one file for ever."""
    line = Line(make_hub(), place, [b"a" * MIB])
    line.point()
    log = next((line.hub.data / "log").glob("*.client.log"))
    before = log.stat().st_size
    for _ in range(2):
        with open(log, "ab") as f:
            f.write(b"x" * (1 << 20))
        line.point()
    assert sorted(p.name for p in log.parent.iterdir()) == [log.name, f"{log.name}.1"]
    assert 0 < log.stat().st_size < before + 65536


def test_a_client_s_log_that_ends_within_a_line(make_hub, place):
    """As on a disk that was full: the next client's first line was appended to what there was of the last one."""
    line = Line(make_hub(), place, [b"a" * MIB])
    line.point()
    log = next((line.hub.data / "log").glob("*.client.log"))
    with open(log, "a", encoding="ascii") as f:
        f.write("ts=2026-01-01T00")
    line.point()
    lines = log.read_text().split("\n")
    assert lines.count("ts=2026-01-01T00") == 1 and "" not in lines[:-1] and lines[-1] == ""


# ---- a repository that holds more than the catalogue knew

def forget_and_take_back(world):
    """The repository leaves the catalogue and comes back, without its points."""
    listed = world.api.get("/backups").expect(200)["backups"]
    newest = max(int(b["backup_id"].rpartition("-")[2]) for b in listed)
    wait_for(lambda: time.time() > newest + 1, "no ID is ahead of the clock: those of forgotten points are free")
    world.api.delete(f"/repositories/{world.repository_id}").expect(200)
    world.repository = world.api.post("/repositories", {"name": "again", "path": world.repository["path"]}).expect(201)


@pytest.mark.parametrize("how", ["scan", "restart"])
def test_an_increment_lies_beside_its_parent(world, vm, how):
    """A scan of older points moved the VM to their folder: the next increment's backing file was not beside it."""
    world.backup(vm)
    forget_and_take_back(world)
    for _ in range(2):
        change(vm, os.urandom(1000))
        parent = world.backup(vm)
    if how == "scan":
        assert world.api.post(f"/repositories/{world.repository_id}/scan").expect(200)["added"] == 1
    else:
        world.hub.restart()
    change(vm)
    job = world.backup(vm)
    assert job.show()["parent_id"] == parent.id
    assert os.path.dirname(image_of(job)) == os.path.dirname(image_of(parent))
    same_bytes(vm, image_of(job))


def test_disk_numbers_that_clash(world):
    """Another key had the number by then: the scan failed, and no hub started any more."""
    _, paths = world.add_vm("two", sizes=(MIB, MIB), seed=5)

    def backup(keys):
        job = world.job("two")
        job.claim()
        done = []
        changes = {key: change_id() for key in keys}
        for key, d in job.announce([disk(key, MIB, changes[key]) for key in keys]).items():
            nbdcopy(paths["xy".index(key)], d["uri"])
            done.append({"disk_id": d["disk_id"], "change_id": changes[key], "tracking": "none",
                         **coverage([(0, MIB)])})
        first = min(job.disks.values(), key=lambda d: d["disk_no"])["disk_key"]
        job.complete(changes[first], done).expect(200)
        return job

    backup("xy")
    forget_and_take_back(world)
    backup("y")
    scan = world.api.post(f"/repositories/{world.repository_id}/scan").expect(200)
    assert (scan["added"], scan["problems"]) == (1, [])
    world.hub.restart()
    for _ in range(2):
        for d in backup("xy").show()["disks"]:
            same_bytes(paths["xy".index(d["disk_key"])], d["image"])


def test_a_point_in_two_repositories(world, vm):
    """One record that clashed kept the whole hub from starting."""
    mine, other = world.backup(vm), world.backup(vm)
    first = world.repository
    second = world.add_repository("second")
    world.hub.stop()
    with sqlite3.connect(world.hub.database) as database:
        database.execute("UPDATE backup_jobs SET repository_id = ? WHERE id = ?", (second["repository_id"], mine.id))
    database.close()
    world.hub.start()
    problem, = world.api.post(f"/repositories/{first['repository_id']}/scan").expect(200)["problems"]
    assert mine.id in problem["details"] and problem["path"].endswith(".json")
    assert world.show(other.id)["status"] == "completed"


def test_a_folder_that_somebody_removed(world, vm):
    """The VM could never be backed up into that repository again."""
    job = world.backup(vm)
    shutil.rmtree(os.path.dirname(os.path.dirname(image_of(job))))
    second = world.backup(vm)
    assert second.show()["backup_type"] == "full" and second.show()["reason"] == "parent_damaged"
    same_bytes(vm, image_of(second))
    world.api.delete(job.path).expect(200)
    assert world.backup(vm).show()["parent_id"] == second.id


def test_a_repository_is_not_called_by_a_number(world, place):
    """A later repository's ID took the place of such a name."""
    answer = world.api.post("/repositories", {"name": "7", "path": str(place / "seven")})
    answer.expect(400, "invalid request body")


def test_last_backup_is_the_vms_own(world, vm):
    """It was another VM's that once had the name; and none after a change of the name."""
    job = world.backup(vm)
    world.api.patch("/vms/pgtest1", {"name": "renamed"}).expect(200)
    assert world.api.get("/vms/renamed").expect(200)["last_backup"]["backup_id"] == job.id
    world.add_vm("pgtest1", seed=9)
    assert world.api.get("/vms/pgtest1").expect(200)["last_backup"] is None


# ---- exports

def test_a_repository_that_is_read_stays(world, vm):
    """It could be removed, and then no export was listed any more."""
    job = world.backup(vm)
    export = world.api.post("/exports", {"backup_id": job.id, "disk": "0", "purpose": "restore"}).expect(201)
    world.api.delete(f"/repositories/{world.repository_id}").expect(409)
    assert len(world.api.get("/exports").expect(200)["exports"]) == 1
    world.api.delete(f"/exports/{export['export_id']}").expect(200)
    world.api.delete(f"/repositories/{world.repository_id}").expect(200)


def test_an_exporter_that_dies_is_reaped(world, vm):
    """An export's exporter stayed as a zombie when it died by itself."""
    job = world.backup(vm)
    world.api.post("/exports", {"backup_id": job.id, "disk": "0", "purpose": "restore"}).expect(201)
    exporter, = (p for p, line in world.hub.children().items() if "nbdkit" in line)
    os.kill(exporter, signal.SIGKILL)
    until = time.monotonic() + patience(15)
    while world.api.get("/exports").expect(200)["exports"]:
        assert time.monotonic() < until
        time.sleep(0.2)
    assert system.children(world.hub.process.pid, "Z") == []


# ---- the process

def test_a_hub_that_was_held_up(make_hub, place):
    """It took its own sleep for the clients' silence, and ended healthy jobs when it woke."""
    world = World(make_hub(options=["--lease", "2"]), place)
    world.add_repository()
    _, (vm,) = world.add_vm()
    job = world.written_job(vm)
    job.progress()      # from here on it is silent, however long the writing took
    world.hub.process.send_signal(signal.SIGSTOP)
    time.sleep(3.5)
    world.hub.process.send_signal(signal.SIGCONT)
    time.sleep(1)
    assert job.progress()["status"] == "running"
    job.complete(job.change).expect(200)


def test_closed_descriptors(make_hub, place):
    """Its lock, or its database, became standard error, and the log was written into it."""
    shell = place / "hub.sh"
    hub = make_hub(start=False)
    shell.write_text(f"#!/bin/sh\nexec {hub.binary} \"$@\" <&- >&- 2>&-\n")
    shell.chmod(0o755)
    hub.binary = str(shell)
    hub.start()
    world = World(hub, place)
    world.add_repository()
    _, (vm,) = world.add_vm()
    world.backup(vm)
    for fd in range(3):
        assert os.readlink(f"/proc/{hub.process.pid}/fd/{fd}") == "/dev/null"
    assert (hub.data / "lock").read_bytes() == b""


def test_two_hubs_on_one_run_folder(make_hub, place):
    """The second one ended what the first one's jobs were writing with."""
    world = World(make_hub(), place)
    world.add_repository()
    _, (vm,) = world.add_vm()
    job = world.written_job(vm)
    second = make_hub("second", start=False)
    shutil.rmtree(second.run_dir)
    second.run_dir = world.hub.run_dir
    with pytest.raises(HubError, match="another hub"):
        second.start()
    assert not second.running
    job.complete(job.change).expect(200)
    second.run_dir = f"{world.hub.run_dir}-second"


def test_a_run_folder_by_another_name(make_hub, place):
    """Sockets on record were compared by the folder's spelling: a slash more, and live exporters were swept away."""
    world = World(make_hub(), place)
    world.add_repository()
    _, (vm,) = world.add_vm()
    job = world.written_job(vm)
    real = world.hub.run_dir
    world.hub.stop()
    world.hub.run_dir = os.path.join(os.path.dirname(real), ".", os.path.basename(real)) + "//"
    world.hub.start()
    job.complete(job.change).expect(200)
    world.hub.stop()
    world.hub.run_dir = real
    assert system.wait_gone(real) == {}


def test_many_jobs_at_a_restart(world, place):
    """Of more than 64 jobs the exporters of the last ones were swept away."""
    for n in range(66):
        world.api.post("/vms", {"name": f"vm{n}", "source": {"type": "file", "disks": [{"path": "/nowhere"}]}}).expect(
            201)
    jobs = [world.job(f"vm{n}") for n in range(65)]
    _, (vm,) = world.add_vm("last", seed=3)
    last = world.written_job(vm, "last")
    world.hub.restart()
    last.complete(last.change).expect(200)
    for job in jobs:
        world.api.post(f"{job.path}/cancel").expect(202)
    assert Job(world.api, "vm0", world.repository_id).call("fail", {"error": "x", "details": ""}).status == 200


def test_a_client_of_a_deleted_job_is_reaped(world, vm):
    """A job that was deleted before its client was reaped left it as a zombie."""
    os.unlink(vm)
    started = world.api.post("/backups", {"vm_name": "pgtest1", "repository_id": world.repository_id}).expect(201)
    path = f"/backups/{quote(started['backup_id'])}"
    while world.api.get(path).expect(200)["status"] not in FINAL:
        pass            # no pause: its client has just reported
    world.api.delete(path).expect(200)
    until = time.monotonic() + patience(10)
    while system.children(world.hub.process.pid, "Z"):
        assert time.monotonic() < until, "never reaped"
        time.sleep(0.2)


@pytest.mark.parametrize("content", [None, b"{}"])
def test_another_hub_took_the_name(world, vm, content):
    """Two hubs, one repository, one second: the slower job was committing until its hub was started again."""
    first = world.backup(vm)
    job = world.written_job(vm)
    folder = Path(image_of(first)).parents[1]
    row, = world.sql("SELECT stem FROM backup_jobs WHERE id = ?", job.id)
    record = folder / f"{row['stem']}.json"
    record.write_bytes(content or next(folder.glob("*.json")).read_bytes())     # not what this job would write
    job.complete(job.change).expect(500)
    shown = job.show()
    assert (shown["status"], shown["error"]) == ("failed", "commit failed") and "another hub" in shown["details"]
    assert record.exists() and not list(folder.rglob("*.partial-*"))
    record.unlink()
    assert world.backup(vm).show()["parent_id"] == first.id


@pytest.mark.parametrize("catalogue", ["kept", "new"])
@pytest.mark.parametrize("harm", ["no image", "short image", "no hashes", "no record", "nothing left"])
def test_a_scan_marks_what_it_finds_broken(world, vm, harm, catalogue):
    """A scan named files that were missing or short, and went on listing their points, and those on them, as good."""
    before, broken, child = world.backup(vm), world.backup(vm), world.backup(vm)
    image = image_of(broken)
    record = os.path.join(os.path.dirname(os.path.dirname(image)), os.path.basename(image).removesuffix("-incr.qcow2"))
    gone = {"no image": [image], "no hashes": [image.removesuffix("qcow2") + "hashes"], "no record": [record + ".json"],
            "nothing left": glob.glob(glob.escape(record) + "*") + glob.glob(
                glob.escape(image.removesuffix("-incr.qcow2")) + "*")}
    if harm == "short image":
        os.truncate(image, os.path.getsize(image) - 512)
    for path in gone.get(harm, []):
        os.unlink(path)
    if catalogue == "new":
        forget_and_take_back(world)
    found = world.api.post(f"/repositories/{world.repository_id}/scan").expect(200)
    named = {p["backup_id"] for p in found["problems"]} | set(found["missing"])
    listed = {b["backup_id"]: b for b in world.api.get("/backups").expect(200)["backups"]}
    assert listed[before.id]["suspect"] is False and before.id not in named
    assert listed[child.id]["suspect"] is True and listed[child.id]["verify_result"] == "damaged"
    if broken.id in listed:
        assert listed[broken.id]["suspect"] is True and broken.id in named
    else:
        assert catalogue == "new" and child.id in named
    assert world.backup(vm).show()["reason"] == "parent_damaged"


def test_the_job_says_why_it_compares(world, vm):
    """Each disk said why its tracking was of no use, and the job's record said nothing."""
    assert world.backup(vm).show()["reason"] == "first_backup"
    shown = world.backup(vm).show()
    assert (shown["backup_type"], shown["reason"]) == ("incremental", "not_tracked") and shown["reason_text"]
    assert shown["disks"][0]["reason"] == "not_tracked"


@pytest.mark.parametrize("option", ["--plugin", "--client"])
def test_a_program_that_is_not_there(make_hub, place, option):
    """The hub took jobs, and each failed when its exporter or client was to start."""
    (place / "no-program").write_text("")
    os.chmod(place / "no-program", 0)
    for name, why in (("nowhere", "No such file"), ("", "is a folder")):
        with pytest.raises(HubError, match=f"(?s)ended with 2:.*{option}: {place / name}.*{why}"):
            make_hub(f"hub-{why}", options=[f"{option}={place / name}"])
    if option == "--client":
        with pytest.raises(HubError, match="(?s)ended with 2:.*no-program.*Permission denied"):
            make_hub("hub-mode", options=[f"{option}={place}/no-program"])


def test_health_of_a_full_data_folder(make_hub, place):
    """The hub said that all is well until the database could not be written."""
    hub = make_hub(start=False)
    hub.data.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", hub.data], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        hub.start()
        cli = Cli(hub.url)
        assert hub.api.get("/health").expect(200)["status"] == "ok"
        assert cli.run("health").status == 0
        with open(hub.data / "what others keep here", "wb") as f:
            os.posix_fallocate(f.fileno(), 0, 60 * MIB)
        value = hub.api.get("/health").expect(200)
        assert value["status"] == "degraded" and "data folder" in value["problem"]
        assert 0 < value["data_dir_free_bytes"] < 256 * MIB
        said = cli.run("health")
        assert said.status == 1 and "degraded" in said.out and value["problem"] in said.out
        (hub.data / "what others keep here").unlink()
        assert hub.api.get("/health").expect(200)["problem"] is None
    finally:
        hub.close()
        subprocess.run(["umount", hub.data], check=True)
