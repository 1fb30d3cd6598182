"""Whatever callers give to the functions beside coding: see ``test_arguments.py``."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import make_image
from test_arguments import ALLOWED, ANYTHING, IMAGE, NUMBERS, some

import diffcodec
from diffcodec.archive.archive import Archive
from diffcodec.models import from_diffusers, from_epsilon, to_diffusers
from diffcodec.models.model import Model
from diffcodec.networks.config import one_network
from diffcodec.training.config import TrainConfig

FEW = NUMBERS.filter(lambda n: not isinstance(n, int | float | np.number) or not 9 < n < 1e9)


@pytest.fixture(scope="module")
def model(tiny_float: Path) -> Model:
    return diffcodec.load_model(tiny_float, "float")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images, an archive and an empty file."""
    folder = tmp_path_factory.mktemp("anything")
    for seed in range(2):
        make_image("RGB", (16, 16), seed=seed).save(folder / f"{seed}.png")
    (folder / "empty.npy").touch()
    return folder


def test_every_public_function_is_here_or_there():
    tested = Path(__file__).read_text() + Path(__file__).with_name("test_arguments.py").read_text()
    for name in diffcodec.__all__:
        if callable(function := getattr(diffcodec, name)) and not isinstance(function, type):
            assert f"test_{name}_of_anything" in tested or f"diffcodec.{name}(source" in tested


SAMPLING = {
    "n": FEW | ANYTHING,
    "size": st.tuples(FEW, FEW) | ANYTHING,
    "steps": FEW | ANYTHING,
    "sampler": st.sampled_from(["ancestral", "ddim", "heun"]) | ANYTHING,
    **dict.fromkeys(("eta", "guidance", "classifier_scale"), NUMBERS | ANYTHING),
    "corrector_steps": FEW | ANYTHING,
    **dict.fromkeys(("seed", "label", "progress", "device", "classifier"), NUMBERS | ANYTHING),
}


@pytest.fixture(autouse=True)
def nowhere(tmp_path_factory, monkeypatch):
    """No name leads to a file of this folder."""
    monkeypatch.chdir(tmp_path_factory.mktemp("nowhere"))


@given(some(SAMPLING), st.data())
def test_sample_of_anything(model, options, data):
    used = data.draw(ANYTHING, "model") if not options else model
    made = {"n": 1, "size": (4, 3), "steps": 2} | options
    with suppress(*ALLOWED):
        assert diffcodec.sample(used, **made).dtype == np.uint8


EVALUATION = {
    "plan": st.sampled_from(["fast", "default", "best"]) | ANYTHING,
    "limit": NUMBERS | ANYTHING,
    **dict.fromkeys(("progress", "bound_only", "device"), ANYTHING),
}


@given(ANYTHING, some(EVALUATION))
@settings(max_examples=30)
def test_evaluate_of_anything(model, folder, data, options):
    with suppress(*ALLOWED):
        diffcodec.evaluate(data, model)
    with suppress(*ALLOWED):
        assert diffcodec.evaluate(folder / "0.png", model, **{"plan": "fast"} | options)
    with suppress(*ALLOWED):
        assert diffcodec.evaluate(folder / "empty.npy", data)


SETTINGS = dict.fromkeys(TrainConfig.__dataclass_fields__, FEW | ANYTHING) | {
    "init": ANYTHING,
    "quiet": ANYTHING,
    "loss": st.sampled_from(["vlb", "simple", "v"]) | ANYTHING,
    "augment": st.sampled_from(["all", "none"]) | ANYTHING,
}


@given(some(SETTINGS), ANYTHING)
@settings(max_examples=30)
def test_train_of_anything(folder, tmp_path_factory, options, junk):
    small = {"network": one_network(channels=(8, 8), blocks=(1, 1)), "steps": 1, "batch": 8}
    small |= {"crop": 16, "compile": False, "precision": "float32", "quiet": True}
    given = {"data": folder, "out": tmp_path_factory.mktemp("run")} | small | options
    for data, out in ((given["data"], given["out"]), (junk, given["out"]), (given["data"], junk)):
        with suppress(*ALLOWED):
            assert diffcodec.train(**given | {"data": data, "out": out}).exists()


ARCHIVE = {
    "model": ANYTHING,
    "plan": st.sampled_from(["fast", "default"]) | ANYTHING,
    "group": NUMBERS | ANYTHING,
    "limits": ANYTHING,
    **dict.fromkeys(("strip", "device", "executor"), ANYTHING),
    "jobs": FEW | ANYTHING,
}


@settings(max_examples=15)
@given(st.sampled_from(["r", "a", "x"]) | ANYTHING, some(ARCHIVE), ANYTHING, NUMBERS | ANYTHING)
def test_open_archive_of_anything(model, folder, mode, options, junk, which):
    with suppress(*ALLOWED):
        diffcodec.open_archive(junk).close()
    with suppress(*ALLOWED):
        diffcodec.open_archive(folder / "0.png", mode).close()
    path = folder / "a.dfca"
    path.unlink(missing_ok=True)
    with suppress(*ALLOWED), diffcodec.open_archive(path, "x", model=model, plan="fast") as new:
        new.append(IMAGE, "one", label=2)
        with suppress(*ALLOWED):
            new.append(IMAGE, junk, which)
        with suppress(*ALLOWED):
            new.extend(junk)
    assert len(diffcodec.open_archive(path, model=model)) > 0
    with suppress(*ALLOWED), diffcodec.open_archive(path, mode, **{"model": model} | options) as it:
        for method in (Archive.__getitem__, Archive.number, Archive.entry, Archive.label):
            with suppress(*ALLOWED, LookupError):  # as of a list and of a dictionary
                method(it, which)
        with suppress(*ALLOWED):
            it.append(IMAGE)


NETWORK = {
    "schedule": st.sampled_from(["linear", "cosine", "edm", "flow"]) | ANYTHING,
    "prediction": st.sampled_from(["epsilon", "v", "x0", "velocity"]) | ANYTHING,
    "variance": st.sampled_from(["fixed-small", "learned-range"]) | ANYTHING,
    **dict.fromkeys(("timesteps", "scale"), NUMBERS | ANYTHING),
    **dict.fromkeys(("plans", "name", "identity"), ANYTHING),
    **dict.fromkeys(("size", "multiple", "whole_timesteps", "more"), ANYTHING),
}


@given(some(NETWORK), ANYTHING)
def test_from_epsilon_of_anything(options, junk):
    network = torch.nn.Conv2d(3, 3, 1)
    network.forward = lambda z, noise: z
    with suppress(*ALLOWED):
        made = from_epsilon(network, **options)
        assert isinstance(diffcodec.encode(Image.new("RGB", (3, 2)), made, "fast"), bytes)
    for call in (from_epsilon, from_diffusers, to_diffusers):
        with suppress(*ALLOWED):
            call(junk)
