"""What a hub does at its start with repositories that are large (docs/internals/jobs.md, "At the start")."""

import os
import signal
import socket

import pytest

from lib.history import wait_for
from lib.shim import Shim, is_built
from lib.world import World


pytestmark = pytest.mark.skipif(not is_built(), reason="a sanitizer's build has no shim")


@pytest.fixture
def held(place):
    """While it is there, the hub opens no VM's folder."""
    return place / "held"


@pytest.fixture
def hub(make_hub, place, held):
    return make_hub(environment={**Shim(place / "fault").environment(), "SENDENSE_FAULT_HOLD": str(held)})


def test_it_answers_before_it_has_looked_through_its_repositories(hub, place, held):
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
    held.touch()
    hub.start()
    try:
        assert hub.api.get("/health").expect(200)["looked_through"] is False
        listed, = hub.api.get("/backups").expect(200)["backups"]
        assert listed["backup_id"] == job.id and not listed["suspect"]      # as before: nobody has looked yet
        hub.api.post("/vms", {"name": "another", "source": {"type": "file", "disks": [{"path": "/x"}]}}).expect(201)
    finally:
        held.unlink()
    wait_for(lambda: hub.api.get("/health").expect(200)["looked_through"], "it looks through its repository")
    assert job.show()["suspect"] and job.show()["verify_result"] == "damaged"


def refuses(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) != 0


def test_it_ends_while_it_looks_through_its_repositories(hub, place, held):
    """The look goes from folder to folder: a stop waits for one of them, not for all."""
    world = World(hub, place)
    world.add_repository()
    for n in range(3):
        _, (image,) = world.add_vm(f"vm-{n}", seed=n + 1)
        world.backup(image, f"vm-{n}")
    hub.stop()
    held.touch()
    hub.start()
    hub.process.send_signal(signal.SIGTERM)
    wait_for(lambda: refuses(hub.port), "it has heard the signal, and told the look")
    held.unlink()
    hub.stop()
    assert "the next start looks through the repositories" in hub.log
    hub.start()
    assert hub.api.get("/health").expect(200)["looked_through"] is True
    assert len(hub.api.get("/backups?status=completed").expect(200)["backups"]) == 3
