"""Relative entropy coding: what is decoded is what was coded, costs its KL, and looks like q."""

import math
import tracemalloc
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from precisions import LOWERED
from scipy.stats import kstest

from diffcodec.coding.relative_entropy import bits, trellis
from diffcodec.coding.relative_entropy.bits import (
    BitReader,
    BitWriter,
    read_rice_code,
    read_stretch_change,
    rice_code,
    stretch_code,
)
from diffcodec.coding.relative_entropy.layout import UNIT, Key, half_log2, make_layout
from diffcodec.coding.relative_entropy.step import Decoder, Encoder, surprise_bits
from diffcodec.coding.relative_entropy.trellis import (
    Codebook,
    Trellis,
    _noise_table,
    best_path,
    path_branches,
    path_noise,
)

SMALL = Trellis(state_bits=6)  # quick
FROZEN_DATA = "a65cdd6034d9ff18453dbc"
FROZEN_SAMPLE = [-137.54630073909573, -57.016325749969745, -44.89784701726002]
WRITTEN_DATA = "869b1a8fc883479ad6dc"  # today, for the same problem
WRITTEN_SAMPLE = [-140.72879198744408, -56.68268145711992, -48.89641445633841]


def problem(n, bits, seed=0, spread=0.0, surprise=1.0):
    """q_mean, p_mean, Q, W of n dimensions of about so many expected bits."""
    rng = np.random.default_rng(seed)
    variance = np.exp(rng.normal(size=n))
    excess = variance * (4.0 ** (bits * np.exp(spread * rng.normal(size=n))) - 1)
    p_mean = 100 * rng.normal(size=n)
    q_mean = p_mean + np.sqrt(surprise * excess) * rng.normal(size=n)
    return q_mean, p_mean, variance, excess


def kl(q_mean, p_mean, variance, excess):
    total = variance + excess
    surprise = (variance + (q_mean - p_mean) ** 2) / total - 1
    return float((0.5 * np.log2(total / variance) + 0.5 * np.log2(np.e) * surprise).sum())


def encoded(problems, trellis=SMALL, tile=0):
    encoder = Encoder(tile, trellis)
    samples, ends = [], []
    for timestep, arguments in enumerate(problems):
        samples.append(encoder.encode_step(timestep, *arguments))
        ends.append(encoder.writer.count)
    return encoder.writer.to_bytes(), samples, ends


