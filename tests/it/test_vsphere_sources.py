"""Sources against the simulator: trust, test, discovery, registering VMs, and passwords that are nowhere."""

import json
import os
import secrets
import socket
import sqlite3
import threading
import time

import pytest

from lib.hub import free_port
from lib.job import Job
from lib.patience import patience
from lib.system import assert_nowhere
from lib.terminal import Terminal
from lib.vsphere import USER, Certificate, Simulator

MIB = 1 << 20
WEB, DB = "DC0/vm/web", "DC0/vm/prod/db"
VMS = [{"path": WEB, "cbt": True, "disks": [{"size": 8 * MIB}, {"size": 16 * MIB}]},
       {"path": DB, "cbt": False, "power": "poweredOff", "disks": [{"size": 8 * MIB}]}]


@pytest.fixture
def make_sim(place):
    """A function that makes a vCenter with a password of its own."""
    started = []

    def make(vms=None, name="sim", **settings):
        sim = Simulator(place / name, VMS if vms is None else vms,
                        **{"password": "pw-" + secrets.token_hex(12), **settings})
        sim.__enter__()
        started.append(sim)
        return sim

    yield make
    for sim in reversed(started):
        sim.__exit__()


@pytest.fixture
def sim(make_sim):
    return make_sim()


def address(sim):
    return f"127.0.0.1:{sim.port}"


def source_of(sim, name="vc-1", **more):
    body = {"name": name, "type": "vsphere", "vcenter": address(sim), "user": USER, "password": sim.state["password"],
            "thumbprint": sim.certificate.thumbprint("sha256"), **more}
    return {k: v for k, v in body.items() if v is not None}


def add(hub, sim, name="vc-1", **more):
    return hub.api.post("/sources", source_of(sim, name, **more)).expect(201)


def checks(hub, name="vc-1"):
    """{check: ok} of a test, and the test."""
    tested = hub.api.post(f"/sources/{name}/test").expect(200)
    assert all(bool(c["details"]) != c["ok"] for c in tested["checks"]), tested
    assert tested["ok"] == all(c["ok"] for c in tested["checks"])
    return {c["check"]: c["ok"] for c in tested["checks"]}, tested


def discover(hub, name="vc-1"):
    """The VMs by their path."""
    found = hub.api.get(f"/sources/{name}/vms").expect(200)
    assert found["source"] == name
    return {vm["path"]: vm for vm in found["vms"]}


def calls(sim):
    """How often each call came; connections alone say nothing of what was sent."""
    return {name: n for name, n in sim.calls().items() if name != "connections"}


def register(hub, name="web", vm="/" + WEB, source="vc-1", **more):
    return hub.api.post("/vms", {"name": name, "source": {"type": "vsphere", "source": source, "vm": vm, **more}})


def codes(vm):
    return [(o["code"], o["disk_id"]) for o in vm["obstacles"]]


# ---- trust

def test_the_certificate_that_a_vcenter_shows(hub, sim, place):
    shown = hub.api.post("/sources/certificate", {"vcenter": address(sim)}).expect(200)
    assert shown["sha256"] == sim.certificate.thumbprint("sha256") and shown["subject"] == shown["issuer"] == (
        "CN=vcenter.test")
    assert shown["not_before"] < shown["not_after"] and calls(sim) == {}
    with socket.create_server(("127.0.0.1", 0)) as plain:     # speaks no TLS: it hangs up on who does
        threading.Thread(target=lambda: plain.accept()[0].close()).start()
        port = plain.getsockname()[1]
        hub.api.post("/sources/certificate", {"vcenter": f"127.0.0.1:{port}"}).expect(503, "vcenter not reachable")


def test_all_well(hub, sim):
    add(hub, sim)
    result, tested = checks(hub)
    assert result == {"connect": True, "certificate": True, "login": True, "inventory": True, "privileges": True}
    assert tested["vms"] == 2 and tested["missing_privileges"] == [] and tested["about"] and tested["api_version"]
    assert calls(sim)["Logout"] == calls(sim)["Login"] == 1


