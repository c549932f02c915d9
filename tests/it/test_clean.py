"""`sendense clean`: each kind of leftover is named and goes, and nothing else does (docs/internals/clean.md)."""

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from lib import faults
from lib.cli import Cli
from lib.history import partial_files, wait_for
from lib.job import disk, nbdcopy
from lib.stage import QemuStage
from lib.vm import check_qemu_is_clean, left_in_qemu, our_bitmaps
from lib.vsphere_history import VsphereHistory
from lib.world import World

LONG_AGO = "2026-01-01T00:00:00.000000Z"
MIB = 1 << 20


def change(hub, statement, *arguments):
    """What nobody does but who has the database."""
    with contextlib.closing(sqlite3.connect(hub.database, timeout=20)) as database:
        database.execute(statement, arguments)
        database.commit()


@pytest.fixture
def admin(cli):
    return cli


def clean(cli, *options, status=0):
    """[(kind, name, action)], and the details by name."""
    answer = cli.json("clean", *options, status=status)
    assert "items" in answer, answer
    assert answer["dry_run"] == ("--yes" not in options)
    return ([(i["kind"], i["name"], i["action"]) for i in answer["items"]],
            {i["name"]: i["details"] for i in answer["items"]})


def only(cli, kind, *options, status=0):
    """{name: action} of one kind, where there is no other."""
    items, _ = clean(cli, *options, status=status)
    assert {k for k, _, _ in items} <= {kind}, items
    return {name: action for _, name, action in items}


def check_all_gone(cli, *options):
    assert clean(cli, *options)[0] == []
    assert cli.ok("clean", "--yes", *options).strip() == "nothing is left over"


def an_hour_ago():
    return time.strftime("%Y-%m-%dT%H:%M:%S.000000Z", time.gmtime(time.time() - 3600))


