"""What a test may have left behind: processes, sockets and mounts that have to do with a folder."""

import os
import re
import signal
import stat
import time

from lib.patience import patience


def _read(path):
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError:
        return b""


def children(pid, state=None):
    """Pids of its children; those that are in this state (Z: they ended, and nobody has asked), or all but these."""
    found = []
    for name in os.listdir("/proc"):
        fields = _read(f"/proc/{name}/stat").rpartition(b")")[2].split() if name.isdigit() else []
        if fields and int(fields[1]) == pid and (fields[0].decode() == state if state else fields[0] != b"Z"):
            found.append(int(name))
    return found


def processes_of(folder):
    """{pid: command line} of the processes that name the folder in their command line or environment."""
    needle = os.fsencode(str(folder))
    found = {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        line = _read(f"/proc/{name}/cmdline")
        if line and (needle in line or needle in _read(f"/proc/{name}/environ")):
            found[int(name)] = line.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def listens(path):
    """Does somebody listen at this unix socket? It has its name before that. Nobody is connected to."""
    with open("/proc/net/unix", encoding="utf-8", errors="replace") as f:
        return any(fields[-1] == str(path) and fields[3] == "00010000"      # __SO_ACCEPTCON
                   for fields in (line.split() for line in f) if len(fields) == 8)


def wait_gone(folder, seconds=60):
    """Waits until no process names the folder; returns those that still do."""
    until = time.monotonic() + patience(seconds)
    while (left := processes_of(folder)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def sockets_below(folder):
    found = []
    for where, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(where, name)
            try:
                if stat.S_ISSOCK(os.lstat(path).st_mode):
                    found.append(path)
            except OSError:
                pass
    return found


def connections_to(path):
    """How many ends of a unix stream socket are connected, or wait to be accepted."""
    lines = _read("/proc/net/unix").decode(errors="replace").splitlines()
    return sum(1 for line in lines if line.endswith(f" {path}") and line.split()[5] in ("02", "03"))


def mounts_below(folder):
    places = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), line.split()[4])
              for line in _read("/proc/self/mountinfo").decode(errors="replace").splitlines())
    return [p for p in places if p.startswith(f"{folder}/")]


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def leftovers(folder, ours=()):
    """Lines about what is left; processes that name the folder are ended. `ours`: pids that may be there."""
    left = {p: line for p, line in wait_gone(folder).items() if p not in ours}
    lines = [f"process {pid}: {line[:300]}" for pid, line in left.items()]
    for pid in left:
        kill(pid)
    lines += [f"socket {path}" for path in sockets_below(folder)]
    lines += [f"mount {path}" for path in mounts_below(folder)]
    return lines


def assert_nowhere(hub, password, *more):
    """In no file of the hub, and on no command line."""
    needle = password.encode()
    for folder in (hub.folder, *more):
        for path in folder.rglob("*"):
            if path.is_file():
                assert needle not in path.read_bytes(), path
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as f:
                assert needle not in f.read(), pid
        except OSError:
            pass                                    # it ended
