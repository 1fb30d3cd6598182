"""Every schedule is a list of noise levels in grey levels; DDPM's and Improved DDPM's are two."""

import math

import numpy as np
import pytest
from ddpm import HALF_RANGE, cosine_schedule, linear_schedule
from hypothesis import given
from hypothesis import strategies as st

from diffcodec.diffusion.schedule import (
    cosine,
    explicit,
    geometric,
    linear,
    sigma_from_alphas_cumprod,
)

SCHEDULES = [(linear_schedule(), linear()), (cosine_schedule(), cosine())]


def alphas_cumprod(sigma):
    return HALF_RANGE**2 / (HALF_RANGE**2 + sigma**2)


@pytest.mark.parametrize(("ddpm", "levels"), SCHEDULES, ids=["linear", "cosine"])
def test_levels_are_noise_to_signal_of_ddpm_marginal(ddpm, levels):
    # eq. 4: x_t / sqrt(abar) = x_0 + noise of this standard deviation, in units of 127.5
    for t in range(1, ddpm.timesteps + 1):
        signal, variance = ddpm.q_marginal(1.0, t)
        assert levels[t - 1] == pytest.approx(HALF_RANGE * math.sqrt(variance) / signal, rel=1e-9)


@pytest.mark.parametrize(("ddpm", "levels"), SCHEDULES, ids=["linear", "cosine"])
def test_level_increments_are_ddpm_forward_steps(ddpm, levels):
    # q(z_t | z_s) = N(z_s, sigma_t^2 - sigma_s^2) against eq. 2 scaled by sqrt(abar_t)
    increments = np.diff(levels**2, prepend=0.0)
    for t in range(1, ddpm.timesteps + 1):
        _, beta = ddpm.q_step(0.0, t)
        assert increments[t - 1] == pytest.approx(HALF_RANGE**2 * beta / ddpm.abar(t), rel=1e-7)


def test_linear_schedule_ends_at_its_published_signal():
    abar = alphas_cumprod(linear())
    assert abar[0] == pytest.approx(1 - 1e-4)
    assert abar[-1] == pytest.approx(4.0358e-5, rel=1e-4)
    # Section 4: L_T is about 1e-5 bits per dimension. Here for pixels uniform on -1..1.
    second_moment = 1 / 3
    nats = 0.5 * (abar[-1] * second_moment - abar[-1] - math.log1p(-abar[-1]))
    assert nats / math.log(2) == pytest.approx(1e-5, rel=0.05)


def test_cosine_schedule_follows_its_closed_form_until_beta_is_clipped():
    abar = alphas_cumprod(cosine(1000))
    t = np.arange(1, 1001)
    f = np.cos((t / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    closed_form = f / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    assert abar[:-1] == pytest.approx(closed_form[:-1], rel=1e-9)
    assert 1 - abar[-1] / abar[-2] == pytest.approx(0.999)


def test_cosine_schedule_starts_slightly_under_one_grey_level():
    # Section 3.2: s was chosen so that sqrt(beta_1) is slightly smaller than the pixel bin 1/127.5.
    assert 0.5 < cosine(1000)[0] < 1


@pytest.mark.parametrize("timesteps", [2, 24, 1000])
def test_geometric_levels_have_one_ratio(timesteps):
    levels = geometric(timesteps, 0.5, 800.0)
    assert len(levels) == timesteps
    assert levels[0] == pytest.approx(0.5) and levels[-1] == pytest.approx(800.0)
    assert levels[1:] / levels[:-1] == pytest.approx(1600 ** (1 / (timesteps - 1)))


@given(st.lists(st.floats(0.01, 0.99), min_size=1, max_size=20, unique=True))
def test_sigma_from_alphas_cumprod_inverts_and_increases(values):
    abar = np.array(sorted(values, reverse=True))
    sigma = sigma_from_alphas_cumprod(abar)
    assert alphas_cumprod(sigma) == pytest.approx(abar)
    assert np.all(np.diff(sigma) >= 0)


@given(st.lists(st.floats(1e-3, 1e4), min_size=1, unique=True))
def test_explicit_schedule_is_any_increasing_list(values):
    levels = sorted(values)
    assert explicit(levels).tolist() == levels


@pytest.mark.parametrize(
    "levels",
    [
        [],
        [0.0, 1.0],
        [-1.0, 1.0],
        [1.0, 1.0],
        [2.0, 1.0],
        [1.0, math.nan],
        [1.0, math.inf],
        [[1.0], [2.0]],
    ],
    ids=str,
)
def test_explicit_schedule_refuses_what_is_not_increasing_noise(levels):
    with pytest.raises(ValueError, match="noise levels must be"):
        explicit(levels)


def test_every_named_schedule_is_a_valid_explicit_one():
    for levels in (linear(), cosine(), geometric(24)):
        assert np.array_equal(explicit(levels.tolist()), levels)
