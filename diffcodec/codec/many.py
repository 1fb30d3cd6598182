"""Many images to files and back, one after another: small ones share the network's batches."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from dataclasses import replace
from functools import partial
from itertools import repeat, zip_longest
from os import PathLike
from typing import Any, TypeVar

from PIL import Image
from tqdm import tqdm

from diffcodec.codec.arguments import FileLike, each_of, file_source, held_source
from diffcodec.codec.decoding import decode_together, finest, show
from diffcodec.codec.encoding import (
    ImageLike,
    Labelled,
    check_draws,
    check_tile_side,
    encode_together,
    labels_to_try,
    load_planned,
)
from diffcodec.codec.jobs import DEFAULT_CHOICES, Choices, View
from diffcodec.codec.opening import OpenFile, open_file
from diffcodec.container.parts import TILE_SIDE
from diffcodec.container.primitives import read_stream
from diffcodec.errors import DiffcodecError, UnsupportedError
from diffcodec.limits import DEFAULT_LIMITS, Limits
from diffcodec.models.file import DEFAULT_MODEL
from diffcodec.models.model import Model
from diffcodec.system.process import closed_at_exit
from diffcodec.values import check_limits, flag

HELD_PIXELS = 1 << 22  # of images that are side by side: so far ahead is read
LEAST_PIXELS = 1 << 10  # that each counts for at least
Item = TypeVar("Item")
Result = TypeVar("Result")
_NO_MORE = object()


def encode_many(
    images: Iterable[ImageLike],
    model: str | PathLike[str] | Model = DEFAULT_MODEL,
    plan: str = "default",
    progress: bool = False,
    *,
    draws: int = 1,
    adapt: bool = False,
    labels: Iterable[int | str | None] | None = None,
    tile_side: int = TILE_SIDE,
    strip: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    choices: Choices = DEFAULT_CHOICES,
    device: str | None = None,
) -> Iterator[bytes]:
    """Code any number of images; small ones share the network's batches. See :func:`encode`.

    An iterator in, an iterator out: some megapixels of images are held at a time. Labels are one
    for each image. Other ``choices`` than the default are for experiments.

    Returns:
        The bytes of each file, in order. Of an image that cannot be coded its place raises, after
        the files of all before it.

    Guarantee: the bytes of a file do not depend on the images coded beside it.
    """
    check_limits(limits)
    draws = check_draws(draws)
    choices = replace(choices, tile_side=check_tile_side(tile_side))
    used = load_planned(model, plan, device)
    if isinstance(images, Sized) and isinstance(labels, Sized) and len(labels) != len(images):
        raise UnsupportedError(f"{len(labels)} labels for {len(images)} images: give one for each")
    sources = _labelled(each_of("images", images), labels, used, limits, strip)
    encode = partial(
        encode_together,
        model=used,
        plan=plan,
        draws=draws,
        adapt=flag("adapt", adapt),
        limits=limits,
        choices=choices,
    )
    chunks = _chunks(sources, lambda source: source[0].width * source[0].height)
    results = _with_bar(_results(chunks, encode), images, flag("progress", progress))
    return closed_at_exit(results)


def decode_many(
    files: Iterable[FileLike],
    model: str | PathLike[str] | Model | None = None,
    progress: bool = False,
    *,
    limits: Limits = DEFAULT_LIMITS,
    device: str | None = None,
) -> Iterator[Image.Image]:
    """Decode any number of files; small ones of a model share the network's batches.

    An iterator in, an iterator out: some megapixels of images are held at a time.

    Args:
        files: paths, bytes, binary streams or addresses; see :func:`decode`.
        model: the one that they were encoded with, if it is not a shipped one.
        progress: show a bar on a terminal when it takes over two seconds.
        limits: the sizes to accept.
        device: where the model computes; see :func:`load_model`.

    Returns:
        What :func:`decode` gives of each file, in order. A file that does not decode raises at its
        place, after the images of all before it.
    """
    check_limits(limits)

    def open_one(data: FileLike) -> OpenFile:
        found = file_source(data)
        whole = found if isinstance(found, bytes) else read_stream(found)
        return open_file(whole, model, False, limits, device)

    chunks = _chunks(
        map(open_one, each_of("files", files)),
        # One that is read as it is decoded is alone: it could not be begun again after a failure.
        lambda file: _pixels(file) if _is_shared(file) else HELD_PIXELS,
        lambda file: id(file.model) if file.model else None,
    )
    results = _with_bar(_results(chunks, _decode), files, flag("progress", progress))
    return closed_at_exit(results)


def _decode(files: Sequence[OpenFile]) -> Iterator[Image.Image]:
    if all(map(_is_shared, files)):
        yield from decode_together(files)
    else:
        yield from (show(file, View(finest(file)))[1] for file in files)


def _pixels(file: OpenFile) -> int:
    return file.container.width * file.container.height


def _is_shared(file: OpenFile) -> bool:
    """Whether a file can be decoded beside others: float arithmetic differs from batch to batch."""
    return file.container.layers is None and not file.container.float_arithmetic


def _labelled(
    images: Iterator[Any], labels: Iterable[Any] | None, model: Model, limits: Limits, strip: bool
) -> Iterator[Labelled]:
    """Plain images, with the classes to try of each."""
    if labels is None:
        pairs: Iterable[tuple[Any, Any]] = zip(images, repeat(None))
    else:
        pairs = zip_longest(images, labels, fillvalue=_NO_MORE)
    for image, label in pairs:
        if image is _NO_MORE or label is _NO_MORE:
            few, many = ("images", "labels") if image is _NO_MORE else ("labels", "images")
            raise UnsupportedError(f"fewer {few} than {many}: give a label for each image")
        yield held_source(image, limits, strip), labels_to_try(model, label)


def _chunks(
    items: Iterator[Item],
    pixels: Callable[[Item], int],
    key: Callable[[Item], int | None] = lambda _: None,
) -> Iterator[list[Item]]:
    """Items in order, in lists of bounded size; what fails in reading one comes after all before.

    Args:
        items: of any number.
        pixels: of one.
        key: of one, the same in a list; None goes with any.
    """
    chunk: list[Item] = []
    held, common = 0, None
    while True:
        try:
            item = next(items)
        except StopIteration:
            break
        except Exception:
            if chunk:
                yield chunk
            raise
        size, own = max(LEAST_PIXELS, pixels(item)), key(item)
        if chunk and (held + size > HELD_PIXELS or (common and own and own != common)):
            yield chunk
            chunk, held, common = [], 0, None
        chunk.append(item)
        held, common = held + size, common or own
    if chunk:
        yield chunk


def _results(
    chunks: Iterable[Sequence[Item]], work: Callable[[Sequence[Item]], Iterator[Result]]
) -> Iterator[Result]:
    """What comes of lists; if one fails, of each item by itself, to see which is at fault."""
    for chunk in chunks:
        done = 0
        try:
            for result in work(chunk):
                done += 1
                yield result
        except DiffcodecError:
            if len(chunk) == 1:
                raise
            for item in chunk[done:]:
                yield from work([item])


def _with_bar(
    results: Iterator[Result], things: Any, progress: bool
) -> Generator[Result, None, None]:
    total = len(things) if isinstance(things, Sized) else None
    yield from tqdm(results, total=total, unit="image", delay=2, disable=None if progress else True)
