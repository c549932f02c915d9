"""Audited increments: a hypervisor whose change tracking lies is found out, and no point that it made is trusted.
docs/internals/audit.md.
"""

import contextlib
import json
import os
import random
import sqlite3

import nbd
import pytest

from lib.cli import Cli
from lib.faults import client_pid
from lib.history import wait_for
from lib.job import change_id, coverage, disk, qemu_io
from lib.stage import QemuStage
from lib.vm import our_bitmaps
from lib.vsphere_history import SIZES, WEB, VsphereHistory, modes
from lib.world import CLUSTER, World

MIB = 1 << 20
SIZE = 4 * MIB
BLOCKS = SIZE // CLUSTER
FIRST_MIB = range(MIB // CLUSTER)


# ---- the hub's side, a client played by hand

@pytest.fixture
def world(make_hub, place):
    made = World(make_hub(), place)
    made.add_repository()
    yield made
    made.close()


class Line:
    """A VM whose disk one writes by hand: a full, and tracked increments on it."""

    def __init__(self, world):
        self.world = world
        _, (self.image,) = world.add_vm(sizes=(SIZE,))
        self.job = self.full()

    def full(self, **audit):
        """An audit of what is called not in use, if there is one."""
        job = self.world.job(backup_type="full")
        job.claim()
        job.change = change_id()
        job.announce([disk("disk-0", SIZE, job.change, tracking="bitmap")])
        if audit:
            self.audit(job, **audit).expect(200)
        qemu_io(job.disks["disk-0"]["uri"], f"write -P 1 0 {SIZE}", "flush")
        job.complete(job.change, self.world.done(job, SIZE, tracking="bitmap")).expect(200)
        return job

    def announced(self):
        job = self.world.job(backup_type="incremental")
        job.claim()
        job.change = change_id()
        job.announce([disk("disk-0", SIZE, job.change, tracking="bitmap", base_change_id=self.job.change)])
        return job

    def audit(self, job, unchanged=BLOCKS, checked=BLOCKS, wrong=0, wrong_at=0):
        return job.call("audit", {"disk_id": job.disks["disk-0"]["disk_id"], "unchanged_blocks": unchanged,
                                  "checked_blocks": checked, "wrong_blocks": wrong, "wrong_at": wrong_at})

    def end(self, job, sent):
        numbers = {"disk_id": job.disks["disk-0"]["disk_id"], "change_id": job.change, "tracking": "bitmap",
                   "areas": 3, "area_bytes": 4096, "read_bytes": 70000, **coverage(sent)}
        return job.complete(job.change, [numbers])

    def point(self, **audit):
        """An increment of nothing; its audit, if there is one."""
        job = self.announced()
        assert job.disks["disk-0"]["mode"] == "tracked", job.disks
        if audit:
            self.audit(job, **audit).expect(200)
        self.end(job, []).expect(200)
        self.job = job
        return job.id

    def suspects(self):
        return [b["backup_id"] for b in self.world.api.get("/backups?limit=1000").expect(200)["backups"]
                if b["suspect"]]


def lose_the_database(world):
    """Another hub, which has the repository's folder alone."""
    world.hub.stop()
    world.hub.database.unlink()
    world.hub.start()
    world.api = world.hub.api
    cli = Cli(world.hub.url, cwd=world.folder)
    cli.ok("repo", "add", "main", "--path", world.repository["path"])
    cli.ok("repo", "scan", "main")


def test_figures_are_on_record(world):
    line = Line(world)
    job = line.announced()
    line.audit(job, unchanged=50, checked=30).expect(200)
    answer = line.audit(job, unchanged=50, checked=40).expect(200)      # the last word counts
    assert answer == {"backup_id": job.id, "mode": "tracked", "suspect": []}
    line.end(job, []).expect(200)
    one, = world.show(job.id)["disks"]
    assert one["audit"] == {"unchanged_blocks": 50, "checked_blocks": 40, "wrong_blocks": 0, "at_most_ppm": 74894}
    assert (one["areas"], one["area_bytes"], one["read_bytes"]) == (3, 4096, 70000)
    full, = world.show(line.job.id)["disks"]
    assert full["audit"] is None                                        # all of it was read
    line.job = job
    assert world.show(line.point())["disks"][0]["audit"] is None        # none was made
    assert world.show(line.point(checked=BLOCKS))["disks"][0]["audit"]["at_most_ppm"] == 0


def test_calls_that_are_refused(world):
    line = Line(world)
    job = line.announced()
    for bad in ({"checked": BLOCKS + 1}, {"checked": 3, "wrong": 4}, {"wrong_at": -1}):
        line.audit(job, **bad).expect(400, "invalid request body")
    disk_id = job.disks["disk-0"]["disk_id"]
    body = {"disk_id": disk_id + 1, "unchanged_blocks": 1, "checked_blocks": 1, "wrong_blocks": 0, "wrong_at": 0}
    job.call("audit", body).expect(400)
    job.open.post(f"{job.path}/audit", {**body, "disk_id": disk_id}).expect(401)
    job.api.with_token("wrong").post(f"{job.path}/audit", {**body, "disk_id": disk_id}).expect(403)
    job.api.post("/backups/backup-none-1/audit", body).expect(404)
    line.audit(job, wrong=1).expect(200)
    line.audit(job, wrong=1).expect(200)                                # its answer was lost on the way
    line.audit(job).expect(409)                                         # what was found is not taken back
    line.end(job, [(0, SIZE)]).expect(409)                              # the engine has not got all of it
    qemu_io(job.disks["disk-0"]["uri"], f"write -P 2 0 {SIZE}", "flush")
    line.end(job, [(0, SIZE - CLUSTER)]).expect(409)
    line.end(job, [(0, SIZE)]).expect(200)
    line.audit(job, wrong=1).expect(409)                                # it is over


def test_what_a_failed_audit_makes_suspect(world):
    """Up to the last clean audit; a verify does not take it away, and the records remember it."""
    line = Line(world)
    clean = line.point(checked=BLOCKS)
    weak = line.point(checked=5)        # no time: no evidence
    after = line.point()
    job = line.announced()
    answer = line.audit(job, checked=40, wrong=1, wrong_at=3 * CLUSTER).expect(200)
    assert answer == {"backup_id": job.id, "mode": "compare", "suspect": [after, weak]}
    assert sorted(line.suspects()) == sorted([weak, after])             # at once: the job may die
    qemu_io(job.disks["disk-0"]["uri"], f"write -P 2 0 {SIZE}", "flush")
    line.end(job, [(0, SIZE)]).expect(200)
    line.job = job
    made = world.show(job.id)
    assert not made["suspect"] and made["reason"] == "audit_failed"
    assert (made["disks"][0]["mode"], made["disks"][0]["reason"]) == ("compare", "audit_failed")
    assert "1 of 40 blocks" in made["disks"][0]["reason_text"]
    assert f"offset {3 * CLUSTER}" in made["disks"][0]["reason_text"]
    shown = world.show(after)
    assert shown["suspect"] and shown["suspect_because"] == "audit"
    assert world.show(clean)["suspect_because"] is None
    cli = Cli(world.hub.url, cwd=world.folder)
    assert cli.run("verify", after).status == 0
    assert world.show(after)["suspect"]                                 # its files are what was sent
    restored = cli.run("restore", after, "--disk", "0", "--to", world.folder / "restored.raw")
    assert restored.status == 0 and "suspect" in restored.err and "change tracking" in restored.err
    assert line.point(checked=BLOCKS)                                   # on a good one: tracked again

    lose_the_database(world)
    assert sorted(line.suspects()) == sorted([weak, after])
    assert world.show(after)["suspect_because"] == "audit"
    assert world.show(job.id)["disks"][0]["audit"]["wrong_blocks"] == 1
    said = world.hub.log.count("a point is suspect")
    for _ in range(2):
        world.hub.stop()
        world.hub.start()
    assert world.hub.log.count("a point is suspect") == said    # a scan finds it each time, and says it once


def write_all(job, byte):
    qemu_io(job.disks["disk-0"]["uri"], f"write -P {byte} 0 {SIZE}", "flush")


@pytest.mark.parametrize("parent", ["full", "clean", "tracked"])
def test_a_job_that_fails_after_its_alarm(world, parent):
    """The next one does not use the change set that was found wrong, whatever its own audit finds.

    A parent that was read in full, or had a clean audit, got no mark, and the next one believed the same tracking."""
    line = Line(world)
    if parent != "full":
        line.point(**({"checked": BLOCKS} if parent == "clean" else {}))
    job = line.announced()
    line.audit(job, wrong=1).expect(200)
    job.call("fail", {"error": "x", "details": "x"}).expect(200)
    assert line.suspects() == ([line.job.id] if parent == "tracked" else [])
    again = line.announced()
    assert (again.disks["disk-0"]["mode"], again.disks["disk-0"]["reason"]) == ("compare", "audit_failed")
    write_all(again, 2)
    line.end(again, [(0, SIZE)]).expect(200)
    line.job = again
    doubted = line.suspects()
    assert line.point()                                         # on a point that was read whole
    # its record says why it was compared, and so a catalogue that is made anew doubts the same points
    lose_the_database(world)
    assert line.suspects() == doubted


def test_a_hub_that_dies_between_alarm_and_completion(world):
    line = Line(world)
    job = line.announced()
    line.audit(job, checked=40, wrong=1).expect(200)
    world.hub.kill()
    world.hub.start()
    line.audit(job, checked=40, wrong=1).expect(200)
    line.end(job, []).expect(409)
    write_all(job, 2)
    line.end(job, [(0, SIZE)]).expect(200)
    assert world.show(job.id)["disks"][0]["mode"] == "compare"


def test_a_disk_of_which_everything_was_sent_rests_on_nothing(world):
    """It is clean: tracking had nothing to miss. It was taken for one without an audit."""
    line = Line(world)
    job = line.announced()
    write_all(job, 9)
    line.audit(job, unchanged=0, checked=0).expect(200)
    line.end(job, [(0, SIZE)]).expect(200)
    assert world.show(job.id)["disks"][0]["audit"]["at_most_ppm"] == 0
    line.job = job
    line.audit(line.announced(), wrong=1).expect(200)
    assert not line.suspects()


def test_only_a_comparison_is_told_what_is_the_same(world):
    """A tracked disk's engine takes no "it is as before" for a whole disk, from a client that errs."""
    line = Line(world)
    job = line.announced()
    with pytest.raises(nbd.Error):
        h = nbd.NBD()
        h.set_uri_allow_local_file(True)
        h.connect_uri(job.disks["disk-0"]["uri"])
        h.cache(SIZE, 0)


def test_a_seal_is_not_told_other_numbers(world):
    """complete came, and its answer is still to come; an alarm does not make of it what it was not."""
    line = Line(world)
    job = line.announced()
    line.end(job, []).expect(200)
    line.audit(job, wrong=1).expect(409)
    line.end(job, [(0, SIZE)]).expect(200)                      # the point stands: its change IDs are what counts
    assert world.show(job.id)["disks"][0]["mode"] == "tracked"


def test_what_is_asked_of_the_client(make_hub, place):
    """The hub's setting within a share of the time, a VM's own in full, and none."""
    world = World(make_hub(options=["--audit-blocks=77"]), place)
    world.add_repository()
    vm, _ = world.add_vm()
    assert vm["audit_blocks"] is None

    def order():
        job = world.job()
        asked = job.claim()
        job.call("fail", {"error": "x", "details": "x"}).expect(200)
        return asked.get("audit_blocks"), asked.get("audit_percent")

    assert order() == (77, 3)
    cli = Cli(world.hub.url, cwd=place)
    cli.ok("vm", "change", "pgtest1", "--audit-blocks", "500")
    assert world.api.get("/vms/pgtest1").expect(200)["audit_blocks"] == 500
    assert "500 blocks" in cli.ok("vm", "show", "pgtest1")
    assert order() == (500, 0)
    cli.ok("vm", "change", "pgtest1", "--audit-blocks", "0")
    assert order() == (None, None)
    cli.ok("vm", "change", "pgtest1", "--audit-blocks", "default")
    assert order() == (77, 3)
    for bad in ("-1", "1000001", "x", ""):
        assert cli.run("vm", "change", "pgtest1", "--audit-blocks", bad).status == 2
    world.api.patch("/vms/pgtest1", {"audit_blocks": 1000001}).expect(400)
    world.api.patch("/vms/pgtest1", {"audit_blocks": "3"}).expect(400)


@pytest.mark.parametrize("of, checked, suspect", [(BLOCKS, BLOCKS, False), (10 * BLOCKS, 300, True)])
def test_a_full_that_left_something_out_is_doubted_with_all_that_is_on_it(world, of, checked, suspect):
    """Its audit was clean, and proved most of it; what is wrong shows through each point on it, whatever their own
    audits say of the changes since."""
    line = Line(world)
    line.job = line.full(unchanged=of, checked=checked)
    full, between = line.job.id, line.point(checked=BLOCKS)
    line.audit(line.announced(), wrong=1).expect(200)
    assert sorted(line.suspects()) == (sorted([full, between]) if suspect else [])


def test_what_was_compared_does_not_show_what_a_full_left_out(world):
    """Only the points below it do."""
    line = Line(world)
    line.job = line.full(unchanged=10 * BLOCKS, checked=300)
    below = [line.job.id, line.point(checked=BLOCKS)]
    job = line.announced()
    line.audit(job, wrong=1).expect(200)
    qemu_io(job.disks["disk-0"]["uri"], f"write -P 2 0 {SIZE}", "flush")
    line.end(job, [(0, SIZE)]).expect(200)
    line.job = job
    assert sorted(line.suspects()) == sorted(below)
    above = line.point(checked=BLOCKS)
    line.audit(line.announced(), wrong=1).expect(200)
    assert sorted(line.suspects()) == sorted(below) and above not in line.suspects()


def test_whose_word_is_taken_back(world, monkeypatch):
    """A full's, where its own audit failed. An increment's says nothing of it, also when the client says it twice."""
    monkeypatch.delenv("SENDENSE_TRAFFIC_DIR", raising=False)  # the row below is none that a hub writes

    def said():
        return world.api.get("/vms/pgtest1").expect(200)["source"].get("unallocated")

    line = Line(world)
    source = world.sql("SELECT source FROM vms")[0]["source"]
    # of no such VM, but read alike
    with contextlib.closing(sqlite3.connect(world.hub.database, timeout=10)) as database:
        database.execute("UPDATE vms SET source = ?", (json.dumps({**json.loads(source), "unallocated": "zero"}),))
        database.commit()
    job = line.announced()
    for _ in range(2):
        line.audit(job, wrong=1).expect(200)
    assert said() == "zero"
    job.call("fail", {"error": "x", "details": "x"}).expect(200)
    full = world.job(backup_type="full")
    full.claim()
    full.announce([disk("disk-0", SIZE, change_id(), tracking="bitmap")])
    line.audit(full, wrong=1).expect(200)
    assert said() == "read"


# ---- the real thing: a vCenter that lies

def lie(history, key, clusters):
    """The guest changes clusters of a disk, and the vCenter does not say so."""
    size = SIZES[key]
    chosen = history.random.sample(range(size // CLUSTER), clusters)
    for cluster in chosen:
        history.sim.write(WEB, cluster * CLUSTER + 512, history.random.randbytes(4096), disk=key)
    history.sim("lie", vm=WEB, disk=key, kind="omit", areas=[[c * CLUSTER, CLUSTER] for c in chosen])


def alarmed(history, references):
    """A backup whose audit finds a lie."""
    result = history.cli.run("backup", "web", "--repo", "main", use_json=True)
    assert result.status == 5 and "ALARM" in result.err, result
    backup = history.note("main", history.show(result.json["backup_id"]), references)
    history.check_nothing_left()
    assert not [n for n in history.snapshots() if n.startswith("sendense.")]
    return backup


@pytest.fixture
def lying(make_hub, place):
    with VsphereHistory(make_hub, place) as made:
        made.register().guest_writes(20)
        made.api.patch("/vms/web", {"audit_blocks": 1000}).expect(200)      # every block of these small disks
        yield made


def test_a_vcenter_that_lies_is_found_out(lying):
    lying.point()
    lying.guest_writes()
    honest = lying.point()
    for d in honest["disks"]:
        audit = d["audit"]
        assert audit["checked_blocks"] == audit["unchanged_blocks"] > 0 and audit["at_most_ppm"] == 0, d
        assert d["areas"] > 0 and d["area_bytes"] >= d["areas"] * CLUSTER
        assert d["read_bytes"] == d["size"], d          # what changed, and all of the rest
    lying.guest_writes(2)
    lie(lying, 2000, 3)
    found = alarmed(lying, lying.references_now())
    assert modes(found) == {"2000": ("compare", "audit_failed"), "2016": ("tracked", "")}
    assert found["reason"] == "audit_failed"
    audit = found["disks"][0]["audit"]
    assert audit["wrong_blocks"] >= 1 and audit["at_most_ppm"] == 1000000
    assert found["disks"][0]["read_bytes"] > SIZES[2000]
    assert found["disks"][0]["stored_bytes"] < SIZES[2000] // 2     # what was the parent's is not stored
    assert not lying.show(honest["backup_id"])["suspect"]       # its own audit was clean
    assert "ALARM" in lying.client_log() and "ALARM" in lying.hub.log
    shown = lying.cli.ok("show", found["backup_id"])
    assert "WRONG" in shown and "2016:" in shown and "95 % confidence" in shown
    lying.sim("lie", vm=WEB, disk=2000, kind="none")
    lying.guest_writes(2)
    assert set(modes(lying.point()).values()) == {("tracked", "")}
    lying.check_everything(lying.random)


def test_without_audits_the_lie_would_be_believed(lying):
    """That it is the audit that finds it: without one the point is wrong, and the next audit makes it suspect."""
    lying.point()
    lying.api.patch("/vms/web", {"audit_blocks": 0}).expect(200)
    lie(lying, 2000, 1)
    result = lying.cli.run("backup", "web", "--repo", "main", use_json=True)
    assert result.status == 0
    believed = lying.show(result.json["backup_id"])
    assert modes(believed)["2000"] == ("tracked", "") and believed["disks"][0]["audit"] is None
    lying.sim("lie", vm=WEB, disk=2000, kind="none")            # from here on it tells the truth
    lying.api.patch("/vms/web", {"audit_blocks": 1000}).expect(200)
    lying.guest_writes(1)
    found = alarmed(lying, lying.references_now())
    assert modes(found)["2000"] == ("compare", "audit_failed")
    suspect = lying.show(believed["backup_id"])
    assert suspect["suspect"] and suspect["suspect_because"] == "audit"
    lying.check_point(found["backup_id"])
    assert set(modes(lying.point()).values()) == {("tracked", "")}


def not_in_use(history, key, clusters):
    """The vCenter leaves clusters out of what is in use, in which there is something."""
    for cluster in clusters:
        history.sim.write(WEB, cluster * CLUSTER, history.random.randbytes(4096), disk=key)
    history.sim("lie", vm=WEB, disk=key, kind="omit", areas=[[c * CLUSTER, CLUSTER] for c in clusters])


def test_what_is_called_not_in_use_is_audited_in_full(make_hub, place):
    """However little time the copy took: the whole disk is read then. Nothing else stands behind these zeros. And the
    word is not believed again."""
    with VsphereHistory(make_hub, place) as history:
        history.register(unallocated="zero").guest_writes(3)
        not_in_use(history, 2000, (17, 90))
        found = alarmed(history, history.references_now())
        assert modes(found)["2000"] == ("full", "audit_failed")
        assert found["disks"][0]["audit"]["wrong_blocks"] >= 1
        assert history.api.get("/vms/web").expect(200)["source"]["unallocated"] == "read"
        history.sim("lie", vm=WEB, disk=2000, kind="none")
        assert set(modes(history.point()).values()) == {("tracked", "")}
        assert all(d["audit"] is None for d in history.point("full")["disks"])      # all was read
        history.check_everything(history.random)


def test_a_full_that_leaves_something_out_is_not_gone_on_from(make_hub, place):
    """The next run may be one that audits nothing, and would have kept zeros that nobody looked at."""
    with VsphereHistory(make_hub, place) as history:
        history.register(unallocated="zero").guest_writes(30)
        history.sim("fault", call="read", kind="delay", ms=30000, times=100000, skip=4)
        backup_id = history.start("main")
        wait_for(lambda: sum(d["transferred_bytes"] for d in history.show(backup_id)["disks"]) > 0, "some was sent")
        os.kill(client_pid(history.world, backup_id), 9)
        assert history.wait_final(backup_id)["resumable"] is False
        history.sim("heal")
        assert history.point()["resumed_from"] is None


def test_a_comparison_reads_what_is_called_not_in_use(make_hub, place):
    """It would put zeros over what the parent has; and it is made where the vCenter was found wrong before."""
    with VsphereHistory(make_hub, place) as history:
        history.register(unallocated="zero").guest_writes(3)
        full = history.point()
        assert all(d["audit"]["at_most_ppm"] == 0 for d in full["disks"])           # these disks have few blocks
        history.sim("reset_cbt", vm=WEB, disk=2000)
        not_in_use(history, 2000, (17, 90))
        compared = history.point()
        assert modes(compared)["2000"] == ("compare", "epoch_changed")
        assert compared["disks"][0]["audit"] is None and compared["disks"][0]["read_bytes"] == SIZES[2000]
        history.sim("lie", vm=WEB, disk=2000, kind="none")
        history.check_everything(history.random)


def die_in_the_comparison(lying, copied=0):
    """The alarm was raised before. Only the comparison reads whole MiBs; the copy does so that many times."""
    lying.sim("fault", call="read", kind="delay", ms=30000, times=100000, disk=2000, length=MIB, skip=copied)
    backup_id = lying.start("main")
    wait_for(lambda: [d for d in lying.show(backup_id)["disks"] if d["reason"] == "audit_failed"], "the alarm")
    os.kill(client_pid(lying.world, backup_id), 9)
    assert lying.wait_final(backup_id)["status"] == "failed"
    lying.sim("heal")


def cut(lying):
    """A backup whose client is killed when it has sent something of a disk's first MiB: that is durable.

    Counted over all disks, the reads may all have been the other disk's: then nothing was kept that could be wrong.
    """
    lying.sim("fault", call="read", kind="delay", ms=30000, times=100000, disk=2000, **{"from": MIB})
    backup_id = lying.start("main")
    wait_for(lambda: [d for d in lying.show(backup_id)["disks"] if d["disk_key"] == "2000" and d["transferred_bytes"]],
             "some of it was sent")
    os.kill(client_pid(lying.world, backup_id), 9)
    assert lying.wait_final(backup_id)["resumable"]
    lying.sim("heal")


def hide(lying, key, clusters):
    for cluster in clusters:
        lying.sim.write(WEB, cluster * CLUSTER + 512, lying.random.randbytes(4096), disk=key)
    lying.sim("lie", vm=WEB, disk=key, kind="omit", areas=[[c * CLUSTER, CLUSTER] for c in clusters])


@pytest.mark.parametrize("parent", ["full", "tracked"])
def test_a_client_that_dies_in_the_comparison(lying, parent):
    """The marks stand, and the next backup compares, from the start, though its own audit would prove little."""
    lying.point()
    if parent == "tracked":
        lying.api.patch("/vms/web", {"audit_blocks": 0}).expect(200)
        lying.guest_writes(1)
        lying.point()
        lying.api.patch("/vms/web", {"audit_blocks": 1000}).expect(200)
    newest = lying.newest("main")
    lie(lying, 2000, 2)
    die_in_the_comparison(lying)
    assert lying.show(newest)["suspect"] == (parent == "tracked")
    lying.api.patch("/vms/web", {"audit_blocks": 1}).expect(200)
    again = lying.note("main", lying.show(lying.cli.run("backup", "web", "--repo", "main", use_json=True)
                                          .json["backup_id"]), lying.references_now())
    assert modes(again)["2000"] == ("compare", "audit_failed")
    assert [d["kept_bytes"] for d in again["disks"] if d["disk_key"] == "2000"] == [0]
    lying.check_point(again["backup_id"])


def test_a_comparison_is_not_gone_on_from_by_tracking_that_lied(lying):
    """What changed since a comparison was cut is asked of the same tracking: it starts over."""
    lying.point()
    lie(lying, 2000, 3)
    die_in_the_comparison(lying)
    lying.sim.write(WEB, 0, lying.random.randbytes(4096), disk=2000)      # a comparison sends what differs
    cut(lying)
    hide(lying, 2000, FIRST_MIB)
    references = lying.references_now()
    again = lying.backup("main", references)
    assert modes(again)["2000"] == ("compare", "audit_failed")
    assert [d["kept_bytes"] for d in again["disks"] if d["disk_key"] == "2000"] == [0]
    lying.check_point(again["backup_id"])


@pytest.mark.parametrize("kind", ["full", "tracked"])
def test_what_is_kept_of_an_interrupted_backup_is_audited(lying, kind):
    """That it did not change since is the word of tracking, too. It was kept, and nobody looked."""
    lying.guest_writes(100)
    if kind == "tracked":
        lying.point()
        for cluster in range(64):
            lying.sim.write(WEB, cluster * CLUSTER, lying.random.randbytes(CLUSTER), disk=2000)
    cut(lying)
    hide(lying, 2000, FIRST_MIB)
    found = alarmed(lying, lying.references_now())
    assert found["resumed_from"] and found["disks"][0]["audit"]["wrong_blocks"] > 0
    assert modes(found)["2000"] == ("full" if kind == "full" else "compare", "audit_failed")
    lying.check_point(found["backup_id"])


def test_a_full_whose_audit_failed_is_not_gone_on_from(lying):
    """It has no parent at which anything could be noted; its image has what the audit found wrong."""
    lying.guest_writes(100)
    cut(lying)
    hide(lying, 2000, FIRST_MIB)
    die_in_the_comparison(lying, copied=SIZES[2000] // MIB - 1)
    lying.sim("lie", vm=WEB, disk=2000, kind="none")
    lying.api.patch("/vms/web", {"audit_blocks": 0}).expect(200)
    full = lying.backup("main", lying.references_now())
    assert [d["kept_bytes"] for d in full["disks"] if d["disk_key"] == "2000"] == [0]
    lying.check_point(full["backup_id"])


def test_an_alarm_of_a_job_that_failed_of_something_else(world):
    """Another disk's error, or a cancel, came first: the next backup compares all the same."""
    line = Line(world)
    parent = line.point()
    job = line.announced()
    job.call("fail", {"error": "x", "details": "another disk"}).expect(200)
    line.audit(job).expect(409)                                 # of no interest any more
    assert line.audit(job, wrong=1).expect(200)["suspect"] == [parent]
    again = line.announced()
    assert (again.disks["disk-0"]["mode"], again.disks["disk-0"]["reason"]) == ("compare", "audit_failed")


def test_a_full_that_kept_something_unseen_is_doubted_later(lying):
    lying.guest_writes(100)
    lying.api.patch("/vms/web", {"audit_blocks": 0}).expect(200)
    cut(lying)
    full = lying.backup("main", lying.references_now())
    assert full["resumed_from"] and sum(d["kept_bytes"] for d in full["disks"])
    lying.api.patch("/vms/web", {"audit_blocks": 1000}).expect(200)
    for key in SIZES:
        hide(lying, key, range(4))
    alarmed(lying, lying.references_now())
    assert lying.show(full["backup_id"])["suspect_because"] == "audit"


@pytest.mark.parametrize("more", [{"cluster_size": 4096, "hash_algorithm": "sha256", "compression": 3},
                                  {"cluster_size": 2097152, "compression": 1}])
def test_other_layouts_and_odd_tails(make_hub, place, monkeypatch, more):
    """Lies in the last sector of an odd disk, zeros over data, data over zeros."""
    monkeypatch.setitem(SIZES, 2000, 8 * MIB - 3 * 512)
    with VsphereHistory(make_hub, place) as history:
        history.register().add_repository("other", **more)
        history.api.patch("/vms/web", {"audit_blocks": 1000000}).expect(200)

        def backup(status):
            references = history.references_now()
            result = history.cli.run("backup", "web", "--repo", "other", use_json=True)
            assert result.status == status, (result, history.client_log())
            return history.note("other", history.show(result.json["backup_id"]), references)

        def write(at, data):
            history.sim.write(WEB, at, data, disk=2000)

        for at in range(0, 7 * MIB, 300 * 1024):
            write(at, history.random.randbytes(4096))
        backup(0)
        write(MIB, bytes(65536))
        backup(0)
        write(SIZES[2000] - 512, history.random.randbytes(512))
        write(0, bytes(4096))
        write(MIB, history.random.randbytes(4096))
        history.sim("lie", vm=WEB, disk=2000, kind="omit", areas=[[0, SIZES[2000]]])
        assert modes(backup(5))["2000"] == ("compare", "audit_failed")
        history.sim("lie", vm=WEB, disk=2000, kind="none")
        write(5 * MIB, history.random.randbytes(4096))
        assert set(modes(backup(0)).values()) == {("tracked", "")}
        history.check_everything(history.random)


# ---- a QEMU whose bitmap somebody clears

def test_a_bitmap_that_was_cleared_is_found_out(make_hub, place):
    with QemuStage(make_hub, place) as stage:
        stage.api.patch(f"/vms/{stage.vm_name}", {"audit_blocks": 1000}).expect(200)
        stage.first()
        stage.change()
        honest = stage.backup("main", stage.references_now())
        assert all(d["audit"]["at_most_ppm"] == 0 for d in honest["disks"])
        stage.change()
        vm = stage.vm
        for name in (n for n in our_bitmaps(vm, 0) if not n.endswith(".0")):    # that one tells of a resize
            vm.qmp("block-dirty-bitmap-clear", node=vm.inserted(0)["node-name"], name=name)
        references = stage.references_now()
        result = stage.cli.run("backup", stage.vm_name, "--repo", "main", use_json=True)
        assert result.status == 5, result
        found = stage.note("main", stage.show(result.json["backup_id"]), references)
        by_key = {d["disk_key"]: (d["mode"], d["reason"]) for d in found["disks"]}
        assert by_key[vm.disks[0].id] == ("compare", "audit_failed")
        assert by_key[vm.disks[1].id] == ("tracked", "")
        stage.change()
        later = stage.backup("main", stage.references_now())
        assert {d["mode"] for d in later["disks"]} == {"tracked"}
        stage.prove()


# ---- time

def test_an_audit_keeps_to_its_share_of_the_time(lying):
    """A slow source: a VM without a number of its own is audited for 3 % of its time, and the record says so."""
    lying.point()
    lying.api.patch("/vms/web", {"audit_blocks": None}).expect(200)
    lying.guest_writes(2)
    lying.sim("set", read_latency_ms=400)
    backup = lying.point()
    lying.sim("set", read_latency_ms=0)
    for d in backup["disks"]:
        assert d["audit"]["checked_blocks"] < d["audit"]["unchanged_blocks"], d
        assert d["audit"]["at_most_ppm"] > 0 and d["audit"]["wrong_blocks"] == 0
    lying.check_everything(random.Random(3))


