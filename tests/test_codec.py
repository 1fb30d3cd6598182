"""Images through whole files: exact, or refused by one of our errors."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load, save
from tiny import TIMESTEPS, tiny_model

from diffcodec.codec import tiles
from diffcodec.codec.decoding import decode
from diffcodec.codec.encoding import encode
from diffcodec.codec.jobs import Choices
from diffcodec.codec.many import encode_many
from diffcodec.codec.timesteps import measure_marks
from diffcodec.coding.bits_back import EncodedTile, decode_tile, encode_tile, most_seed_words
from diffcodec.coding.chain import Posterior, Request, TileChain, drive
from diffcodec.coding.steps import OutOfRangeError
from diffcodec.container.parts import LEAST_PREVIEW, MAGIC, MODES, PLAN_NAMES, Tile
from diffcodec.container.reader import parse
from diffcodec.container.writer import pack
from diffcodec.diffusion.color import DOMAINS
from diffcodec.diffusion.plan import Plan, geometric_plan
from diffcodec.errors import (
    CorruptError,
    DiffcodecError,
    FormatError,
    LimitError,
    ModelMismatchError,
    TruncatedError,
    UnsupportedError,
    UnsupportedFileError,
)
from diffcodec.models.file import ModelInfo, make_metadata, read_model_info
from diffcodec.models.model import Model, load_model
from diffcodec.networks.experts import FloatNetwork
from diffcodec.networks.quantize import is_embedding

SIZES = [(1, 1), (1, 7), (11, 1), (2, 3), (13, 17), (31, 33), (32, 32), (33, 31)]
HEADER_BYTES = 34  # at most, without metadata: 14 to the checksum, varints of 5, a tile's fields
BITS = {"1": 1, "L": 8, "LA": 16, "P": 8, "RGB": 24, "RGBA": 32, "I;16": 16}


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return load_model(tiny)


def smooth(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Waves with a little noise, every channel different."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[1], : size[0]]
    waves = [np.sin(x / (5 + c) + c) + np.cos(y / (7 - c)) for c in range(3)]
    rgb = 128 + 50 * np.stack(waves, -1) + rng.normal(0, 3, (size[1], size[0], 3))
    image = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
    return image if mode == "RGB" else image.convert(mode)


def noise(size: tuple[int, int], mode: str) -> Image.Image:
    """Every sample random."""
    rng = np.random.default_rng(1)
    row_bits = size[0] * BITS[mode]
    data = rng.integers(0, 256, (size[1], -(-row_bits // 8)), dtype=np.uint8)
    if mode == "1":
        data[:, -1] &= 0xFF << (-size[0] % 8) & 0xFF
    image = Image.frombytes(mode, size, data.tobytes())
    if mode == "P":
        image.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
    return image


def coders(data: bytes) -> set[str]:
    return {tile.coder for tile in parse(data).tiles}


def assert_same(found: Image.Image, expected: Image.Image) -> None:
    assert (found.mode, found.size) == (expected.mode, expected.size)
    assert found.tobytes() == expected.tobytes()
    assert found.getpalette() == expected.getpalette()


# --- exact ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", SIZES)
def test_the_chain_codes_any_size_exactly(model: Model, size: tuple[int, int], mode: str) -> None:
    for image in (smooth(size, mode), noise(size, mode)):
        data = encode(image, model)
        assert coders(data) == {"default"}
        assert_same(decode(data, model=model), image)


@pytest.mark.usefixtures("chain_only")
def test_an_image_of_several_tiles(model: Model) -> None:
    image = smooth((521, 37))
    data = encode(image, model, "fast")
    assert [(box.left, box.width) for box in parse(data).boxes()] == [(0, 264), (264, 257)]
    assert coders(data) == {"fast"}
    assert_same(decode(data, model=model), image)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (17, 13), (33, 32)])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode(model: Model, mode: str, size: tuple[int, int]) -> None:
    for image in (noise(size, mode), Image.new(mode, size)):
        assert_same(decode(encode(image, model), model=model), image)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((5, 7), "bool"),
        ((5, 7), "uint8"),
        ((5, 7, 1), "uint8"),
        ((5, 7, 2), "uint8"),
        ((5, 7, 3), "uint8"),
        ((5, 7, 4), "uint8"),
        ((5, 7), "uint16"),
    ],
)
def test_arrays(model: Model, shape: tuple[int, ...], dtype: str) -> None:
    array = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 256, shape).astype(dtype)
    if dtype == "uint16":
        array = array * 257
    decoded = np.asarray(decode(encode(array, model), model=model))
    assert decoded.dtype == array.dtype
    assert np.array_equal(decoded, array.reshape(decoded.shape))


def test_metadata_come_back(model: Model) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: stays metadata
    image = smooth((9, 5))
    image.info = {"exif": exif.tobytes(), "icc_profile": b"a profile", "dpi": (300.0, 72.0)}
    decoded = decode(encode(image, model), model=model)
    assert decoded.info == image.info
    assert_same(decoded, image)


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("plan", PLAN_NAMES)
def test_each_plan(model: Model, plan: str) -> None:
    image = smooth((24, 16))
    data = encode(image, model, plan)
    assert coders(data) == {plan}
    assert parse(data).tiles[0].marks == ()
    assert len(measure_marks(data, model).tiles[0].marks) == TIMESTEPS[plan]
    assert_same(decode(data, model=model), image)


def test_unknown_plan(model: Model) -> None:
    with pytest.raises(UnsupportedError, match=r"'fastest'.*fast, default, best"):
        encode(smooth((2, 2)), model, "fastest")


def test_a_plan_that_the_model_lacks(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no plan 'best'"):
        encode(smooth((2, 2)), str(tiny_model(tmp_path, plans=("fast",))), "best")


@pytest.mark.usefixtures("chain_only")
def test_many_images_as_each_alone(model: Model) -> None:
    sizes = [(8, 8), (9, 5), (8, 8), (1, 1), (32, 32), (8, 8), (32, 32)]
    images = [smooth(size, mode, i) for i, size in enumerate(sizes) for mode in ("RGB", "L")]
    together = list(encode_many(images, model))
    assert together == [encode(image, model) for image in images]
    for data, image in zip(together, images, strict=True):
        assert_same(decode(data, model=model), image)


@pytest.mark.usefixtures("chain_only")
def test_groups_of_a_batch_do_not_matter(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [smooth((16, 16), seed=i) for i in range(5)]
    together = list(encode_many(images, model))
    monkeypatch.setattr("diffcodec.codec.batches.BATCH_PIXELS", 600)
    assert list(encode_many(images, model)) == together


def test_no_images(model: Model) -> None:
    assert list(encode_many([], model)) == []


@pytest.mark.usefixtures("chain_only")
def test_tiles_of_different_plans(model: Model) -> None:
    image = smooth((521, 9))
    default, fast = (parse(encode(image, model, plan)) for plan in ("default", "fast"))
    mixed = pack(replace(default, tiles=(default.tiles[0], fast.tiles[1])))
    assert_same(decode(mixed, model=model), image)


# --- never worse ----------------------------------------------------------------------------------


def pictures() -> dict[str, Image.Image]:
    y, x = np.mgrid[:96, :80]
    screen = np.full((96, 80, 3), 250, np.uint8)
    screen[:12] = (40, 60, 90)
    screen[20:90:6, 8:60] = (20, 20, 20)
    screen[30:60, 50:78] = (200, 30, 30)
    return {
        "flat": Image.new("L", (96, 80), 77),
        "single colour": Image.new("RGB", (1, 1), (1, 2, 3)),
        "one colour": Image.new("RGB", (300, 200), (1, 2, 3)),
        "screenshot": Image.fromarray(screen),
        "checkerboard": Image.fromarray(((x + y) % 2 * 255).astype(np.uint8)),
        "noise": noise((64, 48), "RGB"),
        "grey noise": noise((64, 48), "L"),
        "bilevel noise": noise((61, 48), "1"),
        "deep noise": noise((61, 48), "I;16"),
        "translucent noise": noise((31, 48), "RGBA"),
        "large noise": noise((530, 20), "RGB"),
        "photograph": smooth((70, 50)),
    }


@pytest.mark.parametrize("name", pictures())
def test_never_larger_than_webp_or_raw(model: Model, name: str) -> None:
    image = pictures()[name]
    limits = [len(image.tobytes())]
    if image.mode in ("RGB", "RGBA", "L"):
        for options in ({}, {"quality": 100, "method": 5}):
            webp = io.BytesIO()
            color = image.convert("RGB") if image.mode == "L" else image
            color.save(webp, "WEBP", lossless=True, exact=True, **options)
            limits.append(len(webp.getvalue()))
    data = encode(image, model)
    assert len(data) <= min(limits) + HEADER_BYTES
    assert_same(decode(data, model=model), image)


# --- timesteps ------------------------------------------------------------------------------------


def rms(a: Image.Image, b: Image.Image) -> float:
    return float(np.sqrt(np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2)))


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_timesteps_from_exact_to_flat(model: Model, mode: str) -> None:
    image = smooth((40, 24), mode)
    data = encode(image, model)
    last = TIMESTEPS["default"]
    errors = []
    for timestep in range(last + 1):
        coarse = decode(data, timestep, model, reconstruct="mean")
        assert (coarse.mode, coarse.size) == (image.mode, image.size)
        errors.append(rms(coarse, image))
    assert errors[0] == 0
    assert 0 < errors[1] < errors[last]
    assert float(np.asarray(coarse, float).std((0, 1)).max()) < 12 < np.asarray(image, float).std()
    for timestep in (-1, last + 1):
        with pytest.raises(UnsupportedError, match=f"timesteps 0 .exact. to {last}"):
            decode(data, timestep, model)


def test_other_coders_have_no_timesteps(model: Model) -> None:
    data = encode(noise((8, 8), "RGBA"), model)
    with pytest.raises(UnsupportedError, match="timestep 1"):
        decode(data, 1, model)


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("plan", PLAN_NAMES)
def test_marks_are_measured_as_they_are_written(model: Model, plan: str) -> None:
    image = smooth((521, 12))
    plain = encode(image, model, plan)
    assert not any(tile.marks for tile in parse(plain).tiles)
    [marked] = encode_many([image], model, plan, choices=Choices(marks_from_pixels=1))
    assert all(len(tile.marks) == TIMESTEPS[plan] for tile in parse(marked).tiles)
    assert measure_marks(plain, model) == parse(marked)
    assert measure_marks(marked, model) == parse(marked)
    assert_same(decode(marked, model=model), image)


# --- tiles whose stack runs empty -------------------------------------------------------------

WITH_PREVIEW = Choices(seed_share=-1)


@pytest.fixture(params=[2, 4, 6])
def previewed(
    chain_only: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Image.Image:
    """An image, and all its tiles as if their stacks ran empty up to some timestep."""

    def expected_below(chain: TileChain, alone: Sequence[int], preview: int) -> tuple[float, float]:
        return (-(2.0**25), 0) if preview == request.param else (0, 1)

    monkeypatch.setattr("diffcodec.coding.top_down._expected_below", expected_below)
    monkeypatch.setattr(EncodedTile, "size", property(lambda tile: -tile.preview))
    return smooth((516, 6))


def test_tiles_with_previews_of_their_own(model: Model, previewed: Image.Image) -> None:
    [data] = encode_many([previewed], model, choices=WITH_PREVIEW)
    assert len({tile.preview for tile in parse(data).tiles}) == 1
    assert all(tile.preview and tile.preview_payload for tile in parse(data).tiles)
    assert_same(decode(data, model=model), previewed)
    images = [previewed, smooth((20, 20)), previewed]
    assert list(encode_many(images, model, choices=WITH_PREVIEW))[2] == data


@pytest.mark.usefixtures("chain_only")
def test_the_smallest_of_several_draws(model: Model) -> None:
    images = [smooth((23, 14 + i), seed=i) for i in range(5)] + [smooth((520, 3))]
    single, smallest = list(encode_many(images, model)), list(encode_many(images, model, draws=6))
    drawn = [tile.draw for data in smallest for tile in parse(data).tiles]
    assert max(drawn) > 1 and len(set(drawn)) > 2
    assert all(len(b) <= len(a) for a, b in zip(single, smallest, strict=True))
    assert sum(map(len, smallest)) < sum(map(len, single)) - 8
    for image, data in zip(images, smallest, strict=True):
        assert_same(decode(data, model=model), image)
        assert encode(image, model, draws=6) == data


@pytest.mark.usefixtures("chain_only")
def test_a_draw_is_part_of_what_a_tile_says(model: Model) -> None:
    image = smooth((30, 20))
    container = parse(
        next(d for n in range(2, 30) if parse(d := encode(image, model, draws=n)).tiles[0].draw)
    )
    tile = container.tiles[0]
    other = pack(replace(container, tiles=(replace(tile, draw=tile.draw + 1),)))
    with pytest.raises(CorruptError):
        decode(other, model=model)


@pytest.mark.parametrize("draws", [0, -1, 257])
def test_impossible_draws(model: Model, draws: int) -> None:
    with pytest.raises(UnsupportedError, match=f"{draws} draws: expected 1 to 256"):
        encode(smooth((3, 3)), model, draws=draws)


def test_draws_are_for_files_without_previews(model: Model) -> None:
    with pytest.raises(UnsupportedError, match="2 draws and previews"):
        encode(smooth((3, 3)), model, draws=2, progressive=True)


@pytest.mark.usefixtures("chain_only")
def test_a_tile_is_given_up_at_once(model: Model) -> None:
    image = smooth((40, 20))
    [data] = encode_many([image], model, choices=Choices(seed_bits=-1, seed_words=-1))
    assert parse(data).tiles[0].preview == LEAST_PREVIEW
    assert_same(decode(data, model=model), image)


def test_timesteps_of_a_tile_with_a_preview(model: Model, previewed: Image.Image) -> None:
    choices = replace(WITH_PREVIEW, marks_from_pixels=1)
    [data] = encode_many([previewed], model, choices=choices)
    tile, top = parse(data).tiles[0], TIMESTEPS["default"]
    assert len(tile.marks) == tile.preview - 1
    assert measure_marks(data, model) == parse(data)
    errors = [rms(decode(data, t, model), previewed) for t in range(top + 1)]
    assert errors[0] == 0 < errors[1] < errors[top]
    for timestep in {top, tile.preview}:
        plain = decode(data, timestep, model)
        for how in ("flow", "sample"):
            shown = decode(data, timestep, model, reconstruct=how)
            assert shown.tobytes() != plain.tobytes()


def test_a_damaged_preview_is_found(model: Model, previewed: Image.Image) -> None:
    container = parse(next(encode_many([previewed], model, choices=WITH_PREVIEW)))
    tile, other = container.tiles

    def changed(**fields: Any) -> bytes:
        return pack(replace(container, tiles=(replace(tile, **fields), other)))

    payload = tile.preview_payload
    flipped = bytes([payload[0] ^ 0x80]) + payload[1:]
    for data in (
        changed(preview_payload=flipped),
        changed(preview_payload=payload[:-1]),
        changed(preview_payload=payload + b"\0"),
        changed(preview_payload=b""),
        changed(preview=tile.preview + 1 if tile.preview < TIMESTEPS["default"] else 2),
        changed(preview=TIMESTEPS["default"] + 1),
        changed(preview=1000),
    ):
        with pytest.raises(CorruptError):
            decode(data, model=model)


# --- damage ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(model: Model) -> Iterator[tuple[bytes, Image.Image]]:
    """A file of one chain tile, and its image."""
    image = smooth((4, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "encode_fallback", lambda image, *_: ("raw", bytes(1 << 12)))
        data = encode(image, model)
    assert coders(data) == {"default"}
    assert len(data) < 200
    yield data, image


def test_cut_at_every_byte(model: Model, small: tuple[bytes, Image.Image]) -> None:
    data, _ = small
    for end in range(1, len(data)):
        with pytest.raises(TruncatedError):
            decode(data[:end], model=model)
    with pytest.raises(FormatError):
        decode(b"", model=model)


def test_every_flipped_bit_is_found(model: Model, small: tuple[bytes, Image.Image]) -> None:
    data, _ = small
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DiffcodecError):
            decode(bytes(damaged), model=model)


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "I;16"])
def test_every_flipped_bit_of_other_coders_is_found(model: Model, mode: str) -> None:
    data = encode(noise((3, 3), mode), model)
    for bit in range(8 * min(len(data), 120)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(DiffcodecError):
            decode(bytes(damaged), model=model)


def test_flipped_bits_under_a_valid_checksum_are_found(
    model: Model, small: tuple[bytes, Image.Image]
) -> None:
    """What the file's own checksum cannot tell, that of the pixels does."""
    container = parse(small[0])
    payload = container.tiles[0].payload
    for bit in range(0, 8 * len(payload), 11):
        damaged = bytearray(payload)
        damaged[bit // 8] ^= 1 << bit % 8
        tile = replace(container.tiles[0], payload=bytes(damaged))
        with pytest.raises(CorruptError, match="other probabilities"):
            decode(pack(replace(container, tiles=(tile,))), model=model)


@pytest.mark.usefixtures("chain_only")
def test_a_shift_by_one_unit_in_the_last_place_is_found(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = Model.posterior_x

    def shifted(self: Model, z: Any, sigma: float, *labels: Any) -> tuple[Any, Any]:
        mean, variance = exact(self, z, sigma, *labels)
        return np.nextafter(mean.astype(np.float32), np.float32(np.inf)).astype(float), variance

    data = encode(smooth((16, 16)), model)
    monkeypatch.setattr(Model, "posterior_x", shifted)
    with pytest.raises(CorruptError, match="other probabilities"):
        decode(data, model=model)


@given(st.binary(max_size=120), st.sampled_from(PLAN_NAMES))
def test_arbitrary_chain_payloads(
    model: Model, small: tuple[bytes, Image.Image], payload: bytes, coder: str
) -> None:
    container = parse(small[0])
    tile = Tile(coder, payload)
    with pytest.raises(CorruptError):
        decode(pack(replace(container, tiles=(tile,))), model=model)


@given(st.sampled_from(list(MODES)), st.sampled_from(["raw", "webp", "png"]), st.binary())
def test_arbitrary_other_payloads(model: Model, mode: str, coder: str, payload: bytes) -> None:
    whole = parse(encode(Image.new(mode, (4, 3)), model))
    with pytest.raises(FormatError):
        decode(pack(replace(whole, tiles=(Tile(coder, payload),))), model=model)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3), st.integers(0, 3)), min_size=1),
    st.booleans(),
)
@settings(max_examples=200)
def test_mutated_files(
    model: Model,
    small: tuple[bytes, Image.Image],
    mutations: list[tuple[float, bytes, int]],
    repair: bool,
) -> None:
    """Bytes replaced, inserted and removed; also with the last checksum made good again."""
    data, image = small
    for place, inserted, removed in mutations:
        at = int(place * len(data))
        data = data[:at] + inserted + data[at + removed :]
    if repair and len(data) > 4:
        data = data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))
    with suppress(DiffcodecError):
        assert_same(decode(data, model=model), image)


