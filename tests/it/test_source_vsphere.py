"""Backups of VMs in a (simulated) vCenter: one snapshot, changed areas by CBT, bytes through nbdkit's real vddk plugin
over the stand-in library. docs/internals/source-vsphere.md, vsphere-bench.md.
"""

import contextlib
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from lib.faults import client_pid, exporter_pids
from lib.history import partial_files, wait_for
from lib.patience import patience
from lib.system import assert_nowhere, children
from lib.vsphere import LIBDIR
from lib.vsphere_history import MIB, SIZES, WEB, VsphereHistory, modes

CLUSTER = 65536


@pytest.fixture
def history(make_hub, place):
    with VsphereHistory(make_hub, place) as made:
        yield made


def test_full_then_increments(history):
    """Each disk by its own key and change ID; only what changed travels; every point restores."""
    history.register().guest_writes(20)
    full = history.point()
    assert modes(full) == {"2000": ("full", "first_backup"), "2016": ("full", "first_backup")}
    assert [d["disk_id"] for d in full["disks"]] == [2000, 2016] and len({d["change_id"] for d in full["disks"]}) == 2
    assert all(d["tracking"] == "cbt" for d in full["disks"])
    for _ in range(3):
        history.guest_writes()
        later = history.point()
        assert modes(later) == {"2000": ("tracked", ""), "2016": ("tracked", "")}
        assert 0 < later["bytes_transferred"] <= 8 * CLUSTER
    history.guest_writes(0)
    assert history.point()["bytes_transferred"] == 0
    history.check_everything(history.random)
    assert_nowhere(history.hub, history.sim.state["password"])


def test_one_session_and_the_lines_of_the_contract(history):
    """One login for a job of several disks; what is logged is what scripts look for."""
    history.register().guest_writes(10)
    history.point()
    history.sim("calls", clear=True)
    history.guest_writes()
    backup = history.point()
    seen = history.sim("calls")
    assert seen["calls"]["Login"] == seen["calls"]["Logout"] == 1 and seen["sessions"] == 0, seen
    said = history.told(backup["backup_id"], "ChangeID")
    assert len(said) == 2, said
    for word in ("Storing ChangeID through the SHA API", 'api="backup completion"',
                 f"/api/v1/backups/{backup['backup_id']}/complete", backup["change_id"]):
        assert word in said[0], said
    assert "Successfully stored ChangeID in SHA database" in said[1] and backup["change_id"] in said[1], said


def test_a_session_is_kept_while_nothing_is_asked(make_hub, place):
    """A full reads for hours and asks nothing: its session ended, and that of each later question was another."""
    with VsphereHistory(make_hub, place, environment={"SENDENSE_VSPHERE_KEEP_ALIVE": "1"}) as history:
        history.register().guest_writes(4)
        history.sim("calls", clear=True)        # the hub looked for the VM
        history.sim("fault", call="read", kind="delay", disk=2000, ms=60000)
        history.sim("set", session_idle_ms=int(patience(6)) * 1000)
        backup_id = history.start("main")
        history.sim("wait_call", call="CurrentTime", count=int(patience(10)), seconds=int(patience(60)))
        history.sim("heal")
        assert history.wait_final(backup_id)["status"] == "completed"
        history.check_nothing_left()
        assert history.sim.calls()["Login"] == 1


def test_the_password_is_on_no_command_line_while_disks_are_read(history):
    """Neither the client's nor that of nbdkit, which finds it in a descriptor; nor in what either inherits."""
    password = history.sim.state["password"].encode()
    history.register().guest_writes(4)
    history.sim("fault", call="read", kind="delay", ms=60000, times=1000)
    backup_id = history.start("main")
    wait_for(lambda: history.show(backup_id)["phase"] == "copying", "it copies")
    client = client_pid(history.world, backup_id)
    wait_for(lambda: len(children(client)) == len(SIZES), "each disk has its nbdkit with VDDK")
    for pid in children(client):
        wait_for(lambda pid=pid: b"password=" in Path(f"/proc/{pid}/cmdline").read_bytes(), "nbdkit is started")
    for pid in (history.hub.process.pid, client, *children(client)):
        for name in ("cmdline", "environ"):
            assert password not in Path(f"/proc/{pid}/{name}").read_bytes(), (pid, name)
    history.sim("heal")
    assert history.wait_final(backup_id)["status"] == "completed"
    history.check_nothing_left()


