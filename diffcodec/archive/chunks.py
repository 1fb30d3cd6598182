"""Chunks of arrays as bytes: one image, or several of one size as a group."""

import zlib
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from diffcodec.archive.coding import decode_images, encode_images
from diffcodec.archive.parts import MOST_IMAGES, pack_group
from diffcodec.codec.encoding import encode, load_planned
from diffcodec.codec.opening import named_model
from diffcodec.errors import CorruptError, LimitError, ModelMismatchError, UnsupportedError
from diffcodec.images.samples import image_of_samples
from diffcodec.limits import DEFAULT_LIMITS, Limits
from diffcodec.models.file import DEFAULT_MODEL
from diffcodec.models.model import Model

SHAPES = "uint8 [h, w], [h, w, 3] or [n, h, w, 3]"
_CRC_BYTES = 4
_BY_COLUMNS = 8  # beside the number of axes


def is_chunk(shape: tuple[int, ...], dtype: object) -> bool:
    """Whether an array is one of ``SHAPES``."""
    has_colors = len(shape) in (3, 4) and shape[-1] == 3
    return dtype == np.uint8 and (len(shape) == 2 or has_colors)


def encode_chunk(
    chunk: NDArray[np.uint8],
    model: str | PathLike[str] | Model = DEFAULT_MODEL,
    plan: str = "default",
    psnr: float | None = None,
) -> bytes:
    """The bytes of an array of ``SHAPES``.

    Args:
        chunk: the array.
        model: to code it by; see :func:`diffcodec.encode`.
        plan: "fast", "default" or "best".
        psnr: least quality of each image, in dB; without loss if it is not given.

    Raises:
        UnsupportedError: it is another array.
        LimitError: it is over what :func:`decode_chunk` accepts.
        DiffcodecError: see :func:`diffcodec.encode`.
    """
    if not is_chunk(chunk.shape, chunk.dtype) or 0 in chunk.shape:
        raise UnsupportedError(
            f"found an array {chunk.dtype} {list(chunk.shape)}, expected {SHAPES}: give chunks of "
            "whole images"
        )
    stack = chunk if chunk.ndim == 4 else chunk[None]
    count, height, width = stack.shape[:3]
    if count > MOST_IMAGES or count * height * width > DEFAULT_LIMITS.pixels:
        raise LimitError(
            f"a chunk of {count} images of {width} x {height} pixels, the limit of what is read "
            f"again is {MOST_IMAGES} images of {DEFAULT_LIMITS.pixels} pixels: give smaller chunks"
        )
    images = [image_of_samples(np.ascontiguousarray(each)) for each in stack]
    used = load_planned(model, plan, None)
    if psnr is None:
        content = encode_images(images, used, plan)
    else:
        content = pack_group(tuple(encode(image, used, plan, psnr=psnr) for image in images))
    # Others keep bytes as they lie: where columns come first, they do again (Zarr 2, order "F").
    by_columns = chunk.flags.f_contiguous and not chunk.flags.c_contiguous
    data = bytes([chunk.ndim | _BY_COLUMNS * by_columns]) + content
    return data + zlib.crc32(data).to_bytes(_CRC_BYTES, "little")


def decode_chunk(
    data: bytes,
    model: str | PathLike[str] | Model | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> NDArray[np.uint8]:
    """The array that :func:`encode_chunk` was given.

    Args:
        data: what it gave.
        model: that it was coded by, if it is not a shipped one.
        limits: the sizes to accept.

    Raises:
        DiffcodecError: it is none, or damaged; see :func:`diffcodec.decode`.
    """
    rest, crc = data[:-_CRC_BYTES], data[-_CRC_BYTES:]
    if not rest or zlib.crc32(rest).to_bytes(_CRC_BYTES, "little") != crc:
        raise CorruptError("a chunk does not match its checksum; get it again")

    def find_model(model_id: bytes, float_arithmetic: bool) -> Model:
        try:
            return named_model(model_id, float_arithmetic, model)
        except ModelMismatchError:
            if model is None:
                raise
            return named_model(model_id, float_arithmetic, None)

    images = decode_images(rest[1:], find_model, limits)
    if len({(image.mode, image.size) for image in images}) != 1:
        raise CorruptError("a chunk holds images of several sizes; get it again")
    stack = np.stack([np.asarray(image) for image in images])
    axes = rest[0] & ~_BY_COLUMNS
    found = stack if axes == 4 else stack[0]
    if found.ndim != axes:
        raise CorruptError(f"a chunk of {found.ndim} axes, expected {axes}; get it again")
    return np.asfortranarray(found) if rest[0] & _BY_COLUMNS else found
