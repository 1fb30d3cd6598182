"""Lossless sizes, whole files, beside the codecs that people use, and against the chain's bound.

python -m bench.lossless --data DIR [--crop 32] [--out results/lossless.json]

One line per image; what is done already is read back from the results file, so that a run that was
stopped goes on. Sizes count every byte of the files. The bound is the chain's variational bound
for the same image and plan, estimated by one sample of the chain.
"""

import io
import json
import os
import platform
import resource
import time
from collections.abc import Callable
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

from diffcodec import decode, encode, load_model
from diffcodec.bound import chain_bound_bits
from diffcodec.color import to_domain
from diffcodec.container import parse, tile_grid
from diffcodec.data import find_images
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
    array = np.asarray(image)
    return {
        "samples": array.size,
        "bytes": {"diffcodec": len(data)} | {k: f(image, array) for k, f in BASELINES.items()},
        "bound_bits": bound_bits(model, effort, image),
        "tiles": {coder: coders.count(coder) for coder in sorted(set(coders))},
        "encode_seconds": encoded - begin,
        "decode_seconds": end - encoded,
    }


def table(results: dict[str, Any]) -> str:
    """Bits per dimension of every image and their mean, as Markdown."""
    names = ["diffcodec", "bound", *BASELINES]
    rows = []
    for image, r in results.items():
        bits = {name: 8 * size for name, size in r["bytes"].items()} | {"bound": r["bound_bits"]}
        rows.append((image, *(bits[name] / r["samples"] for name in names)))
    means = [float(np.mean([row[i] for row in rows])) for i in range(1, len(names) + 1)]
    lines = ["| image | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label, *values in [*rows, (f"mean of {len(rows)}", *means)]:
        lines.append(f"| {label} | " + " | ".join(f"{v:.3f}" for v in values) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder of images.")
@click.option("--model", default="photo", help="Name or path.")
@click.option("--effort", default="default")
@click.option("--crop", type=int, help="Take the central square of so many pixels of each image.")
@click.option("--limit", type=int, help="Only the first so many images.")
@click.option("--out", default="results/lossless.json", type=click.Path(path_type=Path))
def main(
    data: Path, model: str, effort: str, crop: int | None, limit: int | None, out: Path
) -> None:
    """Code every image, check that it comes back, and compare sizes."""
    used = load_model(model)
    settings = {"model": used.info.id.hex(), "effort": effort, "crop": crop}
    state: dict[str, Any] = {"settings": settings, "results": {}}
    if out.exists():
        state = json.loads(out.read_text())
        if state["settings"] != settings:
            raise SystemExit(f"{out} holds results of {state['settings']}; give another --out")
    results = state["results"]
    for path in tqdm(find_images(data)[:limit], disable=None):
        if path.name in results:
            continue
        image = read_image(path).convert("RGB")
        if crop is not None:
            left, top = (image.width - crop) // 2, (image.height - crop) // 2
            image = image.crop((left, top, left + crop, top + crop))
        results[path.name] = measure(used, effort, image)
        state["machine"] = {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "torch": torch.__version__,
            "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(state, indent=1))
    click.echo(table(results))
    for name in ("encode_seconds", "decode_seconds"):
        click.echo(f"{name}: median {np.median([r[name] for r in results.values()]):.1f}")
    tiles = sum(sum(r["tiles"].values()) for r in results.values())
    chain = sum(r["tiles"].get(effort, 0) for r in results.values())
    click.echo(f"{chain} of {tiles} tiles by the chain")
    click.echo(f"peak memory: {state['machine']['peak_megabytes']:.0f} MB")


if __name__ == "__main__":
    main()
