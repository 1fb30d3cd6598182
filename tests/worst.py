"""Time and memory of the worst inputs, each read in a process of its own.

    python tests/worst.py              those that are made to cost much
    python tests/worst.py FOLDER...    the worst among the files of a fuzzer's corpus

Seconds are of the processor; MiB what the process grew by at most, with libraries and model loaded.
"""

import os
import pickle
import resource
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from damage import MODEL
from PIL import Image
from samples import raw_tile
from test_limits import CLAIMS

from diffcodec import recover
from diffcodec.codec import decoding
from diffcodec.container.parts import Container, Layers, Tile, tile_grid
from diffcodec.container.writer import pack
from diffcodec.errors import DiffcodecError
from diffcodec.models.model import load_model

SIDE = 1 << 14  # 2^28 pixels, the limit


def bombs() -> dict[str, bytes]:
    """Small files that claim much."""
    model = load_model(MODEL).info.id
    empty = Container("RGB", SIDE, SIDE, bytes(4), True, {}, ())
    count = len(tile_grid(SIDE, SIDE))
    profile = zlib.compress(bytes(1 << 26), 9)
    dot = replace(empty, width=1, height=1)
    chain, black = Tile("best", bytes([255]) * 4), raw_tile(Image.new("RGB", (1, 1)))
    grid = replace(empty, whole=False, model=model)
    layers = Layers("best", (8,), ((b"\xff" * 9,) * count,))
    long = replace(empty, mode="L", width=1 << 20, height=256, whole=False)
    return {
        **{f"claim of {name}": data.ljust(64, b"\1") for name, data in CLAIMS.items()},
        "2^28 pixels, an empty WebP": pack(replace(empty, tiles=(Tile("webp", b""),))),
        "2^28 pixels, no samples": pack(replace(empty, tiles=(Tile("raw", b""),))),
        "2^28 pixels in tiles without samples": pack(
            replace(empty, whole=False, tiles=(Tile("raw", b""),) * count)
        ),
        "2^28 pixels in chains of a word each": pack(replace(grid, tiles=(chain,) * count)),
        "2^28 pixels in a layer of 9 bytes a tile": pack(replace(grid, layers=layers)),
        "2^28 pixels in a row of tiles": pack(
            replace(long, tiles=(Tile("raw", b""),) * len(tile_grid(1 << 20, 256)))
        ),
        "a profile and EXIF of 64 MiB each, deflated": pack(
            replace(dot, metadata={"icc": profile, "exif": profile}, tiles=(black,))
        ),
        "a profile of a byte more": pack(
            replace(
                dot,
                metadata={"icc": zlib.compress(bytes((1 << 26) + 1), 9)},
                tiles=(black,),
            )
        ),
    }


READERS: dict[str, Callable[[bytes], object]] = {
    "decode": lambda data: decoding.decode(data, model=load_model(MODEL)),
    "recover": lambda data: recover(data, load_model(MODEL)),
}


def cost(read: Callable[[bytes], object], data: bytes) -> tuple[float, float, str]:
    """Seconds, MiB and the outcome, in a process of its own."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        before, start = peak_mib(), time.process_time()
        try:
            read(data)
            outcome = "decoded"
        except DiffcodecError as e:
            outcome = type(e).__name__
        result = (time.process_time() - start, peak_mib() - before, outcome)
        os.write(writer, pickle.dumps(result))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        written = pipe.read()
    os.waitpid(child, 0)
    seconds, mib, outcome = pickle.loads(written)
    return seconds, mib, outcome


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    torch.set_num_threads(1)
    for read in READERS.values():  # once, for what is loaded when it is first used
        read((MODEL.parent / "lossy.dfc").read_bytes())
    print(f"{'bytes':>8} {'seconds':>8} {'MiB':>6}  reader   outcome              input")
    rows = []
    inputs = bombs()
    if sys.argv[1:]:
        paths = sorted(path for folder in sys.argv[1:] for path in Path(folder).iterdir())
        inputs = {path.name: path.read_bytes() for path in paths}
    for name, data in inputs.items():
        for reader, read in READERS.items():
            seconds, mib, outcome = cost(read, data)
            row = f"{len(data):8} {seconds:8.3f} {mib:6.0f}  {reader:8} {outcome:20} {name}"
            rows.append((seconds, mib, row))
            if not sys.argv[1:]:
                print(row, flush=True)
    if sys.argv[1:]:
        print(max(rows)[2], max(rows, key=lambda row: row[1])[2], sep="\n")
        print(f"the slowest and the largest of {len(inputs)} inputs")


if __name__ == "__main__":
    main()
