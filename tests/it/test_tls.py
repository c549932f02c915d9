"""TLS on the hub's one port, and NBD through it (docs/internals/wire.md)."""

import contextlib
import hashlib
import os
import random
import re
import shutil
import socket
import ssl
import stat
import subprocess

import pytest

from lib import raw, traffic, unpacked
from lib.cli import Cli
from lib.elsewhere import Elsewhere
from lib.history import wait_for
from lib.hub import BIN, ROOT, HubError, free_port
from lib.job import change_id, disk
from lib.patience import patience
from lib.raw import HOST, request
from lib.world import MIB, World
from test_http_hardening import Server, X

CLIENT = BIN / "sendense-backup-client"
HEALTH = "/api/v1/health"
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def trusting_all():
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def open_tls(port, context=None, host="127.0.0.1"):
    plain = socket.create_connection((host, port), timeout=patience(10))
    return (context or trusting_all()).wrap_socket(plain, server_hostname="localhost")


def exchange(port, data, context=None):
    with open_tls(port, context) as s:
        s.sendall(data)
        got, closed = raw.receive(s)
    return raw.parse(got, closed) if got else b""


def thumbprint(port):
    with open_tls(port) as s:
        digest = hashlib.sha256(s.getpeercert(binary_form=True)).hexdigest().upper()
    return ":".join(digest[i:i + 2] for i in range(0, 64, 2))


def openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True, check=True)


class Ca:
    """A CA of the test's own."""

    def __init__(self, folder, name="ca"):
        self.key, self.pem, self.folder = folder / f"{name}.key", folder / f"{name}.pem", folder
        openssl("req", "-x509", *NEW_KEY, "-subj", f"/CN={name}", "-keyout", self.key, "-out", self.pem, "-days", "2")

    def sign(self, name, alternatives):
        """(certificate, key)"""
        key, csr, pem, extensions = (self.folder / f"{name}.{end}" for end in ("key", "csr", "pem", "ext"))
        openssl("req", *NEW_KEY, "-subj", f"/CN={name}", "-keyout", key, "-out", csr)
        extensions.write_text(f"subjectAltName={alternatives}\n")
        openssl("x509", "-req", "-in", csr, "-CA", self.pem, "-CAkey", self.key, "-CAcreateserial", "-days", "1",
                "-extfile", extensions, "-out", pem)
        key.chmod(0o600)
        return pem, key


@pytest.fixture
def echo(tmp_path):
    servers = []

    def make(*options):
        servers.append(Server("--tls", str(tmp_path / "echo.pem"), *options))
        return servers[-1]

    yield make
    for server in servers:
        server.process.kill()
        server.process.wait()
        server.process.stdout.close()


@pytest.fixture
def elsewhere():
    machine = Elsewhere()
    yield machine
    machine.remove()


# ---- the port

def test_both_protocols_on_one_port(make_hub):
    hub = make_hub()
    plain = hub.api.get("/health").expect(200)
    secret = exchange(hub.port, request("GET", HEALTH)).json
    assert plain["tls_thumbprint"] == secret["tls_thumbprint"] == thumbprint(hub.port)
    assert thumbprint(hub.port) in hub.log
    path = hub.data / "tls.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and "PRIVATE KEY" not in hub.log
    before = path.read_bytes()
    hub.stop()
    hub.start()
    assert path.read_bytes() == before and thumbprint(hub.port) == plain["tls_thumbprint"]


def test_without_tls(make_hub):
    hub = make_hub(options=["-tls=false"])
    assert hub.api.get("/health").expect(200)["tls_thumbprint"] is None
    assert not (hub.data / "tls.pem").exists()
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        open_tls(hub.port)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_versions(hub, version):
    context = trusting_all()
    context.minimum_version = context.maximum_version = version
    with open_tls(hub.port, context) as s:
        name, protocol, _ = s.cipher()
        assert "GCM" in name and protocol == {ssl.TLSVersion.TLSv1_2: "TLSv1.2"}.get(version, "TLSv1.3"), s.cipher()
        if version == ssl.TLSVersion.TLSv1_3:
            assert name == "TLS_AES_128_GCM_SHA256"


