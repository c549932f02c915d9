"""Killed before the n-th call, or the n-th call fails: in hub, client, exporter, CLI, in each story of a point's life.

Afterwards, whatever happened: what should run runs, no process crashed, a failure was said; every listed point verifies
and restores to what the VM was, none was lost; the next backup is right; nothing is left behind.

A seeded share of all n by default; FAULTS_SEED=… takes another, FAULTS=200 a larger one. FAULTS=all tries every n of
every kind, FAULTS=0/40 to 39/40 the same in forty parts, FAULTS='sync 3: EIO' that one. docs/internals/faults.md.
"""

import contextlib
import http.client
import os
import random
import signal
import subprocess
import time
import zlib

import pytest

from lib.api import quote
from lib.cli import Cli
from lib.history import History
from lib.hub import FINAL, HubError
from lib.shim import ACTIONS, Shim, Shot, is_built

CLUSTER = 65536
SIZE = 3 * CLUSTER + 512
WHICH = os.environ.get("FAULTS", "")
SEED = int(os.environ.get("FAULTS_SEED", "1"))
TRIES = int(WHICH) if WHICH.isdecimal() else 2      # of each story and victim
FAILURES = 20 if WHICH else 1                       # that one run looks for
GONE = (OSError, http.client.HTTPException)     # no hub, or none that answers

pytestmark = pytest.mark.skipif(not is_built(), reason="a sanitizer's build has no shim")


