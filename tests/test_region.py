"""A part of an image: the pixels of the whole, for the bytes and evaluations of its tiles."""

import io
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import done, run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from samples import make_image

from diffcodec import decode, encode, encode_many, iter_decode, load_model, open_archive
from diffcodec.codec import tiles
from diffcodec.codec.windows import SCALES, scaled_timestep
from diffcodec.container.parts import tile_grid
from diffcodec.container.reader import parse
from diffcodec.container.writer import pack
from diffcodec.errors import (
    CorruptError,
    DiffcodecError,
    LimitError,
    TruncatedError,
    UnsupportedError,
    UnsupportedFileError,
)
from diffcodec.images.modes import psnr
from diffcodec.limits import Limits
from diffcodec.models.file import DEFAULT_MODEL, model_info, model_path
from diffcodec.models.model import Model

WIDE = (1100, 8)  # of three tiles, the middle one from 368 to 736
SMALL = (400, 1, 200, 6)  # in the middle tile alone
ACROSS = (360, 0, 300, 8)


@pytest.fixture(scope="module")
def model(tiny: Path) -> Model:
    return load_model(tiny)


def picture(size: tuple[int, int] = WIDE) -> Image.Image:
    y, x = np.mgrid[: size[1], : size[0]]
    waves = [np.sin(x / (5 + c) + c) + np.cos(y / (7 - c)) for c in range(3)]
    image = Image.fromarray(np.clip(128 + 50 * np.stack(waves, -1), 0, 255).astype(np.uint8))
    image.info["dpi"] = (300.0, 300.0)
    return image


def cut(image: Image.Image, region: tuple[int, int, int, int]) -> Image.Image:
    left, top, width, height = region
    return image.crop((left, top, left + width, top + height))


def same(a: Image.Image, b: Image.Image) -> bool:
    return (a.mode, a.size, a.tobytes()) == (b.mode, b.size, b.tobytes())


