"""One equation, one test: the chain in grey levels is DDPM's chain, and its bits are exact."""

import math

import numpy as np
import pytest
import torch
from ddpm import HALF_RANGE, cosine_schedule, decoder_probability, linear_schedule, to_unit
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from torch.distributions import Normal, kl_divergence

from diffcodec.diffusion.process import (
    LOG2_E,
    Gaussian,
    discretized_gaussian_bits,
    gaussian_kl_bits,
    log_bin_mass,
    p_reverse,
    predict_x_from_eps,
    q_posterior,
    q_sample,
    to_bits_per_dimension,
)
from diffcodec.diffusion.schedule import cosine, linear

LN_2 = math.log(2)
PIXELS = torch.tensor([0.0, 1.0, 100.0, 127.0, 200.0, 255.0], dtype=torch.float64)
STEPS = [2, 3, 10, 100, 500, 900, 999, 1000]  # t of the adjacent steps t -> t - 1
SCHEDULES = [(linear_schedule(), linear()), (cosine_schedule(), cosine())]
ddpm_steps = pytest.mark.parametrize("t", STEPS)
ddpm_schedules = pytest.mark.parametrize(("ddpm", "levels"), SCHEDULES, ids=["linear", "cosine"])

sigmas = st.floats(0.1, 1000)
variances = st.floats(0.01, 1e5)
pixels = st.floats(-255, 255)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def level_pair(levels, t):
    """sigma_{t-1} and sigma_t of a 1-based t."""
    return tensor(levels[t - 2]), tensor(levels[t - 1])


def noise_like(x, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64)


# DDPM's equations under x_t = sqrt(abar_t) (z_t - 127.5) / 127.5


@ddpm_schedules
@ddpm_steps
def test_q_sample_is_eq_4(ddpm, levels, t):
    eps = noise_like(PIXELS)
    z_t = q_sample(PIXELS, tensor(levels[t - 1]), eps)
    expected = ddpm.x_t(to_unit(PIXELS.numpy()), eps.numpy(), t)
    assert ddpm.from_grey(z_t.numpy(), t) == pytest.approx(expected, rel=1e-9)


@ddpm_schedules
@ddpm_steps
def test_q_posterior_is_eqs_6_and_7(ddpm, levels, t):
    sigma_s, sigma_t = level_pair(levels, t)
    z_t = q_sample(PIXELS, sigma_t, noise_like(PIXELS))
    posterior = q_posterior(PIXELS, z_t, sigma_s, sigma_t)
    mean, variance = ddpm.q_posterior(to_unit(PIXELS.numpy()), ddpm.from_grey(z_t.numpy(), t), t)
    assert ddpm.from_grey(posterior.mean.numpy(), t - 1) == pytest.approx(mean, rel=1e-7)
    scale = ddpm.abar(t - 1) / HALF_RANGE**2
    assert posterior.variance.numpy() * scale == pytest.approx(variance, rel=1e-7)


@ddpm_schedules
@ddpm_steps
def test_predict_x_from_eps_is_eq_15(ddpm, levels, t):
    eps_hat = noise_like(PIXELS, 1)
    z_t = q_sample(PIXELS, tensor(levels[t - 1]), noise_like(PIXELS))
    xhat = predict_x_from_eps(z_t, tensor(levels[t - 1]), eps_hat)
    expected = ddpm.x_0(ddpm.from_grey(z_t.numpy(), t), eps_hat.numpy(), t)
    assert to_unit(xhat.numpy()) == pytest.approx(expected, rel=1e-7)


@ddpm_schedules
@ddpm_steps
def test_p_reverse_mean_is_eq_11(ddpm, levels, t):
    sigma_s, sigma_t = level_pair(levels, t)
    eps_hat = noise_like(PIXELS, 1)
    z_t = q_sample(PIXELS, sigma_t, noise_like(PIXELS))
    xhat = predict_x_from_eps(z_t, sigma_t, eps_hat)
    reverse = p_reverse(xhat, torch.ones_like(xhat), z_t, sigma_s, sigma_t)
    expected = ddpm.p_mean(ddpm.from_grey(z_t.numpy(), t), eps_hat.numpy(), t)
    assert ddpm.from_grey(reverse.mean.numpy(), t - 1) == pytest.approx(expected, rel=1e-7)


