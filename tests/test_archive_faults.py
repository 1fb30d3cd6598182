"""Archives in odd hands: processes that move about, hostile records, limits."""

import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from samples import make_image
from test_phased_files import same

from diffcodec import open_archive
from diffcodec.archive.records import GROUP, record_head


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


# --- hostile records ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2**40, 2**62, 2**63 - 100, 2**64 - 1])
def test_a_record_that_claims_more_than_there_can_be(tmp_path: Path, size: int) -> None:
    images = pictures(2)
    path = packed(tmp_path / "x.dfca", images)
    data = path.read_bytes()
    path.write_bytes(data + record_head(GROUP, len(data), size))
    with open_archive(path) as archive:
        assert len(archive) == 2 and all(map(same, archive, images))
