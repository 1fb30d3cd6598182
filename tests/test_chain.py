"""The chain as coding steps: their order, and its distributions against a source that is known."""

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffcodec.arrays import Array, Flags
from diffcodec.coding import bits_back as chain
from diffcodec.coding.ans import Stack
from diffcodec.coding.bits_back import (
    EncodedTile,
    decode_tile,
    encode_tile,
    payload_of,
    seed,
    words_of,
)
from diffcodec.coding.chain import Posterior, Request, TileChain, drive
from diffcodec.coding.codecs import Allowed, Candidates, Codec, GaussianBins, restricted
from diffcodec.coding.levels import make_levels
from diffcodec.coding.steps import Forward, OutOfRangeError, Prior, Remainder, Reverse, coding_steps
from diffcodec.diffusion.bound import PosteriorModel, chain_bound_bits
from diffcodec.diffusion.color import DOMAINS
from diffcodec.diffusion.plan import PLANS, Plan, geometric_plan

every_domain = pytest.mark.parametrize("color", DOMAINS)


def column(values: Any) -> Array:
    return np.array(values, dtype=np.float64)[:, None, None]


# --- a source whose posterior is known: Gaussian around the centre, rounded -----------------------

SPREAD = 20.0


def gaussian_image(color: str, shape: tuple[int, int], spread: float = SPREAD) -> Array:
    noise = np.random.default_rng(5).normal(0, spread, (3, *shape))
    return np.rint(column(DOMAINS[color].center) + noise)


def posterior(color: str, z: Array, sigma: float) -> Posterior:
    """Of x ~ N(centre, SPREAD^2), rounded, given z_t: exact."""
    domain = DOMAINS[color]
    centre = column(domain.center)
    noise = (sigma * column(domain.noise_multipliers)) ** 2
    variance = SPREAD**2 + 1 / 12  # rounding to integers adds a twelfth
    weight = variance / (variance + noise)
    return Posterior(centre + weight * (z - centre), np.full(z.shape, weight * noise))


