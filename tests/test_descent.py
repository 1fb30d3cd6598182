"""Top-down steps of a tile, and the exact chain below them, for a known source."""

import math

import numpy as np
import pytest
import test_chain
from hypothesis import given
from hypothesis import strategies as st
from test_chain import (
    SPREAD,
    Toy,
    column,
    deviations_of,
    drive,
    every_domain,
    gaussian_image,
    keeping,
)

from diffcodec.coding.bits_back import (
    SeedAllowance,
    SeedSpentError,
    decode_tile,
    encode_tile,
    push_image,
)
from diffcodec.coding.chain import Posterior, Request, TileChain
from diffcodec.coding.steps import OutOfRangeError, Reverse
from diffcodec.coding.top_down import Descent, encode_below_preview, ensemble_mean
from diffcodec.diffusion.color import DOMAINS
from diffcodec.diffusion.plan import PLANS, Plan, geometric_plan

PLAN = PLANS["fast"]  # 10 timesteps, 370 to 0.5
LARGE = (64, 64)


def go_down(toy, x, end):
    """The descent of an encoder, and its bits by timestep."""
    descent = Descent(toy.chain())
    steps = [
        drive(descent.encode_step(x), toy.model) for _ in range(len(toy.plan.levels) + 1 - end)
    ]
    return descent, steps


def noting(model, asked):
    """A model that notes the timesteps it is asked for."""
    return lambda request: asked.append(request.timestep) or model(request)


def packed(steps):
    return np.packbits(np.concatenate(steps)).tobytes()


@st.composite
def small(draw):
    color = draw(st.sampled_from(sorted(DOMAINS)))
    coded = draw(st.sampled_from([1, 3])) if color == "ycocg" else 3
    toy = Toy(
        *(color, geometric_plan(draw(st.integers(2, 5)))),
        shape=draw(st.tuples(st.integers(1, 6), st.integers(1, 6))),
        tile=draw(st.integers(0, 70_000)),
        coded=coded,
    )
    x = gaussian_image(color, toy.shape, draw(st.sampled_from([0.0, 20.0, 100.0])))
    x[coded:] = 0
    return toy, x


@given(small(), st.data())
def test_the_decoder_comes_to_the_same_bits_by_any_layers(toy_and_image, data):
    toy, x = toy_and_image
    levels = len(toy.plan.levels)
    end = data.draw(st.integers(1, levels))
    first = data.draw(st.integers(end, levels))
    descent, steps = go_down(toy, x, end)
    assert descent.timestep == end
    parts = [steps[: levels + 1 - first], steps[levels + 1 - first :]]
    decoder = Descent(toy.chain())
    for stop, part in zip((first, end), parts, strict=True):
        if part:
            drive(decoder.decode_layer(packed(part), stop), toy.model)
    assert decoder.timestep == end
    assert decoder.z.tobytes() == descent.z.tobytes()
    means = [drive(d.mean(), toy.model) for d in (descent, decoder)]
    assert np.array_equal(*means)
    assert (means[0][toy.coded :] == 0).all()


@pytest.mark.parametrize("coded", [1, 3])
def test_noise_in_the_place_of_bits_is_that_of_the_level(coded):
    toy = Toy("ycocg", PLAN, LARGE, coded=coded)
    x = gaussian_image("ycocg", toy.shape)
    x[coded:] = 0
    descent = Descent(toy.chain())
    for timestep, sigma in ((7, PLAN.levels[6]), (3, PLAN.levels[2])):
        descent.arrive_by_noise(x, timestep)
        assert descent.timestep == timestep
        noise = (descent.z - x) / (sigma * column(DOMAINS["ycocg"].noise_multipliers))
        assert noise.mean() == pytest.approx(0, abs=0.04)
        assert noise[:coded].var() == pytest.approx(1, abs=0.05)
        assert np.array_equal(descent.z[coded:], toy.chain().known_channels(timestep))
    assert drive(descent.mean(), toy.model).shape == x.shape


@every_domain
def test_every_level_has_its_noise_at_its_price(color):
    toy = Toy(color, PLAN, LARGE)
    x = gaussian_image(color, toy.shape)
    descent = Descent(toy.chain())
    bits = expected = 0.0
    for sigma in reversed(PLAN.levels[3:]):
        bits += len(drive(descent.encode_step(x), toy.model))
        noise = (descent.z - x) / (sigma * column(DOMAINS[color].noise_multipliers))
        assert noise.mean() == pytest.approx(0, abs=0.04)
        assert noise.var() == pytest.approx(1, abs=0.09)  # the trellis leans to p a little
        signal = x - column(DOMAINS[color].center)
        assert (noise * signal).mean() / signal.std() == pytest.approx(0, abs=0.06)
    # What z_s tells of a Gaussian: 0.5 log2(1 + SPREAD^2 / sigma_s^2).
    for multiplier in DOMAINS[color].noise_multipliers:
        ratio = (SPREAD / (PLAN.levels[3] * multiplier)) ** 2
        expected += 0.5 * math.log2(1 + ratio) * x[0].size
    assert 0.95 * expected < bits < 1.15 * expected


