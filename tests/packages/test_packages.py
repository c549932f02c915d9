"""The Debian packages and the unit, used: installed, upgraded, gone back, removed, purged; in a machine of their own
(machine.py), with a systemd that runs where the kernel lets it, and without one."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from machine import Failed, Machine, NoSystemd

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("sendense-hub", "sendense-client", "sendense")
VERSION = re.search(r"^  version: '(.*)',$", (ROOT / "meson.build").read_text(), re.MULTILINE)[1]
MIB = 1 << 20

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, and dpkg")
FULL = os.environ.get("SENDENSE_TEST_FULL", "") not in ("", "0")     # minutes: the packages are built, by themselves


def next_version(version, by):
    """As long as it was: it is written over it."""
    head, last = version.rsplit(".", 1)
    found = f"{head}.{int(last) + by}"
    assert len(found) == len(version), found
    return found


SECOND, THIRD = next_version(VERSION, 1), next_version(VERSION, 2)


def other_version(package, version, folder):
    """The same package under another version, which its programs say, too."""
    tree = folder / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    for path in [*(tree / "DEBIAN").iterdir(), *(tree / "usr/lib/sendense/packaged").iterdir()]:
        if path.name != "md5sums":
            path.write_bytes(path.read_bytes().replace(VERSION.encode(), version.encode()))
    made = folder / package.name.replace(VERSION, version)
    subprocess.run(["dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, made], check=True, capture_output=True)
    shutil.rmtree(tree)
    return made


@pytest.fixture(scope="session")
def packages(tmp_path_factory):
    """{version: paths of hub, client and CLI}, built as `make deb` does, lintian included."""
    if not FULL:
        pytest.skip("with make test FULL=1")
    done = subprocess.run([ROOT / "tools/build-deb", "--check"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, check=False,
                          env={**os.environ, "DEB_BUILD_OPTIONS": f"noautodbgsym parallel={os.cpu_count()}"})
    assert done.returncode == 0, done.stdout[-6000:]
    folder = tmp_path_factory.mktemp("packages")
    found = {VERSION: []}
    for name in NAMES:
        built, = (ROOT / "build-deb").glob(f"{name}_*.deb")
        found[VERSION].append(shutil.copy(built, folder))
    found[VERSION] = [Path(p) for p in found[VERSION]]
    for version in (SECOND, THIRD):
        found[version] = [other_version(p, version, folder) for p in found[VERSION]]
    return found


@pytest.fixture
def machine(packages, tmp_path):
    """Without systemd, as a container is."""
    with Machine(tmp_path / "m", packages[VERSION][0].parent, systemd=False) as made:
        yield made


@pytest.fixture
def systemd(packages, tmp_path):
    try:
        with Machine(tmp_path / "m", packages[VERSION][0].parent, systemd=True) as made:
            yield made
    except NoSystemd as e:
        pytest.skip(f"no systemd can run here: {e}")


def versions(machine):
    return [name for name in machine.entries("/usr/lib/sendense") if name[0].isdigit()]


def says(machine, program="sendense-hub"):
    return machine.ok(program, "--version").split()[-1]


# ---- what is in the packages

def test_contents(packages):
    listed = {}
    for name, path in zip(NAMES, packages[VERSION]):
        lines = subprocess.run(["dpkg-deb", "--contents", path], capture_output=True, text=True, check=True).stdout
        listed[name] = {line.split()[5].lstrip(".") for line in lines.splitlines() if line[0] != "d"}
    assert {p for p in listed["sendense-hub"] if not p.startswith("/usr/share")} == {
        "/etc/sendense/hub.conf", "/lib/systemd/system/sendense-hub.service", "/usr/lib/sysusers.d/sendense.conf",
        "/usr/lib/tmpfiles.d/sendense.conf", "/usr/lib/sendense/packaged/sendense-hub",
        "/usr/lib/sendense/packaged/nbdkit-sendense-plugin.so"}
    assert "/usr/share/man/man8/sendense-hub.8.gz" in listed["sendense-hub"]
    assert "/usr/lib/sendense/packaged/sendense-backup-client" in listed["sendense-client"]
    assert "/usr/share/man/man1/sendense-backup-client.1.gz" in listed["sendense-client"]
    assert {"/usr/lib/sendense/packaged/sendense", "/usr/share/man/man1/sendense.1.gz",
            "/usr/share/bash-completion/completions/sendense"} <= listed["sendense"]


def test_what_is_needed_to_build_is_said_once():
    """control's list is the one of tools/packages.debian, but for what every Debian build has."""
    text = (ROOT / "packaging/debian/control").read_text()
    said = set(re.findall(r"^(?:Build-Depends:)? +([a-z0-9.+-]+)", text.split("Package:")[0], re.MULTILINE))
    listed = {line.split()[1] for line in (ROOT / "tools/packages.debian").read_text().splitlines()
              if line.startswith("build ")}
    assert listed - {"gcc", "libc6-dev", "make"} == said - {"debhelper-compat", "dh-sequence-installsysusers"}


