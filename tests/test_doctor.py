"""The known answers: they come out here, and a wrong one is told."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from diffcodec import load_model
from diffcodec.cli.program import cli
from diffcodec.models import known_answers as doctor
from diffcodec.models.file import DEFAULT_MODEL, read_model_info
from diffcodec.networks import integer
from diffcodec.networks.integer_layers import silu_table


def run(*arguments):
    return CliRunner().invoke(cli, ["doctor", *map(str, arguments)])


def test_the_shared_parts_give_the_answers_that_are_written_down():
    assert doctor.shared_answers() == doctor.SHARED_ANSWERS


def test_the_shipped_model_gives_the_answers_in_its_file():
    model = load_model(DEFAULT_MODEL)
    assert doctor.model_answers(model) == model.info.answers
    assert model.info.answers.keys() == {"network", "fast", "default", "best"}


def test_doctor_says_that_files_can_be_exchanged(tiny):
    result = run(tiny)
    assert result.exit_code == 0
    assert "can exchange files" in result.output
    assert "DIFFERS" not in result.output
    report = json.loads(run(tiny, "--json").stdout)
    assert report["exchanges_files"] is True
    assert report["environment"]["numpy"] == np.__version__


def test_a_network_that_computes_otherwise_is_told(tiny, monkeypatch):
    exact = integer.IntegerNetwork.posterior_x

    def inexact(self, z, sigma):
        mean, v = exact(self, z, sigma)
        return mean * (1 + 2.0**-50), v

    monkeypatch.setattr(integer.IntegerNetwork, "posterior_x", inexact)
    result = run(tiny)
    assert result.exit_code == 1
    assert "network DIFFERS" in result.output
    assert "CANNOT EXCHANGE FILES" in result.output


@pytest.mark.parametrize(
    ("part", "name", "changed"),
    [
        ("randomness", "diffcodec.coding.randomness.SEED_WORDS", 9),
        ("tables", "diffcodec.networks.integer_layers.silu_table", lambda: 2 * silu_table()),
        ("coder", "diffcodec.coding.ans._STEPS_PER_UNIT", 255),
    ],
)
def test_a_shared_part_that_computes_otherwise_is_told(monkeypatch, tiny, part, name, changed):
    monkeypatch.setattr(name, changed)
    report = json.loads(run(tiny, "--json").stdout)
    assert part in report["shared"]
    assert report["exchanges_files"] is False


def test_models_that_cannot_be_checked_are_errors(tmp_path, tiny_float):
    result = run(tiny_float)
    assert result.exit_code == 4
    assert "float" in result.output
    assert run(tmp_path / "missing").exit_code == 4


def test_a_model_that_cannot_be_checked_leaves_what_the_others_say(tmp_path, tiny):
    result = run(tmp_path / "missing", tiny, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 4 and "missing" in result.stderr
    assert report["models"] == {str(tiny): []} and report["exchanges_files"] is None


def test_answers_are_kept_in_the_file(tiny):
    info, _ = read_model_info(tiny)
    assert info.answers == doctor.model_answers(load_model(tiny))
