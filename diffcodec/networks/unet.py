"""The epsilon-model: one convolutional U-Net without normalisation, or another body.

Built so that integer inference fits: convolutions, additions, SiLU and a per-channel scale and
shift from the noise level; nothing looks at more than a neighbourhood, so tiles of any size work.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffcodec.diffusion.color import DOMAINS
from diffcodec.diffusion.process import predict_x_from_eps
from diffcodec.networks.config import UNetConfig
from diffcodec.networks.scaling import Scaling, c_noise, scaling

Images = Float[Tensor, "batch 3 height width"]
Labels = Int[Tensor, " batch"]

FOURIER_PERIOD = 16.0  # grey levels; VDM's Fourier features: they carry the low bits
LOG_VARIANCE_RANGE = 8.0  # |log v - log of the prior guess| at most


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


class Backbone(nn.Module):
    """A noise-level conditioned network: ``(z_t, sigma_t) -> (eps, v)``, but for its body.

    ``sigma`` is the schedule's level in grey levels; channel c has noise ``sigma * multiplier_c``.
    ``eps`` predicts the noise of unit variance in every channel, ``v`` the variance of x given
    ``z_t`` in squared grey levels. Skip and output scaling as in EDM (Karras et al. 2022, table 1).

    A network with classes may be told the label of each image, whose vector is added to the
    embedding.
    """

    center: Tensor
    data_std: Tensor
    noise_multipliers: Tensor

    def __init__(self, config: UNetConfig, kernel: int):
        """Make what lies around the body.

        Args:
            config: its shape.
            kernel: of the first convolution.
        """
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
        self.conv_in = Conv(inputs, c[0], kernel)
        self.conv_out = Conv(c[0], 6 * config.patch**2, 3, gain=0.0)

    def body(self, h: Tensor, emb: Tensor) -> Tensor:
        """What the last convolution sees.

        Args:
            h: from the first one, [batch, channels, rows, columns].
            emb: of the noise level and the class, [batch, embedding].
        """
        raise NotImplementedError

    def embed(self, sigma: Float[Tensor, " batch"]) -> Float[Tensor, "batch embedding"]:
        """Noise embedding."""
        position = c_noise(sigma)[:, None]
        frequencies = torch.arange(32, device=sigma.device) * (math.pi / 2)
        angles = position * frequencies
        features = torch.cat([angles.sin(), angles.cos()], 1)
        return F.silu(self.embed2(F.silu(self.embed1(features))))

    def forward(
        self, z: Images, sigma: Float[Tensor, " batch"], labels: Labels | None = None
    ) -> tuple[Images, Images]:
        """See the class.

        Args:
            z: grey levels; sides multiples of ``config.multiple``.
            sigma: grey levels.
            labels: classes from 0 on, -1 for none; none at all if it is not given.

        Returns:
            eps and v.
        """
        s = self.noise_of(sigma)
        xhat, v = self.read_out(self.features(z, sigma, labels), z, sigma)
        return (z - xhat) / s, v

    def features(
        self, z: Images, sigma: Float[Tensor, " batch"], labels: Labels | None = None
    ) -> Float[Tensor, "batch channels rows columns"]:
        """What the last convolution sees, at the resolution of the patches; see :meth:`forward`."""
        scales = scaling(self.noise_of(sigma), self.data_std, torch.sqrt)
        phase = z * (2 * math.pi / FOURIER_PERIOD)
        h = torch.cat(
            [(z - self.center) / scales.total, phase.sin(), phase.cos()], 1
        )  # [batch, 9, height, width]
        h = F.pixel_unshuffle(h, self.config.patch)
        emb = self.embed(sigma)
        if labels is not None:
            emb = emb + self.embed_label(labels + 1)
        return self.body(self.conv_in(h), emb)

    def read_out(
        self,
        features: Float[Tensor, "batch channels rows columns"],
        z: Images,
        sigma: Float[Tensor, " batch"],
    ) -> tuple[Images, Images]:
        """Mean and variance of x given z_t by the last convolution."""
        s = self.noise_of(sigma)
        scales = scaling(s, self.data_std, torch.sqrt)
        out = F.pixel_shuffle(self.conv_out(features).float(), self.config.patch)
        field, log_ratio = out.chunk(2, 1)
        xhat = self.mean_of_x(field, z, s, scales)
        limit = LOG_VARIANCE_RANGE
        return xhat, scales.c_out**2 * torch.exp(limit * torch.tanh(log_ratio / limit))

    def mean_of_x(self, field: Images, z: Images, s: Tensor, scales: Scaling[Tensor]) -> Images:
        """Mean of x given z_t by what the network gives."""
        return self.center + scales.c_skip * (z - self.center) + scales.c_out * field

    def noise_of(self, sigma: Float[Tensor, " batch"]) -> Float[Tensor, "batch 3 1 1"]:
        """The noise of each channel."""
        return sigma[:, None, None, None] * self.noise_multipliers

    def posterior_x(
        self, z: Images, sigma: Float[Tensor, " batch"], labels: Labels | None = None
    ) -> tuple[Images, Images]:
        """Mean and variance of x given z_t: the two fields that everything else follows from."""
        eps, v = self(z, sigma, labels)
        return predict_x_from_eps(z, self.noise_of(sigma), eps), v

    @torch.no_grad()
    def reset_variance(self) -> None:
        """Make v that of independent Gaussian pixels, whatever the image, as before training."""
        rows = slice(3 * self.config.patch**2, None)  # the second field's
        self.conv_out.weight[rows] = 0
        self.conv_out.bias[rows] = 0


class UNet(Backbone):
    """A convolutional U-Net, made so that integer inference fits."""

    def __init__(self, config: UNetConfig):
        super().__init__(config, kernel=3)
        c, e = config.channels, config.embedding
        stages = list(zip(c, config.blocks, strict=True))
        self.down = nn.ModuleList(Stage(n, k, e) for n, k in stages)
        self.up = nn.ModuleList(Stage(n, k, e) for n, k in stages)
        self.shrink = nn.ModuleList(Conv(a, b, 2, stride=2) for a, b in pairwise(c))
        self.grow = nn.ModuleList(Conv(b, 4 * a, 1) for a, b in pairwise(c))

    def body(self, h: Tensor, emb: Tensor) -> Tensor:
        """See :class:`Backbone`."""
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
        return F.silu(h)


class NoNumbers(TorchFunctionMode):
    """Leaves numbers that are not there undrawn.

    On the meta device a draw or a product makes PyTorch import sympy and its compiler: a second of
    the processor's time.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else given["tensor"]
        if func in (Tensor.mul, Tensor.div):
            return args[0]
        sizes = {torch.randn: args, torch.linspace: args[2:]}.get(func)
        return func(*args, **given) if sizes is None else torch.empty(*sizes)
