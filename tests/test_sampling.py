"""Samplers, edits and likelihoods, held against data whose distribution is known."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import done, run
from ddpm import linear_schedule
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import tiny_model

import diffcodec
from diffcodec import load_model
from diffcodec.diffusion.plan import geometric_plan
from diffcodec.diffusion.process import LOG2_E, Gaussian, p_reverse, q_posterior
from diffcodec.errors import DiffcodecError, LimitError, ModelMismatchError, UnsupportedError
from diffcodec.evaluation.measure import ModelInPhases
from diffcodec.models.model import Model
from diffcodec.networks.scaling import scaling
from diffcodec.sampling import denoiser as denoisers
from diffcodec.sampling import edits, equations
from diffcodec.sampling.denoiser import Denoiser, Guidance, Noise
from diffcodec.sampling.draw import grid, sample
from diffcodec.sampling.likelihood import gaussian_bits, integrate, ode_bits
from diffcodec.sampling.samplers import go_down

STD = 20.0
PLANS = {"default": geometric_plan(8)}
CLOSE = {"abs": 1e-9, "rel": 1e-9}


class Pixels:
    """The posterior of images of independent Gaussian pixels around grey."""

    color, multiple, levels, is_exact, identity = "rgb", 4, None, False, b"pixels"
    asked = 0

    def posterior_x(self, z, sigma):
        self.asked += 1
        v = STD**2 * sigma**2 / (STD**2 + sigma**2)
        return 127.5 + v / sigma**2 * (z - 127.5), torch.full_like(z, v)


class Constant(Pixels):
    """That of images of one colour, whose channels are independent Gaussians."""

    multiple = 1

    def posterior_x(self, z, sigma):
        noise = sigma**2 / z[0, 0].numel()
        v = STD**2 * noise / (STD**2 + noise)
        mean = 127.5 + v / noise * (z.mean((2, 3), keepdim=True) - 127.5)
        return mean.expand_as(z), torch.full_like(z, v)


def model(network=Pixels):
    return Model(network(), PLANS, "known")


# --- equations as printed -------------------------------------------------------------------------


@given(st.integers(2, 1000), st.integers(0, 2**32))
def test_steps_are_those_of_ddpm_and_ddim_as_printed(t, seed):
    """In DDPM's coordinates: Algorithm 2 with beta-tilde, and DDIM's eqs. 12 and 16."""
    paper, rng = linear_schedule(), np.random.default_rng(seed)
    abar_t, abar_s = paper.abar(t), paper.abar(t - 1)
    sigma_t, sigma_s = (
        torch.tensor(127.5 * np.sqrt((1 - a) / a), dtype=torch.float64) for a in (abar_t, abar_s)
    )
    x_0, z, noise = (torch.from_numpy(rng.normal(127.5, 60, (1, 3, 2, 2))) for _ in range(3))
    noise = (noise - 127.5) / 60
    x_t = paper.from_grey(z.numpy(), t)
    eps = (x_t - np.sqrt(abar_t) * (x_0.numpy() - 127.5) / 127.5) / np.sqrt(1 - abar_t)
    _, beta_tilde = paper.q_posterior(0.0, 0.0, t)
    alg_2 = paper.p_mean(x_t, eps, t) + np.sqrt(beta_tilde) * noise.numpy()
    step = equations.ancestral_step(x_0, torch.zeros_like(z), z, sigma_s, sigma_t, noise)
    assert paper.from_grey(step.numpy(), t - 1) == pytest.approx(alg_2, **CLOSE)
    for eta in (0.0, 0.5, 1.0):
        std = eta * np.sqrt((1 - abar_s) / (1 - abar_t)) * np.sqrt(1 - abar_t / abar_s)
        printed = np.sqrt(abar_s) * (x_0.numpy() - 127.5) / 127.5
        printed += np.sqrt(1 - abar_s - std**2) * eps + std * noise.numpy()
        step = equations.ddim_step(x_0, z, sigma_s, sigma_t, eta, noise)
        assert paper.from_grey(step.numpy(), t - 1) == pytest.approx(printed, **CLOSE)
    # With eta 1 it is the posterior at xhat.
    q = q_posterior(x_0, z, sigma_s, sigma_t)
    assert step.numpy() == pytest.approx((q.mean + q.variance.sqrt() * noise).numpy(), **CLOSE)


@given(st.integers(2, 1000))
def test_a_step_up_is_that_of_ddpm_as_printed(t):
    """Eq. 2, and after it the variance of eq. 4."""
    paper = linear_schedule()
    sigma_t, sigma_s = (
        torch.tensor(127.5 * np.sqrt(1 / paper.abar(k) - 1), dtype=torch.float64)
        for k in (t, t - 1)
    )
    z = torch.tensor(200.0, dtype=torch.float64)
    up = equations.forward_step(z, sigma_s, sigma_t, torch.ones_like(z))
    mean, variance = paper.q_step(paper.from_grey(z.numpy(), t - 1), t)
    assert paper.from_grey(up.numpy(), t) == pytest.approx(mean + np.sqrt(variance), **CLOSE)


@pytest.mark.parametrize("order", [1, 2])
def test_the_flow_is_followed_to_its_order(order):
    """Its solution is known: every pixel keeps its place in a Gaussian that narrows."""
    z, top, end = torch.full((1, 3, 1, 1), 250.0, dtype=torch.float64), 60.0, 10.0
    exact = 127.5 + (z - 127.5) * np.sqrt((STD**2 + end**2) / (STD**2 + top**2))
    errors = []
    for steps in (20, 40):
        found, levels = z, np.linspace(top, end, steps + 1).tolist()
        for t, s in pairwise(levels):
            slope = equations.probability_flow(Pixels().posterior_x(found, t)[0], found, t)
            euler = found + (s - t) * slope
            there = equations.probability_flow(Pixels().posterior_x(euler, s)[0], euler, s)
            found = euler if order == 1 else equations.heun_step(found, slope, there, s, t)
        errors.append((found - exact).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.1)


def test_langevin_steps_keep_what_is_in_its_distribution():
    drawn = Noise(0, 1)
    z = 3 * drawn(96, 96)
    for _ in range(40):
        z = equations.langevin_step(z, -z / 9, 0.1, drawn(96, 96))
    assert z.std() == pytest.approx(3, rel=0.03)
    wide = 2 * z
    for _ in range(400):
        wide = equations.langevin_step(wide, -wide / 9, 0.1, drawn(96, 96))
    assert wide.std() == pytest.approx(3, rel=0.05)


def test_what_is_known_is_replaced():
    z, known = (torch.randn((1, 3, 4, 4)) for _ in range(2))
    mask = (torch.arange(4) < 2).float()
    mixed = equations.replace_known(z, known, mask)
    assert torch.equal(mixed[..., :2], known[..., :2]) and torch.equal(mixed[..., 2:], z[..., 2:])
    coarse = equations.replace_coarse(z, known, 2)
    means = [torch.nn.functional.avg_pool2d(field, 2) for field in (coarse, known)]
    assert torch.allclose(*means, atol=1e-6)


def test_along_the_flow_the_density_changes_by_the_divergence():
    z, levels = Noise(0, 1)(2, 2) * 30 + 127.5, np.geomspace(1, 300, 200).tolist()

    def posterior(z, sigma):
        return Pixels().posterior_x(z, sigma)

    end, found = integrate(posterior, z, levels, None)
    known = sum(
        -sign * gaussian_bits(field, Gaussian(torch.tensor(127.5), torch.tensor(STD**2 + s**2)))
        for sign, field, s in ((1, z, 1.0), (-1, end, 300.0))
    )
    assert found == pytest.approx(known.sum().item() / LOG2_E, rel=1e-3)


def test_scalings_are_edms():
    """Eqs. 114 and 117 of its appendix: what the network sees and is to say has variance one."""
    s, data_std = (torch.tensor(v, dtype=torch.float64) for v in (7.0, 64.0))
    c_skip, c_out, total = scaling(s, data_std, torch.sqrt)
    assert total**2 == pytest.approx((s**2 + data_std**2).item())
    variance = ((1 - c_skip) ** 2 * data_std**2 + c_skip**2 * s**2) / c_out**2
    assert variance.item() == pytest.approx(1)


def test_the_score_is_the_gradient_of_the_density():
    z = torch.randn((1, 3, 4, 4), dtype=torch.float64) * 50 + 127.5
    sigma = torch.tensor(30.0, dtype=torch.float64)
    xhat, _ = Pixels().posterior_x(z, 30.0)
    expected = -(z - 127.5) / (STD**2 + sigma**2)
    assert equations.score(xhat, z, sigma).numpy() == pytest.approx(expected.numpy())


def test_guidance_is_bayes_rule():
    """A class that is a Gaussian of pixels too: its gradient leads to its posterior mean."""
    z, sigma = torch.randn((2, 3, 4, 4), dtype=torch.float64) * 50 + 127.5, 30.0
    plain, v = Pixels().posterior_x(z, sigma)
    weight = v / sigma**2
    of_class = 90 + weight * (z - 90)  # x of the class is around 90, as wide
    total = STD**2 + sigma**2
    gradient = (90 - z) / total - (127.5 - z) / total
    guided = equations.classifier_guidance(plain, gradient, torch.tensor(sigma), 1.0)
    assert guided.numpy() == pytest.approx(of_class.numpy())
    free = equations.classifier_free_guidance(plain, of_class, 1.0)
    assert torch.equal(free, of_class)
    doubled = equations.classifier_free_guidance(plain, of_class, 2.0)
    assert doubled.numpy() == pytest.approx((2 * of_class - plain).numpy())
    a, b = torch.randn((2, 1, 3, 64, 64), dtype=torch.float64)
    for share in (0.0, 0.3, 1.0):
        assert equations.slerp(a, b, share).std() == pytest.approx(1.0, abs=0.03)


# --- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"sampler": "ancestral"}, 6),
        ({"sampler": "ddim", "eta": 0.0}, 100),
        ({"sampler": "ddim", "eta": 0.5}, 100),
        ({"sampler": "heun"}, 30),
        ({"sampler": "ancestral", "corrector_steps": 2}, 12),
    ],
)
def test_samples_have_the_distribution_of_the_data(options, steps):
    """The ancestral sampler's with the variance of x known is exact in any number of steps."""
    images = sample(model(), 4, (40, 32), steps=steps, seed=3, **options)
    assert images.shape == (4, 32, 40, 3) and images.dtype == np.uint8
    assert images.mean() == pytest.approx(127.5, abs=1)
    assert images.std() == pytest.approx(STD, rel=0.05)
    across = np.corrcoef(images[:, :, :-1].ravel(), images[:, :, 1:].ravel())[0, 1]
    assert abs(across) < 0.1


