"""Sizes that are refused before anything is spent on them."""

import io
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
from PIL import Image

from diffcodec import Limits, decode, encode, encode_many, iter_decode, load_model, recover
from diffcodec.codec.estimates import expected_bytes
from diffcodec.container.parts import Container, Tile
from diffcodec.container.reader import parse
from diffcodec.container.writer import pack
from diffcodec.errors import CorruptError, LimitError

MIB = 1 << 20
HEADER = bytes.fromhex("89444643 01")
NO_MODEL = bytes(4)
SIDE = b"\x80\x80\x80\x80\x08"  # 2^31
MILLION = b"\xc0\x84\x3d"

CLAIMS = {  # of 64 bytes
    "pixels": HEADER + b"\x05" + SIDE + SIDE + NO_MODEL,
    "side": HEADER + b"\x05" + SIDE + b"\x01" + NO_MODEL,
    "one tile": HEADER + b"\x15" + SIDE + SIDE + NO_MODEL,
    "tiles": HEADER + b"\x05" + b"\x81\x80\x01" + b"\xff\x7f" + NO_MODEL,
    "a timestep": HEADER + b"\x0d\x09\x09" + NO_MODEL + b"\x11\x02" + MILLION,
    "timesteps": HEADER + b"\x0d\x09\x09" + NO_MODEL + b"\x11" + MILLION,
    "metadata": HEADER + b"\x25\x09\x09" + NO_MODEL + b"\x01\x03icc" + SIDE,
}
READERS: dict[str, Callable[[bytes, Limits], object]] = {
    "parse": parse,
    "decode": lambda data, limits: decode(data, limits=limits),
    "iter_decode": lambda data, limits: list(iter_decode(io.BytesIO(data), limits=limits)),
    "recover": lambda data, limits: recover(data, limits=limits),
}


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_bomb_costs_nothing(read: Callable[[bytes, Limits], object], claim: bytes) -> None:
    limits = Limits(tiles=1000)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(LimitError, match="raise the limit"):
        read(claim.ljust(64, b"\x01"), limits)
    seconds = time.process_time() - start
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 0.05
    assert peak < MIB


def test_every_limit_has_a_check_and_a_message() -> None:
    checks = {
        "pixels": lambda limits: limits.check_image(3, 4),
        "side": lambda limits: limits.check_image(1, 12),
        "tiles": lambda limits: limits.check_tiles(12),
        "timesteps": lambda limits: limits.check_timesteps(12),
        "metadata_bytes": lambda limits: limits.check_metadata(12),
        "memory_bytes": lambda limits: limits.check_memory(12),
    }
    assert set(checks) == {field.name for field in fields(Limits)}
    for name, check in checks.items():
        check(replace(Limits(), **{name: 12}))
        with pytest.raises(LimitError, match=f"raise the limit {name}"):
            check(replace(Limits(), **{name: 11}))


@pytest.fixture(scope="module")
def data(tiny: Path) -> bytes:
    return encode(Image.new("RGB", (60, 50), (1, 2, 3)), load_model(tiny), "fast")


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_limits_of_files_are_the_users(
    read: Callable[[bytes, Limits], object], data: bytes
) -> None:
    read(data, Limits(pixels=3000, side=60))
    for limits in (Limits(pixels=2999), Limits(side=59), Limits(tiles=0)):
        with pytest.raises(LimitError):
            read(data, limits)
    if read is not parse:
        needed = expected_bytes(60, 50, uses_model=False, layered=False)
        read(data, Limits(memory_bytes=needed))
        with pytest.raises(LimitError, match="MiB of memory"):
            read(data, Limits(memory_bytes=needed - 1))


def test_limits_of_images_that_are_encoded(tiny: Path) -> None:
    image, model = Image.new("L", (60, 50)), load_model(tiny)
    exact = Limits(pixels=3000, side=60)
    assert encode(image, model, limits=exact) == encode(image, model)
    for limits in (Limits(pixels=2999), Limits(side=59), Limits(memory_bytes=MIB)):
        for options in ({}, {"timestep": 3}):
            with pytest.raises(LimitError):
                encode(image, model, "fast", limits=limits, **options)
        with pytest.raises(LimitError):
            list(encode_many([image], model, limits=limits))


def test_metadata_do_not_unfold_beyond_the_limit(tiny: Path) -> None:
    image = Image.new("L", (5, 5))
    image.info["icc_profile"] = bytes(10**6)  # a thousand times larger than compressed
    data = encode(image, load_model(tiny))
    assert len(data) < 2000
    assert decode(data).info["icc_profile"] == bytes(10**6)
    for read in (decode, recover):
        with pytest.raises(LimitError, match="the limit is 999999"):
            read(data, limits=Limits(metadata_bytes=10**6 - 1))


def test_a_large_image_of_nothing_is_refused_by_its_payload() -> None:
    """Within the limits, and with right checksums: still no memory is taken for its pixels."""
    container = Container("RGB", 2**14, 2**14, bytes(4), True, {}, ())
    for coder, payload in (("webp", b""), ("webp", bytes(30)), ("png", b""), ("raw", bytes(9))):
        data = pack(replace(container, tiles=(Tile(coder, payload),)))
        tracemalloc.start()
        with pytest.raises(CorruptError):
            decode(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MIB


def test_estimates_grow_with_the_image() -> None:
    sizes = [expected_bytes(side, side, True, False) for side in (1, 512, 4096)]
    assert sizes == sorted(sizes)
    assert expected_bytes(512, 512, True, True) > expected_bytes(512, 512, True, False)
    assert expected_bytes(512, 512, False, False) < expected_bytes(512, 512, True, False)
    assert expected_bytes(2**14, 2**14, True, False) <= Limits().memory_bytes


MEASURED = """
import resource, sys
import numpy as np
from PIL import Image
from unittest import mock
from diffcodec import decode, encode, load_model
from diffcodec.system.memory import keep_freed_memory

if sys.argv[4] == "program":
    keep_freed_memory()
side, timestep = int(sys.argv[1]), int(sys.argv[2])
model = load_model(sys.argv[3])
noise = np.random.default_rng(0).integers(100, 140, (side, side, 3)).astype(np.uint8)
large = lambda image, *_: ("raw", bytes(1 << 24))
with (
    mock.patch("diffcodec.codec.tiles.encode_fallback", large),
    mock.patch("diffcodec.codec.descents.KEPT_BYTES", 0),  # as of a large image
):
    data = encode(Image.fromarray(noise), model, "fast", timestep=timestep or None)
    decode(data, model=model)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
@pytest.mark.parametrize("caller", ["application", "program"])
@pytest.mark.parametrize("timestep", [0, 3], ids=["exact", "layers"])
def test_no_image_takes_more_than_expected(tiny: Path, timestep: int, caller: str) -> None:
    """Coding and decoding in a process of its own, whatever else that takes counted too."""

    def peak(side: int) -> int:
        command = [sys.executable, "-c", MEASURED, str(side), str(timestep), str(tiny), caller]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return 1024 * int(found)

    small, large = 512, 1280
    found = peak(small), peak(large)
    per_pixel = (found[1] - found[0]) / (large**2 - small**2)
    print(f"{found[0] / MIB:.0f} MiB at {small}^2, {per_pixel:.1f} bytes for each further pixel")
    for side, bytes_found in zip((small, large), found, strict=True):
        assert bytes_found < expected_bytes(side, side, True, timestep > 0)
    if caller == "program":  # elsewhere what glibc cannot use again is a part of it, now and then
        assert per_pixel < expected_bytes(1, 1, False, timestep > 0)
