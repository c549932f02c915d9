"""In the place of an exporter's socket: lets so many bytes through to it, and holds the rest."""

import contextlib
import os
import socket
import threading

from lib.patience import patience

HOLD_SECONDS = patience(60)


class NbdGate:
    """From now on whoever connects to the exporter's socket gets no more than `limit` bytes to it, until open()."""

    def __init__(self, path, limit):
        self.path, self.target, self.limit = str(path), f"{path}~", limit
        self.condition = threading.Condition()
        self.passed = 0
        self.held = False
        self.ends = []
        os.rename(self.path, self.target)       # a socket is its inode, not its name
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def wait_held(self, seconds=60):
        with self.condition:
            assert self.condition.wait_for(lambda: self.held, patience(seconds)), \
                f"{self.passed} bytes of {self.limit} came"

    def open(self):
        with self.condition:
            self.limit = None
            self.condition.notify_all()

    def close(self):
        self.open()
        for end in [self.listener, *self.ends]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # wakes the threads
            end.close()
        self._give_names_back()

    def _give_names_back(self):
        """There may be no exporter any more; its name goes with it."""
        for path in (self.path, self.target):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
                server = socket.socket(socket.AF_UNIX)
                self.ends += [client, server]
                server.connect(self.target)
            except OSError:
                return
            threading.Thread(target=self._to_server, args=(client, server), daemon=True).start()
            threading.Thread(target=self._forward, args=(server, client, len), daemon=True).start()

    def _to_server(self, client, server):
        self._forward(client, server, self._admit)

    def _forward(self, source, sink, admit):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                while data:
                    n = admit(data)
                    sink.sendall(data[:n])
                    data = data[n:]
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _admit(self, data):
        """How much of it may go on: at least a byte, sooner or later."""
        with self.condition:
            if self.limit is not None and self.passed >= self.limit:
                self.held = True
                self.condition.notify_all()
                self.condition.wait_for(lambda: self.limit is None, HOLD_SECONDS)
                self.limit = None
            n = len(data) if self.limit is None else min(len(data), self.limit - self.passed)
            self.passed += n
            return n


OPTION, REQUEST = b"IHAV", bytes.fromhex("25609513")     # the first four bytes of each
READ = 0


class ReadGate(NbdGate):
    """The same for a server that is read: it is asked for `limit` bytes, give or take a request, and has not read what
    it was not asked for. No hold ends by itself."""

    def _give_names_back(self):
        with contextlib.suppress(FileNotFoundError):    # an export that was ended is gone, folder and all
            os.rename(self.target, self.path)

    def _to_server(self, client, server):
        with contextlib.suppress(OSError), client.makefile("rb") as said:
            server.sendall(said.read(4))        # flags
            while message := self._next(said):
                server.sendall(message)
        for end in (client, server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _next(self, said):
        """The next option or request, once it may pass; nothing at the end."""
        magic = said.read(4)
        if magic == OPTION:
            head = magic + said.read(12)
            return head + said.read(int.from_bytes(head[12:], "big"))
        if not magic:
            return b""
        assert magic == REQUEST, magic
        request = magic + said.read(24)
        if int.from_bytes(request[6:8], "big") == READ:
            self._wait_turn(int.from_bytes(request[24:], "big"))
        return request

    def _wait_turn(self, length):
        with self.condition:
            if self.limit is not None and self.passed >= self.limit:
                self.held = True
                self.condition.notify_all()
                self.condition.wait_for(lambda: self.limit is None)
            self.passed += length
