"""The database's own backup, and what `sendense-hub restore-database` makes of it.

docs/internals/database-backup.md."""

import contextlib
import http.client
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import threading

import pytest

from lib import faults
from lib.api import quote
from lib.cli import Cli
from lib.history import wait_for
from lib.hub import BIN, ROOT
from lib.images import CLUSTER
from lib.line import Line
from lib.mariadb import MISSING, NAME, PASSWORD, MariaDb
from lib.patience import patience
from lib.share import share
from lib.shim import Shim, Shot, is_built
from lib.stage import QemuStage, Stage, own_mounts
from lib.system import assert_nowhere
from lib.world import World
from test_faults import SmallStage
from test_metrics import check as check_metrics
from test_sources import new as new_source

A, B = b"\xaa" * CLUSTER, b"\xbb" * CLUSTER
NAME_OF_FILE = re.compile(r"hub-[0-9a-f]{8}-[0-9]{8}-[0-9]{8}T[0-9]{6}Z\.db\.zst")


def files(repository):
    """The newest first."""
    found = sorted((p for p in (repository / "database").iterdir() if p.suffix != ".partial"), reverse=True)
    assert all(NAME_OF_FILE.fullmatch(p.name) for p in found), found
    return found


def back_up(hub):
    """By call; the path of the one file."""
    made, = hub.api.post("/database/backups").expect(201)["backups"]
    assert made["error"] is None
    return made["path"]


def made_yesterday(path):
    """As if it were of the day before: one day keeps one."""
    days = path.with_name(re.sub(r"-\d{8}T", "-20200101T", path.name))
    path.rename(days)
    return days


def lose(hub):
    hub.kill()
    shutil.rmtree(hub.data)


def restore(hub, *arguments, status=0, options=None, environment=None, prefix=()):
    """What it says, on both."""
    options = hub.options if options is None else options
    done = subprocess.run([*prefix, hub.binary, "restore-database", "--data-dir", hub.data, "--run-dir", hub.run_dir,
                           *[o for o in options if o.startswith(("-db", "--key"))], *map(str, arguments)],
                          capture_output=True, text=True, timeout=patience(120), check=False,
                          env={**hub.environ(), **(environment or {})})
    assert done.returncode == status, (done.returncode, done.stdout, done.stderr)
    assert PASSWORD not in done.stdout + done.stderr
    return done.stdout + done.stderr


def sql(path, statement, *values):
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as database, database:
        return database.execute(statement, values).fetchall()


def unpacked(path, to):
    """By stock tools."""
    subprocess.run(["zstd", "-q", "-d", "-f", path, "-o", to], check=True)
    return to


# ---- the main story

class Server:
    """A database of one of the two kinds, for hubs."""

    def __init__(self, kind, folder):
        self.server = MariaDb(folder).__enter__() if kind == "mariadb" else None

    @property
    def options(self):
        return self.server.options() if self.server else []

    def lose(self):
        if self.server:
            self.server.sql(f"DROP DATABASE {NAME}; CREATE DATABASE {NAME}")

    @property
    def pids(self):
        return {self.server.process.pid} if self.server else set()


@pytest.fixture
def make_server(place):
    """Ended after the hubs: to be asked for before make_hub."""
    made = []

    def make(kind):
        made.append(Server(kind, place / f"server-{len(made)}"))
        return made[-1]

    yield make
    for each in made:
        if each.server:
            each.server.stop()


def kinds():
    pairs = [("sqlite", "sqlite"), ("mariadb", "mariadb"), ("sqlite", "mariadb"), ("mariadb", "sqlite")]
    skip = pytest.mark.skipif(bool(MISSING), reason=f"no MariaDB here: {', '.join(MISSING)} missing")
    return [pytest.param(*p, marks=[skip] if "mariadb" in p else []) for p in pairs]


@pytest.mark.parametrize("before, after", kinds())
def test_the_hub_s_machine_is_gone(before, after, make_server, make_hub, place):
    """Points made and deleted after the backup included: the repository is the truth. And the next one is right."""
    old, fresh = make_server(before), make_server(after)
    line = Line(make_hub(options=old.options), place, [A + B, B])
    line.own_processes = lambda: old.pids | fresh.pids
    line.point()
    for n in range(2):
        line.images[0].write(0, bytes([n + 1]) * CLUSTER)
        last = line.point()
    failed = line.start("main")
    assert line.api.post(f"/backups/{quote(failed)}/cancel").status in (202, 409)    # it may be over already
    line.api.wait_status(failed, {"cancelled", "failed", "completed"})
    if line.show(failed)["status"] == "completed":
        line.note("main", line.show(failed), line.references_now())
        last, failed = line.show(failed), None
    line.api.post("/replications", {"vm_name": "r", "job_id": "replication-1"}).expect(201)

    path = back_up(line.hub)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700

    line.cli.ok("delete", last["backup_id"])    # the catalogue of then knows it, and nothing newer
    line.forget([last["backup_id"]])
    for n in range(2):
        line.images[1].write(0, bytes([n + 7]) * CLUSTER)
        newest = line.point()

    lose(line.hub)
    old.lose()
    line.hub.options = fresh.options
    said = restore(line.hub, "--from", line.repositories["main"])
    assert path in said and f"{len(line.points)} points, 0 of them suspect" in said, said
    line.start_hub()
    assert line.api.get("/health").expect(200)["database"] == after
    line.check_everything()
    assert line.api.get("/replications").expect(200)["replications"][0]["job_id"] == "replication-1"
    if failed:
        assert line.show(failed)["status"] in ("cancelled", "failed")

    line.images[0].write(CLUSTER, bytes([9]) * CLUSTER)
    next_one = line.point()
    assert {d["parent_backup_id"] for d in next_one["disks"]} == {newest["backup_id"]}
    assert line.modes(next_one)[0] == ("compare", "not_tracked")
    numbers = [line.show(i)["sequence"] for i in line.order["main"]]
    assert len(set(numbers)) == len(numbers)
    line.check_everything()
    back_up(line.hub)                           # the row goes on
    assert len({p.name[:12] for p in files(line.repositories["main"])}) == 1
    assert int(files(line.repositories["main"])[0].name[13:21]) == 2