def test_a_consolidation_that_is_needed_is_told(history):
    """By the client's log, and by `discover` until somebody has done it."""
    history.register().guest_writes(10)
    history.sim("vm", vm=WEB, consolidation_fails=True)
    backup = history.point()
    told, = history.told(backup["backup_id"], "need consolidation")
    assert "level=warn" in told, told
    vm, = history.cli.json("discover", "vc-1")["vms"]
    assert "consolidation_needed" in [o["code"] for o in vm["obstacles"]], vm
    history.check_everything(history.random)


def test_a_snapshot_that_does_not_go(history):
    """As where consolidation fails: the point counts, the log says why, and the next run removes it."""
    history.register().guest_writes(10)
    history.sim("task", call="RemoveSnapshot_Task", type="GenericVmConfigFault", message="Unable to consolidate")
    backup = history.backup("main", history.references_now())
    history.check_nothing_left()
    told, = history.told(backup["backup_id"], "the source was not left as it should be")
    assert "level=warn" in told and "Unable to consolidate" in told, told
    assert len(history.snapshots()) == 1
    history.guest_writes()
    assert set(modes(history.point()).values()) == {("tracked", "")}
    assert not history.snapshots()
    history.check_everything(history.random)


def test_areas_in_pages(make_hub, place):
    with VsphereHistory(make_hub, place, max_areas=2, change_id_blanks=True) as history:
        history.register().guest_writes(20)
        history.point()
        history.guest_writes(30)
        assert set(modes(history.point()).values()) == {("tracked", "")}
        history.check_everything(history.random)


def test_vddk_behind_a_symbolic_link(make_hub, place):
    """As a link to the newest of several versions is: no disk could be read, "connection reset by peer"."""
    (place / "vddk").symlink_to(LIBDIR)
    with VsphereHistory(make_hub, place, environment={"SENDENSE_VDDK_LIBDIR": f"{place}//vddk/"}) as history:
        history.register().guest_writes(10)
        history.point()
        history.check_everything(history.random)


def without_nbdkit(place):
    """A PATH that has all of /usr/bin and the like, but no nbdkit."""
    path = place / "path"
    path.mkdir()
    for folder in ("/usr/bin", "/bin", "/usr/sbin", "/sbin"):
        for program in os.listdir(folder):
            if program != "nbdkit" and not (path / program).is_symlink():
                (path / program).symlink_to(f"{folder}/{program}")
    return str(path)


@pytest.mark.parametrize("what,environment,said", [
    ("no folder", lambda place: {"SENDENSE_VDDK_LIBDIR": f"{place}/not-there"}, "/not-there/lib64; HINT: unpack VDDK"),
    ("an empty folder", lambda place: {"SENDENSE_VDDK_LIBDIR": str(place / "vddk")}, "cannot load VMware's VDDK from"),
    ("no plugin file", lambda place: {"SENDENSE_VDDK_PLUGIN": f"{place}/not-there"}, "/not-there"),
    ("no plugin", lambda place: {"SENDENSE_VDDK_PLUGIN": "other"}, "nbdkit-other-plugin.so: cannot open shared object"),
    ("no nbdkit", lambda place: {"PATH": without_nbdkit(place)}, "nbdkit is not in PATH"),
])
def test_what_is_not_installed_is_said_before_the_vm_is_touched(make_hub, place, what, environment, said):
    """A snapshot was made first, and what was said was nbdkit's: "realpath: No such file or directory"."""
    (place / "vddk" / "lib64").mkdir(parents=True)
    with VsphereHistory(make_hub, place, environment=environment(place)) as history:
        history.register()
        history.sim("calls", clear=True)
        failed = history.wait_final(history.start("main"))
        assert failed["status"] == "failed", failed
        assert said in failed["details"], (what, failed)
        assert "CreateSnapshot_Task" not in history.sim.calls()
        history.check_nothing_left()


def test_tracking_that_is_off_is_switched_on(make_hub, place):
    vms = [{"path": WEB, "cbt": False, "disks": [{"key": key, "size": size} for key, size in SIZES.items()]}]
    with VsphereHistory(make_hub, place, vms=vms) as history:
        history.register().guest_writes(10)
        assert all(d["tracking"] == "cbt" for d in history.point()["disks"])
        history.guest_writes()
        assert set(modes(history.point()).values()) == {("tracked", "")}
        history.check_everything(history.random)


