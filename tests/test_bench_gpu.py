"""The checklist for a GPU, in small on the CPU."""

import json
import resource
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from functools import partial

import pytest
import torch
from click.testing import CliRunner

from bench import gpu
from diffcodec import DiffcodecError, load_model
from diffcodec.errors import CorruptError
from diffcodec.models.model import Model

MODEL = str(gpu.GOLDEN / "model.safetensors")
CPU = torch.device("cpu")
PARTS = (
    *("products", "answers", "golden", "crops", "images"),
    *("waits", "network", "files", "training"),
)


def run(folder, *arguments):
    return CliRunner().invoke(gpu.main, ["--device", "cpu", "--quick", "--out", folder, *arguments])


def _childrens_seconds():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder, begin = tmp_path_factory.mktemp("gpu"), _childrens_seconds()
    command = [sys.executable, "-m", "bench", "gpu", "--device", "cpu", "--quick", "--out"]
    subprocess.run([*command, folder], cwd=gpu.FOLDER, check=True, capture_output=True)
    assert _childrens_seconds() - begin < 60
    return json.loads((folder / "gpu.json").read_text())


def test_all_is_exact(found):
    assert set(found) == {"environment", "seconds", *PARTS}
    assert found["environment"]["device"] == "cpu" and found["environment"]["torch"]
    assert found["products"][0]["exact_products"] is not False
    assert found["answers"][0]["answers"] and not found["answers"][0]["differing"]
    names = {path.stem for path in gpu.GOLDEN.glob("*.dfc")}
    assert {row["name"] for row in found["golden"]} == names
    assert all(row["decodes"] and row["same_bytes"] for row in found["golden"] + found["crops"])
    assert found["images"] == [{"images": 3, "same_bytes": True}]
    assert [row["waits"] for row in found["waits"]] == [None, None]  # of a CPU


def test_speed_is_measured(found):
    assert {row["arithmetic"] for row in found["network"]} == {"integer", "float"}
    for row in found["network"] + found["training"]:
        assert row["per_second"] == pytest.approx(row["batch"] / row["seconds"])
        assert row["peak_gib"] > 0.1
    (row,) = found["files"]
    assert row["decodes"] and min(row["encode_seconds"], row["decode_seconds"]) > 0


@pytest.fixture
def short(monkeypatch):
    """Without what takes long."""
    checks = [f"check_{name}" for name in ("answers", "crops", "images")]
    times = [f"time_{name}" for name in ("network", "files", "training")]
    for name in ("find_waits", *checks, *times):
        monkeypatch.setattr(gpu, name, lambda *_: iter(()))
    monkeypatch.setattr(gpu, "check_golden", lambda *_: iter([{"decodes": True}]))


def broken(*_):
    yield {"decodes": True}
    raise DiffcodecError("the model fails there")


@pytest.mark.parametrize(
    ("name", "stub"),
    [
        ("golden", lambda *_: iter([{"decodes": True, "same_bytes": False}])),
        ("crops", lambda *_: iter([{"decodes": False, "same_bytes": True}])),
        ("crops", broken),
    ],
)
def test_what_fails_is_named_and_the_rest_goes_on(short, monkeypatch, tmp_path, name, stub):
    assert run(str(tmp_path)).exit_code == 0
    monkeypatch.setattr(gpu, f"check_{name}", stub)
    result = run(str(tmp_path))
    assert result.exit_code == 1 and f"FAILED: {name}" in result.stdout
    assert set(json.loads((tmp_path / "gpu.json").read_text())) == {
        "environment",
        "seconds",
        *PARTS,
    }


@pytest.mark.parametrize(
    "check", [gpu.check_golden, partial(gpu.check_crops, crops=1, model=MODEL)]
)
def test_a_device_with_other_answers_is_found(monkeypatch, check):
    """By every check of files, though it decodes what it has coded itself."""

    class Rounding(Model):
        def posterior_x(self, z, sigma, labels=None):
            mean, v = super().posterior_x(z, sigma, labels)
            return mean + 0.01, v

    def load(path, device):
        model = load_model(path)
        return model if device == "cpu" else Rounding(model.network, model.plans, file=model.info)

    monkeypatch.setattr(gpu, "load_model", load)
    with suppress(CorruptError):
        row = next(check("other"))
        assert not row["same_bytes"]


def test_products_that_round_fail(short, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "exact_products", lambda device: False)
    result = run(str(tmp_path))
    assert result.exit_code == 1 and "FAILED: products" in result.stdout


def test_what_takes_too_long_is_left_out():
    begun = time.perf_counter()
    (row,) = gpu.time_training(CPU, True, begun - 1)
    assert row["left_out"]
    (row,) = gpu.time_files(CPU, MODEL, True, begun - 1)
    assert row["left_out"]


def test_too_little_memory_is_told():
    def work():
        raise torch.OutOfMemoryError

    assert gpu.measured(lambda: work, CPU, 1) == {"out_of_memory": True}


def test_what_a_compiler_does_not_like_is_told_and_the_rest_measured():
    def work():
        raise AssertionError("no such pass")

    row = gpu.measured(lambda: work, CPU, 1)
    assert row == {"failure": "AssertionError: no such pass"}
    assert gpu._fails(row | {"kind": "compiled"}) and not gpu._fails(row | {"kind": "graphs"})


def test_wheels_of_a_folder_are_installed_first(tmp_path):
    def bare(*arguments):
        command = [sys.executable, gpu.FOLDER / "bench" / "bare.py", *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    missing = bare(tmp_path, "gpu")
    assert missing.returncode == 1 and "no wheels in it" in missing.stderr
    about = "Metadata-Version: 2.1\nName: carried\nVersion: 1\n"
    kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(tmp_path / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("sitecustomize.py", "print('carried')")
        wheel.writestr("carried-1.dist-info/METADATA", about)
        wheel.writestr("carried-1.dist-info/WHEEL", kind)
        wheel.writestr("carried-1.dist-info/RECORD", "")
    helped = bare(tmp_path, "gpu", "--help")
    assert helped.stdout.startswith("carried\n")
    assert helped.returncode == 0 and "on a GPU" in helped.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
def test_without_a_gpu_it_says_so(tmp_path):
    result = CliRunner().invoke(gpu.main, ["--out", str(tmp_path)])
    assert result.exit_code == 1 and "no GPU that this" in result.output
