"""diffcodec: the image codec built on diffusion."""

from typing import TYPE_CHECKING, Any

from diffcodec.limits import Limits

__version__ = "0.1.0"

if TYPE_CHECKING:
    from diffcodec.codec import decode as decode
    from diffcodec.codec import encode as encode
    from diffcodec.codec import encode_many as encode_many
    from diffcodec.codec import iter_decode as iter_decode
    from diffcodec.models import load_model as load_model
    from diffcodec.recovery import recover as recover

__all__ = ["Limits", "decode", "encode", "encode_many", "iter_decode", "load_model", "recover"]

_CODEC = ("decode", "encode", "encode_many", "iter_decode")
_HOMES = {"load_model": "models", "recover": "recovery"} | dict.fromkeys(_CODEC, "codec")


def __getattr__(name: str) -> Any:
    """Load the codec, and with it torch, only when it is used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'diffcodec' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"diffcodec.{_HOMES[name]}"), name)
