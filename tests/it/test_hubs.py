"""Several hubs on one MariaDB and one folder of repositories: killed, and stopped past their lease at many moments.
docs/internals/hubs.md.
"""

import concurrent.futures
import contextlib
import http.client
import random
import re
import shutil
import threading

import pytest

from lib.faults import pass_time
from lib.history import partial_files, wait_for
from lib.hub import HubError
from lib.hubs import LEASE, SIZE, Hubs, go, stop
from lib.images import CLUSTER
from lib.job import change_id, disk
from lib.mariadb import MISSING, NAME, MariaDb
from lib.patience import patience
from lib.share import share
from lib.shim import ACTIONS, Shim, Shot, is_built
from lib.sql_gate import SqlGate

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no MariaDB here: {', '.join(MISSING)} missing")

MOMENTS = 12
FAULTS = 40


@pytest.fixture
def server(place):
    with MariaDb(place / "mariadb") as made:
        yield made


LONG = int(patience(60))

# A busy machine stops a hub for longer than LEASE, and then the other one takes its jobs over
nobody_is_silent = pytest.mark.parametrize("lease", [LONG])


@pytest.fixture
def lease():
    return LEASE


@pytest.fixture
def hubs(server, make_hub, place, lease):
    return Hubs(make_hub, place, server, lease=lease)


@nobody_is_silent
def test_one_catalogue(hubs):
    """What one hub makes, another one shows, verifies, restores and goes on from."""
    image = hubs.add_vm("web")
    first = hubs.point(hubs.a, "web")
    old = bytes(image.content)
    image.write(CLUSTER, b"\x55" * CLUSTER)
    second = hubs.point(hubs.b, "web")
    assert hubs.show(hubs.a, second["backup_id"])["disks"][0]["parent_backup_id"] == first["backup_id"]
    hubs.equals(hubs.b, first["backup_id"], old)
    hubs.equals(hubs.a, second["backup_id"], image.content)
    assert hubs.states(hubs.a) == hubs.states(hubs.b) == {"a": "alive", "b": "alive"}
    assert [h["this"] for h in hubs.b.api.get("/hubs").expect(200)["hubs"]] == [False, True]
    assert len(hubs.prove(hubs.b)) == 2
    shown = hubs.cli(hubs.b).ok("hub", "list")
    assert [line.split()[:3] for line in shown.splitlines()[1:]] == [["a", "alive", "0"], ["b", "alive", "0"]], shown
    # times as in every other table
    assert all(re.search(r"  20\d\d-\d\d-\d\d \d\d:\d\d:\d\d  ", line) for line in shown.splitlines()[1:]), shown


@nobody_is_silent
def test_what_needs_its_exporters_is_its_own_hub_s(hubs):
    hubs.add_vm("web")
    job = hubs.half_written(hubs.a, "web")
    there = hubs.b.api.with_token(job.token)
    for call, body in (("disks", {"disks": [disk("disk-0", SIZE, job.change)], "left_out": [],
                                  "consistency": "crash", "consistency_detail": ""}),
                       ("complete", {"change_id": job.change}), ("fail", {"error": "x", "details": ""})):
        refused = there.post(f"{job.path}/{call}", body).expect(409)
        assert '"a"' in refused["details"], refused
    export = None
    hubs.complete(job).expect(200)
    export = hubs.a.api.post("/exports", {"backup_id": job.id, "disk": "0", "purpose": "restore"}).expect(201)
    assert '"a"' in hubs.b.api.delete(f"/exports/{export['export_id']}").expect(409)["details"]
    upgrade = {"Connection": "Upgrade", "Upgrade": "nbd"}
    refused = hubs.b.api.get(f"/exports/{export['export_id']}/nbd", headers=upgrade).expect(409)
    assert '"a"' in refused["details"]
    # it is being read, wherever
    hubs.b.api.delete(job.path).expect(409)
    hubs.a.api.delete(f"/exports/{export['export_id']}").expect(200)
    hubs.b.api.delete(job.path).expect(200)


@nobody_is_silent
@pytest.mark.parametrize("claimed", [False, True])
def test_a_cancel_may_be_asked_of_any_hub(hubs, claimed):
    hubs.add_vm("web")
    job = hubs.job(hubs.a, "web")
    if claimed:
        job.claim()
    hubs.b.api.post(f"{job.path}/cancel", {}).expect(202)
    assert hubs.wait_final(hubs.b, job.id)["status"] == "cancelled"


