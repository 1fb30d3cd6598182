"""The chain of one tile: its variables z_T, ..., z_1 and the image, and what is known of them.

Every z_t lives on a lattice ``spacing * n + offset``; what is coded is the integer n. On the
first level the lattice is that of a dithered quantiser, so z_1 is a function of x.
"""

from collections.abc import Callable, Generator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float64

from diffcodec.arrays import Array
from diffcodec.coding import randomness
from diffcodec.coding.adaptation import Adaptation
from diffcodec.coding.codecs import Allowed
from diffcodec.coding.levels import make_levels
from diffcodec.diffusion.color import ColorDomain
from diffcodec.diffusion.phases import told_planes
from diffcodec.diffusion.plan import Plan
from diffcodec.diffusion.process import dithered_quantise


class Request(NamedTuple):
    """What the chain asks of the model: the posterior of x at z_t."""

    z: Float64[Array, "3 height width"]
    timestep: int
    label: int | None = None  # the class of the image, if the model is to be told

    @property
    def kind(self) -> tuple[Any, ...]:
        """Requests of a kind go through the network together."""
        return self.timestep, self.z.shape


class Posterior(NamedTuple):
    """The model's answer: mean and variance of x given z_t.

    ``shared`` is what each phase makes of z_t, where the model codes in phases.
    """

    mean: Float64[Array, "3 height width"]
    variance: Float64[Array, "3 height width"]
    shared: Sequence[Any] = ()


class PhaseRequest(NamedTuple):
    """What the chain asks of a model that codes in phases: the parameters of one."""

    timestep: int  # of the variable that is coded
    number: int  # of the phase
    shared: Any  # what it made of the variable above
    told: Float64[Array, "planes height width"]  # see PhasedNetwork.phase_parameters

    @property
    def kind(self) -> tuple[Any, ...]:
        """Requests of a kind go through the network together."""
        return "phase", self.timestep, self.number, self.told.shape


# Of an even height and width.
PhaseParameters = Float64[Array, "parameters rows columns"]

Asked = Request | PhaseRequest
Answer = Any  # a Posterior to a Request, PhaseParameters to a PhaseRequest
Result = TypeVar("Result")
Question = TypeVar("Question")
Reply = TypeVar("Reply")


def drive(job: Generator[Question, Reply, Result], model: Callable[[Question], Reply]) -> Result:
    """What a coroutine comes to whose requests are answered one by one, as it makes them."""
    try:
        request = next(job)
        while True:
            request = job.send(model(request))
    except StopIteration as stop:
        result: Result = stop.value
        return result


