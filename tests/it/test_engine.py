"""The engine: nbdkit with our plugin, driven by other people's NBD clients, judged by qemu-img."""

import json
import os
import random
import signal
import socket
import struct
import subprocess
import time

import pytest

from lib.hub import BIN
from lib.patience import patience

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
        until = time.monotonic() + patience(10)
        while ok and not self.control_path.exists():
            assert self.process.poll() is None and time.monotonic() < until, self.log()
            time.sleep(0.02)
        return self

    def log(self):
        return (self.folder / "log").read_text(errors="replace")

    @property
    def uri(self):
        return f"nbd+unix:///{self.name}?socket={self.nbd}"

    def ask(self, op, **more):
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(patience(60))
            s.connect(str(self.control_path))
            s.sendall(json.dumps({"op": op, **more}).encode() + b"\n")
            return json.loads(s.makefile().readline())

    def stop(self, how="stop"):
        if self.process and self.process.poll() is None:
            if how == "stop":
                assert self.ask("stop")["ok"]
            else:
                self.process.send_signal(how)
            self.process.wait(patience(20))
        for name in ("nbd", "ctl"):
            (self.folder / name).unlink(missing_ok=True)


@pytest.fixture
def engine(place):
    made = []

    def make(**config):
        made.append(Engine(place / f"e{len(made)}", **config).start())
        return made[-1]

    yield make
    for e in made:
        if e.process.poll() is None:
            e.process.kill()
            e.process.wait()
        e.stop()


class Chain:
    """Points of one disk, made by engines."""

    def __init__(self, place, engine):
        self.place, self.engine, self.layers = place, engine, []

    def ingest(self, size, mode="full"):
        n = len(self.layers)
        config = {"role": "ingest", "size": size, "mode": mode, "image": str(self.place / f"p{n}.qcow2"),
                  "hashes": str(self.place / f"p{n}.hashes")}
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
        serve = self.engine(role="serve", layers=self.layers)
        run("nbdcopy", serve.uri, self.place / "back")
        assert (self.place / "back").read_bytes() == raw.read_bytes()
        serve.stop()


@pytest.fixture
def chain(place, engine):
    return Chain(place, engine)


def make_disk(path, size, seed=1):
    """Random, zero, repeated: a piece of each, again and again."""
    rng = random.Random(seed)
    with open(path, "wb") as f:
        while f.tell() < size:
            n = min(size - f.tell(), rng.randrange(1, 3 * MIB))
            kind = rng.randrange(3)
            if kind == 0:
                f.write(rng.randbytes(n))
            elif kind == 1:
                f.seek(n, os.SEEK_CUR)
            else:
                f.write((b"abc" * n)[:n])
        f.truncate(size)
    return path


@pytest.mark.parametrize("size", [64 * MIB, 33 * MIB + 777, 1])
def test_full_by_nbdcopy(place, chain, size):
    raw = make_disk(place / "raw", size)
    e = chain.ingest(size)
    run("nbdcopy", "--flush", raw, e.uri)
    status = e.ask("status")
    assert status["received_data"] + status["received_zero"] == size
    assert not status["sealed"]
    answer = chain.seal(e)
    assert answer["sealed"] and len(answer["root"]) == 32
    assert answer["image_bytes"] == os.path.getsize(chain.layers[0]["image"])
    chain.check(raw)


def test_full_by_qemu_img(place, chain):
    raw = make_disk(place / "raw", 40 * MIB)
    e = chain.ingest(40 * MIB)
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8", raw, e.uri)
    # What qemu-img knows to be zero it may leave out when it trusts the target; ours is told everything.
    if not e.ask("status")["received_data"] + e.ask("status")["received_zero"] == 40 * MIB:
        pytest.fail("qemu-img left something out")
    chain.seal(e)
    chain.check(raw)


