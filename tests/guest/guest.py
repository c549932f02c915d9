#!/usr/bin/python3
"""Real virtual machines for tests: a small Linux guest, and a QEMU without any guest.

    with Guest(workdir, [(path, 'qcow2')]) as guest:
        guest.sh('cp -r /bin /mnt/a; sync')
        guest.freeze()
        reference_copy(guest, [reference])
        guest.thaw()

A guest mounts its disks' ext4 file systems at /mnt/a, /mnt/b, and so on. The disks' devices have the IDs disk0,
disk1, …; their block nodes node0, node1, … (on file0, file1, …); their serial numbers are SERIAL-0, SERIAL-1, …:
three names, so that a test fails which takes one for another.

Two QMP sockets are free for the software under test: qmp.sock and qmp2.sock (attributes `qmp_path`, `qmp2_path`);
Guest.qmp() uses a third monitor. The guest agent's socket (`agent_path`) serves one client at a time; the harness
holds it only while it asks something.

QEMU dies with the thread that started it (PDEATHSIG): start it from one that lives as long as the test.

By hand:

    guest.py disk PATH FORMAT SIZE [FOLDER]     makes a disk with ext4, filled with FOLDER
    guest.py shell [PATH:FORMAT]...             boots, runs each line of stdin in the guest, powers off
    guest.py accel                              says whether KVM works here
"""

import contextlib
import ctypes
import fcntl
import functools
import json
import os
import random
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from qmp import Channel, GuestError, Qmp, connect, message

HERE = Path(__file__).resolve().parent
TOOLS = os.environ.get('PATH', '') + ':/usr/sbin:/sbin'  # mke2fs, e2fsck
BOOT_TIMEOUT = 60  # TCG needs 3 s on an idle machine
KVM_TIMEOUT = 6  # KVM needs 1 s, or never gets there
# The rest of the kernel's command line is about time: self-tests and tracing cost a third of the boot.
KERNEL_ARGS = (
    'console=ttyS0 quiet panic=-1 nokaslr mitigations=off cryptomgr.notests '
    'initcall_blacklist=crypto_kdf108_init,init_kprobe_trace'
)
_libc = ctypes.CDLL(None)


class Disk(NamedTuple):
    """One disk: its image file and format, its device's ID, and its block node's name."""

    path: str
    format: str
    id: str
    node: str


# The guest's files


def outdir():
    """The folder of the built guest: $SENDENSE_GUEST_DIR, or a cache folder of the user."""
    default = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'sendense-test-guest'
    return Path(os.environ.get('SENDENSE_GUEST_DIR') or default)


@functools.cache
def build():
    """Builds the guest where it is not up to date, once for a process; returns its folder."""
    _tool(HERE / 'build-guest', outdir(), timeout=300)
    return outdir()


@contextlib.contextmanager
def _locked(path, how):
    with open(path, 'a', encoding='ascii') as file:
        fcntl.flock(file, how)
        yield


def probe_accel():
    """'kvm' where the guest boots with it, else 'tcg'. Tried once for each boot of the host, with a deadline.

    Neither /dev/kvm nor QEMU's own fallback tells: KVM may be there, start, and hang early in the kernel.
    """
    if not os.access('/dev/kvm', os.R_OK | os.W_OK):
        return 'tcg'
    folder = build()
    boot = Path('/proc/sys/kernel/random/boot_id').read_text(encoding='ascii').strip()
    known = folder / 'accel'
    with _locked(folder / 'accel.lock', fcntl.LOCK_EX):
        if known.exists() and known.read_text(encoding='ascii').split()[:1] == [boot]:
            return known.read_text(encoding='ascii').split()[1]
        accel = 'kvm'
        with tempfile.TemporaryDirectory(prefix='sg-') as workdir:
            try:
                Guest(workdir, agent=False, accel=accel, timeout=KVM_TIMEOUT).close()
            except GuestError:
                accel = 'tcg'
        fresh = folder / 'accel.new'
        fresh.write_text(f'{boot} {accel}\n', encoding='ascii')
        fresh.rename(known)
        return accel


# QEMU


def _die_with_parent(parent):
    _libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


