"""A VM without a guest: QEMU with paused CPUs, whose disks the test writes to; and what a backup may leave in QEMU."""

import sys
import time
from pathlib import Path

from lib import images
from lib.patience import patience

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "guest"))
from guest import Guest, GuestError, PausedQemu, make_disk, reference_copy    # noqa: E402, F401
from qmp import Qmp     # noqa: E402


def make_vm(folder, contents):
    """contents: (format, bytes) of each disk."""
    disks = []
    for n, (fmt, content) in enumerate(contents):
        disks.append((images.Image(folder / f"vm-{n}.{fmt}", fmt, content).path, fmt))
    return PausedQemu(folder / "vm", disks)


def contents_now(vm, folder):
    """{disk key: bytes} of all disks, of one instant."""
    paths = [folder / f"now-{n}" for n in range(len(vm.disks))]
    reference_copy(vm, paths)
    return {vm.disks[n].id: p.read_bytes() for n, p in enumerate(paths)}


def size_of(vm, n):
    return vm.inserted(n)["image"]["virtual-size"]


def our_bitmaps(vm, n):
    """Names of our bitmaps on the node under the guest's device."""
    names = [b.get("name", "") for b in vm.inserted(n).get("dirty-bitmaps", [])]
    return [name for name in names if name.startswith("sendense.")]


def left_in_qemu(vm):
    """What a backup put there, and what is not a bitmap."""
    nodes = [node["node-name"] for node in vm.qmp("query-named-block-nodes", flat=True)]
    temporary = [name for n in range(len(vm.disks)) for name in our_bitmaps(vm, n) if ".tmp." in name]
    # QEMU keeps descriptors that were given back until the guest runs
    descriptors = vm.qmp("query-fdsets") if vm.qmp("query-status")["running"] else []
    return (vm.qmp("query-block-exports") + vm.qmp("query-jobs") + [n for n in nodes if n.startswith("sndns")]
            + temporary + descriptors)


def release_descriptors(vm):
    """QEMU closes descriptors that were given back only while the guest runs, when a monitor is closed."""
    vm.qmp("cont")
    Qmp(vm.qmp2_path).close()
    until = time.monotonic() + patience(60)
    while vm.qmp("query-fdsets"):
        assert time.monotonic() < until, vm.qmp("query-fdsets")
        time.sleep(0.02)
    vm.qmp("stop")


def check_qemu_is_clean(vm, folder, seconds=60):
    until = time.monotonic() + patience(seconds)
    while (found := left_in_qemu(vm)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not found, f"left in QEMU: {found}"
    # is its one NBD server free?
    path = Path(f"{folder}/n.sock")
    while True:
        try:    # whoever clears up behind a killed client has it for a moment
            vm.qmp("nbd-server-start", addr={"type": "unix", "data": {"path": str(path)}})
            break
        except GuestError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
    vm.qmp("nbd-server-stop")
    path.unlink(missing_ok=True)
