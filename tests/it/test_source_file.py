"""The source for files, block devices and NBD exports, read to the byte and compared with what is there."""

import contextlib
import os
import random
import select
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from lib.history import wait_for
from lib.patience import patience
from lib.source_probe import Line, ProbeError
from lib.system import children

MIB = 1 << 20


def noise(path, size, seed=1):
    Path(path).write_bytes(random.Random(seed).randbytes(size))
    return path


def tool(*args):
    subprocess.run([str(a) for a in args], check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)


def spec(*disks, **more):
    return {'type': 'file', 'disks': list(disks), **more}


def raw_of(image, out):
    tool('qemu-img', 'convert', '-O', 'raw', image, out)
    return Path(out).read_bytes()


@pytest.mark.parametrize('size', [1, 511, 512, 513, 65536, 65537, 3 * MIB + 5])
def test_raw_is_exact_to_the_byte(tmp_path, size):
    image = noise(tmp_path / 'a,b=c:d ü.img', size)
    run = Line(tmp_path, spec({'path': str(image)})).backup()
    disk = run.disks()['disk-0']
    assert disk['size'] == size
    assert disk['tracking'] == 'none' and disk['base_change_id'] is None
    assert run.image('disk-0').read_bytes() == image.read_bytes()


def test_empty_file_is_refused(tmp_path):
    (tmp_path / 'a').touch()
    with pytest.raises(ProbeError, match='invalid.*is empty'):
        Line(tmp_path, spec({'path': str(tmp_path / 'a')})).backup()


def test_sparse_raw_holes_are_not_read(tmp_path):
    image = tmp_path / 'a.img'
    with open(image, 'wb') as f:
        f.truncate(64 * MIB + 1)
        f.seek(20 * MIB)
        f.write(b'x' * 100000)
    run = Line(tmp_path, spec({'path': str(image), 'format': 'raw'})).backup()
    assert run.copied('disk-0')['read'] < MIB
    assert run.image('disk-0').read_bytes() == image.read_bytes()


def test_a_backup_reads_no_holes(make_hub, place):
    """Of 64 GiB with two pieces of data. The map's holes were not marked as zero: all of an image was read."""
    image, size = place / 'a.img', (64 << 30) + 513
    with open(image, 'wb') as f:
        f.write(b'x' * 100000)
        f.seek(63 << 30)
        f.write(b'y' * 70000)
        f.truncate(size)
    hub = make_hub()
    made = hub.api.post('/repositories', {'name': 'main', 'path': str(place / 'main')}).expect(201)
    hub.api.post('/vms', {'name': 'web', 'source': {'type': 'file', 'disks': [
        {'path': str(image), 'format': 'raw'}]}}).expect(201)
    for mode in ('full', 'compare'):
        job = hub.api.post('/backups', {'vm_name': 'web', 'repository_id': made['repository_id']}).expect(201)
        disk, = hub.api.wait_status(job['backup_id'], {'completed'})['disks']
        assert (disk['mode'], disk['done_bytes']) == (mode, size)
        assert 170000 <= disk['read_bytes'] < MIB, disk


def test_several_disks_keys_and_exclusion(tmp_path):
    a, b, c = (noise(tmp_path / n, 100_000, seed) for seed, n in enumerate('abc'))
    run = Line(tmp_path, spec({'path': str(a)}, {'path': str(b), 'key': 'dätä/2'}, {'path': str(c)}),
               excluded=['dätä/2', 'unknown']).backup()
    assert list(run.disks()) == ['disk-0', 'disk-2']
    assert run.opened()['left_out'] == ['dätä/2']
    assert run.image('disk-2').read_bytes() == c.read_bytes()


def test_parent_is_answered_with_a_reason(tmp_path):
    line = Line(tmp_path, spec({'path': str(noise(tmp_path / 'a', 1000))}))
    first = line.backup().disks()['disk-0']
    second = line.backup().disks()['disk-0']
    assert first['lost'] is None and second['lost']
    assert second['change_id'] != first['change_id'] and second['base_change_id'] is None


