"""What the codec asks of a network: all there is to plugging in another one."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from diffcodec.diffusion.color import DOMAINS
from diffcodec.values import integer

Field = Float64[Tensor, "batch 3 height width"]
Labels = Int64[Tensor, " batch"]
Planes = Float64[Tensor, "batch planes height width"]  # what a phase is told


class PosteriorNetwork(Protocol):
    """A denoiser that tells how sure it is: the posterior of x given z_t, pixel by pixel.

    Any object of these members is one; plain class attributes do.
    """

    @property
    def color(self) -> str:
        """Colour domain of x and z, one of ``diffcodec.diffusion.color.DOMAINS``."""
        ...

    @property
    def multiple(self) -> int:
        """Height and width of z are multiples of this: smaller tiles are padded."""
        ...

    @property
    def levels(self) -> Sequence[float] | None:
        """The noise levels at which it answers; None if it does at any."""
        ...

    @property
    def is_exact(self) -> bool:
        """Whether it gives the same bits on every machine, at any number of threads and images.

        Files of one that does not are marked as such: elsewhere they may not decode.
        """
        ...

    @property
    def identity(self) -> bytes:
        """Equal of two networks only if they compute the same: see :func:`digest`."""
        ...

    def posterior_x(self, z: Field, sigma: float) -> tuple[Field, Field]:
        """Mean and variance of x given z_t.

        Args:
            z: grey levels of the colour domain.
            sigma: noise level in grey levels, without the channels' multipliers.
        """
        ...


class ClassNetwork(PosteriorNetwork, Protocol):
    """A network that may be told the class of each image."""

    @property
    def classes(self) -> int:
        """How many it knows."""
        ...

    def posterior_x(
        self, z: Field, sigma: float, labels: Labels | None = None
    ) -> tuple[Field, Field]:
        """Mean and variance of x given z_t and labels: classes from 0 on, -1 for none."""
        ...


class PhasedNetwork(PosteriorNetwork, Protocol):
    """A network that can also tell x given z_1, and z_s given z_t, in phases.

    See :mod:`diffcodec.diffusion.phases`. Plans begin at its quantiser's noise level.
    """

    @property
    def quantiser(self) -> int:
        """M of luma at the first level of its plans without loss."""
        ...

    def begin_phases(self, which: int, z: Field, sigma: float) -> tuple[Field, Field, list[Tensor]]:
        """Mean and variance of x given z, and what each phase makes of it, [batch, ...].

        Args:
            which: variable is to be told, 0 for x, 1 for z_1, 2 for those above, 3 for all of a
                plan for lossy files.
            z: the one above it.
            sigma: its noise level.
        """
        ...

    def phase_parameters(
        self, which: int, sigma: float, number: int, shared: Tensor, told: Planes
    ) -> Tensor:
        """The parameters of a phase, float32 [batch, parameters, rows, columns].

        Args:
            which: variable, as above.
            sigma: the noise level of the variable above.
            number: of the phase.
            shared: what it made of the variable above.
            told: what is known before the phase, see :func:`.told_planes`.
        """
        ...


MEMBERS = ("color", "multiple", "levels", "is_exact", "identity", "posterior_x")


def check_network(network: Any) -> None:
    """Refuse what is no ``PosteriorNetwork``.

    Raises:
        TypeError: it lacks a member.
        ValueError: its colour domain is none, or its multiple.
    """
    # Of the class first: an identity may take long to compute.
    missing = [m for m in MEMBERS if not (hasattr(type(network), m) or hasattr(network, m))]
    if missing:
        raise TypeError(
            f"network: found {type(network).__name__} without {', '.join(missing)}, expected a "
            "PosteriorNetwork (diffcodec.networks.protocol), or for a network of others "
            "diffcodec.models.from_epsilon"
        )
    if network.color not in list(DOMAINS):  # of any type, such as one without a hash
        found, domains = repr(network.color), ", ".join(DOMAINS)
        raise ValueError(f"network: found the color {found}, expected one of {domains}")
    if integer("network.multiple", network.multiple) < 1:
        raise ValueError(f"network: found the multiple {network.multiple}, expected 1 or more")


def digest(description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bytes:
    """SHA-256 of a description, of JSON's types, and of tensors with their names."""
    sha = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(flat.view(torch.uint8).numpy().tobytes())  # NumPy knows no bfloat16
    return sha.digest()
