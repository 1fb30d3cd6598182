"""pack, append, ls, extract, unpack."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from commands import done, run
from PIL import Image
from test_phased_files import same, smooth
from tiny import tiny_model

from diffcodec import open_archive
from diffcodec.cli import finetuning
from diffcodec.errors import DiffcodecError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images of two sizes, in two folders."""
    for k in range(6):
        path = tmp_path / "in" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        smooth(8 + k // 4, 9, seed=k).save(path, dpi=(300, 300))
    return tmp_path


def opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


def sources(folder: Path) -> dict[str, Image.Image]:
    paths = sorted((folder / "in").rglob("*.png"))
    return {path.relative_to(folder / "in").as_posix(): opened(path) for path in paths}


def test_a_folder_goes_in_and_comes_out(folder: Path, tiny: Path) -> None:
    (folder / "labels").write_text('cat\n7\n{"x": 1}\ndog\n\n"9"\n')
    packed, options = folder / "x.dfca", f"--model {tiny} --effort fast"
    command = f"pack {folder}/in {packed} {options} --labels {folder}/labels --json"
    told = json.loads(done(command).stdout)
    assert (told["images"], told["bytes_out"]) == (6, packed.stat().st_size)
    assert told["bytes_in"] == sum(p.stat().st_size for p in folder.rglob("*.png"))
    lines = [json.loads(line) for line in done(f"ls {packed} --json").stdout.splitlines()]
    assert [line["name"] for line in lines] == list(sources(folder))
    assert [line["label"] for line in lines] == ["cat", 7, {"x": 1}, "dog", "", "9"]
    assert done(f"ls {packed}").stdout.splitlines()[1] == "a/2.png\t8x9\tRGB\t7"
    done(f"unpack {packed} {folder}/out --model {tiny}")
    for name, image in sources(folder).items():
        back = opened(folder / "out" / name)
        assert same(back, image)
        assert back.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    result = run(f"unpack {packed} {folder}/out --model {tiny}")
    assert result.exit_code == 1 and "exists already" in result.stderr
    done(f"unpack {packed} {folder}/out --model {tiny} --skip-existing")
    done(f"unpack {packed} {folder}/again --model {tiny} --jobs 2")
    assert len(list((folder / "again").rglob("*.png"))) == 6
    done(f"extract {packed} b/3.png 0 --output-dir {folder}/some --model {tiny}")
    assert {p.name for p in (folder / "some").rglob("*.png")} == {"3.png", "0.png"}
    result = run(f"extract {packed} b/4.png --model {tiny}")
    assert result.exit_code == 1 and "no image 'b/4.png'" in result.stderr


def test_append_goes_on_where_it_was(folder: Path, tiny: Path) -> None:
    packed, options = folder / "x.dfca", f"--model {tiny} --effort fast"
    done(f"pack {folder}/in/a {packed} {options} --embed-model")
    before = packed.read_bytes()
    (folder / "in" / "a" / "bad.png").write_bytes(b"nothing")
    result = run(f"append {packed} {folder}/in/a {folder}/in/b {options} --skip-existing")
    assert result.exit_code == 1 and "3 of 7 outputs exist" in result.stderr
    assert "1 of 7 inputs failed" in result.stderr
    assert packed.read_bytes().startswith(before)
    result = run(f"append {packed} {folder}/in/b {options}")
    assert result.exit_code == 1 and "--skip-existing" in result.stderr
    with open_archive(packed) as archive:
        names = [entry.name for entry in archive.entries()]
        assert names == ["0.png", "2.png", "4.png", "1.png", "3.png", "5.png"]
        assert same(archive["5.png"], opened(folder / "in/b/5.png"))
    result = run(f"append {folder}/y.dfca {folder}/in/b {options}")
    assert result.exit_code == 1 and "make it by pack" in result.stderr


@pytest.mark.parametrize("grey", [False, True])
def test_arrays_go_in_and_come_out(tmp_path: Path, tiny: Path, grey: bool) -> None:
    images = np.stack([np.asarray(smooth(8, 7, "L" if grey else "RGB", k)) for k in range(5)])
    np.save(tmp_path / "x.npy", images)
    packed, options = tmp_path / "x.dfca", f"--model {tiny} --effort fast --group 2"
    done(f"pack {tmp_path}/x.npy {packed} {options} --jobs {1 + grey}")
    assert [line.split("\t")[0] for line in done(f"ls {packed}").stdout.splitlines()] == [*"01234"]
    done(f"unpack {packed} {tmp_path}/y.npy --model {tiny}")
    assert np.array_equal(np.load(tmp_path / "y.npy"), images)
    done(f"append {packed} {tmp_path}/x.npy {options} --skip-existing --quiet")
    assert len(open_archive(packed)) == 5
    np.savez(tmp_path / "z.npz", a=images, b=images[0])
    done(f"append {packed} {tmp_path}/z.npz {options}")
    assert open_archive(packed).entry(-1).name == "z.npz/b/0"
    result = run(f"unpack {packed} {tmp_path}/x.npy --model {tiny}")
    assert result.exit_code == 1 and "exists" in result.stderr


def test_an_archive_is_replaced_only_when_the_new_one_is_whole(folder: Path, tiny: Path) -> None:
    packed, options = folder / "x.dfca", f"--model {tiny} --effort fast"
    packed.write_bytes(b"precious")
    result = run(f"pack {folder}/in {packed} {options}")
    assert result.exit_code == 1 and "--force" in result.stderr
    assert run(f"pack {folder}/in {packed} --force --model {folder}/none").exit_code == 4
    assert packed.read_bytes() == b"precious"
    done(f"pack {folder}/in {packed} {options} --force")
    assert len(open_archive(packed)) == 6
    assert {p.name for p in folder.iterdir()} == {"in", "x.dfca"}
    assert run(f"pack {folder}/in {folder}/in/a/0.png").exit_code == 2
    (folder / "labels").write_text("one\n")
    result = run(f"pack {folder}/in {folder}/y.dfca {options} --labels {folder}/labels")
    assert result.exit_code == 1 and "1 labels for 6 images" in result.stderr
    assert not (folder / "y.dfca").exists()


def test_names_lead_nowhere_else(tmp_path: Path) -> None:
    packed = tmp_path / "x.dfca"
    names = ["../evil.png", "/evil.png", "a/../../evil.png", "..", "", "a\\b", "fine"]
    with open_archive(packed, "x") as archive:
        for name in names:
            archive.append(Image.new("P", (2, 2)), name)
    result = run(f"unpack {packed} {tmp_path}/out/in")
    assert result.exit_code == 3 and result.stderr.count("none of a file") == 6
    found = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {"x.dfca", "out/in/fine.png"}


def test_damage_is_told_and_the_rest_unpacked(folder: Path, tiny: Path) -> None:
    packed = folder / "x.dfca"
    done(f"pack {folder}/in {packed} --model {tiny} --effort fast")
    with open_archive(packed) as archive:
        group = archive.entry("a/4.png").group
    data = bytearray(packed.read_bytes())
    data[group.offset + 30] ^= 1
    packed.write_bytes(data)
    result = run(f"unpack {packed} {folder}/out --model {tiny}")
    assert result.exit_code == 3 and "2 of 6 inputs failed" in result.stderr
    assert len(list((folder / "out").rglob("*.png"))) == 4


def test_when_a_model_pays() -> None:
    assert finetuning.Comparison(10, 2.0, 21).pays_from == 10.5
    for images, saved, text in [
        (11, 2.0, "saves 16 bits an image, .* from 11 images on; here are 11, so the model goes"),
        (10, 2.0, "from 11 images on; here are 10, so they are coded by the model as it was"),
        (10**9, 0.0, "saves nothing"),
        (10**9, -1.0, "saves nothing"),
    ]:
        compared = finetuning.Comparison(images, saved, 21)
        assert compared.pays == (images == 11) and re.search(text, compared.describe())


def test_a_finetuned_model_goes_in_if_it_pays(
    folder: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = finetuning.compare
    monkeypatch.setattr(finetuning, "compare", lambda *a: replace(real(*a), saved_bytes=1e6))
    packed = folder / "x.dfca"
    with mock.patch("diffcodec.training.run.train", trained_in_no_time(tiny)):
        result = done(
            f"pack {folder}/in {packed} --model {tiny} --effort fast --finetune 0.1 --device auto"
        )
    assert "pays from 1 images on" in result.stderr
    with open_archive(packed) as archive:
        assert len(list(archive)) == 6
    assert packed.stat().st_size > tiny.stat().st_size
    result = run(f"pack {folder}/in/a {folder}/in/b {folder}/y.dfca --finetune 1")
    assert result.exit_code == 2 and "one folder" in result.stderr


@pytest.mark.parametrize(
    ("size", "group", "groups"), [((8, 9), 64, [5]), ((8, 9), 2, [2, 2, 1]), ((64, 48), 4, [1] * 5)]
)
def test_models_are_compared_by_groups_as_of_the_archive(
    tiny: Path, size: tuple[int, int], group: int, groups: list[int]
) -> None:
    images = [smooth(*size, seed=k) for k in range(5)]
    with (
        mock.patch("diffcodec.archive.coding.encode_images", return_value=b"") as encoded,
        mock.patch("diffcodec.codec.encoding.load_planned") as loaded,
    ):
        finetuning.compare(images, 5, str(tiny), tiny, "fast", group, True, "auto")
    assert [len(call.args[0]) for call in encoded.call_args_list] == 2 * groups
    assert all(call.kwargs["adapt"] for call in encoded.call_args_list)
    assert [call.args[1:] for call in loaded.call_args_list] == 2 * [("fast", "auto")]


def test_crops_of_finetuning_are_those_that_the_network_takes(tmp_path: Path) -> None:
    coarse = tiny_model(tmp_path, arithmetic="float", patch=16)
    for side, crop in ((40, 32), (100, 64)):
        with mock.patch("diffcodec.training.run.train") as train:
            finetuning.finetune("in", str(coarse), 1, tmp_path / "run", side, True, "cpu")
        assert train.call_args.kwargs["crop"] == crop
    with pytest.raises(DiffcodecError, match=r"24 pixels are too small .* expected 32 or more"):
        finetuning.finetune("in", str(coarse), 1, tmp_path / "run", 24, True, "cpu")


def trained_in_no_time(model: Path) -> Callable[..., Path]:
    """A stand-in for training: another model of the same shape, if it is asked for rightly."""

    def train(
        data: str, out: Path, *, init: str, minutes: float, crop: int, device: str, **_: Any
    ) -> Path:
        found = (Path(data).name, init, minutes, crop, device)
        assert found == ("in", str(model), 0.1, 8, "auto")
        out.mkdir()
        return tiny_model(out, seed=1, name="model")

    return train


KILLED = """
import sys
from unittest import mock
from diffcodec.archive import writing
from diffcodec.cli import main

writing.INDEX_SECONDS = writing.INDEX_SHARE = 0
main()
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
def test_a_command_that_is_killed_leaves_what_was_complete(
    tmp_path: Path, tiny: Path, how: str
) -> None:
    images = np.stack([np.asarray(smooth(8, 7, seed=k)) for k in range(16)])
    np.save(tmp_path / "x.npy", np.tile(images, (250, 1, 1, 1)))
    packed = tmp_path / "x.dfca"
    options = ["--model", tiny, "--effort", "fast", "--group", "2", "--quiet"]
    command = [sys.executable, "-c", KILLED, "pack", tmp_path / "x.npy", packed, *options]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
    try:
        deadline = time.monotonic() + 120
        while not packed.exists() or packed.stat().st_size < 2500:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process.pid, getattr(signal, how))
        process.wait()
    assert process.returncode == -getattr(signal, how)
    with open_archive(packed, model=tiny) as archive:
        assert 2 <= len(archive) < 4000
        assert all(same(archive[k], Image.fromarray(images[k % 16])) for k in range(len(archive)))


def test_labels_that_json_cannot_hold_are_texts(folder: Path, tiny: Path) -> None:
    lines = ["NaN", "1e999", "[" * 4000, '"a\u2028b"', "-Infinity", "{}"]
    (folder / "labels").write_text("\n".join(lines) + "\n", encoding="utf-8")
    done(f"pack {folder}/in {folder}/x.dfca --model {tiny} --effort fast --labels {folder}/labels")
    with open_archive(folder / "x.dfca", model=tiny) as archive:
        labels = [entry.label for entry in archive.entries()]
    assert labels == [*lines[:3], "a\u2028b", "-Infinity", {}]


def test_no_empty_archive_is_left(folder: Path, tiny: Path) -> None:
    packed = folder / "x.dfca"
    command = f"pack {folder}/in {packed} --model {tiny} --effort fast"
    result = run(f"{command} --adapt")
    assert result.exit_code == 1 and "no phases that could be adapted" in result.stderr
    assert not packed.exists()
    with open_archive(packed, "x"):
        pass
    assert run(command).exit_code == 1 and packed.exists()  # somebody else's


def test_images_of_one_name_come_out_as_several(folder: Path, tiny: Path) -> None:
    pictures = folder / "alike"
    pictures.mkdir()
    for k, name in enumerate(("x.png", "x.bmp", "x.png.png")):
        smooth(8, 9, seed=k).save(pictures / name)
    done(f"pack {pictures} {folder}/x.dfca --model {tiny} --effort fast")
    with open_archive(folder / "x.dfca", "a", model=tiny, plan="fast") as archive:
        archive.append(smooth(8, 9, seed=3), "x.bmp")
    for command in (
        "unpack {} {}",
        "unpack {} {} -j 2",
        "extract {} 3 x.png x.bmp 2 --output-dir {}",
    ):
        out = folder / f"out{len(command)}"
        done(f"{command.format(folder / 'x.dfca', out)} --model {tiny} --force")
        found = [opened(path).tobytes() for path in out.iterdir()]
        assert sorted(found) == sorted(smooth(8, 9, seed=k).tobytes() for k in range(4))


def test_an_array_has_no_palettes(folder: Path, tiny: Path) -> None:
    pictures = folder / "palettes"
    pictures.mkdir()
    smooth(8, 9).convert("P").save(pictures / "x.png")
    done(f"pack {pictures} {folder}/x.dfca --model {tiny} --effort fast")
    result = run(f"unpack {folder}/x.dfca {folder}/x.npy --model {tiny}")
    assert result.exit_code == 1 and "images with palettes" in result.stderr
    assert not (folder / "x.npy").exists()


def test_an_archive_of_arrays_by_any_suffix(folder: Path, tiny: Path) -> None:
    np.savez(folder / "x.npz", a=np.asarray(smooth(8, 9))[None])
    (folder / "x.npz").rename(folder / "X.NPZ")
    done(f"pack {folder}/X.NPZ {folder}/x.dfca --model {tiny} --effort fast")
    with open_archive(folder / "x.dfca", model=tiny) as archive:
        assert same(archive[0], smooth(8, 9))
    np.savez(folder / "none.npz")
    result = run(f"pack {folder}/none.npz {folder}/y.dfca --model {tiny}")
    assert result.exit_code == 1 and "no image" in result.stderr
    assert not (folder / "y.dfca").exists()
