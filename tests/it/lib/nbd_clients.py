"""Other people's NBD clients that take one request after the other: libnbd, and qemu-io as a process of its own."""

import errno
import os
import select
import subprocess

import nbd


class Connection:
    """libnbd, which checks nothing itself: what is refused is refused by the server."""

    def __init__(self, uri):
        self.h = nbd.NBD()
        self.h.set_strict_mode(0)
        self.h.connect_uri(uri)

    def close(self):
        self.h.shutdown()


class OnConnection:
    """One of several requests in flight on a connection."""

    def __init__(self, connection, name):
        self.h, self.name, self.buffer, self.reads, self.cookie = connection.h, name, None, False, None

    def start(self, r):
        flags = nbd.CMD_FLAG_FUA if r.fua else 0
        self.reads = r.kind == "read"
        self.buffer = nbd.Buffer(r.length) if r.kind == "read" else \
            nbd.Buffer.from_bytearray(bytearray(r.data)) if r.kind == "write" else None
        if r.kind == "read":
            self.cookie = self.h.aio_pread(self.buffer, r.offset)
        elif r.kind == "write":
            self.cookie = self.h.aio_pwrite(self.buffer, r.offset, flags=flags)
        else:
            send = {"zero": self.h.aio_zero, "trim": self.h.aio_trim, "same": self.h.aio_cache}[r.kind]
            self.cookie = send(r.length, r.offset, flags=0 if r.kind == "same" else flags)

    def look(self):
        """The outcome, or None while there is none."""
        self.h.poll(0)
        try:
            if not self.h.aio_command_completed(self.cookie):
                return None
        except nbd.Error as e:
            return e.errnum
        return bytes(self.buffer.to_bytearray()) if self.reads else "ok"

    def wants(self):
        """(readable, writable) descriptors worth waiting for"""
        fd, way = self.h.aio_get_fd(), self.h.aio_get_direction()
        return [fd] if way & nbd.AIO_DIRECTION_READ else [], [fd] if way & nbd.AIO_DIRECTION_WRITE else []


class QemuIo:
    PROMPT = b"qemu-io> "
    TELLS = {b"Invalid argument": errno.EINVAL}

    def __init__(self, uri, name, folder):
        self.name, self.folder, self.heard = name, folder, b""
        self.process = subprocess.Popen(["qemu-io", "-d", "unmap", "-f", "raw", uri], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
                                        env={**os.environ, "LC_ALL": "C"})
        self.answer()

    def start(self, r):
        fua = "-f " if r.fua else ""
        if r.kind == "write" and r.byte is None:
            path = self.folder / f"{self.name}.data"
            path.write_bytes(r.data)
            line = f"write {fua}-s {path} {r.offset} {r.length}"
        elif r.kind == "write":
            line = f"write {fua}-P {r.byte} {r.offset} {r.length}"
        else:
            line = f"write {fua}-z {r.offset} {r.length}" if r.kind == "zero" else f"discard {r.offset} {r.length}"
        self.process.stdin.write(line.encode() + b"\n")

    def answer(self):
        """Waits for the next prompt; what was said before it."""
        while self.PROMPT not in self.heard:
            assert select.select([self.process.stdout], [], [], 60)[0], "qemu-io says nothing"
            more = os.read(self.process.stdout.fileno(), 65536)
            assert more, f"qemu-io ended: {self.heard.decode(errors='replace')}"
            self.heard += more
        said, _, self.heard = self.heard.partition(self.PROMPT)
        return said

    def look(self):
        if not select.select([self.process.stdout], [], [], 0)[0]:
            return None
        said = self.answer()
        if said.startswith((b"wrote ", b"discard ")) and b"failed" not in said:
            return "ok"
        known = [number for words, number in self.TELLS.items() if words in said]
        assert known, said
        return known[0]

    def wants(self):
        return [self.process.stdout.fileno()], []

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(20) is not None
        self.process.stdout.close()


def drive(queues):
    """{client: its requests}: each client sends its own one after the other, all clients at once."""
    now = {}
    waiting = {client: list(reversed(requests)) for client, requests in queues.items()}
    while True:
        moved = False
        for client, requests in waiting.items():
            if client in now:
                outcome = client.look()
                if outcome is None:
                    continue
                now.pop(client).outcome = outcome
                moved = True
            if requests:
                now[client] = requests.pop()
                now[client].who = client.name
                client.start(now[client])
                moved = True
        if not now:
            return
        if not moved:
            wants = [client.wants() for client in now]
            ready = select.select([fd for r, _ in wants for fd in r], [fd for _, w in wants for fd in w], [], 60)
            assert any(ready), "no answer in a minute"
