"""Random histories of a VM whose disks are image files, through the real hub, client, exporters and CLI.

Between backups the images are written to, zeroed, and resized to odd sizes; points are deleted, files of points are
damaged, disks left out, clients, exporters and hubs killed. Whatever happens: every point that is listed is the VM at
its moment, byte for byte, and the mode of each disk and its reason are the ones that the rules demand.

    ORACLE_SEED=n         the first seed (default 1); a failing test's name holds the seed that repeats it
    ORACLE_HISTORIES=n    how many (default 12)
"""

import os
import random
import threading

import pytest

from lib import faults, images
from lib.cli import Cli
from lib.history import History, wait_for
from lib.share import share
from lib.world import World

FIRST = int(os.environ.get("ORACLE_SEED", "1"))
COUNT = int(os.environ.get("ORACLE_HISTORIES") or share(12, 3))
STEPS = 8
OVERHEAD_CLUSTERS = 8       # header, L1, L2, reference counts, rounding: of a small image
CHAIN_LIMIT = 5


class FileHistory(History):
    def __init__(self, rng, hub, cli, folder):
        super().__init__(hub, cli, folder, "oracle vm")
        self.rng = rng
        self.world = World(hub, folder)
        self.add_repository("main", **rng.choice(({}, {}, {"hash_algorithm": "sha256"})))
        self.images = {}
        self.shown = {}         # of completed points
        self.damaged = {}       # disk key: undo
        self.excluded = set()
        for n in range(rng.choice((1, 2, 2))):
            fmt = rng.choice(("raw", "qcow2"))
            content = images.random_content(rng, images.random_size(rng, fmt))
            self.images[f"disk-{n}"] = images.Image(folder / f"vm-{n}.{fmt}", fmt, content)
        disks = [{"path": str(i.path), "format": i.format} for i in self.images.values()]
        self.api.post("/vms", {"name": self.vm_name, "source": {"type": "file", "disks": disks}}).expect(201)

    def references_now(self):
        return {key: self.references.of(bytes(image.content)) for key, image in self.images.items()
                if key not in self.excluded}

    # ---- what happens between backups

    def change_images(self):
        for key, image in self.images.items():
            if self.rng.random() < 0.8:
                said = images.mutate(self.rng, image, self.rng.randrange(1, 5))
                self.say(f"  {key}: {'; '.join(said)}")
            if self.rng.random() < 0.15:
                image.resize(images.random_size(self.rng, image.format))
                self.say(f"  {key}: resized to {image.size}")

    def change_excluded(self):
        keys = sorted(self.images)
        self.excluded = {self.rng.choice(keys)} if len(keys) > 1 and not self.excluded else set()
        self.say(f"  excluded: {self.excluded}")
        self.api.patch("/vms/oracle%20vm", {"excluded_disks": sorted(self.excluded)}).expect(200)

    def delete_something(self):
        order = self.order["main"]
        if not order:
            return
        victim = self.rng.choice(order)
        dependents = self.dependents(victim)
        self.say(f"  delete {victim} with {len(dependents)} dependents")
        if dependents:
            refused = self.cli.run("delete", victim)
            assert refused.status == 1 and victim in refused.err, refused
            self.check_listed()
            self.cli.ok("delete", victim, "--with-dependents")
        else:
            self.cli.ok("delete", victim)
        self.forget([victim, *dependents])
        self.check_listed()

    def delete_and_kill_the_hub(self):
        """What is listed afterwards has lost points from the end of the chain only, and is all right."""
        order = list(self.order["main"])
        if not order:
            return
        victim = self.rng.choice(order)
        may_go = {victim} | self.dependents(victim)
        deletion = threading.Thread(target=lambda: self.cli.run("delete", victim, "--with-dependents"))
        deletion.start()
        faults.pass_time(self.rng, 0.05)
        self.hub.kill()
        deletion.join()
        self.start_hub()
        listed = self.api.get("/backups?status=completed&limit=1000").expect(200)["backups"]
        gone = [b for b in order if b not in {p["backup_id"] for p in listed}]
        suspect = [p["backup_id"] for p in listed if p["suspect"]]
        self.say(f"  delete {victim}, hub killed: {len(gone)} of {len(may_go)} are gone, {len(suspect)} suspect")
        assert set(gone) | set(suspect) <= may_go
        for backup_id in suspect:       # the newest first. Files are gone, rows are not: to be deleted again
            self.cli.ok("delete", backup_id)
            gone.append(backup_id)
        for backup_id in gone:
            assert self.dependents(backup_id) <= set(gone)
        self.forget(gone)
        self.check_listed()
        self.check_nothing_left()

    def dependents(self, backup_id):
        found = {backup_id}
        for later in self.order["main"]:
            if any(d["parent_backup_id"] in found for d in self.shown[later]["disks"]):
                found.add(later)
        return found - {backup_id}

    def damage_parent(self):
        """One byte of a .hashes file of the next parent; put right again after the backup."""
        parent = self.newest("main")
        if not parent or self.damaged:
            return
        disk = self.rng.choice(self.shown[parent]["disks"])
        path = disk["image"].removesuffix(".qcow2") + ".hashes"
        at = self.rng.randrange(os.path.getsize(path))
        self.say(f"  damage {path} at {at}")
        faults.flip(path, at)
        self.damaged[disk["disk_key"]] = lambda: faults.flip(path, at)

    def lose_catalogue(self):
        self.say("  the repository is removed from the catalogue, added again and scanned")
        self.cli.ok("repo", "remove", "main")
        self.cli.ok("repo", "add", "main", "--path", self.repositories["main"])
        assert self.cli.json("repo", "scan", "main")["added"] == len(self.points)

    def restart_hub(self):
        self.say("  hub restarted")
        self.hub.stop()
        self.start_hub()

    def scan(self):
        self.say("  scan")
        scanned = self.cli.json("repo", "scan", "main")
        assert (scanned["added"], scanned["unchanged"]) == (0, len(self.points)), scanned
        assert not scanned["missing"] and not scanned["problems"] and not scanned["orphans"], scanned

    # ---- backups

    def expected(self, kind):
        """{disk key: (mode, reason)} by the rules."""
        parent = self.shown.get(self.newest("main"))
        before = {d["disk_key"]: d for d in parent["disks"]} if parent else {}
        longest = max((d["chain_length"] for d in before.values()), default=0)
        found = {}
        for key in self.references_now():
            if kind == "full":
                found[key] = ("full", "full_requested")
            elif not parent:
                found[key] = ("full", "first_backup")
            elif longest >= CHAIN_LIMIT:
                found[key] = ("full", "chain_limit")
            elif key not in before:
                found[key] = ("full", "new_disk")
            elif key in self.damaged:
                found[key] = ("full", "parent_damaged")
            elif before[key]["size"] != self.images[key].size:
                found[key] = ("compare", "disk_resized")
            else:
                found[key] = ("compare", "not_tracked")
        return found

    def good_backup(self):
        kind = self.rng.choice((None, None, None, "incremental", "full"))
        expected, parent = self.expected(kind), self.newest("main")
        backup = self.backup("main", self.references_now(), kind)
        self.say(f"  {backup['backup_id']}: {expected}")
        assert {d["disk_key"]: (d["mode"], d["reason"]) for d in backup["disks"]} == expected
        assert backup["partial"] == bool(self.excluded) and set(backup["left_out"]) == self.excluded
        for disk in backup["disks"]:
            assert (disk["reason"] == "") == (disk["reason_text"] == ""), disk
            if disk["mode"] != "full":
                assert disk["parent_backup_id"] == parent
                changed = self.references.changed_clusters(self.points[parent][disk["disk_key"]],
                                                           self.points[backup["backup_id"]][disk["disk_key"]])
                assert disk["stored_bytes"] <= (changed + OVERHEAD_CLUSTERS) * images.CLUSTER, (changed, disk)
        self.shown[backup["backup_id"]] = backup
        for undo in self.damaged.values():
            undo()
        self.damaged.clear()
        self.check_point(backup["backup_id"], self.rng.choice(("raw", "raw", "qcow2")))

    def disturbed_backup(self):
        """Something is killed, or the job cancelled, at some moment; whether it completes is open."""
        references, what = self.references_now(), self.rng.choice(("client", "exporter", "hub", "restart", "cancel"))
        backup_id = self.start("main")
        wait_for(lambda: self.show(backup_id)["status"] != "pending", "the job is claimed")
        faults.pass_time(self.rng, 0.15)
        if what in ("hub", "restart"):
            self.hub.kill() if what == "hub" else self.hub.stop()
            self.start_hub()
        elif what == "cancel":
            self.cli.run("cancel", backup_id)
        else:
            faults.kill_one(self.world, backup_id, what)
        backup = self.note("main", self.wait_final(backup_id), references)
        if backup["status"] == "completed":
            self.shown[backup_id] = backup
        self.say(f"  {backup_id}: {what}, {backup['status']}: {backup['error']}")
        self.check_nothing_left()

    def step(self):
        for happening, chance in ((self.delete_something, 0.15), (self.delete_and_kill_the_hub, 0.1),
                                  (self.change_excluded, 0.15), (self.damage_parent, 0.15),
                                  (self.restart_hub, 0.1), (self.scan, 0.1), (self.disturbed_backup, 0.25)):
            # damage stands until a good backup met it
            if self.rng.random() < chance and (not self.damaged or happening == self.restart_hub):
                happening()
        if not self.damaged and self.rng.random() < 0.1:
            self.lose_catalogue()
        self.change_images()
        self.good_backup()


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_history(seed, make_hub, place):
    rng = random.Random(seed)
    print(f"ORACLE_SEED={seed} ORACLE_HISTORIES=1")
    hub = make_hub(options=[f"--chain-limit={CHAIN_LIMIT}"], environment={"SENDENSE_TEST_PLACE": str(place)})
    history = FileHistory(rng, hub, Cli(hub.url, cwd=place), place)
    for n in range(STEPS):
        print(f"step {n}")
        history.step()
    history.check_everything(rng)
