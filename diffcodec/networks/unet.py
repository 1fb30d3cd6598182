"""The epsilon-model: a convolutional U-Net without normalisation.

Built so that integer inference fits: convolutions, additions, SiLU and a per-channel scale and
shift from the noise level; nothing looks at more than a neighbourhood, so tiles of any size work.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcodec.diffusion.color import DOMAINS
from diffcodec.diffusion.process import predict_x_from_eps

FOURIER_PERIOD = 16.0  # grey levels; VDM's Fourier features: they carry the low bits
LOG_VARIANCE_RANGE = 8.0  # |log v - log of the prior guess| at most
SECOND_VIEWS = {"none": (), "mirror": (-1,), "rotation": (-2, -1)}  # the axes that are reversed
DETAIL = "detail."  # what the names of the detail network's tensors begin with


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the network; saved with its weights."""

    color: str = "ycocg"
    channels: tuple[int, ...] = (48, 64, 96, 128)  # one entry per resolution, from 1/patch down
    blocks: tuple[int, ...] = (2, 1, 1, 1)  # residual blocks per resolution, on the way down and up
    patch: int = 1  # side of the squares of pixels that the first convolution sees as channels
    embedding: int = 256
    classes: int = 0  # of images that may have a label
    second_view: str = "none"  # of SECOND_VIEWS: what the posterior of x is averaged with
    second_view_up_to: float = 3.0  # grey levels: the noise levels where it is
    detail_up_to: float = 0.0  # grey levels: the noise levels of the detail network; 0 for none
    detail_blocks: tuple[int, ...] = ()  # its residual blocks; as ``blocks``, if empty

    def __post_init__(self) -> None:
        """Check.

        Raises:
            ValueError: if a size is not positive, a noise level negative, or there is no such view.
        """
        if self.second_view not in SECOND_VIEWS:
            raise ValueError(
                f"second view {self.second_view!r}: expected one of {', '.join(SECOND_VIEWS)}"
            )
        if min(*self.channels, self.patch, self.embedding) < 1:
            raise ValueError(
                f"channels {self.channels}, patch {self.patch}, embedding {self.embedding}: "
                "expected 1 or more of each"
            )
        if not 0 <= self.detail_up_to < math.inf:
            raise ValueError(f"a detail network up to {self.detail_up_to}: expected 0 or more")

    def to_dict(self) -> dict[str, Any]:
        """The arguments, of JSON's types but for tuples."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "NetworkConfig":
        """Inverse of :meth:`to_dict`, also after a way through JSON."""
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data.items()
        }
        return NetworkConfig(**fields)

    def view_axes(self, sigma: float) -> tuple[int, ...]:
        """The axes whose reversal makes the second view at a noise level; none if there is none."""
        return SECOND_VIEWS[self.second_view] if sigma <= self.second_view_up_to else ()

    def of_main(self) -> "NetworkConfig":
        """The shape of the network without its detail network."""
        return replace(self, detail_up_to=0.0, detail_blocks=())

    def of_detail(self) -> "NetworkConfig":
        """The shape of the detail network."""
        return replace(self.of_main(), blocks=self.detail_blocks or self.blocks)

    @property
    def multiple(self) -> int:
        """Height and width of the input must be multiples of this."""
        return self.patch << (len(self.channels) - 1)


PRESETS = {  # deep rather than wide: the wider a layer, the coarser its integer form
    "default": NetworkConfig(),
    "large": NetworkConfig(channels=(96, 128, 160, 192), blocks=(6, 4, 4, 4)),
}


def split_detail(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the network itself and those of its detail network, which may be none."""
    parts: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
    for name, tensor in tensors.items():
        parts[name.startswith(DETAIL)][name.removeprefix(DETAIL)] = tensor
    return parts


