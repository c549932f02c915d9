"""Random histories of a VM in a (simulated) vCenter, through the real hub, client, exporters, CLI and nbdkit's real
vddk plugin over the stand-in library: docs/internals/oracle.md.

Each step deals a few happenings from a shuffled pack, lets the guest write, and makes a backup. A history plays the
pack at least once: a happening that never came is a failure. Every listed point is the disks at its snapshot's instant,
byte for byte, by the test's own copy of them; our snapshots go, and nobody else's do.

    ORACLE_SEED=n         the first seed (default 1); a failing test's name holds the seed that repeats it
    ORACLE_HISTORIES=n    how many (default 1)
    ORACLE_STEPS=n        of each (default 12), and up to twice as many until all has happened
"""

import os
import random
import secrets
from collections import Counter

import pytest

from lib import faults, images, system
from lib.cli import Cli
from lib.hub import FINAL
from lib.history import History, wait_for
from lib.images import CLUSTER, SECTOR
from lib.vsphere import Simulator, hub_environment
from lib.world import World

FIRST = int(os.environ.get("ORACLE_SEED", "1"))
COUNT = int(os.environ.get("ORACLE_HISTORIES", "1"))
STEPS = int(os.environ.get("ORACLE_STEPS", "12"))
CHAIN_LIMIT = 6
OVERHEAD_CLUSTERS = 8       # header, L1, L2, reference counts, rounding: of a small image
MIB = 1 << 20
SIZES = (SECTOR, CLUSTER, 3 * CLUSTER + SECTOR, MIB, 2 * MIB + 5 * SECTOR, 5 * MIB)
KEYS = ("2000", "2001", "2016", "2017")
WEB = "DC0/vm/web"
LARGE = SIZES[-1]       # one disk at least, so that there is a middle of a copy
TRACKED = ("tracked", "")
UNKNOWN = "unknown"     # of an epoch: tracking began anew while a backup ran
PAGES = ({"max_areas": 2000, "max_length": 0}, {"max_areas": 1, "max_length": 0}, {"max_areas": 2, "max_length": 0},
         {"max_areas": 2000, "max_length": 3 * CLUSTER + SECTOR}, {"max_areas": 2000, "max_length": 100 * SECTOR})
LIES = ("zero_length", "unordered", "overlap", "past_end", "before", "other_start")
# Of one backup, and how often the client and its nbdkit make it at the least
CALLS = {"Login": 1, "RetrievePropertiesEx": 5, "CreateSnapshot_Task": 1, "WaitForUpdatesEx": 2,
         "QueryChangedDiskAreas": 2, "info": 2, "read": 4, "RemoveSnapshot_Task": 1, "Logout": 1}
COPYING = ("info", "read", "read")


class GuestDisk:
    def __init__(self, content):
        self.content = bytearray(content)
        self.past = [bytes(content)]    # what it held at earlier backups
        self.lost = None                # the epoch whose tracking file is gone
        self.lie = None

    def resize(self, size):
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))


