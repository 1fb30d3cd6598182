"""The sizes that are accepted: in files that are read, and in images that are encoded."""

from dataclasses import dataclass

from diffcodec.errors import LimitError


@dataclass(frozen=True)
class Limits:
    """What is over a limit raises a :class:`LimitError` before memory is taken for it.

    ``dataclasses.replace(Limits(), pixels=2**30)`` raises one limit, for input that is trusted.

    Attributes:
        pixels: width times height.
        side: width or height, in pixels.
        tiles: of an image.
        timesteps: the highest that a file may name, and how many.
        metadata_bytes: all metadata of a file; also each entry after decompression.
        memory_bytes: what decoding is expected to take beside the file itself.
    """

    pixels: int = 2**28
    side: int = 2**20
    tiles: int = 2**13
    timesteps: int = 2**10
    metadata_bytes: int = 2**26
    memory_bytes: int = 2**33

    def __post_init__(self) -> None:
        """Refuse what nothing could be over.

        Raises:
            TypeError: a limit is no number.
            ValueError: it is below 0, or not a number (NaN).
        """
        for name, limit in vars(self).items():
            try:
                is_limit = bool(limit >= 0)
            except TypeError as error:
                found = type(limit).__name__
                raise TypeError(f"{name}: found {found}, expected a number") from error
            if not is_limit:
                raise ValueError(f"{name}: found {limit}, expected a number from 0 on")

    def check_image(self, width: int, height: int) -> None:
        """Refuse an image by its size.

        Raises:
            LimitError: it is over ``side`` or ``pixels``.
        """
        size = f"the image is {width} x {height} pixels"
        if max(width, height) > self.side:
            raise LimitError(f"{size}, the limit of a side is {self.side}; {_advice('side')}")
        if width * height > self.pixels:
            raise LimitError(
                f"{size} = {width * height}, the limit is {self.pixels}; {_advice('pixels')}"
            )

    def check_tiles(self, count: int) -> None:
        """Refuse an image by the number of its tiles.

        Raises:
            LimitError: it is over ``tiles``.
        """
        if count > self.tiles:
            raise LimitError(
                f"the image has {count} tiles, the limit is {self.tiles}; {_advice('tiles')}"
            )

    def check_timesteps(self, value: int) -> None:
        """Refuse a timestep, or a number of them.

        Raises:
            LimitError: it is over ``timesteps``.
        """
        if value > self.timesteps:
            raise LimitError(
                f"the file claims {value} timesteps, the limit is {self.timesteps}; "
                f"{_advice('timesteps')}"
            )

    def check_metadata(self, size: int) -> None:
        """Refuse metadata by their bytes.

        Raises:
            LimitError: they are over ``metadata_bytes``.
        """
        if size > self.metadata_bytes:
            raise LimitError(
                f"the metadata is {size} bytes, the limit is {self.metadata_bytes}; "
                f"{_advice('metadata_bytes')}"
            )

    def check_memory(self, size: int) -> None:
        """Refuse work by the memory that it is expected to take.

        Raises:
            LimitError: it is over ``memory_bytes``.
        """
        if size > self.memory_bytes:
            raise LimitError(
                f"it takes about {size >> 20} MiB of memory, the limit is "
                f"{self.memory_bytes >> 20} MiB; {_advice('memory_bytes')}"
            )


def _advice(name: str) -> str:
    return f"raise the limit {name} if you trust the source"


DEFAULT_LIMITS = Limits()
