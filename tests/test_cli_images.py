"""Images and their metadata on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image, PngImagePlugin
from samples import make_image, saved

from diffcodec.cli.program import cli
from diffcodec.images.reading import read_image


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory of the test."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tiny: Path):
    def run(command: str) -> Result:
        words = command.split()
        return CliRunner().invoke(cli, [*words, "--model", str(tiny)])

    return run


@pytest.mark.parametrize(("format", "suffix"), [("JPEG", "jpg"), ("WEBP", "webp")])
def test_a_jpeg_that_grows_is_spoken_of(format, suffix, run):
    noise = make_image("RGB", (40, 30))
    Path(f"a.{suffix}").write_bytes(saved(noise, format, quality=5).getvalue())
    result = run(f"encode a.{suffix}")
    assert result.exit_code == 0
    assert result.stderr.count("\n") == 2
    assert f"diffcodec: a.{suffix}: it is a {format[:4].replace('WEBP', 'WebP')}" in result.stderr
    assert "keep it as it is" in result.stderr
    assert run(f"encode --quiet -f a.{suffix}").stderr == ""
    lossless = saved(noise, "WEBP", lossless=True).getvalue()
    Path("b.webp").write_bytes(lossless)
    assert run("encode b.webp").stderr.count("\n") == 1
    assert run(f"encode -f --timestep 4 a.{suffix}").exit_code == 0


@pytest.mark.parametrize("compression", ["jpeg", "tiff_lzw"])
def test_a_jpeg_in_a_tiff_that_grows_is_spoken_of(compression, run):
    noise = make_image("RGB", (40, 30))
    Path("a.tif").write_bytes(saved(noise, "TIFF", compression=compression).getvalue())
    said = "a.tif: it is a TIFF of JPEG, whose exact pixels take"
    assert (said in run("encode a.tif").stderr) == (compression == "jpeg")


def test_strip_and_what_is_not_kept(run):
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "a picture")
    text.add(b"prVT", b"unsafe to copy")
    make_image("RGB", (9, 7)).save("a.png", pnginfo=text, dpi=(72, 72))
    result = run("encode --json a.png")
    assert json.loads(result.stdout)["notes"] == ["not kept of the metadata: chunk 'prVT'"]
    result = run("encode -f a.png")
    assert "diffcodec: a.png: not kept of the metadata: chunk 'prVT'\n" in result.stderr
    result = run("decode a.dfc b.bmp")
    assert "; not kept by BMP: text and other chunks of PNG" in result.stderr
    assert "not kept" not in run("decode a.dfc b.png").stderr
    assert read_image("b.png").info.keys() == {"png_chunks", "dpi"}
    result = run("encode -f --strip a.png")
    assert "not kept" not in result.stderr
    run("decode -f a.dfc b.png")
    assert read_image("b.png").info == {}


def test_one_frame(run):
    frames = [Image.new("L", (8, 8), level) for level in (0, 90, 200)]
    frames[0].save("a.tif", save_all=True, append_images=frames[1:])
    result = run("encode a.tif")
    assert result.exit_code == 1
    assert "--frame N" in result.stderr
    assert run("encode --frame 2 a.tif").exit_code == 0
    assert run("decode a.dfc a.png").exit_code == 0
    assert read_image("a.png").tobytes() == frames[2].tobytes()
    assert run("encode -f --frame -1 a.tif").exit_code == 2
    result = run("encode -f --frame 9 a.tif")
    assert "no frame 9, expected 0 to 2" in result.stderr


@pytest.mark.parametrize("mode", ["CMYK", "F", "I"])
def test_advice_is_for_the_shell(mode, run):
    Image.new(mode, (4, 4)).save("a.tif")
    result = run("encode a.tif")
    assert result.exit_code == 1
    assert "magick IN" in result.stderr
    assert "numpy" not in result.stderr
    assert "image." not in result.stderr


def test_16_bit_grey(run):
    grey = np.arange(12, dtype=np.uint16).reshape(3, 4) * 300
    Path("a.pgm").write_bytes(b"P5 4 3 65535\n" + grey.astype(">u2").tobytes())
    assert run("encode a.pgm").exit_code == 0
    assert run("decode a.dfc").exit_code == 0
    assert np.array_equal(np.asarray(read_image("a.png")), grey)
