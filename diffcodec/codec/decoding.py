"""Files to images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from os import PathLike

from PIL import Image

from diffcodec.arrays import Array
from diffcodec.codec.arguments import FileLike, opened
from diffcodec.codec.batches import count_evaluations, progress_bar, run
from diffcodec.codec.descents import Descents
from diffcodec.codec.jobs import EXACT, Job, Part, View, chain_parts
from diffcodec.codec.layered_decoding import decode_layers, iter_layers
from diffcodec.codec.opening import OpenFile, open_file
from diffcodec.codec.planes import color_set
from diffcodec.codec.tiles import add_to_chains, decode_fallback_tile, paste_chains, paste_fallbacks
from diffcodec.codec.windows import check_scale, reduced, scaled_timestep
from diffcodec.errors import UnsupportedError
from diffcodec.images.metadata import apply_metadata
from diffcodec.limits import DEFAULT_LIMITS, Limits
from diffcodec.models.model import Model
from diffcodec.values import flag, integer, optional_integer


def decode(
    data: FileLike,
    timestep: int | None = None,
    model: str | PathLike[str] | Model | None = None,
    progress: bool = False,
    *,
    allow_partial: bool = False,
    reconstruct: str = "ensemble",
    seed: int = 0,
    region: Sequence[int] | None = None,
    scale: int = 1,
    limits: Limits = DEFAULT_LIMITS,
    device: str | None = None,
) -> Image.Image:
    """The image in a file.

    Args:
        data: a file: its path, its bytes (also as bytearray, memoryview or mmap), a binary stream
            of them, or an address that fsspec opens (https://...).
        timestep: 0 for the exact image; t for what z_t shows, coarser the larger t. Tiles that
            took a fallback coder are exact at every timestep. By default the finest that the file
            has. Of a file with previews only what it takes is read.
        model: the model it was encoded with, if it is not a shipped one.
        progress: show a bar on a terminal when it takes over two seconds.
        allow_partial: of a file with previews that is cut show all that has come, even of the part
            in which it ends, which no checksum guards then; of one that is damaged the last preview
            that is whole.
        reconstruct: what to show at a timestep above 0: "ensemble", the mean of two posterior
            means; "mean", the first alone; "perceptual", sharper, by two further evaluations;
            "flow", by the probability-flow ODE (DDIM); "sample", by ancestral sampling.
        seed: of the sample, 0 to 2^24 - 1.
        region: left, top, width, height of a part: of a path, an address or a stream that can seek
            only the tiles that it touches are read, and only these are evaluated.
        scale: 2, 4 or 8: the image reduced by so much, from the timestep that suffices for that.
        limits: the sizes to accept.
        device: where the model computes; see :func:`diffcodec.load_model`.

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
        allow_partial=flag("allow_partial", allow_partial),
        reconstruct=reconstruct,
        seed=seed,
        region=region,
        scale=scale,
        limits=limits,
        device=device,
    )[1]


def decode_finest(
    data: FileLike,
    timestep: int | None = None,
    model: str | PathLike[str] | Model | None = None,
    progress: bool = False,
    *,
    allow_partial: bool = False,
    reconstruct: str = "ensemble",
    seed: int = 0,
    region: Sequence[int] | None = None,
    scale: int = 1,
    limits: Limits = DEFAULT_LIMITS,
    device: str | None = None,
) -> tuple[int, Image.Image]:
    """The same as :func:`decode`, with the timestep that it came to."""
    view = View(optional_integer("timestep", timestep) or 0, reconstruct, integer("seed", seed))
    check_scale(scale)
    with opened(data, in_parts=region is not None) as source:
        shows_preview = view.timestep > 0 or scale > 1
        file = open_file(
            source, model, progress, limits, device, region, shows_preview, allow_partial
        )
        if timestep is None:
            view = replace(view, timestep=finest(file, scale))
        found, image = show(file, view, allow_partial)
    return found, reduced(image, scale)


def show(file: OpenFile, view: View, allow_partial: bool = False) -> tuple[int, Image.Image]:
    """The image of an open file, and the timestep that it came to."""
    if file.container.layers is None:
        return view.timestep, decode_tiles(file, view)
    return decode_layers(file, view, allow_partial)


def finest(file: OpenFile, scale: int = 1) -> int:
    """The timestep to show of a file, if none is asked for."""
    layers, model = file.container.layers, file.model
    if model is None:
        return 0
    plans = {tile.plan for tile in file.container.tiles} | {layers.plan if layers else None}
    enough = min(scaled_timestep(model.plans[plan].levels, scale) for plan in plans if plan)
    return enough if layers is None else max(enough, layers.stops[-1])


