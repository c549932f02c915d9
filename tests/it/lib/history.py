"""A VM's history: backups of a disk whose content at each of them is kept, and the proof that every listed point is it.

The hub, the client, the exporters and the CLI are the real ones. What a history expects of a point (its bytes) never
comes from the software under test.
"""

import contextlib
import hashlib
import os
import shutil
import sqlite3
import subprocess
import time
from pathlib import Path

from lib import system
from lib.api import quote
from lib.hub import FINAL
from lib.images import CLUSTER
from lib.patience import patience

WAIT_SECONDS = 60


def wait_for(condition, what, seconds=WAIT_SECONDS):
    """The first true value of condition()."""
    until = time.monotonic() + patience(seconds)
    while not (value := condition()):
        assert time.monotonic() < until, f"not within {seconds} s: {what}"
        time.sleep(0.01)
    return value


class References:
    """Contents of disks, each kept once; `of` gives a name that is equal where the contents are."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(exist_ok=True)

    def of(self, content):
        name = f"{len(content)}-{hashlib.sha256(content).hexdigest()[:32]}"
        path = self.folder / name
        if not path.exists():
            path.write_bytes(content)
        return name

    def content(self, name):
        return (self.folder / name).read_bytes()

    def expect(self, name, path, what):
        actual = Path(path).read_bytes()
        if self.of(actual) == name:
            return
        expected = self.content(name)
        size = max(len(expected), len(actual))
        wrong = [at // CLUSTER for at in range(0, size, CLUSTER)
                 if expected[at:at + CLUSTER] != actual[at:at + CLUSTER]]
        raise AssertionError(f"{what}: {len(actual)} bytes, expected {len(expected)}; wrong clusters: {wrong[:40]}")

    def changed_clusters(self, old, new):
        """How many clusters of `new` differ from `old`, which is read as padded with zeros."""
        before, after = self.content(old), self.content(new)
        before += bytes(max(0, len(after) - len(before)))
        count = 0
        for at in range(0, len(after), CLUSTER):
            piece = after[at:at + CLUSTER]
            count += piece != before[at:at + len(piece)]
        return count


class History:
    """One VM in one or more repositories. `points`: {backup ID: {disk key: reference}}, what must be listed."""

    def __init__(self, hub, cli, folder, vm_name, say=print):
        self.hub, self.api, self.cli, self.folder, self.vm_name, self.say = hub, hub.api, cli, folder, vm_name, say
        self.references = References(folder / "references")
        self.repositories = {}  # name: path
        self.points = {}
        self.order = {}         # repository: IDs of its points, oldest first
        self.doubted = set()    # points that a later audit must have made suspect
        self.count = 0

    def add_repository(self, name, **more):
        path = self.folder / f"repository-{name}"
        self.api.post("/repositories", {"name": name, "path": str(path), **more}).expect(201)
        self.repositories[name] = path
        self.order[name] = []
        return path

    def start_hub(self):
        """Again. Its port may be another one, if somebody took it meanwhile."""
        self.hub.start()
        self.api, self.cli.url = self.hub.api, self.hub.url

    # ---- backups

    def start(self, repository, kind=None):
        body = {"vm_name": self.vm_name, "repository_id": repository, **({"backup_type": kind} if kind else {})}
        return self.api.post("/backups", body).expect(201)["backup_id"]

    def show(self, backup_id):
        return self.api.get(f"/backups/{quote(backup_id)}").expect(200)

    def wait_final(self, backup_id):
        return self.api.wait_status(backup_id, FINAL, deadline=WAIT_SECONDS)

    def note(self, repository, backup, references):
        """Takes a backup that ended into account, if it completed; returns it."""
        if backup["status"] == "completed":
            keys = {d["disk_key"] for d in backup["disks"]}
            self.points[backup["backup_id"]] = {k: v for k, v in references.items() if k in keys}
            self.order[repository].append(backup["backup_id"])
            check_numbers(backup, self.path_of)
        return backup

    def path_of(self, image):
        """Where we see what the hub sees there."""
        return image

    def backup(self, repository, references, kind=None):
        """A backup by the CLI that must complete."""
        options = [f"--{kind}"] if kind else []
        result = self.cli.run("backup", self.vm_name, "--repo", repository, *options, use_json=True)
        assert result.status in (0, 4), f"exit status {result.status}\n{result.out}\n{result.err}\n{self.client_log()}"
        backup = result.json
        assert (result.status == 4) == backup["partial"], backup
        assert backup["status"] == "completed", backup
        return self.note(repository, self.show(backup["backup_id"]), references)

    def client_log(self):
        return "\n".join(p.read_text(errors="replace")[-3000:] for p in (self.hub.data / "log").glob("*.client.log"))

    def newest(self, repository):
        return self.order[repository][-1] if self.order[repository] else None

    def forget(self, ids):
        for backup_id in ids:
            del self.points[backup_id]
            for order in self.order.values():
                if backup_id in order:
                    order.remove(backup_id)

    # ---- checks

    def check_listed(self):
        """The points that are listed are those that completed, in that order."""
        for repository, order in self.order.items():
            listed = self.api.get(f"/backups?vm_name={quote(self.vm_name)}&status=completed&limit=1000"
                                  f"&repository_id={repository}").expect(200)["backups"]
            assert [b["backup_id"] for b in reversed(listed)] == order
            for backup in listed:
                assert backup["suspect"] == (backup["backup_id"] in self.doubted), backup

    def check_point(self, backup_id, fmt="raw"):
        """Restores all its disks with the CLI, and compares."""
        out = self.folder / f"restored-{self.count}"
        self.count += 1
        self.cli.ok("restore", backup_id, "--all-disks", "--to", out, "--format", fmt, "--quiet")
        shown = {d["disk_key"]: d for d in self.show(backup_id)["disks"]}
        assert set(shown) == set(self.points[backup_id])
        for key, reference in self.points[backup_id].items():
            path = out / f"disk-{shown[key]['disk_no']}.{fmt}"
            if fmt != "raw":
                path = flatten(path, out / "flat", shown[key]["size"])
            self.references.expect(reference, path, f"{backup_id}, {key}, restored as {fmt}")
        shutil.rmtree(out)

    def check_point_with_stock_tools(self, backup_id):
        for disk in self.show(backup_id)["disks"]:
            subprocess.run(["qemu-img", "check", "-q", disk["image"]], check=True, timeout=patience(60))
            flat = flatten(disk["image"], self.folder / "flat", disk["size"])
            self.references.expect(self.points[backup_id][disk["disk_key"]], flat,
                                   f"{backup_id}, {disk['disk_key']}, by qemu-img")
            flat.unlink()

    def check_everything(self, rng=None):
        """Each point by the CLI; a sample also as qcow2 and by stock tools; all by verify; nothing is left."""
        self.check_listed()
        for backup_id in self.points:
            self.check_point(backup_id)
        for backup_id in (rng.sample(sorted(self.points), min(2, len(self.points))) if rng else self.points):
            self.check_point_with_stock_tools(backup_id)
            self.check_point(backup_id, "qcow2")
        for repository, order in self.order.items():
            if order:
                self.cli.ok("verify", "--repo", repository)
        self.check_nothing_left()

    def check_nothing_left(self):
        check_hub_is_clean(self.hub, self.repositories.values(), self.folder, self.own_processes())

    def own_processes(self):
        """Pids of the test's own children that name the folder."""
        return set()


