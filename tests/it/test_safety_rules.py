"""The safety rules, shown with real processes, each by its number. Those that need a hypervisor, the engine alone, or a
hub that is played are in other files under their numbers, too (test_numbers.py).
"""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest

from lib import faults, images
from lib.history import wait_for
from lib.images import CLUSTER
from lib.line import Line
from lib.stage import Stage
from lib.vm import make_vm

A, B = b"\xaa" * CLUSTER, b"\xbb" * CLUSTER
ZERO = bytes(CLUSTER)


@pytest.mark.parametrize("contents", [
    [A + B, ZERO + B, A + B],                               # what was there before comes back
    [A + B + A, A, A + ZERO + ZERO, A + B + ZERO],          # shrunk, grown: zeros, whatever lies below
    [A + b"t" * 700, A + b"t" * 700 + bytes(9000), A + b"t" * 700 + bytes(9000) + B],    # an odd tail, then grown
    [A + b"t" * 700, A + b"t" * 699, A + b"t" * 701],
    [b"x", b"xy", b""[:0] + b"x"],
])
def test_rule_01_what_the_parent_holds(make_hub, place, contents):
    line = Line(make_hub(), place, [contents[0]])
    line.point()
    for content in contents[1:]:
        line.images[0].resize(len(content))
        line.images[0].write(0, content)
        assert line.modes(line.point())[0][0] == "compare"
    line.check_everything()


