"""The command line: what it writes, what it says, and how it ends."""

import io
import json
import os
import re
import resource
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from commands import done, run
from PIL import Image
from safetensors.torch import load, load_file
from samples import raw_tile
from tiny import TIMESTEPS, tiny_model
from torch import Tensor

from diffcodec.cli.program import cli
from diffcodec.codec import encoding, many, tiles
from diffcodec.codec.jobs import Choices
from diffcodec.container.parts import MAGIC, Container, tile_grid
from diffcodec.container.reader import parse
from diffcodec.container.writer import pack
from diffcodec.diffusion.plan import geometric_plan
from diffcodec.images import fallback
from diffcodec.models.model import load_model
from diffcodec.networks.experts import FloatNetwork

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def chain_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chain of a random network never wins: let the other coders fail to compress."""
    plain = fallback.encode_fallback
    large = ("raw", bytes(1 << 20))
    monkeypatch.setattr(
        tiles, "encode_fallback", lambda image, *_: large if image.mode == "RGB" else plain(image)
    )


def picture(size: tuple[int, int] = (12, 9), seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def files(tiny: Path, tiny_float: Path) -> dict[str, bytes]:
    """What lies in the folder of each test."""
    png, gif = io.BytesIO(), io.BytesIO()
    picture().save(png, "PNG")
    frames = [picture(seed=i).quantize(8) for i in (1, 2)]
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "encode_fallback", lambda image, *_: ("raw", bytes(1 << 20)))
        dfc = encoding.encode(picture(), str(tiny))
        floating = encoding.encode(picture(), load_model(tiny_float, "float"))
        choices = Choices(marks_from_pixels=1)
        [marked] = many.encode_many([picture()], str(tiny), choices=choices)
    alpha = encoding.encode(picture().convert("RGBA"), str(tiny))
    assert {tile.coder for tile in parse(dfc).tiles} == {"default"}
    return {
        "photo.png": png.getvalue(),
        "photo.dfc": dfc,
        "marked.dfc": marked,
        "float.dfc": floating,
        "alpha.dfc": alpha,
        "text.txt": b"some text\n",
        "empty": b"",
        "cut.png": png.getvalue()[:-30],
        "animated.gif": gif.getvalue(),
        "cut.dfc": dfc[:-1],
        "flipped.dfc": dfc[:-9] + bytes([dfc[-9] ^ 4]) + dfc[-8:],
        "newer.dfc": dfc[:4] + b"\x02" + dfc[5:],
        "huge.dfc": MAGIC + b"\x01\x05" + 2 * b"\xff\xff\xff\xff\x07" + bytes(50),
        "tiny.safetensors": tiny.read_bytes(),
        "float.safetensors": tiny_float.read_bytes(),
    }


@pytest.fixture
def folder(files: dict[str, bytes], tmp_path: Path) -> Iterator[Path]:
    """The working directory of the test."""
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "folder").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        yield tmp_path


def tree() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file()}


# --- encode, decode -------------------------------------------------------------------------------

MODEL = "--model tiny.safetensors"


def same_image(path: str) -> bool:
    with Image.open(path) as image:
        return image.mode == "RGB" and image.tobytes() == picture().tobytes()


def test_files_that_pillow_only_warns_of_are_read_quietly(
    folder: Path, files: dict[str, bytes]
) -> None:
    animation = b"acTL" + bytes(8)  # of no frames
    chunk = struct.pack(">I", 8) + animation + struct.pack(">I", zlib.crc32(animation))
    header, rest = files["photo.png"][:33], files["photo.png"][33:]
    (folder / "odd.png").write_bytes(header + chunk + rest)
    assert done(f"encode {MODEL} --quiet odd.png odd.dfc").stderr == ""
    done(f"decode {MODEL} odd.dfc odd.bmp")
    assert same_image("odd.bmp")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        ("photo.png", "photo.dfc"),
        ("photo.png new.dfc", "new.dfc"),
        ("photo.png -o new.dfc", "new.dfc"),
        ("photo.png --output-dir folder", "folder/photo.dfc"),
        ("photo.png -o folder/plain", "folder/plain"),
    ],
)
def test_encode_and_decode(files: dict[str, bytes], arguments: str, output: str) -> None:
    Path("photo.dfc").unlink()
    before = tree()
    result = done(f"encode {MODEL} {arguments}")
    assert result.stdout == ""
    assert result.stderr.startswith(f"photo.png -> {output}: ")
    assert tree().keys() - before.keys() == {output}
    assert Path(output).read_bytes() == files["photo.dfc"]
    done(f"decode {MODEL} {output} new.png")
    assert same_image("new.png")


@pytest.mark.parametrize(
    "command",
    [
        "encode photo.png --output-dir memory://dd",
        "encode photo.png -o s3://bucket/a.dfc",
        "encode photo.png s3://bucket/a.dfc",
    ],
)
@pytest.mark.usefixtures("folder")
def test_outputs_are_files_here(command: str) -> None:
    before = tree()
    result = run(command)
    assert result.exit_code == 2
    assert "outputs are files on this machine; give a path" in " ".join(result.stderr.split())
    assert tree() == before


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no /dev/shm")
def test_a_file_in_shared_memory_is_a_file() -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        picture().save(Path(folder, "a.png"))
        done(f"encode {folder}/a.png --effort fast")
        assert Path(folder, "a.dfc").exists()


@pytest.mark.usefixtures("folder")
def test_a_folder_for_outputs_that_stays_empty_is_not_left_behind() -> None:
    before = tree()
    assert run(f"encode {MODEL} text.txt empty --output-dir new/deep").exit_code == 1
    assert run(f"decode {MODEL} cut.dfc --output-dir folder").exit_code == 3
    assert tree() == before
    assert not Path("new").exists()
    assert Path("folder").is_dir()  # which was there
    assert run(f"encode {MODEL} text.txt photo.png --output-dir new/deep").exit_code == 1
    assert tree().keys() - before.keys() == {"new/deep/photo.dfc"}


@pytest.mark.usefixtures("folder")
def test_decode_next_to_the_file() -> None:
    Path("photo.dfc").rename("folder/photo.dfc")
    result = done(f"decode {MODEL} folder/photo.dfc")
    assert result.stderr.startswith("folder/photo.dfc -> folder/photo.png: 12 x 9 RGB, ")
    assert same_image("folder/photo.png")
    done(f"decode {MODEL} --output-dir folder marked.dfc alpha.dfc --quiet")
    assert same_image("folder/marked.png")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "bmp", "ppm", "PNG"])
def test_the_suffix_chooses_the_format(suffix: str) -> None:
    done(f"decode {MODEL} photo.dfc new.{suffix}")
    assert same_image(f"new.{suffix}")


@pytest.mark.usefixtures("folder")
def test_standard_streams_are_as_files(files: dict[str, bytes]) -> None:
    for arguments in ("-", "- -", "- -o -"):
        result = done(f"encode {MODEL} {arguments}", files["photo.png"])
        assert result.stdout_bytes == files["photo.dfc"]
        assert result.stderr == ""
    assert done(f"encode {MODEL} photo.png -").stdout_bytes == files["photo.dfc"]
    done(f"encode {MODEL} - new.dfc", files["photo.png"])
    assert Path("new.dfc").read_bytes() == files["photo.dfc"]
    done(f"decode {MODEL} photo.dfc new.png")
    for arguments in ("-", "- -", "photo.dfc -"):
        result = done(f"decode {MODEL} {arguments}", files["photo.dfc"])
        assert result.stdout_bytes == Path("new.png").read_bytes()
        assert result.stderr == ""
    assert done(f"verify {MODEL} -", files["photo.dfc"]).stdout == "-: OK\n"
    assert "12 x 9 RGB" in done("info -", files["alpha.dfc"]).stdout.replace("RGBA", "RGB")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("effort", TIMESTEPS)
def test_effort(effort: str) -> None:
    result = done(f"encode {MODEL} --effort {effort} photo.png new.dfc --json")
    assert json.loads(result.stdout)["tiles"] == {effort: 1}
    assert parse(Path("new.dfc").read_bytes()).tiles[0].coder == effort


@pytest.mark.usefixtures("folder")
def test_encode_json() -> None:
    result = done(f"encode {MODEL} photo.png new.dfc --json")
    assert result.stderr == ""
    found = json.loads(result.stdout)
    size = Path("new.dfc").stat().st_size
    assert found.pop("seconds") > 0
    assert found == {
        "input": "photo.png",
        "output": "new.dfc",
        "bytes_in": Path("photo.png").stat().st_size,
        "bytes_out": size,
        "bits_per_dimension": 8 * size / (12 * 9 * 3),
        "bits_per_pixel": 8 * size / (12 * 9),
        "timestep": 0,
        "model": "tiny",
        "arithmetic": "integer",
        "effort": "default",
        "tiles": {"default": 1},
        "notes": [],
    }


FLOAT = "--model float.safetensors"


@pytest.mark.usefixtures("folder")
def test_float_arithmetic(files: dict[str, bytes]) -> None:
    result = done(f"encode {FLOAT} --arithmetic float photo.png new.dfc --json")
    assert json.loads(result.stdout)["arithmetic"] == "float"
    assert Path("new.dfc").read_bytes() == files["float.dfc"]
    done(f"decode {FLOAT} new.dfc new.png")
    assert same_image("new.png")
    done(f"decode {FLOAT} new.dfc coarse.png --timestep 3")
    assert not same_image("coarse.png")
    assert done(f"verify {FLOAT} new.dfc").stdout == "new.dfc: OK\n"


@pytest.mark.usefixtures("folder")
def test_float_arithmetic_of_an_integer_model(files: dict[str, bytes]) -> None:
    done(f"encode {MODEL} --arithmetic float photo.png new.dfc")
    assert parse(Path("new.dfc").read_bytes()).float_arithmetic
    assert Path("new.dfc").read_bytes()[20:] != files["photo.dfc"][20:]
    assert done(f"verify {MODEL} new.dfc photo.dfc").stdout == "new.dfc: OK\nphoto.dfc: OK\n"
    assert done(f"verify {MODEL} --quiet new.dfc photo.dfc").stdout == ""
    done(f"encode {MODEL} --arithmetic integer photo.png same.dfc")
    assert Path("same.dfc").read_bytes() == files["photo.dfc"]


@pytest.mark.usefixtures("folder")
def test_float_arithmetic_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = FloatNetwork.posterior_x

    def scaled(self: FloatNetwork, z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        mean, variance = plain(self, z, sigma)
        return mean * (1 + 2.0**-23), variance

    monkeypatch.setattr(FloatNetwork, "posterior_x", scaled)
    advice = "float arithmetic, which is not the same on every machine: .*--arithmetic integer"
    for command in ("verify float.dfc", "decode float.dfc new.png"):
        fails_in_one_line(f"{command} {FLOAT}", 3, "float.dfc", advice)
    done(f"verify {MODEL} photo.dfc")


@pytest.mark.usefixtures("folder")
def test_quiet() -> None:
    result = done(f"encode {MODEL} photo.png new.dfc --quiet")
    assert (result.stdout, result.stderr) == ("", "")
    result = done(f"decode {MODEL} photo.dfc new.png --quiet")
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.usefixtures("folder")
def test_force_overwrites(files: dict[str, bytes]) -> None:
    Path("photo.dfc").write_bytes(b"old")
    done(f"encode {MODEL} photo.png --force")
    assert Path("photo.dfc").read_bytes() == files["photo.dfc"]
    Path("photo.png").write_bytes(b"old")
    done(f"decode {MODEL} photo.dfc -f")
    assert same_image("photo.png")


@pytest.mark.usefixtures("folder")
def test_timesteps() -> None:
    for timestep in range(TIMESTEPS["default"] + 1):
        done(f"decode {MODEL} photo.dfc {timestep}.png --timestep {timestep}")
        with Image.open(f"{timestep}.png") as image:
            assert (image.mode, image.size) == ("RGB", (12, 9))
        assert same_image(f"{timestep}.png") == (timestep == 0)


# --- several inputs -------------------------------------------------------------------------------


@pytest.mark.usefixtures("folder")
def test_one_failure_does_not_stop_the_rest(files: dict[str, bytes]) -> None:
    result = run(f"encode {MODEL} --json --output-dir folder cut.png photo.png text.txt")
    assert result.exit_code == 1
    failed, coded, failed_too = map(json.loads, result.stdout.splitlines())
    assert (failed["input"], failed["exit_code"]) == ("cut.png", 1)
    assert (failed_too["input"], failed_too["exit_code"]) == ("text.txt", 1)
    assert coded["output"] == "folder/photo.dfc"
    *_, last = result.stderr.splitlines()
    assert last == "diffcodec: 2 of 3 inputs failed: cut.png, text.txt"
    assert [path.name for path in Path("folder").iterdir()] == ["photo.dfc"]
    assert Path("folder/photo.dfc").read_bytes() == files["photo.dfc"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("paths", "code"),
    [
        ("photo.dfc marked.dfc alpha.dfc", 0),
        ("cut.dfc photo.dfc", 3),
        ("cut.dfc flipped.dfc", 3),
        ("missing.dfc photo.dfc", 1),
        ("cut.dfc photo.dfc missing.dfc", 1),
    ],
)
def test_verify_several(paths: str, code: int) -> None:
    result = run(f"verify {MODEL} {paths}")
    assert result.exit_code == code
    good = [path for path in paths.split() if path in ("photo.dfc", "marked.dfc", "alpha.dfc")]
    assert result.stdout == "".join(f"{path}: OK\n" for path in good)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("encode", "Missing argument"),
        ("encode a.png b.dfc c.dfc", "for several inputs, --output-dir"),
        ("encode photo.png other.jpg --force", "has the suffix of an image"),
        ("encode photo.png -o folder/x.PNG", "has the suffix of an image"),
        ("encode a.png b.png -o out.dfc", "one input and one output"),
        ("encode a.png -o out.dfc --output-dir folder", "neither with --output-dir"),
        ("encode - --output-dir folder", "standard input has no name"),
        ("encode a/x.png b/x.jpg --output-dir folder", "2 inputs have the same output"),
        ("encode photo.png - --json", "--json needs standard output"),
        ("encode photo.png --effort fastest", "--effort"),
        ("encode photo.png new.dfc --bpp 1 --psnr 30", "exclude each other"),
        ("encode photo.png new.dfc --progressive --timestep 3 --psnr 30", "exclude each other"),
        ("encode photo.png new.dfc --previews 3", "--previews needs"),
        ("encode photo.png new.dfc --progressive --previews 3,x", "--previews"),
        ("encode photo.png new.dfc --progressive --previews=", "--previews"),
        ("encode photo.png new.dfc --timestep 0", "--timestep"),
        ("encode photo.png new.dfc --arithmetic double", "--arithmetic"),
        ("encode photo.png new.dfc --draws 0", "--draws"),
        ("encode photo.png new.dfc --draws 257", "--draws"),
        ("encode photo.png new.dfc --draws 2 --progressive", "--draws is for files without"),
        ("encode photo.png new.dfc --draws 2 --bpp 3", "--draws is for files without"),
        ("encode photo.png new.dfc --class -1", "'-1', expected a number from 0 on, or auto"),
        ("encode photo.png new.dfc --class cat", "'cat', expected a number from 0 on, or auto"),
        ("encode photo.png new.dfc --class auto --bpp 3", "--class auto is for files without"),
        ("decode photo.dfc --timestep -1", "--timestep"),
        ("decode photo.dfc --timestep many", "--timestep"),
        ("decode --recover photo.dfc --timestep 1", "--recover takes whatever is whole"),
        ("decode --recover photo.dfc --allow-partial", "--recover takes whatever is whole"),
        ("decode --recover photo.dfc --reconstruct flow", "--recover takes whatever is whole"),
        ("info", "Missing argument"),
        ("nothing", "No such command"),
        ("train --data folder", "--out"),
        ("train --data folder --out run --channels 8,,8", "--channels"),
        ("train --data folder --out run --channels 8,0", "--channels"),
        ("train --data folder --out run --channels 8,8 --blocks 1", "one is shorter than"),
        ("train --data folder --out run --loss l3", "--loss"),
        ("train --data folder --out run --batch 7", "--batch"),
        ("train --data folder --out run --resume --init tiny.safetensors", "leave out --init"),
        ("quantize float.safetensors new.safetensors", "--data"),
        ("quantize float.safetensors new.safetensors --data folder", "give --crop"),  # it has none
        ("quantize float.safetensors new.safetensors --data folder --crop 10", "give --crop"),
        ("quantize float.safetensors new.safetensors --data folder --crop 0", "--crop"),
    ],
)
def test_wrong_usage(command: str, message: str) -> None:
    before = tree()
    result = run(command)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Usage: diffcodec")
    assert message in result.stderr
    assert tree() == before


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("command", "code", "path", "message"),
    [
        ("encode missing.png", 1, "missing.png", "No such file.*; check the path"),
        ("encode folder", 1, "folder", "Is a directory; give"),
        ("encode text.txt", 1, "text.txt", "no image.*; convert"),
        ("encode empty", 1, "empty", "an empty file, expected an image"),
        ("encode cut.png new.dfc", 1, "cut.png", "damaged PNG: it is cut short.*; get a whole"),
        ("encode animated.gif", 1, "animated.gif", "2 frames, expected one: choose it"),
        ("encode marked.dfc new.dfc", 1, "marked.dfc", "coded already; .*use decode"),
        ("encode photo.png", 1, "photo.dfc", "exists already; .*--force"),
        ("encode photo.png -o link --force", 1, "photo.png", "the input itself; give another"),
        ("encode photo.png folder", 1, "folder", "is a folder; give"),
        ("encode photo.png nowhere/out.dfc", 1, "nowhere/out.dfc", "no folder nowhere; check"),
        ("encode photo.png --output-dir text.txt", 1, "text.txt", "not a folder"),
        ("encode photo.png --output-dir text.txt/x", 1, "text.txt/x", "Not a directory"),
        ("encode photo.png /dev/full", 1, "/dev/full", "No space left on device; free some"),
        ("decode missing.dfc", 1, "missing.dfc", "No such file.*; check the path"),
        ("decode folder", 1, "folder", "Is a directory; give"),
        ("decode text.txt", 3, "text.txt", "not a diffcodec file .*; give"),
        ("decode photo.png new.png", 3, "photo.png", "not a diffcodec file .*; give"),
        ("decode empty", 3, "empty", "the data is empty"),
        ("decode cut.dfc new.png", 3, "cut.dfc", "ends early, in the tile: .*; get the whole"),
        ("decode flipped.dfc", 3, "flipped.dfc", "damaged.*; get the file again"),
        ("decode newer.dfc", 3, "newer.dfc", "version 1.*newer diffcodec is needed"),
        ("decode huge.dfc", 3, "huge.dfc", "pixels, the limit of a side is"),
        ("decode photo.dfc new.png --timestep 99", 1, "photo.dfc", "timesteps 0 .exact. to 6"),
        ("decode photo.dfc", 1, "photo.png", "exists already; .*--force"),
        ("decode photo.dfc new.jpg", 1, "photo.dfc", "the image is exact, which JPEG.*write .png"),
        ("decode photo.dfc new.xyz", 1, "new.xyz", "found suffix '.xyz'.*write .png"),
        ("decode alpha.dfc new.bmp", 1, "alpha.dfc", "does not keep mode RGBA: write PNG"),
        ("verify missing.dfc", 1, "missing.dfc", "No such file"),
        ("verify text.txt", 3, "text.txt", "not a diffcodec file"),
        ("verify cut.dfc", 3, "cut.dfc", "ends early"),
        ("verify flipped.dfc", 3, "flipped.dfc", "damaged"),
        ("info missing.dfc", 1, "missing.dfc", "No such file"),
        ("info folder", 1, "folder", "Is a directory"),
        ("info text.txt", 3, "text.txt", "not a diffcodec file"),
        ("info cut.dfc", 3, "cut.dfc", "ends early"),
        ("info newer.dfc", 3, "newer.dfc", "newer diffcodec"),
    ],
)
def test_bad_input(command: str, code: int, path: str, message: str) -> None:
    Path("link").symlink_to("photo.png")
    fails_in_one_line(f"{command} {MODEL}", code, path, message)


def fails_in_one_line(command: str, code: int, path: str, message: str) -> None:
    before = tree()
    result = run(command)
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    assert re.fullmatch(
        rf"(pictures: \d+ images to train on.*\n)?diffcodec: {path}: .*{message}.*\n", result.stderr
    ), result.stderr
    assert tree() == before


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("command", "path", "message"),
    [
        ("decode photo.dfc new.png", "photo.dfc", "none of the shipped ones.*--model"),
        ("verify photo.dfc", "photo.dfc", "none of the shipped ones.*--model"),
        ("decode photo.dfc new.png --model other.safetensors", "photo.dfc", "given is other"),
        ("verify photo.dfc --model other.safetensors", "photo.dfc", "given is other"),
        ("info photo.dfc --model other.safetensors", "photo.dfc", "given is other"),
        ("encode photo.png new.dfc --model none", "none", "no model 'none'"),
        ("decode photo.dfc new.png --model none", "none", "no model 'none'"),
        ("info photo.dfc --model none", "none", "no model 'none'"),
        ("encode photo.png new.dfc --model text.txt", ".*text.txt", "not a diffcodec model"),
        ("decode photo.dfc new.png --model text.txt", ".*text.txt", "not a diffcodec model"),
        ("verify photo.dfc --model folder", "folder", "no model 'folder'"),
        ("decode photo.dfc new.png --model float.safetensors", "photo.dfc", "given is float"),
        ("info photo.dfc --model float.safetensors", "photo.dfc", "given is float"),
        ("decode float.dfc new.png --model tiny.safetensors", "float.dfc", "given is tiny"),
        ("verify float.dfc", "float.dfc", "none of the shipped ones.*--model"),
        (
            "encode photo.png new.dfc --model float.safetensors",
            "float.safetensors",
            "a float model, expected an integer one; give --arithmetic float.*diffcodec quantize",
        ),
    ],
)
def test_wrong_model(command: str, path: str, message: str) -> None:
    tiny_model(Path(), seed=1, name="other")
    fails_in_one_line(command, 4, path, message)


@pytest.mark.usefixtures("folder")
def test_pixels_that_come_out_wrong() -> None:
    """As on a machine whose arithmetic differs: the file is whole, its pixels are not."""
    with mock.patch("diffcodec.codec.encoding.pixel_crc", lambda image: 1):
        done(f"encode photo.png wrong.dfc {MODEL}")
    for command in ("verify wrong.dfc", "decode wrong.dfc"):
        fails_in_one_line(f"{command} {MODEL}", 3, "wrong.dfc", "computed other probabilities")


# --- previews ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("folder")
def test_lossy_files() -> None:
    found = {}
    for goal in ("--timestep 3", "--bpp 60", "--psnr 8"):
        result = done(f"encode {MODEL} {goal} photo.png new.dfc -f --json")
        said = json.loads(result.stdout)
        assert said["timestep"] == parse(Path("new.dfc").read_bytes()).layers.stops[-1] > 0
        assert said["bits_per_pixel"] == 8 * Path("new.dfc").stat().st_size / (12 * 9)
        found[goal] = said
        shown = done(f"decode {MODEL} new.dfc new.png -f").stderr
        assert shown.startswith(f"new.dfc -> new.png: timestep {said['timestep']}, 12 x 9 RGB")
        assert done(f"verify {MODEL} new.dfc").stdout == "new.dfc: OK\n"
    assert found["--timestep 3"]["timestep"] == 3
    assert found["--bpp 60"]["bits_per_pixel"] <= 60
    text = done(f"encode {MODEL} --timestep 3 photo.png new.dfc -f").stderr
    assert re.search(r"bits per pixel, timestep 3, ", text)
    done(f"encode {MODEL} --timestep 3 photo.png new.dfc -f --quiet")
    assert run(f"decode {MODEL} new.dfc new.png -f --timestep 2").exit_code == 1


@pytest.mark.usefixtures("folder")
def test_progressive_files() -> None:
    done(f"encode {MODEL} --progressive --previews 5,3 photo.png new.dfc")
    data = Path("new.dfc").read_bytes()
    assert parse(data).layers.stops == (5, 3, 0)
    done(f"decode {MODEL} new.dfc new.png")
    assert same_image("new.png")
    done(f"decode {MODEL} new.dfc 3.png --timestep 3")
    Path("cut.dfc").write_bytes(data[:-1])
    result = run(f"decode {MODEL} cut.dfc part.png")
    assert result.exit_code == 3 and "ends early" in result.stderr
    assert not Path("part.png").exists()
    result = done(f"decode {MODEL} cut.dfc part.png --allow-partial")
    assert "timestep 3, " in result.stderr
    done(f"decode {MODEL} new.dfc most.png --max-bytes {len(data) - 1}")
    done(f"decode {MODEL} new.dfc all.png --max-bytes {len(data)}")
    assert same_image("all.png")
    three = Path("3.png").read_bytes()
    assert [Path(f"{name}.png").read_bytes() == three for name in ("part", "most")] == [True, True]
    for how in ("flow", "sample --seed 7"):
        done(f"decode {MODEL} new.dfc {how[:4]}.png --timestep 3 --reconstruct {how}")
        assert Path(f"{how[:4]}.png").read_bytes() != three
    assert run(f"decode {MODEL} new.dfc 2.png --max-bytes 12").exit_code == 3
    rows = json.loads(done(f"info {MODEL} --json new.dfc").stdout)
    assert rows["layers"] == 2
    assert [row["timestep"] for row in rows["timesteps"]] == [5, 3, 0]
    assert [row["bits"] for row in rows["timesteps"]] == sorted(
        r["bits"] for r in rows["timesteps"]
    )
    assert "  layers    2\n" in done(f"info {MODEL} new.dfc").stdout


@pytest.mark.usefixtures("folder")
def test_goals_out_of_reach() -> None:
    for options, message in (("--bpp 0.001", "give more"), ("--timestep 99", "timesteps 1 to 6")):
        result = run(f"encode {MODEL} {options} photo.png new.dfc")
        assert result.exit_code == 1
        assert message in result.stderr


# --- damage and limits ----------------------------------------------------------------------------


def test_verify_of_the_structure_alone(folder: Path, files: dict[str, bytes]) -> None:
    """The model is not needed, nor are the pixels looked at."""
    with mock.patch("diffcodec.codec.encoding.pixel_crc", lambda image: 1):
        done(f"encode photo.png other.dfc {MODEL}")
    found = done("verify --structure photo.dfc other.dfc").stdout
    assert found == "photo.dfc: OK\nother.dfc: OK\n"
    fails_in_one_line(f"verify other.dfc {MODEL}", 3, "other.dfc", "does not decode")
    fails_in_one_line("verify --structure flipped.dfc", 3, "flipped.dfc", "damaged")
    fails_in_one_line("verify --structure cut.dfc", 3, "cut.dfc", "ends early")
    fails_in_one_line("verify --structure newer.dfc", 3, "newer.dfc", "newer diffcodec")


def test_what_a_newer_writer_used(folder: Path, files: dict[str, bytes]) -> None:
    """Is told after the checksums, and is the file's fault all the same."""
    head, content = files["alpha.dfc"][:12], b"\x0f"
    crc = zlib.crc32(head + bytes(8) + content)
    data = head + bytes([len(content)]) + content + struct.pack("<I", crc)
    (folder / "other.dfc").write_bytes(data)
    for command in ("decode", "decode --recover", "info", "verify", "verify --structure"):
        fails_in_one_line(f"{command} other.dfc", 3, "other.dfc", "a newer diffcodec may know it")


