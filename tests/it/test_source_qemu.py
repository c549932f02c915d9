"""The source for a running QEMU, compared with what its guest would read at the instant of the backup.

Most tests write without a guest: a paused QEMU whose disks the test writes to.
"""

import contextlib
import itertools
import json
import os
import random
import signal
import shutil
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from lib.patience import patience
from lib.qmp_gate import QmpGate
from lib.share import one_in_five
from lib.source_probe import Line, ProbeError
from lib.vm import release_descriptors

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'guest'))

from guest import Guest, GuestError, PausedQemu, make_disk, reference_copy  # noqa: E402

MIB = 1 << 20
SIZE = 16 * MIB
GRAIN = 65536


def image(path, fmt, size=SIZE):
    subprocess.run(['qemu-img', 'create', '-q', '-f', fmt, path, str(size)], check=True)
    return path, fmt


def spec(vm, **more):
    return {'type': 'qemu', 'qmp': vm.qmp_path, **more}


def processes_of(run, name):
    """Living processes whose name starts with this and that the probe started."""
    found = []
    for entry in Path('/proc').iterdir():
        try:
            text = (entry / 'stat').read_text()
        except OSError:
            continue
        comm, _, rest = text.partition('(')[2].rpartition(')')
        fields = rest.split()
        if comm.startswith(name) and int(fields[1]) == run.process.pid and fields[0] != 'Z':
            found.append(int(entry.name))
    return found


def wait_for(condition, what, timeout=60):
    deadline = time.monotonic() + patience(timeout)
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def guard_of(run):
    """Its pid. It is there before the first command, and has its own name a moment later."""
    wait_for(lambda: processes_of(run, 'sendense-guard'), 'no guard')
    guard, = processes_of(run, 'sendense-guard')
    return guard


