"""From the trained float network to the integer one: post-training quantisation.

Weights get a scale per output channel; the integer inputs of every convolution get as fine a unit
as keeps its sums exact (see :mod:`diffcodec.integer`).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from diffcodec.diffusion import q_sample
from diffcodec.integer import (
    EXACT_LIMIT,
    INPUT_SCALE,
    OUTPUT_DIGIT,
    PHASE_AMPLITUDE,
    SILU_RANGE,
    is_behind_silu,
)
from diffcodec.network import Conv, ResidualBlock, UNet

HIDDEN_BITS = 8
CALIBRATION_LEVELS = 8  # noise levels at which the ranges of activations are looked at
SILU_MINIMUM = 0.2785  # -silu is at most this
LARGEST_INPUT = 4095  # the SiLU table is no finer
HEADROOM = 1.5  # clipping point over the largest input seen: clipping costs far more than rounding


class InputRanges:
    """The largest inputs of every convolution, seen while calibration images pass through."""

    def __init__(self, network: UNet):
        self.top: dict[str, float] = {}
        self._hooks = [
            module.register_forward_pre_hook(self._observe(name))
            for name, module in network.named_modules()
            if isinstance(module, Conv)
        ]

    def _observe(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            top = HEADROOM * inputs[0].abs().max().item()
            self.top[name] = max(self.top.get(name, 0.0), top)

        return hook

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()


def quantize_weight(weight: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Integers of magnitude up to ``largest`` and the scale per output channel.

    The scale is the one of a few candidates that leaves the least squared error.
    """
    flat = weight.flatten(1)
    top = flat.abs().amax(1, keepdim=True).clamp_min(1e-12)
    best = torch.full_like(top, torch.inf)
    best_scale = top / largest
    for share in torch.linspace(0.7, 1.0, 16):
        scale = top * share / largest
        q = (flat / scale).round().clamp(-largest, largest)
        error = ((q * scale - flat) ** 2).sum(1, keepdim=True)
        best_scale = torch.where(error < best, scale, best_scale)
        best = torch.minimum(error, best)
    integers = (flat / best_scale).round().clamp(-largest, largest)
    return integers.view(weight.shape), best_scale[:, 0]


def widest_exact(weight: Tensor, high: float, low: float) -> Tensor:
    """Largest magnitude M so that integer weights scaled to M keep sums below the limit."""
    flat = weight.flatten(1) / weight.flatten(1).abs().amax(1, keepdim=True).clamp_min(1e-12)
    positive, negative = flat.clamp_min(0).sum(1), -flat.clamp_max(0).sum(1)
    worst = torch.maximum(positive * high + negative * low, positive * low + negative * high)
    return (EXACT_LIMIT * 0.9) / worst.max()


def quantize(network: UNet, calibration: Tensor, levels: Sequence[float]) -> dict[str, Tensor]:
    """The tensors of an :class:`diffcodec.integer.IntegerUNet`, and the noise embedding's own.

    Args:
        network: trained.
        calibration: integers of the colour domain as floats, [batch, 3, height, width].
        levels: every noise level at which the plans evaluate the network.
    """
    network = network.eval().float()
    ranges = InputRanges(network)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for sigma in levels[:: max(1, len(levels) // CALIBRATION_LEVELS)]:
            noise = torch.randn(calibration.shape, generator=generator)
            z = q_sample(calibration, sigma * network.noise_multipliers, noise)
            network(z, torch.full((len(z),), sigma))
        ranges.close()
        tensors = {"levels": torch.tensor(levels, dtype=torch.float64)}
        tensors |= {k: t.half() for k, t in network.state_dict().items() if is_embedding(k)}
        emb = network.embed(torch.tensor(levels, dtype=torch.float32))
        for name, module in network.named_modules():
            if isinstance(module, ResidualBlock):
                tensors[f"{name}.affine.table"] = module.affine(emb).half()
            elif isinstance(module, Conv) and name == "conv_in":
                tensors |= _quantize_input(module, network.config.patch)
            elif isinstance(module, Conv):
                tensors |= _quantize_conv(name, module, ranges.top[name])
    return {name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}


def is_embedding(name: str) -> bool:
    """Whether a tensor makes the tables; kept so that other tables and more training can follow."""
    return name.startswith("embed") or name.endswith((".affine.weight", ".affine.bias"))


def float_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of a float network from the tensors of a quantised one."""
    state = {k: t.float() for k, t in tensors.items() if is_embedding(k)}
    for name in (k.removesuffix(".input") for k in tensors if k.endswith(".input")):
        scale = tensors[f"{name}.scale"] / tensors[f"{name}.input"][0]
        flat = tensors[f"{name}.weight"].flatten(1) * scale[:, None]
        state |= {f"{name}.weight": flat.float(), f"{name}.bias": tensors[f"{name}.bias"]}
    parts = [state.pop(f"conv_in.{part}.weight") for part in ("z", "phase")]
    state["conv_in.weight"] = torch.cat(parts, 1)
    state["conv_in.bias"] = state.pop("conv_in.z.bias")
    del state["conv_in.phase.bias"]
    return state


def _quantize_conv(name: str, conv: Conv, top: float) -> dict[str, Tensor]:
    weight = conv.weight.detach().view(conv.shape)
    behind_silu = is_behind_silu(name)
    top = min(top, SILU_RANGE) if behind_silu else top
    below = SILU_MINIMUM / top if behind_silu else 1.0  # lowest input, as a share of the top
    if name == "conv_out":
        limit = LARGEST_INPUT
        digits = max(OUTPUT_DIGIT, limit / OUTPUT_DIGIT)
        integers, scale = quantize_weight(
            weight, int(min(2**15 - 1, widest_exact(weight, digits, digits * below).item()))
        )
    else:
        integers, scale = quantize_weight(weight, 2 ** (HIDDEN_BITS - 1) - 1)
        positive, negative = integers.clamp_min(0).flatten(1), -integers.clamp_max(0).flatten(1)
        p, n = positive.sum(1), negative.sum(1)
        worst = max(1.0, torch.maximum(p + n * below, n + p * below).max().item())
        # one less, and the rounding of the lowest input allowed for
        limit = min(
            LARGEST_INPUT, int((EXACT_LIMIT - 1 - max(p.max(), n.max()).item()) / worst) - 1
        )
    unit = top / limit
    kind = torch.int16 if name == "conv_out" else torch.int8
    return {
        f"{name}.weight": integers.to(kind),
        f"{name}.scale": (scale * unit).float(),
        f"{name}.bias": conv.bias.detach().float(),
        f"{name}.input": torch.tensor([unit, limit], dtype=torch.float64),
    }


def _quantize_input(conv: Conv, patch: int) -> dict[str, Tensor]:
    """The first convolution in two parts: the image's bytes, and the phases."""
    weight = conv.weight.detach().view(conv.shape)
    count = 3 * patch**2
    parts = {"z": (weight[:, :count], 255, 1 / INPUT_SCALE)}
    parts["phase"] = (weight[:, count:], PHASE_AMPLITUDE, 1 / PHASE_AMPLITUDE)
    tensors: dict[str, Tensor] = {}
    for part, (w, limit, unit) in parts.items():
        largest = int(min(2**15 - 1, widest_exact(w, limit, limit).item()))
        integers, scale = quantize_weight(w, largest)
        tensors |= {
            f"conv_in.{part}.weight": integers.to(torch.int16),
            f"conv_in.{part}.scale": (scale * unit).float(),
            f"conv_in.{part}.bias": conv.bias.detach().float().clone(),
            f"conv_in.{part}.input": torch.tensor([unit, limit], dtype=torch.float64),
        }
    return tensors
