"""People who log in with a password, and the sessions of their browsers (docs/internals/auth.md)."""

import concurrent.futures
import http.client
import json
import re
import time

import pytest

from lib import traffic
from lib.cli import Cli
from lib.history import wait_for
from lib.patience import patience
from test_auth import admin, change, token
from test_tls import trusting_all

PASSWORD = "correct horse battery"
OTHER = "staple of another sort"
COOKIE = re.compile(r"sendense_session=([0-9a-f]{64}); Path=/api/v1; HttpOnly; SameSite=Strict")


@pytest.fixture
def locked(make_hub):
    return make_hub(auth=True)


def add(hub, name="ann", role="operator", password=PASSWORD):
    return admin(hub).post("/users", {"name": name, "role": role, "password": password}).expect(201)


class Browser:
    """Keeps the cookie, and sends the CSRF token along unless told otherwise."""

    def __init__(self, hub, tls=False):
        self.hub, self.tls, self.cookie, self.csrf = hub, tls, None, None

    def call(self, method, path, body=None, csrf=True, headers=None):
        sent = {"Accept": "application/json", **(headers or {})}
        if body is not None:
            sent["Content-Type"] = "application/json"
        if self.cookie:
            sent["Cookie"] = f"theme=dark; sendense_session={self.cookie}; x=y"
        if csrf and self.csrf:
            sent["X-CSRF-Token"] = self.csrf
        kind = http.client.HTTPSConnection if self.tls else http.client.HTTPConnection
        more = {"context": trusting_all()} if self.tls else {}
        connection = kind("127.0.0.1", self.hub.port, timeout=patience(30), **more)
        data = json.dumps(body).encode() if body is not None else None
        try:
            connection.request(method, f"/api/v1{path}", body=data, headers=sent)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        traffic.record(method, f"/api/v1{path}", sent, data, response.status, response.getheaders(), content)
        return response.status, json.loads(content), response.getheader("Set-Cookie")

    def login(self, name="ann", password=PASSWORD):
        status, answer, cookie = self.call("POST", "/session", {"name": name, "password": password})
        if status == 201:
            self.cookie, self.csrf = COOKIE.match(cookie)[1], answer["csrf_token"]
            assert cookie.endswith("; Secure") == self.tls
        else:
            assert cookie is None
        return status, answer


def test_users(locked):
    made = add(locked)
    assert (made["name"], made["role"], made["disabled"], made["created_by"], made["login_at"]) == (
        "ann", "operator", False, "admin", None)
    api = admin(locked)
    assert [u["name"] for u in api.get("/users").expect(200)["users"]] == ["ann"]
    assert PASSWORD.encode() not in locked.database.read_bytes() and PASSWORD not in locked.log
    for body, status in (({"name": "ann", "role": "viewer", "password": PASSWORD}, 409),
                         ({"name": "admin", "role": "viewer", "password": PASSWORD}, 409),      # a token's
                         ({"name": "job", "role": "viewer", "password": PASSWORD}, 400),
                         ({"name": "bob", "role": "king", "password": PASSWORD}, 400),
                         ({"name": "bob", "role": "viewer", "password": "short"}, 400),
                         ({"name": "bob", "role": "viewer", "password": "x" * 257}, 400),
                         ({"name": "a-long-enough-name", "role": "viewer", "password": "a-long-enough-name"}, 400),
                         ({"name": "bob", "role": "viewer"}, 400),
                         ({"name": "bob", "role": "viewer", "password": PASSWORD, "disabled": 1}, 400)):
        assert api.post("/users", body).status == status, body
    assert api.post("/tokens", {"name": "ann", "role": "viewer"}).expect(409)["error"] == "user name taken"
    assert api.patch("/users/nobody", {"role": "viewer"}).status == 404
    assert api.patch("/users/ann", {"role": "king"}).status == 400
    assert api.patch("/users/ann", {"name": "eve"}).status == 400
    assert api.patch(f"/users/{made['user_id']}", {"role": "viewer"}).expect(200)["role"] == "viewer"
    assert api.delete("/users/ann").expect(200)["name"] == "ann"
    assert api.delete("/users/ann").status == 404


