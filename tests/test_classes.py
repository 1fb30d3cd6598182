"""Classes of images: the network is told them, and the file tells the decoder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import done
from golden import sized
from PIL import Image
from tiny import tiny_model

from diffcodec import decode, encode, encode_many, iter_decode, load_model, recover
from diffcodec.codec.timesteps import decode_timesteps, measure_marks
from diffcodec.container.parts import TILE_SIDE
from diffcodec.container.reader import parse
from diffcodec.container.writer import pack
from diffcodec.errors import CorruptError, UnsupportedError

CLASSES = 3


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("classes"), classes=CLASSES)


@pytest.fixture(scope="module")
def model(path):
    return load_model(path)


def noise(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def same(a, b):
    return a.mode == b.mode and a.tobytes() == b.tobytes()


def test_integers_know_the_classes_that_floats_know(path, model):
    floats = load_model(path, "float")
    assert model.classes == floats.classes == CLASSES
    z = np.random.default_rng(0).uniform(0, 200, (5, 3, 10, 12))
    labels = [2, -1, 0, 2, 1]
    seen = []
    for sigma in (model.plans["fast"].levels[0], model.plans["fast"].levels[-1]):
        mixed = model.posterior_x(z, sigma, labels)
        for i, label in enumerate(labels):
            alone = model.posterior_x(z[i : i + 1], sigma, [label])
            assert all(np.array_equal(a[0], b[i]) for a, b in zip(alone, mixed, strict=True))
        none = model.posterior_x(z[1:2], sigma)
        assert all(np.array_equal(a[0], b[1]) for a, b in zip(none, mixed, strict=True))
        right, wrong = (
            np.abs(np.log(floats.posterior_x(z, sigma, told)[1] / mixed[1])).mean()
            for told in (labels, labels[::-1])
        )
        assert 2 * right < wrong
        told = [model.posterior_x(z[:1], sigma, [label])[1] for label in (-1, 0, 1, 2)]
        seen += [field.tobytes() for field in told]
    assert len(set(seen)) == len(seen)


@pytest.mark.usefixtures("chain_only")
def test_the_file_tells_the_class(model):
    image = sized(TILE_SIDE + 8, 3)()  # two tiles
    data = encode(image, model, "fast", label=2)
    assert [tile.label for tile in parse(data).tiles] == [2, 2]
    assert same(decode(data, model=model), image)
    assert data != encode(image, model, "fast", label=1)
    images = dict(decode_timesteps(data, model))
    assert same(images[2], decode(data, 2, model)) and same(images[0], image)
    assert measure_marks(data, model).tiles[0].marks
    left = recover(data[:-9], model).image  # the last tile is lost
    first = (0, 0, parse(data).boxes()[0].width, 3)
    assert same(left.crop(first), image.crop(first))


@pytest.mark.usefixtures("chain_only")
def test_files_with_previews_tell_the_class(model):
    image = sized(TILE_SIDE + 8, 3)()
    lossy = encode(image, model, "fast", timestep=2, label=1)
    assert parse(lossy).layers.label == 1
    assert same(recover(lossy, model).image, decode(lossy, model=model))
    exact = encode(image, model, "fast", progressive=True, label=1)
    assert [tile.label for tile in parse(exact).tiles] == [None, None]
    assert same(list(iter_decode(exact, model))[-1][1], image)
    assert same(recover(exact, model).image, image)


@pytest.mark.usefixtures("chain_only")
def test_the_class_of_the_smallest_file(model):
    images = [noise(9, 8, seed) for seed in range(4)]
    found = list(encode_many(images, model, "fast", labels=["auto", 0, None, "auto"]))
    for image, data in zip((images[0], images[3]), (found[0], found[3]), strict=True):
        each = [encode(image, model, "fast", label=k) for k in (None, *range(CLASSES))]
        assert data in each and len(data) == min(map(len, each))
        assert same(decode(data, model=model), image)
    assert [parse(data).tiles[0].label for data in found[1:3]] == [0, None]


@pytest.mark.usefixtures("chain_only")
def test_commands_know_classes(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        noise(9, 8, seed).save(f"{seed}.png")
    model = f"--model {path} --effort fast"
    done(f"encode 0.png 1.png --output-dir . --class 1 {model}")
    done(f"encode 0.png previews.dfc --class 2 --timestep 2 {model}")
    done(f"encode 0.png auto.dfc --class auto {model}")
    told = done("info 0.dfc 1.dfc previews.dfc --json").stdout.splitlines()
    assert [json.loads(line)["classes"] for line in told] == [[1], [1], [2]]
    assert "  classes   1" in done("info 0.dfc").stdout.splitlines()
    done(f"decode 1.dfc again.png --model {path}")
    assert same(Image.open("again.png"), noise(9, 8, 1))
    sizes = [len(encode(noise(9, 8), path, "fast", label=k)) for k in (None, 0, 1, 2)]
    assert Path("auto.dfc").stat().st_size == min(sizes)
    Path("labels.txt").write_text("0\n2\n")
    np.save("both.npy", np.stack([np.asarray(noise(9, 8, seed)) for seed in range(2)]))
    found = json.loads(done(f"evaluate --data both.npy --labels labels.txt --json {model}").stdout)
    assert [each["file_bytes"] for each in found["results"]] == [
        len(encode(noise(9, 8, seed), path, "fast", label=2 * seed)) for seed in range(2)
    ]


@pytest.mark.usefixtures("chain_only")
def test_classes_that_are_none(model, tiny):
    image = noise(5, 6)
    for label in (-1, 3):
        with pytest.raises(UnsupportedError, match=f"class {label} .* give one from 0 to 2"):
            encode(image, model, "fast", label=label)
    for label in (0, "auto"):
        with pytest.raises(UnsupportedError, match="tiny knows no classes; leave it out"):
            encode(image, tiny, "fast", label=label)
    with pytest.raises(UnsupportedError, match="give the number of the class"):
        encode(image, model, "fast", label="auto", timestep=2)
    with pytest.raises(UnsupportedError, match="2 labels for 1 images"):
        list(encode_many([image], model, labels=[1, 2]))
    with pytest.raises(TypeError, match="label: found str, expected an integer"):
        encode(image, model, "fast", label="cat")
    container = parse(encode(image, model, "fast", label=2))
    hostile = pack(replace(container, tiles=(replace(container.tiles[0], label=3),)))
    with pytest.raises(CorruptError, match="a tile of class 3, but its model knows 3"):
        decode(hostile, model=model)
