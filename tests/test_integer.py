"""Exact inference: the sums are provably exact, and nothing about a machine shows in the result."""

import copy
import itertools
import json
import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from precisions import LOWERED
from safetensors.torch import load, save
from threads import threads
from torch import Tensor

from diffcodec.arrays import round_significant
from diffcodec.coding.randomness import random_words
from diffcodec.diffusion.plan import Plan
from diffcodec.diffusion.process import q_sample
from diffcodec.errors import ModelMismatchError
from diffcodec.models.file import make_metadata, read_model_info
from diffcodec.models.layout import write_network
from diffcodec.models.model import build_model, load_model
from diffcodec.networks import integer_layers
from diffcodec.networks.config import NetworkConfig, UNetConfig
from diffcodec.networks.exact import EXACT_LIMIT, check_exact, largest_sum
from diffcodec.networks.experts import (
    ExpertDenoisers,
    FloatNetwork,
    float_network,
    join_experts,
    split_experts,
)
from diffcodec.networks.int8 import LARGEST_WEIGHT, ByteConv, digits, kernels_work
from diffcodec.networks.integer import (
    VARIANCE_STEPS,
    IntegerNetwork,
    IntegerUNet,
    phase_tables,
    variance_table,
)
from diffcodec.networks.integer_layers import (
    INPUT_RANGES,
    OUTPUT_DIGIT,
    PHASE_AMPLITUDE,
    SILU_HALF,
    SILU_RANGE,
    SILU_STEPS,
    IntegerConv,
    is_behind_silu,
    silu_steps,
    silu_table,
    takes_bytes,
)
from diffcodec.networks.quantize import (
    BYTE_HEADROOM,
    HEADROOM,
    LARGEST_INPUT,
    NEARLY_ALL,
    float_weights,
    quantize,
    quantize_unet,
    quantize_weight,
    round_weights,
    takes_a_byte,
)
from diffcodec.networks.unet import Conv, UNet

LEVELS = (0.5, 2.0, 20.0, 400.0)
PLANS = {"default": Plan(LEVELS, (2.0,) * 3)}
SHAPE = UNetConfig(channels=(16, 24), blocks=(1, 2), patch=2, embedding=32)
CONFIG = NetworkConfig(((math.inf, SHAPE),))


def images(batch: int = 4, side: int = 32) -> Tensor:
    """Waves with noise, in the range of the colour domain."""
    generator = torch.Generator().manual_seed(3)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    waves = torch.stack([torch.sin(x / 5 + k) + torch.cos(y / (6 + k)) for k in range(3 * batch)])
    scale = torch.tensor([60.0, 25.0, 20.0])[:, None, None]
    center = torch.tensor([127.0, 0.0, 0.0])[:, None, None]
    noise = torch.randn(batch, 3, side, side, generator=generator)
    return torch.round(center + scale * (waves.view(batch, 3, side, side) / 2 + 0.1 * noise))


