"""Pillow, imageio, numcodecs, Zarr, Dask, PyTorch, datasets, Parquet: by the real library."""

import importlib.util
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from samples import make_image
from test_phased_files import same, smooth

import diffcodec.pillow
from diffcodec import decode, decode_many, encode, encode_many, open_archive
from diffcodec.archive.chunks import decode_chunk, encode_chunk
from diffcodec.errors import CorruptError, LimitError, UnsupportedError
from diffcodec.torch import ArchiveDataset, GroupSampler

ROOT = Path(__file__).parents[1]


def stack(count: int, side: int = 8) -> np.ndarray:
    return np.stack([np.asarray(smooth(side, side, seed=k)) for k in range(count)])


# --- Pillow ---------------------------------------------------------------------------------------


def test_pillow_opens_and_saves(tmp_path: Path) -> None:
    for mode in ("RGB", "P", "1", "I;16"):
        image, path = make_image(mode, (9, 7)), tmp_path / f"{len(mode)}{mode[0]}.dfc"
        image.save(path, plan="fast", dpi=(300, 300))
        with Image.open(path) as opened:
            assert (opened.format, opened.mode, opened.size) == ("DFC", mode, (9, 7))
            assert opened.get_format_mimetype() == diffcodec.pillow.MIME
            assert same(opened, image) and opened.info["dpi"] == (300, 300)
            assert opened.convert("RGBA").tobytes() == image.convert("RGBA").tobytes()
        assert same(decode(path), image)
        again = encode(Image.open(path), plan="fast")
        assert same(decode(again), image)


def test_pillow_saves_by_all_options_or_none(tmp_path: Path) -> None:
    image, path = smooth(200, 40), tmp_path / "x.dfc"
    image.save(path, plan="fast", timestep=6, tile_side=96, previews=[7])
    assert path.read_bytes() == encode(image, plan="fast", timestep=6, tile_side=96, previews=[7])
    with pytest.raises(TypeError, match="found quality, expected model, "):
        image.save(tmp_path / "y.dfc", quality=10)
    with pytest.raises(OSError, match="found mode CMYK"):
        image.convert("CMYK").save(tmp_path / "y.dfc")
    assert not (tmp_path / "y.dfc").exists()


def test_pillow_takes_metadata_in_its_usual_forms(tmp_path: Path) -> None:
    exif, path = Image.Exif(), tmp_path / "x.dfc"
    exif[0x112] = 6
    smooth(9, 7).save(path, plan="fast", exif=exif, dpi=300, xmp="<x/>", gamma=0.5)
    info = decode(path).info
    assert (info["dpi"], info["xmp"], info["gamma"]) == ((300, 300), b"<x/>", 0.5)
    with Image.open(path) as opened:
        assert opened.getexif()[0x112] == 6 and opened.info["dpi"] == (300, 300)
        opened.save(tmp_path / "x.png", exif=opened.getexif())
    with Image.open(tmp_path / "x.png") as opened:
        assert opened.getexif()[0x112] == 6
    with pytest.raises(TypeError, match="dpi: found 'many', which cannot be kept"):
        smooth(9, 7).save(path, plan="fast", dpi="many")


def test_pillow_knows_a_palette_before_and_pickles(tmp_path: Path) -> None:
    image, path = make_image("P", (9, 7)), tmp_path / "x.dfc"
    image.save(path)
    with Image.open(path) as opened:
        assert not opened.has_transparency_data
    with Image.open(path) as opened:
        assert same(pickle.loads(pickle.dumps(opened)), image)
    with pytest.raises(ValueError, match="the image is closed"):
        opened = Image.open(path)
        opened.close()
        opened.load()


def test_pillow_reads_streams_and_loads_late() -> None:
    data = encode(smooth(9, 7), plan="fast")
    assert same(Image.open(io.BytesIO(data)), smooth(9, 7))
    broken = bytearray(data)
    broken[-5] ^= 1
    with pytest.raises(OSError, match="checksum"):
        Image.open(io.BytesIO(broken)).load()
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(io.BytesIO(data[:9]))


