"""What earlier systems of this kind got wrong, each shown not to be so here, with real processes, by its number. Some
are in other files, under their numbers, too (test_numbers.py).
"""

import json
import os
import random
import shutil
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from lib import faults, system, trace
from lib.api import quote
from lib.history import flatten, wait_for
from lib.hub import BIN
from lib.images import CLUSTER
from lib.line import Line
from lib.patience import patience
from lib.qmp_proxy import QmpProxy
from lib.stage import MIB, Stage
from lib.vm import make_vm

A, B = b"\xaa" * CLUSTER, b"\xbb" * CLUSTER


# ---- data that is silently wrong

def test_pitfall_01_lone_data_in_emptiness(make_hub, place):
    """Read in full, or vouched for by the source's map: also without a map, and the smallest of data."""
    content = bytearray(65 * MIB)
    rng = random.Random(1)
    for at in (0, 8191, 33 * MIB + 40_000, len(content) - 1, *(rng.randrange(len(content)) for _ in range(20))):
        content[at] = 0x7f
    line = Line(make_hub(), place, [bytes(content)])
    server = subprocess.Popen(["nbdkit", "-f", "-r", "-U", str(place / "s"), "--filter=noextents", "file",
                               str(line.images[0].path)], stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: system.listens(place / "s"), "nbdkit listens")
        line.own_processes = lambda: {server.pid}
        line.cli.ok("vm", "add", "nbd", "--file", f"nbd+unix:///?socket={place}/s")
        reference = line.references.of(bytes(content))
        for vm in ("pgtest1", "nbd"):
            backup = line.cli.json("backup", vm, "--repo", "main")
            line.points[backup["backup_id"]] = {"disk-0": reference}
            line.check_point(backup["backup_id"])
            assert backup["stored_bytes"] < 4 * MIB
    finally:
        server.kill()
        server.wait()
        (place / "s").unlink()


def test_pitfall_02_base_and_change_id_belong_together(make_hub, place):
    """Each increment stands on the one before, and blocks of those between are there on restore."""
    line = Line(make_hub(), place, [A * 8])
    line.point()
    for n in range(1, 7):
        line.images[0].write(n * CLUSTER, bytes([n]) * CLUSTER)
        before = line.newest("main")
        backup = line.point()
        assert backup["parent_id"] == backup["disks"][0]["parent_backup_id"] == before
        info = json.loads(subprocess.run(["qemu-img", "info", "--output=json", backup["disks"][0]["image"]], check=True,
                                         capture_output=True).stdout)
        assert info["backing-filename"] == os.path.basename(line.show(before)["disks"][0]["image"])
        if n == 4:
            line.cli.ok("delete", backup["backup_id"])
            line.forget([backup["backup_id"]])
    line.check_everything()


def test_pitfall_03_latest_is_the_newest_that_completed(make_hub, place):
    with Stage(make_hub, place) as stage:
        first = stage.first()
        stage.change()
        backup_id = stage.reach("half done")
        assert stage.show(backup_id)["parent_id"] == first["backup_id"]
        stage.cli.ok("cancel", backup_id)
        stage.settle(backup_id)
        again = stage.backup("main", stage.references_now())
        assert again["parent_id"] == first["backup_id"]
        stage.prove()


def test_pitfall_04_05_disks_are_joined_by_key(make_hub, place):
    """Change IDs, sizes and contents stay with their disk, whatever the order in which disks are named."""
    line = Line(make_hub(), place, [A * 3, B * 20 + b"tail", A])
    first = line.point()
    assert len({d["change_id"] for d in first["disks"]}) == 3
    paths = [str(i.path) for i in line.images]
    for order in ((2, 0, 1), (1, 2, 0)):
        disks = [{"key": f"disk-{n}", "path": paths[n], "format": "raw"} for n in order]
        line.api.patch("/vms/pgtest1", {"source": {"type": "file", "disks": disks}}).expect(200)
        for n, image in enumerate(line.images):
            image.write(0, bytes([n + 1]) * 100)
        backup = line.point()
        assert line.modes(backup) == [("compare", "not_tracked")] * 3
        by_key = {d["disk_key"]: d for d in backup["disks"]}
        for old in first["disks"]:
            new = by_key[old["disk_key"]]
            assert (new["disk_id"], new["disk_no"], new["size"]) == (old["disk_id"], old["disk_no"], old["size"])
            assert Path(new["image"]).parent == Path(old["image"]).parent
    line.check_everything()