def test_old_versions_and_weak_ciphers_are_refused(hub):
    # the last is what would be taken, were it not for the version or the cipher before it
    for version, ciphers, fine in (("-tls1_1", "ALL:@SECLEVEL=0", False), ("-tls1_2", "AES128-SHA:AES256-SHA", False),
                                   ("-tls1_2", "AES128-GCM-SHA256", False), ("-tls1_2", "ALL:@SECLEVEL=0", True)):
        done = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{hub.port}", version, "-cipher", ciphers],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience(20),
                              check=False)
        assert ("Cipher is ECDHE" in done.stdout) == fine, (version, ciphers, done.stdout)
    hub.api.get("/health").expect(200)


def test_the_guard_stands_behind_tls(echo):
    server = echo()
    smuggled = request("POST", X, "Content-Length: 2", "Transfer-Encoding: chunked", body=b"{}")
    exchange(server.port, smuggled).expect_error(400)
    exchange(server.port, b"GET /api/v1/echo/a\x00b HTTP/1.1\r\n" + HOST + b"\r\n").expect_error(400)
    answer = exchange(server.port, request("GET", X) + request("GET", X))
    assert answer.status == 200 and answer.closed and answer.rest == b""
    assert exchange(server.port, request("GET", "/api/v1/echo/b")).json["remote"] == "127.0.0.1"


def test_large_bodies_both_ways(echo):
    server = echo()
    text = "x" * 1000000
    body = ('{"a":"' + text + '"}').encode()
    answer = exchange(server.port, request("POST", X, "Content-Type: application/json", f"Content-Length: {len(body)}",
                                           body=body))
    assert answer.status == 201 and answer.json["body"]["a"] == text
    answer = exchange(server.port, request("GET", "/api/v1/large?bytes=20000000"))
    assert answer.status == 200 and len(answer.body) >= 20000000
    # refused in the middle of what it sends: it sees the answer all the same
    body = b"x" * 3000000
    exchange(server.port, request("POST", X, f"Content-Length: {len(body)}", body=body)).expect_error(413)


def test_handshakes_that_never_end(echo):
    """Neither they nor heads that never end keep anybody out, and all are sent away."""
    server = echo("--request-timeout", str(int(patience(6) * 1000)))
    idle = server.descriptors()
    heads = [open_tls(server.port) for _ in range(10)]
    for s in heads:
        s.sendall(b"GET / HTTP/1.1\r\n")
    waiting = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
    for i, s in enumerate(waiting):
        s.sendall(b"\x16\x03\x01\x02\x00\x01"[:1 + i % 6])
    assert exchange(server.port, request("GET", X)).status == 200
    for s in heads:
        got, _ = raw.receive(s)
        raw.parse(got).expect_error(408)
        s.close()
    for s in waiting:
        s.settimeout(patience(20))
        with s:
            try:
                assert s.recv(100) == b""
            except ConnectionResetError:
                pass
    wait_for(lambda: server.descriptors() <= idle + 1, "all connections are closed", 20)
    assert exchange(server.port, request("GET", X)).status == 200


def test_too_many(echo):
    server = echo("--max-connections", "2", "--request-timeout", "60000")
    streams = [open_tls(server.port) for _ in range(2)]
    for s in streams:
        s.sendall(request("GET", "/api/v1/events"))     # without an end: nothing outruns us

    def is_refused():
        # while the two are at the door still, there is no place there, and it is closed without a word
        with contextlib.suppress(OSError, AttributeError):      # ssl's errors are OSErrors; no answer has no status
            return exchange(server.port, request("GET", X)).status == 503
        return False

    wait_for(is_refused, "the third is refused")
    for s in streams:
        assert s.recv(100).startswith(b"HTTP/1.1 200 ")
        s.close()


def test_garbage(hub):
    for sent in (b"\x16", b"\x16" + b"\xff" * 4000, b"\x16\x03\x01\x00\x05hello", b"\x15\x03\x01\x00\x02\x02\x28"):
        with raw.connect(hub.port) as s:
            s.sendall(sent)
            s.shutdown(socket.SHUT_WR)
            try:
                raw.receive(s)
            except ConnectionResetError:
                pass
    hub.api.get("/health").expect(200)
    assert exchange(hub.port, request("GET", HEALTH)).status == 200 and hub.running