def test_imageio_follows(tmp_path: Path) -> None:
    iio = pytest.importorskip("imageio.v3")
    path = tmp_path / "x.dfc"
    iio.imwrite(path, np.asarray(smooth(9, 7)), plugin="pillow", extension=".dfc", plan="fast")
    assert np.array_equal(iio.imread(path), np.asarray(smooth(9, 7)))


def test_file_tells_what_it_is(tmp_path: Path) -> None:
    if not shutil.which("file"):
        pytest.skip("there is no file(1)")
    with open_archive(tmp_path / "x.dfca", "x"):
        (tmp_path / "x.dfc").write_bytes(encode(smooth(4, 4), plan="fast"))
    magic = ["file", "-m", ROOT / "diffcodec" / "diffcodec.magic", "-b"]
    for suffix, text in ((".dfc", "diffcodec image"), (".dfca", "diffcodec archive of images")):
        command = [*magic, tmp_path / f"x{suffix}"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert found.strip() == f"{text}, version 1"


# --- chunks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (1, 8, 8, 3), (3, 8, 8, 3), (3, 3, 3)])
def test_chunks_come_back(tiny: Path, shape: tuple[int, ...]) -> None:
    chunk = np.resize(stack(3), shape)
    data = encode_chunk(chunk, tiny, "fast")
    found = decode_chunk(data, tiny)
    assert found.shape == shape and np.array_equal(found, chunk)
    for broken in (data[:-1], data[:5] + bytes([data[5] ^ 1]) + data[6:], b""):
        with pytest.raises(CorruptError):
            decode_chunk(broken, tiny)


@pytest.mark.parametrize("shape", [(8,), (8, 8, 4), (2, 8, 8, 1), (0, 8, 8, 3)])
def test_other_chunks_are_refused(tiny: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UnsupportedError, match="whole images"):
        encode_chunk(np.zeros(shape, np.uint8), tiny)


@pytest.mark.parametrize("psnr", [None, 40])
@pytest.mark.parametrize("shape", [(65537, 1, 1, 3), (20_000, 128, 128, 3)])
def test_chunks_that_could_not_be_read_again_are_refused(
    tiny: Path, shape: tuple[int, ...], psnr: float | None
) -> None:
    chunk = np.broadcast_to(np.zeros(1, np.uint8), shape)
    with (
        mock.patch("diffcodec.archive.chunks.image_of_samples", side_effect=AssertionError),
        pytest.raises(LimitError, match="give smaller chunks"),
    ):
        encode_chunk(chunk, tiny, "fast", psnr)


def test_numcodecs(tiny: Path) -> None:
    registry = pytest.importorskip("numcodecs.registry")
    from diffcodec.numcodecs import DiffCodec

    codec = DiffCodec(str(tiny), "fast")
    registry.register_codec(DiffCodec)  # as its entry point does
    again = registry.get_codec(codec.get_config())
    assert again == codec
    images, out = stack(3), np.empty((3, 8, 8, 3), np.uint8)
    assert np.array_equal(again.decode(codec.encode(images)), images)
    again.decode(codec.encode(images), out)
    assert np.array_equal(out, images)
    with pytest.raises(UnsupportedError, match="masked array"):
        codec.encode(np.ma.masked_array(images, images > 9))


@pytest.fixture(scope="module")
def entry_points(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A path of modules on which the project's entry points are as an installation has them."""
    folder = tmp_path_factory.mktemp("installed")
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [
        line
        for group, entries in found.items()
        for line in (f"[{group}]", *(f"{name} = {target}" for name, target in entries.items()))
    ]
    (folder / "doors-0.dist-info").mkdir()
    (folder / "doors-0.dist-info" / "entry_points.txt").write_text("\n".join(lines) + "\n")
    (folder / "doors-0.dist-info" / "METADATA").write_text("Name: doors\nVersion: 0\n")
    return os.pathsep.join([str(folder), str(ROOT)])


FOUND_BY_NAME = """
import sys
import numcodecs, zarr

store, model = sys.argv[1:]
assert zarr.open_array(store)[:].tolist() == [[1, 2], [3, 4]]
codec = numcodecs.get_codec({"id": "diffcodec", "model": model, "plan": "fast"})
assert codec.model == model
"""


def test_libraries_find_their_codec_by_its_name(
    entry_points: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zarr, store = pytest.importorskip("zarr"), tmp_path / "x.zarr"
    from diffcodec.zarr import DiffCodec

    codec = DiffCodec(str(tiny), "fast")
    made = {"shape": (2, 2), "chunks": (2, 2), "dtype": "uint8"}
    array = zarr.create_array(store, serializer=codec, compressors=None, **made)
    array[:] = [[1, 2], [3, 4]]
    monkeypatch.setenv("PYTHONPATH", entry_points)
    subprocess.run([sys.executable, "-c", FOUND_BY_NAME, store, tiny], check=True, cwd=tmp_path)


def test_zarr_refuses_chunks_of_other_shapes(tiny: Path) -> None:
    zarr = pytest.importorskip("zarr")
    door = pytest.importorskip("diffcodec.zarr")
    kept: dict[str, Any] = {}
    array = zarr.create_array(
        zarr.storage.MemoryStore(kept),
        shape=(8, 8),
        chunks=(8, 8),
        dtype="uint8",
        serializer=door.DiffCodec(model=str(tiny), plan="fast"),
        compressors=None,
    )
    array[...] = 1
    (key,) = [name for name in kept if name.startswith("c/")]
    for other in ((4, 16), (4, 4), (8, 8, 3)):
        kept[key] = type(kept[key]).from_bytes(encode_chunk(np.ones(other, np.uint8), tiny, "fast"))
        with pytest.raises(CorruptError, match="another array's"):
            array[...]


def test_zarr(tiny: Path, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    from zarr.registry import register_codec

    from diffcodec.zarr import DiffCodec

    register_codec("diffcodec", DiffCodec)  # as its entry point does
    images, made = stack(10), {"dtype": "uint8", "compressors": None}
    codec = DiffCodec(model=str(tiny), plan="fast")
    made |= {"shape": images.shape, "chunks": (4, 8, 8, 3), "serializer": codec}
    array = zarr.create_array(tmp_path / "x.zarr", **made)
    with ThreadPoolExecutor(4) as pool:  # one region each
        list(pool.map(lambda k: array.__setitem__(slice(k, k + 4), images[k : k + 4]), (0, 4, 8)))
    again = zarr.open_array(tmp_path / "x.zarr", mode="r")
    assert again.metadata.codecs[0] == codec
    assert np.array_equal(again[:], images) and np.array_equal(again[5, 2:4], images[5, 2:4])
    lossy = DiffCodec(model=str(tiny), plan="fast", psnr=20.0)
    made |= {"serializer": lossy}
    array = zarr.create_array(tmp_path / "y.zarr", **made)
    array[:4] = images[:4]
    error = np.mean((array[:4].astype(float) - images[:4]) ** 2, axis=(1, 2, 3))
    assert 0 < error.max() <= 255**2 / 10**2
    plane = zarr.create_array(
        {}, shape=(50, 30), chunks=(32, 16), dtype="uint8", serializer=codec, compressors=None
    )
    plane[:] = np.asarray(smooth(30, 50, "L"))
    assert np.array_equal(plane[:], np.asarray(smooth(30, 50, "L")))
    for wrong in ({"dtype": "uint16"}, {"chunks": (4, 8, 8, 1)}):
        with pytest.raises(ValueError, match="whole images"):
            zarr.create_array({}, **(made | wrong))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_dask_loses_a_worker_but_no_image(
    entry_points: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = pytest.importorskip("distributed")
    pytest.importorskip("zarr")
    monkeypatch.setenv("PYTHONPATH", entry_points)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    from zarr.registry import register_codec

    from diffcodec.zarr import DiffCodec

    spec = importlib.util.spec_from_file_location("example", ROOT / "examples" / "zarr_dask.py")
    assert spec and spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    register_codec("diffcodec", DiffCodec)
    images, store = np.tile(stack(4, side=16), (12, 1, 1, 1)), tmp_path / "x.zarr"
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        pids = client.run(os.getpid)

        def kill_one() -> None:
            while len(list(store.glob("c/*/*/*/*"))) < 2:
                time.sleep(0.02)
            os.kill(next(iter(pids.values())), signal.SIGKILL)

        killer = threading.Thread(target=kill_one)
        killer.start()
        example.write(images, str(store), DiffCodec(str(tiny), "fast"), 2)
        killer.join()
        assert example.differences(images, str(store)) == 0


LARGE_ARRAY = """
import resource, sys
import numpy as np, zarr
from PIL import Image
from zarr.registry import register_codec
from diffcodec.zarr import DiffCodec

store, model, photo = sys.argv[1:]
register_codec("diffcodec", DiffCodec)
mosaic = np.tile(np.asarray(Image.open(photo).convert("L"))[:250, :400], (1, 50))
array = zarr.create_array(
    store, shape=(20000, 20000), chunks=(250, 500), dtype="uint8", compressors=None,
    serializer=DiffCodec(model, "fast"),
)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

array[10000:10250, :4000] = mosaic[:, :4000]
first = peak()
array[10000:10250, 4000:] = mosaic[:, 4000:]
array = zarr.open_array(store, mode="r")
assert np.array_equal(array[10100:10250, 7777:9999], mosaic[100:, 7777:9999])
assert not array[:300, :600].any()
print(first, peak() - first)
"""


@pytest.mark.slow
def test_a_band_of_a_large_array_in_bounded_memory(tiny: Path, tmp_path: Path) -> None:
    """One of 20,000 x 250 of 20,000 x 20,000 pixels: its 40 chunks take what the first 8 took.

    It takes a minute and a half of one core, so that all 80 bands would take two hours.
    """
    pytest.importorskip("zarr")
    arguments = [tmp_path / "x.zarr", tiny, ROOT / "examples" / "kodim23.png"]
    done = subprocess.run(
        [sys.executable, "-c", LARGE_ARRAY, *arguments],
        check=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    first, more = map(int, done.stdout.split())
    assert more < first / 4  # 1.1 GiB, where eight threads code a chunk each
    assert len(list((tmp_path / "x.zarr" / "c" / "40").iterdir())) == 40


# --- PyTorch, datasets, Parquet -------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    path = tmp_path_factory.mktemp("doors") / "x.dfca"
    with open_archive(path, "x", model=tiny, plan="fast", group=4) as made:
        made.embed_model()
        for k in range(12):
            made.append(smooth(8, 8, seed=k), label=k % 3)
    return path


@pytest.mark.parametrize("start", [None, "fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_data_set_of_pytorch(archive: Path, start: str | None) -> None:
    data = ArchiveDataset(archive, labels=True)
    loader = torch.utils.data.DataLoader(
        data,
        batch_size=5,
        sampler=GroupSampler(data, 2, torch.Generator().manual_seed(0)),
        num_workers=0 if start is None else 1,
        multiprocessing_context=start,
    )
    seen = []
    for images, labels in loader:
        for image, label in zip(images, labels, strict=True):
            found = [
                k for k in range(12) if np.array_equal(image.permute(1, 2, 0), smooth(8, 8, seed=k))
            ]
            assert [k % 3 for k in found] == [label]
            seen += found
    assert sorted(seen) == list(range(12)) != seen


def test_a_data_set_of_hugging_face(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/datasets.md shows it, without network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    datasets = pytest.importorskip("datasets")
    found = open_archive(archive)
    columns = {"image": range(len(found)), "label": [entry.label for entry in found.entries()]}

    def decoded(batch: dict[str, list[int]]) -> dict[str, list[object]]:
        return batch | {"image": found.images(batch["image"])}

    data = datasets.Dataset.from_dict(columns).with_transform(decoded)
    assert same(data[7]["image"], smooth(8, 8, seed=7)) and data[7]["label"] == 1
    seen = list(data.shuffle(seed=1))
    for image, label in (row.values() for row in seen):
        [k] = [k for k in range(12) if same(image, smooth(8, 8, seed=k))]
        assert label == k % 3
    assert len(seen) == 12


def test_a_column_of_parquet(tiny: Path, tmp_path: Path) -> None:
    """As docs/datasets.md shows it."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [smooth(9, 7, seed=k) for k in range(3)]
    files = list(encode_many(images, tiny, "fast"))
    table = pa.table({"image": pa.array(files, pa.binary()), "label": [0, 1, 0]})
    pq.write_table(table, tmp_path / "x.parquet", compression="none")
    back = pq.read_table(tmp_path / "x.parquet")["image"].to_pylist()
    assert all(map(same, decode_many(back, tiny), images))


def test_what_an_archive_tells_as_a_table(archive: Path, tiny: Path) -> None:
    """As docs/datasets.md shows it."""
    pa = pytest.importorskip("pyarrow")
    with open_archive(archive, "a", model=tiny, plan="fast") as found:
        found.append(smooth(9, 8), "last.png", {"site": "north", "depth": 3.5})
        entries = list(found.entries())[-2:]
    table = pa.Table.from_pylist([{"name": e.name, "size": e.size} | e.label for e in entries[1:]])
    assert table.to_pylist() == [
        {"name": "last.png", "size": [9, 8], "site": "north", "depth": 3.5}
    ]


def test_chunks_keep_how_they_lie() -> None:
    by_columns = np.asfortranarray(np.asarray(smooth(9, 7)))
    back = decode_chunk(encode_chunk(by_columns, plan="fast"))
    assert np.array_equal(back, by_columns) and back.flags.f_contiguous
    assert decode_chunk(encode_chunk(np.asarray(smooth(9, 7)), plan="fast")).flags.c_contiguous


@pytest.mark.parametrize("shape", [(16, 12), (16, 12, 3), (2, 8, 12, 3)])
def test_zarr_2_by_columns(shape: tuple[int, ...]) -> None:
    zarr = pytest.importorskip("zarr")
    door = pytest.importorskip("diffcodec.numcodecs")
    given = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    array = zarr.create_array(
        zarr.storage.MemoryStore(),
        shape=shape,
        chunks=shape,
        dtype="uint8",
        zarr_format=2,
        order="F",
        filters=None,
        compressors=door.DiffCodec(plan="fast"),
    )
    array[...] = given
    assert np.array_equal(array[...], given)


def test_groups_to_mix_are_some_of_an_archive(tmp_path: Path) -> None:
    with open_archive(tmp_path / "x.dfca", "x", plan="fast") as archive:
        archive.append(smooth(4, 4), "a", label={"n": 1})
    archive = open_archive(tmp_path / "x.dfca")
    archive.label(0)["n"] = archive.entry(0).label["n"] = 2
    assert archive.label(0) == {"n": 1}
    assert ("a" in archive, "b" in archive, smooth(4, 4) in archive) == (True, False, True)
    assert len(archive.images(iter([0, 0]))) == 2
    dataset = ArchiveDataset(tmp_path / "x.dfca")
    with pytest.raises(UnsupportedError, match="-1 groups: expected 1 or more"):
        GroupSampler(dataset, groups=-1)
    with pytest.raises(TypeError, match="found list, expected an ArchiveDataset"):
        GroupSampler([dataset])  # type: ignore[arg-type]
