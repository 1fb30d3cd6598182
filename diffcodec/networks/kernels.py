"""Element-wise steps between convolutions, each in one compiled pass over the memory.

Small tensors go through torch, so that what codes small images alone need not load the compiler.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffcodec.compiled import by_threads, compiled, works

LEAST_ELEMENTS = 1 << 17  # of a tensor that kernels are for
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
    found = by_threads(
        compiled(_look_up),
        [*_first_and_last(parts), *_first_and_last(out)],
        [len(parts) == 2, len(out) == 2, *_flat([factor, offset, tables[0], tables[-1]])],
        torch.get_num_threads(),
    )
    return out if all(found) else None


def scaled(
    parts: Sequence[Tensor],
    factor: Tensor,
    offset: Tensor,
    plus: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """``sum of parts * factor + offset + plus``, arguments as above.

    In ``out``, which may be ``plus``, else it may overwrite the parts.
    """
    parts = [part.contiguous(memory_format=torch.channels_last) for part in parts]
    out = parts[0] if out is None else out
    by_threads(
        compiled(_scaled),
        [*_first_and_last(parts), _rows(plus), _rows(out)],
        [len(parts) == 2, *_flat([factor, offset])],
        torch.get_num_threads(),
    )
    return out


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
    """Whether there is a compiler and its kernels give what torch gives, bit for bit."""
    return works(_are_exact)


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


def _look_up(
    a: Rows,
    b: Rows,
    first: Rows,
    second: Rows,
    two: bool,
    both: bool,
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
        if both:
            for c in range(channels):
                second[i, c] = second_table[index[c]]
    return True


def _scaled(a: Rows, b: Rows, plus: Rows, out: Rows, two: bool, factor: Rows, offset: Rows) -> None:
    pixels, channels = a.shape
    for i in range(pixels):
        for c in range(channels):
            u = a[i, c] + b[i, c] if two else a[i, c]
            u = u * factor[c]
            u = u + offset[c]
            out[i, c] = u + plus[i, c]
