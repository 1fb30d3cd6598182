"""The network in exact arithmetic: see :mod:`diffcodec.networks.integer_layers`."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from diffcodec.arrays import round_significant
from diffcodec.diffusion.color import DOMAINS
from diffcodec.diffusion.phases import PHASES
from diffcodec.networks.config import NetworkConfig, UNetConfig
from diffcodec.networks.devices import CPU
from diffcodec.networks.dit import outline
from diffcodec.networks.experts import split_experts, split_phases
from diffcodec.networks.integer_layers import (
    FLOAT32_BITS,
    INPUT_LIMIT,
    PHASE_AMPLITUDE,
    IntegerLayers,
    affine,
)
from diffcodec.networks.phases import PhaseNetworks, outline_phases
from diffcodec.networks.protocol import Field, Labels, Planes, digest
from diffcodec.networks.scaling import scaling
from diffcodec.networks.unet import FOURIER_PERIOD, LOG_VARIANCE_RANGE

TURN_STEPS = 512  # of one period of the Fourier features
INPUT_SCALE = 2.0**12  # of the normalised input, clipped to -16..16 and cut into two bytes
VARIANCE_STEPS = 16  # table entries per unit of log variance
VARIANCE_RANGE = 16


def variance_table() -> NDArray[np.float64]:
    """The factor of the variance for a network output i / 16, as :class:`.UNet` defines it."""
    limit = LOG_VARIANCE_RANGE
    g = np.arange(-VARIANCE_RANGE * VARIANCE_STEPS, VARIANCE_RANGE * VARIANCE_STEPS + 1)
    return round_significant(np.exp(limit * np.tanh(g / VARIANCE_STEPS / limit)), FLOAT32_BITS)


def check_has_integers(config: NetworkConfig) -> None:
    """Refuse a network that has no exact form.

    Raises:
        ValueError: so.
    """
    if not config.has_integers:
        raise ValueError("a DiT has no form in integers; give --arithmetic float")


def phase_tables() -> tuple[Tensor, Tensor]:
    """Sine and cosine of k / 512 of a turn, as integers up to 127."""
    angle = 2 * np.pi * np.arange(TURN_STEPS) / TURN_STEPS
    sine, cosine = (np.rint(PHASE_AMPLITUDE * f(angle)) for f in (np.sin, np.cos))
    return torch.from_numpy(sine).float(), torch.from_numpy(cosine).float()


class IntegerNetwork:
    """Inference of quantised :class:`~diffcodec.networks.experts.ExpertDenoisers`, exact.

    A ``PosteriorNetwork`` at its tables' noise levels.
    """

    is_exact = True

    def __init__(
        self, config: NetworkConfig, tensors: Mapping[str, Tensor], device: torch.device = CPU
    ):
        """Load and check: see :class:`IntegerUNet` and :class:`IntegerPhases`."""
        check_has_integers(config)
        self.config, self._tensors, self.device = config, tensors, device
        self.color, self.multiple, self.classes = config.color, config.multiple, config.classes
        self.reflection = config.reflection
        parts = split_experts(tensors, len(config.experts))
        self.experts = [
            IntegerUNet(shape, part, device)
            for (_, shape), part in zip(config.experts, parts, strict=True)
        ]
        outlines = outline_phases(config, len(tensors))
        own = split_phases(tensors, len(outlines))
        self.phases = [IntegerPhases(*each, device) for each in zip(outlines, own, strict=True)]
        self.levels = sorted(
            {
                sigma
                for number, expert in enumerate(self.experts)
                for sigma in expert.levels
                if config.phases or config.expert_at(sigma) == number
            }
        )

    @property
    def quantiser(self) -> int:
        """See ``PhasedNetwork``."""
        return self.config.quantiser

    @cached_property
    def identity(self) -> bytes:
        """Digest of the shape and the tensors."""
        return digest(self.config.to_dict(), self._tensors)

    def posterior_x(
        self, z: Field, sigma: float, labels: Labels | None = None
    ) -> tuple[Field, Field]:
        """Mean and variance of x given z_t: see ``ClassNetwork``; sigma one of ``levels``."""
        if labels is None:
            return self._of_one_class(z, sigma)
        mean, v = torch.empty_like(z), torch.empty_like(z)
        for label in labels.unique().tolist():
            rows = labels == label
            mean[rows], v[rows] = self._of_one_class(z[rows], sigma, label)
        return mean, v

    def _of_one_class(self, z: Field, sigma: float, label: int = -1) -> tuple[Field, Field]:
        expert = self.experts[self.config.expert_at(sigma)]
        if self.config.phases:  # where several answer, the last
            expert = next(e for e in reversed(self.experts) if sigma in e.levels)
        mean, v = expert.posterior_x(z, sigma, label)
        axes = self.config.ensemble_axes(sigma)
        if axes:
            other_mean, other_v = expert.posterior_x(z.flip(axes), sigma, label)
            mean, v = (mean + other_mean.flip(axes)) / 2, (v + other_v.flip(axes)) / 2
        return mean, v

    def begin_phases(self, which: int, z: Field, sigma: float) -> tuple[Field, Field, list[Tensor]]:
        """See ``PhasedNetwork``."""
        teller = self.config.teller_at(which, sigma)
        mean, v, stream = self.experts[self.config.expert_of(teller)].evaluate(z, sigma)
        return mean, v, self.phases[teller].shared(stream)

    def phase_parameters(
        self, which: int, sigma: float, number: int, shared: Tensor, told: Planes
    ) -> Tensor:
        """See ``PhasedNetwork``."""
        phases: IntegerPhases = self.phases[self.config.teller_at(which, sigma)]
        return phases.parameters_of(number, shared, told)


class IntegerUNet(IntegerLayers):
    """Inference of a quantised :class:`~diffcodec.networks.unet.UNet`, alone.

    Tensors: those of :class:`IntegerLayers`, and ``levels`` [n].
    """

    def __init__(
        self, config: UNetConfig, tensors: Mapping[str, Tensor], device: torch.device = CPU
    ):
        """Load and check: see :class:`IntegerLayers`."""
        shape = outline(config, len(tensors))
        grown = _grown_alike(tensors, len(config.channels) - 1)
        super().__init__(shape, grown, tensors["levels"].tolist(), device, config.classes)
        self.config = config
        domain = DOMAINS[config.color]
        self._center, self._data_std, self._multipliers = (
            np.array(values)[:, None, None]  # [3, 1, 1]
            for values in (domain.center, domain.data_std, domain.noise_multipliers)
        )
        self._sine, self._cosine = (table.to(device) for table in phase_tables())
        self._variance = torch.from_numpy(variance_table()).to(device)

    def posterior_x(self, z: Field, sigma: float, label: int = -1) -> tuple[Field, Field]:
        """Mean and variance of x given z_t, of images of a class, if that is not -1."""
        return self.evaluate(z, sigma, label)[:2]

    def evaluate(self, z: Field, sigma: float, label: int = -1) -> tuple[Field, Field, Tensor]:
        """The same, and the stream before the last SiLU, [batch, channels, rows, columns]."""
        level = self.levels.index(sigma)
        scales = scaling(sigma * self._multipliers, self._data_std, np.sqrt)
        c_skip, c_out, total, center = (
            self._constant(factor) for factor in (*scales, self._center)
        )
        centered = z - center
        h = self._input(z, centered / total)
        skips = []
        last = len(self.config.channels) - 1
        for i, count in enumerate(self.config.blocks):
            for k in range(count):
                h = self._block(f"down.{i}.{k}", level, h, label)
            if i < last:
                skips.append(h)
                h = self._resample(f"shrink.{i}", level, h, stride=2)
        for i in range(last, -1, -1):
            if i < last:
                h = _add_grown(skips.pop(), self._resample(f"grow.{i}", level, h, stride=1))
            for k in range(self.config.blocks[i]):
                h = self._block(f"up.{i}.{k}", level, h, label)
        output = F.pixel_shuffle(self._output("conv_out", level, h), self.config.patch)
        field, log_ratio = output.chunk(2, 1)
        mean = (c_skip * centered + c_out * field.double()) + center
        index = self._indices(log_ratio * VARIANCE_STEPS, VARIANCE_RANGE * VARIANCE_STEPS)
        v = (c_out * c_out) * self._variance[index]
        self._mark_invalid(mean)
        return mean, v, h

    def _input(self, z: Tensor, normalised: Tensor) -> Tensor:
        """First convolution: the normalised input in two bytes, and the phases."""
        value = (normalised * INPUT_SCALE).round_().clamp_(-INPUT_LIMIT, INPUT_LIMIT)
        high = (value / 256).floor_()
        low = value - high * 256
        turn = (z * (TURN_STEPS / FOURIER_PERIOD)).round_()
        index = torch.remainder(turn, TURN_STEPS).to(torch.int32).flatten()
        phases = [t.index_select(0, index).view(z.shape) for t in (self._sine, self._cosine)]
        conv, phase_conv = self._convs["conv_in.z"], self._convs["conv_in.phase"]
        sums = conv.sums(self._unshuffle(high)).mul_(256).add_(conv.sums(self._unshuffle(low)))
        phase_sums = phase_conv.sums(self._unshuffle(torch.cat(phases, 1)))
        phase_sums.mul_(self._per_channel(phase_conv.scale / PHASE_AMPLITUDE))
        factor, offset = self._per_channel(conv.scale / INPUT_SCALE), self._per_channel(conv.bias)
        return affine([sums], factor, offset, phase_sums)

    def _unshuffle(self, x: Tensor) -> Tensor:
        patches = F.pixel_unshuffle(x.float(), self.config.patch)
        return patches.contiguous(memory_format=torch.channels_last)


class IntegerPhases(IntegerLayers):
    """Inference of quantised :class:`~diffcodec.networks.phases.PhaseNetworks`.

    Args:
        outline: the networks without their numbers.
        tensors: see :class:`IntegerLayers`; alike at all noise levels.
        device: to compute on.
    """

    def __init__(
        self, outline: PhaseNetworks, tensors: Mapping[str, Tensor], device: torch.device = CPU
    ):
        tensors = _folded_alike(tensors, outline.fold)
        super().__init__(outline, tensors, [0.0], device)
        # One of each phase: what all make at once would be the largest of all fields.
        self._features = [f"features.{number}" for number in range(len(PHASES))]
        for number, name in enumerate(self._features):
            self._convs[name] = self._conv("features", _of_phase(number, tensors))
        del self._convs["features"]
        self.fold, self.blocks = outline.fold, len(outline.phases[0].blocks)
        none = np.zeros((1, 4 * outline.phases[0].known.shape[0]))  # they know no noise level
        for number in range(len(PHASES)):
            self._affine |= {f"phases.{number}.blocks.{k}": none for k in range(self.blocks)}

    def shared(self, stream: Tensor) -> list[Tensor]:
        """What each phase makes of the U-Net's stream; see ``PhaseNetworks.shared``."""
        name = self._features[0]  # of any: all take the same
        folded = [_fold(digit, self.fold) for digit in self._silu_alone(name, 0, stream)]
        shared = [self._scaled(name, 0, self._sums(name, 0, folded)) for name in self._features]
        self._mark_invalid(*shared)
        return shared

    def parameters_of(self, number: int, shared: Tensor, told: Planes) -> Tensor:
        """See ``PhaseNetworks.parameters_of``; what is told are integers of 1 / 128."""
        phase = f"phases.{number}"
        known = f"{phase}.known"
        folded = F.pixel_unshuffle(told.float(), 2)
        sums = self._convs[known].sums(folded.contiguous(memory_format=torch.channels_last))
        h = self._scaled(known, 0, [sums], shared)
        for block in range(self.blocks):
            h = self._block(f"{phase}.blocks.{block}", 0, h)
        parameters = self._output(f"{phase}.out", 0, h)
        self._mark_invalid(parameters)
        return parameters


