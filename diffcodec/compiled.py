"""Loops over arrays, compiled by Numba where it is installed: one pass over the memory.

The same IEEE operations in the same order as NumPy or torch take one by one, each of which reads
and writes whole arrays: nothing is fused, for Numba lets LLVM contract no operations unless told.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from inspect import unwrap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcodec.forks import held_in_forks

EACH_THREADS_ELEMENTS = 1 << 16
_COMPILING = held_in_forks()  # the compiler has a lock of its own, which a fork knows nothing of

Loop = Callable[..., Any]


@cache
def compiled(loop: Loop, fuses: bool = False) -> Loop:
    """The loop, compiled when it is first called and kept on disk for other processes.

    Args:
        loop: as written.
        fuses: whether products are added without being rounded, which changes nothing in integers
            that floats hold exactly.
    """
    from numba import njit

    may_fuse: bool | set[str] = {"contract"} if fuses else False
    make = njit(nogil=True, cache=True, error_model="numpy", fastmath=may_fuse)
    made: Loop = make(unwrap(loop))  # without what a checker of signatures may have put around it
    return made


def works(is_exact: Callable[[], bool]) -> bool:
    """Whether a loop does here what it should: there is a compiler, and its results are right."""
    try:
        with _COMPILING:
            return is_exact()
    except Exception:  # whatever a compiler may meet on a machine that it does not suit
        return False


def by_threads(
    loop: Loop, rows: Sequence[NDArray[Any]], others: Sequence[Any], threads: int
) -> list[Any]:
    """What a compiled loop says to parts of arrays, each by a thread.

    Args:
        loop: of this module's :func:`compiled`.
        rows: arrays of as many rows, which are parted.
        others: its other arguments.
        threads: at most.
    """
    count = min(threads, 1 + rows[0].size // EACH_THREADS_ELEMENTS)
    if count == 1:
        return [loop(*rows, *others)]
    parts = zip(*(np.array_split(each, count) for each in rows), strict=True)
    calls = [_threads(os.getpid(), threads).submit(loop, *part, *others) for part in parts]
    return [call.result() for call in calls]


@lru_cache(maxsize=2)
def _threads(process: int, count: int) -> ThreadPoolExecutor:
    """The threads of a process: a fork has none of its parent's."""
    return ThreadPoolExecutor(count, f"diffcodec-{process}")
