"""Programs of Debian packages that would start a server when installed: unpacked into the build folder."""

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def program(package, path):
    """Where it is: path is the package's, like usr/bin/x. The test is skipped where it cannot be had."""
    if found := shutil.which(Path(path).name):
        return found
    folder = ROOT / "build" / "unpacked" / package
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = folder / path
    with open(folder / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not unpacked.exists():
            done = subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, check=False,
                                  stdin=subprocess.DEVNULL, capture_output=True, timeout=300)
            packages = list(folder.glob(f"{package}_*.deb"))
            if done.returncode != 0 or not packages:
                pytest.skip(f"{path} cannot be had: {done.stderr.decode(errors='replace').strip()[-200:]}")
            subprocess.run(["dpkg-deb", "-x", packages[0], folder], check=True, stdin=subprocess.DEVNULL)
            packages[0].unlink()
    return str(unpacked)