def test_with_ddpms_small_variance_few_steps_give_too_little():
    """What the learned variance is for: without v a few steps end too narrow."""
    network = type("Small", (Pixels,), {})
    network.posterior_x = lambda self, z, sigma: (
        Pixels.posterior_x(self, z, sigma)[0],
        torch.full_like(z, 1e-9),
    )
    assert sample(model(network), 4, steps=6).std() < 0.8 * STD


def test_seeds_are_of_images():
    many, one = sample(model(), 3, (8, 8), seed=5), sample(model(), 1, (8, 8), seed=7)
    assert np.array_equal(many[2], one[0]) and not np.array_equal(many[0], many[1])
    assert diffcodec.sample is sample
    sheet = grid(many, gap=1)
    assert sheet.size == (17, 17)
    assert np.array_equal(np.asarray(sheet)[9:, :8], many[2])


@pytest.mark.parametrize("size", [(24, 16), (19, 13)])
def test_shipped_kinds_of_models_are_sampled(tiny, phased_float, tmp_path, size):
    for path, arithmetic in ((tiny, "integer"), (tiny, "float"), (phased_float, "float")):
        loaded = load_model(path, arithmetic)
        images = sample(loaded, 2, size)
        assert images.shape == (2, size[1], size[0], 3)
    with pytest.raises(UnsupportedError, match="at the levels of its plans"):
        sample(load_model(tiny), 1, steps=5)
    classes = load_model(tiny_model(tmp_path, arithmetic="float", classes=3), "float")
    with torch.no_grad():
        classes.module.experts[0].embed_label.weight[1:] = torch.randn((3, 16))
    images = [sample(classes, 1, size, label=k, steps=6) for k in (None, 0, 2)]
    images.append(sample(classes, 1, size, label=2, steps=6, guidance=3.0))
    assert len({image.tobytes() for image in images}) == 4
    for wrong in ({"label": 3}, {"label": -1}):
        with pytest.raises(DiffcodecError, match="give one from 0 to 2"):
            sample(classes, 1, size, **wrong)
    with pytest.raises(DiffcodecError, match="knows no classes; leave it out"):
        sample(tiny, 1, size, label=0)


