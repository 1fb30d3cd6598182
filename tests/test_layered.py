"""Files with previews: every beginning of one is a picture, or refused by one of our errors."""

import io
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import raw_tile
from tiny import TIMESTEPS

from diffcodec import decode, encode, iter_decode, load_model
from diffcodec.codec import decoding, descents, layered_encoding, tiles
from diffcodec.codec.planes import integers
from diffcodec.codec.previews import Previews
from diffcodec.container.reader import FileReader, parse
from diffcodec.container.writer import pack
from diffcodec.errors import (
    CorruptError,
    DiffcodecError,
    FormatError,
    ModelMismatchError,
    TruncatedError,
    UnsupportedError,
)
from diffcodec.images.metadata import get_metadata
from diffcodec.models.model import Model

LAST = TIMESTEPS["fast"]  # 4: few and quick


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return load_model(tiny)


def smooth(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: size[1], : size[0]]
    waves = [np.sin(x / (5 + c) + c) + np.cos(y / (7 - c)) for c in range(3)]
    rgb = 128 + 50 * np.stack(waves, -1) + rng.normal(0, 3, (size[1], size[0], 3))
    image = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
    image.info["dpi"] = (300.0, 300.0)
    return image if mode == "RGB" else image.convert(mode)


def psnr(a: Image.Image, b: Image.Image) -> float:
    difference = np.asarray(a, float) - np.asarray(b, float)
    return float(10 * np.log10(255**2 / np.mean(difference**2)))


def same(a: Image.Image, b: Image.Image) -> bool:
    return (a.mode, a.size, a.tobytes()) == (b.mode, b.size, b.tobytes())


def stops(data: bytes) -> tuple[int, ...]:
    layers = parse(data).layers
    assert layers is not None
    return layers.stops


def ends_within(data: bytes) -> bool:
    layers = parse(data).layers
    return layers is not None and layers.is_part


# --- lossy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "color"), [("RGB", (1, 2, 3)), ("L", 7)])
def test_a_transparent_colour_would_not_outlive_loss(model: Model, mode: str, color: Any) -> None:
    image = smooth((8, 8), mode)
    image.info["transparency"] = color
    with pytest.raises(UnsupportedError, match="a transparent colour, which loss changes"):
        encode(image, model, "fast", psnr=30)
    assert same(decode(encode(image, model, "fast", progressive=True), model=model), image)


def test_previews_below_the_end_are_refused(model: Model) -> None:
    message = "a preview at timestep 1, where the last is at 3; leave it out"
    with pytest.raises(UnsupportedError, match=message):
        encode(smooth((8, 8)), model, "fast", timestep=3, previews=[4, 1])
    assert stops(encode(smooth((8, 8)), model, "fast", timestep=3, previews=[4, 3])) == (4, 3)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (13, 17), (33, 31)])
def test_lossy_files_of_any_size(model: Model, size: tuple[int, int], mode: str) -> None:
    image = smooth(size, mode)
    sizes = []
    for timestep in range(1, LAST + 1):
        data = encode(image, model, "fast", timestep=timestep)
        assert stops(data)[-1] == timestep
        assert parse(data).tiles == ()
        found = decode(data, model=model)  # which checks it against what the encoder showed
        assert (found.mode, found.size, found.info) == (image.mode, image.size, image.info)
        assert same(decode(data, timestep, model), found)
        sizes.append(len(data))
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.usefixtures("nothing_left_out")
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_any_timestep_above_the_last_one(model: Model, mode: str) -> None:
    image = smooth((24, 16), mode)
    deep = encode(image, model, "default", timestep=1)
    for timestep in range(1, TIMESTEPS["default"] + 1):
        data = encode(image, model, "default", timestep=timestep)
        assert same(decode(deep, timestep, model), decode(data, model=model))
    fine = encode(image, model, "default", timestep=3)
    for timestep in (-1, 0, 2, TIMESTEPS["default"] + 1):
        with pytest.raises(UnsupportedError, match=r"timesteps 3 \(finest\) to 6 \(coarsest\)"):
            decode(fine, timestep, model)


def test_the_image_comes_nearer(model: Model) -> None:
    image = smooth((32, 32))
    found = [psnr(decode(encode(image, model, timestep=t), model=model), image) for t in (1, 6)]
    assert found[0] > found[1] + 10


