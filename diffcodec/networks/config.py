"""Shapes of networks: what is saved with their weights. No torch here."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from diffcodec.diffusion.plan import Plan, phased_variable
from diffcodec.diffusion.quantiser import first_sigma
from diffcodec.values import integer, number

PREFIX = "experts."  # what the names of an expert's tensors begin with, then its number
PHASES_PREFIX = "phases."
DEVICES = ("auto", "cpu", "cuda")  # where they compute
BACKBONES = ("unet", "dit")
WINDOW, HEAD = 16, 32  # of a DiT: patches of a side that see each other, numbers of a head
MOST = 1 << 31  # of channels, blocks and the like: their products are still numbers
ENSEMBLES = {"none": (), "mirror": (-1,), "rotation": (-2, -1)}  # the axes that are reversed


def _check_sizes(name: str, *sizes: Any) -> None:
    """Refuse what is no size of any network, before something is computed of it.

    Raises:
        ValueError: it is too large, or a truth value.
        TypeError: it is no integer.
    """
    for size in sizes:
        if isinstance(size, bool) or abs(integer(name, size)) > MOST:
            raise ValueError(f"{name}: found {size!r:.40}, expected integers up to {MOST}")


@dataclass(frozen=True)
class UNetConfig:
    """Shape of one U-Net.

    Attributes:
        color: domain of its images, one of ``color.DOMAINS``.
        channels: one entry per resolution, from 1/patch down.
        blocks: residual blocks per resolution, on the way down and up.
        patch: side of the squares of pixels that the first convolution sees as channels.
        embedding: of the noise level, how many numbers.
        classes: of images that may have a label.
        backbone: one of ``BACKBONES``; a "dit" has one resolution.
    """

    color: str = "ycocg"
    channels: tuple[int, ...] = (48, 64, 96, 128)
    blocks: tuple[int, ...] = (2, 1, 1, 1)
    patch: int = 1
    embedding: int = 256
    classes: int = 0
    backbone: str = "unet"

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ValueError: if a size is not positive, there are not as many blocks as channels, or
                there is no such backbone.
            TypeError: if a size is no integer.
        """
        if self.backbone not in BACKBONES:
            raise ValueError(f"backbone {self.backbone!r}: expected one of {', '.join(BACKBONES)}")
        _check_sizes("channels", *self.channels)
        _check_sizes("blocks", *self.blocks)
        _check_sizes("patch, embedding, classes", self.patch, self.embedding, self.classes)
        if self.backbone == "dit" and (len(self.channels) != 1 or self.channels[0] % HEAD):
            raise ValueError(
                f"channels {self.channels} of a DiT: expected one number, a multiple of {HEAD}"
            )
        if len(self.channels) != len(self.blocks):
            raise ValueError(
                f"channels {self.channels} and blocks {self.blocks}: one is shorter than the other"
            )
        positive = *self.channels, self.patch, self.embedding
        if not self.channels or min(positive) < 1 or min(*self.blocks, self.classes) < 0:
            raise ValueError(
                f"channels {self.channels}, patch {self.patch}, embedding {self.embedding}, blocks "
                f"{self.blocks}, classes {self.classes}: expected 1 or more of each, and no fewer "
                "than 0 blocks and classes"
            )

    def is_like(self, other: "UNetConfig") -> bool:
        """Whether two shapes differ in their blocks at most."""
        return asdict(self) | {"blocks": ()} == asdict(other) | {"blocks": ()}

    @property
    def multiple(self) -> int:
        """Height and width of the input must be multiples of this."""
        if self.backbone == "dit":
            return self.patch * WINDOW
        return self.patch << (len(self.channels) - 1)

    def to_dict(self) -> dict[str, Any]:
        """The arguments; a U-Net's as they were before there were others."""
        arguments = asdict(self)
        if self.backbone == "unet":
            del arguments["backbone"]
        return arguments

    @property
    def multiplications(self) -> float:
        """The multiplications of its convolutions and products, for each pixel of the input."""
        if self.backbone == "dit":
            [channels], [blocks] = self.channels, self.blocks
            block = 12 * channels**2 + 2 * WINDOW**2 * channels
            return 9 * 7 * channels + blocks * block / self.patch**2
        c, total = self.channels, 9 * 15 * self.patch**2 * self.channels[0]  # the first, the last
        for i, (channels, blocks) in enumerate(zip(c, self.blocks, strict=True)):
            total += 2 * blocks * 2 * 9 * channels**2 / 4**i  # on the way down and up
            if i:  # to this resolution and back
                total += (4 * c[i - 1] * channels + 4 * c[i - 1] * channels) / 4**i
        return total / self.patch**2