def test_stock_tools_read_it(world, vm, place):
    world.backup(vm)
    copy = unpacked(back_up(world.hub), place / "copy.db")
    assert sql(copy, "PRAGMA integrity_check") == [("ok",)]
    assert sql(copy, "SELECT vm_name, status FROM backup_jobs") == [("pgtest1", "completed")]


# ---- what ran, and what was known

def test_a_job_that_ran_then_has_failed(make_hub, place):
    """Its exporter may still live: it is ended, and what it wrote goes."""
    hub = make_hub()
    world = World(hub, place)
    world.add_repository()
    _, (vm,) = world.add_vm()
    done = world.backup(vm)
    export = hub.api.post("/exports", {"backup_id": done.id, "disk": "disk-0", "purpose": "restore"}).expect(201)
    job = world.written_job(vm)
    back_up(hub)
    lose(hub)
    assert hub.children()
    restore(hub, "--from", world.repository["path"])
    hub.start()
    world.api = hub.api
    shown = world.show(job.id)
    assert (shown["status"], shown["error"]) == ("failed", "interrupted") and "restored since" in shown["details"]
    assert hub.api.get("/exports").expect(200) == {"exports": []} and export
    assert not hub.children()
    assert not list(place.rglob("*.partial-*"))
    world.backup(vm)


def test_a_job_that_completed_since(make_hub, place):
    """Its record stands, so it is a point, whatever the database of then thought of it."""
    hub = make_hub()
    world = World(hub, place)
    world.add_repository()
    _, (vm,) = world.add_vm()
    job = world.written_job(vm)
    back_up(hub)
    job.complete(job.change, world.done(job, os.path.getsize(vm))).expect(200)
    lose(hub)
    restore(hub, "--from", world.repository["path"])
    hub.start()
    world.api = hub.api
    shown = world.show(job.id)
    assert (shown["status"], shown["suspect"], shown["change_id"]) == ("completed", False, job.change)


def test_what_was_interrupted_is_not_gone_on_from(make_hub, place):
    """It may have been gone on from since."""
    with Stage(make_hub, place, options=["--checkpoint-mib=1"]) as stage:
        stage.first()
        stage.change()
        backup_id = stage.at_half_done()
        stage.kill(backup_id, "client")
        assert stage.wait_final(backup_id)["status"] == "failed"
        back_up(stage.hub)
        lose(stage.hub)
        restore(stage.hub, "--from", stage.repositories["main"])
        stage.start_hub()
        stage.go()
        backup = stage.backup("main", stage.references_now())
        assert backup["resumed_from"] is None
        stage.prove()


def test_tracking_goes_on(make_hub, place):
    """A VM in QEMU: the newest point is one that the restored database did not know, and its bitmaps are its own."""
    with QemuStage(make_hub, place) as stage:
        stage.first()
        stage.change()
        stage.backup("main", stage.references_now())
        back_up(stage.hub)
        stage.change()
        newest = stage.backup("main", stage.references_now())
        assert newest["disks"][0]["mode"] == "tracked"
        lose(stage.hub)
        restore(stage.hub, "--from", stage.repositories["main"])
        stage.start_hub()
        stage.go_on()       # tracked
        stage.prove()


def test_rule_03_the_newest_points_were_deleted_since(make_hub, place):
    """The parent is the newest there is, which is older than the catalogue's; a sequence number is not given twice."""
    line = Line(make_hub(), place, [A + B])
    first = line.point()
    line.images[0].write(0, B)
    second = line.point()
    back_up(line.hub)
    line.cli.ok("delete", second["backup_id"])
    line.forget([second["backup_id"]])
    lose(line.hub)
    said = restore(line.hub, "--from", line.repositories["main"])
    assert "a point was deleted after" in said and second["backup_id"] in said
    line.start_hub()
    line.check_listed()
    line.images[0].write(CLUSTER, A)
    third = line.point()
    assert third["disks"][0]["parent_backup_id"] == first["backup_id"]
    assert sql(line.hub.database, "SELECT sequence FROM backup_jobs ORDER BY sequence") == [(1,), (2,)]
    line.check_everything()


@pytest.mark.parametrize("harm", ["image", "record", "other content", "all of a parent"])
def test_points_that_are_not_as_they_were(harm, make_hub, place):
    """None is listed as good; and the next backup does not build on it."""
    line = Line(make_hub(), place, [A + B])
    for n in range(3):
        line.images[0].write(0, bytes([n + 1]) * CLUSTER)
        line.point()
    ids = list(line.order["main"])
    back_up(line.hub)
    lose(line.hub)
    image = [line.repositories["main"] / p for p in sorted(line.repositories["main"].rglob(f"{ids[1]}*.qcow2"))][0]
    record = next(line.repositories["main"].rglob(f"{ids[1]}.json"))
    expected = {ids[1], ids[2]}
    if harm == "image":
        image.unlink()
    elif harm == "record":
        record.write_bytes(record.read_bytes()[:-10])
    elif harm == "all of a parent":
        for path in line.repositories["main"].rglob(f"{ids[1]}*"):
            path.unlink()
    else:       # the database says of it what it is not
        newest = files(line.repositories["main"])[0]
        line.hub.options = []
        expected = set()
        restore(line.hub, "--from", newest)
        line.hub.start()
        before = line.hub.api.get(f"/backups/{quote(ids[1])}").expect(200)
        line.hub.stop()
        sql(line.hub.database, "UPDATE backup_disks SET root = ?, change_id = 'x' WHERE backup_id = ?", "00" * 16,
            ids[1])
        line.hub.start()
        path = back_up(line.hub)
        lose(line.hub)
        said = restore(line.hub, "--from", path)
        assert "the record counts" in said
        line.start_hub()
        after = line.hub.api.get(f"/backups/{quote(ids[1])}").expect(200)
        assert after["disks"][0]["change_id"] == before["disks"][0]["change_id"]
        line.check_everything()
        return
    restore(line.hub, "--from", line.repositories["main"])
    line.start_hub()
    shown = {b["backup_id"]: b for b in line.api.get("/backups?status=completed").expect(200)["backups"]}
    assert {i for i, b in shown.items() if b["suspect"]} == expected
    assert set(shown) == set(ids)
    line.images[0].write(0, b"\x44" * CLUSTER)
    new = line.point()
    assert new["disks"][0]["mode"] == "full"
    line.check_point(ids[0])
    line.check_point(new["backup_id"])