@pytest.mark.parametrize("tls", [False, True])
def test_a_session(locked, tls):
    add(locked)
    ann = Browser(locked, tls)
    status, answer = ann.login()
    assert status == 201 and answer["name"] == "ann" and answer["role"] == "operator"
    assert ann.cookie.encode() not in locked.database.read_bytes() and ann.cookie not in locked.log
    assert ann.call("GET", "/whoami")[:2] == (200, {"name": "ann", "role": "operator", "auth": True})
    assert ann.call("GET", "/session")[:2] == (200, answer)
    assert ann.call("GET", "/users")[0] == 403
    assert ann.call("POST", "/repositories", {"name": "x", "path": "/x"})[0] == 403
    status, refused, _ = ann.call("POST", "/backups", {"vm_name": "x", "repository_id": "1"})
    assert status == 404, refused       # it was let in
    status, ended, cookie = ann.call("DELETE", "/session")
    assert status == 200 and ended == {"status": "ended"} and "Max-Age=0" in cookie
    assert ann.call("GET", "/whoami")[0] == 401
    # a token goes before a cookie, and is no session
    ann.login()
    viewer = token(locked, "viewer")
    status, who, _ = ann.call("GET", "/whoami", headers={"Authorization": f"Bearer {viewer}"})
    assert status == 200 and who["name"] == "viewer"
    api = locked.api.with_token(viewer)
    api.get("/session").expect(404, "no session")
    api.delete("/session").expect(404, "no session")
    api.post("/session/password", {"old_password": "x", "new_password": OTHER}).expect(404, "no session")


def test_no_other_page_can_use_a_session(locked):
    """What changes something needs what only the hub's own page can know."""
    add(locked, role="admin")
    ann = Browser(locked)
    ann.login()
    body = {"name": "bob", "role": "admin", "password": OTHER}
    for more in ({"csrf": False}, {"csrf": False, "headers": {"X-CSRF-Token": ""}},
                 {"csrf": False, "headers": {"X-CSRF-Token": "0" * 64}},
                 {"csrf": False, "headers": {"X-CSRF-Token": ann.cookie}}):
        status, answer, _ = ann.call("POST", "/users", body, **more)
        assert status == 403 and answer["error"] == "csrf token missing", (more, answer)
    assert ann.call("DELETE", "/session", csrf=False)[0] == 403
    other = Browser(locked)
    other.login()
    assert ann.call("POST", "/users", body, csrf=False, headers={"X-CSRF-Token": other.csrf})[0] == 403
    assert ann.call("POST", "/users", body, headers={"Origin": "https://evil.example"})[0] == 403
    assert ann.call("POST", "/users", body)[0] == 201


def test_what_ends_a_session(locked):
    add(locked)
    api = admin(locked)

    def logged_in():
        browser = Browser(locked)
        assert browser.login()[0] == 201
        assert browser.call("GET", "/whoami")[0] == 200
        return browser

    def is_over(browser):
        return browser.call("GET", "/whoami")[0] == 401

    browser = logged_in()
    api.patch("/users/ann", {"role": "viewer"}).expect(200)
    assert browser.call("GET", "/whoami")[1]["role"] == "viewer"        # at once, and the session goes on
    api.patch("/users/ann", {"password": OTHER}).expect(200)
    assert is_over(browser) and Browser(locked).login()[0] == 401
    api.patch("/users/ann", {"password": PASSWORD}).expect(200)
    browser = logged_in()
    api.patch("/users/ann", {"disabled": True}).expect(200)
    assert is_over(browser) and Browser(locked).login()[0] == 401
    api.patch("/users/ann", {"disabled": False}).expect(200)
    assert is_over(browser)
    browser = logged_in()
    change(locked, "UPDATE sessions SET created_at = '2026-01-01T00:00:00.000000Z'")
    assert is_over(browser)
    browser = logged_in()
    change(locked, "UPDATE sessions SET used_at = '2026-01-01T00:00:00.000000Z'")
    assert is_over(browser)
    browser, second = logged_in(), logged_in()
    locked.restart()
    assert browser.call("GET", "/whoami")[0] == 200
    api.delete("/users/ann").expect(200)
    assert is_over(browser) and is_over(second)


