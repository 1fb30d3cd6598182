"""What a file without layers shows at each of its timesteps, and where in it they end."""

from dataclasses import replace

from PIL import Image

from diffcodec.arrays import Array
from diffcodec.codec.batches import progress_bar, run
from diffcodec.codec.decoding import decode_tiles, last_timestep
from diffcodec.codec.encoding import encode_part
from diffcodec.codec.estimates import check_memory
from diffcodec.codec.jobs import Job, Part, chain_parts, decoding
from diffcodec.codec.opening import open_file
from diffcodec.codec.planes import coded_channels, color_set, image_of
from diffcodec.codec.seams import Strips, paste_seam
from diffcodec.codec.tiles import add_to_chains
from diffcodec.coding.chain import Posterior, Request
from diffcodec.coding.top_down import ensemble_mean
from diffcodec.container.parts import Container
from diffcodec.container.reader import parse
from diffcodec.images.outliers import Found
from diffcodec.limits import DEFAULT_LIMITS, Limits
from diffcodec.models.model import Model


def decode_timesteps(
    data: bytes,
    model: str | Model | None = None,
    progress: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    device: str | None = None,
) -> list[tuple[int, Image.Image]]:
    """What a file without layers shows at all its timesteps, the coarsest first, 0 at last.

    Guarantee: the same as :func:`decode` of each, but decoded only once.

    Args:
        data: a file's bytes.
        model: the model it was encoded with, if it is not a shipped one.
        progress: show a bar on a terminal when it takes over two seconds.
        limits: the sizes to accept; all pictures are in memory at a time.
        device: where the model computes; see :func:`diffcodec.load_model`.

    Raises:
        DiffcodecError: if it does not decode; see :func:`decode`.
    """
    file = open_file(data, model, progress, limits, device)
    container, used = file.container, file.model
    timesteps = last_timestep(chain_parts(container), used)
    check_memory(container, limits, 6 * timesteps)  # each also by its tiles, and z at their borders
    seen: dict[int, list[tuple[Part, Image.Image]]] = {}
    strips = Strips(dict(enumerate(container.boxes())))

    def watch(part: Part, job: Job[Array | None]) -> Job[Array | None]:
        assert used is not None
        coded = coded_channels(container.mode, used.color)
        with decoding(used, part.index):
            request = next(job)
            while True:
                answer = yield request
                if isinstance(request, Request):  # of a whole z_t
                    strips.add(part, request.timestep, request.z)
                    x = yield from _seen(answer, request, used, part, coded)
                    shown = image_of(x, container.mode, used.color)
                    seen.setdefault(request.timestep, []).append((part, shown))
                try:
                    request = job.send(answer)
                except StopIteration as stop:
                    exact: Array | None = stop.value
                    return exact

    exact = decode_tiles(file, watch=watch)
    images = [(0, exact)]
    for timestep in sorted(seen):
        image = exact.copy()
        for part, shown in seen[timestep]:
            image.paste(shown, (part.box.left, part.box.top))
        images.insert(0, (timestep, image))
    if used is not None:
        of_timestep = dict(images)
        for timestep, seam, p in strips.seen(used, progress_bar(0, False), ensemble=True):
            paste_seam(of_timestep[timestep], seam, p.mean, used.color)
    return images


def _seen(answer: Posterior, asked: Request, model: Model, part: Part, coded: int) -> Job[Array]:
    """What a tile shows where it was asked for: channels that are known are zero."""
    mean = answer.mean.copy()
    mean[coded:] = 0
    x: Array = yield from ensemble_mean(mean, asked, model.plans[part.plan], model.reflection)
    x[coded:] = 0
    return x


def measure_marks(
    data: bytes,
    model: str | Model | None = None,
    limits: Limits = DEFAULT_LIMITS,
    device: str | None = None,
) -> Container:
    """The parts of a file, with step marks also where the file has none: by coding it again.

    Args:
        data: a file's bytes.
        model: the model it was encoded with, if it is not a shipped one.
        limits: the sizes to accept.
        device: where the model computes; see :func:`diffcodec.load_model`.

    Raises:
        DiffcodecError: if it does not decode; see :func:`decode`.
    """
    container = parse(data, limits)
    if container.layers or any(tile.marks for tile in container.tiles):
        return container
    if not (parts := chain_parts(container)):
        return container
    file = open_file(data, model, False, limits, device)
    source, used = decode_tiles(file), file.model
    assert used is not None
    tiles, image = list(container.tiles), source.copy()
    add_to_chains(image, zip(container.boxes(), tiles, strict=True), undo=True)
    found = Found(image, color_set(container))
    jobs = (encode_part(used, source, found, part) for part in parts)
    for part, again in zip(parts, run(jobs, parts, used, progress_bar(0, False)), strict=True):
        if again is not None:
            tiles[part.index] = replace(tiles[part.index], marks=again.marks)
    return replace(container, tiles=tuple(tiles))