@dataclass(frozen=True)
class PhasesConfig:
    """Shape of the small networks that code x given z_1, and z_s given z_t, phase by phase.

    Attributes:
        quantiser: M of luma at the first level that they are for.
        channels: of each; half as many behind a U-Net of patch 2.
        blocks: residual blocks of each.
        components: logistics of a mixture of x.
    """

    quantiser: int = 8
    channels: int = 64
    blocks: int = 2
    components: int = 3

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ValueError: if a size is not positive.
            TypeError: if a size is no integer.
        """
        _check_sizes("phases", *asdict(self).values())
        if min(self.quantiser, self.channels, self.components) < 1 or self.blocks < 0:
            raise ValueError(f"{self}: expected 1 or more of each, and no fewer than 0 blocks")

    def channels_behind(self, unet: UNetConfig) -> int:
        """The channels of each network behind a U-Net."""
        return max(1, self.channels // unet.patch)

    def multiplications(self, which: int, unet: UNetConfig) -> float:
        """The multiplications of one variable's networks behind a U-Net, for each pixel."""
        told, parameters = ((24, 9 * self.components + 3), (12, 9), (16, 6), (16, 6))[which]
        features = 4 * unet.channels[0] // unet.patch**2
        channels = self.channels_behind(unet)
        convolutions = features + told + 2 * self.blocks * channels + parameters
        return 9 * channels * convolutions  # of four phases, at half the resolution


