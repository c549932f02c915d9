"""A hub, a slow VM, and the moments of a backup: each is reached by a condition, and held until go()."""

import contextlib
import os
import random
import signal
import sqlite3
import stat
import subprocess
import threading

from lib import faults
from lib.cli import Cli
from lib.gate import Gate
from lib.history import History, partial_files, wait_for
from lib.hub import BIN
from lib.world import World

MIB = 1 << 20
SIZE = 6 * MIB + 512
DATA = 4 * MIB          # of noise, at the start of the first disk
MOMENTS = ("queued", "started", "opening", "announcing", "announced", "first bytes", "half done", "copied", "sealing",
           "committing", "linked", "answered", "done")


class NbdServer:
    """An export of a raw file, to be stopped, slowed and broken."""

    def __init__(self, socket, path, *arguments):
        self.socket, self.path = str(socket), path
        filters = [a for a in arguments if a.startswith("--")]
        parameters = [a for a in arguments if not a.startswith("--")]
        self.process = subprocess.Popen(["nbdkit", "-f", "-r", "-t", "16", "-U", self.socket, *filters, "file", str(path),
                                         *parameters], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.uri = f"nbd+unix:///?socket={self.socket}"
        wait_for(lambda: os.path.exists(self.socket), "nbdkit listens", 10)

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def go(self):
        self.process.send_signal(signal.SIGCONT)

    def close(self):
        self.process.kill()
        self.process.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket)


