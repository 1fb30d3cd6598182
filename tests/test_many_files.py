"""Many files at once: by several processes of which any may die, and again where that ended."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from work import work

from diffcodec.cli import running
from diffcodec.cli.program import cli
from diffcodec.codec import decoding, encoding
from diffcodec.errors import FormatError, WorkerDiedError
from diffcodec.system import workers
from diffcodec.system.files import remove_temporaries
from diffcodec.system.workers import run_in_workers

ROOT = Path(__file__).parents[1]
COUNT = 24
pytestmark = pytest.mark.filterwarnings("ignore:This process")  # of forks; there are none


def outcomes(groups: list[list[tuple[str, str]]]) -> dict[str, object]:
    return {job[0]: outcome for job, outcome in run_in_workers(work, groups, 2)}


# --- workers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [1, 3, 7])
def test_a_worker_that_dies_costs_its_file_only(tmp_path: Path, together: int) -> None:
    names = ["a", "error", "killed", "b", "exit", "c", "d"]
    jobs = [(name, str(tmp_path / name)) for name in names]
    found = outcomes([jobs[i : i + together] for i in range(0, len(jobs), together)])
    assert list(found) != [] and sorted(found) == sorted(names)
    assert {name: found[name] for name in "abcd"} == {"a": "A", "b": "B", "c": "C", "d": "D"}
    assert isinstance(found["error"], FormatError)
    killed, left = found["killed"], found["exit"]
    assert isinstance(killed, WorkerDiedError) and "ended by SIGKILL; run it" in str(killed)
    assert isinstance(left, WorkerDiedError) and "ended by exit status 3; run it" in str(left)
    assert not multiprocessing.active_children()
    assert {path.name for path in tmp_path.iterdir()} == set("abcd")


def test_a_worker_that_dies_has_no_more_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that have nothing to do take what it leaves."""
    made: list[Any] = []
    alive = []

    class Worker(workers._Worker):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            made.append(self.process)
            alive.append(sum(process.is_alive() for process in made))

    monkeypatch.setattr(workers, "_Worker", Worker)
    groups = [["a"], ["last", "b", "c"]]
    found = outcomes([[(name, str(tmp_path / name)) for name in group] for group in groups])
    assert isinstance(found.pop("last"), WorkerDiedError)
    assert found == {"a": "A", "b": "B", "c": "C"} and max(alive) == 2


def test_what_a_killed_process_leaves_is_removed(tmp_path: Path) -> None:
    left, other = tmp_path / ".diffcodec-12-ab.tmp", tmp_path / ".diffcodec-123-ab.tmp"
    left.touch()
    other.touch()
    remove_temporaries(str(tmp_path / "file"), 12)
    assert list(tmp_path.iterdir()) == [other]


def test_workers_that_are_no_longer_wanted_end_at_once(tmp_path: Path) -> None:
    jobs = [(name, str(tmp_path / name)) for name in ("slow", "a", "b")]
    running = run_in_workers(work, [[job] for job in jobs], 2)
    assert next(running) == (jobs[1], "A")
    start = time.monotonic()
    running.close()
    assert time.monotonic() - start < 600  # a slow one sleeps for an hour
    assert not multiprocessing.active_children()
    assert not list(tmp_path.glob(".*"))


