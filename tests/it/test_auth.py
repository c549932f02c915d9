"""Who may do what, and the log of it: tokens, roles, the jobs' own tokens, the audit log (docs/internals/auth.md)."""

import concurrent.futures
import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess

import pytest
import yaml

from lib.api import quote
from lib.cli import Cli
from lib.history import wait_for
from lib.hub import BIN, ROOT, HubError
from lib.world import World

ROLES = ("admin", "operator", "viewer", "node")
TOKEN = re.compile("sendense_[0-9a-f]{64}")


def operations():
    """(method, path, roles) of each that is described."""
    with open(ROOT / "api" / "openapi.yaml", encoding="utf-8") as f:
        paths = yaml.safe_load(f)["paths"]
    return [(method.upper(), path, item[method]["x-roles"]) for path, item in paths.items()
            for method in ("get", "post", "patch", "delete") if method in item]


@pytest.fixture
def locked(make_hub):
    """A hub that wants tokens."""
    return make_hub(auth=True)


def admin(hub):
    return hub.api.with_token(hub.admin_token)


def token(hub, role, name=None, **more):
    made = admin(hub).post("/tokens", {"name": name or role, "role": role, **more}).expect(201)
    assert TOKEN.fullmatch(made["token"]) and made["created_by"] == "admin"
    return made["token"]


def change(hub, statement, *arguments):
    """What nobody does but who has the database."""
    with contextlib.closing(sqlite3.connect(hub.database, timeout=10)) as database:
        database.execute(statement, arguments)
        database.commit()


def started(hub, place):
    """A world of the admin's, with a VM, and a job that waits for its client."""
    world = World(hub, place)
    world.api = admin(hub)
    world.add_repository()
    world.add_vm()
    return world, world.api.post("/backups", {"vm_name": "pgtest1", "repository_id": world.repository_id,
                                              "start_client": False}).expect(201)


# ---- the first token

def test_the_first_token_is_in_a_file_of_the_data_folder(locked):
    path = locked.data / "admin-token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and TOKEN.fullmatch(locked.admin_token)
    assert admin(locked).get("/whoami").expect(200) == {"name": "admin", "role": "admin", "auth": True}
    assert str(path) in locked.log and not TOKEN.search(locked.log)
    assert locked.admin_token.encode() not in locked.database.read_bytes()
    first = locked.admin_token
    path.unlink()
    locked.restart()
    assert not path.exists()                                    # there is one, in somebody's hands
    locked.options.append("--new-admin-token")
    locked.restart()
    assert locked.admin_token != first
    for known in (first, locked.admin_token):
        locked.api.with_token(known).get("/whoami").expect(200)
    assert [t["name"] for t in admin(locked).get("/tokens").expect(200)["tokens"]] == ["admin", "admin-2"]


def test_without_authentication_nobody_is_asked(hub):
    assert hub.api.get("/whoami").expect(200) == {"name": "anybody", "role": None, "auth": False}
    hub.api.with_token("nonsense").get("/vms").expect(200)      # as ever
    assert not (hub.data / "admin-token").exists()
    assert hub.api.get("/audit").expect(200)["entries"] == []


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_without_authentication_others_are_let_in_only_on_a_word(make_hub, address):
    hub = make_hub(start=False, options=[f"--listen={address}"])
    with pytest.raises(HubError, match="--let-anybody-in"):
        hub.start()
    hub.options.append("--let-anybody-in")
    hub.start()
    assert "anybody who reaches this address" in hub.log


# ---- roles

def send(api, method, path, backup_id=None):
    """An operation on things that are not there, or on this job."""
    path = re.sub(r"\{backup_id\}", quote(backup_id or "backup-none-1"), path)
    path = re.sub(r"\{[a-z_]+\}", "none-such", path)
    body = {"change_id": "a/1"} if path.endswith(("/complete", "/changeid")) else {}
    return api.request(method, path, body if method in ("POST", "PATCH") else None)


