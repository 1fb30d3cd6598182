"""A diffusion transformer of images of any size (DiT, Peebles and Xie 2023), for comparison.

Patches, blocks with adaLN-Zero, and attention within windows of patches, which every other block
shifts by half of one (Swin, Liu et al. 2021). So tiles of any size work, as with the U-Net. Its
sums are in floats: there is no exact form of it.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffcodec.networks.config import HEAD, WINDOW, UNetConfig
from diffcodec.networks.unet import Backbone, NoNumbers, UNet

Tokens = Float[Tensor, "batch rows columns channels"]
Heads = Float[Tensor, "windows heads patches numbers"]


class DiTBlock(nn.Module):
    """Attention and a perceptron, each x + gate f(scale norm(x) + shift), from the embedding."""

    def __init__(self, channels: int, embedding: int):
        super().__init__()
        self.affine = nn.Linear(embedding, 6 * channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.mix = nn.Linear(channels, channels)
        self.widen = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)
        nn.init.zeros_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)

    def forward(self, x: Tokens, emb: Float[Tensor, "batch embedding"], shift: int) -> Tokens:
        """See the class; windows are shifted by so many patches."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.affine(emb)[:, None, None].chunk(6, 3)
        x = x + gate1 * self.attend(_norm(x) * (1 + scale1) + shift1, shift)
        hidden = F.gelu(self.widen(_norm(x) * (1 + scale2) + shift2), approximate="tanh")
        found: Tensor = x + gate2 * self.narrow(hidden)
        return found

    def attend(self, x: Tokens, shift: int) -> Tokens:
        """Attention within each window; those at the far borders go on at the near ones."""
        batch, rows, columns, channels = x.shape
        split = (batch, rows // WINDOW, WINDOW, columns // WINDOW, WINDOW)
        qkv = self.qkv(x.roll((-shift, -shift), (1, 2))).view(*split, 3, channels // HEAD, HEAD)
        q, k, v = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(
            3, -1, channels // HEAD, WINDOW**2, HEAD
        )
        h = F.scaled_dot_product_attention(turned(q), turned(k), v)
        h = h.view(batch, split[1], split[3], -1, WINDOW, WINDOW, HEAD)
        h = h.permute(0, 1, 4, 2, 5, 3, 6).reshape(x.shape)
        mixed: Tensor = self.mix(h)
        return mixed.roll((shift, shift), (1, 2))


class DiT(Backbone):
    """The U-Net's inputs and outputs, with a transformer between them."""

    def __init__(self, config: UNetConfig):
        super().__init__(config, kernel=1)
        [channels], [blocks] = config.channels, config.blocks
        self.blocks = nn.ModuleList(DiTBlock(channels, config.embedding) for _ in range(blocks))

    def body(self, h: Tensor, emb: Tensor) -> Tensor:
        """See :class:`Backbone`."""
        x = h.permute(0, 2, 3, 1)
        for number, block in enumerate(self.blocks):
            x = block(x, emb, WINDOW // 2 * (number % 2))
        return _norm(x).permute(0, 3, 1, 2)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def turned(x: Heads) -> Heads:
    """Queries or keys turned by their places, half of the numbers by the row, half by the column.

    RoPE (Su et al. 2021): products of them know how far their patches lie apart.
    """
    place = torch.arange(WINDOW, device=x.device)
    rates = math.pi / 2 * 2.0 ** (-torch.arange(HEAD // 4, device=x.device) / 2)
    angles = place[:, None] * rates  # [window, head / 4]
    by_row, by_column = angles[:, None].expand(-1, WINDOW, -1), angles.expand(WINDOW, -1, -1)
    angle = torch.cat([by_row, by_column], 2).view(WINDOW**2, HEAD // 2)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def make_backbone(config: UNetConfig) -> Backbone:
    """The network of a shape."""
    return DiT(config) if config.backbone == "dit" else UNet(config)


def outline(config: UNetConfig, tensors: int) -> Backbone:
    """The network without its numbers.

    A description may claim any size: neither time nor memory for it before it is checked.

    Raises:
        ValueError: if it has more blocks than there are tensors, or no such network can be.
    """
    if sum(config.blocks) > tensors:
        raise ValueError(f"{config.blocks} blocks, but only {tensors} tensors")
    with torch.device("meta"), NoNumbers():
        return make_backbone(config)
