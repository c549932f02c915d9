"""What goes wrong around a backup without anybody being killed: no space, read errors, silence, locks, cancels.

Each time: the job ends, in time, and says why; what is listed is right; nothing is left; the next backup is right.
"""

import os
import signal
import sqlite3
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from lib import faults
from lib.cli import Cli
from lib.history import partial_files, wait_for
from lib.nbd_gate import ReadGate
from lib.patience import patience
from lib.stage import MIB, Stage, ended, is_dead, own_mounts

CANCEL_SECONDS = patience(20)     # five, and the rest is for a machine that is busy; by its lease a job ends later
CLAIM = 8        # a client's start is within it, also on a machine that is busy
LEASE, HEARTBEAT = 2, 4     # how long a client may be silent, and how much longer it is given then


# ---- space

class SmallStage(Stage):
    """The repository's filesystem is small, and seen by the hub (and its children) alone."""

    def __init__(self, make_hub, place, size):
        folder = place / "small"
        folder.mkdir()
        super().__init__(make_hub, place, prefix=own_mounts((folder, size)))

    def seen(self, path):
        return f"/proc/{self.hub.process.pid}/root{path}"

    def add_repository(self, name, **more):
        path = self.folder / "small" / name
        self.api.post("/repositories", {"name": name, "path": str(path)}).expect(201)
        self.order[name] = []
        # our own view of it, for all that looks for files
        self.repositories[name] = self.folder / "view"
        self.repositories[name].symlink_to(self.seen(path))

    def fill(self, leave):
        """Leaves so many bytes."""
        space = os.statvfs(self.seen(self.folder / "small"))
        left = space.f_bavail * space.f_frsize - leave
        with open(self.seen(self.folder / "small" / "filler"), "wb", buffering=0) as f, suppress(OSError):
            while left > 0:
                left -= f.write(bytes(min(left, MIB)))

    def empty(self):
        os.unlink(self.seen(self.folder / "small" / "filler"))

    def path_of(self, image):
        return self.seen(image)

    def check_point_with_stock_tools(self, backup_id):
        """The backing files' paths are of another mount namespace."""


def test_full_repository(make_hub, place):
    with SmallStage(make_hub, place, 112) as stage:
        first = stage.first()
        stage.change()

        stage.fill(leave=20 * MIB)      # too little to begin with
        backup = ended(stage, stage.start("main"), "failed", "space")
        assert "no space" in backup["error"], backup
        assert not partial_files(stage.repositories["main"])
        stage.empty()

        backup_id = stage.reach("announced")
        stage.fill(leave=MIB)
        stage.go()
        backup = ended(stage, backup_id, "failed", "space")
        assert not partial_files(stage.repositories["main"])
        stage.check_listed()
        stage.check_point(first["backup_id"])   # needs no space
        stage.empty()

        backup_id = stage.reach("copied")       # the hashes are still to be written: there may be room, or not
        stage.fill(leave=0)
        backup = stage.settle(backup_id)
        assert backup["status"] == "completed" or "space" in backup["details"].lower(), backup
        stage.empty()
        stage.prove()


# ---- the source

def test_read_error(make_hub, place):
    trigger = place / "broken"
    filters = ("--filter=error", "error-pread=EIO", "error-pread-rate=100%", f"error-pread-file={trigger}")
    with Stage(make_hub, place, filters=filters) as stage:
        stage.first()
        stage.change()
        trigger.touch()
        backup = ended(stage, stage.start("main"), "failed", "input/output error")
        assert "disk-0" in backup["details"], backup
        trigger.unlink()

        backup_id = stage.reach("half done")
        trigger.touch()
        stage.go()
        ended(stage, backup_id, "failed", "input/output error")
        trigger.unlink()
        stage.prove()


