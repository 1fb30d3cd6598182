"""Small networks for one variable, the pixels of one phase of the 2 x 2 grid after another.

All see the features of one evaluation of a U-Net, each also the variable itself in the phases
before its own, at half the resolution. What they predict are the distributions of
:mod:`diffcodec.diffusion.phases`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffcodec.diffusion.phases import (
    GAUSSIAN_PARAMETERS,
    PHASES,
    PLANES,
    REFINED_PARAMETERS,
    Parameters,
    mixture_parameters,
)
from diffcodec.networks.config import NetworkConfig, PhasesConfig, UNetConfig
from diffcodec.networks.unet import Conv, NoNumbers

Features = Float[Tensor, "batch features height_in_patches width_in_patches"]
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

    def __init__(self, channels: int, blocks: int, planes: int, parameters: int):
        super().__init__()
        self.known = Conv(4 * planes, channels, 3)
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.out = Conv(channels, parameters, 3, gain=0.0)

    def spread(self, components: int) -> "Phase":
        """The phase, its logistics at first beside each other, about as wide as the posterior."""
        with torch.no_grad():
            bias = self.out.bias[: 9 * components].view(3, 3, components)
            bias[:, 1] = torch.linspace(-0.3, 0.3, components)
            bias[:, 2] = -0.6
        return self


class PhaseNetworks(nn.Module):
    """The networks of all four phases.

    Args:
        config: of each.
        unet: shape of the U-Net behind which they stand.
        variable: that they tell, 0 for x, 1 for z_1, 2 for all z above.
    """

    def __init__(self, config: PhasesConfig, unet: UNetConfig, variable: int):
        super().__init__()
        counts = mixture_parameters(config.components), GAUSSIAN_PARAMETERS, REFINED_PARAMETERS
        self.fold = 2 // unet.patch  # of the features, to half the resolution
        features = unet.channels[0] * self.fold**2
        channels = config.channels_behind(unet)
        self.features = Conv(features, len(PHASES) * channels, 3)
        shape = channels, config.blocks, PLANES[variable], counts[variable]
        phases = [Phase(*shape) for _ in PHASES]
        if variable == 0:
            phases = [phase.spread(config.components) for phase in phases]
        self.phases: Sequence[Phase] = nn.ModuleList(phases)  # type: ignore[assignment]

    def shared(self, features: Features) -> list[HalfSize]:
        """What each phase makes of the U-Net's features, before it knows any of x."""
        folded = F.pixel_unshuffle(features, self.fold)
        return list(self.features(folded).chunk(len(PHASES), 1))

    def parameters_of(
        self, number: int, shared: HalfSize, told: Float[Tensor, "batch planes height width"]
    ) -> Parameters:
        """The parameters of a phase's distributions.

        Args:
            number: of the phase.
            shared: its own of :meth:`shared`.
            told: see :func:`.told_in_units`.
        """
        phase = self.phases[number]
        h = shared + phase.known(F.pixel_unshuffle(told, 2))
        out: Tensor = phase.out(F.silu(phase.blocks(h)))
        return out.float()

    def forward(
        self,
        features: Features,
        told: Sequence[Float[Tensor, "batch planes height width"]],
    ) -> list[Parameters]:
        """The parameters of every phase, where the encoder knows the whole variable.

        Args:
            features: of the U-Net.
            told: of each phase, see :meth:`parameters_of`.
        """
        return [
            self.parameters_of(number, shared, planes)
            for number, (shared, planes) in enumerate(zip(self.shared(features), told, strict=True))
        ]


def phase_networks(config: NetworkConfig) -> Sequence[PhaseNetworks]:
    """The networks of x, behind the first expert, of z_1, behind the second, and of z above."""
    networks, shape = [], config.phases
    if shape is not None:
        for teller in range(config.tellers):
            unet = config.experts[config.expert_of(teller)][1]
            networks.append(PhaseNetworks(shape, unet, min(teller, 2)))
    modules: Sequence[PhaseNetworks] = nn.ModuleList(networks)  # type: ignore[assignment]
    return modules


def outline_phases(config: NetworkConfig, tensors: int) -> Sequence[PhaseNetworks]:
    """The networks without their numbers: see :func:`diffcodec.networks.unet.outline`.

    Raises:
        ValueError: if they have more blocks than there are tensors, or no such network can be.
    """
    if config.phases and config.phases.blocks > tensors:
        raise ValueError(f"{config.phases.blocks} blocks, but only {tensors} tensors")
    with torch.device("meta"), NoNumbers():
        return phase_networks(config)
