"""The test guest itself: what the harness promises to other tests."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from guest import (
    HERE,
    Guest,
    GuestError,
    PausedQemu,
    Qmp,
    build,
    fsck,
    make_disk,
    make_tree,
    outdir,
    probe_accel,
    reference_copy,
)

MIB = 1 << 20
SIZE = 64 * MIB


def sha256(data):
    return hashlib.sha256(data if isinstance(data, bytes | bytearray) else Path(data).read_bytes()).hexdigest()


def gone(pid, timeout=5):
    """Whether a process ends in time; one that is dead and not waited for counts."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        try:
            if Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0] == 'Z':
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


def second_opinion(vm, disk, dest):
    """The disk as QEMU itself reads it: a full backup job to a raw file."""
    with open(dest, 'wb') as file:
        file.truncate(vm.inserted(disk)['image']['virtual-size'])
    vm.qmp('blockdev-add', driver='raw', node_name='dest', file={'driver': 'file', 'filename': str(dest)})
    vm.qmp('blockdev-backup', job_id='opinion', device=vm.disks[disk].node, target='dest', sync='full')
    assert 'error' not in vm.monitor.wait_event('BLOCK_JOB_COMPLETED', device='opinion')['data']
    vm.qmp('blockdev-del', node_name='dest')
    return dest


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    return tmp_path_factory.mktemp('guest')


@pytest.fixture(scope='module')
def guest(work):
    make_tree(work / 'tree')
    make_disk(work / 'a.qcow2', 'qcow2', SIZE, files_from=work / 'tree')
    make_disk(work / 'b.raw', 'raw', SIZE)
    with Guest(work / 'vm', [(work / 'a.qcow2', 'qcow2'), (work / 'b.raw', 'raw')]) as vm:
        yield vm
    assert vm.process is None
    assert not list((work / 'vm').glob('*.sock'))


def references(guest, work, name):
    paths = [work / f'{name}-{disk.id}' for disk in guest.disks]
    reference_copy(guest, paths)
    return paths


def test_boots_with_both_disks_and_the_probed_accelerator(guest, work):
    assert guest.qmp('query-kvm')['enabled'] == (probe_accel() == 'kvm')
    assert guest.sh('cat /sys/block/vd?/serial') == 'SERIAL-0SERIAL-1'
    for file in (work / 'tree').rglob('*.bin'):
        name = file.relative_to(work / 'tree')
        if file.stat().st_size < 20_000:
            assert guest.sh(f'sha256sum "/mnt/a/{name}"').split()[0] == sha256(file)
    assert 'READY' in guest.serial.read_text()


def test_commands_report_status_and_output(guest):
    assert guest.run('echo "a  \\\\ b"; printf ü; exit 3') == (3, 'a  \\ b\nü')
    assert guest.sh('for i in 1 2\ndo echo $i\ndone') == '1\n2\n'
    with pytest.raises(GuestError, match='no answer in time'):
        guest.run('sleep 1; echo late', timeout=0.1)
    assert guest.sh('echo next') == 'next\n'


def test_frozen_reference_is_clean_and_holds_the_files(guest, work):
    sums = {}
    for dir in 'ab':
        guest.sh(f'head -c 3000000 /dev/urandom >/mnt/{dir}/noise')
        sums[dir] = guest.sh(f'sha256sum /mnt/{dir}/noise').split()[0]
    assert guest.freeze() == 2
    try:
        copies = references(guest, work, 'frozen')
    finally:
        assert guest.thaw() == 2
    for dir, copy in zip('ab', copies):
        assert copy.stat().st_size == SIZE
        assert fsck(copy)[0], fsck(copy)[1]
        subprocess.run(['/sbin/debugfs', '-R', f'dump noise {work}/noise', copy], check=True, capture_output=True)
        assert sha256(work / 'noise') == sums[dir]


