"""A simulator of nodes: many VMs, each backed up by the calls that a backup client makes.

Real: the hubs, their database, HTTP, the work order, the exporter of each job (a process), its image in a repository
on the disk, the seal, the commit with its fsyncs, the record. Simulated: the nodes (threads of this program), the VMs
(names; nothing is read), and the data: disks of 64 KiB of zeros, said in one NBD request. So it tells what a job costs
besides its data. docs/internals/scale.md.
"""

import contextlib
import http.client
import json
import os
import socket
import statistics
import struct
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "it"))

from lib.api import quote                       # noqa: E402
from lib.hub import Hub                         # noqa: E402
from lib.job import change_id, coverage, disk   # noqa: E402
from lib.mariadb import NAME, MariaDb           # noqa: E402
from lib.system import children                 # noqa: E402

SIZE = 65536
HEARTBEAT = 2.0         # the real client's
TICKS = os.sysconf("SC_CLK_TCK")
MAX_JOBS = 256          # the most that a hub can be told
CALLS = ("start", "claim", "announce", "data", "heartbeat", "complete")


class Spent:
    """Seconds of each call, and what went wrong."""

    def __init__(self):
        self.lock = threading.Lock()
        self.seconds = {name: [] for name in CALLS}
        self.errors = []

    @contextlib.contextmanager
    def of(self, name):
        start = time.monotonic()
        yield
        with self.lock:
            self.seconds[name].append(time.monotonic() - start)


class Refused(RuntimeError):
    pass


def call(port, method, path, body=None, token=None):
    """One request a connection, as the hub has it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        connection.request(method, f"/api/v1{path}", json.dumps(body) if body is not None else None,
                           {**headers, "Content-Type": "application/json"} if body is not None else headers)
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    if answer.status >= 300:
        raise Refused(f"{method} {path}: {answer.status} {text[:200]!r}")
    return json.loads(text)


def exactly(sock, n):
    data = b""
    while len(data) < n:
        more = sock.recv(n - len(data))
        if not more:
            raise OSError("the exporter ended the connection")
        data += more
    return data


def write_zeros(uri, size):
    """NBD: the whole disk in one WRITE_ZEROES, and a FLUSH."""
    parts = urlsplit(uri)
    name = parts.path.lstrip("/").encode()
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(60)
        s.connect(parse_qs(parts.query)["socket"][0])
        exactly(s, 18)                                                      # NBDMAGIC, IHAVEOPT, flags
        s.sendall(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, len(name)) + name)     # fixed newstyle, NO_ZEROES; its name
        exactly(s, 10)                                                      # size, flags
        for command in (6, 3):                                              # WRITE_ZEROES, FLUSH
            s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, command, 1, 0, size if command == 6 else 0))
            magic, error, _ = struct.unpack(">IIQ", exactly(s, 16))
            if magic != 0x67446698 or error:
                raise OSError(f"the exporter answers error {error} to command {command}")
        s.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 2, 2, 0, 0))        # DISC


class Vm:
    def __init__(self, name):
        self.name, self.change = name, None


class Job:
    def __init__(self, spent, port, vm):
        self.spent, self.port, self.vm = spent, port, vm

    def begin(self):
        """As far as a client comes before the first byte of data."""
        with self.spent.of("start"):
            started = call(self.port, "POST", "/backups",
                           {"vm_name": self.vm.name, "repository_id": "1", "start_client": False})
        self.path, self.token = f"/backups/{quote(started['backup_id'])}", started["job_token"]
        with self.spent.of("claim"):
            call(self.port, "POST", f"{self.path}/claim", {"claim": str(uuid.uuid4())}, self.token)
        self.change = change_id()
        more = {"base_change_id": self.vm.change} if self.vm.change else {}
        body = {"disks": [disk("disk-0", SIZE, self.change, tracking="bitmap", **more)], "left_out": [],
                "consistency": "crash", "consistency_detail": "a simulated VM"}
        with self.spent.of("announce"):
            self.disk, = call(self.port, "POST", f"{self.path}/disks", body, self.token)["disks"]

    def heartbeat(self):
        with self.spent.of("heartbeat"):
            call(self.port, "POST", f"{self.path}/progress",
                 {"phase": "copying", "disks": [{"disk_id": self.disk["disk_id"], "done_bytes": 0, "size": SIZE,
                                                 "transferred_bytes": 0, "zero_bytes": 0, "changed_bytes": 0}]},
                 self.token)

    def end(self):
        with self.spent.of("data"):
            write_zeros(self.disk["uri"], SIZE)
        done = {"disk_id": self.disk["disk_id"], "change_id": self.change, "tracking": "bitmap",
                **coverage([(0, SIZE)])}
        with self.spent.of("complete"):
            call(self.port, "POST", f"{self.path}/complete", {"change_id": self.change, "disks": [done]}, self.token)
        self.vm.change = self.change

    def run(self):
        self.begin()
        self.heartbeat()
        self.end()


def side_by_side(workers):
    threads = [threading.Thread(target=worker, daemon=True) for worker in workers]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - start


# ---- what is looked at from outside


def cpu(pid, waited_for=False):
    """Seconds; waited_for: of its children that ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[13:15] if waited_for else fields[11:13])) / TICKS