def test_recover(folder: Path) -> None:
    """The image is written, and the failure says what of it is lost."""
    image = Image.effect_noise((1100, 20), 9)
    coded = pack(_raw_tiles(image))
    damaged = coded[:9000] + bytes([coded[9000] ^ 1]) + coded[9001:]
    (folder / "other.dfc").write_bytes(damaged)
    fails_in_one_line("decode other.dfc new.png", 3, "other.dfc", "tile 2 of 3 or the header is")
    assert not Path("new.png").exists()
    result = run("decode --recover other.dfc new.png")
    assert result.exit_code == 3
    place = "tile 2 of 3 (368 x 20 pixels at 368, 0)"
    start = f"diffcodec: other.dfc: damaged; written but for 1 tile. {place}: tile 2 of 3 or the"
    assert result.stderr.startswith(start)
    assert result.stderr.count("\n") == 1
    with Image.open("new.png") as found:
        for left, right in ((0, 368), (736, 1100)):
            box = (left, 0, right, 20)
            assert found.crop(box).tobytes() == image.crop(box).tobytes()
        assert set(found.crop((368, 0, 736, 20)).tobytes()) == {85, 170}
    (folder / "other.dfc").write_bytes(coded)
    done("decode --recover --force other.dfc new.png")
    with Image.open("new.png") as found:
        assert found.tobytes() == image.tobytes()


