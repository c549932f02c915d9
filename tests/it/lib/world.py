"""A hub with a repository and VMs whose disks are raw files."""

import os
import random
import sqlite3

from lib.api import quote
from lib.job import Job, change_id, coverage, disk, full_backup, nbdcopy, qemu_io

CLUSTER = 65536
MIB = 1 << 20


def make_image(path, size, seed=1, runs=20):
    """A raw file with a few runs of noise, reproducibly; the rest is a hole."""
    noise = random.Random(seed)
    with open(path, "wb") as f:
        f.truncate(size)
        for _ in range(runs):
            at = noise.randrange(0, max(1, size - 4096))
            f.seek(at)
            f.write(noise.randbytes(min(size - at, noise.randrange(1, 200_000))))
        f.truncate(size)
    return path


class World:
    def __init__(self, hub, folder):
        self.hub, self.api, self.folder = hub, hub.api, folder
        self.repository = None
        self.jobs = []

    def add_repository(self, name="main", **more):
        path = self.folder / f"repository-{len(os.listdir(self.folder))}"
        self.repository = self.api.post("/repositories", {"name": name, "path": str(path), **more}).expect(201)
        return self.repository

    @property
    def repository_id(self):
        return self.repository["repository_id"]

    def add_vm(self, name="pgtest1", sizes=(4 * MIB,), seed=1):
        """Registers a VM with one raw file for each size; returns (VM, paths)."""
        paths = [make_image(self.folder / f"vm-{seed}-{n}.raw", size, seed * 100 + n) for n, size in enumerate(sizes)]
        source = {"type": "file", "disks": [{"path": str(p), "format": "raw"} for p in paths]}
        return self.api.post("/vms", {"name": name, "source": source}).expect(201), paths

    def job(self, vm_name="pgtest1", backup_type=None):
        self.jobs.append(Job(self.api, vm_name, self.repository_id, backup_type))
        return self.jobs[-1]

    def close(self):
        """Says of each job that still runs that it failed: faster than to cancel it."""
        for job in self.jobs:
            if self.hub.running:
                job.call("fail", {"error": "the test is over", "details": ""})

    def running_job(self, vm_name="pgtest1", size=4 * MIB, change=None):
        """Claimed, announced, nothing written."""
        job = self.job(vm_name)
        job.claim()
        job.change = change or change_id()
        job.announce([disk("disk-0", size, job.change)])
        return job

    def written_job(self, image, vm_name="pgtest1", change=None):
        """All blocks are on the hub; complete was not said."""
        job = self.running_job(vm_name, os.path.getsize(image), change)
        nbdcopy(image, job.disks["disk-0"]["uri"])
        return job

    def done(self, job, size, change=None, key="disk-0", tracking="none"):
        """The `disks` of a completion of one wholly written disk."""
        return [{"disk_id": job.disks[key]["disk_id"], "change_id": change or job.change, "tracking": tracking,
                 **coverage([(0, size)])}]

    def backup(self, image, vm_name="pgtest1", backup_type=None, change=None):
        return full_backup(self.api, vm_name, self.repository_id, image, os.path.getsize(image), change,
                           backup_type=backup_type)

    def tracked_backup(self, parent, writes, size, vm_name="pgtest1", zeros=()):
        """An increment by change tracking; writes: (offset, length, byte). The parent was tracked as well."""
        job = self.job(vm_name, "incremental")
        job.claim()
        job.change = change_id()
        announced = job.announce([disk("disk-0", size, job.change, tracking="bitmap", base_change_id=parent.change)])
        assert announced["disk-0"]["mode"] == "tracked", announced
        qemu_io(announced["disk-0"]["uri"], *[f"write -P {byte} {at} {n}" for at, n, byte in writes],
                *[f"write -z {at} {n}" for at, n in zeros], "flush")
        sent = coverage([(at, n) for at, n, _ in writes] + list(zeros))
        job.complete(job.change, [{"disk_id": announced["disk-0"]["disk_id"], "change_id": job.change,
                                   "tracking": "bitmap", **sent}]).expect(200)
        return job

    def sql(self, statement, *values):
        """Rows of a statement on the embedded database, as dictionaries."""
        with sqlite3.connect(f"file:{self.hub.database}?mode=ro", uri=True) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute(statement, values)]

    def show(self, backup_id):
        return self.api.get(f"/backups/{quote(backup_id)}").expect(200)
