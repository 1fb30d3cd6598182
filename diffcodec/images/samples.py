"""Arrays and tensors as images."""

import sys
from typing import Any

import numpy as np
from PIL import Image

from diffcodec.arrays import AnyArray
from diffcodec.errors import UnsupportedError
from diffcodec.limits import DEFAULT_LIMITS, Limits

_MODES = {
    ("bool", 1): "1",
    ("uint8", 1): "L",
    ("uint8", 2): "LA",
    ("uint8", 3): "RGB",
    ("uint8", 4): "RGBA",
    ("uint16", 1): "I;16",
}


def image_of_samples(source: object, limits: Limits = DEFAULT_LIMITS) -> Image.Image:
    """The image of a NumPy array or torch tensor; :func:`diffcodec.encode` says which.

    Raises:
        LimitError: it is over a limit; nothing of it has been read or copied then.
        TypeError: it is neither.
        UnsupportedError: another shape or type of samples, or a masked array.
    """
    torch = sys.modules.get("torch")  # who has a tensor has loaded it
    if torch is not None and isinstance(source, torch.Tensor):
        return _of_array(_channels_last(source), limits)
    if not isinstance(source, np.ndarray):
        raise TypeError(
            f"found {type(source).__name__}, expected the path of an image, a Pillow image, a "
            "NumPy array or a torch tensor: pass one of these (bytes and streams by PIL.Image.open)"
        )
    if isinstance(source, np.ma.MaskedArray):
        raise UnsupportedError(
            "found a masked array, whose masked samples have no values: pass array.filled(value)"
        )
    return _of_array(source, limits)


def is_grey(samples: AnyArray) -> bool:
    """Whether the samples of colours, [h, w, 3], are the same in all channels."""
    return bool((samples == samples[:, :, :1]).all())


def _channels_last(tensor: Any) -> np.ndarray[Any, Any]:
    found = f"found a tensor {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
    if str(tensor.dtype) != "torch.uint8" or tensor.ndim != 3 or tensor.shape[0] not in range(1, 5):
        raise UnsupportedError(
            f"{found}, expected uint8 [1 to 4, height, width]: permute, scale and cast it, or pass "
            "a NumPy array"
        )
    try:
        array: np.ndarray[Any, Any] = tensor.detach().cpu().permute(1, 2, 0).numpy()
    except (RuntimeError, TypeError, NotImplementedError) as error:  # sparse, on no device, ...
        raise UnsupportedError(f"{found} without plain samples ({error}): copy it") from error
    return array


def _of_array(array: np.ndarray[Any, Any], limits: Limits) -> Image.Image:
    channels = array.shape[2] if array.ndim == 3 else 1
    mode = _MODES.get((array.dtype.name, channels))
    if mode is None or array.ndim not in (2, 3):
        raise UnsupportedError(
            f"found an array {array.dtype.name} {list(array.shape)}, expected uint8 "
            "[height, width] or [height, width, 1 to 4], uint16 or bool [height, width]: "
            "scale and cast it"
        )
    if 0 in array.shape:
        raise UnsupportedError(f"found an empty array {list(array.shape)}, expected some pixels")
    height, width = array.shape[:2]
    limits.check_image(width, height)  # it may be mapped from a file that memory does not hold
    if mode == "1":
        array = np.packbits(array.reshape(height, width), axis=1)
    elif mode == "I;16":
        array = array.astype("<u2")
    return Image.frombytes(mode, (width, height), array.tobytes())
