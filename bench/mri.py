"""Slices of a magnetic resonance image: images that are alike and like no photograph.

apt-get download mricron-data && dpkg-deb -x mricron-data_*.deb mricron-data
python -m bench.mri mricron-data/usr/share/mricron/templates/ch2.nii.gz mri
python -m bench finetune --data mri/train --test mri/test

One head (Colin Holmes' brain, the average of 27 scans; Debian's mricron-data, BSD licence) in axial
slices of 217 x 181 grey pixels. Neighbours are much alike, so the test has a block of slices and
the training none that is next to it. ``test`` has the heads without most of the black around them.
"""

import gzip
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.inputs import check_samples

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
    check_samples(path, data, SAMPLES)
    return np.frombuffer(data, np.uint8).reshape(SHAPE)


@click.command()
@click.argument("volume", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
def main(volume: Path, out: Path) -> None:
    """Write the slices of VOLUME to the folders train and test of OUT, as PNG."""
    slices = read_volume(volume)
    near = range(TEST.start - MARGIN, TEST.stop + MARGIN)
    for name in ("train", "test"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for number in SLICES:
        if number in TEST:
            Image.fromarray(slices[number][MIDDLE]).save(out / "test" / f"{number:03}.png")
        elif number not in near:
            Image.fromarray(slices[number]).save(out / "train" / f"{number:03}.png")


if __name__ == "__main__":
    main()