def test_a_hub_that_is_killed(hubs):
    """What ran there fails, leaves nothing, and is not gone on from; what waited there runs elsewhere."""
    hubs.add_vm("web")
    hubs.add_vm("db")
    job = hubs.half_written(hubs.a, "web")
    waiting = hubs.job(hubs.a, "db")
    assert partial_files(hubs.repository_path)
    hubs.a.kill()
    lost = hubs.wait_final(hubs.b, job.id)
    assert (lost["status"], lost["error"], lost["resumable"]) == ("failed", "hub lost", False)
    assert not partial_files(hubs.repository_path)
    assert hubs.states(hubs.b) == {"a": "silent", "b": "alive"}
    assert hubs.show(hubs.b, waiting.id)["status"] == "pending"
    hubs.b.api.with_token(waiting.token).post(f"{waiting.path}/claim", {"claim": waiting.claim_id}).expect(200)
    hubs.b.api.with_token(waiting.token).post(f"{waiting.path}/fail", {"error": "x", "details": ""}).expect(200)
    again = hubs.point(hubs.b, "web")
    assert not hubs.show(hubs.b, again["backup_id"])["resumed_from"]
    hubs.equals(hubs.b, again["backup_id"], hubs.images["web"].content)
    # it ends what it finds of its own, and is heard again
    hubs.a.start()
    wait_for(lambda: hubs.states(hubs.b) == {"a": "alive", "b": "alive"}, "a is heard")
    hubs.point(hubs.a, "web")
    hubs.prove(hubs.a)


@nobody_is_silent
def test_both_back_the_database_up(hubs):
    """Each took the other's unfinished copy away, or took the number of the other's: every day, at the same hour."""
    taken = []
    for _ in range(10):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            calls = [pool.submit(hub.api.post, "/database/backups") for hub in (hubs.a, hubs.b)]
            for call in calls:
                made, = call.result().expect(201)["backups"]
                assert made["error"] is None, made
                taken.append(made["number"])
    assert len(set(taken)) == 20, sorted(taken)
    for hub in (hubs.a, hubs.b):
        assert hub.api.get("/health").expect(200)["status"] == "ok"
    assert not list((hubs.repository_path / "database").glob("*.partial"))


def test_of_three_hubs_one_takes_over(server, make_hub, place):
    hubs = Hubs(make_hub, place, server, n=3)
    for n in range(6):
        hubs.add_vm(f"vm-{n}", seed=n)
    jobs = [hubs.half_written(hubs.a, f"vm-{n}") for n in range(6)]
    hubs.a.kill()
    for job in jobs:
        assert hubs.wait_final(hubs.b, job.id)["error"] == "hub lost"
    logs = hubs.b.log + hubs.all[2].log
    assert [logs.count(f'job was taken over" job={j.id} ') for j in jobs] == [1] * 6, logs
    for n in range(6):
        hubs.point(hubs.all[1 + n % 2], f"vm-{n}")
    assert len(hubs.prove(hubs.b)) == 6
    hubs.a.start()      # it ends its exporters


def test_a_stopped_hub_that_completes_too_late(hubs):
    """Its job was failed by another hub, which has made a point since: 409, and nothing of it is listed."""
    hubs.add_vm("web")
    job = hubs.half_written(hubs.a, "web")
    stop(hubs.a)
    assert hubs.wait_final(hubs.b, job.id)["error"] == "hub lost"
    point = hubs.point(hubs.b, "web")
    go(hubs.a)
    refused = hubs.complete(job).expect(409)
    assert "failed" in refused["details"] or '"b"' in refused["details"]
    wait_for(lambda: not hubs.a.children(), "what ran for the lost job has ended")
    assert [b["backup_id"] for b in hubs.prove(hubs.a)] == [point["backup_id"]]
    hubs.equals(hubs.a, point["backup_id"], hubs.images["web"].content)