# --- both sides ----------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.integers(0, 60),
            st.sampled_from([0.0, 1e-12, 1e-3, 0.1, 0.9, 1.1, 7.0]),
            st.sampled_from([0.0, 1.0, 30.0]),
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 2**32),
)
def test_any_prefix_of_steps_decodes_to_the_bit(shapes, seed):
    problems = [problem(n, b, seed + i, 0.5, s) for i, (n, b, s) in enumerate(shapes)]
    data, samples, ends = encoded(problems, tile=seed)
    for steps, end in enumerate(ends, 1):
        decoder = Decoder(data[: -(-end // 8)], seed, SMALL)
        for timestep in range(steps):
            z = decoder.decode_step(timestep, *problems[timestep][1:])
            assert z.tobytes() == samples[timestep].tobytes()
        assert decoder.reader.position == end


def test_long_stages_segments_and_blocks(monkeypatch):
    monkeypatch.setattr(trellis, "_BLOCK", 24)
    short = Trellis(state_bits=3, segment=64)
    for arguments in (problem(30000, 0.0001), problem(700, 0.3), problem(20000, 0.0)):
        data, (sample,), _ = encoded([arguments], short)  # rows wrap round 16 branches
        assert np.array_equal(Decoder(data, 0, short).decode_step(0, *arguments[1:]), sample)


def test_the_words_of_a_file_do_not_change():
    # A change of what is frozen is a change of the format; of what is written, one of the encoder.
    arguments = problem(200, 0.3, 1, 0.5)
    trellis = Trellis(state_bits=8)
    sample = Decoder(bytes.fromhex(FROZEN_DATA), 0, trellis).decode_step(0, *arguments[1:])
    assert sample[:3].tolist() == FROZEN_SAMPLE
    data, (sample,), _ = encoded([arguments], trellis)
    assert (data.hex(), sample[:3].tolist()) == (WRITTEN_DATA, WRITTEN_SAMPLE)


def test_keys_matter():
    arguments = problem(300, 0.1)
    data, (sample,), _ = encoded([arguments])
    for tile, timestep in ((1, 0), (0, 1)):
        other = Decoder(data, tile, SMALL).decode_step(timestep, *arguments[1:])
        assert np.abs(np.corrcoef(other - arguments[1], sample - arguments[1])[0, 1]) < 0.2


# --- what a sample is ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "bits", "surprise", "lean"),
    [
        (40000, 0.02, 1, 0.09),
        (8000, 0.1, 1, 0.09),
        (4000, 0.7, 1, 0.09),
        (1200, 2.5, 1, 0.02),
        (2000, 4, 1, 0.002),
        (8000, 0.1, 2.5, 0.09),
    ],
)
def test_samples_are_from_q_at_its_kl(n, bits, surprise, lean):
    arguments = problem(n, bits, 3, 0.5, surprise)
    q_mean, p_mean, variance, _ = arguments
    encoder = Encoder(0, Trellis(state_bits=10))
    error = (encoder.encode_step(7, *arguments) - q_mean) / np.sqrt(variance)
    m = (q_mean - p_mean) / np.sqrt(variance)
    cost = encoder.writer.count / (kl(*arguments) + 3)
    assert 0.95 < cost < (1.2 if bits > 1 else 1.1)
    assert abs((error @ m) / (m @ m)) < lean  # neither leans to p nor overshoots
    assert np.mean(error**2) == pytest.approx(1, abs=0.015 + 4 / np.sqrt(n))
    assert abs(error.mean()) < 4 / np.sqrt(n)
    assert kstest(error, "norm").pvalue > 1e-3
    # White: neighbours don't share noise.
    assert abs(np.mean(error[1:] * error[:-1])) < 4 / np.sqrt(n)


def test_far_dimensions_lean_nowhere():
    q_mean, p_mean, variance, _ = arguments = problem(4000, 3.3, 4)
    error = (Encoder(0, SMALL).encode_step(1, *arguments) - q_mean) / np.sqrt(variance)
    m = (q_mean - p_mean) / np.sqrt(variance)
    assert abs((error @ m) / (m @ m)) < 0.005


def test_more_states_deliver_more():
    arguments = problem(6000, 0.1, 5)
    variance, m = arguments[2], arguments[0] - arguments[1]
    delivered = []
    for state_bits in (3, 6, 10):
        error = Encoder(0, Trellis(state_bits)).encode_step(1, *arguments) - arguments[0]
        delivered.append(1 + (error * m / variance).sum() / (m * m / variance).sum())
    assert delivered[0] + 0.05 < delivered[1] < delivered[2] - 0.02


def test_without_information_the_sample_is_from_p():
    arguments = problem(20000, 0.0)
    data, (sample,), (bits,) = encoded([arguments])
    assert (bits, len(data)) == (1, 1)
    assert kstest((sample - arguments[1]) / np.sqrt(arguments[2]), "norm").pvalue > 1e-3


@pytest.mark.parametrize(("bits", "surprise"), [(2.9, 1), (12, 1), (12, 20)])
def test_single_dimensions_of_many_bits(bits, surprise):
    error, counts = [], []
    for seed in range(100):
        arguments = problem(1, bits, seed, surprise=surprise)
        _, (sample,), (count,) = encoded([arguments], tile=seed)
        error.append((sample - arguments[0])[0] / np.sqrt(arguments[2][0]))
        counts.append(count)
    assert np.mean(counts) < bits + 8
    assert np.mean(np.square(error)) < 2


def test_huge_variance_of_x():
    q_mean, p_mean, variance, _ = problem(20, 1.0)
    excess = variance * 2.0**60
    q_mean = q_mean + np.sqrt(excess)
    data, (sample,), _ = encoded([(q_mean, p_mean, variance, excess)])
    assert np.array_equal(Decoder(data, 0, SMALL).decode_step(0, p_mean, variance, excess), sample)
    assert np.max(np.abs(sample - q_mean) / np.sqrt(variance)) < 5


# --- the parts -----------------------------------------------------------------------------------


def test_best_path_is_the_best():
    rng, key = np.random.default_rng(0), Key(0, 0)
    layout = make_layout(np.full(40, 1 << 22), key, 12)
    codebook = Codebook(key, Trellis(state_bits=3), int(layout.row.max()) + 1)
    m, rho = rng.normal(size=40), rng.uniform(0.3, 0.9, 40)

    def score(path):
        u = path_noise(layout, codebook, path)
        return (u * m / rho - u * u * (1 / rho - 1) / 2).sum()

    paths = (np.arange(1 << 12)[:, None] >> np.arange(12) & 1).astype(np.uint8)
    best = max(score(path) for path in paths)
    found = score(best_path(m, rho, layout, codebook))
    assert found == pytest.approx(best, abs=0.3)  # squares are rounded to an eighth


@pytest.mark.parametrize("within", LOWERED)
def test_the_path_is_the_same_where_float32_may_have_fewer_bits(monkeypatch, within):
    rng, key = np.random.default_rng(0), Key(0, 0)
    layout = make_layout(np.full(6000, 1 << 22), key, 3000)
    codebook = Codebook(key, Trellis(state_bits=8), int(layout.row.max()) + 1)
    m, rho = rng.normal(size=6000), rng.uniform(0.3, 0.9, 6000)
    expected, addmm = best_path(m, rho, layout, codebook), torch.Tensor.addmm_

    def in_8_bits(total, a, b):
        rounded = (x.bfloat16().to(x.dtype) if x.dtype == torch.float32 else x for x in (a, b))
        return addmm(total, *rounded)

    monkeypatch.setattr(trellis, "LEAST_COMPILED", math.inf)
    monkeypatch.setattr(torch.Tensor, "addmm_", in_8_bits)
    assert not np.array_equal(best_path(m, rho, layout, codebook), expected)
    with within():
        found = best_path(m, rho, layout, codebook)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(("dimensions", "stages", "state_bits"), [(600, 2500, 3), (60000, 400, 6)])
def test_compiled_loops_find_the_same_path(monkeypatch, dimensions, stages, state_bits):
    pytest.importorskip("numba", reason="compiles the loops")
    rng, key = np.random.default_rng(0), Key(0, 0)
    layout = make_layout(rng.integers(1 << 20, 1 << 23, dimensions), key, stages)
    codebook = Codebook(key, Trellis(state_bits, segment=300), int(layout.row.max()) + 1)
    m, rho = rng.normal(size=dimensions), rng.uniform(0.3, 0.9, dimensions)
    monkeypatch.setattr(trellis, "LEAST_COMPILED", math.inf)
    expected = best_path(m, rho, layout, codebook)
    monkeypatch.setattr(trellis, "LEAST_COMPILED", 1)
    assert trellis._loops_work() and 0.2 < expected.mean() < 0.8
    with mock.patch.object(trellis, "_scores", side_effect=AssertionError):
        assert np.array_equal(best_path(m, rho, layout, codebook), expected)


def test_path_branches():
    path = np.array([1, 0, 1, 1, 0], np.uint8)
    # The bit itself is the highest of the state's three; the one lost lies above.
    assert path_branches(path, Trellis(state_bits=3)).tolist() == [
        0b0100,
        0b0010,
        0b0101,
        0b1110,
        0b0011,
    ]


@given(st.lists(st.integers(0, 1 << 25), max_size=60), st.integers(0, 2**31))
def test_layout_cuts_into_equal_stages(bits, seed):
    bits = np.array(bits, dtype=np.int64)
    layout = make_layout(bits, Key(seed, 3), Trellis(rate=1.0).stages(bits.sum() / UNIT))
    assert sorted(layout.order) == list(range(len(bits)))
    assert np.all(np.diff(layout.stage) >= 0)
    if layout.stages:
        assert layout.stage.min(initial=0) >= 0 and layout.stage.max(initial=0) < layout.stages
        worth = np.bincount(layout.stage, bits[layout.order], layout.stages)
        assert np.all(worth <= bits.sum() / layout.stages + bits.max() + 2)
    pairs = set(zip(layout.stage.tolist(), layout.row.tolist(), strict=True))
    assert len(pairs) == len(bits)  # no two dimensions of a stage share their noise


@given(st.floats(1, 2.0**60))
def test_half_log2(ratio):
    assert abs(half_log2(np.array([ratio]))[0] / 2**24 - np.log2(ratio) / 2) < 2**-23


def test_half_log2_of_little():
    ratio = 1 + np.logspace(-7, 0, 50)
    assert np.allclose(half_log2(ratio) / 2**24, np.log2(ratio) / 2, rtol=1e-3, atol=2**-24)


def test_surprise_bits():
    q_mean, p_mean, variance, excess = arguments = problem(1000, 0.3, 2, 0.5, 3.0)
    gain = (variance + excess) / variance
    found = surprise_bits((q_mean - p_mean) / np.sqrt(variance + excess), gain)
    assert found == pytest.approx(kl(*arguments) - 0.5 * np.log2(gain).sum(), rel=1e-5)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(-500, 500)), max_size=20))
