"""Training and evaluation from Python."""

import pytest
from samples import make_image

import diffcodec
from diffcodec.errors import DiffcodecError
from diffcodec.networks.config import one_network


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(3):
        make_image("RGB", (16, 16), seed=seed).save(folder / f"{seed}.png")
    return folder


def test_evaluate(tiny, tiny_float, pictures):
    found = diffcodec.evaluate(pictures, tiny, "fast", limit=2)
    assert found["bound_bpd"]["mean"] > 0
    assert found["file_bpd"]["mean"] > 0
    assert diffcodec.evaluate(str(pictures), str(tiny), bound_only=True).keys() == found.keys() - {
        "file_bpd",
        "file_bytes",
    }
    assert diffcodec.evaluate(pictures, tiny_float, "fast", limit=1)["file_bpd"]["mean"] > 0
    with pytest.raises(DiffcodecError, match="no plan"):
        diffcodec.evaluate(pictures, tiny, "slow")
    with pytest.raises(DiffcodecError, match="no such folder"):
        diffcodec.evaluate(pictures / "none", tiny)


def test_train_has_what_the_command_has(tmp_path, pictures, tiny):
    labels = tmp_path / "labels.txt"
    labels.write_text("0\n2\n1\n")
    settings = {"steps": 1, "batch": 8, "crop": 16, "compile": False, "init": tiny}
    path = diffcodec.train(
        pictures, tmp_path / "run", labels=labels, augment="mirror", precision="float32", **settings
    )
    network = diffcodec.load_model(path).info.network
    assert (network.classes, network.self_ensemble) == (3, "mirror")


def test_train(tmp_path, pictures):
    small = one_network(channels=(8, 8), blocks=(1, 1))
    settings = {"steps": 2, "batch": 8, "crop": 16, "compile": False, "network": small}
    path = diffcodec.train(pictures, tmp_path / "run", precision="float32", **settings)
    image = make_image("RGB", (9, 7))
    model = diffcodec.load_model(path)
    assert diffcodec.decode(diffcodec.encode(image, model), model=model) == image
    with pytest.raises(DiffcodecError, match="holds a run already"):
        diffcodec.train(pictures, tmp_path / "run", **settings)
    with pytest.raises(TypeError, match="found step, expected"):
        diffcodec.train(pictures, tmp_path / "other", step=3)
