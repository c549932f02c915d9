"""The REST API beyond the plan's calls, against the real hub."""

import concurrent.futures
import os
import shutil
import subprocess
import threading
import uuid
from pathlib import Path

import pytest
import yaml

from lib import faults
from lib.api import quote
from lib.history import wait_for
from lib.hub import BIN, FINAL
from lib.job import Job, change_id, disk, full_backup, nbdcopy
from lib.patience import patience
from lib.world import MIB, World, make_image

OPENAPI = Path(__file__).resolve().parents[2] / "api" / "openapi.yaml"
NOBODY = str(uuid.uuid4())


# ---- every operation

def operations():
    with open(OPENAPI, encoding="utf-8") as f:
        document = yaml.safe_load(f)
    for path, item in document["paths"].items():
        for method in ("get", "post", "patch", "delete"):
            if method in item:
                yield method.upper(), path, item[method]


@pytest.mark.parametrize("method, path, limited", [
    (m, p, m != "GET" or "413" in o["responses"]) for m, p, o in operations()])
def test_guards(one_hub, method, path, limited):
    """What is common to all paths really is."""
    api = one_hub.api
    target = "/".join("x" if part.startswith("{") else part for part in path.split("/"))
    api.request(method, target, headers={"Origin": "http://evil.example"}).expect(403, "origin not accepted")
    api.request(method, target + "?x=" + "a" * 9000).expect(414, "URL too long")
    api.request(method, target, headers={"X-Any": "a" * 17_000}).expect(431, "request headers too large")
    api.request(method, target + "?%zz=1").expect(400)
    api.request(method, target + "?no_such_parameter=1").expect(400)
    if limited:
        api.request(method, target, headers={"Content-Length": str((1 << 20) + 1)}).expect(413, "request too large")


@pytest.mark.parametrize("method, path", [(m, p) for m, p, o in operations()
                                          if "requestBody" in o and o["operationId"] != "claimReplication"])
def test_bodies(one_hub, method, path):
    target = "/".join("x" if part.startswith("{") else part for part in path.split("/"))
    # The client's calls look at the token first
    calls = ("claim", "disks", "progress", "audit", "fail")
    expected = (401, 404) if path.split("/")[-1] in calls else (400,)
    for body in (b"", b"{", b"[]", b'"x"', b'{"a":1,"a":1}', b'{"a":"\xff"}'):
        answer = one_hub.api.request(method, target, raw=body)
        assert answer.status in expected, answer
        answer.expect(answer.status)


@pytest.mark.parametrize("path, body", [
    ("/repositories", {"name": "x", "path": "/nowhere/x"}),
    ("/vms", {"name": "x", "source": {"type": "file", "disks": [{"path": "/nowhere"}]}}),
    ("/exports", {"backup_id": "backup-x-1", "disk": "0", "purpose": "restore"}),
    ("/replications", {"vm_name": "x"}),
    ("/backups/backup-x-1/verification", {"disk_id": 2000, "result": "ok"}),
])
def test_unknown_members_are_refused(one_hub, path, body):
    one_hub.api.post(path, {**body, "no_such_member": 1}).expect(400, "invalid request body")


@pytest.fixture(scope="module")
def one_hub(tmp_path_factory):
    """A hub for the many requests that change nothing."""
    from lib import system
    from lib.hub import Hub
    folder = tmp_path_factory.mktemp("one")
    hub = Hub(folder / "hub").start()
    try:
        yield hub
    finally:
        hub.close()
        left = system.leftovers(folder)
    assert not left, left


def test_health(hub):
    value = hub.api.get("/health").expect(200)
    assert (value["status"], value["problem"], value["database"], value["running_jobs"]) == ("ok", None, "sqlite", 0)
    assert value["data_dir_free_bytes"] > 0


# ---- repositories

def test_repositories(world, place):
    api, first = world.api, world.repository
    assert os.path.exists(place / first["path"] / "repository.json")
    assert first["available"] and first["problem"] is None and first["points"] == 0
    second = world.add_repository("a/b \u00fc%", cluster_size=131072, hash_algorithm="sha256")
    assert (second["cluster_size"], second["hash_algorithm"]) == (131072, "sha256")
    assert [r["name"] for r in api.get("/repositories").expect(200)["repositories"]] == ["main", "a/b \u00fc%"]
    for name in (second["repository_id"], quote("a/b \u00fc%")):
        assert api.get(f"/repositories/{name}").expect(200)["uuid"] == second["uuid"]
    api.get("/repositories/99").expect(404, "repository not found")
    removed = api.delete("/repositories/" + second["repository_id"]).expect(200)
    assert removed["path"] == second["path"] and os.path.exists(second["path"] + "/repository.json")
    api.delete("/repositories/" + second["repository_id"]).expect(404)
    api.post("/repositories/99/scan").expect(404)