def test_every_operation_with_every_role(locked, place):
    """The one table of the rights is x-roles in api/openapi.yaml."""
    world, job = started(locked, place)
    tokens = {role: token(locked, role, f"the-{role}") for role in ROLES}
    over = token(locked, "admin", "over", expires_in_days=1)
    change(locked, "UPDATE api_tokens SET expires_at = '2026-01-01T00:00:00.000000Z' WHERE name = 'over'")
    gone = token(locked, "admin", "gone")
    world.api.delete("/tokens/gone").expect(200)
    seen = set()
    for method, path, roles in operations():
        if path.endswith("/progress") or (method, path) == ("GET", "/tokens"):
            continue            # after the others: it would start the job's lease; the tokens are all there still
        seen.add((method, path))
        check_operation(locked, method, path, roles, tokens, {"none": None, "nonsense": "x", "expired": over,
                                                              "revoked": gone}, job)
    assert len(seen) > 40
    for method, path, roles in operations():
        if (method, path) not in seen:
            check_operation(locked, method, path, roles, tokens, {"none": None}, job)
    world.api.post(f"/backups/{job['backup_id']}/cancel").expect(202)


def check_operation(hub, method, path, roles, tokens, others, job):
    what = f"{method} {path}"
    of_job = roles == ["job"]
    for name, value in others.items():
        status = send(hub.api.with_token(value), method, path, job["backup_id"] if of_job else None).status
        expected = 401 if not of_job or name == "none" else 403
        if roles == ["anybody"]:
            assert status in (200, 400), what
            continue
        assert status == expected, f"{what} with a token that is {name}: {status}"
    for role, value in tokens.items():
        answer = send(hub.api.with_token(value), method, path, job["backup_id"] if of_job else None)
        if of_job or (role not in roles and roles != ["anybody"]):
            assert answer.status == 403, f"{what} as {role}: {answer.status} {answer.text}"
        else:
            assert answer.status not in (401, 403), f"{what} as {role}: {answer.status} {answer.text}"
    if not of_job and roles != ["anybody"]:
        assert send(hub.api.with_token(job["job_token"]), method, path).status == 401, what


def test_a_jobs_token_is_good_for_its_job_alone(locked, place):
    world, job = started(locked, place)
    world.add_vm("other", seed=2)
    other = world.api.post("/backups", {"vm_name": "other", "repository_id": world.repository_id,
                                        "start_client": False}).expect(201)
    claim = {"claim": "5f3f6a0e-6c52-4a8e-a3a0-6b2c1f3d9a41"}
    with_it = locked.api.with_token(job["job_token"])
    with_it.post(f"/backups/{other['backup_id']}/claim", claim).expect(403)
    with_it.post(f"/backups/{other['backup_id']}/complete", {"change_id": "a/1"}).expect(403)
    with_it.get("/backups").expect(401)
    with_it.get(f"/backups/{job['backup_id']}").expect(401)
    locked.api.post(f"/backups/{job['backup_id']}/complete", {"change_id": "a/1"}).expect(401)
    with_it.post(f"/backups/{job['backup_id']}/claim", claim).expect(200)
    for one in (job, other):
        locked.api.with_token(one["job_token"]).post(f"/backups/{one['backup_id']}/fail", {
            "error": "the test is over", "details": ""}).expect(200)


def test_an_operator_does_not_play_the_client(locked, place):
    """The job's token opens the work order, and that has the password of the VM's source."""
    world, job = started(locked, place)
    world.api.post(f"/backups/{job['backup_id']}/cancel").expect(202)
    body = {"vm_name": "pgtest1", "repository_id": world.repository_id, "start_client": False}
    operator = locked.api.with_token(token(locked, "operator"))
    operator.post("/backups", body).expect(403, "not allowed")
    node = locked.api.with_token(token(locked, "node"))
    started_by_node = node.post("/backups", body).expect(201)
    operator.post(f"/backups/{started_by_node['backup_id']}/cancel").expect(202)


def test_a_node_follows_its_job(locked, place):
    """It could start one and look at it, not follow it: `backup --no-client` made the job, and ended with 1."""
    world, job = started(locked, place)
    world.api.post(f"/backups/{job['backup_id']}/cancel").expect(202)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        done = pool.submit(Cli(locked.url, cwd=place).run, "backup", "pgtest1", "--repo", world.repository_id,
                           "--no-client", environment={"SENDENSE_TOKEN": token(locked, "node")})
        wait_for(lambda: world.api.get("/backups?status=pending").expect(200)["backups"], "the job")
        own, = world.api.get("/backups?status=pending").expect(200)["backups"]
        world.api.post(f"/backups/{own['backup_id']}/cancel").expect(202)
    assert done.result().status == 1 and "cancelled" in done.result().err, done.result()


