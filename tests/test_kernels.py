"""Compiled steps between convolutions: what torch gives, bit for bit, or not used."""

import math
import os
from unittest import mock

import numpy as np
import pytest
import torch
from tiny import PHASED_PLANS
from torch import Tensor

from diffcodec import compiled
from diffcodec.coding import color_volume, mixtures
from diffcodec.coding.color_volume import ColorVolume
from diffcodec.diffusion.phases import PLANES
from diffcodec.models.model import load_model
from diffcodec.networks import integer_layers, kernels

pytest.importorskip("numba", reason="compiles the kernels")

SHAPE = (2, 24, 60, 56)  # more than the least, and two threads' shares


def drawn(seed: int, scale: float = 1.0, shape: tuple[int, ...] = SHAPE) -> Tensor:
    x = scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


FACTOR, OFFSET = torch.randn((2, 1, 24, 1, 1), generator=torch.Generator().manual_seed(8))


def indices(u: Tensor) -> Tensor:
    return (u.clamp(-4096, 4096).round() + 4096).long()


def test_they_compile_here():
    assert kernels.kernels_compile()
    assert kernels.are_for(drawn(0))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [1, 2])
def test_they_give_what_torch_gives(monkeypatch, threads, count):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    parts = [drawn(i, 4000) for i in range(count)]
    table = torch.randn(8193)
    tables = [table, (100 * table).to(torch.uint8)]
    u = sum(parts) * FACTOR + OFFSET
    for given in (tables, tables[:1], tables[1:]):
        found = kernels.look_up(parts, FACTOR, OFFSET, given)
        for a, b in zip(found, given, strict=True):
            assert torch.equal(a, b[indices(u)])
            assert a.is_contiguous(memory_format=torch.channels_last)
    plus = drawn(9)
    assert torch.equal(kernels.scaled(parts, FACTOR, OFFSET, plus), u + plus)


def test_halves_are_rounded_to_even_and_ends_hold():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 4095.5, 4096.5, 1e30, -1e30, math.inf, -math.inf])
    x = x.view(1, 1, 1, -1)
    table = torch.arange(-4096, 4097).float()
    (found,) = kernels.look_up([x], torch.ones(1), torch.zeros(1), [table])
    expected = [0, 2, 2, 0, -2, 4096, 4096, 4096, -4096, 4096, -4096]
    assert found.flatten().tolist() == expected


def test_what_is_scaled_goes_where_it_is_told():
    parts, plus = [drawn(0), drawn(1)], drawn(2)
    expected = sum(parts) * FACTOR + OFFSET + plus
    kept, out = parts[0].clone(), torch.zeros_like(plus)
    assert kernels.scaled(parts, FACTOR, OFFSET, plus, out) is out
    assert torch.equal(out, expected) and torch.equal(parts[0], kept)
    assert torch.equal(kernels.scaled(parts, FACTOR, OFFSET, plus, plus), expected)
    assert torch.equal(plus, expected)


@pytest.mark.parametrize("place", [0, -1])
def test_what_is_no_number_is_told(place):
    x = drawn(0)
    x.permute(0, 2, 3, 1).reshape(-1)[place] = torch.nan
    assert kernels.look_up([x], FACTOR, OFFSET, [torch.zeros(8193)]) is None


def test_small_tensors_do_without():
    with mock.patch.object(kernels, "kernels_compile", side_effect=AssertionError):
        assert not kernels.are_for(drawn(0, shape=(1, 24, 8, 8)))
        assert not kernels.are_for(torch.zeros(SHAPE))  # not channels last


@pytest.mark.parametrize("error", [ImportError, RuntimeError, AttributeError])
def test_without_a_compiler_torch_does_it(monkeypatch, error):
    def missing():
        raise error("none")

    monkeypatch.setattr(kernels, "_are_exact", missing)
    kernels.kernels_compile.cache_clear()
    try:
        assert not kernels.are_for(drawn(0))
    finally:
        kernels.kernels_compile.cache_clear()


