"""What Prometheus is told (docs/reference/metrics.md)."""

import contextlib
import sqlite3
import subprocess

import pytest

from lib import unpacked
from lib.api import quote
from lib.cli import Cli
from lib.line import Line

NASTY = 'a "b" \\ c'


def metrics(hub):
    answer = hub.api.get("/metrics")
    assert answer.status == 200 and answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = {}
    for line in answer.text.splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            assert name not in found, line
            found[name] = float(value)
    return found, answer.text


def test_a_hub_that_has_done_nothing(hub):
    found, text = metrics(hub)
    assert found['sendense_build_info{version="0.1.0",database="sqlite"}'] == 1
    assert found['sendense_jobs{status="pending"}'] == found["sendense_exporters"] == found["sendense_exports"] == 0
    assert found["sendense_data_dir_free_bytes"] > 0
    assert found["sendense_database_bytes"] >= hub.database.stat().st_size > 0
    assert 0 < found["sendense_database_seconds"] < 60
    check(text)


def check(text):
    """The grammar, and Prometheus' own advice on names and types."""
    done = subprocess.run([unpacked.program("prometheus", "usr/bin/promtool"), "check", "metrics"], input=text,
                          text=True, capture_output=True,
                          check=False)
    assert done.returncode == 0 and not done.stderr.strip(), done


def test_what_was_done(hub, place):
    line = Line(hub, place, [bytes(1 << 20)], vm_name=NASTY)
    label = 'vm="' + NASTY.replace("\\", "\\\\").replace('"', '\\"') + '"'
    found, _ = metrics(hub)
    assert found[f'sendense_vm_points{{{label},repository=""}}'] == 0
    assert not [name for name in found if "age_seconds" in name]
    line.images[0].write(0, b"x" * 65536)
    line.point()
    line.images[0].write(65536, b"y" * 65536)
    second = line.point()
    found, text = metrics(hub)
    of_vm, there = f"{{{label}}}", f'{{{label},repository="main"}}'
    assert found["sendense_vm_points" + there] == 2
    assert 0 <= found["sendense_vm_good_point_age_seconds" + there] < 600
    assert "sendense_vm_verified_point_age_seconds" + there not in found
    assert found[f'sendense_vm_jobs_ended_total{{{label},status="completed"}}'] == 2
    assert found[f'sendense_vm_jobs_ended_total{{{label},status="failed"}}'] == 0
    assert found[f'sendense_vm_disks_total{{{label},mode="full",reason="first_backup"}}'] == 1
    assert found[f'sendense_vm_disks_total{{{label},mode="compare",reason="not_tracked"}}'] == 1
    stored = found['sendense_repository_stored_bytes{repository="main"}']
    assert found["sendense_vm_stored_bytes_total" + of_vm] == stored
    assert found["sendense_vm_read_bytes_total" + of_vm] >= found["sendense_vm_sent_bytes_total" + of_vm] > 0
    assert found["sendense_vm_job_seconds_total" + of_vm] > 0
    assert found['sendense_repository_up{repository="main"}'] == 1
    assert found['sendense_repository_points{repository="main"}'] == 2
    check(text)

    cli = Cli(hub.url, cwd=place)
    cli.ok("verify", second["backup_id"])
    found, _ = metrics(hub)
    good, verified = (f"sendense_vm_{what}_point_age_seconds{there}" for what in ("good", "verified"))
    assert found[verified] >= found[good]
    hub.api.post(f"/backups/{quote(second['backup_id'])}/verification", {
        "result": "damaged", "disk_id": second["disks"][0]["disk_id"], "offset": 0, "details": "x"})
    hub.restart()
    found, text = metrics(hub)
    assert not [n for n, value in found.items() if "_total{" in n and value]     # since the start
    assert "sendense_vm_verified_point_age_seconds" + there not in found
    check(text)


@pytest.mark.parametrize("suspect, result, good, verified", [
    (0, "ok", True, True), (1, "ok", False, False), (0, "damaged", True, False), (0, None, True, False)])
def test_which_points_count(hub, place, suspect, result, good, verified):
    """What is suspect is no point to rest on, whatever a verify said of its files."""
    line = Line(hub, place, [bytes(65536)])
    line.point()
    with contextlib.closing(sqlite3.connect(hub.database, timeout=10)) as database:
        database.execute("UPDATE backup_jobs SET suspect = ?, verify_result = ?", (suspect, result))
        database.commit()
    found, _ = metrics(hub)
    there = '{vm="pgtest1",repository="main"}'
    assert found["sendense_vm_points" + there] == 1
    assert ("sendense_vm_good_point_age_seconds" + there in found) is good
    assert ("sendense_vm_verified_point_age_seconds" + there in found) is verified


def test_a_job_that_comes_to_nothing(world):
    """Its exporters counted for ever, and an alarm of it did not count at all."""
    world.add_vm(sizes=(1 << 20,))
    alarms = 'sendense_vm_audit_alarms_total{vm="pgtest1"}'
    assert metrics(world.hub)[0][alarms] == 0       # an increase needs a beginning
    job = world.running_job(size=1 << 20)
    assert metrics(world.hub)[0]["sendense_exporters"] == 1
    for _ in range(2):                              # said twice, it is one
        job.call("audit", {"disk_id": job.disks["disk-0"]["disk_id"], "unchanged_blocks": 1, "checked_blocks": 1,
                           "wrong_blocks": 1, "wrong_at": 0}).expect(200)
    job.call("fail", {"error": "x", "details": "x"}).expect(200)
    found, text = metrics(world.hub)
    assert found["sendense_exporters"] == 0 and found[alarms] == 1
    assert found['sendense_vm_jobs_ended_total{vm="pgtest1",status="failed"}'] == 1
    check(text)


def test_a_repository_that_is_away(hub, place):
    line = Line(hub, place, [bytes(65536)])
    line.point()
    where = line.repositories["main"]
    where.rename(str(where) + ".away")
    found, text = metrics(hub)
    assert found['sendense_repository_up{repository="main"}'] == 0
    assert found['sendense_repository_free_bytes{repository="main"}'] == 0
    assert found['sendense_repository_points{repository="main"}'] == 1
    check(text)
