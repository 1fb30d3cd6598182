"""The experiments of the family: each runs, in small, from its data to its table."""

import wave
from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny import TINY, tiny_model

import diffcodec
from bench import audio, calibrated, classes, latent, objectives
from diffcodec.diffusion.losses import flow_matching_loss


def table(command, *options):
    """The rows of what a command prints, without the heading."""
    result = CliRunner().invoke(command, [*map(str, options)])
    assert result.exit_code == 0, result.output
    rows = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    tones = rng.integers(0, 200, (40, 1, 1, 3)) + np.arange(16)[:, None] * 3
    np.save(tmp_path / "pictures.npy", np.broadcast_to(tones, (40, 16, 16, 3)).astype(np.uint8))
    return tmp_path / "pictures.npy"


def test_reflow_asks_for_the_noise_that_belongs_to_an_image():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (8, 3, 4, 4), generator=generator).float()
    noise = torch.randn(x.shape, generator=generator)

    def model(z, sigma):
        return z - sigma[:, None, None, None] * noise, torch.ones_like(z)

    loss = partial(flow_matching_loss, model, x, "rgb", generator)
    assert loss(noise=noise) < 1e-6
    assert loss() > 0.5


def test_objectives_and_reflow(pictures, tmp_path, monkeypatch):
    for name, value in {"SHAPE": TINY, "CROP": 16, "BATCH": 8, "FLOW_STEPS": 3}.items():
        monkeypatch.setattr(objectives, name, value)
    chosen = {name: each for name, each in objectives.OBJECTIVES.items() if each.loss == "flow"}
    for name, each in chosen.items():
        monkeypatch.setitem(objectives.OBJECTIVES, name, objectives.replace(each, network=TINY))
    only = [word for name in chosen for word in ("--only", name)]
    few = ("--steps", 2, "--crops", 4, "--pairs", 3)
    rows = table(objectives.main, "--data", pictures, "--out", tmp_path / "out", *few, *only)
    assert [row[0] for row in rows[2:4]] == list(chosen) == [row[0] for row in rows[6:]]
    assert all(0 < float(row[3].split()[0]) < 20 for row in rows[2:4])
    assert all(float(cell) > 0 for row in rows[6:] for cell in row[1:])
    monkeypatch.setattr(objectives, "source_digest", lambda: "of other sources")
    monkeypatch.setattr(objectives, "measure", lambda *_: pytest.fail("measured anew"))
    with pytest.raises(pytest.fail.Exception, match="measured anew"):
        objectives.main(
            [*map(str, ("--data", pictures, "--out", tmp_path / "out", *few, *only))],
            standalone_mode=False,
        )


def test_straight_levels_go_evenly_in_time():
    u = np.array([*objectives.straight_levels(4), 0]) / 127.5
    assert np.diff(u / (1 + u)) == pytest.approx(np.full(4, -0.2062), abs=1e-4)
    assert objectives.straight_levels(1) == pytest.approx([600])


def test_sound(tmp_path):
    samples = (128 + 60 * np.sin(np.arange(1600) / 7)).astype(np.uint8)
    with wave.open(str(tmp_path / "a.wav"), "wb") as recording:
        recording.setparams((1, 1, 11025, 0, "NONE", ""))
        recording.writeframes(samples.tobytes())
    rows = table(audio.main, tmp_path / "a.wav", "--steps", 2)
    sizes = {row[0]: row[1] for row in rows[2:]}
    assert sizes["as it is"] == "399" and int(sizes["the chain, whole file"]) < 500
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    result = CliRunner().invoke(audio.main, [str(tmp_path / "b.wav")])
    assert result.exit_code == 1 and "not a WAV file" in result.output


def test_the_chain_of_a_latent(pictures, tmp_path, tiny, monkeypatch):
    for name, value in {"CROP": 16, "SIDE": 16, "LATENTS": 3}.items():
        monkeypatch.setattr(latent, name, value)
    monkeypatch.setattr(diffcodec, "train", lambda *_, **__: tiny)
    Image.fromarray(np.load(pictures)[0]).resize((40, 30)).save(tmp_path / "a.png")
    options = ("--data", pictures, "--test", tmp_path / "a.png", "--out", tmp_path, "--steps", 2)
    monkeypatch.setattr(latent, "RATES", (0.01, 40))
    none, all_of_it, exact = table(latent.main, *options, "--model", tiny)[2:]
    assert np.load(tmp_path / "latents.npy").shape == (3, 2, 2, 3)
    assert none[1:] == ["-"] * 4
    assert exact[1:3] == all_of_it[1:3] and 0 < float(all_of_it[2]) < 1
    assert float(all_of_it[3]) > 30


def test_classes_beside_none(pictures, tmp_path, monkeypatch):
    runs = []

    def trained(run):
        runs.append(run)
        kinds = run.config.network.classes
        return diffcodec.load_model(tiny_model(tmp_path, name=f"of{kinds}", classes=kinds), "float")

    monkeypatch.setattr(classes, "trained", trained)
    monkeypatch.setattr(objectives, "CROP", 16)
    (tmp_path / "labels.txt").write_text("0\n1\n" * 20)
    images = ("--data", pictures, "--test", pictures, "--out", tmp_path / "out")
    labels = ("--labels", tmp_path / "labels.txt", "--test-labels", tmp_path / "labels.txt")
    rows = table(classes.main, *images, *labels, "--limit", 3, "--files", 2)[2:]
    assert [row[0] for row in rows] == ["without labels"] * 2 + ["with labels"] * 3
    assert rows[1][:3] == ["without labels", "nothing, smallest of 3 draws", ""]
    none, its, best = ([float(row[2]), float(row[4])] for row in rows[2:])
    assert none[0] != its[0] and best[0] <= min(none[0], its[0]) and best[1] <= min(none[1], its[1])
    again = table(classes.main, *images, *labels, "--limit", 3, "--files", 2)[2:]
    assert again == rows and len(runs) == 2  # from what was written
    (tmp_path / "other.txt").write_text("1\n0\n" * 20)
    options = (*images, *labels[:3], tmp_path / "other.txt", "--limit", 3, "--files", 2)
    *same, its_other, _ = table(classes.main, *options)[2:]
    assert same == rows[:3] and its_other != rows[3] and len(runs) == 4


def test_a_network_of_fixed_variance_made_a_codec(pictures, tmp_path):
    model = tiny_model(tmp_path, arithmetic="float")
    options = ("--model", model, "--data", pictures, "--test", pictures, "--crop", 16)
    few = ("--steps", 3, "--crops", 4, "--limit", 3, "--files", 2)
    own, small, levels, contrast = table(calibrated.main, *options, *few)[2:]
    assert all(float(row[1].split()[0]) > 0 for row in (own, small, levels, contrast))
    assert float(levels[1].split()[0]) < float(own[1].split()[0]) and small[2] == ""
    assert float(levels[2]) < float(own[2])
