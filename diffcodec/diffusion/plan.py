"""A plan: the noise levels of a chain and, for each, the lattice that its samples live on."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from diffcodec.diffusion.quantiser import first_sigma

QUANTISERS = range(2, 17, 2)  # M of luma that a first level may have
LATTICE_IN_PHASES = 2.2
SECOND_RATIO = 2.5  # of the second level to the first, where levels are at constant ratio
LARGEST_NUMBER = 1e12  # of a plan, and the smallest is its inverse; far beyond any schedule's
PREVIEW_RATIO = math.sqrt(2)  # of the noise of two previews, about 1.5 dB


@dataclass(frozen=True)
class Plan:
    """The timesteps of a file. Timestep t (1..T) is ``levels[t - 1]``; timestep 0 is the image.

    Attributes:
        levels: sigma_1 < ... < sigma_T in grey levels. sigma_1 is that of a dithered quantiser of M
            steps for luma, ``sqrt((M^2 - 1) / 12)``, M one of ``QUANTISERS``.
        lattice_ratios: for each level from the second on, the lattice spacing delta_t as a multiple
            of tau'_t, the standard deviation of the draw (so there are T - 1 of them).
    """

    levels: tuple[float, ...]
    lattice_ratios: tuple[float, ...]

    def previews(self, last: int) -> tuple[int, ...]:
        """The timesteps that are worth showing down to the last, about even in PSNR; falling.

        PSNR rises by about 3 dB where the noise halves: each is the one whose noise is nearest to
        ``PREVIEW_RATIO`` times that of the next.
        """
        timesteps = [last]
        while timesteps[-1] < len(self.levels):
            wanted = PREVIEW_RATIO * self.levels[timesteps[-1] - 1]
            above = self.levels[timesteps[-1] :]
            timesteps.append(timesteps[-1] + 1 + nearest(above, wanted))
        return tuple(reversed(timesteps))

    @property
    def quantiser(self) -> int:
        """M of luma at the first level."""
        return round(math.sqrt(12 * self.levels[0] ** 2 + 1))

    def __post_init__(self) -> None:
        if len(self.levels) < 2:
            raise ValueError(f"a plan of {len(self.levels)} levels, expected 2 or more")
        if not _are_positive(self.levels) or any(a >= b for a, b in pairwise(self.levels)):
            raise ValueError(f"noise levels must be positive and increase, found {self.levels!r}")
        first = min(map(first_sigma, QUANTISERS), key=lambda sigma: abs(sigma - self.levels[0]))
        if not math.isclose(first, self.levels[0], rel_tol=1e-9):
            raise ValueError(
                f"a first noise level of {self.levels[0]}: expected that of a dithered quantiser, "
                + ", ".join(f"{first_sigma(m):.6g}" for m in QUANTISERS)
            )
        if len(self.lattice_ratios) != len(self.levels) - 1:
            raise ValueError(
                f"a plan of {len(self.levels)} levels needs {len(self.levels) - 1} lattices, found "
                f"{len(self.lattice_ratios)}"
            )
        if not _are_positive(self.lattice_ratios):
            raise ValueError(f"lattices must be positive and finite, found {self.lattice_ratios}")


def nearest(levels: Sequence[float], sigma: float) -> int:
    """The place of the noise level that is nearest to another, geometrically."""
    distance = [abs(math.log(level / sigma)) for level in levels]
    return distance.index(min(distance))


def phased_variable(plan: Plan, quantiser: int, timestep: int) -> int:
    """Which networks of a model in phases tell the variable of a timestep.

    Args:
        plan: whose timestep it is.
        quantiser: M of luma at the first level of the model's plans without loss. One that begins
            at another is for lossy files, and knows no x and z_1 of their own kind.
        timestep: from 0 on.

    Returns:
        0 for x, 1 for z_1, 2 for those above, 3 for all of a plan for lossy files.
    """
    return min(timestep, 2) if plan.quantiser == quantiser else 3


def _are_positive(numbers: tuple[float, ...]) -> bool:
    return all(1 / LARGEST_NUMBER < number < LARGEST_NUMBER for number in numbers)


def geometric_plan(timesteps: int, sigma_max: float = 600.0, quantiser: int = 2) -> Plan:
    """A plan from the noise of a quantiser by a jump, then by levels at constant ratio."""
    from diffcodec.diffusion.schedule import geometric

    first = first_sigma(quantiser)
    levels = (first, *geometric(timesteps - 1, SECOND_RATIO * first, sigma_max))
    return Plan(tuple(float(s) for s in levels), falling_lattices(timesteps))


def falling_lattices(timesteps: int) -> tuple[float, ...]:
    """Lattices coarse at the bottom, where the stack is still empty, and finer the higher."""
    return tuple(3.1 - 1.3 * t / (timesteps - 1) for t in range(timesteps - 1))


def shipped_plan(*levels: float) -> Plan:
    """A plan of levels with falling lattices (docs/plans.md)."""
    return Plan(levels, falling_lattices(len(levels)))


def plan_in_phases(*levels: float) -> Plan:
    """A plan of levels with the same lattice at all: x, which goes first, fills the stack."""
    return Plan(levels, (LATTICE_IN_PHASES,) * (len(levels) - 1))


def plans_from(quantiser: int) -> dict[str, Plan]:
    """Plans of a model that is new: ``PLANS``, or such as suit a coarser first level in phases.

    Those have one more, for lossy files.
    """
    if quantiser == 2:
        return PLANS
    first = first_sigma(quantiser)
    return {
        "fast": plan_in_phases(first, *(first * ratio for ratio in (4, 18, 140))),
        "default": plan_in_phases(first, *(first * ratio for ratio in (4, 8, 17, 48, 175))),
        "best": plan_in_phases(
            first, *(first * ratio for ratio in (3, 4.5, 6.3, 9, 12, 18, 26, 44, 83, 220))
        ),
        "lossy": shipped_plan(first_sigma(4), *PLANS["default"].levels[2:]),
    }


PLANS = {
    "fast": shipped_plan(0.5, 1.17, 1.86, 3.2, 5.5, 10, 19, 41, 105, 370),
    "default": shipped_plan(
        *(0.5, 1.17, 1.9, 2.85, 4.1, 5.7, 7.8, 10.6),
        *(14.5, 20, 28, 40, 60, 100, 190, 500),
    ),
    "best": shipped_plan(
        *(0.5, 1.17, 1.9, 2.8, 3.9, 5.2, 6.8, 8.8, 11.3, 14.5),
        *(18.5, 23.6, 30, 38, 49, 65, 90, 135, 230, 550),
    ),
}
