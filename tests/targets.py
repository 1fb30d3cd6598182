"""What the fuzzers run: nothing but a ``DiffcodecError`` may come of any bytes."""

import io
import json
import math
import os
import random
import struct
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from damage import GOLDEN, LIMITS, MODEL, Mutate, edited, mutated, other_number
from golden import CLASS_MODEL, PHASED_MODEL
from PIL import Image

from diffcodec.archive.archive import open_archive
from diffcodec.archive.records import (
    CRC_BYTES,
    GROUP,
    HEAD_BYTES,
    PAGE,
    ROOT,
    find_root,
    record,
    tail,
)
from diffcodec.codec import decoding, encoding, recovery
from diffcodec.container import reader, salvage, writer
from diffcodec.container.info import describe
from diffcodec.container.parts import Tile
from diffcodec.errors import DiffcodecError
from diffcodec.models import model as models

MODELS = (MODEL, PHASED_MODEL, CLASS_MODEL)
PICTURE = Image.fromarray(np.arange(90, dtype=np.uint8).reshape(5, 6, 3))
NO_OTHER_TILE = Tile("raw", bytes(1 << 22))  # the chain of random weights wins by no other
RECONSTRUCTIONS = ("mean", "flow", "sample", "perceptual")
# As float32: 0, the least, NaN, infinity, another NaN, the largest, -0, 2^24.
WORDS = (0, 1, 0xFFFFFFFF, 0x7F800000, 0x7FC00000, 0x7F7FFFFF, 0x80000000, 0x4B800000)
# In JSON.
VALUES = (
    *(None, True, False, 0, -1, 2**31, 2**63, 10**30, math.nan, math.inf, -0.5),
    *("", "x", "I8", "F64", [], {}, [[]], [0], {"a": 0}),
)
FOLDER = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())


def parse(data: bytes) -> None:
    """The container alone: what is read is written and read as the same."""
    with suppress(DiffcodecError):
        salvage.salvage(data)
    try:
        parts = reader.parse(data)
    except DiffcodecError:
        return
    assert reader.parse(writer.pack(parts)) == parts
    describe(data, parts)


def model_of(data: bytes) -> models.Model:
    """The model of the golden files whose identity is in the bytes, or the first."""
    known = list(map(models.load_model, MODELS))
    return next((model for model in known if model.info.id in data), known[0])


