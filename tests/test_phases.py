"""Variables in phases: the mathematics, the tables, the exact networks."""

import itertools
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from scipy.special import expit, softmax
from scipy.stats import logistic, norm
from threads import threads
from tiny import (
    PHASED,
    PHASED_MODEL_PLANS,
    PHASED_PLANS,
    PHASES,
    TINY,
    phased_model,
    random_network,
)
from torch import Tensor

from diffcodec.coding import mixtures as tables
from diffcodec.diffusion.losses import WHOLE, Share, add_noise, code_length_loss
from diffcodec.diffusion.phases import (
    ERROR_STEPS,
    GAUSSIAN_PARAMETERS,
    LARGEST_ERROR,
    LOG_SCALES,
    PLANES,
    REFINED_PARAMETERS,
    Phased,
    channel_shift,
    first_bits,
    first_unit,
    first_variance,
    gaussians,
    log_mass,
    mixture_bits,
    mixture_parameters,
    mixtures,
    of_phase,
    phased_bits,
    refined_everywhere,
    told_in_units,
    told_planes,
)
from diffcodec.diffusion.plan import shipped_plan
from diffcodec.diffusion.quantiser import first_sigma
from diffcodec.errors import ModelMismatchError
from diffcodec.models.export import serialise_float_model
from diffcodec.models.file import FORMATS, make_metadata, read_model_info
from diffcodec.models.model import load_model, load_weights
from diffcodec.networks.config import ENSEMBLES, NetworkConfig, PhasesConfig
from diffcodec.networks.experts import ExpertDenoisers, FloatNetwork
from diffcodec.networks.int8 import kernels_work
from diffcodec.networks.integer import IntegerNetwork
from diffcodec.networks.integer_layers import is_behind_silu
from diffcodec.networks.unet import Conv

ORDER = ((0, 0), (1, 1), (0, 1), (1, 0))  # of the phases
STEPS = torch.tensor([8.0, 16.0, 12.0], dtype=torch.float64)[:, None, None]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


# --- the order of things --------------------------------------------------------------------------


def test_the_phases_in_a_picture() -> None:
    picture = np.zeros((4, 5))
    for number in range(4):
        of_phase(picture, number)[:] = number + 1
    assert picture.tolist() == [[1, 3, 1, 3, 1], [4, 2, 4, 2, 4]] * 2


@given(st.integers(1, 7), st.integers(1, 7))
def test_every_sample_is_of_one_phase_and_told_to_those_after(height: int, width: int) -> None:
    for like in (np.full((3, height, width), 2.0), torch.full((1, 3, height, width), 2.0)):
        seen = np.zeros((height, width))
        for number in range(4):
            told = np.asarray(told_in_units(1, like, 0 * like, like / 2, number))
            assert (told[..., :height, :width] == 2 * seen).all()
            of_phase(seen, number)[:] += 1
        assert (seen == 1).all()
        assert (like == 2).all()


def test_parameters_are_those_of_channels_then_kinds_then_components() -> None:
    names = [
        *(f"{c}{kind}{k}" for c in range(3) for kind in "wms" for k in range(2)),
        *("luma in Co", "luma in Cg", "Co in Cg"),
    ]
    assert len(names) == mixture_parameters(2)
    numbers = np.arange(len(names), dtype=float)[None, :, None, None]
    found = mixtures(numbers)
    for field, kind in zip(found[:3], "wms", strict=True):
        said = [[names[int(field[0, c, k, 0, 0])] for k in range(2)] for c in range(3)]
        assert said == [[f"{c}{kind}{k}" for k in range(2)] for c in range(3)]
    assert [names[int(i)] for i in found.coupling.ravel()] == names[-3:]
    numbers = np.arange(GAUSSIAN_PARAMETERS, dtype=float)[None, :, None, None]
    assert [field.ravel().tolist() for field in gaussians(numbers)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8],
    ]


def test_a_channel_follows_those_before_it() -> None:
    coupling = np.array([2.0, 3.0, 5.0]).reshape(1, 3, 1, 1)
    errors = [np.full((1, 1, 1), error) for error in (10.0, 100.0)]
    shifts = [channel_shift(c, coupling, errors[:c]).item() for c in range(3)]
    assert shifts == [0, 2 * 10, 3 * 10 + 5 * 100]


# --- bits -----------------------------------------------------------------------------------------


def test_log_mass_keeps_its_precision_in_both_tails() -> None:
    low = torch.linspace(-700, 699.5, 2000, dtype=torch.float64)
    high = low + 0.5
    flip = (low + high > 0).numpy()
    a = np.where(flip, -high, low)  # in the left tail the plain difference is precise
    b = np.where(flip, -low, high)
    expected = np.log(expit(b) - expit(a))
    torch.testing.assert_close(log_mass(low, high).numpy(), expected, rtol=1e-9, atol=0)


