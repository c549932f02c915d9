"""The vSphere client (wire/vim.h, by way of vim-probe) against the simulated vCenter: what it must live through."""

import json
import os
import signal
import subprocess

import pytest

from lib.history import wait_for
from lib.patience import SLOWNESS, patience
from lib.vim_probe import VimProbe
from lib.vsphere import PASSWORD, USER, Certificate, Simulator, cpu_seconds

MIB = 1 << 20
WEB = "DC0/vm/web"


@pytest.fixture
def make_sim(place):
    running = []

    def make(vms, **settings):
        sim = Simulator(place / f"sim-{len(running)}", vms, **settings)
        running.append(sim.__enter__())
        return sim

    yield make
    for sim in running:
        left = sim("calls")
        sim.__exit__()
        # whatever happened: no session that only vCenter's time-out ends
        assert left["sessions"] == 0, left


@pytest.fixture
def sim(make_sim):
    return make_sim([{"path": WEB, "cbt": True, "disks": [{"size": 8 * MIB}, {"size": 4 * MIB}]}])


def start(sim, *words, before=(), timeout_ms=30000):
    client = VimProbe(sim.folder, f"127.0.0.1:{sim.port}", USER, PASSWORD, sim.certificate.thumbprint("sha256"),
                      timeout_ms=timeout_ms)
    return subprocess.Popen([*before, *client.command(*words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            text=True)


def finish(process, words="", status=0):
    """What it printed last."""
    out, _ = process.communicate(words, timeout=120)
    assert process.returncode == status, out
    return json.loads(out.splitlines()[-1])


def probe(sim, *words, status=0, **options):
    return finish(start(sim, *words, **options), status=status)


def refused(sim, *words, **options):
    """(code, the fault's type)"""
    answer = probe(sim, *words, status=1, **options)
    return answer["error"], answer["fault"]


class Session:
    """One session of several commands."""

    def __init__(self, sim):
        self.process = start(sim, "session")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()

    def __call__(self, *words):
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.mark.parametrize("prefix", ["_XMLSchema-instance", "xsi"])
def test_a_backups_calls_in_one_session(make_sim, prefix):
    sim = make_sim([{"path": WEB, "cbt": False, "disks": [{"size": 8 * MIB}, {"size": 4 * MIB}]}], prefix=prefix,
                   max_areas=2, change_id_blanks=True)
    with Session(sim) as ask:
        vm = ask("find", f"/{WEB}")
        moref = vm["moref"]
        assert vm["name"] == "web" and [d["key"] for d in vm["disks"]] == [2000, 2001]
        assert ask("cbt", moref, "on") == {"cbt": "on"}
        ask("remove", ask("snapshot", moref, "to-start-tracking")["snapshot"])
        first = ask("snapshot", moref, "sendense-1", "quiesce")["snapshot"]
        change_ids = {d["key"]: d["change_id"] for d in ask("disks", first)}
        assert " " in change_ids[2000] and ask("find", moref)["snapshots"][0]["quiesced"]
        ask("remove", first)
        sim("write", vm=WEB, areas=[[n * MIB, 4096] for n in range(5)], fill=1)
        second = ask("snapshot", moref, "sendense-2")["snapshot"]
        areas, at = [], 0
        while at < 8 * MIB:
            page = ask("areas", moref, second, "2000", change_ids[2000], str(at))
            areas, at = areas + page["areas"], page["next"]
        assert areas == [[n * MIB, 65536] for n in range(5)]
        assert ask("areas", moref, second, "2001", change_ids[2001])["areas"] == []
        ask("remove", second)
    assert sim.vm(WEB)["snapshots"] == [] and sim.calls()["Login"] == sim.calls()["Logout"] == 1
    assert (sim("calls")["filters"], sim("calls")["views"]) == (0, 0)


def test_ten_thousand_vms_in_pages(make_sim):
    """In a number of calls that does not grow with VMs but with pages, and in few seconds of both ends' CPU."""
    sim = make_sim([{"path": "DC0/vm/many/vm", "count": 10_000, "disks": [{"size": 1 << 40}] * 2}])
    before = os.times()
    process = start(sim, "list")
    out = process.communicate(timeout=120)[0]
    after = os.times()
    assert process.returncode == 0, out[-2000:]
    vms = json.loads(out.splitlines()[-1])["vms"]
    assert len({v["moref"] for v in vms}) == 10_000 and {len(v["disks"]) for v in vms} == {2}
    assert vms[77]["path"] == f"/DC0/vm/many/{vms[77]['name']}"
    calls = sim.calls()
    assert calls["RetrievePropertiesEx"] + calls["ContinueRetrievePropertiesEx"] <= 10_000 // 200 + 5
    # CPU, not a clock, since this machine may be busy; one after the other, as the two take turns
    seconds = (after.children_user + after.children_system - before.children_user - before.children_system
               + cpu_seconds(sim.process.pid))
    assert seconds < patience(10), f"{seconds:.1f} s"


def test_an_expired_session_is_renewed_unseen(sim):
    with Session(sim) as ask:
        moref = ask("find", f"/{WEB}")["moref"]
        sim("expire_sessions")
        assert ask("find", moref)["name"] == "web"
        sim("expire_sessions")
        assert "snapshot" in ask("snapshot", moref, "after")
    assert sim.calls()["Login"] == 3 and len(sim.vm(WEB)["snapshots"]) == 1


def test_wrong_password_and_wrong_certificate(sim, place):
    sim("set", password="another")
    answer = probe(sim, "about", status=1)
    assert answer["error"] == "unauthorized" and answer["details"].startswith("InvalidLogin"), answer
    other = Certificate(place, "other")
    sim("certificate", cert=str(other.cert), key=str(other.key))
    before = sim.calls()
    assert refused(sim, "about")[0] == "protocol"
    assert sim.calls().get("Login") == before.get("Login")      # nothing of the user's was sent


@pytest.mark.parametrize("kind", ["drop_before", "drop_middle", "drop_after", "503"])
def test_lost_replies_are_asked_for_again(sim, kind):
    sim("fault", call="RetrievePropertiesEx", kind=kind)
    sim("fault", call="Login", kind=kind)
    assert probe(sim, "find", f"/{WEB}")["name"] == "web"
    sim("expire_sessions")      # of a login whose reply was lost


@pytest.mark.parametrize("kind", ["drop_before", "drop_middle", "drop_after", "503"])
def test_a_snapshot_whose_reply_is_lost_is_never_made_twice(sim, kind):
    sim("fault", call="CreateSnapshot_Task", kind=kind)
    moref = sim.vm(WEB)["moref"]
    process = start(sim, "snapshot", moref, "sendense-1")
    answer = json.loads(process.communicate(timeout=120)[0].splitlines()[-1])
    made = [s["moref"] for s in sim.vm(WEB)["snapshots"]]
    assert len(made) <= 1
    if process.returncode == 0:
        assert made == [answer["snapshot"]]
    else:
        assert answer["error"] in ("unavailable", "timeout"), answer


def test_a_slow_task_is_waited_for(sim):
    sim("task", call="CreateSnapshot_Task", hold=True)
    moref = sim.vm(WEB)["moref"]
    process = start(sim, "snapshot", moref, "slow")
    try:
        sim("wait_call", call="WaitForUpdatesEx")
        sim("progress", percent=50)
        assert process.poll() is None and sim.vm(WEB)["snapshots"] == []
    finally:
        sim("release")
        answer = finish(process)
    assert answer["snapshot"] == sim.vm(WEB)["snapshots"][0]["moref"]


def test_a_cancelled_wait_ends_at_once_and_logs_out(sim):
    sim("task", call="CreateSnapshot_Task", hold=True)
    process = start(sim, "snapshot", sim.vm(WEB)["moref"], "held")
    try:
        sim("wait_call", call="WaitForUpdatesEx")
        process.send_signal(signal.SIGTERM)
        assert finish(process, status=1)["error"] == "cancelled"
    finally:
        process.kill()
        sim("release")


def test_failing_tasks_say_what_failed(sim):
    moref = sim.vm(WEB)["moref"]
    sim("vm", vm=WEB, quiesce_fails=True)
    answer = probe(sim, "snapshot", moref, "s", "quiesce", status=1)
    assert (answer["error"], answer["fault"], answer["quiescing"]) == ("conflict", "ApplicationQuiesceFault", True)
    sim("task", call="RemoveSnapshot_Task", type="TaskInProgress", message="busy")
    snapshot = probe(sim, "snapshot", moref, "s")["snapshot"]
    assert refused(sim, "remove", snapshot) == ("busy", "TaskInProgress")
    probe(sim, "remove", snapshot)
    assert sim.vm(WEB)["snapshots"] == []


def test_lost_tracking_and_answers_that_cannot_be_right(sim):
    moref = sim.vm(WEB)["moref"]
    with Session(sim) as ask:
        snapshot = ask("snapshot", moref, "s")["snapshot"]
        change_id = ask("disks", snapshot)[-1]["change_id"]

        def areas(start_at="131072"):
            return ask("areas", moref, snapshot, "2000", change_id, start_at)

        assert areas() == {"areas": [], "next": 8 * MIB}
        for kind in ("zero_length", "unordered", "overlap", "past_end", "before", "other_start"):
            sim("lie", vm=WEB, kind=kind)
            assert areas().get("error") == "protocol", kind
        sim("lie", vm=WEB, kind="none")
        sim("lose_cbt", vm=WEB)
        assert (areas()["error"], areas()["fault"]) == ("conflict", "FileFault")


@pytest.mark.skipif(SLOWNESS > 1, reason="a sanitizer needs much memory of its own")
def test_a_million_areas_pass_in_the_memory_of_one(make_sim):
    size = 1 << 38
    sim = make_sim([{"path": WEB, "cbt": True, "disks": [{"size": size}]}], max_areas=10**7)
    moref = sim.vm(WEB)["moref"]
    first = probe(sim, "snapshot", moref, "s")["snapshot"]
    change_id = probe(sim, "disks", first)[0]["change_id"]
    probe(sim, "remove", first)
    sim("touch", vm=WEB, offset=0, length=size, every=size >> 20)
    snapshot = probe(sim, "snapshot", moref, "s")["snapshot"]
    answer = probe(sim, "count", moref, snapshot, "2000", change_id, before=["prlimit", f"--data={12 * MIB}"],
                   timeout_ms=110_000)
    assert answer == {"areas": 1 << 20, "bytes": 65536 << 20, "calls": 1}


def test_missing_privileges_are_named(sim):
    sim("set", missing_privileges=["VirtualMachine.State.RemoveSnapshot", "Sessions.ValidateSession"])
    assert "VirtualMachine.State.RemoveSnapshot" in probe(sim, "privileges")["missing"]
    snapshot = probe(sim, "snapshot", sim.vm(WEB)["moref"], "s")["snapshot"]
    assert refused(sim, "remove", snapshot) == ("forbidden", "NoPermission")


def test_a_vcenter_that_restarts_between_two_calls(sim):
    with Session(sim) as ask:
        moref = ask("find", f"/{WEB}")["moref"]
        sim("down")
        assert ask("find", moref)["error"] == "unavailable"
        sim("up")
        assert wait_for(lambda: ask("find", moref).get("name"), "it answers again") == "web"
