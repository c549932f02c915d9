"""What a hub does at its start with repositories that are large (docs/internals/jobs.md, "At the start")."""

import os
import shlex
import signal
from pathlib import Path

from lib.history import wait_for
from lib.hub import BIN
from lib.world import World


def held_at(place, folder):
    """A program that is the hub, whose every opening of that folder takes for ever, until let_go()."""
    script = place / "held-hub"
    script.write_text("#!/bin/sh\nexec strace -D -I2 -f -o /dev/null -P {0} -e trace=openat"
                      " -e inject=openat:delay_enter=1000000000 {1} \"$@\"\n".format(
                          shlex.quote(str(folder)), shlex.quote(str(BIN / "sendense-hub"))))
    script.chmod(0o755)
    return script


def let_go(hub):
    status = Path(f"/proc/{hub.process.pid}/status").read_text()
    os.kill(int(status.split("TracerPid:")[1].split()[0]), signal.SIGTERM)


def test_it_answers_before_it_has_looked_through_its_repositories(hub, place):
    """A hub of a million points read each record before it answered: minutes, on a share much longer."""
    world = World(hub, place)
    repository = world.add_repository()
    _, (image,) = world.add_vm()
    job = world.backup(image)
    folder, = [f for f in os.scandir(repository["path"]) if f.name.startswith("ctx-")]
    assert hub.api.get("/health").expect(200)["looked_through"] is True
    hub.stop()
    gone, = [f for f in os.scandir(os.path.join(folder.path, "disk-0")) if f.name.endswith(".qcow2")]
    os.unlink(gone.path)
    plain, hub.binary = hub.binary, str(held_at(place, folder.path))
    hub.start()
    hub.binary = plain
    try:
        assert hub.api.get("/health").expect(200)["looked_through"] is False
        listed, = hub.api.get("/backups").expect(200)["backups"]
        assert listed["backup_id"] == job.id and not listed["suspect"]      # as before: nobody has looked yet
        hub.api.post("/vms", {"name": "another", "source": {"type": "file", "disks": [{"path": "/x"}]}}).expect(201)
    finally:
        let_go(hub)
    wait_for(lambda: hub.api.get("/health").expect(200)["looked_through"], "it looks through its repository")
    assert job.show()["suspect"] and job.show()["verify_result"] == "damaged"


def test_it_ends_while_it_looks_through_its_repositories(hub, place):
    """The look goes from folder to folder: a stop waits for one of them, not for all."""
    world = World(hub, place)
    repository = world.add_repository()
    for n in range(3):
        _, (image,) = world.add_vm(f"vm-{n}", seed=n + 1)
        world.backup(image, f"vm-{n}")
    folders = sorted(f.path for f in os.scandir(repository["path"]) if f.name.startswith("ctx-"))
    hub.stop()
    plain, hub.binary = hub.binary, str(held_at(place, folders[0]))
    hub.start()
    hub.binary = plain
    hub.process.send_signal(signal.SIGTERM)
    wait_for(lambda: "stopping" in hub.log, "it hears the signal")
    let_go(hub)
    hub.stop()
    assert "the next start looks through the repositories" in hub.log
    hub.start()
    assert hub.api.get("/health").expect(200)["looked_through"] is True
    assert len(hub.api.get("/backups?status=completed").expect(200)["backups"]) == 3
