"""A codec of Zarr 3 for arrays of images: ``DiffCodec``, a serializer.

Zarr finds it by the name "diffcodec" as soon as the package is installed::

    zarr.create_array(store, shape=(10000, 32, 32, 3), chunks=(64, 32, 32, 3), dtype="uint8",
                      serializer=DiffCodec(model="cifar10"), compressors=None)
"""

import asyncio
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec

from diffcodec.archive.chunks import SHAPES, decode_chunk, encode_chunk, is_chunk
from diffcodec.errors import CorruptError
from diffcodec.models.file import DEFAULT_MODEL


@dataclass(frozen=True)
class DiffCodec(ArrayBytesCodec):
    """Chunks uint8 [h, w], [h, w, 3] or [n, h, w, 3], without loss unless ``psnr`` is given.

    Attributes:
        model: a shipped model's name, or a path that readers have, too.
        plan: "fast", "default" or "best".
        psnr: least quality of each image, in dB.
    """

    model: str = DEFAULT_MODEL
    plan: str = "default"
    psnr: float | None = None

    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The codec from the metadata of an array."""
        return cls(**data.get("configuration", {}))

    def to_dict(self) -> dict[str, Any]:
        """The codec as the metadata of an array hold it."""
        lossy = {} if self.psnr is None else {"psnr": self.psnr}
        configuration = {"model": str(self.model), "plan": self.plan} | lossy
        return {"name": "diffcodec", "configuration": configuration}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        """Refuse arrays of anything but images.

        Raises:
            ValueError: it is one.
        """
        chunk = getattr(chunk_grid, "chunk_shape", shape)
        if not is_chunk(tuple(chunk), dtype.to_native_dtype()):
            raise ValueError(
                f"chunks {dtype.to_native_dtype()} {list(chunk)}, expected {SHAPES}: give chunks "
                "of whole images"
            )

    def compute_encoded_size(self, input_byte_length: int, _chunk_spec: Any) -> int:
        """Raise NotImplementedError: the size is not known beforehand."""
        raise NotImplementedError

    async def _encode_single(self, chunk_array: Any, chunk_spec: Any) -> Any:
        return await asyncio.to_thread(self._encode_sync, chunk_array, chunk_spec)

    async def _decode_single(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        return await asyncio.to_thread(self._decode_sync, chunk_bytes, chunk_spec)

    def _encode_sync(self, chunk_array: Any, chunk_spec: Any) -> Any:
        chunk = np.asarray(chunk_array.as_numpy_array())
        data = encode_chunk(chunk, self.model, self.plan, self.psnr)
        return chunk_spec.prototype.buffer.from_bytes(data)

    def _decode_sync(self, chunk_bytes: Any, chunk_spec: Any) -> Any:
        chunk = decode_chunk(chunk_bytes.to_bytes(), self.model)
        if chunk.shape != tuple(chunk_spec.shape) or chunk.dtype != np.uint8:
            raise CorruptError(
                f"found a chunk {chunk.dtype} {list(chunk.shape)}, expected uint8 "
                f"{list(chunk_spec.shape)} as the array has: it is another array's; write it again"
            )
        return chunk_spec.prototype.nd_buffer.from_numpy_array(chunk)
