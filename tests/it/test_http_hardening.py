"""Hostile and broken clients against the HTTP server: tests/tools/http-echo, which has a few routes."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from lib import raw
from lib.history import wait_for
from lib.hub import BIN
from lib.patience import patience
from lib.raw import HOST, request

ECHO = Path(os.environ.get("SENDENSE_TEST_TOOLS") or BIN.parent / "tests" / "tools") / "http-echo"
X = "/api/v1/echo/x"


class Server:
    def __init__(self, *options):
        self.process = subprocess.Popen([str(ECHO), *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        text=True)
        self.port = int(self.process.stdout.readline().split()[1])

    def send(self, data, **more):
        return raw.exchange(self.port, data, **more)

    def threads(self):
        return len(os.listdir(f"/proc/{self.process.pid}/task"))

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def stop(self):
        """Output from the start on; it must end by itself, with 0."""
        self.terminate()
        try:
            out, _ = self.process.communicate(timeout=patience(20))
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert self.process.returncode == 0
        return out


@pytest.fixture(scope="module")
def server():
    running = Server("--request-timeout", "3000")
    yield running
    assert "stopped" in running.stop()


@pytest.fixture
def make_server():
    made = []

    def make(*options):
        made.append(Server(*options))
        return made[-1]

    yield make
    for one in made:
        if one.process.poll() is None:
            one.stop()


def ok(server):
    """It still serves."""
    answer = server.send(request("GET", X))
    assert answer.status == 200 and answer.json["name"] == "x"


# ---- request smuggling: refused with 400, closed, and nothing behind it is taken for a request

SMUGGLED = b"DELETE /api/v1/backups/victim HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /api/v1/echo/x HTTP/1.1\r\n" + HOST


@pytest.mark.parametrize("head", [
    POST + b"Content-Length: 2\r\nContent-Length: 4\r\n\r\n{}",
    POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
    POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    POST + b"Content-Length : 2\r\n\r\n{}",
    POST + b" Content-Length: 2\r\n\r\n{}",
    POST + b"Content-Length: 2, 2\r\n\r\n{}",
    POST + b"Content-Length: +2\r\n\r\n{}",
    POST + b"Content-Length: -2\r\n\r\n{}",
    POST + b"Content-Length: 0x2\r\n\r\n{}",
    POST + b"Content-Length: 99999999999999999999\r\n\r\n{}",
    POST + b"Content-Length:\r\n 2\r\n\r\n{}",
    POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    POST + b"X: y\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    POST + b"X: y\rContent-Length: 2\r\n\r\n{}",
    POST + b"X\0Y: a\r\n\r\n",
    POST + b"X: a\0b\r\n\r\n",
    POST + b"no colon\r\n\r\n",
    POST + b": no name\r\n\r\n",
    POST + b"Host: other\r\n\r\n",
    b"POST /api/v1/echo/x HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /api/v1/echo/x HTTP/1.1\r\n\r\n",
    b"POST /api/v1/echo/x HTTP/1.1\nHost: localhost\n\n",
    b"POST /api/v1/echo/x HTTP/1.1 \r\n" + HOST + b"\r\n",
    b"POST  /api/v1/echo/x HTTP/1.1\r\n" + HOST + b"\r\n",
    b"POST /api/v1/echo/x\0y HTTP/1.1\r\n" + HOST + b"\r\n",
    b"POST /api/v1/echo/x HTTP/1.2\r\n" + HOST + b"\r\n",
    b"POST /api/v1/echo/x\r\n\r\n",
    b"\r\n\r\nPOST /api/v1/echo/x HTTP/1.1\r\n" + HOST + b"\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
])
def test_ambiguous_requests(server, head):
    server.send(head + SMUGGLED).expect_error(400, "invalid request")


def test_one_request_a_connection(make_server):
    """A pipelined second request is not looked at: it could be one that the first one's sender smuggled in."""
    server = make_server()
    answer = server.send(request("GET", X) + SMUGGLED)
    assert (answer.status, answer.closed, answer.rest) == (200, True, b"")
    assert answer.headers["connection"] == "close"
    answer = server.send(request("POST", X, "Content-Length: 2", body=b"{}" + SMUGGLED))
    assert (answer.status, answer.closed, answer.rest) == (201, True, b"")
    assert "victim" not in server.stop()


