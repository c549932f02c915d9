"""Interrupted backups that are gone on from (docs/internals/resume.md): cut at random moments, the point equals the
reference; what was durable does not travel again; where nobody can tell what changed, it starts over.
"""

import os
import random
import time

import pytest

from lib.history import partial_files, wait_for
from lib.images import Image
from lib.nbd_gate import NbdGate
from lib.stage import MIB, QemuStage, Stage

CLUSTER = 65536
DATA = 16 * MIB     # of noise in the first file
SIZE = DATA + 2 * MIB + 512
GUEST_DATA = 4 * MIB


class FileStage(Stage):
    """The VM's disks are files: a raw one, and a QCOW2."""

    data = DATA
    client_options = "--connections=1"      # so that no more than one request is there in part

    def prepare(self):
        self.add_repository("main")
        self.contents = [bytearray(self.random.randbytes(DATA).ljust(SIZE, b"\0")),
                         bytearray(self.random.randbytes(CLUSTER).ljust(SIZE, b"\0"))]
        self.paths = [self.folder / "vm-0.raw", self.folder / "vm-1.qcow2"]
        self.write_out()
        self.api.post("/vms", {"name": self.vm_name, "source": {"type": "file", "disks": [
            {"path": str(self.paths[0]), "format": "raw"}, {"path": str(self.paths[1]), "format": "qcow2"}]}}
        ).expect(201)

    def write_out(self):
        for path, fmt, content in zip(self.paths, ("raw", "qcow2"), self.contents):
            path.unlink(missing_ok=True)
            Image(path, fmt, bytes(content))

    def settle_times(self):
        """A file that was written to a moment ago could be written to again with the same times."""
        newest = max(os.stat(p).st_ctime for p in self.paths)
        wait_for(lambda: time.time() > newest + 3.1, "the files' times are not young any more")

    def references_now(self):
        return {f"disk-{n}": self.references.of(bytes(c)) for n, c in enumerate(self.contents)}

    def change(self, disk=0):
        at = self.random.randrange(DATA // CLUSTER) * CLUSTER
        self.contents[disk][at:at + CLUSTER] = self.random.randbytes(CLUSTER)
        self.write_out()


def interrupt(stage, victim, moment="half done", limit=None):
    """A backup that was cut; its job."""
    stage.settle_times()
    if limit is None:
        backup_id = stage.reach(moment)
    else:
        stage.references_then = stage.references_now()
        backup_id = stage.at_let_through(limit)
        stage.wait_received(backup_id, max(limit - 2 * MIB, CLUSTER))       # a request has 1 MiB at most
        if "exporter" in victim:
            stage.wait_journal((limit - 3 * MIB) // CLUSTER)
    stage.kill(backup_id, victim)
    backup = stage.settle(backup_id)
    assert backup["status"] == "failed", backup
    return backup


def next_one(stage, full=False):
    backup = stage.backup("main", stage.references_now(), "full" if full else None)
    stage.check_nothing_left()
    assert not partial_files(stage.repositories["main"])
    return backup


def kept(backup):
    return sum(d["kept_bytes"] for d in backup["disks"])


@pytest.fixture
def files(make_hub, place):
    with FileStage(make_hub, place, options=["--checkpoint-mib=1"]) as stage:
        yield stage


class GuestStage(QemuStage):
    client_options = FileStage.client_options

    def settle_times(self):
        """Bitmaps know no times."""


@pytest.fixture
def guest(make_hub, place):
    with GuestStage(make_hub, place) as stage:
        stage.hub.options.append("--checkpoint-mib=1")
        stage.hub.restart()
        yield stage


@pytest.mark.parametrize("victim", ["client", "exporter", "hub+client+exporter"])
def test_an_image_file_is_gone_on_from(files, victim):
    backup = interrupt(files, victim, limit=DATA // 4 * 3)
    assert backup["resumable"] is True, backup
    later = next_one(files)
    assert later["resumed_from"] == backup["backup_id"], (later, files.hub.log[-3000:])
    durable = DATA // 4 * 3 - (3 if "exporter" in victim else 2) * MIB      # at the least
    assert kept(later) >= durable
    assert later["bytes_transferred"] <= DATA + CLUSTER - durable
    assert files.show(backup["backup_id"])["resumable"] is False
    files.prove()


def test_an_image_file_that_was_written_to_starts_over(files):
    backup = interrupt(files, "client", limit=DATA // 2)
    assert backup["resumable"] is True
    files.change()
    later = next_one(files)
    assert later["resumed_from"] is None and kept(later) == 0
    files.prove()


def test_a_young_file_is_not_known_again(files):
    """It could be written to within the same tick of the clock. Its time is one to come: one of now was two seconds old
    when a slow client looked."""
    files.settle_times()
    os.utime(files.paths[0], (time.time() + 3600,) * 2)
    files.settle_times = lambda: None
    backup = interrupt(files, "client", limit=DATA // 2)
    later = next_one(files)
    assert not [d for d in later["disks"] if d["disk_key"] == "disk-0" and d["kept_bytes"]]
    assert later["resumed_from"] in (None, backup["backup_id"])     # the other disk is older
    files.prove()


def test_an_increment_is_gone_on_from(files):
    """A comparison: what equals the parent counts as much as what does not."""
    files.first()
    files.contents[0][:DATA] = files.random.randbytes(DATA)
    files.write_out()
    backup = interrupt(files, "client", limit=DATA // 2)
    later = next_one(files)
    assert later["resumed_from"] == backup["backup_id"] and later["disks"][0]["mode"] == "compare"
    assert kept(later) > 0
    files.prove()


@pytest.mark.parametrize("change", ["nothing", "some"])
def test_a_running_vm_is_gone_on_from(guest, change):
    """Its bitmaps say what changed since: nothing, in a guest that was paused."""
    backup = interrupt(guest, "client", limit=GUEST_DATA // 4 * 3)
    assert backup["resumable"] is True
    if change == "some":
        for n in range(2):
            for cluster in (0, 3, 40):
                guest.vm.write(n, cluster * CLUSTER + 512, 1024, 0x5a)
    later = next_one(guest)
    assert later["resumed_from"] == backup["backup_id"], guest.client_log()
    assert kept(later) > 0
    guest.prove()


def test_a_tracked_increment_is_gone_on_from(guest):
    guest.first()
    guest.change()
    backup = interrupt(guest, "client", limit=guest.data - 2 * CLUSTER)
    guest.vm.write(0, 5 * CLUSTER, 4096, 0x77)
    assert backup["resumable"] is True, (backup, guest.hub.log[-3000:])
    later = next_one(guest)
    assert later["resumed_from"] == backup["backup_id"], (later, guest.client_log(), guest.hub.log[-3000:])
    assert {d["mode"] for d in later["disks"]} == {"tracked"} and kept(later) > 0
    guest.prove()


def test_a_guest_that_was_started_anew_starts_over(guest):
    """Bitmaps of the raw disk went with QEMU, those of the other one say that it did not end cleanly."""
    interrupt(guest, "client", limit=GUEST_DATA // 4 * 3)
    guest.vm.kill()
    guest.vm.start()
    later = next_one(guest)
    assert kept(later) == 0 and later["resumed_from"] is None
    guest.prove()


def test_cut_again_and_again(files):
    """Each run has what the one before had confirmed, and more."""
    ids = []
    for limit in (DATA // 2, 2 * MIB, 2 * MIB):
        ids.append(interrupt(files, "client", limit=limit)["backup_id"])
    later = next_one(files)
    assert later["resumed_from"] in ids and kept(later) > 0
    files.prove()


def test_a_comparison_that_is_cut_again_and_again(files):
    """The same, where what is equal is not sent."""
    files.first()
    files.contents[0][:DATA] = files.random.randbytes(DATA)
    files.write_out()
    ids = []
    for limit in (DATA // 2, 2 * MIB, 2 * MIB):
        ids.append(interrupt(files, "client", limit=limit)["backup_id"])
    later = next_one(files)
    assert later["resumed_from"] in ids and later["backup_type"] == "incremental"
    files.prove()


@pytest.mark.parametrize("seed", range(int(os.environ.get("RESUME_SEEDS", "1"))))
def test_random_cuts(make_hub, place, seed):
    """Of a running VM, which is written to, and of everything that can be killed."""
    dice = random.Random(seed)
    with QemuStage(make_hub, place, seed=seed) as stage:
        stage.hub.options.append("--checkpoint-mib=1")
        stage.hub.restart()
        resumed = 0
        for _ in range(3):
            for _ in range(dice.randrange(1, 3)):
                for _ in range(dice.randrange(6)):
                    stage.vm.write(dice.randrange(2), dice.randrange(stage.size // 512 - 8) * 512, 4096,
                                   dice.randrange(256))
                newest = stage.newest("main")
                limit = dice.randrange(1, GUEST_DATA if not newest else 4 * CLUSTER)
                try:
                    stage.references_then = stage.references_now()
                    backup_id = stage.at_announced()
                    row = stage.world.sql("SELECT socket FROM backup_disks WHERE backup_id = ? AND disk_no = 0",
                                          backup_id)
                    stage.nbd_gate = NbdGate(row[0]["socket"], limit)
                    stage.gate.open()
                    wait_for(lambda: stage.nbd_gate.held or stage.show(backup_id)["status"] == "completed",
                             "the gate, or the end", 30)
                    if stage.show(backup_id)["status"] != "completed":
                        stage.kill(backup_id, dice.choice(["client", "exporter", "hub+client",
                                                           "hub+client+exporter"]))
                finally:
                    backup = stage.settle(backup_id)
                resumed += backup["resumed_from"] is not None
            backup = stage.backup("main", stage.references_now())
            resumed += backup["resumed_from"] is not None
            stage.check_nothing_left()
        assert resumed > 0
        stage.prove()


def test_a_cancelled_backup_leaves_nothing(files):
    files.settle_times()
    backup_id = files.at_let_through(DATA // 2)
    files.cli.run("cancel", backup_id)
    files.go()
    files.wait_final(backup_id)
    assert files.show(backup_id)["resumable"] is False
    wait_for(lambda: not partial_files(files.repositories["main"]), "the partial files go")
    later = next_one(files)
    assert later["resumed_from"] is None


def test_what_was_left_is_checked_before_it_counts(files):
    """A byte that changed in the partial image: that run fails, and the one after it starts over."""
    interrupt(files, "client", limit=DATA // 2)
    image, = [p for p in partial_files(files.repositories["main"]) if "disk-0" in p.parts and ".qcow2." in p.name]
    with open(image, "r+b") as f:
        f.seek(3 * CLUSTER + 17)
        byte = f.read(1)
        f.seek(3 * CLUSTER + 17)
        f.write(bytes([byte[0] ^ 1]))
    backup_id = files.start("main")
    backup = files.wait_final(backup_id)
    assert backup["status"] == "failed" and "interrupted backup" in f"{backup['error']} {backup['details']}", backup
    later = next_one(files)
    assert [d["kept_bytes"] for d in later["disks"] if d["disk_key"] == "disk-0"] == [0]     # the other disk goes on
    files.prove()


def test_a_journal_that_cannot_be_read_starts_over_at_once(files):
    interrupt(files, "client", limit=DATA // 2)
    for journal in [p for p in partial_files(files.repositories["main"]) if ".journal." in p.name]:
        journal.write_bytes(b"no journal")
    later = next_one(files)
    assert kept(later) == 0
    files.prove()


def test_nothing_is_kept_where_nobody_wants_it(make_hub, place):
    with FileStage(make_hub, place, options=["--keep-interrupted=0"]) as stage:
        backup = interrupt(stage, "client", limit=DATA // 2)
        assert backup["resumable"] is False
        stage.check_nothing_left()
        assert not partial_files(stage.repositories["main"])
        assert next_one(stage)["resumed_from"] is None


def test_what_was_kept_goes_with_the_vm(files):
    interrupt(files, "client", limit=DATA // 2)
    assert partial_files(files.repositories["main"])
    files.cli.run("vm", "remove", files.vm_name)
    wait_for(lambda: not partial_files(files.repositories["main"]), "the partial files go")


def test_what_was_kept_goes_with_the_job(files):
    """A failed job that was deleted left its images to nobody: they stayed until the hub's next start."""
    backup = interrupt(files, "client", limit=DATA // 2)
    assert partial_files(files.repositories["main"])
    files.cli.run("delete", backup["backup_id"])
    assert not partial_files(files.repositories["main"])
    assert next_one(files)["resumed_from"] is None
    files.prove()


def test_a_hub_that_starts_keeps_them_and_a_scan_does_not_name_them(files):
    backup = interrupt(files, "client", limit=DATA // 2)
    before = sorted(partial_files(files.repositories["main"]))
    files.hub.stop()
    files.start_hub()
    assert sorted(partial_files(files.repositories["main"])) == before
    assert files.cli.json("repo", "scan", "main")["orphans"] == []
    later = next_one(files)
    assert later["resumed_from"] == backup["backup_id"]
    assert f"goes_on_from={backup['backup_id']}" in files.client_log()
    shown = files.cli.run("show", later["backup_id"])
    assert "goes on from:" in shown.out and backup["backup_id"] in shown.out, shown.out


def test_an_asked_for_full_does_not_stand_on_an_increments_rest(files):
    files.first()
    files.contents[0][:DATA] = files.random.randbytes(DATA)
    files.write_out()
    interrupt(files, "client", limit=DATA // 2)
    later = next_one(files, full=True)
    assert later["resumed_from"] is None and later["backup_type"] == "full"
    files.prove()