def test_rice_code(pairs):
    parameter, values = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    most = (bits.MOST_QUOTIENT << parameter) // 2
    values = np.clip(values, -most, most)
    writer = BitWriter()
    writer.write(rice_code(values, parameter))
    reader = BitReader(writer.to_bytes())
    assert read_rice_code(reader, parameter).tolist() == values.tolist()
    assert reader.position == writer.count


def test_noise_table_is_normal():
    noise = _noise_table() / 32
    assert (noise.mean(), noise.var()) == (pytest.approx(0), pytest.approx(1, abs=2e-3))
    assert np.array_equal(noise, -noise[::-1])


@given(st.lists(st.lists(st.integers(0, 1), max_size=20), max_size=5))
def test_bits(parts):
    writer = BitWriter()
    for part in parts:
        writer.write(np.array(part, np.uint8))
    reader = BitReader(writer.to_bytes())
    assert [reader.read(len(part)).tolist() for part in parts] == parts
    assert writer.count == reader.position <= 8 * len(writer.to_bytes()) < writer.count + 8


# --- what is refused -----------------------------------------------------------------------------


def test_data_that_end_early():
    arguments = problem(300, 0.5)
    data, _, _ = encoded([arguments])
    for size in (0, 1, len(data) - 1):
        with pytest.raises(ValueError, match="end early"):
            Decoder(data[:size], 0, SMALL).decode_step(0, *arguments[1:])


