"""The hub's settings: files, environment, options; --check-config; a reload (docs/internals/settings.md)."""

import os
import re
import signal
import subprocess

import pytest

from lib.cli import Cli
from lib.history import wait_for
from lib.hub import BIN, ROOT, HubError
from lib.world import World


def check(place, *options, environment=None, status=0):
    """{setting: value} as in effect; or, where the status is another one, what is said of it."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("SENDENSE_")}
    done = subprocess.run([str(BIN / "sendense-hub"), "--check-config", "--data-dir", str(place / "none"), *options],
                          env={**environ, **(environment or {})}, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, check=False, timeout=60)
    assert done.returncode == status, done
    assert not (place / "none").exists()
    return done.stderr if status else dict(line.split(" = ", 1) for line in done.stdout.splitlines())


def test_the_file_that_comes_with_it_has_each_setting_with_its_default(place):
    """The backups of the database were not in it for a while: the packages' test, which is longer, ran too seldom."""
    sample = (ROOT / "packaging" / "hub.conf").read_text()
    values = dict(re.findall(r"^#([a-z-]+) = ?(.*)$", sample, re.MULTILINE))
    defaults = check(place)
    del defaults["data-dir"]
    assert {n: v for n, v in values.items() if n in defaults} == defaults
    said = subprocess.run([str(BIN / "sendense-hub"), "--help"], capture_output=True, text=True, check=True, timeout=60)
    options = set(re.findall(r"^  --([a-z-]+)", said.stdout, re.MULTILINE))
    assert options - set(values) == {"config", "check-config", "new-admin-token", "help", "version", "to"}
    assert set(values) - options == set()


