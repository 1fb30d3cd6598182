"""Many images and many files, in and out one after another."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from samples import make_image
from test_phased_files import same
from tiny import tiny_model

from diffcodec import decode, decode_many, encode, encode_many, load_model
from diffcodec.codec import many, tiles
from diffcodec.codec.many import LEAST_PIXELS
from diffcodec.container.parts import CHAIN_MODES
from diffcodec.errors import CorruptError, TruncatedError, UnsupportedError
from diffcodec.models.model import Model


@pytest.fixture(autouse=True)
def by_the_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other coders code only what no chain does."""
    plain = tiles.encode_fallback

    def encode_fallback(image: Image.Image, *conversion: Any) -> tuple[str, bytes]:
        is_chain = image.mode in CHAIN_MODES
        return ("raw", bytes(1 << 22)) if is_chain else plain(image, *conversion)

    monkeypatch.setattr(tiles, "encode_fallback", encode_fallback)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return load_model(tiny)


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    return make_image(mode, (7 + seed, 12), seed=seed)


def noted(found: list[int], function: Callable[..., Any]) -> Callable[..., Any]:
    def noting(several: Sequence[Any], *arguments: Any, **options: Any) -> Any:
        found.append(len(several))
        return function(several, *arguments, **options)

    return noting


def test_files_of_all_kinds_decode_as_each_alone(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [picture(k, "RGBA" if k == 2 else "RGB" if k else "L") for k in range(5)]
    files: list[Any] = list(encode_many(images, model, "fast"))
    files.insert(4, encode(images[0], model, "fast", progressive=True))
    files.append(encode(images[1], model, "default", timestep=2))
    lossy = decode(files[-1], model=model)
    expected = [*images[:4], images[0], images[4], lossy]
    (tmp_path / "file").write_bytes(files[1])
    files[1], files[3] = tmp_path / "file", io.BytesIO(files[3])
    sizes: list[int] = []
    monkeypatch.setattr(many, "decode_together", noted(sizes, many.decode_together))
    found = list(decode_many(iter(files), model))
    assert all(map(same, found, expected))
    assert sizes == [4, 1]  # with what takes no model between; files with previews are alone


def test_each_of_its_own_model(tmp_path: Path, model: Model, tiny_float: Path) -> None:
    other = load_model(tiny_model(tmp_path, seed=3, name="other"))
    floating = load_model(tiny_float, "float")
    images = [picture(k) for k in range(3)]
    files = [encode(image, by) for image in images for by in (model, other)]
    with mock.patch("diffcodec.codec.opening.find_model") as find:
        find.side_effect = lambda container, *_: (
            model if container.model == model.info.id else other
        )
        assert all(map(same, decode_many(files), [image for image in images for _ in range(2)]))
    files = [encode(image, floating) for image in images]
    assert all(map(same, decode_many(files, floating), images))


def test_little_is_read_ahead(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "HELD_PIXELS", 3 * LEAST_PIXELS)
    read: list[int] = []

    def endless() -> Iterator[Image.Image]:
        while True:
            read.append(len(read))
            yield picture(len(read) % 5)

    files = encode_many(endless(), model, "fast")
    found = decode_many(files, model)
    for k in range(10):
        assert same(next(found), picture((k + 1) % 5))
        assert len(read) <= k + 8  # three that are coded, one beyond; of each of the two


def test_what_fails_fails_at_its_place(model: Model) -> None:
    images = [picture(k) for k in range(4)]
    files = [encode(image, model, "fast") for image in images]
    files[2] = bytes([*files[2][:-6], files[2][-6] ^ 1, *files[2][-5:]])
    found = decode_many(files, model)
    assert same(next(found), images[0]) and same(next(found), images[1])
    with pytest.raises(CorruptError):
        next(found)
    with mock.patch("diffcodec.codec.encoding.pixel_crc", lambda image: 1):
        files[2] = encode(images[2], model, "fast")  # whole, but its chain ends elsewhere
    for bad, error in ((files[2], CorruptError), (files[1][:20], TruncatedError)):
        found = decode_many([files[0], bad, files[3]], model)
        assert same(next(found), images[0])
        with pytest.raises(error):
            next(found)


def test_damage_to_a_file_that_is_half_read_is_what_is_told(model: Model) -> None:
    """What was read of it is not read again."""
    damaged = bytearray(encode(picture(0), model, "fast", progressive=True))
    damaged[-6] ^= 1
    files = [bytes(damaged), encode(picture(2, "RGBA"), model, "fast")]
    with pytest.raises(CorruptError, match="its checksum is"):
        next(decode_many(files, model))


def test_labels_are_as_many_as_images(model: Model) -> None:
    for labels in ([None], [None] * 3):
        with pytest.raises(UnsupportedError, match=rf"{len(labels)} labels for 2 images"):
            encode_many([picture(0)] * 2, model, labels=labels)
        coded = encode_many(iter([picture(0)] * 2), model, labels=iter(labels))
        assert decode(next(coded), model=model)
        with pytest.raises(UnsupportedError, match="give a label for each image"):
            list(coded)


def test_images_may_be_drawn_over_the_one_before(model: Model) -> None:
    def frames() -> Iterator[Any]:
        frame, array = Image.new("RGB", (8, 8)), np.zeros((8, 8, 3), np.uint8)
        for k in range(3):
            frame.paste((80 * k, 0, 0), (0, 0, 8, 8))
            yield frame
            array[:] = (0, 80 * k, 0)
            yield array

    files = list(encode_many(frames(), model, "fast"))
    pixels = [image.getpixel((0, 0)) for image in decode_many(files, model)]
    assert pixels == [(0, 0, 0), (0, 0, 0), (80, 0, 0), (0, 80, 0), (160, 0, 0), (0, 160, 0)]


HALF_USED = """
import sys
from unittest.mock import Mock
import numpy as np
import torch
import diffcodec
from diffcodec.codec import batches, tiles

torch.set_num_threads(2)
tiles.encode_fallback = Mock(return_value=("raw", bytes(1 << 22)))
model = diffcodec.load_model(sys.argv[1])
images = list(np.random.default_rng(0).integers(0, 256, (6, 8, 12, 3), dtype=np.uint8))
files = list(diffcodec.encode_many(images, model, "fast"))
batches.LEAST_BATCH_PIXELS = int(sys.argv[2])
coded = diffcodec.encode_many(images, model, "fast")
decoded = diffcodec.decode_many(files, model)
layered = diffcodec.encode(images[0], model, "fast", progressive=True)
layers = diffcodec.iter_decode(layered, model)
print(*(type(next(each)).__name__ for each in (coded, decoded, layers)))
"""


@pytest.mark.parametrize("least_pixels", [1 << 16, 64], ids=["one group", "groups side by side"])
def test_what_is_half_used_at_exit_says_nothing(tiny: Path, least_pixels: int) -> None:
    command = [sys.executable, "-c", HALF_USED, str(tiny), str(least_pixels)]
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}  # on a busy machine
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "bytes Image tuple\n" and done.stderr == ""