def torch_posterior(color: str) -> PosteriorModel:
    """The same for the bound."""

    def model(z: torch.Tensor, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        each = [posterior(color, image, float(sigma[0])) for image in z.numpy()]
        means, variances = (np.stack(parts) for parts in list(zip(*each, strict=True))[:2])
        return torch.from_numpy(means), torch.from_numpy(variances)

    return model


class Toy(NamedTuple):
    """A tile of the known source, to be coded by the model that knows it."""

    color: str
    plan: Plan
    shape: tuple[int, int]
    tile: int = 0
    coded: int = 3
    allowed: Allowed | None = None

    def chain(self) -> TileChain:
        domain = DOMAINS[self.color]
        tile = (self.plan, domain, self.tile, self.coded, self.shape)
        return TileChain(*tile, allowed=self.allowed)

    def model(self, request: Request) -> Posterior:
        return posterior(self.color, request.z, self.plan.levels[request.timestep - 1])

    def encode(self, x: Array) -> EncodedTile:
        result: EncodedTile = drive(encode_tile(self.chain(), x), self.model)
        return result

    def decode(self, words: Any, timestep: int = 0) -> Array:
        job = decode_tile(self.chain(), words, timestep)
        result: Array = drive(job, self.model)
        return result


# --- the steps ------------------------------------------------------------------------------------


def test_steps_are_in_the_order_of_bit_swap():
    assert coding_steps(3) == [
        Remainder(),  # x given z_1
        Forward(2),  # z_2 given z_1
        Reverse(1),  # z_1 given z_2
        Forward(3),  # z_3 given z_2
        Reverse(2),  # z_2 given z_3
        Prior(3),  # z_3
    ]


@given(st.integers(2, 40))
def test_every_variable_is_pushed_once_and_popped_once_but_for_the_image_and_the_first(timesteps):
    steps = coding_steps(timesteps)
    assert sorted(s.timestep for s in steps if s.pushes) == list(range(timesteps + 1))
    assert [s.timestep for s in steps if not s.pushes] == list(range(2, timesteps + 1))


# --- the codecs -----------------------------------------------------------------------------------


def check_codec(codec: Codec, values: Array, rng: np.random.Generator) -> None:
    """Push and pop are inverse to each other, whichever comes first, on any stack."""
    words = rng.integers(1, 2**32, 5000, dtype=np.uint32)
    stack = Stack(words)
    assert codec.push(stack, values)
    assert np.array_equal(codec.pop(stack), values)
    assert np.array_equal(stack.words(), words)
    drawn = codec.pop(stack)
    assert drawn.shape == values.shape
    assert codec.push(stack, drawn)
    assert np.array_equal(stack.words(), words)


@given(st.data())
def test_codecs_are_inverted(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    shape = data.draw(st.sampled_from([(3, 4, 5), (1, 7, 7), (11,), (0,)]))
    lowest = rng.integers(-300, 300, shape).astype(np.float64)
    spacing, offset = rng.uniform(0.1, 30, (2, *shape))
    table = rng.dirichlet(np.ones(4), lowest.size)
    check_codec(Candidates(lowest, table), lowest + rng.integers(0, 4, shape), rng)
    mean, std = rng.normal(0, 300, shape), spacing * rng.uniform(0.25, 9, shape)
    values = spacing * np.rint((mean - offset) / spacing + rng.normal(size=shape)) + offset
    check_codec(GaussianBins(mean, std, spacing, offset, radius=100), values, rng)


@given(st.integers(1, 30), st.integers(0, 2**32))
def test_what_can_occur_has_the_share_of_its_product(every, seed):
    """Against the sum over all candidates of a pixel."""
    rng = np.random.default_rng(seed)
    counts, lowest = (2, 4, 3), rng.integers(0, 99, (3, 1, 5)).astype(np.float64)
    tables = [rng.dirichlet(np.ones(m), 5) for m in counts]
    picked = [rng.integers(0, m, (1, 5)) for m in counts]
    x = lowest + np.stack(picked)
    allowed = some_colors(every, x)
    ones, joint = np.ones(5), {}
    for ks in np.ndindex(counts):
        p = math.prod(table[:, k] for table, k in zip(tables, ks, strict=True))
        joint[ks] = p * allowed(lowest + column(ks)).ravel()
    expected = [joint[tuple(k[0, i] for k in picked)][i] for i in range(5)] / sum(joint.values())
    for c in reversed(range(3)):
        weights = restricted(tables[: c + 1], lowest, x, allowed)
        ones *= weights[range(5), picked[c][0]] / weights.sum(1)
    assert ones == pytest.approx(expected, rel=1e-12)


def test_where_nothing_can_occur_the_table_stays():
    tables, x = [np.full((4, m), 1 / m) for m in (2, 4, 3)], np.zeros((3, 2, 2))
    for c in range(3):
        nothing = restricted(tables[: c + 1], x, x, lambda x: np.zeros((2, 2), bool))
        assert np.array_equal(nothing, tables[c])


def test_colors_that_cannot_occur_are_not_paid_for():
    """Of multiples of 4 no two are candidates: nothing of luma remains to be told."""
    toy = Toy("ycocg", geometric_plan(12), (64, 64), coded=1)
    x = np.rint(gaussian_image("ycocg", toy.shape) / 4) * 4
    x[1:] = 0
    fours = toy._replace(allowed=lambda x: x[0] % 4 == 0)
    plain, coded = toy.encode(x), fours.encode(x)
    assert np.array_equal(fours.decode(coded.words), x)
    first = 32 * (plain.heights[0] - coded.heights[0]) / x[0].size  # of the remainder
    assert first == pytest.approx(1, abs=0.02)
    assert len(coded.words) < len(plain.words)


def test_a_value_out_of_reach_has_no_code():
    one, stack = np.ones(1), Stack(np.ones(9, np.uint32))
    assert not GaussianBins(one, one, one, one, radius=5).push(stack, 7 * one)
    assert np.array_equal(stack.words(), np.ones(9))


# --- the levels -----------------------------------------------------------------------------------


@every_domain
@pytest.mark.parametrize("plan", [geometric_plan(24), Plan((0.5, 1.0, 30.0), (4.0, 0.01))])
def test_draw_and_lattice_add_up_to_the_noise_of_the_level(color, plan):
    domain = DOMAINS[color]
    levels = make_levels(plan, domain)
    assert len(levels) == len(plan.levels)
    multipliers = column(domain.noise_multipliers)
    for t in range(1, len(levels)):
        tau = (plan.levels[t] ** 2 - plan.levels[t - 1] ** 2) * multipliers**2
        level = levels[t]
        assert level.draw_std**2 + level.spacing**2 / 12 == pytest.approx(tau, rel=1e-12)
        assert level.spacing / level.draw_std == pytest.approx(plan.lattice_ratios[t - 1])
        assert level.sigma == pytest.approx(plan.levels[t] * multipliers)


@every_domain
def test_the_first_level_is_the_dithered_quantiser(color):
    domain = DOMAINS[color]
    first = make_levels(geometric_plan(24), domain)[0]
    m = np.array(domain.quantiser_steps(2))
    assert first.spacing.ravel().tolist() == m.tolist()
    assert first.sigma.ravel() == pytest.approx(np.sqrt((m**2 - 1) / 12))
    x = gaussian_image(color, (40, 40))
    chain = Toy(color, geometric_plan(24), (40, 40)).chain()
    chain.set_image(x)
    noise = chain.z[1] - x
    assert noise.std((1, 2)) == pytest.approx(first.sigma.ravel(), rel=0.03)
    assert np.abs(noise).max((1, 2)).tolist() == ((m - 1) / 2).tolist()
    lattice = (chain.z[1] - chain.first_offset) / first.spacing
    assert np.array_equal(lattice, np.rint(lattice))


# --- the distributions ----------------------------------------------------------------------------


class Keeping(dict):
    """Forgets nothing."""

    def __delitem__(self, key):
        pass


def keeping(chain):
    """The chain, which then keeps all its variables."""
    chain.z = Keeping(chain.z)
    return chain


def deviations_of(chain, model):
    """How far a coded chain's variables lie from their means, in standard deviations, by step."""
    found = {}
    for step in coding_steps(len(chain.levels), chain.preview)[1:]:
        part = slice(0, chain.coded)
        codec = drive(step.codec(chain, part), model)
        # The coded distribution is the Gaussian over a bin: the bin's width widens it.
        width = codec.spacing if step.pushes else 0
        total = np.sqrt(codec.std**2 + width**2 / 12)
        found[step] = (chain.z[step.timestep][part] - codec.mean) / total
    return found


LATTICE = 1.5  # fine enough that a mean may lie anywhere between two points of a lattice. Coarse
# ones share points with the lattice below, so that their draws have up to 3 % less noise.


def deviations(color):
    """Of a tile large enough for statistics, coded in 24 timesteps."""
    toy = Toy(color, Plan(geometric_plan(24).levels, (LATTICE,) * 23), (128, 128))
    chain = keeping(toy.chain())
    drive(encode_tile(chain, gaussian_image(color, toy.shape)), toy.model)
    return deviations_of(chain, toy.model)


@every_domain
def test_reverse_transitions_are_calibrated_on_every_level(color):
    reverse = {s.timestep: d for s, d in deviations(color).items() if isinstance(s, Reverse)}
    assert sorted(reverse) == list(range(1, 24))
    means = {t: d.mean() for t, d in reverse.items()}
    stds = {t: d.std() for t, d in reverse.items()}
    assert means == pytest.approx(dict.fromkeys(reverse, 0), abs=0.02)
    assert stds == pytest.approx(dict.fromkeys(reverse, 1), abs=0.02)


@every_domain
def test_draws_have_the_noise_of_their_level(color):
    for step, d in deviations(color).items():
        if isinstance(step, Forward):
            assert d.mean() == pytest.approx(0, abs=0.02), step
            assert d.std() == pytest.approx(math.sqrt(1 + LATTICE**2 / 12), abs=0.02), step
        elif isinstance(step, Prior):
            assert d.std() == pytest.approx(1, abs=0.02)


# --- files ----------------------------------------------------------------------------------------


@every_domain
def test_a_file_is_as_long_as_the_bound_says(color):
    toy = Toy(color, geometric_plan(24), (128, 128))
    x = gaussian_image(color, toy.shape)
    coded = toy.encode(x)
    assert np.array_equal(toy.decode(coded.words), x)
    batch, generator = torch.from_numpy(x)[None], torch.Generator().manual_seed(0)
    bound = chain_bound_bits(torch_posterior(color), batch, color, toy.plan, generator)
    bits = 32 * len(coded.words) / x.size
    assert bound.sum().item() < bits < 1.01 * bound.sum().item()
    entropy = math.log2(SPREAD * math.sqrt(2 * math.pi * math.e))
    assert entropy < bits < 1.03 * entropy
    assert 32 * coded.seed_words / x.size < 0.01  # the dip


@every_domain
@pytest.mark.parametrize("effort", PLANS)
def test_shipped_plans_reach_their_bounds_without_a_dip(color, effort):
    toy = Toy(color, PLANS[effort], (128, 128))
    x = gaussian_image(color, toy.shape)
    coded = toy.encode(x)
    batch, generator = torch.from_numpy(x)[None], torch.Generator().manual_seed(0)
    bound = chain_bound_bits(torch_posterior(color), batch, color, toy.plan, generator)
    bits = 32 * len(coded.words) / x.size
    assert bits < bound.sum().item() + 0.02
    assert 32 * coded.seed_words / x.size < 0.01


@st.composite
def toys(draw):
    """A small tile of any kind, and its image."""
    color = draw(st.sampled_from(sorted(DOMAINS)))
    levels = sorted(draw(st.sets(st.integers(9, 5000), min_size=1, max_size=5)))
    lattices = draw(st.lists(st.floats(0.5, 5), min_size=len(levels), max_size=len(levels)))
    plan = Plan((0.5, *(s / 8 for s in levels)), tuple(lattices))
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    coded = draw(st.sampled_from([1, 3])) if color == "ycocg" else 3
    x = gaussian_image(color, shape, draw(st.sampled_from([0.0, 1.0, 20.0, 100.0])))
    x[coded:] = 0
    allowed = some_colors(draw(st.integers(1, 30)), x) if draw(st.booleans()) else None
    return Toy(color, plan, shape, draw(st.integers(0, 70_000)), coded, allowed), x


def some_colors(every: int, x: Array) -> Allowed:
    """A set of about so manieth of all colours, and those of an image."""

    def number(values: Array) -> Array:
        return values[0] + 2.0**16 * values[1] + 2.0**32 * values[2]

    inside = number(x)

    def allowed(values: Array) -> Flags:
        some = (37 * values[0] + 59 * values[1] + 83 * values[2]) % every == 0
        return some | np.isin(number(values), inside)

    return allowed


@given(toys())
def test_every_step_of_a_chain_is_inverted(toy_and_image):
    toy, x = toy_and_image
    chain, rng = keeping(toy.chain()), np.random.default_rng(0)
    drive(encode_tile(chain, x), toy.model)
    for step in coding_steps(len(chain.levels)):
        for part in step.parts(chain):
            codec = drive(step.codec(chain, part), toy.model)
            check_codec(codec, chain.z[step.timestep][part], rng)


def asked(requests):
    return [(r.timestep, r.z.tobytes()) for r in requests]


@given(toys())
def test_the_decoder_asks_what_the_encoder_asked_in_the_opposite_order(toy_and_image):
    toy, x = toy_and_image
    up, down = [], []

    def model(request, seen):
        seen.append(Request(request.z.copy(), request.timestep))
        return toy.model(request)

    coded = drive(encode_tile(toy.chain(), x), lambda r: model(r, up))
    job = decode_tile(toy.chain(), coded.words)
    assert np.array_equal(drive(job, lambda r: model(r, down)), x)
    assert asked(up) == asked(reversed(down))
    assert [r.timestep for r in up] == list(range(1, len(toy.plan.levels) + 1))
    # Any timestep on the way down is the model's answer to the same question.
    for timestep in range(1, len(toy.plan.levels) + 1):
        preview = toy.decode(coded.words, timestep)
        expected = toy.model(up[timestep - 1]).mean
        assert np.array_equal(preview[: toy.coded], expected[: toy.coded])
        assert (preview[toy.coded :] == 0).all()


@given(toys())
def test_marks_rise_to_the_end_of_the_file(toy_and_image):
    toy, x = toy_and_image
    coded = toy.encode(x)
    assert len(coded.marks) == len(toy.plan.levels)
    assert list(coded.marks) == sorted(coded.marks)
    assert coded.marks[0] > 0 and coded.marks[-1] <= len(coded.words)
    assert len(coded.heights) == len(coding_steps(len(toy.plan.levels)))
    for timestep, mark in zip(range(len(coded.marks), 0, -1), coded.marks, strict=True):
        whole = toy.decode(coded.words, timestep)
        assert np.array_equal(toy.decode(coded.words[:mark], timestep), whole)


def test_a_grey_image_leaves_chroma_zero_and_costs_luma_alone():
    color = Toy("ycocg", geometric_plan(12), (64, 64))
    x = gaussian_image("ycocg", color.shape)
    x[1:] = 0
    grey = color._replace(coded=1)
    coded = grey.encode(x)
    assert np.array_equal(grey.decode(coded.words), x)
    entropy = math.log2(SPREAD * math.sqrt(2 * math.pi * math.e))
    assert 32 * len(coded.words) / x[0].size == pytest.approx(entropy, rel=0.03)


def test_known_chroma_has_the_noise_of_every_level():
    toy = Toy("ycocg", geometric_plan(12), (200, 200), coded=1)
    chain = toy.chain()
    assert (chain.known_channels(0) == 0).all()
    for t, sigma in enumerate(toy.plan.levels, 1):
        noise = chain.known_channels(t)
        expected = sigma * np.array(DOMAINS["ycocg"].noise_multipliers[1:])
        assert noise.shape == (2, 200, 200)
        assert noise.std((1, 2)) == pytest.approx(expected, rel=0.02)
        assert noise.mean((1, 2)) / expected == pytest.approx(0, abs=0.02)
    # On the first level it is what the quantiser makes of zero.
    whole = toy._replace(coded=3).chain()
    whole.set_image(np.zeros((3, 200, 200)))
    assert np.array_equal(chain.known_channels(1), whole.z[1][1:])


def test_tiles_and_encoders_agree_and_tiles_differ():
    toy = Toy("ycocg", geometric_plan(8), (12, 12))
    x = gaussian_image("ycocg", toy.shape)
    first = toy.encode(x)
    assert np.array_equal(toy.encode(x).words, first.words)
    assert not np.array_equal(toy._replace(tile=1).encode(x).words[:4], first.words[:4])


def test_a_deeper_seed_only_adds_words_below():
    assert np.array_equal(seed(3, 50)[-20:], seed(3, 20))
    assert all(seed(tile, 5)[-1] % 2 == 1 for tile in range(20))  # so never zero
    assert not np.array_equal(seed(4, 20), seed(3, 20))


# --- what does not decode -------------------------------------------------------------------------

SMALL = Toy("ycocg", geometric_plan(6), (6, 6))


@pytest.fixture(scope="module")
def small() -> EncodedTile:
    return SMALL.encode(gaussian_image("ycocg", (6, 6)))


def test_every_wrong_bit_is_found(small):
    for i in range(len(small.words)):
        for bit in (0, 1, 31):
            words = small.words.copy()
            words[i] ^= np.uint32(1 << bit)
            if words[0] == 0:
                continue
            with pytest.raises((ValueError, OutOfRangeError)):
                SMALL.decode(words)


def test_missing_and_additional_words_are_found(small):
    for words in (small.words[:-1], small.words[1:], np.append(small.words, np.uint32(1))):
        with pytest.raises((ValueError, OutOfRangeError)):
            SMALL.decode(words)


def test_a_seed_that_is_too_deep_is_found(small, monkeypatch):
    monkeypatch.setattr(chain, "most_seed_words", lambda chain: small.seed_words - 1)
    with pytest.raises(ValueError, match=f"{small.seed_words} words of the seed, expected 1 to"):
        SMALL.decode(small.words)


@given(toys(), st.integers(0, 2**32 - 1))
def test_the_seed_carries_a_checksum(toy_and_image, checksum):
    toy, x = toy_and_image
    coded = drive(encode_tile(toy.chain(), x, checksum=checksum), toy.model)
    found = decode_tile(toy.chain(), coded.words, checksum=lambda _: checksum)
    assert np.array_equal(drive(found, toy.model), x)
    with pytest.raises(ValueError, match="checksum"):
        other = decode_tile(toy.chain(), coded.words, checksum=lambda _: checksum ^ 1)
        drive(other, toy.model)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4).filter(lambda w: w[0] > 0))
