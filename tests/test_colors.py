"""Files that tell which colours can occur: they are smaller, and as exact."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden import converted, stepped
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import make_image

from diffcodec.codec import encoding
from diffcodec.codec.decoding import decode
from diffcodec.codec.encoding import encode, encode_many
from diffcodec.codec.jobs import Choices
from diffcodec.codec.recovery import recover
from diffcodec.codec.timesteps import measure_marks
from diffcodec.container.parts import COLOR_SET
from diffcodec.container.reader import parse
from diffcodec.container.writer import pack
from diffcodec.errors import CorruptError, DiffcodecError, FormatError, UnsupportedFileError
from diffcodec.images.color_sets import ColorSet, find_color_set
from diffcodec.models.model import Model, load_model

IMAGES = {
    "photoycc": converted(31, 33, "photoycc"),
    "jfif": converted(33, 31, "jfif"),
    "grey": stepped(converted(40, 30, "photoycc").convert("L"), 5),
    "stepped": stepped(converted(40, 30, "photoycc"), 3),
}
OUTSIDE = {"RGB": (1, 200, 1), "L": 3}


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return load_model(tiny)


def set_of(data: bytes) -> ColorSet | None:
    container = parse(data)
    told = container.metadata.get(COLOR_SET)
    return None if told is None else ColorSet.unpack(told, 3 if container.mode == "RGB" else 1)


def with_set(data: bytes, told: bytes) -> bytes:
    container = parse(data)
    return pack(replace(container, metadata={COLOR_SET: told}))


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("name", IMAGES)
def test_an_exact_file_tells_a_set_that_makes_it_smaller(
    model: Model, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    image = IMAGES[name]
    colors = find_color_set(image)
    data = encode(image, model, "fast")
    assert colors is not None and set_of(data) == colors
    for decoded in (decode(data, model=model), recover(data, model).image):
        assert decoded.tobytes() == image.tobytes()
        assert not decoded.info
    assert set_of(encode(image, model, "fast", progressive=True, previews=(4, 3))) is None
    monkeypatch.setattr(encoding, "find_color_set", lambda image: None)
    plain = encode(image, model, "fast")
    assert set_of(plain) is None
    if image.mode == "RGB":
        assert len(data) < len(plain)


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("name", IMAGES)
def test_one_pixel_outside_and_there_is_no_set(model: Model, name: str) -> None:
    image = IMAGES[name].copy()
    image.putpixel((7, 5), OUTSIDE[image.mode])
    data = encode(image, model, "fast")
    assert set_of(data) != find_color_set(IMAGES[name])
    assert decode(data, model=model).tobytes() == image.tobytes()


@pytest.mark.usefixtures("chain_only")
def test_without_a_set_the_file_is_what_it_would_be_without_looking(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_image("RGB", (33, 31))
    data = encode(image, model, "fast")
    monkeypatch.setattr(encoding, "find_color_set", lambda image: None)
    assert encode(image, model, "fast") == data


@pytest.mark.usefixtures("chain_only")
@settings(max_examples=20)
@given(data=st.data())
def test_any_set_and_any_image_within(model: Model, data: st.DataObject) -> None:
    """The set need not be worth its bytes: it is what the encoder is told that it found."""
    mode = data.draw(st.sampled_from(["RGB", "L"]))
    channels = len(mode) if mode == "RGB" else 1
    kept = st.sets(st.integers(0, 255), min_size=1, max_size=255)
    values = [sorted(data.draw(kept)) for _ in range(channels)]
    bits = tuple(
        np.packbits(np.isin(np.arange(256), v), bitorder="little").tobytes() for v in values
    )
    size = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    samples = np.stack([rng.choice(v, size) for v in values], -1).astype(np.uint8)
    colors = ColorSet(None, bits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "find_color_set", lambda image: colors)
        coded = encode(samples if channels == 3 else samples[..., 0], model, "fast")
    assert set_of(coded) == colors
    assert decode(coded, model=model).tobytes() == samples.tobytes()


def test_a_file_without_chain_or_exact_image_tells_no_set(model: Model) -> None:
    image = IMAGES["photoycc"]
    assert find_color_set(image) == ColorSet("photoycc")
    for data in (encode(image, model), encode(image, model, timestep=2)):
        assert set_of(data) is None


@pytest.mark.usefixtures("chain_only")
def test_marks_are_measured_with_the_set(model: Model) -> None:
    image = IMAGES["photoycc"]
    plain = encode(image, model, "fast")
    [marked] = encode_many([image], model, "fast", choices=Choices(marks_from_pixels=1))
    assert measure_marks(plain, model) == parse(marked)


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize(
    ("told", "error"),
    [
        (b"", FormatError),
        (b"\0", FormatError),
        (b"\1\2", FormatError),
        (b"\xff", UnsupportedFileError),
        (ColorSet("jfif").pack(), CorruptError),
        (ColorSet(None, (bytes(31) + b"\1",) * 3).pack(), CorruptError),  # nothing can occur
    ],
)
def test_another_set_does_not_decode(
    model: Model, told: bytes, error: type[DiffcodecError]
) -> None:
    data = encode(IMAGES["photoycc"], model, "fast")
    for read in (decode, recover):
        with pytest.raises(error):
            read(with_set(data, told), model=model)
