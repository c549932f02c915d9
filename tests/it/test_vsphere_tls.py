"""Whom the client of vSphere trusts: a pinned certificate, a CA, and nobody else; nothing is sent before it does."""

import contextlib
import hashlib
import socket
import ssl
import subprocess
import threading

import pytest

from lib.vim_probe import Refused, VimProbe


class Certificate:
    """Self-signed, so that it is its own CA too."""

    def __init__(self, folder, name, alt="IP:127.0.0.1", days=2):
        self.pem, self.key = folder / f"{name}.pem", folder / f"{name}.key"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-days", str(days), "-subj", f"/O=ACME\x07/CN={name}.test", "-addext", f"subjectAltName={alt}",
                        "-keyout", self.key, "-out", self.pem], check=True, capture_output=True, timeout=60)
        self.sha256 = hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.pem.read_text())).hexdigest()


class Server:
    """Takes what it is sent, and answers that it knows nothing of it: without an answer it would be asked again, up to
    a time limit, and a short one was over before the handshake was. `heard`: what came through TLS, connection by
    connection."""

    def __init__(self, certificate):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.use(certificate)
        self.heard, self.listener = [], socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.serve)

    def use(self, certificate):
        self.context.load_cert_chain(certificate.pem, certificate.key)

    def serve(self):
        while True:
            plain, _ = self.listener.accept()
            with plain:
                plain.settimeout(30)
                first = plain.recv(1, socket.MSG_PEEK)
                if first == b"q":
                    return
                if first == b"s":
                    continue
                heard = b""
                try:
                    with self.context.wrap_socket(plain, server_side=True) as tls:
                        heard = tls.recv(65536)
                        tls.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                except OSError:
                    pass                # the client ended it
                self.heard.append(heard)

    def settle(self):
        """All connections until now were heard: they are taken one after the other."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as last:
            last.sendall(b"s")
            with contextlib.suppress(ConnectionResetError):     # it has not taken the byte
                last.recv(1)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as last:
            last.sendall(b"q")
        self.thread.join(30)
        self.listener.close()


@pytest.fixture
def certificate(place):
    return Certificate(place, "vcenter")


@pytest.fixture
def server(certificate):
    with Server(certificate) as running:
        yield running


@pytest.fixture
def attempt(place, server):
    """A login by these means: whether the server was trusted. What it has heard tells."""
    def login(host=None, **trust):
        server.heard.clear()
        probe = VimProbe(place, host or f"127.0.0.1:{server.port}", "backup", "secret", **trust)
        with pytest.raises(Refused) as refused:
            probe("about")
        server.settle()
        trusted = refused.value.title != "certificate not trusted"
        assert trusted == any(b"POST /sdk " in h for h in server.heard), (refused.value.details, server.heard)
        assert trusted or not b"".join(server.heard)
        assert not any(b"secret" in h for h in server.heard)    # it comes after the first answer
        return trusted
    return login


def test_by_thumbprint(attempt, certificate):
    pin = certificate.sha256
    assert attempt(thumbprint=pin)
    assert attempt(thumbprint=":".join(pin[i:i + 2] for i in range(0, 64, 2)).upper())
    wrong = ("0" if pin[0] != "0" else "1") + pin[1:]
    assert not attempt(thumbprint=wrong)
    assert not attempt(thumbprint=wrong, ca=certificate.pem)    # the thumbprint alone decides


def test_by_ca(attempt, certificate, place, server):
    other = Certificate(place, "other")
    assert attempt(ca=certificate.pem)
    assert not attempt(ca=other.pem)
    assert not attempt()                                        # nor do the system's CAs know it
    assert not attempt(host=f"localhost:{server.port}", ca=certificate.pem)     # it does not name that host
    assert attempt(host=f"localhost:{server.port}", thumbprint=certificate.sha256)


def test_a_certificate_that_is_exchanged(attempt, certificate, place, server):
    assert attempt(thumbprint=certificate.sha256)
    server.use(Certificate(place, "renewed"))
    assert not attempt(thumbprint=certificate.sha256)


def test_looking_at_a_certificate_sends_nothing(certificate, place, server):
    shown = VimProbe(place, f"127.0.0.1:{server.port}", "backup", "secret")("certificate")
    assert shown["sha256"].replace(":", "").lower() == certificate.sha256
    assert "\x07" not in shown["subject"] and shown["subject"].startswith("CN=vcenter.test")
    assert 0 < shown["not_after"] - shown["not_before"] <= 2 * 86400 + 60


def test_no_tls_there(place):
    with socket.create_server(("127.0.0.1", 0)) as plain:
        def answer():
            connection, _ = plain.accept()
            with connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Refused) as refused:
            VimProbe(place, "127.0.0.1:%d" % plain.getsockname()[1], "backup", "secret")("certificate")
        thread.join(30)
    assert refused.value.code == "unavailable"
