"""Images to files and back: each tile by the chain or a fallback coder, whichever is smaller."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from diffcodec.chain import (
    EncodedTile,
    OutOfRangeError,
    Posterior,
    Request,
    TileChain,
    decode_tile,
    encode_tile,
)
from diffcodec.color import from_domain, to_domain
from diffcodec.container import (
    CHAIN_CODERS,
    MAX_PIXELS,
    Box,
    Container,
    Tile,
    pack,
    parse,
    tile_grid,
)
from diffcodec.errors import CorruptError, LimitError, ModelMismatchError, UnsupportedError
from diffcodec.fallback import decode_fallback, encode_fallback
from diffcodec.images import apply_metadata, as_image, get_metadata, pixel_crc
from diffcodec.model_file import (
    DEFAULT_MODEL,
    ModelInfo,
    find_model_path,
    model_path,
    read_model_info,
)
from diffcodec.models import Model, is_posterior, load_model

Result = TypeVar("Result")
ImageLike = Image.Image | NDArray[Any]

EFFORTS = CHAIN_CODERS  # "fast", "default", "best"
BATCH_PIXELS = 1 << 18  # of the tiles that go through the network together
MARKS_FROM_PIXELS = 1 << 16  # smaller images carry no step marks, to save their bytes
NO_MODEL = bytes(4)


@dataclass(frozen=True)
class Part:
    """A tile that the chain codes: by which plan, its number in the image, and where it lies."""

    plan: str
    index: int
    box: Box

    @property
    def pixels(self) -> int:
        """Area of the tile."""
        return self.box.width * self.box.height


def encode(
    image: ImageLike,
    model: str | Model = DEFAULT_MODEL,
    effort: str = "default",
    progress: bool = False,
) -> bytes:
    """Code an image without loss.

    Args:
        image: PIL image, or array: uint8 [h, w], [h, w, 2..4], uint16 [h, w] or bool [h, w].
        model: a shipped model's name, a path or a loaded model. One that is loaded as "float" makes
            files for research: they may not decode on another machine.
        effort: "fast", "default" or "best": how many network evaluations per tile.
        progress: show a bar on a terminal when it takes over two seconds.

    Returns:
        The file's bytes; :func:`decode` gives the image back exactly, pixels, mode and metadata.

    Raises:
        UnsupportedError: for a kind of image that has no exact coding.
        LimitError: for an image of more than 2^28 pixels.
        ModelMismatchError: if there is no such model, or its numbers overflow.
    """
    return encode_many([image], model, effort, progress)[0]


def encode_many(
    images: Sequence[ImageLike],
    model: str | Model = DEFAULT_MODEL,
    effort: str = "default",
    progress: bool = False,
) -> list[bytes]:
    """Code several images; small ones share the network's batches. See :func:`encode`.

    Guarantee: the bytes of a file do not depend on the images coded beside it.
    """
    if effort not in EFFORTS:
        raise UnsupportedError(f"effort {effort!r}: expected one of {', '.join(EFFORTS)}")
    model = load_model(model) if isinstance(model, str) else model
    if effort not in model.plans:
        raise UnsupportedError(
            f"model {model.info.name} has no plan {effort!r}: expected one of "
            f"{', '.join(model.plans)}"
        )
    sources = [as_image(image) for image in images]
    for source in sources:
        if source.width * source.height > MAX_PIXELS:
            raise LimitError(
                f"an image of {source.width} x {source.height} pixels: at most {MAX_PIXELS} "
                "pixels fit in a file; cut it into parts"
            )
    jobs = [
        (source, Part(effort, index, box))
        for source in sources
        if _coded_channels(source.mode, model.color)
        for index, box in enumerate(tile_grid(source.width, source.height))
    ]
    chains = (_encode_job(model, *job) for job in jobs)
    coded = _run(chains, [part for _, part in jobs], model, progress)
    return [_assemble(source, model, effort, coded) for source in sources]


def _coded_channels(mode: str, color: str) -> int:
    """How many channels the chain codes: 3, 1 for grey (its chroma is known), 0 for none."""
    if mode == "RGB":
        return 3
    return 1 if mode == "L" and color == "ycocg" else 0


def _make_chain(model: Model, mode: str, part: Part) -> TileChain:
    coded = _coded_channels(mode, model.color)
    if part.plan not in model.plans or not coded:
        raise CorruptError(f"a tile of a {mode} image is coded by {part.plan!r}, which cannot be")
    shape = (part.box.height, part.box.width)
    return TileChain(model.plans[part.plan], model.domain, part.index, coded, shape)


def _encode_job(
    model: Model, source: Image.Image, part: Part
) -> Generator[Request, Posterior, EncodedTile | None]:
    """One tile through the chain, or None where the chain has no code for it."""
    rgb = np.asarray(_crop(source, part.box).convert("RGB")).transpose(2, 0, 1).astype(np.int16)
    chain = _make_chain(model, source.mode, part)
    try:
        return (yield from encode_tile(chain, to_domain(rgb, model.color).astype(np.float64)))
    except OutOfRangeError:
        return None
    except ValueError as e:
        raise ModelMismatchError(
            f"model {model.info.name} cannot code this image ({e}); give another model"
        ) from e


def _crop(source: Image.Image, box: Box) -> Image.Image:
    return source.crop((box.left, box.top, box.left + box.width, box.top + box.height))


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
    if _coded_channels(source.mode, model.color):
        boxes = tile_grid(*size)
        marked = size[0] * size[1] >= MARKS_FROM_PIXELS
        tiles = []
        for box, chain in zip(boxes, coded, strict=False):
            tile = whole if len(boxes) == 1 else Tile(*encode_fallback(_crop(source, box)))
            if chain is not None and 4 * len(chain.words) < len(tile.payload):
                marks = chain.marks if marked else ()
                payload = chain.words.astype("<u4").tobytes()
                tile = Tile(effort, payload, chain.seed_words, marks)
            tiles.append(tile)
        candidates.append(pack(container(tiles, whole=False)))
    return min(candidates, key=len)


def decode(
    data: bytes,
    timestep: int = 0,
    model: str | Model | None = None,
    progress: bool = False,
) -> Image.Image:
    """The image in a file.

    Args:
        data: a file's bytes.
        timestep: 0 for the exact image; t for the posterior mean of x given z_t, coarser the
            larger t. Tiles that took a fallback coder are exact at every timestep.
        model: the model it was encoded with, if it is not a shipped one.
        progress: show a bar on a terminal when it takes over two seconds.

    Returns:
        The image in its mode, with its metadata.

    Raises:
        FormatError: if the data is not a whole, undamaged file (TruncatedError, CorruptError).
        UnsupportedError: for a newer version, or a timestep that the file does not have.
        ModelMismatchError: if the file's model is not at hand.
        LimitError: if it claims more than 2^28 pixels.
    """
    container = parse(data)
    used = _find_model(container, model)
    last = (
        max((len(used.plans[t.coder].levels) for t in _chain_tiles(container)), default=0)
        if used
        else 0
    )
    if not 0 <= timestep <= last:
        raise UnsupportedError(
            f"timestep {timestep}: this file has timesteps 0 (exact) to {last} (coarsest)"
        )
    image = Image.new(container.mode, (container.width, container.height))
    if container.mode == "P":
        apply_metadata(image, container.metadata)  # pasting needs the palette in place
    if used is not None:
        parts = _chain_parts(container)
        chains = (
            _decode_job(used, container.mode, timestep, part, container.tiles[part.index])
            for part in parts
        )
        results = _run(chains, parts, used, progress)
        for part, pixels in zip(parts, results, strict=True):
            decoded = Image.fromarray(pixels if container.mode == "RGB" else pixels[:, :, 0])
            image.paste(decoded, (part.box.left, part.box.top))
    for box, tile in zip(container.boxes(), container.tiles, strict=True):
        if tile.coder not in CHAIN_CODERS:
            size = (box.width, box.height)
            decoded = decode_fallback(tile.coder, tile.payload, container.mode, size)
            if container.whole:
                image = decoded
            else:
                image.paste(decoded, (box.left, box.top))
    if timestep == 0 and pixel_crc(image) != container.pixel_crc:
        raise CorruptError(
            "the pixels do not match the file's checksum: "
            + _other_probabilities(container.float_arithmetic)
        )
    apply_metadata(image, container.metadata)
    return image


def measure_marks(data: bytes, model: str | Model | None = None) -> Container:
    """The parts of a file, with step marks also where the file has none: by coding it again.

    Args:
        data: a file's bytes.
        model: the model it was encoded with, if it is not a shipped one.

    Raises:
        DiffcodecError: if it does not decode; see :func:`decode`.
    """
    container = parse(data)
    used = _find_model(container, model)
    if used is None or any(tile.marks for tile in container.tiles):
        return container
    image = decode(data, model=used)
    parts = _chain_parts(container)
    tiles = list(container.tiles)
    coded = _run((_encode_job(used, image, part) for part in parts), parts, used, progress=False)
    for part, again in zip(parts, coded, strict=True):
        if again is not None:
            tiles[part.index] = replace(tiles[part.index], marks=again.marks)
    return replace(container, tiles=tuple(tiles))


def _chain_tiles(container: Container) -> list[Tile]:
    return [tile for tile in container.tiles if tile.coder in CHAIN_CODERS]


def _chain_parts(container: Container) -> list[Part]:
    pairs = zip(container.boxes(), container.tiles, strict=True)
    return [
        Part(tile.coder, index, box)
        for index, (box, tile) in enumerate(pairs)
        if tile.coder in CHAIN_CODERS
    ]


def _other_probabilities(float_arithmetic: bool) -> str:
    text = (
        "the file is whole, so this machine computed other probabilities than the one that "
        "encoded it"
    )
    if float_arithmetic:
        text += (
            "; it was made with float arithmetic, which is not the same on every machine: encode "
            "the image with --arithmetic integer, the default, to decode it anywhere"
        )
    return text


def _find_model(container: Container, given: str | Model | None) -> Model | None:
    """The model that the file needs, or None if it needs none."""
    if not _chain_tiles(container):
        return None
    arithmetic = "float" if container.float_arithmetic else "integer"
    if isinstance(given, Model):
        _check_model(given.info, container)
        model = given
    else:
        path = find_model_path(container.model) if given is None else model_path(given)
        _check_model(read_model_info(path)[0], container)
        model = load_model(path, arithmetic)
    if model.arithmetic != arithmetic:
        raise ModelMismatchError(
            f"the file was made with {arithmetic} arithmetic, the model given is loaded as "
            f"{model.arithmetic!r}; load it as {arithmetic!r}"
        )
    for tile in _chain_tiles(container):
        if tile.coder not in model.plans:
            raise CorruptError(f"a tile is coded by {tile.coder!r}, which its model does not have")
    return model


def _check_model(info: ModelInfo, container: Container) -> None:
    if info.id != container.model:
        raise ModelMismatchError(
            f"the file was made with model {container.model.hex()}, the one given is "
            f"{info.name} {info.id.hex()}; give the model that it was encoded with"
        )


def _decode_job(
    model: Model, mode: str, timestep: int, part: Part, tile: Tile
) -> Generator[Request, Posterior, NDArray[np.uint8]]:
    """One chain tile as RGB [height, width, 3]."""
    words = np.frombuffer(tile.payload, "<u4") if len(tile.payload) % 4 == 0 else np.zeros(0)
    chain = _make_chain(model, mode, part)
    try:
        if words.size == 0 or words[0] == 0:
            raise ValueError("no stack of words")
        x = yield from decode_tile(chain, words.astype(np.uint32), tile.seed_words, timestep)
    except (ValueError, OutOfRangeError) as e:
        raise CorruptError(
            f"tile {part.index} does not decode ({e}): "
            + _other_probabilities(model.arithmetic == "float")
        ) from e
    rgb = from_domain(np.rint(x).astype(np.int32), model.color)
    return np.clip(rgb, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def _run(
    jobs: Iterable[Generator[Request, Posterior, Result]],
    parts: Sequence[Part],
    model: Model,
    progress: bool,
) -> Iterator[Result]:
    """Drive the coroutines of many tiles, in groups of bounded size, results in order."""
    evaluations = sum(len(model.plans[part.plan].levels) * part.pixels for part in parts)
    with tqdm(
        total=evaluations, unit="px", unit_scale=True, delay=2, disable=None if progress else True
    ) as bar:
        group: list[tuple[Generator[Request, Posterior, Result], str]] = []
        held = 0
        for job, part in zip(jobs, parts, strict=True):
            if group and held + part.pixels > BATCH_PIXELS:
                yield from _run_group(group, model, bar)
                group, held = [], 0
            group.append((job, part.plan))
            held += part.pixels
        yield from _run_group(group, model, bar)


def _run_group(
    jobs: Sequence[tuple[Generator[Request, Posterior, Result], str]],
    model: Model,
    bar: "tqdm[Any]",
) -> list[Result]:
    """Drive coroutines side by side: requests of one plan, timestep and shape share a batch."""
    results: dict[int, Result] = {}
    waiting: dict[int, Request] = {}

    def advance(i: int, answer: Posterior | None) -> None:
        job = jobs[i][0]
        try:
            if answer is None:
                waiting[i] = next(job)
            elif is_posterior(*answer):
                waiting[i] = job.send(answer)
            else:  # the job knows what that means for its file
                job.throw(ValueError("a mean or variance of the model is out of range"))
        except StopIteration as stop:
            results[i] = stop.value

    for i in range(len(jobs)):
        advance(i, None)
    while waiting:
        batches: dict[tuple[str, int, tuple[int, ...]], list[int]] = {}
        for i, request in waiting.items():
            batches.setdefault((jobs[i][1], request.timestep, request.z.shape), []).append(i)
        for (plan, timestep, _), members in batches.items():
            z = np.stack([waiting.pop(i).z for i in members])
            mean, variance = model.posterior_x(z, model.plans[plan].levels[timestep - 1])
            bar.update(z.shape[0] * z.shape[2] * z.shape[3])
            for k, i in enumerate(members):
                advance(i, Posterior(mean[k], variance[k]))
    return [results[i] for i in range(len(jobs))]
