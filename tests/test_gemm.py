"""Convolutions by products of matrices of bytes: the sums of float32 and of 8-bit kernels."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from diffcodec.networks import gemm
from diffcodec.networks.gemm import GemmConv, count_digits, products_work, signed_digits
from diffcodec.networks.int8 import ByteConv, digits, kernels_work

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def afresh():
    yield
    products_work.cache_clear()


def random(low, high, shape, seed=0):
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed))


def check(weight, x, largest, stride=1):
    """The sums are those of float64, and of float32, which is exact as well."""
    padding = (weight.shape[2] - 1) // 2
    expected = F.conv2d(x.double(), weight.double(), None, stride, padding)
    assert expected.abs().max() < 2**24
    found = GemmConv(weight, largest, CPU).sums(x.float(), stride)
    assert found.dtype == torch.float32 and torch.equal(found.double(), expected)
    assert torch.equal(found, F.conv2d(x.float(), weight.float(), None, stride, padding))
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("largest", [127, 128, 4095, 32639, 32640, 2**15])
def test_digits_stand_for_their_integer(largest):
    integers = torch.arange(-largest, largest + 1, dtype=torch.int32)
    digits = signed_digits(integers, count_digits(largest))
    assert {digit.dtype for digit in digits} == {torch.int8}
    assert torch.equal(sum(d.int() * 256**i for i, d in enumerate(digits)), integers)


def test_as_few_digits_as_it_takes():
    reach = (0, 127, 127 + 256 * 127, 127 + 256 * (127 + 256 * 127))
    for count, (below, up_to) in enumerate(pairwise(reach), 1):
        assert count_digits(below + 1) == count_digits(up_to) == count
    with pytest.raises(ValueError, match=f"up to {reach[-1] + 1}"):
        count_digits(reach[-1] + 1)


@pytest.mark.parametrize(("kernel", "stride"), gemm.SHAPES)
@pytest.mark.parametrize("shape", [(1, 9, 4, 2), (3, 96, 18, 6), (17, 48, 8, 8), (1, 40, 64, 46)])
@pytest.mark.parametrize("out", [6, 56])
def test_sums_are_those_of_integers(kernel, stride, shape, out):
    x = random(-1000, 4095, shape)
    check(random(-20, 20, (out, shape[1], kernel, kernel)), x, 4095, stride)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 1), (7, 9)])
def test_odd_sizes(size):
    check(random(-20, 20, (12, 24, 3, 3)), random(-300, 4095, (2, 24, *size)), 4095)


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(
    ("weight", "largest", "terms"),
    [(127, 127, 1040), (127, 4095, 32), (32767, 511, 1), (32767, 255, 2), (2730, 4095, 1)],
)
def test_the_largest_sums(weight, largest, terms, sign):
    """As many terms as reach just below 2^24."""
    full = torch.zeros(8, 128 * 9, dtype=torch.int64)
    full[:, :terms] = sign * weight
    check(full.view(8, 128, 3, 3), torch.full((1, 128, 5, 5), largest), largest)
    check(full.view(8, 128, 3, 3), torch.full((1, 128, 5, 5), -largest), largest)


def test_an_overflow_on_the_way_does_no_harm():
    weight = torch.tensor([2**15 - 1, -255 * 128]).repeat_interleave(8)  # digits -1, -128, 1 first
    x = torch.full((16, 1), 4095)
    assert 8 * 16 * 256**3 == 2**31
    found = GemmConv(weight.view(1, 16, 1, 1), 4095, CPU).sums(x.float().view(1, 16, 1, 1))
    assert found.item() == (weight @ x).item() == 8 * 127 * 4095


@pytest.mark.skipif(not kernels_work(), reason="no 8-bit kernels on this machine")
@pytest.mark.parametrize("kernel", [1, 3])
def test_sums_are_those_of_8_bit_kernels(kernel):
    x, weight = random(-1000, 4095, (3, 96, 17, 5)), random(-20, 20, (56, 96, kernel, kernel))
    found = GemmConv(weight, 4095, CPU).sums(x.float())
    assert torch.equal(found, sum(ByteConv(weight).sums(digits(x, -1000, 4095), -1000)))


def test_the_proof_holds_here():
    assert products_work(CPU)


def saturated(a, b):
    return torch.clamp(a.int() @ b.int(), -(2**15), 2**15 - 1)


def in_bfloat16(a, b):
    return (a.bfloat16() @ b.bfloat16()).int()


def as_floats(a, b):
    return (a.long() @ b.long()).float()


def wrapping(a, b):
    return (a.long() @ b.long()).to(torch.int16).int()


def missing(a, b):
    raise RuntimeError("not implemented")


@pytest.mark.parametrize("product", [saturated, in_bfloat16, as_floats, wrapping, missing])
def test_a_device_that_rounds_is_not_used(monkeypatch, product):
    monkeypatch.setattr(torch, "_int_mm", product)
    assert not products_work(CPU)


def test_digits_that_saturate_are_not_used(monkeypatch):
    def clamped(integers, count):
        return [(integers >> 8 * i).clamp(-128, 127).to(torch.int8) for i in range(count)]

    monkeypatch.setattr(gemm, "signed_digits", clamped)
    assert not products_work(CPU)
