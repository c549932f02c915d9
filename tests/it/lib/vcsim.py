"""vcsim, govmomi's vCenter simulator, from Debian's packages: a second opinion on our SOAP that nobody here wrote.
Built at the first use, into the build folder; half a minute of one core."""

import fcntl
import os
import select
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "tests" / "vsphere" / "vcsim" / "main.go"
GOPATH = Path("/usr/share/gocode")
USER, PASSWORD = "backup", "se&<cret>"


def program():
    """Its path; the test is skipped where it cannot be built."""
    if not shutil.which("go"):
        pytest.skip("vcsim cannot be had: no Go here (Debian: golang-go)")
    if not (GOPATH / "src/github.com/vmware/govmomi/simulator").is_dir():
        pytest.skip("vcsim cannot be had: no govmomi here (Debian: golang-github-vmware-govmomi-dev)")
    folder = ROOT / "build" / "vcsim"
    folder.mkdir(parents=True, exist_ok=True)
    built = folder / "vcsim"
    with open(folder / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists() or built.stat().st_mtime < SOURCE.stat().st_mtime:
            # Not optimised: that halves the time. What an interrupted build has made is used by the next
            cache = folder / "cache"
            environment = {**os.environ, "GO111MODULE": "off", "GOPATH": str(GOPATH), "GOCACHE": str(cache),
                           "GOFLAGS": "", "CGO_ENABLED": "0"}
            subprocess.run(["go", "build", "-gcflags=github.com/vmware/govmomi/...=-N -l", "-o", folder / "vcsim.new",
                            SOURCE], check=True, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                           timeout=1800)
            (folder / "vcsim.new").rename(built)
            shutil.rmtree(cache)
    return built


class Vcsim:
    """One, with so many VMs for each of its two pools. It ends when the with block does, or this process."""

    def __init__(self, folder, vms=2):
        self.folder, self.vms = Path(folder), vms
        self.process = self.host = None

    def __enter__(self):
        with open(self.folder / "vcsim.log", "ab") as log:
            # Its datastores are folders that it makes in TMPDIR, and leaves there
            self.process = subprocess.Popen([program(), str(self.vms)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=log, env={**os.environ, "TMPDIR": str(self.folder)})
        ready = select.select([self.process.stdout], [], [], 120)[0]
        self.host = self.process.stdout.readline().decode().strip() if ready else ""
        if not self.host:
            self.__exit__()
            log = (self.folder / "vcsim.log").read_text(errors="replace")
            raise AssertionError(f"vcsim did not start:\n{log[-2000:]}")
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
