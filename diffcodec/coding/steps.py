"""The coding steps of the chain, written once: encoder and decoder both drive them.

Bit-Swap order (Kingma et al. 2019). Upward, the encoder pushes the remainder of x given z_1, then
for t = 2..T pops ``z_t ~ q(z_t | z_{t-1})`` and pushes ``z_{t-1} ~ p(z_{t-1} | z_t)``, and at last
pushes z_T under its prior. The decoder runs the same list backward with push and pop exchanged.

Below a preview z_s, which relative entropy coding has sent (:mod:`diffcodec.coding.top_down`),
the chain ends at z_{s-1}: its pops are from the bridge ``q(z_t | z_{t-1}, z_s)``, and instead of a
prior there is ``p(z_{s-1} | z_s)``.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from diffcodec.arrays import Array
from diffcodec.coding.ans import Stack, truncated_gaussian
from diffcodec.coding.chain import Answer, Asked, TileChain
from diffcodec.coding.codecs import Candidates, Codec, GaussianBins, restricted
from diffcodec.coding.mixtures import exponential, mixture_mean, mixture_table
from diffcodec.diffusion.phases import (
    PHASES,
    channel_shift,
    expected_x,
    expected_z,
    expected_z_1,
    first_variance,
    gaussians,
    mixtures,
    refined,
)
from diffcodec.diffusion.process import on_lattice, p_first, p_prior, p_reverse

FORWARD_RADIUS = 16  # bins: a wider window pops an outlier once in a thousand symbols
REVERSE_RADIUS = 2000

# A channel or those that are coded, and every second row and column.
PhasePart = tuple[int | slice, slice, slice]
Part = int | slice | PhasePart  # of a variable, as an index into [3, height, width]


class PhaseFields(NamedTuple):
    """What is known of the pixels of a phase when a channel of them is coded.

    Attributes:
        channel: which.
        parameters: of the phase, [1, parameters, rows, columns].
        mean, unit: of all channels without context, [3, rows, columns].
        errors: of the channels before it, in units, [rows, columns] each.
    """

    channel: int
    parameters: Array
    mean: Array
    unit: Array
    errors: Sequence[Array]


class OutOfRangeError(Exception):
    """A symbol lies outside the coder's window: the tile must be coded another way."""


@dataclass(frozen=True)
class Step(ABC):
    """A variable of the chain and the distribution that codes it.

    It is coded part by part, in the order in which the decoder comes to know them: the codec of a
    part may depend on the parts before it, which then lie in the chain.

    Attributes:
        timestep: of the variable.
        pushes: whether the encoder pushes it; the decoder does the inverse.
    """

    timestep: int
    pushes: ClassVar[bool] = True

    @abstractmethod
    def codec(self, chain: TileChain, part: Part) -> Generator[Asked, Answer, Codec]:
        """The codec of a part; a coroutine that yields what it asks of the model."""

    def parts(self, chain: TileChain) -> list[Part]:
        """What is coded at once, in the decoder's order."""
        return [slice(0, chain.coded)]

    def push(self, chain: TileChain, stack: Stack) -> Generator[Asked, Answer, None]:
        """Push the variable, and forget it.

        Raises:
            OutOfRangeError: if a value has no code.
        """
        for part in reversed(self.parts(chain)):
            codec = yield from self.codec(chain, part)
            if not codec.push(stack, chain.z[self.timestep][part]):
                raise OutOfRangeError(f"timestep {self.timestep}")
        del chain.z[self.timestep]

    def pop(self, chain: TileChain, stack: Stack) -> Generator[Asked, Answer, None]:
        """Pop the variable, and keep it."""
        z = self.prepare(chain)
        for part in self.parts(chain):
            codec = yield from self.codec(chain, part)
            z[part] = codec.pop(stack)

    def prepare(self, chain: TileChain) -> Array:
        """The variable in the chain before it is popped, to be filled in."""
        unknown = np.zeros((chain.coded, *chain.shape[1:]))
        z = np.concatenate([unknown, chain.known_channels(self.timestep)])
        chain.z[self.timestep] = z
        return z


