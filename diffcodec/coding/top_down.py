"""Previews: the chain of one tile from the top down, z_T, ..., z_s, by relative entropy coding.

DDPM's Algorithms 3 and 4. Each step sends a sample of the posterior ``q(z_s | z_t, x)`` given
``p(z_s | z_t)``, which both sides know (:mod:`diffcodec.coding.relative_entropy`). The first is of
``q(z_T | x) = N(x, sigma_T^2)`` given the prior: the same formulas with sigma_t infinite, so r = 0.
No lattice: what the decoder returns is the encoder's z_s to the last bit.
"""

import copy
import math
from collections.abc import Callable, Generator, Sequence
from enum import Enum, auto
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, UInt32

from diffcodec.arrays import Array, Bits, Flags, Words
from diffcodec.coding import randomness
from diffcodec.coding.bits_back import EncodedTile, encode_tile, most_seed_words
from diffcodec.coding.chain import Answer, Asked, Posterior, Request, TileChain
from diffcodec.coding.levels import make_levels
from diffcodec.coding.reconstructions import PERCEPTUAL_STEPS
from diffcodec.coding.relative_entropy.bits import BitReader, BitWriter
from diffcodec.coding.relative_entropy.step import Decoder, Encoder
from diffcodec.coding.steps import (
    Part,
    PhasedReverse,
    Prior,
    Reverse,
    Step,
    coding_steps,
    reverse_step,
)
from diffcodec.container.parts import LEAST_PREVIEW
from diffcodec.diffusion.color import channels
from diffcodec.diffusion.plan import Plan, nearest
from diffcodec.diffusion.process import LOG2_E, p_excess, q_posterior, q_sample

PART_BITS = 16  # from where on the number of a part stands in the key of its randomness
FLOW_SIGMA = 5.0  # grey levels: what is missing of z_s above it is the flow's, below the mean
ENSEMBLE_SIGMA = 15.0  # grey levels: above it the second answer of an ensemble is a step farther
WORTH_SENDING = 0.4  # of the noise at a lossy file's end: detail that this would hide is left out


class MayEnd(Enum):
    """Where the bits of a layer may end early, without the rest of what they tell."""

    NEVER = auto()
    IN_LAST_STEP = auto()
    ANYWHERE = auto()  # the tile stays there


class Transition(NamedTuple):
    """``p(z_s | z_t) = N(mean, Q + W)`` of a part of z_s, Q the variance of q."""

    z: Array  # z_t
    noise: tuple[Array, Array]  # s and t: around what q is given, x or z_1; by channel
    flow: Array  # z_s by the flow
    mean: Array
    variance: Array  # Q
    excess: Array  # W


def by_flow(xhat: Array, z_t: Array, sigma_s: Array, sigma_t: Array) -> Array:
    """z_s by the probability-flow ODE, ``xhat + (sigma_s / sigma_t) (z_t - xhat)``.

    DDIM, eta = 0 (Song et al. 2021, eq. 12), in operations that are the same on every machine.
    """
    z_s: Array = xhat + np.sqrt((sigma_s * sigma_s) / (sigma_t * sigma_t)) * (z_t - xhat)
    return z_s


def ensemble_mean(
    first: Array, asked: Request, plan: Plan, reflection: tuple[int, ...]
) -> Generator[Asked, Answer, Array]:
    """The mean of two posterior means of x, [3, height, width], whose errors differ.

    The second is of the reflected z_t, turned back (geometric self-ensemble, Lim et al. 2017,
    section 3.5); where there is much noise a timestep farther down the flow, which is sharper.

    Args:
        first: the posterior mean given z_t.
        asked: for it.
        plan: of the timestep.
        reflection: the axes whose reversal the network knows; none, and it is asked again where
            that is farther down alone.
    """
    t, levels = asked.timestep, plan.levels
    goes_on = levels[t - 1] > ENSEMBLE_SIGMA and t > 2  # z_1 may be a lattice's
    if not (goes_on or reflection):
        return first
    z, s = asked.z, t - goes_on
    if goes_on:
        z = by_flow(first, z, *np.array([levels[s - 1], levels[t - 1]]))
    answer = yield Request(np.flip(z, reflection).copy(), s, asked.label)
    mean: Array = (first + np.flip(answer.mean, reflection)) / 2
    return mean


