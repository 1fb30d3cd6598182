"""Lossless sizes, whole files, beside the codecs that people use, and against the chain's bound.

python -m bench.lossless --data DIR [--crop 32] [--out results/lossless.json]

One line per image; what is done already is read back from the results files, so that a run that was
stopped goes on; the other codecs' sizes have a file of their own, good for any model of ours.
Sizes count every byte of the files. The bound is the chain's variational bound
for the same image and plan, estimated by one sample of the chain.
"""

import io
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from bench import middle, without_webp
from diffcodec import decode, encode, load_model
from diffcodec.bound import chain_bound_bits
from diffcodec.color import to_domain
from diffcodec.container import parse, tile_grid
from diffcodec.data import Source, find_images, list_images
from diffcodec.images import read_image
from diffcodec.models import Model

Array = NDArray[np.uint8]


def pillow_bytes(image: Image.Image, kind: str, **options: Any) -> int:
    """Size of an image file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return len(buffer.getvalue())


BASELINES: dict[str, Callable[[Image.Image, Array], int]] = {
    "png": lambda image, _: pillow_bytes(image, "PNG", optimize=True),
    "webp": lambda image, _: pillow_bytes(image, "WEBP", lossless=True, quality=100, method=6),
    "jpeg2000": lambda _, a: len(imagecodecs.jpeg2k_encode(a, level=0, reversible=True)),
    "jpegxl7": lambda _, a: len(imagecodecs.jpegxl_encode(a, lossless=True, effort=7)),
    "jpegxl9": lambda _, a: len(imagecodecs.jpegxl_encode(a, lossless=True, effort=9)),
}


def bound_bits(model: Model, effort: str, image: Image.Image) -> float:
    """The chain's bound on an RGB image, in bits, tile by tile as it is coded."""
    array = np.asarray(image).transpose(2, 0, 1).astype(np.int16)
    generator = torch.Generator().manual_seed(0)

    def posterior(z: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        mean, v = model.posterior_x(z.numpy(), sigma[0].item())
        return torch.from_numpy(mean), torch.from_numpy(v)

    total = 0.0
    for box in tile_grid(image.width, image.height):
        part = array[:, box.top : box.top + box.height, box.left : box.left + box.width]
        x = torch.from_numpy(to_domain(part, model.color).astype(np.float64))[None]
        parts = chain_bound_bits(posterior, x, model.color, model.plans[effort], generator)
        total += parts.sum().item() * x.numel()
    return total


def named_images(data: Path, limit: int | None) -> dict[str, Source]:
    """The first images of a folder or an array, by file name or by place in the array."""
    sources = list_images(find_images(data))[:limit]
    return {s.name if isinstance(s, Path) else f"{i:05}": s for i, s in enumerate(sources)}


def open_rgb(source: Source) -> Image.Image:
    """One of them."""
    if isinstance(source, Path):
        return read_image(source).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(source.transpose(1, 2, 0)))


def measure(model: Model, effort: str, image: Image.Image) -> dict[str, Any]:
    """Sizes and times for one image."""
    begin = time.perf_counter()
    data = encode(image, model, effort)
    encoded = time.perf_counter()
    decoded = decode(data, model=model)
    end = time.perf_counter()
    if decoded.mode != image.mode or decoded.tobytes() != image.tobytes():
        raise SystemExit("a decoded image differs from the original")
    coders = [tile.coder for tile in parse(data).tiles]
    return {
        "samples": image.width * image.height * 3,
        "bytes": len(data),
        "bound_bits": bound_bits(model, effort, image),
        "tiles": {coder: coders.count(coder) for coder in sorted(set(coders))},
        "encode_seconds": encoded - begin,
        "decode_seconds": end - encoded,
    }


class ResultsFile:
    """Results by image name, written after each; of other settings they are refused."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        self.state: dict[str, Any] = {"settings": settings, "machine": machine(), "results": {}}
        if path.exists():
            self.state |= json.loads(path.read_text())
            if self.state["settings"] != settings:
                raise SystemExit(f"{path} is of {self.state['settings']}; give another --out")

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """The result of an image, from the file or by computing it."""
        if name not in self.state["results"]:
            self.state["results"][name] = compute()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps(self.state, indent=1))
        return self.state["results"][name]


def machine() -> dict[str, Any]:
    """What the times depend on."""
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
    }


def table(ours: dict[str, Any], others: dict[str, Any]) -> str:
    """Bits per dimension of every image and their mean, as Markdown."""
    names = ["diffcodec", "bound", *BASELINES]
    rows = []
    for image, r in ours.items():
        sizes = {"diffcodec": r["bytes"], "bound": r["bound_bits"] / 8} | others[image]
        rows.append((image, *(8 * sizes[name] / r["samples"] for name in names)))
    means = [float(np.mean([row[i] for row in rows])) for i in range(1, len(names) + 1)]
    lines = ["| image | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label, *values in [*rows, (f"mean of {len(rows)}", *means)]:
        lines.append(f"| {label} | " + " | ".join(f"{v:.3f}" for v in values) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder or .npy.")
@click.option("--model", default="photo", help="Name or path.")
@click.option("--effort", default="default")
@click.option("--crop", type=int, help="Take the central square of so many pixels of each image.")
@click.option("--limit", type=int, help="Only the first so many images.")
@click.option("--chain-only", is_flag=True, help="Let no tile take WebP.")
@click.option("--out", default="results/lossless.json", type=click.Path(path_type=Path))
def main(
    data: Path,
    model: str,
    effort: str,
    crop: int | None,
    limit: int | None,
    chain_only: bool,
    out: Path,
) -> None:
    """Code every image, check that it comes back, and compare sizes."""
    used = load_model(model)
    images = named_images(data, limit)
    other_sizes = ResultsFile(out.with_suffix(".others.json"), {"data": data.name, "crop": crop})
    settings = {"data": data.name, "model": used.info.id.hex(), "effort": effort, "crop": crop}
    if chain_only:
        without_webp()
        settings["chain_only"] = True
    measured = ResultsFile(out, settings)

    def read(name: str) -> Image.Image:
        image = open_rgb(images[name])
        return image if crop is None else middle(image, crop)

    def baselines(name: str) -> dict[str, int]:
        image = read(name)
        return {codec: size(image, np.asarray(image)) for codec, size in BASELINES.items()}

    def code(name: str) -> dict[str, Any]:
        return measure(used, effort, read(name))

    others, ours = {}, {}
    for name in tqdm(images, "other codecs", disable=None):
        others[name] = other_sizes.get(name, partial(baselines, name))
    for name in tqdm(images, "diffcodec", disable=None):
        ours[name] = measured.get(name, partial(code, name))
    click.echo(table(ours, others))
    for name in ("encode_seconds", "decode_seconds"):
        click.echo(f"{name}: median {np.median([r[name] for r in ours.values()]):.1f}")
    tiles = sum(sum(r["tiles"].values()) for r in ours.values())
    chain = sum(r["tiles"].get(effort, 0) for r in ours.values())
    click.echo(f"{chain} of {tiles} tiles by the chain")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    click.echo(f"peak memory of this process: {peak:.0f} MB")


if __name__ == "__main__":
    main()
