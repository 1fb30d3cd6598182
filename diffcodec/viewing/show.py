"""Files shown timestep by timestep: as a page with a slider, and as a contact sheet."""

import base64
import html
import io
import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from diffcodec.codec.decoding import iter_decode
from diffcodec.codec.estimates import check_memory
from diffcodec.codec.timesteps import decode_timesteps, measure_marks
from diffcodec.container.parts import Container
from diffcodec.container.reader import FileReader, parse
from diffcodec.images.modes import psnr
from diffcodec.limits import DEFAULT_LIMITS, Limits
from diffcodec.models.file import find_model_path, model_info, model_path
from diffcodec.models.model import Model

LARGEST_SIDE = 2048  # of a picture on the page
PANEL_SIDES = (224, 384)  # the least and the most of a picture on the contact sheet
SHEET_WIDTH = 1600
MARGIN, FONT_SIZE, TITLE_SIZE = 12, 14, 20
OTHERS: dict[str, dict[str, Any]] = {
    "JPEG": {"optimize": True},
    "WebP": {"method": 4},
    "AVIF": {"speed": 6},
}
OTHER_QUALITIES = (2, 10, 30, 50, 70, 85, 95)


class Preview(NamedTuple):
    """What a file shows at one timestep.

    Attributes:
        timestep: 0 is the exact image.
        image: in the file's mode.
        size: bytes of the file that it takes, header included.
        psnr: in dB, infinite of the exact image; None where the file has no exact image.
        sigma: the noise of z_t in grey levels, if it is known.
    """

    timestep: int
    image: Image.Image
    size: int
    psnr: float | None
    sigma: float | None = None

    @property
    def bpp(self) -> float:
        """Bits per pixel of the bytes that it takes."""
        return 8 * self.size / (self.image.width * self.image.height)


def previews(
    data: bytes,
    model: str | Model | None = None,
    progress: bool = False,
    limits: Limits = DEFAULT_LIMITS,
    device: str | None = None,
) -> list[Preview]:
    """What a file shows at each of its timesteps, the coarsest first.

    Of a file with previews these are the timesteps behind which it may be cut, and the exact image
    if it has it; of any other all timesteps of its tiles, each with the bytes that decoding down to
    it consumes.

    Args:
        data: a file's bytes.
        model: the model that it was encoded with, if it is not a shipped one.
        progress: show a bar on a terminal when it takes over two seconds.
        limits: the sizes to accept; all pictures are in memory at a time.
        device: where the model computes; see :func:`diffcodec.load_model`.

    Raises:
        DiffcodecError: if it does not decode; see :func:`diffcodec.decode`.
    """
    header = FileReader(data, limits).container
    if header.layers:
        check_memory(header, limits, len(header.layers.stops))
        stream = io.BytesIO(data)
        images = iter_decode(stream, model, limits=limits, device=device)
        found = [(t, image, stream.tell()) for t, image in images]
    else:
        container = measure_marks(data, model, limits, device)
        found = [
            (t, image, len(data) - _unread(container, t))
            for t, image in decode_timesteps(data, model, progress, limits, device)
        ]
    timestep, finest, _ = found[-1]
    quality = (psnr(image, finest) if timestep == 0 else None for _, image, _ in found)
    levels = used_model(data, model, limits)[1]
    return [
        Preview(*row, q, levels[row[0] - 1] if levels and row[0] else None)
        for row, q in zip(found, quality, strict=True)
    ]


def used_model(
    data: bytes, model: str | Model | None, limits: Limits = DEFAULT_LIMITS
) -> tuple[str, Sequence[float]]:
    """The name of a file's model, and the noise levels of its plan; neither if it has none."""
    container = parse(data, limits)
    if not container.uses_model:
        return "", ()
    if isinstance(model, Model):
        info = model.info
    else:
        info = model_info(find_model_path(container.model) if model is None else model_path(model))
    plans = {tile.plan for tile in container.tiles if tile.plan}
    if container.layers:
        plans = {container.layers.plan}
    if len(plans) > 1:  # each has its own
        return info.name, ()
    return info.name, info.plans[plans.pop()].levels


def _unread(container: Container, timestep: int) -> int:
    """Bytes of payload that timestep t does not need; tiles that are no chains need all."""
    if timestep == 0:
        return 0
    tiles = (tile for tile in container.tiles if timestep <= len(tile.marks))
    return sum(len(tile.payload) - 4 * tile.marks[-timestep] for tile in tiles)


# --- a page ---------------------------------------------------------------------------------------