@given(st.binary(max_size=64), st.booleans())
def test_arbitrary_bytes(data: bytes, with_magic: bool) -> None:
    with pytest.raises(DiffcodecError):
        decode(MAGIC + data if with_magic else data)


def test_one_error_for_each_damage(model: Model, small: tuple[bytes, Image.Image]) -> None:
    data, _ = small
    png = io.BytesIO()
    Image.new("L", (2, 2)).save(png, "PNG")
    huge = MAGIC + b"\x01\x05" + 2 * b"\xff\xff\xff\xff\x07" + bytes(50)
    errors: dict[bytes, type[DiffcodecError]] = {
        b"": FormatError,
        b"some text\n": FormatError,
        png.getvalue(): FormatError,
        MAGIC: TruncatedError,
        data[:-1]: TruncatedError,
        data + b"\x00": FormatError,
        data[:-1] + bytes([data[-1] ^ 1]): CorruptError,
        MAGIC + b"\x00" + data[5:]: FormatError,
        MAGIC + b"\x02" + data[5:]: UnsupportedFileError,
        huge: LimitError,
    }
    for damaged, expected in errors.items():
        with pytest.raises(DiffcodecError) as caught:
            decode(damaged, model=model)
        assert type(caught.value) is expected, damaged


# --- models ---------------------------------------------------------------------------------------


