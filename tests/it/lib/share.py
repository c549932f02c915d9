"""How much of a large test runs: all of it with `make test FULL=1`, else a share."""

import os

FULL = os.environ.get("SENDENSE_TEST_FULL", "") not in ("", "0")


def share(full, small):
    return full if FULL else small


def one_of(things):
    """Which of them, says the run's seed."""
    things = list(things)
    return things if FULL else [things[int(os.environ["SENDENSE_TEST_SEED"]) % len(things)]]


def one_in_five(things):
    """Every fifth; which, says the run's seed."""
    things = list(things)
    return things if FULL else things[int(os.environ["SENDENSE_TEST_SEED"]) % 5::5]


def every_second(things):
    """Which half of them, says the run's seed: run after run all of them come up."""
    things = list(things)
    return things if FULL else things[int(os.environ["SENDENSE_TEST_SEED"]) % 2::2]
