"""Random histories of a VM in a real QEMU, through the real hub, client, exporters and CLI.

The VM's CPUs are paused and the test writes to its disks: one qcow2, whose dirty bitmaps survive a clean stop, one raw,
whose do not. Between backups there are writes, discards, zeroes, resizes, restarts, crashes, external snapshots,
bitmaps removed by hand, backups killed half way, points deleted, and backups to a second repository.

Every listed point is the disks at its instant, byte for byte. And tracking works: where it must, a disk is `tracked`,
and no more moves than was touched since the parent; where it cannot, the reason is on record.

    ORACLE_SEED=n         the first seed (default 1); a failing test's name holds the seed that repeats it
    ORACLE_HISTORIES=n    how many (default 10)
"""

import os
import random
import signal
import sys
from pathlib import Path

import pytest

from lib import images
from lib.cli import Cli
from lib.history import History, wait_for
from lib.images import CLUSTER, SECTOR
from lib.world import World

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "guest"))
from guest import GuestError, PausedQemu, reference_copy    # noqa: E402

FIRST = int(os.environ.get("ORACLE_SEED", "1"))
COUNT = int(os.environ.get("ORACLE_HISTORIES", "10"))
STEPS = 8
OVERHEAD_CLUSTERS = 8
CHAIN_LIMIT = 6
SIZES = (CLUSTER, 3 * CLUSTER + SECTOR, 1 << 20, (2 << 20) + 5 * SECTOR, 3 << 20)
GOOD, LOST, OPEN = "tracked", "lost", "open"    # what is expected of a disk's next increment; OPEN: either is right