def test_an_announcement_of_a_job_that_was_taken_over_meanwhile(server, make_hub, place):
    """Its files were removed before its exporters made them, and stayed there."""
    with SqlGate(server.port) as gate:
        hubs = Hubs(make_hub, place, [server.options(port=gate.port), server.options()], lease=LEASE)
        hubs.add_vm("web")
        job = hubs.job(hubs.a, "web")
        job.claim()
        change = change_id()
        wait_for(lambda: server.sql("SELECT id FROM audit_log WHERE path LIKE '%/claim'", NAME), "the claim is noted")
        gate.lose(1, "late")
        answers = []
        announcing = threading.Thread(target=lambda: answers.append(job.call("disks", {
            "disks": [disk("disk-0", SIZE, change, token="t")], "left_out": [], "consistency": "crash",
            "consistency_detail": None})))
        announcing.start()
        try:
            wait_for(lambda: server.sql("SELECT disk_key FROM backup_disks", NAME), "it is noted")
            assert gate.lost, "and the hub knows"
            assert hubs.wait_final(hubs.b, job.id)["error"] == "hub lost"
        finally:
            gate.go_on.set()
            announcing.join()
        assert answers[0].status == 409, answers[0].text
        wait_for(lambda: not hubs.a.children(), "what ran for the lost job has ended")
        assert not partial_files(hubs.repository_path)
        assert not hubs.prove(hubs.b)


@pytest.mark.parametrize("moment", range(share(MOMENTS, 3)))
def test_stopped_past_its_lease_at_any_moment(hubs, moment):
    """The real client, the real commit. Whatever the moment: each listed point is right, and the next one is made."""
    rng = random.Random(1000 + moment)
    image = hubs.add_vm("web")
    hubs.point(hubs.a, "web")
    image.write(CLUSTER, rng.randbytes(CLUSTER))
    body = {"vm_name": "web", "repository_id": hubs.repository}
    backup_id = hubs.a.api.post("/backups", body).expect(201)["backup_id"]
    pass_time(rng, 1.2)
    stop(hubs.a)
    ended = hubs.wait_final(hubs.b, backup_id)
    if ended["status"] == "completed":
        hubs.equals(hubs.b, backup_id, image.content)
    old = bytes(image.content)
    image.write(2 * CLUSTER, rng.randbytes(CLUSTER))
    between = hubs.point(hubs.b, "web")
    go(hubs.a)
    wait_for(lambda: hubs.states(hubs.b)["a"] == "alive", "a is heard again")
    wait_for(lambda: not hubs.a.children(), "a has nothing left to do")
    image.write(3 * CLUSTER, rng.randbytes(CLUSTER))
    last = hubs.point(hubs.a, "web")
    listed = [b["backup_id"] for b in hubs.prove(hubs.a)]
    assert between["backup_id"] in listed and last["backup_id"] in listed
    if backup_id in listed:
        hubs.equals(hubs.a, backup_id, old)
    hubs.equals(hubs.a, last["backup_id"], image.content)
    assert not partial_files(hubs.repository_path)
    hubs.cli(hubs.b).ok("repo", "scan", "main")
    assert sorted(b["backup_id"] for b in hubs.prove(hubs.b)) == sorted(listed)


