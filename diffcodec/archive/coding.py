"""Images to groups and back."""

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from diffcodec.archive.parts import SharedGroup, pack_group, parse_group
from diffcodec.arrays import Array
from diffcodec.codec.adapting import fit
from diffcodec.codec.batches import BATCH_PIXELS
from diffcodec.codec.decoding import decode
from diffcodec.codec.encoding import NO_MODEL
from diffcodec.codec.estimates import expected_bytes
from diffcodec.codec.jobs import Part, encoding, make_chain
from diffcodec.codec.many import encode_many
from diffcodec.codec.planes import coded_channels, image_of, integers, other_probabilities
from diffcodec.codec.tiles import fallback_tile
from diffcodec.coding.adaptation import Adaptation
from diffcodec.coding.bits_back import payload_of, words_of
from diffcodec.coding.chain import Answer, Asked, Result, TileChain, drive
from diffcodec.coding.groups import (
    EncodedGroup,
    GroupJob,
    NoCodeError,
    decode_group,
    encode_group,
)
from diffcodec.coding.steps import OutOfRangeError
from diffcodec.container.parts import MODES, TILE_SIDE, Box, Tile
from diffcodec.container.reader import parse
from diffcodec.container.writer import pack_metadata
from diffcodec.errors import CorruptError, LimitError
from diffcodec.images.color_sets import ColorSet, find_color_set
from diffcodec.images.fallback import decode_fallback
from diffcodec.images.metadata import apply_metadata, get_metadata
from diffcodec.images.outliers import Found
from diffcodec.images.samples import is_grey
from diffcodec.limits import DEFAULT_LIMITS, Limits
from diffcodec.models.answering import answer, is_usable
from diffcodec.models.model import Model

LEAST_GAIN = 0.002  # of a group's bytes: for less it is not coded once more without some images
_OTHER_BYTES = 3  # that tell of an image by a fallback coder: place, coder, length
MOST_METADATA_BYTES = DEFAULT_LIMITS.metadata_bytes - (1 << 20)  # of a group, also if they grow
ModelFinder = Callable[[bytes, bool], Model]


def shares_stack(mode: str, size: tuple[int, int], color: str) -> bool:
    """Whether images of a mode and a size (width, height) can share a stack."""
    return bool(coded_channels(mode, color)) and max(size) <= TILE_SIDE


def encode_images(
    images: Sequence[Image.Image],
    model: Model,
    plan: str = "default",
    labels: Sequence[int | None] | None = None,
    adapt: bool = False,
) -> bytes:
    """The content of a group, without loss.

    Args:
        images: plain ones, of one size and mode.
        model: to code them by.
        plan: one of its plans.
        labels: the classes that the model is told, of each image; of one without None.
        adapt: fit the model to the images, where it pays.

    Raises:
        DiffcodecError: see :func:`diffcodec.encode`.
    """
    first = images[0]
    if len(images) > 1 and shares_stack(first.mode, first.size, model.color):
        told = {place: each for place, each in enumerate(labels or ()) if each is not None}
        metadata = {k: found for k, image in enumerate(images) if (found := get_metadata(image))}
        if sum(len(pack_metadata(each)) for each in metadata.values()) <= MOST_METADATA_BYTES:
            return pack_group(_encode_shared(images, model, plan, told, adapt, metadata))
    return pack_group(tuple(encode_many(images, model, plan, labels=labels, adapt=adapt)))


def _encode_shared(
    images: Sequence[Image.Image],
    model: Model,
    plan: str,
    labels: Mapping[int, int],
    adapt: bool,
    metadata: Mapping[int, Mapping[str, bytes]],
) -> SharedGroup:
    first, all_samples = images[0], _above_each_other(images)
    grey = (
        first.mode == "RGB"
        and is_grey(np.asarray(all_samples))
        and bool(coded_channels("L", model.color))
    )
    mode = "L" if grey else first.mode
    colors = find_color_set(all_samples.convert(mode))
    fitted = _fitted(model, plan, all_samples.convert(mode), colors, first) if adapt else None
    fallbacks = [fallback_tile(image, colors) for image in images]
    places, coded, is_second = list(range(len(images))), None, False
    while places and coded is None:
        chains = _chains(model, plan, mode, first.size, places, labels, colors, fitted)
        box = Box(0, 0, *first.size)
        planes = [integers(images[place], box, model.color).astype(np.float64) for place in places]
        try:
            with encoding(model):
                coded = _run(encode_group(chains, planes), model, plan, planes[0][0].size)
        except NoCodeError as e:
            del places[e.index]
        except OutOfRangeError:
            places = []
        if coded and not is_second and (kept := _worth(coded, places, fallbacks)) != places:
            places, coded, is_second = kept, None, True
    return SharedGroup(
        mode=first.mode,
        width=first.width,
        height=first.height,
        count=len(images),
        pixel_crc=_pixel_crc(images),
        model=model.info.id if places else NO_MODEL,
        plan=plan,
        float_arithmetic=bool(places) and model.arithmetic == "float",
        grey=grey,
        labels={place: label for place, label in labels.items() if place in places},
        others={k: tile for k, tile in enumerate(fallbacks) if k not in places},
        colors=colors.pack() if colors and places else b"",
        adaptation=fitted.pack() if fitted and places else b"",
        metadata=metadata,
        payload=payload_of(coded.words) if coded else b"",
    )


