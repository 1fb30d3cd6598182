"""What a file with previews shows, read no farther than it takes."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from PIL import Image
from tqdm import tqdm

from diffcodec.codec.batches import progress_bar
from diffcodec.codec.jobs import EXACT, View
from diffcodec.codec.opening import OpenFile
from diffcodec.codec.planes import check_pixels, color_set, may_end
from diffcodec.codec.previews import Previews
from diffcodec.coding.top_down import MayEnd
from diffcodec.container.parts import Layers
from diffcodec.errors import FormatError, UnsupportedError
from diffcodec.images.metadata import apply_metadata


def decode_layers(file: OpenFile, view: View, allow_partial: bool) -> tuple[int, Image.Image]:
    """The timestep that was reached, and the image; reads no more than it takes.

    See :func:`diffcodec.decode`.
    """
    layers = _layers(file)
    assert file.model is not None
    finest, levels = layers.stops[-1], len(file.model.plans[layers.plan].levels)
    wanted = view.timestep
    if not finest <= wanted <= levels:
        raise UnsupportedError(
            f"timestep {wanted}: this file has timesteps {finest} (finest) to {levels} (coarsest)"
        )
    evaluations = (levels + 2 - wanted) * math.prod(file.window.size)
    with progress_bar(evaluations, file.progress) as bar:
        descent = _LayeredDescent(file, view, bar)

        def can(read: Callable[[], object]) -> bool:
            try:
                read()
            except FormatError:
                if not allow_partial:
                    raise
                return False
            return True

        descent.use_layer(wanted)
        while descent.timestep > wanted and file.reader.more_layers and not file.reader.is_cut:
            if not can(partial(file.reader.read_layer, allow_partial)):
                return descent.timestep, descent.shown()
            descent.use_layer(wanted)
        if file.reader.is_cut:
            return descent.timestep, descent.shown()
        to_the_end = wanted == finest or descent.timestep > wanted
        if (to_the_end and not can(file.reader.read_tiles)) or descent.timestep == wanted:
            return descent.timestep, descent.shown()
        return wanted, descent.below_layers(view)


def iter_layers(file: OpenFile, view: View) -> Iterator[tuple[int, Image.Image]]:
    """The image at each layer as it comes, and the exact one.

    See :func:`diffcodec.iter_decode`.

    Args:
        file: the first layer of which has been read.
        view: how to show the layers.
    """
    with progress_bar(0, False) as bar:
        descent = _LayeredDescent(file, view, bar)
        while True:
            descent.use_layer(0)
            yield descent.timestep, descent.shown()
            if not file.reader.more_layers:
                break
            file.reader.read_layer()
        file.reader.read_tiles()
        if file.container.tiles:
            yield 0, descent.below_layers(EXACT)


def _layers(file: OpenFile) -> Layers:
    assert file.container.layers is not None
    return file.container.layers


class _LayeredDescent:
    """All tiles of a file on their way down its layers."""

    def __init__(self, file: OpenFile, view: View, bar: "tqdm[Any]"):
        self.file, self.view = file, view
        container = file.container
        assert file.model is not None
        self.previews = Previews(
            file.model,
            container.mode,
            size=file.window.size,
            plan=_layers(file).plan,
            bar=bar,
            colors=color_set(container),
            exact=_layers(file).is_exact,
            boxes=file.window.boxes,
            label=_layers(file).label,
        )

    @property
    def timestep(self) -> int:
        """The timestep of all tiles."""
        return self.previews.timestep

    def use_layer(self, wanted: int) -> None:
        """Go down by the layer that was read last, but not below a timestep."""
        layers = _layers(self.file)
        end = layers.timesteps[len(layers.payloads) - 1]
        early = may_end(self.file.container, end)
        if self.file.reader.is_cut:
            early = MayEnd.ANYWHERE
        self.previews.decode_layer(layers.payloads[-1], end, wanted, early)

    def shown(self) -> Image.Image:
        """The image that the layers show; at the end of a lossy file held against its checksum."""
        container = self.file.container
        ends = self.timestep == _layers(self.file).stops[-1] and not self.file.reader.is_cut
        if ends and self.file.window.is_whole:
            image = self.previews.picture()
            check_pixels(image, container.pixel_crc, container.float_arithmetic)
        is_mean = self.view.reconstruct == "mean"
        if not (is_mean and ends and self.file.window.is_whole):
            image = self.previews.picture(self.view)
        return self._with_metadata(image)

    def below_layers(self, view: View) -> Image.Image:
        """The image that the tiles show that follow the layers."""
        image = self.previews.decode_rest(self.file.container.tiles, view)
        return self._with_metadata(image)

    def _with_metadata(self, image: Image.Image) -> Image.Image:
        apply_metadata(image, self.file.container.metadata, self.file.reader.limits)
        return self.file.window.cut(image)