def memory(pid, what):
    """MiB; what: Pss, Rss, Private_Dirty"""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {what} of {pid}")


class Looked(NamedTuple):
    at: float
    hubs: float
    exporters: float
    database: float
    simulator: float
    statements: int


class Cluster:
    """So many hubs, with one repository's folder."""

    def __init__(self, engine, count, folder):
        self.engine, self.count, self.folder = engine, count, folder
        self.server, self.hubs = None, []

    def __enter__(self):
        options = []
        if self.engine == "MariaDB":
            self.server = MariaDb(self.folder / "server", ["--innodb-buffer-pool-size=512M",
                                                            "--innodb-log-file-size=256M"])
            self.server.__enter__()
            options = self.server.options()
        for n in range(self.count):
            self.hubs.append(Hub(self.folder / f"hub-{n}", environment={"SENDENSE_LOG": "warn"},
                                 options=[*options, f"--hub-name=hub-{n}", f"--max-jobs={MAX_JOBS}"]))
            self.hubs[-1].start()
        call(self.ports[0], "POST", "/repositories", {"name": "main", "path": str(self.folder / "repository")})
        return self

    def __exit__(self, *_):
        for hub in self.hubs:
            if hub.process:
                hub.stop()
            hub.close()
        if self.server:
            self.server.stop()

    @property
    def ports(self):
        return [hub.port for hub in self.hubs]

    def look(self):
        statements = 0
        if self.server:
            (_, statements), = self.server.sql("SHOW GLOBAL STATUS LIKE 'Com_stmt_execute'", NAME)
        pids = [hub.process.pid for hub in self.hubs]
        return Looked(time.monotonic(), sum(map(cpu, pids)), sum(cpu(pid, True) for pid in pids),
                      cpu(self.server.process.pid) if self.server else 0,
                      time.process_time(), int(statements))

    def exporters(self):
        return [pid for hub in self.hubs for pid in children(hub.process.pid)]


class Result(NamedTuple):
    jobs: int
    seconds: float
    calls: dict         # {name: seconds of each}
    errors: list
    hub_cpu: float      # seconds a job, the hubs'
    exporter_cpu: float
    database_cpu: float
    simulator_cpu: float
    statements: float   # a job, of the database; without those that are asked anyway


def add_vms(cluster, nodes, vms):
    """Seconds that it took."""
    def node(n):
        for vm in range(vms):
            source = {"type": "file", "disks": [{"path": f"/nowhere/{n}-{vm}"}]}
            call(cluster.ports[n % cluster.count], "POST", "/vms", {"name": f"node-{n}-vm-{vm}", "source": source})
    return side_by_side([lambda n=n: node(n) for n in range(nodes)])