def page(shown: Sequence[Preview], title: str, model: str = "") -> str:
    """A self-contained HTML page with a slider over the timesteps; ``#t=5`` opens it at z_5.

    Args:
        shown: the coarsest first.
        title: the file's name.
        model: the name of its model.
    """
    finest = shown[-1]
    width, height = finest.image.size
    facts = f"{width} x {height} pixels, {finest.size:,} bytes, {finest.bpp:.3f} bits per pixel"
    if model:
        facts += f", by the model {model}"
    scaled = _on_screen(finest.image)
    if scaled.size != finest.image.size:
        facts += f"; the pictures are scaled to {scaled.width} x {scaled.height}"
    return Template(files("diffcodec.viewing").joinpath("page.html").read_text("utf-8")).substitute(
        title=html.escape(title),
        facts=html.escape(facts),
        width=scaled.width,
        height=scaled.height,
        last=len(shown) - 1,
        middle=(len(shown) - 1) // 2,
        previews=json.dumps([_row(preview) for preview in shown]).replace("<", "\\u003c"),
        others=json.dumps(other_curves(finest)),
    )


def other_curves(finest: Preview) -> dict[str, list[tuple[float, float]]]:
    """Bits per pixel and PSNR of the exact image by codecs that Pillow has, of no large one."""
    image = finest.image
    is_large = image.width * image.height > LARGEST_SIDE * LARGEST_SIDE
    if finest.timestep or is_large or image.mode not in ("L", "RGB"):
        return {}
    found: dict[str, list[tuple[float, float]]] = {}
    for name, options in OTHERS.items():
        for quality in OTHER_QUALITIES if name == "JPEG" or features.check(name.lower()) else ():
            buffer = io.BytesIO()
            Image.fromarray(np.asarray(image)).save(buffer, name, quality=quality, **options)
            with Image.open(buffer) as opened:
                shown = opened.convert(image.mode)
            bpp = 8 * len(buffer.getvalue()) / (image.width * image.height)
            found.setdefault(name, []).append((round(bpp, 4), round(psnr(shown, image), 2)))
    return found


def _row(preview: Preview) -> dict[str, Any]:
    """What the page's script knows of a preview."""
    buffer = io.BytesIO()
    _on_screen(preview.image).save(buffer, "WEBP", lossless=True, quality=0, method=1)
    picture = base64.b64encode(buffer.getvalue()).decode("ascii")
    return {
        "timestep": preview.timestep,
        "bytes": f"{preview.size:,}",
        "bpp": f"{preview.bpp:.3f}",
        "psnr": _quality(preview),
        "noise": _noise(preview),
        "src": f"data:image/webp;base64,{picture}",
    }


def _quality(preview: Preview) -> str:
    if preview.timestep == 0:
        return "exact"
    return "unknown" if preview.psnr is None else f"{preview.psnr:.2f} dB"


def _noise(preview: Preview) -> str:
    if preview.timestep == 0:
        return "none"
    return "unknown" if preview.sigma is None else f"{preview.sigma:.3g}"


def _on_screen(image: Image.Image) -> Image.Image:
    image = _displayable(image)
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
    return image


def _displayable(image: Image.Image) -> Image.Image:
    """A copy of 8 bits, in colour, with its transparency."""
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


# --- a contact sheet ------------------------------------------------------------------------------


def contact_sheet(shown: Sequence[Preview], title: str = "") -> Image.Image:
    """All previews in rows as equal as can be, each above its timestep, PSNR, bytes and rate.

    Args:
        shown: the coarsest first.
        title: to stand above them.
    """
    panels = [_panel(preview) for preview in shown]
    width, height = panels[0].size
    rows = -(-len(panels) // max(1, SHEET_WIDTH // (width + MARGIN)))
    columns = -(-len(panels) // rows)
    top = MARGIN + (TITLE_SIZE + MARGIN if title else 0)
    font = ImageFont.load_default(TITLE_SIZE)
    wide = max(columns * (width + MARGIN), round(font.getlength(title)) + MARGIN)
    sheet = Image.new("RGB", (wide + MARGIN, top + rows * (height + MARGIN)), "white")
    ImageDraw.Draw(sheet).text((MARGIN, MARGIN), title, "black", font)
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        sheet.paste(panel, (MARGIN + column * (width + MARGIN), top + row * (height + MARGIN)))
    return sheet


def _panel(preview: Preview) -> Image.Image:
    picture = _displayable(preview.image)
    least, most = PANEL_SIDES
    side = max(picture.size)
    if side > most:
        picture.thumbnail((most, most), Image.Resampling.LANCZOS)
    elif side < least:
        picture = picture.resize(
            [n * (least // side) for n in picture.size], Image.Resampling.NEAREST
        )
    font = ImageFont.load_default(FONT_SIZE)
    lines = "\n".join(_caption(preview))
    text = ImageDraw.Draw(picture).multiline_textbbox((0, 0), lines, font)
    size = (max(picture.width, least), picture.height + round(text[3]) + MARGIN)
    panel = Image.new("RGB", size, "white")
    panel.paste(picture, (0, 0), picture if picture.mode == "RGBA" else None)
    ImageDraw.Draw(panel).multiline_text((0, picture.height + 6), lines, "black", font)
    return panel


def _caption(preview: Preview) -> Iterator[str]:
    if preview.timestep == 0:
        yield "exact"
    else:
        yield f"timestep {preview.timestep}: PSNR {_quality(preview)}"
    yield f"{preview.size:,} bytes, {preview.bpp:.3f} bpp"