PARENT = """
import signal, sys
sys.path.insert(0, "tests")
from work import work
from diffcodec.system.process import leave_on_signals
from diffcodec.system.workers import run_in_workers

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts without
    leave_on_signals()
    jobs = [("slow", f"{sys.argv[1]}/{i}") for i in range(4)]
    list(run_in_workers(work, [[job] for job in jobs], 2))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_end_the_workers_too(tmp_path: Path, number: int) -> None:
    script, folder = tmp_path / "parent.py", tmp_path / "folder"
    script.write_text(PARENT)
    folder.mkdir()
    command = [sys.executable, str(script), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    with process:
        while len(list(folder.iterdir())) < 2:
            time.sleep(0.02)
            assert process.poll() is None
        os.killpg(process.pid, number)
    assert process.returncode == -number
    assert not list(folder.iterdir())


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of tiny images, one of them none."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for folder in ("in", "out"):
        Path(folder).mkdir()
    for i in range(COUNT):
        height, width = rng.integers(1, 9, 2)
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"in/{i:02}.png")
    Path("in/11.png").write_bytes(b"none")
    return sorted(map(str, Path("in").iterdir()))


def run(tiny: Path, command: str, paths: list[str]) -> Result:
    arguments = [*command.split(), "--model", str(tiny), *paths]
    return CliRunner().invoke(cli, arguments, prog_name="diffcodec")


def names(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def check_outputs(tiny: Path, images: list[str]) -> None:
    """There is one for each image but the one that is none, and nothing else."""
    good = [Path(path) for path in images if path != "in/11.png"]
    assert names("out") == [f"{path.stem}.dfc" for path in good]
    for path in good:
        decoded = decoding.decode(Path(f"out/{path.stem}.dfc").read_bytes(), model=str(tiny))
        with Image.open(path) as image:
            assert decoded.tobytes() == image.tobytes()


def test_an_input_that_cannot_be_read_does_not_stop_the_rest(tiny: Path, images: list[str]) -> None:
    result = run(tiny, "encode --output-dir out", images)
    assert result.exit_code == 1
    assert result.stderr.endswith(f"diffcodec: 1 of {COUNT} inputs failed: in/11.png\n")
    assert result.stderr.count("in/11.png: ") == 1
    check_outputs(tiny, images)


def test_a_run_that_ended_half_way_is_taken_up(tiny: Path, images: list[str]) -> None:
    run(tiny, "encode --output-dir out --quiet", images[:9])
    before = {path: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    assert run(tiny, "encode --output-dir out", images[:9]).exit_code == 1
    result = run(tiny, "encode --output-dir out --skip-existing --json", images)
    assert result.exit_code == 1
    said = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["input"] for line in said] == images
    assert said[8] == {"input": "in/08.png", "output": "out/08.dfc", "skipped": True}
    assert [line.get("skipped", False) for line in said] == 9 * [True] + (COUNT - 9) * [False]
    assert f"diffcodec: 9 of {COUNT} outputs exist: skipped\n" in result.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    check_outputs(tiny, images)
    result = run(tiny, "encode --output-dir out --skip-existing --quiet", images[:9])
    assert (result.exit_code, result.output) == (0, "")


def test_a_worker_is_killed_half_way(
    tiny: Path, images: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []

    def kill_at_the_fourth(line: bytes) -> None:
        printed.append(line.decode())
        if len(printed) == 4:  # long before in/11.png is begun
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(running, "write_standard_output", kill_at_the_fourth)
        result = run(tiny, "encode --output-dir out --jobs 2 --json", images)
    assert result.exit_code == 1
    said = {line["input"]: line for line in map(json.loads, printed)}
    assert sorted(said) == images
    failed = {path: line["error"] for path, line in said.items() if "error" in line}
    lost = {path: error for path, error in failed.items() if path != "in/11.png"}
    for error in lost.values():  # of none, if it had more than one
        assert error.startswith(
            "its worker process was ended by SIGKILL; run it again with --skip-"
        )
    assert f"diffcodec: {len(failed)} of {COUNT} inputs failed: " in result.stderr
    assert len(lost) < 2
    stems = {Path(path).stem for path in images if path not in failed}
    assert {Path(name).stem for name in names("out")} - {Path(path).stem for path in lost} == stems
    result = run(tiny, "encode --output-dir out --skip-existing", images)
    assert result.exit_code == 1
    check_outputs(tiny, images)


def test_decode_is_taken_up_too(tiny: Path, images: list[str]) -> None:
    run(tiny, "encode --output-dir out --quiet", images[:6])
    files = [f"out/{name}" for name in names("out")]
    Path("out/03.dfc").write_bytes(b"damaged")
    result = run(tiny, "decode --output-dir out", files)
    assert (result.exit_code, len(names("out"))) == (3, 11)
    codec_file = encoding.encode(Image.open("in/03.png"), str(tiny))
    Path("out/03.dfc").write_bytes(codec_file)
    result = run(tiny, "decode --output-dir out --skip-existing", files)
    assert result.exit_code == 0
    assert result.stderr.splitlines()[1:] == ["diffcodec: 5 of 6 outputs exist: skipped"]
    with Image.open("in/03.png") as image, Image.open("out/03.png") as decoded:
        assert decoded.tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("encode --output-dir out --skip-existing --force", "exclude each other"),
        ("decode --output-dir out --skip-existing --force", "exclude each other"),
        ("encode --output-dir out --jobs 2 --arithmetic float", "number of threads"),
        ("encode --output-dir out --jobs 0", "--jobs"),
    ],
)
def test_wrong_usage(tiny: Path, images: list[str], command: str, message: str) -> None:
    result = run(tiny, command, images)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not names("out")


def test_the_input_itself_is_no_output_that_exists(tiny: Path, images: list[str]) -> None:
    Path(images[0]).rename("in/image.dfc")
    result = run(tiny, "encode --output-dir in --skip-existing", ["in/image.dfc"])
    assert result.exit_code == 1
    assert "the input itself" in result.stderr
