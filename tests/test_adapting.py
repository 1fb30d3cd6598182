"""Models that are fitted to an image: tables of scales and shifts in a file."""

import hashlib
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import reference
import reference_archive
from click.testing import CliRunner
from commands import run
from golden import adaptation
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_phased_files import large, same, smooth
from tiny import phased_model

from bench.adaptation import main as benchmark
from diffcodec import decode, encode, encode_many, load_model, open_archive
from diffcodec.archive.coding import decode_images, encode_images
from diffcodec.archive.parts import SharedGroup, pack_group, parse_group
from diffcodec.codec import tiles
from diffcodec.coding.adaptation import Adaptation
from diffcodec.container.parts import ADAPTATION, Tile
from diffcodec.container.reader import parse
from diffcodec.container.writer import pack
from diffcodec.errors import CorruptError, DiffcodecError, FormatError, UnsupportedError
from diffcodec.models.model import Model

TABLES = st.dictionaries(
    st.integers(0, 2),
    st.integers(1, 40).flatmap(lambda n: arrays(np.int8, (4, 2, n))),
    min_size=1,
)


@pytest.fixture(scope="module")
def phased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another than other tests', far enough from what it is asked to code for a fit to pay."""
    return phased_model(tmp_path_factory.mktemp("poor"), seed=5)


@pytest.fixture(scope="module")
def model(phased: Path) -> Model:
    return load_model(phased)


@given(TABLES, st.integers(0, 9), st.integers(0, 3), st.data())
def test_tables_come_back_and_scale_and_shift(
    tables: dict[int, np.ndarray], timestep: int, number: int, data: st.DataObject
) -> None:
    packed = Adaptation(tables).pack()
    found = Adaptation.unpack(packed)
    assert found.tables.keys() == tables.keys()
    assert all(np.array_equal(found.tables[which], tables[which]) for which in tables)
    for bad in (packed[:-1], packed + b"\0"):
        with pytest.raises(FormatError, match=f"an adaptation of {len(bad)} bytes"):
            Adaptation.unpack(bad)
    which = min(timestep, 2)
    count = tables[which].shape[2] if which in tables else 5
    given_ = data.draw(arrays(np.float64, (count, 1, 2), elements=st.floats(-9, 9, width=16)))
    expected = given_
    if which in tables:
        scale, shift = tables[which][number].astype(np.float64)[:, :, None, None] / 64
        expected = given_ + given_ * scale + shift  # of such numbers all are exact
        with pytest.raises(ValueError, match="parameters, expected"):
            found.apply(timestep, number, np.zeros((count + 1, 1, 1)))
    assert np.array_equal(found.apply(timestep, number, given_), expected)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_fit_pays_where_the_model_is_poor(model: Model, mode: str) -> None:
    image = smooth(96, 80, mode)
    with mock.patch.object(tiles, "encode_fallback", large):
        plain = encode(image, model, "fast")
        (fitted,) = encode_many([image], model, "fast", adapt=True)
    assert ADAPTATION in parse(fitted).metadata and ADAPTATION not in parse(plain).metadata
    assert len(fitted) < 0.95 * len(plain)
    assert same(decode(fitted, model=model), image)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_any_table_comes_back_and_counts(model: Model, which: int) -> None:
    counts = [(21, 9, 6)[i] * (i == which) for i in range(3)]
    chosen = adaptation(counts)
    image = smooth(14, 11)
    with (
        mock.patch.object(tiles, "encode_fallback", large),
        mock.patch("diffcodec.codec.encoding.fit", lambda *_: chosen),
    ):
        data = encode(image, model, adapt=True)
    assert same(decode(data, model=model), image)
    other = Adaptation({which: np.zeros_like(chosen.tables[which])}).pack()
    with pytest.raises(CorruptError):
        decode(pack(replace(parse(data), metadata={ADAPTATION: other})), model=model)


