"""The engine: nbdkit with our plugin, without a hub; and chains of points that engines make."""

import json
import os
import random
import socket
import struct
import subprocess
import time

from .hub import BIN
from .patience import patience

PLUGIN = BIN / "nbdkit-sendense-plugin.so"
MIB = 1 << 20
CLUSTER = 65536


def run(*command, ok=True, **more):
    done = subprocess.run([str(c) for c in command], capture_output=True, timeout=patience(120), **more)
    if ok:
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done


# XXH3-64 of 16 bytes, from its specification: the digest of a coverage, by other code than ours.
SECRET = bytes.fromhex("b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
                       "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c")
MASK = (1 << 64) - 1


def xxh3_16(data, seed):
    word = [int.from_bytes(SECRET[i:i + 8], "little") for i in (24, 32, 40, 48)]
    low = int.from_bytes(data[:8], "little") ^ (((word[0] ^ word[1]) + seed) & MASK)
    high = int.from_bytes(data[8:], "little") ^ (((word[2] ^ word[3]) - seed) & MASK)
    product = low * high
    h = (16 + int.from_bytes(low.to_bytes(8, "little"), "big") + high + ((product & MASK) ^ (product >> 64))) & MASK
    h ^= h >> 37
    h = h * 0x165667919E3779F9 & MASK
    return h ^ h >> 32


def coverage(extents):
    """extents: merged (offset, length), ascending."""
    digest = 0
    for offset, length in extents:
        digest = xxh3_16(struct.pack("<QQ", offset, length), digest)
    return {"extents": len(extents), "bytes": sum(n for _, n in extents), "digest": f"{digest:016x}"}


def ask(control, op, **more):
    """An engine, on its control socket."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(60)
        s.connect(str(control))
        s.sendall(json.dumps({"op": op, **more}).encode() + b"\n")
        return json.loads(s.makefile().readline())


class Engine:
    """One nbdkit with the plugin, on a unix socket that we bind and pass on."""

    def __init__(self, folder, **config):
        folder.mkdir()
        self.folder, self.nbd, self.control_path = folder, folder / "nbd", folder / "ctl"
        self.name = f"disk-{random.randrange(1 << 64):016x}"
        self.config = {"export_name": self.name, "control": str(self.control_path), "cluster_size": CLUSTER,
                       "hash_algorithm": "xxh3-128", "hash_seed": "0123456789abcdef", "layers": [], **config}
        (folder / "config.json").write_text(json.dumps(self.config))
        self.process = None

    def start(self, ok=True):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.nbd))
        listener.listen(64)

        # LISTEN_PID has to be the child's own, which only the child knows.
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', "sh", "nbdkit", "--foreground", "--log=stderr",
             "-t", "8", str(PLUGIN), f"config={self.folder}/config.json"],
            preexec_fn=lambda: os.dup2(listener.fileno(), 3), pass_fds=[3], stderr=open(self.folder / "log", "wb"))
        listener.close()
        until = time.monotonic() + patience(60)
        while ok and not self.answers():
            assert self.process.poll() is None and time.monotonic() < until, self.log()
            time.sleep(0.02)
        return self

    def answers(self):
        """Its socket has a name before anybody listens there: a test that went by the name was refused, once in a
        hundred starts."""
        try:
            return self.ask("status")["ok"]
        except (FileNotFoundError, ConnectionRefusedError):
            return False

    def log(self):
        return (self.folder / "log").read_text(errors="replace")

    @property
    def uri(self):
        return f"nbd+unix:///{self.name}?socket={self.nbd}"

    def ask(self, op, **more):
        return ask(self.control_path, op, **more)

    def stop(self, how="stop"):
        if self.process and self.process.poll() is None:
            if how == "stop":
                assert self.ask("stop")["ok"]
            else:
                self.process.send_signal(how)
            self.process.wait(20)
        for name in ("nbd", "ctl"):
            (self.folder / name).unlink(missing_ok=True)


class Chain:
    """Points of one disk, made by engines."""

    def __init__(self, place, engine):
        self.place, self.engine, self.layers, self.cluster = place, engine, [], CLUSTER

    def ingest(self, size, mode="full", **more):
        n = len(self.layers)
        config = {"role": "ingest", "size": size, "mode": mode, "image": str(self.place / f"p{n}.qcow2"),
                  "hashes": str(self.place / f"p{n}.hashes"), "cluster_size": self.cluster, **more}
        if mode != "full":
            config |= {"layers": self.layers, "backing_name": f"p{n - 1}.qcow2"}
        return self.engine(**config)

    def seal(self, engine, extents=None):
        answer = engine.ask("seal", **(coverage(extents) if extents is not None else {}))
        assert answer["ok"], answer
        engine.stop()
        assert engine.process.returncode == 0, engine.log()
        c = engine.config
        layer = {"image": c["image"], "hashes": c["hashes"], "backing_name": c.get("backing_name")}
        self.layers = [layer] + self.layers
        return answer

    def check(self, raw):
        """QEMU finds nothing wrong, and reads what is in the file `raw`; so does our own reader over NBD."""
        image = self.layers[0]["image"]
        run("qemu-img", "check", "-q", image)
        run("qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", raw, image)
        serve = self.engine(role="serve", layers=self.layers, cluster_size=self.cluster)
        run("nbdcopy", serve.uri, self.place / "back")
        assert (self.place / "back").read_bytes() == raw.read_bytes()
        serve.stop()
