"""Archives in odd hands: processes that move about, hostile records, limits."""

import json
import pickle
import random
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from commands import done, run
from PIL import Image
from samples import make_image
from test_phased_files import same

from diffcodec import Limits, encode, load_model, open_archive
from diffcodec.archive import archive
from diffcodec.archive.coding import decode_images, encode_images
from diffcodec.archive.index import Root
from diffcodec.archive.parts import pack_group
from diffcodec.archive.records import GROUP, HEADER, PAGE, ROOT, Place, record, record_head, tail
from diffcodec.errors import CorruptError, DiffcodecError, FormatError, LimitError, UnsupportedError
from diffcodec.models.model import Model


def pictures(count: int) -> list[Image.Image]:
    return [make_image("LA", (3, 2), seed=k) for k in range(count)]


def packed(path: Path, images: list[Image.Image]) -> Path:
    with open_archive(path, "x", plan="fast", group=2) as archive:
        archive.extend(images)
    return path


# --- processes ------------------------------------------------------------------------------------


def test_an_archive_is_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(4)
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path / "other"):
        packed(folder / "x.dfca", images[:3])
    other = (tmp_path / "other" / "x.dfca").read_bytes()
    monkeypatch.chdir(tmp_path)
    read, appended = open_archive("x.dfca"), open_archive("x.dfca", "a", plan="fast")
    monkeypatch.chdir("other")
    assert same(pickle.loads(pickle.dumps(read))[2], images[2]) and same(read[0], images[0])
    with appended:
        appended.append(images[3])
    assert Path("x.dfca").read_bytes() == other
    assert same(open_archive(tmp_path / "x.dfca")[3], images[3])


def test_an_archive_with_an_executor_can_be_pickled(tmp_path: Path) -> None:
    images = pictures(3)
    path = packed(tmp_path / "x.dfca", images)
    with ThreadPoolExecutor(1) as pool:
        archive = open_archive(path, executor=pool, jobs=2)
        assert same(pickle.loads(pickle.dumps(archive))[2], images[2])


def test_nothing_is_appended_to_a_closed_archive(tmp_path: Path) -> None:
    """It would wait for an end that never comes."""
    images = pictures(3)
    with open_archive(tmp_path / "x.dfca", "x", plan="fast") as archive:
        archive.extend(images[:2])
    for add in (lambda: archive.append(images[2]), archive.embed_model):
        with pytest.raises(UnsupportedError, match="the archive is closed"):
            add()
    archive.close()
    assert len(archive) == 2 and same(archive[1], images[1])


def test_numbers_of_any_length_that_no_image_has(tmp_path: Path) -> None:
    archive = open_archive(packed(tmp_path / "x.dfca", pictures(2)))
    for number in (10**5000, -(10**5000), 2, -3):
        with pytest.raises(IndexError, match=r"no image .* in the archive of 2"):
            archive[number]
    out = tmp_path / "out"
    done(f"extract {tmp_path / 'x.dfca'} 01 --output-dir {out}")
    result = run(f"extract {tmp_path / 'x.dfca'} {'9' * 5000} --output-dir {out}")
    assert result.exit_code == 1 and "see diffcodec ls" in result.stderr


def test_no_model_goes_into_an_archive_that_is_read(tmp_path: Path) -> None:
    archive = open_archive(packed(tmp_path / "x.dfca", pictures(2)))
    with pytest.raises(UnsupportedError, match="the archive is open for reading; open it by"):
        archive.embed_model()


def failing_group(place: int) -> Any:
    """Within it the group that begins with so manieth image coded fails."""
    real, coded = archive._Encoder.__call__, 0

    def encode(self: Any, images: list[Image.Image], told: list[int | None]) -> bytes:
        nonlocal coded
        coded += 1
        if coded == place:
            raise CorruptError("no code")
        return real(self, images, told)

    return mock.patch.object(archive._Encoder, "__call__", encode)


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_a_failed_group_costs_is_told(tmp_path: Path, jobs: int) -> None:
    """Images that were taken behind it have no place: what is before is written."""
    images = [make_image("LA", (side, 2), seed=side) for side in (7, 10, 8, 9, 10)]
    with ThreadPoolExecutor(1) as pool, failing_group(1):
        executor = pool if jobs > 1 else None
        made = open_archive(
            tmp_path / "x.dfca", "x", plan="fast", group=2, executor=executor, jobs=jobs
        )
        made.extend(images[:4])
        with suppress(CorruptError):
            made.append(images[4])
        for _ in range(2):  # of jobs the first flush is told of the group itself
            with pytest.raises(
                DiffcodecError, match=r"the last 4 images, from 1 on|no code"
            ) as told:
                made.flush()
        assert "the last 4 images, from 1 on, are not in the archive" in str(told.value)
        with pytest.raises(DiffcodecError, match="the last 4 images"):
            made.close()
    with open_archive(tmp_path / "x.dfca") as archive:
        assert len(archive) == 1 and same(archive[0], images[0])


def test_a_group_that_fails_at_the_end_costs_none_before_it(tmp_path: Path) -> None:
    images = [make_image("LA", (side, 2), seed=side) for side in (7, 10, 8)]
    with failing_group(2), pytest.raises(CorruptError, match="no code"):
        made = open_archive(tmp_path / "x.dfca", "x", plan="fast", group=2)
        made.extend(images)
        made.close()
    with open_archive(tmp_path / "x.dfca") as archive:
        assert len(archive) == 1 and same(archive[0], images[0])