def whole_timesteps(image: Image.Image, model: Model) -> list[tuple[int, float, bytes]]:
    """Sizes and qualities of files that end with a timestep, the smallest first, and the files."""
    files = [encode(image, model, "fast", timestep=t) for t in range(LAST, 0, -1)]
    return [(len(data), psnr(decode(data, model=model), image), data) for data in files]


@pytest.mark.usefixtures("nothing_left_out")
def test_a_rate(model: Model) -> None:
    """Within a timestep, where more of it shows: to the byte, and below the first timestep too."""
    image = smooth((40, 32))
    files = whole_timesteps(image, model)
    uses = []
    for (less, quality, _), (more, _, data) in pairwise(files):
        assert encode(image, model, "fast", bpp=8 * more / (40 * 32)) == data
        for size in ((2 * less + more) // 3, (less + more) // 2, more - 1):
            found = encode(image, model, "fast", bpp=8 * size / (40 * 32))
            assert len(found) <= size
            if ends_within(found):
                uses.append(size - len(found))
                assert psnr(decode(found, model=model), image) > quality
            else:
                assert len(found) == less
    assert len(uses) >= 3 and max(uses) == 0
    first = encode(image, model, "fast", bpp=8 * (files[0][0] - 2) / (40 * 32))
    assert len(first) == files[0][0] - 2 and stops(first) == (LAST,)
    with pytest.raises(UnsupportedError, match=r"a file takes 0\.\d{4}; give more"):
        encode(image, model, "fast", bpp=8 * 30 / (40 * 32))


@pytest.mark.usefixtures("nothing_left_out")
def test_a_quality(model: Model) -> None:
    image = smooth((40, 32))
    files = whole_timesteps(image, model)
    (less, low, _), (more, high, data) = next(
        pair for pair in pairwise(files) if pair[1][1] > pair[0][1] + 1
    )
    assert encode(image, model, "fast", psnr=high - 1e-9) == data
    found = encode(image, model, "fast", psnr=(low + high) / 2)
    assert less < len(found) < more and ends_within(found)
    assert 0 <= psnr(decode(found, model=model), image) - (low + high) / 2 <= 0.1
    with pytest.raises(UnsupportedError, match="without loss"):
        encode(image, model, "fast", psnr=max(quality for _, quality, _ in files) + 1e-6)


@pytest.mark.parametrize("kept", [0.0, 0.95])
def test_what_is_left_out_does_not_miss_a_rate_or_a_quality(
    model: Model, monkeypatch: pytest.MonkeyPatch, kept: float
) -> None:
    """Too much of it, and little: where a file would end is known once all has been sent."""
    ends: list[int] = []

    def leave_out(previews: Previews, source: Image.Image, end: int) -> None:
        ends.append(end)
        if end > 1:
            x = integers(source, previews.parts[0].box, model.color)
            previews._worth_sending[0] = (kept * x).astype(np.float32)

    image = smooth((40, 32))
    goals = {"bpp": 3.0}, {"psnr": 30.0}
    with monkeypatch.context() as patch:
        patch.setattr(Previews, "leave_out", lambda *_: None)
        whole = [encode(image, model, "fast", **goal) for goal in goals]
    monkeypatch.setattr(Previews, "leave_out", leave_out)
    found = [encode(image, model, "fast", **goal) for goal in goals]
    assert 8 * len(found[0]) <= 3.0 * 40 * 32
    assert psnr(decode(found[1], model=model), image) >= 30
    assert ends == ([2, 2] if kept else [2, 2, 1])
    assert (found[1] == whole[1]) is (kept == 0)  # by what is left out it is out of reach


SIX = [(0, 0), (32, 0), (24, 8), (16, 16), (8, 24), (40, 24)]  # squares, 8 x 8, of 51 x 39 pixels


def change_squares(image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> None:
    for left, top in SIX:
        image.paste(change(image.crop((left, top, left + 8, top + 8))), (left, top))


@pytest.mark.usefixtures("nothing_left_out")
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("told", ["what the image takes", "less", "more"])
def test_squares_of_a_large_image_tell_where_its_rate_ends(
    model: Model, monkeypatch: pytest.MonkeyPatch, mode: str, told: str
) -> None:
    looked_at: list[tuple[Image.Image, float]] = []
    bpp = layered_encoding._File.bpp

    def seen(file: layered_encoding._File, *args: Any) -> float:
        looked_at.append((file.source, bpp(file, *args)))
        return looked_at[-1][1]

    image = smooth((51, 39), mode)
    if told == "less":
        change_squares(image, lambda square: square.resize((1, 1)).resize((8, 8)))
    elif told == "more":
        image, waves = image.resize((1, 1)).resize(image.size), image
        change_squares(image, lambda _: waves.crop((3, 3, 11, 11)))
    by_all = encode(image, model, "fast", bpp=1.5)
    monkeypatch.setattr(layered_encoding._File, "bpp", seen)
    monkeypatch.setattr(layered_encoding, "SQUARE", 8)
    assert encode(image, model, "fast", bpp=1.5) == by_all  # nothing is left out
    assert 1.45 < 8 * len(by_all) / (51 * 39) <= 1.5
    expected = Image.new(mode, (16, 24))
    for number, (left, top) in enumerate(SIX):
        square = image.crop((left, top, left + 8, top + 8))
        expected.paste(square, (8 * (number % 2), 8 * (number // 2)))
    rates = [rate for part, rate in looked_at if part.size != image.size]
    assert looked_at[0][0].tobytes() == expected.tobytes()
    assert all(rate <= 1.5 for rate in rates[:-1])


def test_what_describes_a_large_image_is_no_part_of_its_squares_rate(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[int] = []
    monkeypatch.setattr(Previews, "leave_out", lambda *args: ends.append(args[-1]))
    monkeypatch.setattr(layered_encoding, "SQUARE", 8)
    image = smooth((51, 39))
    del image.info["dpi"]
    described = image.copy()
    described.info["icc_profile"] = np.random.default_rng(0).bytes(400)
    more = 8 * sum(map(len, get_metadata(described).values())) / (51 * 39)
    for rate in (0.4, 0.8, 1.2, 1.6):
        encode(image, model, "fast", bpp=rate)
        encode(described, model, "fast", bpp=rate + more)
        encode(image, model, "fast", bpp=rate + more)
    assert ends[::3] == ends[1::3] != ends[2::3] and len(set(ends[::3])) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timestep": 7}, "previews at timesteps 1 to 6"),
        ({"timestep": 0}, "positive"),
        ({"timestep": -2}, "positive"),
        ({"progressive": True, "timestep": 1}, "previews at timesteps 2 to 6"),
        ({"progressive": True, "previews": [5, 1]}, "previews at timesteps 2 to 6"),
        ({"progressive": True, "previews": [7]}, "previews at timesteps 2 to 6"),
        ({"progressive": True, "bpp": 0.1}, "the first timestep alone takes"),
        ({"progressive": True, "psnr": 90.0}, "timestep 2, the last, has"),
        ({"timestep": 3, "psnr": 30.0}, "exclude each other"),
        ({"progressive": True, "timestep": 3, "bpp": 1.0}, "exclude each other"),
        ({"previews": [3]}, "need a timestep"),
        ({"bpp": float("nan")}, "positive"),
        ({"psnr": -1.0}, "positive"),
    ],
)
def test_targets_that_cannot_be(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        encode(smooth((4, 4)), model, **options)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "1"])
def test_modes_without_previews(model: Model, mode: str) -> None:
    for options in ({"timestep": 3}, {"progressive": True}):
        with pytest.raises(UnsupportedError, match=f"previews of a {mode} image: expected RGB or"):
            encode(smooth((4, 4)).convert(mode), model, **options)


def test_unknown_reconstruction(model: Model) -> None:
    data = encode(smooth((4, 4)), model, "fast", timestep=3)
    with pytest.raises(UnsupportedError, match=r"'best'.*mean, perceptual, flow, sample"):
        decode(data, model=model, reconstruct="best")


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("options", [{}, {"timestep": 2}, {"progressive": True, "timestep": 2}])
def test_reconstructions_of_every_file(
    model: Model, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(tiles, "encode_fallback", lambda image, *_: ("raw", bytes(1 << 22)))
    image = smooth((16, 12))
    data = encode(image, model, "fast", **options)
    for timestep in range(1 if options != {"timestep": 2} else 2, LAST + 1):
        shown = [
            decode(data, timestep, model, reconstruct=how, seed=seed)
            for how, seed in (("mean", 0), ("flow", 0), ("sample", 0), ("sample", 1))
        ]
        again = decode(data, timestep, model, reconstruct="sample", seed=1)
        assert same(again, shown[3])
        sharper = decode(data, timestep, model, reconstruct="perceptual")
        assert same(sharper, shown[1]) == (timestep <= 3)  # two steps are all there are
        assert same(sharper, shown[0]) == (timestep == 1)
        different = {s.tobytes() for s in shown}
        assert len(different) == (1 if timestep == 1 else 4)


@pytest.mark.parametrize("options", [{"timestep": 2}, {"progressive": True, "timestep": 2}])
def test_an_ensemble_is_shown_if_nothing_else_is_asked_for(
    model: Model, options: dict[str, Any]
) -> None:
    data = encode(smooth((16, 12)), model, "fast", previews=[LAST, 2], **options)
    shown = decode(data, LAST, model)
    assert same(shown, decode(data, LAST, model, reconstruct="ensemble"))
    assert not same(shown, decode(data, LAST, model, reconstruct="mean"))
    assert same(shown, dict(iter_decode(io.BytesIO(data), model))[LAST])


# --- progressive ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("chain_only", "nothing_left_out")
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (33, 31)])
def test_previews_and_then_the_exact_image(model: Model, size: tuple[int, int], mode: str) -> None:
    image = smooth(size, mode)
    for timestep in range(2, LAST + 1):
        data = encode(image, model, "fast", progressive=True, timestep=timestep)
        assert {tile.coder for tile in parse(data).tiles} == {"fast"}
        assert stops(data)[-2:] == (timestep, 0)
        assert same(decode(data, model=model), image)
        lossy = encode(image, model, "fast", timestep=timestep)
        for t in range(1, LAST + 1):
            shown = decode(data, t, model)
            if t >= timestep:
                assert same(shown, decode(lossy, t, model))


@pytest.mark.usefixtures("chain_only")
def test_several_tiles(model: Model) -> None:
    image = smooth((521, 9))
    data = encode(image, model, "fast", progressive=True, previews=[4, 3])
    container = parse(data)
    assert container.layers is not None
    assert [len(layer) for layer in container.layers.payloads] == [2, 2]
    assert same(decode(data, model=model), image)
    assert [t for t, _ in iter_decode(io.BytesIO(data), model)] == [4, 3, 0]


@pytest.mark.usefixtures("chain_only")
def test_previews_to_a_rate_or_a_quality(model: Model) -> None:
    image = smooth((40, 32))
    files = {
        t: encode(image, model, "fast", progressive=True, timestep=t) for t in range(2, LAST + 1)
    }
    qualities = {t: psnr(decode(data, t, model), image) for t, data in files.items()}
    for t, data in files.items():
        bpp = 8 * ends(data)[t] / (40 * 32)
        assert encode(image, model, "fast", progressive=True, bpp=bpp) == data
        if t < LAST:
            less = encode(image, model, "fast", progressive=True, bpp=bpp - 1e-9)
            assert less == files[t + 1]
        found = encode(image, model, "fast", progressive=True, psnr=qualities[t] - 1e-9)
        assert found == files[max(s for s, q in qualities.items() if q >= qualities[t])]


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options",
    [{"psnr": 25.0}, {"timestep": 2}, {"progressive": True, "bpp": 9.0}],
    ids=["quality", "timestep", "progressive"],
)
def test_large_images_are_coded_alike_in_less_memory(
    model: Model, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], mode: str
) -> None:
    image = smooth((521, 9), mode)
    data = encode(image, model, "fast", **options)
    coarse, fine = decode(data, LAST, model), decode(data, model=model)
    asked = []
    exact = Model.posterior_x

    def watched(self: Model, z: Any, sigma: float, *more: Any) -> tuple[Any, Any]:
        asked.append(sigma)
        return exact(self, z, sigma, *more)

    monkeypatch.setattr(Model, "posterior_x", watched)
    assert encode(image, model, "fast", **options) == data
    before = len(asked)
    monkeypatch.setattr(descents, "KEPT_BYTES", 0)
    assert encode(image, model, "fast", **options) == data
    if "psnr" in options:
        assert len(asked) - before > before  # what is not kept is asked for once more
    assert same(decode(data, LAST, model), coarse)
    assert same(decode(data, model=model), fine)
    *_, (_, last) = iter_decode(io.BytesIO(data), model)
    assert same(last, fine)


