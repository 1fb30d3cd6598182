"""What fine-tuning a shipped model gains on a set of images that are alike.

python -m bench finetune --data IMAGES [--test IMAGES] [--minutes 30]

Folders or arrays, as for ``diffcodec train``, which trains here by its command line from the
weights of a shipped model; then ``diffcodec plan`` searches plans for the outcome. The images to
test by, or without any those that training holds out, are coded one by one by the model before,
between and after, at last by the smallest of several draws, and by JPEG XL. All files of diffcodec
are decoded and compared. A run that was stopped goes on.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from bench import POSITIVE, POSITIVE_NUMBER
from bench.codecs import lossless_codecs
from bench.measuring import check_equal
from bench.report import markdown
from diffcodec import decode, encode_many
from diffcodec.evaluation.measure import open_image
from diffcodec.intervals import mean_interval
from diffcodec.models.model import load_model
from diffcodec.training.data import find_images, list_images, split_held_out
from diffcodec.training.folder import CHECKPOINT, MODEL

OTHERS = ("webp", "jpegxl9")  # the last is the one to compare with
PLANNED = "planned.safetensors"  # the fine-tuned model with plans of its own


def run_command(
    command: str, data: Path, out: Path, options: dict[str, object], processes: int = 1
) -> None:
    """Run a command of diffcodec, on the CPU or GPUs that it finds, by torchrun if in several."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes)]
    arguments = [command, "--data", str(data), "--out", str(out)]
    for name, value in options.items():
        arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    subprocess.run([*launcher, "-m", "diffcodec", *arguments], check=True)


def model_sizes(
    model: str | Path, images: list[Image.Image], effort: str, draws: int = 1
) -> list[int]:
    """Bytes of each image's file.

    Raises:
        click.ClickException: if one does not come back.
    """
    used = load_model(model)
    files = list(encode_many(images, used, effort, progress=True, draws=draws))
    for image, data in zip(images, files, strict=True):
        check_equal(image, decode(data, model=used), str(model))
    return [len(data) for data in files]


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--test", type=click.Path(exists=True, path_type=Path), help="Other images.")
@click.option(
    "--minutes",
    default=30.0,
    type=POSITIVE_NUMBER,
    show_default=True,
    help="Of fine-tuning.",
)
@click.option("--init", default="photo", show_default=True, help="The model to start from.")
@click.option(
    "--crop", default=64, type=POSITIVE, show_default=True, help="Sides of the training crops."
)
@click.option("--batch", default=16, type=POSITIVE, show_default=True, help="Crops in each update.")
@click.option("--augment", default="mirror", show_default=True, help="As for training.")
@click.option("--learning-rate", default=2e-3, show_default=True, help="As for training.")
@click.option("--self-ensemble-up-to", type=float, help="As for training.")
@click.option(
    "--processes", default=1, type=POSITIVE, show_default=True, help="To train in, by torchrun."
)
@click.option("--plan-crop", type=POSITIVE, help="Of the crops to search plans on; else as --crop.")
@click.option("--plan-crops", default=24, type=POSITIVE, show_default=True, help="How many.")
@click.option(
    "--limit", default=300, type=POSITIVE, show_default=True, help="Most images to test by."
)
@click.option("--effort", default="best", show_default=True)
@click.option("--draws", default=8, type=POSITIVE, show_default=True, help="Of the last row.")
@click.option("--out", default=Path("results/finetune"), type=click.Path(path_type=Path))
def main(
    data: Path,
    test: Path | None,
    minutes: float,
    init: str,
    crop: int,
    batch: int,
    augment: str,
    learning_rate: float,
    self_ensemble_up_to: float | None,
    processes: int,
    plan_crop: int | None,
    plan_crops: int,
    limit: int,
    effort: str,
    draws: int,
    out: Path,
) -> None:
    """Fine-tune on images, and compare whole files of others."""
    begin = {"init": init, "minutes": minutes, "crop": crop, "batch": batch}
    begin |= {"augment": augment, "learning-rate": learning_rate}
    if self_ensemble_up_to is not None:
        begin |= {"self-ensemble-up-to": self_ensemble_up_to}
    start: dict[str, object] = {"resume": True} if (out / CHECKPOINT).exists() else begin
    run_command("train", data, out, start, processes)
    search = {"model": out / MODEL, "crop": plan_crop or crop, "crops": plan_crops, "force": True}
    run_command("plan", data, out / PLANNED, search)
    sources = list_images(find_images(test)) if test else split_held_out(find_images(data))[1]
    color = load_model(init).color
    images = [open_image(source, color) for source in sources[:limit]]
    others = [codec for codec in lossless_codecs() if codec.name in OTHERS]
    sizes = {
        codec.label: [len(codec.encode(image, codec.settings[0])) for image in images]
        for codec in others
    }
    baseline = sum(sizes[others[-1].label])
    sizes[init] = model_sizes(init, images, effort)
    sizes[f"{init}, fine-tuned"] = model_sizes(out / MODEL, images, effort)
    sizes["the same by its own plans"] = model_sizes(out / PLANNED, images, effort)
    smallest = f"the same, the smallest of {draws} draws"
    sizes[smallest] = model_sizes(out / PLANNED, images, effort, draws)
    samples = [np.asarray(image).size for image in images]
    result: dict[str, Any] = {"minutes": minutes, "images": len(images), "sizes": {}}
    click.echo(f"{len(images)} images not trained on, whole files, all of diffcodec's decoded\n")
    lines = []
    for name, each in sizes.items():
        bpd = mean_interval([8 * size / n for size, n in zip(each, samples, strict=True)])
        result["sizes"][name] = {"bytes": each, "bpd": bpd}
        change = 100 * (sum(each) / baseline - 1)
        figures = f"{bpd['mean']:.3f} +- {bpd['half_width'] or 0:.3f}"
        lines.append([name, str(sum(each)), figures, f"{change:+.1f} %"])
    click.echo(markdown(["codec", "bytes", "bits per dimension", "against JPEG XL"], lines))
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
