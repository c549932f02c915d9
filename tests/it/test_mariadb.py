"""The hub on a real MariaDB. docs/internals/mariadb.md. What the store asks is tested over both databases by
tests/unit/store/test_store.c.
"""

import contextlib
import subprocess
import threading

import pytest

from lib.history import partial_files, wait_for
from lib.hub import BIN
from lib.hubs import SIZE, Hubs, by_hand
from lib.images import CLUSTER
from lib.job import change_id, coverage, disk, nbdcopy
from lib.line import Line
from lib.mariadb import MISSING, NAME, PASSWORD, USER, MariaDb
from lib.patience import patience
from lib.share import FULL
from lib.sql_gate import SqlGate
from lib.stage import Stage
from lib.world import World

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no MariaDB here: {', '.join(MISSING)} missing")

A, B = b"\xaa" * CLUSTER, b"\xbb" * CLUSTER


@pytest.fixture
def server(place):
    with MariaDb(place / "mariadb") as made:
        yield made


def test_the_contract_s_start_command(server, make_hub, place):
    """As written, password on the command line included; and the contract's query finds the change ID."""
    hub = make_hub(options=server.options())
    assert hub.api.get("/health").expect(200)["database"] == "mariadb"
    assert "password on a command line" in hub.log and PASSWORD not in hub.log
    assert not list(hub.data.glob("*.db"))
    line = Line(hub, place, [A + B])
    line.point()
    last = line.point()
    row, = server.sql("SELECT id, vm_name, backup_type, change_id, status, created_at, completed_at FROM backup_jobs "
                      "WHERE vm_name = 'pgtest1' ORDER BY created_at DESC LIMIT 1;", NAME)
    assert row[:5] == [last["backup_id"], "pgtest1", "incremental", last["change_id"], "completed"]


@pytest.mark.parametrize("way", ["SENDENSE_DB_PASS", "SENDENSE_DB_PASS_FILE"])
def test_a_password_that_is_not_on_the_command_line(server, make_hub, place, way):
    value = PASSWORD
    if way.endswith("FILE"):
        (place / "password").write_text(PASSWORD + "\n")
        value = str(place / "password")
    hub = make_hub(options=server.options(**{"pass": None}), environment={way: value})
    assert hub.api.get("/health").expect(200)["database"] == "mariadb"
    assert "command line" not in hub.log and PASSWORD not in hub.log


def test_the_main_job(server, make_hub, place):
    """Backups, deletions, hubs that are killed, and a catalogue that is made anew from the repository alone."""
    line = Line(make_hub(options=server.options()), place, [A + B, B])
    line.own_processes = lambda: {server.process.pid}
    line.point()
    for n in range(3):
        line.images[0].write(0, bytes([n + 1]) * CLUSTER)
        assert line.modes(line.point())[0] == ("compare", "not_tracked")
    line.hub.kill()
    line.start_hub()
    line.images[1].write(0, A)
    last = line.point()
    line.cli.ok("delete", last["backup_id"])
    line.forget([last["backup_id"]])
    line.check_everything()
    line.cli.ok("verify", "--repo", "main")
    line.hub.stop()
    server.sql(f"DROP DATABASE {NAME}; CREATE DATABASE {NAME}")
    line.start_hub()
    line.cli.ok("repo", "add", "main", "--path", line.repositories["main"])
    line.cli.ok("repo", "scan", "main")
    line.check_everything()


@contextlib.contextmanager
def half_done(server, make_hub, place):
    """(stage, backup_id): an increment that is half done."""
    with Stage(make_hub, place, options=server.options()) as stage:
        sources = stage.own_processes
        stage.own_processes = lambda: sources() | {server.process.pid}
        stage.first()
        stage.change()
        yield stage, stage.at_half_done()


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_server_that_restarts_costs_no_job(server, make_hub, place, end):
    with half_done(server, make_hub, place) as (stage, backup_id):
        getattr(server, end)()
        assert stage.api.get("/backups").status == 503      # clear, and it passes
        assert stage.hub.process.poll() is None
        server.start()
        stage.go()
        assert stage.wait_final(backup_id)["status"] == "completed"
        stage.note("main", stage.show(backup_id), stage.references_now())
        stage.prove()