# ---- tokens

def test_tokens(locked):
    api = admin(locked)
    made = api.post("/tokens", {"name": "night/shift \u00fc", "role": "operator", "expires_in_days": 2}).expect(201)
    assert made["expires_at"] > made["created_at"] and made["used_at"] is None
    api.post("/tokens", {"name": "night/shift \u00fc", "role": "viewer"}).expect(409, "token name taken")
    for bad in ({"name": ""}, {"role": "root"}, {"role": None}, {"expires_in_days": 0}, {"expires_in_days": 36501},
                {"expires_in_days": "1"}, {"token": "mine"}):
        api.post("/tokens", {"name": "x", "role": "viewer", **bad}).expect(400, "invalid request body")
    locked.api.with_token(made["token"]).get("/vms").expect(200)
    listed = {t["name"]: t for t in api.get("/tokens").expect(200)["tokens"]}
    assert set(listed) == {"admin", "night/shift \u00fc"} and "token" not in listed["admin"]
    assert listed["night/shift \u00fc"]["used_at"] is not None
    api.delete("/tokens/none").expect(404, "token not found")
    assert api.delete("/tokens/" + quote("night/shift \u00fc")).expect(200)["token_id"] == made["token_id"]
    locked.api.with_token(made["token"]).get("/vms").expect(401, "token not accepted")
    api.delete("/tokens/admin").expect(409, "last admin token")
    second = token(locked, "admin", "second")
    api.delete("/tokens/admin").expect(200)
    locked.api.with_token(second).get("/tokens").expect(200)
    api.get("/tokens").expect(401)


@pytest.mark.parametrize("header, status", [("Basic eDp5", 403), ("Bearer", 403), ("Bearer a b", 403),
                                            ("bearer " + "x" * 2000, 403), ("Bearer \u00e9", 401)])
def test_odd_headers(locked, header, status):
    assert locked.api.get("/vms", headers={"Authorization": header}).status in (status, 400)


# ---- the command line

def test_the_command_line_logs_in(locked, place):
    cli = Cli(locked.url, cwd=place)
    refused = cli.run("vm", "list")
    assert refused.status == 1 and "sendense login" in refused.err
    file = place / "token"
    file.write_text("sendense_" + "0" * 64 + "\n")
    assert cli.run("login", "--token-file", file).status == 1 and not (place / "credentials.json").exists()
    said = cli.ok("login", "--token-file", locked.data / "admin-token")
    assert "admin" in said and not TOKEN.search(said)
    kept = place / "credentials.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    cli.ok("repo", "add", "main", "--path", place / "repository")
    made = cli.run("token", "create", "ops", "--role", "operator", "--expires", "30")
    assert made.status == 0 and TOKEN.fullmatch(made.out.strip()) and "this once" in made.err
    assert "ops" in cli.ok("token", "list")
    ops = {"SENDENSE_TOKEN": made.out.strip()}
    assert cli.json("token", "list", environment=ops, status=1)["error"] == "not allowed"
    file.write_text(made.out)
    assert cli.json("repo", "list", environment={"SENDENSE_TOKEN_FILE": str(file)})["repositories"]
    kept.chmod(0o644)
    assert cli.run("repo", "list").status == 2
    kept.chmod(0o600)
    kept.write_text("[]")
    assert cli.run("repo", "list").status == 2
    assert cli.run("login", "--token-file", locked.data / "admin-token").status == 2       # it is somebody's file
    kept.unlink()
    with open(file, "rb") as f:
        done = subprocess.run([str(BIN / "sendense"), "login", "--token-fd", str(f.fileno())],
                              pass_fds=[f.fileno()], env={"SHA_API_URL": locked.url, "HOME": str(place)}, check=False,
                              stdin=subprocess.DEVNULL, capture_output=True)
    assert done.returncode == 0, done
    assert stat.S_IMODE(os.stat(place / ".config/sendense/credentials.json").st_mode) == 0o600
    cli.ok("login", "--token-file", locked.data / "admin-token")
    assert "revoked" in cli.ok("token", "revoke", "ops")
    assert cli.json("logout")["forgotten"] is True and cli.json("logout")["forgotten"] is False
    assert cli.run("vm", "list").status == 1