def test_a_tile_that_the_chain_codes_worse(model: Model) -> None:
    image = smooth((521, 20))
    data = encode(image, model, "fast", progressive=True)
    container = parse(data)
    assert all(tile.coder in ("webp", "raw", "png") for tile in container.tiles)
    assert same(decode(data, model=model), image)
    assert same(decode(data, 1, model), image)
    assert not same(decode(data, LAST, model), image)


@pytest.mark.usefixtures("chain_only")
def test_one_tile_by_each(model: Model) -> None:
    image = smooth((521, 9))
    container = parse(encode(image, model, "fast", progressive=True))
    box = container.boxes()[1]
    crop = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
    tiles = (container.tiles[0], raw_tile(crop))
    assert same(decode(pack(replace(container, tiles=tiles)), model=model), image)


def test_layers_are_not_too_small(model: Model) -> None:
    image = smooth((48, 40))
    for options in ({"timestep": 1}, {"progressive": True}):
        layers = parse(encode(image, model, "best", **options)).layers
        assert layers is not None
        sizes = [sum(map(len, payload)) for payload in layers.payloads]
        assert len(sizes) > 1
        assert min(sizes) >= layered_encoding.LAYER_BYTES
        assert set(layers.timesteps) <= set(model.plans["best"].previews(layers.timesteps[-1]))
    assert stops(encode(smooth((3, 3)), model, timestep=2)) == (2,)
    assert stops(encode(smooth((3, 3)), model, timestep=2, previews=[4, 6])) == (6, 4, 2)
    assert stops(encode(smooth((3, 3)), model, progressive=True, previews=[4, 6])) == (6, 4, 0)


