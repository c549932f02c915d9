"""Random histories of a VM in a real QEMU, through the real hub, client, exporters and CLI.

The VM's CPUs are paused and the test writes to its disks: one qcow2, whose dirty bitmaps survive a clean stop, one raw,
whose do not. Between backups there are writes, discards, zeroes, resizes, restarts, crashes, external snapshots,
bitmaps removed by hand, backups killed half way, points deleted, and backups to a second repository.

Every listed point is the disks at its instant, byte for byte. And tracking works: where it must, a disk is `tracked`,
and no more moves than was touched since the parent; where it cannot, the reason is on record.

    ORACLE_SEED=n         the first seed (default 1); a failing test's name holds the seed that repeats it
    ORACLE_HISTORIES=n    how many (default 12)
"""

import os
import random

import pytest

from lib import faults, images
from lib.cli import Cli
from lib.history import History, wait_for
from lib.images import CLUSTER, SECTOR
from lib.share import share
from lib.vm import GuestError, check_qemu_is_clean, contents_now, make_vm, our_bitmaps, size_of
from lib.world import World

FIRST = int(os.environ.get("ORACLE_SEED", "1"))
COUNT = int(os.environ.get("ORACLE_HISTORIES") or share(12, 3))
STEPS = 8
OVERHEAD_CLUSTERS = 8       # header, L1, L2, reference counts, rounding: of a small image
CHAIN_LIMIT = 6
SIZES = (CLUSTER, 3 * CLUSTER + SECTOR, 1 << 20, (2 << 20) + 5 * SECTOR, 3 << 20)
GOOD, LOST, OPEN = "tracked", "lost", "open"    # what is expected of a disk's next increment; OPEN: either is right