def test_repositories_refused(world, place):
    path = world.repository["path"]
    for body in ({"name": "main", "path": str(place / "other")}, {"name": "other", "path": path},
                 {"name": "other", "path": path + "/../" + os.path.basename(path)}):
        world.api.post("/repositories", body).expect(409)
    shutil.copytree(path, place / "copy")
    world.api.post("/repositories", {"name": "copy", "path": str(place / "copy")}).expect(409)
    (place / "file").write_text("x")
    (place / "full").mkdir()
    (place / "full" / "x").write_text("x")
    for change in ({"path": "relative"}, {"path": ""}, {"name": ""}, {"name": "a\nb"}, {"name": "a" * 256},
                   {"cluster_size": 1000}, {"cluster_size": 1 << 30}, {"cluster_size": "65536"},
                   {"hash_algorithm": "md5"}, {"path": str(place / "file")}, {"path": str(place / "file/x")},
                   {"path": "/dev/null"}, {"path": str(place / "no/parent")}, {"path": "/proc/x"}):
        world.api.post("/repositories", {"name": "other", "path": str(place / "other"), **change}).expect(400)
    assert len(world.api.get("/repositories").expect(200)["repositories"]) == 1


def test_an_unmounted_repository(world, vm):
    """An unmounted share is an empty folder: nothing is written into it."""
    path = world.repository["path"]
    os.rename(path, path + ".away")
    os.mkdir(path)
    shown = world.api.get(f"/repositories/{world.repository_id}").expect(200)
    assert shown["available"] is False and shown["problem"]
    answer = world.api.post("/backups", {"vm_name": "pgtest1", "repository_id": world.repository_id,
                                         "start_client": False})
    assert answer.status in (409, 503), answer
    assert os.listdir(path) == []
    os.rmdir(path)
    os.rename(path + ".away", path)
    world.backup(vm)


def test_scan_brings_a_catalogue_back(world, vm):
    jobs = [world.backup(vm), world.backup(vm)]
    before = [world.show(j.id) for j in jobs]
    world.api.delete(f"/repositories/{world.repository_id}").expect(200)
    world.api.get(jobs[0].path).expect(404)
    world.repository = world.api.post("/repositories", {"name": "again", "path": world.repository["path"]}).expect(201)
    scan = world.api.post(f"/repositories/{world.repository_id}/scan").expect(200)
    # taking the folder in may have read the records already
    assert scan["added"] + scan["unchanged"] == 2 and not scan["problems"] and not scan["orphans"]
    after = [world.show(j.id) for j in jobs]
    same = ("backup_id", "vm_name", "vm_id", "backup_type", "change_id", "parent_id", "sequence", "status",
            "created_at", "completed_at", "consistency", "consistency_detail")
    for old, new in zip(before, after):
        assert {k: old[k] for k in same} == {k: new[k] for k in same}
        assert [d["root"] for d in old["disks"]] == [d["root"] for d in new["disks"]]
    assert world.backup(vm).show()["parent_id"] == jobs[1].id


def test_remove_or_scan_while_a_job_runs(world, vm):
    done, job = world.backup(vm), world.running_job()
    world.api.delete(f"/repositories/{world.repository_id}").expect(409)
    scan = world.api.post(f"/repositories/{world.repository_id}/scan").expect(200)
    assert (scan["added"], scan["unchanged"], scan["missing"]) == (0, 1, [])
    assert scan["orphans"] == [], "the job's partial files are not orphans"
    nbdcopy(vm, job.disks["disk-0"]["uri"])
    job.complete(job.change).expect(200)
    assert job.show()["parent_id"] == done.id


# ---- VMs