def _grown_alike(tensors: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The tensors, the channels that the growing convolutions make as :func:`_add_grown` has."""
    kinds = [f"grow.{i}.{kind}" for i in range(count) for kind in ("weight", "scale", "bias")]
    orders = {name: tensors[name].unflatten(0, (-1, 4)).transpose(0, 1) for name in kinds}
    return dict(tensors) | {name: order.flatten(0, 1) for name, order in orders.items()}


def _add_grown(h: Tensor, squares: Tensor) -> Tensor:
    """The sum, with channels that are squares of 2 x 2 pixels, each with all its own; in place."""
    by_square = squares.unflatten(1, (2, 2, -1)).permute(0, 3, 4, 1, 5, 2)
    h.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).add_(by_square)
    return h


def _fold(x: Tensor, side: int) -> Tensor:
    """Squares of pixels to channels, row by row, each with all its own: whole runs are moved."""
    n, c, height, width = x.shape
    squares = x.permute(0, 2, 3, 1).reshape(n, height // side, side, width // side, side * c)
    rows = squares.transpose(2, 3).reshape(n, height // side, width // side, side * side * c)
    return rows.permute(0, 3, 1, 2)


def _of_phase(number: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the features' convolution, of what it makes for one phase."""
    own = ("weight", "scale", "bias")
    parts = {
        f"features.{kind}": tensors[f"features.{kind}"].chunk(len(PHASES))[number] for kind in own
    }
    return dict(tensors) | parts


def _folded_alike(tensors: Mapping[str, Tensor], side: int) -> dict[str, Tensor]:
    """The tensors, the channels that the convolution of the features takes as :func:`_fold` has."""
    weight = tensors["features.weight"]
    channels = weight.unflatten(1, (-1, side * side)).transpose(1, 2).flatten(1, 2)
    return dict(tensors) | {"features.weight": channels.contiguous()}