def test_whatever_keeps_it_from_connecting_again_ends_no_job(server, make_hub, place):
    """A refused password was 403, which tells a client that its job is over; it passes like any other absence."""
    with half_done(server, make_hub, place) as (stage, backup_id):
        server.sql(f"ALTER USER {USER}@'%' IDENTIFIED BY 'another'")
        (thread,), = server.sql(f"SELECT id FROM information_schema.processlist WHERE user = '{USER}'")
        server.sql(f"KILL {thread}")
        refused = stage.api.get("/backups").expect(503)
        assert "Access denied" in refused["details"]
        wait_for(lambda: "heartbeat not delivered" in stage.client_log(), "the client was not heard")
        server.sql(f"ALTER USER {USER}@'%' IDENTIFIED BY '{PASSWORD}'")
        stage.go()
        assert stage.wait_final(backup_id)["status"] == "completed"
        stage.note("main", stage.show(backup_id), stage.references_now())
        stage.prove()


def hub_says(place, options, environment=None):
    done = subprocess.run([BIN / "sendense-hub", "--data-dir", place / "other", "-port=0", "-auth=false", *options],
                          capture_output=True, text=True, timeout=patience(60), check=False,
                          env={"PATH": "/usr/bin:/usr/sbin", **(environment or {})})
    assert done.returncode != 0, done
    assert PASSWORD not in done.stdout + done.stderr or f"-db-pass={PASSWORD}" not in options
    return done.stdout + done.stderr


def test_clear_errors(place, server):
    """MariaDB's refusal was called "token not accepted", and whose database was gone was not told to make it."""
    said = hub_says(place, server.options(**{"pass": "wrong-one"}))
    assert "Access denied" in said and USER in said and "wrong-one" not in said and "token" not in said
    said = hub_says(place, server.options(name="no_such", user="root", **{"pass": None}))
    assert "Unknown database" in said and "HINT: make the database" in said
    assert "denied" in hub_says(place, server.options(name="mysql"))
    assert "server on" in hub_says(place, server.options(port=1))
    assert "--db-name" in hub_says(place, ["-db-host=localhost"])
    assert "--db-host" in hub_says(place, ["-db-name=x"])
    assert "no-such-file" in hub_says(place, server.options(**{"pass": None}),
                                      {"SENDENSE_DB_PASS_FILE": "/no-such-file"})
    server.sql(f"REVOKE ALL ON {NAME}.* FROM {USER}; GRANT SELECT ON {NAME}.* TO {USER}")
    said = hub_says(place, server.options())
    assert "CREATE" in said and "denied" in said, said


def test_a_newer_schema(server, make_hub, place):
    hub = make_hub(options=server.options())
    hub.stop()
    server.sql("INSERT INTO schema_migrations (version, applied_at) VALUES (9999, 'x')", NAME)
    assert "start the newer version" in hub_says(place, server.options())


@pytest.mark.skipif(not FULL, reason="waits for 17 seconds; with make test FULL=1")
def test_a_step_of_the_schema_that_takes_long(server, make_hub, place):
    """With several hosts a hub waits 15 s for an answer; an index of a million rows takes longer: it never started."""
    options = server.options(host=f"127.0.0.1:{server.port},127.0.0.1:1")
    hub = make_hub(options=options)
    hub.stop()
    newest, = server.sql("SELECT MAX(version) FROM schema_migrations", NAME)
    assert newest == ["47"], "another step is the last one: undo that one here"
    server.sql("DROP INDEX backup_jobs_stored ON backup_jobs; DELETE FROM schema_migrations WHERE version = 47", NAME)
    with server.busy_with(f"LOCK TABLES {NAME}.backup_jobs READ; DO SLEEP(17)"):
        wait_for(lambda: server.sql("SELECT id FROM information_schema.processlist WHERE info LIKE 'DO SLEEP%'"),
                 "the table is locked")
        hub.start()
    assert server.sql("SELECT MAX(version) FROM schema_migrations", NAME) == [["47"]]


