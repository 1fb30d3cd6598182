"""What classes are worth in bits: a network trained with the images' labels, and without.

python -m bench classes --data cifar10/train.npy --labels cifar10/train.labels.txt
    --test cifar10/test.npy --test-labels cifar10/test.labels.txt [--steps 1000]

Both are the network of ``bench objectives``, begin with the same weights and see the same crops,
noise levels and noise; one image in ten of those with labels is shown without. Bounds are of the
default plan and the same noise, whatever is told, so that their differences are of pairs. Files
hold the class in a byte, and are all decoded and compared; that of --class auto is the smallest of
one for each class and one for none. As many draws without a class take as long, and stand beside.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bench import POSITIVE, SEVERAL, chain_only
from bench.inputs import open_rgb
from bench.measuring import check_equal, timed
from bench.objectives import OBJECTIVES, recipe, trained
from bench.report import markdown
from bench.store import Store, source_digest
from diffcodec import decode, encode_many
from diffcodec.diffusion.bound import chain_bound_bits
from diffcodec.evaluation.measure import torch_posterior
from diffcodec.intervals import mean_interval
from diffcodec.models.export import serialise_float_model
from diffcodec.models.model import Model
from diffcodec.training.config import TrainConfig
from diffcodec.training.crops import domain_batch
from diffcodec.training.data import find_images, list_images, read_labels
from diffcodec.training.steps import TrainingSteps

BATCH = 32
Bits = list[float]  # per dimension, of each image
WITHOUT, CLASS, AUTO = "nothing", "its class", "the best of all and none"


def bounds(model: Model, images: Sequence[Image.Image], labels: Sequence[int] | None) -> Bits:
    """The default plan's, of images told these classes."""
    rgb = np.stack([np.asarray(image).transpose(2, 0, 1) for image in images])
    x = domain_batch(torch.from_numpy(rgb), model.color).double()
    posterior, generator = torch_posterior(model, labels), torch.Generator().manual_seed(0)
    bits = chain_bound_bits(posterior, x, model.color, model.plans["default"], generator)
    found: Bits = bits.sum(1).tolist()
    return found


def files(model: Model, images: Sequence[Image.Image], **how: Any) -> Bits:
    """Whole files, decoded.

    Raises:
        click.ClickException: if one does not come back.
    """
    found = list(encode_many(images, model, **how))
    for image, data in zip(images, found, strict=True):
        check_equal(image, decode(data, model=model), model.name)
    return [
        8 * len(data) / np.asarray(image).size for image, data in zip(images, found, strict=True)
    ]


def measure(
    model: Model, images: Sequence[Image.Image], labels: list[int], few: int, draws: int
) -> dict[str, tuple[Bits | None, Bits]]:
    """Bounds of all images, and files of a few, by what is told."""
    some, told = images[:few], labels[:few]
    if not model.classes:
        return {
            WITHOUT: (bounds(model, images, None), files(model, some)),
            f"{WITHOUT}, smallest of {draws} draws": (None, files(model, some, draws=draws)),
        }
    none, right = bounds(model, images, None), bounds(model, images, labels)
    each = [bounds(model, images, [k] * len(images)) for k in range(model.classes)]
    return {
        WITHOUT: (none, files(model, some)),
        CLASS: (right, files(model, some, labels=told)),
        AUTO: (np.min([none, *each], 0).tolist(), files(model, some, labels=["auto"] * few)),
    }


def train_and_measure(
    config: TrainConfig, init: dict[str, Tensor], out: Path, *measured: Any
) -> dict[str, Any]:
    """See :func:`measure`; the model stays in a file, to sample from."""
    model, _, seconds = timed(lambda: trained(TrainingSteps(config, init, quiet=True)))
    out.write_bytes(serialise_float_model(model.module, model.plans, {"classes": model.classes}))
    with chain_only():
        return {"seconds": seconds, "bits": measure(model, *measured)}


def cells(found: Bits | None, beside: Bits) -> tuple[str, str]:
    """A mean, and its difference from that of the same images, with its interval."""
    if found is None:
        return "", ""
    change = mean_interval((np.array(found) - beside).tolist())
    difference = "" if found is beside else f"{change['mean']:+.4f} ± {change['half_width']:.4f}"
    return f"{np.mean(found):.4f}", difference


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--labels", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--test", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--test-labels", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--steps", default=1000, type=POSITIVE, show_default=True, help="Of each training.")
@click.option("--limit", type=SEVERAL, default=192, show_default=True, help="Test images.")
@click.option(
    "--files", "few", type=SEVERAL, default=32, show_default=True, help="Of these, coded as files."
)
@click.option("--out", default=Path("results/classes"), type=click.Path(path_type=Path))
def main(
    data: Path,
    labels: Path,
    test: Path,
    test_labels: Path,
    steps: int,
    limit: int,
    few: int,
    out: Path,
) -> None:
    """Train both, and print the table."""
    out.mkdir(parents=True, exist_ok=True)
    store, rows = Store(out / "rows.jsonl"), []
    given = {"data": data, "labels": labels, "test": test, "test_labels": test_labels}
    images = [open_rgb(source) for source in list_images(find_images(test))[:limit]]
    told = read_labels(test_labels)[: len(images)].tolist()
    code_length = OBJECTIVES["code length"]
    init = TrainingSteps(recipe(data, steps, code_length), quiet=True).model.state_dict()
    count = int(read_labels(labels).max()) + 1
    beside: tuple[Bits, Bits] | None = None
    for name, classes in (("without labels", 0), ("with labels", count)):
        objective = replace(code_length, network=replace(code_length.network, classes=classes))
        config = replace(
            recipe(data, steps, objective, str(labels) if classes else None),
            batch=BATCH,
            precision="bfloat16",
        )

        key = {"trained": name, "steps": steps, "images": limit, "files": few}
        key |= {each: str(path) for each, path in given.items()} | {"source": source_digest()}
        path = out / f"{name.replace(' ', '-')}.safetensors"
        compute = partial(train_and_measure, config, init, path, images, told, few, 1 + count)
        found = store.get(key, compute)
        click.echo(f"{name}: {found['seconds']:.0f} s of a processor", err=True)
        for what, (bound, coded) in found["bits"].items():
            beside = beside or (bound, coded)
            rows.append((name, what, *cells(bound, beside[0]), *cells(coded, beside[1])))
    columns = ("trained", "told", "bound, bits per dimension", "difference", "files", "difference")
    click.echo(markdown(columns, rows))


if __name__ == "__main__":
    main()
