"""The float network: an expert denoiser for each range of noise levels."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diffcodec.diffusion.bound import quantiser_of
from diffcodec.diffusion.color import DOMAINS, channels
from diffcodec.diffusion.phases import (
    ERROR_STEPS,
    PHASES,
    Phased,
    expected_of,
    first_bits,
    phased_bits,
    refined_everywhere,
    told_in_units,
)
from diffcodec.diffusion.quantiser import first_sigma
from diffcodec.networks.config import PHASES_PREFIX, PREFIX, NetworkConfig
from diffcodec.networks.dit import make_backbone, outline
from diffcodec.networks.phases import outline_phases, phase_networks
from diffcodec.networks.protocol import Field, Planes, digest
from diffcodec.networks.unet import Backbone, Images, Labels

CHANNELS_LAST = torch.channels_last


class ExpertDenoisers(nn.Module):
    """A list of U-Nets, each of which answers at the noise levels up to its own limit.

    Most of the bits are at the lowest levels, and what is seen there is of another kind: grain
    instead of shapes. Called, it gives the posterior of x without self-ensemble, as in training.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        unets = nn.ModuleList(make_backbone(shape) for _, shape in config.experts)
        self.experts: Sequence[Backbone] = unets  # type: ignore[assignment]
        self.phases = phase_networks(config)

    @property
    def phased(self) -> "PhasedBits | None":
        """The network's code in phases, if it has one."""
        return PhasedBits(self.config, self) if self.phases else None

    def in_phases(
        self, told: "Told", z: Images, sigma: Float[Tensor, " batch"]
    ) -> tuple[Phased, Images, Images]:
        """What is predicted of a variable, phase by phase, where it is known.

        Args:
            told: the variable.
            z: the one above it.
            sigma: the noise level of z.

        Returns:
            It, and the mean and variance of x given z alone.
        """
        teller = self.config.teller_at(told.which, sigma)
        if isinstance(teller, int):
            return self._told_by(teller, told, z, sigma)
        if told.lossy is not None:
            teller = teller.masked_fill(told.lossy, self.config.teller_at(3, sigma))
        rows = [torch.nonzero(teller == number)[:, 0] for number in range(self.config.tellers)]
        parts = [
            self._told_by(number, told.of(some), z[some], sigma[some])
            for number, some in enumerate(rows)
            if len(some)
        ]
        order = torch.cat(rows).argsort()
        predicted, xhat, v = zip(*parts, strict=True)
        mean, unit, parameters = zip(*predicted, strict=True)
        whole = [torch.cat(each)[order] for each in (mean, unit, *zip(*parameters, strict=True))]
        phased = Phased(whole[0], whole[1], whole[2:])
        return phased, torch.cat(xhat)[order], torch.cat(v)[order]

    def _told_by(
        self, teller: int, told: "Told", z: Images, sigma: Float[Tensor, " batch"]
    ) -> tuple[Phased, Images, Images]:
        """What :meth:`in_phases` gives, by the networks of this number."""
        which, variable, below, _ = told
        unet = self.experts[self.config.expert_of(teller)]
        features = unet.features(z, sigma)
        xhat, v = unet.read_out(features, z, sigma)
        steps, sigma_1 = quantiser_of(DOMAINS[self.config.color], self.config.quantiser, z)
        low, length = sigma_1, torch.zeros_like(sigma)
        if below is not None:
            low, length = unet.noise_of(below), torch.log(sigma / below)[:, None, None]
        sigmas = low, unet.noise_of(sigma)
        mean, unit = expected_of(which, xhat, v, z, sigmas, steps, torch.sqrt)
        known = variable, mean, unit
        planes = [told_in_units(which, *known, number, length) for number in range(len(PHASES))]
        return Phased(mean, unit, self.phases[teller](features, planes)), xhat, v

    def forward(
        self,
        z: Images,
        sigma: Float[Tensor, " batch"],
        labels: Labels | None = None,
        told: "Told | None" = None,
    ) -> tuple[Images, Images] | tuple[Phased, Images, Images]:
        """Mean and variance of x given z_t, or where a variable is told, :meth:`in_phases`."""
        if told is not None:
            return self.in_phases(told, z, sigma)
        return self.posterior_alone(z, sigma, labels)

    def posterior_alone(
        self, z: Images, sigma: Float[Tensor, " batch"], labels: Labels | None = None
    ) -> tuple[Images, Images]:
        """Mean and variance of x given z_t: see :meth:`UNet.posterior_x`."""
        which = self.config.expert_at(sigma)  # [batch], or of all
        if isinstance(which, int):
            return self.experts[which].posterior_x(z, sigma, labels)
        mean, v = torch.empty_like(z), torch.empty_like(z)
        for number, expert in enumerate(self.experts):
            rows = which == number
            if not rows.any():
                continue
            some = None if labels is None else labels[rows]
            mean[rows], v[rows] = expert.posterior_x(z[rows], sigma[rows], some)
        return mean, v

    def posterior_x(
        self, z: Images, sigma: Float[Tensor, " batch"], labels: Labels | None = None
    ) -> tuple[Images, Images]:
        """The same with self-ensemble: at low noise levels the mean of two answers.

        One is of the image, one of its reflection, turned back: the network's errors differ
        (geometric self-ensemble, Lim et al. 2017, section 3.5).
        """
        mean, v = self.posterior_alone(z, sigma, labels)
        axes = self.config.reflection
        twice = sigma <= self.config.self_ensemble_up_to
        if axes and twice.any():
            some = None if labels is None else labels[twice]
            other = self.posterior_alone(z[twice].flip(axes), sigma[twice], some)
            mean[twice], v[twice] = (
                (a[twice] + b.flip(axes)) / 2 for a, b in zip((mean, v), other, strict=True)
            )
        return mean, v


