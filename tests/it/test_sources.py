"""Sources and their credentials, as far as no vCenter is needed. test_vsphere_sources.py has the rest."""

import os
import re
import secrets
import sqlite3
import subprocess

import pytest

from lib.api import quote
from lib.hub import BIN, free_port
from lib.system import assert_nowhere
from lib.terminal import Terminal

PIN = ":".join(f"{n:02X}" for n in range(32))
CA = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"


def new(name="vc-1", **more):
    body = {"name": name, "type": "vsphere", "vcenter": "vc.example.org", "user": "backup@vsphere.local",
            "password": "pw-" + secrets.token_hex(12), "thumbprint": PIN, **more}
    return {k: v for k, v in body.items() if v is not None}


def unusable(answer, words):
    value = answer.expect(503, "key file not usable")
    assert words in value["details"], value


# ---- add, list, change, remove

def test_a_source_is_added_listed_and_removed(hub):
    api, body = hub.api, new()
    assert api.get("/sources").expect(200) == {"sources": []}
    added = api.post("/sources", body).expect(201)
    assert added["vms"] == 0 and added["thumbprint"] == PIN and added["ca_pem"] is None
    assert {k: added[k] for k in ("name", "type", "vcenter", "user")} == {
        k: body[k] for k in ("name", "type", "vcenter", "user")}
    other = new("a/b \u00fc", vcenter="[2001:db8::1]:8443", thumbprint=None, ca_pem=CA)
    other = api.post("/sources", other).expect(201)
    assert other["ca_pem"] == CA and other["thumbprint"] is None
    assert api.get("/sources").expect(200)["sources"] == [other, added]
    for name in ("vc-1", added["source_id"]):
        assert api.get(f"/sources/{name}").expect(200) == added
    assert api.get(f"/sources/{quote(other['name'])}").expect(200) == other
    assert api.delete("/sources/vc-1").expect(200) == {"status": "removed", "source_id": added["source_id"]}
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/test"), ("GET", "/vms")):
        api.request(method, "/sources/vc-1" + path).expect(404, "source not found")
    api.patch("/sources/vc-1", {"user": "x"}).expect(404, "source not found")


def test_thumbprints_have_one_spelling(hub):
    plain = PIN.replace(":", "").lower()
    assert hub.api.post("/sources", new(thumbprint=plain)).expect(201)["thumbprint"] == PIN


@pytest.mark.parametrize("change", [
    {"name": ""}, {"name": "a\nb"}, {"name": "certificate"}, {"name": None}, {"type": "file"}, {"type": None},
    {"vcenter": "https://vc"}, {"vcenter": "u@vc"}, {"vcenter": "vc/x"}, {"vcenter": "vc:0"}, {"vcenter": None},
    {"user": ""}, {"user": "a\u0007"}, {"user": None}, {"password": ""}, {"password": None}, {"password": 1},
    {"password": "x" * 1025}, {"thumbprint": None}, {"thumbprint": "ab"}, {"ca_pem": CA},
    {"thumbprint": None, "ca_pem": "x"}, {"thumbprint": None, "ca_pem": CA + "x" * (1 << 16)}, {"secret": "x"},
])
def test_what_is_not_added(hub, change):
    answer = hub.api.post("/sources", new(**change))
    answer.expect(400, "invalid request body")
    assert "pw-" not in answer.text
    assert hub.api.get("/sources").expect(200) == {"sources": []}


def test_a_name_is_taken_once(hub):
    hub.api.post("/sources", new()).expect(201)
    hub.api.post("/sources", new()).expect(409)


def test_a_source_is_changed(hub):
    api = hub.api
    api.post("/sources", new()).expect(201)
    for body in ({"user": "other"}, {"thumbprint": PIN.replace("00:", "FF:", 1)}, {"ca_pem": CA}, {"password": "new"},
                 {"vcenter": "vc2.example.org:444", "password": "new"}, {}):
        changed = api.patch("/sources/vc-1", body).expect(200)
        for key, value in body.items():
            assert key == "password" or changed[key] == value
        assert not (changed["ca_pem"] and changed["thumbprint"])
        assert "password" not in changed
    for body in ({"name": "x"}, {"type": "vsphere"}, {"user": None}, {"password": ""}, {"thumbprint": "x"},
                 {"thumbprint": PIN, "ca_pem": CA}, {"vcenter": "x y", "password": "p"}):
        api.patch("/sources/vc-1", body).expect(400)