def test_slow_source(make_hub, place):
    """A source that answers late is waited for, and heartbeats go on: for longer than a silent client would live."""
    with Stage(make_hub, place, options=[f"--lease={LEASE}"]) as stage:
        stage.first()
        stage.change()
        backup_id = stage.reach("half done")
        until = time.monotonic() + LEASE + HEARTBEAT + 4
        wait_for(lambda: time.monotonic() > until or stage.show(backup_id)["status"] != "running",
                 "the lease is over")
        assert stage.show(backup_id)["status"] == "running"
        assert stage.settle(backup_id)["status"] == "completed"
        stage.prove()


# ---- silence

def test_client_silent(make_hub, place):
    with Stage(make_hub, place, options=[f"--lease={LEASE}"]) as stage:
        stage.first()
        stage.change()
        backup_id = stage.reach("half done")
        pid = faults.client_pid(stage.world, backup_id)
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        ended(stage, backup_id, "failed", "client silent")
        # lease and heartbeat; 4 s for a client that does not hear SIGTERM; looks half a second apart: 11 s. The rest is
        # for a machine that is busy
        assert LEASE - 1 < time.monotonic() - began < patience(30)
        stage.prove_after_go()


def test_client_that_hangs_before_its_claim(make_hub, place):
    """Nobody ended it, and its VM was not backed up again."""
    with Stage(make_hub, place, options=[f"--claim-timeout={CLAIM}"]) as stage:
        stage.first()
        stage.change()
        began = time.monotonic()
        backup_id = stage.reach("started")
        pid = faults.client_pid(stage.world, backup_id)
        ended(stage, backup_id, "failed", "not claimed")
        assert CLAIM - 1 < time.monotonic() - began < patience(30)
        wait_for(lambda: is_dead(pid), "the end of the client")
        stage.prove_after_go()


def test_time_to_claim_begins_with_the_client(make_hub, place):
    """A job that has to wait for its place does not lose it by that."""
    with Stage(make_hub, place, options=[f"--claim-timeout={CLAIM}", "--max-jobs=1"]) as stage:
        stage.first()
        stage.change()
        backup_id = stage.reach("queued")
        until = time.monotonic() + CLAIM + 1
        wait_for(lambda: time.monotonic() > until or stage.show(backup_id)["status"] != "pending", "time passes")
        assert stage.show(backup_id)["status"] == "pending"
        assert stage.settle(backup_id)["status"] == "completed"
        stage.prove()


@pytest.mark.parametrize("moment, deaf", [("queued", None), ("opening", None), ("half done", None),
                                          ("half done", "client"),
                                          ("half done", "exporter"), ("copied", None), ("sealing", None)])
def test_cancel(moment, deaf, make_hub, place):
    """Within five seconds, also when client or exporter do not listen any more."""
    with Stage(make_hub, place, options=["--max-jobs=1"] if moment == "queued" else []) as stage:
        stage.first()
        stage.change()
        backup_id = stage.reach(moment)
        if deaf:
            pid = faults.client_pid(stage.world, backup_id) if deaf == "client" else \
                faults.exporter_pids(stage.world, backup_id)[0]
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        stage.cli.ok("cancel", backup_id, timeout=30)
        wait_for(lambda: stage.show(backup_id)["status"] != "running", "the job is over", 30)
        took = time.monotonic() - began
        ended(stage, backup_id, "cancelled")
        assert took < CANCEL_SECONDS, took
        stage.check_listed()
        stage.prove_after_go()


def test_cancel_what_is_over(make_hub, place):
    with Stage(make_hub, place) as stage:
        first = stage.first()
        refused = stage.cli.run("cancel", first["backup_id"])
        assert refused.status == 1 and "completed" in refused.err


@pytest.mark.parametrize("moment, status", [("committing", "failed"), ("linked", "completed")])
def test_cancel_a_commit_that_hangs(moment, status, make_hub, place):
    """It can be given up until its record is there."""
    with Stage(make_hub, place) as stage:
        stage.first()
        stage.change()
        backup_id = stage.reach(moment)
        assert stage.cli.run("cancel", backup_id).status == (0 if status == "failed" else 1)
        stage.heal_database()
        assert stage.settle(backup_id)["status"] == status
        stage.hub.stop()
        stage.start_hub()
        stage.prove()