class Told(NamedTuple):
    """A variable that is known to a network of phases.

    Attributes:
        which: 0 for x given z_1, 1 for z_1 given z_2, 2 for z_s above, 3 for z_s of lossy files.
        variable: x, z_1 or z_s.
        below: the noise level of z_s, [batch].
        lossy: where it is 2, which images it is 3 of, [batch]; None if of none.
    """

    which: int
    variable: Images
    below: Tensor | None = None
    lossy: Tensor | None = None

    def of(self, rows: Tensor) -> "Told":
        """The variable of some images of the batch."""
        below = None if self.below is None else self.below[rows]
        return Told(self.which, self.variable[rows], below)  # by one network, lossy or not


class PhasedBits:
    """The code by a network with phases: a ``PhasedModel``.

    Args:
        config: of the network.
        network: :class:`ExpertDenoisers`, compiled or not.
    """

    def __init__(self, config: NetworkConfig, network: Callable[..., Any]):
        self.config, self.network = config, network

    def remainder_bits(self, x: Images, z_1: Images) -> Images:
        """Code length of x given z_1, in bits, of every sample."""
        sigma = z_1.new_full((len(z_1),), first_sigma(self.config.quantiser))
        return phased_bits(x, z_1, self._ask(Told(0, x), z_1, sigma)[0], self._steps(x))

    def first_bits(self, z_1: Images, z_2: Images, sigma: Float[Tensor, " batch"]) -> Images:
        """Code length of z_1 given z_2 at noise levels sigma, in bits, of every sample."""
        return first_bits(z_1, self._ask(Told(1, z_1), z_2, sigma)[0], self._steps(z_1))

    def refined(
        self,
        z_s: Images,
        z_t: Images,
        below: Tensor,
        sigma: Float[Tensor, " batch"],
        lossy: Bool[Tensor, " batch"] | None = None,
    ) -> tuple[Images, Images]:
        """Mean and variance of x given z_t and, at each pixel, z_s of the phases before.

        Args:
            z_s, z_t: variables above z_1.
            below, sigma: their noise levels.
            lossy: which are of lossy files; None if none is.
        """
        predicted, xhat, v = self._ask(Told(2, z_s, below.float(), lossy), z_t, sigma)
        return refined_everywhere(xhat, v, predicted.parameters)

    def _ask(self, told: Told, z: Images, sigma: Tensor) -> tuple[Phased, Images, Images]:
        told = told._replace(variable=told.variable.float())
        predicted: tuple[Phased, Images, Images]
        predicted = self.network(z.float(), sigma.float(), told=told)
        return predicted

    def _steps(self, like: Tensor) -> Tensor:
        return channels(DOMAINS[self.config.color].quantiser_steps(self.config.quantiser), like)


