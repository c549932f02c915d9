"""A hub, a VM, and the moments of a backup: each is reached by a condition, and held until go()."""

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess

from lib import faults, system
from lib.cli import Cli
from lib.engine import ask
from lib.gate import Gate
from lib.history import History, partial_files, wait_for
from lib.hub import BIN
from lib.nbd_gate import NbdGate, ReadGate
from lib.qmp_gate import QmpGate
from lib.share import every_second
from lib.vm import check_qemu_is_clean, contents_now, make_vm
from lib.world import World

MIB = 1 << 20
SIZE = 6 * MIB + 512
DATA = 4 * MIB          # of noise, at the start of the first disk


JOURNAL_ITEM = 40       # bytes of a cluster in an engine's journal, with a hash of 16


class NbdServer:
    """An export of a raw file, to be stopped and broken."""

    def __init__(self, socket, path, *arguments):
        self.socket, self.path = str(socket), path
        filters = [a for a in arguments if a.startswith("--")]
        parameters = [a for a in arguments if not a.startswith("--")]
        self.process = subprocess.Popen(["nbdkit", "-f", "-r", "-t", "16", "-U", self.socket, *filters, "file",
                                         str(path),
                                         *parameters], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.uri = f"nbd+unix:///?socket={self.socket}"
        wait_for(lambda: system.listens(self.socket), "nbdkit listens")

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
    """One VM of two disks, read over NBD. Use as a context manager."""

    data = DATA     # of the first disk, that change() changes
    client_options = ""

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
        self.servers = []
        self.stopped = []
        self.gate = self.nbd_gate = self.world = self.obstacle = self.blocker = None

    def __enter__(self):
        self.write_wrapper("exit 1\n")      # a hub starts with a client only
        self.hub.start()
        # the port may be another one than was tried first
        self.api, self.cli = self.hub.api, Cli(self.hub.url, cwd=self.folder)
        self.world = World(self.hub, self.folder)
        self.gate = Gate(self.hub.port).__enter__()
        client = f"{BIN}/sendense-backup-client {self.client_options}"
        self.write_wrapper(f"[ -e '{self.flag}' ] && kill -STOP $$\n"
                           f"SHA_API_URL={self.gate.url} exec {client} \"$@\"\n")
        try:
            self.prepare()
        except BaseException:       # whoever fails to enter does not exit
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.go()
        self.gate.__exit__(None, None, None)
        self.forget_nbd_gate()
        for server in self.servers:
            server.close()

    def write_wrapper(self, script):
        self.wrapper.write_text("#!/bin/sh\n" + script)
        self.wrapper.chmod(self.wrapper.stat().st_mode | stat.S_IXUSR)

    def forget_nbd_gate(self):
        if self.nbd_gate:
            self.nbd_gate.close()
            self.nbd_gate = None

    def start_hub(self):
        super().start_hub()
        self.gate.target = ("127.0.0.1", self.hub.port)

    def prepare(self):
        """The VM and its first, full point."""
        self.add_repository("main")
        self.paths = [self.folder / f"vm-{n}.raw" for n in range(2)]
        for path in self.paths:
            with open(path, "wb") as f:
                f.write(self.random.randbytes(DATA if path == self.paths[0] else 65536))
                f.truncate(SIZE)
        for n, path in enumerate(self.paths):
            self.servers.append(NbdServer(self.folder / f"s{n}", path, *(() if n else self.filters)))
        self.api.post("/vms", {"name": self.vm_name, "source": {
            "type": "file", "disks": [{"uri": s.uri} for s in self.servers]}}).expect(201)

    def own_processes(self):
        return {server.process.pid for server in self.servers}

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

    def at_connecting(self):
        """The client has connected to the first disk's exporter, which has not heard a word of it."""
        return self.at_let_through(0)

    def at_first_bytes(self):
        return self.at_let_through(65536 // 2)      # somewhere in the first writes

    def at_quarter_done(self):
        return self.at_written(self.data // 4)

    def at_half_done(self):
        return self.at_written(self.data // 2)

    def at_three_quarters_done(self):
        return self.at_written(self.data // 4 * 3)

    def at_last_bytes(self):
        """All is read, and what was sent besides the data keeps some of it from the exporter."""
        return self.at_let_through(self.data)

    def at_let_through(self, count):
        """The first disk's exporter has got so many bytes from the client."""
        backup_id = self.at_announced()
        path = self.world.sql("SELECT socket FROM backup_disks WHERE backup_id = ? AND disk_no = 0", backup_id)
        self.nbd_gate = NbdGate(path[0]["socket"], count)
        self.gate.open()
        self.nbd_gate.wait_held()
        return backup_id

    def wait_received(self, backup_id, least):
        """The first disk's exporter has answered for so much data: a job that is killed before has nothing to keep."""
        row, = self.world.sql("SELECT control FROM backup_disks WHERE backup_id = ? AND disk_no = 0", backup_id)
        wait_for(lambda: ask(row["control"], "status")["received_data"] >= least, f"{least} bytes arrived")

    def wait_journal(self, least):
        """So many of the first disk's clusters are durable, and noted as that."""
        journal, = [p for p in partial_files(self.repositories["main"])
                    if "disk-0" in p.parts and ".journal." in p.name]
        wait_for(lambda: journal.stat().st_size >= least * JOURNAL_ITEM, f"{least} clusters are durable")

    def at_written(self, least):
        """The source is held once it has given so many bytes: what it has not been asked for it cannot give before it
        is held, as a slow one did that was stopped half a second late."""
        self.forget_nbd_gate()
        self.nbd_gate = ReadGate(self.servers[0].socket, least)
        backup_id = self.start("main")
        self.nbd_gate.wait_held()
        # opening the source reads some too, and an image is there before all exporters are: the client says when it
        # copies
        wait_for(lambda: self.partial_images() and self.show(backup_id)["phase"] == "copying", "it copies")
        assert self.show(backup_id)["status"] == "running"
        return backup_id

    def partial_images(self):
        return [p for p in partial_files(self.repositories["main"]) if "disk-0" in p.parts and ".qcow2." in p.name]

    def at_sealing(self):
        return self.at_sealing_of(0)

    def at_half_sealed(self):
        """The first disk is sealed, the second is not."""
        return self.at_sealing_of(1)

    def at_sealing_of(self, n):
        """The hub asks an exporter to seal, and it does not answer."""
        backup_id = self.at_copied()
        row = self.world.sql("SELECT exporter_pid, control FROM backup_disks WHERE backup_id = ? ORDER BY disk_no",
                             backup_id)[n]
        os.kill(row["exporter_pid"], signal.SIGSTOP)
        self.stopped.append(row["exporter_pid"])
        self.gate.open()
        wait_for(lambda: connections(row["control"]) > 0, "the hub asks it")
        return backup_id

    def at_committing(self):
        """Sealed, and the record cannot be written: what has its temporary name is a folder."""
        backup_id = self.at_copied()
        row, = self.world.sql("SELECT context, stem, attempt FROM backup_jobs WHERE id = ?", backup_id)
        self.obstacle = self.repositories["main"] / row["context"] / f"{row['stem']}.json.partial-{row['attempt']}"
        (self.obstacle / "full").mkdir(parents=True)
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
        if self.nbd_gate:
            self.nbd_gate.open()
        for server in self.servers:
            server.go()
        for pid in self.stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.stopped = []
        if self.obstacle:
            shutil.rmtree(self.obstacle)
            self.obstacle = None

    def heal_database(self):
        self.sql("DROP TRIGGER IF EXISTS no_completion")

    def sql(self, statement):
        with contextlib.closing(sqlite3.connect(self.hub.database, timeout=10)) as database:
            database.execute(statement)
            database.commit()

    # ---- harm

    def kill(self, backup_id, victim):
        """'hub', 'client', 'exporter', or several with a + between; returns when they are dead."""
        for one in victim.split("+"):
            if one == "hub":
                self.hub.kill()
                continue
            pid = faults.client_pid(self.world, backup_id) if one == "client" else \
                faults.exporter_pids(self.world, backup_id)[0]
            # the client's wrapper, which has not become the client yet, has its own name
            words = ("sendense-backup-client", str(self.wrapper)) if one == "client" else ("nbdkit",)
            hit = any(faults.signal_if(pid, word) for word in words)
            assert hit or self.status_without_hub(backup_id) == "completed", f"{one} is not there"
            wait_for(lambda: is_dead(pid), f"the end of {one}")

    def status_without_hub(self, backup_id):
        return self.world.sql("SELECT status FROM backup_jobs WHERE id = ?", backup_id)[0]["status"]

    def settle(self, backup_id):
        """What was held goes on, what was killed is started again; the job, once it is over."""
        if not self.hub.running:
            self.start_hub()
        self.go()
        if self.blocker:
            self.cli.run("cancel", self.blocker)
            self.blocker = None
        backup = self.note("main", self.wait_final(backup_id), self.references_then)
        self.forget_nbd_gate()
        return backup

    def prove_after_go(self):
        self.go()
        if self.blocker:
            self.cli.run("cancel", self.blocker)
        self.prove()

    def go_on(self, lost=False):    # there is no tracking to lose here
        """Nothing is left, and the next increment can be made. lost: change tracking has to be."""
        self.check_nothing_left()
        self.change()
        before = self.newest("main")
        backup = self.backup("main", self.references_now())
        assert backup["parent_id"] == before
        assert {d["mode"] for d in backup["disks"]} == {"compare" if before else "full"}, backup

    def prove(self):
        """All is well: the next increment is right, every point verifies and restores, nothing is left."""
        self.go_on()
        self.check_everything(self.random)


def run_moments(stage, victim, ends, lost=lambda moment: False):
    """One after the other in one history. ends: {moment: how the job must end}; lost: does tracking have to be lost?"""
    stage.first()
    for moment, end in every_second(ends.items()):
        stage.change()
        backup_id = stage.reach(moment)
        stage.kill(backup_id, victim)
        stage.heal_database()
        backup = stage.settle(backup_id)
        said = f"{victim} killed, {moment}: {backup['status']}: {backup['error']}: {backup['details']}"
        stage.say(said)
        assert backup["status"] == end, f"{said}\n{stage.client_log()}\n{stage.hub.log[-4000:]}"
        assert end == "completed" or (backup["error"] and backup["details"]), said
        stage.go_on(lost(moment))
    stage.prove()


def connections(path):
    """To the Unix socket of this name, accepted or not."""
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as f:
        return sum(line.rstrip().endswith(f" {path}") for line in f) - 1


def is_dead(pid):
    """All its threads: until then its sockets are open."""
    try:
        return len(os.listdir(f"/proc/{pid}/task")) < 2 and process_state(pid) in (None, "Z")
    except OSError:
        return True


def own_mounts(*mounts):
    """Starts a command in a mount namespace of its own, with a small filesystem at each folder: (folder, MiB)."""
    script = "".join(f"mount -t tmpfs -o size={size}m none '{folder}' && " for folder, size in mounts)
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--mount", "sh", "-c", f"{script} exec \"$@\"", "sh"]


def ended(stage, backup_id, status, *words):
    """Waits for the job's end; the words: one of them must be in what it says of its error."""
    backup = stage.wait_final(backup_id)
    said = f"{backup['error']}: {backup['details']}"
    assert backup["status"] == status, f"{said}\n{stage.client_log()}"
    assert not words or any(word in said.lower() for word in words), said
    return backup


def process_state(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
            return f.read().rpartition(")")[2].split()[0]
    except OSError:
        return None


class QemuStage(Stage):
    """The same with a VM in QEMU that the test writes to. `scratch`: the folder for scratch images."""

    data = 24 * 65536

    def __init__(self, make_hub, place, seed=1, prefix=(), scratch=None, size=6 * MIB):
        super().__init__(make_hub, place, seed, prefix=prefix)
        self.size = size
        self.scratch = scratch or place
        self.vm = self.qmp_gate = None

    def __exit__(self, *args):
        super().__exit__(*args)
        if self.qmp_gate:
            self.qmp_gate.__exit__(*args)
        if self.vm:
            self.vm.close()

    def prepare(self):
        self.add_repository("main")
        self.vm = make_vm(self.folder, [(fmt, self.random.randbytes(DATA).ljust(self.size, b"\0"))
                                        for fmt in ("qcow2", "raw")])
        self.qmp_gate = QmpGate(self.folder / "qmp", self.vm.qmp_path).__enter__()
        self.api.post("/vms", {"name": self.vm_name, "source": {
            "type": "qemu", "qmp": self.qmp_gate.path, "scratch": str(self.scratch)}}).expect(201)

    def own_processes(self):
        return {self.vm.process.pid}

    def references_now(self):
        return {key: self.references.of(content) for key, content in contents_now(self.vm, self.folder).items()}

    def change(self):
        for n in range(2):
            for cluster in self.random.sample(range(self.size // 65536 - 1), self.data // 65536):
                self.vm.write(n, cluster * 65536, 65536, self.random.randrange(1, 256))

    def at_greeting(self):
        return self.at_command("qmp_capabilities")

    def at_freezing(self):
        """All is there for the instant."""
        return self.at_command("transaction")

    def at_frozen(self):
        """The instant is over, and the client does not know it."""
        return self.at_command("block-export-add")

    def at_closing(self):
        """The point is recorded, and its view is to go."""
        return self.at_command("block-export-del")

    def at_command(self, command):
        self.qmp_gate.hold(f'"{command}"')
        backup_id = self.start("main")
        self.qmp_gate.wait_held()
        return backup_id

    def at_written(self, least):
        return self.at_let_through(least)

    def go(self):
        super().go()
        if self.qmp_gate:
            self.qmp_gate.open()

    def kill(self, backup_id, victim):
        if victim != "guest":
            super().kill(backup_id, victim)
            return
        self.vm.kill()
        self.vm.start()

    def go_on(self, lost=False):
        """As for any stage; and QEMU is clean, and tracking works, or is lost with a reason."""
        self.check_nothing_left()
        check_qemu_is_clean(self.vm, self.folder)
        self.change()
        backup = self.backup("main", self.references_now())
        expected = ("compare", "tracking_lost") if lost else ("tracked", "")
        assert {(d["mode"], d["reason"]) for d in backup["disks"]} == {expected}, (backup, self.client_log())

    def prove(self):
        super().prove()
        check_qemu_is_clean(self.vm, self.folder)
