"""Convolutions of integers as products of matrices of bytes, for devices other than the CPU.

Theirs are not exact: TF32 has 11 bits, Winograd and FFT make fractions. But GPUs multiply matrices
of 8-bit integers and add in 32 bits, exactly. So windows of the image become rows (im2col), and
inputs and weights are cut into digits of a byte with its sign. Their products are put together in
32 bits, where an overflow on the way does no harm: the whole sum, which is below 2^24, comes out.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

DIGIT_BITS = 8
MOST_DIGITS = 3
MULTIPLE = 16  # of the columns of both matrices: a GPU's product asks for 8, loads 16 bytes
LEAST_ROWS = 17  # of the first; what it asks for
MOST_BYTES = 1 << 28  # of the first, from more than one image
SHAPES = ((1, 1), (2, 2), (3, 1))  # kernels and strides in use


class GemmConv:
    """An exact convolution on a device; sums come as float32."""

    def __init__(self, weight: Tensor, largest_input: int, device: torch.device):
        """Lay the weight out.

        Args:
            weight: integers [out, in, k, k].
            largest_input: the largest magnitude of what it is called on.
            device: to compute on.
        """
        self._out, _, self._kernel, _ = weight.shape
        self._input_digits = count_digits(largest_input)
        self._weight_digits = count_digits(int(weight.long().abs().max()))
        matrix = weight.int().permute(2, 3, 1, 0).flatten(0, 2)  # [k k in, out], as windows lie
        matrix = F.pad(matrix, (0, -matrix.shape[1] % MULTIPLE, 0, -matrix.shape[0] % MULTIPLE))
        both = torch.cat(signed_digits(matrix, self._weight_digits), 1)
        self._matrix = by_columns(both.to(device))

    def sums(self, x: Tensor, stride: int = 1) -> Tensor:
        """The sums of integers [batch, in, height, width], padded to their size if the stride is 1.

        Exact where the sums of the integers are below 2^24.
        """
        each = self._input_digits * self._matrix.shape[0] * x[0, 0].numel() // stride**2
        parts = x.split(max(1, MOST_BYTES // max(1, each)))
        sums = [self._sums(part, stride) for part in parts]
        return sums[0] if len(sums) == 1 else torch.cat(sums)

    def _sums(self, x: Tensor, stride: int) -> Tensor:
        """The sums of images whose windows are in memory together."""
        images = F.pad(x, ((self._kernel - 1) // 2,) * 4).int().permute(0, 2, 3, 1)
        digits = torch.cat(signed_digits(images, self._input_digits))
        windows = digits.unfold(1, self._kernel, stride).unfold(2, self._kernel, stride)
        count, rows, columns = windows.shape[:3]  # [count, rows, columns, in, k, k]
        matrix = windows.permute(0, 1, 2, 4, 5, 3).reshape(count * rows * columns, -1)
        more = (-matrix.shape[1] % MULTIPLE, max(0, LEAST_ROWS - len(matrix)))
        if any(more):
            matrix = F.pad(matrix, (0, more[0], 0, more[1]))
        products = torch._int_mm(matrix, self._matrix)[: count * rows * columns]
        parts = products.view(self._input_digits, -1, self._weight_digits, self._matrix_columns)
        total = torch.zeros_like(parts[0, :, 0])
        for i in range(self._input_digits):
            for j in range(self._weight_digits):
                if DIGIT_BITS * (i + j) < 32:
                    total += parts[i, :, j] * 2 ** (DIGIT_BITS * (i + j))
        sums = total[:, : self._out].float().view(-1, rows, columns, self._out)
        return sums.permute(0, 3, 1, 2)

    @property
    def _matrix_columns(self) -> int:
        """The matrix's columns for one digit of the weight."""
        return self._matrix.shape[1] // self._weight_digits


def by_columns(matrix: Tensor) -> Tensor:
    """A matrix in the order in which a GPU's product takes the second: column after column."""
    return matrix.t().contiguous().t()


def count_digits(largest: int) -> int:
    """Digits that integers of this magnitude take.

    Raises:
        ValueError: if they take more than there are.
    """
    reach = 0
    for count in range(1, MOST_DIGITS + 1):
        reach = (reach << DIGIT_BITS) + 127  # the lowest digits reach one farther down than up
        if largest <= reach:
            return count
    raise ValueError(f"integers of up to {largest}: expected no more than {reach}")


def signed_digits(integers: Tensor, count: int) -> list[Tensor]:
    """Digits -128..127 of int32 integers, the lowest first, each int8."""
    found = []
    for _ in range(count):
        found.append(integers.to(torch.int8))  # its last 8 bits
        integers = (integers - found[-1]) >> DIGIT_BITS
    return found


@cache
def products_work(device: torch.device) -> bool:
    """Whether the device gives exact sums.

    It is tried on the largest products there are and on random ones, at the kernel sizes and
    strides in use.
    """
    try:
        return _multiplies_bytes(device) and all(_is_exact(device, *shape) for shape in SHAPES)
    except (AttributeError, RuntimeError, TypeError):  # no such operator, or another one
        return False


def _multiplies_bytes(device: torch.device) -> bool:
    generator = torch.Generator().manual_seed(0)
    sizes = (40, 1728), (1728, 64)
    random = [torch.randint(-128, 128, size, generator=generator) for size in sizes]
    full = [[torch.full(size, value) for size in sizes] for value in (-128, 127)]
    for a in (random[0], full[0][0], full[1][0]):
        for b in (random[1], full[0][1], full[1][1]):
            found = torch._int_mm(a.to(device, torch.int8), by_columns(b.to(device, torch.int8)))
            if found.dtype != torch.int32 or not torch.equal(found.cpu().long(), a @ b):
                return False
    return True


def _is_exact(device: torch.device, kernel: int, stride: int) -> bool:
    """Whether sums are exact for inputs of two digits, weights of three: products overflow."""
    generator = torch.Generator().manual_seed(kernel)
    n_in, padding = 19, (kernel - 1) // 2
    few = torch.randint(-20, 21, (26, n_in, kernel, kernel), generator=generator)
    many = torch.zeros_like(few)
    many[:, :8, 0, 0], many[:, 8:16, 0, 0] = 2**15 - 1, -255 * 128
    largest, shape = 4095, (3, n_in, 4 * stride, 3 * stride)
    random = torch.randint(-largest, largest + 1, shape, generator=generator)
    for weight in (few, many, -many):
        conv = GemmConv(weight, largest, device)
        for x in (random, torch.full(shape, largest), torch.full(shape, -largest)):
            expected = F.conv2d(x.double(), weight.double(), None, stride, padding)
            found = conv.sums(x.float().to(device), stride)
            if not torch.equal(found.cpu(), expected.float()):
                return False
    return True
