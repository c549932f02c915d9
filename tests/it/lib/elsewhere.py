"""Another machine: a network namespace with a line to this one, in which folders of this one cannot be seen."""

import os
import random
import subprocess

import pytest

from lib.patience import patience


def _ip(*arguments, check=True):
    return subprocess.run(["ip", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=check)


class Elsewhere:
    def __init__(self):
        number = random.randrange(1 << 14)
        self.name = f"sd{os.getpid()}-{number}"
        net = f"10.213.{number >> 6}.{(number & 63) * 4}"
        first = net.rsplit(".", 1)
        self.here, self.there = (f"{first[0]}.{int(first[1]) + i}" for i in (1, 2))
        self.link = f"sd{number}-{os.getpid() % 100000}"[:15]
        made = _ip("netns", "add", self.name, check=False)
        if made.returncode != 0:
            pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
        try:
            _ip("link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.name)
            _ip("addr", "add", f"{self.here}/30", "dev", self.link)
            _ip("link", "set", self.link, "up")
            _ip("-n", self.name, "addr", "add", f"{self.there}/30", "dev", "eth0")
            _ip("-n", self.name, "link", "set", "eth0", "up")
            _ip("-n", self.name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as e:
            self.remove()
            pytest.skip(f"no network namespaces here: {e.stderr.strip()}")

    def command(self, *command, hidden=()):
        """For a program there: it finds empty folders in the place of the hidden ones."""
        script = "".join(f"mount -t tmpfs none '{folder}' && " for folder in hidden) + 'exec "$@"'
        return ["ip", "netns", "exec", self.name, "unshare", "-m", "sh", "-c", script, "sh", *map(str, command)]

    def run(self, *command, hidden=(), environment=None, timeout=120):
        return subprocess.run(self.command(*command, hidden=hidden), stdin=subprocess.DEVNULL, capture_output=True,
                              text=True, env={**os.environ, **(environment or {})}, timeout=patience(timeout),
                              check=False)

    def travelled(self):
        """Bytes over the line so far, both ways, with all that frames them."""
        folder = f"/sys/class/net/{self.link}/statistics"
        return sum(int(open(f"{folder}/{way}_bytes", encoding="ascii").read()) for way in ("rx", "tx"))

    def cut(self):
        """The line is down, without a word to either side."""
        _ip("link", "set", self.link, "down")

    def remove(self):
        _ip("link", "del", self.link, check=False)
        _ip("netns", "del", self.name, check=False)
