"""The regression gate: files may not grow unless bench/gate.json changes too."""

import copy

import pytest

from bench import gate
from diffcodec import load_model


def test_files_have_not_grown():
    assert gate.complaints(gate.measure(load_model()), gate.expected()) == []


@pytest.fixture
def grown():
    return copy.deepcopy(gate.expected())


def test_growth_is_found(grown):
    kind = next(iter(grown))
    total = sum(file["bytes"] for file in grown[kind].values())
    file = next(iter(grown[kind].values()))
    file["bytes"] += int(total * gate.GROWTH)
    assert gate.complaints(grown, gate.expected()) == []
    file["bytes"] += 2
    (complaint,) = gate.complaints(grown, gate.expected())
    assert kind in complaint


def test_lost_quality_is_found(grown):
    next(iter(grown["lossy"].values()))["psnr"] -= 2 * gate.LOSS_DB
    assert len(gate.complaints(grown, gate.expected())) == 1


def test_other_files_are_found(grown):
    grown.pop("lossy")
    assert gate.complaints(grown, gate.expected()) == [
        "other files are measured than were committed"
    ]