@pytest.mark.parametrize('options', [[], ['-o', 'compat=0.10'], ['-c'], ['-o', 'extended_l2=on,cluster_size=128k']])
def test_qcow2_is_probed(tmp_path, options):
    base = noise(tmp_path / 'base.raw', 5 * MIB)
    image = tmp_path / 'a.qcow2'
    tool('qemu-img', 'convert', '-O', 'qcow2', *options, base, image)
    run = Line(tmp_path, spec({'path': str(image)})).backup()
    assert run.disks()['disk-0']['label'].endswith('(qcow2)')
    assert run.image('disk-0').read_bytes() == base.read_bytes()


@pytest.mark.parametrize('form', ['vmdk', 'vmdk -o subformat=monolithicFlat', 'vdi', 'vhdx', 'vpc', 'qed'])
def test_other_containers_are_not_taken_for_raw(tmp_path, form):
    """The 512 bytes that describe a flat VMDK were backed up, and nothing of its disk."""
    tool('qemu-img', 'create', '-q', '-f', *form.split(), tmp_path / 'a.img', '8M')
    with pytest.raises(ProbeError, match='unsupported.*convert it'):
        Line(tmp_path, spec({'path': str(tmp_path / 'a.img')})).backup()
    run = Line(tmp_path / 'b', spec({'path': str(tmp_path / 'a.img'), 'format': 'raw'})).backup()
    assert run.image('disk-0').read_bytes() == (tmp_path / 'a.img').read_bytes()


def qcow2(tmp_path):
    tool('qemu-img', 'convert', '-O', 'qcow2', noise(tmp_path / 'base.raw', MIB), tmp_path / 'a.qcow2')
    return tmp_path / 'a.qcow2'


def chain(tmp_path):
    """base.raw <- mid.qcow2 <- top.qcow2, with data of each showing, and a hole that covers data."""
    noise(tmp_path / 'base.raw', 4 * MIB)
    tool('qemu-img', 'create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', 'base.raw', tmp_path / 'mid.qcow2')
    tool('qemu-io', '-c', 'write -P 0x11 1M 1M', tmp_path / 'mid.qcow2')
    tool('qemu-img', 'create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', 'mid.qcow2', tmp_path / 'top.qcow2')
    tool('qemu-io', '-c', 'write -P 0x22 1536k 128k', '-c', 'write -z 3M 64k', tmp_path / 'top.qcow2')
    return tmp_path / 'top.qcow2'


def test_backing_chain(tmp_path):
    top = chain(tmp_path)
    run = Line(tmp_path, spec({'path': str(top), 'format': 'qcow2'})).backup()
    assert run.image('disk-0').read_bytes() == raw_of(top, tmp_path / 'expected')


def test_guessed_qcow2_may_not_name_other_files(tmp_path):
    """A guest that writes a QCOW2 header to its raw disk must not choose what of the host is read."""
    top = chain(tmp_path)
    with pytest.raises(ProbeError, match='invalid.*backing file'):
        Line(tmp_path, spec({'path': str(top)})).backup()
    run = Line(tmp_path / 'b', spec({'path': str(top), 'format': 'raw'})).backup()
    assert run.image('disk-0').read_bytes() == top.read_bytes()


@pytest.mark.parametrize('name', ['json:{"driver":"null-co"}', 'nbd:unix:/tmp/x', 'file:base.raw'])
def test_backing_names_that_are_no_paths_are_refused(tmp_path, name):
    image = tmp_path / 'a.qcow2'
    tool('qemu-img', 'create', '-q', '-f', 'qcow2', '-u', '-F', 'raw', '-b', name, image, '1M')
    with pytest.raises(ProbeError, match='unsupported.*no plain path'):
        Line(tmp_path, spec({'path': str(image), 'format': 'qcow2'})).backup()


def test_backing_file_without_a_format_is_refused(tmp_path):
    noise(tmp_path / 'base.raw', MIB)
    image = tmp_path / 'a.qcow2'
    tool('qemu-img', 'create', '-q', '-f', 'qcow2', '-F', 'raw', '-b', 'base.raw', image)
    blob = bytearray(image.read_bytes())
    at = blob.index(bytes.fromhex('e2792aca'))
    blob[at:at + 4] = bytes.fromhex('12345678')
    image.write_bytes(blob)
    with pytest.raises(ProbeError, match='unsupported.*format of its backing'):
        Line(tmp_path, spec({'path': str(image), 'format': 'qcow2'})).backup()