def test_a_payload_has_no_zero_on_top(words):
    payload = payload_of(np.array(words, np.uint32))
    assert words_of(payload).tolist() == words
    assert len(payload) == 4 * len(words) - 4 + -(-words[0].bit_length() // 8)
    if len(payload) % 4:
        with pytest.raises(ValueError, match="zero byte on top"):
            first = len(payload) % 4
            words_of(payload[:first] + b"\0" + payload[first:])


def test_another_tile_is_found(small):
    with pytest.raises((ValueError, OutOfRangeError)):
        SMALL._replace(tile=1).decode(small.words)


def test_a_model_that_is_far_off_has_no_code():
    def far(request):
        return Posterior(request.z + 1e5, np.full(request.z.shape, 0.01))

    with pytest.raises(OutOfRangeError, match="timestep 1"):
        drive(encode_tile(SMALL.chain(), gaussian_image("ycocg", (6, 6))), far)


def test_a_dip_deeper_than_the_seed_has_no_code(monkeypatch):
    toy = SMALL._replace(plan=Plan((0.5, 300.0), (0.5,)), shape=(30, 30))
    x = gaussian_image("ycocg", toy.shape)
    deepest = toy.encode(x).seed_words
    assert deepest > 50  # three bits are popped and one or two were there
    monkeypatch.setattr(chain, "most_seed_words", lambda chain: deepest)
    with pytest.raises(OutOfRangeError, match="the seed is used up"):
        toy.encode(x)
    monkeypatch.setattr(chain, "most_seed_words", lambda chain: deepest + 1)
    coded = toy.encode(x)
    assert coded.seed_words == deepest
    assert np.array_equal(toy.decode(coded.words), x)
