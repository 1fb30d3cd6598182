"""The notebooks of the tutorial are those of the scripts beside them, and run."""

import importlib.util
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")

FOLDER = Path(__file__).parents[1] / "docs" / "tutorial"
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))
spec = importlib.util.spec_from_file_location("make_tutorial", FOLDER / "make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_has_the_cells_of_its_script_and_no_error(script):
    notebook = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    cells = make.read_cells(script.read_text())
    assert [(c.cell_type, c.source) for c in notebook.cells] == [
        (c.cell_type, c.source) for c in cells
    ]
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs and all(output.output_type != "error" for output in outputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_notebook_runs(script):
    assert make.make(script).cells