# ---- the hub's own ground

def test_database_locked_during_complete(make_hub, place):
    """The call fails or waits, nothing is lost, and the client's repetition records the point."""
    with Stage(make_hub, place) as stage:
        stage.first()
        stage.change()
        backup_id = stage.reach("copied")
        database = sqlite3.connect(stage.hub.database, isolation_level=None)
        try:
            database.execute("BEGIN IMMEDIATE")
            stage.go()
            wait_for(lambda: "Storing ChangeID" in stage.client_log().rpartition("job claimed")[2], "complete is said")
            # longer than any busy timeout would be a long test: half a second shows that nothing is half done
            until = time.monotonic() + 0.5
            wait_for(lambda: time.monotonic() > until, "a while")
            assert stage.status_without_hub(backup_id) == "running"
            database.execute("ROLLBACK")
        finally:
            database.close()
        assert stage.settle(backup_id)["status"] == "completed"
        stage.prove()


def test_row_that_cannot_be_written(make_hub, place):
    """The record is there and the row is not: the client's repetition, not a restart, completes it."""
    with Stage(make_hub, place) as stage:
        stage.first()
        stage.change()
        backup_id = stage.reach("linked")
        calls = [e for e in stage.gate.exchanges if e[1].endswith("/complete")]
        wait_for(lambda: any(e[2] == 500 for e in stage.gate.exchanges if e[1].endswith("/complete")), "a 500")
        assert stage.status_without_hub(backup_id) == "committing", calls
        stage.heal_database()
        assert stage.settle(backup_id)["status"] == "completed"
        assert "Successfully stored ChangeID in SHA database" in stage.client_log()
        stage.prove()


def test_repository_away(make_hub, place):
    """An unmounted share is an empty folder: no job starts, none completes, nothing is written to it or forgotten."""
    with Stage(make_hub, place) as stage:
        first = stage.first()
        stage.change()
        path = stage.repositories["main"]
        backup_id = stage.reach("copied")
        os.rename(path, f"{path}.away")
        path.mkdir()
        stage.go()
        ended(stage, backup_id, "failed")
        body = {"vm_name": "pgtest1", "repository_id": "main"}
        stage.api.post("/backups", body).expect(503)
        stage.api.post("/repositories/main/scan").expect(503)
        assert not stage.api.get("/repositories/main").expect(200)["available"]
        refused = stage.cli.run("delete", first["backup_id"])
        assert refused.status == 1 and "holds no repository now" in refused.err, refused
        stage.check_listed()
        stage.hub.stop()
        stage.start_hub()         # and it stays away
        stage.check_listed()
        assert os.listdir(path) == []
        path.rmdir()
        assert partial_files(f"{path}.away")
        os.rename(f"{path}.away", path)     # it comes back
        wait_for(lambda: not partial_files(path), "what the job left is taken away")
        stage.prove()


@contextmanager
def restore_held(stage, results, backup_id, target):
    """A restore, in a thread, that is connected and gets no byte until open(): (thread, open). The CLI has the hub's
    answer, and needs it no more. A stopped exporter did not say that it was read, and a hub that took a second to start
    ended it."""
    cli = Cli(stage.gate.url, cwd=stage.folder)
    thread = threading.Thread(target=lambda: results.append(
        cli.run("restore", backup_id, "--disk", "0", "--to", target)))
    stage.gate.hold("exports", after=True)
    thread.start()
    stage.gate.wait_held("exports", after=True)
    line = ReadGate(stage.world.sql("SELECT socket FROM exports")[0]["socket"], 0)
    try:
        stage.gate.open()
        line.wait_held()
        yield thread, line.open
    finally:
        line.close()
        thread.join()