def test_rule_07_unaligned_writes_of_qemu_io(place, chain):
    size = 2 * MIB + 512
    e = chain.ingest(size)
    expected = bytearray(size)
    commands = [f"write -z 0 {size}"]
    rng = random.Random(7)
    for _ in range(60):
        offset = rng.randrange(0, size // 512 - 1) * 512
        n = min(size - offset, 512 * rng.randrange(1, 400))
        if rng.randrange(4) == 0:
            commands.append(f"write -z {offset} {n}")
            expected[offset:offset + n] = bytes(n)
        else:
            pattern = rng.randrange(1, 256)
            commands.append(f"write -P {pattern} {offset} {n}")
            expected[offset:offset + n] = bytes([pattern]) * n
    run("qemu-io", "-f", "raw", *[x for c in commands for x in ("-c", c)], "-c", "flush", e.uri)
    (place / "raw").write_bytes(expected)
    chain.seal(e)
    chain.check(place / "raw")


def test_chain(place, chain):
    size = 20 * MIB
    raw = make_disk(place / "raw", size)
    e = chain.ingest(size)
    run("nbdcopy", raw, e.uri)
    chain.seal(e)

    # Tracked: two clusters of data, one of zeros.
    with open(raw, "r+b") as f:
        f.seek(3 * CLUSTER)
        f.write(b"x" * 2 * CLUSTER)
        f.seek(100 * CLUSTER)
        f.write(bytes(CLUSTER))
    e = chain.ingest(size, "tracked")
    run("qemu-io", "-f", "raw", "-c", f"write -P 0x78 {3 * CLUSTER} {2 * CLUSTER}",
        "-c", f"write -z {100 * CLUSTER} {CLUSTER}", e.uri)
    chain.seal(e, [(3 * CLUSTER, 2 * CLUSTER), (100 * CLUSTER, CLUSTER)])
    chain.check(raw)

    # Compared, and larger: everything is read, what differs is stored.
    size += 5 * MIB + 100
    with open(raw, "r+b") as f:
        f.truncate(size)
        f.seek(size - 1)
        f.write(b"!")
    e = chain.ingest(size, "compare")
    run("nbdcopy", raw, e.uri)
    assert chain.seal(e)["stored_clusters"] == 1
    chain.check(raw)


def test_rule_06_07_tracked_needs_what_was_announced(place, chain):
    e = chain.ingest(MIB)
    run("qemu-io", "-f", "raw", "-c", f"write -P 1 0 {MIB}", e.uri)
    chain.seal(e)
    e = chain.ingest(MIB, "tracked")
    run("qemu-io", "-f", "raw", "-c", f"write -P 2 0 {CLUSTER}", e.uri)
    assert run("qemu-io", "-f", "raw", "-c", f"write -P 2 {CLUSTER} 512", e.uri, ok=False).returncode != 0
    answer = e.ask("seal", **coverage([(0, 2 * CLUSTER)]))
    assert (answer["ok"], answer["code"]) == (False, "conflict")
    assert "instead of" in answer["details"]
    assert e.ask("seal", **coverage([(0, 2 * CLUSTER)])) == answer
    assert not e.ask("status")["sealed"]
    assert e.ask("seal", **coverage([(0, CLUSTER)]))["ok"]
    assert e.ask("seal", **coverage([(0, 2 * CLUSTER)]))["code"] == "conflict"


def test_rule_06_incomplete_full_is_refused(chain):
    e = chain.ingest(MIB)
    run("qemu-io", "-f", "raw", "-c", f"write -P 1 0 {MIB - 512}", e.uri)
    answer = e.ask("seal")
    assert not answer["ok"] and f"512 bytes at {MIB - 512}" in answer["details"]
    run("qemu-io", "-f", "raw", "-c", f"write -P 1 {MIB - 512} 512", e.uri)    # it is not too late
    chain.seal(e)


def test_after_the_seal_nothing_is_written(chain):
    e = chain.ingest(MIB)
    run("qemu-io", "-f", "raw", "-c", f"write -P 1 0 {MIB}", e.uri)
    first = e.ask("seal")
    assert first["ok"] and e.ask("seal") == first
    before = open(e.config["image"], "rb").read()
    done = run("qemu-io", "-f", "raw", "-c", "write -P 2 0 65536", e.uri, ok=False)
    assert done.returncode != 0 and b"shutdown" in (done.stdout + done.stderr)
    assert open(e.config["image"], "rb").read() == before
    assert e.ask("status")["sealed"]


def test_only_the_right_name_is_served(chain):
    e = chain.ingest(MIB)
    assert run("nbdinfo", "--size", e.uri).stdout.strip() == str(MIB).encode()
    for name in ("", "disk", e.name + "x"):
        assert run("nbdinfo", "--size", f"nbd+unix:///{name}?socket={e.nbd}", ok=False).returncode != 0
    listed = run("nbdinfo", "--list", f"nbd+unix:///?socket={e.nbd}", ok=False)
    assert e.name.encode() not in listed.stdout


def test_what_is_offered(chain):
    e = chain.ingest(CLUSTER + 1)
    info = json.loads(run("nbdinfo", "--no-content", "--json", e.uri).stdout)["exports"][0]
    assert info["export-size"] == CLUSTER + 1 and not info["is_read_only"]
    assert [info[f"block_size_{x}"] for x in ("minimum", "preferred", "maximum")] == [1, CLUSTER, 32 * MIB]
    for what in ("can_flush", "can_fua", "can_multi_conn", "can_zero", "can_trim"):
        assert info[what], what


def test_served_extents_and_no_writes(place, chain):
    e = chain.ingest(8 * MIB)
    run("qemu-io", "-f", "raw", "-c", f"write -z 0 {8 * MIB}", "-c", f"write -P 5 {MIB} {MIB}", e.uri)
    chain.seal(e)
    serve = chain.engine(role="serve", layers=chain.layers)
    entries = json.loads(run("nbdinfo", "--map", "--json", serve.uri).stdout)
    assert [(x["offset"], x["length"], x["type"]) for x in entries] == \
        [(0, MIB, 3), (MIB, MIB, 0), (2 * MIB, 6 * MIB, 3)]
    assert json.loads(run("nbdinfo", "--no-content", "--json", serve.uri).stdout)["exports"][0]["is_read_only"]
    assert serve.ask("seal")["code"] == "unsupported"


def test_an_idle_client_does_not_hold_up_a_stop(chain):
    e = chain.ingest(MIB)
    idle = subprocess.Popen(["qemu-io", "-f", "raw", e.uri], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + patience(10)
        while e.ask("status")["connections"] == 0:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert e.ask("stop")["ok"]
        assert e.process.wait(patience(10)) == 0
    finally:
        idle.kill()
        idle.communicate()
    assert os.path.exists(e.config["image"])


def test_sigterm_without_a_seal_leaves_the_files(chain):
    e = chain.ingest(MIB)
    run("qemu-io", "-f", "raw", "-c", f"write -P 1 0 {MIB}", e.uri)
    e.stop(signal.SIGTERM)
    assert e.process.returncode == 0
    assert run("qemu-img", "info", "-f", "qcow2", e.config["image"], ok=False).returncode != 0


def test_a_peer_of_the_control_that_says_nothing(chain):
    e = chain.ingest(MIB)
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as half:
        silent.connect(str(e.control_path))
        half.connect(str(e.control_path))
        half.sendall(b'{"op":')
        start = time.monotonic()
        assert e.ask("status")["ok"]
        assert time.monotonic() - start < patience(5)


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b'{"op":"format"}', b'{"op":"seal","extents":1}', b"\xff\xfe",
                                  b'{"op":"status","op":"stop"}', b'{"op":"status","more":1}', b"[" * 5000])
