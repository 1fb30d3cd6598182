"""What docs/format.md and docs/decoding.md say is enough to decode a file to its pixels."""

import hashlib
import json

import numpy as np
import pytest
import reference
from golden import EXPECTED, FOLDER, MODEL, PHASED_MODEL, model_of
from tiny import tiny_model

from diffcodec import encode, load_model
from diffcodec.container.parts import PLAN_NAMES
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
    return {path: reference.Model(path.read_bytes()) for path in (MODEL, PHASED_MODEL)}


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