def test_a_stop_ends_connections_with_tls(make_hub):
    hub = make_hub()
    waiting = [open_tls(hub.port) for _ in range(5)]
    hub.stop()      # asserts that it ends in time, with 0
    for s in waiting:
        assert raw.receive(s)[0] == b""
        s.close()


# ---- other machines

def test_other_machines_need_tls(make_hub, elsewhere):
    hub = make_hub(auth=True, options=["--listen", "0.0.0.0"])
    url = f"{elsewhere.here}:{hub.port}{HEALTH}"
    refused = elsewhere.run("curl", "-s", "-w", "%{http_code}", f"http://{url}")
    assert refused.stdout.endswith("403") and '"error":"not encrypted"' in refused.stdout, refused
    assert elsewhere.run("curl", "-sk", "-w", "%{http_code}", f"https://{url}").stdout.endswith("200")
    # a program of this machine, by the address that others use
    assert hub.api.get("/health").status == 200
    here = subprocess.run(["curl", "-s", "-w", "%{http_code}", f"http://{url}"], capture_output=True, text=True,
                          check=False)
    assert here.stdout.endswith("200"), here


def test_without_tls_other_machines_come_as_they_are_and_get_no_blocks(make_hub, elsewhere):
    hub = make_hub(auth=True, options=["--listen", "0.0.0.0", "-tls=false"])
    assert "without TLS" in hub.log
    url = f"http://{elsewhere.here}:{hub.port}/api/v1"
    assert elsewhere.run("curl", "-s", "-w", "%{http_code}", f"{url}/health").stdout.endswith("200")
    header = elsewhere_header(hub)
    refused = elsewhere.run("curl", "-s", "-w", "%{http_code}", "-H", header, "-H", "Connection: Upgrade", "-H",
                            "Upgrade: nbd", f"{url}/exports/x/nbd")
    assert refused.stdout.endswith("403") and "not encrypted" in refused.stdout, refused


def elsewhere_header(hub):
    """A file: no token in an argument."""
    path = hub.folder / "header"
    path.write_text(f"Authorization: Bearer {hub.admin_token}\n")
    return f"@{path}"


# ---- certificates

def test_a_certificate_that_is_given(make_hub, place, tmp_path):
    ca, other = Ca(tmp_path), Ca(tmp_path, "other")
    pem, key = ca.sign("hub", "DNS:localhost")
    hub = make_hub(auth=True, options=["--tls-cert", str(pem), "--tls-key", str(key)])
    assert not (hub.data / "tls.pem").exists()
    cli = Cli(f"https://localhost:{hub.port}", place)
    token = str(hub.data / "admin-token")
    refused = cli.run("login", "--token-file", token)
    assert refused.status == 1 and thumbprint(hub.port) in refused.err, refused
    cli.ok("login", "--token-file", token, environment={"SENDENSE_HUB_CA": str(ca.pem)})
    assert cli.run("repo", "list").status == 1, "the CA was for that call"
    cli.ok("repo", "list", environment={"SENDENSE_HUB_CA": str(ca.pem)})
    refused = cli.run("repo", "list", environment={"SENDENSE_HUB_CA": str(other.pem)})
    assert refused.status == 1 and "certificate not trusted" in refused.err
    assert "login" in refused.err and "--thumbprint" in refused.err     # no other command said what to do
    by_name = Cli(f"https://127.0.0.1:{hub.port}", place)
    assert "certificate not trusted" in by_name.run("repo", "list", environment={"SENDENSE_HUB_CA": str(ca.pem)}).err

    # renewed
    before = thumbprint(hub.port)
    ca.sign("hub", "DNS:localhost")
    assert thumbprint(hub.port) == before
    cli.ok("hub", "reload", environment={"SENDENSE_HUB_CA": str(ca.pem)})
    after = thumbprint(hub.port)
    assert after != before and after in hub.log
    # one that is half written: the old one stays
    whole = pem.read_text()
    pem.write_text(whole[:200])
    assert cli.run("hub", "reload", environment={"SENDENSE_HUB_CA": str(ca.pem)}).status == 1
    assert thumbprint(hub.port) == after
    pem.write_text(whole)


