"""The stack of bits and the shared randomness: inverses, exact words, and what they refuse."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_ndtr, ndtr
from scipy.stats import kurtosis, norm

import diffcodec
from diffcodec.coding.ans import _LOWER_TAIL, Stack, lower_tail, truncated_gaussian
from diffcodec.coding.randomness import (
    CHROMA,
    DITHER,
    SEED_WORDS,
    approximate_normals,
    dither,
    random_words,
)

RADIUS = 16


def stack(count=400):
    return Stack(random_words(SEED_WORDS, 0, count) | 1)


def array(*values):
    return np.array(values, dtype=np.float64)


# --- the stack ------------------------------------------------------------------------------------


@st.composite
def operations(draw):
    """(name, push, parameters, seed) of a few operations on up to 20 symbols each."""
    kind, push = draw(st.sampled_from(["gaussian", "categorical"])), draw(st.booleans())
    count, seed = draw(st.integers(0, 20)), draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    if kind == "gaussian":
        mean = rng.normal(0, 10.0 ** draw(st.integers(-2, 6)), count)
        std = 10.0 ** rng.uniform(-6, 4, count)
        symbols = np.rint(mean) + rng.integers(-RADIUS, RADIUS + 1, count)
        return kind, push, (mean, std), symbols
    size = draw(st.integers(2, 5))
    table = rng.dirichlet(np.full(size, 0.1), count)
    return kind, push, (table,), rng.integers(0, size, count).astype(np.int32)


def pushed(coder, kind, parameters, symbols):
    if kind == "gaussian":
        assert coder.push_gaussian(symbols, *parameters, RADIUS)
    else:
        coder.push_categorical(symbols, *parameters)


def popped(coder, kind, parameters):
    if kind == "gaussian":
        return coder.pop_gaussian(*parameters, RADIUS)
    return coder.pop_categorical(*parameters)


@given(st.lists(operations(), max_size=8))
def test_operations_are_undone_by_their_inverses_in_reverse_order(todo):
    coder = stack()
    before = coder.words()
    done = []
    for kind, push, parameters, symbols in todo:
        if push:
            pushed(coder, kind, parameters, symbols)
        done.append(symbols if push else popped(coder, kind, parameters))
    for (kind, push, parameters, _), symbols in zip(reversed(todo), reversed(done), strict=True):
        if push:
            assert np.array_equal(popped(coder, kind, parameters), symbols)
        else:
            pushed(coder, kind, parameters, symbols)
    assert np.array_equal(coder.words(), before)


def test_a_stack_of_its_words_goes_on_as_the_first():
    first = stack()
    first.push_gaussian(array(3, -1), array(2.2, 0.4), array(1, 2), RADIUS)
    second = Stack(first.words())
    assert second.height == first.height == len(first.words())
    for coder in (first, second):
        assert coder.pop_gaussian(array(2.2, 0.4), array(1, 2), RADIUS).tolist() == [3, -1]
    assert np.array_equal(first.words(), stack().words())


def test_exact_words():
    """Every file hangs on these: a change of them is a change of the format."""
    coder = Stack(np.array([1, 2, 3, 4, 0x89ABCDEF], dtype=np.uint32))
    mean, std = array(0.3, 0.5, 1.5, 100.25, 0), array(1, 0.01, 9, 7, 50)
    assert coder.push_gaussian(array(0, 1, -7, 120, 1999), mean, std, 2000)
    assert coder.words().tolist() == [1, 2, 3, 4, 0xEFFFFFFE, 0x3244377E, 0x179]
    symbols = coder.pop_gaussian(array(-3.25, 0.75, 40.5), array(0.3, 4, 1.5), 16)
    assert symbols.tolist() == [-3, -5, 38]
    assert coder.words().tolist() == [1, 2, 3, 4, 0xEFFFFFFE, 0xBA3748E4]
    table = np.array([[0.25, 0.75, 0], [0.1, 0.2, 0.7], [1e-18, 1 - 1e-12, 1e-12]])
    coder.push_categorical(np.array([1, 0, 2], dtype=np.int32), table)
    assert coder.words().tolist() == [1, 2, 3, 4, 0xEFFFFFFE, 0xB8C1F7BC, 0x4D97083]
    assert coder.pop_categorical(table[[1, 1, 0, 0]]).tolist() == [2, 2, 1, 0]
    assert coder.words().tolist() == [1, 2, 3, 4, 0xEFFFFFFE, 0x69C34E85, 0x720EA7]


def test_symbols_cost_what_their_distribution_says():
    rng = np.random.default_rng(0)
    mean, std = rng.normal(0, 50, 20_000), rng.uniform(0.2, 8, 20_000)
    symbols = np.rint(rng.normal(mean, std))
    mass = norm.cdf(symbols + 0.5, mean, std) - norm.cdf(symbols - 0.5, mean, std)
    coder = stack(10)
    assert coder.push_gaussian(symbols, mean, std, 2000)
    assert 32 * (coder.height - 10) == pytest.approx(-np.log2(mass).sum(), rel=1e-3)

    table = rng.dirichlet([1, 2, 3], 20_000)
    symbols = (rng.random((20_000, 1)) > np.cumsum(table, 1)).sum(1).astype(np.int32)
    before = coder.height
    coder.push_categorical(symbols, table)
    bits = -np.log2(table[np.arange(20_000), symbols]).sum()
    assert 32 * (coder.height - before) == pytest.approx(bits, rel=1e-3)


def test_random_words_pop_as_samples_of_the_distribution():
    mean, std = np.linspace(-3, 3, 20_000), np.full(20_000, 1.7)
    normalised = (stack(20_000).pop_gaussian(mean, std, RADIUS) - mean) / math.sqrt(1.7**2 + 1 / 12)
    assert normalised.mean() == pytest.approx(0, abs=0.02)
    assert normalised.std() == pytest.approx(1, abs=0.02)
    table = np.tile([0.2, 0.5, 0.3], (20_000, 1))
    counts = np.bincount(stack(20_000).pop_categorical(table), minlength=3)
    assert counts / 20_000 == pytest.approx([0.2, 0.5, 0.3], abs=0.01)


@pytest.mark.parametrize("mean", [-2.5, -0.5, 0.0, 0.5, 1.5, 1.51, 1e6 + 0.25])
def test_the_window_is_around_the_mean_rounded_half_to_even(mean):
    coder = stack()
    before = coder.words()
    for symbol in (round(mean) - RADIUS - 1, round(mean) + RADIUS + 1, math.inf, math.nan):
        symbols = array(round(mean), symbol)
        assert not coder.push_gaussian(symbols, array(mean, mean), array(1, 1), RADIUS)
        assert np.array_equal(coder.words(), before)
    for symbol in (round(mean) - RADIUS, round(mean) + RADIUS):
        assert coder.push_gaussian(array(symbol), array(mean), array(1), RADIUS)
        assert coder.pop_gaussian(array(mean), array(1), RADIUS).tolist() == [symbol]
        assert np.array_equal(coder.words(), before)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        *((0.0, std, "deviation") for std in (0.0, -1.0, 1e-7, 2.0**30, math.inf, math.nan)),
        *((mean, 1.0, "mean") for mean in (math.nan, math.inf, -math.inf, 1e9, -1e9)),
    ],
)
def test_gaussians_that_are_refused(mean, std, message):
    coder = stack()
    before = coder.words()
    means, stds = array(0, mean), array(1, std)
    with pytest.raises(ValueError, match=message):
        coder.push_gaussian(array(0, 0), means, stds, RADIUS)
    with pytest.raises(ValueError, match=message):
        coder.pop_gaussian(means, stds, RADIUS)
    assert np.array_equal(coder.words(), before)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan, math.inf])
def test_tables_that_are_refused(wrong):
    coder = stack()
    table = np.array([[0.5, 0.5], [wrong, 0.5]])
    with pytest.raises(ValueError, match="probability"):
        coder.push_categorical(np.zeros(2, dtype=np.int32), table)
    with pytest.raises(ValueError, match="probability"):
        coder.pop_categorical(table)
    assert np.array_equal(coder.words(), stack().words())


@pytest.mark.parametrize("words", [[], [0], [1, 0]])
def test_a_stack_ends_in_a_word_that_is_not_zero(words):
    with pytest.raises(ValueError, match="not zero"):
        Stack(np.array(words, dtype=np.uint32))


def test_one_module_alone_imports_constriction():
    sources = Path(diffcodec.__file__).parent.rglob("*.py")
    assert [p.name for p in sources if "import constriction" in p.read_text()] == ["ans.py"]


# --- tables ---------------------------------------------------------------------------------------


def test_lower_tail_is_that_of_the_normal_distribution():
    u = np.linspace(0, 9 - 2**-20, 100_003)
    assert lower_tail(u) == pytest.approx(ndtr(-u), rel=1e-4)
    assert (np.diff(lower_tail(u)) < 0).all()
    # Beyond the table, and where the difference of two entries would be zero.
    assert lower_tail(array(9, 40, 1e300)) == pytest.approx(ndtr(-9), rel=1e-4)
    assert lower_tail(array(0)).tolist() == [0.5]


def test_the_table_of_the_tail_does_not_hang_on_the_last_bits_of_a_maths_library():
    exact = np.exp(log_ndtr(-np.arange(len(_LOWER_TAIL)) / 256))
    mantissa, _ = np.frexp(exact)
    distance = np.abs(mantissa * 2.0**30 % 1 - 0.5)  # from a rounding tie
    assert distance.min() > 100 * 2.0**30 * np.finfo(float).eps
    assert pytest.approx(exact, rel=2**-30) == _LOWER_TAIL


def truncated(mean, std, count):
    """From the definition, on the left tail where it keeps its precision."""
    edges = (np.arange(count + 1) - 0.5 - mean) / std
    edges = edges if mean > count / 2 else -edges
    mass = np.abs(np.diff(ndtr(edges)))
    return mass / mass.sum()


@given(st.integers(2, 4), st.floats(0, 1), st.floats(0.3, 100))
def test_truncated_gaussian_is_what_it_says(count, position, std):
    mean = position * count - 0.5
    [row] = truncated_gaussian(array(mean), array(std), count)
    assert row == pytest.approx(truncated(mean, std, count), abs=1.5e-6, rel=0)
    assert row.sum() == pytest.approx(1, abs=1e-15)


@given(
    st.integers(2, 4),
    st.floats(-1e12, 1e12) | st.floats(-10, 10),
    st.floats(1e-6, 1e6) | st.sampled_from([1e-30, 1e-6, 1e9]),
)
def test_truncated_gaussian_is_a_distribution_however_extreme(count, mean, std):
    [row] = truncated_gaussian(array(mean), array(std), count)
    assert (row > 0).all()
    assert row.sum() == pytest.approx(1, abs=1e-15)
    nearest = int(np.clip(np.rint(mean), 0, count - 1))
    assert row[nearest] >= row.max() * (1 - 1e-3)


@given(st.integers(2, 4), st.floats(3, 6.5), st.floats(0.5, 10))
def test_truncated_gaussian_keeps_its_precision_in_both_tails(count, distance, std):
    mean = count - 0.5 + distance * std
    [below] = truncated_gaussian(array(mean), array(std), count)
    [above] = truncated_gaussian(array(count - 1 - mean), array(std), count)
    assert above == pytest.approx(below[::-1], rel=1e-9, abs=0)
    likely = below > 1e-3
    assert below[likely] == pytest.approx(truncated(mean, std, count)[likely], rel=0.01)


@pytest.mark.parametrize("mean", [-10.0, 13.0, -1e6, 1e6])
def test_truncated_gaussian_out_of_reach_of_the_table_is_decided(mean):
    [row] = truncated_gaussian(array(mean), array(1), 4)
    assert row[0 if mean < 0 else 3] > 0.999


@given(st.integers(2, 4), st.floats(-8, 8), st.floats(0.1, 10))
def test_truncated_gaussian_of_the_mirror_image(count, mean, std):
    [row] = truncated_gaussian(array(mean), array(std), count)
    [mirrored] = truncated_gaussian(array(count - 1 - mean), array(std), count)
    assert row == pytest.approx(mirrored[::-1], rel=1e-6, abs=1e-12)


def test_rows_of_a_table_do_not_depend_on_each_other():
    mean, std = np.linspace(-3, 6, 50), np.linspace(0.1, 9, 50)
    table = truncated_gaussian(mean, std, 4)
    for i in range(50):
        assert np.array_equal(table[i], truncated_gaussian(mean[[i]], std[[i]], 4)[0])


# --- randomness -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("purpose", "tile", "level", "words"),
    [
        (SEED_WORDS, 0, 0, [0x756282DF, 0x4DB6A27B, 0xBABE0E2F]),
        (SEED_WORDS, 1, 0, [0x36B49E25, 0x133D1B18, 0x4933275E]),
        (DITHER, 0, 0, [0x753D9316, 0x7D299105, 0xF0916098]),
        (CHROMA, 0, 2, [0x9239FB1E, 0x5C8325E, 0x565ED2D6]),
        (CHROMA, 70_000, 24, [0xCC54A514, 0xEFD04AE5, 0xA3DC4E3D]),
    ],
)
def test_first_words_of_every_stream(purpose, tile, level, words):
    """Every file hangs on these, and on the next."""
    assert random_words(purpose, tile, 3, level).tolist() == words


def test_first_dither_and_normals():
    assert dither(1, (3, 1, 8), (2, 4, 3))[:, 0].tolist() == [
        [1, 1, 0, 1, 0, 0, 0, 1],
        [3, 3, 2, 3, 3, 3, 2, 0],
        [0, 2, 0, 1, 2, 0, 1, 1],
    ]
    assert (approximate_normals(1, 2, (3,)) * 65536).tolist() == [-27910, 85950, 20088]


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 2**32), st.integers(0, 100))
def test_a_longer_request_begins_with_the_shorter_one(short, more, tile, level):
    words = random_words(CHROMA, tile, short + more, level)
    assert words.dtype == np.uint32 and len(words) == short + more
    assert np.array_equal(words[:short], random_words(CHROMA, tile, short, level))


def test_streams_share_nothing():
    keys = [(p, t, v) for p in (SEED_WORDS, DITHER, CHROMA) for t in range(20) for v in range(20)]
    words = np.concatenate([random_words(p, t, 50, v) for p, t, v in keys])
    assert len(np.unique(words)) >= len(words) - 3 * len(words) ** 2 / 2**33
    bits = np.unpackbits(words.view(np.uint8)).mean()
    assert bits == pytest.approx(0.5, abs=0.001)


def test_dither_is_uniform_in_every_channel():
    d = dither(3, (3, 200, 200), (2, 4, 3))
    for c, m in enumerate((2, 4, 3)):
        values, counts = np.unique(d[c], return_counts=True)
        assert values.tolist() == list(range(m))
        assert counts / 40_000 == pytest.approx(1 / m, abs=0.01)
    assert np.array_equal(d, dither(3, (3, 200, 200), (2, 4, 3)))
    assert not np.array_equal(d, dither(4, (3, 200, 200), (2, 4, 3)))
    neighbours = np.corrcoef(d[1, 1:].ravel(), d[1, :-1].ravel())[0, 1]
    assert neighbours == pytest.approx(0, abs=0.02)


def test_approximate_normals_are_about_normal():
    n = approximate_normals(0, 5, (2, 300, 400))
    assert n.shape == (2, 300, 400)
    assert n.mean() == pytest.approx(0, abs=0.01)
    assert n.var() == pytest.approx(1, abs=0.01)
    assert kurtosis(n.ravel(), fisher=False) == pytest.approx(2.9, abs=0.04)  # 3 - 1.2 / 12
    assert np.corrcoef(n[0].ravel(), n[1].ravel())[0, 1] == pytest.approx(0, abs=0.01)
    assert (n * 65536 == np.rint(n * 65536)).all()  # exact arithmetic
