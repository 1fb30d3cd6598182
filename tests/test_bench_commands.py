"""Commands of the benchmarks on small models and images: what they refuse, and what comes out."""

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from samples import folder_of_two

from bench import (
    adaptation,
    arithmetic,
    color_sets,
    jpegs,
    large,
    measuring,
    planes,
    progressive,
    scaling,
    seams,
    speed,
)
from bench.__main__ import main
from bench.inputs import dataset
from diffcodec import encode, load_model
from diffcodec.container.parts import PLAN_NAMES


@pytest.fixture(scope="module")
def photo():
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(100, 130, (16, 16, 3), np.uint8))


@pytest.fixture(scope="module")
def folder(photo, tmp_path_factory):
    return folder_of_two(photo, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def array(folder):
    path = folder.parent / f"{folder.name}-array" / "images.npy"
    path.parent.mkdir()
    np.save(path, np.stack([np.asarray(Image.open(each)) for each in sorted(folder.iterdir())]))
    return path


def refusal(*arguments):
    """The one line in which a command refuses its arguments."""
    result = CliRunner().invoke(main, [*map(str, arguments)])
    assert result.exit_code == 1, result.output
    line, *more = result.output.splitlines()
    assert not more and line.startswith("Error: ")
    return line.removeprefix("Error: ")


# --- models in phases -----------------------------------------------------------------------------


@pytest.mark.usefixtures("chain_only")
def test_the_networks_share_of_a_model_in_phases(photo, phased):
    assert 0 < speed.network_share(photo, load_model(phased), "fast", 1) < 1


def test_codecs_are_compared_with_a_model_in_phases(photo, phased, monkeypatch):
    monkeypatch.setattr(speed, "lossless_codecs", list)
    model = load_model(phased)
    rows = speed.compare_codecs(photo, model, load_model(phased, "float"), 1)
    ours = [f"diffcodec, {plan}" for plan in PLAN_NAMES if plan in model.plans]
    assert [row["name"] for row in rows] == [*ours, *(f"{name}, float" for name in ours)]
    assert rows[0]["bytes"] == len(encode(photo, model, "fast"))


def test_arithmetics_are_compared_with_a_model_in_phases(photo, phased, capsys):
    models = {name: load_model(phased, name) for name in ("integer", "float")}
    arithmetic.compare_sizes(models, [photo])
    rows = [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[3:]]
    assert rows == ["| fast", "| default"]


def test_many_images_are_foreseen_by_the_whole_chains_multiplications(phased):
    per_pixel = load_model(phased).info.multiplications()["default"]
    found = {"fits": {"pixels": (0.0, 1.0)}, "multiplications_per_pixel": per_pixel}
    table = speed.outlook_table(found)
    assert float(table.rows[0][3]) == pytest.approx(1024 * per_pixel / 1e9, rel=0.01)


def test_plans_are_searched_for_models_without_phases(folder, phased):
    given = ("--calibration", folder, "--data", folder, "--model", phased)
    said = refusal("plans", *given, "--calibration-crop", 16, "--timesteps", "", "--crop", 16)
    assert said.startswith(
        f"model {phased} codes in phases, and its plans begin at M = 8; expected"
    )
    assert CliRunner().invoke(main, ["plans", *map(str, given[:4])]).exit_code == 2


# --- what is measured -----------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "side"), [(130, 128), (40, 8)])
def test_steps_beside_a_border_end_at_the_edge(width, side):
    ramp = np.tile(np.arange(width, dtype=np.uint8), (width, 1))
    assert seams.step_ratio(Image.fromarray(ramp).convert("RGB"), side) == 1


def test_the_curve_of_a_run_passes_over_a_torn_line(tmp_path):
    validated = '{"step": 5, "seconds": 3600, "held_out_bpd": 4.0}'
    (tmp_path / "log.jsonl").write_text(f'{{"step": 3, "bp\n{validated}\n{{"step": 7, "se')
    assert scaling.held_out_curve(tmp_path) == ([1.0], [4.0])
    assert "no log.jsonl to read (No such file" in refusal("scaling", "--run", "a=nowhere")


def test_what_comes_back_is_held_against_the_image(photo):
    samples = np.asarray(photo)
    for back in (photo.copy(), samples):
        measuring.check_equal(photo, back)
    others = (photo.rotate(90), photo.crop((0, 0, 8, 16)), photo.convert("L"), samples + 1)
    for other in (*others, Image.frombytes("YCbCr", photo.size, photo.tobytes())):
        with pytest.raises(click.ClickException, match=r"a\.png: the decoded image differs"):
            measuring.check_equal(photo, other, "a.png")


def test_samples_need_other_images_beside(folder, tiny):
    given = ("samples", "--data", folder, "--model", tiny, "--size", 16)
    expected = "found 2 images of at least 16 x 16 pixels, expected 4: two more than samples"
    assert expected in refusal(*given, "-n", 2)
    assert "found 0 images of at least 17 x 17" in refusal(*given[:-1], 17, "-n", 2)


@pytest.mark.parametrize(("command", "option"), [("objectives", "--crops"), ("samples", "-n")])
def test_intervals_are_of_two_at_least(folder, command, option):
    result = CliRunner().invoke(main, [command, "--data", str(folder), option, "1"])
    assert result.exit_code == 2 and option in result.output


@pytest.mark.parametrize("command", [adaptation, color_sets, planes])
def test_arrays_are_taken_as_folders(array, folder, phased, command):
    more = ["--model", str(phased), "--effort", "fast"] if command is adaptation else []
    printed = []
    for given in (folder, array):
        result = CliRunner().invoke(command.main, [str(given), *more])
        assert result.exit_code == 0, result.output
        printed.append([line.split(" | ")[1:4] for line in result.output.splitlines()])
    assert printed[0] == printed[1] and len(printed[0]) >= 4


def test_crops_mosaics_and_jpegs_of_arrays(array, folder, tmp_path):
    cut = [[each.tobytes() for each in progressive.crops(data, 8, 1)] for data in (array, folder)]
    assert cut[0] == cut[1] and len(cut[0]) == 2
    one, other = (large.mosaic(dataset(data), 40, 20).tobytes() for data in (array, folder))
    assert one == other
    arguments = ["--data", str(array), "--out", str(tmp_path)]
    assert CliRunner().invoke(jpegs.main, arguments).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.png", "00001.png"]


def test_arithmetics_are_compared_on_arrays(array, tiny, tiny_float, monkeypatch):
    for name in ("compare_kernels", "compare_times", "count_failures"):
        monkeypatch.setattr(arithmetic, name, lambda *_: None)
    given = ["--data", array, "--float", tiny_float, "--model", tiny, "--crop", 16, "--side", 8]
    result = CliRunner().invoke(arithmetic.main, [*map(str, given)])
    assert result.exit_code == 0, result.output
    assert "| best | " in result.output