@every_domain
def test_what_is_left_out_saves_more_than_it_would_show(color):
    toy, end = Toy(color, PLAN, LARGE), 7
    sigma = PLAN.levels[end - 1]  # 19, about the spread of the source
    x = gaussian_image(color, toy.shape)
    worth = drive(Descent(toy.chain()).worth_sending(x, end), toy.model)
    center, multipliers = (
        column(getattr(DOMAINS[color], f)) for f in ("center", "noise_multipliers")
    )
    variance, below = SPREAD**2, (PLAN.levels[end - 2] * multipliers) ** 2  # next to 0.4 sigma
    left = center + variance / (variance + below) * (x - center)
    assert np.allclose(worth, left, atol=0.02)
    costs = []
    for sent in (x, worth):
        descent, steps = go_down(toy, sent, end)
        error = (drive(descent.mean(), toy.model) - x) / multipliers
        nats = sum(map(len, steps)) * math.log(2)
        costs.append(np.sum(error**2) + 2 * sigma**2 * nats)  # as much as noise would win by them
    assert costs[1] < 0.97 * costs[0]


def test_down_to_the_last_timestep_all_is_worth_sending():
    toy = Toy("rgb", PLAN, (4, 4))
    x = gaussian_image("rgb", (4, 4))
    assert drive(Descent(toy.chain()).worth_sending(x, 1), toy.model) is x
    asked = next(Descent(toy.chain()).worth_sending(x, 2))
    assert asked.timestep == 1 and asked.z is x


def test_a_grey_image_costs_luma_alone():
    toy = Toy("ycocg", PLAN, LARGE, coded=1)
    x = gaussian_image("ycocg", toy.shape)
    x[1:] = 0
    descent, steps = go_down(toy, x, 4)
    expected = 0.5 * math.log2(1 + (SPREAD / PLAN.levels[3]) ** 2) * x[0].size
    assert sum(map(len, steps)) < 1.15 * expected
    assert np.array_equal(descent.z[1:], toy.chain().known_channels(4))


def test_bits_too_few_or_too_many():
    toy = Toy("ycocg", PLAN, (12, 12))
    _, steps = go_down(toy, gaussian_image("ycocg", toy.shape), 5)
    data = packed(steps)
    for wrong, message in ((data[:-1], "end early"), (data + b"\0", "left over")):
        with pytest.raises(ValueError, match=message):
            drive(Descent(toy.chain()).decode_layer(wrong, 5), toy.model)
    last = np.concatenate([*steps, [1]]).astype(np.uint8)
    if len(last) % 8 != 1:  # a bit that is not the filling
        with pytest.raises(ValueError, match="left over"):
            drive(Descent(toy.chain()).decode_layer(np.packbits(last).tobytes(), 5), toy.model)
    early = Descent(toy.chain())
    drive(early.decode_layer(data, 5, timestep=8), toy.model)
    assert early.timestep == 8


def test_a_claim_of_many_bits_takes_no_memory():
    toy = Toy("ycocg", PLAN, (200, 200))
    stretched = np.packbits([1, 0] + 47 * [1] + [0]).tobytes()  # 2^6 times the expected bits
    with pytest.raises(ValueError, match="end early"):
        drive(Descent(toy.chain()).decode_layer(stretched, 10), toy.model)


def continued(toy, descent, how, seed):
    end = descent.lowest(how)
    while descent.timestep > end:
        drive(descent.go_on(how, seed), toy.model)
    return drive(descent.mean(), toy.model)


