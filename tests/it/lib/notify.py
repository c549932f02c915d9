"""The service manager's side: a socket that hears what a hub reports; and threads of a process that stand still."""

import contextlib
import ctypes
import os
import signal
import socket
import threading
import time
from pathlib import Path

from lib.patience import patience

PTRACE_CONT, PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT = 7, 17, 0x4206, 0x4207
WALL = 0x40000000


class Manager:
    """One message a list entry: (monotonic time of its arrival, {name: value})."""

    def __init__(self, path):
        self.path, self.heard = str(path), []
        self.changed = threading.Condition()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.thread = threading.Thread(target=self._listen)
        self.thread.start()

    def _listen(self):
        while message := self.socket.recv(4096):
            values = dict(line.split("=", 1) for line in message.decode().splitlines())
            with self.changed:
                self.heard.append((time.monotonic(), values))
                self.changed.notify_all()

    def close(self):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
            s.sendto(b"", self.path)
        self.thread.join()
        self.socket.close()
        os.unlink(self.path)

    def named(self, name, since=0):
        with self.changed:
            return [v for _, v in self.heard[since:] if name in v]

    def wait(self, name, count=1, since=0, seconds=30):
        """The messages that have this name, at least so many of them."""
        until = time.monotonic() + patience(seconds)
        while len(found := self.named(name, since)) < count:
            with self.changed:
                assert time.monotonic() < until, f"no {count} of {name}: {self.heard}"
                self.changed.wait(0.2)
        return found

    def silence(self, name, seconds):
        """Nothing of this name arrives for so long; from a look after half of it on, for what was on its way."""
        half = time.monotonic() + seconds / 2
        with self.changed:
            self.changed.wait_for(lambda: time.monotonic() >= half, seconds / 2)
            since = len(self.heard)
        until = time.monotonic() + seconds / 2
        with self.changed:
            self.changed.wait_for(lambda: any(name in v for _, v in self.heard[since:]) or time.monotonic() >= until,
                                  seconds / 2)
        return not self.named(name, since)


def threads(pid, name):
    """IDs of the process's threads that have this name."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            if (task / "comm").read_text().strip() == name:
                found.append(int(task.name))
    return found


@contextlib.contextmanager
def thread_stands_still(pid, name, others_go_on):
    """One thread stands still, as in a deadlock; the others go on, and where they do not it stands still at another
    moment: it may be stopped while it holds what they need."""
    tid, = threads(pid, name)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long

    def ptrace(request):
        if libc.ptrace(request, tid, None, None) != 0:
            raise OSError(ctypes.get_errno(), f"ptrace {request:#x} of {tid}")

    def stop():
        ptrace(PTRACE_INTERRUPT)
        _, status = os.waitpid(tid, WALL)
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP, status

    ptrace(PTRACE_SEIZE)
    stop()
    try:
        for _ in range(100):
            if others_go_on():
                break
            ptrace(PTRACE_CONT)
            stop()
        yield
    finally:
        ptrace(PTRACE_DETACH)