def test_rows_that_are_long_and_odd(server, make_hub, place):
    """What SQLite takes, MariaDB takes: long paths and names, four-byte characters, names that differ in case."""
    world = World(make_hub(options=server.options()), place)
    deep = place / ("d" * 200) / ("e" * 200) / ("f" * 200)
    deep.parent.mkdir(parents=True)
    world.api.post("/repositories", {"name": "💾" * 60, "path": str(deep)}).expect(201)
    for name in ("web", "Web", "wéb", "💾" * 63):
        source = {"type": "file", "disks": [{"path": "/nowhere/x"}]}
        world.api.post("/vms", {"name": name, "source": source}).expect(201)
    assert len(world.api.get("/vms").expect(200)["vms"]) == 4
    world.api.post("/vms", {"name": "web", "source": {"type": "file", "disks": [{"path": "/x"}]}}).expect(409)


class Faults:
    """Statements on a table that fail, in a way of which nobody knows what happened."""

    def __init__(self, server, event, number):
        self.server = server
        server.sql("CREATE TABLE IF NOT EXISTS faults (n INT) ENGINE=MyISAM; DELETE FROM faults; "
                   "INSERT INTO faults VALUES (0);\nDELIMITER //\n"
                   f"CREATE OR REPLACE TRIGGER fault BEFORE {event} FOR EACH ROW BEGIN "
                   "IF (SELECT n FROM faults) > 0 THEN UPDATE faults SET n = n - 1; "
                   f"SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = {number}, MESSAGE_TEXT = 'a fault'; END IF; END//\n",
                   NAME)

    def arm(self, n):
        self.server.sql(f"UPDATE faults SET n = {n}", NAME)

    def left(self):
        return self.server.sql("SELECT n FROM faults", NAME) == [["0"]]


@pytest.mark.parametrize("event, number, status", [
    ("INSERT ON backup_disks", 1213, 200),      # a transaction elsewhere was first: it is done again
    ("INSERT ON backup_disks", 1180, 200),
    ("UPDATE ON backup_disks", 1213, 200),
    ("UPDATE ON backup_disks", 1180, 503)])     # nobody knows: it is undone, and the client repeats it
def test_a_database_that_goes_away_in_the_middle_of_an_announcement(server, make_hub, place, event, number, status):
    hubs = Hubs(make_hub, place, server, n=1)
    image = hubs.add_vm("web")
    faults = Faults(server, event, number)
    job = hubs.job(hubs.a, "web")
    job.claim()
    job.change = change_id()
    said = {"disks": [disk("disk-0", SIZE, job.change), disk("disk-1", SIZE, change_id())], "left_out": [],
            "consistency": "crash", "consistency_detail": ""}
    faults.arm(1)
    answer = job.call("disks", said)
    assert answer.status == status and faults.left(), answer
    if status != 200:
        assert not partial_files(hubs.repository_path)
        wait_for(lambda: not hubs.a.children(), "its exporters end")
        assert hubs.show(hubs.a, job.id)["status"] == "running"
    job.disks = {d["disk_key"]: d for d in job.call("disks", said).expect(200)["disks"]}
    assert len(job.disks) == len(server.sql("SELECT disk_key FROM backup_disks", NAME)) == 2
    for d in job.disks.values():
        nbdcopy(image.path, d["uri"])
    job.complete(job.change, [{"disk_id": job.disks[d["disk_key"]]["disk_id"], "change_id": d["change_id"],
                               "tracking": "none", **coverage([(0, SIZE)])} for d in said["disks"]],
                 bytes_transferred=2 * SIZE).expect(200)
    assert [b["backup_id"] for b in hubs.prove(hubs.a)] == [job.id]
    assert not partial_files(hubs.repository_path)


def test_a_client_repeats_what_the_database_did_not_take(server, make_hub, place):
    """The real one. Its announcement, and the point that comes of it."""
    hubs = Hubs(make_hub, place, server, n=1)
    image = hubs.add_vm("web")
    faults = Faults(server, "UPDATE ON backup_disks", 1180)
    faults.arm(1)
    point = hubs.point(hubs.a, "web")
    assert faults.left() and "announcement is repeated" in "".join(
        p.read_text() for p in hubs.a.data.rglob("*.client.log"))
    hubs.equals(hubs.a, point["backup_id"], image.content)


