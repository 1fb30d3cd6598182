"""A codec of numcodecs for chunks of images, such as those of Zarr 2: ``DiffCodec``.

numcodecs finds it by the name "diffcodec" as soon as the package is installed.
"""

from typing import Any

import numpy as np
from numcodecs.abc import Codec
from numcodecs.compat import ensure_bytes, ndarray_copy

from diffcodec.archive.chunks import decode_chunk, encode_chunk
from diffcodec.errors import UnsupportedError
from diffcodec.models.file import DEFAULT_MODEL
from diffcodec.values import number


class DiffCodec(Codec):  # type: ignore[misc]  # numcodecs tells no types
    """Chunks uint8 [h, w], [h, w, 3] or [n, h, w, 3], without loss unless ``psnr`` is given.

    Args:
        model: a shipped model's name, or a path that readers have, too.
        plan: "fast", "default" or "best".
        psnr: least quality of each image of a chunk, in dB. Of a chunk that is written in parts
            what was there is coded with loss anew each time.
    """

    codec_id = "diffcodec"

    def __init__(
        self, model: str = DEFAULT_MODEL, plan: str = "default", psnr: float | None = None
    ) -> None:
        self.model, self.plan, self.psnr = str(model), plan, number("psnr", psnr)

    def encode(self, buf: Any) -> bytes:
        """The bytes of an array of images.

        Raises:
            DiffcodecError: it is none, or masked; see :func:`diffcodec.encode`.
        """
        if np.ma.isMaskedArray(buf):
            raise UnsupportedError(
                "found a masked array, whose masked samples have no values: give "
                "array.filled(value)"
            )
        return encode_chunk(np.asarray(buf), self.model, self.plan, self.psnr)

    def decode(self, buf: Any, out: Any = None) -> Any:
        """The array again."""
        return ndarray_copy(decode_chunk(ensure_bytes(buf), self.model), out)
