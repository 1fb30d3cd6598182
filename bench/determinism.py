"""Whether the same image gives the same bytes however and wherever it is computed.

python -m bench determinism IMAGE [--model photo] [--crop 64] [--python COMMAND]...

Each row is a fresh process with other settings: threads, the instruction sets that torch, oneDNN,
MKL, NumPy and the C library may use, memory layouts, what a caller may have set in torch, the
image alone or in a batch, its tiles in another order. Every one must produce the bytes of the
first row of its kind, and decode them to the same pixels.

COMMAND is another Python with the same dependencies in other releases, or on another processor by
an emulator: --python "qemu-aarch64-static -L root root/usr/bin/python3". It needs not have
diffcodec: PYTHONPATH leads every process to this checkout.
"""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np

from bench import POSITIVE
from diffcodec.container.parts import LEAST_TILE_SIDE, TILE_SIDE

WORK = """
import hashlib, json, platform, sys
from contextlib import nullcontext
import constriction, numpy, scipy, torch
from bench import chain_only
from diffcodec import decode, encode_many, load_model
from diffcodec.codec import batches
from diffcodec.images.reading import read_image

path, name, crop, threads, batch, tile, before = json.loads(sys.argv[1])
versions = {
    "processor": platform.machine(),
    "Python": platform.python_version(),
    "C library": " ".join(platform.libc_ver()),
    **{m.__name__: getattr(m, "__version__", "") for m in (torch, numpy, scipy)},
}
print(json.dumps(versions))
torch.set_num_threads(threads)
image = read_image(path).convert("RGB").crop((0, 0, crop, crop))
within = nullcontext()
exec(before)
model = load_model(name)
with chain_only(), within:
    for effort in ("fast", "default"):
        data = list(encode_many([image] * batch, model, effort, tile_side=tile))[-1]
        assert decode(data, model=model).tobytes() == image.tobytes(), "other pixels"
        print(json.dumps([hashlib.sha256(data).hexdigest()[:12], len(data)]))
"""

HEADER = "| setting | bytes, fast and default | SHA-256 | same |\n|---|---|---|---|"

# Statements for the child process, before the model is loaded.
NO_ONEDNN = "torch.backends.mkldnn.set_flags(False)"
OTHER_LAYOUT = """
conv2d, layouts = torch.nn.functional.conv2d, (torch.contiguous_format, torch.channels_last)
def patched(x, weight, *rest):
    x = x.contiguous(memory_format=layouts[{inputs}])
    weight = weight.contiguous(memory_format=layouts[{weights}])
    return conv2d(x, weight, *rest).contiguous(memory_format=layouts[{inputs}])
torch.nn.functional.conv2d = patched
"""
REVERSED = """
run_group = batches._run_group
def in_reverse(jobs, *rest):
    results = yield from run_group(jobs[::-1], *rest)
    return results[::-1]
batches._run_group = in_reverse
"""


@dataclass(frozen=True)
class Setting:
    """One row; ``tiles`` along the crop's side: of several all are of the least side there is.

    Rows with as many share their bytes.
    """

    label: str
    environment: dict[str, str] = field(default_factory=dict)
    threads: int = 2
    batch: int = 1
    tiles: int = 1
    before: str = ""
    python: str = sys.executable


def variables() -> dict[str, tuple[str, ...]]:
    """Environment variables that choose the code that runs, and values to try."""
    config = np.show_config(mode="dicts")
    extensions = config["SIMD Extensions"].get("found", []) if config else []
    return {
        "ATEN_CPU_CAPABILITY": ("default", "avx2", "avx512"),
        "ONEDNN_MAX_CPU_ISA": ("SSE41", "AVX2", "AVX512_CORE", "AVX512_CORE_AMX"),
        "ONEDNN_DEFAULT_FPMATH_MODE": ("ANY", "BF16"),
        "MKL_ENABLE_INSTRUCTIONS": ("SSE4_2", "AVX2", "AVX512"),
        "MKL_CBWR": ("COMPATIBLE", "AVX2"),
        "OPENBLAS_CORETYPE": ("Nehalem", "Haswell"),
        "NPY_DISABLE_CPU_FEATURES": (" ".join(extensions),),
        "GLIBC_TUNABLES": (
            "glibc.cpu.hwcaps=-AVX512F",
            "glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX512F",
        ),
        "PYTHONHASHSEED": ("0", "1"),
    }


