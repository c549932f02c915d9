"""Requests as bytes, for what no client would send."""

import json
import re
import socket
from typing import NamedTuple

from lib.patience import patience

HOST = b"Host: localhost\r\n"


class Raw(NamedTuple):
    status: int
    headers: dict       # names in lower case
    body: bytes
    rest: bytes         # what came after the answer
    closed: bool        # the server ended the connection

    @property
    def json(self):
        return json.loads(self.body)

    def expect_error(self, status, error=None):
        assert self.status == status, self
        assert self.headers["content-type"] == "application/json", self
        assert set(self.json) == {"error", "details", "timestamp"}, self
        assert self.closed and self.rest == b"", self
        if error:
            assert self.json["error"] == error, self
        return self.json


def connect(port, timeout=10):
    return socket.create_connection(("127.0.0.1", port), timeout=patience(timeout))


def receive(s):
    """All bytes until the server closes, and whether it did."""
    chunks = []
    try:
        while chunk := s.recv(1 << 18):
            chunks.append(chunk)
    except (TimeoutError, ConnectionResetError):
        return b"".join(chunks), False
    return b"".join(chunks), True


def parse(data, closed=True, with_body=True):
    """Splits the first answer from what follows it."""
    match = re.match(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n", data)
    assert match, data
    headers = {}
    for line in match.group(2).decode().splitlines():
        name, value = line.split(": ", 1)
        assert name.lower() not in headers, data
        headers[name.lower()] = value
    rest = data[match.end():]
    length = int(headers.get("content-length", len(rest))) if with_body else 0
    assert len(rest) >= length, data
    return Raw(int(match.group(1)), headers, rest[:length], rest[length:], closed)


def exchange(port, data, timeout=10, with_body=True):
    """Sends the bytes at once; the answer. b"" where there was none."""
    with connect(port, timeout) as s:
        try:
            s.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass
        got, closed = receive(s)
    return parse(got, closed, with_body) if got else b""


def request(method, target, *lines, body=b""):
    return b"\r\n".join([f"{method} {target} HTTP/1.1".encode(), b"Host: localhost",
                         *(line.encode() if isinstance(line, str) else line for line in lines), b"", body])
