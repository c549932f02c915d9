"""The safety rules, shown with real processes, each by its number. Those that need a hypervisor, the engine alone, or a
hub that is played are in other files under their numbers, too (test_numbers.py).
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import sqlite3
import subprocess
from pathlib import Path

import pytest

from lib import faults, images, system
from lib.api import BASE
from lib.cli import Cli
from lib.history import partial_files, wait_for
from lib.images import CLUSTER
from lib.line import Line
from lib.patience import patience
from lib.stage import QemuStage, Stage, is_dead
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


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_rule_02_damaged_hashes_make_a_full(make_hub, place, depth):
    """Of that disk alone, wherever in its chain they are, with the reason on record; the next one is an increment."""
    line = Line(make_hub(), place, [A + B, B + A])
    first = line.point()
    for n in range(depth):
        line.images[1].write(0, bytes([n + 1]) * CLUSTER)
        assert line.modes(line.point())[1] == ("compare", "not_tracked")
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
        wait_for(lambda: system.listens(place / "s"), "nbdkit listens")
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


def test_rule_15_a_repeated_call_joins(make_hub, place):
    """Two calls to complete while the engine seals: the second waits for the first, and both hear that it is done."""
    line = Line(make_hub(), place, [A + B])
    line.world.repository = line.api.get("/repositories/main").expect(200)
    job = line.world.written_job(line.images[0].path)
    body = json.dumps({"change_id": job.change, "disks": line.world.done(job, 2 * CLUSTER)})
    exporter, = faults.exporter_pids(line.world, job.id)
    connections = [http.client.HTTPConnection("127.0.0.1", line.hub.port, timeout=patience(60)) for _ in range(2)]
    os.kill(exporter, signal.SIGSTOP)
    try:
        for connection in connections:
            connection.request("POST", f"{BASE}{job.path}/complete", body, {"Content-Type": "application/json"})
        wait_for(lambda: all(is_taken(c.sock) for c in connections), "the hub has taken both calls")
        assert job.show()["status"] == "running"
    finally:
        os.kill(exporter, signal.SIGCONT)
    for connection in connections:
        answer = connection.getresponse()
        text = answer.read().decode()
        assert answer.status == 200 and json.loads(text)["change_id"] == job.change, text
        connection.close()
    assert line.world.sql("SELECT id, status, change_id FROM backup_jobs") == [
        {"id": job.id, "status": "completed", "change_id": job.change}]
    assert line.hub.log.count("backup completed") == 1
    line.note("main", job.show(), line.references_now())
    line.check_everything()


def is_taken(client):
    """Whether the other end of a TCP connection has read all that was sent."""
    ends = [f":{port:04X}" for port in (client.getpeername()[1], client.getsockname()[1])]
    for row in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        _, local, remote, _, queues, *_ = row.split()
        if [local[-5:], remote[-5:]] == ends:
            return queues.endswith(":00000000")
    return False


@pytest.mark.parametrize("status", ["failed", "completed"])
def test_rule_15_an_unclear_answer_costs_no_tracking(make_hub, place, status):
    """The client gave up while the hub was committing; later the commit was given up, or succeeded. The client had
    touched no bitmap, so that the next increment is by change tracking, and right, whatever became of the point."""
    with QemuStage(make_hub, place) as stage:
        plain = stage.wrapper.read_text()
        stage.wrapper.write_text(plain.replace('"$@"', '--record-for=1 "$@"'))
        stage.first()
        stage.change()
        backup_id = stage.reach("committing")
        client = faults.client_pid(stage.world, backup_id)
        wait_for(lambda: is_dead(client), "the client gives up")
        assert "the point may exist" in stage.client_log()
        assert stage.show(backup_id)["status"] == "committing"
        if status == "failed":
            stage.cli.ok("cancel", backup_id)
        assert stage.settle(backup_id)["status"] == status
        stage.prove()


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


@pytest.mark.parametrize("moment, error", [("copied", "sealing failed"), ("committing", "commit failed")])
def test_rule_17_a_late_hub_lists_nothing_wrong(make_hub, place, moment, error):
    """A hub that was held up before the seal, or before the commit, while another one took its repository over and its
    attempt away, completes nothing."""
    with Stage(make_hub, place) as stage:
        first = stage.first()
        stage.change()
        backup_id = stage.reach(moment)
        assert partial_files(stage.repositories["main"])
        second = make_hub("second")
        os.kill(stage.hub.process.pid, signal.SIGSTOP)
        try:
            # the lock of the data folder holds: there, nobody takes over while it may wake up
            third = make_hub("third", start=False)
            third.data = stage.hub.data
            with pytest.raises(AssertionError, match="another hub"):
                third.start()
            stage.go()
            second.api.post("/repositories", {"name": "main", "path": str(stage.repositories["main"])}).expect(201)
            second.restart()        # recovery: what nobody it knows of is at work on, is left over
            assert not partial_files(stage.repositories["main"])
        finally:
            os.kill(stage.hub.process.pid, signal.SIGCONT)
        late = stage.settle(backup_id)
        assert (late["status"], late["error"]) == ("failed", error), late
        other = Cli(second.url, cwd=place)
        other.ok("repo", "scan", "main")
        assert [b["backup_id"] for b in other.json("backups")["backups"]] == [first["backup_id"]]
        other.ok("verify", "--repo", "main")
        second.stop()
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
    """Cluster size and algorithm are the repository's, also for a hub that meets it later. (What else may stand there:
    hostile_info in test_record.c.)"""
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
    info.write_text(text.replace("131072", "65536"))
    refused = line.cli.run("repo", "add", "main", "--path", place / "repository")
    assert refused.status == 3 and "digest" in refused.err, refused
    info.write_text(text)
    line.cli.ok("repo", "add", "main", "--path", place / "repository")


HARMS = ("other backing file", "no backing file", "data file")


def harm_image(place, image, harm):
    """The image names another file, whose bytes stock tools would show."""
    secret = place / "secret.raw"
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


@pytest.mark.parametrize("harm", HARMS)
def test_rule_19_images_are_read_as_we_wrote_them(make_hub, place, harm):
    """A file of somebody's choice does not get into a restore. A verify finds it; from then on no increment rests on
    it."""
    line = Line(make_hub(), place, [A + B])
    line.point()
    line.images[0].write(CLUSTER, A)
    second = line.point()
    harm_image(place, Path(second["disks"][0]["image"]), harm)
    restored = line.cli.run("restore", second["backup_id"], "--disk", "0", "--to", place / "out.raw")
    assert restored.status in (1, 3) and not (place / "out.raw").exists(), restored
    assert line.cli.run("verify", second["backup_id"]).status == 3
    line.images[0].write(0, B)
    third = line.point()
    assert third["disks"][0]["mode"] == "full" and third["disks"][0]["reason"] == "parent_damaged", third
    line.check_point(third["backup_id"])
    line.check_point(line.order["main"][0])


@pytest.mark.parametrize("harm", HARMS)
def test_rule_19_nor_through_an_increment(make_hub, place, harm):
    """Where nobody has looked at the image: the next backup finds another length by itself, and is a full. Of what it
    does not find, its restore hands out nothing."""
    line = Line(make_hub(), place, [A + B])
    line.point()
    line.images[0].write(CLUSTER, A)
    second = line.point()
    harm_image(place, Path(second["disks"][0]["image"]), harm)
    line.images[0].write(0, B)
    third = line.point()
    if harm == "data file":
        assert line.modes(third) == [("full", "parent_damaged")]
    if line.modes(third) == [("full", "parent_damaged")]:
        line.check_point(third["backup_id"])
        return
    restored = line.cli.run("restore", third["backup_id"], "--disk", "0", "--to", place / "out.raw")
    assert restored.status in (1, 3) and not list(place.glob("out.raw*")), restored
    assert line.cli.run("verify", third["backup_id"]).status == 3


def line_database(line):
    return contextlib.closing(sqlite3.connect(line.hub.database, timeout=10))
