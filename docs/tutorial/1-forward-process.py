# %% [markdown]
# # 1. The forward process
#
# An image becomes noise in small steps. DDPM writes the noisy image as $x_t = \sqrt{\bar\alpha_t} x_0 + \sqrt{1 - \bar\alpha_t}\,\epsilon$; this codec leaves
# the image as it is and says how many grey levels of noise there are: $z_t = x + \sigma_t \epsilon$. Both are one process, $x_t = \sqrt{\bar\alpha_t} z_t$.
# %%
import numpy as np
import torch
from PIL import Image

from diffcodec import load_model
from diffcodec.diffusion.process import q_posterior
from diffcodec.diffusion.schedule import linear
from diffcodec.sampling.draw import grid
from diffcodec.sampling.edits import forward
from diffcodec.sampling.equations import forward_step

photo = Image.open("../../examples/kodim15.png").crop((300, 60, 396, 156))
model = load_model("photo", "float")


def side_by_side(images):
    return grid(np.stack([np.asarray(image) for image in images]), len(images))


levels = [1, 5, 15, 50, 150, 500]
side_by_side([photo, *forward(model, photo, levels)])
# %% [markdown]
# **DDPM's timesteps.** Its linear schedule of 1000 steps, in grey levels: half of them are far above the range of pixels.
# %%
for t in (1, 10, 100, 250, 500, 1000):
    print(f"t = {t:4}: sigma = {linear()[t - 1]:8.1f} grey levels")
# %% [markdown]
# **Many small steps are one large one** (DDPM's eq. 2 makes eq. 4): from 0 to 1 to 5 to 15, or to 15 at once.
# %%
x = torch.full((1, 3, 200, 200), 128.0)
generator = torch.Generator().manual_seed(0)
z, last = x, torch.tensor(0.0)
for level in map(torch.tensor, (1.0, 5.0, 15.0)):
    z = forward_step(z, last, level, torch.randn(x.shape, generator=generator))
    last = level
print(f"in three steps the noise has a deviation of {(z - x).std():.2f}, at once of 15")
# %% [markdown]
# **The way back, if the image is known.** Given $z_t$ and $x$, $z_s$ between them is a Gaussian (eqs. 6 and 7), $q(z_s | z_t, x) = N(r z_t + (1-r) x, \sigma_s^2 (1-r))$ with
# $r = \sigma_s^2 / \sigma_t^2$. A reverse step is this with a guess in the place of x: the [next page](2-one-step.ipynb).
# %%
q = q_posterior(100.0, 130.0, 5.0, 15.0)
print(f"x = 100, z_t = 130 at sigma 15: z_s at sigma 5 is {q.mean:.1f} +- {q.variance**0.5:.1f}")