def test_vms(world, place):
    api = world.api
    name = "a/b c:,'\"-disk \u00fc\u65e5%2F"
    added, (path,) = world.add_vm(name)
    assert added["name"] == name and added["registered"] and added["last_backup"] is None
    assert added["source"]["disks"][0]["key"] == "disk-0"
    for where in (quote(name), added["vm_id"]):
        assert api.get(f"/vms/{where}").expect(200) == added
    assert api.get("/vms").expect(200)["vms"] == [added]
    api.post("/vms", {"name": name, "source": added["source"]}).expect(409)
    changed = api.patch(f"/vms/{quote(name)}", {"name": "plain", "excluded_disks": ["disk-7"]}).expect(200)
    assert (changed["name"], changed["vm_id"], changed["excluded_disks"]) == ("plain", added["vm_id"], ["disk-7"])
    api.get(f"/vms/{quote(name)}").expect(404, "vm not found")
    assert api.patch("/vms/plain", {"source": {"type": "qemu", "qmp": "/run/q.sock"}}).expect(200)["source"][
        "type"] == "qemu"
    api.patch(f"/vms/{NOBODY}", {"name": "x"}).expect(404)
    api.patch("/vms/plain", {"vm_id": NOBODY}).expect(400, "invalid request body")
    assert api.delete("/vms/plain").expect(200) == {"status": "removed", "vm_id": added["vm_id"], "points_kept": 0}
    api.delete("/vms/plain").expect(404)


def test_vms_page_by_page(world):
    """A page has what is on it, and `next` is an odd name as well as another; without `limit` it is all of them."""
    names = sorted(["a", "a&b=c", "b,d", "c/%2F", "d \u00fc", "e"])
    for name in names:
        world.api.post("/vms", {"name": name, "source": {"type": "file", "disks": [{"path": "/nowhere"}]}}).expect(201)
    whole = world.api.get("/vms").expect(200)
    assert [vm["name"] for vm in whole["vms"]] == names and whole["next"] is None
    for limit in (1, 2, 4, 6, 7):
        found, place, pages = [], "", 0
        while place is not None:
            page = world.api.get(f"/vms?limit={limit}{place}").expect(200)
            assert len(page["vms"]) <= limit
            found, pages = found + page["vms"], pages + 1
            place = page["next"] and f"&after={quote(page['next'])}"
        assert found == whole["vms"] and pages == len(names) // limit + 1
    for odd in ("limit=0", "limit=1001", "limit=x", "after=a", "all=true&limit=5", "all=true&after=a&limit=2"):
        world.api.get(f"/vms?{odd}").expect(400)
    assert world.api.get("/vms?limit=5&after=zzz").expect(200) == {"vms": [], "next": None}


@pytest.mark.parametrize("body", [
    {"name": ""}, {"name": "a\x00b"}, {"name": "a\nb"}, {"name": "a" * 256}, {"name": 5}, {"source": None},
    {"source": {"type": "floppy"}}, {"source": {"type": "file"}}, {"source": {"type": "file", "disks": []}},
    {"source": {"type": "file", "disks": [{"path": 1}]}}, {"source": {"type": "qemu"}}, {"excluded_disks": "disk-0"},
    {"source": {"type": "file", "disks": [{"path": "/a", "key": "k"}, {"path": "/b", "key": "k"}]}},
])
def test_vms_refused(one_hub, body):
    answer = one_hub.api.post("/vms", {"name": "x", "source": {"type": "file", "disks": [{"path": "/a"}]}, **body})
    assert answer.status in (400, 501), answer
    answer.expect(answer.status)
    assert one_hub.api.get("/vms").expect(200)["vms"] == []


def test_a_removed_vm_keeps_its_points(world, vm):
    job = world.backup(vm)
    old = world.api.get("/vms/pgtest1").expect(200)
    assert old["points"] == 1 and old["last_backup"]["backup_id"] == job.id
    assert world.api.delete("/vms/pgtest1").expect(200)["points_kept"] == 1
    assert world.api.get("/vms").expect(200)["vms"] == []
    orphan, = world.api.get("/vms?all=true").expect(200)["vms"]
    assert (orphan["registered"], orphan["vm_id"], orphan["points"]) == (False, old["vm_id"], 1)
    source = {"type": "file", "disks": [{"path": str(vm), "format": "raw"}]}
    assert world.api.post("/vms", {"name": "new", "source": source, "adopt": "nobody"}).expect(404)
    adopted = world.api.post("/vms", {"name": "pgtest1", "source": source, "adopt": "pgtest1"}).expect(201)
    assert adopted["vm_id"] == old["vm_id"] and adopted["points"] == 1
    assert world.backup(vm).show()["parent_id"] == job.id


