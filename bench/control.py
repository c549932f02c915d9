"""The control plane with a large catalogue: a database filled beside the hub, and calls as people make them."""

import contextlib
import http.client
import json
import random
import socket
import sqlite3
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "it"))

from lib.api import quote               # noqa: E402
from lib.hub import Hub                 # noqa: E402
from lib.mariadb import NAME, MariaDb         # noqa: E402
from lib.world import make_image        # noqa: E402

VMS = 10_000
CALLS = 300
RECORDS = 400       # durable ones, for each way
TOGETHER = 8
HANGING = 100

# n goes from 0: the VM's number is n % VMS, its point's number 1 + n / VMS
OVERRIDES = {
    # away, as far as the hub sees: at its start it looks at each point of those that are there
    "repositories": {"id": "2", "name": "'far'", "uuid": "{uuid}", "path": "'/nowhere'"},
    "backup_jobs": {
        "repository_id": "2",
        "id": "{text}('backup-vm-', {vm}, '-', {k})", "vm_id": "{uuid}", "vm_name": "{text}('vm-', {vm})",
        "sequence": "{k}", "created_at": "{time}", "started_at": "{time}", "completed_at": "{time}",
        "status": "CASE WHEN n % 997 = 0 THEN 'failed' ELSE 'completed' END",
        "backup_type": "CASE WHEN {k} = 1 THEN 'full' ELSE 'incremental' END",
        "parent_id": "CASE WHEN {k} = 1 THEN NULL ELSE {text}('backup-vm-', {vm}, '-', {k} - 1) END",
    },
    "backup_disks": {
        "backup_id": "{text}('backup-vm-', {vm}, '-', {k})",
        "parent_backup_id": "CASE WHEN {k} = 1 THEN NULL ELSE {text}('backup-vm-', {vm}, '-', {k} - 1) END",
    },
    "vms": {"id": "{uuid}", "name": "{text}('vm-', {vm})"},
}


class Sqlite:
    options = ()
    numbers = "(WITH RECURSIVE x(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM x WHERE n + 1 < {count}) SELECT n FROM x)"
    words = {"vm": f"(n % {VMS})", "k": f"(1 + n / {VMS})", "text": "bench_text",
             "uuid": f"printf('%08x-0000-4000-8000-000000000000', n % {VMS})",
             "time": f"strftime('%Y-%m-%dT%H:%M:%S', 1735689600 + (n / {VMS}) * 86400 + n % {VMS}, 'unixepoch')"
                     " || '.000000Z'"}

    def __init__(self, _folder):
        self.hub = None

    def start(self):
        pass

    def stop(self):
        pass

    def run(self, *statements):
        with contextlib.closing(sqlite3.connect(self.hub.database)) as database:
            database.create_function("bench_text", -1, lambda *parts: "".join(map(str, parts)), deterministic=True)
            rows = [database.execute(s).fetchall() for s in statements]
            database.commit()
        return rows[-1]

    def columns(self, table):
        return [row[1] for row in self.run(f"PRAGMA table_info({table})")]


class OverMariaDb:
    numbers = "(SELECT seq - 1 AS n FROM seq_1_to_{count})"
    words = {"vm": f"(n % {VMS})", "k": f"(1 + n DIV {VMS})", "text": "CONCAT",
             "uuid": f"CONCAT(LPAD(HEX(n % {VMS}), 8, '0'), '-0000-4000-8000-000000000000')",
             "time": f"DATE_FORMAT('2025-01-01' + INTERVAL (n DIV {VMS}) * 86400 + n % {VMS} SECOND,"
                     " '%Y-%m-%dT%H:%i:%s.000000Z')"}

    def __init__(self, folder):
        # as a hub's server would have it: what is looked at is in memory
        self.server = MariaDb(folder, ["--innodb-buffer-pool-size=2G", "--innodb-log-file-size=512M"])

    def start(self):
        self.server.__enter__()
        self.options = self.server.options()

    def stop(self):
        self.server.__exit__(None, None, None)

    def run(self, *statements):
        """Without the tests' limit of time: it fills a database."""
        done = subprocess.run(["mariadb", "--no-defaults", f"--socket={self.server.folder / 's'}", "--user=root",
                               "--batch",
                               "--skip-column-names", "--raw", "-e", ";".join(statements), NAME],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
        return [line.split("\t") for line in done.stdout.splitlines()]

    def columns(self, table):
        return [row[0] for row in self.run(f"SELECT column_name FROM information_schema.columns WHERE table_schema ="
                                           f" DATABASE() AND table_name = '{table}' ORDER BY ordinal_position")]


ENGINES = {"SQLite": Sqlite, "MariaDB": OverMariaDb}


def fill(engine, points):
    """Copies of the one real row of each table."""
    for table, count in (("repositories", 1), ("vms", VMS), ("backup_jobs", points), ("backup_disks", points)):
        chosen = {name: text.format(**engine.words) for name, text in OVERRIDES[table].items()}
        columns = engine.columns(table)
        values = ", ".join(chosen.get(c, f"t.{c}") for c in columns)
        engine.run(f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM"
                   f" {engine.numbers.format(count=count)} AS numbers, (SELECT * FROM {table} LIMIT 1) AS t")


class Caller:
    def __init__(self, port):
        self.port = port

    def __call__(self, method, path, body=None):
        """(seconds, answer as text)"""
        start = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        data = json.dumps(body) if body is not None else None
        connection.request(method, f"/api/v1{path}", data, {"Content-Type": "application/json"} if data else {})
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:300]}")
        return time.monotonic() - start, text


