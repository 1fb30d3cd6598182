"""Archives: what goes in comes out, appends that are cut short cost nothing, damage one group."""

import io
import os
import pickle
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import make_image
from targets import archive_seeds, mutated_archive, read
from test_phased_files import noise, same, smooth

from diffcodec import Limits, load_model, open_archive
from diffcodec.archive import coding, writing
from diffcodec.archive.coding import decode_images, encode_images
from diffcodec.archive.index import Root
from diffcodec.archive.parts import SharedGroup, pack_group, parse_group
from diffcodec.archive.records import find_root
from diffcodec.archive.sources import LocalSource
from diffcodec.codec.tiles import fallback_tile
from diffcodec.container.parts import Tile
from diffcodec.errors import (
    CorruptError,
    DiffcodecError,
    FormatError,
    LimitError,
    ModelMismatchError,
    UnsupportedError,
)
from diffcodec.models.model import Model


@pytest.fixture(scope="module")
def models(tiny: Path, phased: Path) -> list[Model]:
    return [load_model(tiny), load_model(phased)]


def large(image: Image.Image, *_: object) -> Tile:
    """What a fallback coder makes, so that the chain wins."""
    return Tile("raw", bytes(1 << 22))


def shared(content: bytes) -> SharedGroup:
    group = parse_group(content)
    assert isinstance(group, SharedGroup) and pack_group(group) == content
    return group


# --- groups ---------------------------------------------------------------------------------------

SIDES = st.integers(1, 20)


@settings(max_examples=10)
@given(SIDES, SIDES, st.integers(2, 5), st.sampled_from(["RGB", "L"]), st.booleans())
def test_a_group_comes_back(
    models: list[Model], width: int, height: int, count: int, mode: str, is_phased: bool
) -> None:
    model = models[is_phased]
    images = [noise(width, height, mode), *(smooth(width, height, mode, k) for k in range(count))]
    with mock.patch.object(coding, "fallback_tile", large):
        content = encode_images(images, model, "fast")
    assert shared(content).chains == list(range(count + 1))
    back = decode_images(content, lambda *_: model)
    assert all(map(same, images, back))


def test_images_that_are_smaller_otherwise_leave_the_stack(models: list[Model]) -> None:
    flat = Image.new("RGB", (16, 16), (10, 200, 30))
    images = [smooth(16, 16), flat, smooth(16, 16, seed=1), flat]

    def coded(image: Image.Image, *_: object) -> Tile:
        return fallback_tile(image) if image == flat else large(image)

    with mock.patch.object(coding, "fallback_tile", coded):
        content = encode_images(images, models[0], "fast")
    assert set(shared(content).others) == {1, 3}
    assert all(map(same, images, decode_images(content, lambda *_: models[0])))


def test_an_image_out_of_range_leaves_the_stack(models: list[Model]) -> None:
    """As one of a single file takes a fallback coder."""
    images = [smooth(8, 8, seed=k) for k in range(3)]
    real = coding.integers

    def integers(image: Image.Image, *more: Any) -> Any:
        return real(image, *more) + (30000 if image is images[1] else 0)

    with (
        mock.patch.object(coding, "integers", integers),
        mock.patch.object(coding, "fallback_tile", lambda image, *_: Tile("raw", image.tobytes())),
        mock.patch.object(coding, "LEAST_GAIN", 1e9),
    ):
        content = encode_images(images, models[0], "fast")
    assert set(shared(content).others) == {1}
    assert all(map(same, images, decode_images(content, lambda *_: models[0])))


