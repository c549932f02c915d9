"""sendense-hub migrate-database: the catalogue from SQLite to MariaDB and back. docs/internals/mariadb.md.

What is in either database is read here by its own tools, not by ours.
"""

import contextlib
import hashlib
import os
import random
import re
import sqlite3
import subprocess

import pytest

from lib.hub import BIN
from lib.images import CLUSTER
from lib.line import Line
from lib.mariadb import MISSING, NAME, PASSWORD, MariaDb
from lib.patience import patience
from lib.share import share
from lib.shim import Shim, Shot, is_built
from test_sources import PIN, new

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"no MariaDB here: {', '.join(MISSING)} missing")

A, B = b"\xaa" * CLUSTER, b"\xbb" * CLUSTER
MIGRATIONS = "schema_migrations"    # when a step ran in this very database


@pytest.fixture(scope="module")
def mariadb(tmp_path_factory):
    with MariaDb(tmp_path_factory.mktemp("server") / "mariadb") as made:
        yield made


@pytest.fixture
def server(mariadb):
    """With an empty database."""
    if not mariadb.process:
        mariadb.start()
    mariadb.sql(f"DROP DATABASE {NAME}; CREATE DATABASE {NAME}")
    return mariadb


def run(data, server, to, *more, environment=None, options=None):
    options = server.options(**{"pass": None}) if options is None else options
    return subprocess.run([BIN / "sendense-hub", "migrate-database", f"--to={to}", "--data-dir", data, *options, *more],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience(120), check=False,
                          env={"PATH": "/usr/bin:/usr/sbin", "SENDENSE_DB_PASS": PASSWORD, **(environment or {})})


def moved(data, server, to):
    done = run(data, server, to)
    assert done.returncode == 0, done.stderr
    assert "each row the same" in done.stdout and PASSWORD not in done.stdout + done.stderr
    return done.stdout


def refused(data, server, to, *words, **more):
    """Nothing is changed in either."""
    before = state(data), rows_of_mariadb(server)
    done = run(data, server, to, **more)
    assert done.returncode != 0, done.stdout
    for word in words:
        assert word in done.stderr, done.stderr
    assert (state(data), rows_of_mariadb(server)) == before
    return done


def database(data):
    return data / "sendense.db"


def state(data):
    """Bytes of the embedded database, its log included."""
    return {name: hashlib.sha256((data / name).read_bytes()).hexdigest() for name in ("sendense.db", "sendense.db-wal")
            if (data / name).exists() and (data / name).stat().st_size}


@contextlib.contextmanager
def opened(data):
    connection = sqlite3.connect(database(data), isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def schema_of(connection):
    """{table: its columns as SQLite tells of them}"""
    tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' "
                                                   "AND name NOT LIKE 'sqlite%'")]
    return {t: connection.execute(f"PRAGMA table_info({t})").fetchall() for t in sorted(tables)}


def rows_of_sqlite(data):
    """{table: its rows, each value in hex; N: NULL}"""
    found = {}
    with opened(data) as connection:
        for table, columns in schema_of(connection).items():
            values = ", ".join(f"iif({c[1]} IS NULL, char(78), hex(CAST({c[1]} AS TEXT)))" for c in columns)
            if table != MIGRATIONS:
                found[table] = sorted(connection.execute(f"SELECT {values} FROM {table}"))
    return found


def rows_of_mariadb(server):
    found = {}
    for table, in server.sql("SHOW TABLES", NAME):
        columns = [row[0] for row in server.sql(f"SHOW COLUMNS FROM {table}", NAME)]
        values = ", ".join(f"IFNULL(HEX(CONVERT({c} USING utf8mb4)), CHAR(78))" for c in columns)
        if table != MIGRATIONS:
            found[table] = sorted(tuple(row) for row in server.sql(f"SELECT {values} FROM {table}", NAME))
    return found


def assert_moved(data, server):
    here, there = rows_of_sqlite(data), rows_of_mariadb(server)
    assert sorted(here) == sorted(there)
    for table, rows in here.items():
        assert rows == there[table], table
    return sum(map(len, here.values()))


def only_mariadb(data):
    """As an admin does it after the move."""
    for name in ("sendense.db", "sendense.db-wal", "sendense.db-shm"):
        if (data / name).exists():
            (data / name).rename(data / f"old-{name}")