def test_the_wrong_model(tmp_path: Path, small: tuple[bytes, Image.Image], model: Model) -> None:
    data, _ = small
    other = tiny_model(tmp_path, seed=1, name="other")
    with pytest.raises(ModelMismatchError, match=f"{model.info.id.hex()}.*other"):
        decode(data, model=str(other))
    with pytest.raises(ModelMismatchError, match=f"{model.info.id.hex()}.*none of the shipped"):
        decode(data)


def test_a_tampered_model(tmp_path: Path, tiny: Path, small: tuple[bytes, Image.Image]) -> None:
    data = bytearray(tiny.read_bytes())
    data[-1] ^= 1
    tampered = tmp_path / "tiny.safetensors"
    tampered.write_bytes(data)
    with pytest.raises(ModelMismatchError, match="give the model that it was encoded with"):
        decode(small[0], model=str(tampered))


def test_files_without_a_chain_need_no_model(model: Model) -> None:
    image = noise((5, 5), "RGBA")
    assert_same(decode(encode(image, model)), image)


def test_weights_are_safetensors_only(tmp_path: Path) -> None:
    torch_file = tmp_path / "weights.pt"
    torch.save({"weight": torch.zeros(2)}, torch_file)
    pickle_file = tmp_path / "weights.pkl"
    pickle_file.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    nested = tmp_path / "nested.safetensors"
    nested.write_bytes(struct.pack("<Q", 1 << 20) + b"[" * (1 << 20))
    for path in (torch_file, pickle_file, nested):
        with pytest.raises(ModelMismatchError, match="not a diffcodec model file"):
            load_model(path)
    with pytest.raises(ModelMismatchError, match="no model 'nothing'"):
        load_model("nothing")