class Rig:
    """A VM, its line of backups, and what QEMU must look like between them."""

    def __init__(self, folder, vm, **request):
        self.folder, self.vm = folder, vm
        (folder / 'scratch').mkdir(exist_ok=True)
        self.line = Line(folder, spec(vm), scratch=str(folder / 'scratch'), **request)
        self.count = itertools.count()

    def reference(self):
        n = next(self.count)
        paths = [self.folder / f'reference-{n}-{i}' for i in range(len(self.vm.disks))]
        reference_copy(self.vm, paths)
        return paths

    def same(self, run, references):
        for disk, path in zip(self.vm.disks, references, strict=True):
            subprocess.run(['cmp', path, run.image(disk.id)], check=True)
            path.unlink()

    def backup(self, **request):
        """One that must be right and complete, and leave nothing but its bitmaps."""
        references = self.reference()
        run = self.line.backup(**request)
        self.same(run, references)
        self.clean()
        return run

    def leftovers(self):
        vm = self.vm
        nodes = vm.qmp('query-named-block-nodes', flat=True)
        names = [n['node-name'] for n in nodes] + [e['id'] for e in vm.qmp('query-block-exports')]
        names += [j['id'] for j in vm.qmp('query-jobs')]
        bitmaps = [b['name'] for n in nodes for b in n.get('dirty-bitmaps', []) if '.tmp.' in b.get('name', '')]
        files = [str(f) for f in (self.folder / 'scratch').rglob('*') if not f.is_dir()]
        return [n for n in names if n.startswith('sndns-')] + bitmaps + files

    def clean(self):
        assert self.leftovers() == []

    def bitmaps(self, disk=0):
        """Our bitmaps on the disk's top node, as (line, sequence)."""
        found = self.vm.inserted(disk).get('dirty-bitmaps', [])
        return sorted(tuple(b['name'].split('.')[3:5]) for b in found if b.get('name', '').startswith('sendense.'))

    def modes(self, run):
        return [run.copied(d.id)['mode'] for d in self.vm.disks]

    def write_some(self, rand, disks=None):
        for disk in range(len(self.vm.disks)) if disks is None else disks:
            for _ in range(rand.randrange(1, 6)):
                offset = rand.randrange(0, SIZE // 512) * 512
                length = min(SIZE - offset, rand.randrange(1, 600) * 512)
                kind = rand.choice(['write', 'write', 'zero', 'unmap', 'discard'])
                if kind == 'write':
                    self.vm.write(disk, offset, length, rand.randrange(1, 256))
                elif kind == 'discard':
                    self.vm.discard(disk, offset, length)
                else:
                    self.vm.write_zeroes(disk, offset, length, unmap=kind == 'unmap')


@pytest.fixture
def qemu(tmp_path):
    with PausedQemu(tmp_path / 'vm', [image(tmp_path / 'a.qcow2', 'qcow2'), image(tmp_path / 'b.raw', 'raw')]) as vm:
        yield vm


@pytest.fixture
def rig(tmp_path, qemu):
    made = Rig(tmp_path, qemu)
    yield made
    made.line.close()


def test_increments_by_bitmap(rig):
    """A full, then increments that read what changed and nothing else; the view stands still while the guest writes."""
    rand = random.Random(int(os.environ.get('SENDENSE_TEST_SEED', '1')))
    for disk in range(2):
        rig.vm.write(disk, 0, 3 * MIB, 0x11)
    first = rig.backup()
    assert rig.modes(first) == ['whole', 'whole']
    assert first.opened()['consistency'] == 'crash'
    for _ in range(8):
        rig.write_some(rand)
        references = rig.reference()
        run = rig.line.start(hold=['opened'])
        run.until('hold')
        rig.write_some(rand)
        run.go()
        run.finish()
        rig.same(run, references)
        rig.clean()
        assert rig.modes(run) == ['tracked', 'tracked']
        for disk in run.disks().values():
            assert disk['lost'] is None and disk['estimated_bytes'] <= SIZE
        rig.line.completed(run)
        assert len(rig.bitmaps()) == 2  # the new one, and the witness


def test_nothing_changed_reads_nothing(rig):
    rig.vm.write(0, 0, MIB, 0x11)
    rig.backup()
    run = rig.backup()
    assert run.copied('disk0')['read'] == run.copied('disk1')['read'] == 0


def test_clean_stop_keeps_the_bitmap_of_a_qcow2_only(rig):
    rig.vm.write(0, 0, MIB, 0x11)
    rig.vm.write(1, 0, MIB, 0x12)
    rig.backup()
    rig.vm.write(0, 5 * MIB, GRAIN, 0x13)
    rig.vm.restart()
    rig.vm.write(0, 6 * MIB, GRAIN, 0x14)
    rig.vm.write(1, 6 * MIB, GRAIN, 0x15)
    run = rig.backup()
    assert rig.modes(run) == ['tracked', 'whole']
    assert run.copied('disk0')['read'] == 2 * GRAIN
    assert 'missing' in run.disks()['disk1']['lost']
    assert rig.modes(rig.backup()) == ['tracked', 'tracked']


@pytest.mark.parametrize('stored, word', [(True, 'inconsistent'), (False, 'missing')])
def test_crash_loses_the_bitmap(rig, stored, word):
    """One that was stored by a clean stop is marked as in use since; one that never was is not in the file."""
    rig.vm.write(0, 0, MIB, 0x11)
    first = rig.backup()
    if stored:
        rig.vm.restart()
    rig.vm.write(0, 5 * MIB, GRAIN, 0x13)
    rig.vm.crash()
    run = rig.backup()
    assert rig.modes(run) == ['whole', 'whole']
    assert word in run.disks()['disk0']['lost']
    assert run.disks()['disk0']['change_id'].split('/')[0] != first.disks()['disk0']['change_id'].split('/')[0]
    assert place_of(run) == 1
    assert rig.modes(rig.backup()) == ['tracked', 'tracked']


def test_rule_13_failed_runs_stay_in_the_line(rig):
    """What a failed backup saw is in the next one, which starts from the same parent."""
    rig.vm.write(0, 0, MIB, 0x11)
    rig.backup()
    for n in range(3):
        rig.vm.write(0, (2 + n) * MIB, GRAIN, 0x20 + n)
        rig.line.start(completed=False).finish()
        rig.clean()
    assert len(rig.bitmaps()) == 5
    rig.vm.write(0, 8 * MIB, GRAIN, 0x30)
    run = rig.backup()
    assert run.copied('disk0')['read'] == 4 * GRAIN
    assert place_of(run) == 5
    assert len(rig.bitmaps()) == 2


def test_a_line_of_failures_ends(rig):
    """Bitmaps do not pile up for ever in QEMU's memory."""
    rig.vm.write(0, 0, MIB, 0x11)
    rig.backup()
    for _ in range(18):
        rig.line.start(completed=False).finish()
    assert len(rig.bitmaps()) <= 18
    run = rig.backup()
    assert rig.modes(run) == ['whole', 'whole']
    assert len(rig.bitmaps()) == 2


def test_full_starts_a_line_and_a_failed_one_costs_nothing(rig):
    rig.vm.write(0, 0, MIB, 0x11)
    first = rig.backup()
    rig.line.start(full=True, completed=False).finish()
    rig.vm.write(0, 4 * MIB, GRAIN, 0x22)
    second = rig.backup()
    assert second.copied('disk0')['read'] == GRAIN
    assert second.disks()['disk0']['change_id'].split('/')[0] == first.disks()['disk0']['change_id'].split('/')[0]
    third = rig.backup(full=True)
    assert rig.modes(third) == ['whole', 'whole']
    assert place_of(third) == 1
    assert len(rig.bitmaps()) == 2


@pytest.mark.parametrize('phase', ['opened', 'copied'])
@pytest.mark.parametrize('guard', [True, False])
def test_killed_in_the_middle(rig, phase, guard):
    """The guard cleans up; where it was killed as well, the next start does."""
    rig.vm.write(0, 0, MIB, 0x11)
    rig.backup()
    rig.vm.write(0, 2 * MIB, GRAIN, 0x22)
    run = rig.line.start(hold=[phase])
    run.until('hold')
    guard_pid = guard_of(run)
    if not guard:
        os.kill(guard_pid, signal.SIGKILL)
    rig.vm.write(0, 3 * MIB, GRAIN, 0x33)
    run.kill()
    if guard:
        wait_for(lambda: not rig.leftovers(), 'left behind')
        wait_for(lambda: not Path(f'/proc/{guard_pid}').exists(), 'the guard goes on')
    else:
        assert rig.leftovers()
    run = rig.backup()
    assert rig.modes(run) == ['tracked', 'tracked']
    assert run.copied('disk0')['read'] == 2 * GRAIN


@pytest.mark.parametrize('word', ['"blockdev-add"', '"remove-fd"'])
def test_killed_with_a_descriptor_in_qemu(rig, word):
    """The scratch image's descriptor stayed in QEMU for as long as any other monitor was open, as libvirt's is."""
    with QmpGate(rig.folder / 'gate', rig.vm.qmp_path) as gate:
        gate.hold(word)
        rig.line.spec['qmp'] = gate.path
        run = rig.line.start()
        gate.wait_held(run)
        assert rig.vm.qmp('query-fdsets')
        guard_pid = guard_of(run)
        run.kill()
        wait_for(lambda: not Path(f'/proc/{guard_pid}').exists(), 'the guard goes on')
    rig.clean()
    release_descriptors(rig.vm)
    rig.line.spec['qmp'] = rig.vm.qmp_path
    rig.backup()


def end_while_held(run, gate, how):
    """Kills the client, or cancels it and lets go of what is held; waits for its guard, if there is one by now."""
    gate.wait_held(run)
    children = processes_of(run, '')    # the guard may not have its name yet
    if how == signal.SIGKILL:
        run.kill()
    else:
        run.process.send_signal(how)
        gate.wait_went_on(run)
        gate.open()
        with pytest.raises(ProbeError, match='cancelled'):
            run.finish()
    wait_for(lambda: not any(Path(f'/proc/{child}').exists() for child in children), 'the guard goes on')


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize('answer', [False, True], ids=['asked', 'answered'])
def test_ended_while_the_server_starts(rig, how, answer):
    """Who was cancelled before QEMU's answer left its only NBD server running, until the VM's next backup."""
    with QmpGate(rig.folder / 'gate', rig.vm.qmp_path) as gate:
        gate.hold('"nbd-server-start"', answer)
        rig.line.spec['qmp'] = gate.path
        end_while_held(rig.line.start(), gate, how)
        rig.clean()
        server_is_free(rig)
    rig.line.spec['qmp'] = rig.vm.qmp_path
    rig.backup()


def server_is_free(rig):
    with pytest.raises(GuestError, match='not running'):
        rig.vm.qmp('nbd-server-stop')


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGTERM])
def test_ended_at_any_command(rig, how):
    """QEMU did what it was told, and who told it did not hear so: nothing stays, and tracking goes on."""
    rig.vm.write(0, 0, MIB, 0x11)
    rig.backup()
    with QmpGate(rig.folder / 'gate', rig.vm.qmp_path) as gate:
        rig.line.spec['qmp'] = gate.path
        gate.hold('nothing that is ever said')
        run = rig.line.start(hold=['opened'], completed=False)
        run.until('hold')
        opened = gate.count
        run.go()
        run.finish()
        assert 20 < opened < gate.count
        last = gate.count if how == signal.SIGKILL else opened      # a cancel is not heard any more after that
        for n in one_in_five(range(1, last)):                       # 0 is qmp_capabilities
            print(f'command {n} of {gate.count}')
            rig.line.spec['qmp'] = gate.path
            gate.hold('"execute"', answer=True, skip=n)
            end_while_held(rig.line.start(), gate, how)
            rig.clean()
            server_is_free(rig)
            rig.line.spec['qmp'] = rig.vm.qmp_path
            rig.vm.write(0, 2 * MIB, GRAIN, n)
            run = rig.backup()
            assert n > opened or rig.modes(run) == ['tracked', 'tracked'], n


