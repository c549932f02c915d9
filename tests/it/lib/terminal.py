"""Runs the CLI on a terminal, and types."""

import os
import pty
import select
import signal
import time

from lib.hub import BIN


class Terminal:
    """A command whose controlling terminal is ours."""

    def __init__(self, url, *arguments):
        self.shown = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["SHA_API_URL"] = url
            os.execv(str(BIN / "sendense"), ["sendense", *map(str, arguments)])

    def wait_for(self, words, seconds=20):
        until = time.monotonic() + seconds
        while words not in self.shown:
            assert time.monotonic() < until, self.shown
            if select.select([self.fd], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self.fd, 4096).decode()
                except OSError:                     # the command ended
                    assert words in self.shown, self.shown

    def say(self, text):
        os.write(self.fd, text.encode())

    def end(self, seconds=30):
        until = time.monotonic() + seconds
        while True:
            if not select.select([self.fd], [], [], max(0, until - time.monotonic()))[0]:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise AssertionError(f"still there after {seconds} s: {self.shown}")
            try:
                piece = os.read(self.fd, 4096)
            except OSError:
                break
            if not piece:
                break
            self.shown += piece.decode()
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        return status