class _Qemu:
    """A QEMU process with disks and QMP sockets. A context manager that leaves nothing behind."""

    sockets = {'qmp': 'qmp.sock', 'qmp2': 'qmp2.sock'}

    def __init__(self, workdir, disks):
        self.workdir = Path(workdir).absolute()
        self.workdir.mkdir(parents=True, exist_ok=True)
        self.disks = [Disk(str(path), fmt, f'disk{i}', f'node{i}') for i, (path, fmt) in enumerate(disks)]
        self.log = self.workdir / 'qemu.log'
        self.log.unlink(missing_ok=True)
        self.logs = [self.log]
        self.process = None
        self.monitor = None
        # A socket's path is limited to 107 bytes.
        short = len(os.fsencode(self.workdir)) < 90
        self.tempdir = None if short else tempfile.mkdtemp(prefix='sg-', dir='/tmp')
        folder = self.workdir if short else Path(self.tempdir)
        for name, file in self.sockets.items():
            setattr(self, f'{name}_path', str(folder / file))

    def _machine_args(self):
        raise NotImplementedError

    def _chardev(self, name, fds):
        """A chardev on a socket that listens already: whoever connects need not wait for QEMU to make it."""
        path = getattr(self, f'{name}_path')
        Path(path).unlink(missing_ok=True)
        listener = fds.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(path)
        listener.listen(1)
        return listener, ['-chardev', f'socket,id={name},fd={listener.fileno()},server=on,wait=off']

    def _private(self, name, fds):
        """A chardev on a socket pair: its QEMU end, its arguments, and our end."""
        ours, theirs = socket.socketpair()
        fds.enter_context(theirs)
        return theirs, ['-chardev', f'socket,id={name},fd={theirs.fileno()}'], ours

    def _disk_args(self):
        args = []
        for i, disk in enumerate(self.disks):
            options = {'discard': 'unmap', 'detect-zeroes': 'off'}
            driver = 'host_device' if Path(disk.path).is_block_device() else 'file'
            file = {'driver': driver, 'node-name': f'file{i}', 'filename': disk.path, **options}
            node = {'driver': disk.format, 'node-name': disk.node, 'file': f'file{i}', **options}
            args += ['-blockdev', json.dumps(file), '-blockdev', json.dumps(node)]
            args += ['-device', f'virtio-blk-pci,id={disk.id},drive={disk.node},serial=SERIAL-{i}']
        return args

    def _spawn(self, timeout):
        """Starts QEMU and waits for its monitor."""
        with contextlib.ExitStack() as fds:
            args = ['qemu-system-x86_64', '-nodefaults', '-no-user-config', '-display', 'none', '-no-reboot']
            passed = []
            for name in ('qmp', 'qmp2'):
                listener, more = self._chardev(name, fds)
                passed.append(listener)
                args += [*more, '-mon', f'chardev={name},mode=control']
            theirs, more, monitor = self._private('own', fds)
            passed.append(theirs)
            args += [*more, '-mon', 'chardev=own,mode=control', *self._machine_args(), *self._disk_args()]
            more, extra = self._port_args(fds)
            args += more
            passed += extra
            with open(self.log, 'ab') as log:
                self.process = subprocess.Popen(
                    args,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[sock.fileno() for sock in passed],
                    preexec_fn=functools.partial(_die_with_parent, os.getpid()),
                )
        # Our copies of QEMU's ends are closed by now, so that its death reads as an end of file.
        self.monitor = Qmp(monitor, timeout)

    def _port_args(self, _fds):
        return [], []

    def _tail(self):
        """The ends of the logs."""
        return ''.join(f'\n--- {file.name}\n{_end_of(file)}' for file in self.logs if file.exists())

    def qmp(self, command, arguments=None, *, timeout=60, **args):
        """A QMP command on the harness's own monitor; see Qmp.cmd()."""
        self._check_alive()
        return self.monitor.cmd(command, arguments, timeout=timeout, **args)

    def _check_alive(self):
        if not self.process:
            raise GuestError('qemu does not run')

    def inserted(self, disk):
        """What query-block says of the node under a disk's device now."""
        for entry in self.qmp('query-block'):
            if f'/{self.disks[disk].id}/' in entry.get('qdev', ''):
                return entry['inserted']
        raise GuestError(f'no disk {disk}')

    def resize(self, disk, size):
        """Changes a disk's size, in bytes."""
        self.qmp('block_resize', node_name=self.inserted(disk)['node-name'], size=size)

    def quit(self, timeout=30):
        """Ends QEMU in its clean way: persistent bitmaps are stored. The guest, if any, is cut off."""
        self.qmp('quit')
        self._wait_exit(timeout)

    def _wait_exit(self, timeout):
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise GuestError('qemu did not end in time' + self._tail()) from None
        self._drop()

    def kill(self):
        """Kills QEMU like a power cut: what it held in memory is gone."""
        if self.process:
            self.process.kill()
            self.process.wait()
        self._drop()

    def restart(self):
        """Ends QEMU cleanly and starts it again, on the image files that it was made with."""
        self.quit()
        self.start()

    def crash(self):
        """Kills QEMU and starts it again."""
        self.kill()
        self.start()

    def start(self):
        raise NotImplementedError

    def _drop(self):
        """Forgets a QEMU that is gone."""
        self.process = None
        if self.monitor:
            self.monitor.close()
            self.monitor = None
        for name in self.sockets:
            Path(getattr(self, f'{name}_path')).unlink(missing_ok=True)

    def close(self):
        """Ends whatever is left, and removes the sockets."""
        self.kill()
        if self.tempdir:
            shutil.rmtree(self.tempdir, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Guest(_Qemu):
    """A booted Linux guest. The constructor returns when it answers commands; `serial` is the log of its console."""

    sockets = {**_Qemu.sockets, 'agent': 'agent.sock'}

    def __init__(self, workdir, disks=(), agent=True, accel=None, memory=256, timeout=BOOT_TIMEOUT):
        self.accel = accel or probe_accel()
        super().__init__(workdir, disks)
        self.serial = self.workdir / 'serial.log'
        self.logs.append(self.serial)
        self.has_agent = agent
        self.memory = memory
        self.timeout = timeout
        self.commands = None
        self.start()

    def start(self):
        """Boots. Fails with the end of the console's log."""
        deadline = time.monotonic() + self.timeout
        self.serial.unlink(missing_ok=True)
        try:
            with _locked(build() / 'lock', fcntl.LOCK_SH):  # until QEMU has read kernel and initramfs
                self._spawn(self.timeout)
            self.commands.read_until(rb'READY\n', deadline)
        except BaseException as e:
            tail = self._tail()
            self.close()
            if isinstance(e, GuestError):
                raise GuestError(f'guest not ready: {e}{tail}') from e
            raise

    def _machine_args(self):
        folder = build()
        return [
            *['-machine', 'q35,usb=off', '-accel', self.accel, '-m', str(self.memory)],
            *(['-cpu', 'host'] if self.accel == 'kvm' else []),
            *['-kernel', str(folder / 'vmlinuz'), '-initrd', str(folder / 'initramfs.cpio.gz')],
            *['-append', KERNEL_ARGS],
            *['-chardev', f'file,id=serial,path={_comma(self.serial)}', '-serial', 'chardev:serial'],
        ]

    def _port_args(self, fds):
        args, passed = ['-device', 'virtio-serial-pci'], []
        if self.has_agent:
            listener, more = self._chardev('agent', fds)
            passed.append(listener)
            args += [*more, '-device', 'virtserialport,chardev=agent,name=org.qemu.guest_agent.0']
        theirs, more, ours = self._private('cmd', fds)
        passed.append(theirs)
        self.commands = Channel(ours, 'guest')
        # The last port: the guest takes its appearance for that of all.
        return args + [*more, '-device', 'virtserialport,chardev=cmd,name=sendense.cmd'], passed

    def _drop(self):
        super()._drop()
        if self.commands:
            self.commands.close()
            self.commands = None

    def _send(self, cmd, timeout):
        """Sends a command to the guest's server; returns the word that marks its answer."""
        self._check_alive()
        word = uuid.uuid4().hex
        self.commands.send(f'{word}\n{cmd}\n{word}\n'.encode(), timeout)
        return word

    def run(self, cmd, timeout=60):
        """Runs a shell command in the guest; returns its status and its output.

        One that did not end in time goes on in the guest, and holds up the next one.
        """
        deadline = time.monotonic() + timeout
        try:
            word = self._send(cmd, timeout).encode()
            self.commands.read_until(word + rb'\n', deadline)
            output, end = self.commands.read_until(word + rb' (\d+)\n', deadline)
        except GuestError as e:
            raise GuestError(f'{e}: {cmd}{self._tail()}') from e
        return int(end[1]), output.decode(errors='replace')

    def sh(self, cmd, timeout=60):
        """Runs a shell command that must succeed; returns its output."""
        status, output = self.run(cmd, timeout)
        if status != 0:
            raise GuestError(f'status {status} of: {cmd}\n{output}')
        return output

    def start_writer(self, name, cmd):
        """Starts a shell command in the guest's background; it writes to /run/NAME.log."""
        self.sh(f'setsid sh -c {shlex.quote(cmd)} >/run/{name}.log 2>&1 </dev/null & echo $! >/run/{name}.pid')

    def stop_writer(self, name):
        """Ends a background command with its children, and waits for their end."""
        self.sh(
            f'p=$(cat /run/{name}.pid); kill -TERM -- -$p 2>/dev/null\n'
            'for _ in $(seq 100); do kill -0 -- -$p 2>/dev/null || exit 0; sleep 0.05; done; exit 1'
        )

    def agent(self, cmd, arguments=None, *, timeout=30, **args):
        """A command to the guest agent; arguments as those of Qmp.cmd()."""
        deadline = time.monotonic() + timeout
        self._check_alive()
        channel = Channel(connect(self.agent_path, timeout), 'guest agent')
        try:
            # What an earlier client left unread ends at the byte 0xff.
            sync = random.getrandbits(31)
            hello = {'execute': 'guest-sync-delimited', 'arguments': {'id': sync}}
            channel.send(b'\xff' + json.dumps(hello).encode() + b'\n', timeout)
            channel.read_until(rb'\xff\{"return": %d\}\n' % sync, deadline)
            channel.send(json.dumps(message(cmd, arguments, args)).encode() + b'\n', timeout)
            answer = json.loads(channel.read_until(rb'\n', deadline)[0])
        finally:
            channel.close()
        if 'error' in answer:
            raise GuestError(f'guest agent {cmd}: {answer["error"]["desc"]}')
        return answer['return']

    def freeze(self):
        """Freezes the guest's file systems; returns how many."""
        return self.agent('guest-fsfreeze-freeze')

    def thaw(self):
        """Thaws the guest's file systems; returns how many were frozen."""
        return self.agent('guest-fsfreeze-thaw')

    def stop_vcpus(self):
        """Stops the guest where it is; the image files then hold all that it wrote."""
        self.qmp('stop')

    def cont(self):
        """Lets the guest go on."""
        self.qmp('cont')

    def poweroff(self, timeout=30):
        """Ends all of the guest's processes, unmounts, powers off, and waits for QEMU's end."""
        self._send('kill -9 -1; umount /mnt/*; poweroff -f', timeout)
        self._wait_exit(timeout)


class PausedQemu(_Qemu):
    """A QEMU whose CPUs never run: the test writes to its disks as a guest would, and is told of each failure."""

    def __init__(self, workdir, disks):
        super().__init__(workdir, disks)
        self.start()

    def start(self):
        try:
            self._spawn(timeout=30)
        except BaseException as e:
            tail = self._tail()
            self.close()
            if isinstance(e, GuestError):
                raise GuestError(f'qemu not ready: {e}{tail}') from e
            raise

    def _machine_args(self):
        return ['-machine', 'q35,usb=off', '-accel', 'tcg', '-m', '16', '-S']

    def _io(self, disk, command, done, offset, length):
        # The monitor reports no failure of a qemu-io command: QEMU says what became of it on its standard output.
        device = f'/machine/peripheral/{self.disks[disk].id}/virtio-backend'
        line = f'qemu-io -d {device} "{command} {offset} {length}"'
        with open(self.log, encoding='utf-8', errors='replace') as log:
            log.seek(0, os.SEEK_END)
            text = self.qmp('human-monitor-command', command_line=line) + log.read()
        if f'{done} {length}/{length} bytes at offset {offset}\n' not in text:
            raise GuestError(f'{line}: {text.strip()}')

    def write(self, disk, offset, length, pattern):
        """Fills a range with a byte; 0 is zeros as data."""
        self._io(disk, f'write -P {pattern:#x}', 'wrote', offset, length)

    def write_from(self, disk, offset, length, path):
        """Fills a range with what a file holds."""
        self._io(disk, f'write -s {path}', 'wrote', offset, length)

    def write_zeroes(self, disk, offset, length, unmap=False):
        """Zeroes a range as a guest's write-zeroes request does."""
        self._io(disk, 'write -z -u' if unmap else 'write -z', 'wrote', offset, length)

    def discard(self, disk, offset, length):
        """Discards a range. QCOW2 does so for whole clusters, and leaves the rest as it is."""
        self._io(disk, 'discard', 'discard', offset, length)


# Disks


def _tool(*args, timeout=120, ok=(0,)):
    """Runs a tool; returns its status and what it wrote. Another status than those in ok is an error."""
    try:
        done = subprocess.run(
            [str(arg) for arg in args],
            env={**os.environ, 'PATH': TOOLS, 'LC_ALL': 'C'},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise GuestError(f'{args[0]}: not done in {timeout} s') from e
    output = done.stdout.decode(errors='replace')
    if ok and done.returncode not in ok:
        raise GuestError(f'{" ".join(map(str, args))}: status {done.returncode}\n{output}')
    return done.returncode, output


def _end_of(file, size=2000):
    return file.read_bytes()[-size:].decode(errors='replace')


def _comma(path):
    """A path as a value in QEMU's option syntax."""
    return str(path).replace(',', ',,')


def make_disk(path, fmt, size, files_from=None, ext4=True):
    """Makes a disk image of a size in bytes, with an ext4 file system that holds a copy of a folder, or empty."""
    raw = Path(f'{path}.tmp')
    try:
        with open(raw, 'wb') as file:
            file.truncate(size)
        if ext4:
            # Nothing is left for the guest to initialise: it would write all through a test.
            options = ['-E', 'assume_storage_prezeroed=1', *(['-d', files_from] if files_from else [])]
            _tool('mke2fs', '-q', '-F', '-t', 'ext4', *options, raw)
        if fmt == 'raw':
            raw.rename(path)
        else:
            _tool('qemu-img', 'convert', '-f', 'raw', '-O', fmt, raw, path)
    finally:
        raw.unlink(missing_ok=True)


def make_tree(folder, files=40, seed=0):
    """Fills a folder with files of all kinds: text, noise, sparse, empty, nested, names that are not ASCII."""
    rand = random.Random(seed)
    for i in range(files):
        file = Path(folder, f'd{i % 5}', 'ü b' if i % 7 == 0 else 'sub', f'{i}.bin')
        file.parent.mkdir(parents=True, exist_ok=True)
        kind = i % 4
        with open(file, 'wb') as out:
            if kind == 0:
                out.write(rand.randbytes(rand.randrange(1, 200_000)))
            elif kind == 1:
                out.write(b'line of text\n' * rand.randrange(1, 5000))
            elif kind == 2:
                out.truncate(rand.randrange(1, 1_000_000))
                out.write(b'head')


def reference_copy(vm, dest_paths):
    """Copies each disk, as the guest would read it now, to a raw file; all of one instant.

    QMP's "stop" drains and flushes every node, also where nothing runs: QCOW2 tables that QEMU held in memory are
    then in the image file, and another process reads what the guest would. Without it, that read is stale. Neither
    QEMU's one NBD server nor a job is needed, so what the software under test has there is not disturbed. A guest
    that was running goes on afterwards.
    """
    running = vm.qmp('query-status')['running']
    vm.qmp('stop')
    try:
        for i, dest in zip(range(len(vm.disks)), dest_paths, strict=True):
            image = vm.inserted(i)['image']
            while image['format'] not in ('raw', 'qcow2'):  # a filter: a backup job puts one on top
                image = image['backing-image']
            _tool('qemu-img', 'convert', '-U', '-f', image['format'], '-O', 'raw', image['filename'], dest)
        if vm.qmp('query-status')['running']:
            raise GuestError('the guest was started during the copy')
    finally:
        if running:
            vm.qmp('cont')


def fsck(path, replay=False):
    """Checks the ext4 file system in a raw file, without writing to it: whether it is clean, and e2fsck's output.

    The file system of a guest that was not frozen has a journal to replay: that is then done in a copy.
    """
    if not replay:
        status, output = _tool('e2fsck', '-fn', path, ok=())
        return status == 0, output
    with tempfile.TemporaryDirectory(prefix='sg-', dir=Path(path).parent) as folder:
        copy = Path(folder, 'copy')
        _tool('cp', '--sparse=always', path, copy)
        _tool('e2fsck', '-p', '-E', 'journal_only', copy, ok=())
        return fsck(copy)


def main(args):
    match args:
        case ['accel']:
            print(probe_accel())
        case ['disk', path, fmt, size, *folder] if len(folder) < 2:
            make_disk(path, fmt, int(size), *folder)
        case ['shell', *disks]:
            with tempfile.TemporaryDirectory(prefix='sg-') as workdir:
                with Guest(workdir, [disk.rsplit(':', 1) for disk in disks]) as guest:
                    print(f'ready; qmp: {guest.qmp_path}; agent: {guest.agent_path}', flush=True)
                    for line in sys.stdin:
                        status, output = guest.run(line.rstrip('\n'), timeout=600)
                        print(output + (f'[status {status}]' if status else ''), end='', flush=True)
                    guest.poweroff()
        case _:
            sys.exit(__doc__)


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except GuestError as error:
        sys.exit(f'guest: {error}')