def test_tracking_is_not_switched_on_beside_snapshots(make_hub, place):
    """Its answers would be wrong, without an error: such a VM is compared. What to do stood nowhere but in `discover`,
    neither in the record nor in a log."""
    vms = [{"path": WEB, "cbt": False, "disks": [{"key": key, "size": size} for key, size in SIZES.items()]}]
    with VsphereHistory(make_hub, place, vms=vms) as history:
        history.sim("snapshot", vm=WEB, name="of-the-admin")
        history.register().guest_writes(10)
        for mode, reason in (("full", "first_backup"), ("compare", "not_tracked")):
            backup = history.point()
            assert set(modes(backup).values()) == {(mode, reason)}
            assert all(d["tracking"] == "none" for d in backup["disks"])
            warned = history.told(backup["backup_id"], "what changed on a disk is not known")
            assert len(warned) == 2 and all("level=warn" in w and "; remove them" in w for w in warned), warned
            history.guest_writes()
        assert all(d["reason_text"].endswith("; remove them") for d in backup["disks"]), backup
        assert history.snapshots() == ["of-the-admin"]
        history.sim("remove_snapshot", vm=WEB, snapshot=history.sim.vm(WEB)["snapshots"][0]["moref"])
        assert set(modes(history.point()).values()) == {("compare", "never_tracked")}
        history.guest_writes()
        assert set(modes(history.point()).values()) == {("tracked", "")}
        history.check_everything(history.random)


@pytest.mark.parametrize("loss, reason, word", [
    ("lose_cbt", "id_refused", "FileFault"), ("reset_cbt", "epoch_changed", "epoch"),
    ("replace", "backing_replaced", "replaced"), ("resize", "disk_resized", "size")])
def test_lost_tracking_is_said_and_compared(history, place, loss, reason, word):
    history.register().guest_writes(10)
    history.point()
    if loss == "replace":
        content = place / "other.raw"
        content.write_bytes(os.urandom(SIZES[2000]))
        history.sim("replace", vm=WEB, disk=2000, size=SIZES[2000], content=str(content),
                    file="[ds0] web/other.vmdk")
    elif loss == "resize":
        history.sim("resize", vm=WEB, disk=2000, size=SIZES[2000] + MIB)
    else:
        history.sim(loss, vm=WEB, disk=2000)
    history.guest_writes()
    later = history.point()
    disk, = [d for d in later["disks"] if d["disk_key"] == "2000"]
    assert (disk["mode"], disk["reason"]) == ("compare", reason), disk
    assert word in disk["reason_text"], disk
    assert (loss == "lose_cbt") == ("switched off and on" in disk["reason_text"]), disk
    history.guest_writes()
    assert set(modes(history.point()).values()) == {("tracked", "")}
    history.check_everything(history.random)


@pytest.mark.parametrize("tracking, reason", [("anew", "epoch_changed"), ("lost", "id_refused"),
                                              ("silent", "audit_failed")])
def test_a_vm_that_was_reverted_to_a_snapshot(history, tracking, reason):
    """Its disks hold what they held before the newest point; at worst change tracking never says so."""
    history.register().guest_writes(10)
    history.api.patch("/vms/web", {"audit_blocks": 1000}).expect(200)
    history.point()
    by_hand = history.sim("snapshot", vm=WEB, name="of-the-admin")["snapshot"]
    reverted_to = history.frozen_now(by_hand)
    history.guest_writes(10)
    assert set(modes(history.point()).values()) == {("tracked", "")}
    history.sim("revert", snapshot=by_hand, tracking=tracking)
    references = history.references_now()
    assert references == reverted_to
    result = history.cli.run("backup", "web", "--repo", "main", use_json=True)
    assert result.status == (5 if tracking == "silent" else 0), result
    backup = history.note("main", history.show(result.json["backup_id"]), references)
    assert set(modes(backup).values()) == {("compare", reason)}, backup
    history.check_nothing_left()
    history.check_point(backup["backup_id"])