# ---- parts of checks that others use too

def flatten(image, out, size):
    """A qcow2 with its backing files as a raw file of exactly this size (QEMU knows only whole sectors)."""
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image), str(out)], check=True,
                   timeout=patience(60), stdin=subprocess.DEVNULL)
    assert 0 <= os.path.getsize(out) - size < 512, (os.path.getsize(out), size)
    os.truncate(out, size)
    return out


def check_numbers(backup, path_of=lambda image: image):
    """What a completed backup says of itself hangs together."""
    disks = backup["disks"]
    assert backup["change_id"] == disks[0]["change_id"] and all(d["change_id"] for d in disks), backup
    assert backup["backup_type"] == ("full" if all(d["mode"] == "full" for d in disks) else "incremental"), backup
    assert backup["total_bytes"] == backup["done_bytes"] == sum(d["size"] for d in disks), backup
    assert backup["bytes_transferred"] == sum(d["transferred_bytes"] for d in disks), backup
    assert backup["stored_bytes"] == sum(d["stored_bytes"] for d in disks) > 0, backup
    for disk in disks:
        # A disk whose audit failed is sent again in the same job, after what was sent before the alarm.
        passes = 2 if disk["reason"] == "audit_failed" else 1
        assert disk["done_bytes"] == disk["size"] >= disk["transferred_bytes"] / passes, disk
        assert os.path.getsize(path_of(disk["image"])) >= disk["stored_bytes"], disk
        assert (disk["mode"] == "full") == (disk["parent_backup_id"] is None), disk
        assert disk["image"].endswith("-full.qcow2" if disk["mode"] == "full" else "-incr.qcow2"), disk
    assert (backup["parent_id"] is None) == all(d["parent_backup_id"] is None for d in disks), backup


def partial_files(repository):
    return [p for p in Path(repository).rglob("*") if ".partial" in p.name or p.name.endswith((".tmp", ".new"))]


def check_hub_is_clean(hub, repositories, folder, ours=(), seconds=WAIT_SECONDS):
    """Once no job runs: no process but the hub, no socket, no partial file but those of failed jobs that can be gone on
    from, no row in a state that is not final."""
    def kept():
        with contextlib.closing(sqlite3.connect(f"file:{hub.database}?mode=ro", uri=True, timeout=10)) as database:
            rows = database.execute("SELECT attempt FROM backup_jobs WHERE resumable <> 0 AND status = 'failed'")
            return tuple(f".partial-{attempt}" for attempt, in rows)

    def left():
        others = {p: line for p, line in system.processes_of(folder).items()
                  if p not in (os.getpid(), os.getppid(), hub.process.pid, *ours)}
        return (others or hub.children() or [n for n in os.listdir(hub.run_dir) if n != "lock"]
                or [str(p) for r in repositories for p in partial_files(r) if not p.name.endswith(kept())]
                or [b for status in ("pending", "running", "committing")
                    for b in hub.api.get(f"/backups?status={status}").expect(200)["backups"]]
                or hub.api.get("/exports").expect(200)["exports"])
    until = time.monotonic() + patience(seconds)
    while (found := left()) and time.monotonic() < until:
        time.sleep(0.05)
    assert not found, f"left behind: {found}\n{hub.log[-3000:]}"
