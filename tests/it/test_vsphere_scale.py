"""What an increment of a huge disk costs: what changed, in requests and in memory. How long it takes is
bench/bench vsphere's business.
"""

import re

import pytest

from lib import system
from lib.cli import Cli
from lib.faults import client_pid, exporter_pids
from lib.history import History, wait_for
from lib.images import CLUSTER
from lib.vsphere import Simulator, full_of_nothing, hub_environment
from lib.world import World

MIB, GIB = 1 << 20, 1 << 30
SIZES = {"small": 10 * GIB, "large": 250 * GIB}
HALF_GIB = GIB // 2
ENGINE_CACHE = 16 * MIB     # of tables and hashes, image/writer_groups.c
AREAS = 600
PAGE = 50
HALF = AREAS // 2
AHEAD = 16 + PAGE           # reads under way, and the page that they came from


def peak(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as f:
        return int(re.search(r"VmHWM:\s+(\d+)", f.read())[1]) << 10


@pytest.fixture
def history(make_hub, place):
    vms = [{"path": f"DC0/vm/{name}", "cbt": True, "disks": [{"size": size}]} for name, size in SIZES.items()]
    hub = make_hub(environment={**hub_environment(), "SENDENSE_TEST_PLACE": str(place)})
    with Simulator(place / "sim", vms, max_areas=PAGE) as sim:
        made = History(hub, Cli(hub.url, cwd=place), place, "")
        made.sim, made.world = sim, World(hub, place)
        made.own_processes = lambda: {sim.process.pid}
        made.add_repository("main")
        made.api.post("/sources", sim.source()).expect(201)
        yield made


def increment(history, name):
    """(calls of the vCenter, peaks of memory in the middle of the copy, the record) of a backup of AREAS clusters."""
    sim, size, path = history.sim, SIZES[name], f"DC0/vm/{name}"
    history.vm_name = name
    history.api.post("/vms", {"name": name, "source": {"type": "vsphere", "source": "vc-1", "vm": f"/{path}"},
                              "audit_blocks": 0}).expect(201)
    full_of_nothing(history.api, sim, name, path, "main")
    sim("write", vm=path, stamp=7, areas=[[n * (size // AREAS) // CLUSTER * CLUSTER, CLUSTER] for n in range(AREAS)])
    sim("calls", clear=True)
    sim("fault", call="read", kind="delay", ms=60000, skip=HALF, times=AREAS)
    backup_id = history.start("main", "incremental")
    wait_for(lambda: sim.calls().get("read", 0) > HALF, "the middle of the copy")
    asked = sim.calls()["QueryChangedDiskAreas"]
    readers = [pid for pid, line in system.processes_of(history.folder).items() if "nbdkit-vddk-plugin" in line]
    peaks = [peak(pid) for pid in (client_pid(history.world, backup_id), *exporter_pids(history.world, backup_id),
                                   *readers)]
    sim("heal")
    backup = history.wait_final(backup_id)
    assert backup["status"] == "completed", (backup, history.client_log())
    history.check_nothing_left()
    assert asked <= 1 + (HALF + AHEAD) // PAGE + 1, "areas are asked for as the copy goes, not all at once"
    assert backup["bytes_transferred"] == AREAS * CLUSTER
    return {call: sim.calls()[call] for call in ("QueryChangedDiskAreas", "read")}, peaks, backup


def test_an_increment_of_a_large_disk_costs_what_changed(history):
    calls, peaks, backups = zip(*(increment(history, name) for name in SIZES))
    print(calls, [[n // MIB for n in of] for of in peaks], [b["stored_bytes"] >> 20 for b in backups])
    assert calls[0] == calls[1] and calls[0]["read"] == AREAS
    client, exporter, reader = zip(*peaks)
    for (small, large), more in ((client, 0), (exporter, ENGINE_CACHE), (reader, 0)):
        assert large < small + more + 4 * MIB and large < 64 * MIB, peaks
    tables = SIZES["large"] // HALF_GIB * CLUSTER       # QCOW2 has one for each half GiB in which something changed
    assert backups[1]["stored_bytes"] < backups[0]["stored_bytes"] + tables + MIB