def test_certificates_that_are_no_good(make_hub, tmp_path):
    ca = Ca(tmp_path)
    pem, key = ca.sign("hub", "DNS:localhost")
    _, other = ca.sign("other", "DNS:localhost")

    def refused(*options):
        with pytest.raises(HubError) as e:
            make_hub("bad", options=options)
        return str(e.value)

    assert "go together" in refused("--tls-cert", str(pem))
    assert "exclude each other" in refused("--tls-cert", str(pem), "--tls-key", str(key), "-tls=false")
    assert str(other) in refused("--tls-cert", str(pem), "--tls-key", str(other))
    assert "nowhere" in refused("--tls-cert", str(pem), "--tls-key", str(tmp_path / "nowhere"))
    key.chmod(0o644)
    assert "every user can read it" in refused("--tls-cert", str(pem), "--tls-key", str(key))
    checked = subprocess.run([BIN / "sendense-hub", "--check-config", "--data-dir", tmp_path, "--tls-cert", pem,
                              "--tls-key", key], capture_output=True, text=True, check=False)
    assert checked.returncode != 0 and "every user can read it" in checked.stderr


def test_login_pins_the_certificate(make_hub, place):
    hub = make_hub(auth=True)
    cli = Cli(f"https://127.0.0.1:{hub.port}", place)
    token = str(hub.data / "admin-token")
    pin = thumbprint(hub.port)
    refused = cli.run("login", "--token-file", token)
    assert refused.status == 1 and f"--thumbprint {pin}" in refused.err, refused
    wrong = ("00" if not pin.startswith("00") else "11") + pin[2:]
    refused = cli.run("login", "--token-file", token, "--thumbprint", wrong)
    assert refused.status == 1 and "not the expected one" in refused.err, refused
    assert cli.run("login", "--token-file", token, "--thumbprint", "abc").status == 2
    assert "whoami" not in hub.log, "nothing was sent to a hub that was not trusted"
    cli.ok("login", "--token-file", token, "--thumbprint", pin.replace(":", "").lower())
    cli.ok("repo", "list")
    # another certificate under the same address
    hub.stop()
    (hub.data / "tls.pem").unlink()
    hub.start()
    refused = cli.run("repo", "list")
    assert refused.status == 1 and "not the expected one" in refused.err, refused
    assert thumbprint(hub.port) in refused.err


def test_a_kept_thumbprint_stays_until_another_is_given(make_hub, place):
    """A login without one forgot it, and went by the system's CAs."""
    hub = make_hub(auth=True)
    cli = Cli(f"https://127.0.0.1:{hub.port}", place)
    token = str(hub.data / "admin-token")
    cli.ok("login", "--token-file", token, "--thumbprint", thumbprint(hub.port))
    cli.ok("login", "--token-file", token)
    cli.ok("repo", "list")
    hub.stop()
    (hub.data / "tls.pem").unlink()
    hub.start()
    refused = cli.run("login", "--token-file", token)
    assert refused.status == 1 and "not the expected one" in refused.err, refused
    cli.ok("login", "--token-file", token, "--thumbprint", thumbprint(hub.port))


def test_a_thumbprint_is_not_taken_for_what_has_none(make_hub, place):
    """Before, the token went out as it is, and the login said that all was well."""
    hub = make_hub(auth=True)
    cli = Cli(hub.url, place)
    refused = cli.run("login", "--token-file", hub.data / "admin-token", "--thumbprint", "00" * 32)
    assert refused.status == 2 and "https://" in refused.err, refused
    far = Cli("http://192.0.2.1:8082", place).run("repo", "list", environment={"SENDENSE_HUB_THUMBPRINT": "00" * 32})
    assert far.status == 2 and "https://" in far.err, far
    assert "whoami" not in hub.log


