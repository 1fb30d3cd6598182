# %% [markdown]
# # 2. One step and its bits
#
# The network looks at $z_t$ and tells two fields: the mean of x and its variance. All else follows. A step sends $z_s$, a sample of $q(z_s | z_t, x)$ that only
# the encoder can draw, by $p(z_s | z_t)$, which both sides know. What that costs is the KL divergence of the two.
# %%
import numpy as np
import torch
from PIL import Image

from diffcodec import load_model
from diffcodec.diffusion.bound import chain_bound_bits
from diffcodec.diffusion.process import gaussian_kl_bits, p_reverse, q_posterior
from diffcodec.evaluation.measure import torch_posterior
from diffcodec.sampling.denoiser import Denoiser, Noise, to_field, to_images
from diffcodec.sampling.draw import grid

photo = Image.open("../../examples/kodim15.png").crop((300, 60, 396, 156))
model = load_model("photo", "float")
denoiser, x = Denoiser(model), to_field(photo, model)
t, s = 30.0, 20.0
sigma_t, sigma_s = denoiser.noise_of(t, x), denoiser.noise_of(s, x)
z_t = x + sigma_t * Noise(0, 1)(96, 96)
xhat, v = denoiser(z_t, t)
shown = [to_images(field, model)[0] for field in (x, z_t, xhat)]
grid(np.stack([np.asarray(image) for image in shown]), 3)
# %% [markdown]
# The image, with noise of 30 grey levels, and the mean of all images that it can be of. How sure the network is: the root of v, by channel, beside the error that it makes.
# %%
for channel, name in enumerate(("Y", "Co", "Cg")):
    said, made = v[0, channel].mean().sqrt(), (xhat - x)[0, channel].square().mean().sqrt()
    print(f"{name}: it says {said:.2f} grey levels, and is off by {made:.2f}")
# %% [markdown]
# **The bits of the step** to $\sigma_s = 20$. $p(z_s | z_t)$ is $q$ at the guess, widened by what the guess does not know, $(1-r)^2 v$.
# %%
q = q_posterior(x, z_t, sigma_s, sigma_t)
p = p_reverse(xhat, v, z_t, sigma_s, sigma_t)
print(f"learned variance: {gaussian_kl_bits(q, p).mean():.5f} bits per sample")
none = p_reverse(xhat, 0 * v, z_t, sigma_s, sigma_t)
print(f"DDPM's beta-tilde: {gaussian_kl_bits(q, none).mean():.5f}")
# %% [markdown]
# **The whole chain**: the sum over its steps is the variational bound (eq. 5), and what a file comes to. Most bits are at the lowest noise levels, where nobody sees a difference.
# %%
plan = model.plans["default"]
same = x, model.color, plan, torch.Generator().manual_seed(0)
[parts] = chain_bound_bits(torch_posterior(model), *same, phased=model.module.phased).tolist()
for level, bits in zip([*plan.levels, np.inf], parts, strict=True):
    print(f"sigma {level:7.2f} {bits:7.4f} {'#' * round(40 * bits)}")
print(f"together {sum(parts):.3f} bits per sample of 8")
