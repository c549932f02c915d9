"""How many disks are read at a time from one ESXi host and through one vCenter: what is above that is queued, and does
not fail. docs/internals/source-vsphere.md.
"""

import os
import re
import subprocess
import time
from datetime import datetime

import pytest

from lib.faults import client_pid
from lib.history import wait_for
from lib.vsphere_history import MIB, SIZES, WEB, VsphereHistory, a_vm

IN_FLIGHT = 4       # requests of a disk


@pytest.fixture
def make_two(make_hub, place):
    """A function that makes two VMs on one host, and as many disks at a time as is said: their histories."""
    opened = []

    def make(**environment):
        history = VsphereHistory(make_hub, place, environment, vms=[a_vm(), a_vm("DC0/vm/db")])
        opened.append(history.__enter__())
        web, db = history.register(), history.beside("db")
        for each in (web, db):
            each.guest_writes(10)
        return web, db

    yield make
    for history in opened:
        history.__exit__()


def queued(history):
    """A backup that waits, and says that it lives."""
    def seen():
        return history.world.sql("SELECT last_seen_at AS seen FROM backup_jobs WHERE id = ?", backup_id)[0]["seen"]

    backup_id = history.start("main")
    wait_for(lambda: history.show(backup_id)["phase"] == "queued", "it is queued")
    then = seen()
    wait_for(lambda: seen() > then, "its heartbeat goes on")
    assert history.show(backup_id)["phase"] == "queued" and history.snapshots() == []
    return backup_id


def completes(history, backup_id, references):
    backup = history.wait_final(backup_id)
    assert backup["status"] == "completed", f"{backup}\n{history.client_log()}"
    history.note("main", history.show(backup_id), references)


@pytest.mark.parametrize("name, of", [("HOST", "ESXi host"), ("VCENTER", "vCenter")])
def test_two_jobs_with_one_slot_run_one_after_the_other(make_two, name, of):
    """Both have more disks than there are slots, and complete."""
    web, db = make_two(**{f"SENDENSE_VSPHERE_{name}_DISKS": "1"})
    references = {h: h.references_now() for h in (web, db)}
    first = web.copying()
    second = queued(db)
    web.sim("set", read_latency_ms=20)
    web.release_reads()
    completes(web, first, references[web])
    completes(db, second, references[db])
    seen = web.sim("calls")
    assert seen["disks_most"] == 1 and 1 < seen["reads_most"] <= IN_FLIGHT, seen
    waits = db.told(second, "waiting for a turn")
    assert waits and f"as many disks of the {of}" in waits[0], waits
    assert len(waits) <= len(SIZES), "once for each disk"
    for each in (web, db):
        each.check_everything(each.random)
        assert each.snapshots() == []


def test_the_slot_of_a_killed_client_is_free_at_once(make_two):
    web, db = make_two(SENDENSE_VSPHERE_HOST_DISKS="1")
    references = db.references_now()
    first = web.copying()
    second = queued(db)
    os.kill(client_pid(web.world, first), 9)
    db.release_reads()
    completes(db, second, references)
    assert web.wait_final(first)["status"] == "failed"
    references = web.references_now()
    web.backup("main", references)
    for each in (web, db):
        each.check_everything(each.random)
        assert each.snapshots() == []


def test_a_job_that_is_cancelled_in_the_queue_leaves_no_snapshot(make_two):
    web, db = make_two(SENDENSE_VSPHERE_VCENTER_DISKS="1")
    references = web.references_now()
    first = web.copying()
    second = queued(db)
    db.cli.ok("cancel", second)
    cancelled = db.wait_final(second)
    assert cancelled["status"] == "cancelled", cancelled
    assert db.snapshots() == [] and web.sim.calls()["CreateSnapshot_Task"] == 1
    web.release_reads()
    completes(web, first, references)
    web.check_everything(web.random)


@pytest.mark.parametrize("kind", ["open to others", "a file", "nonsense"])
def test_limits_that_cannot_be_kept_fail_the_backup(make_two, place, kind):
    """Nobody else's folder is trusted, and no number is guessed."""
    folder = place / "slots"
    if kind == "open to others":
        folder.mkdir(mode=0o755)
    elif kind == "a file":
        folder.write_text("")
    web, _ = make_two(**({"SENDENSE_VSPHERE_HOST_DISKS": "0"} if kind == "nonsense" else {}))
    failed = web.wait_final(web.start("main"))
    assert failed["status"] == "failed", failed
    assert ("SENDENSE_VSPHERE_HOST_DISKS" if kind == "nonsense" else str(folder)) in failed["details"], failed
    assert web.snapshots() == [] and "CreateSnapshot_Task" not in web.sim.calls()


def moment(line):
    return datetime.fromisoformat(re.match(r"ts=(\S+)", line).group(1)).timestamp()


def test_eight_disks_at_once_through_latency(make_hub, place):
    """At least six times the rate of one disk with one request under way, by the client as the hub starts it."""
    clusters, latency, keys = 256, 0.02, [2000 + n for n in range(8)]
    vm = {"path": WEB, "cbt": True, "disks": [{"key": key, "size": 32 * MIB} for key in keys]}
    areas = [[2 * n * 65536, 65536] for n in range(clusters)]     # apart: a request each
    with VsphereHistory(make_hub, place, vms=[vm]) as history:
        history.register()
        history.wait_final(history.start("main"))
        history.check_nothing_left()        # nor its snapshot
        for key in keys:
            history.sim("write", vm=WEB, disk=key, areas=areas, fill=key % 251)
        sim = history.sim
        sim("set", read_latency_ms=round(latency * 1000))

        moref = sim("snapshot", vm=WEB, name="for-one")["snapshot"]
        with sim.serve(sim.vm(WEB)["moref"], moref, "[ds0] web/web.vmdk", password=sim.state["password"]) as uri:
            reads, began = sim.calls().get("read", 0), time.monotonic()
            subprocess.run(["nbdcopy", "--requests=1", "--connections=1", "--request-size=65536", uri, "null:"],
                           check=True, timeout=120)
            one = (sim.calls()["read"] - reads) * 65536 / (time.monotonic() - began)
        sim("remove_snapshot", vm=WEB, snapshot=moref)
        assert one <= 65536 / latency, "the latency is there"

        sim("calls", clear=True)
        backup_id = history.start("main")
        assert history.wait_final(backup_id)["bytes_transferred"] == len(keys) * clusters * 65536
        seen = sim("calls")
        assert 2 < seen["disks_most"] <= 8 and seen["reads_most"] <= 8 * IN_FLIGHT, seen
        history.check_nothing_left()
        copied = max(moment(line) for line in history.told(backup_id, "disk copied"))
        announced = max(moment(line) for line in history.told(backup_id, "disk announced"))
        eight = len(keys) * clusters * 65536 / (copied - announced)
        print(f"one disk, one request: {one / 1e6:.1f} MB/s; eight disks: {eight / 1e6:.1f} MB/s; {eight / one:.1f}")
        assert eight >= 6 * one, (one, eight)