def night(cluster, all_vms, nodes_at_once):
    """A backup of each VM: so many nodes at a time, each with one job."""
    spent = Spent()
    before = cluster.look()
    time.sleep(2)       # not a wait: what the hubs ask without any job is to be known
    idle = cluster.look()
    quiet = (idle.statements - before.statements) / (idle.at - before.at)
    work = iter([(n % cluster.count, vm) for n, vms in enumerate(all_vms) for vm in vms])
    lock = threading.Lock()

    def node():
        while True:
            with lock:
                hub, vm = next(work, (None, None))
            if vm is None:
                return
            try:
                Job(spent, cluster.ports[hub], vm).run()
            except (OSError, Refused, ValueError, http.client.HTTPException) as e:
                with spent.lock:
                    spent.errors.append(f"{vm.name}: {e}")

    seconds = side_by_side([node] * nodes_at_once)
    after = cluster.look()
    jobs = len(spent.seconds["complete"])
    a_job = [(b - a) / max(jobs, 1) for a, b in zip(idle, after, strict=True)]
    return Result(jobs, seconds, spent.seconds, spent.errors, a_job[1], a_job[2], a_job[3], a_job[4],
                  a_job[5] - quiet * (after.at - idle.at) / max(jobs, 1))


def held(cluster, vms, seconds):
    """Jobs that run beside each other with nothing to copy: {what: figure}; a second, of all hubs."""
    spent = Spent()
    jobs = [Job(spent, cluster.ports[n % cluster.count], vm) for n, vm in enumerate(vms)]
    side_by_side([lambda part=part: [job.begin() for job in part] for part in (jobs[n::8] for n in range(8))])
    exporters = cluster.exporters()
    until = time.monotonic() + seconds

    def beat(part):
        due = time.monotonic()
        while time.monotonic() < until:
            for job in part:
                job.heartbeat()
            due += HEARTBEAT
            time.sleep(max(0.0, due - time.monotonic()))

    before = cluster.look()
    side_by_side([lambda part=part: beat(part) for part in (jobs[n::16] for n in range(16)) if part])
    after = cluster.look()
    per = after.at - before.at
    figures = {
        "jobs": len(jobs), "exporters": len(exporters),
        "exporter's own memory": statistics.median(memory(pid, "Private_Dirty") for pid in exporters),
        "exporter's memory with its share": statistics.median(memory(pid, "Pss") for pid in exporters),
        "hub's memory": max(memory(hub.process.pid, "Rss") for hub in cluster.hubs),
        "hub CPU a second": (after.hubs - before.hubs) / per,
        "database CPU a second": (after.database - before.database) / per,
        "statements a second": (after.statements - before.statements) / per,
        "heartbeats a second": len(spent.seconds["heartbeat"]) / per,
        "heartbeat, 99th percentile": p99(spent.seconds["heartbeat"]),
    }
    for job in jobs:
        job.end()
    return figures


def started_anew(cluster):
    """A hub that finds the points of all of them: {what: figure}"""
    hub = cluster.hubs[0]
    points = call(hub.port, "GET", "/repositories/1")["points"]
    hub.stop()
    start = time.monotonic()
    hub.start()
    answers = time.monotonic() - start
    while not call(hub.port, "GET", "/health")["looked_through"]:
        time.sleep(0.05)
    return {"points": points, "answers after": answers, "looked through after": time.monotonic() - start,
            "CPU until then": cpu(hub.process.pid)}


def p99(seconds):
    return statistics.quantiles(seconds, n=100)[98] if len(seconds) > 1 else seconds[0]


def measure(engine, hubs, folder, nodes, vms, backups, held_jobs):
    """Yields (what, figures), as they come: seconds a registered VM, a Result of fulls, one of increments, held(),
    started_anew().
    backups: of so many of each node's VMs"""
    with Cluster(engine, hubs, folder) as cluster:
        all_vms = [[Vm(f"node-{n}-vm-{vm}") for vm in range(vms)] for n in range(nodes)]
        yield "registered", add_vms(cluster, nodes, vms) / (nodes * vms)
        for what in ("first backups", "increments"):
            yield what, night(cluster, [of_node[:backups] for of_node in all_vms], nodes)
        yield "held", held(cluster, [vm for of_node in all_vms for vm in of_node][:held_jobs], 10)
        yield "started anew", started_anew(cluster)
