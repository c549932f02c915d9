"""The database's disk is full, while a backup runs: SQLite's and MariaDB's. docs/internals/mariadb.md has a part on it.

Writing calls are refused in words that say what to do, looking goes on, the job is neither lost nor completed falsely,
and once there is room again all goes on by itself.
"""

import contextlib
import os
import re
import subprocess
import time

import pytest

from lib.history import wait_for
from lib.hub import HubError
from lib.mariadb import MISSING, MariaDb
from lib.patience import patience
from lib.stage import Stage

MIB = 1 << 20
LEASE = 2           # how long a client may be silent, and
HEARTBEAT = 4       # how much longer it is given then


@contextlib.contextmanager
def small_disk(path, mib):
    path.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "sendense-test", path],
                      check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield
    finally:
        # also after a failure, when somebody is still there
        subprocess.run(["umount", "--lazy", path], check=True)


class Full:
    """A hub whose database lies on a small disk, and a VM with a job."""

    def __init__(self, disk, stage, server=None):
        self.disk, self.stage, self.api, self.server = disk, stage, stage.api, server

    def fill(self):
        """Until the database refuses: it has some room of its own in its files."""
        with open(self.disk / "filler", "wb", buffering=0) as f, contextlib.suppress(OSError):
            while f.write(bytes(MIB)):
                pass
            while f.write(bytes(512)):
                pass
        return wait_for(self.refusal, "the database is full")

    def refusal(self, disks=2):
        disks = [{"path": f"/{'p' * 400}/{n}", "format": "raw"} for n in range(disks)]
        source = {"type": "file", "disks": disks}
        answer = self.api.post("/vms", {"name": f"vm-{os.urandom(8).hex()}", "source": source})
        return None if answer.status == 201 else answer

    def empty(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.disk / "filler")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.empty()    # also after a failure: what is to end writes


@contextlib.contextmanager
def embedded(make_hub, place):
    disk = place / "hub" / "data"
    with small_disk(disk, 12):
        with Stage(make_hub, place, options=[f"--lease={LEASE}"]) as stage:
            try:
                with Full(disk, stage) as full:
                    yield full
            finally:
                stage.hub.stop()


@contextlib.contextmanager
def mariadb(make_hub, place, lease=LEASE):
    if MISSING:
        pytest.skip(f"no MariaDB here: {', '.join(MISSING)} missing")
    disk = place / "disk"
    with small_disk(disk, 256), MariaDb(place / "mariadb", data=disk / "data") as server:
        with Stage(make_hub, place, options=[f"--lease={lease}", *server.options()]) as stage:
            sources = stage.own_processes
            stage.own_processes = lambda: sources() | {server.process.pid}
            try:
                with Full(disk, stage, server) as full:
                    yield full
            finally:
                stage.hub.stop()


def refused(stage, call, status):
    """How many of the clients' calls of that kind, as the hub's log has it: the clients' logs lie on the full disk, and
    end after some heartbeats that were refused, with a page of it."""
    return len(re.findall(rf"method=POST path=\S+/{call} status={status} ", stage.hub.log))


@pytest.mark.parametrize("where", [embedded, mariadb])
def test_full_in_the_middle_of_a_backup(make_hub, place, where):
    with where(make_hub, place) as full:
        stage, api = full.stage, full.api
        first = stage.first()
        stage.change()
        backup_id = stage.at_half_done()
        said = full.fill().expect(507)
        assert said["error"] == "no space left" and "make room" in said["details"], said
        assert api.get("/backups").expect(200)["backups"] and api.get("/health").expect(200)
        # for longer than a client may be silent: it is not, but nobody can note it
        until = time.monotonic() + patience(LEASE + HEARTBEAT + 2)
        before = refused(stage, "progress", 507)
        wait_for(lambda: time.monotonic() > until, "the lease is over")
        # in MariaDB's files small changes have room
        assert where is mariadb or refused(stage, "progress", 507) > before
        assert stage.show(backup_id)["status"] == "running"
        stage.go()
        wait_for(lambda: refused(stage, "complete", "5..") or stage.show(backup_id)["status"] == "completed",
                 "the client completed, or repeats")
        assert stage.show(backup_id)["status"] in ("running", "committing", "completed")
        assert stage.hub.process.poll() is None
        full.empty()
        assert stage.wait_final(backup_id)["status"] == "completed", stage.show(backup_id)
        stage.note("main", stage.show(backup_id), stage.references_now())
        stage.prove()
        stage.check_point(first["backup_id"])


@pytest.mark.parametrize("where", [embedded, mariadb])
def test_every_kind_of_call_is_507_or_right(make_hub, place, where):
    """And nothing of what was refused is there afterwards."""
    with where(make_hub, place) as full:
        stage, api = full.stage, full.api
        stage.first()
        repository, = api.get("/repositories").expect(200)["repositories"]
        calls = [("POST", "/tokens", {"name": "t", "role": "viewer"}),
                 ("POST", "/repositories", {"name": "other", "path": str(place / "other")}),
                 ("PATCH", "/vms/pgtest1", {"audit_blocks": 7}),
                 ("POST", "/replications", {"vm_name": "pgtest1"}),
                 ("POST", "/backups", {"vm_name": "pgtest1", "repository_id": repository["repository_id"]})]
        full.fill()
        refused = 0
        for method, path, body in calls:
            answer = api.request(method, path, body)
            assert answer.status in (200, 201, 202, 507), (method, path, answer)
            refused += answer.status == 507
            assert answer.status != 507 or "make room" in answer.expect(507)["details"]
        assert refused >= (4 if where is embedded else 0)
        assert not any(t["name"] == "t" for t in api.get("/tokens").expect(200)["tokens"]) or where is mariadb
        full.empty()
        stage.hub.quiet()
        point = stage.backup("main", stage.references_now())
        assert point["status"] == "completed"
        stage.check_point(point["backup_id"])


def test_a_mariadb_that_gives_up(make_hub, place):
    """InnoDB ends its server where it cannot roll back, as it may where a large row finds no room ("Out of disk space
    in rollback"): then the hub says 503, and goes on once the server is back.
    """
    with mariadb(make_hub, place, lease=300) as full:     # whoever is away for longer than that ends jobs
        stage, server = full.stage, full.server
        stage.first()
        stage.change()
        backup_id = stage.at_half_done()
        full.fill()
        answer = full.refusal(disks=200)
        assert answer.status in (503, 507), answer
        full.empty()    # a server that is to end writes; one without room for that took more than a minute
        server.stop()   # if it has not ended by itself
        stage.api.get("/backups").expect(503)
        assert stage.hub.process.poll() is None
        server.start()
        stage.go()
        assert stage.wait_final(backup_id)["status"] == "completed"
        stage.note("main", stage.show(backup_id), stage.references_now())
        stage.prove()


def test_a_hub_that_is_started_on_a_full_disk(make_hub, place):
    """It starts and only looks, or ends in words that say what to do; and starts as ever once there is room."""
    with embedded(make_hub, place) as full:
        stage = full.stage
        stage.first()
        full.fill()
        stage.hub.stop()
        try:
            stage.hub.start()
            assert stage.api.get("/backups").expect(200)["backups"]
            assert "make room" in wait_for(full.refusal, "the database is full").expect(507)["details"]
            stage.hub.stop()
        except HubError as e:
            assert "no space left" in str(e) and "make room" in str(e), e
        full.empty()
        stage.hub.start()
        stage.prove()
