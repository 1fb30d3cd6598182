"""Evaluating a model: the bound and its parts image by image, and the bytes of whole files."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import diffcodec
from diffcodec.cli import evaluate as command
from diffcodec.cli.program import cli
from diffcodec.codec import encoding
from diffcodec.diffusion.bound import chain_bound_bits
from diffcodec.diffusion.color import to_domain
from diffcodec.diffusion.plan import Plan, geometric_plan
from diffcodec.diffusion.variances import VARIANCES
from diffcodec.errors import DiffcodecError, UnsupportedError
from diffcodec.evaluation.measure import (
    Evaluation,
    bound_bits,
    evaluate,
    find_plan,
    groups,
    open_image,
    torch_posterior,
)
from diffcodec.evaluation.summary import format_summary, summarise
from diffcodec.models.export import serialise_float_model
from diffcodec.models.model import load_model
from diffcodec.networks.config import one_network
from diffcodec.networks.experts import ExpertDenoisers
from diffcodec.training.data import hold_out, read_rgb
from diffcodec.training.pictures import draw_split

SIZES = [(12, 8), (8, 12), (12, 8), (5, 7)]


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny)


def picture(i, size, grey=False):
    y, x = np.mgrid[: size[1], : size[0]]
    rgb = np.stack([x * 9 + 20 * i, y * 7, (x * y + i) % 256], -1).astype("u1")
    return Image.fromarray(rgb[:, :, 2] if grey else rgb)


@pytest.fixture
def folder(tmp_path):
    for i, size in enumerate(SIZES):
        picture(i, size, grey=i == 3).save(tmp_path / f"{i}.png")
    return tmp_path


def seeded():
    return torch.Generator().manual_seed(0)


def test_images_are_opened_as_rgb_or_grey(tmp_path):
    color, grey = picture(1, (6, 4)), picture(1, (6, 4), grey=True)
    saved = {
        "rgb": color,
        "grey": grey,
        "both": grey.convert("RGB"),
        "alpha": color.convert("RGBA"),
    }
    modes = {"rgb": "RGB", "grey": "L", "both": "L", "alpha": "RGB"}
    for name, image in saved.items():
        path = tmp_path / f"{name}.png"
        image.save(path)
        for source in (path, read_rgb(path)):
            opened = open_image(source, "ycocg")
            assert (opened.mode, opened.size) == (modes[name], (6, 4))
            assert opened.tobytes() == image.convert(opened.mode).tobytes()
            assert open_image(source, "rgb").mode == "RGB"  # no chain of grey images there


def test_bound_of_an_image_of_one_tile_is_the_chains(model):
    images = [picture(i, (12, 8)) for i in range(3)]
    plan = model.plans["fast"]
    arrays = [np.asarray(image).transpose(2, 0, 1).astype(np.int16) for image in images]
    x = torch.from_numpy(to_domain(np.stack(arrays), model.color).astype(np.float64))
    expected = chain_bound_bits(torch_posterior(model), x, model.color, plan, seeded()) * 12 * 8 * 3
    found = bound_bits(model, images, plan, seeded())
    np.testing.assert_allclose(np.stack(found), expected.numpy(), rtol=1e-9)


@pytest.mark.parametrize("arithmetic", ["integer", "float"])
@pytest.mark.parametrize("grey", [False, True])
def test_bound_of_a_model_with_phases_is_of_phases(phased, arithmetic, grey):
    model, image = load_model(phased, arithmetic), picture(0, (24, 16), grey)
    [found] = bound_bits(model, [image], model.plans["default"], seeded())
    rgb = np.asarray(image.convert("RGB")).transpose(2, 0, 1).astype(np.int16)
    x = torch.from_numpy(to_domain(rgb, model.color)[None]).double()
    same = (x, model.color, model.plans["default"])
    coded = 1 if grey else 3
    network = load_model(phased, "float")
    with torch.inference_mode():
        alone, in_phases = (
            chain_bound_bits(torch_posterior(network), *same, seeded(), coded=coded, phased=phases)[
                0
            ].numpy()
            * (24 * 16 * coded)
            for phases in (None, network.module.phased)
        )
    assert found.tolist() == pytest.approx(in_phases.tolist(), rel=0.01)
    assert (abs(found - alone)[:2] > 0.015 * found[:2]).all()


def test_plans_of_a_model_with_phases_begin_at_its_quantiser(phased):
    plan = find_plan(load_model(phased, "float"), "fast", 5)
    assert plan.quantiser == 8 and len(plan.levels) == 5


def test_bound_of_tiles_adds_up(model, monkeypatch):
    """Two tiles, each half of the image, and the second repeats the first."""
    image = picture(0, (16, 8))
    image.paste(image.crop((0, 0, 8, 8)), (8, 0))
    monkeypatch.setattr("diffcodec.container.parts.TILE_SIDE", 8)
    plan = model.plans["fast"]
    whole = bound_bits(model, [image], plan, seeded())[0].sum()
    half = bound_bits(model, [image.crop((0, 0, 8, 8))], plan, seeded())[0].sum()
    assert whole == pytest.approx(2 * half, rel=0.1)


def test_tiles_go_through_the_network_by_as_many_as_memory_allows(model, monkeypatch):
    sizes = []

    def counted(posterior, x, *rest, **named):
        sizes.append(len(x))
        return chain_bound_bits(posterior, x, *rest, **named)

    monkeypatch.setattr("diffcodec.evaluation.measure.chain_bound_bits", counted)
    monkeypatch.setattr("diffcodec.container.parts.TILE_SIDE", 8)
    images, plan = [picture(0, (24, 8)), picture(1, (16, 8))], model.plans["fast"]
    together = bound_bits(model, images, plan, seeded())
    monkeypatch.setattr("diffcodec.evaluation.measure.BATCH_PIXELS", 2 * 8 * 8)
    apart = bound_bits(model, images, plan, seeded())
    assert sizes == [5, 2, 2, 1]
    for bits, others in zip(apart, together, strict=True):
        assert bits.sum() == pytest.approx(others.sum(), rel=0.1)  # with other noise


@pytest.mark.parametrize("name", ["tiny", "tiny_float"])
def test_evaluation_of_images_of_several_sizes(name, folder, request):
    path = request.getfixturevalue(name)
    model = load_model(path, "integer" if name == "tiny" else "float")
    sources = sorted(folder.glob("*.png"))
    results = list(evaluate(model, sources, model.plans["fast"], files_plan="fast"))
    assert [(r.width, r.height) for r in results] == SIZES
    assert [r.channels for r in results] == [3, 3, 3, 1]
    assert [r.name for r in results] == [str(source) for source in sources]
    for result, source in zip(results, sources, strict=True):
        with Image.open(source) as image:
            assert result.file_bytes == len(encoding.encode(image, model, "fast"))
        assert result.parts_bits.shape == (len(model.plans["fast"].levels) + 1,)
        assert result.dimensions == result.width * result.height * result.channels
        assert result.file_bpd == 8 * result.file_bytes / result.dimensions
    again = list(evaluate(model, sources, model.plans["fast"]))
    assert [r.file_bytes for r in again] == [None] * 4
    for first, second in zip(results, again, strict=True):
        np.testing.assert_array_equal(first.parts_bits, second.parts_bits)


def test_groups_are_bounded(monkeypatch):
    monkeypatch.setattr("diffcodec.evaluation.measure.BATCH_PIXELS", 200)
    images = [Image.new("L", size) for size in [(10, 9), (10, 9), (10, 9), (50, 9), (1, 1)]]
    found = [(first, len(group)) for first, group in groups(images)]
    assert found == [(0, 2), (2, 1), (3, 1), (4, 1)]
    assert list(groups([])) == []


@pytest.mark.parametrize("variance", VARIANCES)
def test_variance_of_the_bound(model, variance):
    images, plan = [picture(0, (12, 8))], model.plans["fast"]
    [parts] = bound_bits(model, images, plan, seeded(), variance)
    array = np.asarray(images[0]).transpose(2, 0, 1).astype(np.int16)
    x = torch.from_numpy(to_domain(array, model.color).astype(np.float64))[None]
    posterior = torch_posterior(model)
    expected = chain_bound_bits(posterior, x, model.color, plan, seeded(), variance)
    np.testing.assert_allclose(parts / (12 * 8 * 3), expected.numpy()[0], rtol=1e-9)


@pytest.fixture
def labelled(tmp_path):
    """A float model that says something else of each of two classes."""
    config = one_network(channels=(8, 8), blocks=(1, 1), patch=2, embedding=16, classes=2)
    torch.manual_seed(0)
    network = ExpertDenoisers(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    with torch.no_grad():
        network.experts[0].embed_label.weight[:] = torch.tensor([0.0, 5.0, -5.0])[:, None]
    path = tmp_path / "labelled.safetensors"
    path.write_bytes(serialise_float_model(network, {"fast": geometric_plan(4)}, {}))
    return path


def test_labels_of_the_bound(labelled):
    model = load_model(labelled, "float")
    images, plan = [picture(i, size) for i, size in enumerate(SIZES[:3])], model.plans["fast"]

    def bits(labels):
        return [parts.sum() for parts in bound_bits(model, images, plan, seeded(), labels=labels)]

    none, zero, one = (bits([label] * 3) for label in (-1, 0, 1))
    assert bits(None) == pytest.approx(none, rel=1e-6)
    assert bits([0, 1, -1]) == pytest.approx([zero[0], one[1], none[2]], rel=1e-6)
    assert len({*none, *zero, *one}) == 9


def results_of(*rows):
    return [
        Evaluation(str(i), 2, 2, 1, np.array(parts), size) for i, (parts, size) in enumerate(rows)
    ]


def test_summary():
    plan = Plan((0.5, 1.25, 600.0), (1.0, 1.0))
    rows = [((4.0, 8.0, 2.0, 0.0), 3), ((8.0, 8.0, 6.0, 0.0), 5), ((0.0, 2.0, 2.0, 4.0), 4)]
    summary = summarise(results_of(*rows), plan)
    bpd = [14 / 4, 22 / 4, 8 / 4]
    assert summary["images"] == 3 and summary["file_bytes"] == 12
    assert summary["bound_bpd"]["mean"] == pytest.approx(sum(bpd) / 3)
    half = 1.96 * np.std(bpd, ddof=1) / math.sqrt(3)
    assert summary["bound_bpd"]["half_width"] == pytest.approx(half)
    assert summary["file_bpd"]["mean"] == pytest.approx((6 + 10 + 8) / 3)
    assert [(p["part"], p["sigma"], p["bpd"]) for p in summary["parts"]] == [
        ("p(x | z_1)", 0.5, pytest.approx(1.0)),
        ("p(z_1 | z_2)", 1.25, pytest.approx(1.5)),
        ("p(z_2 | z_3)", 600.0, pytest.approx(5 / 6)),
        ("p(z_3)", None, pytest.approx(1 / 3)),
    ]
    text = format_summary(summary)
    assert f"{sum(bpd) / 3:.4f} +- {half:.4f} bits per dimension" in text
    assert "12 bytes" in text and "3 images" in text


def test_summary_of_one_image_without_files():
    summary = summarise(results_of(((1.0, 1.0, 2.0), None)), Plan((0.5, 1.25), (1.0,)))
    assert summary["bound_bpd"] == {"mean": 1.0, "half_width": None}
    assert "file_bpd" not in summary
    assert "+-" not in format_summary(summary) and "bytes" not in format_summary(summary)


@pytest.mark.parametrize("timesteps", [4, 100])
def test_picture_of_the_split(tmp_path, timesteps):
    pytest.importorskip("matplotlib")
    plan = geometric_plan(timesteps)
    draw_split([0.1] * (timesteps + 1), plan.levels, tmp_path / "split")
    with Image.open(tmp_path / "split") as image:
        assert image.format == "PNG" and np.ptp(np.asarray(image.convert("L"))) > 100


def test_plans(model):
    assert find_plan(model, "fast") == model.plans["fast"]
    assert find_plan(model, "fast", 9) == geometric_plan(9)
    with pytest.raises(UnsupportedError, match="no plan 'none' in this model; it has fast"):
        find_plan(model, "none")


def test_plans_of_lossy_files_have_no_bound(phased, folder):
    with pytest.raises(UnsupportedError, match="have no bound; give one of fast, default"):
        diffcodec.evaluate(folder, phased, "lossy")


def test_an_image_that_cannot_be_read(model, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(DiffcodecError, match=r"a\.png: not readable as an image"):
        list(evaluate(model, [tmp_path / "a.png"], model.plans["fast"]))


# --- the command ----------------------------------------------------------------------------------


def run(*arguments):
    result = CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def evaluated(*arguments):
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_the_command(folder, tiny, tmp_path):
    picture_path = tmp_path / "split.out"
    common = ("--data", folder, "--model", tiny, "--effort", "fast", "--quiet")
    found = evaluated(*common, "--picture", picture_path)
    model = load_model(tiny)
    results = list(
        evaluate(model, sorted(folder.glob("*.png")), model.plans["fast"], files_plan="fast")
    )
    expected = summarise(results, model.plans["fast"])
    assert expected.items() <= found.items()
    assert found["results"] == [result.to_dict() for result in results]
    assert (found["id"], found["arithmetic"]) == (model.info.id.hex(), "integer")
    with Image.open(picture_path) as image:
        assert image.format == "PNG"
    assert run(*common).stdout == format_summary(expected) + "\n"


def test_some_images_of_an_array(tiny, tmp_path):
    images = np.stack([np.asarray(picture(i, (8, 8))) for i in range(45)])
    np.save(tmp_path / "x.npy", images)
    common = ("--data", tmp_path / "x.npy", "--model", tiny, "--effort", "fast", "--bound-only")
    assert [r["image"] for r in evaluated(*common, "--limit", 2)["results"]] == ["00000", "00001"]
    held_out = evaluated(*common, "--held-out")
    assert held_out["images"] == len(hold_out(range(45))[1]) == 2
    np.save(tmp_path / "x.npy", images[[10, 30]])
    assert [r["bound_bpd"] for r in evaluated(*common)["results"]] == [
        r["bound_bpd"] for r in held_out["results"]
    ]


def test_more_timesteps_than_the_plans(folder, tiny):
    found = evaluated("--data", folder, "--model", tiny, "--timesteps", 12, "--limit", 2)
    assert found["arithmetic"] == "float" and "file_bpd" not in found
    levels = [part["sigma"] for part in found["parts"][:-1]]
    assert levels == list(geometric_plan(12).levels)


def test_other_variances(folder, tiny):
    bounds = [
        evaluated("--data", folder, "--model", tiny, "--variance", v, "--limit", 1)["bound_bpd"]
        for v in VARIANCES
    ]
    assert len({b["mean"] for b in bounds}) == 3


def test_labels_of_images(folder, labelled):
    (folder / "labels.txt").write_text("0\n1\n1\n0\n")
    common = ("--data", folder, "--model", labelled, "--effort", "fast", "--bound-only")
    with_labels = evaluated(*common, "--labels", folder / "labels.txt")
    assert with_labels["bound_bpd"] != evaluated(*common)["bound_bpd"]
    (folder / "labels.txt").write_text("0\n1\n")
    result = run(*common, "--labels", folder / "labels.txt")
    assert result.exit_code == 1 and "2 labels for 4 images; give one for each" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--data", "missing"), 1, "missing: no such folder"),
        (("--data", ".", "--model", "missing"), 4, "missing: no model 'missing'"),
        (("--data", ".", "--limit", "0"), 2, "--limit"),
        (("--data", ".", "--timesteps", "1"), 2, "--timesteps"),
        (("--data", ".", "--picture", "no/such.png"), 1, "there is no folder no"),
        (("--data", ".", "--labels", "labels.txt"), 1, "labels for a network without classes"),
    ],
)
def test_bad_input(folder, tiny, monkeypatch, arguments, code, message):
    monkeypatch.chdir(folder)
    Path("labels.txt").write_text("0\n" * 4)
    model = () if "--model" in arguments else ("--model", tiny)
    result = run(*arguments, *model)
    assert result.exit_code == code
    assert message in result.stderr and result.stdout == ""


def test_pictures_overwrite_what_they_may_alone(folder, tiny, tmp_path):
    pytest.importorskip("matplotlib")
    Path(tmp_path / "m.safetensors").write_bytes(tiny.read_bytes())
    Path(tmp_path / "labels.txt").write_text("0\n" * 4)
    Path(tmp_path / "old.png").write_text("old")
    common = ("--data", folder / "0.png", "--model", tmp_path / "m.safetensors", "--bound-only")
    refused = run(*common, "--picture", tmp_path / "old.png")
    assert refused.exit_code == 1 and "--force" in refused.stderr
    refused = run(*common, "--picture", "-")
    assert refused.exit_code == 2 and "expected the path of a file" in refused.stderr
    for name in ("0.png", "m.safetensors", "labels.txt"):
        before = (tmp_path / name).read_bytes()
        options = ("--labels", tmp_path / "labels.txt", "--picture", tmp_path / name, "--force")
        refused = run(*common, *options)
        assert refused.exit_code == 1 and "is the input itself" in refused.stderr, name
        assert (tmp_path / name).read_bytes() == before
    refused = run("--data", folder, *common[2:], "--picture", tmp_path / "2.png", "--force")
    assert refused.exit_code == 1 and "is the input itself" in refused.stderr
    assert run(*common, "--picture", tmp_path / "old.png", "--force").exit_code == 0
    with Image.open(tmp_path / "old.png") as image:
        assert image.format == "PNG"


def test_a_picture_that_fails_leaves_the_results_and_the_old_one(folder, tiny, monkeypatch):
    pytest.importorskip("matplotlib")
    (folder / "old").write_text("old")

    def failing(parts, levels, stream):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffcodec.training.pictures.draw_split", failing)
    options = ("--model", tiny, "--bound-only", "--picture", folder / "old", "--force")
    result = run("--data", folder / "0.png", *options)
    assert result.exit_code == 1 and "bits per dimension" in result.stdout
    assert (folder / "old").read_text() == "old"


def test_what_is_no_finite_number_is_null(folder, tiny, monkeypatch):
    monkeypatch.setattr("diffcodec.evaluation.measure.ode_bits", lambda *_, **__: math.nan)
    found = evaluated("--data", folder / "0.png", "--model", tiny, "--ode", 2)
    assert found["ode_bpd"]["mean"] is None and found["results"][0]["ode_bpd"] is None


def test_no_picture_without_matplotlib(folder, tiny, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    result = run("--data", folder, "--model", tiny, "--picture", folder / "x.png")
    assert result.exit_code == 1
    assert "pictures need matplotlib; pip install 'diffcodec[train]'" in result.stderr