ODD = ["", " ", "x ", "X", "\u00e9", "\U0001f4be", "a\nb\tc", "'\"\\", "null", "0", "-1", "\x00", "a\x00b", "NULL",
       "%_"]
NUMBERS = [0, 1, -1, 2**63 - 1, -2**63, 2**53 + 1]


def fill(data, seed, rows=40):
    """Rows in each table that there is, found from the schema: what a later version adds is filled, too."""
    rng = random.Random(seed)
    with opened(data) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        for table, columns in schema_of(connection).items():
            keys = [c for c in columns if c[5]]
            for n in range(rows if table != MIGRATIONS else 0):
                values = []
                for _, name, kind, not_null, _, key in columns:
                    number = "INT" in kind
                    if key and number:
                        value = n * 3 + 1       # it counts
                    elif kind == "INTEGER" and number:
                        value = rng.choice([0, 1, -2**31, 2**31 - 1])
                    elif number:
                        value = rng.choice(NUMBERS)
                    else:
                        most = int(re.search(r"\d+", kind).group()) if "(" in kind else 3000
                        text = rng.choice(ODD) * rng.choice([1, 1, most // 4])
                        # what is unique shall be: told apart at its end, or by nothing but its length
                        value = (text[:max(0, most - 8)] + f"{n:x}")[:most] if key or not_null else text[:most]
                    values.append(None if not not_null and not key and rng.random() < .3 else value)
                connection.execute(f"INSERT OR IGNORE INTO {table} ({', '.join(c[1] for c in columns)}) "
                                   f"VALUES ({', '.join('?' * len(columns))})", values)
            assert keys, f"{table} has no primary key"
        # what a row belongs to is there
        for table in schema_of(connection):
            for _, _, parent, column, to, *_ in connection.execute(f"PRAGMA foreign_key_list({table})").fetchall():
                parents = [row[0] for row in connection.execute(f"SELECT {to or 'id'} FROM {parent}")]
                for row, in connection.execute(f"SELECT rowid FROM {table} WHERE {column} IS NOT NULL").fetchall():
                    connection.execute(f"UPDATE OR IGNORE {table} SET {column} = ? WHERE rowid = ?",
                                       [rng.choice(parents), row])
                connection.execute(f"DELETE FROM {table} WHERE {column} IS NOT NULL AND {column} NOT IN "
                                   f"(SELECT {to or 'id'} FROM {parent})")
        for table in schema_of(connection):
            count, = connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()
            assert count >= 5, f"{table} has {count} rows: the test would not see that it was left out"


def filled(make_hub, seed=1, **more):
    """The data folder of a hub that ran, and whose tables all have rows."""
    hub = make_hub()
    hub.stop()
    fill(hub.data, seed, **more)
    return hub.data


# ---- a hub, there and back

def test_there_and_back(server, make_hub, place):
    """Points, sources and tokens go along; the next increments have the right parents; the audit log holds."""
    hub = make_hub()
    line = Line(hub, place, [A + B, B])
    line.own_processes = lambda: {server.process.pid}
    hub.api.post("/sources", new()).expect(201)
    token = hub.api.post("/tokens", {"name": "ops", "role": "operator"}).expect(201)
    line.point()
    line.images[0].write(0, B)
    parent = line.point()
    assert parent["backup_type"] == "incremental"

    for to in ("mariadb", "embedded", "mariadb"):
        trail = hub.api.get("/audit?limit=1000").expect(200)["entries"]
        tokens = hub.api.get("/tokens").expect(200)
        hub.stop()
        if to == "embedded":
            only_mariadb(hub.data)
        elif server.sql("SHOW TABLES", NAME):
            server.sql(f"DROP DATABASE {NAME}; CREATE DATABASE {NAME}")
        said = moved(hub.data, server, to)
        rows = assert_moved(hub.data, server)
        assert f"{rows} rows" in said
        if to == "mariadb":
            only_mariadb(hub.data)
        hub.options = server.options() if to == "mariadb" else []
        line.start_hub()
        api = hub.api
        assert api.get("/health").expect(200)["database"] == ("mariadb" if to == "mariadb" else "sqlite")
        assert api.get("/audit?limit=1000").expect(200)["entries"][:len(trail)] == trail
        assert api.get("/tokens").expect(200) == tokens and token["token_id"] in str(tokens)
        api.patch("/sources/vc-1", {"thumbprint": PIN}).expect(200)     # its password is opened for it
        line.cli.ok("audit", "verify")
        line.images[0].write(0, os.urandom(CLUSTER))
        point = line.point()
        assert point["backup_type"] == "incremental" and point["parent_id"] == parent["backup_id"]
        parent = point
        line.cli.ok("audit", "verify")      # and it goes on
    line.cli.ok("verify", "--repo", "main")
    line.check_everything()


def test_a_job_that_runs_is_taken_over(server, make_hub, place):
    """Clients and exporters go on while the hub is away: over the move, as over a restart."""
    from test_mariadb import Stage
    with Stage(make_hub, place) as stage:
        sources = stage.own_processes
        stage.own_processes = lambda: sources() | {server.process.pid}
        stage.first()
        stage.change()
        backup_id = stage.at_half_done()
        stage.hub.stop()
        moved(stage.hub.data, server, "mariadb")
        only_mariadb(stage.hub.data)
        stage.hub.options += server.options()
        stage.hub.start()
        stage.go()
        assert stage.wait_final(backup_id)["status"] == "completed"
        stage.note("main", stage.show(backup_id), stage.references_now())
        stage.prove()


# ---- each row of each table

@pytest.mark.parametrize("seed", [1, 2])
def test_every_table_and_every_kind_of_value(server, make_hub, seed):
    data = filled(make_hub, seed)
    before = state(data)
    said = moved(data, server, "mariadb")
    assert state(data) == before
    rows = assert_moved(data, server)
    assert f"{rows} rows: moved" in said
    for table in rows_of_sqlite(data):
        assert re.search(rf"^{table} .* [0-9a-f]{{64}}$", said, re.M), said
    there = rows_of_mariadb(server)
    only_mariadb(data)
    back = moved(data, server, "embedded")
    assert assert_moved(data, server) == rows and rows_of_mariadb(server) == there
    assert re.findall(r"^\w+ .* [0-9a-f]{64}$", back, re.M) == re.findall(r"^\w+ .* [0-9a-f]{64}$", said, re.M)
    with opened(data) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    assert database(data).stat().st_mode & 0o777 == 0o600
    assert not [p for p in data.iterdir() if "migrating" in p.name]


def test_more_rows_than_one_statement_takes(server, make_hub):
    data = filled(make_hub, rows=300)
    with opened(data) as connection:    # and values that are large
        connection.execute("UPDATE vms SET source = ? WHERE rowid % 40 = 0", ["\u00e9" * 400_000])
    moved(data, server, "mariadb")
    assert_moved(data, server)
    only_mariadb(data)
    moved(data, server, "embedded")
    assert_moved(data, server)


def add_table(data, server=None):
    sql = "CREATE TABLE later (a BIGINT NOT NULL, b VARCHAR(100) NOT NULL, c VARCHAR(10), PRIMARY KEY (b, a))"
    with opened(data) as connection:
        connection.execute(sql)
        connection.executemany("INSERT INTO later VALUES (?, ?, ?)",
                               [(n, b, None) for n in NUMBERS for b in ("b", "a", "B", "a ", "_", "\u00e9", "z")])
    if server:
        server.sql(sql + " ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin", NAME)


def test_a_table_of_a_later_version_is_not_forgotten(server, make_hub):
    """The tables are those that the databases have, and none that this program's text names."""
    hub = make_hub(options=server.options())        # makes the tables
    hub.stop()
    server.sql("DELETE FROM audit_log; DELETE FROM api_tokens; DELETE FROM hubs; DELETE FROM hub_state", NAME)
    hub.options = []
    hub.start()
    hub.stop()
    add_table(hub.data, server)
    assert re.search(r"^later +42 ", moved(hub.data, server, "mariadb"), re.M)
    assert_moved(hub.data, server)


def test_a_table_that_is_on_one_side_only(server, make_hub):
    """It would be left behind: said, and nothing is moved."""
    hub = make_hub()
    hub.stop()
    add_table(hub.data)
    done = run(hub.data, server, "mariadb")
    assert done.returncode == 1 and "table later" in done.stderr, done
    assert not any(rows_of_mariadb(server).values())


def test_numbers_that_were_given_are_not_given_again(server, make_hub, place):
    """Also where the row that had the last one is gone."""
    hub = make_hub()

    def add():
        path = place / f"r-{os.urandom(4).hex()}"
        return hub.api.post("/repositories", {"name": path.name, "path": str(path)}).expect(201)["repository_id"]

    ids = [add() for _ in range(3)]
    hub.api.delete(f"/repositories/{ids[-1]}").expect(200)
    for to in ("mariadb", "embedded"):
        hub.stop()
        moved(hub.data, server, to)
        only_mariadb(hub.data) if to == "mariadb" else None
        hub.options = server.options() if to == "mariadb" else []
        hub.start()
        last = add()
        assert int(last) == int(ids[-1]) + 1
        ids.append(last)
        hub.api.delete(f"/repositories/{last}").expect(200)


# ---- killed at any moment

MOMENTS = share(6, 2)


@pytest.mark.skipif(not is_built(), reason="the fault injector is not built")
@pytest.mark.parametrize("to", ["mariadb", "embedded"])
def test_killed_at_any_moment(server, make_hub, place, to):
    """Then the same again is right; the source is never changed."""
    data = filled(make_hub, rows=60)
    if to == "embedded":
        moved(data, server, "mariadb")
        only_mariadb(data)
    source = state(data), rows_of_mariadb(server)
    expected = rows_of_mariadb(server) if to == "embedded" else rows_of_sqlite(data)
    shim = Shim(place / "shim")

    def clean():
        if to == "mariadb":
            server.sql(f"DROP DATABASE {NAME}; CREATE DATABASE {NAME}")
        else:
            only_mariadb(data)

    shim.arm("hub")
    assert run(data, server, to, environment=shim.environment()).returncode == 0
    counts = shim.disarm().counts
    clean()
    killed = 0
    for kind in ("write", "sync", "name"):
        most = counts[kind]
        moments = sorted({1, most, *(1 + most * n // MOMENTS for n in range(MOMENTS))} & set(range(1, most + 1)))
        for at in moments:
            shim.arm("hub", Shot(kind, "kill", at))
            done = run(data, server, to, environment=shim.environment())
            killed += done.returncode == -9
            assert shim.disarm().hit or done.returncode == 0
            if to == "mariadb":
                assert state(data) == source[0]
                there = rows_of_mariadb(server)
                assert not any(there.values()) or there == expected       # all or nothing
            else:
                assert rows_of_mariadb(server) == source[1]
                assert not database(data).exists() or rows_of_sqlite(data) == expected
            moved(data, server, to)
            assert_moved(data, server)
            assert not [p for p in data.iterdir() if "migrating" in p.name]
            clean()
    assert killed >= MOMENTS, (killed, counts)


# ---- what is refused

def test_not_while_a_hub_runs(server, make_hub, place):
    hub = make_hub()
    done = run(hub.data, server, "mariadb")
    assert done.returncode == 1 and "stop the hub first" in done.stderr, done
    other = make_hub("other", options=server.options())     # on the database, with another data folder
    hub.stop()
    for to in ("mariadb", "embedded"):
        done = run(hub.data, server, to)
        assert done.returncode == 1 and "a hub uses the database" in done.stderr, done
    other.stop()


def test_a_target_with_rows_of_its_own(server, make_hub, place):
    """What is there is named, and stays; nothing is mixed."""
    hub = make_hub()
    hub.api.post("/tokens", {"name": "ops", "role": "operator"}).expect(201)
    hub.stop()
    other = make_hub("other", options=server.options())
    other.api.post("/sources", new()).expect(201)
    other.stop()
    refused(hub.data, server, "mariadb", "sources 1", "empty database")
    refused(hub.data, server, "embedded", "api_tokens", "move this one away")


def test_the_same_again_is_fine_and_changes_nothing(server, make_hub):
    data = filled(make_hub)
    moved(data, server, "mariadb")
    before = rows_of_mariadb(server), state(data)
    for to in ("mariadb", "embedded"):
        assert "there already" in moved(data, server, to)
    assert (rows_of_mariadb(server), state(data)) == before
    # one value of one row, and it is another catalogue
    server.sql("UPDATE exports SET socket = CONCAT(COALESCE(socket, ''), ' ') LIMIT 1", NAME)
    refused(data, server, "mariadb", "table exports, row", "column socket differs")


def test_a_schema_that_is_not_this_programs(server, make_hub):
    hub = make_hub()
    hub.stop()
    with opened(hub.data) as connection:
        newest, = connection.execute(f"SELECT MAX(version) FROM {MIGRATIONS}").fetchone()
        connection.execute(f"DELETE FROM {MIGRATIONS} WHERE version = {newest}")
    refused(hub.data, server, "mariadb", f"schema {newest - 1}", "start this version's hub on it once")
    with opened(hub.data) as connection:
        connection.execute(f"INSERT INTO {MIGRATIONS} VALUES ({newest}, 'x'), (9999, 'x')")
    refused(hub.data, server, "mariadb", "schema 9999")


def test_what_is_no_catalogue(server, make_hub, place):
    data = place / "data"
    refused(data, server, "mariadb", "No such file")
    data.mkdir()
    refused(data, server, "mariadb", "there is no database")
    refused(data, server, "embedded", "no catalogue")
    database(data).write_bytes(b"not a database, but long enough to be taken for one" * 100)
    refused(data, server, "mariadb", "not a database")


def test_text_that_does_not_fit(server, make_hub):
    """SQLite takes what is longer than its column. Said with table and column, and nothing is moved."""
    hub = make_hub()
    hub.stop()
    with opened(hub.data) as connection:
        connection.execute("INSERT INTO vms (id, name, source, excluded_disks, created_at) "
                           "VALUES ('i', ?, '{}', '[]', '2026-01-02T03:04:05.000006Z')", ["x" * 300])
    for value in (f"'{'x' * 300}'", "x'ff'", "CAST(x'ff' AS TEXT)"):
        with opened(hub.data) as connection:
            connection.execute(f"UPDATE vms SET name = {value}")
        done = run(hub.data, server, "mariadb")
        assert done.returncode == 1 and "table vms" in done.stderr and "name" in done.stderr, done
        assert not any(rows_of_mariadb(server).values())


def test_a_target_that_stores_something_else_is_found_out(server, make_hub):
    """Read back, not believed; and emptied, so that no hub takes it for a catalogue."""
    data = filled(make_hub)
    moved(data, server, "mariadb")
    for table in rows_of_mariadb(server):
        server.sql(f"SET foreign_key_checks = 0; DELETE FROM {table}", NAME)
    server.sql("CREATE TRIGGER t BEFORE INSERT ON backup_disks FOR EACH ROW SET NEW.label = COALESCE(NEW.label, '')",
               NAME)
    done = run(data, server, "mariadb")
    assert done.returncode == 3 and "table backup_disks" in done.stderr and "column label differs" in done.stderr, done
    assert "emptied again" in done.stderr
    assert not any(rows_of_mariadb(server).values())
    server.sql("DROP TRIGGER t", NAME)
    moved(data, server, "mariadb")
    assert_moved(data, server)


def test_a_server_that_goes_away_in_the_middle(server, make_hub, place):
    data = filled(make_hub)
    server.stop()
    done = run(data, server, "mariadb")
    assert done.returncode == 1 and "connect" in done.stderr.lower(), done
    server.start()
    moved(data, server, "mariadb")
    assert_moved(data, server)


def test_wrong_usage(server, place):
    def usage(*arguments):
        done = subprocess.run([BIN / "sendense-hub", *arguments], capture_output=True, text=True, check=False,
                              timeout=patience(30), env={"PATH": "/usr/bin"})
        assert done.returncode == 2, done
        return done.stderr

    assert "--to mariadb or --to embedded" in usage("migrate-database", *server.options())
    assert "--to mariadb or --to embedded" in usage("migrate-database", "--to=postgres", *server.options())
    assert "--db-host" in usage("migrate-database", "--to=mariadb")
    assert "migrate-database" in usage("--to=mariadb", "--data-dir", place / "x")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another one's folder")
def test_the_folder_of_another_user(server, place):
    """Files that root makes there could not be opened by the hub."""
    data = place / "data"
    data.mkdir()
    os.chown(data, 1, 1)
    refused(data, server, "embedded", "run this as daemon")