def decode(data: bytes) -> None:
    """Every way to decode: they agree, of a damaged file in that it is one."""
    choice = zlib.crc32(data)
    timestep = (None, None, 0, 1, 3)[choice % 5]
    how = RECONSTRUCTIONS[choice // 5 % 4]
    partial = choice // 20 % 2 == 1
    model = model_of(data)
    recovered = images = None
    with suppress(DiffcodecError):
        recovered = recovery.recover(data, model, limits=LIMITS)
    with suppress(DiffcodecError):
        stream = io.BytesIO(data)
        images = dict(decoding.iter_decode(stream, model, reconstruct=how, limits=LIMITS))
    try:
        found, image = decoding.decode_finest(
            *(data, timestep, model),
            allow_partial=partial,
            reconstruct=how,
            limits=LIMITS,
        )
    except DiffcodecError:
        assert images is None or timestep is not None
        return
    if images is None:
        assert partial or timestep
    elif found in images:
        assert images[found].tobytes() == image.tobytes()
    if recovered and not recovered.damage and found == 0:
        assert recovered.image.tobytes() == image.tobytes()


def load(data: bytes) -> None:
    """A model file; of what loads, that its files decode."""
    arithmetic = ("integer", "integer", "float")[zlib.crc32(data) % 3]
    with tempfile.NamedTemporaryFile(dir=FOLDER, suffix=".safetensors") as file:
        file.write(data)
        file.flush()
        try:
            model = models._load.__wrapped__(Path(file.name), (0, 0), arithmetic)
            coded = encoding.encode(PICTURE, model, next(iter(model.plans), "default"))
        except DiffcodecError:
            return
    assert decoding.decode(coded, model=model).tobytes() == PICTURE.tobytes()


def read(data: bytes) -> None:
    """An archive: its index, the first images, one of them by its name."""
    with tempfile.NamedTemporaryFile(dir=FOLDER, suffix=".dfca") as file:
        file.write(data)
        file.flush()
        options: dict[str, Any] = {"model": model_of(data), "limits": LIMITS}
        with suppress(DiffcodecError), open_archive(file.name, **options) as found:
            names = [entry.name for entry in islice(found.entries(), 100)]
            for which in (*range(min(len(names), 4)), *names[:1]):
                with suppress(DiffcodecError):
                    found[which].tobytes()


# --- what they begin with, and how that is changed ------------------------------------------------


def file_seeds() -> list[bytes]:
    """Small files of every kind, but of those that take seconds."""
    paths = sorted(GOLDEN.glob("*.dfc"))
    return [path.read_bytes() for path in paths if "phased-small-tiles" not in path.name]


def model_seeds() -> list[bytes]:
    """The models of the golden files, but the one in phases, which is larger than inputs are."""
    return [path.read_bytes() for path in MODELS if path != PHASED_MODEL]


def archive_seeds() -> list[bytes]:
    """Small archives of two groups, an image that is a file of its own, names and labels."""
    return [_archive(model) for model in MODELS]


def _archive(model: Path) -> bytes:
    grey = PICTURE.convert("L")
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        path = Path(folder, "x.dfca")
        fitted = {"adapt": model == PHASED_MODEL, "classes": model == CLASS_MODEL}
        with (
            mock.patch("diffcodec.archive.coding.fallback_tile", lambda *_: NO_OTHER_TILE),
            open_archive(path, "x", model=model, plan="fast", group=2, **fitted) as archive,
        ):
            for k, image in enumerate([PICTURE, grey, PICTURE, grey, PICTURE.convert("P")]):
                label = k % 3 if fitted["classes"] else {"class": k}
                archive.append(image, f"{k}.png" if k % 2 else None, label)
        return path.read_bytes()


def mutated_archive(data: bytes, rng: random.Random, mutate: Mutate | None = None) -> bytes:
    """A mutation of an archive: of its bytes, or a group, page or root that is appended."""
    mutate = mutate or (lambda part: edited(part, rng))
    kind = rng.randrange(6)
    try:
        source = InMemory(data)
        root = unpacked(find_root(source)[1])
        page = unpacked(record_content(data, root["pages"][0]))
        if kind == 0:
            return mutate(data)
        if kind == 1:
            group = rng.choice(page["groups"])
            data, group[:2] = appended(data, GROUP, mutate(record_content(data, group[:2])))
        elif kind < 4:
            page = other_json(page, rng, mutate)
        if kind < 4:
            data, root["pages"][0] = appended(data, PAGE, packed(page))
        else:
            root = other_json(root, rng, mutate)
        start = len(data)
        return appended(data, ROOT, packed(root))[0] + tail(start)
    except (DiffcodecError, LookupError, TypeError, ValueError, RecursionError, zlib.error):
        return mutate(data)


class InMemory(NamedTuple):
    """Bytes as archives are read from."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, size: int) -> bytes:
        return self.data[offset : offset + size]


def record_content(data: bytes, place: Sequence[int]) -> bytes:
    """Of a record at an offset, of a size."""
    offset, size = place
    return data[offset : offset + size][HEAD_BYTES:-CRC_BYTES]


def appended(data: bytes, kind: bytes, content: bytes) -> tuple[bytes, list[int]]:
    """The archive with a record more, and that one's place."""
    new = record(kind, len(data), content)
    return data + new, [len(data), len(new)]


def unpacked(content: bytes) -> Any:
    return json.loads(zlib.decompress(content))


def packed(value: object) -> bytes:
    return zlib.compress(json.dumps(value).encode())


def mutated_model(data: bytes, rng: random.Random, mutate: Mutate | None = None) -> bytes:
    """A mutation of a model file: of its bytes, its description, a tensor's or their place."""
    mutate = mutate or (lambda part: edited(part, rng))
    size = int.from_bytes(data[:8], "little")
    kind = rng.randrange(8)
    try:
        header = json.loads(data[8 : 8 + size]) if size < len(data) else None
    except (ValueError, RecursionError):
        header = None
    if kind == 0 or not isinstance(header, dict):
        return mutate(data)
    tensors = data[8 + size :]
    if kind == 1:
        described = mutate(data[8 : 8 + size])
    elif kind < 4:
        described = data[8 : 8 + size]
        place = rng.randrange(len(tensors) + 1) // 4 * 4
        chosen = tensors[place : place + rng.choice((4, 64))]
        new = struct.pack("<I", rng.choice(WORDS)) if rng.randrange(2) else mutate(chosen)
        new = new[: len(chosen)].ljust(len(chosen), b"\0")
        tensors = tensors[:place] + new + tensors[place + len(chosen) :]
    else:
        described = json.dumps(other_json(header, rng, mutate)).encode()
    return len(described).to_bytes(8, "little") + described + tensors


def other_json(value: object, rng: random.Random, mutate: Mutate) -> object:
    """With one value replaced, also within strings that hold JSON themselves."""
    if rng.randrange(16) == 0:
        return rng.choice(VALUES)
    if isinstance(value, dict) and value:
        return other_entries(value, rng, mutate)
    if isinstance(value, list) and value:
        index = rng.randrange(len(value))
        other = other_json(value[index], rng, mutate)
        new = rng.choice(([], [value[index]] * 2, [other], [other], [other]))
        return [*value[:index], *new, *value[index + 1 :]]
    return other_scalar(value, rng, mutate)


def other_entries(value: dict[str, object], rng: random.Random, mutate: Mutate) -> object:
    key = rng.choice(list(value))
    kind = rng.randrange(12)
    if kind == 0:
        return {name: v for name, v in value.items() if name != key}
    if kind == 1:
        return value | {text(mutate(key.encode())): value[key]}
    return value | {key: other_json(value[key], rng, mutate)}


def other_scalar(value: object, rng: random.Random, mutate: Mutate) -> object:
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            if value[:1] in ("{", "["):
                return json.dumps(other_json(json.loads(value), rng, mutate))
        return text(mutate(value.encode(errors="replace")))
    if isinstance(value, float):
        return value * rng.choice((0.0, 0.5, 2.0, -1.0, 1e300, 1e-300))
    return other_number(value, rng) if isinstance(value, int) else rng.choice(VALUES)


def text(data: bytes) -> str:
    return data.decode("latin1")


# name: the target, its seeds, its mutations
TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]], Callable[..., bytes]]]
TARGETS = {
    "parse": (parse, file_seeds, mutated),
    "decode": (decode, file_seeds, mutated),
    "model": (load, model_seeds, mutated_model),
    "archive": (read, archive_seeds, mutated_archive),
}