class VcenterHistory(History):
    def __init__(self, rng, hub, folder):
        super().__init__(hub, Cli(hub.url, cwd=folder), folder, "oracle vm")
        self.rng = rng
        self.world = World(hub, folder)
        self.names = 0
        keys = rng.sample(KEYS, rng.choice((2, 3)))
        self.disks = {key: GuestDisk(images.random_content(rng, rng.choice(SIZES))) for key in keys}
        self.disks[keys[0]] = GuestDisk(images.random_content(rng, LARGE))
        self.granule = rng.choice((4096, CLUSTER, 4 * CLUSTER))
        disks = [{"key": int(key), "content": str(self.content_file(disk.content)), "size": len(disk.content),
                  "file": f"[ds0] web/{key}.vmdk"} for key, disk in self.disks.items()]
        self.sim = Simulator(folder / "sim", [{"path": WEB, "cbt": rng.choice((True, False)), "disks": disks}],
                             password="pw-" + secrets.token_hex(12), granule=self.granule,
                             change_id_blanks=rng.random() < 0.5, cbt_at_snapshot=rng.random() < 0.5)
        self.deck = []
        self.seen = Counter()
        self.others = []            # names of other people's snapshots
        self.excluded = set()
        self.touched = {}           # (repository, disk key): clusters written to since the newest point
        self.shown = {}             # of completed points
        self.epochs = {}            # point: {disk key: what stood before its change ID's slash; None: not tracked}
        self.refuted = set()        # (point, disk key): an audit found wrong what tracking says of the time since
        self.kind = None            # of the next good backup

    def __enter__(self):
        self.sim.__enter__()
        return self

    def __exit__(self, *_):
        self.sim.__exit__()

    def register(self):
        for name in ("main", "other"):
            self.add_repository(name)
        self.api.post("/sources", self.sim.source()).expect(201)
        self.api.post("/vms", {"name": self.vm_name, "source": {"type": "vsphere", "source": "vc-1", "vm": f"/{WEB}"},
                               "audit_blocks": 0}).expect(201)

    def own_processes(self):
        return {self.sim.process.pid}

    def name(self, what):
        self.names += 1
        return f"{what}-{self.names}"

    def content_file(self, content):
        """Becomes a disk of the simulator, which writes to it."""
        path = self.folder / self.name("disk")
        path.write_bytes(content)
        return path

    def references_now(self):
        return {key: self.references.of(bytes(disk.content)) for key, disk in self.disks.items()
                if key not in self.excluded}

    def a_disk(self):
        return self.rng.choice(sorted(self.disks))

    def largest(self):
        return max(sorted(self.disks), key=lambda key: len(self.disks[key].content))

    def tell(self, command, key, **more):
        return self.sim(command, vm=WEB, disk=int(key), **more)

    # ---- what the guest does

    def touch(self, key, offset, length):
        """The clusters that change tracking, which knows granules, may name from now on."""
        start, end = offset // self.granule * self.granule, -(-(offset + length) // self.granule) * self.granule
        for repository in self.repositories:
            self.touched.setdefault((repository, key), set()).update(range(start // CLUSTER, -(-end // CLUSTER)))

    def put(self, key, offset, data):
        self.sim.write(WEB, offset, data, disk=int(key))
        self.disks[key].content[offset:offset + len(data)] = data
        self.touch(key, offset, len(data))

    def write(self, changes=6):
        for key, disk in sorted(self.disks.items()):
            said = []
            for _ in range(self.rng.randrange(changes)):
                where = images.random_range(self.rng, len(disk.content), SECTOR)
                if where:
                    said.append(self.write_once(key, *where))
            self.say(f"  {key}: {'; '.join(said)}")

    def write_once(self, key, offset, length):
        """Content that comes back, now or after a zero, is what a wrong parent would give away."""
        disk = self.disks[key]
        how = self.rng.choice(("noise", "noise", "zeros", "the same again", "what was there before", "trim"))
        if how == "trim":
            self.tell("trim", key, offset=offset, length=length)
            disk.content[offset:offset + length] = bytes(length)
            self.touch(key, offset, length)
        else:
            past = self.rng.choice(disk.past)[offset:offset + length].ljust(length, b"\0")
            self.put(key, offset, {"noise": self.rng.randbytes(length), "zeros": bytes(length),
                                   "the same again": bytes(disk.content[offset:offset + length]),
                                   "what was there before": past}[how])
        self.seen[how] += 1
        return f"{how} {offset}+{length}"

    # ---- what happens to the disks

    def grow(self):
        return self.grow_one(self.a_disk())

    def grow_one(self, key):
        if self.sim.vm(WEB)["snapshots"]:       # vCenter refuses
            return False
        self.resize(key, len(self.disks[key].content) + self.rng.choice((SECTOR, CLUSTER, 5 * CLUSTER + SECTOR)))
        return True

    def resize(self, key, size):
        self.say(f"  {key}: resized to {size}")
        before = len(self.disks[key].content)
        self.tell("resize", key, size=size)
        self.disks[key].resize(size)
        self.touch(key, min(size, before), abs(size - before))

    def grow_and_shrink_back(self):
        """Between two backups: the size is the same, and what was there is, too."""
        key = self.a_disk()
        size = len(self.disks[key].content)
        if not self.grow_one(key):
            return False
        self.put(key, len(self.disks[key].content) - SECTOR, self.rng.randbytes(SECTOR))
        self.resize(key, size)
        return True

    def shrink(self):
        """vCenter cannot: it is another, smaller file, whose tracking begins anew."""
        bigger = [key for key, disk in sorted(self.disks.items()) if len(disk.content) > 2 * CLUSTER]
        if not bigger or self.sim.vm(WEB)["snapshots"]:
            return False
        key = self.rng.choice(bigger)
        self.resize(key, len(self.disks[key].content) - CLUSTER)
        self.tell("reset_cbt", key)
        return True

    def replace(self):
        """Another disk under the same key, which may be a copy of it that somebody changed, with its UUID."""
        key = self.a_disk()
        content = bytearray(self.disks[key].content)
        same_uuid = self.rng.random() < 0.5
        uuid, = [d["uuid"] for d in self.sim.vm(WEB)["disks"] if d["key"] == int(key)]
        where = images.random_range(self.rng, len(content), SECTOR) or (0, SECTOR)
        content[where[0]:sum(where)] = self.rng.randbytes(where[1])
        self.say(f"  {key}: replaced{', with its UUID' if same_uuid else ''}")
        self.tell("replace", key, content=str(self.content_file(content)), file=f"[ds0] web/{self.name(key)}.vmdk",
                  **({"uuid": uuid} if same_uuid else {}))
        self.disks[key] = GuestDisk(content)
        return True

    def add_disk(self):
        free = sorted(set(KEYS) - set(self.disks))
        if not free:
            return False
        key = self.rng.choice(free)
        content = images.random_content(self.rng, self.rng.choice(SIZES))
        self.say(f"  {key}: added")
        self.sim("add_disk", vm=WEB, key=int(key), size=len(content), content=str(self.content_file(content)),
                 file=f"[ds0] web/{self.name(key)}.vmdk")
        self.disks[key] = GuestDisk(content)
        return True

    def remove_disk(self):
        can_go = sorted(set(self.disks) - self.excluded - {self.largest()})
        if not can_go:
            return False
        key = self.rng.choice(can_go)
        self.say(f"  {key}: removed")
        self.tell("remove_disk", key)
        del self.disks[key]
        return True

    def exclude(self):
        if len(self.disks) < 2 or self.excluded:
            return False
        self.change_excluded({self.rng.choice(sorted(set(self.disks) - {self.largest()}))})
        return True

    def include(self):
        if not self.excluded:
            return False
        self.change_excluded(set())
        return True

    def change_excluded(self, keys):
        self.say(f"  excluded: {sorted(keys)}")
        self.excluded = keys
        self.api.patch("/vms/oracle%20vm", {"excluded_disks": sorted(keys)}).expect(200)

    # ---- what happens to snapshots and tracking

    def others_snapshot(self):
        name = self.name("sendense.of-somebody-else")
        self.say(f"  snapshot {name}")
        self.sim("snapshot", vm=WEB, name=name)
        self.others.append(name)
        return True

    def others_snapshot_goes(self):
        if not self.others:
            return False
        name = self.others.pop(self.rng.randrange(len(self.others)))
        self.say(f"  snapshot {name} goes")
        moref, = [s["moref"] for s in self.sim.vm(WEB)["snapshots"] if s["name"] == name]
        self.sim("remove_snapshot", vm=WEB, snapshot=moref)
        return True

    def revert(self):
        """To a snapshot that is older than the newest point, perhaps; tracking begins anew."""
        self.others_snapshot()
        moref = self.sim.vm(WEB)["snapshots"][-1]["moref"]
        then = {key: bytes(disk.content) for key, disk in self.disks.items()}
        self.write()
        if self.rng.random() < 0.5:
            self.good_backup("main")
        self.say(f"  reverted to {self.others[-1]}")
        self.sim("revert", snapshot=moref)
        for key, content in then.items():
            self.disks[key].content[:] = content
            self.touch(key, 0, len(content))
        return True

    def our_snapshots(self):
        return [s["moref"] for s in self.sim.vm(WEB)["snapshots"] if s["name"] not in self.others]

    def a_tracked_disk(self):
        return self.rng.choice(sorted(key for key, epoch in self.epochs_now().items() if epoch) or [None])

    def reset_cbt(self):
        key = self.a_tracked_disk()
        if not key:
            return False
        self.say(f"  {key}: change tracking reset")
        self.tell("reset_cbt", key)
        return True

    def lose_cbt(self):
        key = self.a_tracked_disk()
        if not key:
            return False
        self.say(f"  {key}: its change tracking file is gone")
        self.tell("lose_cbt", key)
        self.disks[key].lost = self.epochs_now()[key]
        return True

    def is_lost(self, key):
        """Until tracking begins anew."""
        return self.disks[key].lost is not None and self.disks[key].lost == self.epochs_now()[key]

    def tracking_off(self):
        if self.sim.vm(WEB)["cbt"] != "on":
            return False
        self.say("  change tracking switched off")
        self.sim("vm", vm=WEB, cbt=False)
        return True

    def tracking_off_and_on(self):
        """Without snapshots: what is switched on beside one answers with nothing, and no backup could see that."""
        if self.sim.vm(WEB)["snapshots"]:
            return False
        self.say("  change tracking switched off and on")
        self.sim("vm", vm=WEB, cbt=False)
        self.sim("vm", vm=WEB, cbt=True)
        return True

    def says_too_much(self):
        key = self.a_disk()
        size = len(self.disks[key].content)
        self.say(f"  {key}: tracking says that all has changed")
        self.tell("touch", key, offset=0, length=size)
        self.touch(key, 0, size)
        return True

    def lie(self):
        """That can be seen: compared, or refused, and never believed."""
        key = self.a_disk()
        kind = self.rng.choice(LIES)
        self.say(f"  {key}: answers about changes lie: {kind}")
        self.tell("lie", key, kind=kind)
        self.disks[key].lie = kind
        return True

    def lie_by_omission(self):
        """What only an audit can see: changes that the answers leave out. It compares, and doubts what was believed."""
        key = self.largest()
        if self.excluded or any(disk.lie for disk in self.disks.values()):
            return False
        if self.expected("main", None)[key] != {TRACKED}:
            self.good_backup("main")
        if self.expected("main", None)[key] != {TRACKED}:
            return False
        clusters = self.rng.sample(range(len(self.disks[key].content) // CLUSTER), self.rng.randrange(1, 5))
        self.say(f"  {key}: answers about changes leave clusters {clusters} out")
        for cluster in clusters:
            self.put(key, cluster * CLUSTER + SECTOR, self.rng.randbytes(4096))
        self.tell("lie", key, kind="omit", areas=[[cluster * CLUSTER, CLUSTER] for cluster in clusters])
        self.audit_blocks(1000)         # all there are
        before, doubted = self.epochs_now(), self.believed(key)
        result = self.cli.run("backup", self.vm_name, "--repo", "main", use_json=True)
        assert result.status == 5, (result, self.client_log())
        backup = self.note("main", self.show(result.json["backup_id"]), self.references_now())
        self.check_clean()
        self.completed("main", backup, before)
        reasons = {d["disk_key"]: d["reason"] for d in backup["disks"]}
        self.refuted |= {(d["parent_backup_id"], key) for d in backup["disks"] if d["disk_key"] == key}
        assert backup["status"] == "completed" and reasons[key] == "audit_failed", backup
        assert "audit_failed" not in [reason for k, reason in reasons.items() if k != key], backup
        self.doubted |= doubted
        self.check_listed()
        self.tell("lie", key, kind="none")
        self.audit_blocks(0)
        self.check_point(backup["backup_id"])
        return True

    def audit_blocks(self, n):
        self.api.patch("/vms/oracle%20vm", {"audit_blocks": n}).expect(200)

    def believed(self, key):
        """The points, down to the last full or clean audit, whose disk rests on tracking, if only for what it kept."""
        found = set()
        for backup_id in reversed(self.order["main"]):
            disk = next((d for d in self.shown[backup_id]["disks"] if d["disk_key"] == key), None)
            if not disk or (disk["audit"] and disk["audit"]["at_most_ppm"] <= 10000):
                break
            if disk["mode"] == "tracked" or disk["kept_bytes"]:
                found.add(backup_id)
            if disk["mode"] == "full":
                break
        return found

    # ---- what happens to points and programs

    def delete_point(self):
        repository = self.rng.choice(sorted(self.repositories))
        if not self.order[repository]:
            return False
        victim = self.rng.choice(self.order[repository][-3:])
        dependents = self.dependents(repository, victim)
        self.say(f"  delete {victim} with {len(dependents)} dependents")
        if dependents:
            assert self.cli.run("delete", victim).status == 1
        self.cli.ok("delete", victim, *(["--with-dependents"] if dependents else []))
        self.forget([victim, *dependents])
        for place in self.touched:
            if place[0] == repository:      # what was touched since an older point is not known any more
                self.touched[place].update(range(1 << 10))
        return True

    def dependents(self, repository, backup_id):
        found = {backup_id}
        for later in self.order[repository]:
            if any(d["parent_backup_id"] in found for d in self.shown[later]["disks"]):
                found.add(later)
        return found - {backup_id}

    def ask_for_a_full(self):
        self.kind = "full"
        return True

    def restart_hub(self):
        self.say("  hub restarted")
        self.hub.stop()
        self.start_hub()
        return True

    # ---- backups that something happens to

    def disturbed(self, what, harm, calls=(*CALLS, *COPYING), tidy=False):
        """Something happens at the n-th call of a kind, or never; the backup fails, or is right. tidy: the client can
        remove its snapshot."""
        call = self.rng.choice(calls)
        n = self.rng.randrange(CALLS[call]) + 1
        self.write()
        self.sim("set", read_latency_ms=self.rng.choice((20, 100)))
        until = self.calls(call) + n

        def moment(backup_id):
            self.say(f"  {backup_id}: {what} at {call} number {n}")
            wait_for(lambda: self.calls(call) >= until or self.show(backup_id)["status"] in FINAL, "the moment comes")
            faults.pass_time(self.rng, 0.05)
            harm(backup_id)
        self.open_backup("main", None, moment, tidy)
        return True

    def open_backup(self, repository, kind, moment=lambda _: None, tidy=False):
        """One that may fail. What the vCenter was told to do wrong ends with it."""
        self.sim("set", **self.rng.choice(PAGES))
        references, before, left = self.references_now(), self.epochs_now(), self.our_snapshots()
        backup_id = self.start(repository, kind)
        moment(backup_id)
        backup = self.wait_final(backup_id)
        self.check_nothing_left()       # the client closes its source after that
        assert not tidy or set(self.our_snapshots()) <= set(left), (left, self.sim.vm(WEB), self.client_log())
        self.sim("heal")
        self.sim("up")
        self.sim("set", read_latency_ms=0)
        self.say(f"  {backup_id}: {backup['status']}: {backup['error']}: {backup['details']}")
        if self.note(repository, backup, references)["status"] == "completed":
            self.completed(repository, backup, before)
        self.seen[backup["status"]] += 1
        self.check_listed()
        assert [s["name"] for s in self.sim.vm(WEB)["snapshots"] if s["name"] in self.others] == self.others
        return backup

    def calls(self, name):
        return self.sim.calls().get(name, 0)

    def tell_truth(self):
        for key, disk in self.disks.items():
            if disk.lie:
                self.tell("lie", key, kind="none")
                disk.lie = None

    def kill_client(self):
        return self.disturbed("client killed", lambda b: faults.kill_one(self.world, b, "client"))

    def kill_exporter(self):
        return self.disturbed("exporter killed", lambda b: faults.kill_one(self.world, b, "exporter"), COPYING, True)

    def kill_reader(self):
        def harm(_):
            for pid, line in system.processes_of(self.folder).items():
                if "vixdisklib" in line or "vddk" in line:
                    faults.signal_if(pid, "nbdkit")
        return self.disturbed("the source's nbdkit killed", harm, COPYING, True)

    def kill_hub(self):
        def harm(_):
            self.hub.kill()
            self.start_hub()
        return self.disturbed("hub killed", harm)

    def cancel(self):
        return self.disturbed("cancel", lambda b: self.cli.run("cancel", b), tidy=True)

    def restart_vcenter(self):
        def harm(_):
            self.sim("down")
            faults.pass_time(self.rng, 0.2)
            self.sim("up")
        return self.disturbed("vCenter restarted", harm)

    def expire_sessions(self):
        return self.disturbed("sessions expired", lambda _: self.sim("expire_sessions"), tidy=True)

    def our_snapshot_is_removed(self):
        def harm(_):
            for snapshot in self.our_snapshots():
                self.sim.try_("remove_snapshot", vm=WEB, snapshot=snapshot)     # the client may be quicker
        return self.disturbed("snapshot removed by somebody", harm, COPYING)

    def faulty_vcenter(self):
        call = self.rng.choice(sorted(CALLS))
        kind = self.rng.choice(("503", "drop_before", "drop_after", "drop_middle", "cut"))
        times = self.rng.choice((1, 1, 3))
        self.say(f"  vCenter: {kind}, {times} times, of {call}")
        self.sim("fault", call=call, kind=kind, times=times, skip=self.rng.randrange(4), bytes=100)
        return self.disturbed("a fault", lambda _: None)

    def failing_task(self):
        call = self.rng.choice(("CreateSnapshot_Task", "RemoveSnapshot_Task", "RemoveSnapshot_Task"))
        self.say(f"  {call} fails")
        self.sim("task", call=call, type="TaskInProgress", message="Another task is already in progress.")
        return self.disturbed("a task that fails", lambda _: None)

    def vcenter_away(self):
        self.say("  vCenter is away")
        self.sim("down")
        assert self.open_backup("main", None)["status"] == "failed"
        return True

    def killed_in_the_copy(self):
        """Some reads were answered, the others never are: the next backup goes on from what was durable."""
        if self.excluded or not all(self.epochs_now().values()) or any(
                self.is_lost(key) or disk.lie for key, disk in self.disks.items()):
            return False
        self.say("  client killed in the middle of a copy")
        self.write_the_start()
        reads = self.calls("read")
        self.sim("fault", call="read", kind="delay", ms=60000, skip=3, times=1000)

        def moment(backup_id):
            wait_for(lambda: self.calls("read") > reads + 3, "the fourth read")
            # not done_bytes, which waits for the read of offset 0: that one may be the fourth
            wait_for(lambda: self.show(backup_id)["bytes_transferred"] > 0, "something was copied")
            assert faults.kill_one(self.world, backup_id, "client")
            self.sim("heal")        # nbdkit waits for the reads that it was asked for
        failed = self.open_backup("main", None, moment)
        assert failed["status"] == "failed", failed
        self.write_the_start()          # of this, something was durable
        self.write()
        later = self.good_backup("main")
        assert (later["resumed_from"] == failed["backup_id"]) == failed["resumable"], (failed, later)
        return True

    def write_the_start(self):
        """What is read first."""
        for key, disk in sorted(self.disks.items()):
            for at in range(0, min(len(disk.content), 2 * MIB), 8 * CLUSTER):
                self.put(key, at, self.rng.randbytes(SECTOR))

    # ---- backups

    def epochs_now(self):
        state = self.sim.vm(WEB)
        return {str(d["key"]): d["change_id"].partition("/")[0] if d["tracking"] else None for d in state["disks"]}

    def completed(self, repository, backup, before):
        """Takes a completed backup into account. before: the epochs before it started."""
        after = self.epochs_now()
        self.shown[backup["backup_id"]] = backup
        self.epochs[backup["backup_id"]] = {
            key: epoch if before.get(key) == epoch else UNKNOWN for key, epoch in after.items()}
        for disk in backup["disks"]:
            key = disk["disk_key"]
            self.seen[disk["mode"]] += 1
            self.seen[disk["reason"] or "no reason"] += 1
            if disk["mode"] == "tracked":
                touched = self.touched.get((repository, key), set())
                assert disk["transferred_bytes"] <= len(touched) * CLUSTER, (sorted(touched), disk)
            if disk["mode"] != "full" and not backup["resumed_from"]:
                assert disk["parent_backup_id"] == self.parent_of(repository, backup["backup_id"]), disk
                changed = self.references.changed_clusters(self.points[disk["parent_backup_id"]][key],
                                                           self.points[backup["backup_id"]][key])
                assert disk["stored_bytes"] <= (changed + OVERHEAD_CLUSTERS) * CLUSTER, (changed, disk)
            self.touched[repository, key] = set()
        self.seen["resumed"] += bool(backup["resumed_from"])
        return backup

    def parent_of(self, repository, backup_id):
        order = self.order[repository]
        at = order.index(backup_id)
        return order[at - 1] if at else None

    def expected(self, repository, kind):
        """{disk key: the (mode, reason) that are right}"""
        parent = self.shown.get(self.newest(repository))
        before = {d["disk_key"]: d for d in parent["disks"]} if parent else {}
        longest = max((d["chain_length"] for d in before.values()), default=0)
        doubted = parent and self.show(parent["backup_id"])["suspect"]
        found = {}
        for key in set(self.disks) - self.excluded:
            if kind == "full":
                found[key] = {("full", "full_requested")}
            elif not parent:
                found[key] = {("full", "first_backup")}
            elif longest >= CHAIN_LIMIT:
                found[key] = {("full", "chain_limit")}
            elif key not in before:
                found[key] = {("full", "new_disk")}
            elif (parent["backup_id"], key) in self.refuted:
                found[key] = {("compare", "audit_failed")}
            elif doubted:
                found[key] = {("compare", "parent_suspect")}
            elif before[key]["size"] != len(self.disks[key].content):
                found[key] = {("compare", "disk_resized")}
            else:
                found[key] = self.expected_tracking(key, before[key], self.epochs[parent["backup_id"]].get(key))
        return found

    def expected_tracking(self, key, before, then):
        off, never, refused = (("compare", why) for why in ("not_tracked", "never_tracked", "id_refused"))
        anew = {("compare", "epoch_changed"), ("compare", "backing_replaced")}
        vm, now = self.sim.vm(WEB), self.epochs_now()[key]
        if vm["cbt"] != "on" and self.others:       # else we switch it on
            return {off}
        if vm["cbt"] != "on" or now is None:        # it takes effect with the next snapshot that is made, or removed
            return {off, never, *anew}
        if before["tracking"] != "cbt":
            return {never}
        if then == UNKNOWN:
            return {TRACKED, refused, *anew}
        if then != now:
            return anew
        if self.is_lost(key) or self.disks[key].lie:
            return {refused, *anew}
        # What one disk has lost is made good by switching tracking off and on, and that is the whole VM's.
        return {TRACKED, *anew} if any(self.is_lost(k) for k in set(self.disks) - self.excluded) else {TRACKED}

    def good_backup(self, repository, kind=None):
        """One that must complete, unless an answer that cannot be right comes in the middle of the copy."""
        if any(disk.lie == "before" for disk in self.disks.values()):
            backup = self.open_backup(repository, kind)
            self.tell_truth()
            return backup
        self.sim("set", **self.rng.choice(PAGES))
        expected, before, during = self.expected(repository, kind), self.epochs_now(), {}
        if self.rng.random() < 0.3:
            backup, during = self.written_during(repository, kind)
        else:
            backup = self.backup(repository, self.references_now(), kind)
        self.completed(repository, backup, before)
        for place, clusters in during.items():
            self.touched.setdefault(place, set()).update(clusters)
        actual = {d["disk_key"]: (d["mode"], d["reason"]) for d in backup["disks"]}
        self.say(f"  {backup['backup_id']} in {repository}: {actual}")
        assert set(actual) == set(expected)
        for key, right in expected.items():
            assert actual[key] in right, f"{key}: {actual[key]}, expected {right}: {backup}\n{self.client_log()}"
        assert set(backup["left_out"]) == self.excluded & set(self.disks), backup
        self.tell_truth()
        self.check_clean()
        return backup

    def check_clean(self):
        self.check_nothing_left()       # the client closes its source after the point is there
        assert [s["name"] for s in self.sim.vm(WEB)["snapshots"]] == self.others

    def written_during(self, repository, kind):
        """The guest writes while the backup copies: the point is the instant of the snapshot all the same."""
        references = self.references_now()
        self.sim("set", read_latency_ms=self.rng.choice((0, 10, 50)))
        backup_id = self.start(repository, kind)
        wait_for(lambda: self.frozen(backup_id) or self.show(backup_id)["status"] in FINAL, "the snapshot stands")
        if snapshot := self.frozen(backup_id):
            for key, disk in self.disks.items():        # the simulator's word, beside our own
                found = self.sim.try_("export", snapshot=snapshot, disk=int(key), to=str(self.folder / "frozen.raw"))
                if found["ok"]:     # it stood
                    assert (self.folder / "frozen.raw").read_bytes() == disk.content, key
                    self.seen["snapshot looked at"] += 1
        self.say("  during the backup:")
        before, self.touched = self.touched, {}
        self.write()
        if self.rng.random() < 0.3:
            self.others_snapshot()
        during, self.touched = self.touched, before
        backup = self.note(repository, self.wait_final(backup_id), references)
        assert backup["status"] == "completed", (backup, self.client_log())
        self.sim("set", read_latency_ms=0)
        self.seen["written during a backup"] += 1
        return backup, during

    def frozen(self, backup_id):
        """The snapshot of this backup, if it stands."""
        return next((s["moref"] for s in self.sim.vm(WEB)["snapshots"] if backup_id in s["description"]), None)

    # ---- the history

    HAPPENINGS = (
        "grow", "grow_and_shrink_back", "shrink", "replace", "add_disk", "remove_disk", "exclude", "include",
        "others_snapshot", "others_snapshot_goes", "reset_cbt", "lose_cbt", "tracking_off", "tracking_off_and_on",
        "revert", "says_too_much", "lie", "lie_by_omission", "delete_point", "ask_for_a_full", "restart_hub",
        "kill_client", "kill_exporter", "kill_reader", "kill_hub", "cancel", "restart_vcenter", "expire_sessions",
        "our_snapshot_is_removed", "faulty_vcenter", "failing_task", "vcenter_away", "killed_in_the_copy")

    ALSO = ("noise", "zeros", "the same again", "what was there before", "trim", "written during a backup",
            "snapshot looked at", "tracked", "compare", "full", "resumed", "completed", "failed")

    def deal(self):
        left = self.rng.randrange(2, 4)
        if not self.deck:
            self.deck = self.rng.sample(self.HAPPENINGS, len(self.HAPPENINGS))
        for happening in list(self.deck):
            if left and getattr(self, happening)():     # what is not possible now stays in the pack
                self.deck.remove(happening)
                self.seen[happening] += 1
                left -= 1
                if self.rng.random() < 0.5:
                    self.write(3)
        if left:
            self.clear_up()

    def clear_up(self):
        """What is left in the pack waits for a VM that is in order."""
        while self.others:
            self.others_snapshot_goes()
        self.change_excluded(set())
        for key in self.disks:
            if self.is_lost(key):
                self.tell("reset_cbt", key)

    def step(self):
        self.kind = self.rng.choice((None, None, None, "incremental"))
        self.deal()
        self.write()
        backup = self.good_backup(self.rng.choice(("main", "main", "main", "other")), self.kind)
        for disk in self.disks.values():
            disk.past = [*disk.past[-2:], bytes(disk.content)]
        if backup["status"] == "completed":
            self.check_point(backup["backup_id"])

    def missing(self):
        return [kind for kind in (*self.HAPPENINGS, *self.ALSO) if not self.seen[kind]]


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_history(seed, make_hub, place):
    rng = random.Random(seed)
    print(f"ORACLE_SEED={seed} ORACLE_HISTORIES=1 ORACLE_STEPS={STEPS}")
    hub = make_hub(options=[f"--chain-limit={CHAIN_LIMIT}", "--checkpoint-mib=1"],
                   environment={**hub_environment(), "SENDENSE_TEST_PLACE": str(place)})
    with VcenterHistory(rng, hub, place) as history:
        history.register()
        n = 0
        while n < STEPS or (n < 2 * STEPS and history.missing()):
            print(f"step {n}")
            history.step()
            n += 1
        history.check_everything(rng)
        assert not history.missing(), f"never happened: {history.missing()}; did: {dict(history.seen)}"
