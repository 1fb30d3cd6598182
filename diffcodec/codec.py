"""Images to files and back: each tile by the chain or a fallback coder, whichever is smaller."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffcodec.chain import Array, EncodedTile
from diffcodec.container import (
    CHAIN_CODERS,
    MOST_DRAW,
    Container,
    FileReader,
    Tile,
    pack,
    parse,
    tile_grid,
)
from diffcodec.descent import RECONSTRUCTIONS
from diffcodec.errors import UnsupportedError
from diffcodec.fallback import decode_fallback, encode_fallback
from diffcodec.images import apply_metadata, as_image, get_metadata, pixel_crc
from diffcodec.layered import Target, decode_layers, encode_layers, iter_layers
from diffcodec.limits import DEFAULT_LIMITS, Limits
from diffcodec.model_file import DEFAULT_MODEL
from diffcodec.models import Model, load_model
from diffcodec.tiles import (
    Job,
    Part,
    chain_parts,
    check_memory,
    check_pixels,
    coded_channels,
    crop,
    decode_job,
    decoding,
    encode_job,
    expected_bytes,
    find_model,
    integers,
    make_chain,
    paste,
    progress_bar,
    run,
)

ImageLike = Image.Image | NDArray[Any]

EFFORTS = CHAIN_CODERS  # "fast", "default", "best"
MARKS_FROM_PIXELS = 1 << 16  # smaller images carry no step marks, to save their bytes
NO_MODEL = bytes(4)


def encode(
    image: ImageLike,
    model: str | Model = DEFAULT_MODEL,
    effort: str = "default",
    progress: bool = False,
    *,
    timestep: int | None = None,
    bpp: float | None = None,
    psnr: float | None = None,
    progressive: bool = False,
    previews: Sequence[int] | None = None,
    draws: int = 1,
    limits: Limits = DEFAULT_LIMITS,
) -> bytes:
    """Code an image: without loss, or down to a timestep, or both in one file.

    A timestep, a rate or a quality makes a lossy file, of which every beginning decodes to a
    coarser image. ``progressive`` makes such a file that goes on to the exact image.

    Args:
        image: PIL image, or array: uint8 [h, w], [h, w, 2..4], uint16 [h, w] or bool [h, w].
        model: a shipped model's name, a path or a loaded model. One that is loaded as "float" makes
            files for research: they may not decode on another machine.
        effort: "fast", "default" or "best": how many network evaluations per tile.
        progress: show a bar on a terminal when it takes over two seconds.
        timestep: stop at z_t. With ``progressive`` this and the next two say where previews end.
        bpp: stop at the last timestep of no more bits per pixel, the whole file counted.
        psnr: stop at the first timestep of at least so many dB.
        progressive: previews first, then the exact image.
        previews: the timesteps that the file can be cut at, instead of about every 1.5 dB.
        draws: code each tile without loss so many times, with other shared randomness each, and
            keep the smallest. It takes so many times as long, and decoding no longer. For tiny
            images: 4 draws gain half a percent of 32 x 32 pixels, and of more the less.
        limits: the sizes to accept; a larger image takes larger limits to decode, too.

    Returns:
        The file's bytes; :func:`decode` gives the image back; without loss the pixels, mode
        and metadata exactly.

    Raises:
        UnsupportedError: for a kind of image that has no exact coding, or no chain where previews
            are wanted; for a timestep, rate or quality that cannot be had.
        LimitError: for an image that is over a limit.
        ModelMismatchError: if there is no such model, or its numbers overflow.
    """
    target = Target(timestep, bpp, psnr, progressive, previews)
    if target == Target():
        return encode_many([image], model, effort, progress, draws=draws, limits=limits)[0]
    if draws != 1:
        raise UnsupportedError(
            f"{draws} draws and previews: only files without loss and previews "
            "are coded by several draws"
        )
    used = _load(model, effort)
    source = as_image(image, limits)
    limits.check_memory(expected_bytes(*source.size, uses_model=True, layered=True))
    return encode_layers(source, used, effort, target, progress)


def encode_many(
    images: Sequence[ImageLike],
    model: str | Model = DEFAULT_MODEL,
    effort: str = "default",
    progress: bool = False,
    *,
    draws: int = 1,
    limits: Limits = DEFAULT_LIMITS,
) -> list[bytes]:
    """Code several images; small ones share the network's batches. See :func:`encode`.

    Guarantee: the bytes of a file do not depend on the images coded beside it.
    """
    if not 1 <= draws <= MOST_DRAW + 1:
        raise UnsupportedError(f"{draws} draws: expected 1 to {MOST_DRAW + 1}")
    model = _load(model, effort)
    sources = [as_image(image, limits) for image in images]
    pixels = sum(source.width * source.height for source in sources)
    limits.check_memory(expected_bytes(pixels, 1, uses_model=True, layered=False))
    jobs = [
        (source, Part(effort, index, box, draw))
        for source in sources
        if coded_channels(source.mode, model.color)
        for index, box in enumerate(tile_grid(source.width, source.height))
        for draw in range(draws)
    ]
    chains = (_encode_job(model, *job) for job in jobs)
    parts = [part for _, part in jobs]
    with progress_bar(_evaluations(parts, model), progress) as bar:
        coded = _smallest(run(chains, parts, model, bar), draws)
        return [_assemble(source, model, effort, coded) for source in sources]


def _smallest(coded: Iterator[EncodedTile | None], draws: int) -> Iterator[EncodedTile | None]:
    """Of the draws of each tile, which come one after another."""
    while group := list(islice(coded, draws)):
        yield min(filter(None, group), key=lambda tile: tile.size, default=None)


def _load(model: str | Model, effort: str) -> Model:
    if effort not in EFFORTS:
        raise UnsupportedError(f"effort {effort!r}: expected one of {', '.join(EFFORTS)}")
    model = load_model(model) if isinstance(model, str) else model
    if effort not in model.plans:
        raise UnsupportedError(
            f"model {model.info.name} has no plan {effort!r}: expected one of "
            f"{', '.join(model.plans)}"
        )
    return model


def _evaluations(parts: Sequence[Part], model: Model) -> int:
    """Pixels through the network."""
    return sum(len(model.plans[part.plan].levels) * part.pixels for part in parts)


def _encode_job(model: Model, source: Image.Image, part: Part) -> Job[EncodedTile | None]:
    """One tile through the chain, or None where the chain has no code for it."""
    x = integers(source, part.box, model.color).astype(np.float64)
    return (yield from encode_job(model, make_chain(model, source.mode, part), x))


def _assemble(
    source: Image.Image, model: Model, effort: str, coded: Iterator[EncodedTile | None]
) -> bytes:
    """The smaller of two files: tile by tile the best coder, or one fallback for the whole."""
    metadata, checksum = get_metadata(source), pixel_crc(source)
    size = source.size

    def container(tiles: Sequence[Tile], whole: bool) -> Container:
        uses_model = any(tile.coder in CHAIN_CODERS for tile in tiles)
        model_id = model.info.id if uses_model else NO_MODEL
        return Container(
            *(source.mode, *size, model_id, checksum, whole, metadata, tuple(tiles)),
            float_arithmetic=uses_model and model.arithmetic == "float",
        )

    whole = Tile(*encode_fallback(source))
    candidates = [pack(container([whole], whole=True))]
    if coded_channels(source.mode, model.color):
        boxes = tile_grid(*size)
        marked = size[0] * size[1] >= MARKS_FROM_PIXELS
        tiles = []
        for box, chain in zip(boxes, coded, strict=False):
            tile = whole if len(boxes) == 1 else Tile(*encode_fallback(crop(source, box)))
            if chain is not None and chain.size < len(tile.payload):
                marks = chain.marks if marked else ()
                payload = chain.words.astype("<u4").tobytes()
                how = (chain.preview, chain.preview_payload, chain.draw)
                tile = Tile(effort, payload, chain.seed_words, marks, *how)
            tiles.append(tile)
        candidates.append(pack(container(tiles, whole=False)))
    return min(candidates, key=len)


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
        with progress_bar(_evaluations(parts, used), progress) as bar:
            for part, x in zip(parts, run(jobs, parts, used, bar), strict=True):
                paste(image, part.box, x, used.color)
    for box, tile in zip(container.boxes(), container.tiles, strict=True):
        if tile.coder not in CHAIN_CODERS and not container.whole:
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
    jobs = (_encode_job(used, image, part) for part in parts)
    for part, again in zip(parts, run(jobs, parts, used, progress_bar(0, False)), strict=True):
        if again is not None:
            tiles[part.index] = replace(tiles[part.index], marks=again.marks)
    return replace(container, tiles=tuple(tiles))
