"""What docs/family.md says of equations: the functions are there, and the tests name them."""

import re
from importlib import import_module
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "family.md").read_text()
TABLE = PAGE.split("## Equations")[1].split("\n## ")[0]
ROWS = [line.strip("| ").split(" | ") for line in TABLE.splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize(("equation", "functions", "tests"), ROWS)
def test_an_equation_has_its_function_and_test(equation: str, functions: str, tests: str) -> None:
    room, names = "", []
    for name in re.findall(r"`([\w.]+)`", functions):
        room = name.rpartition(".")[0] or room  # a second function of the same module
        names.append(name.rpartition(".")[2])
        assert callable(getattr(import_module(f"diffcodec.{room}"), names[-1])), equation
    text = "".join((TESTS / f"{test}.py").read_text() for test in re.findall(r"`(\w+)`", tests))
    assert names and any(name in text for name in names), equation