def describe(info: ModelInfo) -> dict[str, str]:
    return make_metadata(info.network, info.plans, info.about, info.arithmetic, info.answers)


@pytest.mark.parametrize("damage", ["gone", "shorter", "not a number"])
def test_damaged_tensors_are_found_on_loading(tmp_path: Path, tiny: Path, damage: str) -> None:
    info, data = read_model_info(tiny)
    for name, tensor in load(data).items():
        if is_embedding(name) or name == "conv_in.phase.bias":  # play no part in coding
            continue
        tensors = load(data)
        if damage == "gone":
            del tensors[name]
        elif damage == "shorter":
            tensors[name] = tensor[:-1].clone()
        elif tensor.is_floating_point():
            tensors[name].view(-1)[-1] = torch.nan
        else:
            continue
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(save(tensors, describe(info)))
        with pytest.raises(ModelMismatchError, match="not a diffcodec model file"):
            load_model(path)


def redescribed(model: Path, folder: Path, key: str, value: str) -> Path:
    """The model with one part of its description changed."""
    info, data = read_model_info(model)
    path = folder / "model.safetensors"
    path.write_bytes(save(load(data), describe(info) | {key: value}))
    return path


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "diffcodec-model-999"),
        ("network", "3"),
        ("network", '{"patch": 0}'),
        ("network", '{"color": "cmyk"}'),
        ("network", '{"depth": 3}'),
        ("plans", "[]"),
        ("plans", '{"fast": {"levels": [0.5, 1.5], "lattices": [3]}}'),  # not in the tables
        ("plans", '{"fast": {"levels": [1.25, 0.5], "lattices": [3]}}'),
        ("plans", '{"fast": {"levels": [0.5, 1.25], "lattices": [NaN]}}'),
        ("plans", '{"fast": {"levels": [0.5, 1.25], "lattices": []}}'),
        ("about", "{"),
    ],
)
def test_damaged_descriptions_are_found_on_loading(
    tmp_path: Path, tiny: Path, key: str, value: str
) -> None:
    path = redescribed(tiny, tmp_path, key, value)
    with pytest.raises(ModelMismatchError, match="not a diffcodec model file"):
        load_model(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("network", '{"second_view_up_to": null}'),
        ("network", '{"second_view_up_to": "3"}'),
        ("network", '{"second_view_up_to": NaN}'),
        ("network", '{"patch": 1e308}'),
        ("network", '{"patch": true}'),
        ("network", '{"blocks": [1e400, 1, 1, 1]}'),
        ("network", f'{{"channels": [1{"0" * 400}, 64, 96, 128]}}'),
        ("network", f'{{"experts": [[1{"0" * 400}, {{}}], [null, {{}}]]}}'),
        ("network", f'{{"experts": [[null, {{}}]], "phases": {{"quantiser": 1{"0" * 400}}}}}'),
        ("network", '{"backbone": "dit", "channels": [], "blocks": []}'),
        ("network", '{"channels": [], "blocks": []}'),
        ("network", '{"classes": -1}'),
        ("plans", '{"fast": {"levels": [], "lattices": []}}'),
        ("plans", '{"fast": {"levels": [0.5, 1.25], "lattices": [1e-308]}}'),
    ],
)
def test_damaged_descriptions_are_found_on_reading(
    tmp_path: Path, tiny: Path, key: str, value: str
) -> None:
    path = redescribed(tiny, tmp_path, key, value)
    with pytest.raises(ModelMismatchError, match="not a diffcodec model file"):
        read_model_info(path)


