"""Any network that says a posterior of x codes images, under an identity of its own."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch

from diffcodec import decode, encode, load_model
from diffcodec.container.reader import parse
from diffcodec.diffusion.plan import geometric_plan
from diffcodec.errors import DiffcodecError, ModelMismatchError
from diffcodec.models import file
from diffcodec.models.model import Model
from diffcodec.networks.protocol import PosteriorNetwork, digest
from diffcodec.planning.propose import propose_plans, replace_plans

PLANS = {"default": geometric_plan(4)}
IMAGE = np.add.outer(np.arange(9), 2 * np.arange(13)).astype(np.uint8)[:, :, None].repeat(3, 2)


class Grey:
    color, multiple, levels, is_exact, identity = "rgb", 4, None, False, b"grey"

    def posterior_x(self, z, sigma):
        return torch.full_like(z, 127.5), torch.full_like(z, 4000.0)


def other(**changed):
    return type("Other", (Grey,), changed)()


@pytest.mark.usefixtures("chain_only")
def test_a_network_of_four_lines_codes_an_image():
    network: PosteriorNetwork = Grey()
    model = Model(network, PLANS, "grey")
    data = encode(IMAGE, model)
    container = parse(data)
    assert container.float_arithmetic and container.model == model.info.id
    assert container.model not in {load_model(p).info.id for p in file.shipped_models()}
    assert np.array_equal(np.asarray(decode(data, model=model)), IMAGE)
    with pytest.raises(ModelMismatchError, match=r"none of the shipped ones.*--model"):
        decode(data)
    with pytest.raises(ModelMismatchError, match=f"{model.info.id.hex()}, the one given is photo"):
        decode(data, model="photo")
    preview = encode(IMAGE, model, timestep=2)
    assert parse(preview).float_arithmetic and parse(preview).model == model.info.id


def test_the_identity_is_of_network_and_plans():
    models = [
        Model(Grey(), PLANS),
        Model(other(identity=b"other"), PLANS),
        Model(Grey(), {"default": geometric_plan(5)}),
        Model(Grey(), {"fast": geometric_plan(4)}),
        Model(other(color="ycocg"), PLANS),
    ]
    assert len({model.info.id for model in models}) == len(models)
    assert Model(Grey(), PLANS, "another name").info.id == models[0].info.id
    assert Model(other(is_exact=True), PLANS).arithmetic == "integer"


def test_a_shipped_network_with_other_plans_is_another_model(tiny):
    model = load_model(tiny)
    again = Model(model.network, {"default": model.plans["fast"]})
    assert again.arithmetic == "integer" and again.info.id != model.info.id
    with pytest.raises(ModelMismatchError, match=r"noise levels \[1\.75\], for which"):
        levels = (0.5, 1.75, *model.plans["fast"].levels[2:])
        Model(model.network, {"default": type(model.plans["fast"])(levels, (3.0,) * 3)})


def test_what_is_no_network_and_no_plans_is_named():
    for kind, network, plans, said in (
        (TypeError, object(), PLANS, "found object without color, multiple, .* posterior_x"),
        (ValueError, other(color="zz"), PLANS, "the color 'zz', expected one of ycocg, rgb"),
        (ValueError, other(color=["rgb"]), PLANS, "expected one of ycocg, rgb"),
        (ValueError, other(multiple=0), PLANS, "the multiple 0, expected 1 or more"),
        (TypeError, other(multiple=1.5), PLANS, "multiple: found float, expected an integer"),
        (TypeError, Grey(), None, "plans: found None, expected a mapping"),
        (TypeError, Grey(), {"default": 4}, "plans: found .*, expected a mapping of names to Plan"),
    ):
        with pytest.raises(kind, match=said):
            Model(network, plans)


def test_a_digest_is_of_every_part():
    tensors = {"a": torch.arange(4.0), "b": torch.zeros(2)}
    digests = {
        digest({}, tensors),
        digest({"depth": 1}, tensors),
        digest({}, tensors | {"a": torch.arange(4.0).view(2, 2)}),
        digest({}, tensors | {"a": torch.arange(1.0, 5.0)}),
        digest({}, {"c": tensors["a"], "b": tensors["b"]}),
    }
    assert len(digests) == 5
    assert digest({}, dict(reversed(tensors.items()))) in digests


def test_a_digest_is_of_the_bytes_of_tensors_of_any_type():
    found = []
    for kind in (torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.complex64):
        tensor = torch.ones(2, 3).to(kind).t()
        found.append(digest({}, {"a": tensor, "b": tensor[:0], "c": tensor[0, 0]}))
    assert len(set(found)) == 5
    tensor, sha = torch.arange(6.0).view(2, 3).t(), hashlib.sha256(b"{}")
    sha.update(b"a torch.float32 [3, 2] " + tensor.numpy().tobytes())
    assert digest({}, {"a": tensor}) == sha.digest()  # the identity of models in files


def test_networks_of_files_have_the_identity_of_their_numbers(tiny, tmp_path):
    networks = [load_model(tiny).network, load_model(tiny, "float").network]
    copy = shutil.copy(tiny, tmp_path / "copy.safetensors")
    again = [load_model(copy).network, load_model(copy, "float").network]
    assert [n.identity for n in networks] == [n.identity for n in again]
    assert networks[0].identity != networks[1].identity


def test_a_model_says_what_it_is(tiny):
    model = load_model(tiny)
    said = f"<Model tiny {model.info.id.hex()}: integer, timesteps fast 4, default 6, best 8>"
    assert repr(model) == said
    assert repr(Model(Grey(), PLANS)).endswith(": float, timesteps default 4>")


def test_what_takes_a_float_network_says_so(tiny):
    x = torch.zeros(2, 3, 16, 16)
    integer, foreign = load_model(tiny), Model(Grey(), PLANS)
    for work in (
        lambda: propose_plans(integer, x, x),
        lambda: replace_plans(integer, PLANS, x),
        lambda: replace_plans(foreign, PLANS, x),
    ):
        with pytest.raises(DiffcodecError, match=r"this takes a float network.*load_model"):
            work()


# --- which file -----------------------------------------------------------------------------------


def test_a_model_file_that_was_replaced_is_read_again(tiny, tiny_float, tmp_path):
    path = tmp_path / "model.safetensors"
    shutil.copy(tiny, path)
    first = load_model(path, "float")
    assert load_model(path, "float") is first and file.model_info(path) is file.model_info(path)
    shutil.copy(tiny_float, tmp_path / "new").replace(path)
    assert load_model(path, "float").info.id == file.model_info(path).id != first.info.id


def test_the_index_names_the_shipped_models():
    shipped = {file.file_id(p.read_bytes()).hex(): p.stem for p in file.shipped_models()}
    assert json.loads((file.MODEL_FOLDER / file.INDEX).read_text()) == shipped, json.dumps(shipped)


def test_of_the_shipped_models_only_the_one_is_read(monkeypatch):
    index = json.loads((file.MODEL_FOLDER / file.INDEX).read_text())
    read, plain = [], file.read_model_info
    monkeypatch.setattr(file, "read_model_info", lambda path: read.append(path) or plain(path))
    file._model_info.cache_clear()
    for model_id, name in index.items():
        assert file.find_model_path(bytes.fromhex(model_id)).stem == name
    assert [path.stem for path in read] == list(index.values())


def test_an_index_that_is_wrong_is_not_believed(monkeypatch, tiny, tmp_path):
    monkeypatch.setattr(file, "MODEL_FOLDER", tmp_path)
    path = shutil.copy(tiny, tmp_path / "tiny.safetensors")
    model_id = file.file_id(tiny.read_bytes())
    assert file.find_model_path(model_id) == path
    (tmp_path / file.INDEX).write_text(json.dumps({"00000000": "tiny", model_id.hex(): "gone"}))
    assert file.find_model_path(model_id) == path
    with pytest.raises(ModelMismatchError, match="00000000, which is none of the shipped ones"):
        file.find_model_path(bytes(4))
