"""Other people's NBD clients against the writer, all at once: small, unaligned, overlapping writes, zeroes and trims.

What is promised (docs/internals/engine.md): requests that share a cluster take effect one after the other, each as a
whole, in an order in which each client's own follow one another; one that is refused changes nothing, nor does it
count as arrived.

So a disk is cut into arenas. In each round an arena gets requests of one client, or of several that race; what they
were told, and what the arena shows afterwards, has to come from one order of these requests.

    ENGINE_MIX=n              histories (default 4); each is a full and some increments
    SENDENSE_TEST_SEED=n      the first one's seed; a failing test prints its own
"""

import errno
import os
import random
import subprocess

import pytest

from lib.disk_model import Disk, Request, State, merged
from lib.engine import MIB, coverage, run
from lib.nbd_clients import Connection, OnConnection, QemuIo, drive

HISTORIES = int(os.environ.get("ENGINE_MIX", "4"))
SEED = int(os.environ["SENDENSE_TEST_SEED"])     # conftest.py gives one
FORMATS = [(65536, 0), (65536, 1), (16384, 3), (4096, 0)]       # cluster, compression


class Point:
    """One image while it is written."""

    def __init__(self, rng, engine, disk, folder):
        self.rng, self.engine, self.disk = rng, engine, disk
        self.arrived, self.same = [], False
        self.connections = [Connection(engine.uri) for _ in range(rng.randrange(1, 4))]
        self.control = OnConnection(self.connections[0], "reader")
        self.libnbd = [OnConnection(rng.choice(self.connections), f"libnbd-{n}") for n in range(rng.randrange(2, 6))]
        self.qemu_io = [QemuIo(engine.uri, f"qemu-io-{n}", folder) for n in range(rng.randrange(3))]
        self.cut()

    def close(self):
        for client in (*self.connections, *self.qemu_io):
            client.close()

    def cut(self):
        at, disk = 0, self.disk
        while at < disk.size:
            length = self.rng.randrange(MIB, 2 * MIB) if self.rng.randrange(20) == 0 else \
                self.rng.randrange(1, 4 * disk.cluster)
            end = at + length if disk.mode == "full" else -(-(at + length) // disk.cluster) * disk.cluster
            disk.add_arena(at, min(end, disk.size))
            at = end

    # ---- requests

    def place(self, arena):
        """(offset, end) within the arena: of whole clusters, sectors, or anything."""
        cluster, how = self.disk.cluster, self.rng.randrange(8)
        first, last = -(-arena.start // cluster), -(-arena.end // cluster) - (arena.end % cluster != 0
                                                                              and arena.end != self.disk.size)
        if how < (2 if self.disk.mode == "full" else 5) and first < last:
            k = self.rng.randrange(first, last)
            return k * cluster, min(self.rng.randrange(k + 1, last + 1) * cluster, arena.end)
        if how == 6 or (arena.end - arena.start > MIB and how < 4):     # the engine works in pieces of 1 MiB
            return arena.start, arena.end
        a = self.rng.randrange(arena.start, arena.end)
        b = self.rng.randrange(a, min(arena.end, a + self.rng.choice([16, 600, 3 * cluster]))) + 1
        if how == 7 and a // 512 * 512 >= arena.start and a // 512 * 512 + 512 <= arena.end:
            a = a // 512 * 512
            b = min(-(-b // 512) * 512, arena.end // 512 * 512)
        return a, b

    def request(self, arena, client):
        a, b = self.place(arena)
        same = 4 if self.disk.mode == "compare" else 1
        kinds = ["write", "zero", "trim"] if client in self.qemu_io else ["write", "zero", "trim", "read", "same"]
        kind, = self.rng.choices(kinds, [20, 4, 3, 4, same][:len(kinds)])
        if kind == "same" and b == self.disk.size and any(self.disk.parent[b:]):
            kind = "zero"       # the parent's hash is of more than the cut cluster: no client finds it the same
        r = Request(kind, a, b - a, fua=kind in ("write", "zero") and self.rng.randrange(8) == 0)
        if kind == "write":
            what = self.rng.randrange(8)
            if what < 4:
                r.byte = self.rng.randrange(1, 256)
            elif what == 4:
                r.byte = 0
            r.data = bytes([r.byte]) * r.length if r.byte is not None else \
                self.disk.parent[a:b] if what == 5 else self.rng.randbytes(r.length)
        return r

    # ---- rounds

    def round(self):
        clients = self.libnbd + self.qemu_io
        queues, rounds = {client: [] for client in clients}, []
        for arena in self.rng.sample(self.disk.arenas, min(len(self.disk.arenas), 12)):
            if self.rng.randrange(2):
                crew, most = [self.rng.choice(clients)], 6
            else:
                crew, most = self.rng.sample(clients, min(len(clients), self.rng.randrange(2, 4))), 2
            strands = [[self.request(arena, client) for _ in range(self.rng.randrange(1, most + 1))] for client in crew]
            for client, strand in zip(crew, strands):
                queues[client] += strand
            rounds.append((arena, strands))
        drive(queues)
        for arena, strands in rounds:
            self.judge(arena, strands)

    def ask(self, r):
        drive({self.control: [r]})
        return r.outcome

    def look(self, arena):
        """What the image shows and holds of an arena."""
        disk, shown = self.disk, b""
        if disk.mode == "full":
            return State(self.ask(Request("read", arena.start, arena.end - arena.start)), arena.state.held)
        held = []
        for k in range(arena.start // disk.cluster, -(-arena.end // disk.cluster)):
            start, end = disk.cluster_of(k)
            got = self.ask(Request("read", start, end - start))
            held.append(got != errno.EINVAL)
            shown += got if held[-1] else disk.parent[start:end]
        return State(shown, tuple(held))

    def judge(self, arena, strands):
        after = self.look(arena)
        assert self.disk.explained(arena, strands, after), "\n".join(
            [f"no order of these explains what is at {arena.start} to {arena.end}, holding {after.held}, "
             f"held before {arena.state.held}", *(str(r) for s in strands for r in s)])
        arena.state = after
        for r in (r for s in strands for r in s if r.outcome == "ok" and r.kind != "read"):
            self.arrived.append((r.offset, r.end))
            self.same |= r.kind == "same"

    def alone(self, *requests):
        """Requests whose order and effect are known."""
        for r in requests:
            arena, = (a for a in self.disk.arenas if a.start <= r.offset and r.end <= a.end)
            outcome, arena.state = self.disk.apply(arena, arena.state, r)
            assert self.ask(r) == outcome, r
            if outcome == "ok":
                self.arrived.append((r.offset, r.end))

    def copy(self, path):
        """The whole disk at one go."""
        disk, rng = self.disk, self.rng
        content = bytearray(rng.randbytes(disk.size))
        for _ in range(4):
            a = rng.randrange(disk.size)
            b = min(disk.size, a + rng.randrange(1, 200000))
            content[a:b] = bytes([rng.choice([0, 0, 7])]) * (b - a)
        path.write_bytes(content)
        if disk.mode != "full":
            run("nbdcopy", "--sparse=0", path, self.engine.uri)         # whole clusters
        elif disk.size % 512 or rng.randrange(2):       # QEMU would round the size up, and be refused
            run("nbdcopy", path, self.engine.uri)
        else:
            run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "4", path, self.engine.uri)
        for arena in disk.arenas:
            _, arena.state = disk.apply(arena, arena.state, Request("write", arena.start, arena.end - arena.start,
                                                                    bytes(content[arena.start:arena.end])))
        self.arrived.append((0, disk.size))

    def out_of_bounds(self):
        size = self.disk.size
        for r in (Request("write", size - 1, 2, b"xx"), Request("write", size, 1, b"x"), Request("zero", 0, size + 1),
                  Request("trim", size + 4096, 512), Request("read", size - 1, 2), Request("write", 0, 0)):
            assert self.ask(r) in (errno.EINVAL, errno.ENOSPC), r

    # ---- the end

    def holes(self):
        at, found = 0, []
        for offset, length in merged([*self.arrived, (self.disk.size, self.disk.size)]):
            if at < offset:
                found.append((at, offset))
            at = offset + length
        return found

    def refuse_to_seal(self):
        """What was refused did not count: the account is exactly what was answered with success."""
        arrived = merged(self.arrived)
        total = sum(n for _, n in arrived)
        if not self.same:       # these have a counter of their own
            status = self.engine.ask("status")
            assert status["received_data"] + status["received_zero"] == total
        if total == self.disk.size:
            return
        if self.disk.mode == "tracked":
            answer = self.engine.ask("seal", **coverage([(0, self.disk.size)]))
        else:
            answer = self.engine.ask("seal")
            start, end = self.holes()[0]
            assert f"{end - start} bytes at {start}" in answer["details"], (answer, start, end)
        assert (answer["ok"], answer["code"]) == (False, "conflict"), answer

    def fill(self):
        """What a full and a comparison still need; in a comparison in whole clusters."""
        disk = self.disk
        for start, end in self.holes():
            for arena in disk.arenas:
                a, b = max(start, arena.start), min(end, arena.end)
                if disk.mode != "full" and a < b:
                    a, b = a // disk.cluster * disk.cluster, min(-(-b // disk.cluster) * disk.cluster, disk.size)
                if a < b:
                    self.alone(Request("write", a, b - a, self.rng.randbytes(b - a)) if self.rng.randrange(2)
                               else Request("zero", a, b - a))


def make_point(rng, chain, mode, size, compression, parent, folder):
    disk = Disk(size, chain.cluster, mode, parent)
    engine = chain.ingest(size, mode, compression=compression)
    point = Point(rng, engine, disk, folder)
    try:
        for _ in range(rng.randrange(3, 8)):
            point.round()
            if rng.randrange(8) == 0:
                point.copy(folder / "copied")
        point.out_of_bounds()
        point.refuse_to_seal()
        if mode != "tracked":
            point.fill()
        content = disk.content()
    finally:
        point.close()
    chain.seal(engine, merged(point.arrived) if mode == "tracked" else None)
    (folder / "raw").write_bytes(content)
    chain.check(folder / "raw")
    return content


@pytest.mark.parametrize("seed", range(SEED, SEED + HISTORIES))
def test_a_random_mix(place, chain, seed):
    print(f"SENDENSE_TEST_SEED={seed} ENGINE_MIX=1")
    rng = random.Random(seed)
    chain.cluster, compression = FORMATS[seed % len(FORMATS)]
    cluster = chain.cluster
    sizes = [1, 512, 513, cluster - 1, cluster, cluster + 1, rng.randrange(1, 8 * cluster),
             rng.randrange(MIB, 4 * MIB) // 512 * 512, rng.randrange(MIB, 4 * MIB)]
    size = rng.choice(sizes + sizes[-1:] * 5)
    content = make_point(rng, chain, "full", size, compression, b"", place)
    for mode in rng.choice([("tracked", "compare"), ("compare", "tracked"), ("compare", "compare", "tracked")]):
        if mode == "compare" and rng.randrange(3) == 0:
            size = max(1, rng.choice([*sizes, size + rng.randrange(-3 * cluster, 3 * cluster)]))
        content = make_point(rng, chain, mode, size, compression, content, place)


def test_a_large_request_is_one(place, chain):
    """The engine writes in pieces of 1 MiB; a zero, which has none, does not come between them."""
    size = 3 * MIB + 513
    e = chain.ingest(size)
    connections = [Connection(e.uri), Connection(e.uri)]
    clients = [OnConnection(connections[n % 2], f"libnbd-{n}") for n in range(4)]
    for byte in range(1, 9):
        strands = [[Request("write", 0, size, bytes([byte]) * size)],
                   *[[Request("zero", 0, size) for _ in range(5)] for _ in clients[1:]]]
        drive(dict(zip(clients, strands)))
        look = Request("read", 0, size)
        drive({clients[0]: [look]})
        assert look.outcome in (bytes(size), bytes([byte]) * size)
    for connection in connections:
        connection.close()
    chain.seal(e)
    (place / "raw").write_bytes(look.outcome)
    chain.check(place / "raw")


@pytest.mark.parametrize("size", [513, 3 * MIB + 1])
def test_qemu_img_and_an_odd_size(place, chain, size):
    """It rounds the size up to whole sectors, and is refused where it writes behind the end; the disk takes no harm."""
    raw = place / "raw"
    raw.write_bytes(random.Random(size).randbytes(size))
    e = chain.ingest(size)
    done = run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", raw, e.uri, ok=False)
    assert done.returncode != 0 and b"No space left on device" in done.stderr
    run("nbdcopy", raw, e.uri)
    chain.seal(e)
    chain.check(raw)


@pytest.mark.parametrize("size", [6 * MIB, 3 * MIB + 512])
def test_whole_disks_that_race(place, chain, size):
    """nbdcopy, qemu-img and qemu-io write the whole disk at once, whole clusters each: no cluster is a mixture."""
    rng = random.Random(SEED)
    print(f"SENDENSE_TEST_SEED={SEED}")
    e = chain.ingest(size)
    tell = bytes.maketrans(bytes(range(256)), bytes(1 + b % 63 for b in range(256)))
    paths = []
    for n in range(2):
        paths.append(place / f"disk-{n}")
        paths[n].write_bytes(bytes(b | n << 6 for b in rng.randbytes(size).translate(tell)))
    steps = [(at, min(MIB, size - at)) for at in range(0, size, MIB)]
    commands = (["nbdcopy", str(paths[0]), e.uri],
                ["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "4", str(paths[1]), e.uri],
                ["qemu-io", "-f", "raw", *[x for at, n in steps for x in ("-c", f"write -P 200 {at} {n}")], e.uri])
    for copy in [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for c in commands]:
        said, _ = copy.communicate(timeout=60)
        assert copy.returncode == 0, said
    chain.seal(e)
    run("qemu-img", "check", "-q", chain.layers[0]["image"])
    serve = chain.engine(role="serve", layers=chain.layers)
    run("nbdcopy", serve.uri, place / "back")
    got = (place / "back").read_bytes()
    assert len(got) == size
    disks = [path.read_bytes() for path in paths] + [b"\xc8" * size]
    for at in range(0, size, 65536):
        assert got[at:at + 65536] in [d[at:at + 65536] for d in disks], at
