"""How long a test waits before it gives up: times SENDENSE_TEST_SLOWNESS, under a sanitizer (tools/sanitize)."""

import os

SLOWNESS = float(os.environ.get("SENDENSE_TEST_SLOWNESS") or 1)


def patience(seconds):
    return seconds * SLOWNESS
