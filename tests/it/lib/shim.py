"""Lets the n-th call of a kind fail in a process of ours, or kills the process before it (tests/tools/fault-shim.c)."""

import errno
import mmap
import os
import struct
from typing import NamedTuple

from lib.hub import BIN

LIBRARY = BIN.parent / "tests" / "tools" / "fault-shim.so"
PROGRAMS = {"hub": 1, "client": 2, "exporter": 3, "cli": 4}
KINDS = ("write", "sync", "name", "read", "look", "start", "alloc")
LAYOUT = struct.Struct("=IIIiQ7QII32sII")
# What happens to which kind. A kill before a call that changes nothing outside of the process shows the others nothing
# that a kill before the next one that does would not.
ACTIONS = {
    "write": ("kill", "EIO", "ENOSPC", "ESTALE", "short"),
    "sync": ("kill", "EIO", "ENOSPC"),
    "name": ("kill", "EIO", "ENOSPC", "ESTALE"),
    "read": ("EIO", "ESTALE", "short"),
    "look": ("EIO", "ESTALE"),
    "start": ("kill", "EAGAIN", "EMFILE"),
    "alloc": ("ENOMEM",),
}


class Shot(NamedTuple):
    kind: str
    action: str
    at: int

    def __str__(self):
        return f"{self.kind} {self.at}: {self.action}"


class Seen(NamedTuple):
    counts: dict        # kind: calls
    hit: str            # the call that was, or None
    pid: int


class Shim:
    def __init__(self, path):
        self.path = path
        path.write_bytes(bytes(LAYOUT.size))
        with open(path, "r+b") as f:
            self.memory = mmap.mmap(f.fileno(), LAYOUT.size)

    def environment(self):
        return {"LD_PRELOAD": str(LIBRARY), "SENDENSE_FAULT_FILE": str(self.path)}

    def arm(self, victim, shot=None):
        """From now on the victim's calls count; without a shot nothing else happens."""
        kind, action, at = (KINDS.index(shot.kind), _number(shot.action), shot.at) if shot else (0, 0, 0)
        new = LAYOUT.pack(0, PROGRAMS[victim], kind, action, at, *[0] * 7, 0, 0, b"", 0, 0)
        self.memory[:len(new)] = new
        self.memory[:4] = struct.pack("=I", 1)

    def disarm(self):
        self.memory[:4] = bytes(4)
        values = LAYOUT.unpack(self.memory[:LAYOUT.size])
        hit, pid, call = values[12:15]
        return Seen(dict(zip(KINDS, values[5:12])), call.rstrip(b"\0").decode() if hit else None, pid)

    def crash(self):
        """(signal, pid) of a process that crashed since arm(), or None."""
        number, pid = LAYOUT.unpack(self.memory[:LAYOUT.size])[15:]
        return (number, pid) if pid else None


def _number(action):
    return {"kill": -1, "short": -2}.get(action) or getattr(errno, action)


def is_built():
    return os.path.exists(LIBRARY)
