"""The way from the trained float network to the integer one: post-training quantisation.

Weights get a scale per output channel and are rounded one after another, each making up for the
errors of those before (GPTQ, Frantar et al. 2022); the integer inputs of every convolution get as
fine a unit as keeps its sums exact (see :mod:`diffcodec.networks.integer`).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffcodec.diffusion.bound import above, draw_dither, quantiser_of
from diffcodec.diffusion.color import DOMAINS
from diffcodec.diffusion.phases import ERROR_LIMIT, ERROR_STEPS
from diffcodec.diffusion.plan import Plan, phased_variable
from diffcodec.diffusion.process import dithered_quantise, q_sample
from diffcodec.networks.config import NetworkConfig
from diffcodec.networks.exact import EXACT_LIMIT, largest_sum
from diffcodec.networks.experts import (
    ExpertDenoisers,
    Told,
    join_experts,
    split_experts,
    split_phases,
)
from diffcodec.networks.int8 import BYTE
from diffcodec.networks.integer import INPUT_SCALE, check_has_integers
from diffcodec.networks.integer_layers import (
    OUTPUT_DIGIT,
    PHASE_AMPLITUDE,
    SILU_RANGE,
    is_behind_silu,
)
from diffcodec.networks.phases import PhaseNetworks
from diffcodec.networks.unet import Backbone, Conv, ResidualBlock

HIDDEN_BITS = 8
COVARIANCE_LEVELS, COVARIANCE_IMAGES = 8, 8  # of the calibration
CALIBRATION_STEP_CROPS = 16  # of the crops, for each of the many steps in phases
DAMPING = 0.01  # of the mean of the covariance's diagonal, added to it
SILU_MINIMUM = 0.2785  # -silu is at most this
LARGEST_INPUT = 4095  # the SiLU table is no finer
HEADROOM = 1.25  # clipping point over the largest input seen: clipping costs more than rounding
BYTE_HEADROOM = 2.0  # over nearly all that were seen, if they are bytes: there rounding costs more
NEARLY_ALL, SAMPLED = 0.9999, 1 << 18  # of inputs, of so many
FINE_BLOCKS = ("down.0.0.", "down.0.1.")  # which tell the finest grain, and take more than bytes


class InputStatistics:
    """What enters every convolution, seen while calibration images pass through.

    Args:
        network: whose convolutions they are.
        clips_bytes: whether bytes reach little beyond nearly all inputs, instead of beyond all.
    """

    def __init__(self, network: nn.Module, clips_bytes: bool = False):
        self.clips_bytes = clips_bytes
        self.top: dict[str, list[float]] = {}  # clipping points at each noise level
        # X X^T of the patches that the weights multiply, at some levels, [in k^2, in k^2]
        self.covariance: dict[str, Tensor] = {}
        self.sees_patches = True
        self._hooks = [
            module.register_forward_pre_hook(self._observe(name))
            for name, module in network.named_modules()
            if isinstance(module, Conv)
        ]

    def _observe(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            magnitudes = inputs[0].abs().flatten()
            top = HEADROOM * magnitudes.max().item()
            if self.clips_bytes and takes_a_byte(name):
                some = magnitudes[:: max(1, len(magnitudes) // SAMPLED)]
                top = min(top, BYTE_HEADROOM * torch.quantile(some, NEARLY_ALL).item())
            self.top.setdefault(name, []).append(top)
            if self.sees_patches and is_hidden(name):
                assert isinstance(module, Conv)
                kernel = module.shape[2]
                images = inputs[0][:COVARIANCE_IMAGES]
                x = F.unfold(images, kernel, padding=(kernel - 1) // 2, stride=module.stride)
                x = x.transpose(0, 1).flatten(1)
                self.covariance[name] = self.covariance.get(name, 0) + x @ x.T

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


def round_weights(weight: Tensor, scale: Tensor, largest: int, covariance: Tensor) -> Tensor:
    """Integers of magnitude up to ``largest`` that keep the convolution's output close.

    Column by column; the error of each is spread over those that follow, in the way that leaves the
    least squared error of the output for inputs of this covariance (GPTQ, algorithm 1).

    Args:
        weight: [out, in, k, k].
        scale: what one is worth, [out].
        largest: magnitude.
        covariance: of the inputs, not normalised, [in k^2, in k^2].
    """
    rest = weight.flatten(1).double()
    h = covariance.double()
    unit = torch.eye(len(h), dtype=h.dtype, device=h.device)
    h = h + DAMPING * h.diagonal().mean().clamp_min(1e-12) * unit
    factor = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    integers = torch.empty_like(rest)
    for j in range(len(h)):
        integers[:, j] = (rest[:, j] / scale).round().clamp(-largest, largest)
        error = (rest[:, j] - integers[:, j] * scale) / factor[j, j]
        rest[:, j:] -= error[:, None] * factor[j, j:]
    return integers.view(weight.shape)


def widest_exact(weight: Tensor, low: float, high: float) -> int:
    """Largest magnitude of integer weights, up to 15 bits, that keeps sums of such inputs exact."""
    unit = weight / weight.flatten(1).abs().amax(1).clamp_min(1e-12)[:, None, None, None]
    return int(min(2**15 - 1, 0.9 * EXACT_LIMIT / max(1.0, largest_sum(unit, low, high))))


def quantize(
    network: ExpertDenoisers,
    calibration: Float[Tensor, "batch 3 height width"],
    plans: Mapping[str, Plan],
) -> dict[str, Tensor]:
    """The tensors of an :class:`.IntegerNetwork`, and the noise embedding's own, on the CPU.

    Args:
        network: trained, on any device.
        calibration: integers of the colour domain as floats.
        plans: that evaluate the network, whose noise levels it gets tables for.

    Raises:
        ValueError: if an expert has no level.
    """
    check_has_integers(network.config)
    calibration = calibration.to(network.experts[0].center.device)
    levels = network.config.answered_at(plans)
    if not all(levels):
        limits = [up_to for up_to, _ in network.config.experts]
        raise ValueError(
            f"experts up to the noise levels {limits}: expected levels of the plans for each, "
            f"found {levels}"
        )
    pairs = zip(network.experts, levels, strict=True)
    parts = [quantize_unet(expert, calibration, own) for expert, own in pairs]
    tensors = join_experts(parts, quantize_phases(network, calibration, plans))
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def quantize_phases(
    network: ExpertDenoisers,
    calibration: Float[Tensor, "batch 3 height width"],
    plans: Mapping[str, Plan],
) -> list[dict[str, Tensor]]:
    """The tensors of every :class:`.IntegerPhases`, of none in a network without."""
    if network.phased is None:
        return []
    network.eval().float()
    config, multipliers = network.config, network.experts[0].noise_multipliers
    steps, sigma_1 = quantiser_of(DOMAINS[config.color], config.quantiser, calibration)
    seen = list(map(InputStatistics, network.phases))
    generator = torch.Generator().manual_seed(0)

    def add_noise(z: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """Add the noise from a noise level by channel to another."""
        noise = torch.randn(z.shape, generator=generator).to(z.device)
        return q_sample(z, above(high, low), noise)

    with torch.inference_mode():
        dither = draw_dither(calibration.shape, steps.cpu(), generator).to(steps.device)
        z_1, _ = dithered_quantise(calibration, dither, steps)
        ones = z_1.new_ones(len(z_1))
        remainder, first, *_ = config.told_at(plans)
        for level in remainder:
            network.in_phases(Told(0, calibration), z_1, level * ones)
        for level in first:
            z_2 = add_noise(z_1, sigma_1, level * multipliers)
            network.in_phases(Told(1, z_1), z_2, level * ones)
        shares = max(1, len(calibration) // CALIBRATION_STEP_CROPS)
        for i, (below, level, which) in enumerate(_steps(plans, config.quantiser)):
            x = calibration[i % shares :: shares]  # there are many steps
            z_s = add_noise(x, 0 * sigma_1, below * multipliers)
            z_t = add_noise(z_s, below * multipliers, level * multipliers)
            ones = x.new_ones(len(x))
            network.in_phases(Told(which, z_s, below * ones), z_t, level * ones)
    pairs = zip(network.phases, seen, strict=True)
    return [_quantize_phases(phases, statistics) for phases, statistics in pairs]


def _steps(plans: Mapping[str, Plan], quantiser: int) -> list[tuple[float, float, int]]:
    """The noise levels of z_s and z_t of all steps above z_1 in phases, and which variable's."""
    steps = set()
    for plan in plans.values():
        for s, sigma in enumerate(plan.levels):
            which = phased_variable(plan, quantiser, s)
            if which >= 2:
                steps.add((plan.levels[s - 1] if s else sigma / 2, sigma, which))
    return sorted(steps)


