"""The CLI against the real hub: every command, what restore refuses, exit statuses, one JSON value."""

import contextlib
import hashlib
import json
import os
import pty
import re
import select
import shutil
import signal
import sqlite3
import stat
import subprocess
import time
from pathlib import Path

import pytest

from lib.api import quote
from lib.cli import Cli
from lib.gate import Gate
from lib.hub import BIN
from lib.nbd_gate import NbdGate
from lib.patience import patience
from lib.vm import GuestError, PausedQemu
from lib.world import MIB, make_image

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = 65536


@pytest.fixture
def disks(place):
    """A raw image of an odd size, and a QCOW2."""
    raw = make_image(place / "a.raw", 5 * MIB + 512, seed=7)
    make_image(place / "b.tmp", 3 * MIB, seed=8)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", place / "b.tmp", place / "b.qcow2"], check=True)
    os.unlink(place / "b.tmp")
    return raw, place / "b.qcow2"


@pytest.fixture
def setup(cli, disks):
    """A repository and a VM whose name needs quoting everywhere."""
    cli.ok("repo", "add", "main", "--path", "repo")
    cli.ok("vm", "add", "pg test/1", "--file", "a.raw", "--file", "b.qcow2")
    return "pg test/1"


def backup(cli, name="pg test/1", *options):
    return cli.ok("backup", name, "--repo", "main", "--quiet", *options).splitlines()[-1]


@pytest.fixture
def point(cli, setup):
    return backup(cli)


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def no_rest(cli, folder):
    """No unfinished file, no export."""
    assert not [p for p in folder.rglob("*.partial*")]
    assert cli.json("exports")["exports"] == []