def join_detail(main: Mapping[str, Tensor], detail: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of :func:`split_detail`."""
    return dict(main) | {f"{DETAIL}{name}": tensor for name, tensor in detail.items()}


class Conv(nn.Module):
    """A convolution whose weight is kept as a matrix [out, in * kernel^2] (for Muon)."""

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int = 1, gain: float = 1.0):
        super().__init__()
        fan_in = n_in * kernel * kernel
        self.shape = (n_out, n_in, kernel, kernel)
        self.stride = stride
        self.weight = nn.Parameter(torch.randn(n_out, fan_in) * gain / math.sqrt(fan_in))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in, height, width] -> [batch, out, height / stride, width / stride]."""
        # padding (k-1)/2 for stride 1; a stride-2 convolution has a kernel of 2 and none
        pad = (self.shape[2] - 1) // 2
        return F.conv2d(x, self.weight.view(self.shape), self.bias, self.stride, pad)


class ResidualBlock(nn.Module):
    """x + conv2(silu(affine2(conv1(silu(affine1(x)))))), affine from the noise embedding."""

    def __init__(self, channels: int, embedding: int):
        super().__init__()
        self.affine = nn.Linear(embedding, 4 * channels)
        self.conv1 = Conv(channels, channels, 3, gain=math.sqrt(2))
        self.conv2 = Conv(channels, channels, 3, gain=0.0)
        nn.init.normal_(self.affine.weight, std=0.1 / math.sqrt(embedding))
        nn.init.zeros_(self.affine.bias)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """See the class; x [batch, channels, height, width], emb [batch, embedding]."""
        scale1, shift1, scale2, shift2 = self.affine(emb)[:, :, None, None].chunk(4, 1)
        h = self.conv1(F.silu(x * (1 + scale1) + shift1))
        residual: Tensor = self.conv2(F.silu(h * (1 + scale2) + shift2))
        return x + residual


class Stage(nn.ModuleList):
    """The residual blocks of one resolution, one after the other."""

    def __init__(self, channels: int, blocks: int, embedding: int):
        super().__init__(ResidualBlock(channels, embedding) for _ in range(blocks))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """See :meth:`ResidualBlock.forward`."""
        for block in self:
            x = block(x, emb)
        return x


class UNet(nn.Module):
    """Noise-level conditioned U-Net: ``(z_t, sigma_t) -> (eps, v)``.

    ``sigma`` is the schedule's level in grey levels; channel c has noise ``sigma * multiplier_c``.
    ``eps`` predicts the noise of unit variance in every channel, ``v`` the variance of x given
    ``z_t`` in squared grey levels. Skip and output scaling as in EDM (Karras et al. 2022, table 1).

    A network with classes may be told the label of each image, whose vector is added to the
    embedding. Files have no labels: for them it answers without.

    With ``detail_up_to`` in its configuration it has ``detail``, a second network of the same
    channels, which answers at noise levels up to that: most of the bits are there, and what is
    seen there is of another kind (expert denoisers, Balaji et al. 2022, section 4.1).
    """

    center: Tensor
    data_std: Tensor
    noise_multipliers: Tensor

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        domain = DOMAINS[config.color]
        for name in ("center", "data_std", "noise_multipliers"):
            values = torch.tensor(getattr(domain, name))[:, None, None]  # [3, 1, 1]
            self.register_buffer(name, values, persistent=False)
        c, e = config.channels, config.embedding
        self.embed1 = nn.Linear(64, e)
        self.embed2 = nn.Linear(e, e)
        if config.classes:  # the first row, always zero, is of images without a label
            self.embed_label = nn.Embedding(config.classes + 1, e, padding_idx=0)
            nn.init.zeros_(self.embed_label.weight)
        inputs = 9 * config.patch**2  # z, sin, cos of three channels
        self.conv_in = Conv(inputs, c[0], 3)
        self.conv_out = Conv(c[0], 6 * config.patch**2, 3, gain=0.0)
        stages = list(zip(c, config.blocks, strict=True))
        self.down = nn.ModuleList(Stage(n, k, e) for n, k in stages)
        self.up = nn.ModuleList(Stage(n, k, e) for n, k in stages)
        self.shrink = nn.ModuleList(Conv(a, b, 2, stride=2) for a, b in pairwise(c))
        self.grow = nn.ModuleList(Conv(b, 4 * a, 1) for a, b in pairwise(c))
        self.detail = UNet(config.of_detail()) if config.detail_up_to else None

    def embed(self, sigma: Tensor) -> Tensor:
        """Noise embedding of sigma [batch] -> [batch, embedding]."""
        position = torch.log(sigma)[:, None] / math.log(1000.0)
        frequencies = torch.arange(32, device=sigma.device) * (math.pi / 2)
        angles = position * frequencies
        features = torch.cat([angles.sin(), angles.cos()], 1)
        return F.silu(self.embed2(F.silu(self.embed1(features))))

    def forward(
        self, z: Tensor, sigma: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """See the class; by this network itself, whatever the noise levels.

        Args:
            z: [batch, 3, height, width], grey levels; sides multiples of ``config.multiple``.
            sigma: [batch], grey levels.
            labels: [batch], classes from 0 on, -1 for none; none at all if it is not given.

        Returns:
            eps and v, both shaped like z.
        """
        s = sigma[:, None, None, None] * self.noise_multipliers  # [batch, 3, 1, 1]
        total = (s * s + self.data_std * self.data_std).sqrt()
        centered = z - self.center
        phase = z * (2 * math.pi / FOURIER_PERIOD)
        h = torch.cat([centered / total, phase.sin(), phase.cos()], 1)
        h = F.pixel_unshuffle(h, self.config.patch)
        emb = self.embed(sigma)
        if labels is not None:
            emb = emb + self.embed_label(labels + 1)
        h = self.conv_in(h)
        skips = []
        last = len(self.down) - 1
        for level, stage in enumerate(self.down):
            h = stage(h, emb)
            if level < last:
                skips.append(h)
                h = self.shrink[level](h)
        for level in range(last, -1, -1):
            if level < last:
                h = skips[level] + F.pixel_shuffle(self.grow[level](h), 2)
            h = self.up[level](h, emb)
        out = F.pixel_shuffle(self.conv_out(F.silu(h)).float(), self.config.patch)
        field, log_ratio = out.chunk(2, 1)
        xhat = self.mean_of_x(field, z, s, total)
        limit = LOG_VARIANCE_RANGE
        guess = (s * self.data_std / total) ** 2
        v = guess * torch.exp(limit * torch.tanh(log_ratio / limit))
        return (z - xhat) / s, v

    def mean_of_x(self, field: Tensor, z: Tensor, s: Tensor, total: Tensor) -> Tensor:
        """From the output field: ``total^2 = s^2 + data_std^2``, s the noise of each channel."""
        c_skip = (self.data_std / total) ** 2
        c_out = s * self.data_std / total
        return self.center + c_skip * (z - self.center) + c_out * field

    def posterior_x(
        self, z: Tensor, sigma: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and variance of x given z_t: the two fields that everything else follows from.

        At low noise levels each is the mean of two, of the image and of its second view turned
        back: the network's errors differ (geometric self-ensemble, Lim et al. 2017, section 3.5).
        """
        mean, v = self.posterior_of_view(z, sigma, labels)
        axes = SECOND_VIEWS[self.config.second_view]
        twice = sigma <= self.config.second_view_up_to
        if axes and twice.any():
            some = None if labels is None else labels[twice]
            other = self.posterior_of_view(z[twice].flip(axes), sigma[twice], some)
            mean[twice], v[twice] = (
                (a[twice] + b.flip(axes)) / 2 for a, b in zip((mean, v), other, strict=True)
            )
        return mean, v

    def posterior_of_view(
        self, z: Tensor, sigma: Tensor, labels: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same from z_t as it is alone, each image by the network of its noise level."""
        if self.detail is None:
            return self._posterior_by_one(z, sigma, labels)
        is_low = sigma <= self.config.detail_up_to
        mean, v = torch.empty_like(z), torch.empty_like(z)
        for network, rows in ((self.detail, is_low), (self, ~is_low)):
            if not rows.any():
                continue
            some = None if labels is None else labels[rows]
            mean[rows], v[rows] = network._posterior_by_one(z[rows], sigma[rows], some)
        return mean, v

    def _posterior_by_one(
        self, z: Tensor, sigma: Tensor, labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        eps, v = self(z, sigma, labels)
        s = sigma[:, None, None, None] * self.noise_multipliers
        return predict_x_from_eps(z, s, eps), v

    @torch.no_grad()
    def reset_variance(self) -> None:
        """Make v that of independent Gaussian pixels, whatever the image, as before training."""
        rows = slice(3 * self.config.patch**2, None)  # the second field's
        self.conv_out.weight[rows] = 0
        self.conv_out.bias[rows] = 0


def outline(config: NetworkConfig, tensors: int) -> UNet:
    """The network without its numbers.

    A description may claim any size: neither time nor memory for it before it is checked.

    Raises:
        ValueError: if it has more blocks than there are tensors, or no such network can be.
    """
    blocks = config.blocks + config.detail_blocks
    if sum(map(abs, blocks)) > tensors:
        raise ValueError(f"{blocks} blocks, but only {tensors} tensors")
    with torch.device("meta"):
        return UNet(config)