def test_a_classifier_leads_samples():
    def gradient(z, sigma):  # of a class around 90
        return torch.full_like(z, (90 - 127.5) / (STD**2 + sigma**2))

    images = sample(model(), 4, classifier=gradient, steps=20)
    assert images.mean() == pytest.approx(90, abs=1)
    for wrong in (3, None, np.zeros(3), torch.zeros(2, 2)):
        with pytest.raises(TypeError, match=r"classifier: it gave .* expected the gradient"):
            sample(model(), 1, (8, 8), classifier=lambda z, sigma, found=wrong: found, steps=2)


@pytest.mark.parametrize("options", [{"guidance": 3.0}, {"eta": 0.5}])
def test_what_would_change_nothing_is_refused(options):
    with pytest.raises(DiffcodecError, match=r"without a class|only 'ddim' has one"):
        sample(model(), 1, (8, 8), steps=2, **options)


def test_large_images_are_evaluated_in_windows(monkeypatch):
    monkeypatch.setattr(denoisers, "WINDOW", 16)
    monkeypatch.setattr(denoisers, "MARGIN", 5)
    known = model()
    z = Noise(0, 2)(37, 50)
    xhat, v = Denoiser(known)(z, 10.0)
    assert known.network.asked == 3 * 4
    expected = known.posterior_x(z.numpy(), 10.0)
    assert np.array_equal(xhat, expected[0]) and np.array_equal(v, expected[1])