def test_pitfall_06_zeros_in_an_increment_hide_the_backing_file(make_hub, place):
    line = Line(make_hub(), place, [A + B + A])
    line.point()
    for how in ("data", "hole"):
        line.images[0].zero(CLUSTER, CLUSTER, how)
        backup = line.point()
        flat = flatten(backup["disks"][0]["image"], place / "flat", 3 * CLUSTER)
        assert flat.read_bytes() == A + bytes(CLUSTER) + A
        line.images[0].write(CLUSTER, B)
        line.point()
    line.check_everything()


class Durable:
    """Follows the calls of a program: a file below the folder gets its final name when all of it was synced, a record
    its own when all names before it were, and what is done is said after that."""

    def __init__(self, folder):
        self.folder = str(folder)
        self.dirty = set()      # files and folders that were written to, and not synced since
        self.seen = []          # names of what was synced or named, and "said"

    def follow(self, out, said=None):
        for call, paths, text in trace.calls(out):
            ours = bool(paths) and paths[0].startswith(self.folder)
            if said and said in text and call in trace.SENDS:
                self.expect_clean(self.folder)
                self.seen.append("said")
            elif ours and call in trace.WRITES:
                self.dirty.add(paths[0])
            elif call in trace.SYNCS:
                self.dirty.discard(paths[0])
                self.seen.append(os.path.basename(paths[0]))
            elif ours and call in trace.NAMES:
                self.follow_name(*paths)
        self.expect_clean(self.folder)
        return self.seen

    def follow_name(self, old, new):
        self.expect_clean(old)
        if new.endswith(".json"):
            self.expect_clean(os.path.dirname(new))
        self.dirty.add(os.path.dirname(new))
        self.seen.append(os.path.basename(new))

    def expect_clean(self, beginning):
        left = [path for path in self.dirty if path.startswith(beginning)]
        assert not left, f"not synced: {left}"


def test_pitfall_07_done_is_durable(make_hub, place):
    """A full, an increment and a restore, seen by strace: synced, then named, then synced, then said to be done."""
    hub = make_hub(start=False)
    plain = hub.command
    hub.command = lambda: trace.command(place / "calls", plain())
    line = Line(hub.start(), place, [A + B, B])
    points = []
    for n in range(2):
        line.images[0].write(0, B * n)
        points.append(line.point())
    hub.stop()
    assert not system.wait_gone(place / "calls"), "strace goes on"
    seen = Durable(line.repositories["main"]).follow(place / "calls", said="Backup completed successfully")
    for point in points:
        record = seen.index(f"{point['backup_id']}.json")
        for disk in point["disks"]:
            for name in (os.path.basename(disk["image"]), Path(disk["image"]).with_suffix(".hashes").name):
                assert f"disk-{disk['disk_no']}" in seen[seen.index(name):record], seen
        # the database follows the record, and goes before the answer
        assert hub.database.name + "-wal" in seen[record:seen.index("said", record)], seen
    hub.command = plain
    line.start_hub()
    line.check_everything()

    target = place / "target" / "restored.raw"
    target.parent.mkdir()
    restore = [str(BIN / "sendense"), "restore", points[1]["backup_id"], "--disk", "0", "--to", str(target)]
    subprocess.run(trace.command(place / "calls", restore), check=True, capture_output=True, timeout=patience(60),
                   env={**os.environ, "SHA_API_URL": hub.url})
    assert not system.wait_gone(place / "calls"), "strace goes on"
    seen = Durable(target.parent).follow(place / "calls")
    assert target.name in seen and seen[-1] == target.parent.name, seen


def test_pitfall_09_sizes_to_the_byte(make_hub, place):
    line = Line(make_hub(), place, [b"x" * 1000, B[:513], A + b"t"])
    line.point()
    for size in (1001, CLUSTER, CLUSTER + 1, 999, 3 * CLUSTER - 1):
        line.images[0].resize(size)
        backup = line.point()
        assert backup["disks"][0]["size"] == size
    line.check_everything()