def test_external_data_file_is_refused(tmp_path):
    image = tmp_path / 'a.qcow2'
    tool('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', f'data_file={tmp_path}/data', image, '1M')
    with pytest.raises(ProbeError, match='unsupported.*data file'):
        Line(tmp_path, spec({'path': str(image), 'format': 'qcow2'})).backup()


def greets(path):
    """It listens before it opens the image, and answers after that: a name said too little."""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(patience(60))
        return s.connect_ex(str(path)) == 0 and s.recv(8) == b'NBDMAGIC'


@pytest.fixture
def writer(tmp_path):
    """An image that a QEMU writes to."""
    image = noise(tmp_path / 'a.img', MIB)
    command = ['qemu-nbd', '-t', '-f', 'raw', '-k', tmp_path / 'w', image]
    with subprocess.Popen(command) as process:
        try:
            wait_for(lambda: greets(tmp_path / 'w'), 'qemu-nbd has the image')
            yield image
        finally:
            process.terminate()


def test_in_use_by_a_writer_is_refused(tmp_path, writer):
    with pytest.raises(ProbeError, match='busy.*in use by a writer'):
        Line(tmp_path, spec({'path': str(writer)})).backup()
    run = Line(tmp_path / 'b', spec({'path': str(writer)}, inconsistent=True)).backup()
    assert run.opened()['consistency'] == 'inconsistent'
    assert run.image('disk-0').read_bytes() == writer.read_bytes()


def test_a_vm_cannot_start_on_it_during_the_backup(tmp_path):
    image = noise(tmp_path / 'a.img', MIB)
    run = Line(tmp_path, spec({'path': str(image)})).start(hold=['opened'])
    run.until('hold')
    late = subprocess.run(['qemu-io', '-f', 'raw', '-c', 'write 0 512', image], check=False, capture_output=True)
    assert b'lock' in late.stderr + late.stdout
    run.go()
    run.finish()


@pytest.mark.parametrize('change', ['write', 'grow', 'shrink', 'replace'])
def test_change_during_the_backup_is_found(tmp_path, change):
    image = noise(tmp_path / 'a.img', MIB)
    run = Line(tmp_path, spec({'path': str(image)})).start(hold=['copied'])
    run.until('hold')
    time.sleep(0.02)  # file systems stamp with a clock that ticks
    if change == 'replace':
        noise(tmp_path / 'b.img', MIB).rename(image)
    elif change == 'shrink':
        os.truncate(image, MIB - 1)
    else:
        with open(image, 'r+b') as f:
            f.seek(0, os.SEEK_END if change == 'grow' else os.SEEK_SET)
            f.write(b'x')
    run.go()
    with pytest.raises(ProbeError, match='conflict'):
        run.finish()


def test_killed_leaves_nothing(tmp_path):
    before = set(os.listdir('/tmp'))
    image = qcow2(tmp_path)
    run = Line(tmp_path, spec({'path': str(image)})).start(hold=['opened'])
    run.until('hold')
    served = children(run.process.pid)
    assert served
    run.kill(signal.SIGKILL)
    wait_for(lambda: not any(Path(f'/proc/{pid}').exists() for pid in served), 'its children are gone')
    # those of programs that other tests run are there for an instant; ours would stay
    wait_for(lambda: not [n for n in set(os.listdir('/tmp')) - before if n.startswith('sendense-') and len(n) == 15],
             'its folders are gone')


def end_and_wait(pid):
    """Kills another's child; until its last thread is gone it counts as alive, though its first is a zombie."""
    handle = os.pidfd_open(pid)
    signal.pidfd_send_signal(handle, signal.SIGKILL)
    assert select.select([handle], [], [], 30)[0]
    os.close(handle)


def test_server_that_dies_is_found(tmp_path):
    run = Line(tmp_path, spec({'path': str(qcow2(tmp_path))})).start(hold=['copied'])
    run.until('hold')
    for pid in children(run.process.pid):
        end_and_wait(pid)
    run.go()
    with pytest.raises(ProbeError, match='unavailable.*ended early'):
        run.finish()