def test_tracking_that_is_lost_is_not_switched_beside_snapshots(history):
    """A tracking file that is gone stays so until tracking is switched off and on: every later backup compared."""
    history.register().guest_writes(10)
    history.point()
    history.sim("lose_cbt", vm=WEB, disk=2000)
    history.sim("snapshot", vm=WEB, name="of-the-admin")
    for _ in range(2):
        history.guest_writes()
        disk, other = history.point()["disks"]
        assert (disk["mode"], other["mode"]) == ("compare", "tracked")
        assert "FileFault" in disk["reason_text"] and "remove them" in disk["reason_text"], disk
    assert history.snapshots() == ["of-the-admin"] and history.sim.vm(WEB)["cbt"] == "on"
    history.sim("remove_snapshot", vm=WEB, snapshot=history.sim.vm(WEB)["snapshots"][0]["moref"])
    history.guest_writes()
    assert {m for m, _ in modes(history.point()).values()} == {"compare"}
    history.guest_writes()
    assert set(modes(history.point()).values()) == {("tracked", "")}
    history.check_everything(history.random)


@pytest.mark.parametrize("call, skip", [("ReconfigVM_Task", 0), ("ReconfigVM_Task", 1), ("CreateSnapshot_Task", 0),
                                        ("RemoveSnapshot_Task", 1)])
def test_a_killed_renewal_of_tracking_is_made_up_for(history, call, skip):
    """Whatever it left: no snapshot of ours, tracking on, and the next but one is tracked."""
    history.register().guest_writes(10)
    history.point()
    history.sim("lose_cbt", vm=WEB, disk=2000)
    history.guest_writes()
    done = history.sim.calls().get(call, 0) + skip + (call == "CreateSnapshot_Task")    # its own comes first
    for n in range(done - history.sim.calls().get(call, 0)):
        history.sim("task", call=call)
    history.sim("task", call=call, hold=True)
    backup_id = history.start("main")
    history.sim("wait_call", call=call, count=done + 1)
    os.kill(client_pid(history.world, backup_id), 9)
    assert history.wait_final(backup_id)["status"] == "failed"
    history.sim("release")
    for expected in ({"compare"}, {"tracked"}):
        assert {m for m, _ in modes(history.point()).values()} == expected
        history.guest_writes()
    assert history.sim.vm(WEB)["cbt"] == "on"
    history.check_everything(history.random)


@pytest.mark.parametrize("lie", ["zero_length", "unordered", "overlap", "past_end", "other_start"])
def test_answers_that_cannot_be_right_are_not_believed(history, lie):
    history.register().guest_writes(10)
    history.point()
    history.guest_writes()
    references = history.references_now()
    history.sim("lie", vm=WEB, disk=2000, kind=lie)
    backup = history.backup("main", references)
    assert modes(backup)["2000"] == ("compare", "id_refused"), backup
    history.sim("lie", vm=WEB, disk=2000, kind="none")
    history.check_everything(history.random)


def test_a_killed_client_leaves_a_snapshot_that_the_next_run_removes(history):
    """Ours goes, and never anybody else's; what was durable is gone on from."""
    history.register().guest_writes(40)
    history.sim("snapshot", vm=WEB, name="sendense.of-somebody-else")
    backup_id = history.copying(reads=4)
    os.kill(client_pid(history.world, backup_id), 9)
    assert history.wait_final(backup_id)["status"] == "failed"
    assert len(history.snapshots()) == 2
    history.release_reads()
    references = history.references_now()
    history.backup("main", references)
    history.check_nothing_left()        # the client closes its source after the point is there
    assert history.snapshots() == ["sendense.of-somebody-else"]
    assert not partial_files(history.repositories["main"])
    history.check_everything(history.random)


@pytest.mark.parametrize("kind", ["fault", "drop_before", "drop_middle", "cut"])
def test_reads_that_fail_are_asked_for_again(history, kind):
    """Several at once: nbdkit's retry filter, which did this before, let one request through at a time."""
    history.register().guest_writes(40)
    history.sim("set", read_latency_ms=50)
    history.sim("fault", call="read", kind=kind, type="HostCommunication", bytes=1000, skip=3, times=5)
    history.point()
    assert history.sim("calls")["reads_most"] > 2, "two disks, each with more than one request under way"
    assert history.client_log().count("a vSphere disk is opened again") >= 1
    history.check_everything(history.random)


