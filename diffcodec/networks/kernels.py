"""Element-wise steps between convolutions, each in one pass over the memory, compiled by Numba.

The same IEEE operations in the same order as torch does one by one, each of which reads and writes
all of a tensor: nothing is fused, for Numba lets LLVM contract no operations. Small tensors go
through torch, so that what codes small images alone need not load the compiler.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from inspect import unwrap
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEAST_ELEMENTS = 1 << 17  # of a tensor that kernels are for
EACH_THREADS_ELEMENTS = 1 << 16
F32 = np.float32

Rows = NDArray[Any]  # [pixels, channels]


def look_up(
    parts: Sequence[Tensor], factor: Tensor, offset: Tensor, tables: Sequence[Tensor]
) -> list[Tensor] | None:
    """Entries of tables at ``rint(sum of parts * factor + offset)``.

    Args:
        parts: one or two, float32 [batch, channels, height, width], channels last.
        factor, offset: by channel, float32 [1, channels, 1, 1].
        tables: one or two, whose middle entry is of 0; what is beyond them is of their ends.

    Returns:
        What is found in each, None where an index is not a number.
    """
    out = [torch.empty_like(parts[0], dtype=table.dtype) for table in tables]
    found = _by_threads(
        _kernels()["look_up"],
        [*_first_and_last(parts), *_first_and_last(out)],
        [len(parts) == 2, *_flat([factor, offset, tables[0], tables[-1]])],
    )
    return out if all(found) else None


def scaled(parts: Sequence[Tensor], factor: Tensor, offset: Tensor, plus: Tensor) -> Tensor:
    """``sum of parts * factor + offset + plus``, arguments as above; may overwrite the parts."""
    parts = [part.contiguous(memory_format=torch.channels_last) for part in parts]
    _by_threads(
        _kernels()["scaled"],
        [*_first_and_last(parts), _rows(plus)],
        [len(parts) == 2, *_flat([factor, offset])],
    )
    return parts[0]


def are_for(x: Tensor) -> bool:
    """Whether kernels take a tensor: a large one of a CPU, channels last."""
    return (
        x.numel() >= LEAST_ELEMENTS
        and x.device.type == "cpu"
        and x.is_contiguous(memory_format=torch.channels_last)
        and kernels_compile()
    )


@cache
def kernels_compile() -> bool:
    """Whether Numba is there and its kernels give what torch gives, bit for bit."""
    try:
        return _are_exact()
    except Exception:  # whatever a compiler may meet on a machine that it does not suit
        return False


def _are_exact() -> bool:
    generator = torch.Generator().manual_seed(0)
    parts = [100 * torch.randn((1, 48, 3, 5), generator=generator) for _ in range(2)]
    parts[0][:, ::5] *= 1000
    parts = [part.contiguous(memory_format=torch.channels_last) for part in parts]
    factor, offset = torch.randn((2, 1, 48, 1, 1), generator=generator)
    table = torch.randn(8193, generator=generator)
    u = (parts[0] + parts[1]) * factor + offset
    index = (u.clamp(-4096, 4096).round() + 4096).long()
    found = look_up(parts, factor, offset, [table, table.to(torch.uint8)])
    broken = [part.where(part < 100, torch.nan) for part in parts]
    return (
        found is not None
        and torch.equal(found[0], table[index])
        and torch.equal(found[1], table.to(torch.uint8)[index])
        and look_up(broken, factor, offset, [table]) is None
        and torch.equal(scaled([parts[0].clone(), parts[1]], factor, offset, u), u + u)
    )


def _rows(x: Tensor) -> Rows:
    rows: Rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).numpy()
    return rows


def _first_and_last(parts: Sequence[Tensor]) -> list[Rows]:
    return [_rows(parts[0]), _rows(parts[-1])]


def _flat(tensors: Sequence[Tensor]) -> list[NDArray[Any]]:
    return [tensor.flatten().numpy() for tensor in tensors]


def _by_threads(
    kernel: Callable[..., Any], rows: Sequence[Rows], others: Sequence[Any]
) -> list[Any]:
    """What a kernel says to parts of the rows, each by a thread of torch's number."""
    count = min(torch.get_num_threads(), 1 + rows[0].size // EACH_THREADS_ELEMENTS)
    if count == 1:
        return [kernel(*rows, *others)]
    parts = zip(*(np.array_split(each, count) for each in rows), strict=True)
    calls = [_threads(os.getpid(), count).submit(kernel, *part, *others) for part in parts]
    return [call.result() for call in calls]


@lru_cache(maxsize=2)
def _threads(process: int, count: int) -> ThreadPoolExecutor:
    """Of a process: a fork has none of its parent's."""
    return ThreadPoolExecutor(count, f"diffcodec-{process}")


@cache
def _kernels() -> dict[str, Callable[..., Any]]:
    from numba import njit

    compiled = njit(nogil=True, cache=True, error_model="numpy")
    # As written, without what a checker of signatures may have put around them.
    loops = {"look_up": unwrap(_look_up), "scaled": unwrap(_scaled)}
    return {name: compiled(loop) for name, loop in loops.items()}


def _look_up(
    a: Rows,
    b: Rows,
    first: Rows,
    second: Rows,
    two: bool,
    factor: Rows,
    offset: Rows,
    first_table: Rows,
    second_table: Rows,
) -> bool:
    pixels, channels = a.shape
    half = F32(len(first_table) // 2)
    index = np.empty(channels, np.uint32)  # no sign, so none that counts from the end
    valid = True
    for i in range(pixels):
        for c in range(channels):
            u = a[i, c] + b[i, c] if two else a[i, c]
            u = u * factor[c]
            u = u + offset[c]
            valid &= u == u  # noqa: PLR0124  what is no number does not equal itself
            index[c] = np.uint32(np.int32(np.rint(min(max(u, -half), half)) + half))
        if not valid:
            return False
        for c in range(channels):
            first[i, c] = first_table[index[c]]
            second[i, c] = second_table[index[c]]
    return True


def _scaled(a: Rows, b: Rows, plus: Rows, two: bool, factor: Rows, offset: Rows) -> None:
    pixels, channels = a.shape
    for i in range(pixels):
        for c in range(channels):
            u = a[i, c] + b[i, c] if two else a[i, c]
            u = u * factor[c]
            u = u + offset[c]
            a[i, c] = u + plus[i, c]
