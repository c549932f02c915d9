"""kill -9 of hub, client, exporters and guest at the moments of a backup, and what else goes wrong around it.

Each moment is reached by a condition and held there (lib/stage.py). Afterwards what was killed is started again, and:
the job is over; it completed where its point had come to be; every listed point verifies and restores to what the VM
was; the next increment is right; no partial file, process, socket, export, lock or unfinished row is left.
"""

import pytest

from lib.stage import MOMENTS, Stage

# moment: {victim: how the job must end; None: either way is right}
BEFORE_COPY = {"hub": "completed", "client": "failed"}
COPYING = {"hub": "completed", "client": "failed", "exporter": "failed", "hub+client": "failed",
           "hub+exporter": "failed", "hub+client+exporter": "failed"}
ENDS = {
    "queued": {"hub": "completed"},
    "started": BEFORE_COPY,
    "opening": BEFORE_COPY,
    "announcing": BEFORE_COPY,
    "announced": {"hub": "completed", "client": "failed", "exporter": "failed", "hub+exporter": "failed"},
    "first bytes": COPYING,
    "half done": {"hub": "completed", "client": "failed", "exporter": "failed", "hub+client": "failed"},
    "copied": {"hub": "completed", "client": "failed", "exporter": "failed"},
    "sealing": {"hub": "completed", "exporter": "failed", "hub+exporter": "failed"},
    "committing": {"hub": "completed", "client": "completed", "hub+client": "completed", "exporter": "completed"},
    "linked": {"hub": "completed", "hub+client": "completed"},
    "answered": {"hub": "completed", "client": "completed"},
    "done": {"hub": "completed", "client": "completed"},
}
assert tuple(ENDS) == MOMENTS


@pytest.mark.parametrize("moment, victim", [(m, v) for m, victims in ENDS.items() for v in victims])
def test_pitfall_12_18_killed(moment, victim, make_hub, place):
    options = ["--max-jobs=1"] if moment == "queued" else []
    with Stage(make_hub, place, options=options) as stage:
        stage.first()
        stage.change()
        backup_id = stage.reach(moment)
        stage.kill(backup_id, victim)
        if moment == "linked":
            stage.heal_database()
        backup = stage.settle(backup_id)
        assert backup["status"] == ENDS[moment][victim], (
            f"{backup['status']}: {backup['error']}: {backup['details']}\n{stage.client_log()}\n"
            f"{stage.hub.log[-4000:]}")
        if backup["status"] == "failed":
            assert backup["error"] and backup["details"], backup
        stage.prove()
