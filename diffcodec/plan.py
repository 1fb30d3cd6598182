"""A plan: the noise levels of a chain and, for each, the lattice that its samples live on."""

import math
from dataclasses import dataclass

from diffcodec.schedule import explicit, geometric


@dataclass(frozen=True)
class Plan:
    """The timesteps of a file. Timestep t (1..T) is ``levels[t - 1]``; timestep 0 is the image.

    Attributes:
        levels: sigma_1 < ... < sigma_T in grey levels. sigma_1 belongs to the dithered quantiser.
        lattices: for each level from the second on, the lattice spacing delta_t as a multiple of
            tau'_t, the standard deviation of the draw (so there are T - 1 of them).
    """

    levels: tuple[float, ...]
    lattices: tuple[float, ...]

    def __post_init__(self) -> None:
        explicit(self.levels)
        if len(self.lattices) != len(self.levels) - 1 or len(self.levels) < 2:
            raise ValueError(
                f"a plan of {len(self.levels)} levels needs {len(self.levels) - 1} lattices and at "
                f"least 2 levels, found {len(self.lattices)} lattices"
            )
        if not all(0 < lattice < math.inf for lattice in self.lattices):
            raise ValueError(f"lattices must be positive and finite, found {self.lattices}")


def default_plan(timesteps: int = 24, sigma_max: float = 600.0) -> Plan:
    """The prototype's plan: a first jump of 2.5, then geometric; lattices coarse at the bottom."""
    levels = (0.5, *geometric(timesteps - 1, 1.25, sigma_max))
    lattices = tuple(max(3.4 - 0.2 * i, 1.6) for i in range(timesteps - 1))
    return Plan(tuple(float(s) for s in levels), lattices)


PLANS = {"fast": default_plan(12), "default": default_plan(24), "best": default_plan(32)}
