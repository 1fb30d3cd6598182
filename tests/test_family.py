"""What docs/family.md says: functions, commands and tests that it names are there."""

import re
from importlib import import_module
from pathlib import Path

import click
import pytest

from bench.__main__ import COMMANDS
from diffcodec.cli.program import cli

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "family.md").read_text()


def rows(head: str) -> list[list[str]]:
    """The cells of a section's table."""
    section = PAGE.split(f"## {head}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


ROWS, SYSTEMS = rows("Equations"), rows("Systems")


@pytest.mark.parametrize(("equation", "functions", "tests"), ROWS)
def test_an_equation_has_its_function_and_test(equation: str, functions: str, tests: str) -> None:
    room, names = "", []
    for name in re.findall(r"`([\w.]+)`", functions):
        room = name.rpartition(".")[0] or room  # a second function of the same module
        names.append(name.rpartition(".")[2])
        assert callable(getattr(import_module(f"diffcodec.{room}"), names[-1])), equation
    texts = []
    for module, test in re.findall(r"`(\w+)\.(\w+)`", tests):
        text = (TESTS / f"{module}.py").read_text()
        assert f"def {test}(" in text, equation
        texts.append(text)
    assert names and any(name in "".join(texts) for name in names), equation


@pytest.mark.parametrize(("system", "_works", "commands", "tests", "figure"), SYSTEMS)
def test_a_system_has_its_commands_tests_and_a_figure(
    system: str, _works: str, commands: str, tests: str, figure: str
) -> None:
    assert re.match(r"\[[^]]+\]\([^)]+\)", figure), system  # where links lead, test_docs holds
    for words in map(str.split, re.findall(r"`([a-z]+[^`(]*)`", commands)):
        if words[0] == "python":  # -m bench
            assert words[3] in COMMANDS, system
            continue
        parameters = cli.commands[words[0]].get_params(click.Context(cli, **cli.context_settings))
        known = {option for parameter in parameters for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, system
    for module, test in re.findall(r"`(\w+)\.(\w+)`", tests):
        assert f"def {test}(" in (TESTS / f"{module}.py").read_text(), system