def settings() -> list[Setting]:
    """All rows for this interpreter."""
    return [
        Setting("1 thread", threads=1),
        Setting("2 threads"),
        Setting("3 threads", threads=3),
        Setting("in a batch of 3", batch=3),
        Setting("in a batch of 20", batch=20),
        Setting("no oneDNN", before=NO_ONEDNN),
        Setting("no oneDNN, in a batch of 20", batch=20, before=NO_ONEDNN),
        *(
            Setting(f"{name}={value}", {name: value})
            for name, values in variables().items()
            for value in values
        ),
        *(
            Setting(
                f"{('contiguous', 'channels-last')[x]} inputs, "
                f"{('contiguous', 'channels-last')[w]} weights",
                before=OTHER_LAYOUT.format(inputs=x, weights=w),
            )
            for x, w in ((0, 0), (0, 1), (1, 0), (1, 1))
        ),
        *(
            Setting(statement.removeprefix("within = "), before=statement)
            for statement in (
                "torch.set_default_dtype(torch.float64)",
                "torch.set_flush_denormal(True)",
                "torch.set_float32_matmul_precision('medium')",
                "torch.backends.mkldnn.conv.fp32_precision = 'bf16'",
                "within = torch.autocast('cpu')",
            )
        ),
        Setting("tiles side by side", tiles=2),
        Setting("tiles in reverse order", tiles=2, before=REVERSED),
        Setting("each tile alone", tiles=2, before="batches.BATCH_PIXELS = 1"),
    ]


def run(
    setting: Setting, image: Path, model: str, crop: int
) -> tuple[dict[str, str], list[tuple[str, int]], str]:
    """A row's child process: its versions, a digest and a size for each effort, its complaint."""
    side = TILE_SIDE
    if setting.tiles > 1:
        crop, side = setting.tiles * LEAST_TILE_SIDE, LEAST_TILE_SIDE
    work = (str(image), model, crop, setting.threads, setting.batch, side)
    found = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*shlex.split(setting.python), "-c", WORK, json.dumps([*work, setting.before])],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, found))} | setting.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    versions, *files = [json.loads(line) for line in done.stdout.splitlines()] or [{}]
    complaint = (done.stderr.strip() or "no output").splitlines()[-1] if done.returncode else ""
    return versions, [(digest, size) for digest, size in files], complaint


@click.command()
@click.argument("image", type=click.Path(exists=True, path_type=Path))
@click.option("--model", default="photo", help="Name or path.")
@click.option(
    "--crop", default=64, type=POSITIVE, help="Side of the upper left square that is coded."
)
@click.option("--python", "pythons", metavar="COMMAND", multiple=True, help="Another interpreter.")
@click.option("--only-python", is_flag=True, help="The first row and those of --python alone.")
def main(image: Path, model: str, crop: int, pythons: tuple[str, ...], only_python: bool) -> None:
    """Print a row for each setting; exit with 1 if any differs."""
    rows = settings()[:1] if only_python else settings()
    rows += [Setting(python, python=python) for python in pythons]
    expected: dict[int, list[tuple[str, int]]] = {}
    usual: dict[str, str] = {}
    failed = False
    for setting in rows:
        versions, files, complaint = run(setting, image, model, crop)
        if not usual:
            usual = versions
            click.echo(", ".join(f"{name} {version}" for name, version in usual.items()))
            click.echo(f"\n{HEADER}")
        other = [f"{name} {v}" for name, v in versions.items() if usual[name] != v]
        same = not complaint and files == expected.setdefault(setting.tiles, files)
        columns = (
            ", ".join(other) or setting.label,
            ", ".join(str(size) for _, size in files),
            ", ".join(digest for digest, _ in files),
            "yes" if same else f"NO {complaint}",
        )
        click.echo(f"| {' | '.join(columns)} |")
        failed |= not same
    sys.exit(failed)


if __name__ == "__main__":
    main()