def test_a_model_in_phases_draws_what_it_codes(phased_float, monkeypatch):
    """Its noise is what lies between the draw and the distribution that the bound takes."""
    loaded = load_model(phased_float, "float")
    denoiser, noise = Denoiser(loaded), Noise(1, 2)(23, 90)
    z = 127.5 + 100 * Noise(0, 2)(23, 90)
    t, s = 80.0, 40.0
    drawn = denoiser.step(z, t, s, noise)
    sigmas = denoiser.noise_of(s, z), denoiser.noise_of(t, z)
    told = ModelInPhases(loaded, loaded.plans["default"])
    p = p_reverse(*told.refined(drawn, z, torch.tensor([s]), torch.tensor([t])), z, *sigmas)
    assert torch.allclose((drawn - p.mean) / p.variance.sqrt(), noise, atol=1e-4)
    alone = p_reverse(*denoiser(z, t), z, *sigmas)
    assert not torch.allclose((drawn - alone.mean) / alone.variance.sqrt(), noise, atol=0.1)
    monkeypatch.setattr(denoisers, "WINDOW", 16)
    assert torch.allclose(Denoiser(loaded).step(z, t, s, noise), drawn, atol=1e-3)


def test_what_cannot_be_drawn_is_refused():
    for wrong in ({"n": 0}, {"size": (0, 4)}, {"steps": 1}, {"seed": -1}, {"corrector_steps": -1}):
        with pytest.raises(
            UnsupportedError, match=r"expected (sizes above 0, seeds below|2 to 10000)"
        ):
            sample(model(), **wrong)
    with pytest.raises(UnsupportedError, match="expected one of ancestral, ddim, heun"):
        sample(model(), sampler="euler")
    broken = type("Broken", (Pixels,), {})
    broken.posterior_x = lambda self, z, sigma: (z * np.nan, z * 0 + 1)
    with pytest.raises(ModelMismatchError, match="out of range at the noise level"):
        sample(model(broken), 1, (4, 4))


# --- edits ----------------------------------------------------------------------------------------


def drawn(colour, size=(16, 12)):
    return Image.new("RGB", size, colour)


def test_forward_adds_the_noise_of_each_level():
    shown = edits.forward(model(), drawn((128,) * 3, (64, 64)), [1.0, 10.0, 30.0])
    stds = [np.asarray(image).std() for image in shown]
    assert stds == pytest.approx([1.0, 10.0, 30.0], rel=0.05)


def test_denoising_is_the_posterior_mean(tiny_float):
    noisy = Image.fromarray(np.random.default_rng(0).normal(127, 28, (32, 32, 3)).astype(np.uint8))
    found = np.asarray(edits.denoise(model(), noisy, 20.0), float)
    expected = 127.5 + 0.5 * (np.asarray(noisy, float) - 127.5)
    assert np.abs(found - expected).max() <= 0.51
    assert denoisers.isotropic_level(20.0, model()) == pytest.approx(20.0)
    ycocg = denoisers.isotropic_level(20.0, load_model(tiny_float, "float"))
    assert ycocg == pytest.approx(20 / (5**0.5 * (8 / 3) ** 0.5) ** (1 / 3), rel=1e-6)


