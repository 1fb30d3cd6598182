"""What is shown along the borders of tiles: asked of the model with both sides in sight.

Tiles are coded each by itself, and at its border the model doesn't see what the next one holds. For
what is shown, z_t of the whole image is there: along each border a strip of it is evaluated once
more, and the inner half of what comes out is taken.

::

    tile  . . . | . . .  tile      window: twice MARGIN on each side of the border
          : [ c | c ] :            core: MARGIN on each side, as far from where it was cut off
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from PIL import Image
from tqdm import tqdm

from diffcodec.arrays import Array
from diffcodec.codec.batches import run
from diffcodec.codec.jobs import Job, Part
from diffcodec.codec.planes import coded_channels, paste
from diffcodec.coding.chain import Posterior, Request
from diffcodec.coding.top_down import ensemble_mean
from diffcodec.container.parts import Box
from diffcodec.models.model import Model

MARGIN = 32  # pixels; a multiple of what networks cut images into


class Seam(NamedTuple):
    """A border of two tiles, or a corner of four.

    Attributes:
        window: what is evaluated.
        core: what is taken of it.
        tiles: in which they lie, by their numbers.
    """

    window: Box
    core: Box
    tiles: tuple[int, ...]


_Key = tuple[int, str, int | None, Seam]  # timestep, plan, class, where


class _Span(NamedTuple):
    """A part of one side: within a tile, or across a border of two."""

    window: tuple[int, int]
    core: tuple[int, int]
    tiles: tuple[int, ...]  # of this side


def find_seams(boxes: Mapping[int, Box]) -> list[Seam]:
    """The seams of tiles that make up a rectangle, in raster order, by their numbers."""
    edges = [
        sorted({edge for box in boxes.values() for edge in (box[i], box[i] + box[i + 2])})
        for i in (0, 1)
    ]
    numbers, columns = list(boxes), len(edges[0]) - 1
    seams = []
    for y in _spans(edges[1]):
        for x in _spans(edges[0]):
            tiles = tuple(numbers[row * columns + column] for row in y.tiles for column in x.tiles)
            if len(tiles) > 1 and x.core[0] < x.core[1] and y.core[0] < y.core[1]:
                window, core = (
                    Box(a[0], b[0], a[1] - a[0], b[1] - b[0])
                    for a, b in zip(x[:2], y[:2], strict=True)
                )
                seams.append(Seam(window, core, tiles))
    return seams


def _spans(edges: Sequence[int]) -> Iterator[_Span]:
    last = len(edges) - 2
    for i, (start, end) in enumerate(pairwise(edges)):
        core = start + MARGIN * (i > 0), end - MARGIN * (i < last)
        yield _Span((start, end), core, (i,))
        if i < last:
            after = edges[i + 2]
            window, core = (
                (max(start, end - reach), min(after, end + reach)) for reach in (2 * MARGIN, MARGIN)
            )
            yield _Span(window, core, (i, i + 1))


class Strips:
    """z along the seams of an image, of any timesteps: as its tiles come by.

    Args:
        boxes: of all tiles, by their numbers.
    """

    def __init__(self, boxes: Mapping[int, Box]):
        self._around: dict[int, list[Seam]] = defaultdict(list)
        for seam in find_seams(boxes):
            for index in seam.tiles:
                self._around[index].append(seam)
        self._z: dict[_Key, Array] = {}
        self._missing: dict[_Key, set[int]] = {}

    def add(self, part: Part, timestep: int, z: Float64[Array, "3 height width"]) -> None:
        """Take a tile's z."""
        for seam in self._around[part.index]:
            key = timestep, part.plan, part.label, seam
            if key not in self._z:
                self._z[key] = np.empty((3, seam.window.height, seam.window.width))
                self._missing[key] = set(seam.tiles)
            self._z[key][:, *within(part.box, seam.window)] = z[:, *within(seam.window, part.box)]
            self._missing[key].discard(part.index)

    def seen(
        self,
        model: Model,
        bar: "tqdm[Any]",
        wanted: Callable[[int, Seam], bool] = lambda timestep, seam: True,
        ensemble: bool = False,
    ) -> Iterator[tuple[int, Seam, Posterior]]:
        """The posterior of x in the core of each seam at each timestep, [3, height, width].

        Seams are left out of which a tile has not come by: it is no chain, or by another plan or of
        another class.

        Args:
            model: to be asked.
            bar: of progress.
            wanted: whether to tell of a seam at a timestep.
            ensemble: whether the mean is that of two answers.
        """

        def job(key: _Key) -> Job[Posterior]:
            timestep, plan, label, seam = key
            asked = Request(self._z[key], timestep, label)
            answer: Posterior = yield asked
            mean, core = answer.mean, within(seam.core, seam.window)
            if ensemble:
                both = ensemble_mean(mean, asked, model.plans[plan], model.reflection)
                mean = yield from both
            return Posterior(mean[:, *core].copy(), answer.variance[:, *core].copy())

        keys = [
            key for key, tiles in self._missing.items() if not tiles and wanted(key[0], key[-1])
        ]
        parts = [Part(plan, seam.tiles[0], seam.window) for _, plan, _, seam in keys]
        for key, p in zip(keys, run(map(job, keys), parts, model, bar), strict=True):
            yield key[0], key[-1], p


def paste_seam(
    image: Image.Image,
    seam: Seam,
    mean: Float64[Array, "3 height width"],
    color: str,
    box: Box | None = None,
) -> None:
    """Put the core of a seam in its place; of grey images chroma is known to be 0.

    Args:
        image: to put it into.
        seam: whose core it is.
        mean: of x in the core.
        color: domain of x.
        box: the only tile to put it into, if it is not for all.
    """
    rows, columns = within(box or seam.core, seam.core)
    x = mean[:, rows, columns].copy()
    x[coded_channels(image.mode, color) :] = 0
    left, top = seam.core.left + columns.start, seam.core.top + rows.start
    paste(image, Box(left, top, x.shape[2], x.shape[1]), x, color)


def within(box: Box, frame: Box) -> tuple[slice, slice]:
    """Rows and columns of what a rectangle has of another one, in that one."""
    left, top = max(box.left, frame.left), max(box.top, frame.top)
    right = min(box.left + box.width, frame.left + frame.width)
    bottom = min(box.top + box.height, frame.top + frame.height)
    return (
        slice(top - frame.top, max(top, bottom) - frame.top),
        slice(left - frame.left, max(left, right) - frame.left),
    )