def test_a_backup_and_its_restore_with_tokens(locked, place):
    """The main job: who registers, who backs up and restores, who looks."""
    cli = Cli(locked.url, cwd=place)
    by = {role: {"SENDENSE_TOKEN": token(locked, role)} for role in ("operator", "viewer")}
    by["admin"] = {"SENDENSE_TOKEN": locked.admin_token}
    disk = place / "vm.raw"
    disk.write_bytes(os.urandom(1 << 20))
    cli.ok("repo", "add", "main", "--path", place / "repository", environment=by["admin"])
    assert cli.run("vm", "add", "v", "--file", disk, environment=by["operator"]).status == 1
    cli.ok("vm", "add", "v", "--file", disk, environment=by["admin"])
    assert cli.run("backup", "v", "--repo", "main", environment=by["viewer"]).status == 1
    backup_id = cli.ok("backup", "v", "--repo", "main", environment=by["operator"]).split()[-1]
    assert cli.json("show", backup_id, environment=by["viewer"])["status"] == "completed"
    assert cli.run("restore", backup_id, "--disk", "0", "--to", "x.raw", environment=by["viewer"]).status == 1
    cli.ok("restore", backup_id, "--disk", "0", "--to", "out.raw", environment=by["operator"])
    assert (place / "out.raw").read_bytes() == disk.read_bytes()
    cli.ok("verify", backup_id, environment=by["operator"])
    assert cli.run("delete", backup_id, environment=by["operator"]).status == 1
    cli.ok("delete", backup_id, environment=by["admin"])
    for path in [locked.log_path, *(locked.data / "log").iterdir()]:
        assert not TOKEN.search(path.read_text(errors="replace")), path


# ---- the audit log

def rows(hub, **query):
    text = "&".join(f"{k}={v}" for k, v in query.items())
    return admin(hub).get(f"/audit?{text}").expect(200)["entries"]


def wait_rows(hub, n):
    """A call is answered before its row is there, and those of two calls in a row may change places."""
    wait_for(lambda: len(rows(hub, limit=1000)) >= n, f"{n} rows")
    return rows(hub, limit=1000)


def test_who_did_what(locked, place):
    world, job = started(locked, place)
    world.api.post(f"/backups/{job['backup_id']}/cancel").expect(202)
    viewer = locked.api.with_token(token(locked, "viewer"))
    viewer.get("/vms").expect(200)
    viewer.delete("/vms/pgtest1").expect(403)
    locked.api.get("/vms").expect(401)
    def told(entries):
        return sorted(tuple(r[m] for m in ("actor", "role", "remote", "method", "path", "object", "status"))
                      for r in entries)

    mine = ("admin", "admin", "127.0.0.1")
    refused = [("anybody", "", "127.0.0.1", "GET", "/api/v1/vms", "", 401),
               ("viewer", "viewer", "127.0.0.1", "DELETE", "/api/v1/vms/pgtest1", "", 403)]
    posts = [(*mine, "POST", "/api/v1/backups", job["backup_id"], 201),
             (*mine, "POST", f"/api/v1/backups/{job['backup_id']}/cancel", "", 202),
             (*mine, "POST", "/api/v1/repositories", "main", 201),
             (*mine, "POST", "/api/v1/tokens", "viewer: viewer", 201), (*mine, "POST", "/api/v1/vms", "pgtest1", 201),
             ("sendense-hub", "admin", "", "POST", "/api/v1/tokens", "admin: at a start", 201)]
    assert told(wait_rows(locked, 8)) == sorted(posts + refused)
    assert [r["id"] for r in rows(locked, newest_first="true", limit=2)] == [8, 7]
    assert told(rows(locked, min_status=400)) == refused
    assert told(rows(locked, actor="viewer")) == refused[1:]
    assert told(rows(locked, method="POST")) == sorted(posts)
    assert [r["id"] for r in rows(locked, after=5)] == [6, 7, 8]
    before = "0" * 64
    for r in rows(locked):          # as api/openapi.yaml describes it
        members = ("id", "at", "actor", "role", "remote", "method", "path", "object", "status")
        text = "".join(f"{r[m]}\n" for m in members) + before + "\n"
        assert hashlib.sha256(text.encode()).hexdigest() == r["hash"]
        before = r["hash"]
    for bad in ("limit=0", "limit=1001", "after=-1", "min_status=600", "newest_first=maybe", "who=me"):
        admin(locked).get(f"/audit?{bad}").expect(400)


