"""The floats of a model in phases come back as they were kept."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench import phases
from diffcodec.models.model import load_model


def test_what_is_kept_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: str) -> None:
        assert CliRunner().invoke(phases.main, arguments, catch_exceptions=False).exit_code == 0

    first, again = tmp_path / "first.safetensors", tmp_path / "again.safetensors"
    run("restore", str(first))
    monkeypatch.setattr(phases, "KEPT", tmp_path / "kept.safetensors")
    run("keep", str(first))
    assert phases.KEPT.stat().st_size < 0.45 * first.stat().st_size  # halves, two of three experts
    run("restore", str(again))
    one, other = (load_model(path, "float").module.state_dict() for path in (first, again))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
