"""All tiles of an image on their way down."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from diffcodec.arrays import Array, Bits, Float32s
from diffcodec.codec.batches import run
from diffcodec.codec.descents import Descents
from diffcodec.codec.jobs import MEAN, Job, Part, View, decoding, encode_job, encoding
from diffcodec.codec.planes import crop, integers
from diffcodec.codec.tiles import add_to_chains, paste_chains, paste_fallbacks
from diffcodec.coding.bits_back import EncodedTile
from diffcodec.coding.top_down import Descent, MayEnd
from diffcodec.container.parts import Box, Tile, tile_grid
from diffcodec.images.color_sets import ColorSet
from diffcodec.images.modes import pixel_crc
from diffcodec.models.model import Model


class Previews(Descents):
    """All tiles of an image on their way down together."""

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
        label: int | None = None,
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
            label: class of the image, if the model is told.
        """
        if boxes is None:
            boxes = dict(enumerate(tile_grid(*size)))
        parts = [Part(plan, index, box, label=label) for index, box in boxes.items()]
        super().__init__(model, mode, parts, bar, colors, exact, encodes)
        self.size = size
        self.timestep = len(model.plans[plan].levels) + 1  # that all tiles have come to
        self._worth_sending: dict[int, Float32s] = {}  # of a tile, [3, height, width], if not all

    def fork(self) -> "Previews":
        """Others that go on from here by themselves."""
        other = copy.copy(self)
        other._descents = {index: each.fork() for index, each in self._descents.items()}
        return other

    def leave_out(self, source: Image.Image, end: int) -> None:
        """Send of the image what is worth its bits in a lossy file that ends at a timestep."""

        def job(part: Part, descent: Descent) -> Job[None]:
            x = integers(source, part.box, self.model.color).astype(np.float64)
            with encoding(self.model):
                worth = yield from descent.worth_sending(x, end)
            if worth is not x:
                self._worth_sending[part.index] = worth.astype(np.float32)

        list(self.run(job))

    def encode_step(self, source: Image.Image) -> list[Bits]:
        """Go one timestep down: its bits by tile."""

        def job(part: Part, descent: Descent) -> Job[Bits]:
            worth = self._worth_sending.get(part.index)
            x = integers(source, part.box, self.model.color) if worth is None else worth
            with encoding(self.model):
                return (yield from descent.encode_step(x.astype(np.float64)))

        bits = list(self.run(job))
        self.timestep -= 1
        return bits

    def arrive_by_noise(self, source: Image.Image, timestep: int) -> None:
        """Come to a timestep by noise in the place of bits, which shows about as much."""
        for part in self.parts:
            x = integers(source, part.box, self.model.color).astype(np.float64)
            descent = Descent(self.chain(part))
            descent.arrive_by_noise(x, timestep)
            self.put(part, descent)
        self.timestep = timestep

    def take_part(self, bits: Sequence[Bits]) -> None:
        """Go one timestep down by the beginnings of what :meth:`encode_step` gave by tile."""

        def job(part: Part, descent: Descent) -> Job[None]:
            with encoding(self.model):
                yield from descent.take_part(of_tile[part.index])

        of_tile = {part.index: each for part, each in zip(self.parts, bits, strict=True)}
        list(self.run(job))
        self.timestep -= 1

    def decode_layer(
        self,
        payloads: Sequence[bytes],
        end: int,
        timestep: int,
        may_end: MayEnd = MayEnd.NEVER,
    ) -> None:
        """Go down to the end of a layer, or not so far; tiles may come to different timesteps."""

        def job(part: Part, descent: Descent) -> Job[None]:
            with decoding(self.model, part.index):
                yield from descent.decode_layer(payloads[part.index], end, timestep, may_end)

        list(self.run(job))
        self.timestep = max(self.descent(part).timestep for part in self.parts)

    def picture(self, view: View = MEAN, seams: bool = True) -> Image.Image:
        """The image at the present timestep; see :meth:`show`."""
        image = Image.new(self.mode, self.size)
        self.show(image, view, seams)
        return image

    def encode_rest(self, source: Image.Image, coded: Image.Image) -> Iterator[EncodedTile | None]:
        """The exact tiles by the chain below z_t, or None where it has no code.

        Args:
            source: what the tiles show at the end.
            coded: the same without its outliers.
        """

        def job(part: Part, descent: Descent) -> Job[EncodedTile | None]:
            x = integers(coded, part.box, self.model.color).astype(np.float64)
            crc = pixel_crc(crop(source, part.box))
            return (yield from encode_job(self.model, descent.below(), x, crc))

        return self.run(job)

    def decode_rest(self, tiles: Sequence[Tile], view: View) -> Image.Image:
        """The image at a timestep below z_t."""

        def job(part: Part) -> Job[Array | None]:
            tile = tiles[part.index]
            if not tile.plan:
                return None
            return (yield from self.land(part, tile, view))

        image = Image.new(self.mode, self.size)
        landed = run(map(job, self.parts), self.parts, self.model, self.bar)
        paste_chains(image, self.parts, landed, self.model.color)
        if view.timestep:
            self.parts = [part for part in self.parts if tiles[part.index].plan]
            self.show_landed(image, view)
        in_view = [(box, tiles[index]) for index, box in self.boxes.items()]
        paste_fallbacks(image, in_view)
        if not view.timestep:
            add_to_chains(image, in_view)
        return image
