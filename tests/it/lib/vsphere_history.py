"""The history of a VM in a (simulated) vCenter."""

import copy
import random
import secrets

from lib.cli import Cli
from lib.history import History, wait_for
from lib.vsphere import LIBDIR, USER, Simulator, plugin
from lib.world import World

MIB = 1 << 20
WEB = "DC0/vm/web"
SIZES = {2000: 8 * MIB, 2016: 4 * MIB}


def a_vm(path=WEB, cbt=True):
    return {"path": path, "cbt": cbt, "disks": [{"key": key, "size": size} for key, size in SIZES.items()]}


def modes(backup):
    return {d["disk_key"]: (d["mode"], d["reason"]) for d in backup["disks"]}


class VsphereHistory(History):
    def __init__(self, make_hub, place, environment=None, **settings):
        hub = make_hub(environment={"SENDENSE_VDDK_LIBDIR": str(LIBDIR), "SENDENSE_VDDK_PLUGIN": plugin(),
                                    "SENDENSE_SLOTS_DIR": str(place / "slots"), **(environment or {})})
        super().__init__(hub, Cli(hub.url, cwd=place), place, "web")
        self.path = WEB
        self.settings = settings
        self.random = random.Random(7)
        self.world = World(hub, place)

    def __enter__(self):
        vms = self.settings.pop("vms", None) or [a_vm()]
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
        self.api.post("/vms", {"name": self.vm_name, "source": {"type": "vsphere", "source": "vc-1",
                                                                "vm": "/" + self.path, **more}}).expect(201)
        return self

    def beside(self, name):
        """The history of another VM in the same vCenter, hub and repositories."""
        other = copy.copy(self)
        other.vm_name, other.path, other.folder = name, f"DC0/vm/{name}", self.folder / name
        other.folder.mkdir()
        other.points, other.order = {}, {repository: [] for repository in self.order}
        return other.register()

    def guest_writes(self, clusters=4):
        for key, size in SIZES.items():
            for _ in range(clusters):
                at = self.random.randrange(size // 4096) * 4096
                self.sim.write(self.path, at, self.random.randbytes(4096), disk=key)

    def references_now(self):
        """The disks as they are: the guest stands still while we look."""
        name = "look-" + secrets.token_hex(4)
        self.sim("snapshot", vm=self.path, name=name)
        moref, = [s["moref"] for s in self.sim.vm(self.path)["snapshots"] if s["name"] == name]
        found = self.frozen_now(moref)
        self.sim("remove_snapshot", vm=self.path, snapshot=moref)
        return found

    def frozen_now(self, moref):
        return {str(key): self.references.of(self.sim.frozen(moref, key)) for key in SIZES}

    def told(self, backup_id, words):
        """The client's log lines about the job that have these words."""
        return [line for path in (self.hub.data / "log").glob("*.client.log")
                for line in path.read_text(errors="replace").splitlines() if words in line and backup_id in line]

    def copying(self, reads=0):
        """A backup that copies, and is not over before release_reads(), however slow whoever looks is: that many reads
        are answered, and the others held back."""
        self.sim("fault", call="read", kind="delay", ms=600000, times=100000, skip=reads)
        backup_id = self.start("main")
        wait_for(lambda: self.show(backup_id)["phase"] == "copying", "it copies")
        return backup_id

    def release_reads(self):
        self.sim("heal", call="read")

    def snapshots(self):
        return [s["name"] for s in self.sim.vm(self.path)["snapshots"]]

    def own_processes(self):
        return {self.sim.process.pid}

    def point(self, kind=None):
        references = self.references_now()
        backup = self.backup("main", references, kind)
        self.check_nothing_left()
        assert not [n for n in self.snapshots() if n.startswith("sendense.")]
        return backup