def listens(path):
    with socket.socket(socket.AF_UNIX) as s:
        return s.connect_ex(str(path)) == 0


@contextlib.contextmanager
def nbd_server(path, image, description='monday'):
    """An export of a raw file; the URI of the default one."""
    command = ['nbdkit', '-f', '-U', path, '--filter=exportname', 'file', image, f'exportdesc=fixed:{description}']
    with subprocess.Popen(command) as server:
        try:
            wait_for(lambda: listens(path), 'nbdkit listens')
            yield f'nbd+unix:///?socket={path}'
        finally:
            server.kill()
            path.unlink(missing_ok=True)


def test_nbd_uri(tmp_path):
    image = noise(tmp_path / 'a.img', MIB + 512)
    with nbd_server(tmp_path / 's', image) as uri:
        run = Line(tmp_path, spec({'uri': uri})).backup()
    assert run.image('disk-0').read_bytes() == image.read_bytes()


def test_nbd_writers_cannot_be_seen(tmp_path):
    """The point claimed to be of one instant, as if somebody had looked."""
    image = noise(tmp_path / 'a.img', MIB)
    with nbd_server(tmp_path / 's', image) as uri:
        opened = Line(tmp_path, spec({'path': str(image)}, {'uri': uri})).backup().opened()
    assert opened['consistency'] == 'crash'
    assert 'disk-1 is an NBD export' in opened['consistency_detail']


@pytest.mark.parametrize('description', ['monday', 'tuesday'])
def test_nbd_server_that_is_replaced(tmp_path, description):
    """Another export of the same size was read as if it were the one that the backup began with."""
    image = noise(tmp_path / 'a.img', MIB)
    with contextlib.ExitStack() as first:
        uri = first.enter_context(nbd_server(tmp_path / 's', image))
        run = Line(tmp_path, spec({'uri': uri})).start(hold=['opened'])
        run.until('hold')
        first.close()
        with nbd_server(tmp_path / 's', image, description):
            run.go()
            if description == 'monday':
                run.finish()
            else:
                with pytest.raises(ProbeError, match='conflict.*another export'):
                    run.finish()


@pytest.fixture
def loop(tmp_path):
    image = noise(tmp_path / 'disk', 4 * MIB)
    made = subprocess.run(['losetup', '--show', '-f', image], check=False, capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f'no loop devices here: {made.stderr.strip()}')
    yield made.stdout.strip(), image
    tool('losetup', '-d', made.stdout.strip())


def test_block_device(tmp_path, loop):
    device, image = loop
    run = Line(tmp_path, spec({'path': device})).backup()
    assert run.disks()['disk-0']['size'] == 4 * MIB
    assert run.image('disk-0').read_bytes() == image.read_bytes()
    claim = os.open(device, os.O_RDONLY | os.O_EXCL)
    with pytest.raises(ProbeError, match='busy'):
        Line(tmp_path / 'b', spec({'path': device})).backup()
    os.close(claim)


@pytest.mark.parametrize('bad', [
    {'type': 'file'},
    {'type': 'file', 'disks': []},
    {'type': 'file', 'disks': [{}]},
    {'type': 'file', 'disks': [{'path': 'relative'}]},
    {'type': 'file', 'disks': [{'path': '/a', 'uri': 'nbd://x'}]},
    {'type': 'file', 'disks': [{'uri': 'http://x'}]},
    {'type': 'file', 'disks': [{'path': '/a', 'format': 'vmdk'}]},
    {'type': 'file', 'disks': [{'path': '/a', 'surprise': 1}]},
    {'type': 'file', 'disks': [{'path': '/a', 'key': 'k'}, {'path': '/b', 'key': 'k'}]},
    {'type': 'file', 'disks': [{'path': '/a'}], 'inconsistent': 'yes'},
    {'type': 'nothing'},
])
def test_bad_specs(tmp_path, bad):
    with pytest.raises(ProbeError, match='invalid'):
        Line(tmp_path, bad).backup()