class Piece(NamedTuple):
    """What is known better of the posterior of x in a part of a tile.

    Attributes:
        where: rows and columns.
        mean, variance: of it.
    """

    where: tuple[slice, slice]
    mean: Array
    variance: Array


class Descent:
    """A tile on its way down: z of the last timestep done, and what the model answered to it.

    Args:
        chain: of the tile.
        timestep: where to start, with z_t in the chain; above the first if it is not given.
    """

    def __init__(self, chain: TileChain, timestep: int | None = None):
        self.chain = chain
        self.timestep = len(chain.levels) + 1 if timestep is None else timestep
        # z_t of all channels, [3, height, width]
        self.z: Array = np.zeros(chain.shape) if timestep is None else chain.z[timestep]
        self._encoder, self._decoder = Encoder(chain.tile), Decoder(b"", chain.tile)

    def posterior(self) -> Generator[Asked, Answer, Posterior]:
        """The posterior of x given z_t, all channels; asked once."""
        return (yield from self.chain.posterior(self.timestep))

    def forget(self, chain: TileChain) -> None:
        """Keep z_t alone: drop with the chain what it holds, and what the model has answered.

        Args:
            chain: another one of the same tile.
        """
        self.chain = chain
        chain.z[self.timestep] = self.z

    def below(self) -> TileChain:
        """The chain of the same tile below z_t."""
        c = self.chain
        same = (c.plan, c.domain, c.tile, c.coded, c.shape[1:])
        more = (c.draw, c.allowed, c.phased, c.around_first, c.label)
        chain = TileChain(*same, self.timestep, *more, adaptation=c.adaptation)
        chain.z[self.timestep] = self.z
        return chain

    def mean(self) -> Generator[Asked, Answer, Array]:
        """The posterior mean of x given z_t, [3, height, width]."""
        posterior = yield from self.posterior()
        return self._with_known(posterior.mean[: self.chain.coded], 0)

    def ensemble(self, reflection: tuple[int, ...]) -> Generator[Asked, Answer, Array]:
        """The mean of two posterior means; see :func:`ensemble_mean`."""
        mean = yield from self.mean()
        asked = Request(self.z, self.timestep, self.chain.label)
        both = yield from ensemble_mean(mean, asked, self.chain.plan, reflection)
        return self._with_known(both[: self.chain.coded], 0)

    def amend(self, pieces: Sequence[Piece]) -> Generator[Asked, Answer, None]:
        """Go on from a posterior of which parts are known better; not what either side codes by."""
        posterior = yield from self.posterior()
        mean, variance = posterior.mean.copy(), posterior.variance.copy()
        for piece in pieces:
            mean[:, *piece.where], variance[:, *piece.where] = piece.mean, piece.variance
        self.chain.amend(posterior._replace(mean=mean, variance=variance))

    def fork(self) -> "Descent":
        """Another one that goes on from here by itself; what the model has answered is shared."""
        other = copy.copy(self)
        other.chain, other._encoder = copy.copy(self.chain), copy.copy(self._encoder)
        other.chain.z = dict(self.chain.z)
        return other

    def encode_step(self, x: Float64[Array, "3 height width"]) -> Generator[Asked, Answer, Bits]:
        """Go one timestep down, and give the bits that tell it.

        Args:
            x: of the colour domain; integers, but where :meth:`worth_sending` made it.

        Raises:
            ValueError: if the model's numbers are out of range.
        """
        given = self.chain.quantised(x) if self.chain.around_first else x
        self._encoder.writer = BitWriter()

        def send(key: int, part: Part, p: Transition) -> Array:
            q_mean = q_posterior(given[part], p.z, *p.noise).mean
            fields = (a.ravel() for a in (q_mean, p.mean, p.variance, p.excess))
            return self._encoder.encode_step(key, *fields)

        yield from self._descend(send)
        return self._encoder.writer.bits()

    def worth_sending(
        self, x: Float64[Array, "3 height width"], end: int
    ) -> Generator[Asked, Answer, Array]:
        """What of an image is worth its bits in a lossy file, whose decoder need not know of it.

        Noise of one variance spends bits also on what varies by less than it does, and shows next
        to nothing of that; reverse water-filling (Cover and Thomas 2006, section 10.3.3) would not
        send it. The network, told the image in the place of z_t, takes such detail for noise: of
        a Gaussian of variance v it leaves v / (v + sigma_t^2).

        Args:
            x: of the colour domain.
            end: the timestep at which the file ends.

        Returns:
            The like of x, to be sent in its place.
        """
        levels = self.chain.plan.levels[: end - 1]
        if not levels:
            return x
        t = 1 + nearest(levels, WORTH_SENDING * self.chain.plan.levels[end - 1])
        answer = yield Request(x, t, self.chain.label)
        return self._with_known(answer.mean[: self.chain.coded], 0)

    def arrive_by_noise(self, x: Float64[Array, "3 height width"], timestep: int) -> None:
        """Come to a timestep by a sample of ``q(z_t | x)`` (DDPM eq. 4) that no bits tell.

        Args:
            x: of the colour domain.
            timestep: t, of a file whose noise is around x.
        """
        coded, chain = x[: self.chain.coded], self.chain
        noise = randomness.reconstruction_normals(0, chain.tile, timestep, coded.shape)
        z = q_sample(coded, chain.levels[timestep - 1].sigma[: chain.coded], noise)
        self.timestep = timestep + 1
        self._arrive(self._with_known(z, timestep))

    def take_part(self, bits: Bits) -> Generator[Asked, Answer, None]:
        """Go one timestep down by the beginning of what :meth:`encode_step` gives, as decoders do.

        Args:
            bits: of a fork that went on from here.
        """
        self._decoder.stretch = self._encoder.stretch
        yield from self.decode_layer(bits, self.timestep - 1, may_end=MayEnd.IN_LAST_STEP)

    def decode_layer(
        self, data: bytes | Bits, end: int, timestep: int = 0, may_end: MayEnd = MayEnd.NEVER
    ) -> Generator[Asked, Answer, None]:
        """Go down to a timestep by a layer.

        Args:
            data: of the layer, its bytes or bits.
            end: the timestep that it reaches.
            timestep: where to stop, if that is above the end.
            may_end: where the data may end early.

        Raises:
            ValueError: if it cannot be what the encoder wrote.
        """
        reader = self._decoder.reader = BitReader(data)
        first = len(self.chain.levels)
        while self.timestep > max(end, timestep):
            s, anywhere = self.timestep - 1, may_end is MayEnd.ANYWHERE
            if anywhere and not reader.left and s < first:
                return
            early = anywhere or (may_end is MayEnd.IN_LAST_STEP and s == end)

            def receive(key: int, part: Part, p: Transition, early: bool = early) -> Array:
                mean, variance, excess = (a.ravel() for a in (p.mean, p.variance, p.excess))
                return self._decoder.decode_step(key, mean, variance, excess, early)

            yield from self._descend(receive)
        if self.timestep == end and (reader.left >= 8 or reader.read(reader.left).any()):
            raise ValueError("bits are left over")

    def _descend(
        self, sample: Callable[[int, Part, Transition], Array]
    ) -> Generator[Asked, Answer, None]:
        """Go one timestep down, part by part, each by a sample that both sides agree on.

        Where that is NaN, z_s is missing. The parts that follow take it to be what is expected of
        it. In the end it is the flow's, which has the noise that the model expects of z_s; but at
        low noise levels, where that shows more error, what is expected.
        """
        chain, s = self.chain, self.timestep - 1
        step: Step = PhasedReverse(s) if chain.phased else Reverse(s)
        if s == len(chain.levels):
            step = Prior(s)
        z = chain.z[s] = self._with_known(np.zeros((chain.coded, *chain.shape[1:])), s)
        missing: list[tuple[Part, Flags, Transition]] = []
        for number, part in enumerate(step.parts(chain)):
            p = yield from self._transition(step, part)
            sampled = sample(number << PART_BITS | s, part, p).reshape(p.mean.shape)
            z[part] = sampled
            if (lacking := np.isnan(sampled)).any():
                z[part][lacking] = p.mean[lacking]
                missing.append((part, lacking, p))
        for part, lacking, p in missing if chain.plan.levels[s - 1] > FLOW_SIGMA else ():
            z[part][lacking] = p.flow[lacking]
        self._arrive(z)

    def _transition(self, step: Step, part: Part) -> Generator[Asked, Answer, Transition]:
        """The transition to a part of z_s."""
        chain, t, z = self.chain, self.timestep, self.z[part]
        which = part[0] if isinstance(part, tuple) else part  # channels
        sigma_s, first = (chain.levels[i].sigma[which] for i in (t - 2, 0))
        if isinstance(step, Prior):  # z_t is all noise: what is known of x is the prior's
            sigma_t = np.full(sigma_s.shape, np.inf)
            fields = (chain.domain.center, chain.domain.data_std)
            xhat, std = (np.broadcast_to(channels(f, self.z), chain.shape)[part] for f in fields)
            v = std * std
        else:
            sigma_t = chain.levels[t - 1].sigma[which]
            if isinstance(step, PhasedReverse):
                xhat, v, _ = yield from step.refined(chain, part)
            else:
                xhat, v, _ = yield from self.posterior()
                xhat, v = xhat[part], v[part]
        mean, variance = q_posterior(xhat, z, sigma_s, sigma_t)
        flow = by_flow(xhat, z, sigma_s, sigma_t)
        excess, noise = p_excess(v, sigma_s, sigma_t), (sigma_s, sigma_t)
        if chain.around_first:  # q knows more, p what it knew
            around_s, around_t = (np.sqrt(s * s - first * first) for s in noise)
            noise, wide = (around_s, around_t), variance
            variance = q_posterior(xhat, z, *noise).variance
            excess = excess + (wide - variance)
        return Transition(z, noise, flow, mean, np.broadcast_to(variance, mean.shape), excess)

    def _arrive(self, z: Array) -> None:
        """Take z_s, all channels, for where the tile has come to."""
        self.chain.z.pop(self.timestep, None)
        self.timestep -= 1
        self.z = self.chain.z[self.timestep] = z

    def _with_known(self, coded: Array, timestep: int) -> Array:
        return np.concatenate([coded, self.chain.known_channels(timestep)])

    def lowest(self, how: str) -> int:
        """The timestep down to which :meth:`go_on` leads without further bits.

        Args:
            how: "mean" and "ensemble", nowhere; "perceptual", the first steps of the flow, sharper
                for little error; "flow", the probability-flow ODE, or "sample", ancestral sampling,
                down to z_1.
        """
        # z_1 of an exact file in phases is no noise around x, but a lattice's
        end = 2 if self.chain.phased and self.chain.around_first else 1
        steps = {"mean": 0, "ensemble": 0, "perceptual": PERCEPTUAL_STEPS}.get(how, self.timestep)
        return max(min(end, self.timestep), self.timestep - steps)

    def go_on(self, how: str, seed: int = 0) -> Generator[Asked, Answer, None]:
        """A timestep down by what the decoder knows at z_t.

        By the flow or by a sample of p(z_s | z_t).

        Args:
            how: see :meth:`lowest`.
            seed: of the sample.
        """
        chain, s = self.chain, self.timestep - 1
        coded = (chain.coded, *chain.shape[1:])
        if how == "sample":
            noise = randomness.reconstruction_normals(seed, chain.tile, s, coded)

            def draw(key: int, part: Part, p: Transition) -> Array:
                return p.mean + np.sqrt(p.variance + p.excess) * noise[part]

            yield from self._descend(draw)
            return
        mean = (yield from self.posterior()).mean
        sigma_s, sigma_t = (level.sigma for level in chain.levels[s - 1 : s + 1])
        z = by_flow(mean, self.z, sigma_s, sigma_t)
        self._arrive(self._with_known(z[: chain.coded], s))


