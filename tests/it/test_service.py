"""What the hub tells the service manager (docs/internals/service.md): readiness, reloads, its end, the watchdog."""

import contextlib
import os
import shutil
import signal
import time

import pytest

from lib import mariadb
from lib.faults import slow_calls
from lib.history import wait_for
from lib.hub import HubError
from lib.notify import Manager, thread_stands_still
from lib.patience import patience
from lib.world import World

WATCHDOG = patience(3.0)            # seconds; half of it between two reports, and the supervisor's tick is 0.5


@pytest.fixture
def manager(place):
    made = Manager(place / "notify")
    yield made
    made.close()


@pytest.fixture
def watched(make_hub, manager):
    """A hub that is to report every half WATCHDOG."""
    hub = make_hub(environment={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": str(int(WATCHDOG * 1e6))})
    manager.wait("WATCHDOG", 2)
    return hub


def test_ready_is_said_when_it_answers_and_not_before(make_hub, manager):
    hub = make_hub(start=False, environment={"NOTIFY_SOCKET": manager.path})
    listening = []
    wait, hub._answers = hub._answers, lambda: bool(manager.named("READY"))     # nothing asks before it says so
    hub.start()
    listening.append(wait())
    assert listening == [True]
    said, = manager.wait("READY")
    assert said == {"READY": "1", "STATUS": f"Listening at {hub.url}"}
    assert "STATUS" in manager.heard[0][1] and "READY" not in manager.heard[0][1]
    hub.stop()
    assert manager.wait("STOPPING")[0]["STOPPING"] == "1"
    assert manager.named("WATCHDOG") == []      # no time was given


def test_a_hub_that_cannot_start_is_never_ready(make_hub, manager):
    first = make_hub()
    second = make_hub("second", start=False, environment={"NOTIFY_SOCKET": manager.path})
    second.data = first.data
    with pytest.raises(HubError, match="another hub"):
        second.start()
    assert manager.named("READY") == []


@pytest.mark.parametrize("how, right", [("signal", True), ("call", True), ("signal", False)])
def test_a_reload_has_a_beginning_and_an_end(make_hub, manager, place, how, right):
    """Also where the settings are wrong: a manager that waits for the end would take the hub for hanging."""
    file = place / "hub.conf"
    file.write_text("max-jobs = 2\n")
    hub = make_hub(environment={"NOTIFY_SOCKET": manager.path}, options=[f"--config={file}"])
    manager.wait("READY")
    since, before = len(manager.heard), time.monotonic_ns() // 1000
    file.write_text("max-jobs = 3\n" if right else "nonsense\n")
    if how == "call":
        hub.api.post("/reload").expect(200)
    else:
        hub.process.send_signal(signal.SIGHUP)
    manager.wait("READY", since=since)
    first, last = [v for _, v in manager.heard[since:]]
    assert first["RELOADING"] == "1" and before <= int(first["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert last == {"READY": "1"}


def test_a_hub_that_works_reports_so_in_time(watched, manager):
    manager.wait("WATCHDOG", 5)
    times = [at for at, v in manager.heard if "WATCHDOG" in v]
    assert max(b - a for a, b in zip(times, times[1:])) < WATCHDOG
    watched.stop()
    assert "WATCHDOG" not in manager.heard[-1][1]


def test_a_supervisor_that_stands_still_is_not_reported_for(watched, manager):
    """The API and the database go on answering: the one thread that looks after jobs hangs, and it is enough."""
    def answers():
        with contextlib.suppress(OSError):
            return watched.api.get("/health", timeout=2).status == 200
        return False

    with thread_stands_still(watched.process.pid, "supervisor", answers):
        assert manager.silence("WATCHDOG", 2 * WATCHDOG)
        watched.api.get("/health").expect(200)
        wait_for(lambda: "the supervisor has made no step" in watched.log, "it is said")
        assert "the hub does not work" in watched.log
    manager.wait("WATCHDOG", since=len(manager.heard))
    wait_for(lambda: "the hub works again" in watched.log, "it is said")


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace")
def test_a_database_that_does_not_answer_is_not_reported_for(watched, manager):
    """Every question takes a lock on the file, and that takes longer than the watchdog waits."""
    with slow_calls(watched.process.pid, "fcntl", 4 * WATCHDOG):
        assert manager.silence("WATCHDOG", 2 * WATCHDOG)
    manager.wait("WATCHDOG", since=len(manager.heard))


@pytest.mark.skipif(not shutil.which("strace"), reason="no strace")
def test_slow_files_of_a_repository_are_no_hang(watched, manager, place):
    """To unlink terabytes takes minutes: a hub that were started anew for that would begin anew, too, and never end."""
    world = World(watched, place)
    world.add_repository()
    world.add_vm()
    job = world.running_job()
    exporters = list(watched.children())
    assert exporters
    with slow_calls(watched.process.pid, "unlink,unlinkat,rmdir", 2 * WATCHDOG):
        since = len(manager.heard)
        for pid in exporters:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: "ending a job" in watched.log, "the supervisor is at it")
        manager.wait("WATCHDOG", 4, since=since)
        times = [at for at, v in manager.heard[since:] if "WATCHDOG" in v]
        assert max(b - a for a, b in zip(times, times[1:])) < WATCHDOG
        assert watched.api.get(f"/backups/{job.id}").expect(200)["status"] == "running"     # still at it
    watched.api.wait_status(job.id, {"failed"})


@pytest.fixture
def server(place):
    with mariadb.MariaDb(place / "maria") as made:
        yield made


@pytest.mark.skipif(bool(mariadb.MISSING), reason="no MariaDB server")
def test_a_mariadb_that_is_away_is_waited_for(server, make_hub, manager):
    """To start the hub anew would not bring it back, and would end the wait of the jobs."""
    hub = make_hub(environment={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": str(int(WATCHDOG * 1e6))},
                   options=server.options())
    manager.wait("WATCHDOG", 2)
    server.kill()
    hub.api.get("/health").expect(503)
    manager.wait("WATCHDOG", 3, since=len(manager.heard))
    server.start()
    wait_for(lambda: hub.api.get("/health").status == 200, "the database is back")


def test_somebody_elses_watchdog_is_not_answered(make_hub, manager):
    make_hub(environment={"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"})
    manager.wait("READY")
    assert manager.silence("WATCHDOG", 1)


def test_children_cannot_report_for_the_hub(watched, place):
    """A manager with NotifyAccess=all would take a client's word for the hub's."""
    world = World(watched, place)
    world.add_repository()
    world.add_vm()
    job = world.running_job()
    seen = [open(f"/proc/{pid}/environ", "rb").read() for pid in watched.children()]
    assert seen and not any(b"NOTIFY_SOCKET" in e or b"WATCHDOG" in e for e in seen)
    job.call("fail", {"error": "x", "details": "x"}).expect(200)


def test_the_socket_may_be_gone(make_hub, place):
    """No manager listens: the hub does what it does without one."""
    hub = make_hub(environment={"NOTIFY_SOCKET": str(place / "nobody"), "WATCHDOG_USEC": "20000"})
    hub.api.get("/health").expect(200)
    hub.stop()
