"""Classes of images: the network is told them, and the file tells the decoder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import done, run
from golden import sized
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_model

from diffcodec import decode, encode, encode_many, iter_decode, load_model, open_archive, recover
from diffcodec.archive import coding
from diffcodec.archive.coding import decode_images, encode_images
from diffcodec.archive.parts import SharedGroup, pack_group, parse_group
from diffcodec.archive.records import GROUP, read_record
from diffcodec.codec.timesteps import decode_timesteps, measure_marks
from diffcodec.container.parts import TILE_SIDE, Tile
from diffcodec.container.reader import parse
from diffcodec.container.writer import pack
from diffcodec.errors import CorruptError, FormatError, UnsupportedError

CLASSES = 3


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("classes"), classes=CLASSES)


@pytest.fixture(scope="module")
def model(path):
    return load_model(path)


@pytest.fixture
def by_the_chain(monkeypatch):
    """Images of groups are chains all."""
    monkeypatch.setattr(coding, "fallback_tile", lambda *_: Tile("raw", bytes(1 << 22)))


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


# --- archives -------------------------------------------------------------------------------------


@given(st.integers(1, 70), st.data())
def test_a_group_tells_its_classes(count, data):
    labels = data.draw(st.dictionaries(st.integers(0, count - 1), st.integers(0, (1 << 24) - 2)))
    bits = (max(labels.values(), default=0) + 1).bit_length()
    group = SharedGroup("RGB", 3, 2, count, 7, b"abcd", "fast", False, {}, payload=b"word")
    told = replace(group, labels=labels)
    packed = pack_group(told)
    assert parse_group(packed) == told
    extra = 1 + -(-bits * count // 8) if labels else 0
    assert len(packed) == len(pack_group(group)) + extra


def test_what_a_group_may_not_tell_of_classes(model):
    group = SharedGroup("RGB", 9, 8, 2, 7, model.info.id, "fast", False, {}, payload=bytes(8))
    packed = pack_group(replace(group, labels={1: 2}))
    at = len(packed) - 10
    assert packed[at:] == bytes([2, 0b1100]) + bytes(8)
    for width, numbers in ((0, 8), (25, 8), (2, 0x18)):
        with pytest.raises(FormatError):
            parse_group(packed[:at] + bytes([width, numbers]) + packed[at + 2 :])
    with pytest.raises(FormatError, match="no chain"):
        parse_group(pack_group(replace(group, labels={1: 2}, others={1: Tile("raw", b"")})))
    with pytest.raises(CorruptError, match="class 3, but its model knows 3"):
        decode_images(pack_group(replace(group, labels={0: 3})), lambda *_: model)


@pytest.mark.usefixtures("by_the_chain")
def test_archives_tell_the_classes(path, model, tmp_path):
    images = [noise(9, 8, seed) for seed in range(7)]
    labels = [2, None, 0, 1, 2, 2, 0]
    told = encode_images(images, model, "fast", labels)
    assert parse_group(told).labels == {k: n for k, n in enumerate(labels) if n is not None}
    assert all(map(same, decode_images(told, lambda *_: model), images))
    assert parse_group(told).payload != parse_group(encode_images(images, model, "fast")).payload
    file = tmp_path / "x.dfca"
    options = {"model": path, "plan": "fast", "group": 3, "classes": True}
    for start, end in ((0, 4), (4, 7)):
        with open_archive(file, "a", **options) as archive:
            for image, label in zip(images[start:end], labels[start:end], strict=True):
                archive.append(image, label=label)
    damaged = bytearray(file.read_bytes())
    damaged[-30] ^= 1  # of the index's root, which is made again
    file.write_bytes(damaged)
    with open_archive(file, model=path) as archive:
        assert same(archive[5], images[5]) and all(map(same, archive, images))
        assert [entry.label for entry in archive.entries()] == labels
        assert told_of(archive, 4) == {0: 2, 1: 2, 2: 0}
    with open_archive(file, "a", **options) as archive:
        for label, error in ((3, UnsupportedError), (-1, UnsupportedError), ("cat", TypeError)):
            with pytest.raises(error):
                archive.append(images[0], label=label)
        assert len(archive) == 7


def told_of(archive, number):
    """The classes in the group of an image."""
    place = archive.entry(number).group.place
    return parse_group(read_record(archive._source, GROUP, place, "the group")).labels


@pytest.mark.usefixtures("by_the_chain")
def test_commands_pack_by_classes(path, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.stack([np.asarray(noise(9, 8, seed)) for seed in range(4)]))
    Path("labels").write_text("0\n2\nnull\n1\n")
    options = f"--effort fast --classes --model {path}"
    done(f"pack a.npy a.dfca --labels labels {options}")
    with open_archive("a.dfca", model=path) as archive:
        assert [entry.label for entry in archive.entries()] == [0, 2, None, 1]
        assert told_of(archive, 0) == {0: 0, 1: 2, 3: 1}
    done(f"unpack a.dfca b.npy --model {path}")
    assert np.array_equal(np.load("a.npy"), np.load("b.npy"))
    for text, model, message in (
        ("0\ncat\n1\n1\n", path, "line 2: 'cat' is no class"),
        ("0\n3\n1\n1\n", path, "class 3 for a model of 3 classes"),
        ("0\n2\n1\n1\n", tiny, "knows no classes"),
    ):
        Path("labels").write_text(text)
        result = run(f"pack a.npy c.dfca --labels labels --classes --model {model}")
        assert (result.exit_code, message in result.stderr) == (1, True), result.stderr
        assert not Path("c.dfca").exists()
    assert run(f"pack a.npy c.dfca {options}").exit_code == 2
    result = run(f"pack a.npy c.dfca --labels labels --finetune 1 {options}")
    assert (result.exit_code, "without classes" in result.stderr) == (2, True)