@pytest.mark.skipif(not is_built(), reason="a sanitizer's build has no shim")
@pytest.mark.parametrize("n", range(share(FAULTS, 4)))
def test_the_shared_folder_fails_at_one_hub(server, make_hub, place, n):
    """As NFS does, whose server forgot a file (ESTALE) or cannot read it (EIO). What the others list stays right."""
    rng = random.Random(3000 + n)
    shim = Shim(place / "fault")
    hubs = Hubs(make_hub, place, server, lease=LONG, of_a={"environment": shim.environment()})
    victim = ("hub", "exporter")[n % 2]
    for seed, vm in enumerate(("web", "db")):
        hubs.add_vm(vm, seed)
        hubs.point(hubs.a, vm)

    def change_and_back_up(vm, hub):
        hubs.images[vm].write(rng.randrange(8) * CLUSTER, rng.randbytes(CLUSTER))
        before = backups_of(vm)
        with contextlib.suppress(OSError, http.client.HTTPException):   # the answer may be what failed
            hub.api.post("/backups", {"vm_name": vm, "repository_id": hubs.repository})
        made = backups_of(vm) - before
        assert len(made) <= 1
        return made.pop() if made else None

    def backups_of(vm):
        return {b["backup_id"] for b in hubs.b.api.get(f"/backups?vm_name={vm}").expect(200)["backups"]}

    shim.arm(victim)
    assert hubs.wait_final(hubs.b, change_and_back_up("web", hubs.a))["status"] == "completed"
    counts = shim.disarm().counts
    before = {b["backup_id"] for b in hubs.prove(hubs.b)}
    action = ("ESTALE", "EIO")[n // 2 % 2]
    kind = rng.choice([k for k in ACTIONS if counts[k] and action in ACTIONS[k]])
    shot = Shot(kind, action, rng.randint(1, counts[kind]))
    shim.arm(victim, shot)
    there, beside = change_and_back_up("web", hubs.a), change_and_back_up("db", hubs.b)
    ended = there and hubs.wait_final(hubs.b, there)
    assert hubs.wait_final(hubs.b, beside)["status"] == "completed"
    seen = shim.disarm()
    print(f"{victim}, {shot}: {seen.hit}; {ended and (ended['status'], ended['error'])}")
    assert not shim.crash()
    fine = ended and ended["status"] == "completed"
    assert fine or seen.hit
    if fine:
        hubs.equals(hubs.b, there, hubs.images["web"].content)
    elif ended:
        assert ended["status"] == "failed" and ended["error"] and ended["details"], ended
    listed = {b["backup_id"] for b in hubs.prove(hubs.b)}
    assert listed == before | {beside} | ({there} if fine else set())
    for hub in (hubs.b, hubs.a):
        point = hubs.wait_final(hub, change_and_back_up("web", hub))
        assert point["status"] == "completed", point
        hubs.equals(hub, point["backup_id"], hubs.images["web"].content)
    # what a hub could not remove its next start does
    hubs.a.stop()
    hubs.a.start()
    assert not partial_files(hubs.repository_path)
    hubs.cli(hubs.b).ok("repo", "scan", "main")
    assert {b["backup_id"] for b in hubs.prove(hubs.b)} >= listed


def test_a_database_that_was_away_makes_nobody_silent(hubs):
    """Everybody would have taken everybody's jobs over, the first time that it came back."""
    hubs.add_vm("web")
    job = hubs.half_written(hubs.a, "web")
    hubs.server.stop()
    wait_for(lambda: "cannot say that this hub lives" in hubs.a.log, "a's beats fail")
    wait_for(lambda: "cannot say that this hub lives" in hubs.b.log, "b's beats fail")
    pass_time(random.Random(1), 2 * LEASE)
    hubs.server.start()
    wait_for(lambda: hubs.a.api.get("/health").status == 200, "a is well")
    hubs.complete(job).expect(200)
    assert "silent" not in hubs.a.log + hubs.b.log
    assert len(hubs.prove(hubs.b)) == 1


def test_a_deletion_is_finished_by_another_hub(hubs):
    """Given up, it would make a parent of a point that the silent hub may yet remove."""
    image = hubs.add_vm("web")
    first = hubs.point(hubs.a, "web")
    image.write(0, b"\x11" * CLUSTER)
    second = hubs.point(hubs.a, "web")
    (hub_id,), = hubs.server.sql("SELECT id FROM hubs WHERE name = 'a'", NAME)
    hubs.a.kill()
    # as it leaves them when it dies after the mark
    hubs.server.sql(f"UPDATE backup_jobs SET deleting = 1, deleting_hub = '{hub_id}' "
                    f"WHERE id = '{second['backup_id']}'", NAME)
    wait_for(lambda: hubs.b.api.get(f"/backups/{second['backup_id']}").status == 404, "b finishes it")
    assert [b["backup_id"] for b in hubs.prove(hubs.b)] == [first["backup_id"]]
    assert not [p for p in hubs.repository_path.rglob("*") if second["backup_id"] in p.name]


@nobody_is_silent
def test_a_hub_that_starts_leaves_another_one_s_work_alone(hubs, make_hub):
    """Files without a row of its own are a job's that runs elsewhere."""
    hubs.add_vm("web")
    job = hubs.half_written(hubs.a, "web")
    hubs.b.stop()
    hubs.b.start()
    hubs.complete(job).expect(200)
    assert len(hubs.prove(hubs.b)) == 1


def test_a_data_folder_that_was_copied(hubs, make_hub, place):
    """Two hubs with one ID would each believe that the other one's jobs are its own."""
    copy = make_hub(name="copy", start=False, options=hubs.a.options)
    copy.data.mkdir(parents=True)
    shutil.copy(hubs.a.data / "hub-id", copy.data / "hub-id")
    with pytest.raises(HubError, match="hub-id"):
        copy.start()


@nobody_is_silent
def test_jobs_of_one_second_get_ids_of_their_own(hubs):
    """Two hubs that look for a free ID at once find the same one: the database says it to one of them."""
    for n in range(4):
        hubs.add_vm(f"vm-{n}", seed=n)
    points = [hubs.point(hub, f"vm-{n}") for n, hub in enumerate(2 * [hubs.a, hubs.b])]
    assert len({p["backup_id"] for p in points}) == 4