def test_a_group_keeps_metadata_and_colors(models: list[Model]) -> None:
    images = [smooth(20, 20, seed=k).point(lambda value: value // 16 * 16) for k in range(3)]
    images[1].info |= {"dpi": (300.0, 72.0), "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}
    with mock.patch.object(coding, "fallback_tile", large):
        content = encode_images(images, models[0], "fast")
    assert shared(content).colors
    back = decode_images(content, lambda *_: models[0])
    assert all(map(same, images, back))
    assert [image.info for image in back] == [image.info for image in images]


def test_grey_images_among_others_have_groups_of_their_own(tiny: Path, tmp_path: Path) -> None:
    images = [smooth(20, 20, seed=k) for k in range(4)]
    images[1:3] = [image.convert("L").convert("RGB") for image in images[1:3]]
    with (
        mock.patch.object(coding, "fallback_tile", large),
        open_archive(tmp_path / "x.dfca", "x", model=tiny, plan="fast") as archive,
    ):
        archive.extend(images)
        archive.flush()
        groups = [archive.entry(k).group for k in range(4)]
        assert groups[0] == groups[3] != groups[1] == groups[2]
        assert all(map(same, archive, images))
    with mock.patch.object(coding, "fallback_tile", large):
        apart = [encode_images(some, load_model(tiny), "fast") for some in (images[1:3], images)]
    assert shared(apart[0]).grey and not shared(apart[1]).grey
    plain = [image.convert("L") for image in images[1:3]]
    with mock.patch.object(coding, "fallback_tile", large):
        assert (
            shared(apart[0]).payload
            == shared(encode_images(plain, load_model(tiny), "fast")).payload
        )


def test_a_group_takes_less_than_its_files(models: list[Model]) -> None:
    """Neither containers nor a dip for each image."""
    images = [smooth(16, 16, seed=k) for k in range(16)]
    with mock.patch.object(coding, "fallback_tile", large):
        together = len(encode_images(images, models[0], "fast"))
        half = len(encode_images(images[:8], models[0], "fast"))
        other = len(encode_images(images[8:], models[0], "fast"))
    assert together <= half + other - 15  # a header and the words that end a stack


@pytest.mark.parametrize("change", ["word", "crc"])
def test_a_group_that_is_not_as_written_is_refused(models: list[Model], change: str) -> None:
    with mock.patch.object(coding, "fallback_tile", large):
        content = encode_images([smooth(9, 9), smooth(9, 9, seed=1)], models[0], "fast")
    group = shared(content)
    payload = bytearray(group.payload)
    payload[8] ^= 1
    fields = {
        "word": {"payload": bytes(payload)},
        "crc": {"pixel_crc": group.pixel_crc ^ 1},
    }
    broken = SharedGroup(**(vars(group) | fields[change]))
    with pytest.raises(CorruptError):
        decode_images(pack_group(broken), lambda *_: models[0])


def test_mutated_groups_raise_only_errors_of_ours(models: list[Model]) -> None:
    draw = random.Random(0)
    images = [smooth(5, 4, seed=k) for k in range(3)]
    images[0].info["dpi"] = (1.0, 2.0)
    content = encode_images(images, models[0], "fast")
    for _ in range(300):
        data = bytearray(content)
        for _ in range(draw.randint(1, 3)):
            data[draw.randrange(min(len(data), 60))] = draw.randrange(256)
        cut = bytes(data[: draw.choice([None, draw.randrange(len(data))])])
        with suppress(DiffcodecError):
            decode_images(cut, lambda *_: models[0], Limits(pixels=1 << 12))


def test_a_group_over_a_limit_is_refused(models: list[Model]) -> None:
    content = encode_images([smooth(9, 9), smooth(9, 9, seed=1)], models[0], "fast")
    with pytest.raises(LimitError):
        decode_images(content, lambda *_: models[0], Limits(pixels=161))


# --- the file -------------------------------------------------------------------------------------


def pictures() -> list[Image.Image]:
    """Of several sizes and modes that take turns."""
    kinds: list[Callable[[int], Image.Image]] = [
        lambda k: smooth(12, 9, seed=k),
        lambda k: smooth(7, 7, "L", seed=k),
        lambda k: make_image("RGBA", (5, 6), seed=k),
        lambda k: make_image("P", (6, 5), seed=k),
        lambda k: make_image("I;16", (4, 4), seed=k),
    ]
    return [kinds[k % len(kinds)](k) for k in range(23)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, models: list[Model]) -> Path:
    path = tmp_path_factory.mktemp("archive") / "x.dfca"
    with open_archive(path, "x", model=models[0], plan="fast", group=3) as archive:
        for k, image in enumerate(pictures()):
            archive.append(image, f"{k}.png" if k % 2 else None, {"class": k} if k % 3 else None)
    return path


def test_an_archive_is_a_sequence(written: Path, models: list[Model]) -> None:
    images = pictures()
    with open_archive(written, model=models[0]) as archive:
        assert len(archive) == len(images)
        assert all(map(same, archive, images))
        assert same(archive[-1], images[-1]) and same(archive["7.png"], images[7])
        assert same(archive["8"], images[8])
        assert all(map(same, archive[20:3:-4], images[20:3:-4]))
        assert all(map(same, archive.images([4, 4, 0]), [images[4], images[4], images[0]]))
        assert [archive.label(k) for k in (0, 1)] == [None, {"class": 1}]
        entries = [(entry.name, entry.mode, entry.size) for entry in archive.entries()]
        assert entries[7] == ("7.png", images[7].mode, images[7].size)
        for which in (23, -24):
            with pytest.raises(IndexError):
                archive[which]
        with pytest.raises(KeyError):
            archive["9"]
        with pytest.raises(UnsupportedError, match="open_archive"):
            archive.append(images[0])


def test_one_image_costs_one_group(written: Path, models: list[Model]) -> None:
    read: list[int] = []
    real = LocalSource.read

    def counted(self: LocalSource, offset: int, size: int) -> bytes:
        read.append(size)
        return real(self, offset, size)

    with mock.patch.object(LocalSource, "read", counted):
        archive = open_archive(written, model=models[0])
        image = archive[11]
    assert same(image, pictures()[11])
    group = archive.entry(11).group
    assert read.count(group.size) == 1
    assert sum(read) < group.size + 2000 < written.stat().st_size


def test_readers_in_threads_and_other_processes(written: Path, models: list[Model]) -> None:
    images = pictures()
    path = str(written)
    archive = open_archive(path, model=models[0])
    with ThreadPoolExecutor(16) as pool:
        order = random.Random(1).choices(range(23), k=64)
        assert all(map(same, pool.map(archive.__getitem__, order), [images[k] for k in order]))
    other = pickle.loads(pickle.dumps(open_archive(path)))
    assert len(other) == 23 and same(other[2], images[2])


def test_a_remote_archive_is_read_by_ranges(written: Path, models: list[Model]) -> None:
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    system.pipe("/bucket/x.dfca", written.read_bytes())
    with open_archive("memory://bucket/x.dfca", model=models[0]) as archive:
        assert same(archive[11], pictures()[11])
    with pytest.raises(UnsupportedError, match="path"):
        open_archive("memory://bucket/x.dfca", "a")
    with pytest.raises(DiffcodecError, match="cannot"):
        open_archive("memory://bucket/y.dfca")
    with pytest.raises(DiffcodecError, match="remote"):
        open_archive("no-such-kind://bucket/y.dfca")


@pytest.mark.usefixtures("chain_only")
def test_appending_changes_nothing_before(
    written: Path, models: list[Model], tmp_path: Path
) -> None:
    path = tmp_path / "x.dfca"
    path.write_bytes(written.read_bytes())
    before, images = path.read_bytes(), pictures()
    for k in (0, 1, 5):
        with open_archive(path, "a", model=models[1], plan="fast") as archive:
            archive.append(images[k], f"more {k}")
            assert same(archive[-1], images[k])
    assert path.read_bytes().startswith(before)
    with open_archive(path, "a", model=models[0]) as archive:
        assert all(map(same, archive[:23], images))
        with pytest.raises(ModelMismatchError):
            archive["more 1"]
    with open_archive(path, model=models[1]) as archive:
        assert same(archive["more 1"], images[1])


def test_a_model_travels_with_its_images(tiny: Path, phased: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.dfca"
    for model in (tiny, phased, tiny):
        with open_archive(path, "a", model=model, plan="fast") as archive:
            archive.embed_model()
            for k in range(3):
                archive.append(smooth(8, 8, seed=k))
    size = path.stat().st_size
    models = tiny.stat().st_size + phased.stat().st_size
    assert models < size < models + 5000
    with open_archive(path) as archive:
        assert all(map(same, archive, 3 * [smooth(8, 8, seed=k) for k in range(3)]))


# --- ends -----------------------------------------------------------------------------------------


@pytest.fixture
def pages_of_four() -> Iterator[None]:
    with (
        mock.patch("diffcodec.archive.writing.PAGE_IMAGES", 4),
        mock.patch("diffcodec.archive.reading.PAGE_IMAGES", 4),
        mock.patch("diffcodec.archive.index.PAGE_IMAGES", 4),
        mock.patch("diffcodec.archive.archive.PAGE_IMAGES", 4),
        mock.patch("diffcodec.archive.repair.PAGE_IMAGES", 4),
        mock.patch("diffcodec.archive.writing.INDEX_SECONDS", 0),
        mock.patch("diffcodec.archive.writing.INDEX_SHARE", 0),
    ):
        yield


def coded_grey(count: int, seed: int = 0) -> list[Image.Image]:
    return [make_image("LA", (3, 2), seed=seed + k) for k in range(count)]


@pytest.mark.usefixtures("pages_of_four")
def test_an_append_that_is_cut_anywhere_leaves_what_was_complete(
    tiny: Path, tmp_path: Path
) -> None:
    """Cut behind every byte: no image of before is lost, and those that show are right."""
    path, images = tmp_path / "x.dfca", coded_grey(19)
    with open_archive(path, "x", model=tiny, group=2) as archive:
        for image in images[:6]:
            archive.append(image)
    before = path.stat().st_size
    with open_archive(path, "a", model=tiny, group=2) as archive:
        for image in images[6:]:
            archive.append(image)
    data = path.read_bytes()
    counts = []
    for size in range(before, len(data) + 1, 1 if len(data) - before < 4000 else 7):
        path.write_bytes(data[:size])
        with open_archive(path) as archive:
            counts.append(len(archive))
            assert len(archive) < 8 or size % 41 or all(map(same, archive, images))
    assert counts[0] == 6 and counts == sorted(counts) and {8, 10, 12} < set(counts)
    path.write_bytes(data[:-5])  # and goes on from there
    with open_archive(path, "a", model=tiny) as archive:
        archive.extend(images[len(archive) :])
    with open_archive(path) as archive:
        assert all(map(same, archive, images)) and len(archive) == 19


@pytest.mark.usefixtures("pages_of_four")
def test_a_write_that_fails_leaves_what_was_complete(tiny: Path, tmp_path: Path) -> None:
    images = coded_grey(11)
    real = writing.ArchiveWriter._put
    for failing in range(1, 60):
        path, calls = tmp_path / f"{failing}.dfca", 0

        def put(self: writing.ArchiveWriter, data: bytes, failing: int = failing) -> None:
            nonlocal calls
            calls += 1
            if calls == failing:
                real(self, data[: len(data) // 2])
                raise OSError(28, "No space left on device")
            real(self, data)

        shown = 0
        with mock.patch.object(writing.ArchiveWriter, "_put", put):
            try:
                with open_archive(path, "x", model=tiny, group=2) as archive:
                    for image in images:
                        archive.append(image)
                        shown = archive._writer.root.images if archive._writer else 0
            except OSError:
                pass
            else:
                assert calls < failing
                break
        with open_archive(path) as archive:
            assert len(archive) >= shown and all(map(same, archive, images))
    assert failing > 15


def test_damage_costs_one_group(written: Path, models: list[Model], tmp_path: Path) -> None:
    images, data = pictures(), bytearray(written.read_bytes())
    group = open_archive(written).entry(0).group
    data[group.offset + group.size // 2] ^= 4
    path = tmp_path / "x.dfca"
    path.write_bytes(data)
    lost = []
    with open_archive(path, model=models[0]) as archive:
        for k in range(len(archive)):
            try:
                assert same(archive[k], images[k])
            except CorruptError:
                lost.append(k)
    assert lost == [0, 5, 10]


@pytest.mark.usefixtures("pages_of_four")
def test_damage_to_the_last_root_or_its_tail_costs_nothing(tiny: Path, tmp_path: Path) -> None:
    """Nor where no root is whole, nor behind an append that ended with its pages written."""
    path, images = tmp_path / "x.dfca", coded_grey(11)
    with mock.patch("diffcodec.archive.writing.INDEX_SECONDS", 60):
        with open_archive(path, "x", model=tiny, group=2) as archive:
            archive.extend(images[:6])
        ended = open_archive(path, "a", model=tiny, group=2)
        ended.extend(images[:4])
        with mock.patch.object(Root, "pack", side_effect=OSError), suppress(OSError), ended:
            ended.flush()
        with open_archive(path, "a", model=tiny, group=2) as archive:
            archive.embed_model()
            archive.extend(images[6:])
    data = path.read_bytes()
    root = find_root(LocalSource(path))[0].offset
    for position in (*range(root + 16, len(data), 5), len(data) - 1):
        for first in (0, 30):  # in the first root
            damaged = bytearray(data)
            damaged[position] ^= 8
            damaged[first] ^= 8 * (first > 0)
            path.write_bytes(damaged)
            with open_archive(path) as archive:
                assert len(archive) == 11 and all(map(same, archive, images))
    path.write_bytes(damaged)
    with open_archive(path, "a", model=tiny, group=2) as archive:
        archive.append(images[0])
    with open_archive(path) as archive:
        assert len(archive) == 12 and all(map(same, archive, [*images, images[0]]))


def test_what_is_no_archive_is_refused(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "x"
    for data, error in [
        (b"", FormatError),
        (b"\x89PNG", FormatError),
        (b"\x89DFCA\x02" + bytes(100), UnsupportedError),
        (written.read_bytes()[:200], DiffcodecError),
    ]:
        path.write_bytes(data)
        if data[:6] == b"\x89DFCA\x01":  # cut to its first, empty index
            assert len(open_archive(path)) == 0
            continue
        with pytest.raises(error):
            open_archive(path)
    path.write_bytes(written.read_bytes()[:6])
    with pytest.raises(CorruptError, match="no whole index"):
        open_archive(path)
    with pytest.raises(DiffcodecError, match="it exists already"):
        open_archive(path, "x")
    with pytest.raises(UnsupportedError, match="mode"):
        open_archive(path, "w")


def test_mutated_archives_raise_only_errors_of_ours() -> None:
    draw = random.Random(0)
    for whole in archive_seeds():
        for _ in range(60):
            read(mutated_archive(whole, draw))


def test_labels_are_what_json_holds_and_not_long(tiny: Path, tmp_path: Path) -> None:
    with open_archive(tmp_path / "x.dfca", "x", model=tiny) as archive:
        for label in (float("nan"), {1, 2}, "x" * 8192):
            with pytest.raises((TypeError, ValueError, LimitError)):
                archive.append(smooth(4, 4), label=label)
        with pytest.raises(TypeError, match="name"):
            archive.append(smooth(4, 4), name=3)  # type: ignore[arg-type]
        archive.append(smooth(4, 4), name="\udcff\n", label={"a": [None, 1.5]})
        assert len(archive) == 1 and same(archive["\udcff\n"], smooth(4, 4))
        assert archive.label(0) == {"a": [None, 1.5]}


def test_only_one_process_appends(written: Path, tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.dfca"
    path.write_bytes(written.read_bytes())
    with open_archive(path, "a", model=tiny) as archive:
        archive.append(smooth(4, 4))
        with pytest.raises(OSError, match="another"), open_archive(path, "a", model=tiny) as other:
            other.append(smooth(4, 4))
    assert len(open_archive(path)) == 24


def test_what_waits_is_the_archives_own(tiny: Path, tmp_path: Path) -> None:
    image, label = Image.new("RGB", (8, 8), (255, 0, 0)), {"k": 0}
    with open_archive(tmp_path / "x.dfca", "x", model=tiny, plan="fast") as archive:
        archive.append(image, label=label)
        image.paste((0, 255, 0), (0, 0, 8, 8))
        label["k"] = 1
        archive.append(image, label=label)
        label["k"] = object()
    with open_archive(tmp_path / "x.dfca", model=tiny) as archive:
        assert [each.getpixel((0, 0)) for each in archive] == [(255, 0, 0), (0, 255, 0)]
        assert [entry.label for entry in archive.entries()] == [{"k": 0}, {"k": 1}]


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ({"group": 0}, UnsupportedError, "a group of 0 images: expected 1 to 65536"),
        ({"group": 1 << 17}, UnsupportedError, "expected 1 to 65536"),
        ({"group": "7"}, TypeError, "group: found str, expected an integer"),
        ({"group": 2.5}, TypeError, "group: found float, expected an integer"),
        ({"jobs": 0}, UnsupportedError, "0 jobs: expected 1 or more"),
    ],
)
def test_groups_and_jobs_are_numbers_in_range(
    tmp_path: Path, option: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_archive(tmp_path / "x.dfca", "x", **option)
    assert not (tmp_path / "x.dfca").exists()


def test_appending_takes_no_longer_the_more_waits() -> None:
    """By lines of Python that run: time hangs on the machine."""

    def lines(count: int) -> int:
        ran = 0

        def trace(*_: object) -> Any:
            nonlocal ran
            ran += 1
            return trace

        with io.FileIO(os.devnull, "w") as file:
            writer = writing.ArchiveWriter(file, Root(), [], lambda *_: b"", 1 << 16)
            for _ in range(count):
                writer.append(Image.new("L", (1, 1)))
            before = sys.gettrace()
            sys.settrace(trace)
            writer.append(Image.new("L", (1, 1)))
            sys.settrace(before)
        return ran

    assert lines(300) == lines(3)