def test_rule_02_damaged_hashes_make_a_full(make_hub, place):
    """Of that disk alone, with the reason on record; and the next one is an increment again."""
    line = Line(make_hub(), place, [A + B, B + A])
    first = line.point()
    hashes = first["disks"][1]["image"].removesuffix(".qcow2") + ".hashes"
    faults.flip(hashes, os.path.getsize(hashes) // 2)
    line.images[0].write(0, B)
    second = line.point("incremental")
    assert line.modes(second) == [("compare", "not_tracked"), ("full", "parent_damaged")]
    assert second["backup_type"] == "incremental" and second["disks"][1]["reason_text"]
    assert "parent_damaged" in line.hub.log
    assert line.modes(line.point()) == [("compare", "not_tracked")] * 2
    faults.flip(hashes, os.path.getsize(hashes) // 2)
    line.check_everything()


def test_rule_03_newest_by_the_counter(make_hub, place):
    """Clocks that were wrong choose no parent, and neither does another repository's point."""
    line = Line(make_hub(), place, [A + B])
    line.point()
    second = line.point()
    line.hub.stop()
    with line_database(line) as database:
        database.execute("UPDATE backup_jobs SET created_at = '2099-01-01T00:00:00.000000Z', "
                         "completed_at = '2099-01-01T00:00:00.000000Z' WHERE id = ?", (line.order["main"][0],))
        database.commit()
    line.start_hub()
    line.add_repository("other")
    line.point(repository="other")
    third = line.point()
    assert third["parent_id"] == second["backup_id"]
    assert third["sequence"] > second["sequence"]


def test_rule_03_disk_left_out(make_hub, place):
    line = Line(make_hub(), place, [A, B])
    line.point()
    line.cli.ok("vm", "change", "pgtest1", "--exclude", "disk-0")
    done = line.cli.run("backup", "pgtest1", "--repo", "main", use_json=True)
    assert done.status == 4 and done.json["partial"] and done.json["left_out"] == ["disk-0"]
    partial = line.note("main", line.show(done.json["backup_id"]), line.references_now())
    # the parent is the newest point, never the older one that has the disk
    line.cli.ok("vm", "change", "pgtest1", "--exclude", "")
    third = line.point()
    assert third["parent_id"] == partial["backup_id"]
    assert line.modes(third) == [("full", "new_disk"), ("compare", "not_tracked")]
    assert third["backup_type"] == "incremental"
    line.check_everything()


def test_rule_04_suspect(make_hub, place):
    """What rests on damage is suspect, restorable as far as it is whole, and no parent: the next backup is a full.

    An increment on it was listed as good, and showed the damage wherever the disk had not changed."""
    line = Line(make_hub(), place, [A + B + A, A])
    first, second = line.point(), line.point()
    image = first["disks"][0]["image"]
    at = Path(image).read_bytes().index(B[:512]) + 5
    faults.flip(image, at)
    assert line.cli.run("verify", "--repo", "main").status == 3
    assert all(line.show(b)["suspect"] for b in line.order["main"])
    third = line.point()
    assert line.modes(third)[0] == ("full", "parent_damaged") and not third["suspect"]
    line.check_point(third["backup_id"])
    assert line.modes(line.point()) == [("compare", "not_tracked")] * 2
    line.cli.ok("verify", third["backup_id"])
    # what is whole can still be had, with a warning; once the damage is put right, a verify clears the mark
    restored = line.cli.run("restore", second["backup_id"], "--disk", "1", "--to", place / "whole.raw")
    assert restored.status == 0 and "warning" in restored.err and "suspect" in restored.err
    line.references.expect(line.points[second["backup_id"]]["disk-1"], place / "whole.raw", "the disk that is whole")
    damaged = line.cli.run("restore", second["backup_id"], "--disk", "0", "--to", place / "damaged.raw")
    assert damaged.status == 3 and not (place / "damaged.raw").exists()
    faults.flip(image, at)
    line.cli.ok("verify", "--repo", "main")
    line.check_everything()


EVAL = ("nbdkit -f -r -t 16 -U {socket} eval get_size='echo {size}' "
        "pread='dd if={path} skip=$4 count=$3 iflag=skip_bytes,count_bytes status=none' {extents}")


@pytest.mark.parametrize("extents", [
    "extents='echo 0 {size} hole'",     # not allocated, which says nothing of what is read
    "can_extents='exit 3'",             # no map at all
    "extents='echo 0 {half} hole,zero; echo {half} {half} 0'",
])
def test_rule_05_zero_is_what_is_said_to_be_zero(make_hub, place, extents):
    size = 4 * CLUSTER
    path = place / "data"
    data = (ZERO if "zero" in extents else A) * 2 + B * 2
    path.write_bytes(data)
    values = {"size": size, "half": size // 2, "path": path, "socket": place / "s"}
    command = EVAL.format(extents=extents.format(**values), **values)
    server = subprocess.Popen(["sh", "-c", f"exec {command}"], stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: (place / "s").exists(), "nbdkit listens")
        line = Line(make_hub(), place, [], register=False)
        line.own_processes = lambda: {server.pid}
        line.add_repository("main")
        line.cli.ok("vm", "add", "pgtest1", "--file", f"nbd+unix:///?socket={place}/s")
        for content in (data, data[::-1]):
            path.write_bytes(content if "zero" not in extents else data)
            line.backup("main", {"disk-0": line.references.of(path.read_bytes())})
        line.check_everything()
    finally:
        server.kill()
        server.wait()
        (place / "s").unlink()


def test_rule_08_exports_have_names_of_their_own(make_hub, place):
    """A connection cannot come back to another instance: the nonce in its name is unknown there."""
    line = Line(make_hub(), place, [A])
    job = line.world
    job.repository = line.api.get("/repositories/main").expect(200)
    uris = []
    for _ in range(2):
        running = job.running_job(size=CLUSTER)
        uris.append(running.disks["disk-0"]["uri"])
        name, socket = uris[-1].removeprefix("nbd+unix:///").split("?socket=")
        for wrong in ("", "disk", name[:-1], uris[0].removeprefix("nbd+unix:///").split("?")[0]):
            if wrong != name:
                refused = subprocess.run(["nbdinfo", "--size", f"nbd+unix:///{wrong}?socket={socket}"],
                                         capture_output=True, check=False)
                assert refused.returncode != 0, wrong
        line.cli.ok("cancel", running.id)
        line.wait_final(running.id)
    assert uris[0] != uris[1]


def test_rule_11_images_in_use(make_hub, place):
    """Refused while a QEMU holds the lock; with --inconsistent taken, and the record says so."""
    vm = make_vm(place, [("qcow2", A + B)])
    try:
        line = Line(make_hub(), place, [], register=False)
        line.add_repository("main")
        path = vm.disks[0].path
        line.cli.ok("vm", "add", "live", "--file", path)
        refused = line.cli.run("backup", "live", "--repo", "main")
        assert refused.status == 1 and "in use by a writer" in refused.err, refused.err
        assert line.api.get("/backups?status=completed").expect(200)["backups"] == []
        line.cli.ok("vm", "add", "inconsistent", "--file", path, "--inconsistent")
        taken = line.cli.json("backup", "inconsistent", "--repo", "main")
        assert taken["consistency"] == "inconsistent"
        vm.close()
        line.cli.ok("repo", "remove", "main")
        line.cli.ok("repo", "add", "main", "--path", line.repositories["main"])
        line.cli.ok("repo", "scan", "main")
        assert line.show(taken["backup_id"])["consistency"] == "inconsistent"   # the record, not only the row
    finally:
        vm.close()


def test_rule_11_changed_while_it_was_read(make_hub, place):
    with Stage(make_hub, place) as stage:
        image = place / "file.raw"
        image.write_bytes(A + B)
        stage.cli.ok("vm", "add", "files", "--file", image)
        stage.gate.hold("disks", after=True)
        backup_id = stage.cli.ok("backup", "files", "--repo", "main", "--detach").strip()
        stage.gate.wait_held("disks", after=True)
        image.write_bytes(B + A)
        stage.gate.open()
        backup = stage.wait_final(backup_id)
        assert backup["status"] == "failed" and "changed" in backup["details"], backup


def test_rule_14_a_partial_image_is_no_image(make_hub, place):
    """Nobody can take one that is being written for one that is done."""
    with Stage(make_hub, place) as stage:
        for moment in ("half done", "copied"):
            backup_id = stage.reach(moment)
            partial = stage.partial_images()[0]
            told = subprocess.run(["qemu-img", "info", "-U", "--output=json", str(partial)], capture_output=True,
                                  check=True)
            assert json.loads(told.stdout)["format"] == "raw"
            stage.cli.ok("cancel", backup_id)
            stage.settle(backup_id)
            stage.check_nothing_left()


def test_rule_16_nothing_goes_under_what_rests_on_it(make_hub, place):
    line = Line(make_hub(), place, [A + B])
    first, second = line.point(), line.point()
    refused = line.cli.run("delete", first["backup_id"])
    assert refused.status == 1 and second["backup_id"] in refused.err
    # a running job's parent
    line.world.repository = line.api.get("/repositories/main").expect(200)
    job = line.world.job()
    assert job.started["parent_id"] == second["backup_id"]
    refused = line.cli.run("delete", second["backup_id"])
    assert refused.status == 1 and job.id in refused.err, refused.err
    job.claim()
    assert line.cli.run("delete", second["backup_id"]).status == 1
    line.cli.ok("cancel", job.id)
    line.wait_final(job.id)
    # a restore
    body = {"backup_id": second["backup_id"], "disk": "0", "purpose": "restore"}
    export = line.api.post("/exports", body).expect(201)
    assert line.cli.run("delete", second["backup_id"]).status == 1
    line.cli.ok("export", "end", export["export_id"])
    line.check_everything()
    line.cli.ok("delete", second["backup_id"])
    line.forget([second["backup_id"]])
    line.check_everything()


def test_rule_16_a_deletion_that_was_cut_off_is_finished(make_hub, place):
    """The record goes first, then images, then rows: what a killed hub left of it, the next one takes away."""
    line = Line(make_hub(), place, [A + B])
    line.point()
    second = line.point()
    line.hub.kill()
    record = Path(second["disks"][0]["image"]).parents[1] / f"{second['backup_id']}.json"
    assert record.exists()
    os.rename(record, f"{record}.deleted")
    line.start_hub()
    assert [p.name for p in line.repositories["main"].rglob(f"{second['backup_id']}*")] == []
    line.forget([second["backup_id"]])
    line.check_everything()


def test_rule_17_a_late_hub_lists_nothing_wrong(make_hub, place):
    """A hub that was stopped, and whose job another one has ended meanwhile, completes nothing."""
    with Stage(make_hub, place) as stage:
        stage.first()
        stage.change()
        backup_id = stage.reach("copied")
        old = stage.hub.process
        os.kill(old.pid, signal.SIGSTOP)
        try:
            # the lock of the data folder holds: nobody takes over while it may wake up
            second = make_hub("second", start=False)
            second.data = stage.hub.data
            with pytest.raises(AssertionError, match="another hub"):
                second.start()
        finally:
            os.kill(old.pid, signal.SIGCONT)
        assert stage.settle(backup_id)["status"] == "completed"
        stage.prove()


def test_rule_18_a_folder_registers_once(make_hub, place):
    line = Line(make_hub(), place, [A])
    line.point()
    path = line.repositories["main"]
    (place / "alias").symlink_to(path)
    shutil.copytree(path, place / "copy")
    for other in (path, place / "alias", f"{place}/./repository-main/", place / "copy"):
        refused = line.cli.run("repo", "add", "again", "--path", other)
        assert refused.status == 1, other


def test_rule_18_what_repository_json_says(make_hub, place):
    """Cluster size and algorithm are the repository's, also for a hub that meets it later; unknown ones are refused."""
    hub = make_hub()
    line = Line(hub, place, [A + B], register=False)
    line.cli.ok("repo", "add", "main", "--path", place / "repository", "--cluster-size", "128K", "--hash", "sha256")
    line.repositories["main"], line.order["main"] = place / "repository", []
    line.cli.ok("vm", "add", "pgtest1", "--file", line.images[0].path)
    line.point()
    line.images[0].write(CLUSTER, A)
    line.point()
    line.cli.ok("repo", "remove", "main")
    added = line.cli.json("repo", "add", "main", "--path", place / "repository")
    assert (added["cluster_size"], added["hash_algorithm"]) == (131072, "sha256")
    line.cli.ok("repo", "scan", "main")
    line.images[0].write(0, B)
    assert line.modes(line.point()) == [("compare", "not_tracked")]
    line.check_everything()
    line.cli.ok("repo", "remove", "main")
    info = place / "repository" / "repository.json"
    info.chmod(0o600)
    text = info.read_text()
    for change in ({"format": 99}, {"version": 99}, {"cluster_size": 65536 + 1}, {"hash_algorithm": "md5"}):
        known = {k: v for k, v in change.items() if k in json.loads(text)}
        if known:
            info.write_text(json.dumps({**json.loads(text), **known}))
            refused = line.cli.run("repo", "add", "main", "--path", place / "repository")
            assert refused.status in (1, 3), refused
    info.write_text(text)
    line.cli.ok("repo", "add", "main", "--path", place / "repository")


@pytest.mark.parametrize("harm", ["other backing file", "no backing file", "data file"])
def test_rule_19_images_are_read_as_we_wrote_them(make_hub, place, harm):
    """A backing file of somebody's choice does not get into a restore, nor into an increment."""
    line = Line(make_hub(), place, [A + B])
    line.point()
    line.images[0].write(CLUSTER, A)
    second = line.point()
    image = Path(second["disks"][0]["image"])
    secret = place / "secret.raw"
    secret.write_bytes(b"secret".ljust(2 * CLUSTER, b"."))
    image.chmod(0o600)
    if harm == "other backing file":
        images.tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", secret, image)
    elif harm == "no backing file":
        images.tool("qemu-img", "rebase", "-u", "-f", "qcow2", "-b", "", image)
    else:
        image.unlink()
        images.tool("qemu-img", "create", "-q", "-f", "qcow2", "-o", f"data_file={secret},data_file_raw=on", image,
                    2 * CLUSTER)
        secret.write_bytes(b"secret".ljust(2 * CLUSTER, b"."))
    restored = line.cli.run("restore", second["backup_id"], "--disk", "0", "--to", place / "out.raw")
    assert restored.status in (1, 3) and not (place / "out.raw").exists(), restored
    assert line.cli.run("verify", second["backup_id"]).status == 3
    line.images[0].write(0, B)
    third = line.point()
    assert third["disks"][0]["mode"] == "full" and third["disks"][0]["reason"] == "parent_damaged", third
    line.check_point(third["backup_id"])
    line.check_point(line.order["main"][0])


def line_database(line):
    return contextlib.closing(sqlite3.connect(line.hub.database, timeout=10))
