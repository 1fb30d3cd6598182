# %% [markdown]
# # 5. Your own network
#
# Any epsilon-model becomes a codec. This one is trained here in less than a minute, as DDPM has it: L_simple, images from -1 to 1, 1000 timesteps of the cosine schedule. It knows nothing of the codec.
# %%
import numpy as np
import torch
from PIL import Image
from torch import nn

from diffcodec import decode, encode
from diffcodec.diffusion.parametrisation import SCHEDULES
from diffcodec.evaluation.measure import evaluate
from diffcodec.models import from_epsilon
from diffcodec.models.calibration import calibrate
from diffcodec.sampling.draw import grid, sample

torch.manual_seed(0)


class Network(nn.Module):
    """Five convolutions that are told the timestep."""

    def __init__(self, channels=48):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(1, 64), nn.SiLU(), nn.Linear(64, channels))
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.middle = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4))
        self.last = nn.Conv2d(channels, 3, 3, padding=1)

    def forward(self, x_t, t):
        h = self.first(x_t)
        told = self.time(t[:, None] / 1000)[:, :, None, None]
        for layer in self.middle:
            h = h + layer(nn.functional.silu(h + told))
        return self.last(nn.functional.silu(h))


photos = [Image.open(f"../../examples/kodim{n}.png").convert("RGB") for n in (15, 23)]
photos = [torch.from_numpy(np.array(p)).permute(2, 0, 1) / 127.5 - 1 for p in photos]


def crops(count, side=32):
    chosen = []
    for i in torch.randint(len(photos), (count,)):
        top, left = (int(torch.randint(n - side, ())) for n in photos[i].shape[1:])
        chosen.append(photos[i][:, top : top + side, left : left + side])
    return torch.stack(chosen)


path = SCHEDULES["cosine"](1000)
u = torch.tensor(path.noise)
abar = 1 / (1 + u**2)
network = Network()
optimizer = torch.optim.Adam(network.parameters(), 2e-3)
for step in range(300):
    x_0, t = crops(8), torch.randint(1000, (8,))
    eps, signal = torch.randn_like(x_0), abar[t, None, None, None]
    x_t = signal.sqrt() * x_0 + (1 - signal).sqrt() * eps
    loss = nn.functional.mse_loss(network(x_t, t.float()), eps)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 99:
        print(f"step {step + 1}: squared error of epsilon {loss.item():.3f}")
# %% [markdown]
# **As a codec**: `from_epsilon` says how it is asked. The file is exact whatever the network is worth; only its size tells.
# %%
model = from_epsilon(network, "cosine")
image = np.asarray(Image.open("../../examples/kodim23.png").convert("RGB"))[200:264, 300:364]
data = encode(image, model)
print(f"exact: {np.array_equal(np.asarray(decode(data, model=model)), image)}")
print(f"{8 * len(data) / image.size:.3f} bits per sample with all the container has to offer")
# %% [markdown]
# **Calibrated.** Trained by L_simple it tells no variance, and DDPM's beta is far off where steps are few. A table of what its errors are, from one pass over a few crops:
# %%
table = calibrate(model, 127.5 * (crops(32) + 1))
calibrated = from_epsilon(network, "cosine", variance=table)
for name, each in (("DDPM's beta", model), ("calibrated", calibrated)):
    [found] = evaluate(each, [image.transpose(2, 0, 1)], each.plans["default"])
    print(f"{name:12} bound of 20 steps: {found.parts_bpd.sum():.3f} bits per sample")
# %% [markdown]
# **And as a generative model**, by the samplers of the codec. After so little it knows colours and little more.
# %%
grid(sample(calibrated, 4, (48, 48), steps=20), 4)