def test_data_that_may_end_early_tell_what_they_do():
    arguments = problem(300, 0.5)
    data, (whole,), _ = encoded([arguments])
    told = []
    for size in range(len(data) + 1):
        part = Decoder(data[:size], 0, SMALL).decode_step(0, *arguments[1:], may_end=True)
        known = ~np.isnan(part)
        assert (part[known] == whole[known]).all()
        told.append(known.mean())
    assert told[0] == 0 and told[-1] == 1
    assert (np.diff(told) >= 0).all()
    assert np.abs(told - np.arange(len(told)) / len(data)).max() < 0.1


def test_a_claim_of_many_bits_that_may_end_early_takes_no_memory():
    stretched = np.packbits([1, 0] + 47 * [1] + [0]).tobytes()  # 2^6 times the expected bits
    tracemalloc.start()
    decoder, arguments = Decoder(stretched, 0), problem(40000, 0.5)[1:]
    assert np.isnan(decoder.decode_step(0, *arguments, may_end=True)).all()
    assert decoder.reader.left == 0
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20 << 20
    with pytest.raises(ValueError, match="end early"):
        Decoder(stretched, 0).decode_step(0, *arguments)


def test_a_stretch_out_of_range():
    with pytest.raises(ValueError, match="stretch 63, expected at most 48"):
        Decoder(b"\xbf" + b"\xff" * 7 + b"\0" * 99, 0).decode_step(0, *problem(3, 0.1)[1:])


def test_a_change_of_the_stretch_is_not_read_beyond_its_bound():
    decoder = Decoder(b"\xff" * 60_000, 0)
    with pytest.raises(ValueError, match="the stretch changes by more than 96"):
        decoder.decode_step(0, *problem(3, 0.1)[1:])
    assert decoder.reader.position == 2 + 96


@pytest.mark.parametrize("change", [-96, -1, 0, 1, 96])
def test_every_change_of_the_stretch_is_read_back(change):
    reader = BitReader(np.packbits(stretch_code(change)).tobytes())
    assert read_stretch_change(reader) == change


@given(st.binary(max_size=40))
def test_any_data_decode_or_are_refused(data):
    decoder = Decoder(data, 0, SMALL)
    try:
        for timestep in range(3):
            assert np.all(np.isfinite(decoder.decode_step(timestep, *problem(40, 0.4)[1:])))
    except ValueError:
        pass


@pytest.mark.parametrize("which", range(4))
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite(which, value):
    arguments = [a.copy() for a in problem(5, 0.1)]
    arguments[which][2] = value
    with pytest.raises(ValueError, match="finite"):
        Encoder(0).encode_step(0, *arguments)


@pytest.mark.parametrize(
    ("variance", "excess"), [(0.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1e19)]
)
def test_variances_out_of_range(variance, excess):
    means = np.zeros(1)
    with pytest.raises(ValueError, match=r"variance|wider"):
        Decoder(b"\0" * 9, 0).decode_step(0, means, np.array([variance]), np.array([excess]))


def test_the_caller_s_settings_of_torch_do_not_matter():
    rng = np.random.default_rng(4)
    fields = [rng.normal(0, 3, 500), np.zeros(500), np.full(500, 4.0), np.full(500, 5.0)]

    def sent():
        encoder = Encoder(0)
        sample = encoder.encode_step(3, *fields)
        return sample.tobytes(), encoder.writer.bits().tobytes()

    expected = sent()
    try:
        torch.set_default_dtype(torch.float64)
        assert sent() == expected
    finally:
        torch.set_default_dtype(torch.float32)
