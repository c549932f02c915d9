"""An NBD client that breaks the protocol: it is refused or dropped, others go on, and the disk is what they wrote."""

import contextlib
import random
import signal
import socket
import struct

import pytest

from lib.engine import CLUSTER, run
from lib.history import wait_for
from lib.patience import patience

SIZE = 5 * CLUSTER + 512
REQUEST, REPLY = 0x25609513, 0x67446698
OPTION, OPTION_REPLY = 0x49484156454F5054, 0x3E889045565A9
READ, WRITE, TRIM, ZEROES, BLOCK_STATUS = 0, 1, 4, 6, 7
GO, ACK, UNSUPPORTED = 7, 1, (1 << 31) + 1
GONE = None     # what a connection says that was dropped


class Client:
    """Says what it is told to; as a context manager."""

    def __init__(self, engine):
        self.name = engine.name.encode()
        self.s = socket.socket(socket.AF_UNIX)
        self.s.settimeout(patience(20))
        self.s.connect(str(engine.nbd))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.s.close()

    def send(self, form, *values, data=b""):
        """May meet a connection that is closed already."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.s.sendall(struct.pack(form, *values) + data)

    def receive(self, n):
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while len(got) < n and (more := self.s.recv(n - len(got))):
                got += more
        return got if len(got) == n else GONE

    def greeted(self, flags=3):
        assert self.receive(18)[:16] == b"NBDMAGICIHAVEOPT"
        self.send(">I", flags)
        return self

    def option(self, number, data, length=None, magic=OPTION):
        self.send(">QII", magic, number, len(data) if length is None else length, data=data)

    def answer(self):
        """The type of an option's reply."""
        head = self.receive(20)
        if head is GONE:
            return GONE
        magic, _, kind, n = struct.unpack(">QIII", head)
        assert magic == OPTION_REPLY
        self.receive(n)
        return kind

    def ready(self):
        self.greeted().option(GO, struct.pack(">I", len(self.name)) + self.name + bytes(2))
        while (kind := self.answer()) != ACK:
            assert kind is not GONE and kind < 1 << 31
        return self

    def request(self, command, offset, length, flags=0, data=b"", magic=REQUEST):
        """The error that is answered, 0 for none; GONE."""
        self.send(">IHHQQI", magic, flags, command, 7, offset, length, data=data)
        head = self.receive(16)
        if head is GONE:
            return GONE
        assert struct.unpack(">IxxxxQ", head) == (REPLY, 7)
        return struct.unpack(">I", head[4:8])[0]


def closed(c):
    """Nobody waits for more of what makes no sense; what was said before may still be there."""
    while c.receive(1) is not GONE:
        pass


# ---- before there is an export

def nonsense(c):
    c.greeted(flags=0xFFFFFFFF)
    c.send("", data=b"GET / HTTP/1.1\r\n\r\n" * 4)
    closed(c)


def magic_of_nobody(c):
    c.greeted().option(GO, b"", magic=OPTION + 1)
    closed(c)


def option_without_end(c):
    c.greeted().option(GO, b"x" * 100, length=0xFFFFFFFF)
    closed(c)


def name_behind_the_option(c):
    c.greeted().option(GO, struct.pack(">I", 0xFFFFFFFF) + c.name + bytes(2))
    assert c.answer() != ACK


def requests_behind_the_option(c):
    c.greeted().option(GO, struct.pack(">I", len(c.name)) + c.name + struct.pack(">H", 0xFFFF))
    assert c.answer() != ACK


def name_of_4000_bytes(c):
    c.greeted().option(GO, struct.pack(">I", 4000) + b"n" * 4000 + bytes(2))
    assert c.answer() != ACK


def unknown_options(c):
    c.greeted()
    for number in range(0x7FFFFF00, 0x7FFFFF10):
        c.option(number, b"what?")
        assert c.answer() in (UNSUPPORTED, GONE)


def leaves_in_an_option(c):
    c.greeted().option(GO, b"xx", length=1000)


# ---- behind the handshake

