"""Small networks that give x given z_1, the pixels of one phase of the 2 x 2 grid after another.

All see the features of one evaluation of a U-Net at z_1, each also the exact x of the phases before
its own, at half the resolution. What they predict are the mixtures of
:mod:`diffcodec.diffusion.phases`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffcodec.diffusion.phases import PHASES, known_before, parameter_count
from diffcodec.networks.config import PhasesConfig, UNetConfig
from diffcodec.networks.unet import Conv

HalfSize = Float[Tensor, "batch channels rows columns"]


class Block(nn.Module):
    """x + conv2(silu(conv1(silu(x))))."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = Conv(channels, channels, 3)
        self.conv2 = Conv(channels, channels, 3, gain=0.0)

    def forward(self, x: HalfSize) -> HalfSize:
        """See the class."""
        residual: Tensor = self.conv2(F.silu(self.conv1(F.silu(x))))
        return x + residual


class Phase(nn.Module):
    """The network of one phase."""

    def __init__(self, config: PhasesConfig):
        super().__init__()
        k = config.components
        self.known = Conv(12, config.channels, 3)
        self.blocks = nn.Sequential(*(Block(config.channels) for _ in range(config.blocks)))
        self.out = Conv(config.channels, parameter_count(k), 3, gain=0.0)
        with torch.no_grad():  # logistics beside each other, about as wide as the posterior
            bias = self.out.bias[: 9 * k].view(3, 3, k)
            bias[:, 1] = torch.linspace(-0.3, 0.3, k)
            bias[:, 2] = -0.6


class PhaseNetworks(nn.Module):
    """The networks of all four phases.

    Args:
        config: of each.
        unet: shape of the U-Net behind which they stand.
    """

    def __init__(self, config: PhasesConfig, unet: UNetConfig):
        super().__init__()
        self.fold = 2 // unet.patch  # of the features, to half the resolution
        features = unet.channels[0] * self.fold**2
        self.features = Conv(features, len(PHASES) * config.channels, 3)
        phases = nn.ModuleList(Phase(config) for _ in PHASES)
        self.phases: Sequence[Phase] = phases  # type: ignore[assignment]

    def shared(self, features: Float[Tensor, "batch channels height width"]) -> list[HalfSize]:
        """What each phase makes of the U-Net's features, before it knows any of x."""
        folded = F.pixel_unshuffle(features, self.fold)
        return list(self.features(folded).chunk(len(PHASES), 1))

    def parameters_of(
        self, number: int, shared: HalfSize, errors: Float[Tensor, "batch 3 height width"]
    ) -> HalfSize:
        """Of a phase's mixtures.

        Args:
            number: of the phase.
            shared: its own of :meth:`shared`.
            errors: of the posterior mean in units, clipped; 0 of what is not known before.
        """
        phase = self.phases[number]
        h = shared + phase.known(F.pixel_unshuffle(errors, 2))
        out: Tensor = phase.out(F.silu(phase.blocks(h)))
        return out.float()

    def forward(
        self,
        features: Float[Tensor, "batch channels height width"],
        errors: Float[Tensor, "batch 3 height width"],
    ) -> list[HalfSize]:
        """The parameters of every phase, where the encoder knows all of x."""
        return [
            self.parameters_of(number, shared, errors * known_before(number, errors))
            for number, shared in enumerate(self.shared(features))
        ]


def outline_phases(config: PhasesConfig, unet: UNetConfig, tensors: int) -> PhaseNetworks:
    """The networks without their numbers: see :func:`diffcodec.networks.unet.outline`.

    Raises:
        ValueError: if they have more blocks than there are tensors, or no such network can be.
    """
    if config.blocks > tensors:
        raise ValueError(f"{config.blocks} blocks, but only {tensors} tensors")
    with torch.device("meta"):
        return PhaseNetworks(config, unet)
