"""A checklist for a machine with a GPU: exactness, speed and memory, in ten minutes.

python -m bench gpu                        on the GPU
python -m bench gpu --device cpu --quick   the same in small, in under a minute
python bench/bare.py WHEELS gpu            where packages are missing: from a folder of wheels

It needs nothing but this checkout and what diffcodec depends on. Everything goes into gpu.json; it
exits with 1 if the device gives other bytes than the CPU, or fails. What is expected to go beyond
--minutes is left out, and named. On a GPU models are the shipped ones; --quick takes the small ones
of tests/golden.
"""

import hashlib
import json
import math
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from unittest import mock

import click
import numpy as np
import torch
from PIL import Image

from bench.inputs import EXAMPLES, FOLDER, open_rgb
from bench.report import OUT
from bench.store import Row, write_json
from diffcodec import DiffcodecError, decode, encode, encode_many, load_model
from diffcodec.container.reader import parse
from diffcodec.models.file import model_info, model_path, shipped_models
from diffcodec.models.known_answers import differing, environment, model_answers
from diffcodec.networks.config import DEVICES, PRESETS, NetworkConfig, UNetConfig
from diffcodec.networks.devices import describe_device, find_device
from diffcodec.networks.gemm import products_work
from diffcodec.training.config import TrainConfig
from diffcodec.training.trainer import Trainer

GOLDEN = FOLDER / "tests" / "golden"
CROPS, CROP_SIDE = 24, 64
IMAGES, IMAGE_SIDE = 100, 32  # that are coded on both together
MINUTES = 10.0
SHAPES = ((32, 32), (512, 512))  # height and width of what the network is asked
BATCHES = (1, 4, 16, 64, 256)
MOST_PIXELS = 1 << 22  # of a batch
TRAINING_BATCHES = (32, 128, 512)
WARM_UP, REPEATS = 2, 5
PROOFS = ("exact_products", "answers", "decodes", "same_bytes")  # of rows: what must be true


def exact_products(device: torch.device) -> bool | None:
    """Whether products of bytes are exact; None of a CPU without VNNI, which needs none."""
    return products_work(device) or (None if device.type == "cpu" else False)


def describe(device: torch.device) -> Row:
    """Versions, the processor and the card."""
    card: Row = {"device": describe_device(device)}
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        card |= {"memory_gib": found.total_memory / 2**30, "cuda": torch.version.cuda}
        card["capability"] = f"{found.major}.{found.minor}"
    return environment() | card


