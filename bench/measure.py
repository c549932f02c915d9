"""What a run costs: wall time, CPU time of all who take part, peak memory. Runs that alternate, and their ratios."""

import contextlib
import mmap
import os
import re
import resource
import statistics
import subprocess
import threading
import time
from typing import NamedTuple

TICKS = os.sysconf("SC_CLK_TCK")
GIB = 1 << 30


class Cost(NamedTuple):
    wall: float     # seconds, until the data is durable
    cpu: float      # seconds, user and system, of all processes that took part


class Ratio(NamedTuple):
    median: float
    low: float
    high: float


def _fields(pid):
    """Of /proc/PID/stat, from the state on."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as f:
        return f.read().rsplit(")", 1)[1].split()


def _cpu_of(pid):
    """User and system time of a daemon and of its children that were waited for."""
    return sum(int(n) for n in _fields(pid)[11:15]) / TICKS


def descendants(pid):
    """{pid: name}, also of those that have ended and were not waited for yet; a child's child: "child/name"."""
    parents, names = {}, {}
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError):
            parent = int(_fields(int(entry))[1])
            with open(f"/proc/{entry}/comm", encoding="utf-8") as f:
                names[int(entry)] = f.read().strip()
            parents[int(entry)] = parent
    found, todo = {}, [(pid, "")]
    while todo:
        of, path = todo.pop()
        for child in [c for c, p in parents.items() if p == of]:
            found[child] = path + names[child]
            todo.append((child, found[child] + "/"))
    return found


def wait_alone(pid, seconds=30):
    """Waits until a daemon has waited for all its children: only then their time is in its account."""
    until = time.monotonic() + seconds
    while left := descendants(pid):
        if time.monotonic() > until:
            raise RuntimeError(f"still running after {seconds} s: {left}")
        time.sleep(0.02)


def touch(size):
    """Memory that was idle for long costs a virtual machine's host many times more at its first touch."""
    with open("/proc/meminfo", encoding="ascii") as f:
        available = int(re.search(r"MemAvailable:\s+(\d+)", f.read())[1]) << 10
    size = min(size, available // 2) // mmap.PAGESIZE * mmap.PAGESIZE
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
        pass


def warm(path):
    """Reads a file into the page cache: the same start for everybody. Holes are skipped."""
    with open(path, "rb", buffering=0) as f:
        size, at = os.fstat(f.fileno()).st_size, 0
        while at < size:
            try:
                at = os.lseek(f.fileno(), at, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(f.fileno(), at, os.SEEK_HOLE)
            while at < end:
                n = len(os.pread(f.fileno(), min(end - at, 1 << 20), at))
                at += n or end


def cost(action, daemons=(), hub=None):
    """Of what `action` does, its own children and these daemons included. What it leaves to others is waited for."""
    def cpu():
        own = resource.getrusage(resource.RUSAGE_CHILDREN)
        return own.ru_utime + own.ru_stime + sum(_cpu_of(pid) for pid in daemons)

    os.sync()
    before, start = cpu(), time.monotonic()
    action()
    wall = time.monotonic() - start
    if hub:
        wait_alone(hub)
    return Cost(wall, cpu() - before)


class Peaks:
    """Peak resident memory (VmHWM, MiB) of a daemon's descendants by their names, as long as the block runs."""

    def __init__(self, pid):
        self.pid, self.mib, self.stop = pid, {}, threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def _watch(self):
        while not self.stop.wait(0.02):
            for pid, name in descendants(self.pid).items():
                with contextlib.suppress(OSError, TypeError):
                    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as f:
                        peak = int(re.search(r"VmHWM:\s+(\d+)", f.read())[1]) / 1024
                    self.mib[name] = max(peak, self.mib.get(name, 0))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def alternate(ways, runs, memory):
    """ways: {name: function that returns a Cost, or a number}. Runs them in turn; {name: list}. The first round warms
    up, and does not count."""
    results = {name: [] for name in ways}
    for number in range(runs + 1):
        for name, way in ways.items():
            touch(memory)
            result = way()
            if number > 0:
                results[name].append(result)
            shown = f"{result.wall:.2f} s, CPU {result.cpu:.2f} s" if isinstance(result, Cost) else f"{result:.4g}"
            print(f"    {'warm-up' if number == 0 else f'run {number}'}: {name}: {shown}", flush=True)
    return results


def ratio(ours, theirs):
    """The median of the runs' ratios, pair by pair: a machine that slows down does so for both."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Ratio(statistics.median(pairs), min(pairs), max(pairs))


def run(*command, **more):
    """A command that must work."""
    subprocess.run([str(c) for c in command], check=True, stdin=more.pop("stdin", subprocess.DEVNULL), **more)
