"""Inference in float32, for research."""

from collections.abc import Mapping

import torch
from torch import Tensor

from diffcodec.networks.unet import NetworkConfig, UNet, outline


class FloatUNet:
    """Inference of a :class:`diffcodec.networks.unet.UNet` in float32, for research.

    The order of its sums is the libraries' own: another machine or number of threads may give other
    bits. Images are evaluated one by one, so that at least their batch does not matter.
    """

    def __init__(self, config: NetworkConfig, weights: Mapping[str, Tensor]):
        """Load and check.

        Raises:
            ValueError: if these are not the network's weights in float32, all of them finite.
        """
        expected = outline(config, len(weights)).state_dict()
        if weights.keys() != expected.keys():
            raise ValueError("its tensors are not those of its network")
        for name, weight in weights.items():
            shape = expected[name].shape
            if weight.shape != shape or weight.dtype != torch.float32:
                raise ValueError(
                    f"{name} is {weight.dtype} {list(weight.shape)}, expected float32 {list(shape)}"
                )
            if not weight.isfinite().all():
                raise ValueError("a weight is not finite")
        self.config = config
        with torch.random.fork_rng(devices=[]):
            self.unet = UNet(config)
        self.unet.load_state_dict(weights)

    def posterior_x(self, z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        """Mean and variance of x given z_t: see :meth:`IntegerUNet.posterior_x`."""
        images = z.float().contiguous(memory_format=torch.channels_last).split(1)
        fields = [self.unet.posterior_x(image, torch.tensor([sigma])) for image in images]
        mean, v = (torch.cat(field).double() for field in zip(*fields, strict=True))
        return mean, v
