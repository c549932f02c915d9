"""Fixtures of the tests that run the real programs.

A test that leaves a process, a socket or a mount behind fails, whatever else it did.
"""

import os
import random
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from lib import system                      # noqa: E402
from lib.cli import Cli                     # noqa: E402
from lib.engine import Chain, Engine        # noqa: E402
from lib.hub import BIN, Hub                # noqa: E402
from lib.proxy import Proxy                 # noqa: E402
from lib.world import World                 # noqa: E402


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    """All workers have one seed; each has a folder of a short name, because a socket's path has 108 bytes."""
    os.environ.setdefault("SENDENSE_TEST_SEED", str(random.SystemRandom().randrange(1 << 32)))
    if hasattr(config, "workerinput"):
        common = Path(config.option.basetemp).parent
        config.option.basetemp = str(common) + config.workerinput["workerid"].removeprefix("gw")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
    outcome = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or outcome.get_result().failed


@pytest.fixture(autouse=True)
def nothing_left(request, tmp_path):
    """What still has to do with the test's folder after it is a failure, also where it asks for no `place`.

    The folder goes then, unless the test failed: those of a whole run are more than 20 GiB.
    """
    yield
    left = system.leftovers(tmp_path, ours={os.getpid(), os.getppid()})
    assert not left, "left behind: " + "; ".join(left)
    if not request.node.stash.get(FAILED, False):
        shutil.rmtree(tmp_path)


@pytest.fixture
def place(tmp_path):
    """The test's folder."""
    return tmp_path


@pytest.fixture
def make_hub(place):
    """A function that makes a Hub, started unless told otherwise; all are closed at the end."""
    if not (BIN / "sendense-hub").exists():
        pytest.fail(f"{BIN}/sendense-hub is not built; type make all")
    hubs = []

    def make(name="hub", start=True, **more):
        hub = Hub(place / name, **more)
        hubs.append(hub)
        return hub.start() if start else hub

    yield make
    errors = []
    for hub in reversed(hubs):
        try:
            hub.close()
        except (AssertionError, OSError) as e:
            errors.append(str(e))
    assert not errors, "\n".join(errors)


@pytest.fixture
def hub(make_hub):
    return make_hub()


@pytest.fixture
def proxy(hub):
    with Proxy(hub.port) as running:
        yield running


@pytest.fixture
def cli(proxy, place):
    """The CLI through the recording proxy."""
    return Cli(proxy.url, cwd=place)


@pytest.fixture
def api(hub):
    return hub.api


@pytest.fixture
def world(hub, place):
    """A hub with one repository."""
    made = World(hub, place)
    made.add_repository()
    yield made
    made.close()


@pytest.fixture
def vm(world):
    """Path of the one disk of the VM pgtest1."""
    _, paths = world.add_vm()
    return paths[0]


@pytest.fixture
def engine(place):
    """A function that starts an Engine; all are ended."""
    made = []

    def make(**config):
        made.append(Engine(place / f"e{len(made)}", **config).start())
        return made[-1]

    yield make
    for e in made:
        if e.process.poll() is None:
            e.process.kill()
            e.process.wait()
        e.stop()


@pytest.fixture
def chain(place, engine):
    return Chain(place, engine)