def test_one_s_own_password(locked):
    add(locked)
    ann, second = Browser(locked), Browser(locked)
    ann.login()
    second.login()
    assert ann.call("POST", "/session/password", {"old_password": OTHER, "new_password": OTHER})[0] == 403
    assert ann.call("POST", "/session/password", {"old_password": PASSWORD, "new_password": "short"})[0] == 400
    assert ann.call("POST", "/session/password", {"old_password": PASSWORD, "new_password": OTHER})[0] == 200
    assert ann.call("GET", "/whoami")[0] == 401 and second.call("GET", "/whoami")[0] == 401
    assert Browser(locked).login()[0] == 401 and Browser(locked).login(password=OTHER)[0] == 201


def test_a_login_under_way_ends_with_the_old_password(locked):
    """One that had found the old password right when another was given got its session after those were ended."""
    add(locked)
    old, new = PASSWORD, OTHER
    for _ in range(5):
        browsers = [Browser(locked) for _ in range(8)]
        with concurrent.futures.ThreadPoolExecutor(9) as pool:      # two are looked at at a time: the others wait
            logins = [pool.submit(browser.login, password=old) for browser in browsers]
            admin(locked).patch("/users/ann", {"password": new}).expect(200)
            assert {login.result()[0] for login in logins} <= {201, 401}
        assert [browser.call("GET", "/whoami")[0] for browser in browsers if browser.cookie] in ([], [401] * sum(
            1 for browser in browsers if browser.cookie))
        assert Browser(locked).login(password=new)[0] == 201        # forgives the address
        old, new = new, old


def test_a_password_that_was_taken_away_sets_no_other(locked):
    """Whoever was about to set their own had the last word over the administrator who gave another one meanwhile."""
    add(locked)
    with_old = {"old_password": PASSWORD, "new_password": "what a thief would like"}
    for _ in range(5):
        thieves = [Browser(locked) for _ in range(4)]
        for thief in thieves:
            assert thief.login()[0] == 201
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            changes = [pool.submit(thief.call, "POST", "/session/password", with_old) for thief in thieves]
            admin(locked).patch("/users/ann", {"password": OTHER}).expect(200)
            assert {change.result()[0] for change in changes} <= {200, 401, 403}
        assert Browser(locked).login(password=OTHER)[0] == 201
        admin(locked).patch("/users/ann", {"password": PASSWORD}).expect(200)