def test_between_two_images_lie_such_between():
    shown = edits.interpolate(
        model(Constant), drawn((90,) * 3), drawn((170,) * 3), images=5, sigma=20.0, steps=10
    )
    levels = [np.asarray(image, float).mean() for image in shown]
    assert levels == pytest.approx([90, 110, 130, 150, 170], abs=6)
    assert all(a < b for a, b in pairwise(levels))
    with pytest.raises(UnsupportedError, match="expected one size"):
        edits.interpolate(model(), drawn("red"), drawn("red", (8, 8)))


def test_levels_without_a_way_down_are_refused(tiny):
    images = drawn("red"), drawn("blue")
    for sigma in (0.5, 1.25):
        with pytest.raises(UnsupportedError, match=r"no way down; give 1\.26 or more"):
            edits.interpolate(model(), *images, sigma=sigma)
    assert len(edits.interpolate(model(), *images, images=2, sigma=1.26)) == 2
    integer = load_model(tiny)
    with pytest.raises(UnsupportedError, match=r"no way down; give 0\.5 or more"):
        edits.interpolate(integer, *images, sigma=0.1)
    assert len(edits.interpolate(integer, *images, images=1, sigma=0.5)) == 1


def test_edits_refuse_arguments_by_name(tiny):
    image, mask = drawn("red"), np.ones((16, 16), bool)
    for call, said in (
        (lambda: edits.interpolate(model(), image, image, images=0), "images 0: expected 1"),
        (lambda: edits.interpolate(model(), image, image, sigma=np.nan), "sigma nan: expected"),
        (lambda: edits.denoise(load_model(tiny), image, 25), "integer model, which answers at"),
        (lambda: edits.denoise(model(), image, 0), "sigma 0: expected"),
        (lambda: edits.forward(model(), image, [3, np.nan]), "levels nan: expected"),
        (lambda: edits.inpaint(model(), image, mask, resamplings=0), "resamplings 0: expected 1"),
        (lambda: edits.inpaint(model(), image, mask[0]), "a mask of 16 for an image"),
        (lambda: edits.enlarge(model(), image, 0), "factor 0: expected 1"),
        (lambda: edits.enlarge(model(), image, 2, steps=1), "steps 1: expected 2"),
        (lambda: edits.enlarge(model(), image, 2, seed=-1), "seed -1: expected 0"),
    ):
        with pytest.raises(UnsupportedError, match=said):
            call()
    for wrong in (mask.astype(np.uint8), mask.astype(float), mask.tolist()):
        with pytest.raises(TypeError, match=r"missing: found .*, expected a NumPy array of bool"):
            edits.inpaint(model(), image, wrong)
    with pytest.raises(TypeError, match="image: found ndarray, expected an image of Pillow's"):
        edits.denoise(model(), np.asarray(image), 5)
    with pytest.raises(LimitError, match="48000 x 48000"):
        edits.enlarge(model(), drawn("red", (3000, 3000)), 16)


def test_edits_take_names_as_sample_does(tiny_float):
    found = edits.denoise(tiny_float, drawn("red"), 5)
    assert found == edits.denoise(load_model(tiny_float, "float"), drawn("red"), 5)


def test_what_is_missing_is_drawn_to_fit_the_rest():
    """Images of one colour: of the colour that the known half has."""
    image = np.full((16, 16, 3), (150, 110, 130), np.uint8)
    image[:, 8:] = 0
    missing = np.zeros((16, 16), bool)
    missing[:, 8:] = True
    errors = []
    for resamplings in (1, 8):
        found = np.asarray(
            edits.inpaint(
                model(Constant),
                Image.fromarray(image),
                missing,
                resamplings=resamplings,
                steps=20,
            ),
            float,
        )
        assert np.array_equal(found[:, :8], image[:, :8])
        errors.append(np.abs(found[:, 8:] - (150, 110, 130)).max())
    assert errors[1] < 3 and errors[1] <= errors[0]
    with pytest.raises(UnsupportedError, match="expected the same size"):
        edits.inpaint(model(), Image.fromarray(image), missing[:4])


