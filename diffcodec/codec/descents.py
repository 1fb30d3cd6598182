"""Tiles of an image that are down at a timestep, and what they show together."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from PIL import Image
from tqdm import tqdm

from diffcodec.arrays import Array
from diffcodec.codec.batches import run
from diffcodec.codec.jobs import (
    Job,
    Part,
    Result,
    View,
    decode_job,
    decoding,
    encoding,
    make_chain,
)
from diffcodec.codec.seams import Seam, Strips, paste_seam, within
from diffcodec.codec.tiles import paste_chains
from diffcodec.coding.chain import TileChain
from diffcodec.coding.top_down import Descent, Piece
from diffcodec.container.parts import Box, Tile
from diffcodec.images.color_sets import ColorSet
from diffcodec.models.model import Model

AT_ONCE = ("ensemble", "mean")  # reconstructions of z_t where it is
KEPT_BYTES = 200 << 20  # of the model's answers
ANSWER_BYTES, SHARED_BYTES = 48, 256  # of one, for each pixel, and of what phases share
_Pieces = defaultdict[int, list[Piece]]  # by the numbers of tiles


class Descents:
    """Tiles of an image that are down at a timestep.

    They hold z_t, 24 bytes a pixel; of small images also what spares time.
    """

    def __init__(
        self,
        model: Model,
        mode: str,
        parts: Sequence[Part],
        bar: "tqdm[Any]",
        colors: ColorSet | None = None,
        exact: bool = True,
        encodes: bool = False,
        boxes: Mapping[int, Box] | None = None,
    ):
        """Hold none yet.

        Args:
            model: to be asked.
            mode: of the image.
            parts: the tiles that are chains.
            bar: of progress.
            colors: which can occur, if not all can.
            exact: whether the file goes down to the image itself.
            encodes: whether this is the encoder.
            boxes: of all tiles, by their numbers, if some are no chains.
        """
        self.model, self.mode, self.parts, self.bar = model, mode, list(parts), bar
        self.colors, self.exact, self.encodes = colors, exact, encodes
        self.boxes = boxes or {part.index: part.box for part in parts}
        self.keeps = sum(part.pixels for part in parts) * self._bytes_each <= KEPT_BYTES
        self._descents: dict[int, Descent] = {}

    @property
    def _bytes_each(self) -> int:
        return ANSWER_BYTES + SHARED_BYTES * self.model.phased

    def descent(self, part: Part) -> Descent:
        """The descent of a tile; begun at its turn, as a file may claim any number of tiles."""
        if part.index not in self._descents:
            self._descents[part.index] = Descent(self.chain(part))
        return self._descents[part.index]

    def put(self, part: Part, descent: Descent) -> None:
        """Take a tile as far down as it came."""
        self._descents[part.index] = descent
        if not self.keeps:
            descent.forget(self.chain(part))

    def chain(self, part: Part) -> TileChain:
        """The chain of a tile, at its start."""
        return make_chain(self.model, self.mode, part, self.colors, self.exact)

    def run(self, job: Callable[[Part, Descent], Job[Result]]) -> Iterator[Result]:
        """Run the job of every tile; results in their order."""

        def bounded(part: Part) -> Job[Result]:
            descent = self.descent(part)
            result = yield from job(part, descent)
            if not self.keeps:
                descent.forget(self.chain(part))
            return result

        return run(map(bounded, self.parts), self.parts, self.model, self.bar)

    def land(self, part: Part, tile: Tile, view: View) -> Job[Array | None]:
        """Decode a tile below where it is.

        Returns:
            What it shows, in the colour domain; None where that is left to :meth:`show`.
        """
        chain = self.descent(part).below() if part.index in self._descents else self.chain(part)
        found = yield from decode_job(self.model, chain, tile, view.timestep)
        if not isinstance(found, Descent):
            self._descents.pop(part.index, None)
            return found
        x = (yield from self._shown(found, view)) if view.reconstruct in AT_ONCE else None
        self.put(part, found)
        return x

    def show_landed(self, image: Image.Image, view: View) -> None:
        """Put into an image with what :meth:`land` returned the rest of what there is to show."""
        self.parts = [part for part in self.parts if part.index in self._descents]
        if view.reconstruct in AT_ONCE:
            self._show_seams(image, view)
        else:
            self.show(image, view)

    def show(self, image: Image.Image, view: View, seams: bool = True) -> None:
        """Put what the tiles show into an image, reconstructed as the view says.

        Args:
            image: of the tiles.
            view: of it.
            seams: whether the borders of tiles are evaluated with both sides in sight.
        """
        shown = self if view.reconstruct in AT_ONCE else self._gone_on(view)

        def job(part: Part, descent: Descent) -> Job[Array]:
            with self._blame(part):
                return (yield from self._shown(descent, view))

        paste_chains(image, self.parts, shown.run(job), self.model.color)
        if seams:
            shown._show_seams(image, view)

    def _shown(self, descent: Descent, view: View) -> Job[Array]:
        """What a tile shows where it is, [3, height, width]."""
        if view.reconstruct == "ensemble":
            return (yield from descent.ensemble(self.model.reflection))
        return (yield from descent.mean())

    def _show_seams(self, image: Image.Image, view: View) -> None:
        for seam, mean, _ in self._seen(view.reconstruct == "ensemble"):
            paste_seam(image, seam, mean, self.model.color)

    def _seen(self, ensemble: bool = False) -> Iterator[tuple[Seam, Array, Array]]:
        if len(self.boxes) < 2 or not self.parts:
            return
        strips = Strips(self.boxes)
        for part in self.parts:
            descent = self.descent(part)
            strips.add(part, descent.timestep, descent.z)
        with self._blame(self.parts[0]):
            for _, seam, p in strips.seen(self.model, self.bar, ensemble=ensemble):
                yield seam, p.mean, p.variance

    def _blame(self, part: Part) -> AbstractContextManager[None]:
        """A context that blames the model or the file for a ValueError of a tile."""
        return encoding(self.model) if self.encodes else decoding(self.model, part.index)

    def _gone_on(self, view: View) -> "Descents":
        """The tiles farther down, by what the decoder knows alone."""
        others = Descents(
            model=self.model,
            mode=self.mode,
            parts=self.parts,
            bar=self.bar,
            colors=self.colors,
            exact=self.exact,
            encodes=self.encodes,
            boxes=self.boxes,
        )
        ends = {}
        for part in self.parts:
            descent = self.descent(part)
            ends[part.index] = descent.lowest(view.reconstruct)
            others.put(part, Descent(descent.below(), descent.timestep))
        while any(others.descent(part).timestep > ends[part.index] for part in self.parts):
            pieces = others._pieces()

            def job(part: Part, descent: Descent, known: _Pieces = pieces) -> Job[None]:
                if descent.timestep > ends[part.index]:
                    with self._blame(part):
                        yield from descent.amend(known[part.index])
                        yield from descent.go_on(view.reconstruct, view.seed)

            list(others.run(job))
        return others

    def _pieces(self) -> _Pieces:
        """What seams tell of each tile."""
        pieces: _Pieces = defaultdict(list)
        for seam, *fields in self._seen():
            for index in seam.tiles:
                box = self.boxes[index]
                part = within(box, seam.core)
                mean, variance = (field[:, *part] for field in fields)
                pieces[index].append(Piece(within(seam.core, box), mean, variance))
        return pieces