def test_reference_of_a_busy_guest_is_what_qemu_reads(guest, work):
    for dir in 'ab':
        step = 'n=$((n+1)); head -c 300000 /dev/urandom >f$((n%9)); rm -f f$((n*5%9)); sync'
        guest.start_writer(f'w{dir}', f'cd /mnt/{dir}; while :; do {step}; done')
    guest.sh('until [ -e /mnt/a/f4 ] && [ -e /mnt/b/f4 ]; do sleep 0.05; done')
    guest.stop_vcpus()
    copies = references(guest, work, 'busy')
    for i, copy in enumerate(copies):
        assert sha256(copy) == sha256(second_opinion(guest, i, work / 'opinion'))
        assert fsck(copy, replay=True)[0], fsck(copy, replay=True)[1]
    assert guest.qmp('query-status')['running'] is False
    guest.cont()
    guest.sh('echo x >/mnt/a/x; echo x >/mnt/b/x; sync')
    later = references(guest, work, 'later')
    assert guest.qmp('query-status')['running'] is True
    guest.stop_writer('wa')
    guest.stop_writer('wb')
    assert all(sha256(one) != sha256(other) for one, other in zip(copies, later))


def test_trimmed_blocks_become_holes(guest, work):
    guest.sh('rm -f /mnt/b/noise /mnt/b/f*; sync; fstrim /mnt/b')
    assert os.stat(work / 'b.raw').st_blocks * 512 < 2 * MIB


def test_sockets_are_free_for_others(guest):
    with Qmp(guest.qmp_path) as one, Qmp(guest.qmp2_path) as two:
        assert one.cmd('query-status') == two.cmd('query-status') == guest.qmp('query-status')
        with pytest.raises(GuestError, match='no answer in time'):  # a monitor serves one client
            Qmp(guest.qmp_path, timeout=0.3)
    assert guest.agent('guest-ping') == {}
    with pytest.raises(GuestError, match='CommandNotFound|not been found'):
        guest.agent('guest-nonsense')


def test_killed_guest_comes_back(guest, work):
    guest.sh('echo kept >/mnt/a/kept; sync')
    guest.crash()
    assert guest.sh('cat /mnt/a/kept') == 'kept\n'
    guest.poweroff()
    assert fsck(work / 'b.raw')[0]
    with pytest.raises(GuestError, match='does not run'):
        guest.qmp('query-status')


def test_guest_that_cannot_start_says_why(tmp_path):
    with pytest.raises(GuestError, match='No such file'):
        Guest(tmp_path, [('/nonexistent', 'raw')], accel='tcg', timeout=5)
    assert not list(tmp_path.glob('*.sock'))


class StandingGuest(Guest):
    """Its CPUs never run, however fast the machine."""

    def _machine_args(self):
        return [*super()._machine_args(), '-S']


def test_guest_that_is_not_ready_in_time_shows_its_console(tmp_path):
    # a second was too short for QEMU itself, on a busy machine: then there is no console to show
    with pytest.raises(GuestError, match='no answer in time(.|\n)*serial.log'):
        StandingGuest(tmp_path, accel='tcg', timeout=8)


@pytest.fixture
def paused(tmp_path):
    make_disk(tmp_path / 'a.qcow2', 'qcow2', MIB, ext4=False)
    make_disk(tmp_path / 'b.raw', 'raw', MIB + 512, ext4=False)
    with PausedQemu(tmp_path / 'vm', [(tmp_path / 'a.qcow2', 'qcow2'), (tmp_path / 'b.raw', 'raw')]) as vm:
        yield vm


def test_paused_writes_are_in_the_reference(paused, tmp_path):
    # A QCOW2 file read without QMP's "stop" lacks the tables that QEMU still holds: it is stale.
    expected = [bytearray(MIB), bytearray(MIB + 512)]
    for disk, model in enumerate(expected):
        for offset, length, byte in [(0, 131072, 0xAB), (70000, 1000, 1), (MIB - 512, 512, 0xFF)]:
            paused.write(disk, offset, length, byte)
            model[offset : offset + length] = bytes([byte]) * length
        paused.write_zeroes(disk, 4096, 8192)
        model[4096:12288] = bytes(8192)
        paused.write_zeroes(disk, 65536, 512, unmap=True)
        model[65536:66048] = bytes(512)
        paused.discard(disk, 0, 65536)
        model[0:65536] = bytes(65536)
    copies = references(paused, tmp_path, 'r')
    for i, model in enumerate(expected):
        assert sha256(copies[i]) == sha256(second_opinion(paused, i, tmp_path / 'opinion')) == sha256(model)


