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


def geometric_plan(timesteps: int, sigma_max: float = 600.0) -> Plan:
    """A first jump of 2.5, then levels at constant ratio."""
    levels = (0.5, *geometric(timesteps - 1, 1.25, sigma_max))
    return Plan(tuple(float(s) for s in levels), falling_lattices(timesteps))


def falling_lattices(timesteps: int) -> tuple[float, ...]:
    """Coarse at the bottom, where the stack is still empty, and finer the higher."""
    return tuple(3.1 - 1.3 * t / (timesteps - 1) for t in range(timesteps - 1))


def shipped_plan(*levels: float) -> Plan:
    """A plan of levels with falling lattices (docs/plans.md)."""
    return Plan(levels, falling_lattices(len(levels)))


PLANS = {
    "fast": shipped_plan(0.5, 1.17, 1.86, 3.2, 5.5, 10, 19, 41, 105, 370),
    "default": shipped_plan(
        *(0.5, 1.17, 1.9, 2.85, 4.1, 5.7, 7.8, 10.6),
        *(14.5, 20, 28, 40, 60, 100, 190, 500),
    ),
    "best": Plan(  # found by diffcodec.planning
        (
            *(0.5, 1.21, 1.772, 2.358, 3.452, 4.595, 6.116, 8.954, 11.92, 15.86),
            *(21.11, 28.1, 41.14, 54.76, 72.89, 97.02, 129.1, 228.8, 405.3, 718.0),
        ),
        (
            *(3.69, 2.633, 3.828, 2.633, 2.632, 3.124, 2.261, 2.632, 2.632, 2.632),
            *(2.632, 2.261, 2.26, 2.632, 2.26, 2.632, 2.196, 1.914, 2.196),
        ),
    ),
}