def test_small_lossy_files_have_little_overhead(model: Model) -> None:
    data = encode(Image.fromarray(np.asarray(smooth((32, 32)))), model, timestep=4)
    layers = parse(data).layers
    assert layers is not None
    assert len(data) - len(layers.payloads[0][0]) <= 25


# --- beginnings -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(model: Model) -> Iterator[bytes]:
    """Three layers and an exact tile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "encode_fallback", lambda image, *_: ("raw", bytes(1 << 12)))
        image = Image.fromarray(np.asarray(smooth((5, 4))))
        data = encode(image, model, "fast", progressive=True, previews=[4, 3, 2])
    assert stops(data) == (4, 3, 2, 0)
    assert len(data) < 300
    yield data


def ends(data: bytes) -> dict[int, int]:
    """The bytes that each timestep takes, as a reader finds."""

    class Counting(io.BytesIO):
        taken = 0

        def read(self, size: int | None = -1) -> bytes:
            chunk = super().read(size)
            self.taken += len(chunk)
            return chunk

    stream = Counting(data)
    reader = FileReader(stream)
    found = {}
    for stop in stops(data):
        if stop:
            reader.read_layer()
        else:
            reader.read_tiles()
        found[stop] = stream.taken
    return found


def test_cut_at_every_byte(model: Model, small: bytes) -> None:
    whole = {t: decode(small, t, model) for t in stops(small)}
    needed, header, between = ends(small), FileReader(small).cursor.position, 0
    for size in range(1, len(small)):
        cut = small[:size]
        with pytest.raises(TruncatedError):
            decode(cut, model=model)
        above = min((t for t, end in needed.items() if end <= size), default=LAST + 1)
        try:
            t, shown = decoding.decode_finest(cut, model=model, allow_partial=True)
        except TruncatedError:
            assert above == LAST + 1 and size < header + 2  # with the layer's length
            continue
        if t == above:
            assert same(shown, whole[t])
        else:
            assert t == above - 1
            between += not same(shown, whole[t])
    assert between > 9
    # A timestep needs no more than its bytes, nor leave to be partial.
    for t in (4, 3, 2):
        assert same(decode(small[: needed[t]], t, model), whole[t])
        with pytest.raises(TruncatedError):
            decode(small[: needed[t] - 1], t, model)


def test_every_flipped_bit_is_found(model: Model, small: bytes) -> None:
    whole = {t: decode(small, t, model) for t in stops(small)}
    lengths = [FileReader(small).cursor.position, *(end for t, end in ends(small).items() if t)]
    for bit in range(0, 8 * len(small), 3):
        damaged = bytearray(small)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DiffcodecError):
            decode(bytes(damaged), model=model)
        if bit % 21 == 0:
            with suppress(DiffcodecError):
                t, shown = decoding.decode_finest(bytes(damaged), model=model, allow_partial=True)
                assert t > 0
                assert same(shown, whole[t]) or bit // 8 in lengths  # so that it seems to be cut


def test_bytes_after_the_end(model: Model, small: bytes) -> None:
    lossy = encode(smooth((5, 4)), model, "fast", timestep=3)
    for data in (small, lossy):
        with pytest.raises(FormatError, match="follow the last part"):
            decode(data + b"\0", model=model)


def test_a_plain_file_has_no_beginnings(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "encode_fallback", lambda image, *_: ("raw", bytes(1 << 22)))
    data = encode(smooth((9, 9)), model)
    assert parse(data).layers is None
    with pytest.raises(TruncatedError):
        decode(data[:-1], model=model, allow_partial=True)
    assert [(t, same(i, smooth((9, 9)))) for t, i in iter_decode(io.BytesIO(data), model)] == [
        (0, True)
    ]


def test_images_come_out_of_a_pipe_as_bytes_go_in(model: Model, small: bytes) -> None:
    needed, at = ends(small), 0
    read, write = os.pipe()
    with open(read, "rb", buffering=0) as source, open(write, "wb", buffering=0) as sink:  # noqa: PTH123

        def feed(end: int) -> None:
            nonlocal at
            sink.write(small[at:end])
            at = end

        feed(needed[4])
        images = iter_decode(source, model)
        for t, following in ((4, 3), (3, 2), (2, 0)):
            found, shown = next(images)  # would wait for ever if it wanted more bytes
            assert found == t
            assert same(shown, decode(small, t, model))
            feed(needed[following])
        sink.close()
        found, shown = next(images)
        assert found == 0
        assert same(shown, decode(small, model=model))
        with pytest.raises(StopIteration):
            next(images)


def test_a_stream_that_ends_early(model: Model, small: bytes) -> None:
    images = iter_decode(io.BytesIO(small[:-1]), model)
    assert [next(images)[0] for _ in range(3)] == [4, 3, 2]
    with pytest.raises(TruncatedError):
        next(images)


def test_a_stream_in_drops(model: Model, small: bytes) -> None:
    class Drops(io.RawIOBase):
        position = 0

        def read(self, size: int = -1) -> bytes:
            self.position += 1
            return small[self.position - 1 : self.position]

    source: BinaryIO = Drops()  # type: ignore[assignment]
    assert [t for t, _ in iter_decode(source, model)] == [4, 3, 2, 0]


# --- damage under a good checksum -----------------------------------------------------------------


def changed(data: bytes, change: Callable[[Any], Any]) -> bytes:
    container = parse(data)
    assert container.layers is not None
    return pack(replace(container, layers=change(container.layers)))


def test_flipped_bits_under_a_valid_checksum(model: Model, small: bytes) -> None:
    def flip(bit: int) -> Callable[[Any], Any]:
        def change(layers: Any) -> Any:
            payload = bytearray(layers.payloads[2][0])
            payload[bit // 8] ^= 1 << bit % 8
            return replace(layers, payloads=(*layers.payloads[:2], (bytes(payload),)))

        return change

    layers = parse(small).layers
    assert layers is not None
    for bit in range(0, 8 * len(layers.payloads[2][0]), 5):
        with pytest.raises(CorruptError, match="other probabilities"):
            decode(changed(small, flip(bit)), model=model)
        with pytest.raises(CorruptError, match="other probabilities"):
            decode(changed(small, flip(bit)), model=model, allow_partial=True)


def test_layers_that_the_plan_does_not_have(model: Model, small: bytes) -> None:
    container = parse(small)
    assert container.layers is not None
    for claimed, message in {(9, 3, 2): "4 timesteps", (3, 2, 1): "does not decode"}.items():
        layers = replace(container.layers, stops=claimed)
        data = pack(replace(container, layers=layers, tiles=()))
        with pytest.raises(CorruptError, match=message):
            decode(data, model=model)
    other = replace(container.layers, plan="best")
    tiles = (replace(container.tiles[0], coder="best"),)
    with pytest.raises(CorruptError, match="does not decode"):
        decode(pack(replace(container, layers=other, tiles=tiles)), model=model)


@given(st.lists(st.binary(max_size=30), min_size=3, max_size=3), st.binary(max_size=60))
@settings(max_examples=40)
def test_arbitrary_payloads(
    model: Model, small: bytes, payloads: list[bytes], words: bytes
) -> None:
    container = parse(small)
    assert container.layers is not None
    layers = replace(container.layers, payloads=tuple((p,) for p in payloads))
    tile = replace(container.tiles[0], payload=words[: len(words) // 4 * 4])
    with pytest.raises(CorruptError):
        decode(pack(replace(container, layers=layers, tiles=(tile,))), model=model)


@given(st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3), st.integers(0, 3)), min_size=1))
@settings(max_examples=60)
def test_mutated_files(
    model: Model, small: bytes, mutations: list[tuple[float, bytes, int]]
) -> None:
    data = small
    for place, inserted, removed in mutations:
        at = int(place * len(data))
        data = data[:at] + inserted + data[at + removed :]
    with suppress(DiffcodecError):
        assert same(decode(data, model=model), decode(small, model=model))
    with suppress(DiffcodecError):
        t, shown = decoding.decode_finest(data, model=model, allow_partial=True)
        # what has come of a part is guarded by no checksum
        assert t or same(shown, decode(small, model=model))


def test_huge_claims_cost_nothing(model: Model) -> None:
    """Images of 2^28 pixels, and of 2048 tiles, with checksums that are right."""
    container = parse(encode(smooth((4, 4)), model, "fast", timestep=3))
    assert container.layers is not None
    header = pack(replace(container, width=1, height=1, metadata={}))[:19]
    header = header[:6] + 2 * b"\x80\x80\x01" + header[8:]
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(TruncatedError):
        decode(header + bytes(1000), model=model)
    count = (1 << 20) // 512
    payload = replace(container.layers, payloads=((b"",) * count,))
    with pytest.raises(CorruptError, match="does not decode"):
        decode(pack(replace(container, width=1, height=1 << 20, layers=payload)), model=model)
    seconds = time.process_time() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 60 and peak < 32 << 20  # a group of tiles, and no more


def test_another_machine_is_found(
    model: Model, small: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a lossy file: its checksum is that of what the encoder showed."""
    lossy = encode(smooth((16, 16)), model, "fast", timestep=2)
    exact = Model.posterior_x

    def shifted(self: Model, *asked: Any) -> tuple[Any, Any]:
        mean, variance = exact(self, *asked)
        return mean + 0.01 * (np.arange(mean.size).reshape(mean.shape) % 3), variance

    monkeypatch.setattr(Model, "posterior_x", shifted)
    for data in (lossy, small):
        with pytest.raises(CorruptError, match="other probabilities"):
            decode(data, model=model)


def test_impossible_means_and_variances(
    model: Model, small: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(self: Model, z: Any, sigma: float, *labels: Any) -> tuple[Any, Any]:
        return np.full(z.shape, np.nan), np.ones(z.shape)

    monkeypatch.setattr(Model, "posterior_x", wrong)
    with pytest.raises(CorruptError):
        decode(small, model=model)
    with pytest.raises(ModelMismatchError, match="cannot code this image"):
        encode(smooth((4, 4)), model, timestep=2)


def test_the_wrong_model(small: bytes) -> None:
    with pytest.raises(ModelMismatchError, match="none of the shipped"):
        decode(small)


def test_float_models(tiny_float: Path) -> None:
    model = load_model(tiny_float, "float")
    image = smooth((12, 9))
    data = encode(image, model, "fast", progressive=True)
    assert parse(data).float_arithmetic
    assert same(decode(data, model=str(tiny_float)), image)
    assert parse(encode(image, model, "fast", timestep=3)).float_arithmetic