def candidates_of(
    parameters: Tensor, error: Tensor, low: Tensor, unit: float, channel: int
) -> Tensor:
    """Bits of every candidate of a channel, where the others stay as they are."""
    count = int(STEPS[channel].item())
    bits = []
    for candidate in range(count):
        tried = error.clone()
        tried[:, channel] = low[:, channel] + (candidate + 0.5) / unit
        high = low + STEPS / unit
        half = torch.full_like(error, 0.5 / unit)
        bits.append(mixture_bits(parameters, tried, low, high, half)[:, channel])
    return torch.stack(bits)


@pytest.mark.parametrize("channel", range(3))
@pytest.mark.parametrize("offset", [0.0, 30.0, -1e4])
def test_the_candidates_have_all_the_probability(offset: float, channel: int) -> None:
    parameters = drawn(2, mixture_parameters(3), 4, 5, scale=2)
    error = offset + drawn(2, 3, 4, 5, seed=1)
    low = offset - 3 + 0 * error
    bits = candidates_of(parameters, error, low, 1.7, channel)
    total = torch.exp2(-bits).sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-9, atol=1e-9)


def test_mixtures_are_those_of_the_plain_formula() -> None:
    """PixelCNN++ (Salimans et al. 2017), equation 2, truncated; log scales are clipped."""
    k, unit = 3, 1.7
    parameters = drawn(1, mixture_parameters(k), 2, 3, scale=2)
    error, low = drawn(1, 3, 2, 3, seed=1), torch.full((1, 3, 2, 3), -2.0, dtype=torch.float64)
    parameters[0, 2 * k], parameters[0, 2 * k + 1] = 9.0, -9.0  # luma's first two scales
    p = parameters[0].numpy()
    for c, y, x in itertools.product(range(3), range(2), range(3)):
        of_channel = p[3 * k * c : 3 * k * (c + 1), y, x].reshape(3, k)
        coupling, e = p[9 * k :, y, x], error[0, :, y, x].numpy()
        shift = [0, coupling[0] * e[0], coupling[1] * e[0] + coupling[2] * e[1]][c]
        scale = np.exp(np.clip(of_channel[2], *LOG_SCALES))
        weights, centre = softmax(of_channel[0]), of_channel[1] + shift

        def mass(a, b, weights=weights, centre=centre, scale=scale):
            cdf = [logistic.cdf(end, centre, scale) for end in (a, b)]
            return (weights * (cdf[1] - cdf[0])).sum()

        count = int(STEPS[c].item())
        ends = [(-2 + i / unit, -2 + (i + 1) / unit) for i in range(count)]
        expected = -np.log2([mass(*end) for end in ends] / mass(ends[0][0], ends[-1][1]))
        found = candidates_of(parameters, error, low, unit, c)[:, 0, y, x]
        assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_first_bits_are_those_of_the_plain_formula() -> None:
    """A Gaussian whose bins of M have the masses of one of the scale that is told."""
    size = (1, 3, 4, 6)
    mean, unit = drawn(*size, scale=20), 4 + drawn(*size, seed=1).abs()
    parameters = [drawn(1, GAUSSIAN_PARAMETERS, 2, 3, seed=2 + n) for n in range(4)]
    z = mean + unit * drawn(*size, seed=6)
    found = first_bits(z, Phased(mean, unit, parameters), STEPS).numpy()[0]
    for row, column in itertools.product(range(4), range(6)):
        number = [[0, 2], [3, 1]][row % 2][column % 2]
        p = parameters[number][0, :, row // 2, column // 2].numpy()
        m, u, value = (field[0, :, row, column].numpy() for field in (mean, unit, z))
        e = (value - m) / u
        shifts = [0, p[6] * e[0], p[7] * e[0] + p[8] * e[1]]
        for c in range(3):
            steps = STEPS[c].item()
            variance = (u[c] * np.exp(p[3 + c])) ** 2 - steps**2 / 12
            std = math.sqrt(max(variance, steps**2 / 64))
            centre = m[c] + u[c] * (p[c] + shifts[c])
            ends = abs(value[c] - centre) - steps / 2, abs(value[c] - centre) + steps / 2
            bits = -math.log2(norm.sf(ends[0], 0, std) - norm.sf(ends[1], 0, std))
            assert found[c, row, column] == pytest.approx(bits, rel=1e-6)


def test_context_moves_and_narrows_the_posterior_of_x() -> None:
    xhat, v = drawn(1, 3, 5, 4, scale=20), drawn(1, 3, 5, 4, seed=1) ** 2
    parameters = [drawn(1, REFINED_PARAMETERS, 3, 2, seed=2 + n, scale=3) for n in range(4)]
    mean, variance = refined_everywhere(xhat, v, parameters)
    for row, column in itertools.product(range(5), range(4)):
        number = [[0, 2], [3, 1]][row % 2][column % 2]
        p = parameters[number][0, :, row // 2, column // 2]
        at, std = (0, slice(None), row, column), v[0, :, row, column].sqrt()
        torch.testing.assert_close(mean[at], xhat[at] + std * p[:3])
        torch.testing.assert_close(variance[at], (std * torch.exp(p[3:].clip(-5, 3))) ** 2)
    none = [torch.zeros_like(each) for each in parameters]
    for found, expected in zip(refined_everywhere(xhat, v, none), (xhat, v), strict=True):
        torch.testing.assert_close(found, expected)


def test_what_a_phase_is_told() -> None:
    mean, unit = drawn(3, 2, 4).numpy(), np.full((3, 2, 4), 2.0)
    field = mean + 2 * np.array([0.5, -7.0, 7.0])[:, None, None]
    for number in range(4):
        told = told_planes(2, field, mean, unit, number, (10.0, 20.0))
        before = np.zeros((2, 4))
        for other in range(number):
            of_phase(before, other)[:] = 1
        assert np.array_equal(told[:3], np.array([64, -768, 768])[:, None, None] * before)
        assert (told[3] == round(128 * math.log(2))).all()
        for which in (0, 1):
            assert np.array_equal(told_planes(which, field, mean, unit, number)[:3], told[:3])
    assert (told_planes(2, field, mean, unit, 0, (1.0, 1e9))[3] == 768).all()


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.integers(0, 99))
def test_phases_of_x_are_told_the_averages_of_neighbours(
    height: int, width: int, number: int, seed: int
) -> None:
    """Those beside a sample, above and below, and at its corners; one at a border counts twice."""
    mean = drawn(3, height, width, seed=seed, scale=9).numpy()
    unit, x = np.full_like(mean, 3.0), (mean + 9).round()
    told = told_planes(0, x, mean, unit, number)
    expected = np.zeros((3, height + height % 2, width + width % 2))
    row, column = ORDER[number]
    for i, j in itertools.product(range(row, height, 2), range(column, width, 2)):
        square = expected[:, i // 2 * 2 : i // 2 * 2 + 2, j // 2 * 2 : j // 2 * 2 + 2]
        corners = list(itertools.product((-1, 1), (-1, 1)))
        around = [(0, -1), (0, 1)], [(-1, 0), (1, 0)], corners
        for place, neighbours in zip(((0, 0), (1, 1), (0, 1)), around, strict=True):
            at = {(i + d, j + r) for d, r in neighbours}
            at = {(p, q) for p, q in at if 0 <= p < height and 0 <= q < width}
            if at and all((p % 2, q % 2) in ORDER[:number] for p, q in at):
                average = np.mean([x[:, p, q] for p, q in at], 0)
                error = ((average - mean[:, i, j]) / 3 * 128).round()
                square[:, *place] = error.clip(-768, 768)
    np.testing.assert_allclose(told[3:], expected, atol=1)
    assert (np.abs(told[3:] - expected) > 0).mean() < 0.1  # but where halves are rounded
    tensors = told_in_units(0, *map(torch.from_numpy, (x, mean, unit)), number)
    assert np.array_equal(tensors.numpy(), told_in_units(0, x, mean, unit, number))


def test_losses_of_shares_of_a_batch_in_phases_add_up() -> None:
    network = random_network(PHASED)
    x = 128 + 20 * drawn(16, 3, 8, 8).float().round()
    assert network.phased is not None

    def loss(share: Share = WHOLE) -> float:
        same = (network, x[share.rows], "ycocg", seeded(), share)
        return code_length_loss(*same, quantiser=8, phased=network.phased).item()

    with torch.inference_mode():
        parts = [loss(Share(i, 4)) for i in range(4)]
        assert sum(parts) == pytest.approx(loss(), rel=1e-4)


def test_the_lattice_of_z_1_has_all_the_probability() -> None:
    mean, unit = drawn(1, 3, 2, 2, scale=20), torch.full((1, 3, 2, 2), 4.0, dtype=torch.float64)
    parameters = [0.1 * drawn(1, GAUSSIAN_PARAMETERS, 1, 1, seed=n) for n in range(4)]
    for channel in range(3):
        bits = []
        for n in range(-40, 41):
            z = mean + 1.0
            z[:, channel] += n * STEPS[channel]
            bits.append(first_bits(z, Phased(mean, unit, parameters), STEPS)[:, channel])
        total = torch.exp2(-torch.stack(bits)).sum(0)
        torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-6, atol=0)


def test_bins_of_a_scale_have_its_deviation() -> None:
    """The variance of a bin's width is taken off, and a narrow Gaussian is kept from vanishing."""
    scale, steps = np.array([1.0, 5.0, 40.0]), np.array(8.0)
    variance = first_variance(scale, steps)
    assert variance.tolist() == [1.0, 25 - 64 / 12, 1600 - 64 / 12]
    unit = first_unit(variance[1:], steps, np.sqrt)
    assert unit.tolist() == pytest.approx([5.0, 40.0])


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4)])
def test_phased_bits_of_odd_sizes_are_those_of_every_phase(size: tuple[int, int]) -> None:
    height, width = size
    rows, columns = -(-height // 2), -(-width // 2)
    parameters = [drawn(1, mixture_parameters(2), rows, columns, seed=n) for n in range(4)]
    x, mean = drawn(1, 3, *size, seed=5, scale=3).round(), drawn(1, 3, *size, seed=6)
    unit, z_1 = 1 + drawn(1, 3, *size, seed=7).abs(), x + 0.5
    found = phased_bits(x, z_1, Phased(mean, unit, parameters), STEPS)
    for row, column in itertools.product(range(height), range(width)):
        number = [[0, 2], [3, 1]][row % 2][column % 2]
        at = np.s_[:, :, row : row + 1, column : column + 1]
        alone = parameters[number][:, :, row // 2, column // 2][:, :, None, None]
        u, e = unit[at], (x - mean)[at] / unit[at]
        low = e + (z_1 - x)[at] / u - STEPS / 2 / u
        bits = mixture_bits(alone, e, low, low + STEPS / u, 0.5 / u)
        torch.testing.assert_close(found[at], bits, rtol=1e-9, atol=1e-9)


# --- tables ---------------------------------------------------------------------------------------


def table_of(*fields: np.ndarray | int) -> np.ndarray:
    """Probabilities of candidates, [n, count]."""
    return tables.mixture_table(*fields).T


def float_table(
    weights: np.ndarray, means: np.ndarray, log_scales: np.ndarray, low: np.ndarray, unit, count
) -> np.ndarray:
    """As the float formulas have it, [n, count]."""
    ends = (low + np.arange(count + 1)[:, None]) / unit
    scale = np.exp(np.clip(log_scales, *LOG_SCALES))
    t = (ends[:, None] - means) / scale
    mass = np.exp(log_mass(*(torch.from_numpy(end) for end in (t[:-1], t[1:]))).numpy())
    mass = (softmax(weights, 0) * mass).sum(1)
    return (mass / mass.sum(0)).T


def random_mixtures(n: int = 500) -> tuple[np.ndarray, ...]:
    """Weights, means, log scales, low and unit, of windows that hold some of the mass."""
    rng = np.random.default_rng(0)
    unit = rng.uniform(0.5, 6, n)
    log_scales = rng.uniform(-2, 1, (3, n))
    return (
        rng.normal(0, 2, (3, n)),
        rng.normal(0, 1, (3, n)),
        log_scales,
        -4 - rng.normal(0, 1, n),
        unit,
    )


def in_steps(logarithms: np.ndarray) -> np.ndarray:
    return np.rint(logarithms * tables.LOG_STEPS) / tables.LOG_STEPS


@pytest.mark.parametrize("count", [8, 12, 16])
def test_tables_are_those_of_the_float_formulas(count: int) -> None:
    """But for the interpolation of the logistic function, where the logarithms are in steps."""
    weights, means, log_scales, low, unit = random_mixtures()
    weights = in_steps(weights - weights.max(0))
    log_scales = in_steps(log_scales)
    found = table_of(weights, means, log_scales, low, unit, count)
    expected = float_table(weights, means, log_scales, low, unit, count)
    assert expected.max() > 0.5
    assert np.abs(found - expected).max() < 2e-4
    assert np.median(np.abs(found - expected)) < 2e-6


def test_rounded_logarithms_cost_little() -> None:
    weights, means, log_scales, low, unit = random_mixtures()
    found = table_of(weights, means, log_scales, low, unit, 8)
    expected = float_table(weights, means, log_scales, low, unit, 8)
    more_bits = (expected * np.log2(expected / found)).sum(1)
    assert 0 <= more_bits.mean() < 1e-4
    assert more_bits.max() < 1e-3


def test_log_scales_are_clipped_in_tables_too() -> None:
    weights, means, log_scales, low, unit = random_mixtures(20)
    for end, beyond in zip(LOG_SCALES, (-9.0, 7.0), strict=True):
        found, clipped = (
            table_of(weights, means, 0 * log_scales + value, low, unit, 8)
            for value in (beyond, end)
        )
        assert np.array_equal(found, clipped)
    assert tables.exponential(np.array([-9.0, 0.0, 7.0])).tolist() == pytest.approx(
        [math.exp(-5), 1, math.exp(3)]
    )


largest = float(np.finfo(np.float32).max)
any_float32 = st.one_of(st.floats(-largest, largest, width=32), st.floats(-30, 30, width=32))


@given(
    *(st.lists(any_float32, min_size=2, max_size=2) for _ in range(3)),
    st.floats(-1e6, 1e6),
    st.floats(0.3, 1e4),
    st.sampled_from([2, 8, 32]),
)
def test_no_parameters_leave_a_candidate_without_a_code(
    weights: list[float],
    means: list[float],
    log_scales: list[float],
    low: float,
    unit: float,
    count: int,
) -> None:
    fields = (np.array(field)[:, None] for field in (weights, means, log_scales))
    found = table_of(*fields, np.array([low]), np.array([unit]), count)
    assert found.shape == (1, count)
    assert np.isfinite(found).all() and (found > 0).all()
    assert found.sum() == pytest.approx(1, rel=1e-12)


def test_the_logistic_function_by_a_table() -> None:
    t = np.linspace(-25, 25, 50001)
    found = tables.logistic(t)
    assert np.abs(found - expit(t)).max() < 4e-6
    assert (np.diff(found) >= 0).all()
    assert found[0] == found[t < -20].max() > 0
    assert found + tables.logistic(-t) == pytest.approx(np.ones(len(t)), abs=1e-11)
    nodes = np.arange(-1280, 1280) / 64
    assert tables.logistic(nodes) == pytest.approx(expit(nodes), rel=2**-30)


def test_tables_do_not_hang_on_the_last_bits_of_a_maths_library() -> None:
    eps = np.finfo(np.float64).eps
    exact = [
        1 / (1 + np.exp(np.arange(1280, -1, -1) / 64)),
        *(
            np.exp(np.arange(low * 64, high * 64 + 1) / 64)
            for low, high in ((tables.LEAST_LOG_WEIGHT, 0), LOG_SCALES, (-3.0, 5.0))
        ),
    ]
    for values in exact:
        scaled = np.frexp(values)[0] * 2.0**tables.TABLE_BITS
        assert np.abs(scaled[scaled != np.rint(scaled)] % 1 - 0.5).min() > (
            30 * 2.0**tables.TABLE_BITS * eps
        )
    found = tables.exponentials(*LOG_SCALES)
    assert np.log(found) == pytest.approx(np.arange(-320, 193) / 64, abs=2**-30)


# --- networks -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tensors(phased: Path) -> dict[str, Tensor]:
    return load(phased.read_bytes())


@pytest.fixture(scope="module")
def integer(tensors: dict[str, Tensor]) -> IntegerNetwork:
    return IntegerNetwork(PHASED, tensors)


LEVELS = PHASED_PLANS["default"].levels
TELLERS = range(PHASED.tellers)  # of x, of z_1, and of those above up to 50 and beyond


def noisy(teller: int, batch: int = 3, side: int = 16) -> Tensor:
    """z_1, z_2, z_3 or z_4 of waves."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    waves = torch.stack([torch.sin(x / 5 + k) + torch.cos(y / (6 + k)) for k in range(3 * batch)])
    center = torch.tensor([127.0, 0.0, 0.0])[:, None, None]
    noise = LEVELS[teller] * drawn(batch, 3, side, side, seed=teller)
    return center + 20 * waves.view(batch, 3, side, side).double() + noise


def told_errors(batch: int = 3, side: int = 16) -> Tensor:
    limit = ERROR_STEPS * LARGEST_ERROR
    return (0.7 * ERROR_STEPS * drawn(batch, 3, side, side, seed=9)).clamp(-limit, limit).round()


def told_by(teller: int, number: int, errors: Tensor) -> Tensor:
    """What a phase is told of errors that are integers already."""
    levels = (LEVELS[teller - 1], LEVELS[teller]) if teller >= 2 else None
    field = errors.numpy() / ERROR_STEPS
    zero, one = np.zeros_like(field), np.ones_like(field)
    return torch.from_numpy(told_planes(min(teller, 2), field, zero, one, number, levels))


def answers(network, teller: int, z: Tensor, errors: Tensor) -> list[Tensor]:
    """Mean and variance, and the parameters of every phase."""
    which, sigma = min(teller, 2), LEVELS[teller]
    mean, v, shared = network.begin_phases(which, z, sigma)
    told = [told_by(teller, number, errors) for number in range(4)]
    pairs = enumerate(zip(shared, told, strict=True))
    return [mean, v, *(network.phase_parameters(which, sigma, n, *pair) for n, pair in pairs)]


@pytest.mark.parametrize("teller", TELLERS)
def test_a_phase_sees_the_phases_before_alone(phased_float: Path, teller: int) -> None:
    networks = load_model(phased_float, "float").module.phases[teller]
    side = 16 // PHASED.experts[teller][1].patch
    features = drawn(1, 8, side, side).float()
    errors = drawn(1, 3, 16, 16, seed=1).float()

    def predicted(errors: Tensor) -> list[Tensor]:
        zero, one = torch.zeros_like(errors), torch.ones_like(errors)
        known = min(teller, 2), errors, zero, one
        return networks(features, [told_in_units(*known, number) for number in range(4)])

    before = predicted(errors)
    for number in range(4):
        changed = errors.clone()
        of_phase(changed, number).add_(1)
        after = predicted(changed)
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert same == [later <= number for later in range(4)]


@torch.inference_mode()
@pytest.mark.parametrize("teller", TELLERS)
def test_a_float_model_answers_as_its_module(phased_float: Path, teller: int) -> None:
    model = load_model(phased_float, "float")
    assert model.phased
    z, errors = noisy(teller).float().double(), told_errors()
    found = answers(model.network, teller, z, errors)[2:]
    unet, networks = model.module.experts[teller], model.module.phases[teller]
    features = unet.features(z.float(), torch.full((len(z),), LEVELS[teller]))
    told = [told_by(teller, number, errors).float() / ERROR_STEPS for number in range(4)]
    for a, b in zip(found, networks(features, told), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@torch.inference_mode()
def test_the_plain_posterior_is_that_of_the_experts_above(phased_float: Path) -> None:
    model = load_model(phased_float, "float")
    for sigma, expert in ((1.0, 2), (LEVELS[0], 2), (LEVELS[1], 2), (50.0, 2), (100.0, 3)):
        z = noisy(0).float().contiguous(memory_format=torch.channels_last)
        expected = model.module.experts[expert].posterior_x(z, torch.full((len(z),), sigma))
        found = model.network.posterior_x(z.double(), sigma)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a.float(), b, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("teller", TELLERS)
def test_integers_are_close_to_the_float_networks(
    phased: Path, phased_float: Path, integer: IntegerNetwork, teller: int
) -> None:
    z, errors = noisy(teller), told_errors()
    found = answers(integer, teller, z, errors)
    for other in (phased_float, phased):  # before it was quantised, and its weights in floats
        expected = answers(load_model(other, "float").network, teller, z, errors)
        for a, b in zip(found[2:], expected[2:], strict=True):
            alive, error = b.std((0, 2, 3)).mean(), (a - b).std((0, 2, 3)).mean()
            assert alive > 0.03  # the network says something
            assert (
                error < 0.05 * alive
            )  # inputs of a byte are rounded by up to 0.2 % of their range
        assert (found[0] - expected[0]).abs().mean() < 0.03 * expected[1].sqrt().mean()


def test_means_in_phases_are_those_of_the_posterior(integer: IntegerNetwork) -> None:
    for teller, sigma in enumerate(LEVELS):
        z = noisy(teller)
        found = integer.begin_phases(min(teller, 2), z, sigma)[:2]
        pairs = zip(found, integer.posterior_x(z, sigma), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_one_expert_tells_all_of_lossy_files(integer: IntegerNetwork) -> None:
    assert [PHASED.teller_at(3, sigma) for sigma in (1.0, 50.0, 300.0)] == [2, 2, 2]
    assert [PHASED.teller_at(2, sigma) for sigma in (1.0, 50.0, 300.0)] == [2, 2, 3]
    z, sigma = noisy(2), PHASED_MODEL_PLANS["lossy"].levels[-1]
    mean, v, shared = integer.begin_phases(3, z, sigma)
    *expected, stream = integer.experts[2].evaluate(z, sigma)
    assert torch.equal(mean, expected[0])
    assert torch.equal(v, expected[1])
    for found, own in zip(shared, integer.phases[2].shared(stream), strict=True):
        assert torch.equal(found, own)


def test_training_shows_that_expert_all_levels_of_lossy_files() -> None:
    network = random_network(PHASED)
    x = 100 + 20 * drawn(16, 3, 16, 16).float()
    noisy_images = add_noise(x, "ycocg", torch.Generator().manual_seed(0), WHOLE, 8, (0, 0, 1))
    assert noisy_images.sigma.min() < 4
    assert noisy_images.sigma.max() > 50
    bits = noisy_images.phased_step_bits(network.phased, torch.Generator().manual_seed(0), WHOLE)
    bits.mean().backward()
    reached = {name.split(".")[1] for name, p in network.named_parameters() if p.grad is not None}
    assert reached == {"2"}


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of mkldnn.flags itself
@torch.inference_mode()
@pytest.mark.parametrize("teller", TELLERS)
def test_nothing_but_the_input_decides_the_result(integer: IntegerNetwork, teller: int) -> None:
    z, errors = noisy(teller), told_errors()
    expected = answers(integer, teller, z, errors)

    def same(found: list[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    alone = [answers(integer, teller, z[i : i + 1], errors[i : i + 1]) for i in range(len(z))]
    assert same([torch.cat(field) for field in zip(*alone, strict=True)])
    assert same([f.flip(0) for f in answers(integer, teller, z.flip(0), errors.flip(0))])
    which, sigma = min(teller, 2), LEVELS[teller]
    shared = integer.begin_phases(which, z, sigma)[2][3]
    told = told_by(teller, 3, errors)
    for _ in range(2):  # what is shared is not overwritten
        assert torch.equal(integer.phase_parameters(which, sigma, 3, shared, told), expected[-1])
    with threads(2):
        assert same(answers(integer, teller, z, errors))
    with torch.backends.mkldnn.flags(enabled=False):
        assert same(answers(integer, teller, z, errors))


@pytest.mark.skipif(not kernels_work(), reason="no 8-bit kernels on this machine")
@pytest.mark.parametrize("teller", TELLERS)
def test_kernels_of_8_bits_give_the_same_result(tmp_path: Path, teller: int) -> None:
    tensors = load(phased_model(tmp_path, seed=5).read_bytes())  # all weights small enough for them
    integer = IntegerNetwork(PHASED, tensors)
    with mock.patch("diffcodec.networks.integer_layers.kernels_work", lambda: False):
        in_float32 = IntegerNetwork(PHASED, tensors)
    convs = integer.phases[teller]._convs
    in_bytes = {name for name, conv in convs.items() if conv.in_bytes is not None}
    assert in_bytes == {n for n in convs if is_behind_silu(n)}
    assert "features.0" in in_bytes
    assert all(c.in_bytes is None for c in in_float32.phases[teller]._convs.values())
    for z, errors in ((noisy(teller), told_errors()), (1e6 * noisy(teller).sign(), -told_errors())):
        pairs = zip(
            answers(integer, teller, z, errors), answers(in_float32, teller, z, errors), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("teller", TELLERS)
def test_sums_are_exact_for_extreme_errors(integer: IntegerNetwork, teller: int) -> None:
    limit = round(ERROR_STEPS * LARGEST_ERROR)
    for name, conv in integer.phases[teller]._convs.items():
        if not name.endswith("known"):
            continue
        largest = limit * conv.weight.sign()
        x = torch.cat([largest, -largest])
        exact = torch.nn.functional.conv2d(x.double(), conv.weight.double(), padding=1)
        assert torch.equal(conv.sums(x).double(), exact)
        assert 2**21 < exact.abs().max() < 2**24


# --- model files ----------------------------------------------------------------------------------


@pytest.fixture
def rewritten(
    phased: Path, tmp_path: Path
) -> Callable[[Callable[[dict[str, Tensor]], object]], Path]:
    """A copy of the phased model with its tensors changed."""
    info, data = read_model_info(phased)

    def rewrite(change: Callable[[dict[str, Tensor]], object]) -> Path:
        changed = load(data)
        change(changed)
        path = tmp_path / "changed.safetensors"
        path.write_bytes(save(changed, metadata_of(info)))
        return path

    return rewrite


def metadata_of(info) -> dict[str, str]:
    return make_metadata(info.network, info.plans, info.about, info.arithmetic, info.answers)


def test_the_file_says_all_of_the_network(phased: Path, phased_float: Path) -> None:
    for path in (phased, phased_float):
        info, data = read_model_info(path)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        assert metadata["format"] == FORMATS[1]
        assert info.network == PHASED and info.plans == PHASED_MODEL_PLANS
    described = json.loads(json.dumps(PHASED.to_dict()))
    assert NetworkConfig.from_dict(described) == PHASED
    described.pop("phases")  # of files that were written before there were phases
    assert NetworkConfig.from_dict(described) == replace(PHASED, phases=None)
    config, weights = load_weights(phased_float)
    assert config == PHASED
    written = load(phased_float.read_bytes())
    assert weights.keys() == written.keys()
    assert all(torch.equal(weights[name], written[name]) for name in written)


def test_weights_of_an_integer_model_are_those_it_was_made_of(
    phased: Path, phased_float: Path
) -> None:
    config, weights = load_weights(phased)
    assert config == PHASED
    for name, expected in load(phased_float.read_bytes()).items():
        if name.startswith("phases"):
            error = (weights[name] - expected).std()
            bits = 7 if name.endswith(".weight") else 20
            assert error < 8 * expected.abs().max() / 2**bits, name


def test_missing_tensors_are_refused(rewritten, tensors) -> None:
    names = [name for name in tensors if name.startswith("phases")]
    assert len(names) == 4 * 4 * (1 + 4 * (1 + 2 * PHASES.blocks + 1))
    for name in names[::7]:
        with pytest.raises(ModelMismatchError, match="not a diffcodec model file"):
            load_model(rewritten(lambda tensors, name=name: tensors.pop(name)))


X, Z = "phases.0.phases.2", "phases.1.phases.0"


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[f"{X}.known.weight"].fill_(2**14),
        lambda t: t[f"{Z}.out.weight"].fill_(2**14),
        lambda t: t[f"{X}.out.input"].mul_(torch.tensor([2**-12, 2**12])),
        lambda t: t[f"{Z}.blocks.0.conv1.input"].mul_(torch.tensor([1, 2**12])),
        lambda t: t["phases.0.features.input"].mul_(torch.tensor([1, 2**12])),
        lambda t: t["phases.1.features.input"].zero_(),
        lambda t: t.update({f"{X}.known.weight": t[f"{X}.known.weight"].float()}),
        lambda t: t.update({f"{X}.known.weight": t[f"{X}.known.weight"][:, :-1].clone()}),
        lambda t: t.update({f"{Z}.out.weight": t[f"{X}.out.weight"].clone()}),
        lambda t: t.update({f"{X}.known.input": t[f"{X}.known.input"].repeat(2, 1)}),
        lambda t: t.update({f"{X}.out.bias": t[f"{X}.out.bias"][:1].clone()}),
        lambda t: t.update({f"{Z}.known.scale": t[f"{Z}.known.scale"][:1].clone()}),
        lambda t: t[f"{X}.out.bias"].fill_(torch.nan),
        lambda t: t[f"{X}.known.scale"].fill_(torch.inf),
    ],
)
def test_tampered_tensors_are_refused(rewritten, change) -> None:
    with pytest.raises(ModelMismatchError):
        load_model(rewritten(change))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": ((math.inf, TINY),)}, r"patches \[2\]: expected two or more"),
        ({"experts": ((3.0, replace(TINY, patch=4)), (math.inf, TINY))}, r"patches \[4, 2\]"),
        ({"experts": ((2.0, TINY), (math.inf, TINY))}, "first level is not the first expert's"),
        *(
            ({"self_ensemble": kind}, "self-ensemble that codes: expected one up to 0")
            for kind in ENSEMBLES
            if kind != "none"
        ),
    ],
)
def test_networks_that_cannot_have_phases(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PHASED, **changes)


@pytest.mark.parametrize(
    "change", [{"quantiser": 0}, {"channels": 0}, {"components": 0}, {"blocks": -1}]
)
def test_phases_of_no_size(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected 1 or more of each"):
        PhasesConfig(**change)


@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"blocks": 10**9}, "1000000000 blocks, but only"),
        ({"channels": 10**9}, "expected|overflow"),
        ({"components": 10**9}, "expected|overflow"),
        ({"components": 3}, r"out.weight is \[21, 8, 3, 3\], expected \[30, 8, 3, 3\]"),
        ({"quantiser": 20}, "first level is not the first expert's"),
        ({"more": 1}, "unexpected keyword"),
    ],
)
def test_what_a_description_claims_is_checked(
    phased: Path, tmp_path: Path, claim: dict[str, int], message: str
) -> None:
    info, data = read_model_info(phased)
    network = PHASED.to_dict()
    network["phases"] = network["phases"] | claim
    path = tmp_path / "claims.safetensors"
    path.write_bytes(save(load(data), metadata_of(info) | {"network": json.dumps(network)}))
    with pytest.raises(ModelMismatchError, match=message):
        load_model(path)


@pytest.mark.parametrize(
    ("plan", "first", "message"),
    [
        ("fast", 2, "level 0.5; with phases from M = 8 it must at the one of that"),
        (
            "lossy",
            8,
            "begins at the noise level 2.29129; with phases from M = 8 it must at another",
        ),
    ],
)
def test_plans_of_another_first_level(tmp_path, plan: str, first: int, message: str) -> None:
    path = tmp_path / "model.safetensors"
    plans = PHASED_MODEL_PLANS | {plan: shipped_plan(first_sigma(first), 9.0, 40.0)}
    path.write_bytes(serialise_float_model(random_network(PHASED), plans, {}))
    with pytest.raises(ModelMismatchError, match=message):
        load_model(path, "float")


@pytest.mark.parametrize("network", [PHASED, NetworkConfig(self_ensemble="mirror")])
def test_multiplications_are_those_of_all_convolutions(network: NetworkConfig) -> None:
    """Each counted as it is called, on a square of as many pixels as are divided by."""
    plan, side, counted = shipped_plan(first_sigma(network.quantiser), 9.0, 40.0, 100.0), 16, [0]

    def count(module: torch.nn.Module, _: object, output: Tensor) -> None:
        if isinstance(module, Conv):
            out, inputs, *kernel = module.shape
            counted[0] += inputs * math.prod(kernel) * out * math.prod(output.shape[2:])

    module = ExpertDenoisers(network)
    with torch.nn.modules.module.register_module_forward_hook(count), torch.inference_mode():
        floats, z = FloatNetwork(module), torch.zeros(1, 3, side, side, dtype=torch.float64)
        for below, sigma in enumerate(plan.levels):
            if not network.phases:
                floats.posterior_x(z, sigma)
                continue
            which = min(below, 2)
            *_, shared = floats.begin_phases(which, z, sigma)
            told = torch.zeros(1, PLANES[which], side, side, dtype=torch.float64)
            for number, each in enumerate(shared):
                floats.phase_parameters(which, sigma, number, each, told)
    assert network.multiplications(plan) == pytest.approx(counted[0] / side**2)


def test_the_first_level_of_a_network_and_its_multiple() -> None:
    for quantiser in (2, 8, 16):
        network = NetworkConfig(
            ((first_sigma(quantiser) + 1, TINY), (math.inf, TINY)),
            phases=PhasesConfig(quantiser),
        )
        assert network.quantiser == quantiser and network.multiple == 4
    alone = replace(TINY, channels=(8,), blocks=(1,), patch=1)
    odd = NetworkConfig(((3.0, alone), (math.inf, alone)), phases=PHASES)
    assert odd.multiple == 2  # for the phases' half resolution
