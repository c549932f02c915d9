"""The client's side of the contract: the real program against a recording hub and exports of nbdkit."""

import os
import random
import re
import signal
import subprocess
import time

import pytest

from lib.fake_hub import CLOSE, FakeHub, Target, path_of
from lib.hub import BIN
from lib.job import coverage
from lib.patience import patience
from lib.system import children

MIB = 1 << 20
SIZE = 8 * MIB + 777
TOKEN = "t0p-s3cret-job-token"
ERROR = {"error": "backup job not found", "details": "no such job", "timestamp": "2026-01-01T00:00:00.000000Z"}
CLUSTER = 65536


class Client:
    """A running client."""

    def __init__(self, hub, place, *options, **environment):
        environ = {k: v for k, v in os.environ.items() if k not in ("MIGRATEKIT_JOB_ID", "SENDENSE_JOB_TOKEN")}
        environ.update(SHA_API_URL=hub.url, MIGRATEKIT_JOB_ID=hub.job_id, PLACE=str(place), **environment)
        self.log_path = place / "client.log"
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen([BIN / "sendense-backup-client", *options], stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, env=environ)

    @property
    def log(self):
        return self.log_path.read_text()

    def wait(self, seconds=60):
        try:
            return self.process.wait(patience(seconds))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


class Place:
    """What a test needs: images, exports, hubs and clients; all are ended with it."""

    def __init__(self, folder):
        self.folder = folder
        self.to_stop = []

    def image(self, name="disk.raw", size=SIZE, seed=1, data=True):
        """Noise in two places, zeros that are written, a lone byte, and holes."""
        path = self.folder / name
        noise = random.Random(seed)
        with open(path, "wb") as f:
            f.truncate(size)
            if data:
                f.write(noise.randbytes(3 * CLUSTER + 1))
                f.write(bytes(4 * CLUSTER))
                f.seek(size - 300)
                f.write(noise.randbytes(300))
                f.seek(size // 2)
                f.write(b"x")
        return path

    def target(self, name="target", size=SIZE, *filters):
        target = Target(self.folder, name, size, *filters)
        self.to_stop.append(target)
        return target

    def hub(self, job_id, *images, uri=None, delay=0, started=True, **more):
        filters = ["--filter=delay", f"wdelay={delay}"] if delay else []
        formats = ["qcow2" if p.suffix == ".qcow2" else "raw" for p in images] or ["nbd"]
        sizes = [os.path.getsize(images[n]) if f == "raw" else SIZE if f == "nbd" else -(-SIZE // 512) * 512
                 for n, f in enumerate(formats)]
        targets = {f"disk-{n}": self.target(f"t{n}", size, *filters) for n, size in enumerate(sizes)}
        disks = [{"uri": uri}] if uri else [{"path": str(p), "format": f} for p, f in zip(images, formats)]
        hub = FakeHub(job_id, {"type": "file", "disks": disks}, targets, **more)
        self.to_stop.append(hub)
        return hub.start() if started else hub

    def client(self, hub, *options, **environment):
        return Client(hub, self.folder, *options, **environment)

    def run(self, hub, *options, status=0, **environment):
        client = self.client(hub, *options, **environment)
        assert client.wait() == status, client.log
        return client


@pytest.fixture
def lab(place):
    made = Place(place)
    yield made
    for thing in reversed(made.to_stop):
        thing.stop()
    for sock in place.glob("*.sock"):
        sock.unlink()       # nbdkit leaves its socket when it is killed


def planned(path):
    """Bytes of the clusters that hold anything but zeros."""
    data = path.read_bytes()
    pieces = (data[at:at + CLUSTER] for at in range(0, len(data), CLUSTER))
    return sum(len(p) for p in pieces if p.count(0) != len(p))


def log_line(log, text):
    found = [line for line in log.splitlines() if text in line]
    assert found, log
    return found[0]


# ---- what is called, with what

def test_backup(lab):
    image = lab.image()
    hub = lab.hub("backup-pg test/1-1700000000", image)
    client = lab.run(hub)
    assert hub.targets["disk-0"].content() == image.read_bytes()
    assert [r.path for r in hub.requests if r.call != "progress"] == [
        path_of(hub.job_id, call) for call in ("claim", "disks", "complete")]
    assert hub.requests[0].path == "/api/v1/backups/backup-pg%20test%2F1-1700000000/claim"
    assert re.fullmatch(rb'{"claim":"[0-9a-f-]{36}"}', hub.calls("claim")[0].body)
    disk = hub.calls("disks")[0].json["disks"][0]
    assert (disk["disk_key"], disk["size"], disk["tracking"]) == ("disk-0", SIZE, "none")
    sent, change, whole = planned(image), disk["change_id"], coverage([(0, SIZE)])
    read = hub.calls("complete")[0].json["disks"][0]["read_bytes"]
    assert sent <= read <= SIZE     # zeros may have been looked at
    assert hub.calls("complete")[0].body.decode() == (
        f'{{"bytes_transferred":{sent},"change_id":"{change}","disks":[{{"bytes_transferred":{sent},'
        f'"change_id":"{change}","covered_bytes":{SIZE},"digest":"{whole["digest"]}","disk_id":2000,"extents":1,'
        f'"read_bytes":{read},"tracking":"none"}}]}}')
    before = log_line(client.log, "Storing ChangeID")
    assert f"url={hub.url}{path_of(hub.job_id, 'complete')}" in before.replace('"', "")
    assert change in before and "backup completion" in before
    after = log_line(client.log, "Successfully stored ChangeID in SHA database")
    assert client.log.index(before) < client.log.index(after)


@pytest.mark.parametrize("job_id, disk_id", [("replication-7", ',"disk_id":2000'), ("migration-7", ""), ("backup", "")])
def test_other_jobs_post_their_change_id(lab, job_id, disk_id):
    image = lab.image()
    hub = lab.hub(job_id, image)
    client = lab.run(hub)
    base = f"/api/v1/replications/{job_id}"
    assert [r.path for r in hub.requests if r.call != "progress"] == [
        f"{base}/claim", f"{base}/disks", f"{base}/changeid"]
    change = hub.calls("disks")[0].json["disks"][0]["change_id"]
    assert hub.calls("changeid")[0].body.decode() == (
        f'{{"bytes_transferred":{planned(image)},"change_id":"{change}"{disk_id}}}')
    assert "Successfully stored ChangeID in SHA database" in client.log


def test_replication_reports_each_disk(lab):
    hub = lab.hub("replication-7", lab.image("a"), lab.image("b", seed=2))
    lab.run(hub)
    disks = hub.calls("disks")[0].json["disks"]
    assert [(r.json["disk_id"], r.json["change_id"]) for r in hub.calls("changeid")] == [
        (2000, disks[0]["change_id"]), (2001, disks[1]["change_id"])]


def test_bytes_transferred_only_above_zero(lab):
    hub = lab.hub("backup-a-1", lab.image(data=False))
    lab.run(hub)
    body = hub.calls("complete")[0].json
    assert "bytes_transferred" not in body and "bytes_transferred" not in body["disks"][0]
    assert hub.targets["disk-0"].content() == bytes(SIZE)


def test_disks_keep_their_own_change_ids(lab):
    images = [lab.image(f"{n}.raw", MIB * (n + 1) + n, seed=n) for n in range(5)]
    hub = lab.hub("backup-a-1", *images, modes={"disk-1": "compare"})
    lab.run(hub, "--parallel=3")
    announced = hub.calls("disks")[0].json["disks"]
    done = hub.calls("complete")[0].json
    assert done["change_id"] == announced[0]["change_id"]
    assert [d["change_id"] for d in done["disks"]] == [d["change_id"] for d in announced]
    assert done["bytes_transferred"] == sum(d["bytes_transferred"] for d in done["disks"])
    for n, image in enumerate(images):
        assert hub.targets[f"disk-{n}"].content() == image.read_bytes()


def test_excluded_disk_is_left_out_and_shows_in_the_exit_status(lab):
    hub = lab.hub("backup-a-1", lab.image("a"), lab.image("b"), excluded=["disk-0"])
    lab.run(hub, status=4)
    announce = hub.calls("disks")[0].json
    assert [d["disk_key"] for d in announce["disks"]] == ["disk-1"]
    assert announce["left_out"] == ["disk-0"]
    assert len(hub.calls("complete")) == 1


def test_token_is_sent_and_seen_nowhere_else(lab):
    hub = lab.hub("backup-a-1", lab.image(), delay=3)
    client = lab.client(hub, SENDENSE_JOB_TOKEN=TOKEN, SENDENSE_LOG="debug")
    hub.wait_copying()
    for pid in [client.process.pid, *children(client.process.pid)]:
        for name in ("cmdline", "environ"):
            with open(f"/proc/{pid}/{name}", "rb") as f:
                assert TOKEN.encode() not in f.read(), (pid, name)
    assert client.wait() == 0
    assert all(r.headers["authorization"] == f"Bearer {TOKEN}" for r in hub.requests)
    assert TOKEN not in client.log


def test_without_a_token_none_is_sent(lab):
    hub = lab.hub("backup-a-1", lab.image())
    lab.run(hub)
    assert all("authorization" not in r.headers for r in hub.requests)


# ---- usage

@pytest.mark.parametrize("job_id", ["", None, "a\nb"])
def test_pitfall_12_missing_job_id_is_no_success(lab, job_id):
    environ = {"PATH": os.environ["PATH"], **({} if job_id is None else {"MIGRATEKIT_JOB_ID": job_id})}
    done = subprocess.run([BIN / "sendense-backup-client"], env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "MIGRATEKIT_JOB_ID" in done.stderr


def test_command_line(lab):
    def run(*options):
        return subprocess.run([BIN / "sendense-backup-client", *options], capture_output=True, text=True, check=False,
                              env={"MIGRATEKIT_JOB_ID": "backup-a-1"})
    assert run("--version").stdout.startswith("sendense-backup-client ")
    assert "http://localhost:8082" in run("--help").stdout
    for wrong in (["extra"], ["--no-such"], ["--parallel=0"], ["--connections", "x"]):
        assert run(*wrong).returncode == 2


def test_default_hub(lab):
    alone = ["unshare", "-n" if os.geteuid() == 0 else "-rn"]
    done = subprocess.run([*alone, BIN / "sendense-backup-client", "--reach-for=0"], capture_output=True, text=True,
                          check=False, env={"MIGRATEKIT_JOB_ID": "backup-a-1", "PATH": os.environ["PATH"]})
    assert done.returncode == 1
    assert "http://localhost:8082/api/v1/backups/backup-a-1/claim" in done.stderr


# ---- what the hub answers

@pytest.mark.parametrize("status", [400, 401, 403, 404, 409])
def test_clear_refusal_is_final(lab, status):
    hub = lab.hub("backup-a-1", lab.image(), answers={"complete": [(status, ERROR)]})
    client = lab.run(hub, status=1)
    assert len(hub.calls("complete")) == 1
    assert f"SHA API returned status {status}: " in client.log
    assert "backup job not found" in client.log
    assert "Successfully stored" not in client.log
    assert len(hub.calls("fail")) == 1


@pytest.mark.parametrize("first", [(500, ERROR), (503, ERROR), CLOSE])
def test_rule_15_unclear_answer_is_repeated(lab, first):
    hub = lab.hub("backup-a-1", lab.image(), answers={"complete": [first, first, (200, {})]})
    client = lab.run(hub)
    assert len(hub.calls("complete")) == 3
    assert len({r.body for r in hub.calls("complete")}) == 1
    assert client.log.count("Successfully stored ChangeID in SHA database") == 1
    assert not hub.calls("fail")


def test_rule_15_without_a_clear_answer_the_hub_is_not_told_of_a_failure(lab):
    hub = lab.hub("backup-a-1", lab.image(), answers={"complete": [(500, ERROR)]})
    client = lab.run(hub, "--record-for=1", status=1)
    assert len(hub.calls("complete")) >= 2
    assert "SHA API returned status 500: " in client.log
    assert "the point may exist" in client.log
    assert not hub.calls("fail")


@pytest.mark.parametrize("first", [(503, ERROR), (500, ERROR), CLOSE])
def test_claim_is_repeated_with_the_same_word(lab, first):
    hub = lab.hub("backup-a-1", lab.image(), answers={"claim": [first, lambda r: hub._claim(r)]})
    lab.run(hub)
    assert len({r.body for r in hub.calls("claim")}) == 1
    assert len(hub.calls("claim")) >= 2


def test_hub_that_comes_late(lab):
    hub = lab.hub("backup-a-1", lab.image(), started=False)
    client = lab.client(hub)
    until = time.monotonic() + patience(10)
    while "the claim is repeated" not in client.log:
        assert time.monotonic() < until
        time.sleep(0.05)
    hub.start()
    assert client.wait() == 0


@pytest.mark.parametrize("status", [404, 409, 501])
def test_refused_claim_ends_at_once(lab, status):
    hub = lab.hub("backup-a-1", lab.image(), answers={"claim": [(status, ERROR)]})
    lab.run(hub, status=1)
    assert [r.call for r in hub.requests] == ["claim"]      # the job is not ours to fail


@pytest.mark.parametrize("order", [{"job_id": "backup-b-1"}, {"cluster_size": 3}, {"source": {"type": "floppy"}},
                                   {"source": {"type": "file", "disks": []}}, {"vm_id": 1}])
def test_work_order_that_cannot_be_done(lab, order):
    hub = lab.hub("backup-a-1", lab.image(), order=order)
    lab.run(hub, status=1)
    assert not hub.calls("complete")


@pytest.mark.parametrize("answer", [{"disks": []}, {}, {"disks": [{"disk_key": "x", "disk_id": 1, "disk_no": 0,
                                    "mode": "full", "reason": "", "uri": "nbd+unix:///?socket=/none"}]}])
def test_announcement_answered_with_other_disks(lab, answer):
    hub = lab.hub("backup-a-1", lab.image(), answers={"disks": [(200, answer)]})
    lab.run(hub, status=1)
    assert len(hub.calls("fail")) == 1 and not hub.calls("complete")


def test_tracked_without_a_change_set_is_refused(lab):
    hub = lab.hub("backup-a-1", lab.image(), modes={"disk-0": "tracked"})
    client = lab.run(hub, status=1)
    assert "no change set" in client.log
    assert not hub.calls("complete")


# ---- ends before the end

def gone(pids, seconds=5):
    until = time.monotonic() + patience(seconds)
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        assert time.monotonic() < until, pids
        time.sleep(0.05)


@pytest.mark.parametrize("signo", [signal.SIGTERM, signal.SIGINT])
def test_signal_cancels(lab, signo):
    image = lab.folder / "disk.qcow2"
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", lab.image(), image], check=True)
    hub = lab.hub("backup-a-1", image, delay=60)
    client = lab.client(hub)
    hub.wait_copying()
    started = children(client.process.pid)
    assert started          # qemu-nbd of a QCOW2
    at = time.monotonic()
    client.process.send_signal(signo)
    assert client.wait() == 1
    assert time.monotonic() - at < patience(5)
    gone(started)
    failed = hub.calls("fail")
    assert len(failed) == 1 and failed[0].json["cancelled"] is True
    assert not hub.calls("complete")


def test_signal_while_the_hub_is_away(lab):
    hub = lab.hub("backup-a-1", lab.image(), started=False)
    client = lab.client(hub)
    until = time.monotonic() + patience(10)
    while "the claim is repeated" not in client.log:
        assert time.monotonic() < until
        time.sleep(0.05)
    client.process.send_signal(signal.SIGTERM)
    assert client.wait(5) == 1


@pytest.mark.parametrize("answer, cancelled", [
    ((200, {"cancel": True, "status": "running"}), True),
    ((200, {"cancel": False, "status": "failed"}), False),
    ((404, ERROR), False),
    ((409, ERROR), False),
])
def test_the_hubs_word_ends_the_job(lab, answer, cancelled):
    hub = lab.hub("backup-a-1", lab.image(), delay=60, answers={"progress": [answer]})
    lab.run(hub, status=1)
    assert hub.calls("fail")[0].json["cancelled"] is cancelled
    assert not hub.calls("complete")


def test_heartbeat_outlives_a_hub_that_fails(lab):
    hub = lab.hub("backup-a-1", lab.image(), delay=3, answers={"progress": [(500, ERROR), CLOSE, (503, ERROR)]})
    lab.run(hub)
    assert len(hub.calls("progress")) >= 2


def test_heartbeat_comes_every_two_seconds(lab):
    hub = lab.hub("backup-a-1", lab.image(), delay=5)
    lab.run(hub)
    times = [r.at for r in hub.calls("progress")]
    assert all(b - a < 4 for a, b in zip(times, times[1:]))
    disks = [r.json["disks"] for r in hub.calls("progress") if r.json["phase"] == "copying"]
    assert len(disks) >= 2 and disks[0][0]["disk_id"] == 2000 and disks[0][0]["size"] == SIZE


def serve_with_errors(lab, image):
    source = Target.__new__(Target)
    source.socket = str(lab.folder / "source.sock")
    source.uri = f"nbd+unix:///?socket={source.socket}"
    source.process = subprocess.Popen(["nbdkit", "-f", "-U", source.socket, "--filter=error", "--filter=noextents",
                                       "file", str(image), "error-pread=EIO", "error-pread-rate=100%"],
                                      stdin=subprocess.DEVNULL)
    lab.to_stop.append(source)
    source.wait_listening()
    return source.uri


def test_read_error_fails_the_job(lab):
    uri = serve_with_errors(lab, lab.image())
    hub = lab.hub("backup-a-1", uri=uri)
    client = lab.run(hub, status=1)
    failed = hub.calls("fail")[0].json
    assert failed["cancelled"] is False
    assert "reading" in failed["details"] and "disk-0" in failed["details"]
    assert not hub.calls("complete")
    assert "the job failed" in client.log


def test_export_that_dies_fails_the_job(lab):
    hub = lab.hub("backup-a-1", lab.image(), delay=60)
    client = lab.client(hub)
    hub.wait_copying()
    hub.targets["disk-0"].stop()
    assert client.wait(20) == 1
    assert hub.calls("fail")[0].json["cancelled"] is False
    assert not hub.calls("complete")


def test_write_error_fails_the_job(lab):
    image = lab.image()
    hub = lab.hub("backup-a-1", image)
    hub.targets["disk-0"].stop()
    hub.targets["disk-0"] = lab.target("bad", SIZE, "--filter=error", "error-pwrite=ENOSPC", "error-pwrite-rate=100%")
    lab.run(hub, status=1)
    failed = hub.calls("fail")[0].json
    assert failed["error"] == "no space left" and "writing" in failed["details"]


def test_one_bad_disk_fails_the_job_and_stops_the_others(lab):
    hub = lab.hub("backup-a-1", lab.image("a"), lab.image("b"), delay=60)
    hub.targets["disk-1"].stop()
    at = time.monotonic()
    lab.run(hub, status=1)
    assert time.monotonic() - at < patience(10)
    assert "disk-1" in hub.calls("fail")[0].json["details"]
    assert not hub.calls("complete")
