"""A hub that records what the client says, and answers as the test wants; and exports to write to, by nbdkit."""

import http.server
import json
import subprocess
import threading
import time
import urllib.parse
import uuid
from typing import NamedTuple

from lib.patience import patience

VM_ID = "5f3f6a0e-6c52-4a8e-a3a0-6b2c1f3d9a41"
CLOSE = "close"         # an answer: the connection is closed without a word


class Request(NamedTuple):
    at: float
    path: str           # as it was sent
    headers: dict       # names in lower case
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def call(self):
        return self.path.rsplit("/", 1)[1]


class Target:
    """An export in memory, on a unix socket."""

    def __init__(self, folder, name, size, *filters):
        self.socket = str(folder / f"{name}.sock")
        flags = [f for f in filters if f.startswith("--")]
        parameters = [f for f in filters if not f.startswith("--")]
        command = ["nbdkit", "-f", "-U", self.socket, *flags, "memory", str(size), *parameters]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        self.uri = f"nbd+unix:///?socket={self.socket}"
        self.wait_listening()

    def wait_listening(self):
        """The socket has a name before anybody listens there."""
        until = time.monotonic() + patience(60)
        while subprocess.run(["nbdinfo", "--size", self.uri], capture_output=True, check=False).returncode:
            assert time.monotonic() < until and self.process.poll() is None
            time.sleep(0.05)

    def content(self):
        return subprocess.run(["nbdcopy", self.uri, "-"], check=True, capture_output=True).stdout

    def stop(self):
        self.process.kill()
        self.process.wait()


class FakeHub:
    """answers: {call: [answer, …]}, the last one stays; an answer is (status, value) or CLOSE or a function of the
    Request that returns one. Without any the hub says yes."""

    def __init__(self, job_id, source, targets, excluded=(), modes=None, answers=None, order=None):
        self.job_id, self.source, self.targets = job_id, source, targets
        self.excluded, self.modes, self.order = list(excluded), modes or {}, order or {}
        self.answers = {call: list(queue) for call, queue in (answers or {}).items()}
        self.requests = []
        self.lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            owner = hub

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.server.daemon_threads = True
        self.server.server_bind()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = None

    def start(self):
        self.server.server_activate()
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()
        return self

    def stop(self):
        if self.thread:
            self.server.shutdown()
            self.thread.join()
        self.server.server_close()

    def calls(self, call=None):
        return [r for r in self.requests if call is None or r.call == call]

    def wait_copying(self, seconds=20):
        until = time.monotonic() + patience(seconds)
        while not any(r.json["phase"] == "copying" for r in self.calls("progress")):
            assert time.monotonic() < until, [r.path for r in self.requests]
            time.sleep(0.02)

    def answer(self, request):
        with self.lock:
            self.requests.append(request)
            queue = self.answers.get(request.call, [])
            chosen = queue.pop(0) if len(queue) > 1 else queue[0] if queue else getattr(self, f"_{request.call}")
        return chosen(request) if callable(chosen) else chosen

    def _claim(self, _):
        return 200, {"job_id": self.job_id, "vm_id": VM_ID, "vm_name": "pgtest1", "repository_uuid": str(uuid.uuid4()),
                     "cluster_size": 65536, "backup_type": "full", "source": self.source, "lease_seconds": 30,
                     "excluded_disks": self.excluded, "parent_backup_id": None, "parent_disks": [], **self.order}

    def _disks(self, request):
        disks = [{"disk_key": d["disk_key"], "disk_id": 2000 + n, "disk_no": n,
                  "mode": self.modes.get(d["disk_key"], "full"), "reason": "first_backup",
                  "uri": self.targets[d["disk_key"]].uri} for n, d in enumerate(request.json["disks"])]
        return 200, {"disks": disks, "something_new": 1}

    def _progress(self, _):
        return 200, {"cancel": False, "status": "running"}

    def _fail(self, _):
        return 200, {"status": "failed"}

    def _complete(self, _):
        return 200, {"status": "completed"}

    _changeid = _complete


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    owner = None

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {k.lower(): v for k, v in self.headers.items()}
        answer = self.owner.answer(Request(time.monotonic(), self.path, headers, body))
        self.close_connection = True
        if answer == CLOSE:
            return
        status, value = answer
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)


def path_of(job_id, call):
    kind = "backups" if job_id.startswith("backup-") else "replications"
    return f"/api/v1/{kind}/{urllib.parse.quote(job_id, safe='')}/{call}"
