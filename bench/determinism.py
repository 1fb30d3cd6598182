"""Whether the same image gives the same bytes however the machine computes.

python -m bench.determinism IMAGE [--model photo] [--crop 64]

Each row is a fresh process with other settings: threads, the instruction sets that torch, oneDNN
and MKL may use, hash seeds, and the image alone or in a batch. Every one must produce the bytes of
the first, and decode them to the same pixels.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import click

WORK = """
import hashlib, sys
import torch
from bench import without_webp
from diffcodec import decode, encode_many, load_model
from diffcodec.images import read_image

without_webp()
path, model, crop, threads, batch, mkldnn = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
torch.set_num_threads(threads)
torch.backends.mkldnn.enabled = bool(mkldnn)
image = read_image(path).convert("RGB").crop((0, 0, crop, crop))
used = load_model(model)
for effort in ("fast", "default"):
    data = encode_many([image] * batch, used, effort)[-1]
    assert decode(data, model=used).tobytes() == image.tobytes()
    print(hashlib.sha256(data).hexdigest()[:16], len(data))
"""

# label: environment, threads, batch, oneDNN on
SETTINGS: dict[str, tuple[dict[str, str], int, int, int]] = {
    "1 thread": ({}, 1, 1, 1),
    "2 threads": ({}, 2, 1, 1),
    "in a batch of 3": ({}, 2, 3, 1),
    "no oneDNN": ({}, 2, 1, 0),
    **{
        f"{name}={value}": ({name: value}, 2, 1, 1)
        for name, values in {
            "ATEN_CPU_CAPABILITY": ("default", "avx2", "avx512"),
            "ONEDNN_MAX_CPU_ISA": ("SSE41", "AVX2", "AVX512_CORE"),
            "MKL_ENABLE_INSTRUCTIONS": ("SSE4_2", "AVX2", "AVX512"),
            "MKL_CBWR": ("COMPATIBLE", "AVX2"),
            "PYTHONHASHSEED": ("0", "1"),
        }.items()
        for value in values
    },
}


@click.command()
@click.argument("image", type=click.Path(exists=True, path_type=Path))
@click.option("--model", default="photo", help="Name or path.")
@click.option("--crop", default=64, help="Side of the upper left square that is coded.")
def main(image: Path, model: str, crop: int) -> None:
    """Print a row for each setting; exit with 1 if any differs."""
    click.echo("| setting | bytes, fast and default | SHA-256 | same |\n|---|---|---|---|")
    first = None
    for label, (environment, threads, batch, mkldnn) in SETTINGS.items():
        arguments = [str(image), model, *map(str, (crop, threads, batch, mkldnn))]
        done = subprocess.run(
            [sys.executable, "-c", WORK, *arguments],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=False,
        )
        lines = [line.split() for line in done.stdout.splitlines()]
        outcome = (done.returncode, lines)
        first = first or outcome
        sizes = ", ".join(size for _, size in lines)
        digest = hashlib.sha256(str(lines).encode()).hexdigest()[:12]
        same = "yes" if outcome == first and done.returncode == 0 else "NO"
        click.echo(f"| {label} | {sizes} | {digest} | {same} |")
        if same == "NO":
            click.echo(done.stderr, err=True)
            sys.exit(1)


if __name__ == "__main__":
    main()