class Stage(History):
    """One VM of two disks, read over NBD, the first one slowly. Use as a context manager."""

    def __init__(self, make_hub, place, seed=1, options=(), prefix=(), filters=()):
        self.random = random.Random(seed)
        self.flag = place / "stop-the-client"
        wrapper = place / "client.sh"
        hub = make_hub(start=False, environment={"SENDENSE_TEST_PLACE": str(place)},
                       options=[f"--client={wrapper}", *options])
        if prefix:
            plain = hub.command
            hub.command = lambda: [*prefix, *plain()]
        super().__init__(hub, Cli(hub.url, cwd=place), place, "pgtest1")
        self.wrapper = wrapper
        self.filters = filters      # of the first disk's server
        self.rate = place / "rate"
        self.servers = []
        self.stopped = []
        self.gate = self.world = None

    def __enter__(self):
        self.hub.start()
        # the port may be another one than was tried first
        self.api, self.cli = self.hub.api, Cli(self.hub.url, cwd=self.folder)
        self.world = World(self.hub, self.folder)
        self.gate = Gate(self.hub.port).__enter__()
        self.wrapper.write_text(f"#!/bin/sh\n[ -e '{self.flag}' ] && kill -STOP $$\n"
                                f"SHA_API_URL={self.gate.url} exec {BIN}/sendense-backup-client \"$@\"\n")
        self.wrapper.chmod(self.wrapper.stat().st_mode | stat.S_IXUSR)
        self.prepare()
        return self

    def __exit__(self, *_):
        self.go()
        self.gate.__exit__(None, None, None)
        for server in self.servers:
            server.close()

    def prepare(self):
        """The VM and its first, full point."""
        self.add_repository("main")
        self.paths = [self.folder / f"vm-{n}.raw" for n in range(2)]
        for path in self.paths:
            with open(path, "wb") as f:
                f.write(self.random.randbytes(DATA if path == self.paths[0] else 65536))
                f.truncate(SIZE)
        slow = ("--filter=rate", f"rate-file={self.rate}", "burstiness=0.05")
        self.servers = [NbdServer(self.folder / f"s{n}", path, *(() if n else (*self.filters, *slow)))
                        for n, path in enumerate(self.paths)]
        self.api.post("/vms", {"name": self.vm_name, "source": {
            "type": "file", "disks": [{"uri": s.uri} for s in self.servers]}}).expect(201)

    def own_processes(self):
        return {server.process.pid for server in self.servers}

    def slow(self):
        """The first disk takes a second and more."""
        self.rate.write_text("24M")     # bits

    def first(self):
        return self.backup("main", self.references_now())

    def references_now(self):
        return {f"disk-{n}": self.references.of(path.read_bytes()) for n, path in enumerate(self.paths)}

    def change(self):
        """So much that a copy of it takes a while."""
        for path in self.paths:
            with open(path, "r+b") as f:
                f.write(self.random.randbytes(DATA if path == self.paths[0] else 65536))

    # ---- moments

    def hold_source(self):
        self.servers[0].pause()

    def reach(self, moment):
        """Starts a backup and holds it at the moment; returns its ID."""
        self.references_then = self.references_now()
        return getattr(self, "at_" + moment.replace(" ", "_"))()

    def at_queued(self):
        """Waits for a place: another VM's job has the only one (the hub runs with --max-jobs=1)."""
        self.world.add_vm("other", (65536,))
        body = {"vm_name": "other", "repository_id": "main", "start_client": False}
        blocker = self.api.post("/backups", body).expect(201)
        self.api.with_token(blocker["job_token"]).post(f"/backups/{blocker['backup_id']}/claim", {
            "claim": "5f3f6a0e-6c52-4a8e-a3a0-6b2c1f3d9a41"}).expect(200)
        self.blocker = blocker["backup_id"]
        return self.start("main")

    def at_started(self):
        self.flag.touch()
        backup_id = self.start("main")
        wait_for(lambda: process_state(faults.client_pid(self.world, backup_id)) == "T", "the client is started")
        self.stopped.append(faults.client_pid(self.world, backup_id))
        self.flag.unlink()
        return backup_id

    def at_opening(self):
        self.hold_source()
        backup_id = self.start("main")
        wait_for(lambda: self.show(backup_id)["status"] == "running", "the job is claimed")
        return backup_id

    def at_announcing(self):
        return self.at_call("disks")

    def at_announced(self):
        return self.at_call("disks", after=True)

    def at_copied(self):
        return self.at_call("complete")

    def at_answered(self):
        return self.at_call("complete", after=True)

    def at_call(self, call, after=False):
        self.gate.hold(call, after)
        backup_id = self.start("main")
        self.gate.wait_held(call, after)
        return backup_id

    def at_first_bytes(self):
        return self.at_written(1)

    def at_half_done(self):
        return self.at_written(DATA // 2)

    def at_written(self, least):
        """The source is held once so many bytes are in the image."""
        self.slow()
        backup_id = self.start("main")
        wait_for(lambda: self.written() >= least, f"{least} bytes are written")
        self.hold_source()
        assert self.show(backup_id)["status"] == "running"
        return backup_id

    def written(self):
        total = 0
        for path in partial_files(self.repositories["main"]):
            if "disk-0" in path.parts and ".qcow2." in path.name:
                with contextlib.suppress(FileNotFoundError):
                    total += max(0, path.stat().st_size - 65536)
        return total

    def at_sealing(self):
        """The hub asks an exporter to seal, and it does not answer."""
        backup_id = self.at_copied()
        pid = faults.exporter_pids(self.world, backup_id)[0]
        os.kill(pid, signal.SIGSTOP)
        self.stopped.append(pid)
        self.gate.open()
        wait_for(lambda: self.show(backup_id)["phase"] == "completing", "the client completes")
        return backup_id

    def at_committing(self):
        """Sealed, and then the repository's share is away."""
        backup_id = self.at_copied()
        path = self.repositories["main"]
        os.rename(path, f"{path}.away")
        path.mkdir()
        self.gate.open()
        wait_for(lambda: self.show(backup_id)["status"] == "committing", "the job is committing")
        return backup_id

    def at_linked(self):
        """The record has its final name, and the database refuses the row."""
        self.sql("CREATE TRIGGER no_completion BEFORE UPDATE OF status ON backup_jobs WHEN NEW.status = 'completed' "
                 "BEGIN SELECT RAISE(ABORT, 'injected'); END")
        backup_id = self.start("main")
        count = len(self.points)
        wait_for(lambda: len(list(self.repositories["main"].glob("ctx-*/*.json"))) > count, "the record is there")
        assert self.show(backup_id)["status"] == "committing"
        return backup_id

    def at_done(self):
        backup_id = self.start("main")
        wait_for(lambda: self.show(backup_id)["status"] == "completed", "the job is completed")
        return backup_id

    def go(self):
        """Ends whatever holds the moment."""
        self.gate.open()
        self.rate.unlink(missing_ok=True)
        for server in self.servers:
            server.go()
        for pid in self.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.stopped = []
        path = self.repositories.get("main")
        if path and os.path.exists(f"{path}.away"):
            path.rmdir()
            os.rename(f"{path}.away", path)

    def heal_database(self):
        self.sql("DROP TRIGGER IF EXISTS no_completion")

    def sql(self, statement):
        with contextlib.closing(sqlite3.connect(self.hub.database, timeout=10)) as database:
            database.execute(statement)
            database.commit()

    # ---- harm

    def kill(self, backup_id, victim):
        """'hub', 'client', 'exporter', or several with a + between."""
        for one in victim.split("+"):
            if one == "hub":
                self.hub.kill()
            elif one == "client":
                # the wrapper that has not become the client yet has its own name
                pid = faults.client_pid(self.world, backup_id)
                assert (faults.signal_if(pid, "sendense-backup-client") or faults.signal_if(pid, str(self.wrapper))
                        or self.status_without_hub(backup_id) == "completed")
            else:
                pids = faults.exporter_pids(self.world, backup_id)
                assert pids and all(faults.signal_if(pid, "nbdkit") for pid in pids[:1])

    def status_without_hub(self, backup_id):
        return self.world.sql("SELECT status FROM backup_jobs WHERE id = ?", backup_id)[0]["status"]

    def settle(self, backup_id):
        """What was held goes on, what was killed is started again; the job, once it is over."""
        self.go()
        if not self.hub.running:
            self.hub.start()
        if getattr(self, "blocker", None):
            self.cli.run("cancel", self.blocker)
        return self.note("main", self.wait_final(backup_id), self.references_then)

    def prove(self):
        """All is well: the next increment is right, every point verifies and restores, nothing is left."""
        self.check_nothing_left()
        self.change()
        before = self.newest("main")
        backup = self.backup("main", self.references_now())
        assert backup["parent_id"] == before and {d["mode"] for d in backup["disks"]} <= {"compare", "full"}
        if before:
            assert {d["mode"] for d in backup["disks"]} == {"compare"}, backup
        self.check_everything()


def process_state(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rpartition(")")[2].split()[0]
    except OSError:
        return None


def in_background(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    return thread
