"""What docs/format.md and docs/decoding.md say is enough to decode a file to its pixels."""

import hashlib
import json

import pytest
import reference
from golden import EXPECTED, FOLDER, MODEL

NAMES = json.loads(EXPECTED.read_text())
SLOW = (
    *("two-tiles", "lossy", "progressive", "progressive-tiles", "lossy-tiles", "grey-tiles"),
    *("marks-tiles", "mixed-plans", "mixed-coders", "rgb-best", "rgb-default", "marks-of-one"),
    *("tile-preview", "grey", "size-2x512", "metadata", "rgb-fast", "size-31x33", "size-32x32"),
)


@pytest.fixture(scope="module")
def model():
    return reference.Model(MODEL.read_bytes())


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in NAMES],
)
def test_a_second_decoder_comes_to_the_same_pixels(model, name):
    mode, size, samples = reference.decode((FOLDER / f"{name}.dfc").read_bytes(), model)
    expected = NAMES[name]
    assert [mode, list(size)] == [expected["mode"], expected["size"]]
    assert hashlib.sha256(samples).hexdigest() == expected["pixels"]