@dataclass(frozen=True)
class NetworkConfig:
    """Expert denoisers by noise level (Balaji et al. 2022, eDiff-I, section 4.1).

    Attributes:
        experts: (up to which noise level it answers, shape), the levels in grey levels, increasing;
            the last one's is infinity. Each may have its own channels, blocks and patch.
        self_ensemble: one of ``ENSEMBLES``: the reflection whose answer, turned back, the posterior
            of x is averaged with (geometric self-ensemble, Lim et al. 2017, section 3.5) where it
            is shown, and up to a noise level where it codes.
        self_ensemble_up_to: that level; in phases 0.
        phases: of small networks behind the first expert for x given z_1, behind the second for
            z_1 given z_2, and behind each of the others, or the second where it is the last, for z
            above; or None, where all are coded by the posterior alone. The first expert is then
            for the first level alone, the second for the second, and the others answer by their
            limits at those above, the lowest of them at all levels of a plan for lossy files.
    """

    experts: tuple[tuple[float, UNetConfig], ...] = ((math.inf, UNetConfig()),)
    self_ensemble: str = "none"
    self_ensemble_up_to: float = 3.0
    phases: PhasesConfig | None = None

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ValueError: if the experts' levels do not increase from above 0 to infinity, they differ
                in their colour domain or classes, or there is no such self-ensemble.
            TypeError: if the level of the self-ensemble is no number.
        """
        limits = [up_to for up_to, _ in self.experts]
        increasing = all(low < high for low, high in pairwise([0.0, *limits]))
        if not limits or limits[-1] != math.inf or not increasing:
            raise ValueError(
                f"experts up to {limits}: expected increasing noise levels above 0, last infinity"
            )
        if len({(shape.color, shape.classes) for _, shape in self.experts}) > 1:
            raise ValueError(
                "experts of several colour domains or numbers of classes: expected one"
            )
        if self.phases:
            self._check_phases()
        if self.self_ensemble not in ENSEMBLES:
            raise ValueError(
                f"self-ensemble {self.self_ensemble!r}: expected one of {', '.join(ENSEMBLES)}"
            )
        up_to = number("self_ensemble_up_to", self.self_ensemble_up_to)
        if up_to is None or math.isnan(up_to):
            raise ValueError(f"a self-ensemble up to {up_to}: expected a noise level")

    def _check_phases(self) -> None:
        if not self.has_integers:
            raise ValueError("phases behind a DiT: expected a U-Net")
        patches = [shape.patch for _, shape in self.experts]
        if len(patches) < 2 or not set(patches) <= {1, 2}:
            raise ValueError(
                f"phases behind experts of patches {patches}: expected two or more of 1 or 2"
            )
        if self.classes:
            raise ValueError("phases of a network with classes: expected one or the other")
        if first_sigma(self.quantiser) > self.experts[0][0]:
            raise ValueError("phases whose first level is not the first expert's")
        if self.self_ensemble != "none" and self.self_ensemble_up_to > 0:
            raise ValueError("phases with a self-ensemble that codes: expected one up to 0")

    @property
    def main(self) -> UNetConfig:
        """Shape of the expert of the highest noise levels, often the only one."""
        return self.experts[-1][1]

    @property
    def has_integers(self) -> bool:
        """Whether there is an exact form of it."""
        return all(shape.backbone == "unet" for _, shape in self.experts)

    @property
    def color(self) -> str:
        """Colour domain of all experts."""
        return self.main.color

    @property
    def classes(self) -> int:
        """The number of classes of images that may have a label."""
        return self.main.classes

    @property
    def multiple(self) -> int:
        """Height and width of the input must be multiples of this."""
        phases = 2 if self.phases else 1
        return math.lcm(phases, *(shape.multiple for _, shape in self.experts))

    @property
    def quantiser(self) -> int:
        """M of luma at the first level of plans that suit the network."""
        return self.phases.quantiser if self.phases else 2

    def expert_at(self, sigma: Any) -> Any:
        """The number of the expert that answers alone at a noise level; of each, of a tensor.

        Of a network in phases none of the first two, unless it is the last: they know noise of
        other kinds, the quantiser's, at levels of their own.
        """
        first = self.expert_of(2) if self.phases else 0
        return first + sum(sigma > up_to for up_to, _ in self.experts[first:-1])

    def teller_at(self, which: int, sigma: Any) -> Any:
        """The number of the networks of phases that tell a variable, by the level above it.

        Args:
            which: 0 for x, 1 for z_1, 2 for those above, 3 for those of lossy files.
            sigma: the noise level of the variable above; or a tensor of such.
        """
        if which == 2 and len(self.experts) > 2:
            return self.expert_at(sigma)
        return min(which, 2)

    @property
    def tellers(self) -> int:
        """How many networks of phases there are."""
        return max(3, len(self.experts)) if self.phases else 0

    def told_at(self, plans: Mapping[str, Plan]) -> list[list[float]]:
        """The noise levels at which plans ask each of the networks of phases, increasing."""
        levels: list[set[float]] = [set() for _ in range(self.tellers)]
        for plan in plans.values():
            for below, sigma in enumerate(plan.levels):
                which = phased_variable(plan, self.quantiser, below)
                levels[self.teller_at(which, sigma)].add(sigma)
        return list(map(sorted, levels))

    def answered_at(self, plans: Mapping[str, Plan]) -> list[list[float]]:
        """The noise levels at which plans ask each expert, increasing."""
        asked = [(self.expert_at(s), s) for plan in plans.values() for s in plan.levels]
        if self.phases:
            told = enumerate(self.told_at(plans))
            asked = [(self.expert_of(teller), s) for teller, levels in told for s in levels]
        return [sorted({s for k, s in asked if k == i}) for i in range(len(self.experts))]

    def expert_of(self, teller: int) -> int:
        """The number of the expert behind which a network of phases stands."""
        return min(teller, len(self.experts) - 1)

    def multiplications(self, plan: Plan) -> float:
        """The multiplications of all evaluations of a chain, for each pixel of a colour image."""
        total = 0.0
        if self.phases is None:
            for sigma in plan.levels:
                shape = self.experts[self.expert_at(sigma)][1]
                total += shape.multiplications * (2 if self.ensemble_axes(sigma) else 1)
            return total
        for below, sigma in enumerate(plan.levels):
            which = phased_variable(plan, self.quantiser, below)
            shape = self.experts[self.expert_of(self.teller_at(which, sigma))][1]
            total += shape.multiplications + self.phases.multiplications(which, shape)
        return total

    @property
    def reflection(self) -> tuple[int, ...]:
        """The axes whose reversal the self-ensemble asks for, or none."""
        return ENSEMBLES[self.self_ensemble]

    def ensemble_axes(self, sigma: float) -> tuple[int, ...]:
        """The same where the chain codes: at a noise level."""
        return self.reflection if sigma <= self.self_ensemble_up_to else ()

    def to_dict(self) -> dict[str, Any]:
        """The arguments, of JSON's types but for tuples."""
        experts = [
            (None if up_to == math.inf else up_to, shape.to_dict()) for up_to, shape in self.experts
        ]
        return asdict(self) | {"experts": experts}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "NetworkConfig":
        """Inverse of :meth:`to_dict`, also after a way through JSON."""
        experts = tuple(
            (math.inf if up_to is None else float(up_to), unet_config(shape))
            for up_to, shape in data["experts"]
        )
        phases = PhasesConfig(**data["phases"]) if data.get("phases") else None
        return NetworkConfig(**{**data, "experts": experts, "phases": phases})


def unet_config(data: Mapping[str, Any]) -> UNetConfig:
    """A shape from its arguments, after a way through JSON."""
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return UNetConfig(**fields)


def one_network(**shape: Any) -> NetworkConfig:
    """A single U-Net for all noise levels."""
    return NetworkConfig(((math.inf, UNetConfig(**shape)),))


PRESETS = {  # deep rather than wide: the wider a layer, the coarser its integer form
    "default": UNetConfig(),
    "large": UNetConfig(channels=(96, 128, 160, 192), blocks=(6, 4, 4, 4)),
    "dit": UNetConfig(channels=(192,), blocks=(6,), patch=2, backbone="dit"),
}