# ---- where things are now

def test_a_repository_that_is_away(make_hub, place):
    """Its points are not called good, nothing is started into it; once it is back all is well, by itself."""
    line = Line(make_hub(), place, [A + B])
    other = line.add_repository("other")
    line.point()
    line.point(repository="other")
    made = line.hub.api.post("/database/backups").expect(201)["backups"]
    assert [m["repository"] for m in made] == ["main", "other"] and not [m for m in made if m["error"]]
    line.images[0].write(0, B)
    newest = line.point(repository="other")
    lose(line.hub)
    away = place / "away"
    other.rename(away)
    said = restore(line.hub, "--from", line.repositories["main"])
    assert '"other"' in said and "AWAY" in said
    line.start_hub()
    listed = line.api.get("/backups?repository_id=other").expect(200)["backups"]
    assert len(listed) == 1 and listed[0]["suspect"] and listed[0]["suspect_because"] == "unreadable"
    good = [n for n in line.api.get("/metrics").text.splitlines() if n.startswith("sendense_vm_good_point_age")]
    assert len(good) == 1 and 'repository="main"' in good[0]
    start = {"vm_name": "pgtest1", "repository_id": "other"}
    line.api.post("/backups", start).expect(503, "repository not available")

    line.hub.stop()     # nobody looks while the share comes back
    away.rename(other)
    line.hub.start()    # looks
    wait_for(lambda: not any(b["suspect"] for b in line.hub.api.get("/backups").expect(200)["backups"]), "no suspect")
    line.api, line.cli.url = line.hub.api, line.hub.url
    line.check_listed()
    line.images[0].write(CLUSTER, A)
    assert line.point(repository="other")["disks"][0]["parent_backup_id"] == newest["backup_id"]
    line.check_everything()


def test_a_share_comes_back_while_the_hub_runs(make_hub, place):
    """And a backup that is asked for before it was looked through is refused: its parent would be an old one."""
    line = Line(make_hub(), place, [A + B])
    point = line.point()
    back_up(line.hub)
    line.images[0].write(0, B)
    newest = line.point()
    lose(line.hub)
    copy = place / "copy.db.zst"
    shutil.copy(files(line.repositories["main"])[0], copy)
    away = place / "away"
    line.repositories["main"].rename(away)
    restore(line.hub, "--from", copy)
    line.start_hub()
    with faults.slow_calls(line.hub.process.pid, "getdents64", 2):      # the scan takes its time
        away.rename(line.repositories["main"])
        refused = line.api.post("/backups", {"vm_name": "pgtest1", "repository_id": "main"})
        refused.expect(503, "repository not looked through yet")
        line.api.delete(f"/backups/{quote(point['backup_id'])}").expect(503, "repository not looked through yet")
    wait_for(lambda: not any(b["suspect"] for b in line.api.get("/backups").expect(200)["backups"]), "looked through")
    line.images[0].write(CLUSTER, A)
    assert line.point()["disks"][0]["parent_backup_id"] == newest["backup_id"]
    line.check_everything()


def test_a_repository_that_is_elsewhere_now(make_hub, place):
    line = Line(make_hub(), place, [A + B])
    other = line.add_repository("other")
    line.point()
    line.point(repository="other")
    line.hub.api.post("/database/backups").expect(201)
    lose(line.hub)
    for name in ("main", "other"):
        moved = place / f"mnt-{name}"
        line.repositories[name].rename(moved)
        line.repositories[name] = moved
    said = restore(line.hub, "--from", line.repositories["main"] / "database", "--scan", line.repositories["other"])
    assert str(other) in said and str(line.repositories["other"]) in said
    line.start_hub()
    line.check_everything()
    line.point(repository="other")
    line.check_everything()


def test_by_scanning_alone(make_hub, place):
    line = Line(make_hub(), place, [A + B])
    line.point()
    line.images[0].write(0, B)
    line.point()
    lose(line.hub)
    assert not (line.repositories["main"] / "database").exists()
    said = restore(line.hub, "--from", line.repositories["main"], status=1)
    assert "--scan" in said and not (line.hub.data / "sendense.db").exists()
    said = restore(line.hub, "--scan", line.repositories["main"])
    assert 'registered as "repository-main"' in said and "2 points, 0 of them suspect" in said
    assert 'VM "pgtest1" has points and is not registered' in said and "--adopt" in said
    line.start_hub()
    assert line.api.get("/audit").expect(200)["entries"][0]["object"] == "from points alone"
    for kind in ("points", "order"):
        value = getattr(line, kind)
        if kind == "order":
            value["repository-main"] = value.pop("main")
    line.repositories["repository-main"] = line.repositories.pop("main")
    line.check_everything()
    line.cli.ok("vm", "add", "pgtest1", "--file", line.images[0].path, "--adopt", "pgtest1")
    line.images[0].write(CLUSTER, A)
    assert line.point(repository="repository-main")["disks"][0]["parent_backup_id"]
    line.check_everything()


# ---- refusals