def test_what_a_path_does_not_say(locked, place):
    """With all that rests on it or without, a look or a clean-up, whose disk somebody reads: one could not tell."""
    world = World(locked, place)
    world.api = admin(locked)
    world.add_repository()
    world.add_vm()
    cli = Cli(locked.url, cwd=place)
    first, second = [quote(cli.json("backup", "pgtest1", "--repo", "main", environment={
        "SENDENSE_TOKEN": locked.admin_token})["backup_id"]) for _ in range(2)]
    export = world.api.post("/exports", {"backup_id": first, "disk": "0", "purpose": "restore"}).expect(201)
    world.api.delete(f"/exports/{export['export_id']}").expect(200)
    world.api.post(f"/backups/{second}/verification", {"result": "ok"}).expect(200)
    world.api.patch("/vms/pgtest1", {"audit_blocks": 7}).expect(200)
    world.api.post("/maintenance/clean", {}).expect(200)
    world.api.post("/maintenance/clean", {"dry_run": False}).expect(200)
    world.api.post("/vms/pgtest1/clean", {}).expect(200)
    world.api.delete(f"/backups/{first}?with_dependents=true").expect(200)
    locked.process.send_signal(signal.SIGHUP)
    expected = {
        ("admin", "POST", "/exports", f"{export['export_id']}: disk 0 of {first}"),
        ("admin", "POST", f"/backups/{second}/verification", "ok"),
        ("admin", "PATCH", "/vms/pgtest1", "audit_blocks"), ("admin", "POST", "/maintenance/clean", "dry run"),
        ("admin", "POST", "/maintenance/clean", "0 removed"), ("admin", "POST", "/vms/pgtest1/clean", "dry run"),
        ("admin", "DELETE", f"/backups/{first}", "with dependents: 2 points"),
        ("sendense-hub", "POST", "/reload", "SIGHUP")}

    def missing():
        return expected - {(r["actor"], r["method"], r["path"].removeprefix("/api/v1"), r["object"])
                           for r in rows(locked, limit=1000)}

    wait_for(lambda: not missing(), "all of them have a row")


def test_a_head_that_is_none(hub, place):
    """A head that was not copied whole, or was noted before the log had a row, was called a log that was cut."""
    cli = Cli(hub.url, cwd=place)
    noted = cli.json("audit", "verify")
    assert noted["rows"] == 0
    cli.ok("repo", "add", "main", "--path", place / "repository")
    wait_for(lambda: cli.json("audit", "verify")["rows"], "the row")
    assert cli.json("audit", "verify", "--head", noted["head"])["ok"]
    for head in (noted["head"][:-1], "no head", ""):
        assert "--head" in cli.run("audit", "verify", f"--head={head}").err, head
        assert cli.run("audit", "verify", f"--head={head}").status == 2, head
    assert cli.run("audit", "verify", "--head", "a" * 64).status == 3


