"""The bound: a dithered first level that is exact, and the code length of a known source."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from ddpm import HALF_RANGE, cosine_schedule, linear_schedule
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from diffcodec.diffusion.bound import (
    chain_bound_bits,
    draw_dither,
    gaussian_pixel_variance,
    remainder_bits,
)
from diffcodec.diffusion.color import DOMAINS, channels
from diffcodec.diffusion.losses import (
    END_SHARES,
    HYBRID_WEIGHT,
    MAX_SIGMA,
    Share,
    code_length_loss,
    flow_matching_loss,
    hybrid_loss,
    simple_loss,
    v_loss,
)
from diffcodec.diffusion.plan import Plan
from diffcodec.diffusion.process import (
    discretized_gaussian_bits,
    dithered_quantise,
    gaussian_kl_bits,
    p_prior,
    p_reverse,
)
from diffcodec.diffusion.quantiser import first_sigma
from diffcodec.diffusion.schedule import geometric
from diffcodec.diffusion.variances import VARIANCES

every_m = pytest.mark.parametrize("m", [2, 3, 4])
every_domain = pytest.mark.parametrize("color", DOMAINS)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# The first level


def all_integers_and_dithers(m):
    """x in -255..255 and every dither, as [511, m]."""
    x = torch.arange(-255.0, 256.0)[:, None].expand(-1, m)
    return x, torch.arange(float(m)).expand_as(x)


@every_m
def test_first_level_differs_from_x_by_uniform_noise_that_ignores_x(m):
    x, dither = all_integers_and_dithers(m)
    z_1, _ = dithered_quantise(x, dither, torch.tensor(m))
    noise = (z_1 - x).sort(1).values  # [511, m]
    offsets = torch.arange(m) - (m - 1) / 2  # each once: -1/2, 1/2 for m = 2
    assert torch.equal(noise, offsets.expand_as(noise))
    assert noise.var(1, correction=0).tolist() == pytest.approx([(m * m - 1) / 12] * 511)


@every_m
def test_x_is_recovered_from_first_level_and_remainder(m):
    x, dither = all_integers_and_dithers(m)
    z_1, remainder = dithered_quantise(x, dither, torch.tensor(m))
    assert torch.equal(z_1 - (m - 1) / 2 + remainder, x)
    assert set(remainder.flatten().tolist()) == set(range(m))


@every_m
def test_first_level_lies_on_the_lattice_that_the_dither_shifts(m):
    x, dither = all_integers_and_dithers(m)
    z_1, _ = dithered_quantise(x, dither, torch.tensor(m))
    k = (z_1 + dither - (m - 1) / 2) / m
    assert torch.equal(k, k.round())


@every_domain
def test_first_level_has_the_noise_that_the_schedule_names(color):
    domain = DOMAINS[color]
    x = torch.full((64, 3, 32, 32), 100.0)
    steps = channels(domain.quantiser_steps(2), x)
    z_1, _ = dithered_quantise(x, draw_dither(x.shape, steps, seeded()), steps)
    expected = first_sigma(2) * np.array(domain.noise_multipliers)
    assert (z_1 - x).std((0, 2, 3)).numpy() == pytest.approx(expected, rel=0.01)
    assert (z_1 - x).mean((0, 2, 3)).numpy() == pytest.approx(0, abs=0.02)


@every_domain
def test_dither_is_uniform_in_its_range_and_repeatable(color):
    domain = DOMAINS[color]
    steps = channels(domain.quantiser_steps(2), torch.zeros(1))
    draw = partial(draw_dither, torch.Size((16, 3, 32, 32)), steps)
    dither = draw(seeded())
    assert torch.equal(dither, draw(seeded()))
    assert not torch.equal(dither, draw(seeded(1)))
    for c, m in enumerate(domain.quantiser_steps(2)):
        values, counts = dither[:, c].unique(return_counts=True)
        assert values.tolist() == list(range(m))
        assert (counts / counts.sum()).numpy() == pytest.approx(1 / m, abs=0.02)


def truncated_discretized_gaussian_bits(remainder, z_1, xhat, v, m):
    """One sample, from the definition."""
    candidates = z_1 - (m - 1) / 2 + np.arange(m)
    mass = norm.cdf(candidates + 0.5, xhat, v**0.5) - norm.cdf(candidates - 0.5, xhat, v**0.5)
    return -math.log2(mass[int(remainder)] / mass.sum())


@every_m
@given(z_1=st.integers(-255, 255), offset=st.floats(-5, 5), std=st.floats(0.7, 50))
def test_remainder_bits_are_a_truncated_discretized_gaussian(m, z_1, offset, std):
    xhat, v, steps = tensor(z_1 + offset), tensor(std**2), tensor(m)
    bits = [remainder_bits(tensor(j), tensor(z_1), xhat, v, steps).item() for j in range(m)]
    expected = [
        truncated_discretized_gaussian_bits(j, z_1, z_1 + offset, std**2, m) for j in range(m)
    ]
    assert bits == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert sum(2**-b for b in bits) == pytest.approx(1, abs=1e-9)


@every_m
@pytest.mark.parametrize("xhat", [-300.0, 99.9, 300.0, 5000.0])
def test_remainder_is_a_distribution_however_wrong_the_model_is(m, xhat):
    z_1 = tensor(100.0 + (m - 1) / 2)
    bits = [remainder_bits(tensor(j), z_1, tensor(xhat), tensor(0.25), tensor(m)) for j in range(m)]
    assert sum(2 ** -b.item() for b in bits) == pytest.approx(1, abs=1e-9)
    assert np.isfinite([b.item() for b in bits]).all()


def test_remainder_without_knowledge_costs_log2_m():
    z_1, xhat, v = tensor(100.5), tensor(100.5), tensor(1e6)
    for m in (2, 3, 4):
        bits = remainder_bits(tensor(0.0), z_1, xhat, v, tensor(m)).item()
        assert bits == pytest.approx(math.log2(m), abs=1e-4)


def test_remainder_bits_take_m_by_channel():
    steps = tensor(2, 4, 3)[:, None, None]
    z_1 = tensor(0.5, 1.5, 1.0)[:, None, None].expand(2, 3, 4, 4)
    remainder, v = torch.ones_like(z_1), torch.full_like(z_1, 4.0)
    bits = remainder_bits(remainder, z_1, torch.zeros_like(z_1), v, steps)
    for c, m in enumerate((2, 4, 3)):
        expected = truncated_discretized_gaussian_bits(1, z_1[0, c, 0, 0].item(), 0.0, 4.0, m)
        assert bits[:, c].numpy() == pytest.approx(expected, rel=1e-6)


# A source whose posterior is known: x = a Gaussian around the domain's centre, rounded


def gaussian_model(s, color):
    """Exact mean and variance of x ~ N(centre, s^2) given z_t."""
    domain = DOMAINS[color]

    def posterior_x(z, sigma):
        noise = (sigma[:, None, None, None] * channels(domain.noise_multipliers, z)) ** 2
        variance = s * s + 1 / 12  # rounding to integers adds a twelfth
        weight = variance / (variance + noise)
        centre = channels(domain.center, z)
        return centre + weight * (z - centre), (weight * noise).expand_as(z)

    return posterior_x


def gaussian_images(s, color, batch=64, side=16):
    generator = seeded(7)
    noise = torch.randn(batch, 3, side, side, generator=generator, dtype=torch.float64)
    return torch.round(channels(DOMAINS[color].center, noise) + s * noise)


def ideal_bits(x, s, color):
    """-log2 p(x), mean per dimension."""
    centre = channels(DOMAINS[color].center, x)
    return discretized_gaussian_bits(x, centre, tensor(s**2)).mean().item()


def plan(timesteps, second=1.25, top=600.0):
    levels = (0.5, *geometric(timesteps - 1, second, top).tolist())
    return Plan(levels, (1.0,) * (timesteps - 1))


def bound(s, color, timesteps):
    x = gaussian_images(s, color)
    parts = chain_bound_bits(gaussian_model(s, color), x, color, plan(timesteps), seeded())
    return x, parts


@pytest.mark.parametrize("s", [8.0, 20.0])
def test_ideal_bits_are_the_entropy_of_a_rounded_gaussian(s):
    entropy = math.log2(s * math.sqrt(2 * math.pi * math.e))
    assert ideal_bits(gaussian_images(s, "rgb"), s, "rgb") == pytest.approx(entropy, abs=0.02)


@pytest.mark.parametrize("s", [8.0, 20.0])
@pytest.mark.parametrize("timesteps", [8, 24, 96])
def test_bound_of_an_exact_model_is_the_entropy(s, timesteps):
    # Above it by 0.04, which taking the uniform first level for a Gaussian one costs; never below.
    x, parts = bound(s, "rgb", timesteps)
    excess = parts.sum(1).mean().item() - ideal_bits(x, s, "rgb")
    assert excess == pytest.approx(0.04, abs=0.04)


@every_domain
def test_bound_of_an_exact_model_does_not_depend_on_the_number_of_timesteps(color):
    few, many = (bound(20.0, color, t)[1].sum(1).mean().item() for t in (8, 96))
    assert few == pytest.approx(many, abs=0.04)


@every_domain
def test_bound_names_its_parts(color):
    s, timesteps = 20.0, 24
    x, parts = bound(s, color, timesteps)
    assert parts.shape == (len(x), timesteps + 1)
    assert torch.isfinite(parts).all() and (parts > 0).all()
    domain = DOMAINS[color]
    m, multipliers = np.array(domain.quantiser_steps(2)), np.array(domain.noise_multipliers)
    # Remainder: at sigma_1 the model hardly knows which candidate it was.
    assert parts[:, 0].mean().item() == pytest.approx(np.log2(m).mean(), abs=0.1)
    # First jump: the entropy of a Gaussian of the posterior's variance, less log2 of the bin's M.
    v = 1 / (1 / s**2 + 1 / (1.25 * multipliers) ** 2)
    first_jump = np.log2(np.sqrt(2 * np.pi * np.e * v) / m).mean()
    assert parts[:, 1].mean().item() == pytest.approx(first_jump, abs=0.15)
    # Prior: as good as free from a noise level so far above the image.
    assert parts[:, -1].mean().item() < 0.01


def test_bound_of_a_wrong_model_is_higher():
    x = gaussian_images(20.0, "rgb")
    right, narrow, wide = (
        chain_bound_bits(gaussian_model(s, "rgb"), x, "rgb", plan(24), seeded()).sum().item()
        for s in (20.0, 10.0, 60.0)
    )
    assert right < narrow and right < wide


def loss(s, color, assumed=None):
    x = gaussian_images(s, color).float()
    model = gaussian_model(assumed or s, color)
    generator = seeded()
    return np.mean([code_length_loss(model, x, color, generator).item() for _ in range(20)])


@pytest.mark.parametrize("s", [8.0, 20.0])
def test_code_length_loss_estimates_the_code_length(s):
    assert loss(s, "rgb") == pytest.approx(
        ideal_bits(gaussian_images(s, "rgb"), s, "rgb"), abs=0.15
    )


@every_domain
def test_eight_times_the_spread_costs_three_bits_more(color):
    assert loss(64.0, color) - loss(8.0, color) == pytest.approx(3, abs=0.1)
    narrow, wide = (bound(s, color, 24)[1].sum(1).mean().item() for s in (8.0, 64.0))
    assert wide - narrow == pytest.approx(3, abs=0.05)


@every_domain
def test_code_length_loss_shows_the_model_the_noise_it_names(color):
    seen = []

    def model(z, sigma):
        seen.append((z, sigma))
        return z, torch.ones_like(z)

    x = gaussian_images(20.0, color, batch=96, side=64).float()  # the last stratum is above 0.8
    code_length_loss(model, x, color, seeded())
    [(z, sigma)] = seen
    std = (z - x).std((2, 3)) / channels(DOMAINS[color].noise_multipliers, z)[:, 0, 0]
    assert std.numpy() == pytest.approx(sigma[:, None].expand_as(std).numpy(), rel=0.05)
    assert sigma.min() == first_sigma(2) and 0.8 * MAX_SIGMA < sigma.max() <= MAX_SIGMA


@every_domain
@pytest.mark.parametrize("assumed", [12.0, 35.0])
def test_code_length_loss_is_least_for_the_true_model(color, assumed):
    assert loss(20.0, color) < loss(20.0, color, assumed)


@every_domain
def test_code_length_loss_reaches_mean_and_variance_at_every_noise_level(color):
    fields = {}

    def model(z, sigma):
        xhat, v = gaussian_model(20.0, color)(z, sigma)
        fields["xhat"] = (xhat + 1).detach().requires_grad_()
        fields["v"] = v.detach().clone().requires_grad_()
        return fields["xhat"], fields["v"]

    x = gaussian_images(20.0, color, batch=16).float()
    code_length_loss(model, x, color, seeded()).backward()
    for field in fields.values():
        gradient = field.grad.flatten(1)
        assert torch.isfinite(gradient).all()
        assert (gradient.abs().sum(1) > 0).all()


def epsilon_model(color, error):
    """Knows x = the centre exactly but for an error in epsilon."""
    domain = DOMAINS[color]

    def posterior_x(z, sigma):
        sigma_t = sigma[:, None, None, None] * channels(domain.noise_multipliers, z)
        return channels(domain.center, z) + error * sigma_t + 0 * z, torch.ones_like(z)

    return posterior_x


@every_domain
def test_simple_loss_is_the_squared_error_of_epsilon(color):
    # DDPM eq. 14, whatever the noise level and the channel's multiplier
    x = channels(DOMAINS[color].center, torch.zeros(1)).expand(16, 3, 8, 8)
    for error in (0.0, 0.3, -1.0):
        value = simple_loss(epsilon_model(color, error), x, color, seeded()).item()
        assert value == pytest.approx(error**2, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize(("loss", "power"), [(v_loss, 2), (flow_matching_loss, 1)])
def test_losses_of_other_predictions_are_their_squared_errors(loss, power):
    """As printed, in the coordinates of their papers; of images and answers that are random."""
    x, seen = gaussian_images(20.0, "rgb", batch=8).float(), {}

    def model(z, sigma):
        seen["z"], seen["u"] = z, (sigma / HALF_RANGE)[:, None, None, None]
        seen["xhat"] = 0.9 * z + 3
        return seen["xhat"], torch.ones_like(z)

    value = loss(model, x, "rgb", seeded()).item()
    u, x_0, guess = (
        seen["u"],
        (x - HALF_RANGE) / HALF_RANGE,
        (seen["xhat"] - HALF_RANGE) / HALF_RANGE,
    )
    y = (seen["z"] - HALF_RANGE) / HALF_RANGE
    alpha = 1 / (1 + u**power) ** (1 / power)  # alpha^2 + s^2 = 1, or alpha + s = 1
    eps, said = (y - x_0) / u, (y - guess) / u
    if loss is v_loss:
        error = (alpha * eps - alpha * u * x_0) - (alpha * said - alpha * u * guess)
    else:
        error = (eps - x_0) - (said - guess)
    assert value == pytest.approx((error**2).mean().item(), rel=1e-3)
    t = (u / (1 + u)).flatten()
    strata = t if loss is flow_matching_loss else u.log().flatten()
    assert strata.diff().std() < 0.7 * strata.diff().mean()  # one in each part of the range


def test_simple_loss_of_knowing_nothing_is_one():
    # The best epsilon-model without knowledge says 0, so xhat = z_t.
    x = torch.full((64, 3, 16, 16), 50.0)
    value = simple_loss(lambda z, sigma: (z, torch.ones_like(z)), x, "rgb", seeded()).item()
    assert value == pytest.approx(1, abs=0.01)


@every_domain
def test_simple_loss_draws_sigma_uniformly_in_its_logarithm(color):
    seen = []

    def model(z, sigma):
        seen.append(sigma)
        return z, torch.ones_like(z)

    simple_loss(model, torch.zeros(1000, 3, 1, 1), color, seeded())
    position = torch.log(seen[0] / first_sigma(2)) / math.log(MAX_SIGMA / first_sigma(2))
    expected = (torch.arange(1000) + 0.5) / 1000
    assert position.numpy() == pytest.approx(expected.numpy(), abs=1e-3)


@every_domain
def test_prior_is_the_top_level_of_average_data(color):
    domain = DOMAINS[color]
    top = 600.0 * channels(domain.noise_multipliers, torch.zeros(1))
    prior = p_prior(domain, top)
    assert prior.mean.flatten().tolist() == list(domain.center)
    expected = [
        (600.0 * m) ** 2 + s**2
        for m, s in zip(domain.noise_multipliers, domain.data_std, strict=True)
    ]
    assert prior.variance.flatten().tolist() == pytest.approx(expected)
    # Coding z_T of the centre under it costs next to nothing.
    assert gaussian_kl_bits(prior._replace(variance=top**2), prior).max().item() < 1e-3


# Shares, fixed variance, L_hybrid


@every_domain
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("loss_of", [code_length_loss, simple_loss, hybrid_loss])
@pytest.mark.parametrize("count", [2, 8])
def test_losses_of_shares_add_up(color, variance, loss_of, count):
    x, model = gaussian_images(20.0, color, batch=16).float(), gaussian_model(35.0, color)
    whole = loss_of(model, x, color, seeded(), variance=variance).item()
    shares = (Share(i, count) for i in range(count))
    parts = [loss_of(model, x[s.rows], color, seeded(), s, variance).item() for s in shares]
    assert sum(parts) == pytest.approx(whole, rel=1e-5)
    assert len(set(parts)) == count


@pytest.mark.parametrize("ddpm", [linear_schedule(), cosine_schedule()])
def test_fixed_variances_are_those_of_ddpm(ddpm):
    """Improved DDPM, section 3.1: beta-tilde_t and beta_t, of the chain of x_t."""
    for t in (2, 3, 100, 999):
        s = t - 1
        sigma_s, sigma_t = (
            tensor(HALF_RANGE * np.sqrt((1 - ddpm.abar(k)) / ddpm.abar(k))) for k in (s, t)
        )
        large = gaussian_pixel_variance(sigma_t, tensor(HALF_RANGE))
        _, beta_tilde = ddpm.q_posterior(0.0, 0.0, t)
        scale = ddpm.abar(s) / HALF_RANGE**2  # of variances, from grey levels to x_s
        for v, expected in ((tensor(0.0), beta_tilde), (large, ddpm.beta(t))):
            found = p_reverse(tensor(0.0), v, tensor(0.0), sigma_s, sigma_t).variance
            assert (scale * found).item() == pytest.approx(expected, rel=1e-6)


def fixed_bound(variance, timesteps, s=64.0):
    """Of an image of independent Gaussian pixels as wide as the domain's, by an exact mean."""
    x, model = gaussian_images(s, "rgb", batch=16), gaussian_model(s, "rgb")
    parts = chain_bound_bits(model, x, "rgb", plan(timesteps), seeded(), variance)
    return parts.sum(1).mean().item()


