"""All tiles of an image on their way down."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from diffcodec.arrays import Array, Bits
from diffcodec.codec.batches import run
from diffcodec.codec.jobs import (
    EXACT,
    Job,
    Part,
    Result,
    View,
    decode_job,
    decoding,
    encode_job,
    encoding,
    make_chain,
)
from diffcodec.codec.planes import integers
from diffcodec.codec.tiles import paste_chains, paste_fallbacks
from diffcodec.coding.bits_back import EncodedTile
from diffcodec.coding.chain import TileChain
from diffcodec.coding.top_down import Descent
from diffcodec.container.parts import Box, Tile, tile_grid
from diffcodec.images.color_sets import ColorSet
from diffcodec.models.model import Model

KEPT_BYTES = 200 << 20  # of the model's answers
ANSWER_BYTES, SHARED_BYTES = 48, 256  # of one, for each pixel, and of what phases share


class Previews:
    """All tiles of an image on their way down.

    Between two steps they hold z_t, 24 bytes a pixel; of small images also what spares time.
    """

    def __init__(
        self,
        model: Model,
        mode: str,
        size: tuple[int, int],
        plan: str,
        bar: "tqdm[Any]",
        encodes: bool = False,
        colors: ColorSet | None = None,
        exact: bool = True,
        boxes: Mapping[int, Box] | None = None,
    ):
        """Begin above the first timestep.

        Args:
            model: to be asked.
            mode: of the image.
            size: of the image, or of the part of it that is shown.
            plan: of all tiles.
            bar: of progress.
            encodes: whether this is the encoder.
            colors: which can occur, if not all can.
            exact: whether the file goes down to the image itself.
            boxes: of the tiles, by their numbers, if they are not all of an image's.
        """
        self.model, self.mode, self.size, self.bar = model, mode, size, bar
        self.encodes, self.colors, self.exact = encodes, colors, exact
        if boxes is None:
            boxes = dict(enumerate(tile_grid(*size)))
        self.parts = [Part(plan, index, box) for index, box in boxes.items()]
        self.timestep = len(model.plans[plan].levels) + 1  # of all tiles
        self._descents: dict[int, Descent] = {}

    def descent(self, part: Part) -> Descent:
        """Of a tile; begun when it is its turn, as a file may claim any number of them."""
        if part.index not in self._descents:
            self._descents[part.index] = Descent(self._chain(part))
        return self._descents[part.index]

    def _chain(self, part: Part) -> TileChain:
        return make_chain(self.model, self.mode, part, self.colors, self.exact)

    def encode_step(self, source: Image.Image) -> list[Bits]:
        """One timestep down: its bits by tile."""

        def job(part: Part, descent: Descent) -> Job[Bits]:
            x = integers(source, part.box, self.model.color).astype(np.float64)
            with encoding(self.model):
                return (yield from descent.encode_step(x))

        bits = list(self._run(job))
        self.timestep -= 1
        return bits

    def decode_layer(self, payloads: Sequence[bytes], end: int, timestep: int) -> None:
        """Down to the end of a layer, or to a timestep above it."""

        def job(part: Part, descent: Descent) -> Job[None]:
            with decoding(self.model, part.index):
                yield from descent.decode_layer(payloads[part.index], end, timestep)

        list(self._run(job))
        self.timestep = max(end, timestep)

    def show(self, view: View = EXACT) -> Image.Image:
        """The image at the present timestep, reconstructed as the view says."""

        def job(part: Part, descent: Descent) -> Job[Array]:
            with encoding(self.model) if self.encodes else decoding(self.model, part.index):
                if view.reconstruct == "mean":
                    return (yield from descent.mean())
                other = Descent(descent.below(), descent.timestep)
                return (yield from other.continued(view.reconstruct, view.seed))

        return self.put_together(self._run(job))

    def encode_rest(self, source: Image.Image) -> Iterator[EncodedTile | None]:
        """The exact tiles by the chain below z_t, or None where it has no code."""

        def job(part: Part, descent: Descent) -> Job[EncodedTile | None]:
            x = integers(source, part.box, self.model.color).astype(np.float64)
            return (yield from encode_job(self.model, descent.below(), x))

        return self._run(job)

    def decode_rest(self, tiles: Sequence[Tile], view: View) -> Image.Image:
        """The image at a timestep below z_t."""

        def job(part: Part, descent: Descent) -> Job[Array | None]:
            tile = tiles[part.index]
            if not tile.plan:
                return None
            return (yield from decode_job(self.model, descent.below(), tile, view))

        image = self.put_together(self._run(job))
        paste_fallbacks(image, ((part.box, tiles[part.index]) for part in self.parts))
        return image

    def put_together(self, shown: Iterator[Array | None]) -> Image.Image:
        """An image of tiles in the colour domain."""
        image = Image.new(self.mode, self.size)
        paste_chains(image, self.parts, shown, self.model.color)
        return image

    def _run(self, job: Callable[[Part, Descent], Job[Result]]) -> Iterator[Result]:
        """Of every tile."""
        bytes_each = ANSWER_BYTES + SHARED_BYTES * self.model.phased
        keep = self.size[0] * self.size[1] * bytes_each <= KEPT_BYTES

        def bounded(part: Part) -> Job[Result]:
            descent = self.descent(part)
            result = yield from job(part, descent)
            if not keep:
                descent.forget(self._chain(part))
            return result

        return run(map(bounded, self.parts), self.parts, self.model, self.bar)
