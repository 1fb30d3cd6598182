"""Colour domains: YCoCg-R is a bijection of integers, and its noise is about isotropic in RGB."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffcodec.diffusion.color import DOMAINS, from_domain, rgb_to_ycocg, to_domain, ycocg_to_rgb

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=5).map(lambda hw: (3, *hw))


def integers(low, high):
    return hnp.arrays(np.int16, SHAPES, elements=st.integers(low, high))


def colours(values):
    """A list of (r, g, b) as an image [3, n, 1]."""
    return np.array(values, dtype=np.int16).T[:, :, None]


CUBE_CORNERS = colours(list(product((0, 255), repeat=3)))
RANDOM_COLOURS = np.random.default_rng(0).integers(0, 256, (3, 1000, 100), dtype=np.int16)


@given(integers(0, 255))
def test_ycocg_r_is_exactly_inverted(rgb):
    assert np.array_equal(ycocg_to_rgb(rgb_to_ycocg(rgb)), rgb)


@given(integers(-1000, 1000))
def test_ycocg_r_is_a_bijection_of_all_integers(ycocg):
    assert np.array_equal(rgb_to_ycocg(ycocg_to_rgb(ycocg)), ycocg)


@given(integers(0, 255))
def test_torch_and_numpy_agree(rgb):
    ycocg = rgb_to_ycocg(torch.from_numpy(rgb))
    assert np.array_equal(ycocg.numpy(), rgb_to_ycocg(rgb))
    assert np.array_equal(ycocg_to_rgb(ycocg).numpy(), rgb)


def test_ycocg_r_closed_form():
    r, g, b = RANDOM_COLOURS
    y, co, cg = rgb_to_ycocg(RANDOM_COLOURS)
    assert np.array_equal(y, (r + 2 * g + b) // 4)
    assert np.array_equal(co, r - b)
    assert np.array_equal(cg, g - (r + b) // 2)


def test_ycocg_r_ranges_are_met_at_the_corners_of_the_cube_and_never_left():
    corners, others = rgb_to_ycocg(CUBE_CORNERS), rgb_to_ycocg(RANDOM_COLOURS)
    for channel, (low, high) in enumerate([(0, 255), (-255, 255), (-255, 255)]):
        assert (corners[channel].min(), corners[channel].max()) == (low, high)
        assert low <= others[channel].min() and others[channel].max() <= high


def test_grey_has_no_chroma():
    grey = colours([(v, v, v) for v in range(256)])
    y, co, cg = rgb_to_ycocg(grey)
    assert np.array_equal(y, grey[0])
    assert not co.any() and not cg.any()


def test_batches_are_transformed_image_by_image():
    batch = RANDOM_COLOURS[:, :6, :6].reshape(3, 3, 6, 2).swapaxes(0, 1)
    for image, transformed in zip(batch, rgb_to_ycocg(batch), strict=True):
        assert np.array_equal(transformed, rgb_to_ycocg(image))


@pytest.mark.parametrize("color", DOMAINS)
def test_domains_are_exactly_inverted(color):
    assert np.array_equal(from_domain(to_domain(RANDOM_COLOURS, color), color), RANDOM_COLOURS)


def test_rgb_domain_is_the_identity():
    assert np.array_equal(to_domain(RANDOM_COLOURS, "rgb"), RANDOM_COLOURS)


@pytest.mark.parametrize("color", DOMAINS)
def test_first_level_is_the_dithered_quantisers_noise(color):
    # The uniform distribution on M consecutive integers has variance (M^2 - 1) / 12.
    domain = DOMAINS[color]
    first_sigma = np.std(np.arange(domain.quantiser_steps(2)[0]))
    for dither, multiplier in zip(domain.quantiser_steps(2), domain.noise_multipliers, strict=True):
        assert first_sigma * multiplier == pytest.approx(np.std(np.arange(dither)))
        assert first_sigma * multiplier == pytest.approx(((dither**2 - 1) / 12) ** 0.5)


def test_first_luma_level_is_half_a_grey_level():
    assert DOMAINS["ycocg"].noise_multipliers == pytest.approx((1, 5**0.5, (8 / 3) ** 0.5))
    assert DOMAINS["rgb"].noise_multipliers == (1, 1, 1)


def test_ycocg_noise_is_about_isotropic_in_rgb():
    # Inverse transform without its floors: r = y - cg/2 + co/2, g = y + cg/2, b = y - cg/2 - co/2.
    inverse = np.array([[1, 0.5, -0.5], [1, 0, 0.5], [1, -0.5, -0.5]])
    variances = np.square(DOMAINS["ycocg"].noise_multipliers)
    covariance = inverse @ np.diag(variances) @ inverse.T
    std = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(std, std)
    assert std.max() / std.min() < 1.35
    assert np.abs(correlation - np.eye(3)).max() < 0.2


def test_domain_centre_is_the_colour_of_mid_grey():
    # 127.5 for every one of r, g, b has luma 127.5 and no chroma.
    assert DOMAINS["rgb"].center == (127.5, 127.5, 127.5)
    assert DOMAINS["ycocg"].center == (127.5, 0.0, 0.0)
