"""What docs/format.md and docs/decoding.md say is enough to decode a file to its pixels."""

import hashlib
import json
from unittest import mock

import numpy as np
import pytest
import reference
import reference_archive
from golden import CLASS_MODEL, EXPECTED, FOLDER, MODEL, PHASED_MODEL, model_of
from PIL import Image
from samples import make_image
from test_phased_files import smooth
from tiny import tiny_model

from diffcodec import encode, load_model, open_archive
from diffcodec.archive.parts import parse_group
from diffcodec.codec.tiles import fallback_tile
from diffcodec.container.parts import PLAN_NAMES, Tile
from diffcodec.container.reader import parse
from diffcodec.images.color_sets import CONVERSIONS, conversion

NAMES = json.loads(EXPECTED.read_text())
SLOW = (
    *("two-tiles", "lossy", "progressive", "progressive-tiles", "lossy-tiles", "grey-tiles"),
    *("marks-tiles", "mixed-plans", "mixed-coders", "rgb-best", "rgb-default", "marks-of-one"),
    *("tile-preview", "grey", "size-2x512", "metadata", "rgb-fast", "size-31x33", "size-32x32"),
)


@pytest.fixture(scope="module")
def models():
    paths = MODEL, PHASED_MODEL, CLASS_MODEL
    return {path: reference.Model(path.read_bytes()) for path in paths}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in NAMES],
)
def test_a_second_decoder_comes_to_the_same_pixels(models, name):
    data, model = (FOLDER / f"{name}.dfc").read_bytes(), models[model_of(name)]
    mode, size, samples = reference.decode(data, model)
    expected = NAMES[name]
    assert [mode, list(size)] == [expected["mode"], expected["size"]]
    assert hashlib.sha256(samples).hexdigest() == expected["pixels"]


@pytest.mark.parametrize(("name", "number"), CONVERSIONS.items())
def test_a_second_decoder_knows_every_conversion(name, number):
    known = conversion(name)
    tables = known.luma, known.red, known.blue, known.green_u, known.green_v
    assert np.array_equal(reference.conversion(number), tables)


@pytest.mark.parametrize("kind", ["mirror", "rotation"])
def test_a_second_decoder_knows_self_ensemble(tmp_path, chain_only, kind):
    path = tiny_model(tmp_path, ensemble=(kind, 10.0))
    image = np.random.default_rng(1).integers(0, 256, (9, 7, 3), np.uint8)
    data = encode(image, load_model(path), "fast")
    assert parse(data).tiles[0].coder in PLAN_NAMES
    _, _, samples = reference.decode(data, reference.Model(path.read_bytes()))
    assert samples == image.tobytes()


@pytest.mark.parametrize("shape", [{}, {"blocks": (2, 3)}, {"patch": 1}])
def test_a_second_decoder_knows_expert_denoisers(tmp_path, chain_only, shape):
    path = tiny_model(tmp_path, below={10.0: shape})
    image = np.random.default_rng(1).integers(0, 256, (9, 7, 3), np.uint8)
    data = encode(image, load_model(path), "fast")
    assert parse(data).tiles[0].coder in PLAN_NAMES
    _, _, samples = reference.decode(data, reference.Model(path.read_bytes()))
    assert samples == image.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_second_reader_knows_the_classes_of_archives(tmp_path, mode):
    path = tiny_model(tmp_path, classes=9)
    images = [smooth(5, 4, mode, k) for k in range(5)]
    with (
        mock.patch(
            "diffcodec.archive.coding.fallback_tile", lambda *_: Tile("raw", bytes(1 << 22))
        ),
        open_archive(tmp_path / "x.dfca", "x", model=path, plan="fast", classes=True) as archive,
    ):
        for image, label in zip(images, (7, 0, None, 8, 3), strict=True):
            archive.append(image, label=label)
    models = {hashlib.sha256(path.read_bytes()).digest()[:4]: reference.Model(path.read_bytes())}
    found = reference_archive.read((tmp_path / "x.dfca").read_bytes(), models)
    assert [each[1] for each in found] == [7, 0, None, 8, 3]
    assert [each[4] for each in found] == [image.tobytes() for image in images]


@pytest.mark.parametrize("kind", ["tiny", "phased"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_second_reader_knows_archives(tmp_path, request, kind, mode):
    """Groups that share a stack, with colours and an image by another coder among them; files."""
    path = request.getfixturevalue(kind)
    flat = Image.new(mode, (5, 4))
    images = [smooth(5, 4, mode), flat, smooth(5, 4, mode, 1), make_image("P", (3, 2)), flat]
    if mode == "RGB":  # grey ones, and ones of few colours
        images += [smooth(4, 3).convert("L").convert("RGB"), Image.new("RGB", (4, 3), (9, 9, 9))]
        images += [smooth(3, 4, seed=k).point(lambda value: value // 16 * 16) for k in range(2)]

    def coded(image, *_):
        return fallback_tile(image) if image == flat else Tile("raw", bytes(1 << 22))

    with (
        mock.patch("diffcodec.archive.coding.fallback_tile", coded),
        mock.patch("diffcodec.images.color_sets.LEAST_PIXELS", 1),
        mock.patch("diffcodec.images.color_sets.COST_FACTOR", 0),
        open_archive(tmp_path / "x.dfca", "x", model=path, plan="fast", group=3) as archive,
    ):
        for k, image in enumerate(images):
            archive.append(image, f"image {k}" if k % 2 else None, {"k": [k]} if k else None)
    data = (tmp_path / "x.dfca").read_bytes()
    models = {hashlib.sha256(path.read_bytes()).digest()[:4]: reference.Model(path.read_bytes())}
    found = reference_archive.read(data, models)
    assert [each[0] for each in found[:3]] == ["0", "image 1", "2"]
    assert [each[1] for each in found[:2]] == [None, {"k": [1]}]
    assert [each[2:] for each in found] == [(i.mode, i.size, i.tobytes()) for i in images]
    first, last = (
        parse_group(reference_archive.record(data, archive.entry(k).group[:2], b"G"))
        for k in (0, -1)
    )
    assert kind == "phased" or list(first.others) == [1]
    assert mode == "L" or last.colors
