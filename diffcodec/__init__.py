"""diffcodec: the image codec built on diffusion."""

from typing import TYPE_CHECKING, Any

from diffcodec import errors
from diffcodec.errors import DiffcodecError
from diffcodec.limits import Limits

__version__ = "1.0.0"

if TYPE_CHECKING:
    from diffcodec.archive.archive import open_archive as open_archive
    from diffcodec.codec.decoding import decode as decode
    from diffcodec.codec.decoding import iter_decode as iter_decode
    from diffcodec.codec.encoding import encode as encode
    from diffcodec.codec.many import decode_many as decode_many
    from diffcodec.codec.many import encode_many as encode_many
    from diffcodec.codec.recovery import recover as recover
    from diffcodec.evaluation.run import evaluate as evaluate
    from diffcodec.models.model import load_model as load_model
    from diffcodec.sampling.draw import sample as sample
    from diffcodec.training.run import train as train

__all__ = [
    "DiffcodecError",
    "Limits",
    "decode",
    "decode_many",
    "encode",
    "encode_many",
    "errors",
    "evaluate",
    "iter_decode",
    "load_model",
    "open_archive",
    "recover",
    "sample",
    "train",
]

_HOMES = {
    "decode": "codec.decoding",
    "decode_many": "codec.many",
    "encode": "codec.encoding",
    "encode_many": "codec.many",
    "evaluate": "evaluation.run",
    "iter_decode": "codec.decoding",
    "load_model": "models.model",
    "open_archive": "archive.archive",
    "recover": "codec.recovery",
    "sample": "sampling.draw",
    "train": "training.run",
}


def __getattr__(name: str) -> Any:
    """Load the codec, and with it torch, only when it is used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'diffcodec' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"diffcodec.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*__all__, *globals()} - {"Any", "TYPE_CHECKING"})