def test_a_ca_in_place_of_a_thumbprint(hub, sim, place):
    add(hub, sim, thumbprint=None, ca_pem=sim.certificate.cert.read_text())
    assert checks(hub)[1]["ok"]
    other = Certificate(place, "other")
    hub.api.patch("/sources/vc-1", {"ca_pem": other.cert.read_text()}).expect(200)
    assert checks(hub)[0] == {"connect": True, "certificate": False}
    hub.api.get("/sources/vc-1/vms").expect(502, "certificate not trusted")


def test_a_changed_certificate(hub, sim, place):
    """Nothing is sent to a server that shows another certificate, the password least of all."""
    add(hub, sim)
    assert checks(hub)[1]["ok"]
    other = Certificate(place, "other")
    sim("certificate", cert=str(other.cert), key=str(other.key))
    before = calls(sim)
    assert checks(hub)[0] == {"connect": True, "certificate": False}
    hub.api.get("/sources/vc-1/vms").expect(502, "certificate not trusted")
    register(hub).expect(502, "certificate not trusted")
    assert calls(sim) == before
    hub.api.patch("/sources/vc-1", {"thumbprint": other.thumbprint("sha256")}).expect(200)
    assert checks(hub)[1]["ok"]


def test_a_wrong_password(hub, sim):
    add(hub, sim, password="pw-wrong")
    assert checks(hub)[0] == {"connect": True, "certificate": True, "login": False}
    answer = hub.api.get("/sources/vc-1/vms")
    answer.expect(502, "vcenter refused the login")
    assert "pw-wrong" not in answer.text and "pw-wrong" not in hub.log
    hub.api.patch("/sources/vc-1", {"password": sim.state["password"]}).expect(200)
    assert checks(hub)[1]["ok"]


def test_missing_privileges_are_named(hub, sim):
    add(hub, sim)
    missing = ["VirtualMachine.State.CreateSnapshot", "VirtualMachine.Provisioning.DiskRandomRead"]
    sim("set", missing_privileges=missing)
    result, tested = checks(hub)
    assert result == {"connect": True, "certificate": True, "login": True, "inventory": True, "privileges": False}
    assert sorted(tested["missing_privileges"]) == sorted(missing) and tested["vms"] == 2


def test_sessions_do_not_pile_up(hub, sim):
    sim("set", max_sessions=2)
    add(hub, sim)
    for _ in range(4):
        assert checks(hub)[1]["ok"]
        discover(hub)
        register(hub, "none", "/DC0/vm/none").expect(404, "vm not found in vcenter")


# ---- discovery

def test_what_discovery_tells(hub, sim):
    add(hub, sim)
    sim("snapshot", vm=WEB, name="by hand")
    found = discover(hub)
    web, db = found["/" + WEB], found["/" + DB]
    assert len(found) == 2 and codes(web) == codes(db) == []
    assert (web["name"], web["power_state"], web["cbt"], web["template"]) == ("web", "poweredOn", "on", False)
    assert (db["power_state"], db["cbt"], db["snapshots"], db["registered_as"]) == ("poweredOff", "off", [], [])
    assert [(d["disk_id"], d["size"]) for d in web["disks"]] == [(2000, 8 * MIB), (2001, 16 * MIB)]
    assert [s["name"] for s in web["snapshots"]] == ["by hand"] and web["moref"] == sim.vm(WEB)["moref"]
    register(hub, "web").expect(201)
    register(hub, "web again", web["moref"]).expect(201)
    assert sorted(discover(hub)["/" + WEB]["registered_as"]) == ["web", "web again"]