class TileChain:
    """The variables of one tile, and what encoder and decoder both know of them.

    Args:
        plan, domain: of the model.
        tile: its number in the image, for the shared randomness.
        coded: leading channels that are coded: 3, or 1 for grey images, whose chroma is known to be
            zero and gets its noise from shared randomness.
        shape: height and width.
        preview: the timestep s whose z_s is known beforehand and must lie in ``z``; 0 for none.
        draw: which seed and dither of the shared randomness it takes.
        label: class of the image, if the model is told.
        adaptation: of what the model's phases predict to the image, if there is one.
        allowed: tells which colours can occur, if not all do.
        phased: whether the model codes in phases.
        around_first: whether a preview's noise is around z_1, as in exact files of such a model,
            for which z_1 given z_2 is made; else it is around x.
    """

    def __init__(
        self,
        plan: Plan,
        domain: ColorDomain,
        tile: int,
        coded: int,
        shape: tuple[int, int],
        preview: int = 0,
        draw: int = 0,
        allowed: Allowed | None = None,
        phased: bool = False,
        around_first: bool = False,
        label: int | None = None,
        adaptation: Adaptation | None = None,
    ):
        self.plan, self.domain = plan, domain
        self.tile, self.coded, self.preview, self.draw = tile, coded, preview, draw
        self.label, self.adaptation = label, adaptation
        self.allowed, self.phased, self.around_first = allowed, phased, around_first
        self.shape = (3, *shape)
        self.levels = make_levels(plan, domain, preview, around_first)
        self.z: dict[int, Array] = {}  # timestep -> z_t; 0 is the image
        self._known: dict[int, Array] = {}
        self._answered: tuple[Array, Posterior] | None = None
        # of a variable coded in phases: that above it, what is expected, in which units
        self.expected: tuple[Array, Array, Array] | None = None
        self._phase: tuple[Array, int, PhaseParameters] | None = None

    @cached_property
    def dither(self) -> Float64[Array, "3 height width"]:
        """The dither of the first level."""
        steps = self.domain.quantiser_steps(self.plan.quantiser)
        return randomness.dither(self.tile, self.shape, steps, self.draw)

    @property
    def first_offset(self) -> Float64[Array, "3 height width"]:
        """The offset of the lattice of z_1."""
        return (self.levels[0].spacing - 1) / 2 - self.dither

    def set_image(self, x: Float64[Array, "3 height width"]) -> None:
        """Start of encoding: x and, a function of it, z_1."""
        self.z[0], self.z[1] = x, self.quantised(x)

    def quantised(self, x: Float64[Array, "3 height width"]) -> Float64[Array, "3 height width"]:
        """z_1 of an image."""
        return dithered_quantise(x, self.dither, self.levels[0].spacing)[0]

    def posterior(self, t: int) -> Generator[Asked, Answer, Posterior]:
        """The posterior of x given z_t, by the model; asked once, however many codecs need it."""
        if self._answered is None or self._answered[0] is not self.z[t]:
            self.forget_answers()  # room for the next
            self._answered = self.z[t], (yield Request(self.z[t], t, self.label))
        return self._answered[1]

    def forget_answers(self) -> None:
        """Drop what the model has answered, which takes more memory than the variables."""
        self._answered = self._phase = self.expected = None

    def amend(self, posterior: Posterior) -> None:
        """Take another for the answer to what was asked last."""
        assert self._answered is not None
        self._answered = self._answered[0], posterior

    def phase_parameters(
        self, timestep: int, number: int, is_step: bool
    ) -> Generator[Asked, Answer, PhaseParameters]:
        """The parameters of a phase, given those before; asked once, however many codecs need them.

        Args:
            timestep: of the variable that is coded, of which it lies in ``expected`` what is
                expected.
            number: of the phase.
            is_step: whether it is told how far the step goes: not of x or z_1 given z_2.
        """
        above = self.z[timestep + 1]
        if self._phase is None or self._phase[0] is not above or self._phase[1] != number:
            assert self.expected is not None
            _, mean, unit = self.expected
            posterior = yield from self.posterior(timestep + 1)
            levels = None
            if is_step:
                levels = self.plan.levels[timestep - 1], self.plan.levels[timestep]
            known = self.z[timestep], mean, unit
            told = told_planes(2 if is_step else timestep, *known, number, levels)
            asked = PhaseRequest(timestep, number, posterior.shared[number], told)
            parameters = yield asked
            parameters = parameters.astype(np.float64)
            if self.adaptation:
                parameters = self.adaptation.apply(timestep, number, parameters)
            self._phase = above, number, parameters
        return self._phase[2]

    def known_channels(self, t: int) -> Float64[Array, "known height width"]:
        """z_t of the channels that are not coded: zero plus shared noise, a walk over t."""
        if t not in self._known:
            c = slice(self.coded, 3)
            if t == 0:
                value = np.zeros(self.shape)[c]
            elif t == 1:
                fields = self.known_channels(0), self.dither[c], self.levels[0].spacing[c]
                value, _ = dithered_quantise(*fields)
            else:
                low, high = self.levels[t - 2].sigma[c], self.levels[t - 1].sigma[c]
                noise = randomness.approximate_normals(self.tile, t, self.known_channels(0).shape)
                value = self.known_channels(t - 1) + np.sqrt(high * high - low * low) * noise
            self._known[t] = value
        return self._known[t]
