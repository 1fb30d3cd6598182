"""What coding by a chain on a grid of noise levels costs, from the costs of its steps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from jaxtyping import Float64

from diffcodec.arrays import Array
from diffcodec.container.parts import LEAST_PREVIEW

PREVIEW_OVERHEAD = 0.3  # of relative entropy coding over the KL, with what its bias costs below

GridPath = Sequence[tuple[int, int]]  # of z_2 .. z_T: the level's index, its lattice's


@dataclass(frozen=True)
class Costs:
    """Bits of every step that a chain on a grid could take, for each of some crops.

    Indices: level i or j above sigma_1 (s and t of a step), lattice k, crop c. What a chain cannot
    do is infinite.

    Attributes:
        levels: in grey levels.
        spacings: of lattices, delta in grey levels of the first channel.
        pops: of z_t at level j on lattice k given z_s at level i - 1 (0: z_1).
        remainder: pushes of x given z_1.
        jumps: pushes of z_1 given z_2 at level j.
        steps: pushes of z_s at level i on lattice k given z_t at level j, [j, i, k, c].
        priors: pushes of z_T.
        sent: KL of z_s at level i given z_t at level j, if it is sent from the top, [j, i, c].
        sent_first: KL of z_T at level j.
        quantiser: M of luma at the first level.
    """

    levels: Float64[Array, " n"]
    spacings: Float64[Array, "n k"]
    pops: Float64[Array, "n+1 n k"]
    remainder: Float64[Array, " c"]
    jumps: Float64[Array, "n c"]
    steps: Float64[Array, "n n k c"]
    priors: Float64[Array, "n k c"]
    sent: Float64[Array, "n n c"]
    sent_first: Float64[Array, "n c"]
    quantiser: int = 2

    def course(self, path: GridPath) -> "Course":
        """The course of coding the crops by a chain."""
        changes = [self.remainder]
        for t, (j, k) in enumerate(path):
            i, below = path[t - 1] if t else (-1, 0)
            pushed = self.steps[j, i, below] if t else self.jumps[j]
            changes += [np.full_like(pushed, -self.pops[i + 1, j, k]), pushed]
        nodes = [j for j, _ in path]
        sent = [self.sent[t, s] for s, t in pairwise(nodes)]
        return Course(
            np.cumsum([*changes, self.priors[path[-1]]], 0),
            np.array([*sent, self.sent_first[nodes[-1]]]),
        )

    def average(self) -> "Costs":
        """The table of the average crop."""
        names = ("remainder", "jumps", "steps", "priors", "sent", "sent_first")
        return replace(self, **{n: getattr(self, n).mean(-1, keepdims=True) for n in names})


@dataclass(frozen=True)
class Course:
    """Coding crops by a plan, step by step.

    Attributes:
        heights: of the stack after each coding step of the encoder, from 0: 2 T of them, in the
            order of :func:`diffcodec.coding.steps.coding_steps`.
        sent: KL of z_2 .. z_T, each given the one above, if it is sent from the top, T - 1.
    """

    heights: Float64[Array, "steps c"]
    sent: Float64[Array, "levels c"]

    @property
    def payload(self) -> Float64[Array, " c"]:
        """What files hold: the stack, and the cheapest way out where it runs empty.

        Either seed bits, or a preview of its own: then the upper timesteps take
        ``PREVIEW_OVERHEAD`` more, and only what is below can run empty.
        """
        above = np.cumsum(self.sent[::-1], 0)[::-1]
        ways_out = [np.maximum(0, -self.heights.min(0))]
        for t in range(LEAST_PREVIEW, len(self.sent) + 2):
            dip = np.maximum(0, -self.heights[: 2 * t - 3].min(0))
            ways_out.append(PREVIEW_OVERHEAD * above[t - 2] + dip)
        payload: Array = self.heights[-1] + np.min(ways_out, 0)
        return payload
