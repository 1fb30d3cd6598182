"""An archive beside single files, and beside other codecs singly and as mosaics of its groups.

python -m bench archive --data test.npy [--model cifar10] [--limit 200] [--group 64]

All files of diffcodec are decoded and compared; times are of the processor. Mosaics are squares of
the images of a group side by side. With --finetuned MODEL also an archive by that model, which
lies in it.
"""

from pathlib import Path

import click
import imagecodecs
import numpy as np
from PIL import Image

import bench
from bench import POSITIVE
from bench.codecs import lossless_codecs
from bench.inputs import Dataset, dataset
from bench.measuring import check_equal, timed
from bench.report import OUT, Section, Table
from bench.store import Row, write_json
from diffcodec import decode, encode, open_archive
from diffcodec.archive.writing import GROUP_IMAGES
from diffcodec.evaluation.measure import open_image
from diffcodec.models.file import DEFAULT_MODEL
from diffcodec.models.model import load_model

OTHERS = ("webp", "jpegxl9")
ZSTD_LEVEL = 19


def single_files(images: list[Image.Image], model: str, effort: str) -> Row:
    """One file for each image, coded one after another as the command does of a single one."""
    used = load_model(model)
    files, _, encoding = timed(lambda: [encode(image, used, effort) for image in images])
    decoded, _, decoding = timed(lambda: [decode(data, model=used) for data in files])
    for image, back in zip(images, decoded, strict=True):
        check_equal(image, back)
    return {
        "bytes": sum(map(len, files)),
        "encode_seconds": encoding,
        "decode_seconds": decoding,
    }


def archive_file(
    path: Path, images: list[Image.Image], model: str, effort: str, group: int, embedded: bool
) -> Row:
    """An archive of all, and what one image of it takes to read."""
    path.unlink(missing_ok=True)

    def write() -> int:
        with open_archive(path, "x", model=model, plan=effort, group=group) as archive:
            size = archive.embed_model() if embedded else 0
            archive.extend(images)
        return size

    def read() -> list[Image.Image]:
        with open_archive(path, model=model) as archive:
            return list(archive)

    load_model(model)
    model_bytes, _, encoding = timed(write)
    decoded, _, decoding = timed(read)
    for image, back in zip(images, decoded, strict=True):
        check_equal(image, back)
    one, _, seconds = timed(lambda: open_archive(path, model=model)[len(images) // 2])
    check_equal(images[len(images) // 2], one)
    sizes = {"bytes": path.stat().st_size, "model_bytes": model_bytes}
    times = {"encode_seconds": encoding, "decode_seconds": decoding, "access_seconds": seconds}
    return sizes | times


def mosaics(images: list[Image.Image], group: int) -> list[Image.Image]:
    """Images of one size side by side, as squares of those of each group; what is left is black."""
    side = int(np.ceil(np.sqrt(group)))
    found = []
    for start in range(0, len(images), group):
        some = images[start : start + group]
        width, height = some[0].size
        sheet = Image.new(some[0].mode, (side * width, -(-len(some) // side) * height))
        for k, image in enumerate(some):
            sheet.paste(image, (k % side * width, k // side * height))
        found.append(sheet)
    return found


def other_codecs(images: list[Image.Image], group: int) -> dict[str, Row]:
    """Bytes of other codecs, singly and as mosaics, and of zstd of all samples."""
    rows: dict[str, Row] = {}
    alike = len({image.size for image in images}) == 1
    for codec in lossless_codecs():
        if codec.name in OTHERS:
            setting = codec.settings[0]
            size = sum(len(codec.encode(image, setting)) for image in images)
            rows[f"{codec.label}, single files"] = {"bytes": size}
            if alike:
                sheets = mosaics(images, group)
                size = sum(len(codec.encode(sheet, setting)) for sheet in sheets)
                rows[f"{codec.label}, mosaics"] = {"bytes": size}
    raw = b"".join(image.tobytes() for image in images)
    packed = imagecodecs.zstd_encode(raw, level=ZSTD_LEVEL)
    rows[f"zstd {ZSTD_LEVEL} of the samples"] = {"bytes": len(packed)}
    return rows


@click.command()
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Folder or .npy.")
@click.option("--model", default=DEFAULT_MODEL, help="Name or path.")
@click.option("--effort", default="default", show_default=True)
@click.option("--limit", type=POSITIVE, help="Only the first so many images.")
@click.option("--group", default=GROUP_IMAGES, type=POSITIVE, show_default=True)
@click.option("--single/--no-single", default=True, help="Single files too.")
@click.option("--finetuned", type=click.Path(exists=True), help="A model to lie in the archive.")
@click.option("--out", default=OUT, type=click.Path(path_type=Path), help="Folder of results.")
def main(
    data: Path,
    model: str,
    effort: str,
    limit: int | None,
    group: int,
    single: bool,
    finetuned: str | None,
    out: Path,
) -> None:
    """An archive beside single files and other codecs."""
    used = dataset(data, limit)
    folder = out / "archive" / used.name
    folder.mkdir(parents=True, exist_ok=True)
    color = load_model(model).color
    images = [open_image(source, color) for source in used.sources.values()]
    if any(image.mode == "RGB" for image in images):  # the grey ones among them are colour images
        images = [image.convert("RGB") for image in images]
    path = folder / "images.dfca"
    rows = {"archive": archive_file(path, images, model, effort, group, embedded=False)}
    if single:
        rows["single files"] = single_files(images, model, effort)
    if finetuned:
        made = archive_file(path, images, finetuned, effort, group, embedded=True)
        rows["archive, fine-tuned model within"] = made
        rows["the same without the model"] = {"bytes": made["bytes"] - made["model_bytes"]}
    rows |= other_codecs(images, group)
    write_json(folder / "rows.json", rows)
    options = f"{used.options} --model {model} --effort {effort} --group {group}"
    options += "" if single else " --no-single"
    options += f" --finetuned {finetuned}" if finetuned else ""
    publish(used, rows, images, model, options, folder)


def publish(
    used: Dataset,
    rows: dict[str, Row],
    images: list[Image.Image],
    model: str,
    options: str,
    folder: Path,
) -> None:
    """Write the table."""
    samples = sum(np.asarray(image).size for image in images)
    columns = ["", "bytes", "bpd", "encode, s per 1,000", "decode, s per 1,000", "one image, s"]
    lines = []
    for name, row in rows.items():
        cells = [name, str(row["bytes"]), f"{8 * row['bytes'] / samples:.4f}"]
        for key in ("encode_seconds", "decode_seconds"):
            cells.append(f"{1000 * row[key] / len(images):.0f}" if key in row else "")
        cells.append(f"{row['access_seconds']:.1f}" if "access_seconds" in row else "")
        lines.append(cells)
    described = bench.identity(load_model(model))
    section = Section(
        f"Archive: {used.name}",
        f"python -m bench archive {options}",
        [
            f"{len(images)} images of {used.name}; those of diffcodec all decoded and found equal. "
            f"Model {described}."
        ],
        [Table("archive", "Bytes of all images; seconds of the processor", columns, lines)],
    )
    section.publish(folder)


if __name__ == "__main__":
    main()