def test_a_busy_vm_stays_as_it_is(world, vm):
    world.running_job()
    world.api.delete("/vms/pgtest1").expect(409)
    world.api.patch("/vms/pgtest1", {"name": "other"}).expect(409)


# ---- backups

def test_list(world, vm):
    ids = [world.backup(vm).id for _ in range(3)]
    world.add_vm("other", seed=3)
    other = world.running_job("other")

    def listed(query):
        return [b["backup_id"] for b in world.api.get(f"/backups?{query}").expect(200)["backups"]]

    page = world.api.get("/backups").expect(200)
    assert [b["backup_id"] for b in page["backups"]] == [other.id, *reversed(ids)]
    assert (page["total"], page["limit"], page["offset"]) == (4, 100, 0)
    assert (page["more_than_total"], page["next"]) == (False, None)
    # page by page, with and without a filter, while the newest goes
    for query, expected in (("", [other.id, *reversed(ids)]), ("vm_name=pgtest1&", ids[::-1]),
                            ("status=completed&repository_id=main&", ids[::-1])):
        found, after = [], ""
        while True:
            part = world.api.get(f"/backups?{query}limit=2{after}").expect(200)
            found += [b["backup_id"] for b in part["backups"]]
            assert part["total"] == len(expected)
            if part["next"] is None:
                break
            after = f"&after={quote(part['next'])}"
        assert found == expected
    assert listed("vm_name=pgtest1") == ids[::-1]
    assert listed("vm_name=pgtest1&limit=1&offset=1") == [ids[1]]
    assert listed("status=running") == [other.id]
    assert listed(f"repository_id={world.repository_id}&status=completed") == ids[::-1]
    assert listed("repository_id=main&offset=4") == []
    world.api.get("/backups?repository_id=99").expect(404)
    for query in ("limit=0", "limit=1001", "limit=x", "offset=-1", "offset=10001", "status=done", "limit=1&limit=2",
                  "vm=x", "after=x", "after=1,2,3", f"after={page['backups'][0]['created_at']},1,",
                  f"after={page['backups'][0]['created_at']},x,y"):
        world.api.get(f"/backups?{query}").expect(400)


def test_strange_names(world, place):
    """A VM's name in paths, IDs, file names and NBD URIs."""
    for n, name in enumerate(["a/b", "..", "-disk, x:y", "\u65e5\u672c %2F", "'; DROP TABLE vms;--", "x" * 255]):
        _, (path,) = world.add_vm(name, sizes=(MIB,), seed=50 + n)
        job = world.backup(path, vm_name=name)
        assert job.id.startswith(f"backup-{name}-")
        shown = job.show()
        assert shown["vm_name"] == name and shown["status"] == "completed"
        image = shown["disks"][0]["image"]
        assert os.path.realpath(image).startswith(world.repository["path"] + "/ctx-")
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(path), image], check=True,
                       capture_output=True)
        with open(path, "r+b") as f:
            f.write(b"changed")
        assert world.backup(path, vm_name=name).show()["parent_id"] == job.id


def test_unknown_backups(one_hub):
    api = one_hub.api
    for backup_id in ("backup-none-1", "%2E%2E", "%2Fetc%2Fpasswd", "a" * 400, quote("\u00fc' OR 1=1")):
        for method, what in (("GET", ""), ("GET", "/events"), ("DELETE", ""), ("POST", "/cancel")):
            api.request(method, f"/backups/{backup_id}{what}").expect(404, "backup job not found")


def test_cancel(world, vm):
    job = world.job()
    assert world.api.post(f"{job.path}/cancel").expect(202)["status"] == "cancelled"
    world.api.post(f"{job.path}/cancel").expect(409)
    job = world.running_job()
    assert world.api.post(f"{job.path}/cancel").expect(202)["cancel_requested"] is True
    assert job.progress()["cancel"] is True
    assert job.call("fail", {"error": "cancelled", "details": "as asked", "cancelled": True}).expect(200)[
        "status"] == "cancelled"
    shown = job.show()
    assert shown["status"] == "cancelled" and shown["change_id"] is None
    assert files(world) == []


def test_cancel_of_a_client_that_does_not_listen(world, vm):
    for announced in (False, True):
        job = world.running_job() if announced else world.job()
        if not announced:
            job.claim()
        world.api.post(f"{job.path}/cancel").expect(202)
        ended = world.api.wait_status(job.id, FINAL)
        assert (ended["status"], ended["error"]) == ("cancelled", "cancelled"), "not by its silence"
    assert files(world) == []


