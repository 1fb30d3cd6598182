"""The command line, with the conventions of zstd and cjxl.

What loads torch, NumPy or Pillow is imported where it is used: ``--help``, ``models``, ``info`` and
``verify --structure`` do without.
"""

from diffcodec.cli import (
    calibrate,
    decode,
    encode,
    evaluate,
    inspect,
    pack,
    plan,
    sample,
    show,
    train,
    unpack,
)
from diffcodec.cli.program import cli, main

__all__ = [
    "calibrate",
    "cli",
    "decode",
    "encode",
    "evaluate",
    "inspect",
    "main",
    "pack",
    "plan",
    "sample",
    "show",
    "train",
    "unpack",
]