@pytest.mark.parametrize("harm, found", [
    (None, None),
    ("UPDATE audit_log SET actor = 'somebody else' WHERE id = 3", 3),
    ("UPDATE audit_log SET status = 200 WHERE id = 4", 4),
    ("DELETE FROM audit_log WHERE id = 2", 2),
    ("DELETE FROM audit_log WHERE id = 1", 1),
    ("DELETE FROM audit_log WHERE id = 5", "head"),
    ("DELETE FROM audit_log", "head"),
])
def test_a_log_that_was_changed(locked, place, harm, found):
    for n in range(4):
        admin(locked).delete(f"/tokens/none-{n}").expect(404)
        admin(locked).post("/tokens", {"name": f"t{n}", "role": "viewer"}).expect(201)
    wait_rows(locked, 5)
    cli = Cli(locked.url, cwd=place)
    mine = {"SENDENSE_TOKEN": locked.admin_token}
    noted = cli.json("audit", "verify", environment=mine)
    assert noted["ok"] and noted["rows"] == 5 and len(cli.json("audit", "list", environment=mine)["entries"]) == 5
    if harm:
        change(locked, harm)
    said = cli.json("audit", "verify", "--head", noted["head"], environment=mine, status=3 if harm else 0)
    assert said["ok"] is (harm is None)
    assert said["wrong_at"] == (found if isinstance(found, int) else None)
    assert said["known_head_missing"] is (found == "head")
    shown = cli.run("audit", "verify", "--head", noted["head"], environment=mine)
    assert shown.status == (3 if harm else 0)
    assert not harm or "audit log" in shown.err


def test_whoever_knocks_does_not_fill_the_log(locked):
    """Nor hides what somebody with a token is refused. What is no request is in no log."""
    viewer = locked.api.with_token(token(locked, "viewer"))
    for n in range(130):
        locked.api.get("/vms").expect(401)
        locked.api.post("/backups?x=1", {}).expect(400)     # refused before anybody is asked
        locked.api.post("/backups/none/complete", raw=b"{").expect(400)
        locked.api.request("POST", "/nonsense").expect(404)
    viewer.delete("/vms/x").expect(403)
    said = wait_rows(locked, 103)
    assert len([r for r in said if r["actor"] == "anybody"]) == 100
    assert [r for r in said if r["actor"] == "viewer"] and not [r for r in said if r["actor"] == "job"]
    assert "leaves out the rest" in locked.log
    admin(locked).post("/tokens", {"name": "x", "role": "viewer"}).expect(201)
    assert "viewer: x" in [r["object"] for r in wait_rows(locked, 104)]


@pytest.mark.parametrize("path", ["/tokens/\u00e9", "/vms?x=\u00e9"])
def test_bytes_that_are_no_text_do_not_get_into_the_log(locked, path):
    """One such call without a token, and nobody could read the log any more."""
    with socket.create_connection(("127.0.0.1", locked.port)) as s:
        s.sendall(f"DELETE /api/v1{path}%A9 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode("latin-1"))
        assert b" 400 " in s.recv(100)
    assert [r for r in rows(locked) if r["method"] == "DELETE"] == []


def test_a_token_named_progress(locked):
    """Its end was taken for a client's progress, of which there is one a second."""
    token(locked, "admin", "progress")
    admin(locked).delete("/tokens/progress").expect(200)
    assert "/api/v1/tokens/progress" in [r["path"] for r in wait_rows(locked, 3)]


@pytest.mark.parametrize("name", ["job", "anybody", "sendense-hub"])
def test_names_that_the_log_uses(locked, name):
    admin(locked).post("/tokens", {"name": name, "role": "admin"}).expect(400, "invalid request body")


def test_a_database_that_takes_nothing_keeps_nobody_from_looking(locked):
    """The last use of a token could not be noted, and each call failed."""
    with contextlib.closing(sqlite3.connect(locked.database, timeout=10)) as database:
        database.execute("CREATE TRIGGER t BEFORE UPDATE ON api_tokens BEGIN SELECT RAISE(ABORT, 'full'); END")
        database.commit()
    admin(locked).get("/vms").expect(200)
    assert "could not be noted" in locked.log


def test_a_first_token_that_cannot_be_written_is_none(make_hub):
    """It was in the database, and in nobody's hands: nobody could get in any more."""
    hub = make_hub(start=False, auth=True)
    (hub.data / "admin-token" / "in the way").mkdir(parents=True)
    with pytest.raises(HubError, match="admin-token"):
        hub.start()
    shutil.rmtree(hub.data / "admin-token")
    hub.start()
    assert hub.api.with_token(hub.admin_token).get("/whoami").expect(200)["role"] == "admin"
