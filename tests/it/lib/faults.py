"""Doing harm: to processes, to files."""

import contextlib
import os
import signal
import subprocess
import time

from lib.patience import patience


def command_line(pid):
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return f.read().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def signal_if(pid, word, number=signal.SIGKILL):
    """Signals the process if it is (still) the one that was meant; whether it was."""
    if pid <= 0 or word not in command_line(pid):
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def slow_calls(pid, calls, seconds):
    """Each of these system calls (strace's names, with commas) of the process takes its time."""
    tracer = subprocess.Popen(
        ["strace", "-f", "-p", str(pid), "-o", "/dev/null", "-e", f"trace={calls}",
         "-e", f"inject={calls}:delay_enter={int(seconds * 1e6)}"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        said = tracer.stderr.readline()
        assert "attached" in said, said
        yield
    finally:
        tracer.terminate()      # it lets the process go on
        tracer.wait(patience(30))
        tracer.stderr.close()


def pass_time(rng, most):
    """Any moment will do: for histories in which something happens at random times."""
    time.sleep(rng.random() * most)


def flip(path, at, bit=0x10):
    """Changes one bit; the same call puts it right again."""
    with open(path, "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ bit]))


def client_pid(world, backup_id):
    rows = world.sql("SELECT client_pid AS pid FROM backup_jobs WHERE id = ?", backup_id)
    return rows[0]["pid"] if rows else 0


def exporter_pids(world, backup_id):
    return [row["pid"] for row in world.sql("SELECT exporter_pid AS pid FROM backup_disks WHERE backup_id = ?"
                                            " ORDER BY disk_no", backup_id)]


def kill_one(world, backup_id, what):
    """Kills the job's client, or its first exporter, if it is there (yet, or still)."""
    if what == "client":
        return signal_if(client_pid(world, backup_id), "sendense-backup-client")
    return any(signal_if(pid, "nbdkit") for pid in exporter_pids(world, backup_id)[:1])
