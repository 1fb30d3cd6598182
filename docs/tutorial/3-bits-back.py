# %% [markdown]
# # 3. Bits back, without bits to begin with
#
# To send $z_t$ the encoder has to draw it, and a draw is a choice that carries bits. Bits-back coding takes the choice from the bits that are coded already: a
# stack, from which a draw pops and onto which a code pushes.
# %%
import numpy as np
from PIL import Image

from diffcodec import decode, encode, load_model
from diffcodec.codec.planes import integers
from diffcodec.coding.ans import Stack
from diffcodec.coding.bits_back import encode_tile, most_seed_words
from diffcodec.coding.chain import TileChain, drive
from diffcodec.coding.steps import coding_steps
from diffcodec.container.parts import Box
from diffcodec.models.answering import answer

rng = np.random.default_rng(0)
stack = Stack(rng.integers(1, 2**32, 1000, dtype=np.uint32))
mean, std = np.zeros(500), np.full(500, 10.0)
before = stack.bits
drawn = stack.pop_gaussian(mean, std, 1000)
print(f"500 draws of deviation {drawn.std():.1f} took {before - stack.bits} bits from the stack")
print(f"their entropy is {500 * np.log2(10 * np.sqrt(2 * np.pi * np.e)):.0f}")
stack.push_gaussian(drawn, mean, std, 1000)
print(f"pushed by the same distribution they give back all: {stack.bits == before}")
# %% [markdown]
# **A latent in between.** The cost of a step is what its push (by p, wide) puts on the stack less what its pop (by q) took: the KL divergence. No bits are lost on the draw itself.
# %%
z = stack.pop_gaussian(mean, std, 1000)
stack.push_gaussian(z, mean + 3, std * 1.2, 1000)
kl = np.log2(1.2) + (1 + 0.3**2) / (2 * 1.2**2) * np.log2(np.e) - 0.5 * np.log2(np.e)
print(f"{stack.bits - before} bits more; 500 times the KL divergence is {500 * kl:.0f}")
# %% [markdown]
# **The chain of an image.** Who starts has no bits to draw from. This chain goes from below: first $x$ given $z_1$ is pushed, where $z_1$ comes from a dithered quantiser
# and needs no draw; then $z_2$ is popped from what that has put there, $z_1$ given $z_2$ pushed, and so on. Each line shows the words on the stack. Where they fall below 0, as
# in an image as small as this one, words of a seed are used up that both sides know. Their bits are lost, so `encode` sends the upper timesteps of such a tile as a preview instead.
# %%
model = load_model("photo")
photo = Image.open("../../examples/kodim15.png").crop((300, 60, 364, 124))
plan = model.plans["default"]
x = integers(photo, Box(0, 0, 64, 64), model.color).astype(np.float64)
chain = TileChain(plan, model.domain, 0, 3, (64, 64), phased=model.phased)
coded = drive(encode_tile(chain, x), lambda asked: answer(model, plan, [asked])[0])
heights = (most_seed_words(chain), *coded.heights)
steps = coding_steps(len(plan.levels), phased=model.phased)
for step, low, high in zip(steps, heights, heights[1:], strict=False):
    verb = "push" if step.pushes else "pop"
    name = f"{verb} {type(step).__name__} {step.timestep}"
    print(f"{name:22} {high - low:+6} words, {high - heights[0]:6} in all")
print(f"words of a seed used up: {coded.seed_words}, on the stack {len(coded.words)}")
# %% [markdown]
# **The file** is the smaller of that and the chain below a preview, and some 30 bytes around it. Decoding goes the other way: pops become pushes, and the draws give their bits back.
# %%
data = encode(photo, model)
print(f"{len(data)} bytes, {8 * len(data) / x.size:.3f} bits per sample")
print(f"as it was: {np.array_equal(np.asarray(decode(data, model=model)), np.asarray(photo))}")
