"""A model at work: the posterior of x that the chain asks for."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from diffcodec.color import DOMAINS
from diffcodec.errors import ModelMismatchError
from diffcodec.model_file import ModelInfo, make_metadata, model_path, read_model_info
from diffcodec.network import NetworkConfig, UNet
from diffcodec.plan import Plan

DEFAULT_MODEL = "photo"


class Model:
    """A trained epsilon-model with its plans."""

    def __init__(self, info: ModelInfo, network: UNet):
        self.info, self.network = info, network.eval().to(memory_format=torch.channels_last)
        self.color = network.config.color
        self.domain = DOMAINS[self.color]

    @property
    def plans(self) -> dict[str, Plan]:
        """By effort: "fast", "default", "best"."""
        return self.info.plans

    def posterior_x(
        self, z: NDArray[np.float64], sigma: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and variance of x given z_t at noise level sigma, both [batch, 3, height, width].

        Any height and width: borders are padded by repetition to what the network needs.
        """
        height, width = z.shape[2:]
        m = self.network.config.multiple
        padding = (0, -width % m, 0, -height % m)
        padded = F.pad(torch.from_numpy(z).float(), padding, mode="replicate")
        padded = padded.contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            mean, v = self.network.posterior_x(padded, torch.full((len(z),), sigma))
        mean, v = mean[:, :, :height, :width].double(), v[:, :, :height, :width].double()
        return mean.numpy(), v.numpy()


@lru_cache(maxsize=4)
def _load(path: Path) -> Model:
    info, data = read_model_info(path)
    try:
        with torch.random.fork_rng():
            network = UNet(NetworkConfig.from_dict(info.network))
        network.load_state_dict({k: t.float() for k, t in load(data).items()})
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as e:
        raise ModelMismatchError(f"{path}: not a diffcodec model file ({e})") from e
    return Model(info, network)


def load_model(name_or_path: str | Path = DEFAULT_MODEL) -> Model:
    """A shipped model by name, or any model file by path.

    Raises:
        ModelMismatchError: if there is no such model, or the file is not a diffcodec model.
    """
    return _load(model_path(name_or_path))


def serialise_model(
    config: NetworkConfig,
    weights: Mapping[str, Tensor],
    plans: Mapping[str, Plan],
    about: Mapping[str, Any],
) -> bytes:
    """A model file: weights in half precision, with its plans and its description."""
    tensors = {k: t.detach().half().contiguous() for k, t in weights.items()}
    return save(tensors, make_metadata(config.to_dict(), plans, about))
