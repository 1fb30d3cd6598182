"""Commands of the program, run in the tests' own process."""

import shlex
from pathlib import Path

from click.testing import CliRunner, Result

from diffcodec.cli.program import cli


def run(command: str, data: bytes = b"") -> Result:
    """What a command line comes to, given such a standard input."""
    result = CliRunner().invoke(cli, shlex.split(command), input=data, prog_name="diffcodec")
    if not isinstance(result.exception, SystemExit | None):
        raise result.exception
    return result


def done(command: str, data: bytes = b"") -> Result:
    """The same of one that succeeds."""
    result = run(command, data)
    assert result.exit_code == 0, result.stderr
    return result


def train_command(data: Path, out: Path, *more: object) -> Result:
    """What training comes to, by the command; exceptions stay in the result."""
    given = ["train", "--data", str(data), "--out", str(out), *map(str, more)]
    return CliRunner().invoke(cli, given)