def test_ended_before_the_server_of_somebody_else(rig, tmp_path):
    """Our socket is in QEMU already, and its one NBD server another's: that one goes on, and our socket is given up."""
    theirs = str(tmp_path / 'theirs')
    rig.vm.qmp('nbd-server-start', addr={'type': 'unix', 'data': {'path': theirs}})
    with QmpGate(rig.folder / 'gate', rig.vm.qmp_path) as gate:
        gate.hold('"nbd-server-start"')
        rig.line.spec['qmp'] = gate.path
        end_while_held(rig.line.start(), gate, signal.SIGKILL)
    subprocess.run(['nbdinfo', '--list', f'nbd+unix:///?socket={theirs}'], check=True, stdout=subprocess.DEVNULL)
    with pytest.raises(GuestError, match='sendense'):
        rig.vm.qmp('closefd', fdname='sendense')
    rig.vm.qmp('nbd-server-stop')
    rig.clean()
    rig.line.spec['qmp'] = rig.vm.qmp_path
    rig.backup()


def test_killed_and_at_once_again(rig):
    """The guard of the killed run and the next run do not disturb each other."""
    rig.backup()
    for n in range(5):
        rig.vm.write(0, n * MIB, GRAIN, 0x22 + n)
        run = rig.line.start(hold=['opened'])
        run.until('hold')
        run.kill()
        run = rig.backup()
        assert rig.modes(run) == ['tracked', 'tracked']
        assert run.copied('disk0')['read'] == GRAIN