class Remainder(Step):
    """The image by ``p(x | z_1)``: a Gaussian truncated to the M integers that z_1 leaves of each.

    Channel by channel, the last first. Where the chain knows which colours can occur, their product
    is restricted to these and renormalised: p of a channel given those after it is its own p times
    the probability that the channels before it make such a colour (:func:`restricted`).
    """

    def __init__(self) -> None:
        super().__init__(timestep=0)

    def parts(self, chain: TileChain) -> list[Part]:
        """See :meth:`Step.parts`."""
        return list(reversed(range(chain.coded)))

    def codec(self, chain: TileChain, part: Part) -> Generator[Asked, Answer, Codec]:
        """See :meth:`Step.codec`."""
        assert isinstance(part, int)
        mean, variance, _ = yield from chain.posterior(1)
        candidates = chain.levels[0].spacing
        lowest = chain.z[1] - (candidates - 1) / 2
        tables = [
            truncated_gaussian(
                (mean[c] - lowest[c]).ravel(),
                np.sqrt(variance[c]).ravel(),
                count=int(candidates[c].item()),
            )
            for c in range(0 if chain.allowed else part, part + 1)
        ]
        if chain.allowed is None:
            return Candidates(lowest[part], tables[0])
        return Candidates(lowest[part], restricted(tables, lowest, chain.z[0], chain.allowed))


class PhasedStep(Step):
    """A variable in phases (:mod:`diffcodec.diffusion.phases`): every one knows those before it."""

    @abstractmethod
    def expected(self, chain: TileChain) -> Generator[Asked, Answer, tuple[Array, Array]]:
        """The mean of the variable without context, and what its errors are measured in."""

    def begin(
        self, chain: TileChain, part: Part
    ) -> Generator[Asked, Answer, tuple[Array, tuple[slice, slice]]]:
        """The parameters of a part's phase, [1, parameters, rows, columns], and where it lies."""
        assert isinstance(part, tuple)
        t, where = self.timestep, part[1:]
        if chain.expected is None or chain.expected[0] is not chain.z[t + 1]:
            chain.expected = chain.z[t + 1], *(yield from self.expected(chain))
        number = PHASES.index((where[0].start, where[1].start))
        parameters = yield from chain.phase_parameters(t, number, isinstance(self, PhasedReverse))
        height, width = chain.z[t][0][where].shape
        return parameters[None, :, :height, :width], where


class PhasedChannels(PhasedStep):
    """A phased step channel by channel: every channel knows those before it in its pixels."""

    @abstractmethod
    def phase_codec(
        self, chain: TileChain, fields: PhaseFields, where: tuple[slice, slice]
    ) -> Codec:
        """The codec of a channel of the pixels of a phase."""

    def parts(self, chain: TileChain) -> list[Part]:
        """See :meth:`Step.parts`."""
        return phase_parts(chain, range(chain.coded))

    def codec(self, chain: TileChain, part: Part) -> Generator[Asked, Answer, Codec]:
        """See :meth:`Step.codec`."""
        fields, where = yield from self.fields(chain, part)
        return self.phase_codec(chain, fields, where)

    def fields(
        self, chain: TileChain, part: Part
    ) -> Generator[Asked, Answer, tuple[PhaseFields, tuple[slice, slice]]]:
        """What is known of a part, and where it lies."""
        parameters, (rows, columns) = yield from self.begin(chain, part)
        assert isinstance(part, tuple) and isinstance(part[0], int) and chain.expected
        z, mean, unit = (
            field[:, rows, columns] for field in (chain.z[self.timestep], *chain.expected[1:])
        )
        errors = [(z[i] - mean[i]) / unit[i] for i in range(part[0])]
        return PhaseFields(part[0], parameters, mean, unit, errors), (rows, columns)


