"""What users of other codecs type, and the surroundings that a command may be started in."""

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from commands import done, run
from PIL import Image
from samples import raw_tile

from diffcodec.cli.program import cli
from diffcodec.cli.quality import quality_timestep
from diffcodec.codec import decoding, encoding, many
from diffcodec.codec.opening import OpenFile
from diffcodec.container.parts import Container, tile_grid
from diffcodec.container.reader import parse
from diffcodec.container.writer import pack
from diffcodec.models.file import DEFAULT_MODEL, model_info, model_path, shipped_models

ROOT = Path(__file__).parents[1]
WITHOUT_UTF8 = os.fsdecode(b"caf\xe9.png")
TWO_LINES = "two\nlines.png"


@pytest.fixture
def tree(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images in folders of the working directory, and the model ``m``."""
    monkeypatch.chdir(tmp_path)
    Path("m").write_bytes(tiny.read_bytes())
    for i, path in enumerate(("in/a.png", "in/sub/a.PNG", "in/sub/deep/b.png", "in/.hidden/c.png")):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path, "PNG")
    Path("in/notes.txt").write_text("no image")
    Path("in/._a.png").write_text("no image, but what another system keeps beside it")


def picture(seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (5 + seed, 7, 3), dtype=np.uint8))


def below(folder: str, suffix: str) -> list[str]:
    return sorted(str(path) for path in Path(folder).rglob(f"*{suffix}"))


# --- qualities ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tree", "chain_only")
def test_a_quality_is_a_lossy_file_with_the_default_name() -> None:
    """As cwebp and cjxl have it; it was an output called 90, without loss."""
    done("encode in/a.png -q 90 --model m")
    assert below(".", "90") == []
    stops = parse(Path("in/a.dfc").read_bytes()).layers
    assert stops is not None and stops.stops[-1] > 0
    done("encode in/a.png --quality 100 --model m --force")
    assert parse(Path("in/a.dfc").read_bytes()).layers is None
    done("encode in/a.png -q 25 --progressive --model m --force")
    assert decoding.decode(Path("in/a.dfc").read_bytes(), model="m").tobytes() == (
        picture().tobytes()
    )


def test_qualities_of_the_shipped_model_are_those_of_the_manual() -> None:
    info = model_info(model_path(DEFAULT_MODEL))
    levels = info.plans[info.lossy_plan("default")].levels
    manual = (ROOT / "docs" / "cli.md").read_text().split("### Qualities")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in manual.splitlines() if line[:3].strip("| ")]
    rows = [row for row in rows if row[0].isdigit() and row[0] != "100"]
    assert len(rows) == 8
    for quality, sigma, timestep, *_ in rows:
        assert quality_timestep(int(quality), levels) == int(timestep)
        assert levels[int(timestep) - 1] == pytest.approx(float(sigma), abs=0.01)
    timesteps = [quality_timestep(quality, levels) for quality in range(100)]
    assert timesteps == sorted(timesteps, reverse=True)


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-q 101", "--quality"),
        ("-q -1", "--quality"),
        ("-q high", "--quality"),
        ("-q 50 --psnr 30", "exclude each other"),
        ("out", "the output out has no suffix; if that is meant, give it by --output out"),
        ("folder/out", "no suffix"),
        ("--bpp 0", "--bpp"),
        ("--bpp nan", "--bpp"),
        ("--bpp inf", "--bpp"),
        ("--psnr -3", "--psnr"),
        ("--psnr nan", "--psnr"),
        ("-r -o out.dfc", "--output names one file"),
    ],
)
def test_wrong_usage(arguments: str, message: str) -> None:
    result = run(f"encode in/a.png {arguments} --model m")
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    assert below(".", "out") == below(".", ".dfc") == []


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize("option", ["--minutes", "--learning-rate"])
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_numbers_of_train(option: str, value: str) -> None:
    result = run(f"train --data in --out run {option} {value}")
    assert (result.exit_code, option in result.stderr) == (2, True)
    assert run("train --data in --out run --self-ensemble-up-to nan").exit_code == 2


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("size", "limits", "option"),
    [
        ((9, 9), "--max-pixels 80", "--max-pixels 81"),
        ((9, 1), "--max-side 8", "--max-side 9"),
        ((2**20 + 1, 1), "", f"--max-side {2**20 + 1}"),
        ((9, 9), "--max-memory 1", "--max-memory 8192"),
    ],
)
def test_a_limit_is_raised_by_the_option_that_the_message_names(
    size: tuple[int, int], limits: str, option: str
) -> None:
    Image.new("1", size).save("a.png")
    advice = f"; raise {option.partition(' ')[0]} if you trust the source\n"
    result = run(f"encode a.png a.dfc --model m {limits}")
    assert (result.exit_code, advice in result.stderr) == (1, True)
    done(f"encode a.png a.dfc --force --model m {option}")
    result = run(f"decode a.dfc b.png {limits}")
    if "memory" not in option:
        assert result.exit_code == 3
        assert advice in result.stderr
        done(f"decode a.dfc b.png {option}")


@pytest.mark.usefixtures("tree")
def test_other_limits_have_options_too() -> None:
    image = picture().resize((600, 8))
    halves = [
        raw_tile(image.crop((x, y, x + width, y + height)))
        for x, y, width, height in tile_grid(*image.size)
    ]
    metadata = {"x-note": bytes((1 << 20) + 1)}
    container = Container("RGB", 600, 8, bytes(4), False, metadata, tuple(halves))
    Path("a.dfc").write_bytes(pack(container))
    for option in ("--max-tiles", "--max-metadata"):
        result = run(f"verify a.dfc {option} 1")
        assert (result.exit_code, f"; raise {option} if you" in result.stderr) == (3, True)
        done(f"verify a.dfc {option} 2")


@pytest.mark.usefixtures("tree", "chain_only")
def test_max_bytes() -> None:
    done("encode in/a.png plain.dfc --model m")
    done("encode in/a.png previews.dfc --progressive --model m")
    for name in ("plain", "previews"):
        size = Path(f"{name}.dfc").stat().st_size
        for i, count in enumerate((size, size + 1, 999999999999, 10**30)):
            done(f"decode {name}.dfc {name}{i}.png --max-bytes {count} --model m")
            with Image.open(f"{name}{i}.png") as image:
                assert image.tobytes() == picture().tobytes()
    result = run("decode plain.dfc new.png --max-bytes 60 --model m")
    assert result.exit_code == 1
    assert "plain.dfc: it has no previews, so its beginning shows nothing" in result.stderr
    assert run("decode plain.dfc new.png --max-bytes 3 --model m").exit_code == 3
    Path("cut.dfc").write_bytes(Path("plain.dfc").read_bytes()[:60])
    assert "ends early" in run("decode cut.dfc new.png --max-bytes 61 --model m").stderr


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize("path", ["in/notes.txt", "./in/notes.txt", "in/../in/notes.txt"])
def test_a_model_that_fails_is_named_once(path: str) -> None:
    for command in ("encode in/a.png a.dfc", "info a.dfc", "evaluate --data in"):
        result = run(f"{command} --model {path}")
        assert result.exit_code == 4
        assert result.stderr.startswith(f"diffcodec: {path}: not a diffcodec model file (")
        assert result.stderr.count("notes.txt") == 1


@pytest.mark.usefixtures("tree", "chain_only")
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_lossy_images_to_lossy_formats(mode: str) -> None:
    picture().convert(mode).save("a.png")
    done("encode a.png lossy.dfc -q 75 --model m")
    done("encode a.png exact.dfc --progressive --model m")
    for suffix in ("jpg", "webp"):
        done(f"decode lossy.dfc lossy.{suffix} --model m")
        done(f"decode exact.dfc exact.{suffix} --timestep 3 --model m")
        result = run(f"decode exact.dfc new.{suffix} --model m")
        assert (result.exit_code == 0) == (suffix == "webp" and mode == "RGB")
    done("decode lossy.dfc lossy.png --model m")
    with Image.open("lossy.png") as png, Image.open("lossy.webp") as webp:
        assert webp.tobytes() == png.convert("RGB").tobytes()
    with Image.open("lossy.jpg") as jpeg, Image.open("lossy.png") as png:
        assert (jpeg.mode, jpeg.size) == (mode, png.size)
    assert not Path("new.jpg").exists()


# --- help and completion --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, *cli.commands])
def test_examples_of_the_help_are_right(name: str | None) -> None:
    text = done(f"{name or ''} --help").stdout
    lines = re.findall("^    diffcodec .*|^  diffcodec .*", text, re.M)
    assert lines
    for line in lines:
        _, command, *arguments = shlex.split(line)
        assert name in (None, command)
        parent = click.Context(cli, **cli.context_settings)
        cli.commands[command].make_context(command, arguments, parent)


def test_help_has_groups_and_every_option_once() -> None:
    titles = re.findall(r"^(\w+):$", done("--help").stdout, re.M)
    assert titles == ["Options", "Images", "Archives", "Models", "Diffusion"]
    for name, command in cli.commands.items():
        text = done(f"{name} --help").stdout
        for param in command.params:
            if isinstance(param, click.Option):
                assert len(re.findall(rf"^  .*{param.opts[-1]}\b(?!-)", text, re.M)) >= 1
        assert text.count("\n  -h, --help ") == 1
    titles = re.findall(r"^(\w[\w ]+):$", done("encode --help").stdout, re.M)
    assert titles == [
        *("Quality", "Files", "Previews", "Models", "Messages", "Machine", "For experts", "Limits")
    ]


def test_models_as_json() -> None:
    said = [json.loads(line) for line in done("models --json").stdout.splitlines()]
    assert [model["name"] for model in said if model["default"]] == [DEFAULT_MODEL]
    assert all(model["timesteps"]["default"] > 1 for model in said)
    assert {model["name"] for model in said} == {path.stem for path in shipped_models()}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("enc", "plain,encode\n"),
        ("encode --effort b", "plain,best\n"),
        ("encode --model pho", f"plain,{DEFAULT_MODEL}\nfile,pho\n"),
        ("encode pic", "file,pic\n"),
        ("decode --output-d", "plain,--output-dir\n"),
    ],
)
def test_completion(words: str, found: str) -> None:
    line = f"diffcodec {words}"
    environment = {"_DIFFCODEC_COMPLETE": "bash_complete", "COMP_WORDS": line}
    environment["COMP_CWORD"] = str(len(line.split()) - 1)
    result = CliRunner().invoke(cli, [], prog_name="diffcodec", env=environment)
    assert result.stdout == found


# --- folders and lists ----------------------------------------------------------------------------

CODED = ["out/a.dfc", "out/sub/a.dfc", "out/sub/deep/b.dfc"]


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize("jobs", ["", "--jobs 2"])
def test_a_folder_and_all_below(jobs: str) -> None:
    done(f"encode -r in --output-dir out --model m {jobs}")
    assert below("out", "") == sorted([*CODED, "out/sub", "out/sub/deep"])
    assert done("verify out --recursive").stdout == "".join(f"{path}: OK\n" for path in CODED)
    done("decode -r out --output-dir new/images")
    for i, path in enumerate(("a.png", "sub/a.png", "sub/deep/b.png")):
        with Image.open(f"new/images/{path}") as image:
            assert image.tobytes() == picture(i).tobytes()
    done("encode -r in --model m")  # beside the images
    assert below("in", ".dfc") == ["in/a.dfc", "in/sub/a.dfc", "in/sub/deep/b.dfc"]


@pytest.mark.usefixtures("tree")
def test_folders_that_are_refused() -> None:
    result = run("encode in --output-dir out --model m")
    assert result.exit_code == 1
    advice = "give a file; a folder of inputs with --recursive, of outputs by --output-dir"
    assert result.stderr == f"diffcodec: in: Is a directory; {advice}\n"
    Path("empty").mkdir()
    result = run("encode -r empty --model m")
    assert result.exit_code == 1
    assert "empty: it holds no files of .bmp, .gif" in result.stderr
    picture().save("in/a.bmp")
    result = run("encode -r in --model m")
    assert result.exit_code == 2
    assert "same output in/a.dfc: in/a.bmp and in/a.png" in result.stderr


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize("between", ["\n", "\r\n", "\0"])
@pytest.mark.parametrize("list_name", ["list", "-"])
def test_a_list_of_files(between: str, list_name: str) -> None:
    data = between.join(["in/a.png", "in/sub/deep/b.png", ""]).encode()
    Path("list").write_bytes(data)
    done(f"encode --files-from {list_name} --output-dir out --model m", data)
    assert below("out", "") == ["out/a.dfc", "out/b.dfc"]
    result = run("encode --files-from missing")
    assert (result.exit_code, result.stderr.split(": ")[1]) == (1, "missing")
    assert run("encode --files-from /dev/null").exit_code == 2


@pytest.mark.usefixtures("tree", "chain_only")
def test_small_images_share_batches_and_files_are_as_each_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An image that fails costs the others nothing, nor their place."""
    together: list[int] = []
    plain = many.encode_many

    def encode_many(images: list[Image.Image], *arguments: object, **options: object) -> object:
        together.append(len(images))
        return plain(images, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(many, "encode_many", encode_many)
    Path("in/none.png").write_bytes(b"none")
    paths = ["in/a.png", "in/none.png", "in/sub/a.PNG", "in/sub/deep/b.png"]
    Path("list").write_text("\n".join(paths))
    Path("in/sub/a.PNG").rename("in/sub/c.png")
    Path("list").write_text(Path("list").read_text().replace("sub/a.PNG", "sub/c.png"))
    result = run("encode --files-from list --output-dir out --json --model m")
    assert result.exit_code == 1
    said = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["input"] for line in said] == Path("list").read_text().splitlines()
    assert together == [3]
    for i, name in enumerate(("a", "c", "b")):
        assert Path(f"out/{name}.dfc").read_bytes() == encoding.encode(picture(i), "m")


@pytest.mark.usefixtures("tree", "chain_only")
def test_small_files_are_decoded_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that fails costs the others nothing; one with previews is decoded by itself."""
    together: list[int] = []
    plain = many.decode_together

    def decode_together(files: Sequence[OpenFile], *arguments: object) -> object:
        together.append(len(files))
        return plain(files, *arguments)  # type: ignore[arg-type]

    for i in range(6):
        options = {"timestep": 2} if i == 4 else {}
        data = encoding.encode(picture(i), "m", **options)  # type: ignore[arg-type]
        Path(f"{i}.dfc").write_bytes(data if i != 1 else b"none")
    monkeypatch.setattr(many, "decode_together", decode_together)
    result = run("decode 0.dfc 1.dfc 2.dfc 3.dfc 4.dfc 5.dfc --output-dir out --model m")
    assert (result.exit_code, below("out", "")) == (3, [f"out/{i}.png" for i in (0, 2, 3, 4, 5)])
    assert "4.dfc -> out/4.png: timestep 2, " in result.stderr
    for i in (0, 2, 3, 5):
        with Image.open(f"out/{i}.png") as image:
            assert image.tobytes() == picture(i).tobytes()
    assert together == [3]
    damaged = bytearray(Path("2.dfc").read_bytes())
    damaged[-6] ^= 1
    Path("2.dfc").write_bytes(damaged)
    result = run("decode 0.dfc 2.dfc 3.dfc --output-dir out --force --model m")
    assert (result.exit_code, result.stderr.count("2.dfc: ")) == (3, 1)
    assert "diffcodec: 1 of 3 inputs failed: 2.dfc" in result.stderr
    assert result.stderr.count(" -> ") == 2


# --- names and modes ------------------------------------------------------------------------------


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize("name", [WITHOUT_UTF8, TWO_LINES, "\x1b[31mred.png", "- .png"])
def test_names_of_any_bytes(name: str) -> None:
    Path("in/a.png").rename(f"in/{name}")
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in f"in/{name}")
    coded, shown_coded = f"in/{name[:-4]}.dfc", f"{shown[:-4]}.dfc"
    assert done(f"encode --model m {shlex.quote(f'in/{name}')}").stderr.startswith(
        f"{shown} -> {shown_coded}: "
    )
    good = shlex.quote(coded)
    for command in ("verify", "verify --structure"):
        assert done(f"{command} {good} {good}").stdout == 2 * f"{shown_coded}: OK\n"
    assert done(f"info {good}").stdout.startswith(f"{shown_coded}\n")
    assert json.loads(done(f"info --json {good}").stdout)["input"] == coded
    assert json.loads(done(f"encode -f --json --model m {shlex.quote(f'in/{name}')}").stdout)
    Path(coded).write_bytes(b"none")
    result = run(f"verify {good} {good}")
    assert result.exit_code == 3
    assert result.stderr.splitlines()[-1].endswith(f"inputs failed: {shown_coded}, {shown_coded}")
    assert len(result.stderr.splitlines()) == 3


@pytest.mark.usefixtures("tree", "chain_only")
def test_permissions_and_time_are_kept_there_and_back() -> None:
    Path("in/a.png").chmod(0o600)
    os.utime("in/a.png", ns=(10**18, 10**18))
    done("encode in/a.png a.dfc --model m")
    done("decode a.dfc a.png --model m")
    done("show a.dfc --model m")
    done("encode in/a.png b.dfc -q 50 --model m")
    for name in ("a.dfc", "a.png", "a.html", "b.dfc"):
        status = Path(name).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_mtime_ns) == (0o600, 10**18), name


# --- processes ------------------------------------------------------------------------------------


def shell(command: str) -> "subprocess.CompletedProcess[bytes]":
    """In a real shell, as ``diffcodec``."""
    script = f'diffcodec() {{ "{sys.executable}" -m diffcodec "$@"; }}\n{command}'
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(["sh", "-c", script], capture_output=True, env=environment, check=False)


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "2>/dev/full"])
def test_closed_streams_that_are_not_needed(closed: str) -> None:
    """As daemons have them; no message ever gets into a file."""
    result = shell(f"diffcodec encode in/a.png --model m {closed}")
    assert result.returncode == 0, result.stderr
    assert b"Traceback" not in result.stderr
    assert Path("in/a.dfc").read_bytes() == encoding.encode(picture(), "m")


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("command", "stream"),
    [
        ("encode - out.dfc --model m <&-", b"standard input"),
        ("encode in/a.png - --model m >&-", b"standard output"),
        ("models >&-", b"standard output"),
        ("info - <&-", b"standard input"),
    ],
)
def test_closed_streams_that_are_needed(command: str, stream: bytes) -> None:
    result = shell(f"diffcodec {command}")
    assert result.returncode == 1
    assert result.stderr == b"diffcodec: " + stream + (
        b": Bad file descriptor; it is closed; give a file, or connect it to one\n"
    )
    assert shell(f"diffcodec {command} 2>&-").returncode == 1


@pytest.mark.usefixtures("tree")
def test_ctrl_c_ends_a_loop_of_the_shell() -> None:
    """The command dies by the signal, else bash would go on with the next file."""
    os.mkfifo("never")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    loop = f'for i in 1 2 3; do echo $i; "{sys.executable}" -m diffcodec encode never; done'
    code = "import signal, os, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); "
    code += "os.execvp('bash', ['bash', '-c', sys.argv[1]])"
    process = subprocess.Popen(
        [sys.executable, "-c", code, loop],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with process, Path("never").open("wb"):  # it waits for what is never written
        time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert (out, err) == (b"1\n", b"")
