"""Archives in odd hands: processes that move about, hostile records, limits."""

import json
import pickle
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image
from samples import make_image
from test_phased_files import same

from diffcodec import open_archive
from diffcodec.archive.records import GROUP, HEADER, PAGE, ROOT, record, record_head, tail
from diffcodec.errors import CorruptError, DiffcodecError


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


@pytest.mark.parametrize("mode", ["r", "a", "x"])
@pytest.mark.parametrize("name", ["a\0b.dfca", "\ud800.dfca"])
def test_names_that_no_file_can_have(tmp_path: Path, mode: str, name: str) -> None:
    with pytest.raises(DiffcodecError, match="check the path"):
        open_archive(tmp_path / name, mode)


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
