"""Runs the CLI."""

import json
import os
import subprocess
from typing import NamedTuple

from lib.hub import BIN
from lib.patience import patience


class Result(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


class Cli:
    def __init__(self, url, cwd=None):
        self.url, self.cwd = url, cwd

    def run(self, *arguments, timeout=120, environment=None, use_json=False):
        environ = {k: v for k, v in os.environ.items() if not k.startswith("SENDENSE_") or k == "SENDENSE_LOG"}
        environ["SENDENSE_CREDENTIALS"] = f"{self.cwd or '/nowhere'}/credentials.json"   # not those of whoever tests
        environ.update({"SHA_API_URL": self.url, **(environment or {})})
        command = [str(BIN / "sendense"), *(["--json"] if use_json else []), *map(str, arguments)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=patience(timeout), cwd=self.cwd, env=environ, check=False)
        return Result(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments, **more):
        """Plain output of a command that must work."""
        result = self.run(*arguments, **more)
        assert result.status == 0, f"{arguments}: exit status {result.status}\n{result.out}\n{result.err}"
        return result.out

    def json(self, *arguments, status=0, **more):
        """The one JSON value of a command with --json."""
        result = self.run(*arguments, use_json=True, **more)
        assert result.status == status, f"{arguments}: exit status {result.status}\n{result.out}\n{result.err}"
        return result.json
