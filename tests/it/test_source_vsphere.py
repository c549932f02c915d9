"""Backups of VMs in a (simulated) vCenter: one snapshot, changed areas by CBT, bytes through nbdkit's real vddk plugin
over the stand-in library. docs/internals/source-vsphere.md, vsphere-bench.md.
"""

import os
import random
import secrets

import pytest

from lib.cli import Cli
from lib.faults import client_pid
from lib.history import History, partial_files, wait_for
from lib.system import assert_nowhere
from lib.vsphere import LIBDIR, USER, Simulator, plugin
from lib.world import World

MIB = 1 << 20
CLUSTER = 65536
WEB = "DC0/vm/web"
SIZES = {2000: 8 * MIB, 2016: 4 * MIB}


class VsphereHistory(History):
    def __init__(self, make_hub, place, **settings):
        hub = make_hub(environment={"SENDENSE_VDDK_LIBDIR": str(LIBDIR), "SENDENSE_VDDK_PLUGIN": plugin()})
        super().__init__(hub, Cli(hub.url, cwd=place), place, "web")
        self.settings = settings
        self.random = random.Random(7)
        self.world = World(hub, place)

    def __enter__(self):
        disks = [{"key": key, "size": size} for key, size in SIZES.items()]
        vms = self.settings.pop("vms", None) or [{"path": WEB, "cbt": True, "disks": disks}]
        self.sim = Simulator(self.folder / "sim", vms, password="pw-" + secrets.token_hex(12), **self.settings)
        self.sim.__enter__()
        try:
            self.add_repository("main")
            self.api.post("/sources", {
                "name": "vc-1", "type": "vsphere", "vcenter": f"127.0.0.1:{self.sim.port}", "user": USER,
                "password": self.sim.state["password"], "thumbprint": self.sim.certificate.thumbprint("sha256")}
            ).expect(201)
        except BaseException:
            self.sim.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.sim.__exit__()

    def register(self, **more):
        self.api.post("/vms", {"name": "web", "source": {"type": "vsphere", "source": "vc-1", "vm": "/" + WEB, **more}}
                      ).expect(201)
        return self

    def guest_writes(self, clusters=4):
        for key, size in SIZES.items():
            for _ in range(clusters):
                at = self.random.randrange(size // 4096) * 4096
                self.sim.write(WEB, at, self.random.randbytes(4096), disk=key)

    def references_now(self):
        """The disks as they are: the guest stands still while we look."""
        name = "look-" + secrets.token_hex(4)
        self.sim("snapshot", vm=WEB, name=name)
        moref, = [s["moref"] for s in self.sim.vm(WEB)["snapshots"] if s["name"] == name]
        found = {str(key): self.references.of(self.sim.frozen(moref, key)) for key in SIZES}
        self.sim("remove_snapshot", vm=WEB, snapshot=moref)
        return found

    def snapshots(self):
        return [s["name"] for s in self.sim.vm(WEB)["snapshots"]]

    def own_processes(self):
        return {self.sim.process.pid}

    def point(self, kind=None):
        references = self.references_now()
        backup = self.backup("main", references, kind)
        self.check_nothing_left()
        assert not [n for n in self.snapshots() if n.startswith("sendense.")]
        return backup


@pytest.fixture
def history(make_hub, place):
    with VsphereHistory(make_hub, place) as made:
        yield made


def modes(backup):
    return {d["disk_key"]: (d["mode"], d["reason"]) for d in backup["disks"]}


def test_full_then_increments(history):
    """Each disk by its own key and change ID; only what changed travels; every point restores."""
    history.register().guest_writes(20)
    full = history.point()
    assert modes(full) == {"2000": ("full", "first_backup"), "2016": ("full", "first_backup")}
    assert [d["disk_id"] for d in full["disks"]] == [2000, 2016] and len({d["change_id"] for d in full["disks"]}) == 2
    assert all(d["tracking"] == "cbt" for d in full["disks"])
    for _ in range(3):
        history.guest_writes()
        later = history.point()
        assert modes(later) == {"2000": ("tracked", ""), "2016": ("tracked", "")}
        assert 0 < later["bytes_transferred"] <= 8 * CLUSTER
    history.guest_writes(0)
    assert history.point()["bytes_transferred"] == 0
    history.check_everything(history.random)
    assert_nowhere(history.hub, history.sim.state["password"])


def test_areas_in_pages(make_hub, place):
    with VsphereHistory(make_hub, place, max_areas=2, change_id_blanks=True) as history:
        history.register().guest_writes(20)
        history.point()
        history.guest_writes(30)
        assert set(modes(history.point()).values()) == {("tracked", "")}
        history.check_everything(history.random)


def test_tracking_that_is_off_is_switched_on(make_hub, place):
    vms = [{"path": WEB, "cbt": False, "disks": [{"key": key, "size": size} for key, size in SIZES.items()]}]
    with VsphereHistory(make_hub, place, vms=vms) as history:
        history.register().guest_writes(10)
        assert all(d["tracking"] == "cbt" for d in history.point()["disks"])
        history.guest_writes()
        assert set(modes(history.point()).values()) == {("tracked", "")}
        history.check_everything(history.random)


def test_tracking_is_not_switched_on_beside_snapshots(make_hub, place):
    """Its answers would be wrong, without an error: such a VM is compared, and is told what to do."""
    vms = [{"path": WEB, "cbt": False, "disks": [{"key": key, "size": size} for key, size in SIZES.items()]}]
    with VsphereHistory(make_hub, place, vms=vms) as history:
        history.sim("snapshot", vm=WEB, name="of-the-admin")
        history.register().guest_writes(10)
        assert all(d["tracking"] == "none" for d in history.point()["disks"])
        history.guest_writes()
        assert {m for m, _ in modes(history.point()).values()} == {"compare"}
        assert history.snapshots() == ["of-the-admin"]
        history.check_everything(history.random)


@pytest.mark.parametrize("loss, reason, word", [
    ("lose_cbt", "id_refused", "FileFault"), ("reset_cbt", "epoch_changed", "epoch"),
    ("replace", "backing_replaced", "replaced"), ("resize", "disk_resized", "size")])
def test_lost_tracking_is_said_and_compared(history, place, loss, reason, word):
    history.register().guest_writes(10)
    history.point()
    if loss == "replace":
        content = place / "other.raw"
        content.write_bytes(os.urandom(SIZES[2000]))
        history.sim("replace", vm=WEB, disk=2000, size=SIZES[2000], content=str(content),
                    file="[ds0] web/other.vmdk")
    elif loss == "resize":
        history.sim("resize", vm=WEB, disk=2000, size=SIZES[2000] + MIB)
    else:
        history.sim(loss, vm=WEB, disk=2000)
    history.guest_writes()
    later = history.point()
    disk, = [d for d in later["disks"] if d["disk_key"] == "2000"]
    assert (disk["mode"], disk["reason"]) == ("compare", reason), disk
    assert word in disk["reason_text"], disk
    history.guest_writes()
    # a tracking file that is gone stays so until somebody switches tracking off and on
    again = {("tracked", "")} if loss != "lose_cbt" else {("tracked", ""), ("compare", "id_refused")}
    assert set(modes(history.point()).values()) == again
    history.check_everything(history.random)


@pytest.mark.parametrize("lie", ["zero_length", "unordered", "past_end"])
def test_answers_that_cannot_be_right_are_not_believed(history, lie):
    history.register().guest_writes(10)
    history.point()
    history.guest_writes()
    references = history.references_now()
    history.sim("lie", vm=WEB, disk=2000, kind=lie)
    backup = history.backup("main", references)
    assert modes(backup)["2000"] == ("compare", "id_refused"), backup
    history.sim("lie", vm=WEB, disk=2000, kind="none")
    history.check_everything(history.random)


def test_a_killed_client_leaves_a_snapshot_that_the_next_run_removes(history):
    """Ours goes, and never anybody else's; what was durable is gone on from."""
    history.register().guest_writes(40)
    history.sim("snapshot", vm=WEB, name="sendense.of-somebody-else")
    history.sim("set", read_latency_ms=300)
    backup_id = history.start("main")
    wait_for(lambda: history.show(backup_id)["phase"] == "copying", "it copies")
    os.kill(client_pid(history.world, backup_id), 9)
    assert history.wait_final(backup_id)["status"] == "failed"
    assert len(history.snapshots()) == 2
    history.sim("set", read_latency_ms=0)
    references = history.references_now()
    history.backup("main", references)
    history.check_nothing_left()        # the client closes its source after the point is there
    assert history.snapshots() == ["sendense.of-somebody-else"]
    assert not partial_files(history.repositories["main"])
    history.check_everything(history.random)


def test_quiescing(make_hub, place):
    disks = [{"key": key, "size": size} for key, size in SIZES.items()]
    with VsphereHistory(make_hub, place, vms=[{"path": WEB, "cbt": True, "quiesce_fails": True, "disks": disks}]
                        ) as history:
        history.register().guest_writes(4)
        backup = history.point()
        assert backup["consistency"] == "crash" and backup["consistency_detail"], backup
        history.api.patch("/vms/web", {"source": {"type": "vsphere", "source": "vc-1", "vm": "/" + WEB,
                                                  "quiesce": "require"}}).expect(200)
        backup_id = history.start("main")
        assert history.wait_final(backup_id)["status"] == "failed"
        history.check_nothing_left()
        assert not history.snapshots()


def test_a_disk_that_no_snapshot_holds(make_hub, place):
    disks = [{"key": 2000, "size": SIZES[2000]},
             {"key": 2016, "size": SIZES[2016], "mode": "independent_persistent"}]
    with VsphereHistory(make_hub, place, vms=[{"path": WEB, "cbt": True, "disks": disks}]) as history:
        history.register()
        backup_id = history.start("main")
        failed = history.wait_final(backup_id)
        assert failed["status"] == "failed" and "independent" in failed["details"], failed
        history.api.patch("/vms/web", {"source": {"type": "vsphere", "source": "vc-1", "vm": "/" + WEB,
                                                  "disks_unsupported": "skip"}}).expect(200)
        result = history.cli.run("backup", "web", "--repo", "main", use_json=True)
        assert result.status == 4 and result.json["left_out"] == ["2016"], result
        history.check_nothing_left()
        assert not history.snapshots()


def test_a_vcenter_that_is_away_or_has_another_password(history):
    history.register()
    history.sim("set", password="another")
    failed = history.wait_final(history.start("main"))
    assert failed["status"] == "failed" and "InvalidLogin" in failed["details"], failed
    history.sim("set", password=history.sim.state["password"])
    history.sim("down")
    failed = history.wait_final(history.start("main"))
    assert failed["status"] == "failed", failed
    history.sim("up")
    history.guest_writes(3)
    history.point()