@torch.inference_mode()
def test_a_network_answers_the_same(monkeypatch, phased):
    network = load_model(phased).network
    z = 100 + 50 * drawn(3, shape=(1, 3, 32, 40)).double()
    planes = torch.zeros(1, PLANES[0], 32, 40, dtype=torch.float64)

    def answers() -> list[Tensor]:
        sigma = PHASED_PLANS["default"].levels[0]
        mean, v, shared = network.begin_phases(0, z, sigma)
        return [mean, v, *(network.phase_parameters(0, sigma, 1, s, planes) for s in shared[1:2])]

    plain = answers()
    monkeypatch.setattr(kernels, "LEAST_ELEMENTS", 1)
    monkeypatch.setattr(integer_layers, "STRIP_ELEMENTS", 3000)
    with mock.patch.object(kernels, "look_up", wraps=kernels.look_up) as looked_up:
        compiled = answers()
    assert looked_up.call_count > 10
    assert all(torch.equal(a, b) for a, b in zip(plain, compiled, strict=True))


def test_threads_are_made_once(monkeypatch):
    made = mock.Mock(wraps=compiled.ThreadPoolExecutor)
    monkeypatch.setattr(compiled, "ThreadPoolExecutor", made)
    compiled._threads.cache_clear()
    for count in (2, 3, 4, 5, 3, 2):
        rows = np.arange((count - 1) * compiled.EACH_THREADS_ELEMENTS)
        found = compiled.by_threads(lambda part, by: by * int(part.sum()), [rows], [2], 8)
        assert len(found) == count and sum(found) == 2 * rows.sum()
    assert made.call_count == 1
    compiled._threads.cache_clear()


def test_a_fork_has_threads_of_its_own():
    ours = compiled._threads(os.getpid(), 2)
    assert compiled._threads(os.getpid(), 2) is ours
    assert compiled._threads(os.getpid() + 1, 2) is not ours


@pytest.mark.parametrize("components", [1, 3])
def test_tables_of_mixtures_are_those_of_arrays(components):
    rng = np.random.default_rng(0)
    n = mixtures.LEAST_COMPILED
    weights, means, log_scales = (s * rng.standard_normal((components, n)) for s in (9, 40, 4))
    given = weights, means, log_scales, -9 * rng.random(n), 0.3 + rng.random(n)
    assert mixtures._loop_works()
    expected = mixtures._by_arrays(*given, 9)
    with mock.patch.object(mixtures, "_by_arrays", side_effect=AssertionError):
        assert np.array_equal(mixtures.mixture_table(*given, 9), expected)
    means[0, 5] = np.inf  # of a broken model: as ever
    with mock.patch.object(mixtures, "_by_loop", side_effect=AssertionError):
        mixtures.mixture_table(*given, 9)


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_tables_of_colors_are_those_of_arrays(channel):
    rng = np.random.default_rng(channel)
    n, shape = color_volume.LEAST_COMPILED, (90, 100, 110)
    flags = rng.random(shape) < 0.05
    flags[:, :, :60] = False  # so that of some samples nothing can occur
    volume = ColorVolume(np.packbits(flags, bitorder="little"), shape, (-32, -9, -9))
    lowest = [rng.integers(-40, 90, n) for _ in range(3)]
    counts = (8, 16, 12)[channel:]
    tables = [rng.random((count, n)) for count in counts]
    assert color_volume._loop_works()
    with mock.patch.object(color_volume, "_by_arrays", side_effect=AssertionError):
        found = volume.restricted(channel, tables, lowest)
    with mock.patch.object(color_volume, "LEAST_COMPILED", n + 1):
        assert np.array_equal(volume.restricted(channel, tables, lowest), found)
    changed = (found != tables[0]).any(axis=0)
    assert 0.1 < changed.mean() < 0.9
    for i in range(50):
        corner = np.unravel_index(volume.places([x[i : i + 1] for x in lowest])[0], shape)
        box = [slice(k, k + ([1] * channel + list(counts))[c]) for c, k in enumerate(corner)]
        joint = flags[*box].reshape(counts) * 1.0
        for axis, table in enumerate(tables):
            joint *= table[:, i].reshape([-1 if a == axis else 1 for a in range(len(counts))])
        weights = joint.reshape(counts[0], -1).sum(1)
        assert np.allclose(found[:, i], weights if weights.any() else tables[0][:, i])
