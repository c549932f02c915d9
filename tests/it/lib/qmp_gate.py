"""Between clients and QEMU's monitor, descriptors and all: holds a chosen command, a moment to kill something in.

    with QmpGate(path, vm.qmp_path) as gate:
        gate.hold('"transaction"')
"""

import contextlib
import os
import select
import socket
import threading
import time

from lib.patience import patience


class QmpGate:
    """hold(word) keeps the first message that contains it from QEMU, or the first after `skip` such, until open() or
    the end of who sent it; with answer=True QEMU gets it, and its answer is kept. No hold ends by itself: what a client
    does then would look like what it does without an answer. count: messages of clients since the hold."""

    def __init__(self, path, target):
        self.path, self.target = str(path), target
        self.condition = threading.Condition()
        self.word = None
        self.answer = self.asked = self.held = self.went_on = False
        self.count = self.skip = 0
        self.ends = []

    def __enter__(self):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.open()
        os.unlink(self.path)
        for end in [self.listener, *self.ends]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)      # wakes the threads
            end.close()

    def hold(self, word, answer=False, skip=0):
        with self.condition:
            self.word, self.answer, self.skip, self.count = word.encode(), answer, skip, 0
            self.asked = self.held = self.went_on = False

    def wait_held(self, run=None, seconds=60):
        """run: whose end before that is an error, with its own reason."""
        until = time.monotonic() + patience(seconds)
        with self.condition:
            while not self.held:
                if run and run.process.poll() is not None:
                    run.finish()
                    raise AssertionError(f"it ended, and {self.word} was not said")
                assert time.monotonic() < until, f"{self.word} was not said"
                self.condition.wait(0.1)

    def wait_went_on(self, run=None, seconds=60):
        """Until whoever is held says something more, or `run` has ended: it has given up what is held."""
        until = time.monotonic() + patience(seconds)
        with self.condition:
            while not self.went_on and not (run and run.process.poll() is not None):
                assert time.monotonic() < until, f"nothing after {self.word}"
                self.condition.wait(0.1)

    def open(self):
        with self.condition:
            self.word = None
            self.condition.notify_all()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self.target)
            except OSError:     # no QEMU: as if nobody listened here
                client.close()
                server.close()
                continue
            self.ends += [client, server]
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._forward, args=(*pair, client), daemon=True).start()

    def _forward(self, source, sink, client):
        with contextlib.suppress(OSError):
            goes_on = True
            while goes_on:
                data, fds, _, _ = socket.recv_fds(source, 65536, 8)
                goes_on = bool(data) and self._goes_on(data, source, client)
                if goes_on:
                    socket.send_fds(sink, [data], fds)
                for fd in fds:
                    os.close(fd)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _goes_on(self, data, source, client):
        """After a hold, if it is one: whether the client is still there."""
        with self.condition:
            if source is client:
                self.count += 1
                self.went_on = self.held
                self.condition.notify_all()
            if not self.word or self.held:
                return True
            if source is client and self.word in data:
                self.skip -= 1
                self.asked = self.skip < 0
            if not self.asked or self.answer is (source is client):
                return True
            self.held = True
            self.condition.notify_all()
            word = self.word
            while self.word == word:
                events = waiting(client)
                if events & ~select.POLLIN:
                    return False
                if events and not self.went_on:
                    self.went_on = True
                    self.condition.notify_all()
                self.condition.wait(0.02)
            return True


def waiting(peer):
    """POLLIN: it has said something; more than that: it is gone, whatever it said before."""
    poll = select.poll()
    poll.register(peer, select.POLLIN | select.POLLRDHUP)
    return sum(events for _, events in poll.poll(0))