def test_none_where_it_does_not_pay(model: Model) -> None:
    image = smooth(6, 5)
    with mock.patch.object(tiles, "encode_fallback", large):
        assert encode(image, model, adapt=True) == encode(image, model)
    bilevel = image.convert("1")  # which no chain codes
    assert encode(bilevel, model, adapt=True) == encode(bilevel, model)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_groups_are_fitted(model: Model, mode: str) -> None:
    images = [smooth(24, 20, mode, seed) for seed in range(5)]
    with mock.patch("diffcodec.archive.coding.fallback_tile", lambda *_: Tile("raw", bytes(9999))):
        plain, fitted = (encode_images(images, model, "fast", adapt=a) for a in (False, True))
    group = parse_group(fitted)
    assert isinstance(group, SharedGroup) and group.adaptation and pack_group(group) == fitted
    assert len(fitted) < 0.98 * len(plain)
    assert all(map(same, images, decode_images(fitted, lambda *_: model)))
    for change in ({"adaptation": group.adaptation[:-1]}, {"adaptation": b""}):
        with pytest.raises(DiffcodecError):
            decode_images(pack_group(replace(group, **change)), lambda *_: model)
    with pytest.raises(FormatError, match="adapts a model that no image uses"):
        others = dict.fromkeys(range(5), Tile("raw", b"1"))
        none = {"others": others, "payload": b"", "model": bytes(4)}
        parse_group(pack_group(replace(group, **none)))


def test_a_second_reader_knows_groups_that_are_fitted(phased: Path, tmp_path: Path) -> None:
    images = [smooth(5, 4, seed=seed) for seed in range(3)]
    path = tmp_path / "x.dfca"
    with (
        mock.patch("diffcodec.archive.coding.fallback_tile", lambda *_: Tile("raw", bytes(9999))),
        mock.patch("diffcodec.archive.coding.fit", lambda *_, **__: adaptation((21, 9, 6))),
        open_archive(path, "x", model=phased, plan="fast", adapt=True) as archive,
    ):
        archive.extend(images)
    data = phased.read_bytes()
    models = {hashlib.sha256(data).digest()[:4]: reference.Model(data)}
    found = reference_archive.read(path.read_bytes(), models)
    assert [each[4] for each in found] == [image.tobytes() for image in images]


def test_the_benchmark_measures_both(phased: Path, tmp_path: Path) -> None:
    smooth(56, 40).save(tmp_path / "a.png")
    options = ["--model", str(phased), "--effort", "fast", "--crop", "40"]
    with mock.patch.object(tiles, "encode_fallback", large):
        result = CliRunner().invoke(benchmark, [str(tmp_path), *options])
    assert result.exit_code == 0, result.output
    cells = result.output.splitlines()[-1].strip("| ").split(" | ")
    assert cells[0] == "a.png" and 0 < float(cells[2]) < float(cells[1]) and int(cells[4]) > 72


def test_what_cannot_be_fitted(model: Model, phased: Path, tiny: Path, tmp_path: Path) -> None:
    image = smooth(24, 20)
    with pytest.raises(UnsupportedError, match="has no phases"):
        encode(image, load_model(tiny), adapt=True)
    with pytest.raises(UnsupportedError, match="an adaptation and previews"):
        encode(image, model, adapt=True, progressive=True)
    image.save(tmp_path / "a.png")
    found = run(f"encode {tmp_path}/a.png --adapt --progressive --model {phased}")
    assert found.exit_code == 2 and "--adapt is for files without loss" in found.output
    with mock.patch.object(tiles, "encode_fallback", large):
        container = parse(encode(image, model))
    other = {ADAPTATION: Adaptation({1: np.zeros((4, 2, 8), np.int8)}).pack()}
    with pytest.raises(CorruptError, match="an adaptation of 8 parameters, expected 9"):
        decode(pack(replace(container, metadata=other)), model=model)
    layers = parse(encode(image, model, progressive=True, timestep=2))
    with pytest.raises(FormatError, match="an adaptation and layers"):
        pack(replace(layers, metadata=other))
    flat = replace(container, metadata=other, tiles=(), whole=True)
    with pytest.raises(FormatError):
        pack(flat)
