"""Plays the backup client by hand: claim, announce, write over NBD, complete."""

import ctypes
import struct
import subprocess
import uuid

from lib.api import quote
from lib.patience import patience

_xxh3 = ctypes.CDLL("libxxhash.so.0").XXH3_64bits_withSeed
_xxh3.restype = ctypes.c_uint64
_xxh3.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64]


def change_id():
    return f"{uuid.uuid4()}/1"


def coverage(extents):
    """What /complete says of the extents (offset, length) that were sent: neighbours merged, digest chained."""
    merged = []
    for offset, length in sorted(extents):
        if merged and merged[-1][0] + merged[-1][1] == offset:
            merged[-1][1] += length
        else:
            merged.append([offset, length])
    digest = 0
    for offset, length in merged:
        digest = _xxh3(struct.pack("<QQ", offset, length), 16, digest)
    return {"extents": len(merged), "covered_bytes": sum(n for _, n in merged), "digest": f"{digest:016x}"}


def disk(key, size, change, **more):
    """One disk of an announcement."""
    return {"disk_key": key, "label": key, "size": size, "backing_identity": "", "change_id": change,
            "tracking": "none", "base_change_id": None, "lost": None, "estimated_bytes": size, **more}


def nbdcopy(source, uri):
    run(["nbdcopy", "--flush", "--", str(source), uri])


def qemu_io(uri, *commands):
    run(["qemu-io", "-f", "raw", *(a for c in commands for a in ("-c", c)), uri])


def run(command):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=patience(120), check=False)
    # qemu-io says what failed, and exits with 0
    assert done.returncode == 0 and "failed" not in done.stdout + done.stderr, f"{command}: {done.stdout}{done.stderr}"


class Job:
    """A backup that was started with start_client false."""

    def __init__(self, api, vm_name, repository_id, backup_type=None):
        body = {"vm_name": vm_name, "repository_id": repository_id, "start_client": False}
        if backup_type:
            body["backup_type"] = backup_type
        self.started = api.post("/backups", body).expect(201)
        self.id = self.started["backup_id"]
        self.token = self.started["job_token"]
        self.open = api
        self.api = api.with_token(self.token)
        self.path = f"/backups/{quote(self.id)}"
        self.claim_id = str(uuid.uuid4())
        self.disks = {}     # by key, as the hub answered

    def call(self, what, body):
        return self.api.post(f"{self.path}/{what}", body)

    def claim(self):
        return self.call("claim", {"claim": self.claim_id}).expect(200)

    def announce(self, disks, **more):
        answer = self.call("disks", {"disks": disks, "left_out": [], "consistency": "crash",
                                     "consistency_detail": "nobody froze it", **more}).expect(200)
        self.disks = {d["disk_key"]: d for d in answer["disks"]}
        return self.disks

    def progress(self, phase="copying", **disk_numbers):
        disks = [{"disk_id": d["disk_id"], "done_bytes": 0, "size": 0, "transferred_bytes": 0, "zero_bytes": 0,
                  "changed_bytes": 0, **disk_numbers} for d in self.disks.values()]
        return self.call("progress", {"disks": disks, "phase": phase}).expect(200)

    def complete(self, change, disks=None, **more):
        """The answer, of any status. No token, as the contract has it for -auth=false."""
        body = {"change_id": change, **more}
        if disks is not None:
            body["disks"] = disks
        return self.open.post(f"{self.path}/complete", body)

    def show(self):
        return self.open.get(self.path).expect(200)


def full_backup(api, vm_name, repository_id, image, size, change=None, key="disk-0", backup_type=None):
    """A whole backup of one disk from a raw file; returns the finished Job."""
    change = change or change_id()
    job = Job(api, vm_name, repository_id, backup_type)
    job.claim()
    disks = job.announce([disk(key, size, change)])
    nbdcopy(image, disks[key]["uri"])
    done = [{"disk_id": disks[key]["disk_id"], "change_id": change, "tracking": "none",
             **coverage([(0, size)])}]
    job.complete(change, done, bytes_transferred=size).expect(200)
    job.change = change
    return job
