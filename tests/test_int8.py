"""Convolutions by 8-bit kernels: exact, or not used."""

import os

import pytest
import torch
import torch.nn.functional as F

from diffcodec.networks import int8
from diffcodec.networks.int8 import DIGIT, HIGH_ZERO, LOW_ZERO, ByteConv, digits, kernels_work

with_kernels = pytest.mark.skipif(not kernels_work(), reason="no 8-bit kernels on this machine")


@pytest.fixture(autouse=True)
def afresh():
    yield
    kernels_work.cache_clear()


def test_digits_stand_for_their_integer():
    integers = torch.arange(-4096, 4096)
    high, low = (digit.long() for digit in digits(integers, -4096, 4095))
    assert high.min() >= 0 and high.max() < DIGIT  # 7 bits, so that no kernel saturates
    assert torch.equal(DIGIT * (high - HIGH_ZERO) + low - LOW_ZERO, integers)


@pytest.mark.skipif(
    not torch.cpu._is_vnni_supported() or "ONEDNN_MAX_CPU_ISA" in os.environ,
    reason="of processors with VNNI",
)
def test_a_processor_with_vnni_uses_them():
    assert kernels_work()


@with_kernels
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("shape", [(1, 96, 4, 4), (3, 96, 17, 5), (16, 96, 8, 8), (1, 40, 64, 48)])
@pytest.mark.parametrize(("lowest", "highest"), [(-1000, 4095), (-20, 235), (-255, 0), (-20, 236)])
def test_sums_are_those_of_integers(kernel, shape, lowest, highest):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(lowest, highest + 1, shape, generator=generator)
    x[..., 0, :2] = torch.tensor([lowest, highest])
    weight = torch.randint(-20, 21, (56, shape[1], kernel, kernel), generator=generator)
    expected = F.conv2d(x.double(), weight.double(), padding=kernel // 2)
    assert expected.abs().max() < 2**24
    of_digits = digits(x.contiguous(memory_format=torch.channels_last), lowest, highest)
    assert len(of_digits) == (1 if highest - lowest < 256 else 2)
    assert torch.equal(sum(ByteConv(weight).sums(of_digits, lowest)).double(), expected)


@with_kernels
def test_kernels_that_saturate_are_not_used(monkeypatch):
    plain = ByteConv.digit_sums
    monkeypatch.setattr(ByteConv, "digit_sums", lambda *a: plain(*a).clamp_max(2**15))
    kernels_work.cache_clear()
    assert not kernels_work()


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
def test_a_torch_without_the_kernels_does_without(monkeypatch, error):
    def missing(kernel):
        raise error("no such operator")

    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(int8, "_is_exact", missing)
    kernels_work.cache_clear()
    assert not kernels_work()


def test_a_processor_without_vnni_does_without(monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    kernels_work.cache_clear()
    assert not kernels_work()
