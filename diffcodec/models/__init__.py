"""A model at work, its file, its export, its known answers; the shipped ones in zoo/."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffcodec.models.converted import from_epsilon as from_epsilon
    from diffcodec.models.pipelines import from_diffusers as from_diffusers
    from diffcodec.models.pipelines import to_diffusers as to_diffusers

_HOMES = {
    "from_diffusers": "pipelines",
    "from_epsilon": "converted",
    "to_diffusers": "pipelines",
}


def __getattr__(name: str) -> Any:
    """Load torch only when it is used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'diffcodec.models' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"diffcodec.models.{_HOMES[name]}"), name)