def spawn(cli, *arguments, **more):
    environ = {**os.environ, "SHA_API_URL": cli.url}
    return subprocess.Popen([str(BIN / "sendense"), *map(str, arguments)], stdin=subprocess.DEVNULL, cwd=cli.cwd,
                            env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def wait_until(condition, what, seconds=20):
    until = time.monotonic() + patience(seconds)
    while not condition():
        assert time.monotonic() < until, f"waited for {what} in vain"
        time.sleep(0.02)


# ---- the command line

def commands(cli):
    found = re.findall(r"^  ([a-z]+(?: [a-z]+)?)  ", cli.ok("--help"), re.MULTILINE)
    assert len(found) > 20
    return [c for c in found if c not in ("help", "completion")]


def test_every_exit_status_is_documented():
    """5, an audit's alarm, was in neither help nor reference."""
    header = (ROOT / "src/cli/cli.h").read_text()
    statuses = {"0", "2", *re.findall(r"^#define CLI_EXIT_\w+ (\d)$", header, re.MULTILINE)}
    said = subprocess.run([BIN / "sendense", "--help"], capture_output=True, text=True, check=True).stdout
    reference = (ROOT / "docs/reference/cli.md").read_text().split("## Exit status", 1)[1].split("\n## ", 1)[0]
    manual = (ROOT / "docs/man/sendense.1.scd").read_text().split("# EXIT STATUS", 1)[1].split("\n# ", 1)[0]
    assert set(re.findall(r"(?<![\w])(\d) [a-z]", said.split("exit status:", 1)[1])) == statuses
    assert set(re.findall(r"^\| (\d) \|", reference, re.MULTILINE)) == statuses
    assert set(re.findall(r"^\*(\d)\*$", manual, re.MULTILINE)) == statuses


def test_help_and_version(cli):
    for command in commands(cli):
        assert f"usage: sendense {command}" in cli.ok("help", *command.split())
        assert f"usage: sendense {command}" in cli.ok(*command.split(), "--help")
    assert "repo scan" in cli.ok("help", "repo") and "repo scan" in cli.ok("repo", "--help")
    for word in ("help", "completion"):     # listed, and "no command" to `help`
        assert f"  {word} " in cli.ok("help", word)
    for command in ("restore", "verify"):   # said to run on the hub's machine alone, as they once did
        assert "machine is to be named by https://" in cli.ok("help", command)
    version = re.fullmatch(r"sendense (\d+\.\d+\.\d+\S*)\n", cli.ok("--version")).group(1)
    assert cli.json("--version") == cli.json("repo", "list", "--version") == {"version": version}


@pytest.mark.parametrize("arguments", [
    [], ["nonsense"], ["repo"], ["repo", "nonsense"], ["repo", "list", "extra"], ["repo", "add", "x"], ["show"],
    ["show", ""], ["repo", "list", "--nonsense"], ["vm", "add", "x"], ["vm", "add", "x", "--file", "a", "--qmp", "b"],
    ["vm", "add", "x", "--file", "a", "--agent", "b"], ["vm", "add", "x", "--qmp", "a", "--freeze", "often"],
    ["vm", "add", "x", "--qmp", "a", "--format", "raw"], ["vm", "add", "x", "--file", "a", "--format", "vmdk"],
    ["vm", "change", "x"], ["backup", "x"], ["backup", "x", "--repo", "r", "--full", "--incremental"],
    ["restore", "x", "--to", "y"], ["restore", "x", "--disk", "0"],
    ["restore", "x", "--disk", "0", "--all-disks", "--to", "y"],
    ["restore", "x", "--disk", "0", "--to", "y", "--format", "vmdk"], ["verify"], ["verify", "x", "--repo", "r"],
    ["verify", "x", "--vm", "y"], ["backups", "--limit", "0"],
    ["repo", "add", "x", "--path", "y", "--cluster-size", "1"],
    ["--hub", "ftp://x", "health"],
])
def test_wrong_usage_is_2(cli, arguments):
    plain = cli.run(*arguments)
    assert plain.status == 2 and plain.out == "" and plain.err.startswith("sendense: ")
    assert set(cli.json(*arguments, status=2)) == {"error", "details", "timestamp"}


def test_a_hub_that_is_not_there(cli):
    for arguments in (["health"], ["backup", "x", "--repo", "y"], ["verify", "--repo", "x"]):
        result = cli.run("--hub", "http://127.0.0.1:9", *arguments)
        assert result.status == 1 and "http://127.0.0.1:9" in result.err and "--hub" in result.err


def test_the_manual_names_everything(cli):
    manual = (ROOT / "docs/man/sendense.1.scd").read_text()
    page = (ROOT / "docs/reference/cli.md").read_text()
    for text in (manual, page):
        for command in commands(cli):
            assert command in text
            for option in re.findall(r"^  (--[a-z-]+)", cli.ok("help", *command.split()), re.MULTILINE):
                assert option in text, f"{command} {option}"


@pytest.mark.parametrize("program, pages", [
    ("sendense-hub", ["docs/man/sendense-hub.8.scd", "docs/reference/hub.md"]),
    ("sendense-backup-client", ["docs/man/sendense-backup-client.1.scd"]),
])
def test_each_option_of_the_other_programs_is_documented(program, pages):
    """The hub's options once stood in no page."""
    said = subprocess.run([BIN / program, "--help"], capture_output=True, text=True, check=True).stdout
    options = re.findall(r"^  (--[a-z-]+)", said, re.MULTILINE)
    assert "--help" in options and len(options) > 5
    for page in pages:
        text = (ROOT / page).read_text()
        assert [o for o in options if not re.search(f"[*`]{o}[*`]", text)] == [], page


def install(place):
    """Its folder with bin/ and lib/."""
    subprocess.run(["meson", "install", "-C", BIN.parent, "--no-rebuild", "--destdir", place], check=True,
                   capture_output=True)
    prefix, = [p.parent.parent for p in place.rglob("bin/sendense-hub")]
    return prefix


def test_install(place):
    """Programs, man pages and the completion script, where man and bash look for them."""
    install(place)
    found = {p.name: p for p in place.rglob("*") if p.is_file()}
    for page in ("sendense.1", "sendense-backup-client.1", "sendense-hub.8"):
        assert found[page].match(f"share/man/man{page[-1]}/*")
        assert f'.TH "{page[:-2]}" "{page[-1]}"' in found[page].read_text()
    scripts = [p for p in place.rglob("share/bash-completion/completions/*")]
    assert [p.name for p in scripts] == ["sendense"] and "complete" in scripts[0].read_text()
    assert {"sendense-hub", "sendense-backup-client", "nbdkit-sendense-plugin.so"} <= set(found)
    assert {"sendense-hub.service", "sendense.conf", "hub.conf"} <= set(found)


def test_a_version_is_behind_a_link_and_going_back_is_moving_it(place):
    """A hub takes client and engine from the folder that it lies in itself, whatever the other links say."""
    prefix = install(place)
    link = prefix / "bin" / "sendense-hub"
    version = os.readlink(link).split("/")[-2]
    assert os.readlink(link) == f"../lib/sendense/{version}/sendense-hub"
    older = prefix / "lib" / "sendense" / "0.0.1"
    shutil.copytree(prefix / "lib" / "sendense" / version, older)
    (older / "sendense-hub").write_text("#!/bin/sh\necho older\n")
    (place / "hub.conf").write_text("")
    command = [link, "--check-config", "--config", place / "hub.conf"]

    def says():
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "max-jobs = 4" in says()
    subprocess.run(["ln", "-sfn", "../lib/sendense/0.0.1/sendense-hub", link], check=True)
    assert says() == "older\n"
    install(place)                      # the next version moves it on, and leaves the others
    assert "max-jobs = 4" in says() and older.exists()
    (older.parent / version / "nbdkit-sendense-plugin.so").unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and f"{version}/nbdkit-sendense-plugin.so" in done.stderr


def test_completion(cli, place):
    script = place / "completion"
    script.write_text(cli.ok("completion"))
    ask = (f"source {script}; try() {{ COMP_WORDS=(sendense \"$@\"); COMP_CWORD=$#; _sendense; "
           "echo \"${COMPREPLY[*]}\"; }; try re; try repo s; try restore x --f; try vm add x --q")
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["repo restore", "show scan", "--format --force", "--qmp --quiesce --quiet"]


# ---- repositories and VMs

def test_repositories(cli, place):
    added = cli.json("repo", "add", "main", "--path", "repo", "--cluster-size", "128K", "--hash", "sha256")
    assert added["path"] == str(place.resolve() / "repo")
    assert (added["cluster_size"], added["hash_algorithm"], added["taken_in"]) == (131072, "sha256", False)
    assert "main" in cli.ok("repo", "list") and "128.0 KiB" in cli.ok("repo", "show", "main")
    assert cli.json("repo", "list")["repositories"][0]["name"] == "main"
    assert cli.json("repo", "scan", "main")["problems"] == []
    assert cli.run("repo", "add", "main", "--path", "other").status == 1
    assert "files stay" in cli.ok("repo", "remove", "main")
    missing = cli.run("repo", "show", "main")
    assert missing.status == 1 and missing.out == "" and missing.err.startswith("sendense: repository not found: ")


def test_a_scan_brings_points_back(cli, point, place):
    cli.ok("repo", "remove", "main")
    assert "sendense repo scan again" in cli.run("repo", "add", "again", "--path", "repo").err
    assert cli.json("repo", "scan", "again")["added"] == 1
    assert cli.json("show", point)["status"] == "completed"
    next((place / "repo").glob("ctx-*/*.json")).unlink()
    scan = cli.json("repo", "scan", "again", status=3)
    assert scan["missing"] == [point]
    assert point in cli.run("repo", "scan", "again").out


def test_vms(cli, disks, place):
    vm = cli.json("vm", "add", "web", "--file", "a.raw", "--format", "raw", "--file", "sub/../b.qcow2",
                  "--exclude", "disk-1")
    assert [d["path"] for d in vm["source"]["disks"]] == [str(place / "a.raw"), f"{place}/sub/../b.qcow2"]
    assert vm["excluded_disks"] == ["disk-1"]
    assert "web" in cli.ok("vm", "list") and "left out" in cli.ok("vm", "show", "web")
    changed = cli.json("vm", "change", "web", "--name", "web 2", "--exclude=")
    assert (changed["name"], changed["excluded_disks"]) == ("web 2", [])
    qemu = cli.json("vm", "change", "web 2", "--qmp", "q.sock", "--agent", "/run/a", "--freeze", "require",
                    "--scratch", "s")
    assert qemu["source"] == {"type": "qemu", "qmp": f"{place}/q.sock", "agent": "/run/a", "freeze": "require",
                              "scratch": f"{place}/s"}
    assert "points kept" in cli.ok("vm", "remove", "web 2")
    assert cli.json("vm", "list") == {"vms": [], "next": None}


def test_adoption(cli, point):
    cli.ok("vm", "remove", "pg test/1")
    assert cli.json("vm", "list")["vms"] == []
    assert "(removed)" in cli.ok("vm", "list", "--all")
    assert cli.json("vm", "add", "new", "--file", "a.raw", "--adopt", "pg test/1")["points"] == 1


# ---- backups

def test_backup_prints_the_id_last(cli, setup):
    result = cli.run("backup", setup, "--repo", "main")
    assert result.status == 0
    assert re.fullmatch(r"backup-pg test/1-\d+", result.out.splitlines()[-1]) and len(result.out.splitlines()) == 1
    assert "disk-0: full, because" in result.err and "completed" in result.err
    again = cli.run("backup", setup, "--repo", "main", "--incremental")
    assert again.status == 0 and "disk-1: compare, because" in again.err


def test_backup_as_json(cli, setup):
    done = cli.json("backup", setup, "--repo", "main", "--full")
    assert done["status"] == "completed" and len(done["disks"]) == 2 and done["change_id"]


def test_backup_without_client(cli, setup):
    result = cli.run("backup", setup, "--repo", "main", "--no-client", "--detach")
    assert result.status == 0
    command = result.err.splitlines()[1].strip()
    assert result.err.count("SENDENSE_JOB_TOKEN") == 1
    # What it says to run does the job, through a shell
    environ = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", command], check=True, env=environ, capture_output=True)
    assert cli.json("show", result.out.strip())["status"] == "completed"


def test_a_partial_backup_is_4(cli, setup):
    cli.ok("vm", "change", setup, "--exclude", "disk-1")
    result = cli.run("backup", setup, "--repo", "main")
    assert result.status == 4 and "left out: disk-1" in result.err
    assert cli.json("backup", setup, "--repo", "main", status=4)["partial"] is True


def test_an_excluded_key_that_no_disk_has(cli, setup):
    """A slip in a key was taken in silence, and backed up the disk that was to be left out."""
    cli.ok("vm", "change", setup, "--exclude", "disk-1", "--exclude", "disk1")
    result = cli.run("--quiet", "backup", setup, "--repo", "main")
    assert result.status == 4 and "no disk has the excluded key disk1" in result.err
    assert "excluded key disk-1" not in result.err
    cli.ok("vm", "change", setup, "--exclude", "disk1")
    result = cli.run("backup", setup, "--repo", "main", use_json=True)
    assert result.status == 0 and result.json["left_out"] == [] and "excluded key disk1" in result.err
    cli.ok("vm", "change", setup, "--exclude=")
    assert "excluded" not in cli.run("backup", setup, "--repo", "main").err


def test_a_failed_backup_is_1(cli, setup, place):
    (place / "b.qcow2").unlink()
    result = cli.run("backup", setup, "--repo", "main")
    assert result.status == 1 and result.out.startswith("backup-pg test/1-")
    assert result.err.splitlines()[-1].startswith("sendense: ") and "b.qcow2" in result.err
    assert cli.json("backup", setup, "--repo", "main", status=1)["status"] == "failed"


def test_following_over_a_restart(hub, cli, setup):
    """Straight to the hub: the connection breaks with it."""
    cli.url = hub.url
    process = spawn(cli, "backup", setup, "--repo", "main", "--no-client")
    lines = [process.stderr.readline(), process.stderr.readline()]
    hub.restart()
    subprocess.run(["sh", "-c", lines[1].strip()], check=True, capture_output=True,
                   env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"})
    out, err = process.communicate(timeout=patience(60))
    assert process.returncode == 0, err
    assert cli.json("show", out.strip())["status"] == "completed"


def test_interrupting_cancels(cli, setup, api):
    process = spawn(cli, "backup", setup, "--repo", "main", "--no-client")
    process.stderr.readline()
    process.stderr.readline()
    wait_until(lambda: api.get("/backups?limit=1").json["backups"], "the job")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=patience(30))
    assert process.returncode == 1 and "cancel" in err
    assert cli.json("show", out.strip())["status"] == "cancelled"


def test_terminating_leaves_the_job_alone(cli, setup):
    process = spawn(cli, "backup", setup, "--repo", "main", "--no-client")
    process.stderr.readline()
    process.stderr.readline()
    time.sleep(0.3)
    process.terminate()
    out, _ = process.communicate(timeout=patience(30))
    assert process.returncode == 1
    assert cli.json("show", out.strip())["status"] == "pending"
    assert "cancelled" in cli.ok("cancel", out.strip())
    assert cli.run("cancel", out.strip()).status == 1


def test_bars_on_a_terminal(cli, setup):
    leader, follower = pty.openpty()
    environ = {**os.environ, "SHA_API_URL": cli.url, "TERM": "xterm"}
    process = subprocess.Popen([str(BIN / "sendense"), "backup", setup, "--repo", "main"], cwd=cli.cwd, env=environ,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=follower, text=True)
    os.close(follower)
    seen = b""
    while select.select([leader], [], [], 30)[0]:
        try:
            data = os.read(leader, 65536)
        except OSError:
            break       # the other end is closed
        if not data:
            break
        seen += data
    os.close(leader)
    out, _ = process.communicate(timeout=patience(30))
    assert process.returncode == 0 and out.startswith("backup-")
    assert b"disk-0: full, because" in seen and b"completed" in seen


def test_listing_showing_and_deleting(cli, point, setup):
    second = backup(cli)
    assert cli.json("show", second)["parent_id"] == point
    assert [b["backup_id"] for b in cli.json("backups", "--vm", setup, "--repo", "main")["backups"]] == [second, point]
    assert [b["backup_id"] for b in cli.json("backups", "--limit", "1")["backups"]] == [second]
    assert cli.json("backups", "--status", "failed")["backups"] == []
    limited = cli.run("backups", "--limit", "1")
    assert second in limited.out and point not in limited.out and "1 of 2" in limited.err
    assert "disk-1" in cli.ok("show", point) and "dependents:     1" in cli.ok("show", point)
    refused = cli.run("delete", point)
    assert refused.status == 1 and second in refused.err
    assert cli.json("delete", point, "--with-dependents")["deleted"] == [second, point]
    assert cli.run("show", point).status == 1
    assert cli.run("backups", "--status", "nonsense").status == 1


# ---- restoring

def test_restore_one_disk(cli, point, place):
    assert cli.ok("restore", point, "--disk", "0", "--to", "out.raw") == f"{place.resolve()}/out.raw\n"
    assert digest(place / "out.raw") == digest(place / "a.raw")
    assert (place / "out.raw").stat().st_blocks * 512 < 5 * MIB      # holes stay holes
    done = cli.json("restore", point, "--disk", "disk-1", "--to", "out.qcow2", "--format", "qcow2")
    assert [(d["disk_key"], d["disk_no"], d["format"], d["path"]) for d in done["disks"]] == \
        [("disk-1", 1, "qcow2", f"{place.resolve()}/out.qcow2")]
    subprocess.run(["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", place / "out.qcow2", place / "b.qcow2"],
                   check=True)
    subprocess.run(["qemu-img", "check", place / "out.qcow2"], check=True)
    no_rest(cli, place)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_restore_all_disks(cli, point, place, form):
    done = cli.json("restore", point, "--all-disks", "--to", "all", "--format", form)
    assert [Path(d["path"]).name for d in done["disks"]] == [f"disk-0.{form}", f"disk-1.{form}"]
    for restored, source in ((f"disk-0.{form}", "a.raw"), (f"disk-1.{form}", "b.qcow2")):
        subprocess.run(["qemu-img", "compare", place / "all" / restored, place / source], check=True)
    # A folder that is there is fine, files in it are not; and then nothing is touched
    (place / "all" / f"disk-1.{form}").write_text("mine")
    (place / "all" / f"disk-0.{form}").unlink()
    assert cli.run("restore", point, "--all-disks", "--to", "all", "--format", form).status == 1
    assert not (place / "all" / f"disk-0.{form}").exists()
    assert (place / "all" / f"disk-1.{form}").read_text() == "mine"
    cli.ok("restore", point, "--all-disks", "--to", "all", "--format", form, "--force")
    subprocess.run(["qemu-img", "compare", place / "all" / f"disk-1.{form}", place / "b.qcow2"], check=True)
    no_rest(cli, place)


def test_every_point_of_a_chain(cli, setup, place):
    taken = []
    for n in range(3):
        with open(place / "a.raw", "r+b") as f:
            f.seek(n * MIB + 700)
            f.write(bytes([n + 1]) * 100_000)
        taken.append((backup(cli), digest(place / "a.raw")))
    for n, (point, expected) in enumerate(taken):
        cli.ok("restore", point, "--disk", "0", "--to", f"out-{n}")
        assert digest(place / f"out-{n}") == expected


def test_restore_refuses(cli, point, place, setup):
    (place / "there").write_text("mine")
    (place / "folder").mkdir()
    os.symlink(place / "repo", place / "way")
    os.symlink("nowhere", place / "dangling")
    context = next((place / "repo").glob("ctx-*")).name
    never = ["repo/new", "way/new", f"way/{context}/disk-0/new", "repo/repository.json", "folder", "dangling",
             "/dev/null", "none/new"]
    for path in never:
        for force in ([], ["--force"]):
            result = cli.run("restore", point, "--disk", "0", "--to", path, *force)
            assert result.status in (1, 2) and result.out == "" and result.err.startswith("sendense: "), path
    assert cli.run("restore", point, "--all-disks", "--to", "repo/all", "--force").status == 1
    assert cli.run("restore", point, "--all-disks", "--to", "there").status == 1
    result = cli.run("restore", point, "--disk", "0", "--to", "there")
    assert result.status == 1 and "--force" in result.err and (place / "there").read_text() == "mine"
    assert cli.run("restore", point, "--disk", "7", "--to", "new").status == 1
    assert cli.run("restore", "backup-none-1", "--disk", "0", "--to", "new").status == 1
    no_rest(cli, place)
    cli.ok("restore", point, "--disk", "0", "--to", "there", "--force")
    assert digest(place / "there") == digest(place / "a.raw")


def test_restore_refuses_an_image_that_qemu_holds(cli, point, place):
    shutil.copy(place / "a.raw", place / "held.raw")
    qemu = subprocess.Popen(["qemu-io", "-f", "raw", str(place / "held.raw")], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE)
    qemu.stdout.read(1)     # its prompt: the image is open
    result = cli.run("restore", point, "--disk", "0", "--to", "held.raw", "--force")
    qemu.communicate(b"quit\n")
    assert result.status == 1 and "QEMU" in result.err
    cli.ok("restore", point, "--disk", "0", "--to", "held.raw", "--force")


def test_restore_refuses_a_file_that_is_open(cli, point, place):
    shutil.copy(place / "a.raw", place / "open.raw")
    with open(place / "open.raw", "rb"):
        result = cli.run("restore", point, "--disk", "0", "--to", "open.raw", "--force")
    assert result.status == 1 and "is open" in result.err
    cli.ok("restore", point, "--disk", "0", "--to", "open.raw", "--force")


def test_a_running_backup_is_not_restored(cli, setup):
    job = cli.ok("backup", setup, "--repo", "main", "--no-client", "--detach").strip()
    result = cli.run("restore", job, "--disk", "0", "--to", "new")
    assert result.status == 1 and "pending" in result.err
    assert cli.run("verify", job).status == 1


def test_restore_without_room(cli, setup, place):
    """A disk that is larger than its data fits where the data fits, and is refused before a byte where it does not."""
    small = place / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", small], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        with open(place / "big.raw", "wb") as f:
            f.truncate(64 * MIB)
            f.write(os.urandom(2 * MIB))
        cli.ok("vm", "add", "big", "--file", "big.raw", "--format", "raw")
        point = backup(cli, "big")
        cli.ok("restore", point, "--disk", "0", "--to", "small/fits")
        assert digest(small / "fits") == digest(place / "big.raw")
        result = cli.run("restore", point, "--disk", "0", "--to", "small/does-not")
        assert result.status == 1 and "room" in result.err
        assert os.listdir(small) == ["fits"]
        no_rest(cli, place)
    finally:
        subprocess.run(["umount", small], check=True)


SLOW = 64 * MIB
LET_THROUGH = 1000      # bytes: the handshakes and some requests, not all of them


def slow_disk(cli, place):
    """Of noise. Its point."""
    with open(place / "slow.raw", "wb") as f:
        f.write(os.urandom(SLOW))
    cli.ok("vm", "add", "slow", "--file", "slow.raw", "--format", "raw")
    return backup(cli, "slow")


@contextlib.contextmanager
def half_done(hub, cli, *arguments):
    """(process, go): a restore that has written something, and gets the rest of the point from go() on. However large
    the disk was, on a busy machine a signal came after the restore's end."""
    with Gate(hub.port) as gate:
        gate.hold("exports", after=True)
        process = spawn(Cli(gate.url, cwd=cli.cwd), "restore", *arguments)
        gate.wait_held("exports", after=True)
        export, = hub.api.get("/exports").expect(200)["exports"]
        line = NbdGate(export["uri"].partition("?socket=")[2], LET_THROUGH)
        try:
            gate.open()
            line.wait_held()
            yield process, line.open
        finally:
            line.close()
            process.kill()
            process.communicate()


@pytest.mark.parametrize("form", ["raw", "qcow2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_restore_leaves_nothing(hub, cli, setup, place, form, number):
    point = slow_disk(cli, place)
    (place / "old").write_text("mine")
    with half_done(hub, cli, point, "--disk", "0", "--to", "old", "--force", "--format", form) as (process, _):
        assert [p for p in place.iterdir() if p.name.startswith("old.partial")]
        process.send_signal(number)
        _, err = process.communicate(timeout=patience(30))
    assert process.returncode == 1 and "cancel" in err, err
    assert (place / "old").read_text() == "mine"
    no_rest(cli, place)


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_killed_restore_is_done_again(hub, cli, setup, place, form):
    """It once left a file under a new name each time: a few kills, and the disk was full."""
    point = slow_disk(cli, place)
    partial = place / "out.partial"
    for _ in range(2):
        with half_done(hub, cli, point, "--disk", "0", "--to", "out", "--format", form) as (process, _):
            wait_until(lambda: partial.stat().st_blocks > 0, "something is written")
            process.kill()
            process.communicate(timeout=patience(30))
        for export in cli.json("exports")["exports"]:
            cli.ok("export", "end", export["export_id"])
    assert [p.name for p in place.iterdir() if p.name.startswith("out")] == ["out.partial"]
    cli.ok("restore", point, "--disk", "0", "--to", "out", "--format", form)
    subprocess.run(["qemu-img", "compare", "-f", form, "-F", "raw", place / "out", place / "slow.raw"], check=True)
    no_rest(cli, place)


def test_a_path_has_one_restore_at_a_time(hub, cli, setup, place):
    point = slow_disk(cli, place)
    with half_done(hub, cli, point, "--disk", "0", "--to", "out") as (first, go):
        second = cli.run("restore", point, "--disk", "0", "--to", "out", "--force")
        assert second.status == 1 and "out.partial" in second.err and "another restore" in second.err
        go()
        first.communicate(timeout=patience(60))
    assert first.returncode == 0 and digest(place / "out") == digest(place / "slow.raw")
    no_rest(cli, place)


def test_what_a_killed_restore_left_is_room_for_the_next(cli, setup, place):
    small = place / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=7m", "tmpfs", small], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (small / "out.partial").write_bytes(os.urandom(4 * MIB))
        point = backup(cli)
        os.symlink("elsewhere", small / "link.partial")
        refused = cli.run("restore", point, "--disk", "0", "--to", "small/link")
        assert refused.status == 1 and "link.partial" in refused.err and not (small / "elsewhere").exists()
        cli.ok("restore", point, "--disk", "0", "--to", "small/out")
        assert digest(small / "out") == digest(place / "a.raw")
        assert sorted(os.listdir(small)) == ["link.partial", "out"]
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.fixture
def device(place):
    """A block device of 8 MiB."""
    with open(place / "backing", "wb") as f:
        f.truncate(8 * MIB)
    made = subprocess.run(["losetup", "--find", "--show", place / "backing"], capture_output=True, text=True,
                          check=False)
    if made.returncode:
        pytest.skip("no loop device is to be had here")
    yield made.stdout.strip()
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


def test_block_devices(cli, point, place, device):
    assert cli.run("restore", point, "--disk", "0", "--to", device).status == 1
    assert cli.run("restore", point, "--disk", "0", "--to", device, "--force", "--format", "qcow2").status == 2
    cli.ok("restore", point, "--disk", "0", "--to", device, "--force")
    size = (place / "a.raw").stat().st_size
    with open(device, "rb") as f:
        assert f.read(size) == (place / "a.raw").read_bytes()
    # Mounted: never
    subprocess.run(["mkfs.ext4", "-q", "-F", device], check=True)
    (place / "mnt").mkdir()
    if subprocess.run(["mount", device, place / "mnt"], check=False).returncode == 0:
        try:
            result = cli.run("restore", point, "--disk", "0", "--to", device, "--force")
            assert result.status == 1 and "mounted" in result.err and str(place / "mnt") in result.err
        finally:
            subprocess.run(["umount", place / "mnt"], check=True)
    # Too small: before a byte is written
    cli.ok("vm", "add", "big", "--file", str(make_image(place / "big.raw", 9 * MIB)), "--format", "raw")
    with open(device, "rb") as f:
        before = f.read()
    result = cli.run("restore", backup(cli, "big"), "--disk", "0", "--to", device, "--force")
    assert result.status == 1
    with open(device, "rb") as f:
        assert f.read() == before


@pytest.mark.parametrize("node", ["the same", "its own"])
def test_restore_refuses_a_device_that_qemu_holds(cli, point, place, device, node):
    """It once looked for mounts and swap only, and overwrote a running guest's disk. A guest of libvirt's has device
    nodes of its own, on which QEMU's locks are not seen."""
    path = device
    if node == "its own":
        path = place / "node"
        os.mknod(path, 0o600 | stat.S_IFBLK, os.stat(device).st_rdev)
        try:
            os.close(os.open(path, os.O_RDONLY))
        except PermissionError:
            pytest.skip("this folder's filesystem has no devices")
    with PausedQemu(place / "vm", [(path, "raw")]) as vm:
        vm.write(0, 0, MIB, 0x5a)
        result = cli.run("restore", point, "--disk", "0", "--to", device, "--force")
        assert result.status == 1 and ("QEMU" if path == device else f"process {vm.process.pid}") in result.err
        vm.qmp("stop")      # drains and flushes
        with open(device, "rb") as f:
            assert f.read(MIB) == b"\x5a" * MIB
    cli.ok("restore", point, "--disk", "0", "--to", device, "--force")


def test_qemu_is_kept_from_a_device_that_is_restored_to(hub, cli, setup, place, device):
    """What is looked at before the restore may have changed by the time it writes."""
    point = slow_disk(cli, place)
    os.truncate(place / "backing", SLOW)
    subprocess.run(["losetup", "--set-capacity", device], check=True)
    with half_done(hub, cli, point, "--disk", "0", "--to", device, "--force") as (restore, go):
        with pytest.raises(GuestError, match="lock"):
            PausedQemu(place / "vm", [(device, "raw")]).close()
        go()
        restore.communicate(timeout=patience(60))
    assert restore.returncode == 0
    with open(device, "rb") as f:
        assert f.read() == (place / "slow.raw").read_bytes()


# ---- verifying

def damage(place, pattern, offset):
    """Flips one byte."""
    path = next((place / "repo").glob(pattern))
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)
        f.seek(offset)
        f.write(bytes([byte[0] ^ 1]))
    return path


def data_offset(place, pattern, cluster):
    """Where a guest cluster lies in an image."""
    path = next((place / "repo").glob(pattern))
    mapped = subprocess.run(["qemu-img", "map", "--output=json", path], capture_output=True, text=True, check=True)
    at = cluster * CLUSTER
    for e in json.loads(mapped.stdout):
        if e["start"] <= at < e["start"] + e["length"] and e["data"]:
            return e["offset"] + at - e["start"]
    raise AssertionError("not allocated")


def test_verify_a_good_point(cli, point):
    out = cli.ok("verify", point)
    assert out.count(" ok ") == 2 and point in out
    value = cli.json("verify", "--repo", "main", "--vm", "pg test/1")
    assert value["result"] == "ok"
    assert [(d["disk_key"], d["result"], d["bytes"]) for d in value["points"][0]["disks"]] == \
        [("disk-0", "ok", 5 * MIB + 512), ("disk-1", "ok", 3 * MIB)]
    shown = cli.json("show", point)
    assert shown["verify_result"] == "ok" and shown["verified_at"] and not shown["suspect"]
    assert cli.json("exports")["exports"] == []


def test_verify_finds_one_flipped_byte(cli, setup, place):
    with open(place / "a.raw", "r+b") as f:
        f.seek(20 * CLUSTER)
        f.write(os.urandom(5 * CLUSTER))
    first, second = backup(cli), None
    with open(place / "a.raw", "r+b") as f:
        f.seek(40 * CLUSTER)
        f.write(os.urandom(CLUSTER))
    second = backup(cli)
    pattern = "ctx-*/disk-0/*-full.qcow2"
    path = damage(place, pattern, data_offset(place, pattern, 22) + 1000)
    value = cli.json("verify", "--repo", "main", status=3)
    assert [p["backup_id"] for p in value["points"]] == [first, second]     # oldest first
    for p in value["points"]:
        assert [d["result"] for d in p["disks"]] == ["damaged", "ok"]
        found = p["disks"][0]
        assert found["offset"] == 22 * CLUSTER and found["file"] == str(path.relative_to(place / "repo"))
        assert set(found["affected"]) == {first, second}
    assert cli.json("show", second)["suspect"] is True
    plain = cli.run("verify", second)
    assert plain.status == 3 and "damaged" in plain.out and f"affected: {first}" in plain.err
    # A restore warns, ends with the same status, and leaves nothing
    result = cli.run("restore", second, "--disk", "0", "--to", "out")
    assert result.status == 3 and "suspect" in result.err and str(22 * CLUSTER) in result.err
    assert not (place / "out").exists()
    cli.ok("restore", second, "--disk", "1", "--to", "out")
    no_rest(cli, place)


def test_a_restore_that_meets_damage_tells_the_hub(cli, setup, place):
    """The point once stayed good, and the next backup was built on it."""
    with open(place / "a.raw", "r+b") as f:
        f.seek(20 * CLUSTER)
        f.write(os.urandom(5 * CLUSTER))
    first, second = backup(cli), backup(cli)
    pattern = "ctx-*/disk-0/*-full.qcow2"
    damage(place, pattern, data_offset(place, pattern, 22) + 1000)
    said = cli.json("restore", second, "--disk", "0", "--to", "out", status=3)
    assert str(22 * CLUSTER) in said["details"] and first in said["details"] and second in said["details"]
    for point in (first, second):
        shown = cli.json("show", point)
        assert shown["suspect"] is True and shown["verify_result"] == "damaged"
    plain = cli.run("restore", second, "--disk", "0", "--to", "out")
    assert plain.status == 3 and first in plain.err and not (place / "out").exists()
    done = cli.json("backup", setup, "--repo", "main")
    assert (done["backup_type"], done["disks"][0]["reason"]) == ("full", "parent_damaged")
    cli.ok("restore", done["backup_id"], "--disk", "0", "--to", "out")
    assert digest(place / "out") == digest(place / "a.raw")
    no_rest(cli, place)


def test_damage_that_the_hub_is_not_told_of_is_said(cli, setup, place, hub):
    """The catalogue is wrong then, and the disk is not restored: two things to say."""
    with open(place / "a.raw", "r+b") as f:
        f.seek(20 * CLUSTER)
        f.write(os.urandom(5 * CLUSTER))
    point = backup(cli)
    pattern = "ctx-*/disk-0/*-full.qcow2"
    damage(place, pattern, data_offset(place, pattern, 22) + 1000)
    with sqlite3.connect(hub.database) as db:
        db.execute("CREATE TRIGGER full_disk BEFORE UPDATE OF suspect ON backup_jobs "
                   "BEGIN SELECT RAISE(ABORT, 'no'); END")
    db.close()
    result = cli.run("restore", point, "--disk", "0", "--to", "out")
    assert result.status == 3 and "the hub was not told" in result.err and str(22 * CLUSTER) in result.err


@pytest.mark.parametrize("pattern", ["ctx-*", "ctx-*/disk-0", "ctx-*/disk-0/*.qcow2", "ctx-*/disk-0/*.hashes",
                                     "ctx-*/*.json"])
def test_verify_misses_what_is_gone(cli, point, place, pattern):
    """Verify once said ok with a whole backup folder gone, because it listed what was on disk."""
    gone = next((place / "repo").glob(pattern))
    os.rename(gone, place / "gone")
    value = cli.json("verify", "--repo", "main", status=3)
    assert value["points"][0]["backup_id"] == point and value["points"][0]["result"] == "damaged"
    assert cli.json("exports")["exports"] == []


def test_verify_without_its_repository_is_not_damage(cli, point, place):
    """An unmounted share: nothing is known, and nothing is marked."""
    os.rename(place / "repo", place / "away")
    (place / "repo").mkdir()
    value = cli.json("verify", "--repo", "main", status=1)
    assert value["points"][0]["result"] == "failed"
    (place / "repo").rmdir()
    os.rename(place / "away", place / "repo")
    assert cli.json("show", point)["suspect"] is False
    cli.ok("verify", point)


def test_nothing_to_verify(cli, setup):
    assert cli.json("verify", "--repo", "main") == {"points": [], "result": "ok"}
    assert cli.run("verify", "--repo", "none").status == 1


def test_quiet_is_quiet(cli, setup, place):
    """Cron mailed each night that nothing tracks an image file."""
    for _ in range(2):
        result = cli.run("--quiet", "backup", setup, "--repo", "main")
        assert (result.status, result.err) == (0, "") and result.out.startswith("backup-pg test/1-")


def test_nothing_known_of_a_repository_that_is_away(cli, setup, place):
    """Verify said that all was well; and that the hub, which had answered, was looked for elsewhere."""
    os.rename(place / "repo", place / "away")
    result = cli.run("verify", "--repo", "main")
    os.rename(place / "away", place / "repo")
    assert result.status == 1 and result.err.count("mounted?") == 1 and "looked for" not in result.err


def test_exports_left_behind(cli, point, api):
    """What a killed CLI leaves is listed, and can be ended."""
    left = api.post("/exports", {"backup_id": point, "disk": "0", "purpose": "restore"}).expect(201)
    assert left["export_id"] in cli.ok("exports")
    assert api.get(f"/backups/{quote(point)}").expect(200)["status"] == "completed"
    cli.ok("export", "end", left["export_id"])
    assert cli.run("export", "end", left["export_id"]).status == 1
