"""Between a client and QEMU's monitor, descriptors and all: sees each command, and can hold it."""

import contextlib
import json
import os
import socket
import threading


class QmpProxy:
    """`commands`: what was sent so far, in order. `before`: called with each command before QEMU has it."""

    def __init__(self, path, target, before=None):
        self.path, self.target, self.before = str(path), str(target), before
        self.commands = []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen()
        self.open = [self.listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        for end in self.open:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        os.unlink(self.path)

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.socket(socket.AF_UNIX)
                self.open += [client, server]
                server.connect(self.target)
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, source, sink):
        rest = ""
        with contextlib.suppress(OSError):
            while True:
                data, fds, _, _ = socket.recv_fds(source, 65536, 8)
                if not data:
                    break
                rest = self._see(rest + data.decode(errors="replace"))
                socket.send_fds(sink, [data], fds)
                for fd in fds:
                    os.close(fd)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _see(self, text):
        """Takes note of the commands; returns the beginning of one that is not whole yet."""
        while text := text.lstrip():
            try:
                message, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                break
            text = text[end:]
            if "execute" in message:    # else it is QEMU that speaks
                self.commands.append(message)
                if self.before:
                    self.before(message)
        return text