@ddpm_schedules
@ddpm_steps
def test_step_with_fixed_variance_costs_eq_12(ddpm, levels, t):
    # v = 0 leaves the posterior's own variance: DDPM's smaller choice of sigma_t^2.
    sigma_s, sigma_t = level_pair(levels, t)
    eps, eps_hat = noise_like(PIXELS), noise_like(PIXELS, 1)
    z_t = q_sample(PIXELS, sigma_t, eps)
    xhat = predict_x_from_eps(z_t, sigma_t, eps_hat)
    kl = gaussian_kl_bits(
        q_posterior(PIXELS, z_t, sigma_s, sigma_t),
        p_reverse(xhat, torch.zeros_like(xhat), z_t, sigma_s, sigma_t),
    )
    expected = ddpm.step_nats(eps.numpy(), eps_hat.numpy(), t) / LN_2
    assert kl.numpy() == pytest.approx(expected, rel=1e-6)


def test_discretized_gaussian_is_eq_13_inside_the_range():
    # At 0 and 255 DDPM's bins reach to infinity; here they are as wide as the others.
    x = torch.arange(1, 255, dtype=torch.float64)
    bits = discretized_gaussian_bits(x, tensor(120.3), tensor(30.0**2))
    expected = decoder_probability(to_unit(x.numpy()), to_unit(120.3), 30.0 / HALF_RANGE)
    assert np.exp2(-bits.numpy()) == pytest.approx(expected, rel=1e-9)


# The same chain between any two levels


@given(pixels, pixels, pixels, st.lists(sigmas, min_size=2, max_size=2, unique=True))
def test_step_costs_the_difference_of_signal_to_noise(x, xhat, z_t, pair):
    """Half of it times the squared error, in nats (VDM, eq. 13)."""
    low, high = sorted(pair)
    high = max(high, 1.01 * low)
    q = q_posterior(tensor(x), tensor(z_t), tensor(low), tensor(high))
    p = p_reverse(tensor(xhat), tensor(0.0), tensor(z_t), tensor(low), tensor(high))
    expected = (low**-2 - high**-2) / 2 * (x - xhat) ** 2 / LN_2
    assert gaussian_kl_bits(q, p).item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(pixels, pixels, pixels, st.lists(sigmas, min_size=2, max_size=2, unique=True))
def test_q_posterior_is_bayes_rule(x, z_s, z_t, pair):
    # log q(z_s | z_t, x) = log q(z_s | x) + log q(z_t | z_s) - log q(z_t | x)
    low, high = sorted(pair)
    high = max(high, 1.01 * low)
    sigma_s, sigma_t = tensor(low), tensor(high)
    x, z_s, z_t = tensor(x), tensor(z_s), tensor(z_t)
    posterior = q_posterior(x, z_t, sigma_s, sigma_t)
    expected = (
        Normal(x, sigma_s).log_prob(z_s)
        + Normal(z_s, (sigma_t**2 - sigma_s**2).sqrt()).log_prob(z_t)
        - Normal(x, sigma_t).log_prob(z_t)
    )
    actual = Normal(posterior.mean, posterior.variance.sqrt()).log_prob(z_s)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-6)


@given(pixels, pixels, st.lists(sigmas, min_size=3, max_size=3, unique=True))
def test_q_posterior_in_two_steps_is_q_posterior_in_one(x, z_t, levels):
    x, z_t = tensor(x), tensor(z_t)
    sigma_s, sigma_u, sigma_t = (tensor(s) for s in sorted(levels))
    direct = q_posterior(x, z_t, sigma_s, sigma_t)
    first = q_posterior(x, z_t, sigma_u, sigma_t)
    second = q_posterior(x, first.mean, sigma_s, sigma_u)  # its mean is linear in z_u
    slope = sigma_s**2 / sigma_u**2
    assert second.mean.item() == pytest.approx(direct.mean.item(), rel=1e-9, abs=1e-9)
    variance = second.variance + slope**2 * first.variance
    assert variance.item() == pytest.approx(direct.variance.item(), rel=1e-9)