def peak_gib(device: torch.device) -> float:
    """Memory of the device since it was last asked; of the process on a CPU, since it began."""
    if device.type != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def seconds(work: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """The median, after some to warm up, each waited for."""
    times = []
    for _ in range(WARM_UP + repeats):
        begin = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return float(np.median(times[WARM_UP:]))


def by_the_chain() -> AbstractContextManager[object]:
    """Within it all tiles are coded by the chain, however small another coder's are.

    Those of models of random weights would never win.
    """
    large = ("raw", bytes(1 << 24))
    return mock.patch("diffcodec.codec.tiles.encode_fallback", lambda image, *_: large)


def check_golden(device: str) -> Iterator[Row]:
    """Files that were written on CPUs: their pixels on the device, and both devices' new files."""
    expected = json.loads((GOLDEN / "expected.json").read_text())
    for name, said in expected.items():
        first = name.split("-")[0]
        path = GOLDEN / (first if first in ("phased", "class") else "model")
        here, there = (
            load_model(path.with_suffix(".safetensors"), device=d) for d in ("cpu", device)
        )
        image = decode(GOLDEN / f"{name}.dfc", model=there, reconstruct="mean")
        row = {
            "name": name,
            "decodes": hashlib.sha256(image.tobytes()).hexdigest() == said["pixels"],
        }
        with by_the_chain():
            row["same_bytes"] = encode(image, here, "fast") == encode(image, there, "fast")
        yield row


def check_crops(device: str, crops: int, model: str) -> Iterator[Row]:
    """Squares of photographs, coded here and there, each decoded by the other."""
    here, there = (load_model(model, device=d) for d in ("cpu", device))
    for i in range(crops):
        image = _crop(i, CROP_SIDE)
        with by_the_chain():
            one, other = (encode(image, used, "fast") for used in (here, there))
        pixels = [decode(one, model=there).tobytes(), decode(other, model=here).tobytes()]
        yield {
            "crop": i,
            "same_bytes": one == other and parse(one).uses_model,
            "decodes": pixels == [image.tobytes()] * 2,
        }


def check_images(device: str, images: int, model: str) -> Iterator[Row]:
    """Small images in batches, coded here and there."""
    here, there = (load_model(model, device=d) for d in ("cpu", device))
    many = [_crop(1000 + i, IMAGE_SIDE) for i in range(images)]
    with by_the_chain():
        one, other = (list(encode_many(many, used, "fast")) for used in (here, there))
    yield {"images": images, "same_bytes": one == other}


def find_waits(device: torch.device, model: str, quick: bool) -> Iterator[Row]:
    """The places where the program waits for the device in its work, other than for answers."""
    used, image = load_model(model, device=device.type), _crop(0, IMAGE_SIDE)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(Path(folder), device, _shapes(quick)[0][1], TRAINING_BATCHES[0])
        for name, work in (
            ("coding", lambda: encode(image, used, "fast")),
            ("a step of training", trainer.train_step),
        ):
            work()
            yield {"work": name, "waits": _waits(work, device)}


def _waits(work: Callable[[], object], device: torch.device) -> list[str] | None:
    """The places where work waits for the device, if that is a GPU."""
    if device.type != "cuda":
        return None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    found = (w for w in caught if "synchroniz" in str(w.message))
    return sorted({f"{Path(w.filename).name}:{w.lineno}" for w in found})


def check_answers(device: str, models: Sequence[str | Path]) -> Iterator[Row]:
    """The digests in model files, from the machines that exported them."""
    for name in models:
        model = load_model(name, device=device)
        wrong = differing(model_answers(model), model.info.answers)
        yield {"model": model.name, "differing": wrong, "answers": not wrong}


def _crop(number: int, side: int) -> Image.Image:
    photos = sorted(EXAMPLES.glob("*.png"))
    photo = open_rgb(photos[number % len(photos)])
    rng = np.random.default_rng(number)
    left, top = (int(rng.integers(0, size - side + 1)) for size in photo.size)
    return photo.crop((left, top, left + side, top + side))


def time_network(device: torch.device, name: str, quick: bool) -> Iterator[Row]:
    """Evaluations by batch, size and arithmetic; z and the answers are in the CPU's memory."""
    for arithmetic in ("integer", "float"):
        model = load_model(name, arithmetic, device.type)
        sigma = model.plans["default"].levels[-1]
        for height, width in SHAPES[: 1 if quick else None]:
            for batch in BATCHES[: 2 if quick else None]:
                if batch * height * width > MOST_PIXELS:
                    continue
                z = np.random.default_rng(0).normal(0, sigma, (batch, 3, height, width))
                row = {"arithmetic": arithmetic, "height": height, "width": width, "batch": batch}
                work = partial(model.posterior_x, z, sigma)
                yield row | measured(partial(lambda x: x, work), device, batch)


def time_files(device: torch.device, name: str, quick: bool, end: float) -> Iterator[Row]:
    """Encoding by the chain alone, and decoding; what would go beyond the end is left out.

    Args:
        device: of the model.
        name: its own.
        quick: the smallest alone.
        end: on the clock.
    """
    model = load_model(name, device=device.type)
    photo = open_rgb(EXAMPLES / "kodim23.png")
    many = [_crop(i, 32) for i in range(4 if quick else 1000)]
    sets = [("32 x 32", many), ("768 x 512", [photo]), ("24 Mpixel", [photo.resize((6000, 4000))])]
    per_pixel = 0.0
    for size, images in sets[: 1 if quick else None]:
        pixels = sum(image.width * image.height for image in images)
        row: Row = {"images": size, "count": len(images), "expected_seconds": per_pixel * pixels}
        if time.perf_counter() + row["expected_seconds"] > end:
            yield row | {"left_out": True}
            continue
        begin = time.perf_counter()
        with by_the_chain():
            coded = list(encode_many(images, model))
        encoded = time.perf_counter()
        same = all(
            decode(data, model=model).tobytes() == image.tobytes()
            for data, image in zip(coded, images, strict=True)
        )
        decoded = time.perf_counter()
        per_pixel = (decoded - begin) / pixels
        times = {"encode_seconds": encoded - begin, "decode_seconds": decoded - encoded}
        yield row | times | {"bytes": sum(map(len, coded)), "decodes": same}


def _shapes(quick: bool) -> list[tuple[str, NetworkConfig]]:
    """The networks that are trained, by name: the shipped model's and those of the presets."""
    if quick:
        tiny = UNetConfig(channels=(8, 8), blocks=(1, 1), patch=2)
        return [("tiny", NetworkConfig(((math.inf, tiny),)))]
    shipped = model_info(model_path("photo")).network
    presets = [(name, NetworkConfig(((math.inf, shape),))) for name, shape in PRESETS.items()]
    return [*([("photo", shipped)] if shipped else []), *presets]


def _trainer(folder: Path, device: torch.device, network: NetworkConfig, batch: int) -> Trainer:
    settings: Row = {"batch": batch, "compile": False, "device": device.type}
    return Trainer(TrainConfig(str(EXAMPLES), **settings, network=network), folder, quiet=True)


def time_training(device: torch.device, quick: bool, end: float) -> Iterator[Row]:
    """Crops of 64 x 64 a second by network and batch, in bfloat16.

    As it is, compiled, and compiled with CUDA graphs, which may not work; first what takes no
    compiling.
    """
    batches = TRAINING_BATCHES[: 1 if quick else None]
    kinds = [("eager", batches), ("compiled", batches[1:2]), ("graphs", batches[1:2])]
    for kind, sizes in kinds:
        for name, network in _shapes(quick):
            for batch in sizes:
                row = {"network": name, "kind": kind, "batch": batch}
                if time.perf_counter() > end:
                    yield row | {"left_out": True}
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    work = partial(_training_step, device, network, batch, kind, Path(folder))
                    yield row | measured(work, device, batch)


def _training_step(
    device: torch.device, network: NetworkConfig, batch: int, kind: str, folder: Path
) -> Callable[[], object]:
    """A function that makes one step of training."""
    trainer = _trainer(folder, device, network, batch)
    if kind == "compiled":
        trainer.compile()
    if kind != "graphs":
        return trainer.train_step
    trainer.compile(mode="reduce-overhead")

    def step() -> object:
        torch.compiler.cudagraph_mark_step_begin()
        return trainer.train_step()

    return step


def measured(prepare: Callable[[], Callable[[], object]], device: torch.device, count: int) -> Row:
    """How many a second and how much memory, or that there was not enough, or what failed."""
    begin = time.perf_counter()
    try:
        work = prepare()
        work()
        first = time.perf_counter() - begin
        took = seconds(work, device)
    except (torch.OutOfMemoryError, MemoryError):
        return {"out_of_memory": True}
    except Exception as e:  # of compilers may be anything; the rest is to be measured all the same
        return {"failure": f"{type(e).__name__}: {str(e)[:500]}"}
    return {
        "first_seconds": first,
        "seconds": took,
        "per_second": count / took,
        "peak_gib": peak_gib(device),
    }


def _fails(row: Row) -> bool:
    """Whether something is not as it must be; CUDA graphs need not work."""
    broken = row.get("error") or (row.get("failure") and row.get("kind") != "graphs")
    return bool(broken) or any(row.get(proof) is False for proof in PROOFS)


@click.command()
@click.option("--device", type=click.Choice(DEVICES), default="cuda", show_default=True)
@click.option("--quick", is_flag=True, help="All parts in small, for a CPU.")
@click.option("--minutes", default=MINUTES, show_default=True, help="When to leave the rest out.")
@click.option("--out", default=OUT, type=click.Path(path_type=Path), help="Folder of results.")
def main(device: str, quick: bool, minutes: float, out: Path) -> None:
    """Check exactness, then measure speed and memory, on a GPU."""
    end = time.perf_counter() + 60 * minutes
    try:
        found = find_device(device)
    except DiffcodecError as e:
        raise click.ClickException(str(e)) from e
    model = str(GOLDEN / "model.safetensors") if quick else "photo"
    answers = [model] if quick else [path.stem for path in shipped_models()]
    parts: dict[str, Callable[[], Iterator[Row]]] = {
        "products": lambda: iter([{"exact_products": exact_products(found)}]),
        "answers": lambda: check_answers(found.type, answers),
        "golden": lambda: check_golden(found.type),
        "crops": lambda: check_crops(found.type, 2 if quick else CROPS, model),
        "images": lambda: check_images(found.type, 3 if quick else IMAGES, model),
        "waits": lambda: find_waits(found, model, quick),
        "network": lambda: time_network(found, model, quick),
        "files": lambda: time_files(found, model, quick, end - 60 * minutes / 3),
        # a network that is begun to be compiled takes a while
        "training": lambda: time_training(found, quick, end - 60 * minutes / 8),
    }
    results: Row = {"environment": describe(found), "seconds": {}}
    failed = []
    for name, work in parts.items():
        rows, begin = [], time.perf_counter()
        try:
            for row in work():
                rows.append(row)
                click.echo(f"{name}: {json.dumps(row)}")
        except Exception as e:  # what else there is to learn comes all the same
            rows.append({"error": f"{type(e).__name__}: {e}", "trace": traceback.format_exc()})
            click.echo(f"{name}: {e}", err=True)
        failed += [name for row in rows if _fails(row)]
        results |= {name: rows}
        results["seconds"][name] = time.perf_counter() - begin
        write_json(out / "gpu.json", results)
    click.echo(
        f"{out / 'gpu.json'}: " + (f"FAILED: {', '.join(failed)}" if failed else "all exact")
    )
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
