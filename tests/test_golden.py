"""Files that were written once: they must decode to the same pixels for ever."""

import json

import pytest
from damage import flipped
from golden import (
    BUILT,
    CHAIN,
    EXPECTED,
    FALLBACK,
    FOLDER,
    MODEL,
    coded_by_chain,
    describe,
    model_of,
)

from diffcodec import decode, recover
from diffcodec.container.parts import CODERS, METADATA_NAMES, MODES, VERSION
from diffcodec.container.reader import parse
from diffcodec.container.writer import pack
from diffcodec.errors import DiffcodecError, TruncatedError

NAMES = json.loads(EXPECTED.read_text())


def read(name):
    return (FOLDER / f"{name}.dfc").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_file_decodes_to_its_pixels(name):
    data = read(name)
    image = decode(data, model=model_of(name), reconstruct="mean")  # which the format tells
    assert describe(image) == NAMES[name]
    container = parse(data)
    assert pack(container) == data
    if name not in BUILT:
        assert container.uses_model == (name in CHAIN)
        assert all(bool(tile.plan) == (name in CHAIN) for tile in container.tiles)


def test_the_corpus_is_whole():
    """A file is missing, or not in the list; or there is a part of the format without a file."""
    assert set(NAMES) == {path.stem for path in FOLDER.glob("*.dfc")}
    assert set(NAMES) == {*CHAIN, *FALLBACK, *BUILT}
    containers = [parse(read(name)) for name in NAMES]
    assert {read(name)[4] for name in NAMES} == {VERSION}
    assert {container.mode for container in containers} == set(MODES)
    tiles = [tile for container in containers for tile in container.tiles]
    assert {tile.coder for tile in tiles} == set(CODERS)
    assert {bool(tile.preview) for tile in tiles} == {True, False}
    assert {bool(tile.marks) for tile in tiles} == {True, False}
    assert {None, 0} < {tile.label for tile in tiles}
    assert {bool(tile.outliers) for tile in tiles} == {True, False}
    assert {bool(tile.plan) for tile in tiles if tile.outliers} == {True, False}
    layers = [container.layers for container in containers if container.layers]
    assert {part.is_exact for part in layers} == {True, False}
    assert {part.is_exact for part in layers if part.label is not None} == {True, False}
    assert {container.whole for container in containers} == {True, False}
    names = {name for container in containers for name in container.metadata}
    assert names == {*METADATA_NAMES, "x-note"}
    assert not any(container.float_arithmetic for container in containers)


@pytest.mark.parametrize("name", ["rgb-fast", "progressive", "lossy", "mixed-coders", "palette"])
def test_nothing_is_lost_in_recovery(name):
    image, damage = recover(read(name), MODEL)
    assert damage == ()
    assert describe(image) == NAMES[name]


@pytest.mark.parametrize("name", NAMES)
def test_flipped_bits_of_golden_files_are_found(name):
    """Every bit of the header, and up to 1,000 of the rest."""
    data = read(name)
    bits = 8 * len(data)
    header = 8 * 64
    step = max(1, (bits - header) // 1000)
    for bit in (*range(min(header, bits)), *range(header, bits, step)):
        with pytest.raises(DiffcodecError):
            parse(flipped(data, bit))


@pytest.mark.parametrize("name", NAMES)
def test_cut_golden_files_are_truncated(name):
    data = read(name)
    for size in range(1, len(data), max(1, len(data) // 1000)):
        with pytest.raises(TruncatedError):
            parse(data[:size])


@pytest.mark.parametrize("name", CHAIN)
def test_the_encoder_writes_the_golden_bytes(name):
    """What is written may become better, but not by accident: see golden.py."""
    assert coded_by_chain(name) == read(name)
