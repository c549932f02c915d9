"""The same work by Sendense, as its user does it: a running hub, and the CLI."""

import os
import socket
import struct
import sys
import time
import urllib.parse
from pathlib import Path

from measure import Peaks, cost, run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "it"))

from lib.api import quote       # noqa: E402
from lib.cli import Cli         # noqa: E402
from lib.hub import BIN, Hub         # noqa: E402


class Ours:
    """A hub with its repositories. A backup's cost counts CLI, hub, client, exporter, and the source's server."""

    def __init__(self, folder, environment=None):
        start = time.monotonic()
        self.hub = Hub(folder, environment={"SENDENSE_LOG": "info", **(environment or {})}).start()
        self.start_seconds = time.monotonic() - start
        self.cli = Cli(self.hub.url, cwd=folder)

    @property
    def pid(self):
        return self.hub.process.pid

    def add_repository(self, name, path, *options):
        self.cli.ok("repo", "add", name, "--path", path, *options)

    def add_vm(self, name, *source):
        self.cli.ok("vm", "add", name, *source)

    def backup(self, vm, repository, *options, daemons=()):
        """(backup's ID, Cost)."""
        said = []
        spent = cost(lambda: said.append(self.cli.ok("backup", vm, "--repo", repository, *options, timeout=3600)),
                     (self.pid, *daemons), self.pid)
        return said[0].split()[-1], spent

    def full(self, vm, repository):
        """The Cost of a full backup that nobody keeps."""
        backup, spent = self.backup(vm, repository, "--full")
        self.delete(backup)
        return spent

    def full_from_elsewhere(self, vm, repository):
        """The Cost of the same by a client that cannot see the hub's sockets: through its port, with TLS."""
        thumbprint = self.hub.api.get("/health").expect(200)["tls_thumbprint"]
        number = next(r["repository_id"] for r in self.hub.api.get("/repositories").expect(200)["repositories"]
                      if r["name"] == repository)
        said = []

        def work():
            job = self.hub.api.post("/backups", {"vm_name": vm, "repository_id": number, "backup_type": "full",
                                                 "start_client": False}).expect(201)
            said.append(job["backup_id"])
            run("unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$1" && exec "$2"', "sh", self.hub.run_dir,
                BIN / "sendense-backup-client",
                env={**os.environ, "MIGRATEKIT_JOB_ID": job["backup_id"], "SENDENSE_JOB_TOKEN": job["job_token"],
                     "SHA_API_URL": f"https://127.0.0.1:{self.hub.port}", "SENDENSE_HUB_THUMBPRINT": thumbprint,
                     "SENDENSE_LOG": "error"})

        spent = cost(work, (self.pid,), self.pid)
        self.delete(said[0])
        return spent

    def delete(self, backup):
        self.cli.ok("delete", backup, "--with-dependents")

    def peak_memory(self, action):
        """{name of the process: MiB} of the hub's children, while the action runs."""
        with Peaks(self.pid) as peaks:
            action()
        return peaks.mib

    def restore(self, backup, path):
        spent = cost(lambda: self.cli.ok("restore", backup, "--all-disks", "--to", path, timeout=3600), (self.pid,),
                     self.pid)
        for file in path.iterdir():
            file.unlink()
        return spent

    def first_byte(self, backup):
        """Milliseconds from the request for an export to the first cluster of the disk."""
        start = time.monotonic()
        export = self.hub.api.post("/exports", {"backup_id": backup, "disk": "0", "purpose": "restore"}).expect(201)
        nbd_read(export["uri"], 4096)
        spent = time.monotonic() - start
        self.hub.api.delete(f"/exports/{quote(export['export_id'])}").expect(200)
        return spent * 1000

    def image(self, backup):
        """Path of a point's image."""
        return Path(self.cli.json("show", backup)["disks"][0]["image"])

    def close(self):
        self.hub.close()


def nbd_read(uri, length):
    """The first bytes of an export, by as little protocol as there is."""
    parts = urllib.parse.urlsplit(uri)
    name = parts.path.lstrip("/").encode()
    if "unix" in parts.scheme:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(urllib.parse.parse_qs(parts.query)["socket"][0])
    else:
        connection = socket.create_connection((parts.hostname, parts.port))
    with connection, connection.makefile("rb") as answers:
        answers.read(18)                                                    # the greeting
        connection.sendall(struct.pack(">L", 3) + b"IHAVEOPT" +             # NBD_OPT_GO
                           struct.pack(">LLL", 7, len(name) + 6, len(name)) + name + struct.pack(">H", 0))
        while True:
            _, _, kind, size = struct.unpack(">QLLL", answers.read(20))
            answers.read(size)
            if kind == 1:                                                   # NBD_REP_ACK
                break
            if kind != 3:                                                   # NBD_REP_INFO
                raise RuntimeError(f"{uri}: refused with {kind:#x}")
        connection.sendall(struct.pack(">LHHQQL", 0x25609513, 0, 0, 1, 0, length))
        _, error, _ = struct.unpack(">LLQ", answers.read(16))
        if error or len(answers.read(length)) != length:
            raise RuntimeError(f"{uri}: error {error}")
        connection.sendall(struct.pack(">LHHQQL", 0x25609513, 0, 2, 2, 0, 0))