def iter_decode(
    stream: FileLike,
    model: str | PathLike[str] | Model | None = None,
    *,
    reconstruct: str = "ensemble",
    seed: int = 0,
    limits: Limits = DEFAULT_LIMITS,
    device: str | None = None,
) -> Iterator[tuple[int, Image.Image]]:
    """The images in a stream as soon as their bytes are there, each with its timestep.

    Of a file with previews one at each layer, at last the exact one if the file has it, with the
    timestep 0; of other files that alone.

    Args:
        stream: binary; a pipe will do. Or what else :func:`decode` takes.
        model, reconstruct, seed, limits, device: see :func:`decode`.

    Raises:
        TruncatedError: if the stream ends early, after all previews that came whole; and what
            :func:`decode` raises.
    """
    view = View(0, reconstruct, integer("seed", seed))
    with opened(stream, in_parts=True) as source:
        file = open_file(source, model, False, limits, device)
        if file.container.layers is None:
            yield 0, decode_tiles(file, view)
        else:
            yield from iter_layers(file, view)


Watch = Callable[[Part, Job[Array | None]], Job[Array | None]]


def decode_tiles(
    file: OpenFile, view: View = EXACT, watch: Watch = lambda part, job: job
) -> Image.Image:
    """The image of a file without layers; ``watch`` wraps the jobs of its chains."""
    [image] = decode_together([file], view, watch, file.progress)
    return image


def decode_together(
    files: Sequence[OpenFile],
    view: View = EXACT,
    watch: Watch = lambda part, job: job,
    progress: bool = False,
) -> Iterator[Image.Image]:
    """The images of files without layers, whose chains go through one model side by side.

    Args:
        files: those that use a model all use the same.
        view: of each.
        watch: wraps the jobs of chains.
        progress: show a bar.
    """
    all_parts = [_parts(file, view) for file in files]
    model = next((file.model for file in files if file.model), None)
    if model is None:
        yield from (_finished(file, _blank(file), view) for file in files)
        return
    flat = [part for parts in all_parts for part in parts]
    with progress_bar(count_evaluations(flat, model), progress) as bar:
        landing = [
            Descents(
                model,
                file.container.mode,
                parts,
                bar,
                color_set(file.container),
                boxes=file.window.boxes,
            )
            for file, parts in zip(files, all_parts, strict=True)
        ]
        both = list(zip(files, landing, strict=True))
        jobs = (
            watch(part, tiles.land(part, file.container.tiles[part.index], view))
            for file, tiles in both
            for part in tiles.parts
        )
        decoded = run(jobs, flat, model, bar)
        for file, tiles in both:
            image, parts = _blank(file), tiles.parts
            paste_chains(image, parts, islice(decoded, len(parts)), model.color)
            if view.timestep:
                tiles.show_landed(image, view)
            yield _finished(file, image, view)


def _parts(file: OpenFile, view: View) -> list[Part]:
    """The tiles of a file that are chains, where its window has them.

    Raises:
        UnsupportedError: they have no such timestep.
    """
    boxes = file.window.boxes
    parts = [replace(part, box=boxes[part.index]) for part in chain_parts(file.container)]
    last = last_timestep(parts, file.model)
    if not 0 <= view.timestep <= last:
        raise UnsupportedError(
            f"timestep {view.timestep}: this file has timesteps 0 (exact) to {last} (coarsest)"
        )
    return parts


def _blank(file: OpenFile) -> Image.Image:
    """An image for the tiles of a file, or what is coded as a whole."""
    container, size = file.container, file.window.size
    if container.whole and file.model is None:
        (tile,) = container.tiles
        image = decode_fallback_tile(tile, container.mode, size)
    else:
        image = Image.new(container.mode, size)
    # Pasting needs the palette in place.
    apply_metadata(image, container.metadata, file.reader.limits)
    return image


def _finished(file: OpenFile, image: Image.Image, view: View) -> Image.Image:
    """The image of a file with what is no chain."""
    tiles_in_view = [(box, file.container.tiles[i]) for i, box in file.window.boxes.items()]
    if not file.container.whole:
        paste_fallbacks(image, tiles_in_view)
    if view.timestep == 0:
        add_to_chains(image, tiles_in_view)
    return file.window.cut(image)


def last_timestep(parts: Sequence[Part], model: Model | None) -> int:
    """The coarsest of these tiles, 0 without a chain."""
    return max((len(model.plans[part.plan].levels) for part in parts), default=0) if model else 0