@pytest.mark.parametrize("bad", [0, 4 * MIB - 1])
def test_pitfall_10_an_error_late_in_a_copy_is_an_error(make_hub, place, bad):
    """The first byte, or the very last: one failed request among many fails the job."""
    path = place / "data"
    path.write_bytes(os.urandom(4 * MIB))
    broken = place / "broken"
    read = (f"[ -e {broken} ] && [ $4 -le {bad} ] && [ $(( $3 + $4 )) -gt {bad} ] && {{ echo EIO >&2; exit 1; }};"
            f" LD_PRELOAD= dd if={path} skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none")
    server = subprocess.Popen(["nbdkit", "-f", "-r", "-U", str(place / "s"), "eval", f"get_size=echo {4 * MIB}",
                               f"pread={read}"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: system.listens(place / "s"), "nbdkit listens")
        line = Line(make_hub(), place, [], register=False)
        line.own_processes = lambda: {server.pid}
        line.add_repository("main")
        line.cli.ok("vm", "add", "pgtest1", "--file", f"nbd+unix:///?socket={place}/s")
        for _ in range(2):      # a full, and an increment
            broken.touch()
            failed = line.cli.run("backup", "pgtest1", "--repo", "main")
            assert failed.status == 1, failed
            line.check_listed()
            broken.unlink()
            line.backup("main", {"disk-0": line.references.of(path.read_bytes())})
        line.check_everything()
    finally:
        server.kill()
        server.wait()
        (place / "s").unlink()


@pytest.mark.parametrize("gone", ["disk folder", "context", "one image", "record"])
def test_pitfall_11_verify_lists_what_should_be_there(make_hub, place, gone):
    line = Line(make_hub(), place, [A + B])
    first, second = line.point(), line.point()
    image = Path(first["disks"][0]["image"])
    target = {"disk folder": image.parent, "context": image.parents[1], "one image": image,
              "record": image.parents[1] / f"{first['backup_id']}.json"}[gone]
    aside = place / "aside"
    target.rename(aside)
    told = line.cli.run("verify", "--repo", "main", use_json=True)
    assert told.status == 3, told
    results = {p["backup_id"]: p["result"] for p in told.json["points"]}
    assert results == {first["backup_id"]: "damaged", second["backup_id"]: "damaged"}, results
    restored = line.cli.run("restore", second["backup_id"], "--disk", "0", "--to", place / "out.raw")
    assert restored.status == 3 and not (place / "out.raw").exists()
    aside.rename(target)
    line.cli.ok("verify", "--repo", "main")
    line.check_everything()


# ---- jobs and state

def test_pitfall_14_names_that_are_like_others(make_hub, place):
    """disk-1 and disk-10, vm1 and vm10, a_b and aXb: never taken for one another."""
    line = Line(make_hub(), place, [bytes([n + 1]) * 1000 for n in range(12)])
    line.point()
    line.images[1].write(0, b"one")
    line.images[10].write(0, b"ten")
    line.point()
    line.check_everything()
    points = {}
    for name in ("vm1", "vm10", "a_b", "aXb", "a%b", "VM1"):
        line.cli.ok("vm", "add", name, "--file", line.images[len(points)].path)
        points[name] = [line.cli.json("backup", name, "--repo", "main")["backup_id"] for _ in range(2)]
    for name, ids in points.items():
        listed = line.cli.json("backups", "--vm", name)["backups"]
        assert [b["backup_id"] for b in reversed(listed)] == ids
    line.cli.ok("vm", "remove", "vm1")
    line.cli.ok("delete", points["a_b"][0], "--with-dependents")
    for name, ids in points.items():
        left = [b["backup_id"] for b in line.cli.json("backups", "--vm", name)["backups"]]
        assert sorted(left) == ([] if name == "a_b" else sorted(ids))


NAMES = ["with blank", "comma,comma", "colon:colon", "a/b", "it's \"quoted\"", "-disk", "--help", "Zürich-ÄÖÜ",
         "日本語 vm", "x" * 255, "ü" * 127, "..", ".", "*?[a]", "$(id)", "a\\b", "stats", "%2F", "a#b?c=d&e",
         "nbd:localhost:1"]


def test_pitfall_15_rule_20_names(make_hub, place):
    """The whole way with each: register, full, increment, list, restore, verify, delete, and again from the records."""
    line = Line(make_hub(), place, [A + B], register=False)
    line.add_repository("main")
    reference = line.references_now()
    ids = {}
    for name in NAMES:
        line.vm_name = name
        line.cli.ok("vm", "add", "--file", line.images[0].path, "--", name)
        for kind in ("full", "incremental"):
            done = line.cli.json("backup", "--repo", "main", f"--{kind}", "--", name)
            assert done["status"] == "completed" and done["vm_name"] == name, done
            assert done["backup_id"].startswith(f"backup-{name}-")
            line.points[done["backup_id"]] = reference
        ids[name] = done["backup_id"]
    assert len(set(ids.values())) == len(NAMES)
    for path in line.repositories["main"].rglob("*"):
        assert path.name.isascii() and len(path.name) <= 200 and not set(path.name) & set(" ,:*?$'\"\\%&"), path
    line.cli.ok("repo", "remove", "main")
    line.cli.ok("repo", "add", "main", "--path", line.repositories["main"])
    assert line.cli.json("repo", "scan", "main")["added"] == len(line.points)
    for name, backup_id in ids.items():
        assert line.cli.json("show", "--", backup_id)["vm_name"] == name
        line.check_point(backup_id)
        line.check_point_with_stock_tools(backup_id)
        line.cli.ok("delete", "--", backup_id)
    line.cli.ok("verify", "--repo", "main")
    for line_of_log in line.hub.log.splitlines():
        assert line_of_log.startswith("ts="), line_of_log       # no name breaks a line in two


@pytest.mark.parametrize("name", ["", "x" * 256, "ü" * 128, "a\nb", "a\tb", "a\x7fb", "\x1b[31m"])
def test_pitfall_15_rule_20_names_that_are_refused(make_hub, place, name):
    line = Line(make_hub(), place, [A], register=False)
    body = {"name": name, "source": {"type": "file", "disks": [{"path": str(line.images[0].path)}]}}
    line.api.post("/vms", body).expect(400)


def test_pitfall_16_names_of_routes(make_hub, place):
    line = Line(make_hub(), place, [A], vm_name="stats")
    line.point()
    for name in ("stats", "events", "cancel"):
        line.api.get(f"/backups/{name}").expect(404)
        line.api.post(f"/backups/{name}/cancel").expect(404)
    assert line.api.get("/vms/stats").expect(200)["name"] == "stats"


def test_pitfall_17_all_disks_at_one_instant(make_hub, place):
    """The guest writes n to one disk, then to the other, and goes on: no point has them further apart than one. It does
    so at the very instant: the one transaction for all disks waits for it."""
    vm = make_vm(place, [("qcow2", bytes(MIB)), ("raw", bytes(MIB))])
    count = 0

    def guest_writes(command):
        if command["execute"] == "transaction":
            least = count + 3
            wait_for(lambda: count >= least, "the guest writes")

    proxy = QmpProxy(place / "q", vm.qmp_path, guest_writes)
    try:
        line = Line(make_hub(environment={"SENDENSE_TEST_PLACE": str(place)}), place, [], register=False)
        line.add_repository("main")
        line.cli.ok("vm", "add", "pgtest1", "--qmp", proxy.path, "--scratch", place)
        for _ in range(3):
            del proxy.commands[:]
            backup_id = line.start("main")
            while not line.show(backup_id)["disks"]:
                count += 1
                for n in range(2):
                    vm.write(n, 0, 512, count % 251)
            backup = line.wait_final(backup_id)
            assert backup["status"] == "completed", line.client_log()
            instants = [[action["type"] for action in c["arguments"]["actions"]].count("blockdev-backup")
                        for c in proxy.commands if c["execute"] == "transaction"]
            assert instants == [2], proxy.commands
            out = place / backup_id
            line.cli.ok("restore", backup_id, "--all-disks", "--to", out)
            first, second = ((out / f"disk-{n}.raw").read_bytes()[0] for n in range(2))
            assert (first - second) % 251 in (0, 1), (first, second)
    finally:
        vm.close()
        proxy.close()


def test_pitfall_19_many_connections(make_hub, place):
    """A second connection to an export does not wait for the first."""
    line = Line(make_hub(), place, [os.urandom(2 * MIB)])
    backup = line.point()
    body = {"backup_id": backup["backup_id"], "disk": "0", "purpose": "restore"}
    export = line.api.post("/exports", body).expect(201)
    results = []

    def read():
        results.append(subprocess.run(["nbdcopy", "--connections=4", "--requests=8", export["uri"], "-"],
                                      timeout=patience(60), check=True, capture_output=True).stdout)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [bytes(line.images[0].content)] * 4
    line.cli.ok("export", "end", export["export_id"])
    line.check_nothing_left()


def test_pitfall_20_delete_removes_rows_and_files(make_hub, place):
    line = Line(make_hub(), place, [A + B, B])
    kept = line.point()
    line.images[0].write(0, B)
    second, third = line.point(), line.point()
    assert line.cli.run("delete", second["backup_id"]).status == 1
    line.cli.ok("delete", second["backup_id"], "--with-dependents")
    line.forget([second["backup_id"], third["backup_id"]])
    for gone in (second, third):
        assert not [p for p in line.repositories["main"].rglob("*") if gone["backup_id"] in p.name]
        line.api.get(f"/backups/{quote(gone['backup_id'])}").expect(404)
    assert line.world.sql("SELECT COUNT(*) AS n FROM backup_disks")[0]["n"] == 2
    assert Path(kept["disks"][0]["image"]).exists()
    line.check_everything()


def test_pitfall_21_a_moved_repository(make_hub, place):
    """Backing paths are relative: the chain is alive at its new place, for stock tools too, and goes on there."""
    line = Line(make_hub(), place, [A + B])
    line.point()
    line.images[0].write(0, B)
    line.point()
    new = place / "elsewhere" / "deep"
    new.parent.mkdir()
    line.cli.ok("repo", "remove", "main")
    line.repositories["main"].rename(new)
    line.cli.ok("repo", "add", "main", "--path", new)
    assert line.cli.json("repo", "scan", "main")["added"] == 2
    line.repositories["main"] = new
    line.images[0].write(CLUSTER, A)
    assert line.modes(line.point()) == [("compare", "not_tracked")]
    line.check_everything()
    for backup_id in line.points:
        assert line.show(backup_id)["disks"][0]["image"].startswith(str(new))


def test_pitfall_21_a_lost_database(make_hub, place):
    """Records are enough: points, their chain, the VM's identity, and the next increment."""
    line = Line(make_hub(), place, [A + B, B])
    line.point()
    line.images[0].write(0, B)
    second = line.point()
    line.hub.stop()
    shutil.rmtree(line.hub.data)
    line.start_hub()
    line.cli.ok("repo", "add", "main", "--path", line.repositories["main"])
    scanned = line.cli.json("repo", "scan", "main")
    assert (scanned["added"], scanned["problems"]) == (2, [])
    for backup_id in line.points:
        line.check_point(backup_id)
    unknown = line.cli.run("backup", "pgtest1", "--repo", "main")
    assert unknown.status == 1
    files = [a for i in line.images for a in ("--file", i.path)]
    line.cli.ok("vm", "add", "pgtest1", *files, "--adopt", "pgtest1")
    line.images[1].write(0, A)
    third = line.point("incremental")
    assert third["parent_id"] == second["backup_id"]
    assert line.modes(third) == [("compare", "not_tracked")] * 2
    assert Path(third["disks"][0]["image"]).parent == Path(second["disks"][0]["image"]).parent
    line.check_everything()


def test_pitfall_22_a_running_full_is_no_full(make_hub, place):
    with Stage(make_hub, place) as stage:
        backup_id = stage.reach("half done")
        body = {"vm_name": "pgtest1", "repository_id": "main", "backup_type": "incremental"}
        stage.api.post("/backups", body).expect(409)
        stage.cli.ok("cancel", backup_id)
        stage.settle(backup_id)
        # asked for an increment, and nothing to stand on: a full, that says so
        backup = stage.backup("main", stage.references_now(), "incremental")
        assert backup["backup_type"] == "full" and backup["requested_type"] == "incremental"
        assert backup["reason"] == "first_backup" and backup["reason_text"]
        stage.prove()


def test_pitfall_23_progress_is_of_all_disks(make_hub, place):
    with Stage(make_hub, place) as stage:
        backup_id = stage.reach("half done")

        def second_disk_done():
            shown = stage.show(backup_id)
            by_key = {d["disk_key"]: d for d in shown["disks"]}
            # the sum and its parts are read one after the other: now and then something was noted between them
            agree = shown["done_bytes"] == sum(d["done_bytes"] for d in shown["disks"])
            return shown if agree and by_key["disk-1"]["done_bytes"] == by_key["disk-1"]["size"] else None

        shown = wait_for(second_disk_done, "the fast disk is done, and the hub knows")
        assert shown["total_bytes"] == sum(d["size"] for d in shown["disks"])
        assert 0 < shown["done_bytes"] < shown["total_bytes"]
        backup = stage.settle(backup_id)
        assert backup["status"] == "completed" and backup["bytes_transferred"] > 4 * MIB
        stage.prove()


# ---- security

def test_pitfall_26_secrets_and_sockets(make_hub, place):
    """During a backup and a restore: no argument, no environment of a child of the client, no log holds the token; NBD
    is on unix sockets in folders that are ours alone."""
    with Stage(make_hub, place) as stage:
        tokens = set()
        plain = stage.wrapper.read_text()
        stage.wrapper.write_text(plain.replace("SHA_API_URL=", f"printf %s \"$SENDENSE_JOB_TOKEN\" >{place}/token\n"
                                                               "SHA_API_URL=", 1))
        backup_id = stage.reach("half done")
        tokens.add((place / "token").read_text())
        (place / "token").unlink()
        assert all(len(t) >= 16 for t in tokens)
        client = faults.client_pid(stage.world, backup_id)
        seen = {**stage.hub.children(), **system.processes_of(place), client: ""}
        assert len(seen) >= 4, seen     # hub, client, an exporter a disk
        for pid in seen:
            texts = [Path(f"/proc/{pid}/cmdline").read_bytes()]
            if pid != os.getpid():
                texts.append(Path(f"/proc/{pid}/environ").read_bytes())
            for text in texts:
                assert not any(t.encode() in text for t in tokens), (pid, seen[pid])
        check_sockets(stage.hub)
        listening = listening_inodes()
        assert listening & socket_inodes(stage.hub.process.pid)
        for pid in seen:
            if pid not in (stage.hub.process.pid, os.getpid()):
                assert not listening & socket_inodes(pid), seen[pid]
        assert stage.settle(backup_id)["status"] == "completed"
        export = stage.api.post("/exports", {"backup_id": backup_id, "disk": "0", "purpose": "restore"}).expect(201)
        check_sockets(stage.hub)
        stage.cli.ok("export", "end", export["export_id"])
        for path in (stage.hub.log_path, *stage.hub.data.rglob("*"), *stage.repositories["main"].rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                assert not any(t.encode() in content for t in tokens), path
        for path in (stage.hub.data, *stage.hub.data.rglob("*.db"), *stage.hub.data.rglob("*.log")):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def listening_inodes():
    """Of sockets that listen on TCP."""
    found = set()
    for table in ("tcp", "tcp6"):
        rows = [row.split() for row in Path(f"/proc/net/{table}").read_text(encoding="ascii").splitlines()[1:]]
        found |= {row[9] for row in rows if row[3] == "0A"}
    return found


def socket_inodes(pid):
    links = (os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir())
    return {link[8:-1] for link in links if link.startswith("socket:[")}


def check_sockets(hub):
    sockets = system.sockets_below(hub.run_dir)
    assert sockets
    for path in sockets:
        folder = os.stat(os.path.dirname(path))
        assert stat.S_IMODE(folder.st_mode) == 0o700 and folder.st_uid == os.geteuid(), path
