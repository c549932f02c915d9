"""TLS to MariaDB, with a CA of the test's own. docs/internals/mariadb.md."""

import socket
import struct
import subprocess
import threading

import pytest

from lib.history import wait_for
from lib.mariadb import MISSING, NAME, PASSWORD, USER, MariaDb
from test_mariadb import hub_says

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no MariaDB here: {', '.join(MISSING)} missing")


class Certificates:
    """A CA, another one, and what the first signed: for localhost and 127.0.0.1, and for somebody else."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        for name in ("ca", "stranger"):
            self._run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", self.of(name, "key"), "-out",
                      self.of(name), "-days", "30", "-subj", f"/CN={name}")
        self._run("req", "-newkey", "rsa:2048", "-nodes", "-keyout", self.of("server", "key"), "-out",
                  self.of("server", "csr"), "-subj", "/CN=database")
        self._sign("server", "DNS:localhost,IP:127.0.0.1")
        self._sign("other", "DNS:elsewhere.example")

    def of(self, name, kind="pem"):
        return self.folder / f"{name}.{kind}"

    def _run(self, *arguments):
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)

    def _sign(self, name, names):
        self.of(name, "ext").write_text(f"subjectAltName={names}\n")
        self._run("x509", "-req", "-in", self.of("server", "csr"), "-CA", self.of("ca"), "-CAkey", self.of("ca", "key"),
                  "-CAcreateserial", "-days", "30", "-out", self.of(name), "-extfile", self.of(name, "ext"))

    def options(self, name):
        return [f"--ssl-cert={self.of(name)}", f"--ssl-key={self.of('server', 'key')}"]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("tls") / "certificates")


@pytest.fixture(scope="module")
def mariadb(tmp_path_factory, certificates):
    with MariaDb(tmp_path_factory.mktemp("server") / "mariadb", certificates.options("server")) as made:
        yield made


@pytest.fixture
def server(mariadb):
    mariadb.sql(f"DROP DATABASE {NAME}; CREATE DATABASE {NAME}")
    return mariadb


def works(server, make_hub, *options, **other):
    hub = make_hub(options=[*server.options(**other), *options])
    assert hub.api.get("/health").expect(200)["database"] == "mariadb"
    hub.stop()


def test_a_certificate_that_is_right(server, make_hub, certificates):
    """The server takes nothing else: so the connection was encrypted. By name and by address; by the system's CAs."""
    server.sql(f"ALTER USER {USER}@'%' REQUIRE SSL")
    try:
        works(server, make_hub, f"--db-tls-ca={certificates.of('ca')}")
        works(server, make_hub, f"--db-tls-ca={certificates.of('ca')}", host="127.0.0.1")
        works(server, make_hub, "--db-tls=unverified")
        hub = make_hub(start=False, options=[*server.options(), "--db-tls=required"],
                       environment={"SSL_CERT_FILE": str(certificates.of("ca"))})
        hub.start()
        hub.stop()
    finally:
        server.sql(f"ALTER USER {USER}@'%' REQUIRE NONE")


def test_a_certificate_that_is_not(server, place, certificates):
    """Of a CA that nobody named, or not for this host: said, with what to do, and no password leaves us."""
    def refused(*options, **other):
        said = hub_says(place, [*server.options(**other), *options])
        assert "TLS/SSL error" in said and "HINT: db-tls-ca" in said and "db-tls = unverified or off" in said, said
        return said

    assert "issuer" in refused("--db-tls=required")
    assert "issuer" in refused(f"--db-tls-ca={certificates.of('stranger')}")
    assert "Validation" in refused(f"--db-tls-ca={certificates.of('ca')}", host="0.0.0.0")
    assert "no certificate" in refused(f"--db-tls-ca={certificates.of('ca', 'key')}")
    assert "/no-such-file" in hub_says(place, [*server.options(), "--db-tls-ca=/no-such-file"])


