"""What becomes of a tile: a chain, or what a fallback coder makes of it where that is smaller."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from PIL import Image

from diffcodec.arrays import Array
from diffcodec.codec.jobs import Part
from diffcodec.codec.planes import crop, paste
from diffcodec.coding.bits_back import EncodedTile
from diffcodec.container.parts import Box, Tile
from diffcodec.images.color_sets import ColorSet
from diffcodec.images.fallback import decode_fallback, encode_fallback


def fallback_tile(image: Image.Image, colors: ColorSet | None = None) -> Tile:
    """A tile by the fallback coder that makes the least of it, and the colours of its image."""
    return Tile(*encode_fallback(image, colors.conversion if colors else None))


@contextmanager
def fallback_tiles(
    image: Image.Image, boxes: Sequence[Box], colors: ColorSet | None
) -> Iterator[list[Future[Tile]]]:
    """The :func:`fallback_tile` of each box, by a thread beside the chains.

    The plain coders leave Python to others, and while a chain codes, one processor is idle.
    """
    pool = ThreadPoolExecutor(1, "diffcodec-fallback")
    try:
        yield [pool.submit(lambda box: fallback_tile(crop(image, box), colors), b) for b in boxes]
    finally:
        pool.shutdown(cancel_futures=True)


def smaller_tile(
    fallback: Tile, chain: EncodedTile | None, plan: str, has_marks: bool = False
) -> Tile:
    """The smaller of two codes of a tile.

    Args:
        fallback: by a fallback coder.
        chain: by the chain; None where it has no code.
        plan: the chain's.
        has_marks: whether the file has step marks.
    """
    if chain is None or chain.size >= len(fallback.payload):
        return fallback
    return Tile(
        coder=plan,
        payload=chain.words.astype("<u4").tobytes(),
        seed_words=chain.seed_words,
        marks=chain.marks if has_marks else (),
        preview=chain.preview,
        preview_payload=chain.preview_payload,
        draw=chain.draw,
        label=chain.label,
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
            decoded = decode_fallback(tile.coder, tile.payload, image.mode, size)
            image.paste(decoded, (box.left, box.top))