def test_the_password_follows_no_new_address(hub):
    """Who may call the API but does not know the password had it sent to a machine of his own."""
    hub.api.post("/sources", new()).expect(201)
    answer = hub.api.patch("/sources/vc-1", {"vcenter": "evil.example", "thumbprint": PIN})
    assert "needs the password" in answer.expect(400)["details"]
    assert hub.api.get("/sources/vc-1").expect(200)["vcenter"] == "vc.example.org"


# ---- the key file

def test_the_key_is_made_once_and_private(hub):
    assert not hub.key_file.exists()
    hub.api.post("/sources", new()).expect(201)
    key = hub.key_file.read_text()
    assert re.fullmatch("[0-9a-f]{64}\n", key) and hub.key_file.stat().st_mode & 0o7777 == 0o600
    hub.api.post("/sources", new("vc-2")).expect(201)
    hub.api.delete("/sources/vc-1").expect(200)
    hub.api.delete("/sources/vc-2").expect(200)
    hub.api.post("/sources", new()).expect(201)
    assert hub.key_file.read_text() == key
    hub.restart()
    hub.api.patch("/sources/vc-1", {"user": "other"}).expect(200)
    assert "cannot be opened" not in hub.log


def test_the_key_file_may_be_elsewhere(make_hub, place):
    hub = make_hub(options=["--key-file", str(place / "key")])
    hub.api.post("/sources", new()).expect(201)
    assert (place / "key").exists() and not hub.key_file.exists()


def test_key_files_that_are_refused(hub):
    """Each is said clearly; with the right one back all goes on, without a restart."""
    api = hub.api
    api.post("/sources", new()).expect(201)
    key = hub.key_file.read_text()

    def broken(words):
        unusable(api.patch("/sources/vc-1", {"user": "other"}), words)
        unusable(api.post("/sources/vc-1/test"), words)
        unusable(api.get("/sources/vc-1/vms"), words)
        assert api.get("/sources/vc-1").expect(200)["user"] == "backup@vsphere.local"

    hub.key_file.unlink()
    broken("is missing")
    unusable(api.post("/sources", new("vc-2")), "is missing")
    assert not hub.key_file.exists()               # none is made beside passwords that it could not open
    for mode in (0o640, 0o604, 0o620):
        hub.key_file.write_text(key)
        hub.key_file.chmod(mode)
        broken("by others")
    hub.key_file.chmod(0o600)
    for text, words in (("", "64 hex digits"), (key[:-3], "64 hex digits"), (key * 2, "64 hex digits"),
                        ("x" + key[1:], "other characters"), ("0" * 64 + "\n", "did not seal")):
        hub.key_file.write_text(text)
        broken(words)
    hub.restart()
    assert "the password of a source cannot be opened" in hub.log
    hub.key_file.write_text(key)
    api = hub.api
    api.patch("/sources/vc-1", {"user": "other"}).expect(200)


def test_a_lost_key(hub):
    """A new key and the password again: no other way needs the old key."""
    hub.api.post("/sources", new()).expect(201)
    hub.key_file.write_text("ab" * 32 + "\n")
    unusable(hub.api.patch("/sources/vc-1", {"thumbprint": PIN}), "did not seal")
    hub.api.patch("/sources/vc-1", {"password": "again"}).expect(200)
    hub.api.patch("/sources/vc-1", {"thumbprint": PIN}).expect(200)


@pytest.mark.parametrize("column, value", [("address", "evil.example"), ("user_name", "other"), ("thumbprint", None),
                                           ("ca_pem", CA)])
def test_a_row_that_was_changed_does_not_open(hub, column, value):
    """Who may write to the database, and has no key, does not get the password sent to where he likes."""
    hub.api.post("/sources", new()).expect(201)
    hub.stop()
    with sqlite3.connect(hub.database) as database:
        database.execute(f"UPDATE sources SET {column} = ?", (value,))
    hub.start()
    unusable(hub.api.get("/sources/vc-1/vms"), "did not seal")