def files(world):
    """Images and hashes in the repository, partial ones included."""
    return sorted(p.name for p in Path(world.repository["path"]).rglob("backup-*"))


def test_delete(world, vm):
    jobs = []
    for day in range(3):
        make_image(vm, 4 * MIB, seed=day, runs=2)
        jobs.append(world.backup(vm))
    answer = world.api.delete(jobs[0].path).expect(409)
    assert jobs[1].id in answer["details"] or jobs[2].id in answer["details"]
    assert world.api.delete(jobs[2].path).expect(200) == {"deleted": [jobs[2].id]}
    assert not any(jobs[2].id in name for name in files(world))
    subprocess.run(["qemu-img", "check", "-q", jobs[1].show()["disks"][0]["image"]], check=True)
    gone = world.api.delete(jobs[0].path + "?with_dependents=true").expect(200)
    assert gone == {"deleted": [jobs[1].id, jobs[0].id]}
    assert files(world) == []
    world.api.get(jobs[0].path).expect(404)
    world.api.delete(jobs[0].path).expect(404)
    world.api.delete(jobs[0].path + "?with_dependents=yes").expect(400)
    assert world.backup(vm).show()["backup_type"] == "full"


def test_delete_what_is_in_use(world, vm):
    job = world.backup(vm)
    world.running_job()
    world.api.delete(job.path).expect(409)


def test_events(world, vm):
    job = world.written_job(vm)
    events = world.api.events(f"{job.path}/events")
    name, value = next(events)
    assert (name, value["backup_id"], value["status"]) == ("progress", job.id, "running")
    job.progress(done_bytes=MIB, size=4 * MIB, transferred_bytes=MIB)
    name, value = next(e for e in events if e[0])
    assert name == "progress" and value["disks"][0]["done_bytes"] == MIB
    job.complete(job.change, world.done(job, 4 * MIB)).expect(200)
    rest = [e for e in events if e[0]]
    assert rest[-1][0] == "end" and rest[-1][1]["status"] == "completed"
    assert [name for name, _ in rest].count("end") == 1
    again = list(world.api.events(f"{job.path}/events"))
    assert again[-1][0] == "end"


# ---- the client's calls

def test_tokens(world, vm):
    job = world.job()
    calls = {
        "claim": {"claim": job.claim_id},
        "disks": {"disks": [disk("disk-0", MIB, change_id())], "left_out": [], "consistency": "crash"},
        "progress": {"disks": [], "phase": "x"},
        "fail": {"error": "x", "details": "x"},
    }
    for call, body in calls.items():
        answer = world.api.post(f"{job.path}/{call}", body)
        answer.expect(401)
        assert answer.headers["www-authenticate"] == "Bearer"
        world.api.with_token("wrong").post(f"{job.path}/{call}", body).expect(403)
        world.api.with_token(job.token).post(f"/backups/backup-none-1/{call}", body).expect(404)
        answer = world.api.with_token(job.token).post(f"{job.path}/{call}", {**body, "no_such_member": 1})
        answer.expect(400, "invalid request body")
    assert job.show()["status"] == "pending"


def test_a_token_is_one_jobs(world, vm):
    world.add_vm("other", seed=3)
    first, second = world.job(), world.job("other")
    first.api.post(f"{second.path}/claim", {"claim": first.claim_id}).expect(403)


def test_claim(world, vm):
    job = world.job()
    order = job.claim()
    assert (order["job_id"], order["vm_name"], order["backup_type"]) == (job.id, "pgtest1", "full")
    assert order["parent_backup_id"] is None and order["parent_disks"] == []
    assert order["source"]["disks"][0]["path"] == str(vm)
    assert job.claim() == order                 # its answer was lost on the way
    job.call("claim", {"claim": NOBODY}).expect(409)
    job.call("claim", {"claim": "x"}).expect(400, "invalid request body")
    job.call("claim", {}).expect(400)
    job.call("fail", {"error": "x", "details": "x"}).expect(200)
    job.call("claim", {"claim": job.claim_id}).expect(409)


