"""vim-probe (tests/tools/vim-probe.c): the client of vSphere, without a hub."""

import json
import subprocess
from pathlib import Path

from lib.hub import BIN

PROBE = BIN.parent / "tests" / "tools" / "vim-probe"


class Refused(Exception):
    """What the client said instead of an answer: .code ("not_found"), .fault ("NoPermission"), .title, .details."""

    def __init__(self, answer):
        self.code, self.fault, self.title = answer["error"], answer["fault"], answer["title"]
        self.details, self.property, self.quiescing = answer["details"], answer["property"], answer["quiescing"]
        super().__init__(f"{self.code}: {self.details}")


class VimProbe:
    """One vCenter, one user. Each call is a session of its own."""

    def __init__(self, folder, host, user, password, thumbprint=None, ca=None, timeout_ms=30000):
        self.password_file = Path(folder) / "vim-password"
        self.password_file.write_text(password)
        self.password_file.chmod(0o600)
        self.host, self.user, self.thumbprint, self.ca, self.timeout_ms = host, user, thumbprint, ca, timeout_ms

    def command(self, *words):
        options = ["--host", self.host, "--user", self.user, "--password-file", self.password_file,
                   "--timeout", str(self.timeout_ms)]
        if self.thumbprint:
            options += ["--thumbprint", self.thumbprint]
        if self.ca:
            options += ["--ca", self.ca]
        return [PROBE, *options, *map(str, words)]

    def __call__(self, *words):
        done = subprocess.run(self.command(*words), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=120, check=False)
        return self.answer(done.stdout.splitlines()[-1] if done.stdout else "", done.returncode, done.stderr)

    def session(self, *commands):
        """Several commands in one session; the answers, of which some may be Refused."""
        lines = "".join(json.dumps([str(w) for w in c]) + "\n" for c in commands)
        done = subprocess.run(self.command("session"), input=lines, capture_output=True, text=True, timeout=120,
                              check=False)
        assert not done.stderr, done.stderr
        lines = done.stdout.splitlines()
        if len(lines) < len(commands):      # there was no session
            raise Refused(json.loads(lines[-1]))
        answers = [json.loads(line) for line in lines]
        return [Refused(a) if isinstance(a, dict) and "error" in a else a for a in answers]

    @staticmethod
    def answer(line, status, stderr):
        assert line and not stderr, f"vim-probe: {status}: {line}{stderr}"
        answer = json.loads(line)
        if status != 0:
            raise Refused(answer)
        return answer