def test_what_stands_in_the_way(hub, make_sim):
    disk = {"size": MIB}
    sim = make_sim([{"path": "DC0/vm/old", "version": "vmx-04", "disks": [disk]},
                    {"path": "DC0/vm/template", "template": True, "disks": [disk]},
                    {"path": "DC0/vm/bare", "disks": []},
                    {"path": "DC0/vm/odd", "cbt": True,
                     "disks": [{**disk, "mode": "independent_persistent"},
                               {**disk, "backing": "RawDiskMappingVer1", "compatibility": "physicalMode"},
                               {**disk, "backing": "RawDiskMappingVer1"}, {**disk, "sharing": "sharingMultiWriter"}]},
                    {"path": "DC0/vm/off", "cbt": False, "disks": [disk]},
                    {"path": "DC0/vm/left", "cbt": True, "disks": [disk]}])
    sim("snapshot", vm="DC0/vm/off", name="by hand")
    sim("vm", vm="DC0/vm/left", consolidation_needed=True)
    add(hub, sim)
    assert {path.split("/")[-1]: codes(vm) for path, vm in discover(hub).items()} == {
        "old": [("hardware_version", None)], "template": [("template", None)], "bare": [("no_disks", None)],
        "odd": [("independent_disk", 2000), ("physical_rdm", 2001), ("shared_disk", 2003)],
        "off": [("cbt_off_with_snapshots", None)], "left": [("consolidation_needed", None)]}