class FloatNetwork:
    """Inference of :class:`ExpertDenoisers` in float32, for research: a ``PosteriorNetwork``.

    The order of its sums is the libraries' own: another machine or number of threads may give other
    bits. Images are evaluated one by one, so that at least their batch does not matter.
    """

    is_exact, levels = False, None

    def __init__(self, module: ExpertDenoisers):
        self.module, self.config = module, module.config
        self.color, self.multiple = module.config.color, module.config.multiple
        self.classes, self.phases = module.config.classes, module.phases
        self.reflection = module.config.reflection

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.module.parameters()).device

    @property
    def quantiser(self) -> int:
        """See ``PhasedNetwork``."""
        return self.config.quantiser

    @cached_property
    def identity(self) -> bytes:
        """Digest of the shape and the weights."""
        return digest(self.config.to_dict(), self.module.state_dict())

    def posterior_x(
        self, z: Field, sigma: float, labels: Labels | None = None
    ) -> tuple[Field, Field]:
        """Mean and variance of x given z_t: see ``ClassNetwork``."""
        images = z.float().contiguous(memory_format=CHANNELS_LAST).split(1)
        told = [None] * len(images) if labels is None else labels.to(z.device).split(1)
        level = torch.full((1,), float(sigma), device=z.device)
        fields = [
            self.module.posterior_x(image, level, label)
            for image, label in zip(images, told, strict=True)
        ]
        mean, v = (torch.cat(field).double() for field in zip(*fields, strict=True))
        return mean, v

    def begin_phases(self, which: int, z: Field, sigma: float) -> tuple[Field, Field, list[Tensor]]:
        """See ``PhasedNetwork``."""
        level = torch.full((1,), float(sigma), device=z.device)
        teller, answers = self.config.teller_at(which, sigma), []
        unet, phases = self.module.experts[self.config.expert_of(teller)], self.phases[teller]
        for image in z.float().contiguous(memory_format=CHANNELS_LAST).split(1):
            features = unet.features(image, level)
            mean, v = unet.read_out(features, image, level)
            answers.append((mean.double(), v.double(), *phases.shared(features)))
        mean, v, *shared = map(torch.cat, zip(*answers, strict=True))
        return mean, v, shared

    def phase_parameters(
        self, which: int, sigma: float, number: int, shared: Tensor, told: Planes
    ) -> Tensor:
        """See ``PhasedNetwork``."""
        planes = (told.float() / ERROR_STEPS).split(1)
        phases = self.phases[self.config.teller_at(which, sigma)]
        return torch.cat(
            [
                phases.parameters_of(number, *each)
                for each in zip(shared.split(1), planes, strict=True)
            ]
        )


def float_network(config: NetworkConfig, weights: Mapping[str, Tensor]) -> FloatNetwork:
    """The network of these weights, checked; no random numbers are drawn.

    Raises:
        ValueError: if these are not the network's weights as floats, all of them finite.
    """
    outlines = [outline(shape, len(weights)).state_dict() for _, shape in config.experts]
    phases = [part.state_dict() for part in outline_phases(config, len(weights))]
    expected = join_experts(outlines, phases)
    if weights.keys() != expected.keys():
        raise ValueError("its tensors are not those of its network")
    for name, weight in weights.items():
        shape = expected[name].shape
        if weight.shape != shape or not weight.is_floating_point():
            raise ValueError(
                f"{name} is {weight.dtype} {list(weight.shape)}, expected floats {list(shape)}"
            )
        if not weight.isfinite().all():
            raise ValueError("a weight is not finite")
    with torch.random.fork_rng(devices=[]):
        module = ExpertDenoisers(config)
    module.load_state_dict(weights)
    return FloatNetwork(module)


def split_experts(tensors: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """The tensors of each of so many experts, by the names of a network alone."""
    return [_behind(f"{PREFIX}{number}.", tensors) for number in range(count)]


def split_phases(tensors: Mapping[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """The tensors of the phases' networks of so many variables, by their own names."""
    return [_behind(f"{PHASES_PREFIX}{number}.", tensors) for number in range(count)]


def _behind(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}


def join_experts(
    experts: Sequence[Mapping[str, Tensor]], phases: Sequence[Mapping[str, Tensor]] = ()
) -> dict[str, Tensor]:
    """Inverse of :func:`split_experts` and :func:`split_phases`."""
    return {
        f"{prefix}{i}.{name}": tensor
        for prefix, parts in ((PREFIX, experts), (PHASES_PREFIX, phases))
        for i, part in enumerate(parts)
        for name, tensor in part.items()
    }
