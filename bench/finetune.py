"""What fine-tuning a shipped model gains on a folder of alike images.

apt-get download mricron-data && dpkg-deb -x mricron-data_*.deb mricron-data
python -m bench.finetune mricron-data/usr/share/mricron/templates/ch2.nii.gz --minutes 30

The images are the axial slices of a magnetic resonance image of one head, 217 x 181 grey pixels
each (Colin Holmes' brain, the average of 27 scans; Debian's mricron-data, BSD licence): nothing
that a model of photographs has seen. A block of neighbouring slices is kept for the test, cut into
square tiles, each a file of its own, as slides and maps are kept for viewing. The model is trained
by the command ``diffcodec train`` on the other slices alone. Sizes are whole files, headers
included. A run that was stopped goes on.
"""

import gzip
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffcodec.data import as_rgb
from diffcodec.evaluate import evaluate, mean_interval
from diffcodec.models import load_model
from diffcodec.train import CHECKPOINT, MODEL

SHAPE = (181, 217, 181)  # axial slices first
HEADER = 352  # bytes of a NIfTI-1 file before its samples
SAMPLES = "38e1383cfd10824abc62dd61c9597f83ff899c82e2a84eb37737bdc83bfc9d7d"  # SHA-256
SLICES = range(10, 172)  # those that show enough of the head
TEST = range(85, 100)
MARGIN = 2  # slices on each side of the test that are not trained on either
MIDDLE = (slice(20, 196), slice(16, 164))  # of a slice: the head


def read_volume(path: Path) -> NDArray[np.uint8]:
    """The slices.

    Raises:
        click.ClickException: if it is another file.
    """
    try:
        data = gzip.decompress(path.read_bytes())[HEADER:]
    except (OSError, EOFError) as e:
        raise click.ClickException(f"{path}: not a compressed volume ({e})") from e
    found = hashlib.sha256(data).hexdigest()
    if found != SAMPLES:
        raise click.ClickException(f"{path}: SHA-256 {found} of the samples, expected {SAMPLES}")
    return np.frombuffer(data, np.uint8).reshape(SHAPE)


def write_training_slices(volume: NDArray[np.uint8], folder: Path) -> None:
    """All that are far enough from the test's, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    near = range(TEST.start - MARGIN, TEST.stop + MARGIN)
    for number in SLICES:
        if number not in near:
            Image.fromarray(volume[number]).save(folder / f"{number:03}.png")


def test_tiles(volume: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Tiles of the test's slices, [tiles, side, side]."""
    tiles = []
    for number in TEST:
        head = volume[number][MIDDLE]
        for top in range(0, head.shape[0] - side + 1, side):
            for left in range(0, head.shape[1] - side + 1, side):
                tiles.append(head[top : top + side, left : left + side])
    return np.ascontiguousarray(tiles)


def fine_tune(data: Path, out: Path, init: str, minutes: float, batch: int) -> None:
    """By the command line, on the CPU or GPU that it finds."""
    command = [sys.executable, "-m", "diffcodec", "train", "--data", str(data), "--out", str(out)]
    if (out / CHECKPOINT).exists():
        command += ["--resume"]
    else:
        command += ["--init", init, "--minutes", str(minutes), "--batch", str(batch)]
    subprocess.run(command, check=True)


def model_sizes(model: str | Path, tiles: NDArray[np.uint8], effort: str) -> list[int]:
    """Bytes of each tile's file."""
    used = load_model(model)
    images = list(as_rgb(tiles, "the tiles"))
    results = evaluate(used, images, used.plans[effort], effort=effort, progress=True)
    return [result.file_bytes or 0 for result in results]


@click.command()
@click.argument("volume", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--minutes", default=30.0, show_default=True, help="Of fine-tuning.")
@click.option("--init", default="photo", show_default=True, help="The model to start from.")
@click.option("--batch", default=16, show_default=True, help="Crops in each update.")
@click.option("--side", default=48, show_default=True, help="Of a test tile, pixels.")
@click.option("--limit", type=int, help="Only the first so many tiles.")
@click.option("--effort", default="default", show_default=True)
@click.option("--out", default=Path("results/finetune"), type=click.Path(path_type=Path))
def main(
    volume: Path,
    minutes: float,
    init: str,
    batch: int,
    side: int,
    limit: int | None,
    effort: str,
    out: Path,
) -> None:
    """Fine-tune on the slices of VOLUME, and compare whole files of tiles that were held out."""
    slices = read_volume(volume)
    write_training_slices(slices, out / "train")
    tiles = test_tiles(slices, side)[:limit]
    fine_tune(out / "train", out / "run", init, minutes, batch)
    sizes = {
        "JPEG XL, effort 9": [
            len(imagecodecs.jpegxl_encode(tile, lossless=True, effort=9)) for tile in tiles
        ],
        f"{init}": model_sizes(init, tiles, effort),
        f"{init}, fine-tuned": model_sizes(out / "run" / MODEL, tiles, effort),
    }
    baseline = sum(sizes["JPEG XL, effort 9"])
    result: dict[str, Any] = {"minutes": minutes, "tiles": len(tiles), "side": side, "sizes": {}}
    click.echo(f"{len(tiles)} tiles of {side} x {side} grey pixels, whole files\n")
    click.echo("| codec | bytes | bits per dimension | against JPEG XL |\n|---|---|---|---|")
    for name, each in sizes.items():
        bpd = mean_interval([8 * size / side**2 for size in each])
        result["sizes"][name] = {"bytes": sum(each), "bpd": bpd}
        change = 100 * (sum(each) / baseline - 1)
        figures = f"{bpd['mean']:.3f} +- {bpd['half_width'] or 0:.3f}"
        click.echo(f"| {name} | {sum(each)} | {figures} | {change:+.1f} % |")
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