def test_the_unit_is_sound(machine, packages):
    machine.install(*packages[VERSION])
    assert machine.ok("systemd-analyze", "verify", "--man=no", "/lib/systemd/system/sendense-hub.service") == ""
    said = machine.ok("systemd-analyze", "security", "--offline=yes", "--threshold=35", "sendense-hub.service")
    assert "OK" in said.splitlines()[-1], said
    broken = machine.run("sh", "-c", "sed s/^WatchdogSec=.*/WatchdogSec=many/ /lib/systemd/system/sendense-hub.service "
                         ">/run/broken.service; systemd-analyze verify --man=no /run/broken.service")
    assert "Failed to parse" in broken.out, broken.out     # it would say so


def test_each_hole_has_its_reason():
    unit = (ROOT / "packaging/sendense-hub.service.in").read_text()
    holes = unit[unit.index("# ---- its holes"):unit.index("[Install]")].splitlines()[1:]
    settings = [n for n, line in enumerate(holes) if line and not line.startswith("#")]
    assert len(settings) >= 8
    for n in settings:
        assert holes[n - 1].startswith("#") or n - 1 in settings, holes[n]


def test_the_settings_that_come_with_it_are_the_defaults(machine, packages):
    machine.install(*packages[VERSION])
    shown = machine.ok("sendense-hub", "--check-config")
    sample = machine.ok("cat", "/etc/sendense/hub.conf")
    assert not [line for line in sample.splitlines() if line and not line.startswith("#")]
    values = dict(re.findall(r"^#([a-z-]+) = ?(.*)$", sample, re.MULTILINE))
    defaults = dict(line.split(" = ", 1) for line in shown.splitlines())
    assert {n: v for n, v in values.items() if n in defaults} == defaults


# ---- install, upgrade, back, remove, purge: no systemd runs

