"""Damaged files: what is whole of them comes back, and what is not is named and marked."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from damage import flipped
from PIL import Image
from samples import raw_tile

from diffcodec import decode, encode, load_model, recover
from diffcodec.container.parts import Box, tile_grid
from diffcodec.container.reader import parse
from diffcodec.container.writer import pack
from diffcodec.errors import CorruptError, LimitError, ModelMismatchError, TruncatedError
from diffcodec.limits import Limits
from diffcodec.models.model import Model

SIZE = (1100, 9)
BOXES = tile_grid(*SIZE)  # three


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return load_model(tiny)


def picture(mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    pixels = rng.integers(100, 140, (SIZE[1], SIZE[0], 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    image.info["dpi"] = (300.0, 300.0)
    if mode == "P":
        return image.quantize(16)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image)[:, :, 0].astype(np.uint16) * 300)
    return image.convert(mode)


def crop(image: Image.Image, box: Box) -> bytes:
    left, top, width, height = box
    return image.crop((left, top, left + width, top + height)).tobytes()


def is_checkerboard(image: Image.Image, box: Box, values: tuple[int, int]) -> bool:
    pixels = np.asarray(image)
    return all(
        np.all(pixels[y, x] == values[(x // 8 + y // 8) % 2])
        for y in range(box.top, box.top + box.height)
        for x in range(box.left, box.left + box.width)
    )


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("lost", range(3))
def test_damage_to_a_chain_tile_costs_that_tile(model: Model, mode: str, lost: int) -> None:
    image = picture(mode)
    data = encode(image, model, "fast")
    lengths = [len(tile.payload) for tile in parse(data).tiles]
    position = len(data) - sum(lengths[lost:]) - 4 * (3 - lost) + 5
    found, damage = recover(flipped(data, 8 * position), model)
    assert [(part.tile, part.box) for part in damage] == [(lost, BOXES[lost])]
    for index, box in enumerate(BOXES):
        if index == lost:
            assert is_checkerboard(found, box, (85, 170))
        else:
            assert crop(found, box) == crop(image, box)
    assert found.info["dpi"] == (300.0, 300.0)


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_lost_tile_is_drawn_if_that_is_wanted(model: Model, mode: str) -> None:
    image = picture(mode)
    data = encode(image, model, "fast")
    broken = flipped(data, 8 * (len(data) - 5))
    found, damage = recover(broken, model, fill=True)
    assert [part.tile for part in damage] == [len(BOXES) - 1] and found.mode == mode
    assert not is_checkerboard(found, BOXES[-1], (85, 170))
    assert crop(found, BOXES[-1]) != crop(image, BOXES[-1])
    for box in BOXES[:-1]:
        assert crop(found, box) == crop(image, box)
    assert recover(broken, model, fill=True).image == found
    assert recover(data, model, fill=True).damage == ()


def test_a_lost_tile_of_a_file_that_needs_no_model_is_drawn_by_any(model: Model) -> None:
    image = picture("L")
    cut = [image.crop((b.left, b.top, b.left + b.width, b.top + b.height)) for b in BOXES]
    data = pack(replace(parse(encode(image)), whole=False, tiles=tuple(map(raw_tile, cut))))
    found, damage = recover(flipped(data, 8 * (len(data) - 20)), model, fill=True)
    assert [part.tile for part in damage] == [2]
    assert not is_checkerboard(found, BOXES[2], (85, 170))


@pytest.mark.parametrize(
    ("mode", "values"),
    [
        ("1", (False, True)),
        ("P", (0, 1)),
        ("L", (85, 170)),
        ("I;16", (85 * 257, 170 * 257)),
        ("LA", ((85, 255), (170, 255))),
        ("RGBA", ((85, 85, 85, 255), (170, 170, 170, 255))),
    ],
)
def test_other_coders(mode: str, values: tuple[int, int]) -> None:
    image = picture(mode)
    whole = parse(encode(image))
    cut = [image.crop((b.left, b.top, b.left + b.width, b.top + b.height)) for b in BOXES]
    data = pack(replace(whole, whole=False, tiles=tuple(map(raw_tile, cut))))
    assert decode(data).tobytes() == image.tobytes()
    found, damage = recover(flipped(data, 8 * (len(data) - 20)))
    assert found.mode == mode
    assert [part.tile for part in damage] == [2]
    assert crop(found, BOXES[0]) == crop(image, BOXES[0])
    assert crop(found, BOXES[1]) == crop(image, BOXES[1])
    assert is_checkerboard(found, BOXES[2], values)
    if mode == "P":
        assert found.getpalette() == image.getpalette()


@pytest.mark.usefixtures("chain_only")
def test_a_cut_file_gives_the_tiles_that_are_there(model: Model) -> None:
    image = picture()
    data = encode(image, model, "fast")
    last = len(parse(data).tiles[2].payload)
    found, damage = recover(data[: -last // 2], model)
    assert [(part.tile, "ends early" in part.reason) for part in damage] == [(2, True)]
    assert crop(found, BOXES[1]) == crop(image, BOXES[1])


@pytest.fixture
def progressive(model: Model, chain_only: None) -> tuple[Image.Image, bytes]:
    image = picture()
    return image, encode(image, model, "fast", progressive=True, timestep=2, previews=(4, 3, 2))


def test_a_lost_tile_shows_its_last_preview(
    model: Model, progressive: tuple[Image.Image, bytes]
) -> None:
    image, data = progressive
    sizes = [len(tile.payload) for tile in parse(data).tiles]
    position = len(data) - sizes[1] - sizes[2] - 8 + 9
    found, damage = recover(flipped(data, 8 * position), model)
    assert [part.part for part in damage] == ["tile 2 of 3"]
    preview = decode(data, 2, model, reconstruct="mean")
    assert crop(found, BOXES[1]) == crop(preview, BOXES[1]) != crop(image, BOXES[1])
    for box in (BOXES[0], BOXES[2]):
        assert crop(found, box) == crop(image, box)


@pytest.mark.parametrize("layer", range(3))
def test_a_tile_lost_in_a_layer_shows_the_one_before(
    model: Model, progressive: tuple[Image.Image, bytes], layer: int
) -> None:
    image, data = progressive
    payload = parse(data).layers.payloads[layer][1]
    position = data.index(payload)
    found, damage = recover(flipped(data, 8 * position), model)
    assert [part.part for part in damage] == [f"layer {layer + 1} of 3, tile 2 of 3"]
    if layer == 0:
        assert is_checkerboard(found, BOXES[1], (85, 170))
    else:
        preview = decode(data, 5 - layer, model, reconstruct="mean")
        assert crop(found, BOXES[1]) == crop(preview, BOXES[1])
    for box in (BOXES[0], BOXES[2]):
        assert crop(found, box) == crop(image, box)


def test_a_lossy_file(model: Model) -> None:
    data = encode(picture(), model, "fast", timestep=2, previews=(4, 3, 2))
    payload = parse(data).layers.payloads[2][0]
    found, damage = recover(flipped(data, 8 * data.index(payload)), model)
    assert [part.part for part in damage] == ["layer 3 of 3, tile 1 of 3"]
    coarse, fine = decode(data, 3, model, reconstruct="mean"), decode(data, model=model)
    assert crop(found, BOXES[0]) == crop(coarse, BOXES[0]) != crop(fine, BOXES[0])
    assert crop(found, BOXES[2]) == crop(fine, BOXES[2])


def test_a_tile_of_another_coder_needs_no_preview(model: Model) -> None:
    image = picture()
    data = encode(image, model, "fast", progressive=True, timestep=3)  # the chain never wins
    assert {tile.coder for tile in parse(data).tiles} <= {"raw", "webp"}
    payload = parse(data).layers.payloads[0][1]
    found, damage = recover(flipped(data, 8 * data.index(payload)), model)
    assert found.tobytes() == image.tobytes()
    assert len(damage) == 1


@pytest.mark.parametrize("timestep", [None, 3])
def test_a_whole_file_has_no_damage(model: Model, timestep: int | None) -> None:
    data = encode(picture(), model, "fast", timestep=timestep)
    found, damage = recover(data, model)
    assert damage == ()
    assert found.tobytes() == decode(data, model=model).tobytes()


def test_bytes_that_follow_are_no_tile_lost(model: Model) -> None:
    data = encode(picture(), model, "fast")
    found, damage = recover(data + b"\n", model)
    assert found.tobytes() == picture().tobytes()
    assert [(part.tile, part.reason) for part in damage] == [
        (None, "1 bytes follow the last part, expected none")
    ]


@pytest.mark.usefixtures("chain_only")
def test_what_cannot_be_recovered(model: Model, tiny_float: Path) -> None:
    data = encode(picture(), model, "fast")
    with pytest.raises(CorruptError, match="tile 1 of 3 or the header is damaged"):
        recover(flipped(data, 8 * 10), model)
    with pytest.raises(TruncatedError):
        recover(data[:40], model)
    with pytest.raises(ModelMismatchError):
        recover(flipped(data, 8 * (len(data) - 9)), load_model(tiny_float, "float"))
    with pytest.raises(LimitError, match="limit is 9899"):
        recover(data, model, limits=Limits(pixels=9899))
    with pytest.raises(LimitError, match="MiB of memory"):
        recover(data, model, limits=Limits(memory_bytes=1 << 20))
    with mock.patch("diffcodec.codec.encoding.pixel_crc", lambda image: 1):
        other = encode(picture(), model, "fast")
    with pytest.raises(CorruptError, match="checksum"):
        recover(other, model)