@given(st.data())
@settings(max_examples=30)
def test_mutated_models(tiny: Path, tmp_path_factory: Any, data: st.DataObject) -> None:
    """Refused as no model, or another model."""
    whole = tiny.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    other = whole[:at] if cut else whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :]
    path = tmp_path_factory.mktemp("mutated") / "model.safetensors"
    path.write_bytes(other)
    with suppress(ModelMismatchError):
        assert load_model(path).info.id != load_model(tiny).info.id


# --- float arithmetic -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def float_model(tiny_float: Path) -> Model:
    return load_model(tiny_float, "float")


def test_a_model_says_its_arithmetic(model: Model, float_model: Model, tiny: Path) -> None:
    assert (model.arithmetic, model.info.arithmetic) == ("integer", "integer")
    assert (float_model.arithmetic, float_model.info.arithmetic) == ("float", "float")
    both = load_model(tiny, "float")
    assert (both.arithmetic, both.info) == ("float", model.info)
    with pytest.raises(UnsupportedError, match=r"'double'.*integer.*float"):
        load_model(tiny, "double")


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(1, 1), (13, 17), (33, 31)])
def test_float_arithmetic_is_exact_on_the_same_machine(
    float_model: Model, tiny_float: Path, size: tuple[int, int], mode: str
) -> None:
    for image in (smooth(size, mode), noise(size, mode)):
        data = encode(image, float_model)
        assert coders(data) == {"default"}
        assert parse(data).float_arithmetic
        assert parse(data).model == float_model.info.id
        assert_same(decode(data, model=float_model), image)
        assert_same(decode(data, model=str(tiny_float)), image)


