"""Diffusion models of others as the codec's network: any PyTorch module, by conversion."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from diffcodec.diffusion.parametrisation import PREDICTIONS, NoisePath, learned_range_variance
from diffcodec.diffusion.quantiser import first_sigma
from diffcodec.diffusion.schedule import GREY_LEVELS_PER_UNIT
from diffcodec.networks.devices import CPU
from diffcodec.networks.protocol import Field, digest
from diffcodec.values import integer, number

CENTRE = 127.5  # the grey level of their 0
LARGEST = 255.0
FIXED_VARIANCES = ("fixed-small", "fixed-large", "learned-range")
SMALL_ABOVE = 5 * first_sigma(2)  # grey levels: below are the chain's ends, that have no Q
MOST_SIDE = 1 << 12  # of images that a network takes; in multiples of it others are padded
LEAST_SHARE = 1e-3  # of the large variance, for the small one: files have none of zero


@dataclass(frozen=True)
class Conversion:
    """What a foreign network takes and gives.

    Attributes:
        path: its noisy input, and what it is told of the noise.
        prediction: one of ``PREDICTIONS``.
        variance: of x given z_t, one of ``FIXED_VARIANCES``; a calibrated one goes on top
            (:mod:`diffcodec.networks.calibrated`).
        scale: grey levels of its unit; its 0 is the grey level 127.5.
        size: of the square images that it takes, in pixels, or 0 if any.
        multiple: sides of its images are multiples of this.
        whole_timesteps: whether it knows no timesteps between two.
        more: arguments by name that its call takes besides.
    """

    path: NoisePath
    prediction: str = "epsilon"
    variance: str = "fixed-large"
    scale: float = GREY_LEVELS_PER_UNIT
    size: int = 0
    multiple: int = 1
    whole_timesteps: bool = False
    more: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ValueError: if a prediction or variance is none, or a number is out of range.
            TypeError: if a number is none.
        """
        if self.prediction not in PREDICTIONS:
            names = ", ".join(PREDICTIONS)
            raise ValueError(f"prediction {self.prediction!r}: expected one of {names}")
        if self.variance not in FIXED_VARIANCES:
            names = ", ".join(FIXED_VARIANCES)
            raise ValueError(f"variance {self.variance!r}: expected one of {names}")
        scale, size = number("scale", self.scale), integer("size", self.size)
        multiple = integer("multiple", self.multiple)
        if not isinstance(self.more, Mapping):
            raise TypeError(f"more: found {type(self.more).__name__}, expected a mapping")
        for name, value in self.more.items():
            integer(f"more[{name!r}]", value)
        if self.variance == "learned-range" and len(self.path.noise) < 2:
            raise ValueError("a learned range of variances is between those of discrete timesteps")
        if (
            not 0 < (scale or 0) < 1e6
            or not 0 <= size <= MOST_SIDE
            or not 1 <= multiple <= MOST_SIDE
        ):
            raise ValueError(
                f"scale {self.scale}, size {self.size}, multiple {self.multiple}: expected a scale "
                f"above 0, a size of 0 to {MOST_SIDE}, a multiple of 1 to {MOST_SIDE}"
            )