def test_a_ca_that_is_given_counts_alone(make_hub, place, tmp_path):
    """The system's CAs counted besides: here another one, in the folder that libcurl takes for them."""
    ours, other = Ca(tmp_path), Ca(tmp_path, "other")
    pem, key = other.sign("hub", "DNS:localhost")
    system = tmp_path / "system"
    system.mkdir()
    digest = subprocess.run(["openssl", "x509", "-hash", "-noout", "-in", other.pem], capture_output=True, text=True,
                            check=True).stdout.strip()
    shutil.copy(other.pem, system / f"{digest}.0")
    hub = make_hub(options=["--tls-cert", str(pem), "--tls-key", str(key)])
    cli = Cli(f"https://localhost:{hub.port}", place)
    environment = {"SENDENSE_HUB_CA": str(ours.pem), "SSL_CERT_DIR": str(system)}
    refused = cli.run("repo", "list", environment=environment)
    assert refused.status == 1 and "certificate not trusted" in refused.err, refused


def test_half_open_handshakes_leave_the_hub_its_descriptors(make_hub):
    """At the usual limit of 1024 a few hundred of them took all, and no backup could begin."""
    hub = make_hub()
    with open(f"/proc/{hub.process.pid}/limits", encoding="ascii") as f:
        limit = int(re.search(r"Max open files +(\d+)", f.read())[1])
    waiting = [raw.connect(hub.port) for _ in range(256)]
    for s in waiting:
        s.sendall(b"\x16")
    wait_for(lambda: len(os.listdir(f"/proc/{hub.process.pid}/fd")) > 512, "they are there", 20)
    assert limit > 3 * 1024 or limit > 2 * len(os.listdir(f"/proc/{hub.process.pid}/fd"))
    for s in waiting:
        s.close()
    wait_for(lambda: len(os.listdir(f"/proc/{hub.process.pid}/fd")) < 100, "they are gone", 20)
    hub.api.get("/health").expect(200)


def test_an_older_credentials_file(make_hub, place):
    """From before there were thumbprints: the URL's token alone."""
    hub = make_hub(auth=True)
    cli = Cli(hub.url, place)
    path = place / "credentials.json"
    path.write_text('{"%s": "%s"}' % (hub.url, hub.admin_token))
    path.chmod(0o600)
    cli.ok("repo", "list")


# ---- NBD through the port

def upgrade(hub, path, token, tls=True):
    """(socket, status, error) of a call for NBD."""
    s = open_tls(hub.port) if tls else raw.connect(hub.port)
    headers = {"Host": "localhost", "Connection": "Upgrade", "Upgrade": "nbd", "Authorization": f"Bearer {token}"}
    s.sendall(raw.request("GET", f"/api/v1{path}", *(f"{k}: {v}" for k, v in headers.items() if k != "Host")))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = s.recv(1)
        assert byte, head
        head += byte
    answer = raw.parse(head, with_body=False)
    body = None if answer.status == 101 else raw.receive(s)[0]
    traffic.record("GET", f"/api/v1{path}", headers, None, answer.status, answer.headers, body)
    return s, answer.status, body


@pytest.fixture
def locked(make_hub, place):
    """A world behind tokens, with a VM and a point."""
    world = World(make_hub(auth=True), place)
    world.api = world.hub.api.with_token(world.hub.admin_token)
    world.add_repository()
    world.image = world.add_vm()[1][0]
    yield world
    world.close()