class Targets(History):
    """A VM of one small disk, and its first point, on which each try builds. As a context manager."""

    def __init__(self, make_hub, place, seed):
        place.mkdir()
        self.shim = Shim(place / "fault")
        hub = make_hub(f"{place.name}/hub", environment=self.shim.environment())
        super().__init__(hub, Cli(hub.url, cwd=place), place, "pgtest1")
        self.random = random.Random(seed)
        self.path = place / "vm.raw"
        self.path.write_bytes(self.random.randbytes(SIZE))
        self.add_repository("main")
        self.api.post("/vms", {"name": self.vm_name, "source": {
            "type": "file", "disks": [{"path": str(self.path), "format": "raw"}]}}).expect(201)
        self.contents = {}      # of each backup that was asked for: what the disk was
        self.base = self.backup("main", self.references_now())["backup_id"]
        self.said = ""          # what went wrong in a story, in its own words

    def references_now(self):
        return {"disk-0": self.references.of(self.path.read_bytes())}

    def change(self):
        with open(self.path, "r+b") as f:
            f.seek(self.random.randrange(0, SIZE - 4096) & ~511)
            f.write(self.random.randbytes(4096))
            f.seek(CLUSTER)
            f.write(self.random.choice((bytes(CLUSTER), self.random.randbytes(CLUSTER))))

    # ---- stories: each returns whether all went well, as it says itself

    def story_increment(self, kind="incremental"):
        backup = self.run_backup(kind)
        return backup is not None and backup["status"] == "completed"

    def story_full(self):
        return self.story_increment("full")

    def run_backup(self, kind):
        answer = self.call("POST", "/backups", {"vm_name": self.vm_name, "repository_id": "main", "backup_type": kind})
        if not answer or answer.status != 201:
            return None
        backup_id = answer.json["backup_id"]
        while answer := self.call("GET", f"/backups/{quote(backup_id)}"):
            if answer.status == 200 and answer.json["status"] in FINAL:
                self.said = f"{answer.json['error']}: {answer.json['details']}"
                return answer.json
            time.sleep(0.05)
        return None

    def story_delete(self):
        answer = self.call("DELETE", f"/backups/{quote(self.newest('main'))}")
        return answer is not None and answer.status == 200

    def story_restore(self):
        out = self.folder / "out.raw"
        out.unlink(missing_ok=True)
        newest = self.newest("main")
        result = self.cli.run("restore", newest, "--disk", "0", "--to", out, environment=self.shim.environment())
        self.said = result.err
        if result.status == 0 or out.exists():      # it gets its name when it is whole
            self.references.expect(self.points[newest]["disk-0"], out, "restored under fire")
        return result.status == 0

    def story_verify(self):
        result = self.cli.run("verify", self.newest("main"), environment=self.shim.environment())
        self.said = result.err
        return result.status == 0

    def story_start(self):
        """On what a hub left that was killed somewhere in a backup or a deletion (see prepare)."""
        with contextlib.suppress(HubError):
            self.hub.start()
        return self.hub.running

    # ----

    def call(self, method, path, body=None):
        """The answer; None from a hub that is gone."""
        try:
            answer = self.api.request(method, path, body, timeout=30)
        except GONE as e:
            self.said = str(e)
            if method != "GET" or self.hub_ends():
                return None
            return self.api.request(method, path, body, timeout=30)
        if answer.status >= 400:
            self.said = answer.text
            assert answer.json["error"] and answer.json["details"], answer.text
        return answer

    def hub_ends(self):
        """It may be about to: its connections go before it is a zombie."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.hub.process.wait(2)
        return self.hub.process.poll() is not None

    def prepare(self, story):
        self.change()
        if story in ("delete", "start"):
            self.backup("main", self.references_now())
            self.change()
        if story != "start":
            return
        what = self.random.choice(("increment", "delete"))
        self.shim.arm("hub", Shot("name", "kill", self.random.randrange(1, 12)))
        getattr(self, "story_" + what)()
        self.hub.kill()
        self.shim.disarm()

    def settle(self, shot, seen):
        """What should run runs again, and jobs are over."""
        hit = bool(seen.hit and self.hub.process and seen.pid == self.hub.process.pid)
        if hit and shot.action == "kill":
            assert self.hub_ends(), "killed, and still there"
        status = self.hub.process.poll() if self.hub.process else None
        if self.hub.process and status is not None:
            self.hub.process = None
            assert shot.action == "kill" and status == -signal.SIGKILL and seen.hit, f"the hub ended with {status}"
        elif hit and self.random.random() < 0.5:
            self.hub.stop()     # in order; else it has to go on as it is
        if not self.hub.process:
            self.start_hub()
        for status in ("pending", "running", "committing"):
            for backup in self.api.get(f"/backups?status={status}").expect(200)["backups"]:
                self.wait_final(backup["backup_id"])
        for export in self.api.get("/exports").expect(200)["exports"]:      # of a CLI that was killed
            self.api.delete(f"/exports/{quote(export['export_id'])}")

    def take_stock(self, story, fine):
        """What is listed now is what was listed before, and the backup that was asked for, if it came to be."""
        listed = [b["backup_id"] for b in reversed(self.api.get(
            f"/backups?vm_name={self.vm_name}&status=completed&limit=1000").expect(200)["backups"])]
        before = self.order["main"]
        lost = [i for i in before if i not in listed]
        new = [i for i in listed if i not in before]
        if lost:
            assert story in ("delete", "start") and lost == before[-1:], f"lost: {lost}"
            self.forget(lost)
        for backup_id in new:
            assert story in ("increment", "full", "start") and len(new) == 1, f"nobody asked for {new}"
            self.note("main", self.show(backup_id), self.references_now())
        if story == "delete" and not lost:
            assert not fine, "a deletion that was done is undone"
            # a second try ends what the first one began
            self.api.delete(f"/backups/{quote(before[-1])}").expect(200)
            self.forget(before[-1:])
        elif story in ("increment", "full"):
            assert bool(new) or not fine, "a backup that was completed is not listed"
        for backup in self.api.get(f"/backups?vm_name={self.vm_name}&status=failed&limit=1000").expect(200)["backups"]:
            assert backup["error"] and backup["details"], backup

    def prove(self, left=False):
        """left: the hub could not remove something, which its next start makes up for."""
        if not left:
            self.check_nothing_left()
        self.change()
        self.backup("main", self.references_now())
        self.check_listed()
        for backup_id in self.points:
            self.check_point(backup_id)
        self.cli.ok("verify", "--repo", "main")
        if left:
            self.hub.stop()
            self.start_hub()
        self.check_nothing_left()
        self.trim()

    def trim(self):
        """Back to the one point that all tries build on."""
        while len(self.order["main"]) > 1:
            self.api.delete(f"/backups/{quote(self.newest('main'))}").expect(200)
            self.forget([self.newest("main")])

    def attempt(self, story, victim, shot):
        """One try; whether the call was reached."""
        self.said = ""
        self.prepare(story)
        self.shim.arm(victim, shot)
        fine = getattr(self, "story_" + story)()
        said = self.said
        seen = self.shim.disarm()
        what = f"{story}, {victim}, {shot}: {seen.hit} in {seen.pid}; {'well' if fine else said.strip()}"
        self.say(what)
        try:
            assert not self.shim.crash(), f"a process crashed: {self.shim.crash()}"
            assert fine or seen.hit, "failed, though nothing was done to it"
            silent = not (fine or said or shot.action == "kill" or story == "start")
            assert not (seen.hit and silent), "failed, and nothing was said"
            self.settle(shot, seen)
            self.take_stock(story, fine)
            self.prove(left=victim == "hub" and seen.hit and shot.action != "kill")
        except AssertionError as e:
            raise AssertionError(f"{what}\n{e}\n{self.client_log()}\n{self.hub.log[-3000:]}") from None
        return seen.hit is not None

    def calls(self, story, victim):
        """How many calls of each kind the story makes."""
        self.prepare(story)
        self.shim.arm(victim)
        assert getattr(self, "story_" + story)(), self.said
        counts = self.shim.disarm().counts
        self.take_stock(story, True)
        self.trim()
        self.say(f"{story}, {victim}: {counts}")
        return counts


STORIES = {
    "full": ("hub", "client", "exporter"),
    "increment": ("hub", "client", "exporter"),
    "delete": ("hub",),
    "restore": ("hub", "exporter", "cli"),
    "verify": ("hub", "exporter", "cli"),
    "start": ("hub",),
}


def share(rng, counts):
    """Kills and failures in turn, each kind as often as another."""
    kinds = [k for k in ACTIONS if counts[k]]
    kills = [k for k in kinds if "kill" in ACTIONS[k]]
    for n in range(TRIES):
        kind = rng.choice(kinds if n % 2 else kills)
        action = "kill" if n % 2 == 0 else rng.choice([a for a in ACTIONS[kind] if a != "kill"])
        yield Shot(kind, action, rng.randrange(1, counts[kind] + 1))


def every(rng, counts):
    """Every n, and some more, since a story does not always make as many calls; of what a hub allocates, a tenth."""
    for kind, actions in ACTIONS.items():
        for action in actions:
            at = 1
            while at <= counts[kind] * 1.2 + 2:
                yield Shot(kind, action, at)
                at += rng.randint(1, 1 + at // 100) if kind == "alloc" else 1


def part(shots, which):
    """The same part whatever else there is: how many calls a story makes differs a little from run to run."""
    number, parts = map(int, which.split("/"))
    return [shot for shot in shots if zlib.crc32(str(shot).encode()) % parts == number]


def shots(story, victim, targets):
    rng = random.Random(f"{SEED} {story} {victim}")
    if ":" in WHICH:
        kind, at, action = WHICH.replace(":", "").split()
        return [Shot(kind, action, int(at))]
    if "/" in WHICH:
        return part(every(rng, targets.calls(story, victim)), WHICH)
    return (every if WHICH == "all" else share)(rng, targets.calls(story, victim))


@pytest.mark.parametrize("story, victim", [(s, v) for s, victims in STORIES.items() for v in victims])
def test_every_call(story, victim, make_hub, place):
    failures, hits, folder = [], 0, place / "0"
    targets = Targets(make_hub, folder, SEED)
    for shot in shots(story, victim, targets):
        try:
            hits += targets.attempt(story, victim, shot)
        except AssertionError as e:
            failures.append(f"{e}\n  again: FAULTS='{shot}' FAULTS_SEED={SEED} -k '{story}-{victim}'")
            print(failures[-1])
            # what it left is not what the next one shall begin with
            folder = place / str(len(failures))
            targets.hub.kill()
            targets = Targets(make_hub, folder, SEED)
        assert len(failures) < FAILURES, "\n".join(failures)
    assert not failures, "\n".join(failures)
    assert hits


def test_the_parts_are_all():
    """`make soak` took twenty at random, again and again: no number of rounds was every n."""
    counts = dict.fromkeys(ACTIONS, 50)
    whole = sorted(every(random.Random(1), counts))
    parts = [part(every(random.Random(1), counts), f"{n}/40") for n in range(40)]
    assert sorted(shot for p in parts for shot in p) == whole and len(whole) == len(set(whole))
    assert {(s.kind, s.action, s.at) for s in whole if s.kind != "alloc"} >= {
        (kind, action, n) for kind, actions in ACTIONS.items() if kind != "alloc" for action in actions
        for n in range(1, 51)}