def test_large_fixed_variance_is_right_for_gaussian_pixels():
    learned, large, small = (
        fixed_bound(variance, 24) for variance in ("learned", *VARIANCES[:0:-1])
    )
    assert large == pytest.approx(learned, abs=0.01)
    assert small > large + 0.5


def test_small_fixed_variance_is_as_good_in_many_steps():
    few, many = (fixed_bound("fixed-small", t) - fixed_bound("learned", t) for t in (24, 400))
    assert many < 0.1 and few > 0.5


def test_hybrid_loss_leaves_the_mean_to_l_simple():
    x, fields = gaussian_images(20.0, "ycocg", batch=16).float(), {}

    def model(z, sigma):
        xhat, v = gaussian_model(35.0, "ycocg")(z, sigma)
        fields["xhat"] = xhat.detach().requires_grad_()
        fields["v"] = v.detach().clone().requires_grad_()
        fields["sigma"] = sigma[:, None, None, None] * channels(
            DOMAINS["ycocg"].noise_multipliers, z
        )
        return fields["xhat"], fields["v"]

    code_length_loss(model, x, "ycocg", seeded()).backward()
    of_vlb = fields["v"].grad
    value = hybrid_loss(model, x, "ycocg", seeded())
    value.backward()
    torch.testing.assert_close(fields["v"].grad, HYBRID_WEIGHT * of_vlb)
    # The gradient of the squared error is 2 (xhat - x) / sigma^2, by a weight for each image.
    found = fields["xhat"].grad
    plain = 2 * (fields["xhat"].detach() - x) / fields["sigma"] ** 2 / x.numel()
    weight = found.abs().sum((1, 2, 3)) / plain.abs().sum((1, 2, 3))
    torch.testing.assert_close(found, plain * weight[:, None, None, None], rtol=1e-4, atol=1e-9)
    ends = 2 * int(len(x) * END_SHARES[0])
    assert weight[:ends].tolist() == pytest.approx([1.0] * ends, rel=1e-4)
    assert (weight[ends:].diff() > 0).all()  # drawn more often at low noise, so weighted less
    assert weight.mean().item() == pytest.approx(1, abs=0.05)


def test_bound_of_grey_images_counts_luma_alone():
    x = gaussian_images(20.0, "ycocg", batch=4)
    x[:, 1:] = 0
    model = gaussian_model(20.0, "ycocg")
    grey = chain_bound_bits(model, x, "ycocg", plan(8), seeded(), coded=1)
    colour = chain_bound_bits(model, x, "ycocg", plan(8), seeded())
    assert grey.shape == colour.shape
    ideal = discretized_gaussian_bits(x[:, :1], tensor(127.5), tensor(400.0)).mean().item()
    assert grey.sum(1).mean().item() == pytest.approx(ideal, abs=0.1)