def test_term_cancels(rig):
    rig.vm.write(0, 0, 8 * MIB, 0x11)
    run = rig.line.start(hold=['opened'])
    run.until('hold')
    run.process.send_signal(signal.SIGTERM)
    with pytest.raises(ProbeError, match='cancelled'):
        run.finish()
    rig.clean()
    rig.backup()


def place_of(run, disk='disk0'):
    """The upper bits of its change ID's number; the lower ones are random."""
    return int(run.disks()[disk]['change_id'].split('/')[1]) >> 40


def test_disk_that_goes_back_and_forth(rig, tmp_path):
    """A failed run's bitmap in one state of the disk had the name of a completed run's in another, and was followed."""
    def put(aside, back):
        rig.vm.quit()
        if aside:
            shutil.copy(rig.vm.disks[0].path, aside)
        if back:
            shutil.copy(back, rig.vm.disks[0].path)
        rig.vm.start()

    rig.vm.write(0, 0, MIB, 0x11)
    rig.backup()
    put(tmp_path / 'early', None)
    rig.line.start(completed=False).finish()
    rig.vm.write(0, 0, GRAIN, 0x22)
    put(tmp_path / 'with-a-failure', tmp_path / 'early')
    rig.vm.write(0, MIB // 2, GRAIN, 0x33)
    run = rig.backup()
    assert run.copied('disk0')['mode'] == 'tracked' and place_of(run) == 2
    put(None, tmp_path / 'with-a-failure')
    run = rig.backup()
    assert run.copied('disk0')['mode'] == 'whole'
    assert 'went back to an earlier state' in run.disks()['disk0']['lost']
    assert rig.modes(rig.backup())[0] == 'tracked'


def migrate_to_file(vm, path):
    """As to another host: the end is that the disks are given up. Returns the migration's status."""
    vm.qmp('migrate', uri=f'exec:cat > {path}')
    wait_for(lambda: vm.qmp('query-migrate').get('status') in {'completed', 'failed'}, 'the migration does not end')
    return vm.qmp('query-migrate')['status']


def test_guest_that_has_migrated(rig, tmp_path):
    """A backup at the QEMU that the guest had left took its disks back, and stored bitmaps while another one writes."""
    rig.vm.write(0, 0, MIB, 0x11)
    rig.backup()
    assert migrate_to_file(rig.vm, tmp_path / 'state') == 'completed'
    disks = [Path(disk.path) for disk in rig.vm.disks]
    before = [path.read_bytes() for path in disks]
    with pytest.raises(ProbeError, match=r'busy: .*migrate.*postmigrate'):
        rig.line.start().finish()
    rig.clean()
    rig.vm.quit()
    assert [path.read_bytes() for path in disks] == before
    rig.vm.start()
    assert rig.modes(rig.backup()) == ['tracked', 'whole']


def test_guest_that_is_to_come(tmp_path):
    """Of the QEMU that a guest migrates to, the disks are another's until it is there; the backup says so."""
    class Incoming(PausedQemu):
        def _machine_args(self):
            return [*super()._machine_args(), '-incoming', 'defer']

    with Incoming(tmp_path / 'vm', [image(tmp_path / 'a.qcow2', 'qcow2')]) as vm:
        rig = Rig(tmp_path, vm)
        with pytest.raises(ProbeError, match=r'busy: .*migrates.*inmigrate'):
            rig.line.start().finish()
        assert rig.leftovers() == [] and rig.bitmaps() == []
        rig.line.close()


def test_migration_ends_during_a_backup(rig, tmp_path):
    """It fails, since old data is still to be kept here; the backup is right, and the next one too."""
    rig.vm.write(0, 0, 8 * MIB, 0x11)
    references = rig.reference()
    run = rig.line.start(hold=['opened'])
    run.until('hold')
    assert migrate_to_file(rig.vm, tmp_path / 'state') == 'failed'
    rig.vm.write(0, MIB, MIB, 0x12)
    run.go()
    rig.same(rig.line.completed(run.finish()), references)
    rig.clean()
    rig.vm.qmp('cont')  # as whoever migrates it does
    rig.vm.qmp('stop')
    assert rig.modes(rig.backup()) == ['tracked', 'tracked']


def test_rule_10_external_snapshot_hides_the_bitmap(rig, tmp_path):
    """The bitmap sits on the backing node, "recording", and blind."""
    rig.vm.write(0, 0, MIB, 0x11)
    rig.backup()
    overlay = tmp_path / 'overlay.qcow2'
    rig.vm.qmp('blockdev-snapshot-sync', {
        'node-name': rig.vm.inserted(0)['node-name'], 'snapshot-file': str(overlay), 'snapshot-node-name': 'over0'})
    rig.vm.write(0, 4 * MIB, GRAIN, 0x22)
    run = rig.backup()
    assert rig.modes(run) == ['whole', 'tracked']
    assert 'snapshot' in run.disks()['disk0']['lost']
    rig.vm.write(0, 5 * MIB, GRAIN, 0x23)
    assert rig.modes(rig.backup()) == ['tracked', 'tracked']


def test_snapshot_committed_back(rig, tmp_path):
    rig.vm.write(0, 0, MIB, 0x11)
    rig.backup()
    node = rig.vm.inserted(0)['node-name']
    rig.vm.qmp('blockdev-snapshot-sync', {
        'node-name': node, 'snapshot-file': str(tmp_path / 'o'), 'snapshot-node-name': 'over0'})
    rig.vm.write(0, 4 * MIB, GRAIN, 0x22)
    rig.vm.qmp('block-commit', {'job-id': 'c', 'device': 'over0'})
    rig.vm.monitor.wait_event('BLOCK_JOB_READY', device='c')
    rig.vm.qmp('block-job-complete', device='c')
    rig.vm.monitor.wait_event('BLOCK_JOB_COMPLETED', device='c')
    rig.vm.write(0, 5 * MIB, GRAIN, 0x23)
    rig.backup()


def test_many_failed_fulls_leave_the_line_alone(rig):
    """Each leaves two bitmaps; with 64 of them an increment removed also those that it had just counted on."""
    rig.vm.write(0, 0, MIB, 0x11)
    rig.backup()
    node = rig.vm.inserted(0)
    name = node['dirty-bitmaps'][0]['name'].split('.')
    for _ in range(64):
        name[3:5] = str(uuid.uuid4()), '1'
        rig.vm.qmp('block-dirty-bitmap-add', node=node['node-name'], name='.'.join(name))
    rig.vm.write(0, MIB, GRAIN, 0x22)
    assert rig.modes(rig.backup()) == ['tracked', 'tracked']
    assert len(rig.bitmaps()) == 2


@pytest.mark.parametrize('disk', [0, 1])
def test_resized(rig, disk):
    """Larger: a new line. Shrunk and grown back: the same size, and a bitmap that lost its bits: a new line too."""
    rig.vm.write(disk, 12 * MIB, MIB, 0x11)
    rig.backup()
    rig.vm.resize(disk, 20 * MIB)
    rig.vm.write(disk, 18 * MIB, MIB, 0x12)
    run = rig.backup()
    assert rig.modes(run)[disk] == 'whole' and 'resized' in run.disks()[f'disk{disk}']['lost']
    assert run.disks()[f'disk{disk}']['size'] == 20 * MIB
    assert rig.modes(rig.backup())[disk] == 'tracked'
    rig.vm.resize(disk, 8 * MIB)
    rig.vm.resize(disk, 20 * MIB)
    run = rig.backup()
    assert rig.modes(run)[disk] == 'whole' and 'resized' in run.disks()[f'disk{disk}']['lost']
    assert rig.modes(rig.backup())[disk] == 'tracked'


@pytest.mark.parametrize('disk', [0, 1])
def test_resized_within_the_last_granule(rig, disk):
    """The witness keeps its bit, and no bitmap shows what a raw disk has lost."""
    rig.vm.write(disk, SIZE - GRAIN, GRAIN, 0x11)
    rig.backup()
    rig.vm.resize(disk, SIZE - 512)
    rig.vm.resize(disk, SIZE)
    assert rig.modes(rig.backup())[disk] == 'tracked'


@pytest.mark.parametrize('harm, words', [
    ('remove', 'missing'), ('disable', 'disabled by somebody'), ('witness', 'resized'), ('twice', 'twice')])
def test_users_break_bitmaps(rig, harm, words):
    """Lost tracking is never an error that stops backups for good."""
    rig.vm.write(0, 0, MIB, 0x11)
    rig.backup()
    node = rig.vm.inserted(0)
    name = {int(b['name'].rpartition('.')[2]) >> 40: b['name'] for b in node['dirty-bitmaps']}
    at = {'node': node['node-name'], 'name': name[0 if harm == 'witness' else 1]}
    if harm in ('remove', 'witness'):
        rig.vm.qmp('block-dirty-bitmap-remove', at)
    elif harm == 'disable':
        rig.vm.qmp('block-dirty-bitmap-disable', at)
    else:
        rig.vm.qmp('block-dirty-bitmap-add', {'node': 'node1', 'name': at['name']})
    rig.vm.write(0, 4 * MIB, GRAIN, 0x22)
    run = rig.backup()
    assert rig.modes(run)[0] == 'whole' and words in run.disks()['disk0']['lost']
    assert rig.modes(rig.backup()) == ['tracked', 'tracked']


def test_two_repositories_have_lines_of_their_own(rig, tmp_path):
    rig.vm.write(0, 0, MIB, 0x11)
    (tmp_path / 'other').mkdir()
    other = Rig(tmp_path / 'other', rig.vm, vm_id=rig.line.request['vm_id'])
    rig.backup()
    other.backup()
    rig.vm.write(0, 2 * MIB, GRAIN, 0x22)
    run = rig.backup()
    assert run.copied('disk0')['read'] == GRAIN
    rig.vm.write(0, 4 * MIB, GRAIN, 0x23)
    run = other.backup()
    assert run.copied('disk0')['read'] == 2 * GRAIN
    assert len(rig.bitmaps()) == 4
    other.line.close()


def test_rule_12_foreign_bitmaps_are_not_touched(rig):
    names = ['mine', 'sendense.x.y.z.1', f'sendense.{rig.line.request["repository_uuid"]}.other.z.1']
    for name in names:
        rig.vm.qmp('block-dirty-bitmap-add', {'node': 'node0', 'name': name})
    rig.backup()
    rig.backup()
    found = [b['name'] for b in rig.vm.inserted(0)['dirty-bitmaps']]
    assert set(names) <= set(found)


def test_excluded_disk(rig):
    references = rig.reference()
    run = rig.line.backup(excluded=['disk1'])
    assert list(run.disks()) == ['disk0'] and run.opened()['left_out'] == ['disk1']
    subprocess.run(['cmp', references[0], run.image('disk0')], check=True)
    assert rig.bitmaps(1) == []
    with pytest.raises(ProbeError, match='not_found.*no disk that is not excluded'):
        rig.line.backup(excluded=['disk0', 'disk1'])
    rig.clean()


def test_nbd_server_of_somebody_else(rig, tmp_path):
    """It is never stopped, and its exports stay."""
    path = str(tmp_path / 'theirs')
    rig.vm.qmp('nbd-server-start', addr={'type': 'unix', 'data': {'path': path}})
    rig.vm.qmp('block-export-add', {'type': 'nbd', 'id': 'theirs', 'node-name': 'node1', 'name': 'x'})
    with pytest.raises(ProbeError, match='busy.*NBD server'):
        rig.backup()
    rig.clean()
    assert [e['id'] for e in rig.vm.qmp('query-block-exports')] == ['theirs']
    subprocess.run(['nbdinfo', '--size', f'nbd+unix:///x?socket={path}'], check=True, stdout=subprocess.DEVNULL)
    rig.vm.qmp('block-export-del', id='theirs')
    rig.vm.monitor.wait_event('BLOCK_EXPORT_DELETED', id='theirs')
    rig.vm.qmp('nbd-server-stop')
    rig.backup()


def test_export_of_somebody_else_on_our_server(rig):
    run = rig.line.start(hold=['opened'])
    run.until('hold')
    rig.vm.qmp('block-export-add', {'type': 'nbd', 'id': 'theirs', 'node-name': 'node1', 'name': 'x'})
    run.go()
    run.finish()
    assert [e['id'] for e in rig.vm.qmp('query-block-exports')] == ['theirs']


def test_monitor_is_busy(rig):
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(rig.vm.qmp_path)
        other.recv(1000)
        with pytest.raises(ProbeError, match='busy.*no greeting'):
            rig.backup()
    rig.backup()


@contextlib.contextmanager
def bound(path):
    """A socket with this name, to which nobody listens yet."""
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(path)
        try:
            yield s
        finally:
            os.unlink(path)


@pytest.mark.parametrize('path', ['/nonexistent/qmp', 'deaf'])
def test_monitor_is_not_there(rig, path, tmp_path):
    path = str(tmp_path / path)
    rig.line.spec = {'type': 'qemu', 'qmp': path}
    with bound(path) if path.endswith('deaf') else contextlib.nullcontext(), \
            pytest.raises(ProbeError, match='not_found|unavailable'):
        rig.backup()


def test_agent_is_absent(rig, tmp_path):
    path = str(tmp_path / 'agent')
    with bound(path) as s:  # QEMU takes the connection, and no guest answers
        s.listen()
        rig.line.spec = spec(rig.vm, agent=path)
        run = rig.backup()
        assert run.opened()['consistency'] == 'crash' and 'not running' in run.opened()['consistency_detail']
        rig.line.spec = spec(rig.vm, agent=path, freeze='require')
        with pytest.raises(ProbeError, match='not running'):
            rig.backup()
    rig.clean()


def test_qemu_quits_in_the_middle(rig):
    rig.vm.write(0, 0, 8 * MIB, 0x11)
    run = rig.line.start(hold=['copied'])
    run.until('hold')
    rig.vm.quit()
    run.go()
    with pytest.raises(ProbeError, match='lost|view ended'):  # the job's end may be told before QEMU's
        run.finish()
    rig.vm.start()
    wait_for(lambda: rig.leftovers() == [], 'the guard has not removed what the client could not')
    rig.backup()


@pytest.mark.parametrize('phase', ['opened', 'copied'])
def test_rule_09_view_that_thaws_fails_the_backup(rig, phase):
    """Safety rule 9: when the job ends, the export goes on, and shows the live disk."""
    rig.vm.write(0, 0, 8 * MIB, 0x11)
    run = rig.line.start(hold=[phase])
    run.until('hold')
    job = next(j['id'] for j in rig.vm.qmp('query-jobs') if j['id'].endswith('-1'))
    rig.vm.qmp('job-cancel', id=job)
    run.go()
    with pytest.raises(ProbeError, match='conflict.*frozen view ended'):
        run.finish()
    rig.clean()
    rig.backup()


@pytest.fixture
def small_scratch(tmp_path):
    path = tmp_path / 'small'
    path.mkdir()
    made = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=40M', 'tmpfs', path], check=False, capture_output=True)
    if made.returncode != 0:
        pytest.skip(f'no tmpfs can be mounted here: {made.stderr.decode().strip()}')
    yield path
    subprocess.run(['umount', path], check=True)


LOW_WATER = 16 * MIB    # of a small file system, source/qemu/scratch.c


def free_bytes(folder):
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize


def test_scratch_runs_full(tmp_path, small_scratch):
    """The backup gives way before the guest's own writes fail."""
    size = 64 * MIB
    with PausedQemu(tmp_path / 'vm', [image(tmp_path / 'a.qcow2', 'qcow2', size)]) as vm:
        rig = Rig(tmp_path, vm)
        rig.line.request['scratch'] = str(small_scratch)
        vm.write(0, 0, size, 0x11)
        run = rig.line.start(hold=['opened'])
        run.until('hold')
        for at in range(0, size, 4 * MIB):  # each write must succeed
            vm.write(0, at, 4 * MIB, 0x22)
            if free_bytes(small_scratch) < LOW_WATER:   # what is left is for a guest that writes while we look
                wait_for(lambda: not vm.qmp('query-jobs'), 'the backup does not give way')
        run.go()
        with pytest.raises(ProbeError, match='no_space.*gave way'):
            run.finish()
        rig.clean()
        rig.line.close()


def test_scratch_is_too_small_to_start(tmp_path, small_scratch):
    with PausedQemu(tmp_path / 'vm', [image(tmp_path / 'a.qcow2', 'qcow2', 1 << 30)]) as vm:
        rig = Rig(tmp_path, vm)
        rig.line.request['scratch'] = str(small_scratch)
        with pytest.raises(ProbeError, match='no_space.*needed to start'):
            rig.backup()
        rig.clean()


def test_scratch_folder_of_somebody_else(rig, tmp_path):
    theirs = tmp_path / 'scratch' / f'sendense-scratch-{os.geteuid()}'
    theirs.mkdir(mode=0o755)
    theirs.chmod(0o755)
    with pytest.raises(ProbeError, match='forbidden'):
        rig.line.backup()


@pytest.mark.parametrize('bad', [
    {},
    {'qmp': 'relative'},
    {'qmp': '/' + 'x' * 107},
    {'qmp': '/q', 'freeze': 'maybe'},
    {'qmp': '/q', 'freeze': 'require'},
    {'qmp': '/q', 'surprise': 1},
])
def test_bad_specs(tmp_path, bad):
    with pytest.raises(ProbeError, match='invalid'):
        Line(tmp_path, {'type': 'qemu', **bad}).backup()


@pytest.fixture
def guest(tmp_path):
    disk = tmp_path / 'root.qcow2'
    make_disk(disk, 'qcow2', 64 * MIB)
    with Guest(tmp_path / 'vm', [(disk, 'qcow2')]) as vm:
        yield vm


def test_guest_is_frozen_and_thawed(tmp_path, guest):
    """With the agent the file system is as the applications left it: no journal to replay."""
    rig = Rig(tmp_path, guest)
    rig.line.spec = spec(guest, agent=guest.agent_path)
    guest.sh('echo hello > /mnt/a/file')  # not synced
    run = rig.line.backup()
    assert run.opened()['consistency'] == 'application' and run.opened()['consistency_detail'] is None
    assert guest.agent('guest-fsfreeze-status') == 'thawed'
    guest.sh('echo more > /mnt/a/more; sync')
    clean = subprocess.run(['e2fsck', '-fn', run.image('disk0')], check=False, capture_output=True)
    assert clean.returncode == 0, clean.stdout
    text = subprocess.run(['debugfs', '-R', 'cat /file', run.image('disk0')], check=True, capture_output=True).stdout
    assert text == b'hello\n'
    rig.clean()
    rig.line.close()


def test_view_of_a_busy_guest(tmp_path, guest):
    """The guest writes while its disk is read: what is read is the instant's state all the same, in increments too."""
    rig = Rig(tmp_path, guest)
    guest.start_writer('busy', 'i=0; while :; do i=$((i+1)); dd if=/dev/urandom of=/mnt/a/f$((i%7)) bs=4k count=150 '
                               'conv=fsync; rm -f /mnt/a/f$(((i+3)%7)); [ $((i%10)) = 0 ] && fstrim /mnt/a; done')
    for n in range(6):
        guest.stop_vcpus()
        references = rig.reference()
        run = rig.line.start(hold=['opened'])
        run.until('hold')
        guest.cont()
        time.sleep(0.5)
        run.go()
        rig.same(run.finish(), references)
        rig.line.completed(run)
        assert rig.modes(run) == ['whole' if n == 0 else 'tracked']
    guest.stop_writer('busy')
    rig.clean()
    rig.line.close()


class ThreadedQemu(PausedQemu):
    """Disks in I/O threads, as hosts with fast storage have them."""

    def _disk_args(self):
        args = super()._disk_args()
        for i in range(len(self.disks)):
            at = next(n for n, a in enumerate(args) if a.startswith(f'virtio-blk-pci,id=disk{i},'))
            args[at] += f',iothread=io{i}'
            args += ['-object', f'iothread,id=io{i}']
        return args


def test_disks_in_io_threads(tmp_path):
    images = [image(tmp_path / 'a.qcow2', 'qcow2'), image(tmp_path / 'b.raw', 'raw')]
    with ThreadedQemu(tmp_path / 'vm', images) as vm:
        rig = Rig(tmp_path, vm)
        rand = random.Random(1)
        for n in range(3):
            rig.write_some(rand)
            assert rig.modes(rig.backup()) == (['whole', 'whole'] if n == 0 else ['tracked', 'tracked'])
        rig.line.close()


class ReadOnlyQemu(PausedQemu):
    """Some disks are read-only, until it is started again with other ones; and there is a CD in a drive."""

    read_only = ()

    def _machine_args(self):
        cd = {'driver': 'raw', 'node-name': 'cd', 'read-only': True,
              'file': {'driver': 'file', 'filename': self.disks[0].path + '.iso'}}
        return [*super()._machine_args(), '-blockdev', json.dumps(cd), '-device', 'ide-cd,id=cd0,drive=cd']

    def _disk_args(self):
        args = super()._disk_args()
        for n, arg in enumerate(args):
            if arg.startswith('{') and int((node := json.loads(arg))['node-name'][4:]) in self.read_only:
                args[n] = json.dumps({**node, 'read-only': True})
        return args


def test_read_only_disks(tmp_path):
    """They were left out without a word. They are not tracked, and writable again they are as any other."""
    images = [image(tmp_path / f'{n}.{fmt}', fmt) for n, fmt in enumerate(('qcow2', 'raw', 'qcow2'))]
    (tmp_path / '0.qcow2.iso').write_bytes(bytes(65536))
    with ReadOnlyQemu(tmp_path / 'vm', images) as vm:
        rig = Rig(tmp_path, vm)
        for disk in range(3):
            vm.write(disk, 0, MIB, 0x11 + disk)
        assert list(rig.backup().disks()) == ['disk0', 'disk1', 'disk2']
        vm.read_only = (1, 2)
        vm.restart()
        for count in range(2):
            vm.write(0, 2 * MIB, GRAIN, 0x21 + count)
            run = rig.backup()
            assert run.opened()['left_out'] == []
            assert rig.modes(run) == ['tracked', 'whole', 'whole']
            for disk in ('disk1', 'disk2'):
                assert run.disks()[disk]['tracking'] == 'none' and 'read-only' in run.disks()[disk]['lost']
            assert rig.bitmaps(1) == []
        assert len(rig.bitmaps(2)) == 2     # of the time before: QEMU cannot remove them
        run = rig.backup(excluded=['disk1'])
        assert list(run.disks()) == ['disk0', 'disk2'] and run.opened()['left_out'] == ['disk1']
        vm.read_only = ()
        vm.restart()
        vm.write(2, 3 * MIB, GRAIN, 0x31)
        run = rig.backup()
        assert rig.modes(run) == ['tracked', 'whole', 'whole']
        assert len(rig.bitmaps(2)) == 2     # new ones
        assert rig.modes(rig.backup()) == ['tracked', 'tracked', 'tracked']
        rig.line.close()


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGTERM])
def test_ended_while_frozen(tmp_path, guest, how):
    """A client that ends between freeze and thaw thaws; one that is killed leaves that to its guard."""
    rig = Rig(tmp_path, guest)
    with QmpGate(tmp_path / 'gate', guest.qmp_path) as gate:
        gate.hold('"transaction"')
        rig.line.spec = {'type': 'qemu', 'qmp': gate.path, 'agent': guest.agent_path}
        run = rig.line.start()
        gate.wait_held(run)
        assert guest.qmp('query-block-exports') == []
        guard_pid = guard_of(run)
        # The probe keeps the agent's socket while the guest is frozen; the harness may have it only afterwards.
        if how == signal.SIGKILL:
            run.kill()
        else:
            run.process.send_signal(how)
            gate.wait_went_on()     # with what it wants to remove: it has thawed, while QEMU owed it an answer
            assert guest.agent('guest-fsfreeze-status') == 'thawed'
            gate.open()             # and the transaction is carried out after all
            with pytest.raises(ProbeError, match='cancelled'):
                run.finish()
        wait_for(lambda: guest.agent('guest-fsfreeze-status') == 'thawed', 'still frozen')
        wait_for(lambda: not Path(f'/proc/{guard_pid}').exists(), 'the guard goes on')
        rig.clean()
    guest.sh('echo alive > /mnt/a/alive; sync')
    rig.line.spec = spec(guest, agent=guest.agent_path)
    assert rig.line.backup().opened()['consistency'] == 'application'
    rig.line.close()