def test_an_export_through_the_port(locked, place):
    hub = locked.hub
    point = Cli(hub.url, place).json("backup", "pgtest1", "--repo", "main",
                                     environment={"SENDENSE_TOKEN": hub.admin_token})
    wanted = {"backup_id": point["backup_id"], "disk": "0", "purpose": "restore"}
    export = locked.api.post("/exports", wanted).expect(201)
    path = f"/exports/{export['export_id']}/nbd"
    for tls in (True, False):       # from this machine also without
        s, status, _ = upgrade(hub, path, hub.admin_token, tls)
        with s:
            assert status == 101
            assert s.recv(18, 0 if tls else socket.MSG_WAITALL)[:16] == b"NBDMAGICIHAVEOPT"
    viewer = locked.api.post("/tokens", {"name": "v", "role": "viewer"}).expect(201)["token"]
    for what, token, expected in ((path, viewer, 403), (path, "x", 401), ("/exports/none/nbd", hub.admin_token, 404)):
        s, status, _ = upgrade(hub, what, token)
        s.close()
        assert status == expected, (what, status)
    answer = locked.api.get(path)
    assert answer.status == 400 and "Upgrade" in answer.json["details"], answer
    assert hub.api.with_token(hub.admin_token).request("HEAD", path).status == 400
    # what says something before the server does speaks no NBD: the connection just ends
    with open_tls(hub.port) as s:
        s.sendall(raw.request("GET", f"/api/v1{path}", "Connection: Upgrade", "Upgrade: nbd",
                              f"Authorization: Bearer {hub.admin_token}") + b"early")
        got, _ = raw.receive(s)
        assert got.startswith((b"HTTP/1.1 101", b"HTTP/1.1 4")), got
    open_relay, status, _ = upgrade(hub, path, hub.admin_token)
    assert status == 101 and open_relay.recv(18)
    locked.api.delete(f"/exports/{export['export_id']}").expect(200)
    assert raw.receive(open_relay)[0] == b""    # it ends with its export
    open_relay.close()
    s, status, _ = upgrade(hub, path, hub.admin_token)
    s.close()
    assert status == 404
    wait_for(lambda: not hub.children(), "the exporter is gone", 10)


def test_a_job_s_disk_through_the_port(locked):
    hub = locked.hub
    job = locked.job(backup_type="full")
    path = f"/backups/{job.id}/disks/disk-0/nbd"
    s, status, _ = upgrade(hub, path, job.token)
    s.close()
    assert status == 409        # it was not claimed
    job.claim()
    s, status, _ = upgrade(hub, path, job.token)
    s.close()
    assert status in (404, 409)  # no disk was announced
    job.announce([disk("disk-0", os.path.getsize(locked.image), change_id())])
    for token, expected in ((hub.admin_token, 403), ("x", 403)):
        s, status, _ = upgrade(hub, path, token)
        assert status == expected, (token, status)
        s.close()
    answer = job.api.get(path)
    assert answer.status == 400 and "Upgrade" in answer.json["details"], answer
    open_relay, status, _ = upgrade(hub, path, job.token)
    assert status == 101 and open_relay.recv(18)
    job.call("fail", {"error": "x", "details": "x"}).expect(200)
    assert raw.receive(open_relay)[0] == b""    # it ends with its job
    open_relay.close()
    s, status, _ = upgrade(hub, path, job.token)
    s.close()
    assert status in (403, 409)


def scribble(image, seed):
    noise = random.Random(seed)
    with open(image, "r+b") as f:
        for _ in range(20):
            f.seek(noise.randrange(0, os.path.getsize(image) - 70000))
            f.write(noise.randbytes(noise.randrange(1, 70000)))


def remote(hub, elsewhere):
    """(environment of a program there, its folders to hide)"""
    return {"SHA_API_URL": f"https://{elsewhere.here}:{hub.port}", "SENDENSE_HUB_THUMBPRINT": thumbprint(hub.port),
            "SENDENSE_TOKEN": hub.admin_token, "SENDENSE_LOG": "debug"}, [hub.run_dir]


def start_remote_client(world, elsewhere, environment, hidden, backup_type="full"):
    made = world.api.post("/backups", {"vm_name": "pgtest1", "repository_id": world.repository_id,
                                       "backup_type": backup_type, "start_client": False}).expect(201)
    environment = {**environment, "MIGRATEKIT_JOB_ID": made["backup_id"], "SENDENSE_JOB_TOKEN": made["job_token"]}
    del environment["SENDENSE_TOKEN"]
    return made["backup_id"], subprocess.Popen(elsewhere.command(CLIENT, hidden=hidden), stdin=subprocess.DEVNULL,
                                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                               env={**os.environ, **environment})


def back_up_from_there(world, *more):
    """The point; its client, with start_remote_client()'s arguments, has ended."""
    backup_id, client = start_remote_client(world, *more)
    out = client.communicate(timeout=patience(120))[0]
    assert client.returncode == 0, out
    point = world.api.get(f"/backups/{backup_id}").expect(200)
    assert point["status"] == "completed"
    return point


