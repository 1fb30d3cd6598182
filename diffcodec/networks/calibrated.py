"""The variance of x as a table by noise level and contrast, for networks that do not tell it."""

from bisect import bisect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffcodec.arrays import Array
from diffcodec.diffusion.color import DOMAINS, channels
from diffcodec.networks.devices import CPU
from diffcodec.networks.protocol import Field, PosteriorNetwork, digest

LARGEST_SHARE = 0.98  # of the noise's variance: z_t itself predicts x that well


@dataclass(frozen=True)
class VarianceTable:
    """Mean squared errors of a network.

    Attributes:
        levels: noise levels, increasing, [n].
        edges: contrasts between which a class lies, increasing, [n, 3, classes - 1].
        variances: of x given z_t, in squared grey levels, [n, 3, classes].
    """

    levels: Array
    edges: Array
    variances: Array

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ValueError: if the shapes do not fit, a variance is not positive, an edge is below 0, or
                levels or edges do not increase.
        """
        n, classes = len(self.levels), self.variances.shape[-1]
        if self.levels.shape != (n,) or not np.all(np.isfinite(self.levels) & (self.levels > 0)):
            raise ValueError(f"levels {self.levels.tolist()!r:.100}: expected positive numbers")
        if self.variances.shape != (n, 3, classes) or self.edges.shape != (n, 3, classes - 1):
            raise ValueError(
                f"{n} levels, edges {self.edges.shape} and variances {self.variances.shape}: "
                "expected [n], [n, 3, classes - 1] and [n, 3, classes]"
            )
        if not n or not np.all(np.isfinite(self.variances) & np.greater(self.variances, 0)):
            raise ValueError("a variance is not positive")
        if not np.all(np.isfinite(self.edges) & (self.edges >= 0)):
            raise ValueError("an edge between classes of contrast is no number from 0 on")
        if np.any(np.diff(self.levels) <= 0) or np.any(np.diff(self.edges) < 0):
            raise ValueError("levels or edges do not increase")

    def at(self, sigma: float) -> tuple[Array, Array]:
        """Edges and variances at a noise level: those of its neighbours, geometrically between."""
        above = min(max(1, bisect(self.levels.tolist(), sigma)), len(self.levels) - 1)
        if len(self.levels) == 1:
            return self.edges[0], self.variances[0]
        low, high = np.log(self.levels[above - 1 : above + 1])
        share = float(np.clip((np.log(sigma) - low) / (high - low), 0, 1))
        return (
            _between(self.edges[above - 1 : above + 1], share),
            _between(self.variances[above - 1 : above + 1], share),
        )

    def to_dict(self) -> dict[str, Any]:
        """The table as a dictionary of JSON's types."""
        return {name: getattr(self, name).tolist() for name in ("levels", "edges", "variances")}

    @staticmethod
    def from_dict(data: dict[str, Any]) -> "VarianceTable":
        """Inverse of :meth:`to_dict`."""
        names = ("levels", "edges", "variances")
        return VarianceTable(*(np.array(data[name], dtype=np.float64) for name in names))


def _between(pair: Array, share: float) -> Array:
    low, high = pair
    between: Array = low ** (1 - share) * high**share
    return between


def contrast(xhat: Field) -> Field:
    """How much a prediction changes around each sample: its deviation over 5 x 5 pixels."""
    padded = F.pad(xhat, (2, 2, 2, 2), mode="replicate")
    mean, square = (F.avg_pool2d(field, 5, 1) for field in (padded, padded * padded))
    return (square - mean * mean).clamp(min=0).sqrt() + 0.01  # above 0, for logarithms


def classes_of(field: Field, edges: Array) -> Tensor:
    """The class of each sample by the edges between which it lies, 0 to classes - 1."""
    limits = torch.from_numpy(edges).to(field.device)
    return (field[:, :, None] > limits[:, :, None, None]).sum(2)


class CalibratedNetwork:
    """A network with the variances of a table in the place of its own: a ``PosteriorNetwork``.

    Args:
        network: of any kind that is not in phases.
        table: fitted by :func:`diffcodec.models.calibration.calibrate`.
    """

    is_exact = False

    def __init__(self, network: PosteriorNetwork, table: VarianceTable):
        if getattr(network, "phases", ()):
            raise TypeError("a network in phases: its lowest variables have distributions, not v")
        self.network, self.table = network, table
        self.color, self.multiple, self.levels = network.color, network.multiple, network.levels
        self.device = getattr(network, "device", CPU)

    @property
    def identity(self) -> bytes:
        """Digest of the table and of the network's own."""
        description = self.table.to_dict() | {"network": self.network.identity.hex()}
        return digest(description, {})

    def posterior_x(self, z: Field, sigma: float) -> tuple[Field, Field]:
        """Mean and variance of x given z_t: see ``PosteriorNetwork``."""
        mean, _ = self.network.posterior_x(z, sigma)
        edges, variances = self.table.at(sigma)
        which = classes_of(contrast(mean), edges)  # [batch, 3, height, width]
        table = torch.from_numpy(variances).to(mean.device)
        channel = torch.arange(3, device=mean.device)[:, None, None]
        v = table[channel, which]
        if sigma > self.table.levels[0]:  # there a network may know less of x than z_1 does
            noise = sigma * channels(DOMAINS[self.color].noise_multipliers, mean)
            v = torch.minimum(v, LARGEST_SHARE * noise**2)
        return mean, v
