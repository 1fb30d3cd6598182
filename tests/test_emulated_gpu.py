"""On an emulated GPU: nothing of the wrong memory, nothing waited for, the same bytes."""

from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from emulated_gpu import GPU, Event, emulated_gpu
from golden import FOLDER

from bench.gpu import by_the_chain
from diffcodec import decode, encode, encode_many, load_model
from diffcodec.codec import batches
from diffcodec.models import answering
from diffcodec.models.export import quantize_model
from diffcodec.models.model import is_posterior
from diffcodec.networks.gemm import GemmConv
from diffcodec.planning import propose
from diffcodec.planning.simulate import predict_files
from diffcodec.training.crops import domain_batch

MODELS = [FOLDER / "model.safetensors", FOLDER / "phased.safetensors"]


def picture(side, seed=0):
    grain = np.random.default_rng(seed).integers(0, 8, (side, side + 4, 3))
    slope = np.add.outer(np.arange(side), np.arange(side + 4))[..., None]
    return (slope + grain).astype(np.uint8)


@pytest.mark.parametrize("path", MODELS)
def test_files_are_the_same_and_nothing_is_waited_for_but_answers(path):
    """Numbers that are brought there when they are first used stay there."""
    image = picture(21)
    with by_the_chain():
        expected = encode(image, path, "fast")
        with emulated_gpu(proves=path == MODELS[0]) as gpu:
            model = load_model(path, device="cuda")
            assert model.device == GPU
            assert encode(image, model, "fast") == expected
            gpu.waits.clear()
            gpu.calls.clear()
            Event.waited_for = 0
            assert np.array_equal(decode(expected, model=model), image)
        assert not gpu.waits
        assert {"_int_mm", "mm"} & set(gpu.calls)  # the latter without VNNI: see conftest.py
        assert "convolution" not in gpu.calls
        phases = 5 if model.phased else 1  # evaluations of a level, each waited for once
        assert Event.waited_for == phases * len(model.plans["fast"].levels)


@contextmanager
def noted_flights():
    """What was asked and answered, in order."""
    course, plain = [], answering.ask

    def ask(model, plan, requests):
        course.append("asked")
        answers = plain(model, plan, requests)

        def noted():
            course.append("answered")
            return answers()

        return noted

    with mock.patch.object(batches, "ask", ask):
        yield course


def test_one_group_is_coded_while_the_other_is_evaluated():
    images = [picture(8, seed) for seed in range(3)]
    alone = 8 * 12
    with by_the_chain(), mock.patch.object(batches, "BATCH_PIXELS", alone):
        with noted_flights() as here:
            expected = list(encode_many(images, MODELS[0], "fast"))
        with emulated_gpu(), mock.patch.object(batches, "DEVICE_PIXEL_BYTES", (1 << 32) // alone):
            model = load_model(MODELS[0], device="cuda")
            assert batches.batch_pixels(model) == alone
            with noted_flights() as there:
                assert list(encode_many(images, model, "fast")) == expected
    assert here == ["asked", "answered"] * (len(here) // 2)
    assert sorted(there) == sorted(here)
    flying = np.cumsum([1 if what == "asked" else -1 for what in there])
    assert flying.max() == 2
    alone = flying.tolist().index(0)  # the last group
    assert flying[alone:].max() == 1 and alone > len(flying) / 2


def test_what_is_no_number_there_ends_the_file_not_the_gpu():
    with emulated_gpu():
        model = load_model(MODELS[0], device="cuda")
        expert = model.network.experts[0]
        name = next(n for n in expert._convs if n.startswith("shrink"))
        conv = expert._convs[name]
        sigma = model.info.levels[0]
        z = np.zeros((1, 3, 8, 8))
        assert is_posterior(*model.posterior_x(z, sigma))
        expert._convs[name] = conv._replace(scale=np.full_like(conv.scale, np.nan))
        assert not is_posterior(*model.posterior_x(z, sigma))
        expert._convs[name] = conv
        assert is_posterior(*model.posterior_x(z, sigma))


def test_windows_are_in_memory_part_by_part(monkeypatch):
    weight = torch.randint(-20, 21, (8, 5, 3, 3))
    x = torch.randint(-4000, 4001, (5, 5, 6, 4)).float()
    whole = GemmConv(weight, 4095, torch.device("cpu")).sums(x)
    monkeypatch.setattr("diffcodec.networks.gemm.MOST_BYTES", 1 << 12)
    calls = []
    plain = GemmConv._sums
    monkeypatch.setattr(
        GemmConv, "_sums", lambda self, x, stride: calls.append(len(x)) or plain(self, x, stride)
    )
    assert torch.equal(GemmConv(weight, 4095, torch.device("cpu")).sums(x), whole)
    assert len(calls) > 1 and sum(calls) == 5


def test_models_are_quantised_and_plans_searched_there(phased_float):
    """As on the CPU: of a search the network alone computes there."""
    rgb = torch.from_numpy(picture(16)[:, :16].transpose(2, 0, 1).astype(np.int16))
    crops = domain_batch(rgb[None].repeat(2, 1, 1, 1), "ycocg")

    def found(model):
        network, color, phased, _ = propose._asked(model)
        others = propose.fallback_bpd(crops, color)
        plan = model.plans["fast"]
        return predict_files(network, crops, color, plan, others, phased=phased)

    here = load_model(phased_float, "float")
    expected = quantize_model(here, crops), found(here)
    with emulated_gpu() as gpu:
        there = load_model(phased_float, "float", "cuda")
        gpu.calls.clear()
        assert quantize_model(there, crops) == expected[0]
        assert "linalg_cholesky_ex" in gpu.calls
        assert np.array_equal(found(there), expected[1])
