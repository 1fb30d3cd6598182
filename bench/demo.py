"""Encode a photograph, decode it to the bit, and show what a reader sees on the way.

python -m bench demo examples/kodim23.png
"""

import io
import time
from pathlib import Path
from typing import Any

import click
import imagecodecs
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffcodec import decode, encode, load_model
from diffcodec.codec import measure_marks
from diffcodec.images import psnr
from diffcodec.info import describe, dimensions
from diffcodec.model_file import DEFAULT_MODEL

PREVIEW_SHARES = (0.75, 0.6, 0.45, 0.25)  # of the chain still to go
PANEL_WIDTH, CAPTION_HEIGHT, MARGIN = 384, 28, 8


def other_codecs(image: Image.Image) -> dict[str, int]:
    """Bytes that other lossless coders take, at their high settings."""
    png, webp = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG", optimize=True)
    image.save(webp, "WEBP", lossless=True, quality=100, method=6)
    jpeg_xl = imagecodecs.jpegxl_encode(np.asarray(image), lossless=True, effort=7)
    return {
        "PNG, optimised": len(png.getvalue()),
        "WebP, lossless": len(webp.getvalue()),
        "JPEG XL, effort 7": len(jpeg_xl),
    }


def contact_sheet(panels: list[tuple[str, Image.Image]]) -> Image.Image:
    """The images side by side, two in a row, each above its caption."""
    width = PANEL_WIDTH
    height = max(width * image.height // image.width for _, image in panels)
    rows = -(-len(panels) // 2)
    size = (2 * width + 3 * MARGIN, rows * (height + CAPTION_HEIGHT) + 2 * MARGIN)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, (caption, image) in enumerate(panels):
        left = MARGIN + i % 2 * (width + MARGIN)
        top = MARGIN + i // 2 * (height + CAPTION_HEIGHT)
        scaled = (width, width * image.height // image.width)
        sheet.paste(image.convert("RGB").resize(scaled, Image.Resampling.LANCZOS), (left, top))
        draw.text((left, top + height + 4), caption, "black", font)
    return sheet


def print_sizes(sizes: dict[str, int], samples: int) -> None:
    """A table of lossless sizes; the ratio is to the image's samples at a byte each."""
    print(f"\n{'lossless':20} {'bytes':>9}  {'bits per subpixel':>17}  {'ratio':>6}")
    for name, size in sizes.items():
        print(f"{name:20} {size:9}  {8 * size / samples:17.3f}  {samples / size:6.2f}")


def choose_previews(timesteps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A handful of timesteps spread over the chain, coarsest first."""
    last = max((row["timestep"] for row in timesteps), default=0)
    wanted = {round(last * share) for share in PREVIEW_SHARES} - {0}
    return [row for row in timesteps if row["timestep"] in wanted]


@click.command()
@click.argument("photo", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--effort", default="default", show_default=True)
@click.option("--model", "model_name", default=DEFAULT_MODEL, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/demo"))
def main(photo: Path, effort: str, model_name: str, out: Path) -> None:
    """Show on one PHOTO that the codec is exact, how large its files are, and its previews."""
    out.mkdir(parents=True, exist_ok=True)
    model = load_model(model_name)
    with Image.open(photo) as opened:
        image = opened.copy()

    start = time.perf_counter()
    data = encode(image, model, effort, progress=True)
    encoded = time.perf_counter()
    decoded = decode(data, model=model, progress=True)
    done = time.perf_counter()
    exact = decoded.mode == image.mode and np.array_equal(np.asarray(decoded), np.asarray(image))
    (out / f"{photo.stem}.dfc").write_bytes(data)
    container = measure_marks(data, model)
    samples = dimensions(container)

    print(f"{photo}: {image.width} x {image.height} {image.mode}")
    print(f"encoded in {encoded - start:.1f} s, decoded in {done - encoded:.1f} s")
    if not exact:
        raise SystemExit("the decoded image differs from the original")
    print("decoded: mode and every sample equal the original")
    print_sizes(other_codecs(image) | {"diffcodec": len(data)}, samples)

    previews = choose_previews(describe(data, container, model.info)["timesteps"])
    if not previews:
        print("\nno part of the image took the chain, so there are no previews")
        return
    print(f"\n{'timestep':>8}  {'noise (grey levels)':>19}  {'PSNR (dB)':>9}", end="")
    print(f"  {'bytes read':>10}  {'seconds':>7}")
    panels = []
    for row in previews:
        timestep, noise = row["timestep"], row["noise_grey_levels"]
        start = time.perf_counter()
        preview = decode(data, timestep, model, progress=True)
        seconds = time.perf_counter() - start
        preview.save(out / f"{photo.stem}-timestep-{timestep:02}.png")
        quality = psnr(preview, image)
        print(f"{timestep:8}  {noise:19.1f}  {quality:9.1f}", end="")
        print(f"  {row['bits'] // 8:10}  {seconds:7.1f}")
        caption = f"timestep {timestep}: noise {noise:.1f}, PSNR {quality:.1f} dB"
        panels.append((caption, preview))
    contact_sheet(panels).save(out / "previews.png")
    print(f"\nwrote {out}/: {photo.stem}.dfc, the previews and previews.png")


if __name__ == "__main__":
    main()