def test_the_life_of_the_packages(machine, packages):
    for package in packages[VERSION]:       # what has to be there, is: one by one it is refused
        if "-hub_" in package.name:
            with pytest.raises(Failed, match="sendense-client"):
                machine.install(package)
    machine.install(*packages[VERSION])
    assert machine.ok("dpkg", "--audit") == ""
    assert machine.sh("getent passwd sendense").split(":")[-2:] == ["/var/lib/sendense", "/usr/sbin/nologin"]
    assert "sendense-hub.service" in machine.entries("/etc/systemd/system/multi-user.target.wants")
    for program in ("sendense", "sendense-hub", "sendense-backup-client"):
        assert says(machine, program) == VERSION
        assert machine.ok("readlink", f"/usr/bin/{program}") == f"../lib/sendense/{VERSION}/{program}"
    machine.sh("printf 'max-jobs = 7\\n' >> /etc/sendense/hub.conf")

    machine.install(*packages[SECOND])
    assert says(machine) == SECOND and versions(machine) == [VERSION, SECOND]
    assert machine.ok(f"/usr/lib/sendense/{VERSION}/sendense-hub", "--version").endswith(VERSION)
    assert "max-jobs = 7" in machine.ok("sendense-hub", "--check-config")       # the administrator's file stays

    # back, by moving the link
    machine.ok("ln", "-sfn", f"../lib/sendense/{VERSION}/sendense-hub", "/usr/bin/sendense-hub")
    assert says(machine) == VERSION and says(machine, "sendense") == SECOND
    assert machine.run("sendense-hub", "--check-config").status == 0            # client and engine are there

    # on: the version that was gone back to stays, beside the one before
    machine.install(*packages[THIRD])
    assert says(machine) == THIRD and versions(machine) == [VERSION, SECOND, THIRD]
    assert machine.entries(f"/usr/lib/sendense/{VERSION}") == ["nbdkit-sendense-plugin.so", "sendense-hub"]
    machine.install(*packages[THIRD])       # the same once more
    assert says(machine) == THIRD and versions(machine) == [THIRD]
    machine.install(*packages[SECOND])      # and an older package: a downgrade
    assert says(machine) == SECOND and versions(machine) == [SECOND, THIRD]

    machine.dpkg("--remove", *NAMES)
    assert not machine.exists("/usr/lib/sendense") and not machine.exists("/usr/bin/sendense-hub")
    assert machine.exists("/etc/sendense/hub.conf") and machine.sh("getent passwd sendense")
    machine.dpkg("--purge", *NAMES)
    assert not machine.exists("/etc/sendense") and not machine.exists("/var/lib/sendense")
    left = machine.sh("find /etc /lib/systemd /usr/bin /usr/lib /usr/share /usr/sbin /var/lib /var/cache /run -xdev "
                      "-iname '*sendense*' -newer /etc/machine-id")
    assert left == ""


def test_an_upgrade_that_fails_leaves_what_was(machine, packages, tmp_path):
    """The new version's files cannot be unpacked: the old one is there, whole."""
    machine.install(*packages[VERSION])
    machine.sh("mkdir -p /etc/dpkg/dpkg.cfg.d; mount -t tmpfs -o size=64k tmpfs /usr/lib/sendense/packaged")
    hub = packages[SECOND][0]
    assert machine.run("dpkg", "--install", "--force-depends", f"/run/packages/{hub.name}").status != 0
    machine.sh("umount /usr/lib/sendense/packaged")
    assert says(machine) == VERSION and machine.run("sendense-hub", "--check-config").status == 0
    machine.install(*packages[SECOND])
    assert says(machine) == SECOND


# ---- as a service

def cli(machine, *arguments, **more):
    return machine.ok("sendense", *arguments, **more)


def set_up(machine):
    """A repository, and a VM with a raw and a QCOW2 disk."""
    machine.wait(lambda: machine.exists("/var/lib/sendense/admin-token"), "there is a token")
    cli(machine, "login", "--token-file", "/var/lib/sendense/admin-token")
    machine.sh("install -d -o sendense -m 700 /backup; install -d -m 755 /images")
    machine.sh("head -c 8388608 /dev/urandom > /images/a.raw; head -c 4194304 /dev/urandom > /images/b; "
               "qemu-img convert -q -O qcow2 /images/b /images/b.qcow2")
    cli(machine, "repo", "add", "main", "--path", "/backup/repository")
    cli(machine, "vm", "add", "web", "--file", "/images/a.raw", "--file", "/images/b.qcow2")


def slow_vm(machine):
    """A VM whose disk is read at 256 KiB in 200 ms, so that there is time to have it stand still."""
    machine.sh("install -d -m 755 /run/slow")
    machine.ok("systemd-run", "--quiet", "--unit=slow", "nbdkit", "--foreground", "--unix=/run/slow/nbd", "--threads=1",
               "--filter=blocksize-policy", "--filter=delay", "pattern", "8M", "delay-read=200ms",
               "blocksize-maximum=262144", "blocksize-minimum=1", "blocksize-preferred=262144",
               "blocksize-error-policy=allow")
    machine.wait(lambda: machine.run("chmod", "666", "/run/slow/nbd").status == 0, "the slow disk listens")
    cli(machine, "vm", "add", "slow", "--file", "nbd+unix:///?socket=/run/slow/nbd")