def test_larger_images_have_the_means_of_the_small_one():
    small = np.random.default_rng(0).integers(80, 180, (6, 8, 3), dtype=np.uint8)
    large = np.asarray(edits.enlarge(model(), Image.fromarray(small), 4, steps=10), float)
    assert large.shape == (24, 32, 3)
    means = large.reshape(6, 4, 8, 4, 3).mean((1, 3))
    assert np.abs(means - small).max() < 1
    inside = large - means.repeat(4, 0).repeat(4, 1)
    assert inside.std() == pytest.approx(STD * np.sqrt(15 / 16), rel=0.1)


def transparent(mode="RGBA"):
    """Random pixels, of which some are transparent, some half."""
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (12, 16, 4), dtype=np.uint8)
    rgba[:, :, 3] = rng.choice([0, 128, 255], (12, 16))
    if mode != "P":
        return Image.fromarray(rgba).convert(mode)
    image = Image.fromarray(rgba[:, :, 0] % 3, "P")
    image.putpalette(rgba[0, :3, :3].tobytes())
    image.info["transparency"] = bytes([0, 128])
    return image


def alpha_of(image):
    assert image.mode == "RGBA"
    return np.asarray(image)[:, :, 3]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_edits_keep_the_alpha_of_images(mode):
    image, plain = transparent(mode), drawn("red")
    alpha, missing = alpha_of(image.convert("RGBA")), np.zeros((12, 16), bool)
    missing[4:9, 4:9] = True
    known = model()
    for found in (edits.denoise(known, image, 20.0), *edits.forward(known, image, [3.0, 30.0])):
        assert np.array_equal(alpha_of(found), alpha)
    filled = edits.inpaint(known, image, missing, steps=4, resamplings=1)
    assert np.array_equal(np.asarray(filled)[~missing], np.asarray(image.convert("RGBA"))[~missing])
    assert (alpha_of(filled)[missing] == 255).all()
    large = edits.enlarge(known, image, 2, steps=4)
    assert np.array_equal(alpha_of(large)[1::2, ::2], alpha)
    for ends in ((image, plain), (plain, image)):
        shown = edits.interpolate(known, *ends, images=3, sigma=20.0, steps=4)
        first, middle, last = map(alpha_of, shown)
        assert np.array_equal(first if ends[0] is image else last, alpha)
        assert np.array_equal(middle, np.rint((alpha + 255.0) / 2))
    assert edits.denoise(known, plain, 20.0).mode == "RGB"


# --- likelihood -----------------------------------------------------------------------------------


@pytest.mark.parametrize("exact", [True, False])
def test_the_odes_likelihood_is_the_known_one(exact):
    """Of Gaussian pixels, whose derivative is diagonal: Hutchinson's estimate is exact too."""
    rng = np.random.default_rng(0)
    pixels = np.clip(np.rint(rng.normal(127.5, STD, (8, 8, 3))), 0, 255).astype(np.uint8)
    found = ode_bits(model(), Image.fromarray(pixels), steps=60, exact=exact)
    x = torch.from_numpy(pixels.astype(np.float64))
    p = Gaussian(torch.tensor(127.5), torch.tensor(STD**2))
    known = gaussian_bits(x, p).sum().item()
    assert known - 1 < found < known + 0.03 * pixels.size


def test_the_divergence_is_that_of_the_network(tiny_float, tiny):
    loaded = load_model(tiny_float, "float")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8))
    exact = ode_bits(loaded, image, steps=4, exact=True)
    estimates = [ode_bits(loaded, image, steps=4, exact=False, seed=seed) for seed in range(6)]
    assert abs(np.mean(estimates) - exact) < 0.05 * exact
    assert ode_bits(loaded, image, steps=4, exact=True) == exact
    with pytest.raises(ModelMismatchError, match="which has no derivative"):
        ode_bits(load_model(tiny), image)


def test_guidance_says_nothing_by_default():
    assert Guidance().label is None
    known = Denoiser(model())
    z = known.levels(5)
    assert z == sorted(z, reverse=True) and len(z) == 5
    out = go_down(known, Noise(0, 1)(4, 4) * z[0] + 127.5, z, Noise(1, 1))
    assert out.isfinite().all()


# --- commands -------------------------------------------------------------------------------------


def opened(name):
    with Image.open(name) as image:
        return np.asarray(image)