class QemuHistory(History):
    def __init__(self, rng, hub, cli, folder):
        super().__init__(hub, cli, folder, "oracle vm")
        self.rng = rng
        self.world = World(hub, folder)
        self.vm = make_vm(folder, [(fmt, images.random_content(rng, rng.choice(SIZES))) for fmt in ("qcow2", "raw")])
        self.shown = {}         # of completed points
        self.line = {}          # (repository, disk key): GOOD, LOST or OPEN
        self.touched = {}       # (repository, disk key): clusters written to since the newest point
        self.originals = list(self.vm.disks)
        self.snapshots = 0

    def register(self):
        for name in ("main", "other"):
            self.add_repository(name)
        self.api.post("/vms", {"name": self.vm_name, "source": {
            "type": "qemu", "qmp": self.vm.qmp_path, "scratch": str(self.folder)}}).expect(201)

    def own_processes(self):
        return {self.vm.process.pid}

    def references_now(self):
        return {key: self.references.of(content) for key, content in contents_now(self.vm, self.folder).items()}

    # ---- what happens between backups

    def touch(self, n, offset, length):
        for repository in self.repositories:
            clusters = self.touched.setdefault((repository, f"disk{n}"), set())
            clusters.update(range(offset // CLUSTER, -(-(offset + length) // CLUSTER)))

    def write(self, changes=6):
        for n in range(2):
            said, size = [], size_of(self.vm, n)
            for _ in range(self.rng.randrange(changes)):
                where = images.random_range(self.rng, size, SECTOR)
                if where:
                    said.append(self.write_once(n, *where))
            self.say(f"  disk{n}: {'; '.join(said)}")

    def write_once(self, n, offset, length):
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
        return f"{how} {offset}+{length}"

    def loses(self, keys, state=LOST):
        for place in self.line:
            if place[1] in keys and self.line[place] != LOST:
                self.line[place] = state

    def restart(self):
        self.say("  QEMU restarted: bitmaps on raw disks are gone")
        self.vm.restart()
        self.loses({disk.id for disk in self.vm.disks if disk.format == "raw"})

    def crash(self):
        self.say("  QEMU crashed")
        self.vm.qmp("stop")     # flushes: a qcow2 without its tables is not the matter here
        self.vm.crash()
        self.loses({"disk0", "disk1"})

    def resize(self):
        n, there_and_back = self.rng.randrange(2), self.rng.random() < 0.4
        before, other = size_of(self.vm, n), self.rng.choice(SIZES)
        smallest = before
        try:
            for size in (other, before) if there_and_back else (other,):
                self.vm.resize(n, size)
                self.say(f"  disk{n}: resized to {size}")
                smallest = min(smallest, size)
        except GuestError as e:     # QEMU does not resize a qcow2 that has an inconsistent bitmap
            self.say(f"  {e}")
        if size_of(self.vm, n) != before or smallest < before:
            self.loses({f"disk{n}"})
            self.touch(n, 0, max(before, other))

    def remove_bitmap(self):
        n = self.rng.randrange(2)
        names = our_bitmaps(self.vm, n)
        if not names:
            return
        name = self.rng.choice(names)
        self.say(f"  disk{n}: bitmap {name} removed by hand")
        try:
            self.vm.qmp("block-dirty-bitmap-remove", node=self.vm.inserted(n)["node-name"], name=name)
        except GuestError as e:     # the last backup's client was just doing so
            self.say(f"  {e}")
        uuids = {r["uuid"]: r["name"] for r in self.api.get("/repositories").expect(200)["repositories"]}
        place = (uuids[name.split(".")[1]], f"disk{n}")
        current = name.split(".", 3)[3].replace(".", "/")
        newest = self.shown.get(self.newest(place[0]))
        in_use = newest and current in (d["change_id"] for d in newest["disks"])
        if place in self.line and self.line[place] == GOOD:
            self.line[place] = LOST if in_use else OPEN

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

    def merge_snapshots(self):
        """All overlays go down into the first image: its old bitmap saw the merge's writes, and not the guest's."""
        merged = [n for n in range(2) if self.vm.disks[n].path != self.originals[n].path]
        for n in merged:
            self.say(f"  disk{n}: snapshots merged")
            self.vm.qmp("block-commit", job_id="merge", device=self.vm.inserted(n)["node-name"],
                        base=self.originals[n].path)
            wait_for(lambda: self.vm.qmp("query-jobs")[0]["status"] == "ready", "the merge is ready")
            self.vm.qmp("job-complete", id="merge")
            wait_for(lambda: not self.vm.qmp("query-jobs"), "the merge is done")
            self.vm.disks[n] = self.originals[n]
            self.touch(n, 0, size_of(self.vm, n))
        for place, state in self.line.items():
            if place[1] in {f"disk{n}" for n in merged}:
                self.line[place] = OPEN if state == LOST else LOST

    def delete_tip(self):
        if len(self.order["main"]) < 2:
            return
        tip = self.newest("main")
        self.check_nothing_left()       # its client forgets the older bitmaps after the point is there
        self.say(f"  delete {tip}")
        self.cli.ok("delete", tip)
        self.forget([tip])
        for place in self.line:
            if place[0] == "main":
                self.line[place] = LOST     # the bitmaps up to the deleted point are gone
                self.touched[place] = set()

    def restart_hub(self):
        self.say("  hub restarted")
        self.hub.stop()
        self.start_hub()

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
            elif before[key]["size"] != size_of(self.vm, n):
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
                # The disk's last granule is in every change set
                touched = self.touched.get((repository, key), set()) | {(disk["size"] - 1) // CLUSTER}
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

    def good_backup(self, references=None):
        repository = self.rng.choice(("main", "main", "main", "other"))
        kind = self.rng.choice((None, None, None, None, "full"))
        expected, parent = self.expected(repository, kind), self.newest(repository)
        references = references or self.references_now()
        if self.rng.random() < 0.3:
            backup = self.written_during(repository, references, kind, parent)
        else:
            backup = self.completed(repository, self.backup(repository, references, kind), parent)
        actual = {d["disk_key"]: (d["mode"], d["reason"]) for d in backup["disks"]}
        self.say(f"  {backup['backup_id']} in {repository}: {actual}")
        for key, right in expected.items():
            assert actual[key] in right, f"{key}: {actual[key]}, expected {right}: {backup}\n{self.client_log()}"
        for disk in backup["disks"]:
            assert (disk["reason"] == "") == (disk["reason_text"] == ""), disk
        return backup

    def written_during(self, repository, references, kind, parent):
        """The guest writes while the backup copies: the point is the instant of the snapshot all the same."""
        backup_id = self.start(repository, kind)
        wait_for(lambda: self.show(backup_id)["disks"], "the disks are announced")
        before, self.touched = self.touched, {}
        self.say("  during the backup:")
        self.write()
        during, self.touched = self.touched, before
        backup = self.note(repository, self.wait_final(backup_id), references)
        assert backup["status"] == "completed", (backup, self.client_log())
        self.completed(repository, backup, parent)
        for place, clusters in during.items():
            self.touched.setdefault(place, set()).update(clusters)
        return backup

    def disturbed_backup(self):
        """Killed at some moment. Its bitmap stays in the line: the next increment is right, and still tracked."""
        references, parent = self.references_now(), self.newest("main")
        what = self.rng.choice(("client", "client", "exporter", "hub", "cancel"))
        backup_id = self.start("main")
        wait_for(lambda: self.show(backup_id)["status"] != "pending", "the job is claimed")
        faults.pass_time(self.rng, 0.3)
        if what == "hub":
            self.hub.kill()
            self.start_hub()
        elif what == "cancel":
            self.cli.run("cancel", backup_id)
        else:
            faults.kill_one(self.world, backup_id, what)
        backup = self.note("main", self.wait_final(backup_id), references)
        self.say(f"  {backup_id}: {what}, {backup['status']}: {backup['error']}")
        if backup["status"] == "completed":
            self.completed("main", backup, parent)
        self.check_clean()

    def check_clean(self):
        self.check_nothing_left()
        check_qemu_is_clean(self.vm, self.folder)

    def check_bitmaps(self, backup):
        """Of the repository's line: the bitmap that records since this backup, and the line's witness."""
        uuid = self.api.get(f"/repositories/{backup['repository_id']}").expect(200)["uuid"]
        for disk in backup["disks"]:
            line, sequence = disk["change_id"].split("/")
            bitmaps = our_bitmaps(self.vm, int(disk["disk_key"][4:]))
            names = [n.split(".", 3)[3] for n in bitmaps if n.split(".")[1] == uuid]
            assert sorted(names) == [f"{line}.0", f"{line}.{sequence}"], (names, disk)

    def step(self):
        for happening, chance in ((self.delete_tip, 0.15), (self.restart, 0.2), (self.crash, 0.1), (self.resize, 0.15),
                                  (self.remove_bitmap, 0.1), (self.snapshot, 0.08), (self.merge_snapshots, 0.2),
                                  (self.disturbed_backup, 0.3), (self.restart_hub, 0.05)):
            if self.rng.random() < chance:
                happening()
                if self.rng.random() < 0.5:
                    self.write(3)
        self.write()
        backup = self.good_backup()
        if self.rng.random() < 0.4:
            # at once: the client of the one before is still removing what it put into QEMU
            backup = self.good_backup(self.references_now() if self.rng.random() < 0.5 else None)
        if self.rng.random() < 0.6:
            self.check_clean()
            self.check_bitmaps(backup)
        self.check_point(backup["backup_id"])


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_history(seed, make_hub, place):
    rng = random.Random(seed)
    print(f"ORACLE_SEED={seed} ORACLE_HISTORIES=1")
    hub = make_hub(options=[f"--chain-limit={CHAIN_LIMIT}"], environment={"SENDENSE_TEST_PLACE": str(place)})
    history = QemuHistory(rng, hub, Cli(hub.url, cwd=place), place)
    try:
        history.register()
        for n in range(STEPS):
            print(f"step {n}")
            history.step()
        history.check_everything(rng)
        check_qemu_is_clean(history.vm, place)
    finally:
        history.vm.close()