def test_nonsense_on_the_control(chain, line):
    e = chain.ingest(MIB)
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(patience(20))
        s.connect(str(e.control_path))
        s.sendall(line + b"\n" + b'{"op":"status"}\n')
        lines = s.makefile()
        assert not json.loads(lines.readline())["ok"]
        assert json.loads(lines.readline())["ok"]


def test_a_line_without_end_on_the_control(chain):
    e = chain.ingest(MIB)
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(patience(20))
        s.connect(str(e.control_path))
        try:
            s.sendall(b" " * 70000)
            assert s.recv(1) == b""
        except (BrokenPipeError, ConnectionResetError):
            pass
    assert e.ask("status")["ok"]


def test_a_full_disk_is_reported(place, chain):
    mount = place / "small"
    mount.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=3m", "sendense-test", mount)
    try:
        chain.place = mount
        e = chain.ingest(16 * MIB)
        done = run("qemu-io", "-f", "raw", "-c", f"write -P 1 0 {8 * MIB}", e.uri, ok=False)
        assert done.returncode != 0 and b"No space left" in done.stdout + done.stderr
        done = run("qemu-io", "-f", "raw", "-c", "write -P 1 0 512", e.uri, ok=False)
        assert done.returncode != 0  # broken for good
        assert e.ask("seal")["code"] == "no_space"
        e.stop()
    finally:
        run("umount", mount)


@pytest.mark.parametrize("change", [{"mode": "guess"}, {"cluster_size": 5000}, {"layers": [{}]}, {"size": 0},
                                    {"extra": 1}, {"hash_algorithm": "md5"}, {"image": "/nowhere/at/all"}])
def test_a_bad_configuration(place, chain, change):
    config = {"role": "ingest", "size": MIB, "mode": "full", "image": str(place / "i"), "hashes": str(place / "h")}
    e = Engine(place / "bad", **(config | change)).start(ok=False)
    assert e.process.wait(patience(10)) != 0
    assert "error" in e.log()
    e.stop()
