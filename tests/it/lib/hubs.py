"""Several hubs on one database and one folder of repositories."""

import random
import shutil
import signal
import time
import uuid

from lib.cli import Cli
from lib.history import References, wait_for
from lib.hub import FINAL
from lib.images import CLUSTER, Image
from lib.job import Job, change_id, coverage, disk, nbdcopy
from lib.patience import patience

LEASE = int(patience(3))
SIZE = 8 * CLUSTER
STEPS = ["start", "claim", "announce", "copy", "progress", "complete"]


class Hubs:
    """Hubs "a", "b", ... on one database; a repository, and VMs with a raw file each."""

    def __init__(self, make_hub, place, server, n=2, lease=LEASE, of_a=None):
        """server: its options(), or, of a cluster, those of the n-th hub."""
        self.place, self.server = place, server
        self.all = []
        for i, name in enumerate("abc"[:n]):
            own = server[i] if isinstance(server, list) else server.options()
            options = [f"--hub-lease={lease}", f"--hub-name={name}", "--max-jobs=8", *own]
            self.all.append(make_hub(name=name, options=options, **(of_a if of_a and name == "a" else {})))
        self.a, self.b = self.all[0], self.all[min(1, n - 1)]
        self.repository_path = place / "repository"
        made = self.a.api.post("/repositories", {"name": "main", "path": str(self.repository_path)}).expect(201)
        self.repository = made["repository_id"]
        self.images, self.references = {}, References(place / "references")

    def add_vm(self, name, seed=1):
        image = Image(self.place / f"{name}.raw", "raw", random.Random(seed).randbytes(SIZE))
        self.images[name] = image
        self.a.api.post("/vms", {"name": name, "source": {
            "type": "file", "disks": [{"path": str(image.path), "format": "raw"}]}}).expect(201)
        return image

    def cli(self, hub):
        return Cli(hub.url, cwd=self.place)

    def point(self, hub, vm):
        return self.cli(hub).json("backup", vm, "--repo", "main")

    def job(self, hub, vm):
        """A client that is played by hand."""
        return Job(hub.api, vm, self.repository)

    def half_written(self, hub, vm):
        job = self.job(hub, vm)
        job.claim()
        job.change = change_id()
        job.announce([disk("disk-0", SIZE, job.change, token="t")])
        nbdcopy(self.images[vm].path, job.disks["disk-0"]["uri"])
        return job

    def complete(self, job):
        return job.complete(job.change, [{"disk_id": job.disks["disk-0"]["disk_id"], "change_id": job.change,
                                          "tracking": "none", **coverage([(0, SIZE)])}], bytes_transferred=SIZE)

    def show(self, hub, backup_id):
        return hub.api.get(f"/backups/{backup_id}").expect(200)

    def wait_final(self, hub, backup_id):
        wait_for(lambda: self.show(hub, backup_id)["status"] in FINAL, f"{backup_id} is over")
        return self.show(hub, backup_id)

    def prove(self, hub):
        """Each listed point verifies; the newest of each VM is what its disk holds."""
        listed = hub.api.get("/backups?status=completed").expect(200)["backups"]
        for backup in listed:
            said = self.cli(hub).json("verify", backup["backup_id"])
            assert said["result"] == "ok", said
        return listed

    def equals(self, hub, backup_id, content):
        out = self.place / "restored"
        self.cli(hub).ok("restore", backup_id, "--all-disks", "--to", out, "--format", "raw")
        files = list(out.iterdir())
        assert [f.read_bytes() for f in files] == [bytes(content)]
        shutil.rmtree(out)

    def states(self, hub):
        return {h["name"]: h["state"] for h in hub.api.get("/hubs").expect(200)["hubs"]}


def stop(hub):
    hub.process.send_signal(signal.SIGSTOP)


def go(hub):
    hub.process.send_signal(signal.SIGCONT)


def again(call, *statuses):
    """As clients do: until the database takes it. The answer."""
    until = time.monotonic() + patience(60)
    while (answer := call()).status in (500, 503):
        assert time.monotonic() < until, answer
        time.sleep(0.05)
    assert answer.status in statuses, answer
    return answer.json


def by_hand(hubs, at=None, harm=None):
    """A backup, step by step; before one of them something happens. Its ID."""
    api, body = hubs.a.api, {"vm_name": "web", "repository_id": hubs.repository, "start_client": False}
    change, claim, job, path, disks = change_id(), {"claim": str(uuid.uuid4())}, None, "", {}
    for step in STEPS:
        if step == at:
            harm()
        if step == "start":
            job = again(lambda: api.post("/backups", body), 201)
            path, own = f"/backups/{job['backup_id']}", api.with_token(job["job_token"])
        elif step == "claim":
            again(lambda: own.post(f"{path}/claim", claim), 200)
        elif step == "announce":
            said = {"disks": [disk("disk-0", SIZE, change, token="t")], "left_out": [], "consistency": "crash",
                    "consistency_detail": ""}
            disks = again(lambda: own.post(f"{path}/disks", said), 200)["disks"]
        elif step == "copy":
            nbdcopy(hubs.images["web"].path, disks[0]["uri"])
        elif step == "progress":
            figures = {"disk_id": disks[0]["disk_id"], "done_bytes": 1, "size": SIZE, "transferred_bytes": 1,
                       "zero_bytes": 0, "changed_bytes": 0}
            again(lambda: own.post(f"{path}/progress", {"disks": [figures], "phase": "copying"}), 200)
        else:
            done = {"change_id": change, "bytes_transferred": SIZE, "disks": [
                {"disk_id": disks[0]["disk_id"], "change_id": change, "tracking": "none", **coverage([(0, SIZE)])}]}
            again(lambda: own.post(f"{path}/complete", done), 200)
    return job["backup_id"]