def test_reconstructions():
    """Mean: the least error. Flow and sample have the source's spread, perceptual some."""
    toy = Toy("rgb", PLAN, LARGE)
    x = gaussian_image("rgb", toy.shape)
    descent, steps = go_down(toy, x, 7)  # sigma 19, about SPREAD
    shown = {}
    for how, seed in (("mean", 0), ("perceptual", 0), ("flow", 0), ("sample", 0), ("sample", 1)):
        decoder = Descent(toy.chain())
        drive(decoder.decode_layer(packed(steps), 7), toy.model)
        shown[how, seed] = continued(toy, decoder, how, seed)
    errors = {key: float(np.mean((image - x) ** 2)) for key, image in shown.items()}
    spreads = {key: float(image.std()) for key, image in shown.items()}
    assert errors["mean", 0] < errors["perceptual", 0] < errors["flow", 0] < errors["sample", 0]
    assert spreads["mean", 0] < spreads["perceptual", 0] < spreads["flow", 0]
    assert spreads["mean", 0] == pytest.approx(
        SPREAD * math.sqrt(1 - 19**2 / (19**2 + 400)), rel=0.1
    )
    for key in (("flow", 0), ("sample", 0), ("sample", 1)):
        assert spreads[key] == pytest.approx(SPREAD, rel=0.1), key
    assert not np.array_equal(shown["sample", 0], shown["sample", 1])
    again = continued(toy, descent, "sample", 1)
    assert np.array_equal(again, shown["sample", 1])


@pytest.mark.parametrize("timestep", [8, 7, 6, 2, 1])  # noise from 28 to 0.5
@pytest.mark.parametrize("reflection", [(), (-1,), (-2, -1)])
def test_an_ensemble_is_the_mean_of_two_answers(timestep, reflection):
    rng = np.random.default_rng(2)
    z, first, ramp = rng.normal(size=(3, 3, 4, 6))
    asked = []

    def model(request):
        asked.append(request)
        return Posterior(request.z * ramp, request.z)

    steps = ensemble_mean(first, Request(z, timestep, 3), PLAN, reflection)
    shown = drive(steps, model)
    levels = PLAN.levels
    farther = levels[timestep - 1] > 15
    if not (farther or reflection):
        assert shown is first and not asked
        return
    if farther:
        z = first + levels[timestep - 2] / levels[timestep - 1] * (z - first)
    assert [(each.timestep, each.label) for each in asked] == [(timestep - farther, 3)]
    second = np.flip(np.flip(z, reflection) * ramp, reflection)
    assert np.allclose(shown, (first + second) / 2)


# --- the exact chain below a preview --------------------------------------------------------------


def below(toy, preview):
    return TileChain(toy.plan, DOMAINS[toy.color], toy.tile, toy.coded, toy.shape, preview)


def noisy(toy, x, preview):
    sigma = toy.plan.levels[preview - 1] * column(DOMAINS[toy.color].noise_multipliers)
    return x + sigma * np.random.default_rng(8).normal(size=x.shape)


@every_domain
def test_below_a_preview_every_level_has_its_noise_and_is_calibrated(color):
    toy = Toy(color, Plan(PLANS["default"].levels, (1.5,) * 15), (128, 128))
    x = gaussian_image(color, toy.shape)
    chain = keeping(below(toy, 8))
    chain.z[8] = noisy(toy, x, 8)
    drive(encode_tile(chain, x), toy.model)
    multipliers = column(DOMAINS[color].noise_multipliers)
    drawn = {t: chain.z[t] - x for t in range(2, 8)}
    top = (chain.z[8] - x) / multipliers
    for t, noise in drawn.items():
        sigma = toy.plan.levels[t - 1]
        assert (noise / multipliers).std() == pytest.approx(sigma, rel=0.02), t
        # All of its noise is in that of the preview, and in that of each level between.
        assert (noise / multipliers * top).mean() / sigma**2 == pytest.approx(1, abs=0.08 * 8 / t)
        if t > 2:
            shared = (noise * drawn[t - 1] / multipliers**2).mean() / toy.plan.levels[t - 2] ** 2
            assert shared == pytest.approx(1, abs=0.03), t
    found = deviations_of(chain, toy.model)
    reverse = {s.timestep: d for s, d in found.items() if isinstance(s, Reverse)}
    assert sorted(reverse) == list(range(1, 8))
    for t, d in reverse.items():
        assert d.mean() == pytest.approx(0, abs=0.02), t
        assert d.std() == pytest.approx(1, abs=0.025), t


@every_domain
def test_preview_and_rest_cost_little_more_than_the_plain_file(color):
    toy = Toy(color, PLANS["default"], (96, 96))
    x = gaussian_image(color, toy.shape)
    plain = 32 * len(toy.encode(x).words)
    descent = Descent(below(toy, 7))
    bits = sum(len(drive(descent.encode_step(x), toy.model)) for _ in range(10))
    descent.chain.z[7] = descent.z
    rest = drive(encode_tile(descent.chain, x), toy.model)
    assert 32 * rest.seed_words / x.size < 0.02
    assert bits > 0.1 * plain
    # Relative entropy coding costs 7 % of its bits; the bridge gives back what the prior took.
    assert bits + 32 * len(rest.words) - plain < 0.09 * bits


