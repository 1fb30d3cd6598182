"""The remainder in phases: a distribution over the candidates, and only by what is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny import tiny_model

from bench import phases
from diffcodec.networks.config import UNetConfig
from diffcodec.networks.unet import UNet


@pytest.fixture
def network() -> phases.PhaseNetwork:
    """With random weights everywhere."""
    generator = torch.Generator().manual_seed(0)
    trunk = UNet(UNetConfig(channels=(8, 8), blocks=(1, 1), embedding=16))
    network = phases.PhaseNetwork(trunk, 4)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.mark.parametrize("offset", [0.0, 30.0, -1e4])
def test_the_candidates_have_all_the_probability(offset: float) -> None:
    generator = torch.Generator().manual_seed(1)
    count, unit = 9 * phases.COMPONENTS + 3, 1.7
    parameters = torch.randn(2, count, 4, 5, generator=generator).double()
    # Y and Co, which the others follow, stay as they are; every candidate of Cg is tried
    error = offset + torch.randn(2, 3, 4, 5, generator=generator).double()
    low = torch.full_like(error, offset - 3)
    bits = []
    for candidate in range(6):
        error[:, 2] = offset - 3 + (candidate + 0.5) / unit
        ends = low, low + 6 / unit, torch.full_like(error, 0.5 / unit)
        bits.append(phases.phase_bits(parameters, error, *ends)[:, 2])
    total = torch.exp2(-torch.stack(bits)).sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("phase", range(4))
def test_a_phase_sees_the_phases_before_alone(network: phases.PhaseNetwork, phase: int) -> None:
    generator = torch.Generator().manual_seed(2)
    z, x = (100 * torch.rand(1, 3, 8, 8, generator=generator) for _ in range(2))
    _, _, before = network(z, x)
    row, column = phases.PHASES[phase]
    x[:, :, row::2, column::2] += 1
    _, _, after = network(z, x)
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [later > phase for later in range(4)]


def bits_said(text: str) -> list[float]:
    return [
        float(line.split(" bpd")[0].split()[-1]) for line in text.splitlines() if " bpd;" in line
    ]


def test_the_command_trains_and_goes_on(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = tiny_model(tmp_path, patch=1)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(21):
        noise = rng.integers(0, 9, (96, 100, 3)).astype(np.uint8)
        Image.fromarray(noise).save(folder / f"{i:02}.png")
    given = [f"--data={folder}", f"--out={tmp_path}", f"--model={model}", "--quantiser=4"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda module: module)
        more = ["--minutes=0.02", "--batch=2", "--crop=16", f"--test={folder}"]
        first = CliRunner().invoke(phases.main, [*given, *more], catch_exceptions=False)
    bits = bits_said(first.stdout)
    assert bits[-2] < bits[0]  # the held-out crops have flat noise to learn
    again = [f"--init={tmp_path / phases.WEIGHTS}", "--minutes=0", "--beside-chain"]
    second = CliRunner().invoke(phases.main, [*given, *again], catch_exceptions=False)
    assert "held out: z_1 given sigma " in second.stdout
    assert bits_said(second.stdout) == pytest.approx([bits[-2]], abs=0.05)  # bfloat16 between
