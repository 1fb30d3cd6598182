"""Groups of tiles on their way through a model side by side."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from threads import threads
from tiny import tiny_model

from diffcodec.codec import batches
from diffcodec.codec.batches import progress_bar, run
from diffcodec.codec.jobs import Job, Part
from diffcodec.coding.chain import Request
from diffcodec.container.parts import Box
from diffcodec.models.model import Model, load_model

SIDE = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "LEAST_BATCH_PIXELS", SIDE**2)
    monkeypatch.setattr(batches, "PIXELS_IN_FLIGHT", 6 * SIDE**2)


def parts(count: int) -> list[Part]:
    return [Part("default", i, Box(0, 0, SIDE, SIDE)) for i in range(count)]


def results(jobs: list[Job[int]], model: Model) -> Iterator[int]:
    return run(jobs, parts(len(jobs)), model, progress_bar(1, False))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_all_come_in_order_and_so_many_are_on_their_way(model: Model, count: int) -> None:
    running, most, shares = set(), [0], set()
    together = threading.Barrier(min(count, 3))

    def job(index: int) -> Job[int]:
        running.add(index)
        if index < together.parties:  # on a busy machine they would not meet by themselves
            together.wait(60)
        most[0] = max(most[0], len(running))
        shares.add(torch.get_num_threads())
        time.sleep(0.02 * (count - index))  # the first is the last to be done
        yield from []
        running.remove(index)
        return index

    with threads(4):
        assert list(results([job(i) for i in range(count)], model)) == list(range(count))
        assert torch.get_num_threads() == 4
    assert most[0] == min(count, 3)
    assert shares == {4 // min(count, 3)}


def test_the_error_of_one_ends_the_others(model: Model) -> None:
    asked = []

    def fails() -> Job[int]:
        yield from []
        raise ValueError("of this one")

    def goes_on() -> Job[int]:
        while True:
            asked.append(1)
            yield Request(np.full((3, SIDE, SIDE), 128.0), 1)

    with threads(2):
        with pytest.raises(ValueError, match="of this one"):
            list(results([fails(), goes_on()], model))
        after = len(asked)
        time.sleep(0.02)
        assert len(asked) == after


def test_what_is_left_early_ends_too(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def job(index: int) -> Job[int]:
        yield from []
        time.sleep(0.02)
        done.append(index)
        return index

    monkeypatch.setattr(batches, "BATCH_PIXELS", SIDE**2)
    with threads(2):
        several = results([job(i) for i in range(9)], model)
        assert next(several) == 0
        several.close()  # type: ignore[attr-defined]
        assert len(done) < 9
        assert torch.get_num_threads() == 2
