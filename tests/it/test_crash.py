"""kill -9 of hub, client, exporters and guest at the moments of a backup, and what else goes wrong around it.

Each moment is reached by a condition and held there (lib/stage.py). Afterwards what was killed is started again, and:
the job is over; it completed where its point had come to be; the next increment is right; no partial file, process,
socket, export, lock or unfinished row is left. In the end every listed point verifies and restores to what the VM was.
"""

import pytest

from lib.stage import Stage, run_moments

FAILED_UP_TO_THE_SEAL = {
    "announced": "failed",
    "connecting": "failed",
    "first bytes": "failed",
    "quarter done": "failed",
    "half done": "failed",
    "three quarters done": "failed",
    "last bytes": "failed",
    "copied": "failed",
}
# victim: {moment: how the job must end}
ENDS = {
    "hub": {
        "queued": "completed",
        "started": "completed",
        "opening": "completed",
        "announcing": "completed",
        "announced": "completed",
        "first bytes": "completed",
        "half done": "completed",
        "copied": "completed",
        "sealing": "completed",
        "committing": "completed",
        "linked": "completed",
        "answered": "completed",
        "done": "completed",
    },
    "client": {
        "started": "failed",
        "opening": "failed",
        "announcing": "failed",
        **FAILED_UP_TO_THE_SEAL,
        "sealing": "completed",
        "committing": "completed",
        "linked": "completed",
        "answered": "completed",
        "done": "completed",
    },
    "exporter": {
        **FAILED_UP_TO_THE_SEAL,
        "sealing": "failed",
        "half sealed": "completed",
        "committing": "completed",
        "linked": "completed",
    },
    "hub+client": {
        "first bytes": "failed",
        "half done": "failed",
        "committing": "completed",
        "linked": "completed",
    },
    "hub+exporter": {
        "announced": "failed",
        "first bytes": "failed",
        "sealing": "failed",
    },
    "hub+client+exporter": {
        "first bytes": "failed",
    },
}


@pytest.mark.parametrize("victim", ENDS)
def test_pitfall_12_18_killed(victim, make_hub, place):
    options = ["--max-jobs=1"] if "queued" in ENDS[victim] else []
    with Stage(make_hub, place, options=options) as stage:
        run_moments(stage, victim, ENDS[victim])
