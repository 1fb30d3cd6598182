"""What a user may set for float32 to be of fewer bits, on processors that can have it so."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest import mock

import torch


@contextmanager
def convolutions_in_bfloat16() -> Iterator[None]:
    of = torch.backends.mkldnn.conv
    before, of.fp32_precision = of.fp32_precision, "bf16"
    try:
        yield
    finally:
        of.fp32_precision = before


@contextmanager
def products_in_bfloat16() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def all_in_bfloat16() -> AbstractContextManager[object]:
    return mock.patch.dict(os.environ, ONEDNN_DEFAULT_FPMATH_MODE="any")


LOWERED = (convolutions_in_bfloat16, products_in_bfloat16, all_in_bfloat16)
