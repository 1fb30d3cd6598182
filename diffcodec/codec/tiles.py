"""What becomes of a tile: a chain, or what a fallback coder makes of it where that is smaller."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from operator import attrgetter
from typing import NamedTuple

from PIL import Image

from diffcodec.arrays import Array
from diffcodec.codec.jobs import Part
from diffcodec.codec.planes import check_pixels, crop, paste
from diffcodec.coding.bits_back import EncodedTile
from diffcodec.container.parts import Box, Tile
from diffcodec.container.primitives import CRC_BYTES
from diffcodec.images.color_sets import ColorSet
from diffcodec.images.fallback import decode_fallback, encode_fallback, least_left
from diffcodec.images.modes import pixel_crc
from diffcodec.images.outliers import Found, add_outliers, pack_outliers
from diffcodec.images.source_planes import forget_sources

FORGETFUL_PIXELS = 1 << 18  # of an image that takes far longer than a table of its colours


def fallback_tile(
    image: Image.Image, colors: ColorSet | None = None, thorough: bool = True
) -> Tile:
    """A tile by the fallback coder that makes the least of it, and the colours of its image."""
    coded = encode_fallback(image, _conversion(colors), thorough)
    return Tile(*coded, pixel_crc=pixel_crc(image))


class Fallback(NamedTuple):
    """A tile by the plain coders, and the outliers that a chain in its place needs beside it.

    Attributes:
        quick: by their quickest settings.
        outliers: of the image's colours.
        thorough: the same by all settings.
        least: bytes that these make, or more.
    """

    quick: Tile
    outliers: bytes
    thorough: Callable[[], Tile]
    least: float

    def unless_below(self, size: int) -> Tile:
        """The best there is, unless not even that can be below a size."""
        return self.thorough() if self.least < size else self.quick


def _fallback(source: Image.Image, found: Found, box: Box) -> Fallback:
    outliers = pack_outliers(crop(found.differences, box)) if found.differences else b""

    def tile(thorough: bool) -> Tile:
        coded = fallback_tile(crop(found.image, box), found.colors, thorough)
        if not outliers:
            return coded
        plain = fallback_tile(crop(source, box), None, thorough)
        within = replace(coded, outliers=outliers, pixel_crc=plain.pixel_crc)
        return min(within, plain, key=attrgetter("size"))

    quick = tile(False)
    share = least_left(source.mode, box.width * box.height, _conversion(found.colors))
    return Fallback(quick, outliers, cache(lambda: tile(True)), share * quick.size)


def _conversion(colors: ColorSet | None) -> str | None:
    return colors.conversion if colors else None


@contextmanager
def fallback_tiles(
    source: Image.Image, found: Found, boxes: Sequence[Box]
) -> Iterator[list[Future[Fallback]]]:
    """The :class:`Fallback` of each box, by a thread beside the chains.

    The plain coders leave Python to others, and while a chain codes, one processor is idle. Their
    table of colours does not stay beside the chains of a large image, which take memory.
    """
    pool = ThreadPoolExecutor(1, "diffcodec-fallback")
    try:
        coded = [pool.submit(_fallback, source, found, box) for box in boxes]
        if source.width * source.height >= FORGETFUL_PIXELS:
            pool.submit(forget_sources)
        yield coded
    finally:
        pool.shutdown(cancel_futures=True)


def smaller_tile(
    fallback: Fallback, chain: EncodedTile | None, plan: str, has_marks: bool = False
) -> Tile:
    """The smaller of two codes of a tile.

    Args:
        fallback: by a fallback coder.
        chain: by the chain; None where it has no code.
        plan: the chain's.
        has_marks: whether the file has step marks.
    """
    outliers = fallback.outliers
    if chain is None:
        return fallback.thorough()
    size = chain.size + len(outliers) - CRC_BYTES
    tile = fallback.unless_below(size)
    if size >= tile.size:
        return tile
    return Tile(
        coder=plan,
        payload=chain.payload,
        marks=chain.marks if has_marks else (),
        preview=chain.preview,
        preview_payload=chain.preview_payload,
        draw=chain.draw,
        label=chain.label,
        outliers=outliers,
    )


def paste_chains(
    image: Image.Image, parts: Iterable[Part], decoded: Iterable[Array | None], color: str
) -> None:
    """Put tiles of the colour domain, [3, height, width], in their places; None is left out."""
    for part, x in zip(parts, decoded, strict=True):
        if x is not None:
            paste(image, part.box, x, color)


def paste_fallbacks(image: Image.Image, tiles: Iterable[tuple[Box, Tile | None]]) -> None:
    """Put the tiles that are by a fallback coder in their places; others are left out.

    Raises:
        CorruptError: if one does not decode.
    """
    for box, tile in tiles:
        if tile is not None and not tile.plan:
            size = (box.width, box.height)
            image.paste(decode_fallback_tile(tile, image.mode, size), (box.left, box.top))


def decode_fallback_tile(tile: Tile, mode: str, size: tuple[int, int]) -> Image.Image:
    """A tile that is by a fallback coder.

    Raises:
        CorruptError: if it does not decode, or to other pixels than were coded.
    """
    decoded = decode_fallback(tile.coder, tile.payload, mode, size)
    if tile.outliers:
        decoded = add_outliers(decoded, tile.outliers)
    check_pixels(decoded, tile.pixel_crc)
    return decoded


def add_to_chains(
    image: Image.Image, tiles: Iterable[tuple[Box, Tile | None]], undo: bool = False
) -> None:
    """Add to the tiles that are chains, and exact, their outliers, or undo it.

    Raises:
        CorruptError: if they do not decode.
    """
    for box, tile in tiles:
        if tile is not None and tile.plan and tile.outliers:
            part = add_outliers(crop(image, box), tile.outliers, undo)
            image.paste(part, (box.left, box.top))