def test_another_rows_password_does_not_open(hub):
    hub.api.post("/sources", new()).expect(201)
    hub.api.post("/sources", new("vc-2")).expect(201)
    hub.stop()
    with sqlite3.connect(hub.database) as database:
        database.execute("UPDATE sources SET secret = (SELECT secret FROM sources WHERE name = 'vc-2')")
    hub.start()
    unusable(hub.api.post("/sources/vc-1/test"), "did not seal")


# ---- a vCenter that is not there

def test_a_vcenter_that_is_not_there(hub):
    away = f"127.0.0.1:{free_port()}"
    hub.api.post("/sources", new(vcenter=away)).expect(201)
    hub.api.post("/sources/certificate", {"vcenter": away}).expect(503, "vcenter not reachable")
    hub.api.get("/sources/vc-1/vms").expect(503, "vcenter not reachable")
    tested = hub.api.post("/sources/vc-1/test").expect(200)
    assert tested["ok"] is False and tested["about"] is None and tested["vms"] is None
    assert [(c["check"], c["ok"]) for c in tested["checks"]] == [("connect", False)] and tested["checks"][0]["details"]
    source = {"type": "vsphere", "source": "vc-1", "vm": "vm-1"}
    hub.api.post("/vms", {"name": "web", "source": source}).expect(503, "vcenter not reachable")
    hub.api.post("/vms", {"name": "web", "source": {**source, "source": "vc-2"}}).expect(404, "source not found")


@pytest.mark.parametrize("address", ["", "https://vc", "vc/x", "a b", "vc:99999", 5])
def test_certificates_of_what_is_no_address(hub, address):
    hub.api.post("/sources/certificate", {"vcenter": address}).expect(400, "invalid request body")


@pytest.mark.parametrize("change", [{"vm": "web"}, {"vm": ""}, {"vm": None}, {"source": ""}, {"quiesce": "maybe"},
                                    {"disks_unsupported": "x"},
                                    {"unallocated": "x"}, {"password": "x"}, {"moref": "x"}])
def test_specs_that_are_refused(hub, change):
    source = {"type": "vsphere", "source": "vc-1", "vm": "vm-1", **change}
    hub.api.post("/vms", {"name": "web", "source": source}).expect(400, "invalid request body")


# ---- the CLI

def add_arguments(place, name="vc-1", password="pw-from-file"):
    (place / "password").write_text(password + "\n")
    return ["source", "add", name, "--vcenter", "vc.example.org", "--user", "backup@vsphere.local",
            "--password-file", place / "password", "--thumbprint", PIN]


def test_commands(cli, place):
    out = cli.ok(*add_arguments(place))
    assert "vc-1" in out and PIN in out and "pw-from-file" not in out
    (place / "ca.pem").write_text(CA)
    added = cli.json(*add_arguments(place, "vc-2")[:-2], "--ca", "ca.pem")
    assert added["ca_pem"] == CA
    assert cli.ok("source", "list").splitlines()[1].split() == ["vc-1", "vc.example.org", "backup@vsphere.local",
                                                                "thumbprint", "0"]
    assert [s["name"] for s in cli.json("source", "list")["sources"]] == ["vc-1", "vc-2"]
    assert cli.json("source", "show", "vc-2") == added
    assert "CA" in cli.ok("source", "show", "vc-2")
    (place / "new").write_text("pw-new")
    assert cli.json("source", "set", "vc-1", "--user", "other")["user"] == "other"
    assert cli.json("source", "set", "vc-1", "--vcenter", "vc2", "--password-file", "new")["vcenter"] == "vc2"
    assert cli.json("source", "set", "vc-1", "--ca", "ca.pem")["thumbprint"] is None
    assert "vc-1" in cli.ok("source", "remove", "vc-1")
    assert cli.json("source", "remove", "vc-2")["status"] == "removed"
    assert cli.run("source", "show", "vc-1").status == 1


