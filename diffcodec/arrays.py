"""NumPy arrays by the type of their elements, for signatures, and how tables of them are rounded.

Where a shape matters the signature tells it by jaxtyping, ``Float64[Array, "3 height width"]``,
which the tests check.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    Array = NDArray[np.float64]
    Float32s = NDArray[np.float32]
    Integers = NDArray[np.int64]
    Int8s = NDArray[np.int8]
    Int32s = NDArray[np.int32]
    Bits = NDArray[np.uint8]  # 0 or 1 each
    Flags = NDArray[np.bool_]
    Words = NDArray[np.uint32]
    Bytes = NDArray[np.uint8]
    AnyArray = NDArray[Any]
else:  # what jaxtyping can look at: it tells the elements' type itself
    Array = Float32s = Integers = Int8s = Int32s = Bits = Flags = Words = Bytes = AnyArray = (
        np.ndarray
    )


def round_significant(values: Array, bits: int) -> Array:
    """Round to so many significant bits, to which every maths library computes alike."""
    mantissa, exponent = np.frexp(values)
    rounded: Array = np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits)
    return rounded