def test_forward_process_then_posterior_by_monte_carlo():
    # Draw upward z_s, z_t; downward, z_s is standard normal around the posterior, whatever z_t is.
    x, sigma_s, sigma_t = tensor(100.0), tensor(3.0), tensor(5.0)
    count = 200_000
    z_s = q_sample(x, sigma_s, noise_like(torch.empty(count)))
    z_t = q_sample(z_s, (sigma_t**2 - sigma_s**2).sqrt(), noise_like(torch.empty(count), 1))
    assert z_t.std().item() == pytest.approx(5.0, rel=0.01)
    posterior = q_posterior(x, z_t, sigma_s, sigma_t)
    residual = (z_s - posterior.mean) / posterior.variance.sqrt()
    assert residual.mean().item() == pytest.approx(0, abs=0.01)
    assert residual.std().item() == pytest.approx(1, abs=0.01)
    assert torch.corrcoef(torch.stack([residual, z_t]))[0, 1].item() == pytest.approx(0, abs=0.01)


@given(pixels, pixels, variances, sigmas, st.floats(1.01, 10))
def test_p_reverse_averages_q_posterior_over_x(xhat, z_t, v, low, ratio):
    # p(z_s | z_t) = integral of q(z_s | z_t, x) N(x; xhat, v): the law of total variance, with x at
    # xhat +- sqrt(v), which has the right mean and variance.
    xhat, z_t, v = tensor(xhat), tensor(z_t), tensor(v)
    sigma_s, sigma_t = tensor(low), tensor(low * ratio)
    reverse = p_reverse(xhat, v, z_t, sigma_s, sigma_t)
    ends = [q_posterior(xhat + e * v.sqrt(), z_t, sigma_s, sigma_t) for e in (-1, 1)]
    mean = (ends[0].mean + ends[1].mean) / 2
    variance = ends[0].variance + ((ends[1].mean - ends[0].mean) / 2) ** 2
    assert reverse.mean.item() == pytest.approx(mean.item(), abs=1e-9)
    assert reverse.variance.item() == pytest.approx(variance.item(), rel=1e-6)


@given(pixels, pixels, st.floats(1, 100), sigmas, st.floats(1.01, 10))
def test_p_reverse_is_exact_for_gaussian_data(centre, z_t, s, low, ratio):
    # x ~ N(centre, s^2): z_s and z_t are jointly Gaussian with covariance s^2 + sigma_s^2.
    sigma_s, sigma_t = tensor(low), tensor(low * ratio)
    centre, z_t = tensor(centre), tensor(z_t)
    weight = s**2 / (s**2 + sigma_t**2)
    reverse = p_reverse(
        centre + weight * (z_t - centre), weight * sigma_t**2, z_t, sigma_s, sigma_t
    )
    shared = s**2 + sigma_s**2
    gain = shared / (s**2 + sigma_t**2)
    expected = centre + gain * (z_t - centre)
    assert reverse.mean.item() == pytest.approx(expected.item(), abs=1e-9)
    assert reverse.variance.item() == pytest.approx((shared * (1 - gain)).item(), rel=1e-6)


@given(pixels, sigmas, st.floats(-5, 5))
def test_predict_x_from_eps_undoes_q_sample(x, sigma, eps):
    z_t = q_sample(tensor(x), tensor(sigma), tensor(eps))
    assert predict_x_from_eps(z_t, tensor(sigma), tensor(eps)).item() == pytest.approx(x, abs=1e-9)


def test_levels_may_differ_by_channel():
    x = PIXELS.reshape(1, 3, 2, 1)
    z_t, xhat, v = x + 3, x + 1, x + 2
    sigma_s, sigma_t = tensor(1, 2, 3)[:, None, None], tensor(2, 5, 4)[:, None, None]
    together = p_reverse(xhat, v, z_t, sigma_s, sigma_t)
    for c in range(3):
        one = p_reverse(xhat[:, c], v[:, c], z_t[:, c], sigma_s[c], sigma_t[c])
        assert torch.equal(together.mean[:, c], one.mean)
        assert torch.equal(together.variance[:, c], one.variance)


# Bits


@given(pixels, variances, pixels, variances)
def test_gaussian_kl_is_the_closed_form(q_mean, q_variance, p_mean, p_variance):
    q, p = (tensor(q_mean), tensor(q_variance)), (tensor(p_mean), tensor(p_variance))
    expected = kl_divergence(Normal(q[0], q[1].sqrt()), Normal(p[0], p[1].sqrt())) / LN_2
    actual = gaussian_kl_bits(Gaussian(*q), Gaussian(*p)).item()
    assert actual == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
    assert actual >= -1e-12


