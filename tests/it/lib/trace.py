"""Which system calls a program and its children make, by strace."""

import os
import re

WRITES = ("write", "pwrite64", "pwritev", "ftruncate")
SYNCS = ("fsync", "fdatasync")
NAMES = ("link", "linkat", "rename", "renameat", "renameat2")
SENDS = ("sendto", "sendmsg", "writev")


def command(out, traced):
    """Runs the command as it would run by itself, and writes its calls to the file; strace ends after the last process
    of it."""
    calls = ",".join((*WRITES, *SYNCS, *NAMES, *SENDS))
    # LeakSanitizer cannot look at a process that is traced
    options = os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"
    return ["strace", "-D", "-f", "-qq", "-y", "-s", "500", "-e", f"trace={calls}", "-E", f"ASAN_OPTIONS={options}",
            "-o", str(out), *traced]


def calls(out):
    """(call, paths, text) in order. What is sent counts when it begins, a write when it begins and when it ends, all
    else when it ends. `paths`: of the descriptor, or the names."""
    begun = {}
    for line in out.read_text(errors="replace").splitlines():
        pid, text = line.split(maxsplit=1)
        if resumed := re.match(r"<\.\.\. (\w+) resumed>", text):
            if pid in begun:
                yield begun.pop(pid)
            continue
        if not (called := re.match(r"(\w+)\((.*)", text)):
            continue    # a signal, an exit
        call, rest = called.groups()
        paths = re.findall(r'"([^"]*)"', rest) if call in NAMES else re.findall(r"^\d+<([^>]*)>", rest)
        if rest.endswith("<unfinished ...>"):
            if call not in SENDS:
                begun[pid] = (call, paths, rest)
            if call not in (*SENDS, *WRITES):
                continue
        yield call, paths, rest