def running_backup(machine):
    """Starts one of the slow VM, whose disk then stands still; (its ID, pids of its client and its exporter)."""
    backup = cli(machine, "backup", "slow", "--repo", "main", "--full", "--detach").split()[-1]

    def children():
        found = {name: machine.run("pgrep", "-u", "sendense", "-x", name).out.split()
                 for name in ("sendense-backup", "nbdkit")}     # the kernel's 15 letters
        return sorted(sum(found.values(), [])) if all(found.values()) else None

    pids = machine.wait(children, "client and exporter run")
    machine.ok("systemctl", "kill", "--signal=STOP", "slow")
    assert alive(machine, pids) == pids and status(machine, backup) == "running"
    return backup, pids


def go_on(machine, backup):
    machine.ok("systemctl", "kill", "--signal=CONT", "slow")
    machine.wait(lambda: status(machine, backup) == "completed", "the backup is complete")
    cli(machine, "verify", backup)


def alive(machine, pids):
    return [p for p in pids if machine.run("test", "-d", f"/proc/{p}").status == 0]


def status(machine, backup):
    return json.loads(cli(machine, "--json", "show", backup))["status"]


def test_it_runs_in_its_sandbox(systemd, packages):
    """A backup, a comparison, a verify and a restore, by the user and in the sandbox of the unit."""
    m = systemd
    m.install(*packages[VERSION])
    assert m.unit("ActiveState", "SubState", "Type", "StatusText") == {
        "ActiveState": "active", "SubState": "running", "Type": "notify",
        "StatusText": "Listening at http://127.0.0.1:8082"}
    assert m.hub_runs() == f"/usr/lib/sendense/{VERSION}/sendense-hub"
    assert m.sh("stat -c '%U %a' /var/lib/sendense /run/sendense/hub /run/sendense/slots").split("\n") == [
        "sendense 700"] * 3
    set_up(m)
    point = cli(m, "backup", "web", "--repo", "main").split()[-1]
    m.sh("printf x | dd of=/images/a.raw bs=1 seek=70000 conv=notrunc status=none")
    second = cli(m, "backup", "web", "--repo", "main").split()[-1]
    cli(m, "verify", second)
    cli(m, "verify", point)
    m.sh("cp /images/a.raw /tmp/a.now")
    cli(m, "restore", second, "--all-disks", "--to", "/restored", "--format", "raw")
    restored = m.sh("ls /restored/*").split()
    assert len(restored) == 2
    assert sorted(m.sh("sha256sum /restored/* | cut -c1-64").split()) == sorted(
        m.sh("sha256sum /images/a.raw /images/b | cut -c1-64").split())
    assert m.sh("stat -c %a /backup/repository/ctx-*/disk-*/*.qcow2").split()[0] == "600"   # backups are nobody else's

    pid = m.unit("MainPID")
    state = dict(re.findall(r"^(NoNewPrivs|Seccomp|CapBnd|CapEff):\s*(\S+)$", m.ok("cat", f"/proc/{pid}/status"),
                            re.MULTILINE))
    assert state == {"NoNewPrivs": "1", "Seccomp": "2", "CapBnd": "0" * 16, "CapEff": "0" * 16}
    inside = ["nsenter", "-t", pid, "-m", "-r", "setpriv", "--reuid=sendense", "--regid=sendense", "--clear-groups"]
    mounts = m.ok("cat", f"/proc/{pid}/mountinfo").splitlines()
    closed = {line.split()[4] for line in mounts if line.split()[5].startswith("ro")}
    assert {"/usr", "/etc", "/sys/fs/cgroup"} <= closed, mounts
    assert m.run(*inside, "sh", "-c", "ls /proc | grep -c '^1$'").out == "0"    # others' processes are not seen