def test_paused_failures_are_errors(paused):
    for offset in (MIB, 2 * MIB):
        with pytest.raises(GuestError, match='write failed: Input/output error'):
            paused.write(0, offset, 512, 1)
    with pytest.raises(GuestError, match='discard failed'):
        paused.discard(0, MIB, 512)
    with pytest.raises(GuestError, match='non-numeric'):
        paused.write(0, 0, '12x', 1)


def test_reference_during_a_backup_job_leaves_its_bitmap(paused, tmp_path):
    paused.qmp('block-dirty-bitmap-add', node='node0', name='b0', persistent=True)
    paused.write(0, 0, 512, 7)
    make_disk(tmp_path / 'scratch', 'qcow2', MIB, ext4=False)
    file = {'driver': 'file', 'filename': str(tmp_path / 'scratch')}
    paused.qmp('blockdev-add', driver='qcow2', node_name='scratch', file=file, backing='node0')
    paused.qmp('blockdev-backup', job_id='job', device='node0', target='scratch', sync='none')
    paused.write(0, 65536, 512, 8)
    copies = references(paused, tmp_path, 'r')
    assert copies[0].read_bytes()[65536:66048] == bytes([8]) * 512
    paused.qmp('job-cancel', id='job')
    paused.monitor.wait_event('BLOCK_JOB_CANCELLED', device='job')
    (bitmap,) = paused.inserted(0)['dirty-bitmaps']
    assert (bitmap['name'], bitmap['count'], bitmap['recording']) == ('b0', 131072, True)


def test_bitmaps_survive_a_restart_and_not_a_crash(paused):
    paused.qmp('block-dirty-bitmap-add', node='node0', name='b0', persistent=True)
    paused.write(0, 0, 512, 7)
    paused.restart()
    (bitmap,) = paused.inserted(0)['dirty-bitmaps']
    assert bitmap['count'] == 65536 and not bitmap.get('inconsistent')
    paused.crash()
    (bitmap,) = paused.inserted(0)['dirty-bitmaps']
    assert bitmap['inconsistent']


def test_resize(paused, tmp_path):
    paused.resize(0, 2 * MIB)
    paused.write(0, 2 * MIB - 512, 512, 3)
    assert references(paused, tmp_path, 'r')[0].stat().st_size == 2 * MIB


def test_long_workdir_has_its_sockets_elsewhere(tmp_path):
    with PausedQemu(tmp_path / ('x' * 100), []) as vm:
        folder = Path(vm.qmp_path).parent
        with Qmp(vm.qmp_path) as qmp:
            assert qmp.cmd('query-status')['running'] is False
    assert not folder.exists()


def test_exception_leaves_no_process(tmp_path):
    with pytest.raises(ZeroDivisionError), PausedQemu(tmp_path, []) as vm:
        pid = vm.process.pid
        raise ZeroDivisionError
    assert gone(pid, 0.1)


def test_killed_test_leaves_no_process(tmp_path):
    script = f'from guest import *; vm = PausedQemu({str(tmp_path)!r}, []); print(vm.process.pid, flush=True); input()'
    try:
        with subprocess.Popen(
            [sys.executable, '-c', script], cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as test:
            pid = int(test.stdout.readline())
            assert not gone(pid, 0.1)
            test.send_signal(signal.SIGKILL)
        assert gone(pid)
    finally:
        for path in tmp_path.glob('*.sock'):  # nobody was left to remove them
            path.unlink()


def test_build_and_probe_are_cached():
    build()
    probe_accel()
    files = [outdir() / name for name in ('vmlinuz', 'initramfs.cpio.gz', 'accel') if (outdir() / name).exists()]
    before = [(file.stat().st_ino, file.stat().st_mtime_ns) for file in files]
    subprocess.run([HERE / 'build-guest', outdir()], check=True)
    subprocess.run([HERE / 'guest.py', 'accel'], check=True)
    assert len(files) >= 2 and [(file.stat().st_ino, file.stat().st_mtime_ns) for file in files] == before
