"""The floor plan that docs/architecture.md draws: who may import whom, and how long things are."""

import ast
import pydoc
import re
import rlcompleter
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import diffcodec
from diffcodec.coding.ans import Stack
from diffcodec.coding.relative_entropy.step import surprise_bits
from diffcodec.planning.costs import Course

PACKAGE = Path(diffcodec.__file__).parent
# From the ground up; each may import what stands before it.
FLOORS = (
    *("errors", "limits", "values", "arrays", "forks", "compiled", "intervals"),
    *("system", "container", "diffusion", "networks", "coding", "images", "models"),
    *("sampling", "codec"),
    "archive",
    *("training", "evaluation", "planning", "viewing", "cli"),
    *("pillow", "numcodecs", "zarr", "torch"),
)
BESIDE = {("training", "codec")}  # training and coding stand side by side
LONGEST_FILE, LONGEST_FUNCTION = 500, 60
FILES = sorted(PACKAGE.rglob("*.py"))
DOCS = [PACKAGE.parent / "README.md", *sorted((PACKAGE.parent / "docs").glob("*.md"))]
BENCH = sorted((PACKAGE.parent / "bench").glob("*.py"))


def room(path: Path) -> str:
    """The folder, or the file beside the folders."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> Iterator[str]:
    """The rooms that a file names in an import, wherever that stands in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffcodec."):
            yield (node.module or "").split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "diffcodec":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            yield from (parts[1] for parts in names if parts[0] == "diffcodec" and parts[1:])


def test_every_room_has_its_floor() -> None:
    assert {room(path) for path in FILES} == {*FLOORS, "__init__", "__main__"}


@pytest.mark.parametrize("floor", FLOORS)
def test_a_room_imports_only_from_those_below(floor: str) -> None:
    below = set(FLOORS[: FLOORS.index(floor) + 1]) | {"__version__"}
    below -= {other for one, other in BESIDE if one == floor}
    found = {(path.name, name) for path in FILES if room(path) == floor for name in imports(path)}
    assert {(file, name) for file, name in found if name not in below} == set()


@pytest.mark.parametrize(
    "path", [*FILES, *BENCH], ids=lambda path: str(path.relative_to(PACKAGE.parent))
)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < LONGEST_FILE
    functions = (n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef))
    lengths = {n.name: (n.end_lineno or 0) - n.lineno + 1 for n in functions}
    assert {name: n for name, n in lengths.items() if n >= LONGEST_FUNCTION} == {}
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_shapes_are_of_arrays_not_of_their_elements_types(path: Path) -> None:
    """``NDArray[...]`` is no class from NumPy 2.5 on, which jaxtyping refuses when it is read."""
    tree = ast.parse(path.read_text())
    jaxtyping = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "jaxtyping"
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in jaxtyping:
            assert "NDArray" not in ast.unparse(node), f"line {node.lineno}"


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
FRAGMENT = re.compile(r"(Of|As|By|In|At|Whose|With|On|And|From)\b")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE.parent)))
def test_docstrings_begin_with_what_they_describe(path: Path) -> None:
    """A first word that only goes on from a name says nothing where the name is not read."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        docstring = (ast.get_docstring(node) or "") if isinstance(node, DOCUMENTED) else ""
        if FRAGMENT.match(docstring):
            line = getattr(node, "lineno", 1)
            found.append(f"{path}:{line}: {docstring.splitlines()[0]}")
    assert not found, "\n".join(found)


PUBLIC_NAMES = """
import sys
import diffcodec

names = set(dir(diffcodec))
assert {"decode", "encode", "encode_many", "iter_decode", "load_model", "recover"} <= names
assert {"evaluate", "train"} <= names
assert not {"Any", "TYPE_CHECKING"} & names
assert {"DiffcodecError", "Limits", "errors", "__version__"} <= names
assert issubclass(diffcodec.errors.CorruptError, diffcodec.DiffcodecError)
assert not {"torch", "numpy", "PIL"} & set(sys.modules)
assert all(getattr(diffcodec, name) is not None for name in diffcodec.__all__)
"""


def test_public_names_are_seen_before_torch_is_loaded() -> None:
    subprocess.run([sys.executable, "-c", PUBLIC_NAMES], check=True, cwd=PACKAGE.parent)


def test_help_shows_the_public_names() -> None:
    shown = pydoc.render_doc(diffcodec, renderer=pydoc.plaintext)
    for name in set(diffcodec.__all__) - {"errors"}:
        assert f"{name}(" in shown or f"class {name}" in shown


def test_completion_finds_the_public_names() -> None:
    completer = rlcompleter.Completer({"diffcodec": diffcodec})
    matches = completer.attr_matches("diffcodec.")
    found = {match.removeprefix("diffcodec.").split("(")[0] for match in matches}
    assert set(diffcodec.__all__) <= found


CODING = """
import sys
from pathlib import Path
from PIL import Image
import diffcodec

image = Image.effect_noise((32, 32), 50).convert("RGB")
for model in sys.argv[1:]:
    assert diffcodec.decode(diffcodec.encode(image, model), model=model) == image
assert not {"sympy", "torch._dynamo", "matplotlib"} & set(sys.modules)
"""


def test_coding_loads_no_compiler(tiny: Path, phased: Path) -> None:
    """It would take longer than coding a small image."""
    subprocess.run(
        [sys.executable, "-c", CODING, str(tiny), str(phased)],
        check=True,
        cwd=PACKAGE.parent,
        timeout=100,
    )


def test_calls_are_held_against_the_shapes_in_signatures() -> None:
    """Of functions, methods and dataclasses: lengths that are the same, and types of elements."""
    with pytest.raises(TypeError, match="surprise_bits: expected gain"):
        surprise_bits(np.zeros(3), np.zeros(4))
    with pytest.raises(TypeError, match="push_categorical: expected table"):
        Stack(np.ones(2, np.uint32)).push_categorical(np.zeros(3, np.int32), np.ones((4, 2)))
    with pytest.raises(TypeError, match="__init__: expected sent"):
        Course(heights=np.zeros((3, 2)), sent=np.zeros((2, 5)))


@pytest.mark.parametrize("page", DOCS, ids=lambda path: path.name)
def test_tests_that_the_docs_name_exist(page: Path) -> None:
    """``file.py``, ``file.py::name``, and ``::name`` of the file named before it in the line."""
    for line in page.read_text().splitlines():
        file = ""
        for found, name in re.findall(r"`(?:tests/)?(test_\w+\.py)?(?:::(\w+))?`", line):
            file = found or file
            if found or name:
                text = (Path(__file__).parent / file).read_text()
                assert re.search(rf"^(def |class )?{name}\b" if name else "", text, re.M), name