def test_restore_killed(make_hub, place):
    """What a killed restore leaves is no disk, and its export ends by itself; until then the point stays."""
    with Stage(make_hub, place, options=[f"--export-idle={int(patience(1))}"]) as stage:
        first = stage.first()
        target = place / "restored.raw"
        with restore_held(stage, [], first["backup_id"], target) as (thread, _):
            pid = wait_for(lambda: cli_pid(target), "the restore runs")
            os.kill(pid, signal.SIGKILL)
            thread.join()
            assert not target.exists()
            refused = stage.cli.run("delete", first["backup_id"])       # the exporter has not heard of the end
            assert refused.status == 1 and "is being read" in refused.err, refused
        wait_for(lambda: stage.api.get("/exports").expect(200)["exports"] == [], "the export ends")
        for path in place.glob("restored.raw*"):
            path.unlink()
        stage.cli.ok("delete", first["backup_id"])


def cli_pid(target):
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and "restore" in (line := faults.command_line(name)) \
                and str(target) in line:
            return int(name)
    return None


@pytest.mark.parametrize("back", ["before it ends", "after it ended"])
def test_restore_goes_on_without_the_hub(make_hub, place, back):
    with Stage(make_hub, place, options=[f"--export-idle={int(patience(1))}"]) as stage:
        first = stage.first()
        target, results = place / "restored.raw", []
        with restore_held(stage, results, first["backup_id"], target) as (thread, go):
            stage.hub.kill()
            if back == "before it ends":
                stage.start_hub()
            go()
            thread.join()
        if back == "after it ended":
            stage.start_hub()
        assert results[0].status == 0, results
        stage.references.expect(stage.points[first["backup_id"]]["disk-0"], target, "what was restored")
        wait_for(lambda: stage.api.get("/exports").expect(200)["exports"] == [], "the export ends")
        stage.prove()


# ---- two hubs

def test_two_hubs_one_data_folder(make_hub, place):
    """Refused, also while the first one only left its children behind."""
    with Stage(make_hub, place) as stage:
        stage.first()
        second = make_hub("second", start=False)
        second.data = stage.hub.data
        with pytest.raises(AssertionError, match="another hub"):
            second.start()


def test_two_hubs_one_repository(make_hub, place):
    """There is no fencing between them: but whatever either lists is right, and neither removes what is the other's."""
    with Stage(make_hub, place) as stage:
        first = stage.first()
        other_hub = make_hub("second")
        other = Cli(other_hub.url, cwd=place)
        other.ok("repo", "add", "main", "--path", stage.repositories["main"])
        assert other.json("repo", "scan", "main")["added"] == 1
        vm_id = stage.api.get("/vms/pgtest1").expect(200)["vm_id"]
        other_hub.api.post("/vms", {"name": "pgtest1", "adopt": vm_id, "source": {
            "type": "file", "disks": [{"uri": s.uri} for s in stage.servers]}}).expect(201)

        stage.change()
        backup_id = stage.reach("copied")               # ours is half way,
        references = stage.references_now()
        theirs = other.json("backup", "pgtest1", "--repo", "main")      # and theirs runs from start to end
        assert theirs["status"] == "completed" and theirs["parent_id"] == first["backup_id"]
        other_hub.restart()                             # recovery takes ours for left over, and that is its right
        backup = stage.settle(backup_id)
        for hub, cli in ((stage.hub, stage.cli), (other_hub, other)):
            cli.json("repo", "scan", "main")
            cli.ok("verify", "--repo", "main")
        stage.points[theirs["backup_id"]] = references
        for backup_id in {theirs["backup_id"], *([backup["backup_id"]] if backup["status"] == "completed" else [])}:
            stage.check_point(backup_id)
        # each goes on from the newest that it knows
        stage.change()
        references = stage.references_now()
        ours = stage.cli.json("backup", "pgtest1", "--repo", "main")
        assert ours["status"] == "completed"
        stage.points[ours["backup_id"]] = references
        stage.check_point(ours["backup_id"])
        stage.cli.ok("verify", "--repo", "main")