def read_by(uri):
    """Somebody who is connected, until their input ends."""
    reader = subprocess.Popen(["qemu-io", "-r", "-f", "raw", uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
    reader.stdin.write("read 0 512\n")
    reader.stdin.flush()
    while "ops" not in (line := reader.stdout.readline()):
        assert line, "qemu-io ended"
    return reader


def end(reader):
    reader.stdin.close()
    reader.stdout.read()
    assert reader.wait(30) == 0
    reader.stdout.close()


def export_of(api, backup_id):
    export = api.post("/exports", {"backup_id": backup_id, "disk": "0", "purpose": "restore"}).expect(201)
    socket = Path(export["uri"].partition("socket=")[2])
    return export, socket.parent


def is_served(folder):
    """By a process that names it."""
    return subprocess.run(["pgrep", "-f", f"config={folder}/config.json"], stdout=subprocess.DEVNULL,
                          check=False).returncode == 0


# ---- exporters and exports

def test_stray_exporters(world, vm, admin):
    """One without a record, one that has lost its folder too; a job's, an export's and one that is read stay."""
    api, hub = world.api, world.hub
    point = world.backup(vm).id
    check_all_gone(admin)
    stray, stray_folder = export_of(api, point)
    bare, bare_folder = export_of(api, point)
    read, read_folder = export_of(api, point)
    owned, owned_folder = export_of(api, point)
    world.add_vm("beside", seed=3)
    job = world.running_job("beside")
    writing = [Path(d["uri"].partition("socket=")[2]).parent for d in job.disks.values()]
    reader = read_by(read["uri"])
    for export in (stray, bare, read):
        change(hub, "DELETE FROM exports WHERE id = ?", export["export_id"])
    shutil.rmtree(bare_folder)
    others = [Path(hub.run_dir) / name for name in ("0123456", "zzzzzzzz", "0123456789", "dead beef\n$(x)")]
    for folder in others:
        folder.mkdir()
    (Path(hub.run_dir) / "deadbeef").write_text("a file, no folder")

    expected = {stray_folder.name: "would_remove", bare_folder.name: "would_remove", read_folder.name: "kept"}
    assert only(admin, "exporter") == expected
    assert is_served(stray_folder) and is_served(bare_folder) and stray_folder.is_dir()     # it only looked
    assert only(admin, "exporter", "--yes") == {k: v.replace("would_remove", "removed") for k, v in expected.items()}
    assert not is_served(stray_folder) and not is_served(bare_folder) and not stray_folder.exists()
    assert all(is_served(f) and f.is_dir() for f in (read_folder, owned_folder, *writing))
    assert all(f.is_dir() for f in others)

    end(reader)
    wait_for(lambda: only(admin, "exporter", "--yes") == {read_folder.name: "removed"}, "the last reader is gone")
    check_all_gone(admin)
    for folder in others:
        folder.rmdir()
    (Path(hub.run_dir) / "deadbeef").unlink()
    api.delete(f"/exports/{owned['export_id']}").expect(200)
    nbdcopy(world.folder / "vm-3-0.raw", job.disks["disk-0"]["uri"])
    job.complete(job.change, world.done(job, 4 * MIB)).expect(200)
    for each in (point, job.id):
        admin.ok("verify", each)


def test_exports_that_nobody_reads(make_hub, place):
    """Only with the flag, only after a while, and never one that somebody is connected to."""
    world = World(make_hub(options=["--export-idle=86400"]), place)      # it ends none by itself
    world.add_repository()
    _, (vm,) = world.add_vm()
    admin = Cli(world.hub.url, cwd=place)
    point = world.backup(vm).id
    idle, idle_folder = export_of(world.api, point)
    read, _ = export_of(world.api, point)
    young, _ = export_of(world.api, point)
    reader = read_by(read["uri"])
    for export in (idle, read):
        change(world.hub, "UPDATE exports SET used_at = ? WHERE id = ?", an_hour_ago(), export["export_id"])
    check_all_gone(admin)
    assert only(admin, "export", "--exports") == {idle["export_id"]: "would_remove"}
    assert only(admin, "export", "--exports", "--yes") == {idle["export_id"]: "removed"}
    left = [e["export_id"] for e in world.api.get("/exports").expect(200)["exports"]]
    assert sorted(left) == sorted([read["export_id"], young["export_id"]]) and not is_served(idle_folder)
    check_all_gone(admin, "--exports")
    end(reader)


# ---- partial images

def plant(folder, stem, attempt="0badc0de", disk_no=0):
    """What an attempt that nobody knows would have left."""
    names = [folder / f"disk-{disk_no}" / f"{stem}-full.qcow2.partial-{attempt}",
             folder / f"disk-{disk_no}" / f"{stem}-full.hashes.partial-{attempt}",
             folder / f"disk-{disk_no}" / f"{stem}-full.journal.partial-{attempt}",
             folder / f"{stem}.json.partial-{attempt}"]
    for path in names:
        path.write_bytes(b"half")
    return names


def test_partial_images(world, vm, admin):
    """Of an attempt that no job has; beside a job that writes, a listed point, and names that are not ours."""
    first = world.backup(vm)
    repository = Path(world.repository["path"])
    context, = repository.glob("ctx-*")
    stem = next(context.glob("*.json")).name.removesuffix(".json")
    admin.ok("verify", first.id)
    job = world.running_job()
    writing = set(partial_files(repository))
    assert writing
    ours = plant(context, stem) + plant(context, "backup-pgtest1-1700000000", "ff")
    hostile = [context / "disk-0" / name for name in (
        f"{stem}-full.qcow2.partial-0BADC0DE", f"{stem}-full.qcow2.partial-", "x.partial-0badc0de",
        f"{stem}-full.qcow2.partial-0badc0de\n", f"{stem}-full.qcow2.partial-$(reboot)", "\udcff.partial-0badc0de",
        f"{stem}-full.qcow2.partial-{'a' * 33}")]
    hostile += [context / "notes.partial-0badc0de", repository / f"{stem}.json.partial-0badc0de"]
    for path in hostile:
        path.write_bytes(b"somebody else's")
    elsewhere = world.folder / "elsewhere"
    elsewhere.mkdir()
    secret = plant_in(elsewhere, stem)
    (context / "disk-7").symlink_to(elsewhere)

    names = {str(p.relative_to(repository)) for p in ours}
    assert only(admin, "partial_image") == dict.fromkeys(names, "would_remove")
    assert all(p.exists() for p in ours)
    assert only(admin, "partial_image", "--yes") == dict.fromkeys(names, "removed")
    assert not any(p.exists() for p in ours)
    assert writing <= set(partial_files(repository)) and all(p.exists() for p in [*hostile, secret])
    check_all_gone(admin)

    nbdcopy(vm, job.disks["disk-0"]["uri"])
    job.complete(job.change, world.done(job, os.path.getsize(vm))).expect(200)
    for each in (first.id, job.id):
        admin.ok("verify", each)
    restored = world.folder / "restored.raw"
    admin.ok("restore", first.id, "--disk", "0", "--to", restored)
    assert restored.read_bytes() == vm.read_bytes()
    for path in hostile:
        path.unlink()
    (context / "disk-7").unlink()


def plant_in(folder, stem):
    path = folder / f"{stem}-full.qcow2.partial-0badc0de"
    path.write_bytes(b"outside of the repository")
    return path


def test_what_points_stand_on_stays(world, vm, admin):
    """The record of a full is lost, and a name of an attempt of it is left: the increments' base is not taken away."""
    first = world.backup(vm)
    second = world.backup(vm, backup_type="incremental")
    context, = Path(world.repository["path"]).glob("ctx-*")
    base, = context.glob("disk-0/*-full.qcow2")
    stem = base.name.removesuffix("-full.qcow2")
    record = (context / f"{stem}.json").read_bytes()
    (context / f"{stem}.json").unlink()
    planted = plant(context, stem)
    found = only(admin, "partial_image", "--yes", status=1)
    assert set(found.values()) == {"failed"} and base.exists() and all(p.exists() for p in planted)
    (context / f"{stem}.json").write_bytes(record)
    assert set(only(admin, "partial_image", "--yes").values()) == {"removed"}
    admin.ok("repo", "scan", "main")
    for each in (first.id, second.id):
        admin.ok("verify", each)


def test_interrupted_backups(world, vm, admin):
    """What can be gone on from is named, and goes only when asked for; not while a job of its VM is active.
    A pending one, which has no attempt yet, ended the hub once."""
    job = world.job()
    job.claim()
    job.announce([disk("disk-0", os.path.getsize(vm), f"{uuid.uuid4()}/1", token="the-same-file")])
    nbdcopy(vm, job.disks["disk-0"]["uri"])
    job.call("fail", {"error": "the line was cut", "details": ""}).expect(200)
    repository = Path(world.repository["path"])
    kept = {str(p.relative_to(repository)) for p in partial_files(repository)}
    assert kept
    assert only(admin, "partial_image", "--yes") == dict.fromkeys(kept, "kept")
    running = world.job()
    assert set(only(admin, "partial_image", "--yes", "--interrupted", status=1).values()) == {"failed"}
    assert len(partial_files(repository)) == len(kept)
    running.call("fail", {"error": "it is not needed", "details": ""})
    world.api.post(f"/backups/{running.id}/cancel")
    world.api.wait_status(running.id, {"failed", "cancelled"})
    assert only(admin, "partial_image", "--interrupted") == dict.fromkeys(kept, "would_remove")
    assert only(admin, "partial_image", "--yes", "--interrupted") == dict.fromkeys(kept, "removed")
    assert not partial_files(repository)
    check_all_gone(admin, "--interrupted")
    world.backup(vm)        # a full from the start


def test_a_repository_that_is_away_is_named(world, vm, admin):
    world.backup(vm)
    path = Path(world.repository["path"])
    path.rename(f"{path}-away")
    assert only(admin, "repository", status=1) == {"main": "failed"}
    assert "could not be" in admin.run("clean", "--yes").err
    Path(f"{path}-away").rename(path)
    check_all_gone(admin)


# ---- jobs

def test_jobs_left_running(world, vm, admin):
    """Only with the flag, and only the old one; the other goes on to its end."""
    world.backup(vm)
    world.add_vm("beside", seed=3)
    old, young = world.running_job(), world.running_job("beside")
    change(world.hub, "UPDATE backup_jobs SET created_at = ? WHERE id = ?", LONG_AGO, old.id)
    check_all_gone(admin)
    assert only(admin, "job", "--jobs") == {old.id: "would_remove"}
    assert old.show()["status"] == "running"
    assert only(admin, "job", "--jobs", "--older-than", str(1 << 19)) == {}
    assert only(admin, "job", "--jobs", "--yes") == {old.id: "removed"}
    assert old.show()["status"] == "cancelled" and young.show()["status"] == "running"
    assert old.call("progress", {"disks": [], "phase": "copying"}).status == 409
    nbdcopy(world.folder / "vm-3-0.raw", young.disks["disk-0"]["uri"])
    young.complete(young.change, world.done(young, 4 * MIB)).expect(200)
    admin.ok("verify", young.id)
    check_all_gone(admin, "--jobs")


# ---- the calls and the command line

def test_usage(world, vm, admin):
    for wrong in (["--bitmaps"], ["--vm", "pgtest1", "--jobs"], ["--older-than", "5"], ["--vm", "pgtest1", "--exports"],
                  ["--older-than", "0", "--jobs"], ["a-word"]):
        assert admin.run("clean", *wrong).status == 2, wrong
    assert admin.run("clean", "--vm", "nobody").status == 1
    world.api.post("/maintenance/clean", {"dry_run": "yes"}).expect(400)
    world.api.post("/maintenance/clean", {"everything": True}).expect(400)
    world.api.post("/maintenance/clean", {"older_than_minutes": -1}).expect(400)
    world.api.post("/vms/nobody/clean", {}).expect(404)
    assert world.api.post("/maintenance/clean", {}).expect(200) == {"dry_run": True, "items": []}
    answer = world.api.post("/vms/pgtest1/clean", {"dry_run": False}).expect(200)
    assert answer["items"] == [] and answer["vm_name"] == "pgtest1" and answer["dry_run"] is False


# ---- a VM in QEMU

def guard_of(pid):
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
            if name == "sendense-guard" and int(rest.split()[1]) == pid:
                return int(entry.name)
    return 0


def kill_with_guard(stage, backup_id):
    """As when a control group is killed whole: nobody cleans up behind the client."""
    pid = faults.client_pid(stage.world, backup_id)
    guard = wait_for(lambda: guard_of(pid), "the guard runs")
    os.kill(guard, signal.SIGKILL)
    assert faults.signal_if(pid, "sendense-backup-client")


def strangers(vm):
    """Names that are nearly ours, of another VM and another hub."""
    other, repository = uuid.uuid4(), uuid.uuid4()
    bitmaps = [f"sendense.{repository}.{other}.{uuid.uuid4()}.1", f"sendense.{repository}.{other}.tmp.x",
               "sendense.", "sendense.x", "mine"]
    for name in bitmaps:
        vm.qmp("block-dirty-bitmap-add", node=vm.inserted(0)["node-name"], name=name)
    vm.qmp("blockdev-add", **{"driver": "null-co", "node-name": "sndns-000000000000-x", "size": 65536})
    return bitmaps


def all_bitmaps(vm):
    return {b["name"] for n in range(len(vm.disks)) for b in vm.inserted(n).get("dirty-bitmaps", []) if b.get("name")}


def test_left_in_qemu(make_hub, place):
    """Client and guard are killed; what they left goes, the line that the next increment needs stays."""
    with QemuStage(make_hub, place) as stage:
        first = stage.first()
        stage.check_nothing_left()
        needed = all_bitmaps(stage.vm)
        foreign = strangers(stage.vm)
        assert clean(stage.cli)[0] == []
        stage.change()
        backup_id = stage.reach("announced")
        items, details = clean(stage.cli, "--yes")      # the job lives: nothing of it is touched
        assert items == [("vm", "pgtest1", "kept")] and backup_id in details["pgtest1"]
        kill_with_guard(stage, backup_id)
        stage.go()
        stage.api.wait_status(backup_id, {"failed"})
        old = stage.scratch / f"sendense-scratch-{os.geteuid()}" / str(uuid.uuid4())
        young = old.with_name(str(uuid.uuid4()))
        for path in (old, young, old.with_name("not ours")):
            path.write_bytes(b"x")
            os.utime(path, (1, 1) if path != young else None)
        before = left_in_qemu(stage.vm)
        assert before

        items, _ = clean(stage.cli, "--interrupted")
        kinds = {k for k, _, a in items if a == "would_remove"}
        assert kinds >= {"qemu_export", "qemu_job", "qemu_node", "bitmap", "nbd_server", "scratch_file"}, items
        assert left_in_qemu(stage.vm) == before and old.exists()
        items, _ = clean(stage.cli, "--yes", "--interrupted")
        assert {a for _, _, a in items} == {"removed"} and {k for k, _, _ in items} >= kinds, items
        assert not old.exists() and young.exists() and old.with_name("not ours").exists()
        bitmaps = all_bitmaps(stage.vm)
        assert needed <= bitmaps and set(foreign) <= bitmaps
        assert not [b for b in bitmaps - set(foreign) if ".tmp." in b]
        assert "sndns-000000000000-x" in [n["node-name"] for n in stage.vm.qmp("query-named-block-nodes", flat=True)]
        assert clean(stage.cli)[0] == []

        for path in (young, old.with_name("not ours")):
            path.unlink()
        stage.vm.qmp("blockdev-del", **{"node-name": "sndns-000000000000-x"})
        check_tracked(stage, "tracked", "")
        stage.check_point(first["backup_id"])

        # all of ours, by name: the next one compares, and says why
        assert stage.cli.run("clean", "--vm", "pgtest1", "--bitmaps").status == 0
        assert all_bitmaps(stage.vm) >= set(foreign) and our_bitmaps(stage.vm, 1)
        items, _ = clean(stage.cli, "--vm", "pgtest1", "--bitmaps", "--yes")
        assert items and {(k, a) for k, _, a in items} == {("bitmap", "removed")}
        assert all_bitmaps(stage.vm) == set(foreign)
        check_tracked(stage, "compare", "tracking_lost")
        for name in foreign:
            stage.vm.qmp("block-dirty-bitmap-remove", node=stage.vm.inserted(0)["node-name"], name=name)
        stage.prove()


def check_tracked(stage, mode, reason):
    stage.change()
    backup = stage.backup("main", stage.references_now())
    assert {(d["mode"], d["reason"]) for d in backup["disks"]} == {(mode, reason)}, backup
    stage.check_nothing_left()


def test_a_job_waits_while_its_vm_is_cleaned(make_hub, place):
    """Asked for in the middle: it is made, and begins when the clean-up is over. Another one at once is told so."""
    with QemuStage(make_hub, place) as stage:
        stage.first()
        stage.check_nothing_left()      # the client closes its source after the point is there
        stage.qmp_gate.hold('"query-jobs"')
        call = ["curl", "-s", "-d", '{"dry_run": false}', f"{stage.hub.url}/api/v1/vms/pgtest1/clean"]
        running = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
        stage.qmp_gate.wait_held()
        items, details = clean(stage.cli)
        assert items == [("vm", "pgtest1", "kept")] and "somebody else" in details["pgtest1"]
        stage.references_then = stage.references_now()
        backup_id = stage.start("main")
        seen = stage.world.sql("SELECT count(*) AS n FROM backup_jobs")      # the supervisor looks twice a second
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            assert stage.world.show(backup_id)["status"] == "pending" and seen
            time.sleep(0.1)
        assert faults.client_pid(stage.world, backup_id) in (0, None)
        stage.qmp_gate.open()
        assert '"items":[]' in re.sub(r"\s", "", running.communicate(timeout=60)[0])
        assert stage.api.wait_status(backup_id, {"completed", "failed"})["status"] == "completed"
        stage.settle(backup_id)
        check_qemu_is_clean(stage.vm, place)


def test_a_vm_that_is_off(make_hub, place):
    with QemuStage(make_hub, place) as stage:
        stage.first()
        stage.check_nothing_left()      # the client closes its source after the point is there
        stage.vm.kill()
        assert clean(stage.cli, "--yes")[0] == [("vm", "pgtest1", "kept")]
        assert clean(stage.cli, "--yes", "--vm", "pgtest1", "--bitmaps", status=1)[0] == [("vm", "pgtest1", "failed")]
        stage.vm.start()


# ---- a VM in vCenter

def test_snapshots(make_hub, place):
    """Those of this VM's runs go; others' stay, however nearly they are named like ours. The password is nowhere."""
    with VsphereHistory(make_hub, place) as history:
        history.register().guest_writes(20)
        point = history.point()
        vm_id = history.api.get("/vms/web").expect(200)["vm_id"]
        ours = [f"sendense.{vm_id}.{n:08x}" for n in range(2)]
        others = ["before the upgrade", f"sendense.{uuid.uuid4()}.00000001", f"sendense.{vm_id}",
                  f"x sendense.{vm_id}.1"]
        for name in [*ours, *others]:
            history.sim("snapshot", vm=history.path, name=name)
        assert clean(history.cli)[0] == [("snapshot", name, "would_remove") for name in ours]
        assert sorted(history.snapshots()) == sorted([*ours, *others])
        assert clean(history.cli, "--yes")[0] == [("snapshot", name, "removed") for name in ours]
        assert sorted(history.snapshots()) == sorted(others)
        check_all_gone(history.cli)
        assert history.sim("calls")["sessions"] == 0
        for snapshot in history.sim.vm(history.path)["snapshots"]:
            history.sim("remove_snapshot", vm=history.path, snapshot=snapshot["moref"])
        history.cli.ok("verify", point["backup_id"])
        history.check_everything(history.random)
        assert history.sim.state["password"] not in history.hub.log


def test_a_snapshot_that_a_running_backup_reads(make_hub, place):
    with VsphereHistory(make_hub, place) as history:
        history.register().guest_writes(40)
        backup_id = history.copying()
        snapshots = history.snapshots()
        assert clean(history.cli, "--yes")[0] == [("vm", "web", "kept")]
        assert snapshots == history.snapshots() and len(snapshots) == 1
        history.release_reads()
        assert history.api.wait_status(backup_id, {"completed", "failed"})["status"] == "completed"
        wait_for(lambda: clean(history.cli)[0] == [], "nothing is left")


def test_a_vcenter_that_is_away(make_hub, place):
    with VsphereHistory(make_hub, place) as history:
        history.register()
        history.api.patch("/sources/vc-1", {"vcenter": "127.0.0.1:1", "password": history.sim.state["password"]}
                          ).expect(200)
        assert clean(history.cli, status=1)[0] == [("vm", "web", "failed")]