@pytest.fixture
def loop(tmp_path):
    """A block device of this machine with 4 MiB; None where there can be none."""
    image = tmp_path / "device"
    image.write_bytes(os.urandom(4 * MIB))
    made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    yield made.stdout.strip() or None
    if made.stdout:
        subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def test_what_the_holes_are_for(systemd, packages, loop):
    """A guest in QEMU: its socket, scratch images that it gets from the client; a block device; and the largest hole
    closed, as the how-to says."""
    m = systemd
    m.install(*packages[VERSION])
    set_up(m)
    m.sh("install -d -m 711 /run/qemu; qemu-img create -q -f qcow2 /images/q.qcow2 16M; groupadd guests; "
         "useradd -M -g guests qemu; chown qemu /images/q.qcow2; chown qemu:guests /run/qemu; chmod 2750 /run/qemu")
    m.ok("systemd-run", "--quiet", "--unit=qemu", "--uid=qemu", "--property=UMask=0007", "qemu-system-x86_64", "-S",
         "-nodefaults", "-display", "none", "-machine", "q35,usb=off", "-accel", "tcg", "-m", "16",
         "-blockdev", "driver=qcow2,node-name=d0,file.driver=file,file.filename=/images/q.qcow2",
         "-device", "virtio-blk-pci,id=d0,drive=d0", "-qmp", "unix:/run/qemu/qmp,server=on,wait=off")
    m.wait(lambda: m.exists("/run/qemu/qmp"), "QEMU runs")
    cli(m, "vm", "add", "q", "--qmp", "/run/qemu/qmp")
    assert m.run("sendense", "backup", "q", "--repo", "main").status != 0       # not in the group
    m.sh("install -d /etc/systemd/system/sendense-hub.service.d; printf '[Service]\nSupplementaryGroups=disk guests\n"
         "ProtectSystem=strict\nReadWritePaths=/backup/repository /tmp /var/tmp\n' "
         "> /etc/systemd/system/sendense-hub.service.d/local.conf; systemctl daemon-reload; "
         "systemctl restart sendense-hub")
    cli(m, "backup", "q", "--repo", "main")
    second = cli(m, "backup", "q", "--repo", "main").split()[-1]
    assert json.loads(cli(m, "--json", "show", second))["disks"][0]["mode"] == "tracked"
    if loop:
        number = os.stat(loop).st_rdev
        m.sh(f"mknod -m 660 /dev/disk-1 b {os.major(number)} {os.minor(number)}; chgrp disk /dev/disk-1")
        cli(m, "vm", "add", "device", "--file", "/dev/disk-1")
        cli(m, "verify", cli(m, "backup", "device", "--repo", "main").split()[-1])