def test_a_certificate_of_another_host(place, certificates):
    with MariaDb(place / "wrong", certificates.options("other")) as server:
        said = hub_says(place, [*server.options(), f"--db-tls-ca={certificates.of('ca')}"])
        assert "Validation" in said and "a name or address that is in it" in said, said


def test_a_server_without_tls(place, make_hub):
    """The connector itself goes on in the clear where TLS is said without a look at the certificate."""
    with MariaDb(place / "plain") as server:
        assert "HINT" in hub_says(place, [*server.options(), "--db-tls=required"])
        assert "the server has no TLS; HINT" in hub_says(place, [*server.options(), "--db-tls=unverified"])
        # another machine, as far as its name tells: in the clear only if that is said
        said = hub_says(place, server.options(host="0.0.0.0"))
        assert "SSL is required" in said and "off" in said, said
        works(server, make_hub, host="0.0.0.0", tls="off")
        server.sql(f"DROP DATABASE {NAME}; CREATE DATABASE {NAME}")
        works(server, make_hub)


def test_a_certificate_that_is_replaced_while_the_hub_runs(place, make_hub, certificates):
    """It is looked at whenever the hub connects: 503 that says why, and all is well once the right one is back."""
    with MariaDb(place / "wrong", certificates.options("server")) as server:
        hub = make_hub(options=[*server.options(), f"--db-tls-ca={certificates.of('ca')}"])
        for name, status in (("other", 503), ("server", 200)):
            server.stop()
            server.more = certificates.options(name)
            server.start()
            answer = hub.api.get("/backups").expect(status)
            assert status == 200 or "TLS/SSL error: Validation" in answer["details"], answer
        hub.stop()


def test_settings_that_do_not_fit(server, place, certificates):
    for options, word in ((["--db-tls=maybe"], "required, unverified or off"),
                          (["--db-tls=off", f"--db-tls-ca={certificates.of('ca')}"], "goes with --db-tls required"),
                          (["--db-host=/run/x", "--db-tls=required"], "no TLS over it")):
        assert word in hub_says(place, [*server.options(), *options])
    assert "--db-host" in hub_says(place, ["--db-tls=required"])


# ---- a server that asks for the password as it is

class Thief:
    """Speaks the protocol as far as the password: then it asks for it by another method."""

    def __init__(self, method):
        self.method, self.heard = method, b""
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join()

    def _serve(self):
        try:
            connection, _ = self.socket.accept()
        except OSError:
            return
        with connection:
            connection.settimeout(20)
            low, high = 0xa28d, 0x00bf      # protocol 4.1, secure connection; other methods, by name
            self._send(connection, 0, b"\x0a5.5.5-10.11.0-MariaDB\0" + struct.pack("<I", 7) + b"abcdefgh\0" +
                       struct.pack("<HBHHB", low, 33, 2, high, 21) + bytes(10) + b"ijklmnopqrst\0" +
                       b"mysql_native_password\0")
            try:
                self.heard += connection.recv(65536)
                self._send(connection, 2, b"\xfe" + self.method + b"\0" + b"password: \0")
                while more := connection.recv(65536):
                    self.heard += more
            except OSError:
                pass

    @staticmethod
    def _send(connection, number, payload):
        connection.sendall(struct.pack("<I", len(payload))[:3] + bytes([number]) + payload)


@pytest.mark.parametrize("method", [b"mysql_clear_password", b"dialog", b"caching_sha2_password"])
def test_the_password_never_travels_as_it_is(server, place, method):
    """The connector gives it to whoever asks in the right words; so it is held to methods that do not."""
    with Thief(method) as thief:
        said = hub_says(place, server.options(host="127.0.0.1", port=thief.port, tls="off"))
        wait_for(lambda: USER.encode() in thief.heard, "the hub came")
    assert PASSWORD.encode() not in thief.heard, thief.heard
    assert "in a way by which it might be read" in said and "HINT: db-tls = required" in said, said
