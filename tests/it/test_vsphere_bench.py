"""The bench of the vSphere source proves itself, before anything is proven with it: docs/internals/vsphere-bench.md."""

import contextlib
import http.client
import os
import random
import re
import subprocess
import threading
import time
import xml.etree.ElementTree as ElementTree

import pytest

from lib import system
from lib.history import wait_for
from lib.vsphere import BENCH, FIXTURES, XSI_TYPE, Client, Fault, Simulator, TaskError, cpu_seconds, plain

MIB = 1 << 20
GRANULE = 65536
WEB = "DC0/vm/web"


def one_vm(size=8 * MIB, disks=1, **more):
    return [{"path": WEB, "cbt": True, "disks": [{"size": size} for _ in range(disks)], **more}]


@pytest.fixture
def make_sim(place):
    running = []

    def make(vms=None, **settings):
        sim = Simulator(place / f"sim-{len(running)}", one_vm() if vms is None else vms, **settings)
        running.append(sim.__enter__())
        return sim

    yield make
    for sim in running:
        sim.__exit__()


def random_bytes(seed, n):
    return random.Random(seed).randbytes(n)


def run(*command, status=0):
    done = subprocess.run([str(c) for c in command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          errors="replace", timeout=120, check=False)
    assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


# ---- the same shapes as vcsim's

def shape(element):
    """(name, xsi:type, has a plain type): what may be in it, of all elements that are alike in these three."""
    inside = {}
    for child in element:
        key = (child.tag, child.get(XSI_TYPE), "type" in child.attrib)
        if child.tag == "changeId":
            continue    # vcsim has no change tracking
        for name, more in shape(child).items():
            inside.setdefault(key, {}).setdefault(name, {}).update(more)
        inside.setdefault(key, {})
    return inside


def fixture_state():
    disk = {"key": 204, "size": 10 << 30, "file": "[LocalDS_0] DC0_H0_VM0/disk1.vmdk",
            "uuid": "b95003e9-7241-514a-9ba0-82a06c0d235a"}
    names = {"vm-62": "DC0_H0_VM0", "vm-65": "DC0_H0_VM1", "vm-68": "DC0_C0_RP0_VM0", "vm-70": "DC0_C0_RP0_VM1"}
    return [{"path": f"DC0/vm/{name}", "moref": moref, "datastore": "LocalDS_0", "disks": [disk],
             **({"cbt": True} if moref == "vm-62" else {})} for moref, name in names.items()]


def test_fixtures_are_answered_in_the_same_shape(make_sim):
    sim = make_sim(fixture_state(), user="user", password="pass")
    client = sim.client(login=False)
    ids = {}        # the fixture's: ours
    compared = []
    for request in sorted(FIXTURES.glob("*.req.xml")):
        name = request.name.removesuffix(".req.xml")
        if "QueryChangedDiskAreas" in name:
            continue    # vcsim does not know it
        body = request.read_text()
        for theirs, ours in ids.items():
            body = body.replace(theirs, ours)
        status, content = client.post(body.encode())
        expected, got = (plain(ElementTree.fromstring(t))
                         for t in ((FIXTURES / f"{name}.resp.xml").read_bytes(), content))
        assert status == (500 if expected.find(".//Fault") is not None else 200), f"{name}: {status} {content}"
        assert shape(got) == shape(expected), name
        for path in (".//returnval", ".//token", ".//val[@type]"):
            if (expected.findtext(path) or "").strip():
                ids[expected.findtext(path)] = got.findtext(path)
        compared.append(name)
    client.close()
    assert len(compared) > 25 and {"02-NotAuthenticated", "14b-WaitForUpdatesEx", "34-after-logout"} <= set(compared)


def test_unknown_methods_properties_and_objects_are_faults(make_sim):
    sim = make_sim()
    with sim.client() as client:
        moref = sim.vm(WEB)["moref"]
        for method, this, fault in (("DisableMethods", "AuthorizationManager", "InvalidRequest"),
                                    ("CreateSnapshot_Task", f"VirtualMachine:{moref}", "InvalidRequest"),
                                    ("CreateSnapshot_Task", "VirtualMachine:vm-9999", "ManagedObjectNotFound")):
            with pytest.raises(Fault) as caught:
                client.call(method, this)
            assert caught.value.type == fault, caught.value
        with pytest.raises(Fault) as caught:
            client.properties(f"VirtualMachine:{moref}", "config.noSuchThing")
        assert caught.value.type == "InvalidProperty" and caught.value.detail.findtext("name") == "config.noSuchThing"


# ---- snapshots

def test_a_snapshot_stands_still_while_the_guest_goes_on(make_sim):
    sim = make_sim(one_vm(disks=2))
    rng = random.Random(7)
    live = [bytearray(random_bytes(n, 8 * MIB)) for n in (1, 2)]
    for n, content in enumerate(live):
        sim.write(WEB, 0, bytes(content), disk=2000 + n)
    lock, stop, writes = threading.Lock(), threading.Event(), [0]

    def guest():
        # both disks get the same number: a snapshot that took one before and one after shows it
        while not stop.is_set():
            mark = (writes[0] + 1).to_bytes(8, "little") * 64
            at = rng.randrange(8 * MIB // 512) * 512
            with lock:
                for n in (0, 1):
                    sim.write(WEB, at, mark, disk=2000 + n)
                    live[n][at:at + 512] = mark
                writes[0] += 1

    thread = threading.Thread(target=guest)
    thread.start()
    try:
        with sim.client() as client:
            moref = sim.vm(WEB)["moref"]
            held = []
            for _ in range(4):
                with lock:
                    held.append((client.create_snapshot(moref), [bytes(c) for c in live]))
                before = writes[0]
                wait_for(lambda: writes[0] > before + 20, "the guest writes on")
            for snapshot, contents in held:
                for n in (0, 1):
                    assert sim.frozen(snapshot, 2000 + n) == contents[n], snapshot
            # from the middle, the newest, the oldest: what is left still stands
            for gone in (1, 2, 0):
                client.remove_snapshot(held[gone][0])
                held[gone] = None
                for snapshot, contents in filter(None, held):
                    for n in (0, 1):
                        assert sim.frozen(snapshot, 2000 + n) == contents[n], (gone, snapshot)
    finally:
        stop.set()
        thread.join()
    assert sim.frozen(held[3][0]) == held[3][1][0]
    disks = sim.vm(WEB)["disks"]
    assert [open(d["path"], "rb").read() == bytes(c) for d, c in zip(disks, live)] == [True, True]


def test_names_and_keys_of_a_snapshots_disks(make_sim):
    sim = make_sim([{"path": "DC0/vm/a/web", "cbt": True, "disks": [
        {"size": MIB, "key": 2004, "uuid": "u-0"}, {"size": 2 * MIB, "key": 2000, "uuid": "u-1"},
        {"size": MIB, "key": 2001, "mode": "independent_persistent"},
        {"size": MIB, "key": 2002, "backing": "RawDiskMappingVer1", "compatibility": "physicalMode"}]}])
    with sim.client() as client:
        found = client.call("FindByInventoryPath", "SearchIndex", "<inventoryPath>/DC0/vm/a/web</inventoryPath>")
        moref = found.findtext("returnval")
        snapshot = client.create_snapshot(moref)
        frozen, live = client.disks(f"VirtualMachineSnapshot:{snapshot}"), client.disks(f"VirtualMachine:{moref}")
        assert list(live) == [2004, 2000, 2001, 2002] and list(frozen) != list(live)
        assert frozen[2004]["fileName"] == "[ds0] web/web.vmdk"
        assert live[2004]["fileName"] == "[ds0] web/web-000001.vmdk"
        assert (frozen[2000]["capacity"], frozen[2000]["uuid"]) == (2 * MIB, "u-1")
        assert "changeId" not in frozen[2001] and frozen[2002]["compatibilityMode"] == "physicalMode"
        client.remove_snapshot(snapshot)
        assert client.disks(f"VirtualMachine:{moref}")[2004]["fileName"] == "[ds0] web/web.vmdk"
        assert sim.vm(moref)["snapshots"] == []


# ---- what has changed

class Model:
    """What change tracking must say of one disk: a set of granules for each interval."""

    def __init__(self, size, in_use=()):
        self.size, self.in_use, self.intervals = size, set(in_use), [set()]

    def write(self, offset, n, gives_back=False):
        for g in range(offset // GRANULE, -(-(offset + n) // GRANULE)):
            self.intervals[-1].add(g)
            whole = offset <= g * GRANULE and min((g + 1) * GRANULE, self.size) <= offset + n
            if gives_back and whole:
                self.in_use.discard(g)
            elif not gives_back:
                self.in_use.add(g)

    def freeze(self):
        """(number of intervals that are in the snapshot, granules in use)"""
        self.intervals.append(set())
        return len(self.intervals) - 1, set(self.in_use)

    def since(self, then, now):
        return set().union(*self.intervals[then:now])

    def areas(self, granules):
        runs = []
        for g in sorted(granules):
            start, end = g * GRANULE, min((g + 1) * GRANULE, self.size)
            if runs and runs[-1][1] == start:
                runs[-1][1] = end
            else:
                runs.append([start, end])
        return [(start, end - start) for start, end in runs]


def glued(areas):
    """Areas that a page's end has cut are made whole again."""
    runs = []
    for start, n in areas:
        if runs and runs[-1][0] + runs[-1][1] == start:
            runs[-1][1] += n
        else:
            runs.append([start, n])
    return [tuple(r) for r in runs]


@pytest.mark.parametrize("seed", range(4))
def test_areas_equal_a_model_over_random_histories(make_sim, seed):
    rng = random.Random(seed)
    size = 20 * MIB + 512 * rng.randrange(200)
    settings = rng.choice(({"max_areas": 1}, {"max_areas": 7}, {"max_length": 3 * MIB + 512}, {}))
    sim = make_sim(one_vm(size), change_id_blanks=seed % 2 == 1, **settings)
    model, moref, points, most_pages = Model(size), sim.vm(WEB)["moref"], [], 0
    with sim.client() as client:
        for _ in range(12):
            for _ in range(rng.randrange(12)):
                n = rng.choice((512, 4096, GRANULE, 3 * GRANULE, 300_032))
                at = rng.randrange((size - n) // 512 + 1) * 512
                if rng.randrange(4):
                    sim("write", vm=WEB, offset=at, length=n, fill=rng.randrange(256))
                    model.write(at, n)
                else:
                    sim("trim", vm=WEB, offset=at, length=n)
                    model.write(at, n, gives_back=True)
            snapshot = client.create_snapshot(moref)
            backing = client.disks(f"VirtualMachineSnapshot:{snapshot}")[2000]
            now, in_use = model.freeze()
            sim("write", vm=WEB, offset=0, length=512, fill=1)      # the snapshot must not know of it
            model.write(0, 512)
            areas, pages = client.areas(moref, snapshot, 2000, "*", size)
            assert glued(areas) == model.areas(in_use)
            most_pages = max(most_pages, pages)
            for then, change_id in rng.sample(points, min(3, len(points))):
                areas, _ = client.areas(moref, snapshot, 2000, change_id, size)
                assert glued(areas) == model.areas(model.since(then, now)), (then, now)
            points.append((now, backing["changeId"]))
            client.remove_snapshot(snapshot)
    assert (" " in points[0][1]) == (seed % 2 == 1) and points[0][1].count("/") == 1
    assert most_pages > 1 or not settings


def test_areas_fall_within_the_disk_and_never_start_at_its_end(make_sim):
    sim = make_sim(one_vm(MIB + 512))
    sim("write", vm=WEB, offset=MIB, length=512, fill=9)
    moref = sim.vm(WEB)["moref"]
    with sim.client() as client:
        snapshot = client.create_snapshot(moref)
        assert client.areas(moref, snapshot, 2000, "*", MIB + 512)[0] == [(MIB, 512)]
        for start, change_id, key, bad in ((MIB + 512, "*", 2000, "startOffset"), (0, "nonsense", 2000, "changeId"),
                                           (0, "*", 2009, "deviceKey")):
            with pytest.raises(Fault) as caught:
                client.areas_page(moref, snapshot, key, start, change_id)
            assert caught.value.type == "InvalidArgument"
            assert caught.value.detail.findtext("invalidProperty") == bad


def test_tracking_takes_effect_with_the_snapshot_after_it_was_switched_on(make_sim):
    sim = make_sim(one_vm(cbt=False))
    moref = sim.vm(WEB)["moref"]
    with sim.client() as client:
        client.task("ReconfigVM_Task", f"VirtualMachine:{moref}",
                    "<spec><changeTrackingEnabled>true</changeTrackingEnabled></spec>")
        assert client.properties(f"VirtualMachine:{moref}", "config.changeTrackingEnabled").popitem()[1].text == "true"
        snapshot = client.create_snapshot(moref)
        assert "changeId" not in client.disks(f"VirtualMachineSnapshot:{snapshot}")[2000]
        client.remove_snapshot(snapshot)
        snapshot = client.create_snapshot(moref)
        assert "changeId" in client.disks(f"VirtualMachineSnapshot:{snapshot}")[2000]


def test_tracking_switched_on_while_there_is_a_snapshot_says_nothing_without_a_fault(make_sim):
    sim = make_sim(one_vm(cbt=False))
    moref = sim.vm(WEB)["moref"]
    sim("snapshot", vm=WEB, name="somebody's")
    with sim.client() as client:
        client.task("ReconfigVM_Task", f"VirtualMachine:{moref}",
                    "<spec><changeTrackingEnabled>true</changeTrackingEnabled></spec>")
        client.remove_snapshot(client.create_snapshot(moref))
        sim("write", vm=WEB, offset=0, length=GRANULE, fill=1)
        assert client.areas(moref, client.create_snapshot(moref), 2000, "*", 8 * MIB) == ([], 1)


def first_point(sim, client):
    """(moref, change ID) of a VM whose first snapshot was made and removed."""
    moref = sim.vm(WEB)["moref"]
    sim("write", vm=WEB, offset=0, length=4 * MIB, fill=5)
    snapshot = client.create_snapshot(moref)
    change_id = client.disks(f"VirtualMachineSnapshot:{snapshot}")[2000]["changeId"]
    client.remove_snapshot(snapshot)
    sim("write", vm=WEB, areas=[[MIB, GRANULE], [3 * MIB, GRANULE]], fill=6)
    return moref, change_id


def test_lost_tracking_is_a_file_fault(make_sim):
    sim = make_sim()
    with sim.client() as client:
        moref, change_id = first_point(sim, client)
        for what, harm in (("epoch", "reset_cbt"), ("file", "lose_cbt")):
            sim(harm, vm=WEB)
            snapshot = client.create_snapshot(moref)
            with pytest.raises(Fault) as caught:
                client.areas_page(moref, snapshot, 2000, 0, change_id)
            assert caught.value.type == "FileFault" and "web.vmdk" in caught.value.detail.findtext("file"), what
            now = client.disks(f"VirtualMachineSnapshot:{snapshot}")[2000]["changeId"]
            assert now.partition("/")[0] != change_id.partition("/")[0]
            client.remove_snapshot(snapshot)


def test_lies(make_sim):
    sim = make_sim()
    with sim.client() as client:
        moref, change_id = first_point(sim, client)
        snapshot = client.create_snapshot(moref)
        truth = [(MIB, GRANULE), (3 * MIB, GRANULE)]
        assert client.areas(moref, snapshot, 2000, change_id, 8 * MIB)[0] == truth

        def page(**lie):
            sim("lie", vm=WEB, **lie)
            return client.areas_page(moref, snapshot, 2000, 2 * GRANULE, change_id)

        start, length, areas = page(areas=[[MIB, GRANULE]])
        assert (start + length, areas) == (8 * MIB, truth[1:])
        assert page(kind="zero_length")[1] == 0
        assert (lambda a: a != sorted(a))(page(kind="unordered")[2])
        assert (lambda a: a[0][0] + a[0][1] > a[1][0])(page(kind="overlap")[2])
        assert (lambda a: a[0][0] + a[0][1] > 8 * MIB)(page(kind="past_end")[2])
        assert page(kind="before")[2][0][0] < 2 * GRANULE
        assert page(kind="other_start")[0] != 2 * GRANULE
        assert page(kind="none") == (2 * GRANULE, 8 * MIB - 2 * GRANULE, truth)


def test_tracking_that_says_too_much(make_sim):
    sim = make_sim()
    with sim.client() as client:
        moref, change_id = first_point(sim, client)
        sim("touch", vm=WEB, offset=7 * MIB, length=GRANULE)
        snapshot = client.create_snapshot(moref)
        areas = client.areas(moref, snapshot, 2000, change_id, 8 * MIB)[0]
        assert areas == [(MIB, GRANULE), (3 * MIB, GRANULE), (7 * MIB, GRANULE)]
        assert sim.frozen(snapshot)[7 * MIB:] == bytes(MIB)


def test_answers_to_star_that_are_of_no_use(make_sim):
    sim = make_sim([{"path": WEB, "cbt": True,
                     "disks": [{"size": MIB, "star": "whole"}, {"size": MIB, "star": "fault"}]}])
    moref = sim.vm(WEB)["moref"]
    with sim.client() as client:
        snapshot = client.create_snapshot(moref)
        assert client.areas(moref, snapshot, 2000, "*", MIB) == ([(0, MIB)], 1)
        with pytest.raises(Fault) as caught:
            client.areas_page(moref, snapshot, 2001, 0, "*")
        assert caught.value.type == "FileFault"


def test_a_disk_that_grew_and_one_that_was_replaced(make_sim):
    sim = make_sim()
    with sim.client() as client:
        moref, change_id = first_point(sim, client)
        before = client.disks(f"VirtualMachine:{moref}")[2000]
        by_hand = sim("snapshot", vm=WEB)["snapshot"]
        assert not sim.try_("resize", vm=WEB, size=16 * MIB)["ok"]
        sim("remove_snapshot", snapshot=by_hand)
        sim("resize", vm=WEB, size=16 * MIB)
        sim("write", vm=WEB, offset=15 * MIB, length=GRANULE, fill=3)
        snapshot = client.create_snapshot(moref)
        assert client.disks(f"VirtualMachineSnapshot:{snapshot}")[2000]["capacity"] == 16 * MIB
        assert client.areas(moref, snapshot, 2000, change_id, 16 * MIB)[0][-1] == (15 * MIB, GRANULE)
        sim("replace", vm=WEB)
        sim.write(WEB, 0, b"another" * 512)
        again = client.create_snapshot(moref)
        after = client.disks(f"VirtualMachineSnapshot:{again}")[2000]
        assert after["uuid"] != before["uuid"] and after["capacity"] == 16 * MIB
        assert sim.frozen(snapshot)[:1] == b"\5" and sim.frozen(again)[:7] == b"another"
        with pytest.raises(Fault):
            client.areas_page(moref, again, 2000, 0, change_id)


# ---- tasks

def test_slow_and_failing_tasks(make_sim):
    sim = make_sim()
    moref = sim.vm(WEB)["moref"]
    with sim.client() as client:
        sim("task", call="CreateSnapshot_Task", hold=True)
        started = client.call("CreateSnapshot_Task", f"VirtualMachine:{moref}",
                              "<name>slow</name><memory>false</memory><quiesce>false</quiesce>").findtext("returnval")
        assert client.properties(f"Task:{started}", "info.state")["info.state"].text == "running"
        client.call("CreateFilter", "PropertyCollector:propertyCollector",
                    '<spec><propSet><type>Task</type><pathSet>info.state</pathSet></propSet><objectSet>'
                    f'<obj type="Task">{started}</obj></objectSet></spec><partialUpdates>false</partialUpdates>')

        def wait(version, seconds):
            return client.call("WaitForUpdatesEx", "PropertyCollector:propertyCollector",
                               f"<version>{version}</version><options><maxWaitSeconds>{seconds}</maxWaitSeconds>"
                               "</options>")

        version = wait("", 5).findtext("returnval/version")
        assert wait(version, 0).find("returnval") is None       # nothing new: no returnval
        sim.write(WEB, 0, b"written while the task runs")
        threading.Timer(0.2, lambda: sim("release")).start()
        assert wait(version, 30).findtext(".//val") == "success"
        with pytest.raises(Fault) as caught:
            wait("77", 0)
        assert caught.value.type == "InvalidCollectorVersion"
        # what is frozen is frozen when the task ends
        assert sim.frozen(sim.vm(WEB)["snapshots"][0]["moref"])[:7] == b"written"

        sim("task", call="RemoveSnapshot_Task", type="GenericVmConfigFault", message="it does not go")
        snapshot = sim.vm(WEB)["snapshots"][0]["moref"]
        with pytest.raises(TaskError) as caught:
            client.remove_snapshot(snapshot)
        assert (caught.value.type, caught.value.text) == ("GenericVmConfigFault", "it does not go")
        client.remove_snapshot(snapshot)

        sim("task", call="CreateSnapshot_Task", hold=True)
        held = client.call("CreateSnapshot_Task", f"VirtualMachine:{moref}",
                           "<name>held</name><memory>false</memory><quiesce>false</quiesce>").findtext("returnval")
        client.call("CancelTask", f"Task:{held}")
        assert client.wait_task(held)["info.state"].text == "error"
        assert sim.vm(WEB)["snapshots"] == []


def test_quiescing_fails_and_consolidation_fails(make_sim):
    sim = make_sim()
    moref = sim.vm(WEB)["moref"]
    with sim.client() as client:
        sim("vm", vm=WEB, quiesce_fails=True)
        with pytest.raises(TaskError) as caught:
            client.create_snapshot(moref, quiesce=True)
        assert caught.value.type == "ApplicationQuiesceFault"
        assert sim.vm(WEB)["snapshots"] == []
        snapshot = client.create_snapshot(moref, quiesce=False)
        sim("vm", vm=WEB, quiesce_fails=False, consolidation_fails=True)
        quiesced = client.create_snapshot(moref, quiesce=True)
        assert [s["quiesced"] for s in sim.vm(WEB)["snapshots"]] == [False, True]
        client.remove_snapshot(snapshot)
        client.remove_snapshot(quiesced)
        assert client.properties(f"VirtualMachine:{moref}", "runtime.consolidationNeeded").popitem()[1].text == "true"


def test_orphaned_snapshots_of_ours_and_of_others(make_sim):
    sim = make_sim()
    moref = sim.vm(WEB)["moref"]
    for name in ("sendense-job-1", "before the update"):
        sim("snapshot", vm=WEB, name=name, description=f"<{name}> & more")
    with sim.client() as client:
        tree = client.properties(f"VirtualMachine:{moref}", "snapshot")["snapshot"]
        root = tree.find("rootSnapshotList")
        assert root.findtext("name") == "sendense-job-1"
        assert root.findtext("childSnapshotList/name") == "before the update"
        assert root.findtext("description") == "<sendense-job-1> & more"
        assert tree.findtext("currentSnapshot") == root.findtext("childSnapshotList/snapshot")
        client.remove_snapshot(root.findtext("snapshot"))
        assert [s["name"] for s in sim.vm(WEB)["snapshots"]] == ["before the update"]


# ---- sessions and the line

def test_sessions(make_sim):
    sim = make_sim(max_sessions=2)
    first, second = sim.client(), sim.client()
    with pytest.raises(Fault) as caught:
        sim.client()
    assert caught.value.type == "OutOfBounds"
    first.call("Logout", "SessionManager")
    with pytest.raises(Fault) as caught:
        first.call("CurrentTime", "ServiceInstance")
    assert caught.value.type == "NotAuthenticated" and caught.value.text == ""
    assert sim("calls")["sessions"] == 1
    sim("expire_sessions")
    with pytest.raises(Fault) as caught:
        second.call("CurrentTime", "ServiceInstance")
    assert caught.value.type == "NotAuthenticated"
    with pytest.raises(Fault) as caught:
        second.login(password="wrong")
    assert caught.value.type == "InvalidLogin"
    second.login()
    sim("set", session_idle_ms=0)
    wait_for(lambda: fails_with(second, "NotAuthenticated"), "the idle session ends")
    assert {"Login": 5, "Logout": 1}.items() <= sim.calls().items()
    first.close()
    second.close()


def fails_with(client, fault):
    try:
        client.call("CurrentTime", "ServiceInstance")
    except Fault as e:
        return e.type == fault
    return False


def test_a_session_that_ends_while_it_waits(make_sim):
    sim = make_sim()
    with sim.client() as client:
        threading.Timer(0.2, lambda: (sim("wait_call", call="WaitForUpdatesEx"), sim("expire_sessions"))).start()
        with pytest.raises(Fault) as caught:
            client.call("WaitForUpdatesEx", "PropertyCollector:propertyCollector",
                        "<version/><options><maxWaitSeconds>60</maxWaitSeconds></options>")
        assert caught.value.type == "NotAuthenticated"


def test_dropped_connections_and_503(make_sim):
    sim = make_sim()
    moref = sim.vm(WEB)["moref"]
    with sim.client() as client:
        def snapshot_by(kind, **more):
            sim("fault", call="CreateSnapshot_Task", kind=kind, **more)
            client.call("CreateSnapshot_Task", f"VirtualMachine:{moref}",
                        f"<name>{kind}</name><memory>false</memory><quiesce>false</quiesce>")

        for kind, error in (("drop_before", (http.client.HTTPException, OSError)), ("503", Fault),
                            ("drop_middle", http.client.IncompleteRead),
                            ("drop_after", (http.client.HTTPException, OSError)), ("fault", Fault)):
            with pytest.raises(error):
                snapshot_by(kind, type="InvalidState", message="no")
        wait_for(lambda: len(sim.vm(WEB)["snapshots"]) == 2, "the tasks end")
        assert [s["name"] for s in sim.vm(WEB)["snapshots"]] == ["drop_middle", "drop_after"]

        length = len(client.post(request("CurrentTime"))[1])
        for cut in range(0, length, 40):
            sim("fault", call="CurrentTime", kind="cut", bytes=cut)
            with pytest.raises((http.client.IncompleteRead, OSError)) as caught:
                client.post(request("CurrentTime"))
            assert len(getattr(caught.value, "partial", b"")) <= cut
        sim("fault", call="CurrentTime", kind="503", skip=1, times=1)
        assert [client.post(request("CurrentTime"))[0] for _ in range(3)] == [200, 503, 200]


def request(method, this="ServiceInstance"):
    return (f'<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/"><e:Body><{method} xmlns="urn:vim25">'
            f'<_this type="{this}">{this}</_this></{method}></e:Body></e:Envelope>').encode()


def test_a_vcenter_that_restarts(make_sim):
    sim = make_sim()
    snapshot = sim("snapshot", vm=WEB)["snapshot"]
    with sim.client() as client:
        sim("down")
        for _ in range(3):
            with pytest.raises((http.client.HTTPException, OSError)):
                client.call("CurrentTime", "ServiceInstance")
        sim("up")
        with pytest.raises(Fault) as caught:
            client.call("CurrentTime", "ServiceInstance")
        assert caught.value.type == "NotAuthenticated"
        client.login()
        assert client.disks(f"VirtualMachineSnapshot:{snapshot}")


def test_another_certificate(make_sim, place):
    from lib.vsphere import Certificate
    sim = make_sim()
    other = Certificate(place, "other")
    assert server_certificate(sim.port) == sim.certificate.der
    sim("certificate", cert=str(other.cert), key=str(other.key))
    assert server_certificate(sim.port) == other.der != sim.certificate.der


def server_certificate(port):
    import ssl
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", port)))


def test_missing_privileges(make_sim):
    sim = make_sim()
    moref = sim.vm(WEB)["moref"]
    needed = ("VirtualMachine.State.CreateSnapshot", "VirtualMachine.Provisioning.DiskRandomRead")
    sim("set", missing_privileges=[needed[0]])
    with sim.client() as client:
        reply = client.call("HasPrivilegeOnEntities", "AuthorizationManager",
                            f'<entity type="VirtualMachine">{moref}</entity><sessionId>x</sessionId>'
                            + "".join(f"<privId>{p}</privId>" for p in needed))
        assert [p.text for p in reply.iter("isGranted")] == ["false", "true"]
        reply = client.call("FetchUserPrivilegeOnEntities", "AuthorizationManager",
                            f'<entities type="VirtualMachine">{moref}</entities><userName>x</userName>')
        granted = [p.text for p in reply.iter("privileges")]
        assert needed[0] not in granted and needed[1] in granted
        with pytest.raises(Fault) as caught:
            client.create_snapshot(moref)
        assert caught.value.type == "NoPermission" and caught.value.detail.findtext("privilegeId") == needed[0]


# ---- the inventory

def test_pages_of_properties_and_a_walk_by_folders(make_sim):
    sim = make_sim([{"path": f"DC{n % 2}/vm/f{n % 3}/vm{n}", "disks": [{"size": MIB}]} for n in range(25)], page_max=10)
    walk = ('<objectSet><obj type="Folder">group-d1</obj><skip>true</skip>'
            '<selectSet xsi:type="TraversalSpec"><name>folders</name><type>Folder</type><path>childEntity</path>'
            '<skip>false</skip><selectSet><name>folders</name></selectSet><selectSet xsi:type="TraversalSpec">'
            "<type>Datacenter</type><path>vmFolder</path><skip>false</skip><selectSet><name>folders</name></selectSet>"
            "</selectSet></selectSet></objectSet>")
    with sim.client() as client:
        props = "".join(f"<propSet><type>{t}</type><pathSet>name</pathSet><pathSet>parent</pathSet></propSet>"
                        for t in ("VirtualMachine", "Folder", "Datacenter"))
        reply = client.call("RetrievePropertiesEx", "PropertyCollector:propertyCollector",
                            f"<specSet>{props}{walk}</specSet><options><maxObjects>100</maxObjects></options>")
        parents, names, pages = {}, {}, 1
        while True:
            assert len(reply.findall("returnval/objects")) <= 10
            for each in reply.iter("objects"):
                values = {p.findtext("name"): p.findtext("val") for p in each.iter("propSet")}
                names[each.findtext("obj")], parents[each.findtext("obj")] = values["name"], values["parent"]
            token = reply.findtext("returnval/token")
            if not token:
                break
            reply = client.call("ContinueRetrievePropertiesEx", "PropertyCollector:propertyCollector",
                                f"<token>{token}</token>")
            pages += 1
        paths = set()
        for moref in (m for m in names if m.startswith("vm-")):
            path, at = names[moref], parents[moref]
            while at in names:
                path, at = f"{names[at]}/{path}", parents[at]
            paths.add(path)
        assert paths == {f"DC{n % 2}/vm/f{n % 3}/vm{n}" for n in range(25)} and pages > 3


def test_ten_thousand_vms_come_in_pages(make_sim):
    sim = make_sim([{"path": "DC0/vm/many/vm", "count": 10_000, "cbt": False, "disks": [{"size": 1 << 40}] * 2}])
    with sim.client() as client:
        view = client.call("CreateContainerView", "ViewManager", '<container type="Folder">group-d1</container>'
                           "<type>VirtualMachine</type><recursive>true</recursive>").findtext("returnval")
        spec = ('<specSet><propSet><type>VirtualMachine</type><pathSet>name</pathSet>'
                '<pathSet>config.hardware.device</pathSet></propSet><objectSet>'
                f'<obj type="ContainerView">{view}</obj><skip>true</skip><selectSet xsi:type="TraversalSpec">'
                "<type>ContainerView</type><path>view</path><skip>false</skip></selectSet></objectSet></specSet>")
        this = '<_this type="PropertyCollector">propertyCollector</_this>'
        body = f"{this}{spec}<options><maxObjects>500</maxObjects></options>"
        found, token, method = set(), "", "RetrievePropertiesEx"
        while method:
            _, content = client.post((f'<e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/" '
                                      'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><e:Body>'
                                      f'<{method} xmlns="urn:vim25">{body}</{method}></e:Body></e:Envelope>').encode())
            found |= set(re.findall(rb'<obj type="VirtualMachine">(vm-\d+)<', content))
            token = re.search(rb"<token>([^<]*)", content)
            method = token and "ContinueRetrievePropertiesEx"
            body = token and f"{this}<token>{token.group(1).decode()}</token>"
        client.call("DestroyView", f"ContainerView:{view}")
        seconds = cpu_seconds(sim.process.pid)
    assert len(found) == 10_000 and sim.calls()["ContinueRetrievePropertiesEx"] == 19 and sim("calls")["views"] == 0
    assert seconds < 5, f"{seconds:.1f} s of CPU: no client could be quick"


# ---- the data path

def frozen_vm(sim, client, disks=1, size=8 * MIB, seed=1):
    """(moref, snapshot, [(key, file name, content)]) of a VM whose guest wrote on after the snapshot."""
    moref = sim.vm(WEB)["moref"]
    contents = []
    for n in range(disks):
        content = bytearray(size)
        content[MIB:4 * MIB] = random_bytes(seed + n, 3 * MIB)
        content[-512:] = b"\xee" * 512
        sim.write(WEB, MIB, bytes(content[MIB:4 * MIB]), disk=2000 + n)
        sim.write(WEB, size - 512, bytes(content[-512:]), disk=2000 + n)
        contents.append(bytes(content))
    snapshot = client.create_snapshot(moref)
    for n in range(disks):
        sim("write", vm=WEB, disk=2000 + n, offset=0, length=size, fill=0xaa)
    files = client.disks(f"VirtualMachineSnapshot:{snapshot}")
    return moref, snapshot, [(2000 + n, files[2000 + n]["fileName"], contents[n]) for n in range(disks)]


@pytest.mark.parametrize("by", ["password", "cookie"])
def test_the_real_plugin_reads_a_snapshot_byte_for_byte(make_sim, place, by):
    sim = make_sim(one_vm(8 * MIB + 512))
    with sim.client() as client:
        moref, snapshot, [(_, file, content)] = frozen_vm(sim, client, size=8 * MIB + 512)
        reference, copy = place / "reference.raw", place / "copy.raw"
        reference.write_bytes(content)
        options = {}
        if by == "cookie":
            options = {"password": "not looked at", "cookie": f'vmware_soap_session="{client.cookie}"'}
        with sim.serve(moref, snapshot, file, extra=["--filter=retry", "--filter=blocksize"], **options) as uri:
            run("nbdcopy", "--request-size=262144", uri, copy)
            assert copy.read_bytes() == content
            compared = run("qemu-img", "compare", "-f", "raw", "-F", "raw", reference, uri)
            assert "identical" in compared
            extents = run("nbdinfo", "--map", uri)
            assert "hole,zero" in extents and "data" in extents
    assert sim.calls()["Login"] == 1 and sim.calls()["read"] > 10


def qemu_io(uri, command, status=0):
    return run("qemu-io", "-r", "-f", "raw", "-c", command, uri, status=status)


def test_wrong_thumbprint_wrong_password_dead_session_unknown_names(make_sim):
    sim = make_sim()
    with sim.client() as client:
        moref, snapshot, [(_, file, _)] = frozen_vm(sim, client)
        dead = sim.client()
        dead.call("Logout", "SessionManager")
        for options in ({"thumbprint": "AA:" * 19 + "AA"}, {"thumbprint": sim.certificate.thumbprint("sha256")},
                        {"password": "wrong"}, {"cookie": dead.cookie}, {"snapshot": "snapshot-9999"},
                        {"file": "[ds0] web/web-000001.vmdk"}, {"vm": "vm-9999"}, {"snapshot": None}):
            names = {"vm": moref, "snapshot": snapshot, "file": file, **options}
            with sim.serve(**names) as uri:
                said = run("nbdinfo", uri, status=1)
                assert "server disconnected" in said.lower() or "error" in said.lower(), said
        dead.close()
        log = (sim.folder / "nbdkit.log").read_text()
        assert log.count("VixDiskLib_Open") >= 7 and "Unknown error" in log and "incorrect user name" in log
        with sim.serve(moref, snapshot, file) as uri:
            run("nbdinfo", uri)
        sim("set", missing_privileges=["VirtualMachine.Provisioning.DiskRandomRead"])
        with sim.serve(moref, snapshot, file) as uri:
            run("nbdinfo", uri, status=1)


def test_two_mebibytes_a_request_and_no_more(make_sim):
    sim = make_sim()
    with sim.client() as client:
        moref, snapshot, [(_, file, content)] = frozen_vm(sim, client)
        assert content[-512:] == b"\xee" * 512
        with sim.serve(moref, snapshot, file) as uri:
            qemu_io(uri, f"read -P 0xee {8 * MIB - 512} 512")
            qemu_io(uri, "read 0 2M")
            assert "Input/output error" in qemu_io(uri, "read 0 3M", status=1)
        with sim.serve(moref, snapshot, file, extra=["--filter=blocksize"],
                       after=["minblock=512", "maxdata=2M"]) as uri:
            qemu_io(uri, "read 0 3M")
            qemu_io(uri, f"read -P 0xee {8 * MIB - 100} 100")


def test_eight_disks_through_latency(make_sim, place):
    """Eight disks with eight requests each wait at the same time; one request at a time on one disk waits alone. Told
    by what the simulator has under way, not by a clock: this machine may be busy."""
    size, disks = 4 * MIB, 8
    sim = make_sim(one_vm(size, disks))
    copy = ["nbdcopy", "--connections=1", "--request-size=262144", "--no-extents"]
    with sim.client() as client, contextlib.ExitStack() as stack:
        moref, snapshot, found = frozen_vm(sim, client, disks, size)
        uris = [stack.enter_context(sim.serve(moref, snapshot, file)) for _, file, _ in found]
        sim("set", read_latency_ms=20)
        start = time.monotonic()
        run(*copy, "--requests=1", uris[0], place / "one.raw")
        alone = time.monotonic() - start
        assert alone >= 16 * 0.020 and sim("calls")["reads_most"] == 1
        sim("fault", call="read", kind="delay", ms=600000, times=100000)    # until all of them have started
        copies = [subprocess.Popen([*copy, "--requests=8", uri, place / f"{n}.raw"]) for n, uri in enumerate(uris)]
        try:
            assert wait_for(lambda: sim("calls")["reads_most"] >= disks * 7, "the reads are under way together")
        finally:
            sim("heal", call="read")
            assert [c.wait(60) for c in copies] == [0] * disks
        for n, (_, _, content) in enumerate(found):
            assert (place / f"{n}.raw").read_bytes() == content


def test_faults_of_the_data_path(make_sim):
    sim = make_sim()
    with sim.client() as client:
        moref, snapshot, [(_, file, _)] = frozen_vm(sim, client)
        with sim.serve(moref, snapshot, file) as uri:
            for kind in ("drop_before", "drop_middle", "drop_after", "503", "fault"):
                sim("fault", call="read", kind=kind, type="x", times=2)     # curl repeats once by itself
                assert "error" in qemu_io(uri, "read 0 4096", status=1).lower(), kind
                sim("heal")
            qemu_io(uri, "read 0 4096")
            # the snapshot goes: what was readable is an error, never another content
            client.remove_snapshot(snapshot)
            qemu_io(uri, "read 0 4096", status=1)


# ---- size

def test_a_tebibyte_of_which_a_hundredth_changed_in_ten_thousand_areas(make_sim, place):
    size, areas = 1 << 40, 10_000
    sim = make_sim(one_vm(size), max_areas=3000)
    step = size // areas // GRANULE * GRANULE
    moref = sim.vm(WEB)["moref"]
    with sim.client() as client:
        snapshot = client.create_snapshot(moref)
        change_id = client.disks(f"VirtualMachineSnapshot:{snapshot}")[2000]["changeId"]
        client.remove_snapshot(snapshot)
        sim("write", vm=WEB, areas=[[n * step, 4096] for n in range(areas)], stamp=5)
        sim("touch", vm=WEB, areas=[[n * step, MIB] for n in range(areas)])
        snapshot = client.create_snapshot(moref)
        sim("write", vm=WEB, areas=[[n * step, 4096] for n in range(areas)], stamp=6)
        found, pages = client.areas(moref, snapshot, 2000, change_id, size)
        assert found == [(n * step, MIB) for n in range(areas)] and pages == 4
        seconds = cpu_seconds(sim.process.pid)
        file = client.disks(f"VirtualMachineSnapshot:{snapshot}")[2000]["fileName"]
        with sim.serve(moref, snapshot, file) as uri:
            at = (areas - 1) * step
            expected = (at // 512).to_bytes(8, "little") + (5).to_bytes(8, "little")
            (place / "sector").write_bytes(expected * 32)
            qemu_io(uri, f"read -P 5 {at + 8} 1")
            said = qemu_io(uri, f"read -v {at} 16")
            assert " ".join(f"{b:02x}" for b in expected) in said, said
        client.remove_snapshot(snapshot)
    used = sum(os.stat(p).st_blocks * 512 for p in (sim.folder / "disks").iterdir())
    assert used < 2 * areas * GRANULE and seconds < 10, (used, seconds)
    assert len(list((sim.folder / "disks").iterdir())) == 1      # the snapshots' files are gone


# ---- it leaves nothing

def test_it_ends_with_whoever_started_it(place):
    """A test that is killed cannot clean up: the simulator sees its pipe close."""
    script = ("import sys; sys.path.insert(0, sys.argv[1])\n"
              "from lib.vsphere import Simulator\n"
              "import os, signal\n"
              "sim = Simulator(sys.argv[2], vms=[]).__enter__()\n"
              "print(sim.process.pid, sim.run_dir, flush=True)\n"
              "os.kill(os.getpid(), signal.SIGKILL)\n")
    done = subprocess.run(["/usr/bin/python3", "-c", script, os.path.dirname(__file__), str(place / "sim")],
                          capture_output=True, text=True, timeout=60, check=False)
    pid, run_dir = done.stdout.split()
    wait_for(lambda: not os.path.exists(f"/proc/{pid}/exe"), "the simulator's end")
    assert not os.listdir(run_dir) and not system.wait_gone(place)
    os.rmdir(run_dir)


def test_it_says_what_is_wrong_with_its_input(place):
    for state, word in (('{"vms": [{"path": "nowhere"}]}', "DATACENTER/vm"), ("{", "line"),
                        ('{"vms": [{"path": "a/vm/b", "disks": [{"size": 100}]}]}', "512")):
        with pytest.raises(AssertionError, match=word):
            sim = Simulator(place / "sim")
            sim.state = None
            start_with(sim, state)
    assert subprocess.run([BENCH / "vsphere-simulator"], capture_output=True, timeout=30, check=False).returncode == 2


def start_with(sim, text):
    import lib.vsphere as module
    dumps = module.json.dumps
    try:
        module.json.dumps = lambda _: text
        with sim:
            pass
    finally:
        module.json.dumps = dumps