def listings(call):
    """{what: seconds of each call}"""
    rng = random.Random(7)
    spent = {name: [] for name in ("first page", "one VM", "failed", "a repository's completed", "page by page", "one",
                                   "VMs, page by page")}
    place = vm_place = ""
    for _ in range(CALLS):
        vm = f"vm-{rng.randrange(VMS)}"
        spent["first page"].append(call("GET", "/backups?limit=100")[0])
        spent["one VM"].append(call("GET", f"/backups?vm_name={vm}&limit=100")[0])
        spent["failed"].append(call("GET", "/backups?status=failed&limit=100")[0])
        spent["a repository's completed"].append(call("GET", "/backups?repository_id=2&status=completed&limit=100")[0])
        seconds, text = call("GET", f"/backups?limit=100{place}")
        spent["page by page"].append(seconds)
        place = f"&after={quote(json.loads(text)['next'])}"
        seconds, text = call("GET", f"/vms?limit=100{vm_place}")
        spent["VMs, page by page"].append(seconds)
        after = json.loads(text)["next"]
        vm_place = f"&after={quote(after)}" if after else ""
        spent["one"].append(call("GET", f"/backups/backup-{vm}-2")[0])
    return spent


def records(call):
    """Durable records of a change ID in a second: by one caller, and by several at once."""
    call("POST", "/replications", {"vm_name": "vm-1", "target": "x", "job_id": "replication-vm-1-1"})

    def work(n):
        for i in range(n):
            call("POST", "/replications/replication-vm-1-1/changeid", {"change_id": f"x/{i}", "disk_id": 2000})

    rates = []
    for callers in (1, TOGETHER):
        threads = [threading.Thread(target=work, args=(RECORDS // callers,)) for _ in range(callers)]
        start = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rates.append(RECORDS // callers * callers / (time.monotonic() - start))
    return rates


def beside_hanging(call):
    """{what: seconds of each call}, beside connections that send a byte of a request now and then."""
    spent = {"health": [], "VMs, a page": []}
    with contextlib.ExitStack() as stack:
        hanging = []

        def hang():
            hanging.append(stack.enter_context(socket.create_connection(("127.0.0.1", call.port))))
            hanging[-1].sendall(b"GET /api/v1/health HTTP/1.1\r\nX-Slow: ")

        for n in range(CALLS):
            while len(hanging) < HANGING:
                hang()
            try:
                hanging[n % HANGING].sendall(b"a")
            except OSError:     # the hub had waited long enough
                hanging.pop(n % HANGING)
            spent["health"].append(call("GET", "/health")[0])
            spent["VMs, a page"].append(call("GET", "/vms?limit=100")[0])
    return {f"{what}, beside {HANGING} that hang": seconds for what, seconds in spent.items()}


def p99(seconds):
    return statistics.quantiles(seconds, n=100)[98] * 1000


def measure(name, folder, points):
    """(listings, {once: seconds}, rates)"""
    engine = ENGINES[name](folder / "server")
    engine.start()
    hub = None
    try:
        hub = Hub(folder / "hub", options=engine.options, environment={"SENDENSE_LOG": "warn"})
        engine.hub = hub
        hub.start()
        image = make_image(folder / "vm.raw", 1 << 20)
        hub.api.post("/repositories", {"name": "main", "path": str(folder / "repository")}).expect(201)
        source = {"type": "file", "disks": [{"path": str(image)}]}
        hub.api.post("/vms", {"name": "template", "source": source}).expect(201)
        started = hub.api.post("/backups", {"vm_name": "template", "repository_id": "1"}).expect(201)
        hub.api.wait_status(started["backup_id"], ("completed",))
        hub.stop()
        fill(engine, points)
        start = time.monotonic()
        hub.start()
        once = {"start of the hub": time.monotonic() - start}
        call = Caller(hub.port)
        spent = {**listings(call), **beside_hanging(call)}
        once["all VMs"] = call("GET", "/vms")[0]
        once["metrics"] = call("GET", "/metrics")[0]
        return spent, once, records(call)
    finally:
        if hub:
            hub.stop()
            hub.close()
        engine.stop()