def _fitted(
    model: Model,
    plan: str,
    samples: Image.Image,
    colors: ColorSet | None,
    first: Image.Image,
) -> Adaptation | None:
    """What fits the model to images above each other, each of the first one's size."""
    heights = range(0, samples.height, first.height)
    boxes = [Box(0, top, first.width, first.height) for top in heights]
    return fit(model, plan, samples, Found(samples, colors), boxes=boxes)


def _worth(coded: EncodedGroup, places: list[int], fallbacks: Sequence[Tile]) -> list[int]:
    """The places of images that stay on the stack."""
    gains = {
        place: bits / 8 - len(fallbacks[place].payload) - _OTHER_BYTES
        for place, bits in zip(places, coded.bits, strict=True)
    }
    total = sum(max(gain, 0) for gain in gains.values())
    if total <= LEAST_GAIN * 4 * len(coded.words):
        return places
    return [place for place in places if gains[place] <= 0]


def decode_images(
    content: bytes,
    find_model: ModelFinder,
    limits: Limits = DEFAULT_LIMITS,
) -> list[Image.Image]:
    """The images of a group.

    Args:
        content: what :func:`encode_images` gave.
        find_model: by identity, and whether it is to be of float arithmetic.
        limits: the sizes to accept.

    Raises:
        DiffcodecError: see :func:`diffcodec.decode`.
    """
    group = parse_group(content, limits)
    if isinstance(group, tuple):
        return _decode_files(group, find_model, limits)
    pixels = group.width * group.height * group.count
    limits.check_memory(expected_bytes(pixels, 1, uses_model=bool(group.payload), layered=False))
    size = (group.width, group.height)
    images = [Image.new(group.mode, size)] * group.count
    for place, tile in group.others.items():
        images[place] = decode_fallback(tile.coder, tile.payload, group.mode, size)
    if group.payload:
        model = find_model(group.model, group.float_arithmetic)
        if (label := max(group.labels.values(), default=-1)) >= model.classes:
            raise CorruptError(f"an image of class {label}, but its model knows {model.classes}")
        for place, x in zip(group.chains, _decode_chains(group, model), strict=True):
            images[place] = image_of(x, group.mode, model.color)
    for place, metadata in group.metadata.items():
        apply_metadata(images[place], metadata, limits)
    if _pixel_crc(images) != group.pixel_crc:
        raise CorruptError(
            "the pixels of a group do not match its checksum: "
            + other_probabilities(group.float_arithmetic)
        )
    return images


def _decode_chains(group: SharedGroup, model: Model) -> list[Array]:
    channels = MODES[group.chain_mode].channels
    colors = ColorSet.unpack(group.colors, channels) if group.colors else None
    size = (group.width, group.height)
    told = group.chains, group.labels, colors
    adaptation = Adaptation.unpack(group.adaptation) if group.adaptation else None
    chains = _chains(model, group.plan, group.chain_mode, size, *told, adaptation)
    pixels = group.width * group.height
    try:
        return _run(decode_group(chains, words_of(group.payload)), model, group.plan, pixels)
    except (ValueError, OutOfRangeError) as e:
        raise CorruptError(
            f"a group does not decode ({e}): " + other_probabilities(group.float_arithmetic)
        ) from e


def _chains(
    model: Model,
    plan: str,
    mode: str,
    size: tuple[int, int],
    places: Sequence[int],
    labels: Mapping[int, int],
    colors: ColorSet | None,
    adaptation: Adaptation | None,
) -> list[TileChain]:
    """The chains of images of a group, each with the shared randomness of its place's number."""
    box = Box(0, 0, *size)
    parts = [
        Part(plan, place, box, label=labels.get(place), adaptation=adaptation) for place in places
    ]
    return [make_chain(model, mode, part, colors) for part in parts]


def _run(job: GroupJob[Result], model: Model, plan: str, pixels: int) -> Result:
    """What a group's coroutine comes to, in batches of bounded size."""

    def answers(requests: list[Asked]) -> list[Answer]:
        together = max(1, BATCH_PIXELS // pixels)
        found = [
            each
            for start in range(0, len(requests), together)
            for each in answer(model, model.plans[plan], requests[start : start + together])
        ]
        if not all(map(is_usable, found)):
            raise ValueError("a number of the model is out of range")
        return found

    return drive(job, answers)


def _decode_files(
    files: Sequence[bytes], find_model: ModelFinder, limits: Limits
) -> list[Image.Image]:
    """Images that are files of their own, no more pixels of all of them than of one."""
    images, pixels = [], 0
    for file in files:
        container = parse(file, limits)
        pixels += container.width * container.height
        if pixels > limits.pixels:
            raise LimitError(
                f"a group of {len(files)} images of over {limits.pixels} pixels together, which is "
                "the limit; raise the limit pixels if you trust the source"
            )
        asked = container.model, container.float_arithmetic
        model = find_model(*asked) if container.uses_model else None
        images.append(decode(file, model=model, limits=limits))
    return images


def _above_each_other(images: Sequence[Image.Image]) -> Image.Image:
    """The samples of images of one size and mode as one image."""
    samples = b"".join(image.tobytes() for image in images)
    width, height = images[0].size
    return Image.frombytes(images[0].mode, (width, height * len(images)), samples)


def _pixel_crc(images: Sequence[Image.Image]) -> int:
    crc = 0
    for image in images:
        crc = zlib.crc32(image.tobytes(), crc)
    return crc