def test_claims_beyond_the_hubs_limit(make_hub, place):
    """The last place is given once, however many ask for it at the same time; who is refused may ask again."""
    world = World(make_hub(options=["--max-jobs=1"]), place)
    world.add_repository()
    names = ("a", "b", "c", "d")
    for seed, name in enumerate(names):
        world.add_vm(name, (65536,), seed)
    for _ in range(6):
        jobs = [world.job(name) for name in names]
        together = threading.Barrier(len(jobs))

        def claim(job, together=together):
            together.wait(patience(10))
            return job.call("claim", {"claim": job.claim_id})

        # slow locks of the database: else one claim is over before the next begins
        with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool, \
                faults.slow_calls(world.hub.process.pid, "fcntl", 0.01):
            answers = list(pool.map(claim, jobs))
        assert sorted(a.status for a in answers) == [200, 409, 409, 409], answers
        winner = jobs[[a.status for a in answers].index(200)]
        loser = next(j for j in jobs if j is not winner)
        refused = loser.call("claim", {"claim": loser.claim_id}).expect(409)
        assert refused["error"] == "busy" and "limit" in refused["details"], refused
        assert loser.show()["status"] == "pending"
        winner.claim()                          # again: its answer was lost on the way
        winner.call("fail", {"error": "x", "details": ""}).expect(200)
        loser.claim()
        for job in jobs:
            if job is not winner:
                job.call("fail", {"error": "x", "details": ""}).expect(200)


def test_announce_refused(world, vm):
    job = world.job()
    body = {"disks": [disk("disk-0", MIB, change_id())], "left_out": [], "consistency": "crash",
            "consistency_detail": None}
    job.call("disks", body).expect(409)         # not claimed
    job.claim()
    for change in ({"disks": []}, {"disks": [disk("disk-0", MIB, change_id()), disk("disk-0", MIB, change_id())]},
                   {"disks": [disk("disk-0", -1, change_id())]}, {"disks": [disk("disk-0", MIB, "")]},
                   {"disks": [disk("", MIB, change_id())]}, {"consistency": "good"},
                   {"disks": [disk("disk-0", MIB, change_id(), tracking="magic")]}):
        job.call("disks", {**body, **change}).expect(400)
    assert job.show()["status"] == "running"
    first = job.call("disks", body).expect(200)
    assert job.call("disks", body).expect(200) == first     # its answer was lost on the way
    job.call("disks", {**body, "disks": [disk("disk-0", MIB, change_id())]}).expect(409)


def test_no_space(world, vm):
    job = world.job()
    job.claim()
    body = {"disks": [disk("disk-0", 1 << 55, change_id())], "left_out": [], "consistency": "crash"}
    job.call("disks", body).expect(507)
    assert job.show()["status"] == "failed" and files(world) == []


def test_progress(world, vm):
    job = world.job()
    job.call("progress", {"disks": [], "phase": "x"}).expect(409)
    job.claim()
    job.announce([disk("disk-0", 4 * MIB, change_id())])
    assert job.progress(done_bytes=MIB, size=4 * MIB, transferred_bytes=5, changed_bytes=7) == {
        "cancel": False, "status": "running"}
    shown = job.show()
    assert shown["done_bytes"] == MIB and shown["total_bytes"] == 4 * MIB and shown["phase"] == "copying"


def test_fail(world, vm):
    job = world.written_job(vm)
    assert job.call("fail", {"error": "read error", "details": "sector 5"}).expect(200)["status"] == "failed"
    shown = job.show()
    assert (shown["status"], shown["error"], shown["details"]) == ("failed", "read error", "sector 5")
    assert shown["completed_at"] and shown["change_id"] is None
    assert files(world) == []
    world.backup(vm)
    done = world.backup(vm)
    done.call("fail", {"error": "too late", "details": ""}).expect(409)
    assert done.show()["status"] == "completed"


def test_a_partial_backup(world):
    """A disk left out makes the point partial, and says so."""
    _, paths = world.add_vm("two", sizes=(MIB, MIB), seed=8)
    job = world.job("two")
    job.claim()
    change = change_id()
    disks = job.announce([disk("disk-0", MIB, change)], left_out=["disk-1"])
    nbdcopy(paths[0], disks["disk-0"]["uri"])
    job.complete(change).expect(200)
    shown = job.show()
    assert shown["partial"] is True and shown["left_out"] == ["disk-1"]


# ---- exports and verification

