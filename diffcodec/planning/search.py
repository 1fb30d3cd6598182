"""Plans by dynamic programming over measured costs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from diffcodec.arrays import Array
from diffcodec.container.parts import PLAN_NAMES, Container, Tile
from diffcodec.container.writer import pack
from diffcodec.diffusion.plan import Plan
from diffcodec.diffusion.quantiser import first_sigma
from diffcodec.errors import DiffcodecError
from diffcodec.planning.costs import Costs, GridPath
from diffcodec.planning.grid import draw_lattice

SHORTLIST = 4  # plans of a budget that are simulated, beside the longest

BUCKET_BPD, BUCKETS = 0.04, 60  # heights of the stack that the search tells apart
RESERVES_BPD = (-1.0, -0.5, -0.2, 0.0, 0.1, 0.2, 0.3, 0.45, 0.6)  # of the average crop, to try


@dataclass(frozen=True)
class FoundPlan:
    """A plan, and the mean over the crops it was found on of what it should give.

    Attributes:
        plan: levels and lattices.
        bpd: whole files by the judge, or their payloads where the table alone is the judge.
    """

    plan: Plan
    bpd: float


class StackSearch:
    """Dynamic programming over the chains that keep the stack of one crop above a reserve.

    A state is a level and lattice of z_t with the height of the stack after the push of z_{t-1}, in
    buckets. What is on the stack at the end is the file, so of the chains that reach a state the
    one of the lowest height is kept, and a higher one in its own bucket, since it can pay for
    larger pops.
    """

    def __init__(self, costs: Costs, timesteps: int, reserve: float):
        """Find the best chains of up to so many timesteps.

        Args:
            costs: of one crop, or of the average of several.
            reserve: below which no pop may leave the stack.
        """
        self.costs, self.reserve = costs, reserve
        n, lattices = costs.spacings.shape
        self.lowest = np.isfinite(costs.steps).any((2, 3)).argmax(1)  # the lowest z_s of each z_t
        start = np.full((n, lattices, BUCKETS), np.inf)
        for j in range(n):
            low = np.broadcast_to(costs.remainder - costs.pops[0, j], lattices)
            self._keep(start[j], low, low + costs.jumps[j])
        self.layers = [start]  # of timesteps 2, 3, ...: heights [level, lattice, bucket]
        for _ in range(timesteps - 2):
            layer = np.full_like(start, np.inf)
            for j in range(n):
                self._keep(layer[j], *self._reached(j, self.layers[-1]))
            self.layers.append(layer)

    def _reached(self, j: int, layer: Array) -> tuple[Array, Array]:
        """Heights after the pop of z_t at level j and after the push, from all states of a layer.

        Both [lattice of z_t, level (from the lowest on), lattice and bucket of z_s].
        """
        i = slice(self.lowest[j], j)
        pops = self.costs.pops[1:][i, j].T[:, :, None, None]
        pushes = self.costs.steps[j, i, :, 0][:, :, None]
        is_state = np.isfinite(layer[i]) & np.isfinite(pushes)
        low = np.where(is_state, layer[i], -np.inf) - pops
        return low, low + np.where(is_state, pushes, 0)

    def _keep(self, kept: Array, low: Array, heights: Array) -> None:
        """Keep the lowest of the possible heights in every bucket of each lattice."""
        possible = (low >= self.reserve) & np.isfinite(heights)
        lattice = np.nonzero(possible)[0]
        found = heights[possible]
        buckets = np.clip((found - self.reserve) / BUCKET_BPD, 0, BUCKETS - 1).astype(np.int64)
        np.minimum.at(kept, (lattice, buckets), found)

    def path(self, timesteps: int) -> GridPath | None:
        """The cheapest chain of so many timesteps, if there is one."""
        layer = self.layers[timesteps - 2]
        total = layer + self.costs.priors
        j, k, b = (int(i) for i in np.unravel_index(total.argmin(), total.shape))
        if not math.isfinite(total[j, k, b]):
            return None
        path = [(j, k)]
        for before in reversed(self.layers[: timesteps - 2]):
            low, heights = (field[k] for field in self._reached(j, before))
            is_origin = (heights == layer[j, k, b]) & (low >= self.reserve)
            i, k, b = (int(a) for a in np.argwhere(is_origin)[0])
            j = i + int(self.lowest[j])
            path.append((j, k))
            layer = before
        return path[::-1]


def plan_of_path(costs: Costs, path: GridPath) -> Plan:
    """The plan of a path on the grid."""
    levels = (first_sigma(costs.quantiser), *(float(costs.levels[j]) for j, _ in path))
    lattices = (
        draw_lattice(levels[t], levels[t + 1], float(costs.spacings[j, k]))
        for t, (j, k) in enumerate(path)
    )
    return Plan(levels, tuple(lattices))


def find_plans(
    costs: Costs,
    timesteps: Sequence[int],
    others_bpd: Array | None = None,
    reserves: Sequence[float] = RESERVES_BPD,
    files_bpd: Callable[[Plan], float] | None = None,
) -> dict[int, FoundPlan]:
    """The plan of the smallest files for each budget of timesteps.

    Chains are searched that hold the stack of the average crop above this reserve and that. Of what
    is found the best is taken by the crops' own files, each with its own dip. It may have fewer
    timesteps than it could, where each more costs more on the stack than it gains.

    Args:
        costs: of crops like the images to come.
        timesteps: budgets: at most so many network evaluations.
        others_bpd: of each crop by a fallback coder, which takes the crops where it is smaller.
        reserves: to try.
        files_bpd: a better judge than the table of the crops' mean file by a plan, for those that
            the table likes most and for the longest, which it likes too little.

    Returns:
        By budget.

    Raises:
        DiffcodecError: if a budget is below 3 timesteps, or above what the grid has, or no chain
            stays above a reserve.
    """
    check_budgets(timesteps, len(costs.levels) + 1)
    best = best_by_length(costs, max(timesteps), others_bpd, reserves)
    if not best or min(best) > min(timesteps):
        raise DiffcodecError(
            f"no chain of {min(timesteps)} timesteps on these crops: their stack runs empty at "
            "once; give crops with more detail"
        )
    judged: dict[int, FoundPlan] = {}

    def choose(count: int) -> FoundPlan:
        lengths = sorted((n for n in best if n <= count), key=lambda n: best[n].bpd)
        if files_bpd is None:
            return best[lengths[0]]
        shortlist = {*lengths[:SHORTLIST], max(lengths)}
        for length in shortlist - judged.keys():
            plan = best[length].plan
            judged[length] = FoundPlan(plan, files_bpd(plan))
        return min((judged[n] for n in judged if n <= count), key=lambda f: f.bpd)

    return {count: choose(count) for count in sorted(timesteps)}


def check_budgets(timesteps: Sequence[int], most: int) -> None:
    """Refuse budgets of timesteps that no plan on the grid has.

    Raises:
        DiffcodecError: so.
    """
    if not timesteps or min(timesteps) < 3 or max(timesteps) > most:
        raise DiffcodecError(
            f"timesteps {list(timesteps)}: expected 3 to {most}, the levels of the grid and sigma_1"
        )


def best_by_length(
    costs: Costs, timesteps: int, others_bpd: Array | None, reserves: Sequence[float]
) -> dict[int, FoundPlan]:
    """The best chain by the table for each number of timesteps from 3 on that has one."""
    best: dict[int, FoundPlan] = {}
    for reserve in reserves:
        search = StackSearch(costs.average(), timesteps, reserve)
        for length in range(3, timesteps + 1):
            path = search.path(length)
            if path is not None:
                bpd = float(with_fallback(costs.course(path).payload, others_bpd).mean())
                if length not in best or bpd < best[length].bpd:
                    best[length] = FoundPlan(plan_of_path(costs, path), bpd)
    return best


def with_fallback(payload: Array, others_bpd: Array | None) -> Array:
    """What is left of the payloads where another coder takes the crops that it codes better."""
    return payload if others_bpd is None else np.minimum(payload, others_bpd)


def bytes_around(width: int, height: int) -> int:
    """What a file of one tile has beside its payload."""
    tile = Tile(PLAN_NAMES[0], bytes(width * height))
    container = Container("RGB", width, height, b"some", False, {}, (tile,))
    return len(pack(container)) - len(tile.payload)