def test_a_name_is_one_user_s_or_one_token_s(locked):
    """While a new user's password was hashed, a token could take the name: the log could not tell the two apart."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for n in range(8):
            user = pool.submit(admin(locked).post, "/users", {"name": f"x{n}", "role": "viewer", "password": PASSWORD})
            made = admin(locked).post("/tokens", {"name": f"x{n}", "role": "viewer"}).status
            assert sorted((user.result().status, made)) == [201, 409], n


def test_guessing_is_limited(locked):
    """By address: right ones are refused then, too, so that the refusal tells nothing. A success before forgives."""
    add(locked)
    browser = Browser(locked)
    for n in range(5):
        assert browser.login(password=f"wrong {n}")[0] == 401
    assert browser.login()[0] == 201
    refusals = [Browser(locked).login("ann" if n % 2 else f"nobody-{n}", f"wrong {n}") for n in range(10)]
    assert [status for status, _ in refusals] == [401] * 10
    assert len({(r["error"], r["details"]) for _, r in refusals}) == 1, "whether a user is there is not told"
    status, answer = Browser(locked).login()
    assert status == 429 and re.search(r"in \d+ seconds", answer["details"]), answer
    assert browser.call("POST", "/session/password", {"old_password": "x", "new_password": OTHER})[0] == 429
    assert browser.call("GET", "/whoami")[0] == 200     # who is in stays in
    assert admin(locked).get("/whoami").status == 200   # tokens are not guessed


def test_guesses_at_once_are_as_few(locked):
    """They were counted when they had failed: as many as came before the first one did were all looked at."""
    add(locked)
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda n: Browser(locked).login(password=f"wrong {n}")[0], range(40)))
    assert answers.count(401) <= 10 and answers.count(401) + answers.count(429) == 40, answers


def test_the_log_has_logins(locked):
    add(locked)
    ann = Browser(locked)
    ann.login(password="wrong one")
    ann.login()
    ann.call("POST", "/backups", {"vm_name": "x", "repository_id": "1"}, csrf=False)

    def rows():
        entries = admin(locked).get("/audit?actor=ann").expect(200)["entries"]
        return sorted((e["role"], e["path"], e["status"]) for e in entries) if len(entries) >= 3 else None

    # a call is answered before its row is there, and those of two calls in a row may change places
    assert wait_for(rows, "three rows") == [("", "/api/v1/session", 401), ("operator", "/api/v1/backups", 403),
                                            ("operator", "/api/v1/session", 201)]

    def made():
        return [e for e in admin(locked).get("/audit").expect(200)["entries"] if e["path"] == "/api/v1/users"]

    assert [e["object"] for e in wait_for(made, "the row of the user's making")] == ["operator: ann"]


def test_the_log_tells_who_was_made_an_admin(locked):
    """It had the path alone: whoever read it later did not see that a viewer had become an admin."""
    made = add(locked, role="viewer")
    api = admin(locked)
    api.patch(f"/users/{made['user_id']}", {"role": "admin"}).expect(200)
    api.patch("/users/ann", {"password": OTHER, "disabled": True}).expect(200)

    def objects():
        entries = api.get("/audit?method=PATCH").expect(200)["entries"]
        return sorted(e["object"] for e in entries) if len(entries) == 2 else None

    assert wait_for(objects, "two rows") == ["admin: ann", "admin: ann, disabled, new password"]
    assert OTHER not in json.dumps(api.get("/audit").expect(200))


def test_a_name_that_no_row_can_have(locked):
    """A login with a line feed in its name was in no row of the audit log, which refuses such."""
    for name in ("x\ny", "\u0007", ""):
        assert Browser(locked).login(name, "wrong one 1")[0] == 400
    wait_for(lambda: [e for e in admin(locked).get("/audit").expect(200)["entries"]
                      if (e["actor"], e["path"], e["status"]) == ("anybody", "/api/v1/session", 400)][2:],
             "three rows of nobody's")
    assert "audit log could not be written" not in locked.log


def test_without_authentication(hub):
    hub.api.post("/session", {"name": "x", "password": PASSWORD}).expect(409)
    hub.api.get("/session").expect(404, "no session")


def test_the_command_line(locked, place):
    cli = Cli(locked.url, place)
    environment = {"SENDENSE_TOKEN": locked.admin_token}
    first, second = place / "first", place / "second"
    first.write_text(PASSWORD + "\n")
    second.write_text(OTHER + "\n")
    cli.ok("user", "add", "ann", "--role", "viewer", "--password-file", first, environment=environment)
    assert Browser(locked).login()[0] == 201
    listed = cli.ok("user", "list", environment=environment)
    assert re.search(r"ann +viewer +\S+ \S+ +admin +20", listed), listed
    cli.ok("user", "set", "ann", "--role", "operator", "--password-file", second, environment=environment)
    assert Browser(locked).login(password=OTHER)[1]["role"] == "operator"
    cli.ok("user", "set", "ann", "--disable", environment=environment)
    assert "disabled" in cli.ok("user", "list", environment=environment)
    assert cli.run("user", "set", "ann", environment=environment).status == 2
    assert cli.run("user", "set", "ann", "--disable", "--enable", environment=environment).status == 2
    cli.ok("user", "remove", "ann", environment=environment)
    assert cli.json("user", "list", environment=environment) == {"users": []}


def test_the_login_takes_as_long_for_nobody(locked):
    """Not a measurement: a user who is not there is looked at by the same slow function."""
    add(locked)

    def spent(name):
        times = []
        for n in range(3):
            start = time.monotonic()
            assert Browser(locked).login(name, f"wrong {n}")[0] == 401
            times.append(time.monotonic() - start)
        return min(times)

    assert spent("nobody") > spent("ann") / 5