def requests_that_cannot_be(c):
    c.ready()
    for command, offset, length, flags in (
            (99, 0, 512, 0), (READ, SIZE, 1, 0), (READ, SIZE - 1, 2, 0), (READ, (1 << 64) - 1, 2, 0),
            (READ, 1 << 63, 512, 0), (TRIM, SIZE - 511, 512, 0), (ZEROES, 0, 0xFFFFFFFF, 0),
            (ZEROES, (1 << 64) - 512, 1024, 0), (ZEROES, 0, SIZE, 0x8000), (TRIM, 0, SIZE, 0x8000),
            (BLOCK_STATUS, 0, 512, 0)):
        assert c.request(command, offset, length, flags), (command, offset, length, flags)


def write_behind_the_end(c):
    assert c.ready().request(WRITE, SIZE - 512, 1024, data=b"x" * 1024)
    assert c.request(WRITE, (1 << 64) - 512, 1024, data=b"x" * 1024)


def write_with_unknown_flags(c):
    assert c.ready().request(WRITE, 0, CLUSTER, flags=0xFFF0, data=b"x" * CLUSTER)


def write_that_is_too_large(c):
    assert c.ready().request(WRITE, 0, 0xFFFFFFFF, data=b"x" * CLUSTER) != 0


def another_magic(c):
    assert c.ready().request(WRITE, 0, CLUSTER, data=b"x" * CLUSTER, magic=REQUEST + 1) is GONE


def leaves_in_a_write(c):
    c.ready().send(">IHHQQI", REQUEST, 0, WRITE, 7, 0, 2 * CLUSTER, data=b"x" * (CLUSTER + 100))


def leaves_in_a_request(c):
    c.ready().send(">IHH", REQUEST, 0, ZEROES)


BREACHES = [nonsense, magic_of_nobody, option_without_end, name_behind_the_option, requests_behind_the_option,
            name_of_4000_bytes, unknown_options, leaves_in_an_option, requests_that_cannot_be, write_behind_the_end,
            write_with_unknown_flags, write_that_is_too_large, another_magic, leaves_in_a_write, leaves_in_a_request]


@pytest.fixture
def raw(place):
    """What the honest client writes."""
    path = place / "raw"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


@pytest.mark.parametrize("breach", BREACHES, ids=lambda f: f.__name__)
def test_the_protocol_is_broken(raw, chain, breach):
    """Before an honest client, and between its two halves: what it was told is done stays done, and nothing else is."""
    e = chain.ingest(SIZE)
    with Client(e) as c, Client(e) as again:
        breach(c)
        run("nbdcopy", "--flush", raw, e.uri)
        breach(again)
        assert e.ask("status")["received_data"] == SIZE
    assert e.process.poll() is None, e.log()
    chain.seal(e)
    chain.check(raw)


def test_many_that_say_nothing(raw, chain):
    """They hold their connections, each at another step; the honest one is served beside them."""
    e = chain.ingest(SIZE)
    with contextlib.ExitStack() as held:
        clients = [held.enter_context(Client(e)) for _ in range(12)]
        for n, c in enumerate(clients):
            if n % 3 == 1:
                c.greeted()
            elif n % 3 == 2:
                c.ready().send(">IHHQQI", REQUEST, 0, WRITE, 7, 0, CLUSTER, data=b"x" * 1000)
        run("nbdcopy", "--flush", raw, e.uri)
        answer = e.ask("seal")
        assert answer["ok"] and answer["sealed"], answer
    chain.seal(e)
    chain.check(raw)


def connections(engine):
    """None: it has ended, maybe in the middle of its answer."""
    try:
        return engine.ask("status")["connections"]
    except (OSError, ValueError):
        return None


def test_answers_that_nobody_reads(raw, chain):
    """nbdkit 1.32.5 ends itself when a client leaves whose answers it still has to send. Then there is no image."""
    e = chain.ingest(SIZE)
    run("nbdcopy", "--flush", raw, e.uri)
    with Client(e) as c:
        c.ready().s.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                c.s.send(struct.pack(">IHHQQI", REQUEST, 0, 99, 7, 0, 512) * 1000)
    wait_for(lambda: not connections(e), "the connection goes")
    if connections(e) == 0:
        chain.seal(e)
        chain.check(raw)
    else:
        assert e.process.wait(patience(60)) == -signal.SIGABRT and "raw_send_socket" in e.log(), e.log()[-2000:]
        assert run("qemu-img", "info", "-f", "qcow2", e.config["image"], ok=False).returncode != 0
