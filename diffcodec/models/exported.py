"""Our network as a component of diffusers, and its pipeline. Importing this needs that library.

Diffusers' schedulers add the same noise to all channels. The codec's differs by channel (YCoCg), so
the network is given whitened images ``w = (z - centre) / (127.5 m)``, m the channel's multiplier:
the noise of w is that of DDPM's unit, ``x_t = sqrt(abar) w``, and epsilon is the same.
"""

import json
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from PIL import Image
from torch import Tensor

from diffcodec.diffusion.color import DOMAINS, ColorDomain, channels, from_domain
from diffcodec.diffusion.parametrisation import NoisePath
from diffcodec.diffusion.schedule import GREY_LEVELS_PER_UNIT
from diffcodec.errors import ModelMismatchError
from diffcodec.models.file import MALFORMED
from diffcodec.networks.config import NetworkConfig
from diffcodec.networks.experts import ExpertDenoisers


class ExportedUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """An epsilon-model of whitened images; see the module.

    Args:
        network: the shape, JSON of ``NetworkConfig.to_dict``.
        noise: of the timesteps from 0 on, in DDPM's unit.

    Raises:
        ModelMismatchError: if there is no such network, or the noise does not increase.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, network: str, noise: tuple[float, ...]):
        super().__init__()
        try:
            shape = NetworkConfig.from_dict(json.loads(network))
            self.module = ExpertDenoisers(shape)
            self.domain = DOMAINS[shape.color]
            self.noise = NoisePath("variance-preserving", tuple(noise)).noise
            if not self.noise:
                raise ValueError("it has no timesteps")
        except MALFORMED as e:
            raise ModelMismatchError(
                f"not a network of diffcodec's as to_diffusers describes it ({e}); export it again"
            ) from e

    def forward(
        self, sample: Tensor, timestep: Tensor | float, return_dict: bool = True
    ) -> UNet2DOutput | tuple[Tensor]:
        """Epsilon of ``sqrt(abar) w`` at a timestep."""
        u = self.noise[int(timestep)]
        w = sample * (1 + u * u) ** 0.5
        z = unwhitened(w, self.domain)
        sigma = torch.full((len(z),), GREY_LEVELS_PER_UNIT * u, device=z.device, dtype=z.dtype)
        xhat, _ = self.module.posterior_x(z, sigma)
        eps = (w - whitened(xhat, self.domain)) / u
        return UNet2DOutput(sample=eps) if return_dict else (eps,)


class ExportedPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Draws RGB images by any scheduler of diffusers for epsilon-models."""

    def __init__(self, unet: ExportedUNet, scheduler: Any):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int = 50,
        size: tuple[int, int] = (32, 32),
        generator: torch.Generator | None = None,
    ) -> ImagePipelineOutput:
        """Images, as Pillow's.

        Args:
            batch_size: how many.
            num_inference_steps: of the scheduler.
            size: height and width, multiples of the network's.
            generator: of the noise.
        """
        domain, noise = self.unet.domain, self.unet.noise
        u = noise[-1]
        draw = torch.randn((batch_size, 3, *size), generator=generator)
        spread = channels(domain.data_std, draw) / unit(domain, draw)
        w = (spread**2 + u * u).sqrt() * draw.to(self.device)
        x_t = w / (1 + u * u) ** 0.5
        self.scheduler.set_timesteps(num_inference_steps)
        for timestep in self.progress_bar(self.scheduler.timesteps):
            scaled = self.scheduler.scale_model_input(x_t, timestep)
            eps = self.unet(scaled, timestep).sample
            x_t = self.scheduler.step(eps, timestep, x_t).prev_sample
        x = unwhitened(x_t, domain).round().to(torch.int32)
        color = self.unet.module.config.color
        rgb = from_domain(x, color).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return ImagePipelineOutput(images=[Image.fromarray(image) for image in rgb])


def unit(domain: ColorDomain, like: Tensor) -> Tensor:
    """Grey levels of each channel for one of DDPM's unit of noise."""
    return GREY_LEVELS_PER_UNIT * channels(domain.noise_multipliers, like)


def whitened(z: Tensor, domain: ColorDomain) -> Tensor:
    """See the module."""
    return (z - channels(domain.center, z)) / unit(domain, z)


def unwhitened(w: Tensor, domain: ColorDomain) -> Tensor:
    """Inverse of :func:`whitened`."""
    return w * unit(domain, w) + channels(domain.center, w)
