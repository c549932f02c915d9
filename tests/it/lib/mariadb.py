"""A real MariaDB server of the test's own, on a port of 127.0.0.1."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

from lib.hub import free_port
from lib.patience import patience

NAME, USER, PASSWORD = "migratekit_oma", "oma_user", "oma_password"
TOOLS = Path(__file__).resolve().parents[2] / "tools"
PATHS = os.environ["PATH"] + ":/usr/sbin"
MISSING = [p for p in ("mariadbd", "mariadb-install-db", "mariadb") if not shutil.which(p, path=PATHS)]


def own_host():
    """A root may be so bare that it does not know localhost."""
    try:
        socket.getaddrinfo("localhost", None)
        return "localhost"
    except OSError:
        return "127.0.0.1"


class MariaDb:
    def __init__(self, folder, more=(), data=None):
        """more: options of the server's; data: where it keeps its data."""
        folder.mkdir()
        self.folder, self.port, self.process, self.more = folder, free_port(), None, list(more)
        self.data = data or folder / "data"
        self.log_path = folder / "log"

    def _common(self):
        # another server that starts empties a common folder for temporary files of what is ours
        return ["--no-defaults", "--user=root", f"--datadir={self.data}", f"--tmpdir={self.folder}"]

    def install(self):
        subprocess.run([shutil.which("mariadb-install-db", path=PATHS), *self._common(),
                        "--auth-root-authentication-method=normal", "--skip-test-db",
                        "--force"],     # names need not resolve
                       check=True, capture_output=True, timeout=patience(120))

    def __enter__(self):
        self.install()
        self.start()
        self.sql(f"CREATE DATABASE {NAME}; CREATE USER {USER}@'%' IDENTIFIED BY '{PASSWORD}'; "
                 f"GRANT ALL ON {NAME}.* TO {USER}@'%'")
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        self.launch()
        self.wait_started()

    def launch(self):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [shutil.which("mariadbd", path=PATHS), *self._common(), f"--socket={self.folder / 's'}",
                 f"--pid-file={self.folder / 'pid'}",
                 "--bind-address=127.0.0.1", f"--port={self.port}",
                 "--skip-name-resolve", "--innodb-buffer-pool-size=32M", "--innodb-log-file-size=8M", *self.more],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "PATH": f"{TOOLS}:{PATHS}"})

    def wait_started(self):
        self.wait(lambda: self._client("SELECT 1").returncode == 0, "it answers")

    def wait(self, condition, what):
        until = time.monotonic() + patience(60)
        while not condition():
            assert self.process.poll() is None and time.monotonic() < until, f"{what}:\n{self.log_path.read_text()}"
            time.sleep(0.05)

    def stop(self):
        """As `systemctl stop` does."""
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(timeout=patience(60))
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            self.process = None

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process = None

    def _client(self, statement, database=""):
        return subprocess.run(["mariadb", "--no-defaults", f"--socket={self.folder / 's'}", "--user=root", "--batch",
                               "--skip-column-names", "--raw", "-e", statement, database],
                              capture_output=True, text=True, timeout=patience(60), check=False)

    @contextlib.contextmanager
    def busy_with(self, statement):
        """One that takes its time; its end is waited for."""
        client = subprocess.Popen(["mariadb", "--no-defaults", f"--socket={self.folder / 's'}", "--user=root", "-e",
                                   statement], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            yield
        finally:
            assert client.wait(patience(60)) == 0

    @contextlib.contextmanager
    def held(self, statement):
        """By a client that has said this, and stays until the call of what is given."""
        client = subprocess.Popen(["mariadb", "--no-defaults", f"--socket={self.folder / 's'}", "--user=root",
                                   "--batch", "--skip-column-names", "--unbuffered"], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, text=True)
        try:
            client.stdin.write(f"{statement}; SELECT 'held';\n")
            client.stdin.flush()
            assert client.stdout.readline() == "held\n"
            yield client.stdin.close
        finally:
            client.stdin.close()
            client.stdout.close()
            assert client.wait(patience(60)) == 0

    def sql(self, statement, database=""):
        """Rows, as lists of texts."""
        done = self._client(statement, database)
        assert done.returncode == 0, done.stderr
        return [line.split("\t") for line in done.stdout.splitlines()]

    def options(self, **other):
        """The hub's, as the contract writes them."""
        value = {"host": own_host(), "port": self.port, "name": NAME, "user": USER, "pass": PASSWORD, **other}
        return [f"-db-{key}={v}" for key, v in value.items() if v is not None]
