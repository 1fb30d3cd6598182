"""The regression gate: sizes of a few small files against those that are committed.

python -m bench gate             compare; fails if bytes grew by more than 0.5 %
python -m bench gate --update    write the sizes of today to bench/gate.json

The files are of crops of the example photographs, by the shipped model, without fallback coders,
whose releases would change them. A change that makes files larger must commit the new sizes too.
"""

import json
from pathlib import Path
from typing import Any

import click
from PIL import Image

from bench import chain_only
from bench.inputs import EXAMPLES, open_rgb
from bench.measuring import check_equal
from bench.report import Table
from bench.store import write_json
from diffcodec import decode, encode, load_model
from diffcodec.images.modes import psnr
from diffcodec.models.model import Model

EXPECTED = Path(__file__).with_name("gate.json")
GROWTH = 0.005
LOSS_DB = 0.05  # of lossy files: their bytes could fall with their quality
CROPS = (  # file, left, top, side
    ("kodim15.png", 330, 180, 40),
    ("kodim15.png", 120, 40, 32),
    ("kodim23.png", 150, 120, 32),
)
KINDS: dict[str, dict[str, Any]] = {
    "lossless, fast": {"plan": "fast"},
    "lossless, default": {"plan": "default"},
    "progressive": {"plan": "fast", "progressive": True},
    "lossy": {"plan": "fast", "timestep": 3},
}


def crops() -> dict[str, Image.Image]:
    """The squares that are coded, by a name that says where they are from."""
    found = {}
    for name, left, top, side in CROPS:
        box = (left, top, left + side, top + side)
        found[f"{name} {left},{top} {side}"] = open_rgb(EXAMPLES / name).crop(box)
    return found


@chain_only()
def measure(model: Model) -> dict[str, dict[str, dict[str, float]]]:
    """Bytes, of lossy files also PSNR, by kind and crop."""
    return {
        kind: {name: one(model, image, options) for name, image in crops().items()}
        for kind, options in KINDS.items()
    }


def one(model: Model, image: Image.Image, options: dict[str, Any]) -> dict[str, float]:
    """One file, decoded too."""
    data = encode(image, model, **options)
    shown = decode(data, model=model)
    found: dict[str, float] = {"bytes": len(data)}
    if "timestep" in options:
        return found | {"psnr": round(psnr(shown, image), 3)}
    check_equal(image, shown)
    return found


def growth(now: dict[str, Any], before: dict[str, Any]) -> Table:
    """Totals by kind."""
    lines = []
    for kind, files in now.items():
        sizes = [sum(f["bytes"] for f in by_crop.values()) for by_crop in (before[kind], files)]
        lines.append(
            [kind, str(sizes[0]), str(sizes[1]), f"{100 * (sizes[1] / sizes[0] - 1):+.2f} %"]
        )
    return Table("gate", "Bytes of all crops", ["files", "committed", "now", "growth"], lines)


def complaints(now: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """What the gate does not let pass, in words; nothing if all is well."""
    if {k: list(v) for k, v in now.items()} != {k: list(v) for k, v in before.items()}:
        return ["other files are measured than were committed"]
    found = []
    for kind, files in now.items():
        was, size = (sum(f["bytes"] for f in by_crop.values()) for by_crop in (before[kind], files))
        if size > was * (1 + GROWTH):
            percent = 100 * (size / was - 1)
            found.append(f"{kind}: {size} bytes, {percent:.2f} % more than the {was} committed")
        for name, file in files.items():
            if file.get("psnr", 0) < before[kind][name].get("psnr", 0) - LOSS_DB:
                found.append(
                    f"{kind}, {name}: {file['psnr']} dB, committed {before[kind][name]['psnr']}"
                )
    return found


def expected() -> dict[str, Any]:
    """The sizes that are committed."""
    found: dict[str, Any] = json.loads(EXPECTED.read_text())["files"]
    return found


@click.command()
@click.option("--update", is_flag=True, help="Write today's sizes to bench/gate.json.")
def main(update: bool) -> None:
    """Sizes of a few small files against the committed ones."""
    model = load_model()
    now = measure(model)
    if EXPECTED.exists():
        click.echo(growth(now, expected()).markdown())
    if update:
        write_json(EXPECTED, {"model": model.info.id.hex(), "files": now})
        click.echo(f"wrote {EXPECTED}")
    elif found := complaints(now, expected()):
        hint = "find out why, or commit the new sizes: python -m bench gate --update"
        raise click.ClickException("; ".join([*found, hint]))


if __name__ == "__main__":
    main()
