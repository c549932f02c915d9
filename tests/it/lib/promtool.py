"""promtool, of Debian's package prometheus: unpacked into the build folder, since the package would start a server."""

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def program():
    """Its path; the test is skipped where it cannot be had."""
    if found := shutil.which("promtool"):
        return found
    folder = ROOT / "build" / "promtool"
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = folder / "usr/bin/promtool"
    with open(folder / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not unpacked.exists():
            done = subprocess.run(["apt-get", "download", "-qq", "prometheus"], cwd=folder, check=False,
                                  stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
            packages = list(folder.glob("prometheus_*.deb"))
            if done.returncode != 0 or not packages:
                pytest.skip(f"promtool cannot be had: {done.stderr.decode(errors='replace').strip()[-200:]}")
            subprocess.run(["dpkg-deb", "-x", packages[0], folder], check=True, stdin=subprocess.DEVNULL)
            packages[0].unlink()
    return str(unpacked)
