"""Encode a photograph, decode it to the bit, and show what a reader sees on the way.

It is one progressive file: a preview is what its first bytes show, the last picture is exact. It is
decoded once, which gives the previews, the proof, the contact sheet and the page. Of a large
photograph the middle is taken, so that all takes less than a minute on two cores.

python -m bench demo examples/kodim23.png
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import click
from PIL import Image

from bench.codecs import lossless_codecs
from bench.measuring import check_equal
from diffcodec import encode, load_model
from diffcodec.container.parts import MODES
from diffcodec.errors import UnsupportedError
from diffcodec.models.file import DEFAULT_MODEL
from diffcodec.viewing.show import Preview, contact_sheet, page, previews

PIXELS = 1 << 17  # of what is coded, unless it is to be the whole
OTHERS = ("png", "webp", "jpegxl7")


def other_codecs(image: Image.Image) -> dict[str, int]:
    """Bytes that other lossless coders take, at their high settings."""
    codecs = [codec for codec in lossless_codecs() if codec.name in OTHERS]
    return {codec.label: len(codec.encode(image, codec.settings[0])) for codec in codecs}


def print_sizes(sizes: dict[str, int], samples: int) -> None:
    """A table of lossless sizes; the ratio is to the image's samples at a byte each."""
    print(f"\n{'lossless':24} {'bytes':>9}  {'bits per subpixel':>17}  {'ratio':>6}")
    for name, size in sizes.items():
        print(f"{name:24} {size:9}  {8 * size / samples:17.3f}  {samples / size:6.2f}")


def print_previews(shown: Sequence[Preview], levels: Sequence[float]) -> None:
    """A table of previews; ``levels`` are the noise levels of the chain."""
    print(f"\n{'timestep':>8}  {'noise (grey levels)':>19}  {'PSNR (dB)':>9}  {'bytes read':>10}")
    for p in shown:
        print(f"{p.timestep:8}  {levels[p.timestep - 1]:19.1f}  {p.psnr:9.1f}  {p.size:10}")


def middle_of(image: Image.Image, pixels: int) -> Image.Image:
    """The middle of an image in its proportions, of so many pixels at most."""
    share = min(1.0, math.sqrt(pixels / (image.width * image.height)))
    width, height = (max(1, int(share * side)) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


@click.command()
@click.argument("photo", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--effort", default="default", show_default=True)
@click.option("--model", "model_name", default=DEFAULT_MODEL, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("results/demo"))
@click.option("--whole", is_flag=True, help="Code the whole photo, however long that takes.")
def main(photo: Path, effort: str, model_name: str, out: Path, whole: bool) -> None:
    """Show on one PHOTO that the codec is exact, how large its files are, and its previews."""
    out.mkdir(parents=True, exist_ok=True)
    model = load_model(model_name)
    with Image.open(photo) as opened:
        full = opened.copy()
    image = full if whole else middle_of(full, PIXELS)
    part = "" if image.size == full.size else f", the middle of {full.width} x {full.height}"
    print(f"{photo}: {image.width} x {image.height} {image.mode}{part}")

    levels = model.plans[effort].levels
    print(f"encoding with the model {model.name}, {len(levels)} timesteps ...", flush=True)
    start = time.perf_counter()
    try:
        data = encode(image, model, effort, progressive=True, progress=True)
    except UnsupportedError as e:
        raise click.ClickException(f"{photo}: {e}") from e
    (out / f"{photo.stem}.dfc").write_bytes(data)
    seconds = time.perf_counter() - start
    print(f"encoded in {seconds:.1f} s; decoding, preview by preview ...", flush=True)
    start = time.perf_counter()
    *shown, last = previews(data, model)
    print(f"decoded in {time.perf_counter() - start:.1f} s")
    check_equal(image, last.image)
    print("decoded: mode and every sample equal the original")
    sizes = other_codecs(image) | {"diffcodec, with previews": len(data)}
    print_sizes(sizes, image.width * image.height * MODES[image.mode].channels)

    print_previews(shown, levels)
    for preview in shown:
        preview.image.save(out / f"{photo.stem}-timestep-{preview.timestep:02}.png")
    contact_sheet([*shown, last], f"{photo.stem}, {model.name}").save(out / "previews.png")
    watch = out / f"{photo.stem}.html"
    watch.write_text(page([*shown, last], f"{photo.stem}.dfc", model.name), "utf-8")
    print(f"\nwrote {out}/: {photo.stem}.dfc, each preview, and all of them on previews.png")
    print(f"watch it arrive in a browser: {watch.resolve()}")


if __name__ == "__main__":
    main()
