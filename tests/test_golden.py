"""Files that were written once: their bytes and pixels must never change."""

import json

import pytest
from golden import CHAIN, EXPECTED, FOLDER, MODEL, coded_by_chain, describe

from diffcodec import decode
from diffcodec.container import CHAIN_CODERS, parse

NAMES = json.loads(EXPECTED.read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_file_decodes_to_its_pixels(name):
    data = (FOLDER / f"{name}.dfc").read_bytes()
    assert describe(decode(data, model=MODEL)) == NAMES[name]
    container = parse(data)
    assert container.uses_model == (name in CHAIN)
    assert all((tile.coder in CHAIN_CODERS) == (name in CHAIN) for tile in container.tiles)


@pytest.mark.parametrize("name", CHAIN)
def test_the_encoder_writes_the_golden_bytes(name):
    assert coded_by_chain(name) == (FOLDER / f"{name}.dfc").read_bytes()