def encode_below_preview(
    chain: TileChain,
    x: Float64[Array, "3 height width"],
    alone: Sequence[int],
    checksum: int = 0,
    begun: UInt32[Words, " words"] | None = None,
) -> Generator[Asked, Answer, EncodedTile]:
    """Code a tile whose stack runs empty by a preview of its own and the chain below that.

    What the pops of the lower timesteps take is not there yet in a smooth tile, so words of the
    shared seed are used up. Relative entropy coding takes nothing beforehand.

    Args:
        chain: of the tile, without a preview.
        x: integers of the colour domain.
        alone: heights of the stack after the steps of the chain alone, as far as that came, which
            tell where it runs empty.
        checksum, begun: see :func:`encode_tile`.

    Raises:
        OutOfRangeError: if the chain has no code for the tile.
        ValueError: if the model's numbers are out of range.
    """
    descent = Descent(chain)
    steps: list[Bits] = []
    best, smallest = descent, math.inf
    while descent.timestep > LEAST_PREVIEW:
        steps.append((yield from descent.encode_step(x)))
        if len(alone) < 2 * descent.timestep - 1:  # the chain has not come so far
            continue
        below, dip = _expected_below(chain, alone, descent.timestep)
        expected = sum(map(len, steps)) + below + dip
        if expected < smallest:
            best, smallest = copy.copy(descent), expected
        if dip == 0:
            break
    chain.forget_answers()
    rest = yield from encode_tile(best.below(), x, checksum=checksum, begun=begun)
    sent = steps[: len(chain.levels) + 1 - best.timestep]
    payload = np.packbits(np.concatenate(sent)).tobytes()
    return rest._replace(preview=best.timestep, preview_payload=payload)