class PhasedRemainder(PhasedChannels):
    """The image by ``p(x | z_1)``: each sample a mixture truncated to its candidates.

    Where the chain knows which colours can occur, a channel's table is restricted to these: p of a
    candidate times the probability that the channels after it make such a colour, those at the
    errors that are expected of the ones before them.
    """

    def __init__(self) -> None:
        super().__init__(timestep=0)

    def expected(self, chain: TileChain) -> Generator[Asked, Answer, tuple[Array, Array]]:
        """See :meth:`PhasedStep.expected`."""
        mean, variance, _ = yield from chain.posterior(1)
        return expected_x(mean, variance, np.sqrt)

    def phase_codec(
        self, chain: TileChain, fields: PhaseFields, where: tuple[slice, slice]
    ) -> Codec:
        """See :meth:`PhasedChannels.phase_codec`."""
        channel, (rows, columns) = fields.channel, where
        steps = chain.levels[0].spacing
        lowest = chain.z[1][:, rows, columns] - (steps - 1) / 2
        weights, means, log_scales, coupling = mixtures(fields.parameters)
        errors, tables = list(fields.errors), []
        end = chain.coded if chain.allowed else channel + 1
        for c in range(channel, end):
            shift = channel_shift(c, coupling, errors)
            logistics = [
                field.reshape(len(field), -1)
                for field in (weights[0, c], means[0, c] + shift, log_scales[0, c])
            ]
            table = mixture_table(
                weights=logistics[0],
                means=logistics[1],
                log_scales=logistics[2],
                low=(lowest[c] - 0.5 - fields.mean[c]).ravel(),
                unit=fields.unit[c].ravel(),
                count=int(steps[c].item()),
            )
            tables.append(table)
            if c + 1 < end:
                errors.append(mixture_mean(logistics[0], logistics[1]).reshape(lowest[c].shape))
        table = tables[0]
        if chain.allowed:
            x = chain.z[0][:, rows, columns]
            coded = [x[c] if c < channel else lowest[c] for c in range(chain.coded)]
            known = [x[c] for c in range(chain.coded, 3)]
            flat = [field.ravel() for field in (*coded, *known)]
            table = chain.allowed.volume.restricted(channel, tables, flat)
        return Candidates(lowest[channel], np.ascontiguousarray(table.T))


class PhasedFirst(PhasedChannels):
    """The model's ``p(z_1 | z_2)``: each sample a Gaussian's masses on the lattice of z_1."""

    def __init__(self) -> None:
        super().__init__(timestep=1)

    def expected(self, chain: TileChain) -> Generator[Asked, Answer, tuple[Array, Array]]:
        """See :meth:`PhasedStep.expected`."""
        xhat, v, _ = yield from chain.posterior(2)
        below, above = chain.levels[:2]
        with np.errstate(all="ignore"):  # what is not finite the coder refuses
            sigmas = below.sigma, above.sigma
            return expected_z_1(xhat, v, chain.z[2], sigmas, below.spacing, np.sqrt)

    def phase_codec(
        self, chain: TileChain, fields: PhaseFields, where: tuple[slice, slice]
    ) -> Codec:
        """See :meth:`PhasedChannels.phase_codec`."""
        channel, steps = fields.channel, chain.levels[0].spacing[fields.channel]
        means, log_scales, coupling = gaussians(fields.parameters)
        shift = channel_shift(channel, coupling, fields.errors)[0]
        mean = fields.mean[channel] + fields.unit[channel] * (means[0, channel] + shift)
        scale = fields.unit[channel] * exponential(log_scales[0, channel])
        std = np.sqrt(first_variance(scale, steps))
        offset = chain.first_offset[channel, *where]
        return GaussianBins(mean, std, steps, offset, REVERSE_RADIUS)


class Forward(Step):
    """The noise from ``q(z_t | z_{t-1})``, or below a preview from ``q(z_t | z_{t-1}, z_s)``."""

    pushes = False

    def codec(self, chain: TileChain, part: Part) -> Generator[Asked, Answer, Codec]:
        """See :meth:`Step.codec`."""
        yield from ()  # it asks nothing
        level, mean = chain.levels[self.timestep - 1], chain.z[self.timestep - 1]
        if chain.preview:
            weight = level.bridge_weight
            mean = (1 - weight) * mean + weight * chain.z[chain.preview]
        return bins(chain, self.timestep, part, mean, level.draw_std, FORWARD_RADIUS)


class Reverse(Step):
    """The model's ``p(z_t | z_{t+1})``."""

    def codec(self, chain: TileChain, part: Part) -> Generator[Asked, Answer, Codec]:
        """See :meth:`Step.codec`."""
        t = self.timestep
        xhat, v, _ = yield from chain.posterior(t + 1)
        z, below, above = chain.z[t + 1], chain.levels[t - 1], chain.levels[t]
        with np.errstate(all="ignore"):  # what is not finite the coder refuses
            if t == 1:
                p = p_first(xhat, v, z, below.sigma, above.sigma, below.spacing)
            else:
                p = on_lattice(p_reverse(xhat, v, z, below.sigma, above.sigma), below.spacing)
            return bins(chain, t, part, p.mean, np.sqrt(p.variance), REVERSE_RADIUS)


