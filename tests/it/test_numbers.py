"""Each safety rule, and each pitfall that can be met so far, has a test with its number in its name.

`pytest -k rule_13`, `pytest -k pitfall_07` run them. One name can hold several numbers."""

import re
from pathlib import Path

import pytest

RULES = range(1, 21)
PITFALLS = (*range(1, 8), *range(9, 22), 23, 26)


@pytest.mark.parametrize("kind, numbers", [("rule", RULES), ("pitfall", PITFALLS)])
def test_each_number_has_a_test(kind, numbers):
    found = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            for said in re.findall(rf"_{kind}((?:_\d\d)+)_", name):
                found |= {int(number) for number in said[1:].split("_")}
    assert not set(numbers) - found, f"no test of {kind} {sorted(set(numbers) - found)}"