def test_pack_tells_what_a_failed_group_costs(tmp_path: Path) -> None:
    (folder := tmp_path / "in").mkdir()
    for k, side in enumerate((7, 10, 8, 9, 10)):
        make_image("LA", (side, 2), seed=side).save(folder / f"{k}.png")
    with failing_group(1):
        result = run(f"pack --effort fast --group 2 {folder} {tmp_path}/x.dfca")
    assert result.exit_code == 1
    assert "the last 4 images, from 1.png on, are not in the archive" in result.stderr
    assert "bits per" not in result.stderr  # of images that are not written
    with open_archive(tmp_path / "x.dfca") as archive:
        assert [entry.name for entry in archive.entries()] == ["0.png"]


@pytest.mark.parametrize("mode", ["r", "a", "x"])
@pytest.mark.parametrize("name", ["a\0b.dfca", "\ud800.dfca"])
def test_names_that_no_file_can_have(tmp_path: Path, mode: str, name: str) -> None:
    with pytest.raises(DiffcodecError, match="check the path"):
        open_archive(tmp_path / name, mode)


# --- labels ---------------------------------------------------------------------------------------


def nested(depth: int) -> Any:
    label: Any = 0
    for level in range(depth):
        label = {"a": label} if level % 2 else [label]
    return label


@pytest.mark.parametrize("depth", [65, 400, 900, 3000])
def test_labels_too_deep_to_be_read_are_not_written(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "x.dfca"
    with open_archive(path, "x", plan="fast") as archive:
        archive.append(pictures(1)[0], label=nested(64))
        with pytest.raises(LimitError, match=r"more than 64 lists|the limit is"):
            archive.append(pictures(1)[0], label=nested(depth))
    with open_archive(path) as archive:
        assert [entry.label for entry in archive.entries()] == [nested(64)] == [archive.label(0)]


def test_a_hostile_label_is_damage(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.dfca", pictures(1))
    data = path.read_bytes()
    (group,) = {entry.group for entry in open_archive(path).entries()}
    label = "[" * 900 + "]" * 900
    page = f'{{"groups":[{json.dumps(group)}],"runs":[[0,0,1]],"labels":[{label}]}}'
    data += record(PAGE, len(data), zlib.compress(page.encode()))
    place = (path.stat().st_size, len(data) - path.stat().st_size)
    root = Root(1, (Place(*place),)).pack()
    path.write_bytes(data + record(ROOT, len(data), root) + tail(len(data)))
    with open_archive(path) as archive:
        for read in (lambda: archive.label(0), lambda: archive[0], lambda: list(archive.entries())):
            with pytest.raises(FormatError, match="not laid out right"):
                read()


# --- hostile records ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2**40, 2**62, 2**63 - 100, 2**64 - 1])
def test_a_record_that_claims_more_than_there_can_be(tmp_path: Path, size: int) -> None:
    images = pictures(2)
    path = packed(tmp_path / "x.dfca", images)
    data = path.read_bytes()
    path.write_bytes(data + record_head(GROUP, len(data), size))
    with open_archive(path) as archive:
        assert len(archive) == 2 and all(map(same, archive, images))


def compressed(value: object) -> bytes:
    return zlib.compress(json.dumps(value).encode())


def test_a_page_that_tells_of_too_many_images_makes_no_index(tmp_path: Path) -> None:
    page = compressed({"groups": [], "runs": [[0, 0, 2**62]] * 8})
    data = HEADER + record(PAGE, len(HEADER), page)
    root = bytearray(record(ROOT, len(data), b"damaged"))
    root[-1] ^= 1
    path = tmp_path / "x.dfca"
    path.write_bytes(data + root + tail(len(data)))
    with pytest.raises(CorruptError, match="no whole index"):
        open_archive(path)


def test_tails_that_tell_of_no_roots_are_not_followed_for_long(tmp_path: Path) -> None:
    """Neither many of one place, nor those of heads whose records would lie across each other."""
    images, path, count = pictures(2), tmp_path / "x.dfca", 20_000
    start = len(packed(path, images).read_bytes())
    size = start + 16 * count
    heads = b"".join(
        record_head(ROOT, at, size + at - start - at - 20) for at in range(start, size, 16)
    )
    told = b"".join(tail(at) for at in range(start, size, 16))
    whole = path.read_bytes()
    for hostile in (heads + told, tail(start) * 2 * count):
        path.write_bytes(whole + hostile)
        before = time.process_time()
        with open_archive(path) as archive:
            assert all(map(same, archive, images))
        assert time.process_time() - before < 2


def test_files_of_a_group_count_together_for_the_limit_of_pixels() -> None:
    file = encode(Image.new("1", (64, 64)))

    def model_of(*_: object) -> Model:
        raise AssertionError

    group, limits = pack_group(5 * (file,)), Limits(pixels=4 * 64 * 64)
    assert len(decode_images(pack_group(4 * (file,)), model_of, limits)) == 4
    with pytest.raises(LimitError, match="a group of 5 images of over 16384 pixels together"):
        decode_images(group, model_of, limits)


def test_metadata_of_a_group_are_no_more_than_are_read_again(tiny: Path) -> None:
    model, images = load_model(tiny), [make_image("RGB", (4, 3), seed=k) for k in range(3)]
    for image in images:
        image.info["icc_profile"] = random.Random(0).randbytes(1000)
    with mock.patch("diffcodec.archive.coding.MOST_METADATA_BYTES", 2500):
        content = encode_images(images, model, "fast")
    limits = Limits(metadata_bytes=2500)
    found = decode_images(content, lambda *_: model, limits)
    assert all(map(same, found, images))
    assert [image.info["icc_profile"] for image in found] == 3 * [images[0].info["icc_profile"]]
