"""Files that tell which colours can occur: they are smaller, and as exact."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden import converted, stepped, within
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import make_image

from diffcodec.codec import encoding, layered_encoding
from diffcodec.codec.decoding import decode, iter_decode
from diffcodec.codec.encoding import encode
from diffcodec.codec.jobs import Choices
from diffcodec.codec.many import encode_many
from diffcodec.codec.recovery import recover
from diffcodec.codec.timesteps import decode_timesteps, measure_marks
from diffcodec.container.parts import COLOR_SET
from diffcodec.container.reader import parse
from diffcodec.container.writer import pack
from diffcodec.errors import CorruptError, DiffcodecError, FormatError, UnsupportedFileError
from diffcodec.images.color_sets import ColorSet, find_color_set
from diffcodec.images.outliers import Found
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
    monkeypatch.setattr(encoding, "find_colors", Found)
    plain = encode(image, model, "fast")
    assert set_of(plain) is None
    if image.mode == "RGB":
        assert len(data) < len(plain)


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("name", IMAGES)
def test_a_pixel_outside_is_coded_apart(
    model: Model, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Of a conversion; one that is outside of values that occur leaves no set."""
    monkeypatch.setattr("diffcodec.images.outliers.LEAST_PIXELS", 1)
    image, colors = IMAGES[name].copy(), find_color_set(IMAGES[name])
    image.putpixel((7, 5), OUTSIDE[image.mode])
    data = encode(image, model, "fast")
    assert decode(data, model=model).tobytes() == image.tobytes()
    assert colors
    if not colors.conversion:
        assert set_of(data) != colors
        return
    assert set_of(data) == ColorSet(colors.conversion)
    assert parse(data).tiles[0].outliers
    monkeypatch.setattr(encoding, "find_colors", Found)
    assert len(data) < len(encode(image, model, "fast"))


@pytest.mark.usefixtures("chain_only")
def test_without_a_set_the_file_is_what_it_would_be_without_looking(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_image("RGB", (33, 31))
    data = encode(image, model, "fast")
    monkeypatch.setattr(encoding, "find_colors", Found)
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
        patch.setattr(encoding, "find_colors", within(colors))
        coded = encode(samples if channels == 3 else samples[..., 0], model, "fast")
    assert set_of(coded) == colors
    assert decode(coded, model=model).tobytes() == samples.tobytes()


@pytest.mark.usefixtures("chain_only")
@settings(max_examples=20)
@given(data=st.data())
def test_any_set_and_any_pixels_outside(model: Model, data: st.DataObject) -> None:
    """Whatever decodes adds them: of files with previews and without, of parts, what is left."""
    mode, name = data.draw(st.sampled_from([("RGB", "jfif"), ("RGB", "webp"), ("L", None)]))
    size = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    samples = rng.integers(0, 256, (*size, 3) if mode == "RGB" else size, np.uint8)
    values = data.draw(st.sets(st.integers(0, 255), min_size=1, max_size=255))
    bits = np.packbits(np.isin(np.arange(256), list(values)), bitorder="little").tobytes()
    colors = ColorSet(name) if name else ColorSet(None, (bits,))
    progressive = data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch:
        for module in (encoding, layered_encoding):
            patch.setattr(module, "find_colors", within(colors))
        coded = encode(samples, model, "fast", progressive=progressive)
    assert decode(coded, model=model).tobytes() == samples.tobytes()
    assert recover(coded, model).image.tobytes() == samples.tobytes()
    *_, (timestep, last) = iter_decode(coded, model=model)
    assert (timestep, last.tobytes()) == (0, samples.tobytes())
    part = decode(coded, model=model, region=(0, 0, 1, size[0]))
    assert part.tobytes() == samples[:, :1].tobytes()
    if not progressive:
        assert decode_timesteps(coded, model)[-1][1].tobytes() == samples.tobytes()


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("told", [b"", b"\3abc", b"\0abc", b"\1RIFF"])
def test_outliers_that_are_none_do_not_decode(model: Model, told: bytes) -> None:
    container = parse(encode(IMAGES["jfif"], model, "fast"))
    data = pack(replace(container, tiles=(replace(container.tiles[0], outliers=told),)))
    for read in (decode, recover):
        with pytest.raises(CorruptError) if told else nullcontext():
            read(data, model=model)
    if told:  # what is shown at another timestep does without
        decode(data, 1, model)


def test_a_file_without_chain_or_exact_image_tells_no_set(model: Model) -> None:
    image = IMAGES["photoycc"]
    assert find_color_set(image) == ColorSet("photoycc")
    for data in (encode(image, model), encode(image, model, timestep=2)):
        assert set_of(data) is None


@pytest.mark.usefixtures("chain_only")
def test_marks_are_measured_with_the_set(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffcodec.images.outliers.LEAST_PIXELS", 1)
    image = IMAGES["photoycc"]
    plain = encode(image, model, "fast")
    [marked] = encode_many([image], model, "fast", choices=Choices(marks_from_pixels=1))
    assert measure_marks(plain, model) == parse(marked)
    image = image.copy()
    image.putpixel((7, 5), OUTSIDE[image.mode])
    plain = encode(image, model, "fast")
    [marked] = encode_many([image], model, "fast", choices=Choices(marks_from_pixels=1))
    assert parse(plain).tiles[0].outliers
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