@pytest.fixture
def here(tiny_float, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").write_bytes(tiny_float.read_bytes())
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(f"{name}.png")
    mask = Image.new("L", (16, 12))
    mask.paste(255, (4, 4, 9, 10))
    mask.save("mask.png")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("sample -n 3 --size 16x12 --steps 4 --sampler heun", (34, 26)),
        ("forward a.png --levels 5,50", (52, 12)),
        ("denoise a.png --sigma 20", (16, 12)),
        ("interpolate a.png b.png -n 3 --sigma 50 --steps 4", (52, 12)),
        ("inpaint a.png mask.png --steps 4 --resamplings 2", (16, 12)),
        ("enlarge a.png --factor 3 --steps 4 --resamplings 1", (48, 36)),
    ],
)
def test_commands_write_pictures(line, size):
    said = done(f"{line} --model m --out x.png").stderr
    assert f"x.png: {size[0]} x {size[1]}" in said
    first = opened("x.png")
    assert first.shape[1::-1] == size
    refused = run(f"{line} --model m --out x.png")
    assert refused.exit_code == 1 and "--force" in refused.stderr
    done(f"{line} --model m --out x.png --force --quiet")
    assert np.array_equal(opened("x.png"), first)
    if line.startswith("inpaint"):
        known = opened("mask.png") < 128
        assert np.array_equal(first[known], opened("a.png")[known])


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("forward t.png --levels 5,50", np.s_[:, 36:]),
        ("denoise t.png --sigma 20", np.s_[:]),
        ("interpolate a.png t.png -n 2 --sigma 50 --steps 4", np.s_[:, 18:]),
        ("inpaint t.png mask.png --steps 4 --resamplings 1", np.s_[:4]),
        ("enlarge t.png --factor 3 --steps 4 --resamplings 1", np.s_[1::3, 1::3]),
    ],
)
def test_commands_keep_the_alpha_of_images(line, place):
    transparent().save("t.png")
    done(f"{line} --model m --out x.png")
    alpha = alpha_of(transparent())
    expected = alpha[place] if line.startswith("inpaint") else alpha
    assert np.array_equal(opened("x.png")[place][..., 3], expected)


@pytest.mark.usefixtures("here")
def test_commands_keep_the_one_transparent_grey_of_16_bits():
    grey = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16) * 300
    Image.fromarray(grey).save("t.png", transparency=6000)
    done("denoise t.png --sigma 20 --model m --out x.png")
    assert np.array_equal(opened("x.png")[..., 3], np.where(grey == 6000, 0, 255))


@pytest.mark.usefixtures("here")
def test_what_is_transparent_of_a_mask_is_black():
    mask = Image.new("RGBA", (16, 12), (255, 255, 255, 0))
    mask.paste("white", (4, 4, 9, 10))
    mask.save("t.png")
    for name in ("mask", "t"):
        done(f"inpaint a.png {name}.png --steps 4 --resamplings 1 --model m --out x{name}.png")
    assert np.array_equal(opened("xmask.png"), opened("xt.png"))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("sample --out x.jpg", 2, "ends with .png"),
        ("sample --size 0 --out x.png", 2, "--size"),
        ("sample --class 1 --out x.png --model m", 1, "knows no classes; leave it out"),
        ("interpolate a.png mask.png --sigma 9 --out x.png --model none", 4, "no model 'none'"),
        ("inpaint a.png a.jpg --out x.png --model m", 1, "a.jpg"),
        ("inpaint a.png black.png --out x.png --model m", 1, "no part of it is white"),
        ("inpaint a.png small.png --out x.png --model m", 1, "expected the same size"),
        ("denoise a.png --sigma 0 --out x.png", 2, "--sigma"),
        ("interpolate a.png b.png --sigma 1 --out x.png --model m", 1, "give 1.26 or more"),
        ("denoise a.png --sigma 5 --out a.png --force", 1, "a.png"),
    ],
)
def test_commands_refuse_what_cannot_be(line, code, said):
    Image.new("L", (16, 12)).save("black.png")
    Image.new("L", (3, 3), 255).save("small.png")
    refused = run(line)
    assert refused.exit_code == code and said in refused.stderr
    assert not Path("x.png").exists()


@pytest.mark.usefixtures("here")
def test_evaluate_has_the_odes_likelihood_too():
    text = done("evaluate --data a.png --model m --bound-only --ode 4").stdout
    assert "by the ODE" in text
    loaded = json.loads(done("evaluate --data a.png --model m --ode 4 --json").stdout)
    image = Image.fromarray(opened("a.png"))
    expected = ode_bits(load_model("m", "float"), image, steps=4)
    assert loaded["ode_bpd"]["mean"] == pytest.approx(expected / (16 * 12 * 3))
