"""kill -9 of guest, client, hub and exporter at the moments of a backup of a VM in QEMU.

Beyond what test_crash.py looks at: nothing of a backup stays in QEMU, the guest goes on writing and is never left
frozen, and the next increment is right: tracked where the bitmaps are still there, by comparison where they are not.
"""

import os
import random
import subprocess

import pytest

from lib import faults
from lib.cli import Cli
from lib.history import wait_for
from lib.stage import MIB, QemuStage, ended, is_dead, own_mounts, run_moments
from lib.vm import Guest, check_qemu_is_clean, make_disk, release_descriptors
from lib.world import World

UP_TO_THE_SEAL = {
    "announced": "failed",
    "connecting": "failed",
    "first bytes": "failed",
    "quarter done": "failed",
    "half done": "failed",
    "three quarters done": "failed",
    "last bytes": "failed",
}
# victim: {moment: how the job must end}
ENDS = {
    "guest": {
        "started": "completed",     # a QEMU that is back in time is as good as the one before
        "greeting": "failed",
        "freezing": "failed",
        "frozen": "failed",
        "announcing": "failed",
        "announced": "failed",
        "first bytes": "failed",
        "half done": "failed",
        "last bytes": "failed",
        "copied": "completed",
        "committing": "completed",
        "answered": "completed",
        "closing": "completed",
        "done": "completed",
    },
    "client": {
        "started": "failed",
        "greeting": "failed",
        "freezing": "failed",
        "frozen": "failed",
        "announcing": "failed",
        "announced": "failed",
        "first bytes": "failed",
        "half done": "failed",
        "last bytes": "failed",
        "copied": "failed",
        "sealing": "completed",
        "committing": "completed",
        "answered": "completed",
        "closing": "completed",
        "done": "completed",
    },
    "exporter": {
        **UP_TO_THE_SEAL,
        "copied": "failed",
        "sealing": "failed",
        "half sealed": "completed",
        "committing": "completed",
        "linked": "completed",
    },
    "hub": {
        "freezing": "completed",
        "announcing": "completed",
        "half done": "completed",
        "copied": "completed",
        "closing": "completed",
    },
    "hub+client": {
        "announced": "failed",
        "half done": "failed",
    },
}


@pytest.mark.parametrize("victim", ENDS)
def test_killed(victim, make_hub, place):
    with QemuStage(make_hub, place) as stage:
        # bitmaps of a QEMU that crashed are inconsistent or gone; the backup that came after it has new ones
        run_moments(stage, victim, ENDS[victim], lost=lambda moment: victim == "guest" and moment != "started")


def test_a_client_that_closes_in_a_later_guest(make_hub, place):
    """Its QEMU crashed and was started again, and the VM was backed up, before it heard that its point was there: it
    took that backup's bitmaps for older ones, and the next one had nothing to track by."""
    with QemuStage(make_hub, place) as stage:
        stage.first()
        stage.check_nothing_left()
        stage.change()
        late = stage.reach("answered")
        stage.note("main", stage.wait_final(late), stage.references_then)
        stage.kill(late, "guest")
        stage.wrapper.write_text(stage.wrapper.read_text().replace(stage.gate.url, stage.hub.url))
        stage.change()
        later = stage.backup("main", stage.references_now())
        assert {(d["mode"], d["reason"]) for d in later["disks"]} == {("compare", "tracking_lost")}
        wait_for(lambda: is_dead(faults.client_pid(stage.world, later["backup_id"])), "the later client is done")
        assert not is_dead(faults.client_pid(stage.world, late))
        stage.go()
        stage.prove()


def test_scratch_full(make_hub, place):
    """The guest overwrites more than the scratch folder holds: the backup gives way, the guest's writes do not fail."""
    scratch = place / "scratch"
    scratch.mkdir()
    with QemuStage(make_hub, place, prefix=own_mounts((scratch, 22)), scratch=scratch, size=16 * MIB) as stage:
        first = stage.first()
        backup_id = stage.reach("announced")
        for n in range(2):
            for at in range(16):
                stage.vm.write(n, at * MIB, MIB, 0x5a)      # raises if the guest's write fails
        wait_for(lambda: not stage.vm.qmp("query-jobs"), "the view is given up")
        stage.go()
        ended(stage, backup_id, "failed", "scratch", "space")
        release_descriptors(stage.vm)
        stage.check_point(first["backup_id"])
        stage.prove()


def test_guest_is_never_left_frozen(make_hub, place):
    """A running Linux, whose file system is frozen for each backup; the client is killed again and again."""
    rng = random.Random(int(os.environ.get("ORACLE_SEED", "1")))
    disk = place / "root.qcow2"
    make_disk(disk, "qcow2", 48 * MIB)
    hub = make_hub(environment={"SENDENSE_TEST_PLACE": str(place)})
    with Guest(place / "vm", [(disk, "qcow2")]) as guest:
        world, cli = World(hub, place), Cli(hub.url, cwd=place)
        cli.ok("repo", "add", "main", "--path", place / "repository")
        cli.ok("vm", "add", "linux", "--qmp", guest.qmp_path, "--agent", guest.agent_path, "--scratch", place)
        cli.ok("backup", "linux", "--repo", "main")
        for _ in range(5):
            backup_id = cli.ok("backup", "linux", "--repo", "main", "--detach").strip()
            wait_for(lambda: faults.client_pid(world, backup_id), "the client is started")
            faults.pass_time(rng, 0.4)
            faults.kill_one(world, backup_id, "client")
            world.api.wait_status(backup_id, {"failed", "completed"})
            wait_for(lambda: guest.agent("guest-fsfreeze-status") == "thawed", "the guest is thawed")
            guest.sh("date > /mnt/a/date; sync")
            check_qemu_is_clean(guest, place)
        guest.sh("echo last > /mnt/a/file")
        last = cli.json("backup", "linux", "--repo", "main")
        assert last["consistency"] == "application", last
        assert [d["mode"] for d in last["disks"]] == ["tracked"], last
        cli.ok("verify", "--repo", "main")
        cli.ok("restore", last["backup_id"], "--disk", "0", "--to", place / "restored.raw")
        check_file_system(place / "restored.raw", "/file", b"last\n")


def check_file_system(path, name, content):
    environ = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
    clean = subprocess.run(["e2fsck", "-fn", str(path)], capture_output=True, env=environ, check=False)
    assert clean.returncode == 0, clean.stdout
    shown = subprocess.run(["debugfs", "-R", f"cat {name}", str(path)], capture_output=True, env=environ, check=True)
    assert shown.stdout == content