def _raw_tiles(image: Image.Image) -> Container:
    boxes = tile_grid(*image.size)
    tiles = [raw_tile(image.crop((x, y, x + w, y + h))) for x, y, w, h in boxes]
    return Container(image.mode, *image.size, bytes(4), False, {}, tuple(tiles))


@pytest.mark.usefixtures("folder")
def test_limits() -> None:
    for command in ("decode -f", "verify", "verify --structure", "info"):
        message = "12 x 9 pixels = 108, the limit is 107"
        fails_in_one_line(f"{command} --max-pixels 107 photo.dfc", 3, "photo.dfc", message)
    fails_in_one_line(f"encode {MODEL} --max-pixels 107 photo.png new.dfc", 1, "photo.png", "107")
    message = "MiB of memory, the limit is 1 MiB"
    for command in ("decode -f", "verify"):
        fails_in_one_line(f"{command} --max-memory 1 photo.dfc", 3, "photo.dfc", message)
    fails_in_one_line(f"encode {MODEL} --max-memory 1 photo.png new.dfc", 1, "photo.png", message)
    done(f"verify {MODEL} --max-pixels 108 photo.dfc")


# --- info, models ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", ["photo.dfc", "marked.dfc"])
def test_info_json(name: str, files: dict[str, bytes]) -> None:
    """With marks and, coded again, without."""
    found = json.loads(done(f"info {name} --measure --json {MODEL}").stdout)
    timesteps = found.pop("timesteps")
    size = len(files[name])
    assert found == {
        "input": name,
        "version": 1,
        "mode": "RGB",
        "width": 12,
        "height": 9,
        "bytes": size,
        "bits_per_pixel": pytest.approx(8 * size / 108),
        "bits_per_dimension": pytest.approx(8 * size / 324),
        "model_id": parse(files[name]).model.hex(),
        "model": "tiny",
        "arithmetic": "integer",
        "tiles": {"default": 1},
        "classes": [],
        "layers": 0,
        "metadata_bytes": {},
    }
    assert [row["timestep"] for row in timesteps] == [6, 5, 4, 3, 2, 1, 0]
    levels = geometric_plan(6).levels
    assert [row["noise_grey_levels"] for row in timesteps] == [*reversed(levels), 0]
    [marked] = parse(files["marked.dfc"]).tiles
    left_out = 8 * (-len(marked.payload) % 4)
    expected = [32 * words - left_out for words in marked.marks] + [8 * len(marked.payload)]
    assert [row["bits"] for row in timesteps] == expected
    assert expected == sorted(expected)


