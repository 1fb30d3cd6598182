"""DDPM's table of progressive coding: known answers, and the command on a tiny model."""

import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from ddpm import linear_schedule
from tiny import phased_model, tiny_model

from bench import ddpm
from diffcodec.diffusion.color import DOMAINS, channels
from diffcodec.diffusion.losses import MAX_SIGMA
from diffcodec.diffusion.process import Gaussian, gaussian_kl_bits, p_prior
from diffcodec.diffusion.schedule import linear


def test_rows_are_ddpms_timesteps():
    """After n reverse steps x_t with t = T - n + 1 is known; the first step sends x_T."""
    paper = linear_schedule()
    for done, timestep in zip(ddpm.STEPS_DONE, ddpm.ROWS, strict=True):
        assert done == paper.timesteps - timestep + 1
        abar = paper.abar(timestep)
        assert linear()[timestep - 1] == pytest.approx(127.5 * math.sqrt((1 - abar) / abar))


def test_noise_has_the_volume_of_ddpms():
    """YCoCg-R keeps volumes, so what decides is the product over the channels."""
    for color, domain in DOMAINS.items():
        stds = np.outer(ddpm.noise_levels(color), domain.noise_multipliers)
        assert stds.prod(1) == pytest.approx(linear() ** 3)


def test_the_files_plan_has_the_rows_and_small_steps_between():
    every = ddpm.noise_levels("ycocg")
    timesteps = ddpm.files_timesteps(every, 1.5)
    levels = every[np.array(timesteps) - 1]
    assert set(ddpm.ROWS) < set(timesteps)
    assert timesteps[0] == 1
    assert MAX_SIGMA / 1.5 < levels[-1] <= MAX_SIGMA
    assert (levels[1:] / levels[:-1]).min() > 1.2 and (levels[1:] / levels[:-1]).max() < 1.8


def test_of_gaussian_pixels_the_chain_sends_what_one_step_would(monkeypatch):
    """Their posterior is exact, so the steps' KLs add up to that of the last level alone."""
    monkeypatch.setattr(ddpm, "MAX_SIGMA", 0)  # the network is never asked
    domain = DOMAINS["ycocg"]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((32, 3, 16, 16), generator=generator)
    x = (channels(domain.center, noise) + channels(domain.data_std, noise) * noise).round()
    model = ddpm.bounded(None, "ycocg")
    rows, _ = ddpm.send_all(model, x, "ycocg", [1000, 700, *reversed(ddpm.ROWS)], seed=1)
    for timestep, (rate, error) in rows.items():
        sigma = ddpm.noise_levels("ycocg")[timestep - 1] * channels(domain.noise_multipliers, x)
        once = gaussian_kl_bits(Gaussian(x, (sigma**2).expand_as(x)), p_prior(domain, sigma))
        assert rate.mean() == pytest.approx(once.mean().item(), rel=0.05, abs=1e-3)
        assert (error > 0).all()


def test_the_network_is_asked_where_it_was_trained():
    def network(z, sigma):
        return z + 1, torch.ones_like(z)

    posterior = ddpm.bounded(network, "ycocg")
    z = torch.full((1, 3, 2, 2), 50.0)
    assert posterior(z, torch.tensor([MAX_SIGMA]))[0][0, 0, 0, 0] == 51
    mean, v = posterior(z, torch.tensor([1e6]))
    assert mean[0, :, 0, 0] == pytest.approx(DOMAINS["ycocg"].center, abs=0.01)
    assert v[0, :, 0, 0].sqrt() == pytest.approx(DOMAINS["ycocg"].data_std, rel=1e-3)


@pytest.mark.parametrize("model_of", [tiny_model, phased_model])
def test_the_command_puts_files_beside_the_bound(tmp_path, model_of):
    model = model_of(tmp_path, arithmetic="float")
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "test.npy", images)
    arguments = ["--data", str(tmp_path / "test.npy"), "--model", str(model), "--limit", "2"]
    arguments += ["--stride", "100", "--ratio", "3", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(ddpm.main, arguments)
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "out" / "ddpm" / "ddpm.json").read_text())
    rows = [written["rows"][str(timestep)] for timestep in ddpm.ROWS]
    assert written["images"] == 2
    for name in ("ideal_bpd", "payload_bpd", "file_bpd"):
        values = [row[name] for row in rows]
        assert values == sorted(values, reverse=True), name
    last = rows[0]  # all that is left is noise of sigma_1: z itself is as near
    assert last["file_rmse"] < rows[-1]["file_rmse"]
    assert last["payload_bpd"] > 0.9 * last["ideal_bpd"] > 1
    assert last["file_bpd"] > last["payload_bpd"]
    assert "| 100 % | 1.275 | 1.776 | 0.95 |" in result.output
