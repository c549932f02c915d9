"""The quickstart, stopped on its way. That it gets to its end is for whoever types `make quickstart`."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lib import system
from lib.patience import patience

ROOT = Path(__file__).resolve().parents[2]


def start(tmp):
    return subprocess.Popen([ROOT / "tools/quickstart"], env={**os.environ, "TMPDIR": str(tmp)}, text=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            start_new_session=True)


def run_dirs(tmp):
    """Folders of the sockets of the exporters that run."""
    lines = [line for line in system.processes_of(tmp).values() if "nbdkit" in line]
    return {m.group(1) for line in lines if (m := re.search(r"(/\S*/sendense-[0-9a-f-]+)/", line))}


@pytest.mark.parametrize("step, number", [("starting the hub", signal.SIGHUP), ("a full backup", signal.SIGTERM)])
def test_a_stopped_quickstart_leaves_nothing(place, step, number):
    """It once left its hub behind, and the folder; and a hub's exporters outlive it."""
    tmp = place / "t"
    tmp.mkdir()
    process = start(tmp)
    sockets = set()
    try:
        said = next((line for line in process.stdout if step in line), None)
        assert said, "it ended before"
        while step == "a full backup" and not sockets:
            assert process.poll() is None
            time.sleep(0.02)
            sockets = run_dirs(tmp)
        process.send_signal(number)
        out, _ = process.communicate(timeout=patience(120))
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 128 + number and f"stopped by {number.name}" in out, out
    assert os.listdir(tmp) == [] and system.wait_gone(tmp) == {}
    assert not [path for path in sockets if os.path.exists(path)]
