"""Our SOAP against vcsim, which knows sessions, inventory, properties, snapshots and tasks, but neither change IDs nor
QueryChangedDiskAreas, nor pages."""

import hashlib
import socket
import ssl

import pytest

from lib.vcsim import PASSWORD, USER, Vcsim, program
from lib.vim_probe import Refused, VimProbe


@pytest.fixture(scope="module")
def vcsim(tmp_path_factory):
    program()       # skips, or takes its time, before anything else
    with Vcsim(tmp_path_factory.mktemp("vcsim"), vms=3) as running:
        yield running


@pytest.fixture(scope="module")
def certificate(vcsim):
    """Its DER, by another client's eyes."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, port = vcsim.host.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout=30) as plain, context.wrap_socket(plain) as tls:
        return tls.getpeercert(binary_form=True)


@pytest.fixture
def probe(vcsim, certificate, place):
    return VimProbe(place, vcsim.host, USER, PASSWORD, thumbprint=hashlib.sha256(certificate).hexdigest())


@pytest.fixture
def vm(probe):
    """A VM that no other test uses changes nothing of: its snapshots are gone afterwards."""
    vm = probe("list")["vms"][0]
    yield vm
    for snapshot in probe("find", vm["moref"])["snapshots"]:
        probe("remove", snapshot["moref"])


def test_the_certificate_is_shown(probe, certificate):
    probe.thumbprint = None
    shown = probe("certificate")
    assert shown["sha256"].replace(":", "").lower() == hashlib.sha256(certificate).hexdigest()
    assert shown["sha1"].replace(":", "").lower() == hashlib.sha1(certificate).hexdigest()
    assert shown["issuer"] == "O=Acme Co"


def test_logs_in(probe):
    about = probe("about")
    assert about["api_type"] == "VirtualCenter" and about["has_cookie"]
    assert "vCenter Server" in about["full_name"]


def test_a_wrong_password(probe):
    probe.password_file.write_text("wrong")
    with pytest.raises(Refused) as refused:
        probe("about")
    assert (refused.value.code, refused.value.fault) == ("unauthorized", "")
    assert "InvalidLogin" in refused.value.details and "wrong" not in refused.value.details


def test_a_certificate_that_is_not_the_pinned_one(probe, vcsim):
    probe.thumbprint = "00" * 32
    with pytest.raises(Refused) as refused:
        probe("about")
    assert (refused.value.code, refused.value.title) == ("protocol", "certificate not trusted")
    assert "thumbprint" in refused.value.details
    probe.thumbprint = None     # and by the system's CAs it is nobody's
    with pytest.raises(Refused) as refused:
        probe("about")
    assert refused.value.title == "certificate not trusted"


def test_nobody_listens(probe):
    with socket.socket() as taken:      # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        probe.host = "127.0.0.1:%d" % taken.getsockname()[1]
        with pytest.raises(Refused) as refused:
            probe("about")
    assert refused.value.code == "unavailable"


def test_discovery(probe):
    vms = probe("list")["vms"]
    assert len(vms) == 6 and len({vm["moref"] for vm in vms}) == 6
    for vm in vms:
        assert vm["path"] == f"/F0/DC0/vm/F0/{vm['name']}"
        assert vm["power_state"] == "poweredOn" and vm["connection_state"] == "connected"
        assert vm["host"].startswith("host-") and vm["host_name"].startswith("DC0_")
        assert vm["is_described"] and not vm["is_template"] and vm["hardware_version"] == 13
        assert vm["snapshots"] == [] and vm["datastores"]
        disk, = vm["disks"]
        assert disk["backing"] == "FlatVer2" and disk["capacity"] > 0 and disk["file"].startswith("[LocalDS_0] ")


def test_a_vm_is_found(probe):
    vm = probe("list")["vms"][-1]
    vm["host_name"] = ""        # which a single VM does not tell
    assert probe("find", vm["path"]) == vm
    assert probe("find", vm["path"].lstrip("/")) == vm
    assert probe("find", vm["moref"]) == vm
    for wrong in (vm["path"] + "x", "/F0/DC0/vm", "vm-99999"):
        with pytest.raises(Refused) as refused:
            probe("find", wrong)
        assert refused.value.code == "not_found"


def test_privileges(probe, vm):
    assert probe("privileges") == {"missing": []}
    assert probe("privileges", vm["moref"]) == {"missing": []}


def test_cbt_is_switched(probe, vm):
    assert probe("cbt", vm["moref"], "on") == {"cbt": "on"}
    assert probe("find", vm["moref"])["tracking"] is True
    probe("cbt", vm["moref"], "off")
    assert not probe("find", vm["moref"])["tracking"]
    with pytest.raises(Refused) as refused:
        probe("cbt", "vm-99999", "on")
    assert refused.value.code == "not_found"


def test_snapshots_and_tasks(probe, vm):
    moref, name = vm["moref"], "sendense <backup> & more"
    snapshot = probe("snapshot", moref, name, "quiesce")["snapshot"]
    found = probe("find", moref)
    assert found["current_snapshot"] == snapshot
    seen, = found["snapshots"]
    assert (seen["moref"], seen["name"], seen["parent"], seen["quiesced"]) == (snapshot, name, -1, True)
    disk, = probe("disks", snapshot)
    assert (disk["key"], disk["capacity"]) == (vm["disks"][0]["key"], vm["disks"][0]["capacity"])
    with pytest.raises(Refused) as refused:     # ours is not made twice
        probe("snapshot", moref, name)
    assert refused.value.code == "exists"
    with pytest.raises(Refused) as refused:
        probe("cbt", moref, "on")
    assert refused.value.code == "conflict" and "snapshots" in refused.value.details
    child = probe("snapshot", moref, "child")["snapshot"]
    probe("remove", snapshot)                   # that one alone
    left, = probe("find", moref)["snapshots"]
    assert (left["moref"], left["name"], left["parent"]) == (child, "child", -1)
    probe("remove", child)
    probe("remove", child)                      # gone already
    assert probe("find", moref)["snapshots"] == []


def test_what_vcsim_cannot_is_a_lost_tracking(probe, vm):
    snapshot = probe("snapshot", vm["moref"], "areas")["snapshot"]
    with pytest.raises(Refused) as refused:
        probe("areas", vm["moref"], snapshot, vm["disks"][0]["key"], "*")
    assert (refused.value.code, refused.value.fault) == ("conflict", "MethodNotFound")


def test_one_session_for_many_calls(probe, vm):
    answers = probe.session(["about"], ["find", vm["moref"]], ["find", "vm-99999"], ["nonsense"], ["list"])
    assert answers[0]["has_cookie"] and answers[1]["moref"] == vm["moref"]
    assert [a.code for a in answers[2:4]] == ["not_found", "usage"]
    assert len(answers[4]["vms"]) == 6
