"""Layers in exact arithmetic: the same numbers on every machine, thread count and batch.

Convolutions have integer weights and integer inputs, held in float32. While every partial sum
stays below 2^24 each product and sum is exact, whatever the order; :func:`check_exact` proves it
from the weights and the largest inputs. All else is element-wise IEEE arithmetic, one operation
at a time (nothing that could be fused into a multiply-add), and look-up tables.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from diffcodec.arrays import round_significant
from diffcodec.diffusion.phases import ERROR_LIMIT
from diffcodec.networks import kernels
from diffcodec.networks.devices import CPU
from diffcodec.networks.exact import EXACT_LIMIT, check_exact, largest_sum, may_round_float32
from diffcodec.networks.gemm import GemmConv
from diffcodec.networks.int8 import (
    BYTE,
    HIGH_ZERO,
    LARGEST_INPUT,
    LARGEST_WEIGHT,
    LOWER_DIGITS,
    LOWEST_INPUT,
    ByteConv,
    digits,
    kernels_work,
)
from diffcodec.networks.unet import Conv

FLOAT32_BITS = 24  # of the tables
PHASE_AMPLITUDE = 127  # of the Fourier features
INPUT_LIMIT = 255 * 256
SILU_STEPS = 1024  # entries per unit of the finest SiLU table
SILU_RANGE = 64  # the coarsest covers -64..64
SILU_HALF = 4096  # entries on each side of zero: what every table has
OUTPUT_DIGIT = 128  # the last activation is cut into two digits of this base
LARGEST_BATCH = 15  # that torch never gives to NNPACK
STRIP_ELEMENTS = 1 << 20  # of a field that is worked on at once: 4 MB of sums
# Of first convolutions, by the end of their names: bytes, the upper one with a sign; phases of
# the Fourier features; errors.
INPUT_RANGES = {
    "conv_in.z": (-INPUT_LIMIT // 256, 255),
    "conv_in.phase": (-PHASE_AMPLITUDE, PHASE_AMPLITUDE),
    "known": (-ERROR_LIMIT, ERROR_LIMIT),
}

Slices = tuple[slice, ...]


@cache
def silu_table() -> NDArray[np.float64]:
    """silu(i / 1024) for i = -65536..65536."""
    u = np.arange(-SILU_RANGE * SILU_STEPS, SILU_RANGE * SILU_STEPS + 1) / SILU_STEPS
    return round_significant(u / (1 + np.exp(-u)), FLOAT32_BITS)


def silu_steps(top: float) -> int:
    """Entries per unit of the finest table that reaches ``top``, a power of two from 64 to 1024."""
    steps = SILU_STEPS
    while steps * SILU_RANGE > SILU_HALF and steps * top > SILU_HALF:
        steps //= 2
    return steps


def is_behind_silu(name: str) -> bool:
    """Whether the named convolution's input is a SiLU's output, so bounded below."""
    return not (name.startswith(("conv_in", "shrink", "grow")) or name.endswith("known"))


def is_last(name: str) -> bool:
    """Whether the named convolution gives what a network predicts, so takes finer inputs."""
    return name.endswith("out")


def input_range(name: str) -> tuple[int, int] | None:
    """The lowest and the highest integer input of a first convolution; None of any other."""
    return next((ends for end, ends in INPUT_RANGES.items() if name.endswith(end)), None)


def takes_bytes(name: str, weight: Tensor, ranges: Sequence[tuple[int, int]]) -> bool:
    """Whether 8-bit kernels may do the named convolution, with the same sums.

    Args:
        name, weight: of the convolution.
        ranges: the lowest and the highest integer of its input at each noise level, or of either
            digit of the last convolution's.
    """
    if not is_behind_silu(name):
        return False
    lowest, highest = min(low for low, _ in ranges), max(high for _, high in ranges)
    if is_last(name):
        largest = weight.long().abs().max().item()
        return largest <= LARGEST_WEIGHT and lowest >= -HIGH_ZERO and highest < BYTE - HIGH_ZERO
    if weight.dtype != torch.int8 or lowest < LOWEST_INPUT or highest > LARGEST_INPUT:
        return False
    return largest_sum(weight.long(), *LOWER_DIGITS) < EXACT_LIMIT


def by_products(device: torch.device) -> bool:
    """Whether convolutions are products of matrices there: see :mod:`diffcodec.networks.gemm`."""
    return device.type != "cpu"


class IntegerConv(NamedTuple):
    """An exact convolution of integers that stand for other numbers."""

    weight: Tensor  # integers, [out, in, k, k]; as float32 where that is how it is done
    scale: NDArray[np.float64]  # what one unit of its weights is worth, [out]
    bias: NDArray[np.float64]  # [out]
    units: list[float]  # what one unit of its inputs is worth, at each noise level
    lowest: list[int]  # of its inputs, at each noise level
    limits: list[int]  # the largest magnitude of these, likewise
    in_bytes: ByteConv | None = None  # the same by 8-bit kernels, where there are any
    products: GemmConv | None = None  # the same on another device than the CPU

    def sums(self, x: Tensor, stride: int = 1) -> Tensor:
        """The exact integer sums."""
        if self.products is not None:
            return self.products.sums(x, stride)
        padding = (self.weight.shape[2] - 1) // 2
        # Neither by NNPACK, whose Winograd transforms make fractions (torch takes it for batches
        # of 16 and more where oneDNN is off or missing), nor in a caller's autocast to bfloat16,
        # nor in what else the caller lets float32 be.
        has_onednn = torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
        parts, weight = [x] if has_onednn else x.split(LARGEST_BATCH), self.weight
        if may_round_float32():
            parts, weight = [part.double() for part in parts], weight.double()
        with torch.autocast("cpu", enabled=False):
            sums = [F.conv2d(part, weight, None, stride, padding).float() for part in parts]
        return _joined(sums)


class IntegerLayers:
    """The convolutions and SiLUs of a quantised network, by their names.

    Tensors: for every convolution ``NAME.weight`` (int8; int16 for the first and the last),
    ``NAME.scale`` and ``NAME.bias`` per output channel, ``NAME.input`` [n, 2] (unit and limit of
    its integer inputs at each of n noise levels); for every residual block that knows the noise
    level ``NAME.affine.table`` [n, 4 * channels], and ``NAME.affine.classes`` [classes, 4 *
    channels], what each class adds to it, if there are any.
    """

    def __init__(
        self,
        outline: nn.Module,
        tensors: Mapping[str, Tensor],
        levels: Sequence[float],
        device: torch.device = CPU,
        classes: int = 0,
    ):
        """Load and check.

        Args:
            outline: a network of the shapes that are claimed.
            tensors: by name.
            levels: at which it answers.
            device: to compute on.
            classes: of images, that it knows.

        Raises:
            ModelMismatchError: if a convolution is not provably exact.
            ValueError: if one is not what the shape claims.
            KeyError: if a tensor is missing.
        """
        names = _checked_names(outline, tensors)
        self.levels, self.device = list(levels), device
        self._invalid = torch.zeros((), dtype=torch.bool, device=device)  # what is no number, met
        self._silu = silu_table()
        self._affine = {
            name.removesuffix(".affine.table"): t.double().numpy()
            for name, t in tensors.items()
            if name.endswith(".affine.table")
        }
        self._of_class = {
            name: _numbers(tensors[f"{name}.affine.classes"], (classes, table.shape[-1]))
            for name, table in (self._affine if classes else {}).items()
        }
        self._tables: dict[tuple[str, int], list[Tensor]] = {}
        self._constants: dict[tuple[str, bytes], Tensor] = {}
        self._convs = {name: self._conv(name, tensors) for name in names}

    def _conv(self, name: str, tensors: Mapping[str, Tensor]) -> IntegerConv:
        """The named convolution, checked."""
        weight, inputs = tensors[f"{name}.weight"], tensors[f"{name}.input"].double()
        if inputs.shape != (len(self.levels), 2) or not (inputs[:, 0] > 0).all():
            raise ValueError(f"{name}.input: expected a unit and a limit for each noise level")
        units, limits = inputs[:, 0].tolist(), inputs[:, 1].long().tolist()
        ranges = [input_range(name) or (-limit, limit) for limit in limits]
        if is_behind_silu(name):
            lowest = float(self._silu.min())
            ranges = [(round(lowest / u), limit) for u, limit in zip(units, limits, strict=True)]
        all_lowest = [low for low, _ in ranges]
        if is_last(name):
            ranges = [
                (low // OUTPUT_DIGIT, max(OUTPUT_DIGIT - 1, high // OUTPUT_DIGIT))
                for low, high in ranges
            ]
        check_exact(name, weight, ranges)
        products = by_products(self.device)
        largest = max(abs(end) for ends in ranges for end in ends)
        in_bytes = not products and takes_bytes(name, weight, ranges) and kernels_work()
        if not (in_bytes or products):
            weight = weight.float().contiguous(memory_format=torch.channels_last)
        return IntegerConv(
            weight,
            tensors[f"{name}.scale"].double().numpy(),
            tensors[f"{name}.bias"].double().numpy(),
            units,
            all_lowest,
            limits,
            ByteConv(weight) if in_bytes else None,
            GemmConv(weight, largest, self.device) if products else None,
        )

    def _per_channel(self, values: NDArray[np.float64]) -> Tensor:
        """[c] -> float32 [1, c, 1, 1]; infinite what a hostile model has beyond that."""
        with np.errstate(over="ignore"):
            floats = values.astype(np.float32)
        return self._constant(floats[None, :, None, None])

    def _constant(self, values: NDArray[np.floating]) -> Tensor:
        """Numbers on the device, brought there once: it is waited for then."""
        key = str(values.dtype), values.tobytes()
        if key not in self._constants:
            self._constants[key] = torch.from_numpy(values.copy()).to(self.device)
        return self._constants[key]

    def _block(self, name: str, level: int, h: Tensor, label: int = -1) -> Tensor:
        """Residual block, of images of a class, if that is not -1."""
        affine = self._affine[name][level]
        if label >= 0:
            affine = affine + self._of_class[name][label]
        scale1, shift1, scale2, shift2 = np.split(affine, 4)
        name1, name2 = f"{name}.conv1", f"{name}.conv2"
        conv = self._convs[name1]
        steps1, steps2 = self._steps(name1, level), self._steps(name2, level)
        x = self._activate(name1, level, [h], (1 + scale1) * steps1, shift1 * steps1)
        factor = (1 + scale2) * steps2
        offset = factor * conv.bias + shift2 * steps2
        factor = factor * (conv.scale * conv.units[level])
        parts = [
            self._activate(name2, level, sums, factor, offset)
            for _, sums in self._sums_in_strips(name1, level, x)
        ]
        x = [_joined(digits, strip_axis(h)) for digits in zip(*parts, strict=True)]
        for strip, sums in self._sums_in_strips(name2, level, x):
            self._scaled(name2, level, sums, h[strip], out=h[strip])
        return h

    def _sums_in_strips(
        self, name: str, level: int, x: Sequence[Tensor]
    ) -> Iterator[tuple[tuple[slice, ...], list[Tensor]]]:
        """The same as :meth:`_sums`, strip by strip: what is worked on stays in the caches."""
        for strip, near, own in strips(x[0], self._convs[name].weight.shape[2] // 2):
            sums = self._sums(name, level, [part[near] for part in x])
            yield strip, [part[own] for part in sums]

    def _sums(self, name: str, level: int, x: Sequence[Tensor]) -> list[Tensor]:
        """Parts that add up to the named convolution's sums, for what :meth:`_activate` gives."""
        conv = self._convs[name]
        if is_last(name):
            if conv.in_bytes is None:
                return [conv.sums(x[0]).mul_(OUTPUT_DIGIT), conv.sums(x[1])]
            inputs = (x[0], HIGH_ZERO, OUTPUT_DIGIT), (x[1], 0, 1)
            return [conv.in_bytes.digit_sums(*each) for each in inputs]
        if conv.in_bytes is not None:
            return conv.in_bytes.sums(x, conv.lowest[level])
        return [conv.sums(x[0])]

    def _scaled(
        self,
        name: str,
        level: int,
        sums: Sequence[Tensor],
        plus: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """What the named convolution's sums stand for, and something more; see :func:`affine`."""
        conv = self._convs[name]
        factor = self._per_channel(conv.scale * conv.units[level])
        return affine(sums, factor, self._per_channel(conv.bias), plus, out)

    def _steps(self, name: str, level: int) -> int:
        """Entries per unit of the SiLU table before the named convolution."""
        conv = self._convs[name]
        return silu_steps(conv.units[level] * conv.limits[level])

    def _silu_integers(self, name: str, level: int) -> Tensor:
        """SiLU from table steps to the integers that the named convolution takes, [8193]."""
        conv = self._convs[name]
        stride = SILU_STEPS // self._steps(name, level)
        middle, reach = len(self._silu) // 2, SILU_HALF * stride
        silu = self._silu[middle - reach : middle + reach + 1 : stride]
        entries = np.minimum(np.rint(silu / conv.units[level]), conv.limits[level])
        return torch.from_numpy(entries).float()

    def _digits_of_silu(self, name: str, level: int) -> list[Tensor]:
        """The same in the one or two digits that the convolution takes."""
        if (name, level) not in self._tables:
            integers, conv = self._silu_integers(name, level), self._convs[name]
            tables = [integers]
            if is_last(name):
                high = (integers / OUTPUT_DIGIT).floor()
                tables = [high, integers - OUTPUT_DIGIT * high]
                if conv.in_bytes is not None:
                    tables = [(high + HIGH_ZERO).to(torch.uint8), tables[1].to(torch.uint8)]
            elif conv.in_bytes is not None:
                tables = digits(integers, conv.lowest[level], conv.limits[level])
            self._tables[name, level] = [table.to(self.device) for table in tables]
        return self._tables[name, level]

    def _activate(
        self,
        name: str,
        level: int,
        parts: Sequence[Tensor],
        factor: NDArray[np.float64],
        offset: NDArray[np.float64],
    ) -> list[Tensor]:
        """SiLU of the parts' sum, scaled to table steps, in the named convolution's digits.

        Raises:
            OverflowError: if an input is not a number; of another device than the CPU the network's
                answer is no number then.
        """
        tables = self._digits_of_silu(name, level)
        factors, offsets = self._per_channel(factor), self._per_channel(offset)
        if kernels.are_for(parts[0]):
            found = kernels.look_up(parts, factors, offsets, tables)
            if found is None:
                raise OverflowError(f"the input of {name} is not a number")
            return found
        u = (_added(parts) * factors).add_(offsets)
        n, c, height, width = u.shape
        flat = self._indices(u, SILU_HALF).permute(0, 2, 3, 1).reshape(-1)  # memory order
        try:  # gather takes all threads, which index_select does not
            looked_up = [table.gather(0, flat) for table in tables]
        except RuntimeError as e:  # an index out of range
            raise OverflowError(f"the input of {name} is not a number") from e
        return [each.view(n, height, width, c).permute(0, 3, 1, 2) for each in looked_up]

    def _silu_alone(self, name: str, level: int, h: Tensor) -> list[Tensor]:
        """What :meth:`_activate` gives, of what is not scaled."""
        steps = np.full(h.shape[1], float(self._steps(name, level)))
        return self._activate(name, level, [h], steps, np.zeros(len(steps)))

    def _indices(self, u: Tensor, half: int) -> Tensor:
        """The indices of a table's entries -half..half; overwrites u.

        One out of range, of what is no number, is an error on a CPU, but the end of a GPU's work.
        """
        index = u.clamp_(-half, half).round_().add_(half)
        if by_products(self.device):
            self._note_invalid(index)
            index.nan_to_num_()
        return index.long()

    def _note_invalid(self, x: Tensor) -> None:
        """What would be integers and is no number; on a CPU it comes out as such."""
        if by_products(self.device):
            self._invalid |= x.isnan().any()

    def _mark_invalid(self, *fields: Tensor) -> None:
        """Make no number of all if any index was out of range: a device is not waited for."""
        if by_products(self.device):
            for field in fields:
                field.masked_fill_(self._invalid, torch.nan)
            self._invalid.zero_()

    def _resample(self, name: str, level: int, h: Tensor, stride: int) -> Tensor:
        """A convolution of the rounded stream itself."""
        conv = self._convs[name]
        limit = conv.limits[level]
        x = (h * (1 / conv.units[level])).round_().clamp_(-limit, limit)
        self._note_invalid(x)
        return self._scaled(name, level, [conv.sums(x, stride)])

    def _output(self, name: str, level: int, h: Tensor) -> Tensor:
        """Last convolution."""
        return self._scaled(name, level, self._sums(name, level, self._silu_alone(name, level, h)))


def _numbers(tensor: Tensor, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The numbers of a tensor.

    Raises:
        ValueError: if it is of another shape.
    """
    if tensor.shape != shape:
        raise ValueError(f"a tensor is {list(tensor.shape)}, expected {list(shape)}")
    return tensor.double().numpy()


def affine(
    parts: Sequence[Tensor],
    factor: Tensor,
    offset: Tensor,
    plus: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``sum of parts * factor + offset + plus``; overwrites the parts, or ``out``.

    Args:
        parts: one or two, [batch, channels, height, width].
        factor, offset: by channel, [1, channels, 1, 1].
        plus, out: as the parts, or the same.
    """
    if plus is not None and kernels.are_for(plus):
        return kernels.scaled(parts, factor, offset, plus, out)
    found = _added(parts).mul_(factor).add_(offset)
    if plus is not None:
        found = found.add_(plus)
    return found if out is None else out.copy_(found)


def strip_axis(x: Tensor) -> int:
    """Along which :func:`strips` cuts: images, or the rows of one."""
    return 0 if len(x) > 1 else 2


def strips(x: Tensor, margin: int) -> Iterator[tuple[Slices, Slices, Slices]]:
    """Parts of images for convolutions: as indices of each, of what it knows of, and of it in that.

    Args:
        x: [batch, channels, height, width].
        margin: rows that the convolution sees on either side.
    """
    axis, count = strip_axis(x), 1
    if x.device.type == "cpu":
        count = min(x.shape[axis], max(1, x.numel() // STRIP_ELEMENTS))
    size, margin = x.shape[axis], margin if axis else 0
    before = (slice(None),) * axis
    for start, end in pairwise(size * i // count for i in range(count + 1)):
        first, last = max(0, start - margin), min(size, end + margin)
        yield (
            (*before, slice(start, end)),
            (*before, slice(first, last)),
            (*before, slice(start - first, end - first)),
        )


def _joined(parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    """The whole of parts along an axis; one part is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)


def _added(parts: Sequence[Tensor]) -> Tensor:
    """The sum of parts; overwrites the first of two."""
    return parts[0] if len(parts) == 1 else parts[0].add_(parts[1])


def _checked_names(outline: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the outline's convolutions, whose tensors are of its shapes.

    Raises:
        ValueError: if one is not.
        KeyError: if one is missing.
    """
    names: list[str] = []
    for name, module in outline.named_modules():
        if not isinstance(module, Conv):
            continue
        out, inputs, *kernel = module.shape
        parts = {name: inputs}
        if name == "conv_in":
            parts = {f"{name}.z": inputs // 3, f"{name}.phase": inputs - inputs // 3}
        names += parts
        for part, n_in in parts.items():
            shapes = {"weight": [out, n_in, *kernel], "scale": [out], "bias": [out]}
            for kind, expected in shapes.items():
                found = list(tensors[f"{part}.{kind}"].shape)
                if found != expected:
                    raise ValueError(f"{part}.{kind} is {found}, expected {expected}")
    return names
