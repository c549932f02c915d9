"""The engine: nbdkit with our plugin, driven by other people's NBD clients, judged by qemu-img."""

import json
import os
import random
import signal
import socket
import subprocess
import time

import pytest

from lib.engine import CLUSTER, MIB, Engine, coverage, run
from lib.patience import patience


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
    first, again = e.ask("seal"), e.ask("seal")
    for answer in (first, again):
        assert answer.pop("connections") <= 1       # qemu-io's end may not have been noticed yet
    assert first["ok"] and again == first
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
