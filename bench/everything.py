"""Every benchmark one after another, then one page of all results.

python -m bench all --quick                           what the repository alone allows
python -m bench all --kodak DIR --cifar test.npy      in full

A run that was stopped goes on where it was. With --quick it takes well under 40 minutes on two
cores: the example photographs, crops and synthetic pictures, and four images of Kodak and twenty of
CIFAR-10 where they are given. In full it takes hours, and makes every table and picture that
docs/benchmarks.md marks: ``python -m bench report --docs docs/benchmarks.md`` then fills it.
"""

from pathlib import Path

import click

from bench import anatomy, ddpm, draws, front, lossless, overhead, rd, report, speed
from bench.inputs import EXAMPLES, dataset, open_rgb, synthetic
from bench.report import OUT
from diffcodec import encode, load_model
from diffcodec.models.file import DEFAULT_MODEL, shipped_models
from diffcodec.models.model import Model

EFFORTS = ("fast", "best", "default")  # the last is the one that others are compared with
FRONT_EFFORTS, FRONT_IMAGES = ("fast", "default", "best"), 6
CIFAR_MODEL = "cifar10"
CIFAR_IMAGES = 1000
CIFAR_LOSSY_IMAGES = 100


def run_examples(model: Model, quick: bool, out: Path) -> None:
    """Run what needs no data but the repository's."""
    lossless.run(synthetic(), model, ("default",), False, False, out)
    lossless.run(dataset(EXAMPLES), model, ("default",), False, False, out)
    lossless.run(dataset(EXAMPLES, crop=32), model, EFFORTS, False, True, out)
    rd.run(dataset(EXAMPLES, crop=32), model, ("default",), out)
    rd.run(dataset(EXAMPLES, crop=256 if quick else None), model, ("default",), out, 2)


def run_anatomy(model: Model, out: Path) -> None:
    """Dissect a file without loss and one with previews, of the same square."""
    photo = open_rgb(EXAMPLES / "kodim15.png").crop((300, 150, 428, 278))
    folder = out / "files"
    folder.mkdir(parents=True, exist_ok=True)
    for name, progressive in (("lossless", False), ("progressive", True)):
        path = folder / f"{name}.dfc"
        path.write_bytes(encode(photo, model, progressive=progressive))
        anatomy.run_anatomy(path, model, out)


def run_kodak(kodak: Path, model: Model, quick: bool, out: Path) -> None:
    """Whole images, and crops where the container and the seed weigh, by the chain alone."""
    limit = 4 if quick else None
    lossless.run(dataset(kodak, limit), model, ("default",), False, False, out)
    for crop in (128, 32):
        lossless.run(dataset(kodak, limit, crop), model, ("default",), True, True, out)
    rd.run(dataset(kodak, limit, 128 if quick else None), model, ("default",), out, 2)
    front.run(dataset(kodak, 1 if quick else FRONT_IMAGES), model, FRONT_EFFORTS, False, out)


def run_cifar(cifar: Path, model: str, quick: bool, out: Path) -> None:
    """The first test images, one by one, by the chain alone; and DDPM's table."""
    used = load_model(model)
    images = dataset(cifar, 20 if quick else CIFAR_IMAGES)
    lossless.run(images, used, ("best",), True, True, out)
    draws.run(images, used, ("best",), draws.DRAWS, out)
    rd.run(dataset(cifar, 20 if quick else CIFAR_LOSSY_IMAGES), used, ("default",), out)
    images = dataset(cifar, 2 if quick else ddpm.IMAGES)
    ddpm.run(images, load_model(model, "float"), 1, ddpm.PLAN_RATIO, out)


@click.command()
@click.option("--quick", is_flag=True, help="A subset that takes well under 40 minutes.")
@click.option("--kodak", type=click.Path(exists=True, path_type=Path), help="Folder of Kodak.")
@click.option("--cifar", type=click.Path(exists=True, path_type=Path), help="CIFAR-10's test.npy.")
@click.option("--model", default=DEFAULT_MODEL, show_default=True, help="For photographs.")
@click.option("--cifar-model", help=f"For CIFAR-10; {CIFAR_MODEL} if it is shipped.")
@click.option("--out", default=OUT, type=click.Path(path_type=Path), help="Folder of results.")
def main(
    quick: bool,
    kodak: Path | None,
    cifar: Path | None,
    model: str,
    cifar_model: str | None,
    out: Path,
) -> None:
    """Everything, and one page of all results."""
    used = load_model(model)
    run_examples(used, quick, out)
    run_anatomy(used, out)
    overhead.run_toy(quick, out)
    overhead.run_photo(model, 64, 1 if quick else 4, out)
    photo = open_rgb(EXAMPLES / "kodim23.png")
    speed.run(photo, model, 128 if quick else 256, quick, out)
    if kodak:
        run_kodak(kodak, used, quick, out)
    if cifar:
        shipped = CIFAR_MODEL in {path.stem for path in shipped_models()}
        name = cifar_model or (CIFAR_MODEL if shipped else model)
        run_cifar(cifar, name, quick, out)
    report.write_page(out)


if __name__ == "__main__":
    main()