def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pixels of each tile that the network is asked about from now on."""
    found: list[int] = []
    ask = Model._ask

    def asked(self: Model, z: Any, *rest: Any) -> Any:
        found.extend([z[0, 0].size] * len(z))
        return ask(self, z, *rest)

    monkeypatch.setattr(Model, "_ask", asked)
    return found


class Counted(io.BytesIO):
    """A stream that counts what is read of it."""

    count = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.count += len(data)
        return data


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "progressive": {"progressive": True, "previews": [4, 2]},
    "lossy": {"timestep": 2},
}


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_that_of_the_whole(
    model: Model, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image, path = picture(), tmp_path / "a.dfc"
    data = encode(image, model, "fast", **KINDS[kind])
    path.write_bytes(data)
    middle = tile_grid(*WIDE)[1]
    asked = evaluated(monkeypatch)
    for timestep in (None, 3):
        del asked[:]
        whole = decode(data, timestep, model)
        evaluations = sum(asked)
        for region in (SMALL, ACROSS, (0, 0, *WIDE)):
            del asked[:]
            for source in (data, path):
                found = decode(source, timestep, model, region=region)
                assert same(found, cut(whole, region))
                assert found.info["dpi"] == (300.0, 300.0)
            if region == SMALL:
                assert set(asked) == {middle.width * middle.height}
                assert sum(asked) <= 2 * evaluations * middle.width / WIDE[0]
        stream = Counted(data)
        decode(stream, timestep, model, region=SMALL)
        assert stream.count < 0.5 * len(data)


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_small_tiles_costs_less(
    model: Model, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture((520, 8))
    data = encode(image, model, "fast", tile_side=96, **KINDS[kind])
    assert [box.width for box in parse(data).boxes()] == [88, 88, 88, 88, 88, 80]
    region = (180, 2, 80, 5)  # in the third
    for timestep in (None, 3):
        whole = decode(data, timestep, model)
        assert kind == "lossy" or timestep or same(whole, image)
        asked = evaluated(monkeypatch)
        stream = Counted(data)
        assert same(decode(stream, timestep, model, region=region), cut(whole, region))
        assert max(asked) <= 128 * 8
        assert stream.count < (0.3 if timestep is None and kind == "plain" else 0.75) * len(data)


@pytest.mark.usefixtures("chain_only")
def test_small_tiles_are_asked_for_by_a_number(tiny: Path, model: Model, tmp_path: Path) -> None:
    for name in "ab":  # side by side
        picture((200, 8)).save(tmp_path / f"{name}.png")
    both = f"{tmp_path}/a.png {tmp_path}/b.png --output-dir {tmp_path}"
    done(f"encode {both} --tile-side 104 --effort fast --model {tiny}")
    coded = [(tmp_path / f"{name}.dfc").read_bytes() for name in "ab"]
    assert len(parse(coded[0]).boxes()) == 2
    assert coded == [encode(tmp_path / "a.png", model, "fast", tile_side=104)] * 2
    for side in (64, 100, "x"):
        result = run(f"encode {tmp_path}/a.png --tile-side {side} -f")
        said = f"'{side}', expected a multiple of 8 from 96 to 512"
        assert (result.exit_code, said in " ".join(result.stderr.split())) == (2, True)
    assert encode(picture((96, 8)), model, "fast", tile_side=96) == encode(
        picture((96, 8)), model, "fast"
    )
    for side in (0, 95, 97, 520):
        with pytest.raises(UnsupportedError, match="multiple of 8"):
            encode(picture(), model, tile_side=side)
        with pytest.raises(UnsupportedError, match="multiple of 8"):
            encode_many([picture()], model, tile_side=side)
    with pytest.raises(LimitError, match="3 tiles, the limit is 2"):
        list(encode_many([picture((200, 8))], model, tile_side=96, limits=Limits(tiles=2)))


@settings(max_examples=15)
@given(st.data())
def test_parts_of_images_by_other_coders(data: st.DataObject) -> None:
    mode = data.draw(st.sampled_from(["P", "I;16", "RGBA", "1"]))
    width, height = data.draw(st.integers(1, 520)), data.draw(st.integers(1, 516))
    left = data.draw(st.integers(0, 520 - width))
    top = data.draw(st.integers(0, 516 - height))
    region = (left, top, width, height)
    assert same(decode(coded(mode), region=region), cut(original(mode), region))


def original(mode: str) -> Image.Image:
    image = picture((520, 516))
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image.convert(mode)


def coded(mode: str, made: dict[str, bytes] = {}) -> bytes:  # noqa: B006
    if mode not in made:
        made[mode] = tiled(original(mode))
    return made[mode]


def tiled(image: Image.Image) -> bytes:
    """A file of tiles, each by a fallback coder."""
    pieces = (cut(image, box) for box in tile_grid(*image.size))
    whole = parse(encode(image))
    return pack(replace(whole, whole=False, tiles=tuple(map(tiles.fallback_tile, pieces))))


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("kind", ["plain", "progressive"])
def test_damage_elsewhere_does_not_matter(model: Model, kind: str) -> None:
    """But that of what is read does, and a region is as good as whole."""
    data = encode(picture(), model, "fast", **KINDS[kind])
    whole = decode(data, model=model)
    payload = parse(data).tiles[2].payload
    damaged = bytearray(data)
    damaged[data.index(payload) + 3] ^= 1
    assert same(decode(bytes(damaged), model=model, region=SMALL), cut(whole, SMALL))
    with pytest.raises(CorruptError, match="tile 3 of 3"):
        decode(bytes(damaged), model=model, region=(740, 0, 20, 5))
    cut_short = data[: data.index(payload) + 3]
    for source in (cut_short, io.BytesIO(cut_short)):
        assert same(decode(source, model=model, region=SMALL), cut(whole, SMALL))
    for source in (cut_short, io.BytesIO(cut_short)):
        with pytest.raises(TruncatedError, match=f"found {len(cut_short)} bytes"):
            decode(source, model=model, region=(740, 0, 20, 5))


def test_a_region_of_a_file_that_needs_what_is_unknown_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shown without it, the image would be another."""
    made = parse(coded("1"))
    monkeypatch.setattr("diffcodec.container.writer.check_container", lambda container: None)
    data = pack(replace(made, metadata={**made.metadata, "Rotation": b"\1"}))
    for region in (None, (8, 1, 200, 6), (0, 0, *original("1").size)):
        with pytest.raises(UnsupportedFileError, match="the file needs 'Rotation'"):
            decode(data, region=region)