def test_a_client_and_a_command_line_on_another_machine(make_hub, place, elsewhere):
    hub = make_hub(auth=True, options=["--listen", "0.0.0.0"])
    world = World(hub, place)
    world.api = hub.api.with_token(hub.admin_token)
    world.add_repository()
    image = world.add_vm(sizes=(40 * MIB,))[1][0]
    environment, hidden = remote(hub, elsewhere)
    for n, kind in enumerate(("full", "incremental", "incremental")):
        if n:
            scribble(image, n)
        reference = image.read_bytes()
        point = back_up_from_there(world, elsewhere, environment, hidden, kind)
        backup_id = point["backup_id"]
        assert (n == 0) == (point["backup_type"] == "full")
        to = place / f"restored-{n}"
        restored = elsewhere.run(BIN / "sendense", "restore", backup_id, "--disk", "0", "--to", to, hidden=hidden,
                                 environment=environment)
        assert restored.returncode == 0, restored
        assert to.read_bytes() == reference
        checked = elsewhere.run(BIN / "sendense", "verify", backup_id, hidden=hidden, environment=environment)
        assert checked.returncode == 0, checked
    assert hub.admin_token not in hub.log and "job_token" not in hub.log


def test_of_a_comparison_only_differences_travel(make_hub, place, elsewhere):
    """All of the disk is read, where the client is; over the line go the parent's hashes, and what differs."""
    hub = make_hub(auth=True, options=["--listen", "0.0.0.0"])
    world = World(hub, place)
    world.api = hub.api.with_token(hub.admin_token)
    world.add_repository()
    image = world.add_vm(sizes=(256 * MIB,))[1][0]
    image.write_bytes(b"".join(random.Random(n).randbytes(128 * MIB) for n in (8, 9)))
    environment, hidden = remote(hub, elsewhere)
    travelled = []
    for n, (kind, changed) in enumerate((("full", 0), ("incremental", 4), ("incremental", 0))):
        with open(image, "r+b") as f:
            f.seek(MIB)
            f.write(random.Random(n).randbytes(changed * MIB))
        before = elsewhere.travelled()
        point = back_up_from_there(world, elsewhere, environment, hidden, kind)
        assert [d["mode"] for d in point["disks"]] == ["full" if kind == "full" else "compare"]
        travelled.append(elsewhere.travelled() - before)
    print("over the line:", travelled)
    full, some, none = travelled
    assert full > 256 * MIB and 4 * MIB < some < 5 * MIB and none < MIB / 2, travelled


@pytest.mark.parametrize("how", ["hub stopped", "line cut"])
def test_a_relay_that_breaks(make_hub, place, elsewhere, how):
    """The job fails, what had arrived stays, and the next one is right."""
    hub = make_hub(auth=True, options=["--listen", "0.0.0.0", "--lease", "5", "--checkpoint-mib", "1"])
    world = World(hub, place)
    world.api = hub.api.with_token(hub.admin_token)
    world.add_repository()
    image = world.add_vm(sizes=(256 * MIB,))[1][0]
    with open(image, "r+b") as f:
        f.write(random.Random(4).randbytes(200 * MIB))
    environment, hidden = remote(hub, elsewhere)
    backup_id, client = start_remote_client(world, elsewhere, environment, hidden)
    wait_for(lambda: world.api.get(f"/backups/{backup_id}").expect(200)["done_bytes"] > 0, "some is there", 30)
    if how == "line cut":
        elsewhere.cut()
    else:
        hub.stop()
        hub.start()
    assert world.api.wait_status(backup_id, ("failed", "cancelled", "completed"))["status"] in ("failed", "completed")
    client.kill()
    client.communicate()
    to = place / "restored"
    cli, environment = Cli(hub.url, place), {"SENDENSE_TOKEN": hub.admin_token}
    point = cli.json("backup", "pgtest1", "--repo", "main", environment=environment)
    assert point["status"] == "completed"
    cli.ok("restore", point["backup_id"], "--disk", "0", "--to", to, environment=environment)
    assert to.read_bytes() == image.read_bytes()


# ---- a proxy in front