class PhasedReverse(PhasedStep):
    """The model's ``p(z_t | z_{t+1})`` above z_1, all channels of a phase at once.

    The posterior of x knows the phases before.
    """

    def parts(self, chain: TileChain) -> list[Part]:
        """See :meth:`Step.parts`."""
        return phase_parts(chain, [slice(0, chain.coded)])

    def expected(self, chain: TileChain) -> Generator[Asked, Answer, tuple[Array, Array]]:
        """See :meth:`PhasedStep.expected`."""
        t = self.timestep
        xhat, v, _ = yield from chain.posterior(t + 1)
        sigmas = chain.levels[t - 1].sigma, chain.levels[t].sigma
        with np.errstate(all="ignore"):  # what is not finite the coder refuses
            return expected_z(xhat, v, chain.z[t + 1], sigmas, np.sqrt)

    def refined(
        self, chain: TileChain, part: Part
    ) -> Generator[Asked, Answer, tuple[Array, Array, Array]]:
        """The posterior of x in a part that knows the phases before, and z_{t+1} there."""
        parameters, (rows, columns) = yield from self.begin(chain, part)
        xhat, v, _ = yield from chain.posterior(self.timestep + 1)
        xhat, v, z = (f[:, rows, columns] for f in (xhat, v, chain.z[self.timestep + 1]))
        xhat, v = refined(xhat[None], v[None], parameters, np.sqrt, exponential)
        c = slice(0, chain.coded)
        return xhat[0, c], v[0, c], z[c]

    def codec(self, chain: TileChain, part: Part) -> Generator[Asked, Answer, Codec]:
        """See :meth:`Step.codec`."""
        xhat, v, z = yield from self.refined(chain, part)
        below, above = chain.levels[self.timestep - 1 : self.timestep + 1]
        c = slice(0, chain.coded)
        spacing = np.broadcast_to(below.spacing[c], z.shape)
        with np.errstate(all="ignore"):
            p = on_lattice(p_reverse(xhat, v, z, below.sigma[c], above.sigma[c]), spacing)
            return GaussianBins(
                p.mean, np.sqrt(p.variance), spacing, np.zeros(z.shape), REVERSE_RADIUS
            )


class Prior(Step):
    """``p(z_T)``: the domain's centre, with the data's variance added to the noise's."""

    def codec(self, chain: TileChain, part: Part) -> Generator[Asked, Answer, Codec]:
        """See :meth:`Step.codec`."""
        yield from ()  # it asks nothing
        level = chain.levels[self.timestep - 1]
        p = on_lattice(p_prior(chain.domain, level.sigma), level.spacing)
        return bins(chain, self.timestep, part, p.mean, np.sqrt(p.variance), REVERSE_RADIUS)


def phase_parts(chain: TileChain, channels: Iterable[int | slice]) -> list[Part]:
    """The pixels of each phase, of each channel or of some at once."""
    height, width = chain.shape[1:]
    return [
        (channel, slice(row, None, 2), slice(column, None, 2))
        for row, column in PHASES
        for channel in channels
        if row < height and column < width
    ]


def bins(
    chain: TileChain, t: int, part: Part, mean: Array, std: Array, radius: int
) -> GaussianBins:
    """A part of z_t under a Gaussian of all channels."""
    offset = chain.first_offset if t == 1 else np.zeros((3, 1, 1))
    fields = (mean, std, chain.levels[t - 1].spacing, offset)
    mean, std, spacing, offset = (np.broadcast_to(a, chain.shape)[part] for a in fields)
    return GaussianBins(mean, std, spacing, offset, radius)


def coding_steps(timesteps: int, preview: int = 0, phased: bool = False) -> list[Step]:
    """The steps of a chain of T timesteps in the encoder's order; with a preview those below it."""
    steps: list[Step] = [PhasedRemainder() if phased else Remainder()]
    for t in range(2, preview or timesteps + 1):
        steps += [Forward(t), reverse_step(t - 1, phased)]
    return [*steps, reverse_step(preview - 1, phased) if preview else Prior(timesteps)]


def reverse_step(t: int, phased: bool) -> Step:
    """The step of ``p(z_t | z_{t+1})``."""
    if not phased:
        return Reverse(t)
    return PhasedFirst() if t == 1 else PhasedReverse(t)