@pytest.mark.parametrize(
    ("region", "error"),
    [
        ((0, 0, 0, 5), UnsupportedError),
        ((-1, 0, 5, 5), UnsupportedError),
        ((1099, 0, 2, 5), UnsupportedError),
        ((0, 7, 5, 2), UnsupportedError),
        ((0, 0, 5), TypeError),
        ((0, 0, 5, 5.0), TypeError),
        (7, TypeError),
        ("1,2,3,4", TypeError),
    ],
)
def test_regions_that_are_none(region: Any, error: type[Exception]) -> None:
    data = encode(picture().convert("1"))
    with pytest.raises(error, match="region"):
        decode(data, region=region)


# --- reduced images -------------------------------------------------------------------------------


@pytest.mark.usefixtures("chain_only")
@pytest.mark.parametrize("kind", KINDS)
def test_reduced_images_take_fewer_evaluations(
    model: Model, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture((61, 43))
    data = encode(image, model, "best", **KINDS[kind])
    asked = evaluated(monkeypatch)
    counts = []
    for scale in (1, 2, 4, 8):
        del asked[:]
        found = decode(data, model=model, scale=scale)
        counts.append(sum(asked))
        assert found.size == (-(-61 // scale), -(-43 // scale))
        assert psnr(found, image.reduce(scale)) > 30
    assert counts == sorted(counts, reverse=True) and counts[3] < 0.8 * counts[0]
    part = decode(data, model=model, scale=2, region=(5, 5, 20, 21))
    assert part.size == (10, 11)
    with pytest.raises(UnsupportedError, match="scale 3: expected one of 1, 2, 4, 8"):
        decode(data, model=model, scale=3)


def test_reduced_images_stop_at_these_timesteps() -> None:
    plans = model_info(model_path(DEFAULT_MODEL)).plans
    for plan, expected in (("default", [0, 1, 1, 2]), ("lossy", [0, 4, 6, 8])):
        assert [scaled_timestep(plans[plan].levels, scale) for scale in SCALES] == expected


@pytest.mark.parametrize("mode", ["1", "P", "I;16", "RGBA"])
def test_reduced_images_by_other_coders(mode: str) -> None:
    found = decode(coded(mode), scale=8)
    assert (found.mode, found.size) == (mode, (65, 65))


def test_reduced_deep_grey_is_the_mean() -> None:
    levels = np.random.default_rng(0).integers(0, 65536, (6, 8)).astype(np.uint16)
    found = np.asarray(decode(encode(Image.fromarray(levels)), scale=2), np.int64)
    means = levels.astype(np.int64).reshape(3, 2, 4, 2).mean((1, 3))
    assert np.abs(found - means).max() <= 1


# --- from afar ------------------------------------------------------------------------------------


class Ranges(SimpleHTTPRequestHandler):
    """Serves parts of the folder's files; ``sent`` counts their bytes."""

    sent = 0

    def do_GET(self) -> None:
        try:
            data = Path(self.translate_path(self.path)).read_bytes()
        except FileNotFoundError:
            self.send_error(404)
            return
        start, end = 0, len(data) - 1
        if asked := self.headers["Range"]:
            first, last = asked.removeprefix("bytes=").split("-")
            start, end = int(first), min(end, int(last or end))
        if start >= len(data):
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
        self.send_header("Content-Length", str(end + 1 - start))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        Ranges.sent += end + 1 - start
        self.wfile.write(data[start : end + 1])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    pytest.importorskip("fsspec")
    pytest.importorskip("aiohttp")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/a.dfc"
    server.shutdown()
    thread.join()
    server.server_close()


def test_of_a_file_far_away_only_what_is_needed_is_read(address: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 1536, 4), dtype=np.uint8)
    image = Image.fromarray(noise)
    data = tiled(image)
    (tmp_path / "a.dfc").write_bytes(data)
    Ranges.sent = 0
    region = (600, 10, 200, 100)
    assert same(decode(address, region=region), cut(image, region))
    box = tile_grid(*image.size)[1]
    assert Ranges.sent < 4 * box.width * box.height + (1 << 18) < len(data) / 4
    assert same(decode(address), image)
    with pytest.raises(DiffcodecError, match="cannot read http://"):
        decode(address + "x")


def test_an_archive_far_away_is_read_by_ranges_that_there_are(address: str, tmp_path: Path) -> None:
    images = [make_image("LA", (3, 2), seed=k) for k in range(3)]
    with open_archive(tmp_path / "a.dfca", "x", plan="fast", group=2) as made:
        made.extend(images)
    with open_archive(f"{address}a") as archive:
        assert len(archive) == 3 and all(map(same, archive, images))
    whole = (tmp_path / "a.dfca").read_bytes()
    (tmp_path / "a.dfca").write_bytes(whole[:-1])  # its root is whole without a tail
    with open_archive(f"{address}a") as archive:
        assert same(archive[2], images[2])


@pytest.mark.usefixtures("chain_only")
def test_previews_of_a_file_far_away_come_as_its_bytes_do(
    address: str, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture()
    data = encode(image, model, "fast", progressive=True)
    (tmp_path / "a.dfc").write_bytes(data)
    monkeypatch.setattr("diffcodec.system.addresses.AHEAD_BYTES", 256)
    Ranges.sent = 0
    found = iter_decode(address, model)
    assert next(found)[0] > 0 and Ranges.sent < len(data) / 2
    *_, (timestep, last) = found
    assert timestep == 0 and same(last, image)
    (*_, (timestep, last)) = iter_decode(tmp_path / "a.dfc", model)
    assert timestep == 0 and same(last, image)


def test_addresses_of_no_file_system() -> None:
    with pytest.raises(DiffcodecError, match=r"cannot read nowhere://a\.dfc"):
        decode("nowhere://a.dfc")


def test_commands_take_addresses(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 1100, 4), dtype=np.uint8)
    image = Image.fromarray(noise)
    data = tiled(image)
    (tmp_path / "a.dfc").write_bytes(data)
    (folder := tmp_path / "here").mkdir()
    monkeypatch.chdir(folder)
    Ranges.sent = 0
    done(f"decode {address} --region 600,10,50,40")
    assert Ranges.sent < len(data) / 2
    with Image.open("a.png") as found:
        assert same(found, cut(image, (600, 10, 50, 40)))
    done(f"decode {address}?token=1 --output-dir whole")
    with Image.open("whole/a.png") as found:
        assert same(found, image)
    assert "1100 x 600" in done(f"info {address}").stdout
    done(f"verify {address}")
    Ranges.sent = 0
    result = run(f"decode {address} new.png --max-bytes 100")
    assert result.exit_code != 0 and Ranges.sent <= 1 << 17 and not Path("new.png").exists()
    result = run(f"info {address}x")
    assert result.exit_code == 1
    assert f"diffcodec: {address}x: there is no such file; check the address" in result.stderr
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    assert "pip install 'diffcodec[remote]'" in run(f"info {address}").stderr


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("chain_only")
def test_the_command(model: Model, tiny: Path, tmp_path: Path) -> None:
    data = encode(picture(), model, "fast", timestep=2)
    source, target = tmp_path / "a.dfc", tmp_path / "a.png"
    source.write_bytes(data)
    done(f"decode {source} --model {tiny} --region 400,1,200,6")
    with Image.open(target) as found:
        assert same(found, cut(decode(data, model=model), SMALL))
    done(f"decode {source} --model {tiny} --region 400,1,200,6 --scale 1/4 -f")
    with Image.open(target) as found:
        assert found.size == (50, 2)
    for wrong in ("--region 1,2,3", "--region 1,2,3,x", "--scale 1/3", "--scale 1/2 --recover"):
        assert run(f"decode {source} --model {tiny} -f {wrong}").exit_code == 2
    result = run(f"decode {source} --model {tiny} -f --region 1090,0,20,5")
    assert result.exit_code == 1 and "the image is 1100 x 8" in result.stderr


def test_what_a_server_answers_is_told(tmp_path: Path) -> None:
    class Whole(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if "busy" in self.path:
                self.send_error(503, "Busy")
            else:
                super().do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    with open_archive(tmp_path / "a.dfca", "x", plan="fast") as archive:
        archive.append(picture((8, 8)))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Whole, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        at = f"http://127.0.0.1:{server.server_port}"
        for name, message in (
            ("a.dfca", "gives no parts of files; download it"),
            ("busy.dfca", "503"),
            ("missing.dfca", "there is no such file"),
        ):
            with pytest.raises(DiffcodecError, match=message) as caught:
                open_archive(f"{at}/{name}")
            assert len(str(caught.value)) < 200
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