@pytest.mark.parametrize("arguments", [
    ("source", "add", "x"), ("source", "add", "x", "--vcenter", "vc"),
    ("source", "add", "x", "--vcenter", "vc", "--user", "u", "--thumbprint", PIN, "--ca", "/dev/null"),
    ("source", "add", "x", "--vcenter", "vc", "--user", "u", "--thumbprint", PIN, "--yes"),
    ("source", "add", "x", "--vcenter", "vc", "--user", "u", "--thumbprint", PIN, "--password", "p"),
    ("source", "add", "x", "--vcenter", "vc", "--user", "u", "--thumbprint", PIN, "--password-file", "/dev/null",
     "--password-fd", "0"),
    ("source", "add", "x", "--vcenter", "vc", "--user", "u", "--thumbprint", PIN, "--password-fd", "x"),
    ("source", "add", "x", "--vcenter", "vc", "--user", "u", "--thumbprint", PIN, "--password-fd", "0"),  # is empty
    ("source", "add", "x", "--vcenter", "vc", "--user", "u", "--thumbprint", PIN),  # there is no terminal
    ("source", "set", "x"), ("source", "set", "x", "--yes"), ("source", "set", "x", "--pin", "--ca", "x"),
    ("source", "set", "x", "--ask-password", "--password-fd", "0"), ("source", "set", "x", "--ask-password"),
    ("vm", "add", "x", "--source", "vc-1"), ("vm", "add", "x", "--vm", "vm-1"), ("vm", "add", "x", "--quiesce", "off"),
    ("vm", "add", "x", "--source", "vc-1", "--vm", "vm-1", "--file", "x"),
    ("vm", "add", "x", "--source", "vc-1", "--vm", "vm-1", "--quiesce", "maybe"),
    ("vm", "add", "x", "--source", "vc-1", "--vm", "vm-1", "--disks-unsupported", "maybe"),
    ("discover",), ("source",),
])
def test_wrong_usage(cli, arguments):
    result = subprocess.run(["setsid", str(BIN / "sendense"), *arguments], stdin=subprocess.DEVNULL, text=True,
                            capture_output=True, timeout=30, env={**os.environ, "SHA_API_URL": cli.url}, check=False)
    assert result.returncode == 2, result


def test_password_from_a_descriptor(cli, place):
    read_end, write_end = os.pipe()
    os.write(write_end, b"pw-through-a-pipe\n")
    os.close(write_end)
    command = [str(BIN / "sendense"), *map(str, add_arguments(place)[:7]), "--thumbprint", PIN,
               "--password-fd", str(read_end)]
    subprocess.run(command, pass_fds=[read_end], env={**os.environ, "SHA_API_URL": cli.url}, check=True,
                   stdout=subprocess.DEVNULL, timeout=30)
    os.close(read_end)
    assert cli.json("source", "show", "vc-1")["name"] == "vc-1"


@pytest.mark.parametrize("text", ["", "\n", "a\nb\n", "x" * 1025])
def test_password_files_that_are_refused(cli, place, text):
    arguments = add_arguments(place)
    (place / "password").write_text(text)
    assert cli.run(*arguments).status in (1, 2)
    assert cli.json("source", "list") == {"sources": []}


def test_password_from_the_terminal(cli, hub, place):
    arguments = add_arguments(place)[:7]
    terminal = Terminal(cli.url, *arguments, "--thumbprint", PIN)
    terminal.wait_for("password: ")
    terminal.say("pw-typed\n")
    assert terminal.end() == 0
    assert "pw-typed" not in terminal.shown         # no echo
    assert hub.api.get("/sources/vc-1").expect(200)["user"] == "backup@vsphere.local"


def test_ctrl_c_at_the_password(cli, place):
    terminal = Terminal(cli.url, *add_arguments(place)[:7], "--thumbprint", PIN)
    terminal.wait_for("password: ")
    terminal.say("half\x03")
    assert terminal.end() == 1
    assert cli.json("source", "list") == {"sources": []}


# ---- secrets are nowhere

def test_the_password_is_nowhere(hub):
    body, again = new(), "pw-" + secrets.token_hex(12)
    texts = [hub.api.post("/sources", body).text, hub.api.patch("/sources/vc-1", {"password": again}).text,
             hub.api.post("/sources", body).text, hub.api.get("/sources").text, hub.api.get("/sources/vc-1").text,
             hub.api.post("/sources", {**body, "password": again, "x": 1}).text,
             hub.api.patch("/sources/vc-1", {"password": again, "user": ""}).text]
    hub.stop()                                      # what SQLite still held back is in its file
    for password in (body["password"], again):
        assert not any(password in text for text in texts)
        assert_nowhere(hub, password)