class ConvertedNetwork:
    """A module of others as a ``PosteriorNetwork`` of RGB images.

    Images are evaluated one by one, so that at least their batch does not matter; of a network for
    images of one size in squares of that side. xhat is clipped to the range of the pixels, where
    the mean of x is for certain, as DDPM clips x_0.

    Args:
        network: called with the noisy images and what it is told of the noise, [batch]. Gives a
            tensor of 3 channels (6, the second half Improved DDPM's v, for the variance
            "learned-range"), or an object whose ``sample`` is that, or a tuple that begins with it.
        conversion: of both.
        identity: of the network, if it has no weights to make a digest of.
    """

    is_exact, levels, color = False, None, "rgb"

    def __init__(
        self, network: Callable[..., Any], conversion: Conversion, identity: bytes | None = None
    ):
        if identity is None and not isinstance(network, nn.Module):
            raise TypeError(
                f"network: found {type(network).__name__}, expected a torch.nn.Module; of anything "
                "else give its identity, bytes that change with what it computes"
            )
        if isinstance(network, nn.Module):
            network.eval()
        self.network, self.conversion = network, conversion
        self.multiple = conversion.size or conversion.multiple
        self._identity = identity

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        parameters = getattr(self.network, "parameters", lambda: iter(()))
        first: Tensor | None = next(parameters(), None)
        return CPU if first is None else first.device

    @cached_property
    def identity(self) -> bytes:
        """Digest of the conversion, the network's class and its weights."""
        kind = f"{type(self.network).__module__}.{type(self.network).__qualname__}"
        description = asdict(self.conversion) | {"network": kind}
        if self._identity is not None:
            return digest(description | {"identity": self._identity.hex()}, {})
        assert isinstance(self.network, nn.Module)
        return digest(description, self.network.state_dict())

    def posterior_x(self, z: Field, sigma: float) -> tuple[Field, Field]:
        """Mean and variance of x given z_t: see ``PosteriorNetwork``."""
        side = self.conversion.size
        parts = [self._posterior(part, sigma) for part in _squares(z, side)]
        mean, v = (torch.cat(fields) for fields in zip(*parts, strict=True))
        return _joined(mean, z, side), _joined(v, z, side)

    def _posterior(self, z: Field, sigma: float) -> tuple[Field, Field]:
        """The posterior mean and variance of one image."""
        c = self.conversion
        u = sigma / c.scale
        alpha, s = c.path.factors(u)
        x_t = alpha * (z - CENTRE) / c.scale
        told = torch.tensor([c.path.told(u, c.whole_timesteps)], dtype=torch.float32)
        more = {name: torch.tensor([number], device=z.device) for name, number in c.more.items()}
        answer = self.network(x_t.float(), told.to(z.device), **more)
        answer = answer[0] if isinstance(answer, tuple) else getattr(answer, "sample", answer)
        self._check_answer(answer, x_t)
        predicted, *rest = answer.double().split(3, 1)
        xhat = PREDICTIONS[c.prediction](x_t, alpha, s, predicted)
        large = u * u / (1 + u * u)
        if c.variance == "learned-range":
            v = learned_range_variance((rest[0] + 1) / 2, *c.path.step(u))
        elif c.variance == "fixed-small" and sigma > SMALL_ABOVE:
            v = torch.full_like(xhat, LEAST_SHARE * large)
        else:
            v = torch.full_like(xhat, large)
        return (CENTRE + c.scale * xhat).clamp(0, LARGEST), c.scale * c.scale * v

    def _check_answer(self, answer: Any, x_t: Tensor) -> None:
        """Refuse what is no prediction of a noisy image.

        Raises:
            TypeError: it is no tensor.
            ValueError: it has another shape.
        """
        if not isinstance(answer, Tensor):
            raise TypeError(
                f"network: it gave {type(answer).__name__}, expected a tensor, an object whose "
                "sample is one, or a tuple that begins with one; wrap it in a function"
            )
        batch, _, *size = x_t.shape
        counts = (6,) if self.conversion.variance == "learned-range" else (3, 6)
        if list(answer.shape) not in [[batch, count, *size] for count in counts]:
            channels = " or ".join(map(str, counts))
            raise ValueError(
                f"network: it gave a tensor {list(answer.shape)} of {list(x_t.shape)}, expected "
                f"{channels} channels of the same size"
            )


def _squares(z: Tensor, side: int) -> Sequence[Tensor]:
    """Images one by one, in squares of a side if that is not 0, row by row."""
    images: list[Tensor] = list(z.split(1))
    if not side:
        return images
    rows: list[Tensor] = [row for image in images for row in image.split(side, 2)]
    return [square for row in rows for square in row.split(side, 3)]


def _joined(squares: Tensor, like: Tensor, side: int) -> Tensor:
    """Inverse of :func:`_squares`."""
    if not side:
        return squares
    batch, channels, height, width = like.shape
    rows, columns = height // side, width // side
    cut = squares.reshape(batch, rows, columns, channels, side, side)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(like.shape)
