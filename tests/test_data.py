"""Training images from folders and from arrays: what is found, held out, cut out and refused."""

import hashlib
import io
import json
import pickle
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from bench import cifar10
from diffcodec.errors import DiffcodecError
from diffcodec.networks.config import one_network
from diffcodec.training import data as data_module
from diffcodec.training.config import TrainConfig
from diffcodec.training.crops import CropSampler
from diffcodec.training.data import (
    find_images,
    list_images,
    read_arrays,
    read_labels,
    read_rgb,
    split_held_out,
)
from diffcodec.training.trainer import Trainer


def pattern(i, width=20, height=18):
    """Colour [height, width, 3], another for each number, in integers alone."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 7 + i * 9, y * 5 + i, x * y + 3 * i], -1).astype("u1")


def stack(count, width=20, height=18):
    return np.stack([pattern(i, width, height) for i in range(count)])


def numbered(count, side=8):
    """Grey images of one value each, their number."""
    return np.broadcast_to(np.arange(count, dtype="u1")[:, None, None], (count, side, side))


def values(images):
    return [int(image[0, 0, 0]) for image in images]


def digest(batch):
    return hashlib.sha256(batch.numpy().astype("<i2").tobytes()).hexdigest()


# --- image files, as ever -------------------------------------------------------------------------


@pytest.mark.parametrize("memory_bytes", [6 << 30, 0])
def test_crops_of_image_files_never_change(tmp_path, memory_bytes):
    """The figures are of the version before arrays: what was trained on then goes on the same."""
    (tmp_path / "b").mkdir()
    for i in range(23):
        image = pattern(i, 16 + 5 * (i % 4), 18 + 7 * (i % 3))
        Image.fromarray(image).save(tmp_path / ("b" if i % 2 else ".") / f"{i:02}.png")
    paths = find_images(tmp_path)
    assert [int(p.stem) for p in paths] == [*range(0, 23, 2), *range(1, 23, 2)]
    train, held_out = split_held_out(paths)
    assert held_out == [tmp_path / "20.png"]
    assert train == [p for p in paths if p.stem != "20"]
    assert digest(CropSampler(train, 16, memory_bytes=memory_bytes).batch(8, 3, 41)) == (
        "dfc7fa187069ba6456143e9482b9cde814e4a1bfbddc2132df0121ce59efb5da"
    )
    assert digest(CropSampler(held_out, 16, "none", memory_bytes).batch(8, 3, 41)) == (
        "e9fec3d31eb786cf4ac12418fcb785ebf1cfae10d9e5f2ebf7c9527dec047694"
    )


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("compressed", [None, False, True])
@pytest.mark.parametrize("grey", [False, True])
def test_an_array_gives_the_crops_of_its_images(tmp_path, monkeypatch, mapped, compressed, grey):
    images = stack(25)[..., 0] if grey else stack(25)
    (tmp_path / "files").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "files" / f"{i:02}.png")
    if compressed is None:
        array_file = tmp_path / "images.npy"
        np.save(array_file, images)
    else:
        array_file = tmp_path / "images.npz"
        save = np.savez_compressed if compressed else np.savez
        save(array_file, b=images[9:], a=images[:9])  # they are taken in order of name
    monkeypatch.setattr(data_module, "MAPPED_BYTES", 0 if mapped else 1 << 30)

    from_files = split_held_out(find_images(tmp_path / "files"))
    from_array = split_held_out(find_images(array_file))
    assert [len(part) for part in from_array] == [24, 1]
    for files, array in zip(from_files, from_array, strict=True):
        expected, found = CropSampler(files, 12), CropSampler(array, 12)
        assert len(found.paths) == len(files)
        for step in range(3):
            assert torch.equal(found.batch(16, 5, step), expected.batch(16, 5, step))


def test_images_of_every_kind_in_order(tmp_path):
    (tmp_path / "c").mkdir()
    Image.fromarray(np.full((8, 8, 3), 50, "u1")).save(tmp_path / "a.png")
    np.save(tmp_path / "b.npy", numbered(3))
    np.savez(tmp_path / "c" / "d.npz", two=numbered(2), one=np.full((8, 9, 3), 9, "u1"))
    (tmp_path / "e.NPY").write_bytes(npy(np.full((1, 8, 8, 3), 60, "u1")))
    Image.fromarray(np.full((8, 8), 70, "u1")).save(tmp_path / "z.png")
    images = list_images(find_images(tmp_path))
    names = [p.name if isinstance(p, Path) else int(p[0, 0, 0]) for p in images]
    assert names == ["a.png", 0, 1, 2, 9, 0, 1, 60, "z.png"]
    sampler = CropSampler(images, 8)
    assert {*values(sampler.batch(300, 0, 0))} == {50, 0, 1, 2, 9, 60, 70}
    assert list_images(images) == images  # the second time changes nothing


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_deep_grey_is_scaled(tmp_path, suffix):
    grey = np.arange(24 * 24, dtype=np.uint16).reshape(24, 24) % 256
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(grey * 257).save(path)
    assert np.array_equal(read_rgb(path), np.broadcast_to(grey, (3, 24, 24)))


def test_samples_of_unknown_range_are_refused(tmp_path):
    path = tmp_path / "x.tiff"
    Image.fromarray(np.ones((24, 24), np.float32)).save(path)
    with pytest.raises(DiffcodecError, match="found mode F: scale it to 16-bit grey"):
        read_rgb(path)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 8, 9, 3), [(3, 8, 9)] * 5),
        ((5, 8, 9), [(3, 8, 9)] * 5),
        ((8, 9, 3), [(3, 8, 9)]),
        ((3, 8, 9), [(3, 8, 9)] * 3),  # three grey images: colour is last
        ((3, 3, 3), [(3, 3, 3)]),
        ((2, 3, 8, 3), [(3, 3, 8)] * 2),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_shapes(tmp_path, shape, expected, order):
    array = np.random.default_rng(0).integers(256, size=shape, dtype="u1")
    np.save(tmp_path / "x.npy", np.asarray(array, order=order))
    images = list_images([tmp_path / "x.npy"])
    assert [image.shape for image in images] == expected
    for i, image in enumerate(images):
        if shape[-1] == 3:
            assert np.array_equal(image.transpose(1, 2, 0), array if len(shape) == 3 else array[i])
        else:
            assert all(np.array_equal(plane, array[i]) for plane in image)


@pytest.mark.parametrize("grey", [False, True])
def test_large_arrays_are_memory_mapped(tmp_path, monkeypatch, grey):
    images = np.array(stack(30)[..., 0] if grey else stack(30))
    np.save(tmp_path / "x.npy", images)
    for threshold, mapped in ((images.nbytes, True), (images.nbytes + 1, False)):
        monkeypatch.setattr(data_module, "MAPPED_BYTES", threshold)
        [array] = read_arrays(tmp_path / "x.npy")
        sampler = CropSampler(split_held_out([tmp_path / "x.npy"])[0], 18)
        for owner in (array, *sampler.images):
            while isinstance(owner.base, np.ndarray) and not isinstance(owner, np.memmap):
                owner = owner.base  # noqa: PLW2901
            assert isinstance(owner, np.memmap) == mapped


def test_every_twentieth_image_of_an_array_is_held_out(tmp_path):
    np.save(tmp_path / "a.npy", numbered(47))
    np.save(tmp_path / "b.npy", numbered(200)[47:])
    train, held_out = split_held_out(find_images(tmp_path))
    assert values(held_out) == [*range(10, 200, 20)]
    assert values(train) == [i for i in range(200) if i % 20 != 10]


def test_crops_as_large_as_the_images(tmp_path):
    images = stack(40, 16, 16)
    np.save(tmp_path / "x.npy", images)
    sampler = CropSampler([tmp_path / "x.npy"], 16, "none")
    whole = {image.transpose(2, 0, 1).tobytes() for image in images}
    crops = sampler.batch(600, 0, 0).numpy().astype("u1")
    assert {crop.tobytes() for crop in crops} == whole
    with pytest.raises(DiffcodecError, match="at least 17 pixels"):
        CropSampler([tmp_path / "x.npy"], 17)


def test_images_are_drawn_in_proportion_to_their_area(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros((8, 8, 3), "u1"), b=np.full((4, 8, 16, 3), 1, "u1"))
    np.save(tmp_path / "y.npy", np.full((900, 7, 99), 2, "u1"))  # too low
    Image.fromarray(np.full((8, 24), 3, "u1")).save(tmp_path / "z.png")
    counts = np.bincount(values(CropSampler(find_images(tmp_path), 8).batch(2400, 0, 0)))
    assert counts / 2400 == pytest.approx([1 / 12, 8 / 12, 0, 3 / 12], abs=0.04)


def test_many_small_images_are_fast(tmp_path):
    """Generous: some 0.2 s and 20 microseconds a crop on one core."""
    np.save(tmp_path / "x.npy", np.zeros((50_000, 32, 32, 3), "u1"))
    begin = time.process_time()
    train, _ = split_held_out([tmp_path / "x.npy"])
    sampler = CropSampler(train, 32)
    ready = time.process_time()
    sampler.batch(1000, 0, 0)
    assert ready - begin < 5
    assert time.process_time() - ready < 1000 * 5e-4


def test_training_on_an_array(tmp_path):
    np.save(tmp_path / "x.npy", stack(25, 16, 16))
    network = one_network(channels=(8, 8), blocks=(1, 1), patch=2, embedding=16)
    config = TrainConfig(str(tmp_path / "x.npy"), crop=16, batch=8, compile=False, network=network)
    trainer = Trainer(config, tmp_path)
    assert (len(trainer.train_data.paths), len(trainer.held_out.paths)) == (24, 1)
    assert np.isfinite(trainer.train_step())


# --- what is refused ------------------------------------------------------------------------------


class Unpickled:
    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


WRONG_ARRAYS = {
    "float32": (np.zeros((4, 8, 8, 3), "f4"), r"is float32 \[4, 8, 8, 3\]"),
    "int8": (np.zeros((4, 8, 8), "i1"), r"is int8 \[4, 8, 8\]"),
    "bool": (np.zeros((4, 8, 8), "?"), r"is bool \[4, 8, 8\]"),
    "channels first": (np.zeros((4, 3, 8, 8), "u1"), r"is uint8 \[4, 3, 8, 8\]"),
    "alpha": (np.zeros((4, 8, 8, 4), "u1"), r"is uint8 \[4, 8, 8, 4\]"),
    "flat": (np.zeros((8, 8), "u1"), r"is uint8 \[8, 8\]"),
    "number": (np.uint8(3), r"is uint8 \[\]"),
    "video": (np.zeros((2, 4, 8, 8, 3), "u1"), r"is uint8 \[2, 4, 8, 8, 3\]"),
    "none": (np.zeros((0, 8, 8, 3), "u1"), r"is uint8 \[0, 8, 8, 3\]"),
    "record": (np.zeros((4, 8, 8), [("a", "u1")]), r"is \[\('a', 'u1'\)\] \[4, 8, 8\]"),
}


def refused(path, match):
    with pytest.raises(DiffcodecError, match=match) as caught:
        split_held_out(find_images(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    assert "--data" in message
    return message


@pytest.mark.parametrize("kind", WRONG_ARRAYS)
def test_arrays_that_are_not_images(tmp_path, kind):
    array, match = WRONG_ARRAYS[kind]
    np.save(tmp_path / "x.npy", array)
    message = refused(tmp_path / "x.npy", f"the array {match}; images are uint8")
    assert "[n, h, w, 3], [n, h, w] (grey) or [h, w, 3]: convert it" in message
    np.savez(tmp_path / "x.npz", good=stack(4), bad=array)
    refused(tmp_path / "x.npz", f"the array 'bad' {match}; images are uint8")


def test_labels_beside_the_images(tmp_path):
    np.savez(tmp_path / "x.npz", images=stack(4), labels=np.arange(4))
    refused(tmp_path / "x.npz", r"the array 'labels' is int64 \[4\]")


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npz(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npz_with_text():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("notes.txt", "hello")
    return stream.getvalue()


OBJECTS = npy(np.array([Unpickled()] * 3, object), allow_pickle=True)
DAMAGED = {
    "empty.npy": (b"", "not readable"),
    "text.npy": (b"no array", "not readable.*magic string"),
    "pickle.npy": (pickle.dumps(Unpickled()), "not readable.*magic string"),
    "objects.npy": (OBJECTS, "not readable.*Python objects"),
    "cut.npy": (npy(stack(4))[:-1], "not readable"),
    "header.npy": (npy(stack(4))[:40], "not readable"),
    "code.npy": (npy(stack(4)).replace(b"(4, 18, 20, 3)", b"exit(4 18 203)"), "not readable"),
    "long.npy": (npy(np.zeros(1, [("a" * 20_000, "u1")])), "not readable.*header"),
    "archive.npy": (npz(a=stack(4)), "not readable.*magic string"),
    "empty.npz": (b"", "not readable.*not a zip file"),
    "text.npz": (b"no archive", "not readable.*not a zip file"),
    "pickle.npz": (pickle.dumps(Unpickled()), "not readable.*not a zip file"),
    "array.npz": (npy(stack(4)), "not readable.*not a zip file"),
    "cut.npz": (npz(a=stack(4))[:-100], "not readable.*not a zip file"),
    "flipped.npz": (npz(a=stack(4)).replace(bytes(pattern(2)), bytes(1080)), "CRC"),
    "objects.npz": (npz(a=np.array([1, None])), "not readable.*allow_pickle=False"),
    "nothing.npz": (npz(), "holds no array; take it out"),
    "notes.npz": (npz_with_text(), r"the array 'notes.txt' is bytes \[\]"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files(tmp_path, name):
    content, match = DAMAGED[name]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, match)


def test_a_damaged_file_in_a_folder_is_named(tmp_path):
    np.save(tmp_path / "a.npy", stack(4))
    (tmp_path / "b.npy").write_bytes(b"")
    with pytest.raises(DiffcodecError, match=r"b\.npy: not readable"):
        split_held_out(find_images(tmp_path))


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    refused_by = r"notes\.txt: not a file of images \(\.bmp, .*\.npy, \.npz.*\), nor a folder"
    with pytest.raises(DiffcodecError, match=refused_by):
        find_images(tmp_path / "notes.txt")


# --- CIFAR-10 -------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A small package of the same build, its checksums in place of the real ones."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "package"
    folder.mkdir()
    sums, samples, images = {}, {}, {}
    for part, names in cifar10.BATCHES.items():
        labels, parts, sums[part] = [], [], {}
        for name in names:
            batch = rng.integers(256, size=(3, 32, 32, 3), dtype="u1")
            official = b""
            for image in batch:
                labels.append(int(rng.integers(10)))
                official += bytes([labels[-1]])
                official += b"".join(bytes(image[..., c].ravel()) for c in range(3))
            sums[part][name] = hashlib.sha1(official).hexdigest()
            Image.fromarray(batch.reshape(3, 1024, 3)).save(folder / f"{name}.png")
            parts.append(batch)
        (folder / cifar10.LABELS[part]).write_text(json.dumps(labels))
        images[part] = np.concatenate(parts)
        samples[part] = hashlib.sha256(images[part].tobytes()).hexdigest()
    monkeypatch.setattr(cifar10, "BATCHES", sums)
    monkeypatch.setattr(cifar10, "SAMPLES", samples)
    return folder, images


def prepare(package, out):
    return CliRunner().invoke(cifar10.main, [str(package), str(out)])


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_from_its_package(package, tmp_path, packed):
    source, images = package
    if packed:
        source = tmp_path / "package.tgz"
        with tarfile.open(source, "w:gz") as archive:
            archive.add(package[0], "package")
    out = tmp_path / "made" / "out"
    result = prepare(source, out)
    assert result.exit_code == 0, result.output
    arrays, texts = ["test.npy", "train.npy"], ["test.labels.txt", "train.labels.txt"]
    assert sorted(p.name for p in out.iterdir()) == sorted(arrays + texts)
    for part, expected in images.items():
        labels = json.loads((package[0] / cifar10.LABELS[part]).read_text())
        assert read_labels(out / f"{part}.labels.txt").tolist() == labels
        assert np.array_equal(np.load(out / f"{part}.npy"), expected)
    assert len(images["train"]) == 15 and len(list_images(find_images(out))) == 18


def test_cifar10_that_is_not(package, tmp_path):
    folder, _ = package
    out = tmp_path / "out"
    original = (folder / "data_batch_4.png").read_bytes()
    (folder / "data_batch_4.png").write_bytes((folder / "data_batch_3.png").read_bytes())
    result = prepare(folder, out)
    assert result.exit_code == 1 and "data_batch_4 has SHA-1" in result.output
    (folder / "data_batch_4.png").write_bytes(original)

    labels = json.loads((folder / "test_lables.json").read_text())
    (folder / "test_lables.json").write_text(json.dumps([*labels[:2], labels[2] ^ 1]))
    result = prepare(folder, out)
    assert result.exit_code == 1 and "test_batch has SHA-1" in result.output

    (folder / "test_batch.png").unlink()
    result = prepare(folder, out)
    assert result.exit_code == 1 and "not the package" in result.output
    (tmp_path / "x.tgz").write_bytes(b"no archive")
    result = prepare(tmp_path / "x.tgz", out)
    assert result.exit_code == 1 and "not the package" in result.output
    assert not out.exists()
