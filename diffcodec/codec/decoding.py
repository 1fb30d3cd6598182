"""Files to images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import BinaryIO

import numpy as np
from PIL import Image

from diffcodec.arrays import Array
from diffcodec.codec.batches import progress_bar, run
from diffcodec.codec.encoding import count_evaluations, encode_part
from diffcodec.codec.estimates import check_memory
from diffcodec.codec.jobs import Job, Part, chain_parts, decode_job, decoding, make_chain
from diffcodec.codec.layered import decode_layers, iter_layers
from diffcodec.codec.lookup import find_model
from diffcodec.codec.planes import check_pixels, coded_channels, paste
from diffcodec.coding.reconstructions import RECONSTRUCTIONS
from diffcodec.container.parts import Container
from diffcodec.container.reader import FileReader, parse
from diffcodec.errors import UnsupportedError
from diffcodec.images.fallback import decode_fallback
from diffcodec.images.metadata import apply_metadata
from diffcodec.limits import DEFAULT_LIMITS, Limits
from diffcodec.models.model import Model


def decode(
    data: bytes,
    timestep: int | None = None,
    model: str | Model | None = None,
    progress: bool = False,
    *,
    allow_partial: bool = False,
    reconstruct: str = "mean",
    seed: int = 0,
    limits: Limits = DEFAULT_LIMITS,
) -> Image.Image:
    """The image in a file.

    Args:
        data: a file's bytes.
        timestep: 0 for the exact image; t for the posterior mean of x given z_t, coarser the
            larger t. Tiles that took a fallback coder are exact at every timestep. By default the
            finest that the file has. Of a file with previews only what it takes is read.
        model: the model it was encoded with, if it is not a shipped one.
        progress: show a bar on a terminal when it takes over two seconds.
        allow_partial: of a file with previews that is cut or damaged show the last that is whole.
        reconstruct: what to show at a timestep above 0: "mean", the posterior mean; "flow", its
            continuation by the probability-flow ODE (DDIM); "sample", by ancestral sampling.
        seed: of the sample.
        limits: the sizes to accept.

    Returns:
        The image in its mode, with its metadata.

    Raises:
        FormatError: if the data is not a whole, undamaged file (TruncatedError, CorruptError).
        UnsupportedError: for a newer version, or a timestep that the file does not have.
        ModelMismatchError: if the file's model is not at hand.
        LimitError: if it is over a limit.
    """
    return decode_finest(
        data,
        timestep,
        model,
        progress,
        allow_partial=allow_partial,
        reconstruct=reconstruct,
        seed=seed,
        limits=limits,
    )[1]


def decode_finest(
    data: bytes | BinaryIO,
    timestep: int | None = None,
    model: str | Model | None = None,
    progress: bool = False,
    *,
    allow_partial: bool = False,
    reconstruct: str = "mean",
    seed: int = 0,
    limits: Limits = DEFAULT_LIMITS,
) -> tuple[int, Image.Image]:
    """As :func:`decode`, also from a stream, and with the timestep that it came to."""
    if reconstruct not in RECONSTRUCTIONS:
        raise UnsupportedError(
            f"reconstruction {reconstruct!r}: expected one of {', '.join(RECONSTRUCTIONS)}"
        )
    reader = FileReader(data, limits)
    if reader.container.layers is None:
        reader.read_tiles()
        check_memory(reader.container, limits)
        image = _decode_tiles(reader, timestep or 0, model, progress, reconstruct, seed)
        return timestep or 0, image
    reader.read_layer()
    check_memory(reader.container, limits)
    used = find_model(reader.container, model)
    return decode_layers(reader, used, timestep, progress, allow_partial, reconstruct, seed)


def iter_decode(
    stream: BinaryIO,
    model: str | Model | None = None,
    *,
    reconstruct: str = "mean",
    seed: int = 0,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[tuple[int, Image.Image]]:
    """The images in a stream as soon as their bytes are there, each with its timestep.

    Of a file with previews one at each layer, at last the exact one if the file has it, with the
    timestep 0; of other files that alone.

    Args:
        stream: binary; a pipe will do.
        model, reconstruct, seed, limits: see :func:`decode`.

    Raises:
        TruncatedError: if the stream ends early, after all previews that came whole; and what
            :func:`decode` raises.
    """
    reader = FileReader(stream, limits)
    if reader.container.layers is None:
        reader.read_tiles()
        check_memory(reader.container, limits)
        yield 0, _decode_tiles(reader, 0, model, False, reconstruct, seed)
    else:
        reader.read_layer()
        check_memory(reader.container, limits)
        used = find_model(reader.container, model)
        yield from iter_layers(reader, used, reconstruct, seed)


def _last_timestep(parts: Sequence[Part], used: Model | None) -> int:
    """The coarsest of these tiles, 0 without a chain."""
    return max((len(used.plans[part.plan].levels) for part in parts), default=0) if used else 0


def _decode_tiles(
    reader: FileReader,
    timestep: int,
    model: str | Model | None,
    progress: bool,
    reconstruct: str,
    seed: int,
    watch: Callable[[Part, Job[Array]], Job[Array]] = lambda part, job: job,
) -> Image.Image:
    """The image of a file without layers, all of which has been read; ``watch`` wraps its jobs."""
    container = reader.container
    used = find_model(container, model) if container.uses_model else None
    parts = chain_parts(container)
    last = _last_timestep(parts, used)
    if not 0 <= timestep <= last:
        raise UnsupportedError(
            f"timestep {timestep}: this file has timesteps 0 (exact) to {last} (coarsest)"
        )
    size = (container.width, container.height)
    if container.whole and used is None:
        (tile,) = container.tiles
        image = decode_fallback(tile.coder, tile.payload, container.mode, size)
    else:
        image = Image.new(container.mode, size)
    apply_metadata(image, container.metadata, reader.limits)  # pasting needs the palette in place
    if used is not None:
        jobs = (
            watch(
                part,
                decode_job(
                    used,
                    make_chain(used, container.mode, part),
                    container.tiles[part.index],
                    timestep,
                    reconstruct,
                    seed,
                ),
            )
            for part in parts
        )
        with progress_bar(count_evaluations(parts, used), progress) as bar:
            for part, x in zip(parts, run(jobs, parts, used, bar), strict=True):
                paste(image, part.box, x, used.color)
    for box, tile in zip(container.boxes(), container.tiles, strict=True):
        if not tile.plan and not container.whole:
            size = (box.width, box.height)
            decoded = decode_fallback(tile.coder, tile.payload, container.mode, size)
            image.paste(decoded, (box.left, box.top))
    if timestep == 0:
        check_pixels(image, container)
    return image


def decode_timesteps(
    data: bytes,
    model: str | Model | None = None,
    progress: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> list[tuple[int, Image.Image]]:
    """What a file without layers shows at all its timesteps, the coarsest first, 0 at last.

    Guarantee: the same as :func:`decode` of each, but decoded only once.

    Args:
        data: a file's bytes.
        model: the model it was encoded with, if it is not a shipped one.
        progress: show a bar on a terminal when it takes over two seconds.
        limits: the sizes to accept; all pictures are in memory at a time.

    Raises:
        DiffcodecError: if it does not decode; see :func:`decode`.
    """
    reader = FileReader(data, limits)
    reader.read_tiles()
    container = reader.container
    used = find_model(container, model) if container.uses_model else None
    timesteps = _last_timestep(chain_parts(container), used)
    check_memory(container, limits, 2 * timesteps)  # each also by its tiles
    seen: dict[int, list[tuple[Part, Image.Image]]] = {}

    def watch(part: Part, job: Job[Array]) -> Job[Array]:
        assert used is not None
        coded = coded_channels(container.mode, used.color)
        with decoding(used, part.index):
            request = next(job)
            while True:
                answer = yield request
                shown = Image.new(container.mode, (part.box.width, part.box.height))
                x = np.zeros(answer.mean.shape)  # channels that are known are zero
                x[:coded] = answer.mean[:coded]
                paste(shown, part.box._replace(left=0, top=0), x, used.color)
                seen.setdefault(request.timestep, []).append((part, shown))
                try:
                    request = job.send(answer)
                except StopIteration as stop:
                    exact: Array = stop.value
                    return exact

    exact = _decode_tiles(reader, 0, used, progress, "mean", 0, watch)
    images = [(0, exact)]
    for timestep in sorted(seen):
        image = exact.copy()
        for part, shown in seen[timestep]:
            image.paste(shown, (part.box.left, part.box.top))
        images.insert(0, (timestep, image))
    return images


def measure_marks(
    data: bytes, model: str | Model | None = None, limits: Limits = DEFAULT_LIMITS
) -> Container:
    """The parts of a file, with step marks also where the file has none: by coding it again.

    Args:
        data: a file's bytes.
        model: the model it was encoded with, if it is not a shipped one.
        limits: the sizes to accept.

    Raises:
        DiffcodecError: if it does not decode; see :func:`decode`.
    """
    container = parse(data, limits)
    parts = chain_parts(container)
    if not parts or container.layers or any(tile.marks for tile in container.tiles):
        return container
    used = find_model(container, model)
    image = decode(data, model=used, limits=limits)
    tiles = list(container.tiles)
    jobs = (encode_part(used, image, part) for part in parts)
    for part, again in zip(parts, run(jobs, parts, used, progress_bar(0, False)), strict=True):
        if again is not None:
            tiles[part.index] = replace(tiles[part.index], marks=again.marks)
    return replace(container, tiles=tuple(tiles))
