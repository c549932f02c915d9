"""Starts, stops, kills and restarts the real hub."""

import os
import random
import signal
import socket
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from lib import system
from lib.api import Api, quote
from lib.patience import SLOWNESS, patience

ROOT = Path(__file__).resolve().parents[3]
BIN = Path(os.environ.get("SENDENSE_BIN") or ROOT / "build" / "bin")
START_SECONDS = patience(60)      # each step of the schema takes a cluster its time
STOP_SECONDS = patience(20)
FINAL = {"completed", "failed", "cancelled"}


def free_port():
    """A port that nobody listens on now. Somebody may take it before we do: the hub then says so. Below the ports of
    outgoing connections: it shall be free for a restart, too."""
    for _ in range(100):
        port = random.randrange(10000, 32000)
        with socket.socket() as s:
            try:
                s.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")


class HubError(AssertionError):
    pass


class Hub:
    """One data folder, and the hub that runs on it, or not. The port stays the same over restarts."""

    def __init__(self, folder, options=(), environment=None, binary=None, auth=False):
        self.folder = Path(folder)
        self.data = self.folder / "data"
        # Short, because of the sockets in it; and ours, so that it shows what was left behind
        self.run_dir = tempfile.mkdtemp(prefix="r-")
        self.log_path = self.folder / "hub.log"
        self.options = list(options)
        self.auth = auth
        self.environment = dict(environment or {})
        self.binary = str(binary or BIN / "sendense-hub")
        self.port = free_port()
        self.process = None
        self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self):
        return Api(self.port)

    @property
    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    @property
    def admin_token(self):
        return (self.data / "admin-token").read_text().strip()

    @property
    def key_file(self):
        """What opens the passwords of sources; made with the first one."""
        return self.data / "secret.key"

    @property
    def database(self):
        """The SQLite file of the embedded database."""
        found = sorted(self.data.glob("*.db"))
        assert len(found) == 1, found
        return found[0]

    def command(self):
        return [self.binary, "--data-dir", str(self.data), f"-port={self.port}",
                *([] if self.auth else ["-auth=false"]), "--run-dir", self.run_dir, *self.options]

    def environ(self):
        environ = {k: v for k, v in os.environ.items()
                   if k not in ("SHA_API_URL", "MIGRATEKIT_JOB_ID", "SENDENSE_JOB_TOKEN", "SENDENSE_TRAFFIC_DIR")}
        # a client that a test plays is as slow as all else
        slow = {"SENDENSE_LEASE": str(int(patience(30)))} if SLOWNESS > 1 else {}
        return {**environ, "SENDENSE_LOG": "debug", **slow, **self.environment}

    def start(self):
        for last in (False, False, True):
            if self._start_once(last):
                return self
            self.port = free_port()
        raise AssertionError("not reached")

    def _start_once(self, last):
        assert self.process is None
        at = len(self.log)
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                            env=self.environ(), start_new_session=True)
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            status = self.process.poll()
            if status is not None:
                self.process = None
                if not last and "is taken" in self.log[at:]:
                    return False
                raise HubError(f"the hub ended with {status}:\n{self.log[at:]}")
            if self._answers():
                return True
            time.sleep(0.03)
        self.kill()
        raise HubError(f"the hub did not answer within {START_SECONDS} s:\n{self.log[at:]}")

    def _answers(self):
        try:
            return self.api.get("/health", timeout=5).status == 200
        except OSError:
            return False

    @property
    def running(self):
        return self.process is not None and self.process.poll() is None

    def stop(self):
        """SIGTERM; the hub must end by itself, with exit status 0."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise HubError(f"the hub did not end within {STOP_SECONDS} s:\n{self.log[-4000:]}") from None
        self.process = None
        if status != 0:
            raise HubError(f"the hub ended with {status}:\n{self.log[-4000:]}")

    def kill(self):
        """kill -9. Exporters and clients go on, as they do after a crash."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def restart(self):
        self.stop()
        return self.start()

    def quiet(self):
        """Ends whatever runs or is being read, so that the hub leaves nothing behind when it stops."""
        if self.auth:       # whatever became of its tokens
            self.auth = False
            self.options = [o if o != "0.0.0.0" else "127.0.0.1" for o in self.options if o != "--new-admin-token"]
            self.restart()
        for status in ("pending", "running", "committing"):
            for backup in self.api.get(f"/backups?status={status}&limit=1000").expect(200)["backups"]:
                self.api.post(f"/backups/{quote(backup['backup_id'])}/cancel")
                self.api.wait_status(backup["backup_id"], FINAL, deadline=30)
        for export in self.api.get("/exports").expect(200)["exports"]:
            self.api.delete(f"/exports/{quote(export['export_id'])}").expect(200)

    def close(self):
        """At the end of a test: everything ended in order. Whatever is left after that is the hub's fault."""
        try:
            if self.running:
                self.quiet()
            self.stop()
        finally:
            self.kill()
            left = system.leftovers(self.run_dir)
            shutil.rmtree(self.run_dir, ignore_errors=True)
        if left:
            raise HubError("the hub left behind: " + "; ".join(left))

    def children(self):
        """{pid: command line} of the exporters and clients that belong to this hub."""
        own = self.process.pid if self.process else 0
        found = {**system.processes_of(self.run_dir), **system.processes_of(self.folder)}
        return {p: line for p, line in found.items() if p != own}
