"""An HTTP client of the hub's API that records all its traffic."""

import http.client
import json
import time
import urllib.parse
from typing import NamedTuple

from lib import traffic
from lib.patience import patience

BASE = "/api/v1"


def quote(segment):
    """A name or an ID as one segment of a path."""
    return urllib.parse.quote(str(segment), safe="")


class Answer(NamedTuple):
    status: int
    headers: dict       # names in lower case
    text: str

    @property
    def json(self):
        return json.loads(self.text)

    def expect(self, status, error=None):
        """The JSON of an answer that has this status (and this short error), else AssertionError."""
        assert self.status == status, f"status {self.status} instead of {status}: {self.text[:600]}"
        value = self.json
        if status >= 400:
            assert set(value) == {"error", "details", "timestamp"}, value
            assert self.headers["content-type"] == "application/json"
        if error is not None:
            assert value["error"] == error, value
        return value


class Api:
    """Paths are relative to /api/v1 and sent as they are given: see quote()."""

    def __init__(self, port, token=None, host="127.0.0.1"):
        self.host, self.port, self.token = host, port, token

    def with_token(self, token):
        return Api(self.port, token, self.host)

    def get(self, path, **more):
        return self.request("GET", path, **more)

    def post(self, path, body=None, **more):
        return self.request("POST", path, body, **more)

    def patch(self, path, body=None, **more):
        return self.request("PATCH", path, body, **more)

    def delete(self, path, **more):
        return self.request("DELETE", path, **more)

    def request(self, method, path, body=None, raw=None, headers=None, base=BASE, timeout=60):
        """body: sent as JSON; raw: these bytes instead."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=patience(timeout))
        data, sent = self._outgoing(body, raw, headers)
        try:
            connection.request(method, base + path, body=data, headers=sent)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        traffic.record(method, base + path, sent, data, response.status, response.getheaders(), content)
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, content.decode())

    def _outgoing(self, body, raw, headers):
        data = json.dumps(body).encode() if raw is None and body is not None else raw
        sent = {"Accept": "application/json"}
        if data is not None:
            sent["Content-Type"] = "application/json"
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        sent.update(headers or {})
        return data, sent

    def events(self, path, timeout=60):
        """Yields (event, value) of a stream of server-sent events until it ends; (None, text) for a comment."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=patience(timeout))
        headers = {"Accept": "text/event-stream"}
        seen = []
        try:
            connection.request("GET", BASE + path, headers=headers)
            response = connection.getresponse()
            assert response.status == 200, response.read()
            assert response.getheader("content-type") == "text/event-stream"
            yield from _parse_events(response, seen)
        finally:
            connection.close()
        traffic.record("GET", BASE + path, headers, None, 200, response.getheaders(), b"".join(seen))

    def wait_status(self, backup_id, wanted, deadline=60):
        """Asks until the backup has one of these statuses; returns it."""
        until = time.monotonic() + patience(deadline)
        while True:
            value = self.get(f"/backups/{quote(backup_id)}").expect(200)
            if value["status"] in wanted:
                return value
            assert time.monotonic() < until, f"still {value['status']} after {deadline} s: {value}"
            time.sleep(0.1)


def _parse_events(response, seen):
    name, data = "message", []
    for line in response:
        seen.append(line)
        text = line.decode().rstrip("\n")
        if text.startswith(":"):
            yield None, text
        elif text.startswith("event: "):
            name = text[7:]
        elif text.startswith("data: "):
            data.append(text[6:])
        elif text == "" and data:
            yield name, json.loads("\n".join(data))
            name, data = "message", []