def living_network(config: UNetConfig = SHAPE, seed: int = 1) -> UNet:
    """Random weights, all of them at work: also those that training starts from zero."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = UNet(config)
        for name, module in network.named_modules():
            if isinstance(module, Conv):
                gain = 0.5 if "conv2" in name else 1.0
                fan_in = module.weight.shape[1]
                torch.nn.init.normal_(module.weight, std=gain / fan_in**0.5)
                torch.nn.init.normal_(module.bias, std=0.1)
            elif name.endswith("affine"):
                torch.nn.init.normal_(module.weight, std=0.3 / config.embedding**0.5)
    return network


@pytest.fixture(scope="module")
def network() -> UNet:
    return living_network()


@pytest.fixture(scope="module")
def tensors(network: UNet) -> dict[str, Tensor]:
    return quantize_unet(network, images(), LEVELS)


@pytest.fixture(scope="module")
def integer(tensors: dict[str, Tensor]) -> IntegerUNet:
    return IntegerUNet(SHAPE, tensors)


@pytest.fixture(scope="module")
def in_float32(tensors: dict[str, Tensor]) -> IntegerUNet:
    """Without 8-bit kernels, as on machines that have none."""
    with mock.patch("diffcodec.networks.integer_layers.kernels_work", lambda: False):
        return IntegerUNet(SHAPE, tensors)


def noisy(sigma: float, network: UNet, batch: int = 4, side: int = 32) -> Tensor:
    x = images(batch, side)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(int(sigma)))
    return q_sample(x, sigma * network.noise_multipliers, noise).double()


# --- sums -----------------------------------------------------------------------------------------

small_weights = st.lists(st.integers(-127, 127), min_size=1, max_size=6)


@given(small_weights, small_weights, st.integers(-300, 0), st.integers(0, 300))
def test_largest_sum_is_that_of_every_order_of_summation(first, second, low, high):
    # A partial sum holds some of the products; each is of an input between the extremes.
    width = max(len(first), len(second))
    rows = [row + [0] * (width - len(row)) for row in (first, second)]
    expected = max(
        abs(sum(w * v for w, v in zip(row, values, strict=True)))
        for row in rows
        for values in itertools.product((0, low, high), repeat=width)
    )
    weight = torch.tensor(rows, dtype=torch.int8)[:, :, None, None]
    assert largest_sum(weight.long(), low, high) == expected


def test_sums_are_refused_from_two_to_the_24_on():
    weight = torch.full((3, 2, 1, 1), 64, dtype=torch.int16)
    weight[1, 0] = -64
    check_exact("up.0", weight, [(0, EXACT_LIMIT // 128 - 1)])
    with pytest.raises(ModelMismatchError, match=r"up\.0: a partial sum can reach 16777216"):
        check_exact("up.0", weight, [(0, 1), (0, EXACT_LIMIT // 128)])
    check_exact("up.0", weight, [(-(EXACT_LIMIT // 128) + 1, 0)])
    with pytest.raises(ModelMismatchError, match="fewer bits"):
        check_exact("up.0", weight, [(-EXACT_LIMIT // 128, 0)])


def test_weights_that_are_no_integers_are_refused():
    with pytest.raises(ModelMismatchError, match=r"torch\.float32, expected integers"):
        check_exact("up.0", torch.ones(1, 1, 1, 1), [(0, 1)])


def exact_sums(weight: Tensor, x: Tensor, stride: int) -> Tensor:
    """The convolution in 64-bit integers."""
    kernel = weight.shape[2]
    columns = F.unfold(x.double(), kernel, padding=(kernel - 1) // 2, stride=stride)
    sums = weight.flatten(1).long() @ columns.long()  # [batch, out, positions]
    height = (x.shape[2] - 1) // stride + 1
    return sums.view(x.shape[0], weight.shape[0], height, -1)


def input_range(in_float32: IntegerUNet, name: str, level: int) -> tuple[int, int]:
    """What can enter the named convolution at a noise level."""
    if is_behind_silu(name):
        table = in_float32._silu_integers(name, level)
        low, high = (int(f(table)) for f in (torch.min, torch.max))
        return (low // OUTPUT_DIGIT, OUTPUT_DIGIT - 1) if name == "conv_out" else (low, high)
    limit = in_float32._convs[name].limits[level]
    return INPUT_RANGES.get(name, (-limit, limit))


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_every_convolution_is_exact_for_extreme_inputs(
    integer: IntegerUNet, in_float32: IntegerUNet, level: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, conv in in_float32._convs.items():
        low, high = input_range(in_float32, name, level)
        n_in, kernel = conv.weight.shape[1:3]
        # For every output channel the patch that makes its largest and its smallest sum ...
        largest = torch.where(conv.weight > 0, high, low)
        patches = [largest, low + high - largest]
        # ... and mixtures of extremes and of anything between.
        shape = (8, n_in, kernel, kernel)
        extremes = torch.tensor([low, high])
        patches.append(extremes[torch.randint(2, shape, generator=generator)])
        patches.append(torch.randint(low, high + 1, shape, generator=generator))
        x = torch.cat(patches).float()
        stride = 2 if name.startswith("shrink") else 1
        found = conv.sums(x, stride)
        expected = exact_sums(conv.weight, x, stride)
        assert torch.equal(found.double(), expected.double()), name
        if (in_bytes := integer._convs[name].in_bytes) is not None:
            of_digits = digits(x.contiguous(memory_format=torch.channels_last), low, high)
            assert torch.equal(sum(in_bytes.sums(of_digits, low)), found), name
        assert expected.abs().max() <= largest_sum(conv.weight.long(), low, high) < EXACT_LIMIT
    assert len(integer._convs) == 3 + 2 * 2 * sum(SHAPE.blocks) + 2


def test_hidden_units_use_the_room_of_a_byte_or_that_exactness_leaves(
    in_float32: IntegerUNet,
) -> None:
    for name, conv in in_float32._convs.items():
        for level, limit in enumerate(conv.limits):
            low, high = input_range(in_float32, name, level)
            if takes_a_byte(name):
                assert 254 <= limit - conv.lowest[level] <= 255, name
            else:
                room = EXACT_LIMIT / largest_sum(conv.weight.long(), low, high)
                assert room < 1.25 or limit == LARGEST_INPUT, name


def test_only_the_first_blocks_take_more_than_a_byte() -> None:
    fine = {f"down.0.{k}.conv{i}" for k in (0, 1) for i in (1, 2)}
    names = [n for n, m in UNet(SHAPE).named_modules() if isinstance(m, Conv) and is_behind_silu(n)]
    assert {n for n in names if not takes_a_byte(n)} == {*fine, "conv_out"} & set(names)


def test_bytes_reach_beyond_nearly_all_inputs(tensors, network):
    seen = []
    conv = network.up[0][0].conv2
    with conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].abs().flatten())):
        quantize_unet(network, images(), LEVELS)
    ends = [[torch.quantile(x, NEARLY_ALL) * BYTE_HEADROOM, x.max() * HEADROOM] for x in seen]
    tops = tensors["up.0.0.conv2.input"].prod(1)
    assert tops.tolist() == pytest.approx([min(both).item() for both in ends])


def test_units_follow_the_range_of_each_level(tensors, network):
    seen = []
    conv = network.down[0][0].conv2
    with conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].abs().max())):
        quantize_unet(network, images(), LEVELS)
    tops = tensors["down.0.0.conv2.input"].prod(1)
    assert tops.tolist() == pytest.approx((HEADROOM * torch.stack(seen)).tolist())
    assert tops.max() > 1.1 * tops.min()


@pytest.mark.parametrize(
    ("top", "steps"), [(0.1, 1024), (4, 1024), (4.001, 512), (16, 256), (63, 64), (64, 64)]
)
def test_a_silu_table_is_as_fine_as_its_reach_allows(in_float32, top, steps):
    assert silu_steps(top) == steps
    conv = "up.0.0.conv2"
    limit = in_float32._convs[conv].limits[0]
    one = in_float32._convs[conv]._replace(units=[top / limit] * 4)
    fake = copy.copy(in_float32)
    fake._convs, fake._tables = {conv: one}, {}
    table = fake._silu_integers(conv, 0)
    u = (torch.arange(2 * SILU_HALF + 1) - SILU_HALF).double() / steps
    expected = (F.silu(u) * (limit / top)).clamp_max(limit)
    assert (table - expected).abs().max() < 0.5 + 1e-3


@pytest.mark.parametrize("kind", ["photo", "noise", "far", "flat"])
def test_whatever_enters_stays_within_what_was_proven(in_float32, network, monkeypatch, kind):
    z = {
        "photo": lambda: noisy(2.0, network),
        "noise": lambda: noisy(400.0, network),
        "far": lambda: torch.sign(noisy(400.0, network)) * 1e6,
        "flat": lambda: torch.full((1, 3, 8, 8), 1e4, dtype=torch.float64),
    }[kind]()
    plain, names = IntegerConv.sums, {id(c.weight): n for n, c in in_float32._convs.items()}
    seen, current = set(), [0]

    def checked(conv, x, stride=1):
        name = names[id(conv.weight)]
        low, high = input_range(in_float32, name, current[0])
        assert torch.equal(x, x.round()) and low <= x.min() and x.max() <= high, name
        found = plain(conv, x, stride)
        assert torch.equal(found.double(), exact_sums(conv.weight, x, stride).double()), name
        seen.add(name)
        return found

    monkeypatch.setattr(IntegerConv, "sums", checked)
    for current[0], sigma in enumerate(LEVELS):
        mean, v = in_float32.posterior_x(z, sigma)
        assert torch.isfinite(mean).all() and torch.isfinite(v).all() and (v > 0).all()
    assert seen == set(names.values())


# --- against the network that it stands for -------------------------------------------------------


@pytest.mark.parametrize("sigma", LEVELS)
def test_posterior_is_close_to_that_of_the_float_network(integer, network, sigma):
    check_close(integer, network, sigma)


@pytest.mark.parametrize("batch", [1, 3])
def test_fields_worked_on_in_strips_are_the_same(integer, network, monkeypatch, batch):
    z = noisy(LEVELS[0], network, batch)
    whole = integer.evaluate(z, LEVELS[0])
    monkeypatch.setattr(integer_layers, "STRIP_ELEMENTS", 1000)
    cut = integer.evaluate(z, LEVELS[0])
    assert len(list(integer_layers.strips(cut[2], 1))) > 1
    assert all(map(torch.equal, whole, cut))


def test_a_network_at_full_resolution():
    network = living_network(replace(SHAPE, patch=1))
    tensors = quantize_unet(network, images(), LEVELS)
    check_close(IntegerUNet(network.config, tensors), network, LEVELS[1])


def check_close(
    integer: IntegerUNet | IntegerNetwork, network: UNet | ExpertDenoisers, sigma: float
) -> None:
    unet = network if isinstance(network, UNet) else network.experts[0]
    z = noisy(sigma, unet)
    with torch.inference_mode():
        mean, v = network.posterior_x(z.float(), torch.full((len(z),), sigma))
    found_mean, found_v = integer.posterior_x(z, sigma)
    total = (sigma * unet.noise_multipliers) ** 2 + unet.data_std**2
    alive = (mean - unet.center - unet.data_std**2 / total * (z - unet.center)) / v.sqrt()
    assert alive.std() > 0.5 and v.log().std() > 0.5  # the network says something
    # An error of the mean of 1 % of the standard deviation costs 7e-5 bits.
    assert ((found_mean - mean) / v.sqrt()).square().mean().sqrt() < 0.012
    # Log variances are rounded to sixteenths.
    assert (found_v / v).log().square().mean().sqrt() < 1.2 / VARIANCE_STEPS / 12**0.5
    assert (found_v / v).log().abs().max() < 1.5 / VARIANCE_STEPS


def of_one(unet: UNet) -> ExpertDenoisers:
    network = ExpertDenoisers(CONFIG)
    network.experts[0].load_state_dict(unet.state_dict())
    return network


@pytest.mark.parametrize(("kind", "axes"), [("mirror", (-1,)), ("rotation", (-2, -1))])
def test_self_ensemble_is_the_mean_of_two_answers(tensors, network, kind, axes):
    """Up to a noise level; above it the answer is that for the image alone."""
    config = replace(CONFIG, self_ensemble=kind, self_ensemble_up_to=LEVELS[1])
    both, alone = IntegerNetwork(config, join_experts([tensors])), IntegerUNet(SHAPE, tensors)
    for sigma in LEVELS:
        z = noisy(sigma, network)
        fields, turned = alone.posterior_x(z, sigma), alone.posterior_x(z.flip(axes), sigma)
        for found, field, other in zip(both.posterior_x(z, sigma), fields, turned, strict=True):
            assert not torch.equal(field, other.flip(axes))
            expected = (field + other.flip(axes)) / 2 if sigma <= LEVELS[1] else field
            assert torch.equal(found, expected)


@torch.inference_mode()
def test_self_ensemble_of_images_at_several_noise_levels(network):
    both = of_one(network)
    both.config = replace(CONFIG, self_ensemble="mirror", self_ensemble_up_to=LEVELS[1])
    z = noisy(LEVELS[1], network, batch=2).float()
    sigma = torch.tensor([LEVELS[2], LEVELS[1]])
    fields, turned = network.posterior_x(z, sigma), network.posterior_x(z.flip(-1), sigma)
    for found, field, other in zip(both.posterior_x(z, sigma), fields, turned, strict=True):
        expected = torch.stack([field[0], (field[1] + other[1].flip(-1)) / 2])
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found, field, rtol=1e-3, atol=1e-3)


OTHER = replace(SHAPE, channels=(24, 16), blocks=(2, 1), patch=1)


def two_experts(low: UNetConfig = SHAPE) -> ExpertDenoisers:
    """Of different weights, the first for the first two levels."""
    two = ExpertDenoisers(NetworkConfig(((LEVELS[1], low), (math.inf, SHAPE))))
    for expert, seed in zip(two.experts, (3, 1), strict=True):
        expert.load_state_dict(living_network(expert.config, seed).state_dict())
    return two


@pytest.mark.parametrize("low", [SHAPE, OTHER], ids=["alike", "of another shape"])
def test_each_expert_answers_at_its_noise_levels(low):
    two = two_experts(low)
    tensors = quantize(two, images(), PLANS)
    both = IntegerNetwork(two.config, tensors)
    assert both.levels == list(LEVELS)
    parts = split_experts(tensors, 2)
    for levels, part, shape in zip((LEVELS[:2], LEVELS[2:]), parts, (low, SHAPE), strict=True):
        assert part["levels"].tolist() == list(levels)
        alone = IntegerUNet(shape, part)
        for sigma in levels:
            z = noisy(sigma, two.experts[0])
            for found, expected in zip(
                both.posterior_x(z, sigma), alone.posterior_x(z, sigma), strict=True
            ):
                assert torch.equal(found, expected)
            check_close(both, two, sigma)
    dequantised = ExpertDenoisers(two.config)
    dequantised.load_state_dict(float_weights(tensors, two.config))
    for sigma in LEVELS:
        check_close(both, dequantised, sigma)


@torch.inference_mode()
def test_images_at_noise_levels_of_several_experts():
    two = two_experts()
    z = noisy(LEVELS[1], two.experts[0]).float()
    sigma = torch.tensor([LEVELS[2], LEVELS[0], LEVELS[3], LEVELS[1]])
    for part in (slice(None), slice(1, 2), slice(2, 3)):
        fields = two.posterior_x(z[part], sigma[part])
        for i, s in enumerate(sigma[part]):
            network = living_network(seed=3 if s <= LEVELS[1] else 1)
            expected = network.posterior_x(z[part][i : i + 1], s[None])
            for field, like in zip(fields, expected, strict=True):
                assert torch.allclose(field[i : i + 1], like, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("limit", [0.4, 1000.0])
def test_every_expert_needs_noise_levels(limit):
    network = ExpertDenoisers(NetworkConfig(((limit, SHAPE), (math.inf, SHAPE))))
    with pytest.raises(ValueError, match="expected levels of the plans for each"):
        quantize(network, images(), PLANS)


@pytest.mark.parametrize("sigma", LEVELS)
def test_float_arithmetic_is_that_of_the_float_network(network, sigma):
    z = noisy(sigma, network, batch=3)
    floating = FloatNetwork(of_one(network))
    with torch.inference_mode():
        found = floating.posterior_x(z, sigma)
        for i, one in enumerate(z.float().contiguous(memory_format=torch.channels_last).split(1)):
            expected = network.posterior_x(one, torch.tensor([sigma]))
            for field, like in zip(found, expected, strict=True):
                assert field.dtype == torch.float64
                assert torch.equal(field[i : i + 1], like.double())


@pytest.mark.parametrize("sigma", LEVELS)
def test_float_arithmetic_of_an_integer_model_is_close_to_it(integer, tensors, network, sigma):
    z = noisy(sigma, network)
    with torch.inference_mode():
        weights = float_weights(join_experts([tensors]), CONFIG)
        mean, v = float_network(CONFIG, weights).posterior_x(z, sigma)
    found_mean, found_v = integer.posterior_x(z, sigma)
    assert not torch.equal(found_mean, mean)
    assert ((found_mean - mean) / v.sqrt()).square().mean().sqrt() < 0.012
    assert (found_v / v).log().abs().max() < 1.5 / VARIANCE_STEPS


def test_a_float_network_draws_no_random_numbers(network):
    before = torch.random.get_rng_state()
    float_network(CONFIG, join_experts([network.state_dict()]))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("largest", [7, 127, 2**15 - 1])
def test_scales_of_weights_leave_no_more_error_than_those_without_clipping(largest):
    weight = torch.randn(32, 9, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[5] = 0
    integers, scale = quantize_weight(weight, largest)
    assert torch.equal(integers, integers.round()) and integers.abs().max() <= largest
    plain = weight.flatten(1).abs().amax(1) / largest

    def error(q: Tensor, scale: Tensor) -> Tensor:
        return (q * scale[:, None, None, None] - weight).square().sum((1, 2, 3))

    rounded = (weight / plain.clamp_min(1e-9)[:, None, None, None]).round()
    found, without = error(integers, scale), error(rounded, plain)
    assert (found <= without).all() and found[5] == 0
    if largest == 7:  # the fewer bits, the more there is to gain
        assert found.sum() < 0.9 * without.sum()


def test_weights_make_up_for_the_rounding_of_others():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 8, 3, 3, generator=generator)
    # neighbouring inputs are alike, as in images
    x = torch.randn(72, 2000, generator=generator)
    x = x.cumsum(0) / torch.arange(1, 73)[:, None].sqrt()
    plain, scale = quantize_weight(weight, 7)
    found = round_weights(weight, scale, 7, x @ x.T)
    assert torch.equal(found, found.round()) and found.abs().max() <= 7

    def error(q: Tensor) -> float:
        difference = q.double() * scale[:, None, None, None].double() - weight.double()
        return (difference.flatten(1) @ x.double()).square().mean().item()

    assert error(found) < 0.3 * error(plain)


# --- the same everywhere --------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of mkldnn.flags itself
@pytest.mark.parametrize("sigma", LEVELS)
def test_nothing_but_the_input_decides_the_result(integer, network, sigma):
    z = noisy(sigma, network, batch=3, side=96)
    expected = torch.stack(integer.posterior_x(z, sigma))

    def same(*fields: Tensor) -> bool:
        return torch.equal(torch.stack(fields), expected)

    assert same(*integer.posterior_x(z.contiguous(memory_format=torch.channels_last), sigma))
    alone = [torch.stack(integer.posterior_x(z[i : i + 1], sigma)) for i in range(len(z))]
    assert same(*torch.cat(alone, 1))
    assert same(*(f.flip(0) for f in integer.posterior_x(z.flip(0), sigma)))
    with threads(2):
        assert same(*integer.posterior_x(z, sigma))
    with torch.backends.mkldnn.flags(enabled=False):
        assert same(*integer.posterior_x(z, sigma))


def numbers(seed: int, like: Tensor, largest: int) -> Tensor:
    """Integers -largest..largest that are the same everywhere."""
    words = random_words(9, seed, like.numel()).astype(np.int64) % (2 * largest + 1) - largest
    return torch.from_numpy(words).view(like.shape)


@pytest.mark.skipif(not kernels_work(), reason="no 8-bit kernels on this machine")
@pytest.mark.parametrize("sigma", LEVELS)
def test_kernels_of_8_bits_give_the_same_result(integer, in_float32, network, sigma):
    in_bytes = {name for name, conv in integer._convs.items() if conv.in_bytes is not None}
    assert in_bytes == {n for n in integer._convs if is_behind_silu(n)}
    assert all(conv.in_bytes is None for conv in in_float32._convs.values())
    for z in (noisy(sigma, network, batch=3), torch.sign(noisy(sigma, network)) * 1e6):
        pairs = zip(integer.posterior_x(z, sigma), in_float32.posterior_x(z, sigma), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_only_what_8_bit_kernels_hold_is_theirs():
    weight = torch.full((1, 2**18 // 127, 1, 1), 127, dtype=torch.int8)
    inputs, output_digits = [(-4096, 4095)], [(-32, 223)]
    assert takes_bytes("up.0.0.conv1", weight, inputs)
    assert not takes_bytes("up.0.0.conv1", weight.repeat(1, 2, 1, 1), inputs)  # inexact sums
    assert not takes_bytes("grow.0", weight, inputs)  # not behind a SiLU
    assert not takes_bytes("up.0.0.conv1", weight, [(-1, 1), (-4097, 1)])
    assert not takes_bytes("up.0.0.conv1", weight, [(0, 4096)])
    largest = torch.full((1, 1, 1, 1), LARGEST_WEIGHT, dtype=torch.int16)
    assert takes_bytes("conv_out", largest, output_digits)
    assert takes_bytes("conv_out", -largest, output_digits)
    assert not takes_bytes("conv_out", largest + 1, output_digits)
    assert not takes_bytes("conv_out", largest, [(-33, 0)])
    assert not takes_bytes("conv_out", largest, [(0, 224)])


@pytest.mark.skipif(not kernels_work(), reason="no 8-bit kernels on this machine")
def test_weights_of_two_digits_give_the_sums_of_the_weights():
    weight = numbers(3, torch.zeros(7, 2, 3, 3), LARGEST_WEIGHT).short()
    weight[0, 0] = torch.tensor([LARGEST_WEIGHT, 1 - LARGEST_WEIGHT, 64]).short()[:, None]
    x = (numbers(4, torch.zeros(2, 2, 6, 4), 32) + 32).to(torch.uint8)
    x = x.contiguous(memory_format=torch.channels_last)
    found = ByteConv(weight).digit_sums(x, 32, 128)
    expected = F.conv2d(128 * (x.double() - 32), weight.double(), padding=1)
    assert torch.equal(found.double(), expected)


def test_exact_result(tensors):
    """Every file hangs on it: a change of it is a change of the format."""
    fixed = {"levels": tensors["levels"]}
    for seed, (name, t) in enumerate(sorted(tensors.items())):
        if name.endswith(".weight"):
            fixed[name] = numbers(seed, t, 100).to(t.dtype)
        elif name.endswith(".scale"):
            fixed[name] = (1 + numbers(seed, t, 20).abs() / 32).float() / 2**10
        elif name.endswith((".bias", ".table")):
            fixed[name] = numbers(seed, t, 100).float() / 256
        elif name.endswith(".input"):
            units = torch.tensor([2.0**-9, 2.0**-7, 2.0**-5, 2.0**-4], dtype=torch.float64)
            fixed[name] = torch.stack([units, torch.full_like(units, 1000.0)], 1)
    z = numbers(100, torch.empty(2, 3, 20, 12), 3000).double() / 16
    found = [torch.stack(IntegerUNet(SHAPE, fixed).posterior_x(z, s)).numpy() for s in LEVELS]
    assert all(np.ptp(np.log(v)) > 1 for _, v in found)
    crcs = [zlib.crc32(f.astype("<f8").tobytes()) for f in found]
    assert crcs == [0x58D473FE, 0x745251BA, 0x7300655F, 0x061589E2]


# --- tables ---------------------------------------------------------------------------------------

EPS = np.finfo(np.float64).eps


def ties(values):
    """Distance from the nearest rounding tie."""
    return np.abs(values % 1 - 0.5).min()


def test_phases_are_far_from_a_tie():
    angle = 2 * np.pi * np.arange(512) / 512
    for table, f in zip(phase_tables(), (np.sin, np.cos), strict=True):
        exact = PHASE_AMPLITUDE * f(angle)
        assert ties(exact) > 1e-9
        assert np.abs(table.numpy() - exact).max() <= 0.5
        assert np.array_equal(table, table.round())


def test_tables_do_not_hang_on_the_last_bits_of_a_maths_library():
    u = np.arange(-SILU_RANGE * SILU_STEPS, SILU_RANGE * SILU_STEPS + 1) / SILU_STEPS
    g = np.arange(-256, 257) / VARIANCE_STEPS
    silu = F.silu(torch.from_numpy(u)).numpy()
    variance = np.exp(8 * np.tanh(g / 8))
    for table, exact in ((silu_table(), silu), (variance_table(), variance)):
        assert table == pytest.approx(exact, rel=2**-24, abs=1e-300)
        assert ties(np.frexp(exact)[0] * 2.0**24) > 100 * 2.0**24 * EPS
        assert np.array_equal(table, round_significant(table, 24))


# --- model files ----------------------------------------------------------------------------------


@pytest.fixture
def rewritten(tiny: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Tensor]], None]], Path]:
    """A copy of the tiny model with its tensors changed."""
    info, data = read_model_info(tiny)

    def rewrite(change: Callable[[dict[str, Tensor]], None]) -> Path:
        changed = load(data)
        change(changed)
        path = tmp_path / "changed.safetensors"
        described = make_metadata(
            info.network, info.plans, info.about, info.arithmetic, info.answers
        )
        path.write_bytes(save(changed, described))
        return path

    return rewrite


def needed(name: str) -> bool:
    """Not the noise embedding, which is kept for more training alone."""
    return not name.startswith("embed") and ".affine.w" not in name and ".affine.b" not in name


def test_missing_tensors_are_refused(rewritten, tiny):
    names = [name for name in load(tiny.read_bytes()) if needed(name)]
    assert len(names) > 40
    for name in names:
        with pytest.raises(ModelMismatchError, match="not a diffcodec model file"):
            load_model(rewritten(lambda tensors, name=name: tensors.pop(name)))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update({"down.0.0.conv1.weight": t["down.0.0.conv1.weight"].float()}),
        lambda t: t.update({"down.0.0.conv1.weight": t["down.0.0.conv1.weight"][:, :-1].clone()}),
        lambda t: t.update({"conv_in.z.weight": torch.full_like(t["conv_in.z.weight"], 2**14)}),
        lambda t: t.update({"conv_in.phase.weight": torch.full((8, 24, 3, 3), 1000)}),
        lambda t: t.update({"conv_out.weight": torch.full_like(t["conv_out.weight"], 2**14)}),
        lambda t: t["up.0.0.conv2.input"].mul_(torch.tensor([1, 2**12])),
        lambda t: t["up.0.0.conv2.input"].mul_(torch.tensor([2**-12, 2**12])),
        lambda t: t["shrink.0.input"].mul_(torch.tensor([1, 2**12])),
        lambda t: t["conv_out.input"].mul_(torch.tensor([2**-12, 2**12])),
        lambda t: t["conv_out.input"].zero_(),
        lambda t: t.update({"grow.0.input": t["grow.0.input"][0].clone()}),
        lambda t: t.update({"up.0.0.conv1.input": t["up.0.0.conv1.input"][:-1].clone()}),
        lambda t: t["grow.0.scale"].fill_(torch.nan),
        lambda t: t["grow.0.bias"].fill_(torch.inf),
        lambda t: t.update({"down.0.0.affine.table": t["down.0.0.affine.table"][:, :-4].clone()}),
        lambda t: t.update({"levels": t["levels"][:-1].clone()}),
        lambda t: t["levels"].add_(0.001),
    ],
)
def test_tampered_tensors_are_refused(rewritten, change):
    with pytest.raises(ModelMismatchError):
        load_model(rewritten(change))


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"patch": 2048}, r"conv_in.z.weight is \[8, 12, 3, 3\], expected"),
        ({"patch": 0}, "expected"),
        ({"channels": [8, 10**9]}, "expected|overflow"),
        ({"channels": [8] * 12}, "shorter"),
        ({"blocks": [10**9, 1]}, "blocks, but only"),
        ({"detail_up_to": 3.0}, "blocks, but only 0 tensors"),
        ({"detail_up_to": 3.0, "detail_blocks": [10**9, 1]}, "blocks, but only"),
        ({"detail_up_to": 3.0, "detail_blocks": [1]}, "shorter"),
        ({"detail_up_to": -1}, r"experts up to \[-1, inf\]: expected increasing"),
        ({"second_view": "sideways"}, "self-ensemble 'sideways': expected one of none, mirror"),
    ],
)
def test_what_a_description_claims_is_not_made_before_it_is_checked(tiny, tmp_path, claim, message):
    info, data = read_model_info(tiny)
    network = json.dumps(write_network(info.network) | claim)
    described = make_metadata(
        info.network, info.plans, info.about, info.arithmetic, info.answers
    ) | {"network": network}
    path = tmp_path / "claims.safetensors"
    path.write_bytes(save(load(data), described))
    with pytest.raises(ModelMismatchError, match=message):
        load_model(path)


def test_the_file_of_a_model_that_is_whole_is_taken(rewritten, tiny):
    model = load_model(rewritten(lambda tensors: None))
    assert model.info.plans == load_model(tiny).plans


def test_a_noise_level_that_is_not_in_the_tables(integer, network):
    with pytest.raises(ValueError, match="not in list"):
        integer.posterior_x(noisy(2.0, network), 2.0000001)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (8, 7), (1, 30)])
def test_sides_of_any_length_are_padded_by_repetition(tiny, shape):
    model = load_model(tiny)
    sigma = model.plans["fast"].levels[1]
    z = noisy(sigma, living_network())[:2, :, : shape[0], : shape[1]].numpy().copy()
    multiple = model.network.multiple
    more = [(0, 0), (0, 0), *((0, -side % multiple) for side in shape)]
    padded = model.posterior_x(np.pad(z, more, mode="edge"), sigma)
    for found, whole in zip(model.posterior_x(z, sigma), padded, strict=True):
        assert np.array_equal(found, whole[:, :, : shape[0], : shape[1]])


@pytest.mark.filterwarnings("ignore:TF32")  # on switching oneDNN off
@pytest.mark.parametrize("setting", ["no oneDNN", "autocast", "no NNPACK"])
def test_the_caller_s_settings_of_torch_do_not_matter(tiny, setting):
    model = load_model(tiny)
    z = np.random.default_rng(1).normal(100, 60, (16, 3, 16, 16))  # NNPACK takes 16 images or more
    sigma = model.plans["fast"].levels[-2]
    expected = model.posterior_x(z, sigma)
    within = {
        "no oneDNN": lambda: torch.backends.mkldnn.flags(enabled=False),
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "no NNPACK": lambda: torch.backends.nnpack.flags(enabled=False),
    }
    with within[setting]():
        found = model.posterior_x(z, sigma)
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("within", LOWERED)
def test_float32_of_fewer_bits_is_not_taken(tiny, monkeypatch, within):
    """As processors with AMX have it where they may; here each rounds to 8 bits where it may."""
    monkeypatch.setattr(integer_layers, "kernels_work", lambda: False)
    info, data = read_model_info(tiny)
    model = build_model(info, load(data), "integer")
    z = np.random.default_rng(1).normal(100, 60, (2, 3, 16, 16))
    sigma = model.plans["fast"].levels[-2]
    expected, conv2d = model.posterior_x(z, sigma), F.conv2d

    def in_8_bits(x, weight, *rest):
        if x.dtype == torch.float32:
            x, weight = x.bfloat16().float(), weight.bfloat16().float()
        return conv2d(x, weight, *rest)

    monkeypatch.setattr(integer_layers.F, "conv2d", in_8_bits)
    assert not np.array_equal(model.posterior_x(z, sigma)[0], expected[0])
    with within():
        found = model.posterior_x(z, sigma)
    for a, b in zip(found, expected, strict=True):
        assert np.array_equal(a, b)