def test_a_place_that_can_never_be_read_fails_the_backup_soon(make_hub, place):
    """Others' successes began the count of tries anew: a large disk's backup would have gone on for days."""
    vms = [{"path": WEB, "cbt": True, "disks": [{"key": 2000, "size": 128 * MIB}]}]
    with VsphereHistory(make_hub, place, vms=vms) as history:
        history.register()
        history.sim("fault", call="read", before=1, type="MediumError", times=100000)
        failed = history.wait_final(history.start("main"))
        assert failed["status"] == "failed" and "vddk" in failed["details"], failed
        assert history.client_log().count("a vSphere disk is opened again") <= 12
        history.check_nothing_left()


def test_quiescing(make_hub, place):
    disks = [{"key": key, "size": size} for key, size in SIZES.items()]
    with VsphereHistory(make_hub, place, vms=[{"path": WEB, "cbt": True, "quiesce_fails": True, "disks": disks}]
                        ) as history:
        history.register().guest_writes(4)
        backup = history.point()
        assert backup["consistency"] == "crash" and backup["consistency_detail"], backup
        history.api.patch("/vms/web", {"source": {"type": "vsphere", "source": "vc-1", "vm": "/" + WEB,
                                                  "quiesce": "require"}}).expect(200)
        backup_id = history.start("main")
        assert history.wait_final(backup_id)["status"] == "failed"
        history.check_nothing_left()
        assert not history.snapshots()


def test_a_disk_that_no_snapshot_holds(make_hub, place):
    disks = [{"key": 2000, "size": SIZES[2000]},
             {"key": 2016, "size": SIZES[2016], "mode": "independent_persistent"}]
    with VsphereHistory(make_hub, place, vms=[{"path": WEB, "cbt": True, "disks": disks}]) as history:
        history.register()
        backup_id = history.start("main")
        failed = history.wait_final(backup_id)
        assert failed["status"] == "failed" and "independent" in failed["details"], failed
        history.api.patch("/vms/web", {"source": {"type": "vsphere", "source": "vc-1", "vm": "/" + WEB,
                                                  "disks_unsupported": "skip"}}).expect(200)
        result = history.cli.run("backup", "web", "--repo", "main", use_json=True)
        assert result.status == 4 and result.json["left_out"] == ["2016"], result
        history.check_nothing_left()
        assert not history.snapshots()


def test_a_vcenter_that_is_away_or_has_another_password(history):
    history.register()
    history.sim("set", password="another")
    failed = history.wait_final(history.start("main"))
    assert failed["status"] == "failed" and "InvalidLogin" in failed["details"], failed
    history.sim("set", password=history.sim.state["password"])
    history.sim("down")
    failed = history.wait_final(history.start("main"))
    assert failed["status"] == "failed", failed
    history.sim("up")
    history.guest_writes(3)
    history.point()


def test_a_vm_that_is_gone(history):
    """Removed from the inventory, or registered anew: it has another moref then, and nothing said what to do."""
    history.register()
    history.sim("fault", call="RetrievePropertiesEx", type="ManagedObjectNotFound", message="already deleted")
    failed = history.wait_final(history.start("main"))
    assert failed["status"] == "failed", failed
    assert f"/{WEB}" in failed["details"] and "sendense vm change" in failed["details"], failed