@every_domain
def test_the_bridge_itself_costs_nothing(color):
    toy = Toy(color, PLANS["default"], (96, 96))
    x = gaussian_image(color, toy.shape)
    plain = 32 * len(toy.encode(x).words)
    for preview in (4, 7):
        chain = below(toy, preview)
        chain.z[preview] = noisy(toy, x, preview)
        rest = 32 * len(drive(encode_tile(chain, x), toy.model).words)
        told = sum(
            0.5 * math.log2(1 + (SPREAD / (toy.plan.levels[preview - 1] * m)) ** 2) * x[0].size
            for m in DOMAINS[color].noise_multipliers
        )
        assert abs(rest + told - plain) / x.size < 0.03


@given(small(), st.data())
def test_the_rest_comes_back(toy_and_image, data):
    toy, x = toy_and_image
    preview = data.draw(st.integers(2, len(toy.plan.levels)))
    z = noisy(toy, x, preview)
    z[toy.coded :] = toy.chain().known_channels(preview)
    chains = [below(toy, preview) for _ in range(3)]
    for chain in chains:
        chain.z[preview] = z
    coded = drive(encode_tile(chains[0], x), toy.model)
    decode = decode_tile(chains[1], coded.words)
    assert np.array_equal(drive(decode, toy.model), x)
    timestep = data.draw(st.integers(1, preview - 1))
    shown = drive(decode_tile(chains[2], coded.words, timestep), toy.model)
    assert shown.shape == x.shape


def test_another_preview_does_not_decode():
    toy = Toy("ycocg", PLAN, (8, 8))
    x = gaussian_image("ycocg", toy.shape)
    chain = below(toy, 6)
    chain.z[6] = noisy(toy, x, 6)
    coded = drive(encode_tile(chain, x), toy.model)
    other = below(toy, 6)
    other.z[6] = chain.z[6] + 3
    with pytest.raises((ValueError, OutOfRangeError)):
        drive(decode_tile(other, coded.words), toy.model)


@every_domain
@pytest.mark.parametrize("spread", [0.7, 1.0])
def test_a_smooth_tile_needs_no_seed_below_a_preview(color, spread, monkeypatch):
    monkeypatch.setattr(test_chain, "SPREAD", spread)
    toy = Toy(color, PLANS["default"], (64, 64))
    x = gaussian_image(color, toy.shape, spread)
    alone = toy.encode(x)
    assert 32 * alone.seed_words / x.size > 0.5
    coded = drive(encode_below_preview(toy.chain(), x, alone.heights), toy.model)
    assert 32 * coded.seed_words / x.size < 0.1
    entropy = 0.5 * math.log2(2 * math.pi * math.e * (spread**2 + 1 / 12))
    assert entropy < 8 * coded.size / x.size < entropy + 0.25
    assert coded.size < 0.85 * alone.size

    with pytest.raises(SeedSpentError) as spent:
        drive(encode_tile(toy.chain(), x, SeedAllowance(0.1 * x.size / 32, math.inf)), toy.model)
    heights = spent.value.heights
    assert heights == alone.heights[: len(heights)] and len(heights) < len(alone.heights) / 2
    early = drive(encode_below_preview(toy.chain(), x, heights), toy.model)
    assert (early.preview, early.size) == (coded.preview, coded.size)
    begun, asked = drive(push_image(toy.chain(), x), toy.model), []
    below = encode_below_preview(toy.chain(), x, heights, begun=begun)
    again = drive(below, noting(toy.model, asked))
    assert np.array_equal(again.words, early.words) and 1 not in asked

    descent = Descent(toy.chain())
    drive(descent.decode_layer(coded.preview_payload, coded.preview), toy.model)
    decoding = decode_tile(descent.below(), coded.words)
    assert np.array_equal(drive(decoding, toy.model), x)


@every_domain
def test_a_tile_whose_stack_runs_empty_at_once_is_given_up_at_once(color, monkeypatch):
    monkeypatch.setattr(test_chain, "SPREAD", 0.4)
    toy = Toy(color, PLANS["default"], (64, 64))
    x, asked = gaussian_image(color, toy.shape, 0.4), []
    with pytest.raises(SeedSpentError) as spent:
        drive(encode_tile(toy.chain(), x, SeedAllowance(math.inf, 1)), noting(toy.model, asked))
    assert asked == [1] and len(spent.value.heights) == 2  # of x, and after the pop of z_2
    coded = drive(encode_below_preview(toy.chain(), x, spent.value.heights), toy.model)
    assert coded.preview == 2