def test_the_reference_has_each_setting_with_its_default_and_bounds(place):
    """Nothing held docs/reference/hub.md against the hub: a bound that is changed was wrong there from then on."""
    text = (ROOT / "docs/reference/hub.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in text.splitlines() if line.startswith("| `--")]
    said = subprocess.run([str(BIN / "sendense-hub"), "--help"], capture_output=True, text=True, check=True, timeout=60)
    named = [name for names, _, _ in rows for name in re.findall(r"`--([a-z-]+)`", names)]
    assert sorted(named) == sorted(re.findall(r"^  --([a-z-]+)", said.stdout, re.MULTILINE))
    defaults, bounded = check(place), 0
    for names, values, default in rows:
        name = re.match(r"`--([a-z-]+)`", names)[1]
        if name in defaults and re.fullmatch(r"\d+|`[a-z/]+`|[\d.]+", default) and name != "data-dir":
            assert default.strip("`") == defaults[name], name
        if bounds := re.match(r"(\d+) to (\d+)( |;|$)", values):
            bounded += 1
            # the port of hosts that name none means nothing without them
            low, high = int(bounds[1]), int(bounds[2])
            for value in (low, high):
                assert check(place, f"--{name}={value}")[name] == str(value)
            for value in (low - 1, high + 1):
                assert name in check(place, f"--{name}={value}", status=2)
    numbers = [n for n, v in defaults.items() if v.isdecimal()]
    assert bounded == len(numbers) and len(numbers) > 10


def test_who_comes_last_wins(place):
    file = place / "hub.conf"
    file.write_text("max-jobs = 7\nchain-limit = 11\nlease = 40\nport = 9000\n# done\n")
    folder = place / "hub.conf.d"
    folder.mkdir()
    (folder / "10.conf").write_text("chain-limit = 12\nlease = 41\n")
    (folder / "20.conf").write_text("lease = 42\n")
    said = check(place, f"--config={file}", "-port=9002", environment={"SENDENSE_LEASE": "43", "SENDENSE_PORT": "9001"})
    assert (said["max-jobs"], said["chain-limit"], said["lease"], said["port"]) == ("7", "12", "43", "9002")
    assert said["auth"] == "true" and said["audit-blocks"] == "3000"


def test_where_the_data_is_without_a_word_about_it(place):
    """--check-config says what is in effect; of these two it said nothing where nothing was set."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("SENDENSE_")}
    (place / "hub.conf").touch()
    said = subprocess.run([BIN / "sendense-hub", "--check-config", "--config", place / "hub.conf"], env=environ,
                          timeout=60, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          check=True).stdout
    assert "data-dir = /var/lib/sendense\n" in said and "listen = 127.0.0.1\n" in said


@pytest.mark.parametrize("text, words", [
    ("max-job = 3\n", "hub.conf:1: there is no setting"), ("\nmax-jobs = 0\n", "hub.conf:2: option --max-jobs"),
    ("auth = false\nlisten = 0.0.0.0\n", "--let-anybody-in"), ("db-name = x\n", "--db-host"),
    ("plugin = /nowhere/x\n", "--plugin"),
    ("db-host = a,b:x\ndb-name = n\ndb-user = u\n", "db-host: b:x"),
    ("db-host = a,::1\ndb-name = n\ndb-user = u\n", "brackets"),
    ("db-host = h\ndb-name = n\ndb-user = u\ndb-pass-file = /nowhere/p\n", "/nowhere/p"),
    ("new-admin-token = true\n", "there is no setting"), ("config = x\n", "there is no setting")])
def test_what_is_wrong(place, text, words):
    file = place / "hub.conf"
    file.write_text(text)
    assert words in check(place, f"--config={file}", status=2 if "/nowhere/p" not in words else 1)


def test_odd_ones(place):
    assert "max-jobs" in check(place, environment={"SENDENSE_MAX_JOBS": "many"}, status=2)
    assert "/nowhere" in check(place, "--config=/nowhere/hub.conf", status=2)
    file = place / "hub.conf"
    file.write_text("db-host = h\ndb-name = n\ndb-user = u\ndb-pass = sesame\n")
    said = check(place, f"--config={file}")
    assert said["db-pass"] == "(not shown)" and "sesame" not in str(said)


@pytest.mark.parametrize("how", ["signal", "call"])
def test_a_reload(make_hub, place, how):
    """What can change does, for the next job; what cannot is told; what is wrong changes nothing."""
    file = place / "hub.conf"
    file.write_text("audit-blocks = 10\n")
    hub = make_hub(options=[f"--config={file}"])
    cli = Cli(hub.url, cwd=place)
    world = World(hub, place)
    world.add_repository()
    world.add_vm()

    def reload(status=0):
        if how == "call":
            return cli.run("hub", "reload", use_json=True)
        at = len(hub.log)
        hub.process.send_signal(signal.SIGHUP)
        wait_for(lambda: ("could not be read" if status else "read anew") in hub.log[at:], "it was read")
        return None

    def asked():
        job = world.job()
        order = job.claim()
        job.call("fail", {"error": "x", "details": "x"}).expect(200)
        return order["audit_blocks"]

    assert asked() == 10
    file.write_text("audit-blocks = 11\nrun-dir = /elsewhere\n")
    said = reload()
    assert how == "signal" or (said.status == 0 and said.json == {"needs_restart": []}), said  # an option goes before
    assert asked() == 11
    file.write_text("audit-blocks = 12\nlisten = 127.0.0.2\n")
    said = reload()
    assert how == "signal" or said.json == {"needs_restart": ["listen"]}
    assert "changes with the next start" in hub.log
    file.write_text("audit-blocks = 13\nnonsense\n")
    said = reload(status=1)
    assert how == "signal" or (said.status == 1 and "hub.conf:2" in said.json["details"])
    hub.api.post("/reload").expect(409, "settings not usable")
    assert asked() == 12
    file.write_text("max-jobs = 1\n")
    reload()
    assert asked() == 3000                                      # the default
    first = world.running_job()
    world.add_vm("other", seed=2)
    second = world.job("other")
    second.call("claim", {"claim": "5f3f6a0e-6c52-4a8e-a3a0-6b2c1f3d9a41"}).expect(409)
    for job in (first, second):
        job.call("fail", {"error": "x", "details": "x"}).expect(200)


def test_a_hub_starts_by_its_file_alone(make_hub, place):
    hub = make_hub(start=False)
    file = place / "hub.conf"
    file.write_text(f"data-dir = {hub.data}\nport = {hub.port}\nauth = false\nrun-dir = {hub.run_dir}\n")
    hub.command = lambda: [hub.binary, "--config", str(file)]
    hub.start()
    file.write_text("nonsense\n")
    hub.stop()
    with pytest.raises(HubError, match="hub.conf:1"):
        hub.start()
    file.write_text(f"data-dir = {hub.data}\nport = {hub.port}\nauth = false\nrun-dir = {hub.run_dir}\n")