def test_clients_and_exporters_outlive_a_restart(systemd, packages):
    m = systemd
    m.install(*packages[VERSION])
    set_up(m)
    slow_vm(m)
    backup, pids = running_backup(m)
    before = m.unit("MainPID")
    m.ok("systemctl", "restart", "sendense-hub")
    assert m.unit("MainPID") != before and alive(m, pids) == pids
    assert status(m, backup) == "running"
    m.ok("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "sendense-hub")     # and a crash
    m.wait(lambda: m.unit("NRestarts") == "1" and m.unit("ActiveState") == "active", "it is started anew")
    assert alive(m, pids) == pids and status(m, backup) == "running"
    # an upgrade, and the way back
    m.install(*packages[SECOND])
    assert m.hub_runs() == f"/usr/lib/sendense/{SECOND}/sendense-hub"
    assert alive(m, pids) == pids and status(m, backup) == "running"
    m.ok("ln", "-sfn", f"../lib/sendense/{VERSION}/sendense-hub", "/usr/bin/sendense-hub")
    m.ok("systemctl", "restart", "sendense-hub")
    assert m.hub_runs() == f"/usr/lib/sendense/{VERSION}/sendense-hub"
    assert alive(m, pids) == pids
    go_on(m, backup)


def test_a_hub_that_hangs_is_started_anew(systemd, packages):
    m = systemd
    m.sh("install -d /etc/systemd/system/sendense-hub.service.d; "
         "printf '[Service]\\nWatchdogSec=4\\n' > /etc/systemd/system/sendense-hub.service.d/test.conf")
    m.install(*packages[VERSION])
    set_up(m)
    slow_vm(m)
    backup, pids = running_backup(m)
    first = m.unit("MainPID")
    m.ok("kill", "-STOP", first)
    m.wait(lambda: m.unit("NRestarts") == "1" and m.unit("ActiveState") == "active", "it is started anew")
    assert m.unit("MainPID") not in ("0", first)
    assert alive(m, pids) == pids
    go_on(m, backup)


def test_reload_and_wrong_settings(systemd, packages):
    m = systemd
    m.install(*packages[VERSION])
    pid = m.unit("MainPID")
    m.sh("printf 'max-jobs = 9\\n' > /etc/sendense/hub.conf")
    m.ok("systemctl", "reload", "sendense-hub")
    assert m.unit("ActiveState") == "active"
    m.sh("printf 'nonsense\\n' > /etc/sendense/hub.conf")
    assert m.run("systemctl", "reload", "sendense-hub").status != 0
    assert m.unit("MainPID", "ActiveState") == {"MainPID": pid, "ActiveState": "active"}
    assert m.run("systemctl", "restart", "sendense-hub").status != 0
    m.wait(lambda: m.unit("ActiveState") == "failed", "it has failed")
    assert m.unit("NRestarts", "ExecMainStatus") == {"NRestarts": "0", "ExecMainStatus": "2"}   # and is left alone
    m.sh("printf '' > /etc/sendense/hub.conf")
    m.ok("systemctl", "restart", "sendense-hub")


def test_going_back_behind_a_migration(systemd, packages):
    """The database is of a newer schema: the older hub says so, and starts on the copy that the newer one made."""
    m = systemd
    m.install(*packages[SECOND])
    set_up(m)
    point = cli(m, "backup", "web", "--repo", "main").split()[-1]
    m.ok("systemctl", "stop", "sendense-hub")
    data = "/var/lib/sendense"
    # what a newer version's migration does: a copy, then a higher number
    m.sh(f"sqlite3 {data}/sendense.db \".backup {data}/sendense.db.before-99\"; chown sendense {data}/*; "
         f"sqlite3 {data}/sendense.db \"INSERT INTO schema_migrations VALUES (99, 'x')\"; chown sendense {data}/*")
    m.run("systemctl", "start", "sendense-hub")
    said = m.ok("setpriv", "--reuid=sendense", "--regid=sendense", "--clear-groups", "sh", "-c",
                "SENDENSE_RUN_DIR=/run/sendense/hub sendense-hub 2>&1 || true")
    assert "the database has schema 99" in said, said
    m.ok("systemctl", "stop", "sendense-hub")
    m.sh(f"cd {data}; mkdir newer; mv sendense.db sendense.db-* newer/ || true; "
         "cp -p sendense.db.before-99 sendense.db")
    m.ok("systemctl", "start", "sendense-hub")
    cli(m, "repo", "scan", "main")
    cli(m, "verify", point)


def test_remove_and_purge(systemd, packages):
    """The hub, and what it runs, ends; settings stay until the purge; data and backups stay after it, as it says."""
    m = systemd
    m.install(*packages[VERSION])
    set_up(m)
    point = cli(m, "backup", "web", "--repo", "main").split()[-1]
    slow_vm(m)
    _, pids = running_backup(m)
    m.dpkg("--remove", "sendense-hub")
    m.wait(lambda: not alive(m, pids), "what ran has ended")
    assert m.run("pgrep", "-u", "sendense").out == ""
    assert m.exists("/etc/sendense/hub.conf") and m.exists("/var/lib/sendense/sendense.db")
    m.install(packages[VERSION][0])
    assert m.hub_runs()
    cli(m, "verify", point)                 # it goes on where it was
    said = m.dpkg("--purge", *NAMES)
    assert "/var/lib/sendense stays" in said
    assert m.exists("/var/lib/sendense/sendense.db") and m.exists("/backup/repository/repository.json")
    assert not m.exists("/etc/sendense") and not m.exists("/run/sendense") and not m.exists("/usr/lib/sendense")
    assert m.ok("qemu-img", "info", "--backing-chain", m.sh("ls /backup/repository/ctx-web-*/disk-0/*.qcow2"))
