"""A machine of its own to install packages in: this machine's root under an overlay in memory, with processes, mounts,
network and, where the kernel lets it, a systemd of its own. Nothing of it is left."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "it"))
from lib.patience import patience       # noqa: E402

SYSTEMD = ["/lib/systemd/systemd", "--unit=bare.target", "--log-target=console", "--show-status=no"]
NO_SYSTEMD = ["/bin/sleep", "infinity"]
TOP = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]


class Failed(AssertionError):
    pass


class NoSystemd(Exception):
    """It cannot run here; the reason."""


def _cgroup2():
    with open("/proc/self/mountinfo", encoding="utf-8") as f:
        places = [line.split()[4] for line in f if " - cgroup2 " in line]
    if not places:
        raise NoSystemd("there is no cgroup2")
    own, = [line.split(":", 2)[2].strip() for line in Path("/proc/self/cgroup").read_text().splitlines()
            if line.startswith("0::")]
    return Path(places[0] + own)


class Machine:
    def __init__(self, folder, packages, systemd):
        self.folder, self.packages, self.systemd = folder, packages, systemd
        self.cgroup = None
        self.process = None
        self.pid = None             # of its process 1, here

    def __enter__(self):
        self.folder.mkdir()
        join = None
        if self.systemd:
            self.cgroup = _cgroup2() / f"sendense-test-{os.getpid()}-{id(self):x}"
            try:
                self.cgroup.mkdir()
            except OSError as e:
                self.cgroup = None
                raise NoSystemd(f"no cgroup of its own: {e}") from None
            procs = self.cgroup / "cgroup.procs"
            join = lambda: procs.write_text(str(os.getpid()))   # noqa: E731
        log = open(self.folder.parent / "machine.log", "wb")
        root = self.folder / "root"
        root.mkdir()
        self.process = subprocess.Popen(
            ["unshare", "--mount", "--pid", "--ipc", "--uts", "--net", *(["--cgroup"] if self.systemd else []),
             "--fork",
             "--kill-child=KILL", "--propagation", "private", HERE / "boot", root,
             *(SYSTEMD if self.systemd else NO_SYSTEMD)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=join,
            env={**os.environ, "PACKAGES": str(self.packages)})
        log.close()
        try:
            self._wait_for_it()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait_for_it(self):
        until = time.monotonic() + patience(60)
        first = (SYSTEMD if self.systemd else NO_SYSTEMD)[0].rsplit("/", 1)[1]
        while True:
            with contextlib.suppress(OSError, ValueError):
                children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
                if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == first:
                    self.pid = int(children[0])
                    if not self.systemd or self.run("systemctl", "is-system-running").out == "running":
                        break
            if self.process.poll() is not None or time.monotonic() > until:
                raise (NoSystemd if self.systemd else Failed)(f"the machine does not run: {self.log[-2000:]}")
            time.sleep(0.05)
        self.ok("ip", "link", "set", "lo", "up")

    def __exit__(self, *_):
        self.process.kill()         # and with it process 1, and with that all others
        self.process.wait()
        until = time.monotonic() + patience(30)
        while self.pid and os.path.exists(f"/proc/{self.pid}"):
            assert time.monotonic() < until, "process 1 does not end"
            time.sleep(0.02)
        while self.cgroup and self.cgroup.exists():
            for place, _, _ in os.walk(self.cgroup, topdown=False):
                with contextlib.suppress(OSError):      # they are on their way
                    os.rmdir(place)
            assert time.monotonic() < until, f"{self.cgroup} is not empty"
            time.sleep(0.02)
        (self.folder / "root").rmdir()

    @property
    def log(self):
        return (self.folder.parent / "machine.log").read_text(errors="replace")

    def enter(self, *command):
        return ["nsenter", "-t", str(self.pid), "-m", "-p", "-i", "-u", "-n", *(["-C"] if self.systemd else []),
                "--root", "--wdns=/", "/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
                "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive", *map(str, command)]

    def run(self, *command, timeout=300):
        done = subprocess.run(self.enter(*command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=patience(timeout), check=False)
        return Result(done.returncode, done.stdout.strip())

    def ok(self, *command, **more):
        """What a command that must work says."""
        done = self.run(*command, **more)
        if done.status != 0:
            raise Failed(f"{command}: {done.status}\n{done.out}\n{self.log[-3000:]}")
        return done.out

    def sh(self, script):
        return self.ok("sh", "-ec", script)

    def wait(self, condition, what, seconds=60):
        until = time.monotonic() + patience(seconds)
        while not (value := condition()):
            assert time.monotonic() < until, f"not within {seconds} s: {what}\n{self.log[-3000:]}"
            time.sleep(0.1)
        return value

    # ---- packages

    def dpkg(self, *arguments):
        return self.ok("dpkg", *arguments)

    def install(self, *files):
        return self.dpkg("--install", *[f"/run/packages/{Path(f).relative_to(self.packages)}" for f in files])

    def exists(self, path):
        return self.run("test", "-e", path).status == 0

    def entries(self, folder):
        return sorted(self.ok("ls", "-A", folder).split())

    # ---- systemd

    def unit(self, *names):
        said = self.ok("systemctl", "show", "sendense-hub.service", "--property=" + ",".join(names))
        found = dict(line.split("=", 1) for line in said.splitlines())
        return found[names[0]] if len(names) == 1 else found

    def hub_runs(self):
        """Path of the program that runs as the unit's main process; '' where none does."""
        pid = self.unit("MainPID")
        found = "" if pid == "0" else self.run("readlink", f"/proc/{pid}/exe").out
        return found[max(found.find("/usr/"), 0):]      # where all this runs in a chroot its path comes first


class Result:
    def __init__(self, status, out):
        self.status, self.out = status, out
