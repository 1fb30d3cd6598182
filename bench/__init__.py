"""Comparisons and demonstrations; not part of the package."""

from unittest import mock


def without_webp() -> None:
    """From now on tiles are coded by the chain, or raw where that is smaller: never by WebP."""
    mock.patch("diffcodec.codec.encode_fallback", lambda image: ("raw", image.tobytes())).start()