def test_a_large_disk_that_holds_little(make_hub, place):
    """A full of a thin disk was refused for want of room for all of its size."""
    room = os.statvfs(place)
    size = (2 * room.f_bavail * room.f_frsize // MIB + 1) * MIB
    vms = [{"path": WEB, "cbt": True, "disks": [{"key": 2000, "size": size}]}]
    with VsphereHistory(make_hub, place, vms=vms) as history:
        history.register()
        history.sim.write(WEB, 0, os.urandom(4096), disk=2000)
        backup_id = history.start("main")
        wait_for(lambda: history.show(backup_id)["phase"] == "copying", "it copies")
        history.api.post(f"/backups/{backup_id}/cancel").expect(202)
        assert history.wait_final(backup_id)["status"] == "cancelled"
        history.check_nothing_left()


@pytest.mark.parametrize("cbt", [True, False])
def test_a_snapshot_that_was_in_the_making_when_its_job_was_cancelled(make_hub, place, cbt):
    """vCenter cannot stop it: it appears after the cancel, and grew until the next backup."""
    vms = [{"path": WEB, "cbt": cbt, "disks": [{"key": key, "size": size} for key, size in SIZES.items()]}]
    with VsphereHistory(make_hub, place, vms=vms) as history:
        history.register()
        history.sim("task", call="CreateSnapshot_Task", hold=True, cancelable=False)
        backup_id = history.start("main")
        history.sim("wait_call", call="CreateSnapshot_Task", count=1)
        history.api.post(f"/backups/{backup_id}/cancel").expect(202)
        history.sim("wait_call", call="CancelTask", count=1)
        history.sim("release")
        assert history.wait_final(backup_id)["status"] == "cancelled"
        history.check_nothing_left()
        wait_for(lambda: not history.snapshots(), "no snapshot is left")
        history.sim("heal")
        history.point()


def test_a_snapshot_that_takes_long_when_its_job_is_cancelled(make_hub, place):
    """It is made for longer than the hub lets a cancelled client live that does not listen. The client was killed after
    three seconds, and the snapshot grew until the next backup."""
    with VsphereHistory(make_hub, place) as history:
        history.register()
        history.sim("task", call="CreateSnapshot_Task", hold=True, cancelable=False)
        backup_id = history.start("main")
        history.sim("wait_call", call="CreateSnapshot_Task", count=1)
        history.api.post(f"/backups/{backup_id}/cancel").expect(202)
        wait_for(lambda: history.show(backup_id)["phase"] == "closing", "the client closes its source")
        over = time.monotonic() + 12
        wait_for(lambda: time.monotonic() > over, "the ten seconds are over")
        assert history.show(backup_id)["status"] == "running"
        history.sim("release")
        assert history.wait_final(backup_id)["status"] == "cancelled"
        assert not history.snapshots()
        history.check_nothing_left()


def test_a_cancel_that_its_hub_finds_on_record(make_hub, place):
    """As one that was asked for at another hub is, or in an earlier one's time: the client had half a second to hear of
    it, and to remove its snapshot."""
    with VsphereHistory(make_hub, place) as history:
        history.register()
        history.sim("task", call="CreateSnapshot_Task", hold=True, cancelable=False)
        backup_id = history.start("main")
        history.sim("wait_call", call="CreateSnapshot_Task", count=1)
        with contextlib.closing(sqlite3.connect(history.hub.database, timeout=30, isolation_level=None)) as database:
            def heard():
                return database.execute("SELECT last_seen_at FROM backup_jobs WHERE id = ?", (backup_id,)).fetchone()
            last = heard()
            wait_for(lambda: heard() != last, "the client is heard, and then not for two seconds")
            database.execute("UPDATE backup_jobs SET cancel_requested = 1 WHERE id = ?", (backup_id,))
        wait_for(lambda: history.show(backup_id)["phase"] in ("closing", None), "the client closes its source")
        history.sim("release")
        ended = history.wait_final(backup_id)
        assert ended["status"] == "cancelled" and "in time" not in ended["details"], ended
        assert not history.snapshots()
        history.check_nothing_left()


def test_a_cancelled_job_whose_exporter_dies_while_its_snapshot_is_removed(make_hub, place):
    """The client was killed for the sake of what it had no more use for."""
    with VsphereHistory(make_hub, place) as history:
        history.register().guest_writes(40)
        history.sim("task", call="RemoveSnapshot_Task", hold=True)
        backup_id = history.copying()
        history.api.post(f"/backups/{backup_id}/cancel").expect(202)
        wait_for(lambda: history.show(backup_id)["phase"] == "closing", "the client closes its source")
        for pid in exporter_pids(history.world, backup_id):
            os.kill(pid, signal.SIGKILL)
        over = time.monotonic() + 2
        wait_for(lambda: time.monotonic() > over, "the supervisor has looked, more than once")
        assert history.show(backup_id)["status"] == "running"
        history.sim("release")
        assert history.wait_final(backup_id)["status"] == "cancelled"
        assert not history.snapshots()
        history.check_nothing_left()


def outlives_the_lease(history, backup_id, lease):
    """While its snapshot's removal is held. The job, once it is over."""
    history.sim("wait_call", call="RemoveSnapshot_Task", count=1)
    over = time.monotonic() + lease + 6
    wait_for(lambda: time.monotonic() > over, "the lease is over, and the hub's patience")
    now = history.show(backup_id)
    assert (now["status"], now["phase"]) == ("running", "closing")
    history.sim("release")
    ended = history.wait_final(backup_id)
    assert ended["status"] == "failed" and ended["error"] != "client silent", ended
    assert not history.snapshots()
    return ended


def test_a_failed_job_whose_snapshot_is_removed_for_longer_than_the_lease(make_hub, place):
    """The heartbeat ended before: the hub killed the client, and said "client silent" instead of what had failed."""
    lease = int(patience(3))
    with VsphereHistory(make_hub, place, environment={"SENDENSE_LEASE": str(lease)}) as history:
        history.register().guest_writes(40)
        history.sim("task", call="RemoveSnapshot_Task", hold=True)
        backup_id = history.copying()
        client = client_pid(history.world, backup_id)
        wait_for(lambda: len(children(client)) == len(SIZES), "each disk has its nbdkit with VDDK")
        for child in children(client):
            os.kill(child, signal.SIGKILL)
        outlives_the_lease(history, backup_id, lease)


def test_a_job_whose_completion_is_refused_and_whose_snapshot_is_removed_for_longer_than_the_lease(make_hub, place):
    """The heartbeat ended with the call's answer, and the hub said "client silent" instead of it."""
    lease = int(patience(3))
    with VsphereHistory(make_hub, place, environment={"SENDENSE_LEASE": str(lease)}) as history:
        history.register()
        history.api.patch("/vms/web", {"audit_blocks": 0}).expect(200)
        history.point()
        history.guest_writes(4)
        history.sim("task", call="RemoveSnapshot_Task", hold=True)
        history.sim("calls", clear=True)
        backup_id = history.copying()
        with contextlib.closing(sqlite3.connect(history.hub.database, timeout=30, isolation_level=None)) as database:
            database.execute("UPDATE backup_disks SET wrong_blocks = 1 WHERE backup_id = ?", (backup_id,))
        history.release_reads()
        assert "its audit failed" in outlives_the_lease(history, backup_id, lease)["details"]


@pytest.mark.parametrize("star, unallocated, audit_blocks, all_is_read", [
    ("allocated", "zero", 300, False), ("allocated", "zero", 299, True), ("allocated", "zero", 0, True),
    ("allocated", "read", 300, True), ("whole", "zero", 300, True), ("fault", "zero", 300, True)])
def test_what_is_not_in_use(make_hub, place, star, unallocated, audit_blocks, all_is_read):
    """Read, unless the VM is registered with the word that it is zero, the vCenter names what is in use, and an audit
    looks whether that is so: at 300 blocks, which prove something."""
    sizes = {2000: 24 * MIB, 2016: 20 * MIB}
    vms = [{"path": WEB, "cbt": True, "disks": [{"key": key, "size": size, "star": star}
                                                for key, size in sizes.items()]}]
    with VsphereHistory(make_hub, place, vms=vms, max_areas=2) as history:
        history.register(unallocated=unallocated)
        history.api.patch("/vms/web", {"audit_blocks": audit_blocks}).expect(200)
        history.sim.write(WEB, 3 * MIB + 512, os.urandom(4096), disk=2000)
        history.sim.write(WEB, 7 * MIB, os.urandom(65536), disk=2000)
        history.sim.write(WEB, sizes[2016] - 512, os.urandom(512), disk=2016)
        full = history.point()
        read = sum(d["read_bytes"] for d in full["disks"])
        assert read == (sum(sizes.values()) if all_is_read else (3 + 2 * audit_blocks) * CLUSTER)
        unread = {"2000": sizes[2000] // CLUSTER - 2, "2016": sizes[2016] // CLUSTER - 1}
        for d in full["disks"]:
            assert all_is_read or d["audit"] == {"unchanged_blocks": unread[d["disk_key"]], "checked_blocks": 300,
                                                 "wrong_blocks": 0, "at_most_ppm": 9986}, d
        history.guest_writes()
        assert set(modes(history.point()).values()) == {("tracked", "")}
        history.check_everything(history.random)