@pytest.mark.parametrize("how", ["it", "answer"])
def test_a_commit_of_which_nobody_knows(server, make_hub, place, how):
    """Each COMMIT of a backup in turn is lost, or only its answer: each backup is made, once, and each call noted."""
    with SqlGate(server.port) as gate:
        hubs = Hubs(make_hub, place, [server.options(port=gate.port)], n=1)
        hubs.add_vm("web")
        points = []
        while not points or gate.lost:
            gate.lose(len(points) + 1, how)
            points.append(by_hand(hubs))
        gate.lose(0, how)                   # the last one did not come to its COMMIT: a verify's is not meant
        assert len(points) > 6
        assert sorted(j["backup_id"] for j in hubs.a.api.get("/backups").expect(200)["backups"]) == sorted(points)
        assert len(hubs.prove(hubs.a)) == len(points)
        noted = hubs.a.api.get("/audit?limit=1000").expect(200)["entries"]
        assert sorted(e["id"] for e in noted) == list(range(1, len(noted) + 1))
        started = [e["status"] for e in noted if e["method"] == "POST" and e["path"].endswith("/backups")]
        assert started.count(201) == len(points)
        if how == "answer":
            assert len(started) == len(points)
        assert "audit log could not be written" not in hubs.a.log


@pytest.mark.skipif(not FULL, reason="waits for 8 seconds; with make test FULL=1")
def test_a_hub_that_hangs_within_a_decision(server, make_hub, place):
    """The others' decisions waited until its connection ended, a minute later."""
    with SqlGate(server.port) as gate:
        hubs = Hubs(make_hub, place, [server.options(port=gate.port), server.options()])
        for vm in ("web", "db"):
            hubs.add_vm(vm)
        gate.lose(1, "hold")
        job = {"vm_name": "web", "repository_id": hubs.repository}
        asking = threading.Thread(target=hubs.a.api.post, args=("/backups", job))
        asking.start()
        try:
            wait_for(lambda: gate.lost, "a has decided, and cannot say so")
            wait_for(lambda: hubs.b.api.post("/backups", {**job, "vm_name": "db"}).status == 201, "b decides", 40)
        finally:
            gate.go_on.set()
            asking.join()
        wait_for(lambda: [b["status"] for b in hubs.b.api.get("/backups").expect(200)["backups"]] == 2 * ["completed"],
                 "a backup of each")
        assert len(hubs.prove(hubs.b)) == 2


def test_a_list_of_vms_is_a_question(server, make_hub):
    """It was two for each VM: ten thousand of them took seconds."""
    api = make_hub(options=server.options()).api
    for n in range(25):
        source = {"type": "file", "disks": [{"path": "/nowhere/x"}]}
        api.post("/vms", {"name": f"web-{n:02}", "source": source}).expect(201)
    server.sql("SET GLOBAL log_output = 'TABLE'; SET GLOBAL general_log = 1")
    assert len(api.get("/vms").expect(200)["vms"]) == 25
    server.sql("SET GLOBAL general_log = 0")
    asked = [row[0] for row in server.sql("SELECT argument FROM mysql.general_log WHERE command_type = 'Execute'")]
    assert len([text for text in asked if "FROM vms" in text]) == 1, asked
    assert not [text for text in asked if "WHERE vm_id = " in text], asked


def test_a_start_asks_for_no_point_by_itself(server, make_hub, place):
    """It asked three times for each point, in one transaction: other hubs waited for minutes."""
    line = Line(make_hub(options=server.options()), place, [A + B])
    for _ in range(4):
        line.point()
    line.hub.stop()
    server.sql("SET GLOBAL log_output = 'TABLE'; SET GLOBAL general_log = 1")
    line.hub.start()
    wait_for(lambda: line.hub.api.get("/health").expect(200)["looked_through"], "it looks through its repository")
    server.sql("SET GLOBAL general_log = 0")
    asked = [row[0] for row in server.sql("SELECT argument FROM mysql.general_log WHERE command_type = 'Execute'")]
    assert [text for text in asked if "WHERE id IN (" in text], "nothing was looked for"
    assert not [text for text in asked if "FROM backup_jobs WHERE id = " in text or "SET value = value + 1" in text], \
        asked
