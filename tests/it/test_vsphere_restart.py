"""A vCenter that is started anew in the middle of a backup: at each moment it is known what becomes of the job.
docs/internals/source-vsphere.md.
"""

import time

import pytest

from lib.patience import patience
from lib.vsphere_history import VsphereHistory


@pytest.fixture
def history(make_hub, place):
    with VsphereHistory(make_hub, place, max_areas=1) as made:
        made.register().guest_writes(20)
        yield made


def goes_down(history, refused=1, **how):
    """Until somebody has met with that."""
    before = history.sim.calls().get("refused", 0)
    history.sim("down", **how)
    history.release_reads()
    history.sim("wait_call", call="refused", count=before + refused)


LEAVING = "the source was not left as it should be"


def completes(history, backup_id, references):
    backup = history.wait_final(backup_id)
    assert backup["status"] == "completed", f"{backup}\n{history.client_log()}"
    history.check_nothing_left()
    assert history.snapshots() == [] and history.sim("calls")["sessions"] == 0
    assert not history.told(backup_id, LEAVING)
    history.note("main", history.show(backup_id), references)
    history.check_everything(history.random)
    return backup


def test_the_vcenter_alone_while_disks_are_read(history):
    """The hosts serve on; changed areas are asked for again in a new session, and so is the snapshot at the end."""
    history.point()
    history.guest_writes(20)
    references = history.references_now()
    history.sim("calls", clear=True)
    backup_id = history.copying()
    goes_down(history, hosts_up=True)
    history.sim("up")
    completes(history, backup_id, references)
    assert {d["mode"] for d in history.show(backup_id)["disks"]} == {"tracked"}
    assert history.sim.calls()["Login"] == 2, "once at first, renewed once"


@pytest.mark.parametrize("reads", [0, 3])
def test_all_of_it_while_disks_are_opened_or_read(history, reads):
    references = history.references_now()
    history.sim("calls", clear=True)
    backup_id = history.copying()
    if reads:
        history.sim("wait_call", call="read", count=reads)
    goes_down(history, refused=2)
    history.sim("up")
    completes(history, backup_id, references)
    assert history.sim.calls()["Login"] == 2


def test_an_answer_on_areas_that_breaks_off(history):
    """In the middle of the copy, after the two questions at the opening."""
    history.point()
    history.guest_writes(20)
    references = history.references_now()
    history.sim("fault", call="QueryChangedDiskAreas", kind="drop_middle", skip=2)
    backup_id = history.start("main")
    completes(history, backup_id, references)
    assert {d["mode"] for d in history.show(backup_id)["disks"]} == {"tracked"}


def test_all_of_it_for_good(history):
    """The job fails; the snapshot that it had to leave goes with the next one, which is right."""
    backup_id = history.copying()
    goes_down(history)
    failed = history.api.wait_status(backup_id, {"failed"}, deadline=patience(120))
    assert "vddk" in failed["details"], failed
    assert len(history.snapshots()) == 1 and history.told(backup_id, LEAVING)
    history.sim("up")
    references = history.references_now()
    completes(history, history.start("main"), references)


@pytest.mark.parametrize("call", ["CreateSnapshot_Task", "RemoveSnapshot_Task"])
def test_during_a_task(history, call):
    """The task is the host's, and goes on; it is asked for neither twice nor never."""
    references = history.references_now()
    history.sim("calls", clear=True)
    history.sim("task", call=call, hold=True)
    backup_id = history.start("main")
    history.sim("wait_call", call="WaitForUpdatesEx", count=1 if call == "CreateSnapshot_Task" else 2)
    history.sim("wait_call", call=call)
    goes_down(history, hosts_up=True)
    history.sim("up")
    history.sim("release")
    completes(history, backup_id, references)
    assert history.sim.calls()["CreateSnapshot_Task"] == 1


def test_a_cancel_while_it_is_away(history):
    """Seconds, not the minutes for which it would be waited for."""
    history.point()
    history.guest_writes(20)
    backup_id = history.copying()
    goes_down(history, hosts_up=True)
    began = time.monotonic()
    history.cli.ok("cancel", backup_id)
    assert history.wait_final(backup_id)["status"] == "cancelled"
    assert time.monotonic() - began < patience(30)
    history.sim("up")
    references = history.references_now()
    completes(history, history.start("main"), references)