def test_chunked_body(server):
    answer = server.send(request("POST", X, "Transfer-Encoding: chunked",
                                 body=b'3\r\n{"a\r\n1;x=y\r\n"\r\n4\r\n: 1}\r\n0\r\nX-Trailer: a\r\n\r\n'))
    assert answer.status == 201 and answer.json["body"] == {"a": 1}


@pytest.mark.parametrize("chunk", [b"zz\r\n{}\r\n0\r\n\r\n", b"0x2\r\n{}\r\n0\r\n\r\n", b"-2\r\n{}\r\n0\r\n\r\n",
                                   b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n", b"2\r\n{}XX0\r\n\r\n"])
def test_broken_chunks(server, chunk):
    """The one thing that the library answers by itself, and in HTML; it closes."""
    answer = server.send(request("POST", X, "Transfer-Encoding: chunked", body=chunk + SMUGGLED))
    assert answer.status in (400, 413) and answer.closed and answer.rest == b""


# ---- paths

@pytest.mark.parametrize("segment, name", [
    ("a%2Fb", "a/b"), ("a%2fb%2F..", "a/b/.."), ("%2E%2E", ".."), ("..", ".."), ("a%3Fx=1", "a?x=1"),
    ("%C3%A9%20%2B+", "\u00e9 ++"), ("a%25", "a%"), ("%252F", "%2F"), ("a;b=c,d:e@f", "a;b=c,d:e@f"),
])
def test_names_in_paths(server, segment, name):
    assert server.send(request("GET", f"/api/v1/echo/{segment}")).json["name"] == name


def test_raw_utf8_in_a_path(server):
    answer = server.send("GET /api/v1/echo/B\u00fcro HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert answer.json["name"] == "B\u00fcro"


@pytest.mark.parametrize("target", ["/api/v1/echo/a%00b", "/api/v1/echo/%", "/api/v1/echo/%4", "/api/v1/echo/%zz",
                                    "/api/v1/echo/%ff", "/api/v1/echo/%C0%AF", "/api/v1/echo/%0A", "/api/v1/echo/a#b",
                                    "/api/v1/echo/x?x", "/api/v1/echo/x?x=1&x=2", "/api/v1/echo/x?x=%00",
                                    "/api/v1/echo/x?y=1", "*", "api/v1/echo/x", "http://localhost"])
def test_bad_targets(server, target):
    server.send(request("GET", target)).expect_error(400)


@pytest.mark.parametrize("target", ["/", "/api/v1", "/api/v1/echo", "/api/v1/echo/a/b", "/api/v1%2Fecho/x",
                                    "/api/v1/../v1/echo/x", "//api/v1/echo/x", "/API/v1/echo/x", "/favicon.ico",
                                    "/a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p"])
def test_unknown_paths(server, target):
    server.send(request("GET", target)).expect_error(404, "not found")


def test_absolute_form(server):
    assert server.send(request("GET", f"http://localhost{X}?x=1")).json["x"] == "1"


def test_exact_path_before_a_parameter(server):
    assert server.send(request("GET", "/api/v1/backups/stats")).json == {"stats": True}
    answer = server.send(request("DELETE", "/api/v1/backups/stats"))
    answer.expect_error(405)
    assert answer.headers["allow"] == "GET, HEAD"


def test_missing_id(server):
    server.send(request("POST", "/api/v1/backups//complete", "Content-Length: 0")).expect_error(400,
                                                                                                "missing backup_id")


# ---- methods

@pytest.mark.parametrize("method", ["PUT", "OPTIONS", "TRACE", "BREW", "get", "M-SEARCH"])
def test_unknown_methods(server, method):
    answer = server.send(request(method, X))
    answer.expect_error(405, "method not allowed")
    assert answer.headers["allow"] == "GET, HEAD, POST"


def test_head(server):
    answer = server.send(request("HEAD", X), with_body=False)
    assert (answer.status, answer.rest) == (200, b"")
    assert int(answer.headers["content-length"]) == len(server.send(request("GET", X)).body) + len("HEAD") - len("GET")
    assert server.send(request("HEAD", "/api/v1/none"), with_body=False).status == 404
    stream = server.send(request("HEAD", "/api/v1/events?n=5"), with_body=False)
    assert stream.headers["content-type"] == "text/event-stream" and stream.rest == b""


def test_http_1_0(server):
    assert server.send(f"GET {X} HTTP/1.0\r\n\r\n".encode()).status == 200


# ---- bodies

def post(server, body, path=X, *lines):
    return server.send(request("POST", path, f"Content-Length: {len(body)}", *lines, body=body))


def test_body_at_the_ceiling(server):
    body = b'{"a": "' + b"a" * ((1 << 20) - 9) + b'"}'
    assert len(body) == 1 << 20
    answer = post(server, body)
    assert answer.status == 201 and len(answer.json["body"]["a"]) == (1 << 20) - 9


@pytest.mark.parametrize("n", [(1 << 20) + 1, 8 << 20, 40 << 20])
def test_body_too_large(server, n):
    """The answer arrives although the client sends on."""
    post(server, b"a" * n).expect_error(413, "request too large")


def test_announced_body_too_large(server):
    server.send(request("POST", X, f"Content-Length: {1 << 40}")).expect_error(413)
    server.send(request("POST", X, f"Content-Length: {1 << 40}", "Expect: 100-continue")).expect_error(413)


@pytest.mark.parametrize("n", [(1 << 20) + 1, 8 << 20])
def test_chunked_body_too_large(server, n):
    server.send(request("POST", X, "Transfer-Encoding: chunked",
                        body=b"%x\r\n" % n + b"a" * n + b"\r\n0\r\n\r\n")).expect_error(413, "request too large")


def test_expect_continue(server):
    with raw.connect(server.port) as s:
        s.sendall(request("POST", X, "Expect: 100-continue", "Content-Length: 2"))
        assert s.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        s.sendall(b"{}")
        assert raw.parse(*raw.receive(s)).status == 201


@pytest.mark.parametrize("body", [
    b"", b" ", b"x", b"{", b"[]", b"1", b'"a"', b"null", b"{} x", b'{"a":1,}', b"{'a':1}", b'{"a":NaN}',
    b'{"a":1,"a":2}', b'{"a":{"b":1,"b":1}}', b'{"a":"\\u0000"}', b'{"\\u0000":1}', b'{"a":"\0"}', b'{"a":"\xff"}',
    b'{"a":"\xc0\xaf"}', b'{"a":"\\ud800"}', b'\xef\xbb\xbf{}', b'{"a":01}', b'{"a":1e999}',
    b'{"a":123456789012345678901234567890}', b'{"a":' + b"[" * 100 + b"]" * 100 + b"}",
    b'{"a":' * 33 + b"1" + b"}" * 33, b"[" * 1_000_000, b'{"a":' * 200_000,
])
def test_bad_json(server, body):
    post(server, body).expect_error(400, "invalid request body")


def test_exact_integers(server):
    answer = post(server, b'{"a": 9007199254740993, "b": 9223372036854775807}')
    assert answer.json["body"] == {"a": 9007199254740993, "b": 9223372036854775807}


def test_wrong_types(server):
    path = "/api/v1/backups/b/complete"
    post(server, b'{"change_id": 1}', path).expect_error(400, "invalid request body")
    assert post(server, b'{"change_id": "a", "more": 1}', path).status == 200


def test_body_where_none_is_taken(server):
    for method, path in (("GET", X), ("DELETE", "/api/v1/backups/b"), ("POST", "/api/v1/backups/b/cancel")):
        for body, status in ((b"hello", 400), (b'{"a": 1}', 400), (b"[]", 400), (b"{}", None), (b"", None)):
            answer = server.send(request(method, path, f"Content-Length: {len(body)}", body=body))
            assert answer.status == (status or (200 if method == "GET" else 202)), (method, body, answer)


# ---- headers

def test_long_url(server):
    name = "a" * 8000
    assert server.send(request("GET", f"/api/v1/echo/{name}")).json["name"] == name
    for n in (8192, 9000, 40_000, 100_000, 1_000_000):
        server.send(request("GET", "/api/v1/echo/" + "a" * n)).expect_error(414, "URL too long")


def test_many_and_long_headers(server):
    assert server.send(request("GET", X, *["X-A: " + "a" * 100] * 99)).status == 200
    server.send(request("GET", X, *["X-A: a"] * 100)).expect_error(431, "request headers too large")
    for n in (17_000, 60_000, 1_000_000):
        server.send(request("GET", X, "X-A: " + "a" * n)).expect_error(431)
        server.send(request("GET", X, *["X-A: a"] * (n // 8))).expect_error(431)


def test_tokens(server):
    assert post(server, b"{}", X, "Authorization: Bearer abc").json["token"] is True
    assert post(server, b"{}", X).json["token"] is False
    for value in ("Basic YTpi", "Bearer", "Bearer a b", "Bearer " + "a" * 2000, ""):
        post(server, b"{}", X, f"Authorization: {value}").expect_error(403)
    post(server, b"{}", X, "Authorization: Bearer a", "Authorization: Bearer a").expect_error(400)


def test_other_origins(server):
    for origin in ("http://evil.example", "null", "http://localhost.evil.example"):
        post(server, b"{}", X, f"Origin: {origin}").expect_error(403, "origin not accepted")
    assert post(server, b"{}", X, "Origin: http://localhost").status == 201


def test_names_of_strangers(server):
    """A page whose name its DNS pointed at 127.0.0.1 was taken for a page of the hub's own."""
    for method in ("GET", "POST"):
        request_ = f"{method} {X} HTTP/1.1\r\nHost: evil.example:8082\r\nOrigin: http://evil.example:8082\r\n\r\n"
        server.send(request_.encode()).expect_error(403, "host not accepted")
    for name in ("localhost:1", "127.0.0.1", "[::1]:8082", socket.gethostname()):
        assert server.send(f"GET {X} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode()).status == 200


def test_answers_have_their_headers(server):
    for target in (X, "/api/v1/none"):
        answer = server.send(request("GET", target))
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-type"] == "application/json"


# ---- errors of handlers

def test_every_error_code(server):
    """Also with a message that was cut inside a character, and holds bytes that are none."""
    statuses = set()
    for code in range(1, 21):
        answer = server.send(request("GET", f"/api/v1/error?code={code}"))
        answer.expect_error(answer.status)
        assert answer.json["details"] == f"details of {code}: \u00e9, ?, \n, ", answer.json
        statuses.add(answer.status)
    assert {400, 401, 403, 404, 405, 409, 413, 422, 500, 501, 502, 503, 504, 507} <= statuses


# ---- slow and vanishing clients

def drip(server, data, pause, seconds):
    """Sends a byte at a time; (answer or b"", seconds until the server closed)."""
    start = time.monotonic()
    with raw.connect(server.port) as s:
        for at in range(len(data)):
            try:
                s.sendall(data[at:at + 1])
            except OSError:
                break
            s.settimeout(pause)
            try:
                if (got := s.recv(1, socket.MSG_PEEK)) is not None:
                    break
            except TimeoutError:
                pass
            assert time.monotonic() - start < patience(seconds), "the server waits for ever"
        s.settimeout(patience(5))
        data, _ = raw.receive(s)
    return data and raw.parse(data), time.monotonic() - start


def test_slow_head(server):
    answer, seconds = drip(server, b"GET / HTTP/1.1\r\nX-A: " + b"a" * 1000, 0.1, 8)
    answer.expect_error(408)
    assert 2.5 < seconds < patience(6)


def test_slow_body(server):
    answer, seconds = drip(server, request("POST", X, "Content-Length: 1000") + b"a" * 1000, 0.01, 12)
    assert answer == b"" and 2.5 < seconds < patience(10)


def test_head_in_single_bytes(server):
    with raw.connect(server.port) as s:
        for byte in request("GET", X):
            s.sendall(bytes([byte]))
        assert raw.parse(*raw.receive(s)).status == 200


def test_silent_connections_are_ended(server):
    with raw.connect(server.port) as s:
        start = time.monotonic()
        assert raw.receive(s) == (b"", True)
        assert 2.5 < time.monotonic() - start < patience(6)


def test_half_closed_connection(server):
    with raw.connect(server.port) as s:
        s.sendall(request("GET", X))
        s.shutdown(socket.SHUT_WR)
        assert raw.parse(*raw.receive(s)).status == 200


def test_vanishing_clients(server):
    ok(server)
    threads, descriptors = server.threads(), server.descriptors()
    for data in (b"", b"GET", request("GET", X), request("POST", X, "Content-Length: 10", body=b"{"),
                 request("GET", "/api/v1/large?bytes=30000000"), request("GET", "/api/v1/events?n=1000"),
                 request("GET", "/api/v1/events")):
        for _ in range(5):
            s = raw.connect(server.port)
            s.sendall(data)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            s.close()   # with a reset
    ok(server)
    until = time.monotonic() + patience(15)
    while server.threads() > threads or server.descriptors() > descriptors:
        assert time.monotonic() < until, (server.threads(), server.descriptors())
        time.sleep(0.1)


def test_too_many_connections(make_server):
    server = make_server("--max-connections", "8")
    streams = []
    for _ in range(8):
        s = raw.connect(server.port)
        s.sendall(request("GET", "/api/v1/events"))
        s.recv(1)
        streams.append(s)
    server.send(request("GET", X)).expect_error(503)
    streams.pop().close()
    until = time.monotonic() + patience(20)     # a heartbeat notices
    while server.send(request("GET", X)).status != 200:
        assert time.monotonic() < until
        time.sleep(0.2)
    for s in streams:
        s.close()


def test_idle_connections_do_not_keep_others_out(make_server):
    server = make_server("--max-connections", "50", "--request-timeout", "1000")
    idle = [raw.connect(server.port) for _ in range(200)]
    time.sleep(2)
    ok(server)
    for s in idle:
        s.close()


@pytest.mark.parametrize("part", [b"GET / HTTP/1.1\r\nX-Slow: ", request("POST", X, "Content-Length: 10", body=b"{")],
                         ids=["heads", "bodies"])
def test_requests_that_never_end_do_not_keep_others_out(make_server, part):
    """Whoever opened as many as there is room for kept everybody out until their time was over, and again."""
    server = make_server("--max-connections", "8", "--request-timeout", str(int(patience(60) * 1000)))
    descriptors, hanging = server.descriptors(), []
    for _ in range(8):
        hanging.append(raw.connect(server.port))
        hanging[-1].sendall(part)
    wait_for(lambda: server.descriptors() == descriptors + 8, "the connections")
    until = time.monotonic() + patience(20)

    def is_let_in():
        with contextlib.suppress(OSError):
            answer = server.send(request("GET", X))
            return answer and answer.status == 200      # or closed without a word, or 503
        return False

    while not is_let_in():
        assert time.monotonic() < until, "nobody gets in"
        time.sleep(0.1)
    for s in hanging:
        s.close()


def test_many_at_once(server):
    failures = []

    def work():
        for n in range(30):
            answer = server.send(request("GET", f"/api/v1/echo/{n}"))
            if answer.status != 200 or answer.json["name"] != str(n):
                failures.append(answer)

    workers = [threading.Thread(target=work) for _ in range(16)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert not failures


def test_large_answer(server):
    answer = server.send(request("GET", "/api/v1/large?bytes=20000000"), timeout=30)
    assert len(answer.json["text"]) == 20_000_000


# ---- streams and stopping

def test_stream(server):
    with raw.connect(server.port) as s:
        s.sendall(request("GET", "/api/v1/events?n=3"))
        data, closed = raw.receive(s)
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"text/event-stream" in head and b"chunked" in head and closed
    assert body.count(b"event: tick\n") == 3 and body.endswith(b"0\r\n\r\n")


def test_stream_that_fails_is_cut(server):
    with raw.connect(server.port) as s:
        s.sendall(request("GET", "/api/v1/events?n=3&fail=true"))
        data, _ = raw.receive(s)
    assert data.count(b"event: tick\n") == 3 and not data.endswith(b"0\r\n\r\n")


def test_heartbeat(server):
    with raw.connect(server.port) as s:
        start, data = time.monotonic(), b""
        s.sendall(request("GET", "/api/v1/events"))
        while b": heartbeat\n\n" not in data:
            data += s.recv(4096)
        assert 4 < time.monotonic() - start < patience(8)


def test_stop_ends_streams_and_lets_requests_finish(make_server):
    server = make_server("--stop-deadline", "60000")
    slow_ms = int(patience(4) * 1000)
    with raw.connect(server.port) as stream, raw.connect(server.port) as slow, raw.connect(server.port) as idle:
        stream.sendall(request("GET", "/api/v1/events"))
        stream.recv(1)
        slow.sendall(request("GET", f"/api/v1/slow?ms={slow_ms}"))
        assert server.process.stdout.readline() == "slow\n"     # it has it: a stop before would send it away
        server.terminate()
        assert raw.receive(stream)[1]
        assert raw.receive(idle) == (b"", True)

        def is_closed():
            try:
                raw.connect(server.port).close()
                return False
            except OSError:
                return True

        wait_for(is_closed, "nobody is let in any more")
        assert not select.select([slow], [], [], 0)[0], "all of that was before the slow one's end"
        assert raw.parse(*raw.receive(slow)).json == {"ms": slow_ms}
        out = server.stop()
    assert out.count("stream closed") == 1 and "stopped" in out


def test_stop_has_a_deadline(make_server):
    """A client that does not read its answer, and one that does not send its body, hold up nobody."""
    server = make_server("--stop-deadline", "500")
    with raw.connect(server.port) as lazy, raw.connect(server.port) as slow:
        slow.sendall(request("POST", X, "Content-Length: 100", body=b"{"))
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.sendall(request("GET", "/api/v1/large?bytes=60000000"))
        assert lazy.recv(1) == b"H"         # the handler is through: that one is waited for, however slow the machine
        start = time.monotonic()
        server.stop()
        assert time.monotonic() - start < patience(20)      # a body has 30 s, an answer that is not read 60


def test_the_log_has_one_line_a_request(make_server):
    server = make_server()
    server.send(request("GET", X))
    server.send(b"rubbish\r\n\r\n")
    server.send(request("GET", "/api/v1/none"))
    lines = [line for line in server.stop().splitlines() if line.startswith("done")]
    assert lines == [f"done 127.0.0.1 GET {X} 200 none", "done 127.0.0.1 rubbish  400 invalid",
                     "done 127.0.0.1 GET /api/v1/none 404 not_found"]


def test_json_of_errors_is_small(server):
    """A message that quotes the request does not grow with it."""
    answer = server.send(request("GET", "/" + "a" * 8000))
    assert len(answer.body) < 2000 and json.loads(answer.body)["error"] == "not found"