@pytest.mark.usefixtures("chain_only")
def test_float_arithmetic_of_an_integer_model(model: Model, tiny: Path) -> None:
    image = smooth((24, 16))
    data, other = encode(image, model), encode(image, load_model(tiny, "float"))
    assert [parse(d).float_arithmetic for d in (data, other)] == [False, True]
    assert parse(data).model == parse(other).model == model.info.id
    assert parse(data).tiles != parse(other).tiles
    for d in (data, other):
        assert_same(decode(d, model=str(tiny)), image)
    claims = (
        replace(parse(data), float_arithmetic=True),
        replace(parse(other), float_arithmetic=False),
    )
    for wrong in claims:
        with pytest.raises(CorruptError, match="other probabilities"):
            decode(pack(wrong), model=str(tiny))


@pytest.mark.usefixtures("chain_only")
def test_batches_do_not_matter_to_float_arithmetic(float_model: Model) -> None:
    images = [smooth((16, 16), seed=i) for i in range(5)] + [smooth((521, 9)), smooth((264, 9))]
    together = list(encode_many(images, float_model))
    assert together == [encode(image, float_model) for image in images]
    for data, image in zip(together, images, strict=True):
        assert_same(decode(data, model=float_model), image)


@pytest.mark.usefixtures("chain_only")
def test_marks_and_timesteps_of_float_arithmetic(float_model: Model, tiny_float: Path) -> None:
    image = smooth((24, 16))
    data = encode(image, float_model)
    measured = measure_marks(data, str(tiny_float))
    assert measured.float_arithmetic
    assert len(measured.tiles[0].marks) == TIMESTEPS["default"]
    assert rms(decode(data, 1, float_model), image) < rms(decode(data, 6, float_model), image)


def test_files_without_a_chain_are_the_same(model: Model, float_model: Model) -> None:
    image = noise((5, 5), "RGBA")
    data = encode(image, float_model)
    assert not parse(data).float_arithmetic
    assert data == encode(image, model)


