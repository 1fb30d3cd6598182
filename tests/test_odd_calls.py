"""Calls that are a little wrong: each is told what to do, and leaves nothing behind."""

import stat
from pathlib import Path

import numpy as np
import pytest
from commands import done, run
from test_habits import picture, shell, tree

from diffcodec.cli.quality import quality_timestep
from diffcodec.container.reader import parse

assert tree  # a fixture


@pytest.fixture
def files(tree: None) -> None:
    """Beside the tree: an image and its file, an archive, an animation and arrays."""
    picture().save("a.png")
    picture().save("b.gif", save_all=True, append_images=[picture(0).rotate(180)])
    Path("tiny.safetensors").write_bytes(Path("m").read_bytes())
    done("encode a.png a.dfc --model m")
    done("pack a.png a.dfca --model m")
    np.save("five.npy", np.zeros((2, 8, 8, 5), np.uint8))
    np.save("none.npy", np.zeros((0, 8, 8, 3), np.uint8))


EMPTY = "an empty name, expected a path"
CALLS = [  # what is called, its exit code, and what is said
    ("a.png -q 75", 2, "a.png is a file, expected a command before it, such as encode or decode"),
    ("encode ''", 2, EMPTY),
    ("encode a.png ''", 2, EMPTY),
    ("encode a.png new.dfc --model ''", 2, f"'--model': {EMPTY}"),
    ("encode a.png --output-dir ''", 2, f"'--output-dir': {EMPTY}"),
    ("decode a.dfc -o ''", 2, EMPTY),
    ("train --data '' --out new", 2, EMPTY),
    ("pack '' new.dfca", 2, EMPTY),
    ("encode a.png new.jpg", 2, "has the suffix of an image, and the output is a .dfc file"),
    ("encode a.png new.dfc -q nan", 2, "--quality"),
    ("encode a.png new.dfc -q 100 --bpp 3", 2, "exclude each other"),
    ("encode a.png new.dfc --previews x --progressive", 2, "'x' is no list of integers"),
    ("encode a.png new.dfc --frame 2", 1, "expected 0: it is a single image"),
    ("encode b.gif new.dfc --frame 2", 1, "found no frame 2, expected 0 to 1"),
    ("encode in --output-dir in/sub", 1, "a folder of inputs with --recursive"),
    ("encode a.dfc", 1, "it is coded already; give an image, or use decode"),
    ("decode a.png", 3, "not a diffcodec file (it starts with 89 50 4e 47)"),
    ("decode a.dfc new.png --region x", 2, "'x' is no list of integers"),
    ("decode a.dfc new.png --region 1,2", 2, "'1,2' has 2 numbers, expected X,Y,W,H"),
    ("decode a.dfc new.pgm", 1, "new.pgm is for images of mode L, this one is RGB: write .ppm or"),
    ("decode a.dfca new.png", 3, "it is an archive of many images: use ls and extract"),
    ("info a.dfca", 3, "it is an archive of many images: use ls and extract"),
    ("info", 2, "Missing argument 'PATH'"),
    ("pack b.gif new.dfca", 1, "found 2 frames, expected one: split it into files of one each"),
    ("forward b.gif --out new.png", 1, "expected one: split it into files of one each"),
    (
        "pack five.npy new.dfca",
        1,
        "five.npy: an array uint8 [2, 8, 8, 5], expected uint8 [n,",
    ),
    ("pack none.npy new.dfca", 1, "there is no image to write; no archive is made"),
    ("pack nowhere.png new.dfca", 1, "there is no image to write; no archive is made"),
    ("pack - new.dfca", 2, "standard input has no name to be used in an archive"),
    ("ls -", 2, "an archive is a file, no standard stream"),
    ("ls nowhere.dfca", 1, "diffcodec: nowhere.dfca: No such file or directory; check the path"),
    ("unpack a.dfca new.npz", 2, "an array is written as .npy"),
    ("unpack a.dfca a.png", 1, "diffcodec: a.png: it is not a folder"),
    ("forward a.png --out new.png --levels 99999999", 2, "99999999 is above 10000"),
    ("denoise a.png --out new.png --sigma 1e300", 2, "--sigma"),
    ("sample --out new.png --size 8x", 2, "'8x' is no WxH"),
    ("sample --out new.png --guidance 3", 2, "--guidance is towards a --class; give both"),
    ("sample --out new.png --eta 0.5", 2, "--eta is of --sampler ddim; give both"),
    (f"sample --out new.png --seed {1 << 64}", 2, "--seed"),
    ("train --data nowhere --out new", 1, "nowhere: no such folder"),
    ("train --data in --out new --labels nowhere", 1, "nowhere: No such file or directory; check"),
    ("train --data in --out new --expert x", 2, "'x' is no UP_TO[:BLOCKS[:CHANNELS[:PATCH]]]"),
]


