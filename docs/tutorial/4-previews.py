# %% [markdown]
# # 4. Previews
#
# The same chain from the top down: $z_T$ first, then $z_{T-1}$ given it, ... Whatever has arrived can be shown, by the mean of x given $z_t$. DDPM's Algorithms 3 and 4, as files.
# %%
import io

import numpy as np
from PIL import Image

from diffcodec import decode, encode, iter_decode, load_model
from diffcodec.sampling.draw import grid

model = load_model("photo")
photo = Image.open("../../examples/kodim15.png").crop((300, 60, 396, 156))
data = encode(photo, model, plan="fast", progressive=True)
shown = list(iter_decode(io.BytesIO(data), model))
grid(np.stack([np.asarray(image) for _, image in shown]), 4)
# %% [markdown]
# The last is exact. A preview's noise is some 0.7 times that of the one before, as far as the plan has such levels: where noise halves, PSNR rises by some 3 dB.
# %%
exact = np.asarray(photo, float)
for timestep, image in shown:
    error = np.mean((np.asarray(image, float) - exact) ** 2)
    psnr = f"{10 * np.log10(255**2 / error):.1f} dB" if error else "exact"
    print(f"timestep {timestep:2}: {psnr}")
print(f"the whole file: {len(data)} bytes")
# %% [markdown]
# **Cut anywhere**, a file shows all that has come of it. Beside the mean a decoder may show a sample, or the continuation by the probability-flow ODE (DDIM with eta 0): sharper,
# and farther from the image.
# %%
third = data[: len(data) // 3]
ways = ("mean", "flow", "sample")
parts = [decode(third, model=model, allow_partial=True, reconstruct=way) for way in ways]
grid(np.stack([np.asarray(image) for image in parts]), 3)