def _expected_below(chain: TileChain, alone: Sequence[int], preview: int) -> tuple[float, float]:
    """Bits on the stack after the chain below a preview, and how many of the seed it uses up.

    Every step as in the chain alone, but for two things. Below a preview z_t is drawn more
    narrowly, on a lattice that is as much finer: to pop it takes as many bits, to push it one more
    for each halving. And z_2 has less of the dither, ``1 - sigma_2^2 / sigma_s^2`` of it, than
    p(z_1 | z_2) takes for granted, unless the preview's noise is around z_1; its cost, where xhat
    is x, follows from the Gaussians.

    Args:
        chain: of the tile, without a preview.
        alone: heights of its stack after the steps of that chain, in words, as far as
            ``p(z_{s-1} | z_s)`` at least.
        preview: its timestep s.
    """
    changes = 32 * np.diff((most_seed_words(chain), *alone))
    levels = make_levels(chain.plan, chain.domain, preview, chain.around_first)
    samples = math.prod(chain.shape[1:])
    surprise = 0.0  # of z_1 for each sample
    if not chain.around_first:
        first, second, top = (chain.plan.levels[t - 1] ** 2 for t in (1, 2, preview))
        surprise = LOG2_E * first / (second - first) * second / top
    below = []
    for step in coding_steps(0, preview, chain.phased):
        bits = changes[coding_steps(preview, phased=chain.phased).index(step)]
        if step == reverse_step(1, chain.phased):
            bits += samples * chain.coded * surprise
        elif isinstance(step, Reverse | PhasedReverse):
            own, finer = (each[step.timestep - 1].spacing for each in (chain.levels, levels))
            bits += samples * np.log2(own / finer)[: chain.coded].sum()
        below.append(bits)
    heights = np.cumsum(below)
    return float(heights[-1]), max(0.0, -float(heights.min()))