@pytest.mark.usefixtures("files")
def test_calls_that_are_a_little_wrong() -> None:
    before = sorted(Path().iterdir())
    for call, code, message in CALLS:
        result = run(call)
        assert (result.exit_code, message in result.stderr) == (code, True), (call, result.stderr)
        assert sorted(Path().iterdir()) == before, call
        assert "python" not in result.stderr.lower() and "Errno" not in result.stderr, call


def test_qualities_between_integers() -> None:
    """As cwebp and cjxl take them."""
    levels = [1.118, 2, 4, 8, 16]
    timesteps = [quality_timestep(quality / 10, levels) for quality in range(1000)]
    assert timesteps == sorted(timesteps, reverse=True)
    assert set(timesteps) == {1, 2, 3, 4, 5}


@pytest.mark.usefixtures("files")
def test_every_quality_is_one_of_progressive_files(phased: Path) -> None:
    """The finest timestep is none of previews."""
    for quality in (99, 90, 0):
        done(f"encode a.png new.dfc --model {phased} --progressive -q {quality} -f")
        layers = parse(Path("new.dfc").read_bytes()).layers
        assert layers and layers.is_exact


@pytest.mark.usefixtures("files")
def test_names_of_standard_streams() -> None:
    """A device or a pipe is written to as it is; it has no suffix, and nothing lies beside it."""
    coded = Path("a.dfc").read_bytes()
    pipes = [
        "cat a.png | diffcodec encode /dev/stdin --model m",
        "diffcodec encode /dev/stdin --model m < a.png",
        "diffcodec encode a.png /dev/stdout --model m > new.dfc; cat new.dfc",
    ]
    for command in pipes:
        assert shell(command).stdout == coded, command
    shown = shell("diffcodec decode a.dfc /dev/stdout | cat").stdout
    assert shown == shell("diffcodec decode a.dfc -").stdout
    assert shell("diffcodec decode a.dfc -o /dev/null").returncode == 0


@pytest.mark.parametrize("command", ["--help", "encode --help", "--version"])
@pytest.mark.parametrize("output", [">/dev/full", ">&-"])
def test_help_that_cannot_be_written(command: str, output: str) -> None:
    result = shell(f"diffcodec {command} {output}")
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stderr
    assert result.stderr.startswith(b"diffcodec: standard output: ")


@pytest.mark.usefixtures("files")
def test_private_files_make_private_files() -> None:
    """Archives and their images, and what is drawn from an image."""
    Path("a.png").chmod(0o600)
    Path("a.png").rename("in/one.png")
    done("pack in new.dfca --model m")
    done("extract new.dfca one.png --output-dir out --model m")
    done("unpack new.dfca all --model m")
    done("denoise in/one.png --sigma 3 --out clean.png --model m")
    for name in ("new.dfca", "out/one.png", "all/sub/a.png", "clean.png"):
        assert stat.S_IMODE(Path(name).stat().st_mode) == 0o600, name
