"""The coding steps of the chain, written once: encoder and decoder both drive them.

Bit-Swap order (Kingma et al. 2019). Upward, the encoder pushes the remainder of x given z_1, then
for t = 2..T pops ``z_t ~ q(z_t | z_{t-1})`` and pushes ``z_{t-1} ~ p(z_{t-1} | z_t)``, and at last
pushes z_T under its prior. The decoder runs the same list backward with push and pop exchanged.

Below a preview z_s, which relative entropy coding has sent (:mod:`diffcodec.coding.top_down`),
the chain ends at z_{s-1}: its pops are from the bridge ``q(z_t | z_{t-1}, z_s)``, and instead of a
prior there is ``p(z_{s-1} | z_s)``.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from diffcodec.arrays import Array
from diffcodec.coding.ans import Stack, truncated_gaussian
from diffcodec.coding.chain import Answer, Asked, TileChain
from diffcodec.coding.codecs import Candidates, Codec, GaussianBins, restricted
from diffcodec.coding.mixtures import mixture_table
from diffcodec.diffusion.phases import PHASES, mixtures, unit_of
from diffcodec.diffusion.process import on_lattice, p_first, p_prior, p_reverse

FORWARD_RADIUS = 16  # bins: a wider window pops an outlier once in a thousand symbols
REVERSE_RADIUS = 2000

Part = int | slice | tuple[int, slice, slice]  # of a variable, as an index into [3, height, width]


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
        """Of a part; a coroutine that yields what it asks of the model."""

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
        unknown = np.zeros((chain.coded, *chain.shape[1:]))
        z = np.concatenate([unknown, chain.known_channels(self.timestep)])
        chain.z[self.timestep] = z
        for part in self.parts(chain):
            codec = yield from self.codec(chain, part)
            z[part] = codec.pop(stack)


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
                *((mean[c] - lowest[c]).ravel(), np.sqrt(variance[c]).ravel()),
                count=int(candidates[c].item()),
            )
            for c in range(0 if chain.allowed else part, part + 1)
        ]
        if chain.allowed is None:
            return Candidates(lowest[part], tables[0])
        return Candidates(lowest[part], restricted(tables, lowest, chain.z[0], chain.allowed))


class PhasedRemainder(Step):
    """The image by ``p(x | z_1)`` in phases: each sample a mixture truncated to its candidates.

    The pixels of a phase all at once, channel by channel; every phase knows those before it
    (:mod:`diffcodec.diffusion.phases`).
    """

    def __init__(self) -> None:
        super().__init__(timestep=0)

    def parts(self, chain: TileChain) -> list[Part]:
        """See :meth:`Step.parts`."""
        height, width = chain.shape[1:]
        return [
            (channel, slice(row, None, 2), slice(column, None, 2))
            for row, column in PHASES
            for channel in range(chain.coded)
            if row < height and column < width
        ]

    def codec(self, chain: TileChain, part: Part) -> Generator[Asked, Answer, Codec]:
        """See :meth:`Step.codec`."""
        assert isinstance(part, tuple)
        channel, rows, columns = part
        number = PHASES.index((rows.start, columns.start))
        parameters = yield from chain.phase_parameters(number)
        mean, variance, _ = yield from chain.posterior(1)
        unit = unit_of(np.sqrt(variance))
        lowest = chain.z[1] - (chain.levels[0].spacing - 1) / 2
        shape = lowest[part].shape
        weights, means, log_scales, coupling = (
            field[0, ..., : shape[0], : shape[1]] for field in mixtures(parameters[None])
        )
        shift = np.zeros(shape)
        for i in range(channel):  # Y in Co, Y and Co in Cg
            other = (i, rows, columns)
            error = (chain.z[0][other] - mean[other]) / unit[other]
            shift = shift + coupling[channel - 1 + i] * error
        fields = (weights[channel], means[channel] + shift, log_scales[channel])
        flat = [field.reshape(len(field), -1).astype(np.float64) for field in fields]
        table = mixture_table(
            *(flat[0], flat[1], flat[2]),
            (lowest[part] - 0.5 - mean[part]).ravel(),
            unit[part].ravel(),
            int(chain.levels[0].spacing[channel].item()),
        )
        return Candidates(lowest[part], table)


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


class Prior(Step):
    """``p(z_T)``: the domain's centre, with the data's variance added to the noise's."""

    def codec(self, chain: TileChain, part: Part) -> Generator[Asked, Answer, Codec]:
        """See :meth:`Step.codec`."""
        yield from ()  # it asks nothing
        level = chain.levels[self.timestep - 1]
        p = on_lattice(p_prior(chain.domain, level.sigma), level.spacing)
        return bins(chain, self.timestep, part, p.mean, np.sqrt(p.variance), REVERSE_RADIUS)


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
        steps += [Forward(t), Reverse(t - 1)]
    return [*steps, Reverse(preview - 1) if preview else Prior(timesteps)]