class QemuHistory(History):
    def __init__(self, rng, hub, cli, folder):
        super().__init__(hub, cli, folder, "oracle vm")
        self.rng = rng
        self.world = World(hub, folder)
        disks = []
        for n, fmt in enumerate(("qcow2", "raw")):
            image = images.Image(folder / f"vm-{n}.{fmt}", fmt, images.random_content(rng, rng.choice(SIZES)))
            disks.append((image.path, fmt))
        self.vm = PausedQemu(folder / "vm", disks)
        self.shown = {}
        self.line = {}          # (repository, disk key): GOOD, LOST or OPEN
        self.touched = {}       # (repository, disk key): clusters written to since the newest point
        self.snapshots = 0
        for name in ("main", "other"):
            self.add_repository(name)
        self.api.post("/vms", {"name": self.vm_name, "source": {
            "type": "qemu", "qmp": self.vm.qmp_path, "scratch": str(folder)}}).expect(201)

    def own_processes(self):
        return {self.vm.process.pid}

    def references_now(self):
        paths = [self.folder / f"now-{n}" for n in range(2)]
        reference_copy(self.vm, paths)
        return {f"disk{n}": self.references.of(p.read_bytes()) for n, p in enumerate(paths)}

    # ---- what happens between backups

    def touch(self, n, offset, length):
        for repository in self.repositories:
            clusters = self.touched.setdefault((repository, f"disk{n}"), set())
            clusters.update(range(offset // CLUSTER, -(-(offset + length) // CLUSTER)))

    def size(self, n):
        return self.vm.inserted(n)["image"]["virtual-size"]

    def write(self, changes=6):
        for n in range(2):
            said, size = [], self.size(n)
            for _ in range(self.rng.randrange(changes)):
                where = images.random_range(self.rng, size, SECTOR)
                if not where:
                    continue
                offset, length = where
                how = self.rng.choice(("write", "write", "write", "zero data", "zeroes", "unmap", "discard"))
                if how == "write":
                    self.vm.write(n, offset, length, self.rng.choice((0xa1, 0xb2, 0xc3, 0xd4)))
                elif how == "zero data":
                    self.vm.write(n, offset, length, 0)
                elif how == "discard":
                    self.vm.discard(n, offset, length)
                else:
                    self.vm.write_zeroes(n, offset, length, unmap=how == "unmap")
                self.touch(n, offset, length)
                said.append(f"{how} {offset}+{length}")
            self.say(f"  disk{n}: {'; '.join(said)}")

    def loses(self, keys, state=LOST):
        for place in self.line:
            if place[1] in keys and self.line[place] != LOST:
                self.line[place] = state

    def keys_of_format(self, fmt):
        return {f"disk{n}" for n, disk in enumerate(self.vm.disks) if disk.format == fmt}

    def restart(self):
        self.say("  QEMU restarted: bitmaps on raw disks are gone")
        self.vm.restart()
        self.loses(self.keys_of_format("raw"))

    def crash(self):
        self.say("  QEMU crashed")
        # what the guest wrote may still be in QEMU's memory; a qcow2 without its tables is not the test's matter
        self.vm.qmp("stop")
        self.vm.crash()
        self.loses({"disk0", "disk1"})

    def resize(self):
        n, there_and_back = self.rng.randrange(2), self.rng.random() < 0.4
        before, other = self.size(n), self.rng.choice(SIZES)
        try:
            for size in (other, before) if there_and_back else (other,):
                self.vm.resize(n, size)
                self.say(f"  disk{n}: resized to {size}")
        except GuestError as e:     # QEMU does not resize a qcow2 that has an inconsistent bitmap
            self.say(f"  {e}")
        if self.size(n) != before or (there_and_back and other < before):
            self.loses({f"disk{n}"}, OPEN if self.size(n) == before else LOST)
            self.touch(n, 0, max(before, other))

    def remove_bitmap(self):
        n = self.rng.randrange(2)
        ours = [b["name"] for b in self.bitmaps(n)]
        if not ours:
            return
        name = self.rng.choice(ours)
        self.say(f"  disk{n}: bitmap {name} removed by hand")
        self.vm.qmp("block-dirty-bitmap-remove", node=self.vm.inserted(n)["node-name"], name=name)
        uuids = {r["uuid"]: r["name"] for r in self.api.get("/repositories").expect(200)["repositories"]}
        place = (uuids[name.split(".")[1]], f"disk{n}")
        if place in self.line:
            self.line[place] = LOST

    def bitmaps(self, n):
        return [b for b in self.vm.inserted(n).get("dirty-bitmaps", []) if b.get("name", "").startswith("sendense")]

    def snapshot(self):
        """An external snapshot: the guest goes on in an overlay, and the bitmaps stay behind, below it."""
        n = self.rng.randrange(2)
        self.snapshots += 1
        overlay = self.folder / f"overlay-{self.snapshots}.qcow2"
        self.say(f"  disk{n}: external snapshot")
        self.vm.qmp("blockdev-snapshot-sync", node_name=self.vm.inserted(n)["node-name"], snapshot_file=str(overlay),
                    format="qcow2", snapshot_node_name=f"overlay{self.snapshots}")
        self.vm.disks[n] = self.vm.disks[n]._replace(path=str(overlay), format="qcow2")
        self.loses({f"disk{n}"})

    def delete_tip(self):
        if len(self.order["main"]) < 2:
            return
        tip = self.newest("main")
        self.say(f"  delete {tip}")
        self.cli.ok("delete", tip)
        self.forget([tip])
        for (repository, key), state in self.line.items():
            if repository == "main" and state != OPEN:
                self.line[repository, key] = LOST    # the bitmaps up to the deleted point are gone

    def damage_nothing_restart_hub(self):
        self.say("  hub restarted")
        self.hub.restart()

    # ---- backups

    def expected(self, repository, kind):
        """{disk key: the (mode, reason) that are right}"""
        parent = self.shown.get(self.newest(repository))
        before = {d["disk_key"]: d for d in parent["disks"]} if parent else {}
        longest = max((d["chain_length"] for d in before.values()), default=0)
        found = {}
        for n in range(2):
            key = f"disk{n}"
            tracked, lost = ("tracked", ""), ("compare", "tracking_lost")
            if kind == "full":
                found[key] = {("full", "full_requested")}
            elif not parent:
                found[key] = {("full", "first_backup")}
            elif longest >= CHAIN_LIMIT:
                found[key] = {("full", "chain_limit")}
            elif before[key]["size"] != self.size(n):
                found[key] = {("compare", "disk_resized")}
            else:
                found[key] = {GOOD: {tracked}, LOST: {lost}, OPEN: {tracked, lost}}[self.line[repository, key]]
        return found

    def completed(self, repository, backup, parent):
        """Takes a completed backup into account, and checks that it moved and stored no more than it had to."""
        for disk in backup["disks"]:
            key = disk["disk_key"]
            assert disk["tracking"] == "bitmap", disk
            if disk["mode"] == "tracked":
                touched = self.touched.get((repository, key), set())
                assert disk["transferred_bytes"] <= len(touched) * CLUSTER, (len(touched), disk)
            if disk["mode"] != "full":
                assert disk["parent_backup_id"] == parent, disk
                changed = self.references.changed_clusters(self.points[parent][key],
                                                           self.points[backup["backup_id"]][key])
                assert disk["stored_bytes"] <= (changed + OVERHEAD_CLUSTERS) * CLUSTER, (changed, disk)
            self.line[repository, key] = GOOD
            self.touched[repository, key] = set()
        self.shown[backup["backup_id"]] = backup
        return backup

    def good_backup(self):
        repository = self.rng.choice(("main", "main", "main", "other"))
        kind = self.rng.choice((None, None, None, None, "full"))
        expected, parent = self.expected(repository, kind), self.newest(repository)
        references = self.references_now()
        if self.rng.random() < 0.3:
            backup = self.written_during(repository, references, kind, parent)
        else:
            backup = self.completed(repository, self.backup(repository, references, kind), parent)
        actual = {d["disk_key"]: (d["mode"], d["reason"]) for d in backup["disks"]}
        self.say(f"  {backup['backup_id']} in {repository}: {actual}")
        for key, right in expected.items():
            assert actual[key] in right, f"{key}: {actual[key]}, expected {right}: {backup}"
        for disk in backup["disks"]:
            assert (disk["reason"] == "") == (disk["reason_text"] == ""), disk
        self.check_point(backup["backup_id"])
        self.check_qemu()

    def written_during(self, repository, references, kind, parent):
        """The guest writes while the backup copies: the point is the instant of the snapshot all the same."""
        backup_id = self.start(repository, kind)
        wait_for(lambda: self.show(backup_id)["disks"], "the disks are announced")
        before = {key: set(touched) for key, touched in self.touched.items()}
        self.say("  during the backup:")
        self.write()
        late = self.touched
        self.touched = before
        backup = self.note(repository, self.wait_final(backup_id), references)
        assert backup["status"] == "completed", (backup, self.client_log())
        backup = self.completed(repository, backup, parent)
        for place, clusters in late.items():
            # which of them came after the instant is known by what was there before it
            self.touched.setdefault(place, set()).update(clusters)
        return backup

    def disturbed_backup(self):
        """Killed at some moment. Its bitmap stays in the line: the next increment is right, and still tracked."""
        repository, references, parent = "main", self.references_now(), self.newest("main")
        what = self.rng.choice(("client", "client", "exporter", "hub", "cancel"))
        backup_id = self.start(repository)
        wait_for(lambda: self.show(backup_id)["status"] != "pending", "the job is claimed")
        signal.sigtimedwait([], self.rng.random() * 0.3)   # any moment will do
        if what == "hub":
            self.hub.kill()
            self.hub.start()
        elif what == "cancel":
            self.cli.run("cancel", backup_id)
        else:
            self.kill_one(backup_id, what)
        backup = self.note(repository, self.wait_final(backup_id), references)
        self.say(f"  {backup_id}: {what}, {backup['status']}: {backup['error']}")
        if backup["status"] == "completed":
            self.completed(repository, backup, parent)
        self.check_qemu()

    def kill_one(self, backup_id, what):
        if what == "exporter":
            rows = self.world.sql("SELECT exporter_pid AS pid FROM backup_disks WHERE backup_id = ?", backup_id)
        else:
            rows = self.world.sql("SELECT client_pid AS pid FROM backup_jobs WHERE id = ?", backup_id)
        for row in rows[:1]:
            kill_if(row["pid"], "nbdkit" if what == "exporter" else "sendense-backup-client")

    def check_qemu(self):
        """Nothing of ours is left in QEMU but bitmaps, and of those no more than the next backups need."""
        self.check_nothing_left()
        check_qemu_is_clean(self.vm, self.folder)
        if self.rng.random() < 0.5:
            return      # the next backup meets what this one's client left, or is just removing
        for n in range(2):
            assert len(self.bitmaps(n)) <= 2 * 18, self.bitmaps(n)

    def step(self):
        for happening, chance in ((self.delete_tip, 0.15), (self.restart, 0.2), (self.crash, 0.1), (self.resize, 0.15),
                                  (self.remove_bitmap, 0.1), (self.snapshot, 0.08), (self.disturbed_backup, 0.3),
                                  (self.damage_nothing_restart_hub, 0.05)):
            if self.rng.random() < chance:
                happening()
                if self.rng.random() < 0.5:
                    self.write(3)
        self.write()
        self.good_backup()


def check_qemu_is_clean(vm, folder):
    assert vm.qmp("query-block-exports") == []
    assert vm.qmp("query-jobs") == []
    names = [node["node-name"] for node in vm.qmp("query-named-block-nodes", flat=True)]
    assert not [name for name in names if name.startswith("sndns")], names
    # is its one NBD server free?
    path = f"{folder}/n.sock"
    vm.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": path}})
    vm.qmp("nbd-server-stop")
    Path(path).unlink(missing_ok=True)


def kill_if(pid, word):
    """Kills the process if it is still the one that was meant."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            if word.encode() in f.read():
                os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        pass


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_history(seed, make_hub, place):
    rng = random.Random(seed)
    print(f"ORACLE_SEED={seed} ORACLE_HISTORIES=1")
    hub = make_hub(options=[f"--chain-limit={CHAIN_LIMIT}"], environment={"SENDENSE_TEST_PLACE": str(place)})
    history = QemuHistory(rng, hub, Cli(hub.url, cwd=place), place)
    try:
        for n in range(STEPS):
            print(f"step {n}")
            history.step()
        history.check_everything(rng)
    finally:
        history.vm.close()
