"""The bench of the vSphere source: vsphere-simulator, its certificate and its commands, and nbdkit's real vddk plugin
over the stand-in libvixDiskLib. docs/internals/vsphere-bench.md.

    with Simulator(place, vms=[{"path": "DC0/vm/web", "disks": [{"size": 1 << 30}]}]) as sim:
        sim("write", vm="DC0/vm/web", offset=0, length=65536, fill=7)
        with sim.serve("vm-10", "snapshot-12", "[ds0] web/web.vmdk") as uri: ...
"""

import base64
import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import select
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from lib import system
from lib.history import wait_for
from lib.hub import BIN, ROOT
from lib.job import Job, coverage, disk, qemu_io

BENCH = BIN.parent / "tests" / "vsphere"
FIXTURES = ROOT / "tests" / "fixtures" / "vsphere"
LIBDIR = ROOT / "build" / "tests" / "vsphere"   # for libdir=: lib64/libvixDiskLib.so.8; never with a sanitizer
USER, PASSWORD = "backup@vsphere.local", "secret"
XSI_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"


def plugin():
    """Path of nbdkit's vddk plugin; the test is skipped where it cannot be had."""
    if not (LIBDIR / "lib64" / "libvixDiskLib.so.8").exists():
        pytest.skip("the stand-in libvixDiskLib.so.8 is not built (make all)")
    folder = ROOT / "build" / "vddk-plugin"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w", encoding="ascii") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([ROOT / "tools" / "fetch-vddk-plugin", folder], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=300, check=False)
    if done.returncode == 77:
        pytest.skip(f"nbdkit's vddk plugin cannot be had: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def hub_environment():
    """Of a hub whose clients read through the stand-in library; the test is skipped where the plugin cannot be had."""
    return {"SENDENSE_VDDK_LIBDIR": str(LIBDIR), "SENDENSE_VDDK_PLUGIN": plugin()}


def full_of_nothing(api, sim, vm_name, path, repository, key=2000):
    """A full backup of a VM's only disk, which holds nothing yet, by hand: ours reads every byte of it."""
    found, = [d for d in sim.vm(path)["disks"] if d["key"] == key]
    sim("remove_snapshot", vm=path, snapshot=sim("snapshot", vm=path)["snapshot"])
    job = Job(api, vm_name, repository)
    job.claim()
    announced = job.announce([disk(str(key), found["size"], found["change_id"], tracking="cbt", disk_id=key,
                                   backing_identity=found["uuid"], allocated_bytes=0)])[str(key)]
    step = 1 << 30
    qemu_io(announced["uri"], *[f"write -z {at} {min(step, found['size'] - at)}"
                                for at in range(0, found["size"], step)], "flush")
    job.complete(found["change_id"], [{"disk_id": key, "change_id": found["change_id"], "tracking": "cbt",
                                       **coverage([(0, found["size"])])}]).expect(200)
    return job.id


def cpu_seconds(pid):
    """Not those that pass on a clock: this machine may be busy."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as f:
        return sum(map(int, f.read().rpartition(")")[2].split()[11:13])) / os.sysconf("SC_CLK_TCK")


class Certificate:
    """Self-signed, for 127.0.0.1, made by openssl."""

    def __init__(self, folder, name="vcenter"):
        self.cert, self.key = Path(folder) / f"{name}.pem", Path(folder) / f"{name}.key"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                        "-days", "2", "-subj", f"/CN={name}.test", "-addext", "subjectAltName=IP:127.0.0.1",
                        "-keyout", self.key, "-out", self.cert], check=True, capture_output=True, timeout=60)
        self.der = ssl.PEM_cert_to_DER_cert(self.cert.read_text())

    def thumbprint(self, algorithm="sha1"):
        digest = hashlib.new(algorithm, self.der).hexdigest().upper()
        return ":".join(digest[i:i + 2] for i in range(0, len(digest), 2))


class SimulatorError(AssertionError):
    pass


class Simulator:
    """One vCenter. It ends when the with block does, or this process, whatever happens."""

    def __init__(self, folder, vms=(), binary=BENCH / "vsphere-simulator", **settings):
        self.folder = Path(folder)
        self.state = {"user": USER, "password": PASSWORD, "vms": list(vms), **settings}
        self.binary = binary
        self.run_dir = self.process = self.port = None
        self.local = threading.local()
        self.sockets = []

    def __enter__(self):
        if not Path(self.binary).exists():
            pytest.fail(f"{self.binary} is not built; type make all")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run_dir = tempfile.mkdtemp(prefix="v-")    # short, because of the sockets in it
        try:
            self.certificate = Certificate(self.folder)
            state = self.folder / "state.json"
            state.write_text(json.dumps(self.state))
            with open(self.folder / "simulator.log", "ab") as log:
                self.process = subprocess.Popen(
                    [self.binary, "--state", state, "--folder", self.folder / "disks", "--cert", self.certificate.cert,
                     "--key", self.certificate.key, "--control", self.control_path],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
            ready = select.select([self.process.stdout], [], [], 60)[0]
            line = self.process.stdout.readline() if ready else b""
            if not line:
                raise SimulatorError(f"vsphere-simulator did not start:\n{self.log}")
            self.port = json.loads(line)["port"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        status = 0
        for each in self.sockets:
            each.close()
        if self.process:
            self.process.stdin.close()
            try:
                status = self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                status = "killed: it did not end"
            self.process.stdout.close()
            self.process = None
        left = os.listdir(self.run_dir)
        shutil.rmtree(self.run_dir, ignore_errors=True)
        shutil.rmtree(self.folder / "disks", ignore_errors=True)    # large
        if status != 0 or left:
            raise SimulatorError(f"vsphere-simulator: {status}, left {left}\n{self.log}")

    @property
    def log(self):
        path = self.folder / "simulator.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def control_path(self):
        return os.path.join(self.run_dir, "control")

    @property
    def url(self):
        return f"https://127.0.0.1:{self.port}/sdk"

    def source(self, name="vc-1"):
        """As it is registered."""
        return {"name": name, "type": "vsphere", "vcenter": f"127.0.0.1:{self.port}", "user": USER,
                "password": self.state["password"], "thumbprint": self.certificate.thumbprint("sha256")}

    # ---- commands

    def try_(self, command, **arguments):
        """The command's answer, refused or not. Each thread has a connection of its own."""
        stream = getattr(self.local, "stream", None)
        if not stream:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(self.control_path)
            stream = self.local.stream = connection.makefile("rwb")
            connection.close()      # the stream holds it
            self.sockets.append(stream)
        stream.write(json.dumps({"cmd": command, **arguments}).encode() + b"\n")
        stream.flush()
        return json.loads(stream.readline())

    def __call__(self, command, **arguments):
        answer = self.try_(command, **arguments)
        assert answer.pop("ok"), f"{command} {arguments}: {answer['error']}"
        return answer

    def write(self, vm, offset, data, disk=2000):
        self("write", vm=vm, disk=disk, offset=offset, data=base64.b64encode(data).decode())

    def vm(self, vm):
        return self("state", vm=vm)["vms"][0]

    def calls(self):
        return self("calls")["calls"]

    def frozen(self, snapshot, disk=2000):
        """The bytes of a snapshot's disk. For small disks."""
        path = self.folder / "frozen.raw"
        self("export", snapshot=snapshot, disk=disk, to=str(path))
        content = path.read_bytes()
        path.unlink()
        return content

    def client(self, login=True):
        return Client(self.port, login)

    # ---- the data path, through the real plugin

    def nbdkit(self, vm, snapshot, file, socket_path, thumbprint=None, password=PASSWORD, cookie=None, extra=(),
               after=()):
        """The command line of a client's nbdkit."""
        secret = self.folder / f"password-{abs(hash(password))}"
        secret.write_text(password)
        secret.chmod(0o600)
        return ["nbdkit", "--exit-with-parent", "-U", socket_path, "--readonly", "-t", "16", *extra, plugin(),
                f"libdir={LIBDIR}", "server=127.0.0.1", f"port={self.port}", f"user={USER}", f"password=+{secret}",
                *([f"cookie={cookie}"] if cookie else []), f"thumbprint={thumbprint or self.certificate.thumbprint()}",
                f"vm=moref={vm}", *([f"snapshot={snapshot}"] if snapshot else []), "transports=nbdssl:nbd",
                f"file={file}", *after]

    @contextlib.contextmanager
    def serve(self, vm, snapshot, file, **options):
        """Its URI, while it serves."""
        folder = tempfile.mkdtemp(prefix="n-", dir=self.run_dir)
        socket_path = os.path.join(folder, "s")
        command = self.nbdkit(vm, snapshot, file, socket_path, **options)
        with open(self.folder / "nbdkit.log", "ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_for(lambda: system.listens(socket_path) or process.poll() is not None, "nbdkit listens")
            assert process.poll() is None, (self.folder / "nbdkit.log").read_text(errors="replace")[-2000:]
            yield f"nbd+unix:///?socket={socket_path}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            shutil.rmtree(folder, ignore_errors=True)


# ---- SOAP, just enough to prove the bench

class Fault(Exception):
    def __init__(self, status, reply):
        detail = reply.find(".//detail/*") if reply is not None else None
        self.status, self.detail = status, detail
        self.type = detail.get(XSI_TYPE) if detail is not None else None
        self.text = (reply.findtext(".//faultstring") if reply is not None else None) or ""
        super().__init__(f"{status} {self.type} {self.text}")


def plain(element):
    """Without namespaces in names of elements, in place."""
    for each in element.iter():
        each.tag = each.tag.rpartition("}")[2]
    return element


def escape(text):
    return str(text).replace("&", "&amp;").replace("<", "&lt;")


class Client:
    """One session, one connection."""

    def __init__(self, port, login=True):
        self.port = port
        self.cookie = None
        self.connection = None
        if login:
            self.login()

    def close(self):
        if self.connection:
            self.connection.close()
            self.connection = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def post(self, body):
        """Bytes to (status, bytes)."""
        if not self.connection:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=context, timeout=60)
        headers = {"Content-Type": "text/xml; charset=utf-8", "SOAPAction": "urn:vim25/8.0.1.0"}
        if self.cookie:
            headers["Cookie"] = f"vmware_soap_session={self.cookie}"
        try:
            self.connection.request("POST", "/sdk", body=body, headers=headers)
            response = self.connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        set_cookie = response.headers.get("Set-Cookie")
        if set_cookie:
            self.cookie = re.match(r'vmware_soap_session="?([^";]*)', set_cookie).group(1)
        return response.status, content

    def call(self, method, this, arguments=""):
        """this: "TYPE:ID", or both in one. The reply's element; Fault."""
        kind, _, name = this.partition(":")
        name = name or kind
        status, content = self.post(
            '<?xml version="1.0" encoding="UTF-8"?><e:Envelope xmlns:e="http://schemas.xmlsoap.org/soap/envelope/" '
            'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><e:Body>'
            f'<{method} xmlns="urn:vim25"><_this type="{kind}">{escape(name)}</_this>{arguments}</{method}>'
            '</e:Body></e:Envelope>'.encode())
        reply = plain(ElementTree.fromstring(content)) if content.startswith(b"<?xml") else None
        if status != 200:
            raise Fault(status, reply)
        return reply.find(f".//{method}Response")

    def login(self, user=USER, password=PASSWORD):
        return self.call("Login", "SessionManager",
                         f"<userName>{escape(user)}</userName><password>{escape(password)}</password>")

    def properties(self, ref, *paths):
        """{path: val element} of what is set."""
        kind, _, name = ref.partition(":")
        reply = self.call("RetrievePropertiesEx", "PropertyCollector:propertyCollector",
                          f"<specSet><propSet><type>{kind}</type>{''.join(f'<pathSet>{p}</pathSet>' for p in paths)}"
                          f'</propSet><objectSet><obj type="{kind}">{name}</obj></objectSet></specSet><options/>')
        return {s.findtext("name"): s.find("val") for s in reply.iter("propSet") if s.find("val") is not None}

    def wait_task(self, task, seconds=30):
        """The task's {path: val}, once it is over."""
        created = self.call("CreateFilter", "PropertyCollector:propertyCollector",
                            "<spec><propSet><type>Task</type><pathSet>info.state</pathSet><pathSet>info.error</pathSet>"
                            f'<pathSet>info.result</pathSet></propSet><objectSet><obj type="Task">{task}</obj>'
                            "</objectSet></spec><partialUpdates>false</partialUpdates>")
        version, seen = "", {}
        while seen.get("info.state") is None or seen["info.state"].text not in ("success", "error"):
            reply = self.call("WaitForUpdatesEx", "PropertyCollector:propertyCollector",
                              f"<version>{version}</version><options><maxWaitSeconds>{seconds}</maxWaitSeconds>"
                              "</options>")
            assert reply.find("returnval") is not None, f"{task} did not end within {seconds} s"
            version = reply.findtext("returnval/version")
            for change in reply.iter("changeSet"):
                seen[change.findtext("name")] = change.find("val")
        self.call("DestroyPropertyFilter", "PropertyFilter:" + created.findtext("returnval"))
        return seen

    def task(self, method, this, arguments=""):
        """Runs a task to its end; its result's text, or TaskError."""
        seen = self.wait_task(self.call(method, this, arguments).findtext("returnval"))
        if seen["info.state"].text != "success":
            raise TaskError(seen["info.error"])
        return None if seen.get("info.result") is None else seen["info.result"].text

    def create_snapshot(self, vm, name="snap", quiesce=False):
        return self.task("CreateSnapshot_Task", f"VirtualMachine:{vm}",
                         f"<name>{escape(name)}</name><description>of a test</description><memory>false</memory>"
                         f"<quiesce>{'true' if quiesce else 'false'}</quiesce>")

    def remove_snapshot(self, snapshot):
        self.task("RemoveSnapshot_Task", f"VirtualMachineSnapshot:{snapshot}",
                  "<removeChildren>false</removeChildren><consolidate>true</consolidate>")

    def disks(self, ref):
        """{key: {path below the disk: text}} of a VM or a snapshot."""
        value = self.properties(ref, "config.hardware.device")["config.hardware.device"]
        found = {}
        for device in value:
            if device.get(XSI_TYPE) == "VirtualDisk":
                found[int(device.findtext("key"))] = {
                    **{e.tag: e.text for e in device.find("backing")},
                    "capacity": int(device.findtext("capacityInBytes"))}
        return found

    def areas_page(self, vm, snapshot, key, start, change_id):
        reply = self.call("QueryChangedDiskAreas", f"VirtualMachine:{vm}",
                          f'<snapshot type="VirtualMachineSnapshot">{snapshot}</snapshot><deviceKey>{key}</deviceKey>'
                          f"<startOffset>{start}</startOffset><changeId>{escape(change_id)}</changeId>")
        value = reply.find("returnval")
        areas = [(int(a.findtext("start")), int(a.findtext("length"))) for a in value.iter("changedArea")]
        return int(value.findtext("startOffset")), int(value.findtext("length")), areas

    def areas(self, vm, snapshot, key, change_id, capacity):
        """All pages; (areas, number of pages)."""
        at, all_areas, pages = 0, [], 0
        while at < capacity:
            start, length, areas = self.areas_page(vm, snapshot, key, at, change_id)
            assert start == at and length > 0 and all(at <= s and s + n <= at + length for s, n in areas)
            all_areas += areas
            at += length
            pages += 1
        assert at == capacity
        return all_areas, pages


class TaskError(Exception):
    def __init__(self, error):
        self.type = error.find("fault").get(XSI_TYPE)
        self.text = error.findtext("localizedMessage")
        super().__init__(f"{self.type}: {self.text}")