def test_gaussian_kl_is_zero_only_for_equals():
    q = Gaussian(tensor(3.0), tensor(2.0))
    assert gaussian_kl_bits(q, q).item() == 0
    assert gaussian_kl_bits(q, Gaussian(tensor(3.5), tensor(2.0))).item() > 0.01
    assert gaussian_kl_bits(q, Gaussian(tensor(3.0), tensor(3.0))).item() > 0.01


def log_gaussian_integral(low, high):
    """Log of the standard Gaussian's mass between two points, by quadrature at any distance."""
    peak = min(max(low, 0.0), high)  # the largest density is factored out before it underflows

    def relative_density(x):
        return math.exp((peak**2 - x**2) / 2)

    mass = quad(relative_density, low, high, epsabs=0, epsrel=1e-11, limit=500)[0]
    return math.log(mass) - peak**2 / 2 - math.log(2 * math.pi) / 2


tail = pytest.mark.parametrize("distance", [-200.0, -30, -10, -1, 0, 0.3, 1, 5, 12, 30, 200])


@tail
@pytest.mark.parametrize("width", [0.01, 1.0, 3.0])
def test_log_bin_mass_keeps_its_precision_in_both_tails(distance, width):
    actual = log_bin_mass(tensor(100.0), tensor(4.0), tensor(100.0 + 2 * distance), 2 * width)
    expected = log_gaussian_integral(distance - width / 2, distance + width / 2)
    assert actual.item() == pytest.approx(expected, rel=1e-9)


@tail
def test_log_bin_mass_of_single_precision_does_too(distance):
    actual = log_bin_mass(
        torch.tensor(100.0), torch.tensor(1.0), torch.tensor(100.0 + distance), 1.0
    )
    assert actual.dtype == torch.float32
    expected = log_gaussian_integral(distance - 0.5, distance + 0.5)
    assert actual.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("distance", [-1000.0, -20.0, 20.0, 1000.0])
def test_bits_far_in_the_tail_still_pull_on_mean_and_variance(distance):
    # Far away the bin's mass is the density at its near edge: -log p = d^2 / (2 v) + ...
    mean = torch.tensor(0.0, requires_grad=True)
    variance = torch.tensor(1.0, requires_grad=True)
    discretized_gaussian_bits(torch.tensor(distance), mean, variance).backward()
    near = abs(distance) - 0.5
    assert mean.grad.item() == pytest.approx(-math.copysign(near, distance) * LOG2_E, rel=0.02)
    assert variance.grad.item() == pytest.approx(-(near**2) / 2 * LOG2_E, rel=0.02)


@given(st.floats(-10, 265), st.floats(0.05, 60))
def test_discretized_gaussian_sums_to_one(mean, std):
    x = torch.arange(-700, 960, dtype=torch.float64)
    mass = torch.exp2(-discretized_gaussian_bits(x, tensor(mean), tensor(std**2)))
    assert mass.sum().item() == pytest.approx(1, abs=1e-6)
    # A bin of width 2 is two bins of width 1.
    wide = torch.exp2(-discretized_gaussian_bits(x[:-1] + 0.5, tensor(mean), tensor(std**2), 2.0))
    assert wide.numpy() == pytest.approx((mass[:-1] + mass[1:]).numpy(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("std", [3.0, 20.0, 100.0])
def test_discretized_gaussian_costs_the_entropy_of_a_gaussian(std):
    x = torch.arange(-1500, 1500, dtype=torch.float64)
    bits = discretized_gaussian_bits(x, tensor(0.4), tensor(std**2))
    mean_bits = (torch.exp2(-bits) * bits).sum().item()
    assert mean_bits == pytest.approx(math.log2(std * math.sqrt(2 * math.pi * math.e)), abs=2e-2)


def test_bits_per_dimension_is_the_mean_over_all_but_the_batch():
    bits = torch.arange(2 * 3 * 4 * 5, dtype=torch.float64).reshape(2, 3, 4, 5)
    assert to_bits_per_dimension(bits).tolist() == [29.5, 89.5]