def test_nothing_is_overwritten_unasked(make_hub, place):
    line = Line(make_hub(), place, [A])
    line.point()
    back_up(line.hub)
    said = restore(line.hub, "--from", line.repositories["main"], status=1)
    assert "cannot be locked" in said and "stopped first" in said       # it runs
    line.hub.stop()
    before = line.hub.database.read_bytes()
    for how in (["--from", line.repositories["main"]], ["--scan", line.repositories["main"]]):
        said = restore(line.hub, *how, status=1)
        assert "not empty" in said and "--force" in said
        assert line.hub.database.read_bytes() == before
    restore(line.hub, status=2)
    restore(line.hub, "--from", place / "no-such", status=1)
    restore(line.hub, "--frm", place, status=2)
    sql(line.hub.database, "UPDATE vms SET name = 'renamed since'")
    said = restore(line.hub, "--from", line.repositories["main"], "--force")
    kept, = line.hub.data.glob("sendense.db.before-restore-*")
    assert str(kept) in said
    assert sql(kept, "SELECT name FROM vms") == [("renamed since",)]
    line.start_hub()
    line.check_everything()


@pytest.mark.parametrize("engine", ["sqlite", "mariadb"])
def test_restores_within_one_second(engine, make_hub, make_server, place):
    """A second one failed: what the first kept aside had the same name, of seconds."""
    if engine == "mariadb" and MISSING:
        pytest.skip("no MariaDB here")
    server = make_server("mariadb") if engine == "mariadb" else None
    line = Line(make_hub(options=server.options if server else []), place, [A])
    line.own_processes = lambda: server.pids if server else set()
    line.point()
    back_up(line.hub)
    line.hub.stop()
    for _ in range(4):
        restore(line.hub, "--from", line.repositories["main"], "--force")
    kept = [p for p in line.hub.data.glob("*before-restore*") if not p.name.endswith(("-wal", "-shm"))]
    assert len(kept) == 4, kept
    assert all(p.name.endswith(".db.zst" if server else "Z") for p in kept), kept


def test_a_fresh_hub_s_database_is_no_obstacle(make_hub, place):
    line = Line(make_hub(), place, [A])
    line.point()
    back_up(line.hub)
    lose(line.hub)
    line.hub.start()        # by systemd, say
    line.hub.stop()
    restore(line.hub, "--from", line.repositories["main"])
    line.start_hub()
    line.check_everything()


def test_over_a_database_that_is_damaged(make_hub, place):
    """What is left of its log must not be taken for the new one's."""
    line = Line(make_hub(), place, [A])
    line.point()
    back_up(line.hub)
    line.hub.kill()
    assert os.path.getsize(f"{line.hub.database}-wal") > 0
    for path in (line.hub.database, f"{line.hub.database}-wal"):
        with open(path, "r+b") as f:
            f.write(b"junk" * 1000)
    said = restore(line.hub, "--from", line.repositories["main"], status=1)
    assert "not empty" in said
    restore(line.hub, "--from", line.repositories["main"], "--force")
    kept = [p for p in line.hub.data.glob("sendense.db.before-restore-*") if not p.name.endswith(("-wal", "-shm"))]
    assert [p.read_bytes()[:4] for p in kept] == [b"junk"]
    line.start_hub()
    line.check_everything()


@pytest.mark.skipif(bool(MISSING), reason="no MariaDB here")
def test_mariadb_is_kept_aside(make_server, make_hub, place):
    server = make_server("mariadb")
    line = Line(make_hub(options=server.options), place, [A])
    line.own_processes = lambda: server.pids
    line.point()
    back_up(line.hub)
    said = restore(line.hub, "--from", line.repositories["main"], status=1)
    assert "another hub" in said or "locked" in said
    line.hub.stop()
    said = restore(line.hub, "--from", line.repositories["main"], status=1)
    assert "not empty" in said
    server.server.sql("UPDATE vms SET name = 'renamed since'", NAME)
    restore(line.hub, "--from", line.repositories["main"], "--force")
    kept, = line.hub.data.glob("database-before-restore-*.db.zst")
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert sql(unpacked(kept, place / "kept.db"), "SELECT name FROM vms") == [("renamed since",)]
    line.start_hub()
    line.check_everything()


def test_a_newer_schema_is_refused(make_hub, place):
    """Not for an older file, either: it is sound. An older schema is migrated: tests/unit/store/test_dump.c."""
    line = Line(make_hub(), place, [A])
    line.point()
    back_up(line.hub)
    older = made_yesterday(files(line.repositories["main"])[0])
    sql(line.hub.database, "INSERT INTO schema_migrations (version, applied_at) VALUES (9999, 'x')")
    newer = back_up(line.hub)
    lose(line.hub)
    said = restore(line.hub, "--from", line.repositories["main"], status=1)
    assert "schema 9999" in said and newer in said
    assert not list(line.hub.data.glob("*.db*"))
    restore(line.hub, "--from", older)
    line.start_hub()
    line.check_everything()