@pytest.mark.usefixtures("folder")
def test_info_without_marks_decodes_nothing() -> None:
    timesteps = json.loads(done(f"info photo.dfc --json {MODEL}").stdout)["timesteps"]
    assert [row["timestep"] for row in timesteps] == [6, 5, 4, 3, 2, 1, 0]
    assert [row["bits"] for row in timesteps] == [*[None] * 6, ANY_INT]


@pytest.mark.usefixtures("folder")
def test_info_text() -> None:
    lines = done(f"info marked.dfc photo.dfc {MODEL}").stdout.splitlines()
    assert [lines[0], lines[len(lines) // 2]] == ["marked.dfc", "photo.dfc"]
    assert "  image     12 x 9 RGB" in lines
    assert "  tiles     1 default" in lines
    assert sum(line.startswith("  default  ") for line in lines) == 2 * (6 + 1)


@pytest.mark.usefixtures("folder")
def test_info_of_float_arithmetic() -> None:
    found = json.loads(done(f"info float.dfc --measure --json {FLOAT}").stdout)
    assert (found["model"], found["arithmetic"]) == ("float", "float")
    bits = [row["bits"] for row in found["timesteps"]]  # coded again
    assert bits == [ANY_INT] * len(bits) and len(bits) > 2
    assert json.loads(done("info float.dfc --json").stdout)["arithmetic"] == "float"
    assert "  model     float (" in done(f"info float.dfc {FLOAT}").stdout
    assert "), float arithmetic\n" in done("info float.dfc").stdout
    assert "), integer arithmetic\n" in done("info photo.dfc").stdout
    assert "arithmetic" not in done("info alpha.dfc").stdout


@pytest.mark.usefixtures("folder")
def test_info_of_an_unknown_model() -> None:
    """Everything but the noise levels; without marks, not the bits either."""
    unmarked, marked = map(json.loads, done("info photo.dfc marked.dfc --json").stdout.splitlines())
    assert unmarked["model"] is marked["model"] is None
    assert unmarked["timesteps"] == [
        {"effort": "default", "timestep": 0, "noise_grey_levels": 0, "bits": ANY_INT}
    ]
    assert [row["noise_grey_levels"] for row in marked["timesteps"]] == [None] * 6 + [0]
    assert "not a shipped one (" in done("info marked.dfc").stdout


class _AnyInt:
    def __eq__(self, other: object) -> bool:
        return isinstance(other, int)

    __hash__ = None  # type: ignore[assignment]


ANY_INT = _AnyInt()


@pytest.mark.usefixtures("folder")
def test_info_of_other_coders() -> None:
    found = json.loads(done("info alpha.dfc --json").stdout)
    assert (found["model"], found["model_id"], found["timesteps"]) == (None, None, [])
    assert found["arithmetic"] is None
    assert "none needed" in done("info alpha.dfc").stdout


@pytest.fixture
def shipped(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffcodec.models.file.MODEL_FOLDER", tiny.parent)


@pytest.mark.usefixtures("folder", "shipped")
def test_models(tiny: Path) -> None:
    parameters = sum(tensor.numel() for tensor in load_file(tiny).values())
    name, *rows = done("models").stdout.splitlines()
    assert name == "tiny"
    assert dict(row.split(maxsplit=1) for row in rows) == {
        "id": load_model(tiny).info.id.hex(),
        "arithmetic": "integer",
        "parameters": str(parameters),
        "size": f"{tiny.stat().st_size} bytes",
        "timesteps": "fast 4, default 6, best 8",
        "multiplications": "fast 0.0, default 0.0, best 0.0 million a pixel",
        "data": "none",
    }


@pytest.mark.usefixtures("folder")
def test_a_shipped_float_model_is_found(tiny_float: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffcodec.models.file.MODEL_FOLDER", tiny_float.parent)
    assert "  arithmetic     float\n" in done("models").stdout
    done("verify float.dfc")
    assert json.loads(done("info float.dfc --json").stdout)["model"] == "float"


@pytest.mark.usefixtures("folder", "shipped")
def test_a_shipped_model_is_found() -> None:
    done("verify photo.dfc")
    done("decode photo.dfc new.png")
    done("encode photo.png new.dfc --model tiny")
    assert json.loads(done("info photo.dfc --json").stdout)["model"] == "tiny"
    fails_in_one_line("encode photo.png other.dfc", 4, "photo", "expected one of tiny")


def test_without_shipped_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffcodec.models.file.MODEL_FOLDER", tmp_path)
    result = done("models")
    assert result.stdout == ""
    assert "--model" in result.stderr


# --- train ----------------------------------------------------------------------------------------

RUN = (
    "train --data pictures --out run --batch 8 --crop 16 --channels 8,8 --blocks 1,1 "
    "--no-compile --precision float32"
)


@pytest.fixture
def pictures(folder: Path) -> None:
    (folder / "pictures").mkdir()
    for i in range(3):
        picture((24, 20), i).save(folder / "pictures" / f"{i}.png")


@pytest.mark.usefixtures("pictures")
def test_train_and_resume() -> None:
    done(f"{RUN} --steps 1")
    config = json.loads(Path("run/config.json").read_text())
    assert (config["steps"], config["crop"], config["compile"]) == (1, 16, False)
    assert [shape["channels"] for _, shape in config["network"]["experts"]] == [[8, 8]]

    before = tree()
    result = run(f"{RUN} --steps 2")
    assert result.exit_code == 1
    assert re.fullmatch("diffcodec: run: it holds a run already; .*--resume.*\n", result.stderr)
    assert tree() == before

    done("train --data pictures --out run --resume --steps 2")
    resumed = json.loads(Path("run/config.json").read_text())
    assert resumed == config | {"steps": 2}
    steps = [json.loads(line)["step"] for line in Path("run/log.jsonl").read_text().splitlines()]
    assert steps == [1, 2]

    fails_in_one_line(
        f"{RUN} --resume --channels 16,16", 1, "run", "of another network .*; give the options"
    )


@pytest.mark.usefixtures("pictures")
def test_a_run_leaves_a_model() -> None:
    done(f"{RUN} --steps 1")
    done("encode photo.png trained.dfc --model run/model.safetensors")
    done("verify trained.dfc --model run/model.safetensors")
    done("encode photo.png float.dfc -f --model run/float.safetensors --arithmetic float")
    done("verify float.dfc --model run/float.safetensors")


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("model", ["tiny", "float"])
def test_train_from_a_model(model: str) -> None:
    result = done(
        "train --data pictures --out run --batch 8 --crop 16 --no-compile --precision float32 "
        f"--steps 1 --init {model}.safetensors"
    )
    assert json.loads(result.stdout.splitlines()[-1])["step"] == 1
    network = json.loads(Path("run/config.json").read_text())["network"]
    assert [shape["channels"] for _, shape in network["experts"]] == [[8, 8]]


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(
    ("command", "code", "path", "message"),
    [
        ("train --data missing --out run", 1, "missing", "no such folder; --data takes"),
        ("train --data folder --out run", 1, "folder", "holds no images"),
        ("train --data pictures --out run", 1, "pictures", "at least 64 pixels.*--crop"),
        ("train --data pictures --out text.txt", 1, "text.txt", "not a folder"),
        (f"{RUN} --resume", 1, "run", "no run to continue; leave out --resume"),
        (f"{RUN} --init text.txt", 4, ".*text.txt", "not a diffcodec model"),
    ],
)
def test_train_on_bad_input(command: str, code: int, path: str, message: str) -> None:
    fails_in_one_line(command, code, path, message)


@pytest.mark.usefixtures("folder")
def test_train_shows_the_defaults_of_a_run() -> None:
    from diffcodec.networks.config import UNetConfig
    from diffcodec.training.config import TrainConfig

    text = " ".join(done("train --help").stdout.split())
    assert f"[default: {TrainConfig.steps};" in text
    assert f"[default: {TrainConfig.learning_rate}; x>0]" in text
    assert f"[default: {','.join(map(str, UNetConfig.channels))}]" in text


# --- quantize -------------------------------------------------------------------------------------

QUANTIZE = "quantize float.safetensors new.safetensors --data pictures --crop 16"


@pytest.mark.usefixtures("pictures")
def test_quantize_what_a_run_leaves() -> None:
    done(f"{RUN} --steps 1")
    before = tree()
    result = done("quantize run/float.safetensors --data pictures")
    made = "run/float.integer.safetensors"
    assert result.stdout == ""
    assert result.stderr == (
        f"run/float.safetensors -> {made}: {Path(made).stat().st_size} bytes\n"
    )
    assert tree().keys() - before.keys() == {made}
    found, expected = load_file(made), load_file("run/model.safetensors")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensor.dtype == found[name].dtype
        assert tensor.equal(found[name]), name
    infos = [load_model(path).info for path in (made, "run/model.safetensors")]
    assert infos[0].plans == infos[1].plans
    assert infos[0].about == infos[1].about


@pytest.mark.usefixtures("pictures")
def test_quantize() -> None:
    Path("new.safetensors").write_bytes(b"old")
    done(f"{QUANTIZE} --force")
    assert load_model("new.safetensors").info.arithmetic == "integer"
    again = load(done(QUANTIZE.replace("new.safetensors", "-")).stdout_bytes)
    assert all(tensor.equal(again[name]) for name, tensor in load_file("new.safetensors").items())
    done("encode photo.png new.dfc --model new.safetensors")
    done("verify new.dfc --model new.safetensors")


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(
    ("command", "code", "path", "message"),
    [
        ("quantize missing --data pictures", 4, "missing", "no model 'missing'"),
        ("quantize folder --data pictures", 4, "folder", "no model 'folder'"),
        ("quantize . --data pictures", 4, ".", "no model '.'"),
        ("quantize text.txt --data pictures", 4, ".*text.txt", "not a diffcodec model"),
        ("quantize photo.dfc --data pictures", 4, ".*photo.dfc", "not a diffcodec model"),
        (
            "quantize tiny.safetensors --data pictures",
            *(4, "tiny.safetensors", "integer model already; give a float one"),
        ),
        ("quantize none.safetensors --data pictures", 4, "none.*", "not a diffcodec model"),
        (QUANTIZE.replace("pictures", "folder"), 1, "folder", "holds no images"),
        (QUANTIZE.replace("pictures", "missing"), 1, "missing", "no such folder"),
        (QUANTIZE.replace("16", "64"), 1, "pictures", "at least 64 pixels.*smaller --crop"),
        (
            QUANTIZE.replace("new.safetensors", "text.txt"),
            *(1, "text.txt", "exists already; .*--force"),
        ),
        (QUANTIZE.replace("new.safetensors", "folder"), 1, "folder", "is a folder"),
        (QUANTIZE.replace("new.saf", "nowhere/new.saf"), 1, "nowhere/new.*", "no folder nowhere"),
        (QUANTIZE.replace("new.safetensors", "/dev/full"), 1, "/dev/full", "No space left"),
        (
            "quantize float.safetensors float.safetensors --force --data pictures --crop 16",
            *(1, "float.safetensors", "the input itself; give another"),
        ),
    ],
)
def test_quantize_on_bad_input(command: str, code: int, path: str, message: str) -> None:
    cut = tiny_model(Path(), name="none", arithmetic="float")
    cut.write_bytes(cut.read_bytes()[:-1])
    fails_in_one_line(command, code, path, message)


# --- processes ------------------------------------------------------------------------------------


def process(
    *arguments: str, stdin: bytes = b"", stdout: int = subprocess.PIPE
) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run(
        [sys.executable, "-m", "diffcodec", *arguments],
        input=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.usefixtures("folder")
def test_a_real_process_encodes_from_and_to_pipes(tiny: Path) -> None:
    image = io.BytesIO()
    picture().convert("RGBA").save(image, "PNG")
    result = process("encode", "--model", str(tiny), "-", stdin=image.getvalue())
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == Path("alpha.dfc").read_bytes()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "arguments", [("info", "marked.dfc"), ("decode", "alpha.dfc", "-")], ids=["text", "data"]
)
def test_a_full_device(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        result = process(*arguments, stdout=full.fileno())
    assert result.returncode == 1
    assert result.stderr == (
        b"diffcodec: standard output: No space left on device; free some space and run it again\n"
    )


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "arguments", [("info", "marked.dfc"), ("decode", "alpha.dfc", "-")], ids=["text", "data"]
)
def test_a_closed_pipe_is_silent(arguments: tuple[str, ...]) -> None:
    writer = closed_pipe()
    try:
        result = process(*arguments, stdout=writer)
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (1, b"")


WITHOUT_TORCH = """
import sys
from diffcodec.cli.program import cli
for command in (
    *("--help", "encode --help", "decode --help", "show --help", "evaluate --help", "plan --help"),
    *("quantize --help", "doctor --help", "models", "info marked.dfc photo.dfc alpha.dfc cut.dfc"),
    *("info photo.dfc --model tiny.safetensors", "verify --structure photo.dfc alpha.dfc cut.dfc"),
):
    try:
        cli(command.split(), standalone_mode=False)
    except SystemExit as e:
        assert e.code == 3, command
heavy = {"torch", "numpy", "scipy", "PIL", "constriction"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""


@pytest.mark.usefixtures("folder")
def test_no_numerics_where_none_are_needed() -> None:
    code = [sys.executable, "-c", WITHOUT_TORCH]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(code, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("arguments", [("info",), ("verify", "--structure")])
def test_info_is_fast(arguments: tuple[str, ...]) -> None:
    """By the processor's time, once in three: on a busy machine that grows, too."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def seconds() -> float:
        start = used()
        assert process(*arguments, "marked.dfc").returncode == 0
        return used() - start

    assert any(seconds() < 0.5 for _ in range(3))


def test_version() -> None:
    from diffcodec import __version__

    result = process("--version")
    assert result.stdout.decode() == f"diffcodec, version {__version__}\n"


ARCHIVES = {"pack", "append", "ls", "extract", "unpack"}


def test_every_command_has_help() -> None:
    commands: dict[str, Callable[..., object]] = dict(cli.commands)
    files = {"encode", "decode", "info", "verify", "show"}
    models = {"models", "doctor", "train", "evaluate", "quantize", "plan", "calibrate"}
    drawing = {"sample", "forward", "denoise", "interpolate", "inpaint", "enlarge"}
    assert set(commands) == files | ARCHIVES | models | drawing
    for name in commands:
        text = done(f"{name} --help").stdout
        assert text.startswith(f"Usage: diffcodec {name}")


def test_the_manual_names_every_option() -> None:
    manual = (ROOT / "docs" / "cli.md").read_text()
    for name, command in cli.commands.items():
        done(f"{name} --help")  # the options of train are made on demand
        title = "Archives" if name in ARCHIVES else name
        section = manual.split(f"## {title}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            for option in [*parameter.opts, *parameter.secondary_opts]:
                if option.startswith("-"):
                    assert f"`{option}" in section, (name, option)
