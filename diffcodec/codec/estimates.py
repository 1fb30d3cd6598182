"""Memory that coding takes."""

from diffcodec.container.parts import Container
from diffcodec.limits import Limits

# What coding takes at most, measured (tests/test_limits.py) with and without keep_freed_memory: for
# the batches in the network, and bytes per pixel of the image, more where all tiles go together.
BATCH_BYTES = 3 << 29
PIXEL_BYTES, LAYERED_PIXEL_BYTES = 16, 112  # 64, and two more z where a lossy file's end is sought


def check_memory(
    container: Container,
    limits: Limits,
    pictures: int = 0,
    size: tuple[int, int] | None = None,
) -> None:
    """Hold what decoding a file is expected to take against the limit of memory.

    Args:
        container: the file's.
        limits: to hold it against.
        pictures: how many more than the decoded one are held at a time.
        size: of what is decoded, if that is not the whole image.

    Raises:
        LimitError: if it is more.
    """
    uses_model, layered = container.uses_model, container.layers is not None
    width, height = size or (container.width, container.height)
    expected = expected_bytes(width, height, uses_model, layered)
    limits.check_memory(expected + 3 * width * height * pictures)


def expected_bytes(width: int, height: int, uses_model: bool, layered: bool) -> int:
    """Memory that coding an image of such sides takes at most, the program itself left out."""
    per_pixel = LAYERED_PIXEL_BYTES if layered else PIXEL_BYTES
    return per_pixel * width * height + (BATCH_BYTES if uses_model else 0)
