"""A QMP client with deadlines, and the streams below it."""

import json
import re
import socket
import time


class GuestError(Exception):
    """QEMU, the guest or its agent failed, or did not answer in time."""


def connect(path, timeout):
    """A socket connected to the Unix socket of this path."""
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout)
    try:
        sock.connect(str(path))
    except OSError as e:
        sock.close()
        raise GuestError(f'{path}: {e}') from e
    return sock


def message(command, arguments, args):
    """A request of QMP or of the guest agent: its arguments are a dict, and keywords with _ for -."""
    return {'execute': command, 'arguments': {**(arguments or {}), **{k.replace('_', '-'): v for k, v in args.items()}}}


class Channel:
    """A stream socket that is read with a deadline."""

    def __init__(self, sock, what):
        self.sock = sock
        self.what = what
        self.buffer = b''

    def send(self, data, timeout):
        self.sock.settimeout(timeout)
        try:
            self.sock.sendall(data)
        except OSError as e:
            raise GuestError(f'{self.what}: {e}') from e

    def read_until(self, pattern, deadline):
        """What comes before the first match of a pattern, and the match; both are taken off the stream."""
        while not (match := re.search(pattern, self.buffer)):
            rest = deadline - time.monotonic()
            if rest <= 0:
                raise GuestError(f'{self.what}: no answer in time')
            try:
                self.sock.settimeout(rest)
                data = self.sock.recv(65536)
            except TimeoutError:
                raise GuestError(f'{self.what}: no answer in time') from None
            except OSError as e:
                raise GuestError(f'{self.what}: {e}') from e
            if not data:
                raise GuestError(f'{self.what}: closed')
            self.buffer += data
        before, self.buffer = self.buffer[: match.start()], self.buffer[match.end() :]
        return before, match

    def close(self):
        self.sock.close()


class Qmp:
    """One QMP client, on a connected socket or the path of one. Not for several threads."""

    def __init__(self, where, timeout=30):
        if not isinstance(where, socket.socket):
            where = connect(where, timeout)
        self.channel = Channel(where, 'qmp')
        self.events = []
        self.count = 0
        try:
            self._message(time.monotonic() + timeout)  # the greeting
            self.cmd('qmp_capabilities', timeout=timeout)
        except BaseException:
            self.close()
            raise

    def _message(self, deadline):
        return json.loads(self.channel.read_until(rb'\n', deadline)[0])

    def cmd(self, command, arguments=None, *, timeout=60, **args):
        """Executes a command and returns its answer. Arguments: a dict, or keywords with _ for -."""
        self.count += 1
        request = {**message(command, arguments, args), 'id': self.count}
        deadline = time.monotonic() + timeout
        self.channel.send(json.dumps(request).encode() + b'\n', timeout)
        while True:
            answer = self._message(deadline)
            if 'event' in answer:
                self.events.append(answer)
            elif answer.get('id') == self.count:
                break
        if 'error' in answer:
            raise GuestError(f'qmp {command}: {answer["error"]["desc"]}')
        return answer['return']

    def wait_event(self, name, timeout=60, **data):
        """Takes the first event of this name with this data (both where it came already), and returns it."""
        deadline = time.monotonic() + timeout
        seen = 0
        while True:
            for i, event in enumerate(self.events[seen:], seen):
                if event['event'] == name and data.items() <= event.get('data', {}).items():
                    return self.events.pop(i)
            seen = len(self.events)
            event = self._message(deadline)
            if 'event' in event:
                self.events.append(event)

    def close(self):
        self.channel.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