def test_export(world, vm, place):
    world.backup(vm)
    make_image(vm, 4 * MIB, seed=4, runs=3)
    job = world.backup(vm)
    api = world.api
    shown = job.show()["disks"][0]
    for disk_name in ("0", "disk-0"):
        export = api.post("/exports", {"backup_id": job.id, "disk": disk_name, "purpose": "restore"}).expect(201)
        assert (export["size"], export["root"], export["disk_key"]) == (4 * MIB, shown["root"], "disk-0")
        assert api.get("/exports").expect(200)["exports"] == [export]
        nbdcopy(export["uri"], place / "restored")
        assert (place / "restored").read_bytes() == vm.read_bytes()
        api.delete(job.path).expect(409)
        ended = api.delete(f"/exports/{export['export_id']}").expect(200)
        assert ended == {"status": "ended", "export_id": export["export_id"]}
        api.delete(f"/exports/{export['export_id']}").expect(404)
        os.unlink(place / "restored")
    assert api.get("/exports").expect(200)["exports"] == []


def test_export_refused(world, vm):
    job = world.backup(vm)
    api, body = world.api, {"backup_id": job.id, "disk": "0", "purpose": "restore"}
    for change, status in (({"backup_id": "backup-none-1"}, 404), ({"disk": "7"}, 404), ({"disk": "disk-7"}, 404),
                           ({"purpose": "fun"}, 400), ({"disk": 0}, 400), ({"backup_id": ""}, 404)):
        answer = api.post("/exports", {**body, **change})
        assert answer.status in (status, 400), (change, answer)
        answer.expect(answer.status)
    running = world.running_job()
    api.post("/exports", {**body, "backup_id": running.id}).expect(409)


def test_export_of_damaged_files(world, vm):
    """A point whose files are not what was written is not served as if it were good."""
    job = world.backup(vm)
    image = job.show()["disks"][0]["image"]
    with open(image, "r+b") as f:
        f.seek(0)
        f.write(b"damage")
    answer = world.api.post("/exports", {"backup_id": job.id, "disk": "0", "purpose": "restore"})
    assert os.path.basename(image) in answer.expect(422, "stored data is damaged")["details"]


def test_verification(world, vm):
    first = world.backup(vm)
    second = world.backup(vm)
    disk_id = first.show()["disks"][0]["disk_id"]
    path = f"{second.path}/verification"
    assert world.api.post(path, {"disk_id": disk_id, "result": "ok"}).expect(200)["affected"] == []
    assert second.show()["verify_result"] == "ok"
    found = world.api.post(path, {"disk_id": disk_id, "result": "damaged", "offset": 0, "details": "x"}).expect(200)
    assert second.id in found["affected"]
    for backup_id in found["affected"]:
        assert world.show(backup_id)["suspect"] is True
    for change, status in (({"result": "fine"}, 400), ({"disk_id": 4711, "result": "damaged"}, 404),
                           ({"offset": -1}, 400), ({"disk_id": "x"}, 400)):
        answer = world.api.post(path, {"disk_id": disk_id, "result": "damaged", "offset": 0, **change})
        answer.expect(status)
    world.api.post("/backups/backup-none-1/verification", {"disk_id": 1, "result": "ok"}).expect(404)
    job = world.job()
    world.api.post(f"{job.path}/verification", {"disk_id": disk_id, "result": "ok"}).expect(409)
    job.claim()
    announced = job.announce([disk("disk-0", 4 * MIB, change_id(), tracking="bitmap",
                                   base_change_id=second.change)])["disk-0"]
    assert announced["mode"] != "tracked"       # a suspect point is no parent for that


# ---- replications

def test_replications(world):
    api = world.api
    minted = api.post("/replications", {"vm_name": "web", "target": "second"}).expect(201)
    assert minted["job_id"].startswith("replication-") and minted["change_id"] is None
    api.post("/replications", {"vm_name": "web", "job_id": "replication-a/b"}).expect(201)
    api.post("/replications", {"vm_name": "web", "job_id": "replication-a/b"}).expect(409)
    for body in ({"vm_name": "web", "job_id": "backup-x"}, {"vm_name": ""}, {"vm_name": "a\nb"}):
        api.post("/replications", body).expect(400)
    assert len(api.get("/replications").expect(200)["replications"]) == 2
    assert api.get(f"/replications/{quote('replication-a/b')}").expect(200)["vm_name"] == "web"
    api.get("/replications/replication-none").expect(404)
    api.post(f"/replications/{minted['job_id']}/claim", {"claim": NOBODY}).expect(501)


# ---- restarts