def _quantize_phases(phases: PhaseNetworks, seen: InputStatistics) -> dict[str, Tensor]:
    """The tensors of one variable's."""
    seen.close()
    tensors: dict[str, Tensor] = {}
    with torch.inference_mode():
        for name, conv in phases.named_modules():
            if isinstance(conv, Conv) and name.endswith("known"):
                weight = conv.weight.detach().view(conv.shape)
                tensors |= _quantize_first(name, weight, conv.bias, ERROR_LIMIT, 1 / ERROR_STEPS)
            elif isinstance(conv, Conv):
                covariance = seen.covariance.get(name)
                tensors |= _quantize_conv(name, conv, [max(seen.top[name])], covariance)
    return {name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}


def quantize_unet(
    network: Backbone, calibration: Float[Tensor, "batch 3 height width"], levels: Sequence[float]
) -> dict[str, Tensor]:
    """The tensors of an :class:`.IntegerUNet`, and the noise embedding's own."""
    network = network.eval().float()
    seen, labels = InputStatistics(network, clips_bytes=True), None
    generator = torch.Generator().manual_seed(0)
    classes = network.config.classes
    if classes:  # every class, and none
        labels = torch.arange(len(calibration), device=calibration.device) % (classes + 1) - 1
    with torch.inference_mode():
        for i, sigma in enumerate(levels):
            seen.sees_patches = i % max(1, len(levels) // COVARIANCE_LEVELS) == 0
            noise = torch.randn(calibration.shape, generator=generator).to(calibration.device)
            z = q_sample(calibration, sigma * network.noise_multipliers, noise)
            network(z, z.new_full((len(z),), float(sigma)), labels)
        seen.close()
        tensors = {"levels": torch.tensor(levels, dtype=torch.float64)}
        tensors |= {k: t.half() for k, t in network.state_dict().items() if is_embedding(k)}
        emb = network.embed(torch.tensor(levels, dtype=torch.float32).to(calibration.device))
        for name, module in network.named_modules():
            if isinstance(module, ResidualBlock):
                tensors[f"{name}.affine.table"] = module.affine(emb)
                if classes:
                    vectors = network.embed_label.weight[1:]
                    tensors[f"{name}.affine.classes"] = vectors @ module.affine.weight.T
            elif isinstance(module, Conv) and name == "conv_in":
                tensors |= _quantize_input(module, network.config.patch, len(levels))
            elif isinstance(module, Conv):
                covariance = seen.covariance.get(name)
                tensors |= _quantize_conv(name, module, seen.top[name], covariance)
    return {name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}


def is_embedding(name: str) -> bool:
    """Whether a tensor makes the tables; kept so that other tables and more training can follow."""
    return name.startswith("embed") or name.endswith((".affine.weight", ".affine.bias"))


def float_weights(tensors: Mapping[str, Tensor], config: NetworkConfig) -> dict[str, Tensor]:
    """State of a float network from the tensors of a quantised one."""
    experts = map(_unet_weights, split_experts(tensors, len(config.experts)))
    phases = split_phases(tensors, config.tellers)
    return join_experts(list(experts), list(map(_conv_weights, phases)))


def _conv_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights and biases of all convolutions."""
    state: dict[str, Tensor] = {}
    for name in (k.removesuffix(".input") for k in tensors if k.endswith(".input")):
        flat = tensors[f"{name}.weight"].flatten(1) * tensors[f"{name}.scale"][:, None]
        state |= {f"{name}.weight": flat, f"{name}.bias": tensors[f"{name}.bias"]}
    return state


def _unet_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """State of one U-Net."""
    state = {k: t.float() for k, t in tensors.items() if is_embedding(k)} | _conv_weights(tensors)
    parts = [state.pop(f"conv_in.{part}.weight") for part in ("z", "phase")]
    state["conv_in.weight"] = torch.cat(parts, 1)
    state["conv_in.bias"] = state.pop("conv_in.z.bias")
    del state["conv_in.phase.bias"]
    return state


def is_hidden(name: str) -> bool:
    """Whether the named convolution is neither a first nor a last one."""
    return not (name.startswith("conv_in") or name.endswith(("known", "out")))


def takes_a_byte(name: str) -> bool:
    """Whether the named convolution's inputs are bytes, which 8-bit kernels take at once."""
    fine = name.startswith(FINE_BLOCKS) or name.endswith("out")
    return is_behind_silu(name) and not fine


def _quantize_conv(
    name: str, conv: Conv, tops: Sequence[float], covariance: Tensor | None
) -> dict[str, Tensor]:
    weight = conv.weight.detach().view(conv.shape)
    if is_behind_silu(name):
        tops = [min(max(top, SILU_MINIMUM), SILU_RANGE) for top in tops]
        below = [SILU_MINIMUM / top for top in tops]  # the lowest input as a share of the top
    else:
        below = [1.0] * len(tops)
    if covariance is None:
        digits = max(OUTPUT_DIGIT, LARGEST_INPUT / OUTPUT_DIGIT)
        widest = widest_exact(weight, -digits * max(below), digits)
        integers, scale = quantize_weight(weight, widest)
        limits = [LARGEST_INPUT] * len(tops)
    else:
        largest = 2 ** (HIDDEN_BITS - 1) - 1
        _, scale = quantize_weight(weight, largest)
        integers = round_weights(weight, scale, largest, covariance)
        limits = [largest_input(integers, share) for share in below]
        if takes_a_byte(name):
            ends = zip(limits, below, strict=True)
            limits = [min(limit, int((BYTE - 1) / (1 + share))) for limit, share in ends]
    return {
        f"{name}.weight": integers.to(torch.int16 if covariance is None else torch.int8),
        f"{name}.scale": scale.float(),
        f"{name}.bias": conv.bias.detach().float(),
        f"{name}.input": torch.tensor(
            [[top / limit, limit] for top, limit in zip(tops, limits, strict=True)],
            dtype=torch.float64,
        ),
    }


def largest_input(weight: Tensor, below: float) -> int:
    """Largest magnitude of integer inputs, the lowest ``below`` times it, that keeps sums exact."""
    # one less, and the rounding of the lowest input allowed for
    room = EXACT_LIMIT - 1 - largest_sum(weight, 0, 1)
    return min(LARGEST_INPUT, int(room / max(1.0, largest_sum(weight, -below, 1))) - 1)


def _quantize_input(conv: Conv, patch: int, levels: int) -> dict[str, Tensor]:
    """The first convolution in two parts: the image's bytes, and the phases."""
    weight = conv.weight.detach().view(conv.shape)
    count = 3 * patch**2
    parts = {"z": (weight[:, :count], 255, 1 / INPUT_SCALE)}
    parts["phase"] = (weight[:, count:], PHASE_AMPLITUDE, 1 / PHASE_AMPLITUDE)
    tensors: dict[str, Tensor] = {}
    for part, (w, limit, unit) in parts.items():
        tensors |= _quantize_first(f"conv_in.{part}", w, conv.bias, limit, unit, levels)
    return tensors


def _quantize_first(
    name: str, weight: Tensor, bias: Tensor, limit: int, unit: float, levels: int = 1
) -> dict[str, Tensor]:
    """A convolution whose inputs are integers of a known unit."""
    integers, scale = quantize_weight(weight, widest_exact(weight, -limit, limit))
    return {
        f"{name}.weight": integers.to(torch.int16),
        f"{name}.scale": scale.float(),
        f"{name}.bias": bias.detach().float().clone(),
        f"{name}.input": torch.tensor([[unit, limit]] * levels, dtype=torch.float64),
    }