@pytest.fixture
def nginx(tmp_path):
    """Starts nginx with the server of docs/how-to/proxy.md, on a port, a certificate and a hub of the test's own."""
    program, running = unpacked.program("nginx", "usr/sbin/nginx"), []

    def start(port, pem, key, hub_port):
        text = re.search(r"```nginx\n(.*?)```", (ROOT / "docs/how-to/proxy.md").read_text(), re.DOTALL).group(1)
        for old, new in (("listen 443 ssl", f"listen {port} ssl"), ("/etc/ssl/backup.pem", str(pem)),
                         ("/etc/ssl/backup.key", str(key)), ("127.0.0.1:8082", f"127.0.0.1:{hub_port}")):
            assert old in text
            text = text.replace(old, new)
        folder = tmp_path / "nginx"
        folder.mkdir()
        paths = "".join(f"{kind}_temp_path {folder}/{kind};\n"
                        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        (folder / "nginx.conf").write_text(
            f"daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log {folder}/error.log;\n"
            f"events {{}}\nhttp {{\naccess_log off;\n{paths}{text}}}\n")
        process = subprocess.Popen([program, "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   text=True)
        running.append(process)

        def listens():
            assert process.poll() is None, process.communicate()[0]
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port)).close()
                return True
            return False

        wait_for(listens, "nginx listens", 20)

    yield start
    for process in running:
        process.terminate()
        process.communicate()


def test_behind_nginx(make_hub, place, tmp_path, elsewhere, nginx):
    """As docs/how-to/proxy.md has it: a backup and a restore from another machine, events, refusals."""
    ca = Ca(tmp_path)
    pem, key = ca.sign("backup.example.org", f"IP:{elsewhere.here}")
    hub = make_hub(auth=True, options=["-tls=false"])
    world = World(hub, place)
    world.api = hub.api.with_token(hub.admin_token)
    world.add_repository()
    image = world.add_vm(sizes=(40 * MIB,))[1][0]
    port = free_port()
    nginx(port, pem, key, hub.port)
    environment = {"SHA_API_URL": f"https://{elsewhere.here}:{port}", "SENDENSE_HUB_CA": str(ca.pem),
                   "SENDENSE_TOKEN": hub.admin_token}
    backup_id, client = start_remote_client(world, elsewhere, environment, [hub.run_dir])
    out = client.communicate(timeout=patience(60))[0]
    assert client.returncode == 0, out
    to = place / "restored"
    restored = elsewhere.run(BIN / "sendense", "restore", backup_id, "--disk", "0", "--to", to, hidden=[hub.run_dir],
                             environment=environment)
    assert restored.returncode == 0 and to.read_bytes() == open(image, "rb").read(), restored
    # follows the events of a job that a client of the hub's own does
    followed = elsewhere.run(BIN / "sendense", "backup", "pgtest1", "--repo", "main", environment=environment)
    assert followed.returncode == 0 and "completed" in followed.stderr, followed
    refused = elsewhere.run(BIN / "sendense", "repo", "list", environment={**environment, "SENDENSE_TOKEN": "x"})
    assert refused.returncode == 1 and "token" in refused.stderr, refused
    # who guesses is stopped by nginx, and does not use up what the hub allows nginx
    body, login = '{"name": "nobody", "password": "wrong one 1"}', f"https://{elsewhere.here}:{port}/api/v1/session"
    guess = ["curl", "-sk", "-o", "/dev/null", "-w", "%{http_code}", "-d", body, login]
    seen = [elsewhere.run(*guess).stdout for _ in range(12)]
    assert seen[:5] == ["401"] * 5 and "429" in seen[5:], seen
    assert subprocess.run(guess, capture_output=True, text=True, check=True).stdout == "401"
    # nginx keeps the connection of a refused upgrade: the refusal is told all the same, and is no timeout
    made = world.api.post("/backups", {"vm_name": "pgtest1", "repository_id": world.repository_id,
                                       "start_client": False}).expect(201)
    more = {**environment, "MIGRATEKIT_JOB_ID": made["backup_id"], "SENDENSE_JOB_TOKEN": "0" * 64}
    refused = elsewhere.run(CLIENT, "--reach-for", "0", environment=more, hidden=[hub.run_dir])
    assert refused.returncode == 1 and "token" in refused.stderr, refused
    world.api.post(f"/backups/{made['backup_id']}/cancel").expect(202)