def cpu_seconds(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as f:
        user, system = f.read().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def test_ten_thousand_vms(hub, make_sim, cli):
    """In calls by pages, not by VMs; and the CLI takes the answer, which is larger than others."""
    count = 10_000
    sim = make_sim([{"path": "DC0/vm/many/vm", "count": count, "cbt": False, "disks": [{"size": 1 << 40}] * 2}])
    add(hub, sim)
    before = sum(calls(sim).values())
    processes = (hub.process.pid, sim.process.pid)
    start, busy = time.monotonic(), sum(map(cpu_seconds, processes))
    answer = hub.api.get("/sources/vc-1/vms", timeout=300)
    seconds, busy = time.monotonic() - start, sum(map(cpu_seconds, processes)) - busy
    assert len(answer.expect(200)["vms"]) == count
    made = sum(calls(sim).values()) - before
    print(f"{count} VMs: {seconds:.2f} s, {busy:.2f} s of them busy, {made} calls, {len(answer.text) >> 20} MiB")
    # the two take turns: on a machine that does nothing else it takes as long as they are busy
    assert made < 200 and min(seconds, busy) < patience(10)
    assert len({vm["instance_uuid"] for vm in answer.json["vms"]}) == count
    found = cli.json("discover", "vc-1", timeout=120)
    assert len(found["vms"]) == count


# ---- registering VMs

def test_a_vm_is_found_by_path_and_by_moref(hub, sim):
    add(hub, sim)
    state = sim.vm(WEB)
    added = register(hub, quiesce="require", disks_unsupported="skip", unallocated="zero").expect(201)["source"]
    assert added == {"type": "vsphere", "source": "vc-1", "vm": "/" + WEB, "moref": state["moref"], "path": "/" + WEB,
                     "instance_uuid": added["instance_uuid"], "quiesce": "require", "disks_unsupported": "skip",
                     "unallocated": "zero"}
    again = register(hub, "by moref", state["moref"]).expect(201)["source"]
    assert again["instance_uuid"] == added["instance_uuid"] == discover(hub)["/" + WEB]["instance_uuid"]
    assert (again["quiesce"], again["disks_unsupported"], again["unallocated"]) == ("auto", "fail", "read")
    for vm in ("/DC0/vm/none", "vm-99999", "/DC0/vm/prod"):
        register(hub, "none", vm).expect(404, "vm not found in vcenter")
    register(hub, "none", source="vc-9").expect(404, "source not found")
    register(hub).expect(409)


def test_what_is_shown_can_be_sent_back(hub, sim):
    """The members that the hub found are overwritten, not believed."""
    add(hub, sim)
    vm = register(hub).expect(201)
    forged = {**vm["source"], "moref": sim.vm(DB)["moref"], "instance_uuid": "52d0eb97-27ad-4c3d-874a-c34e85f2ea95"}
    assert hub.api.patch("/vms/web", {"source": forged}).expect(200)["source"] == vm["source"]
    moved = hub.api.patch("/vms/web", {"source": {**vm["source"], "vm": "/" + DB}}).expect(200)["source"]
    assert moved["moref"] == sim.vm(DB)["moref"] and moved["path"] == "/" + DB


def test_a_vm_keeps_its_source_while_the_new_one_does_not_answer(hub, sim):
    add(hub, sim)
    vm = register(hub).expect(201)
    change = {"source": {**vm["source"], "vm": "/" + DB}}
    hub.api.patch("/sources/vc-1", {"password": "pw-wrong"}).expect(200)
    hub.api.patch("/vms/web", change).expect(502, "vcenter refused the login")
    hub.api.patch("/sources/vc-1", {"password": "x", "vcenter": f"127.0.0.1:{free_port()}"}).expect(200)
    hub.api.patch("/vms/web", change).expect(503, "vcenter not reachable")
    hub.api.patch("/vms/none", change).expect(404, "vm not found")
    assert hub.api.get("/vms/web").expect(200) == vm


def test_two_vcenters_with_a_vm_of_one_name(hub, make_sim):
    one, two = make_sim(), make_sim(name="other")
    add(hub, one)
    add(hub, two, "vc-2")
    first, second = register(hub, "web-1").expect(201), register(hub, "web-2", source="vc-2").expect(201)
    assert first["source"]["path"] == second["source"]["path"] and first["vm_id"] != second["vm_id"]
    assert first["source"]["instance_uuid"] != second["source"]["instance_uuid"]
    assert discover(hub, "vc-2")["/" + WEB]["registered_as"] == ["web-2"]


def test_a_source_in_use_is_not_removed(hub, sim):
    add(hub, sim)
    add(hub, sim, "vc-2")
    register(hub).expect(201)
    assert hub.api.get("/sources/vc-1").expect(200)["vms"] == 1
    assert '"web"' in hub.api.delete("/sources/vc-1").expect(409)["details"]
    source = hub.api.get("/vms/web").expect(200)["source"]
    hub.api.patch("/vms/web", {"source": {**source, "source": "vc-2"}}).expect(200)
    hub.api.delete("/sources/vc-1").expect(200)
    hub.api.delete("/sources/vc-2").expect(409)
    image = {"type": "file", "disks": [{"path": "/srv/web.raw"}]}
    hub.api.patch("/vms/web", {"source": image}).expect(200)
    hub.api.delete("/sources/vc-2").expect(200)


# ---- the work order

def test_the_work_order_and_nothing_else_carries_the_password(world, sim):
    hub, api, password = world.hub, world.api, sim.state["password"]
    add(hub, sim)
    register(hub).expect(201)
    job = world.job("web")
    order = job.claim()
    assert order["vcenter"] == {"host": address(sim), "user": USER, "password": password, "ca_pem": None,
                                "thumbprint": sim.certificate.thumbprint("sha256")}
    assert order["source"] == api.get("/vms/web").expect(200)["source"] and password not in str(order["source"])
    for token in (None, "x"):
        refused = api.with_token(token).post(f"{job.path}/claim", {"claim": job.claim_id})
        assert refused.status in (401, 403) and password not in refused.text
    for path in ("/vms", "/vms/web", "/sources", "/sources/vc-1", "/backups", job.path, "/sources/vc-1/vms", "/health"):
        assert password not in api.get(path).text, path
    assert password not in json.dumps(job.started)
    world.close()
    hub.stop()
    assert_nowhere(hub, password)
    hub.start()
    world.add_vm("file")
    assert "vcenter" not in world.job("file").claim()


def test_a_backup_does_not_begin_without_its_password(world, sim):
    """It would fail when its client claims it, much later."""
    hub = world.hub
    add(hub, sim)
    register(hub).expect(201)
    body = {"vm_name": "web", "repository_id": world.repository_id, "start_client": False}
    key = hub.key_file.read_text()
    hub.key_file.unlink()
    hub.api.post("/backups", body).expect(503, "key file not usable")
    assert hub.api.get("/backups").expect(200)["backups"] == []
    hub.key_file.write_text(key)
    hub.key_file.chmod(0o600)
    world.jobs.append(Job(hub.api, "web", world.repository_id))


def test_the_password_is_nowhere(hub, sim, cli, place):
    """Not in the database, a log, a command line or an answer, after all that uses it."""
    password = sim.state["password"]
    secret = place / "secret"
    secret.mkdir()
    (secret / "password").write_text(password)
    said = [cli.run("source", "add", "vc-1", "--vcenter", address(sim), "--user", USER, "--password-file",
                    secret / "password", "--yes")]
    (secret / "password").unlink()
    for command in (("source", "test", "vc-1"), ("discover", "vc-1"), ("source", "list"), ("source", "show", "vc-1"),
                    ("vm", "add", "web", "--source", "vc-1", "--vm", "/" + WEB), ("vm", "show", "web")):
        said += [cli.run(*command), cli.run(*command, use_json=True)]
    assert not any(password in result.out + result.err for result in said)
    assert [result.status for result in said].count(0) == len(said) - 1     # the VM was added already
    with sqlite3.connect(f"file:{hub.database}?mode=ro", uri=True) as database:
        assert password not in "\n".join(database.iterdump())
    hub.stop()
    assert_nowhere(hub, password)


# ---- the CLI

def test_pinning_what_is_shown(cli, hub, sim, place):
    (place / "password").write_text(sim.state["password"])
    arguments = ("source", "add", "vc-1", "--vcenter", address(sim), "--user", USER, "--password-file",
                 place / "password")
    pin = sim.certificate.thumbprint("sha256")
    for answer in ("no", "y", ""):
        terminal = Terminal(cli.url, *arguments)
        terminal.wait_for("(yes or no) ")
        terminal.say(answer + "\n")
        assert terminal.end() == 1 and pin in terminal.shown and "vcenter.test" in terminal.shown
        assert hub.api.get("/sources").expect(200) == {"sources": []}
    terminal = Terminal(cli.url, *arguments)
    terminal.wait_for("(yes or no) ")
    terminal.say("yes\n")
    assert terminal.end() == 0
    assert hub.api.get("/sources/vc-1").expect(200)["thumbprint"] == pin
    other = Certificate(place, "other")
    sim("certificate", cert=str(other.cert), key=str(other.key))
    result = cli.run("source", "test", "vc-1")
    assert result.status == 1 and "NOT OK" in result.out
    assert cli.json("source", "set", "vc-1", "--pin", "--yes")["thumbprint"] == other.thumbprint("sha256")
    assert cli.json("source", "test", "vc-1")["ok"] is True


def test_commands(cli, hub, make_sim, place):
    odd = {"path": "DC0/vm/odd", "cbt": True, "disks": [{"size": MIB, "mode": "independent_persistent"}]}
    sim = make_sim([*VMS, odd])
    add(hub, sim)
    assert "VMs seen:       3" in cli.ok("source", "test", "vc-1")
    sim("set", missing_privileges=["VirtualMachine.State.CreateSnapshot"])
    result = cli.run("source", "test", "vc-1")
    assert result.status == 1 and "VirtualMachine.State.CreateSnapshot" in result.out
    sim("set", missing_privileges=[])
    assert "/" + WEB in cli.ok("vm", "add", "web", "--source", "vc-1", "--vm", "/" + WEB, "--quiesce", "off",
                               "--disks-unsupported", "skip")
    shown = cli.run("discover", "vc-1")
    assert shown.status == 0
    rows = {line.split()[0]: line for line in shown.out.splitlines()}
    assert "independent_disk" in rows["/DC0/vm/odd"] and "independent_disk: " in shown.err
    assert rows["/" + WEB].split()[1:4] == [sim.vm(WEB)["moref"], "poweredOn", "2"] and "web" in rows["/" + WEB].split()
    changed = cli.json("vm", "change", "web", "--source", "vc-1", "--vm", sim.vm(DB)["moref"])
    assert changed["source"]["path"] == "/" + DB
    assert cli.run("vm", "add", "x", "--source", "vc-1", "--vm", "/DC0/vm/none").status == 1
    assert cli.run("source", "remove", "vc-1").status == 1
    cli.ok("vm", "remove", "web")
    cli.ok("source", "remove", "vc-1")
