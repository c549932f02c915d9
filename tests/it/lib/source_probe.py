"""Runs the program source-probe: opens a source and copies its disks to raw files, as a backup would, without a hub."""

import json
import os
import shutil
import signal
import subprocess
import uuid
from pathlib import Path

from lib.patience import patience

ROOT = Path(__file__).resolve().parents[3]
BUILD = Path(os.environ.get('SENDENSE_BIN') or ROOT / 'build/bin').parent
PROBE = BUILD / 'tests/tools/source-probe'


class ProbeError(Exception):
    """The probe said why it failed; `error` is the stable word of it."""

    def __init__(self, line):
        super().__init__(f'{line.get("error")}: {line.get("details")}')
        self.error = line.get('error')
        self.details = line.get('details', '')


class Run:
    """One run of the probe. events: what it said so far."""

    def __init__(self, folder, request):
        self.folder = folder
        path = folder / 'request.json'
        path.write_text(json.dumps(request), encoding='utf-8')
        self.events = []
        self.process = subprocess.Popen([PROBE, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def next(self):
        line = self.process.stdout.readline()
        if not line:
            raise ProbeError({'error': 'died', 'details': f'status {self.process.wait()}'})
        event = json.loads(line)
        self.events.append(event)
        if event['event'] == 'error':
            self.process.wait()
            raise ProbeError(event)
        return event

    def until(self, name, **data):
        while True:
            event = self.next()
            if event['event'] == name and data.items() <= event.items():
                return event

    def go(self):
        """Ends a hold."""
        self.process.stdin.write(b'\n')
        self.process.stdin.flush()

    def finish(self):
        try:
            self.until('end')
            assert self.process.wait(patience(30)) == 0
        finally:
            self.close()
        return self

    def kill(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        self.process.wait(patience(30))
        self.close()

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def disks(self):
        opened = next(e for e in self.events if e['event'] == 'opened')
        return {d['disk_key']: d for d in opened['disks']}

    def opened(self):
        return next(e for e in self.events if e['event'] == 'opened')

    def copied(self, key):
        return next(e for e in self.events if e['event'] == 'copied' and e['key'] == key)

    def image(self, key):
        return self.folder / 'out' / key


class Line:
    """The runs of one VM in one repository: each on top of the last one that completed."""

    def __init__(self, folder, spec, **request):
        self.folder = Path(folder)
        self.spec = spec
        self.request = {'vm_id': str(uuid.uuid4()), 'repository_uuid': str(uuid.uuid4()), **request}
        self.parent = None
        self.count = 0
        self.runs = []

    def start(self, full=False, **request):
        self.count += 1
        folder = self.folder / f'run-{self.count}'
        (folder / 'out').mkdir(parents=True)
        parents = []
        if self.parent and not full:
            for key, disk in self.parent.disks().items():
                parents.append({
                    'disk_key': key,
                    'change_id': disk['change_id'],
                    'backing_identity': disk['backing_identity'],
                    'tracking': disk['tracking'] != 'none',
                    'size': disk['size'],
                })
                shutil.copyfile(self.parent.image(key), folder / 'out' / key)
        run = Run(folder, {
            'spec': self.spec,
            'job_id': f'job-{self.count}',
            'out': str(folder / 'out'),
            'parents': parents,
            'completed': True,
            **self.request,
            **request,
        })
        self.runs.append(run)
        return run

    def close(self):
        for run in self.runs:
            run.close()

    def completed(self, run):
        self.parent = run
        return run

    def backup(self, full=False, **request):
        """A run that goes well to the end."""
        return self.completed(self.start(full, **request).finish())