def test_restart_with_a_running_job(world, vm):
    """Exporters and jobs outlive the hub, and the next one takes them over."""
    for end in (world.hub.stop, world.hub.kill):
        job = world.running_job()
        end()
        world.hub.start()
        assert job.show()["status"] == "running"
        job.claim()
        nbdcopy(vm, job.disks["disk-0"]["uri"])
        job.complete(job.change, world.done(job, 4 * MIB)).expect(200)
        image = job.show()["disks"][0]["image"]
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(vm), image], check=True,
                       capture_output=True)


def test_an_exporter_that_dies_fails_its_job(world, vm):
    job = world.running_job()
    exporter, = (p for p, line in world.hub.children().items() if "nbdkit" in line)
    os.kill(exporter, 9)
    ended = world.api.wait_status(job.id, FINAL)
    assert (ended["status"], ended["error"]) == ("failed", "exporter died"), "not by its client's silence"
    assert files(world) == []


def test_a_silent_client_fails_its_job(make_hub, place):
    from lib.world import World
    world = World(make_hub(options=["--lease", "2"]), place)
    world.add_repository()
    world.add_vm()
    job = world.running_job()
    assert world.api.wait_status(job.id, FINAL)["status"] == "failed"
    assert files(world) == []


def test_a_backup_in_the_hubs_own_words(world, vm):
    """The hub starts its client: the whole way without our hands."""
    started = world.api.post("/backups", {"vm_name": "pgtest1", "repository_id": world.repository_id}).expect(201)
    assert "job_token" not in started
    done = world.api.wait_status(started["backup_id"], FINAL)
    assert done["status"] == "completed", done
    assert subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(vm), done["disks"][0]["image"]],
                          capture_output=True, check=False).returncode == 0
    world.api.post(f"/backups/{quote(done['backup_id'])}/complete", {"change_id": done["change_id"]}).expect(200)


def test_the_real_client_speaks_as_documented(world, vm, proxy):
    """Its calls, the failing one too, are recorded for tools/check-traffic."""
    def run(job):
        environment = {**os.environ, "MIGRATEKIT_JOB_ID": job.id, "SHA_API_URL": proxy.url,
                       "SENDENSE_JOB_TOKEN": job.token}
        return subprocess.run([BIN / "sendense-backup-client"], env=environment, stdin=subprocess.DEVNULL,
                              timeout=patience(60), capture_output=True, text=True, check=False)

    job = world.job()
    done = run(job)
    assert done.returncode == 0, done.stderr
    assert "Successfully stored ChangeID in SHA database" in done.stderr

    def calls():
        return [path.rsplit("/", 1)[1] for _, path, _ in proxy.exchanges if not path.endswith("/progress")]

    wait_for(lambda: "complete" in calls(), "the proxy noted the last one")     # whose answer ended the client
    assert calls() == ["claim", "disks", "complete"]
    assert {status for _, _, status in proxy.exchanges} == {200}
    assert job.show()["status"] == "completed"
    os.unlink(vm)
    job = world.job()
    assert run(job).returncode == 1
    assert world.api.wait_status(job.id, FINAL)["status"] == "failed"


def test_the_cli_speaks_as_documented(hub, proxy, cli, place):
    image = make_image(place / "vm.raw", 4 * MIB)
    cli.ok("repo", "add", "main", "--path", place / "repository")
    cli.ok("vm", "add", "pgtest1", "--file", image)
    first = cli.ok("backup", "pgtest1", "--repo", "main").split()[-1]
    with open(image, "r+b") as f:
        f.write(b"changed" * 1000)
    second = cli.ok("backup", "pgtest1", "--repo", "main").split()[-1]
    assert cli.json("show", second)["parent_id"] == first
    assert len(cli.json("backups", "--vm", "pgtest1")["backups"]) == 2
    cli.ok("restore", second, "--disk", "0", "--to", place / "out.raw", "--format", "raw")
    assert (place / "out.raw").read_bytes() == image.read_bytes()
    cli.ok("verify", second)
    assert cli.run("delete", first).status == 1
    cli.ok("delete", first, "--with-dependents")
    assert len(proxy.exchanges) > 10


def test_two_repositories_have_lines_of_their_own(world, vm):
    first_repository = world.repository_id
    first = world.backup(vm)
    world.add_repository("second")
    second = full_backup(world.api, "pgtest1", world.repository_id, vm, 4 * MIB)
    assert second.show()["backup_type"] == "full" and second.show()["reason"] == "first_backup"
    assert Job(world.api, "pgtest1", first_repository).started["parent_id"] == first.id