@pytest.mark.usefixtures("chain_only")
def test_float_arithmetic_that_differs_is_named(
    float_model: Model, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another machine. Of integer arithmetic it is not said."""
    image = smooth((16, 16))
    data = encode(image, float_model)
    plain = FloatNetwork.posterior_x

    def scaled(self: FloatNetwork, z: Any, sigma: float) -> tuple[Any, Any]:
        mean, variance = plain(self, z, sigma)
        return mean * (1 + 2.0**-23), variance

    monkeypatch.setattr(FloatNetwork, "posterior_x", scaled)
    advice = "float arithmetic, which is not the same on every machine: .*--arithmetic integer"
    with pytest.raises(CorruptError, match=advice):
        decode(data, model=float_model)
    with pytest.raises(CorruptError, match=r"one that encoded it$"):
        decode(with_other_checksum(image, model), model=model)


def with_other_checksum(image: Image.Image, model: Model) -> bytes:
    """As from a machine that came to other pixels."""
    with mock.patch("diffcodec.codec.encoding.pixel_crc", lambda image: 1):
        return encode(image, model)


@pytest.mark.usefixtures("chain_only")
def test_other_pixels_by_float_arithmetic_are_named(float_model: Model) -> None:
    data = with_other_checksum(smooth((4, 3)), float_model)
    with pytest.raises(CorruptError, match=r"nor the checksum .* not the same on every machine"):
        decode(data, model=float_model)


@pytest.mark.usefixtures("chain_only")
def test_a_model_of_the_other_arithmetic(
    model: Model, float_model: Model, tiny: Path, tiny_float: Path
) -> None:
    image = smooth((4, 3))
    data, other = encode(image, model), encode(image, load_model(tiny, "float"))
    with pytest.raises(ModelMismatchError, match=r"made with integer .*'float'; load it"):
        decode(data, model=load_model(tiny, "float"))
    with pytest.raises(ModelMismatchError, match=r"made with float .*'integer'; load it"):
        decode(other, model=model)
    with pytest.raises(ModelMismatchError, match="the one given is float"):
        decode(data, model=str(tiny_float))
    needs_float = "is a float model, .*--arithmetic float, or .*diffcodec quantize"
    with pytest.raises(ModelMismatchError, match=needs_float):
        load_model(tiny_float)
    with pytest.raises(ModelMismatchError, match=needs_float):
        encode(image, str(tiny_float))
    forged = replace(parse(encode(image, float_model)), float_arithmetic=False)
    with pytest.raises(ModelMismatchError, match=needs_float):
        decode(pack(forged), model=str(tiny_float))


def rewrite(path: Path, like: Path, tensors: dict[str, Any], **metadata: str) -> Path:
    """A model file with other tensors, and other metadata where given."""
    info, _ = read_model_info(like)
    path.write_bytes(save(tensors, describe(info) | metadata))
    return path


@pytest.mark.parametrize("damage", ["gone", "more", "shorter", "not a number", "integers"])
def test_damaged_float_tensors_are_found_on_loading(
    tmp_path: Path, tiny_float: Path, damage: str
) -> None:
    changes: dict[str, Callable[[Any], Any]] = {
        "shorter": lambda t: t[:-1].clone(),
        "not a number": lambda t: torch.full_like(t, torch.nan),
        "integers": lambda t: t.int(),
    }
    for name in load(tiny_float.read_bytes()):
        tensors = load(tiny_float.read_bytes())
        if damage == "gone":
            del tensors[name]
        elif damage == "more":
            tensors[f"{name}.more"] = torch.zeros(1)
        else:
            tensors[name] = changes[damage](tensors[name])
        path = rewrite(tmp_path / f"{name}.safetensors", tiny_float, tensors)
        with pytest.raises(ModelMismatchError, match="not a diffcodec model file"):
            load_model(path, "float")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("arithmetic", "double"),
        ("arithmetic", ""),
        ("about", "[]"),
        ("plans", "{}"),
        ("plans", '{"fast": {"levels": [1e-30, 1], "lattices": [3]}}'),
        ("plans", '{"fast": {"levels": [1, 1e200], "lattices": [3]}}'),
        ("network", '{"channels": [1000000000, 8], "blocks": [1, 1]}'),
        ("network", '{"channels": [8, 8], "blocks": [1, 1000000000]}'),
        ("network", '{"channels": [8, 8], "blocks": [-1000000000, 1000000000]}'),
        ("network", '{"channels": [8, 8], "blocks": [1, 1], "embedding": 100000000000000}'),
        ("network", '{"channels": [8], "blocks": [1, 1]}'),
    ],
)
def test_damaged_descriptions_of_float_models(
    tmp_path: Path, tiny_float: Path, key: str, value: str
) -> None:
    tensors = load(tiny_float.read_bytes())
    path = rewrite(tmp_path / "model.safetensors", tiny_float, tensors, **{key: value})
    with pytest.raises(ModelMismatchError, match="not a diffcodec model file"):
        load_model(path, "float")


@pytest.mark.usefixtures("chain_only")
def test_huge_weights_of_float_models(tmp_path: Path, tiny_float: Path) -> None:
    """Refused on loading or in use, or good all the same."""
    image, refused = smooth((4, 3)), set()
    for name in load(tiny_float.read_bytes()):
        tensors = load(tiny_float.read_bytes())
        tensors[name].fill_(3e38)
        path = rewrite(tmp_path / f"{name}.safetensors", tiny_float, tensors)
        try:
            huge = load_model(path, "float")
            assert_same(decode(encode(image, huge), model=huge), image)
        except ModelMismatchError:
            refused.add(name)
    assert {"conv_in.weight", "conv_out.weight", "conv_out.bias"} <= refused


@pytest.mark.usefixtures("chain_only")
def test_a_float_model_that_overflows_on_some_images(tmp_path: Path, tiny_float: Path) -> None:
    tensors = load(tiny_float.read_bytes())
    weight = tensors["conv_in.weight"].view(8, 9, 4, 9)
    weight[:, 3:6] = 3e38  # of the sines, which are 0 in the image that loading tries
    path = rewrite(tmp_path / "model.safetensors", tiny_float, tensors)
    with pytest.raises(ModelMismatchError, match=r"model cannot code this image .*; give another"):
        encode(smooth((16, 16)), load_model(path, "float"))


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("field", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 0.0, -1.0])
def test_impossible_means_and_variances(
    float_model: Model, monkeypatch: pytest.MonkeyPatch, field: int, value: float
) -> None:
    image = smooth((16, 16))
    data = encode(image, float_model)
    plain = FloatNetwork.posterior_x

    def wrong(self: FloatNetwork, z: Any, sigma: float) -> tuple[Any, Any]:
        fields = plain(self, z, sigma)
        fields[field][..., 3, 3] = value
        return fields

    monkeypatch.setattr(FloatNetwork, "posterior_x", wrong)
    with pytest.raises(CorruptError, match="float arithmetic"):
        decode(data, model=float_model)
    if (field, value) in [(0, 0.0), (0, -1.0)]:  # a possible mean
        assert_same(decode(encode(image, float_model), model=float_model), image)
    else:
        with pytest.raises(ModelMismatchError, match="cannot code this image"):
            encode(image, float_model)


# --- the chain alone ------------------------------------------------------------------------------


def shrinking(request: Request) -> Posterior:
    """A model that needs no network, and is wrong in a known way."""
    return Posterior(0.875 * request.z + 16, np.full(request.z.shape, 30.0))


@st.composite
def chains(draw: st.DrawFn) -> tuple[TileChain, Any]:
    """A chain and an image: any integers that the domain has, grey ones too."""
    color = draw(st.sampled_from(sorted(DOMAINS)))
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    coded = draw(st.sampled_from([1, 3])) if color == "ycocg" else 3
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    low = np.array([0, -255, -255] if color == "ycocg" else [0, 0, 0])[:, None, None]
    spread = draw(st.sampled_from([0.0, 0.1, 1.0]))
    x = np.rint(low * spread + rng.random((3, *shape)) * (255 - low) * spread)
    x[coded:] = 0
    plan: Plan = geometric_plan(draw(st.integers(2, 10)))
    return TileChain(plan, DOMAINS[color], draw(st.integers(0, 3)), coded, shape), x


def again(chain: TileChain, plan: Plan) -> TileChain:
    return TileChain(plan, chain.domain, chain.tile, chain.coded, chain.shape[1:])


@given(chains(), st.integers(2, 10))
def test_a_tile_comes_back_and_its_marks_suffice(tile: tuple[TileChain, Any], steps: int) -> None:
    chain, x = tile
    plan = geometric_plan(steps)
    coded = drive(encode_tile(again(chain, plan), x), shrinking)
    assert 1 <= coded.seed_words <= most_seed_words(chain)
    whole = drive(decode_tile(again(chain, plan), coded.words), shrinking)
    assert np.array_equal(whole, x)
    assert len(coded.marks) == steps
    assert list(coded.marks) == sorted(coded.marks)
    assert coded.marks[-1] <= len(coded.words)
    for timestep in range(1, steps + 1):
        mark = coded.marks[-timestep]
        parts = [coded.words, coded.words[:mark]]
        means = [
            drive(decode_tile(again(chain, plan), part, timestep), shrinking) for part in parts
        ]
        assert np.array_equal(*means)
        assert np.array_equal(means[0][chain.coded :], x[chain.coded :])


@given(chains())
def test_another_model_does_not_decode(tile: tuple[TileChain, Any]) -> None:
    """The seed does not come back, or the pixels are others."""
    chain, x = tile
    plan = geometric_plan(6)
    coded = drive(encode_tile(again(chain, plan), x), shrinking)

    def other(request: Request) -> Posterior:
        return Posterior(0.5 * request.z + 60, np.full(request.z.shape, 90.0))

    with suppress(ValueError, OutOfRangeError):
        found = drive(decode_tile(again(chain, plan), coded.words), other)
        assert not np.array_equal(found, x)