@pytest.mark.skipif(bool(MISSING), reason="no MariaDB here")
def test_killed_in_the_middle_of_a_restore_to_mariadb(make_server, make_hub, place):
    """One transaction: nothing has happened, though half of it was done."""
    server = make_server("mariadb")
    line = Line(make_hub(options=server.options), place, [A])
    line.own_processes = lambda: server.pids
    line.point()
    back_up(line.hub)
    line.hub.stop()
    server.server.sql("UPDATE vms SET name = 'the old one'", NAME)
    before = server.server.sql("SELECT COUNT(*) FROM schema_migrations, audit_log, backup_jobs", NAME)
    # not innodb_trx: who asks it more often than every 0.1 s is told what was
    waiting = "SELECT id FROM information_schema.processlist WHERE info = 'DELETE FROM vms'"
    holder = subprocess.Popen(["mariadb", "--no-defaults", f"--socket={server.server.folder / 's'}", "--user=root",
                               NAME],
                              stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        holder.stdin.write("BEGIN; SELECT * FROM vms FOR UPDATE;\n")
        holder.stdin.flush()
        wait_for(lambda: not server.server.sql("SELECT name FROM vms FOR UPDATE SKIP LOCKED", NAME), "rows are held")
        restoring = subprocess.Popen([line.hub.binary, "restore-database", "--data-dir", line.hub.data, "--run-dir",
                                      line.hub.run_dir, *server.options, "--from", line.repositories["main"],
                                      "--force"],
                                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: server.server.sql(waiting), "the restore is at the VMs, which somebody holds")
        restoring.kill()
        restoring.wait()
    finally:
        holder.stdin.close()
        holder.wait(patience(30))
    wait_for(lambda: not server.server.sql(waiting), "it was rolled back")
    assert server.server.sql("SELECT name FROM vms", NAME) == [["the old one"]]
    assert server.server.sql("SELECT COUNT(*) FROM schema_migrations, audit_log, backup_jobs", NAME) == before
    restore(line.hub, "--from", line.repositories["main"], "--force")
    line.start_hub()
    line.check_everything()


# ---- damage

def harm(path, how):
    data = path.read_bytes()
    if how == "flip":
        faults.flip(path, len(data) // 2)
    elif how == "truncate":
        path.write_bytes(data[:len(data) * 2 // 3])
    else:
        path.write_bytes(b"")


@pytest.mark.parametrize("how", ["flip", "truncate", "empty"])
def test_a_damaged_file(how, make_hub, place):
    """Refused with the one before offered; of a folder or repository the one before is taken, and both are named."""
    line = Line(make_hub(), place, [A])
    line.point()
    back_up(line.hub)
    first = made_yesterday(files(line.repositories["main"])[0])
    line.images[0].write(0, B)
    line.point()
    back_up(line.hub)
    second = files(line.repositories["main"])[0]
    assert second != first and len(files(line.repositories["main"])) == 2
    lose(line.hub)
    harm(second, how)
    said = restore(line.hub, "--from", second, status=3)
    assert str(second) in said and f"--from {first}" in said and "damaged" in said
    assert not list(line.hub.data.glob("*.db*"))
    said = restore(line.hub, "--from", line.repositories["main"])
    assert f"not used: {second}" in said and f"restored: {first}" in said
    line.start_hub()
    line.check_everything()
    line.hub.stop()
    harm(first, how)
    before = line.hub.database.read_bytes()
    said = restore(line.hub, "--from", line.repositories["main"] / "database", "--force", status=3)
    assert "none of the 2" in said and line.hub.database.read_bytes() == before


def test_two_hubs_in_one_folder(make_hub, place):
    line = Line(make_hub(), place, [A])
    line.point()
    back_up(line.hub)
    own = files(line.repositories["main"])[0]
    other = make_hub("another")
    other.api.post("/repositories", {"name": "theirs", "path": str(line.repositories["main"])}).expect(201)
    back_up(other)
    listed = other.api.get("/database/backups").expect(200)["backups"]
    assert sorted(b["own"] for b in listed) == [False, True]
    assert own.exists()
    lose(line.hub)
    said = restore(line.hub, "--from", line.repositories["main"], status=1)
    assert "several hubs" in said and own.name in said
    restore(line.hub, "--from", own)
    other.stop()
    line.start_hub()
    line.check_everything()


# ---- secrets

@pytest.mark.parametrize("key", ["there", "lost", "another"])
def test_the_key_file(key, make_hub, place):
    """It is not in the backup, and without it nobody gets a password: told, with what to do."""
    line = Line(make_hub(), place, [A])
    line.point()
    body = new_source()
    line.api.post("/sources", body).expect(201)
    path = back_up(line.hub)
    kept = line.hub.key_file.read_bytes()
    raw = unpacked(path, place / "raw.db").read_bytes()
    assert body["password"].encode() not in raw and kept.strip() not in raw
    assert_nowhere(line.hub, body["password"], line.repositories["main"])
    lose(line.hub)
    line.hub.data.mkdir(mode=0o700)
    if key != "lost":
        line.hub.key_file.write_bytes(kept if key == "there" else b"0" * 64)
        line.hub.key_file.chmod(0o600)
    said = restore(line.hub, "--from", path)
    assert ("KEY FILE" in said) == (key != "there"), said
    line.start_hub()
    if key != "there":
        assert 'source "vc-1": its password cannot be opened' in said
        assert "sendense source set NAME --ask-password" in said
        subprocess.run(["sh", "-c", f"umask 077; openssl rand -hex 32 > {line.hub.key_file}"], check=True)
    (place / "pw").write_text(body["password"])
    line.cli.ok("source", "set", "vc-1", "--password-file", place / "pw")
    line.check_everything()


def test_tokens_come_back(make_hub, place):
    hub = make_hub(auth=True)
    first = hub.admin_token
    admin = hub.api.with_token(first)
    admin.post("/repositories", {"name": "main", "path": str(place / "repo")}).expect(201)
    token = admin.post("/tokens", {"name": "eyes", "role": "viewer"}).expect(201)["token"]
    made, = admin.post("/database/backups").expect(201)["backups"]
    hub.api.with_token(token).get("/database/backups").expect(200)
    raw = unpacked(made["path"], place / "raw.db").read_bytes()
    assert token.encode() not in raw and token.removeprefix("sendense_").encode() not in raw
    lose(hub)
    restore(hub, "--from", place / "repo")
    hub.start()
    assert hub.api.with_token(token).get("/repositories").expect(200)["repositories"][0]["name"] == "main"
    assert not (hub.data / "admin-token").exists()
    # nothing in the log of who did what told that all of it was put there
    row, = [r for r in admin.get("/audit?limit=1000").expect(200)["entries"] if r["actor"] == "sendense-hub"
            and r["path"] == "restore-database"]
    assert row["object"] == f"from {made['path']}" and row["id"] > 3
    assert Cli(hub.url, cwd=place).json("audit", "verify", environment={"SENDENSE_TOKEN": first})["ok"]


# ---- daily

def number_of(path):
    return int(path.name[13:21])


def wait_files(repository, count):
    wait_for(lambda: (repository / "database").exists() and len(
        [p for p in (repository / "database").iterdir() if p.suffix == ".zst"]) == count, f"{count} files")
    return files(repository)


def set_last(hub, when):
    """As if the last one had been then."""
    assert sql(hub.database, "SELECT COUNT(*) FROM hub_state WHERE name LIKE 'database_backup.%'") != [(0,)]
    sql(hub.database, "UPDATE hub_state SET value = ? WHERE name LIKE 'database_backup.%'", when)


def test_daily(make_hub, place):
    """One soon after the start, or after a repository is added; none more that day; one that was missed is made up for,
    and so is one that a clock put into the future."""
    line = Line(make_hub(options=["--database-backup-delay=0"]), place, [A])
    repository = line.repositories["main"]
    first, = wait_files(repository, 1)
    line.point()
    line.hub.restart()
    line.add_repository("other")
    wait_files(place / "repository-other", 1)
    assert files(repository) == [first]             # its turn came with the other's, and it was not due
    for when in ("2020-01-01T00:00:00.000000Z", "2099-01-01T00:00:00.000000Z"):
        line.hub.stop()
        had = number_of(files(repository)[0])
        set_last(line.hub, when)
        line.hub.start()
        wait_for(lambda had=had: number_of(files(repository)[0]) > had, "made up for")
    wait_for(lambda: len(files(repository)) == 2, "the newest two of one day are kept")
    line.api, line.cli.url = line.hub.api, line.hub.url
    line.check_everything()


def test_none_where_it_is_switched_off(make_hub, place):
    hub = make_hub(options=["--database-backup-delay=0", "--database-backup-keep=0", "--database-backup-to=second"])
    for name in ("first", "second"):
        hub.api.post("/repositories", {"name": name, "path": str(place / name)}).expect(201)
    path = back_up(hub)                             # the one that is chosen
    assert path.startswith(str(place / "second"))
    assert not (place / "first" / "database").exists()
    assert len(hub.api.get("/database/backups").expect(200)["backups"]) == 1


def test_a_repository_that_is_not_there_is_told(make_hub, place):
    hub = make_hub(options=["--database-backup-delay=0", "--database-backup-to=frist"])
    assert hub.api.get("/health").expect(200)["status"] == "ok"     # there is none at all yet
    hub.api.post("/repositories", {"name": "first", "path": str(place / "first")}).expect(201)
    health = wait_for(lambda: (h := hub.api.get("/health").expect(200))["status"] == "degraded" and h, "degraded")
    assert '"frist"' in health["problem"]
    hub.api.post("/database/backups").expect(409, "no repository")


def test_how_many_are_kept(make_hub, place):
    """By days, and never another hub's or what is nobody's."""
    hub = make_hub(options=["--database-backup-keep=3"])
    hub.api.post("/repositories", {"name": "main", "path": str(place / "repo")}).expect(201)
    first = place / "repo" / "database"
    path = place / "repo" / "database" / os.path.basename(back_up(hub))
    hub_digits = path.name[4:12]
    mine = [f"hub-{hub_digits}-{n:08}-2020010{n}T000000Z.db.zst" for n in range(1, 6)]
    others = ["hub-00000000-00000001-20200101T000000Z.db.zst", "notes.txt", f"hub-{hub_digits}-1.db.zst",
              "hub-00000000-00000002-20200101T000000Z.db.zst.partial"]
    left = f"hub-{hub_digits}-00000009-20200101T000000Z.db.zst.partial"
    path.unlink()
    for name in [*mine, *others, left]:
        (first / name).touch()
    newest = os.path.basename(back_up(hub))
    assert newest[13:21] == "00000006"              # after what is there
    assert sorted(p.name for p in first.iterdir()) == sorted([newest, *mine[-2:], *others])


def test_a_failure_is_told(make_hub, place):
    """In the log, in health, in the metrics; until one is right."""
    hub = make_hub(options=["--database-backup-delay=0"])
    world = World(hub, place)
    path = place / "repo"
    hub.api.post("/repositories", {"name": "main", "path": str(path)}).expect(201)
    wait_files(path, 1)
    hub.stop()
    set_last(hub, "2020-01-01T00:00:00.000000Z")
    shutil.rmtree(path / "database")
    (path / "database").write_text("in the way")
    hub.start()
    health = wait_for(lambda: (h := hub.api.get("/health").expect(200))["status"] == "degraded" and h, "degraded")
    assert "the database's backup failed" in health["problem"] and '"main"' in health["problem"]
    assert "the database's backup failed" in hub.log

    def metrics():
        text = hub.api.get("/metrics").text
        check_metrics(text)
        return {line.split()[0]: float(line.split()[1]) for line in text.splitlines() if "database_backup" in line
                and line[0] != "#"}
    found = metrics()
    assert found["sendense_database_backup_failed"] == 1
    assert found['sendense_database_backup_age_seconds{repository="main"}'] > 86400
    assert "Not a directory" in hub.api.post("/database/backups").expect(500)["details"]
    assert "Not a directory" in hub.api.get("/database/backups").expect(200)["problem"]
    (path / "database").unlink()
    back_up(hub)
    assert hub.api.get("/health").expect(200)["status"] == "ok"
    found = metrics()
    assert found["sendense_database_backup_failed"] == 0
    assert found['sendense_database_backup_age_seconds{repository="main"}'] < 3600
    assert world.hub is hub


def test_the_command_line(world, vm, place):
    cli = Cli(world.hub.url, cwd=place)
    world.backup(vm)
    assert "written" in cli.ok("hub", "backup-database")
    made, = cli.json("hub", "database-backups")["backups"]
    assert made["own"] and made["number"] == 1
    assert made["path"] in cli.ok("hub", "database-backups")
    gone = world.repository["path"] + "-away"
    os.rename(world.repository["path"], gone)
    failed = cli.run("hub", "backup-database")
    assert failed.status == 1 and "not available" in failed.err
    os.rename(gone, world.repository["path"])
    cli.ok("hub", "backup-database")


def test_without_a_repository(hub):
    hub.api.post("/database/backups").expect(409, "no repository")
    assert hub.api.get("/database/backups").expect(200) == {"backups": [], "problem": None}


def test_one_of_two_is_away(make_hub, place):
    hub = make_hub()
    for name in ("main", "other"):
        hub.api.post("/repositories", {"name": name, "path": str(place / name)}).expect(201)
    (place / "other").rename(place / "gone")
    made = {m["repository"]: m for m in hub.api.post("/database/backups").expect(201)["backups"]}
    assert made["main"]["error"] is None and "not" in made["other"]["error"] and made["other"]["path"] is None
    assert hub.api.get("/health").expect(200)["status"] == "degraded"
    assert Cli(hub.url, cwd=place).run("hub", "backup-database").status == 1


def test_jobs_and_calls_do_not_wait(make_hub, place):
    """While a copy is being made, which takes as long as we want it to, calls are answered."""
    line = Line(make_hub(), place, [A + B])
    line.point()
    back_up(line.hub)
    done = []
    with faults.slow_calls(line.hub.process.pid, "rename,renameat,renameat2,link,linkat", patience(60)):
        thread = threading.Thread(target=lambda: done.append(line.hub.api.post("/database/backups").status))
        thread.start()
        wait_for(lambda: list((line.repositories["main"] / "database").glob("*.partial")), "being written")
        assert line.hub.api.post("/database/backups").status == 409
        line.api.get("/backups").expect(200)
        assert not done, "it was over before"
    thread.join()
    assert done == [201]
    line.images[0].write(0, B)
    line.point()
    line.check_everything()


# ---- full disks

def test_a_full_repository(make_hub, place):
    """The copy fails, what was there stays, nothing half is left; and backups go on when there is room."""
    with SmallStage(make_hub, place, 112) as stage:
        stage.first()
        first = back_up(stage.hub)
        folder = stage.seen(os.path.dirname(first))
        stage.fill(leave=0)
        refused = stage.api.post("/database/backups")
        refused.expect(507)
        assert os.listdir(folder) == [os.path.basename(first)]
        assert "space" in stage.api.get("/health").expect(200)["problem"]
        stage.empty()
        back_up(stage.hub)
        assert stage.api.get("/health").expect(200)["problem"] is None
        stage.prove()


def test_a_full_data_folder_at_a_restore(make_hub, place):
    """It says so, and the database that is there stays."""
    line = Line(make_hub(), place, [A])
    line.point()
    path = back_up(line.hub)
    line.hub.stop()
    small = place / "small"
    small.mkdir()
    shutil.copytree(line.hub.data, place / "copy")
    script = f"cp -a '{place}/copy/.' '{small}'; dd if=/dev/zero of='{small}/filler' bs=4096 2>/dev/null; exec \"$@\""
    done = subprocess.run([*own_mounts((small, 1)), "sh", "-c", script, "sh", line.hub.binary, "restore-database",
                           "--data-dir", small, "--run-dir", line.hub.run_dir, "--from", path, "--force"],
                          capture_output=True, text=True, timeout=patience(60), check=False)
    assert done.returncode == 1 and "space" in done.stderr.lower(), done
    line.start_hub()
    line.check_everything()


# ---- kill -9, and calls that fail, at every step

needs_shim = pytest.mark.skipif(not is_built(), reason="built without the fault shim")


def shots(counts, kinds, actions, most):
    """Each n-th of each kind; of many a spread."""
    for kind in kinds:
        step = max(1, counts[kind] // most)
        for at in range(1, counts[kind] + 1, step):
            for action in actions:
                yield Shot(kind, action, at)


@needs_shim
def test_killed_or_failing_in_a_backup(make_hub, place):
    """Before each call: what is there stays right, no half file is taken for one, and the next one is made."""
    shim = Shim(place / "shim")
    hub = make_hub(environment=shim.environment())
    repository = place / "repo"
    hub.api.post("/repositories", {"name": "main", "path": str(repository)}).expect(201)
    back_up(hub)
    shim.arm("hub")
    back_up(hub)
    counts = shim.disarm().counts
    tried = 0
    for shot in shots(counts, ("name", "sync", "write"), ("kill", "ENOSPC"), share(12, 3)):
        shim.arm("hub", shot)
        with contextlib.suppress(OSError, http.client.HTTPException):   # no answer, or a part of one
            hub.api.post("/database/backups")
        seen = shim.disarm()
        tried += seen.hit is not None
        if shot.action == "kill" and seen.hit:
            hub.kill()
            hub.start()
        listed = sorted((p for p in (repository / "database").iterdir() if p.suffix == ".zst"), reverse=True)
        assert listed, shot
        for path in listed:
            subprocess.run(["zstd", "-q", "-t", path], check=True)
        number = number_of(listed[0])
        back_up(hub)
        assert number_of(files(repository)[0]) > number, shot
        assert not list(hub.data.glob("database-backup*")), shot
    assert tried >= share(40, 15), counts


@needs_shim
@pytest.mark.parametrize("over", ["nothing", "a database"])
def test_killed_or_failing_in_a_restore(over, make_hub, place):
    """Before each call: the database is the old one or the new one, whole; and the same command again, or the hub's
    start, gets there."""
    line = Line(make_hub(), place, [A + B])
    line.point()
    back_up(line.hub)
    line.images[0].write(0, B)
    line.point()
    line.hub.stop()
    saved = place / "saved"
    shutil.copytree(line.hub.data, saved)
    shim = Shim(place / "shim")
    arguments = ["--from", line.repositories["main"], *(["--force"] if over != "nothing" else [])]

    def begin():
        shutil.rmtree(line.hub.data, ignore_errors=True)
        if over != "nothing":
            shutil.copytree(saved, line.hub.data)
            sql(line.hub.database, "UPDATE vms SET name = 'the old one'")

    begin()
    shim.arm("hub")
    restore(line.hub, *arguments, environment=shim.environment())
    counts = shim.disarm().counts
    tried = 0
    for shot in shots(counts, ("name", "sync", "write"), ("kill", "ENOSPC"), share(10, 3)):
        begin()
        shim.arm("hub", shot)
        done = subprocess.run([line.hub.binary, "restore-database", "--data-dir", line.hub.data, "--run-dir",
                               line.hub.run_dir, *map(str, arguments)], capture_output=True, text=True,
                              timeout=patience(60), check=False, env={**line.hub.environ(), **shim.environment()})
        seen = shim.disarm()
        tried += seen.hit is not None
        if seen.hit and shot.action == "kill":
            assert done.returncode == -9, (shot, done)
        database = line.hub.data / "sendense.db"
        if over != "nothing":
            assert database.exists(), (shot, done)
        name = sql(database, "SELECT name FROM vms") if database.exists() else None
        assert name in ([("the old one",)], [("pgtest1",)], *([None] if over == "nothing" else [])), (shot, name)
        if name != [("pgtest1",)]:
            restore(line.hub, *arguments)
        line.start_hub()
        line.check_listed()
        line.hub.stop()
    assert tried >= share(40, 15), counts
    line.start_hub()
    line.check_everything()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another one's folder")
def test_by_root_in_the_folder_of_another_user(make_hub, place):
    """The service's hub could not open the database that root had made for it: "unable to open database file"."""
    line = Line(make_hub(), place, [A])
    line.point()
    back_up(line.hub)
    line.hub.stop()
    os.chown(line.hub.data, 1, 1)
    before = line.hub.database.read_bytes()
    said = restore(line.hub, "--from", line.repositories["main"], "--force", status=2)
    assert "run this as daemon" in said
    assert line.hub.database.read_bytes() == before
    os.chown(line.hub.data, 0, 0)


def test_where_the_options_come_from(place):
    """The hub's settings count here, too; help needs none."""
    said = subprocess.run([BIN / "sendense-hub", "restore-database", "--help"], capture_output=True, text=True,
                          timeout=patience(20), check=True).stdout
    assert "--from" in said and "--scan" in said and "--force" in said
    (place / "hub.conf").write_text(f"data-dir = {place / 'there'}\n")
    done = subprocess.run([BIN / "sendense-hub", "restore-database", "--config", place / "hub.conf", "--from",
                           place / "none"], capture_output=True, text=True, timeout=patience(20), check=False)
    assert done.returncode == 1 and str(place / "none") in done.stderr
    assert (place / "there" / "lock").exists()


# ---- docs/how-to/lost-server.md, as written

def block(start, place, hub, repository):
    """The commands of the first block after these words, with our paths for the page's."""
    text = (ROOT / "docs" / "how-to" / "lost-server.md").read_text().split(start, 1)[1]
    lines = re.search(r"(?:^    .*\n)+", text, re.MULTILINE).group().splitlines()
    for old, new in (("/var/lib/sendense", hub.data), ("/backup/repository", repository), ("/safe", place / "safe"),
                     ("/restore/web", place / "restored")):
        lines = [line.strip().replace(old, str(new)) for line in lines]
    return lines


def typed(hub, line):
    environment = {**hub.environ(), "PATH": f"{BIN}:{os.environ['PATH']}", "SHA_API_URL": hub.url,
                   "SENDENSE_CREDENTIALS": str(hub.folder / "credentials.json"), "SENDENSE_RUN_DIR": hub.run_dir}
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=patience(60), check=False,
                          env=environment)
    assert done.returncode == 0, (line, done)
    return done.stdout


@pytest.fixture
def lost(make_hub, place):
    """A line whose hub asks for tokens, has a source, and is gone."""
    line = Line(make_hub(), place, [A + B])
    line.point()
    body = new_source()
    line.api.post("/sources", body).expect(201)
    back_up(line.hub)
    line.images[0].write(0, B)
    line.point()
    (place / "safe").mkdir()
    shutil.copy(line.hub.key_file, place / "safe")
    lose(line.hub)
    return line


def test_the_page_with_a_backup(lost, place):
    key, command, start = block("**With a new hub.**", place, lost.hub, lost.repositories["main"])
    typed(lost.hub, key)
    said = typed(lost.hub, command)
    assert "2 points, 0 of them suspect" in said and "KEY FILE" not in said
    assert start.startswith("sendense-hub --data-dir")
    lost.start_hub()
    lost.check_everything()


def test_the_page_without_one(lost, place):
    shutil.rmtree(lost.repositories["main"] / "database")
    command, start, login, verify, restoring, adopt, *sources = block(
        "**There is no backup of the database.**", place, lost.hub, lost.repositories["main"])
    typed(lost.hub, command)
    lost.hub.auth = True
    lost.hub.start()
    assert start.startswith("sendense-hub --data-dir") and len(sources) == 2
    typed(lost.hub, login)
    typed(lost.hub, verify.replace("--repo repository", "--repo repository-main"))
    newest = lost.newest("main")
    typed(lost.hub, restoring.replace("<ID>", newest))
    lost.references.expect(lost.points[newest]["disk-0"], place / "restored" / "disk-0.raw", "as the page says")
    typed(lost.hub, adopt.replace("web", "pgtest1").replace("--qmp /run/pgtest1.qmp", f"--file {lost.images[0].path}"))
    vms = lost.hub.api.with_token(lost.hub.admin_token).get("/vms").expect(200)["vms"]
    assert [(v["name"], v["points"]) for v in vms] == [("pgtest1", 2)]
