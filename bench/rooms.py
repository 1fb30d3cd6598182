"""The package's floor plan in figures: files, folders, circles, and the files that an image passes.

Of the package that Python finds, so that another checkout is measured by its own path::

    python -m bench rooms
    PYTHONPATH=../other-checkout python bench/rooms.py
"""

import ast
import io
import sys
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import click
import numpy as np
from PIL import Image

import diffcodec

PACKAGE = Path(diffcodec.__file__).parent
Graph = dict[str, set[str]]
BLANK = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
BLANK |= {tokenize.ENDMARKER}


def module_of(path: Path) -> str:
    """The dotted name of a file's module, without the package's own name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def named_imports(tree: ast.AST) -> Iterator[str]:
    """The modules and members of the package that a file imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "diffcodec":
            module = ".".join((node.module or "").split(".")[1:])
            yield from (f"{module}.{alias.name}".lstrip(".") for alias in node.names)
            yield module


def import_graph(sources: dict[str, ast.Module]) -> Graph:
    """The files that each file imports."""
    return {
        name: {other for other in named_imports(tree) if other in sources and other != name} - {""}
        for name, tree in sources.items()
    }


def reachable(graph: Graph, start: str) -> set[str]:
    """All that can be come to from a file along its imports."""
    seen: set[str] = set()
    left = list(graph[start])
    while left:
        if (name := left.pop()) not in seen:
            seen.add(name)
            left += graph.get(name, ())
    return seen


def in_circles(graph: Graph) -> list[str]:
    """The names that can be come back to."""
    return sorted(name for name in graph if name in reachable(graph, name))


def of_folders(graph: Graph) -> Graph:
    """The same graph by folder; files beside the folders are their own."""
    folders: Graph = {}
    for name, others in graph.items():
        folder = name.split(".")[0]
        found = {other.split(".")[0] for other in others} - {folder}
        folders[folder] = folders.get(folder, set()) | found
    return folders


def passed(work: Callable[[], Any]) -> tuple[Any, set[str], int]:
    """What work gives, the files that its calls enter, and the pairs of files that call each other.

    A generator that goes on counts as called by whom it was sent to.
    """
    rooms: set[str] = set()
    doors: set[tuple[str, str]] = set()

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            room = module_of(Path(frame.f_code.co_filename))
            rooms.add(room)
            caller = frame.f_back
            if caller and caller.f_code.co_filename.startswith(str(PACKAGE)):
                doors.add((module_of(Path(caller.f_code.co_filename)), room))

    sys.setprofile(watch)
    try:
        result = work()
    finally:
        sys.setprofile(None)
    return result, rooms, len({(a, b) for a, b in doors if a != b})


def lines_of_code(text: str) -> int:
    """Lines that hold code: no blanks, comments, docstrings or imports."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    held = {line for t in tokens if t.type not in BLANK for line in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and (
            is_text or isinstance(node, ast.Import | ast.ImportFrom)
        ):
            held -= set(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(held)


def measure() -> dict[str, int | str]:
    """The rows of the table."""
    texts = {module_of(path): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}
    sources = {name: ast.parse(text) for name, text in texts.items()}
    functions = [
        (node.end_lineno or 0) - node.lineno + 1
        for tree in sources.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    graph = import_graph(sources)
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 9, (24, 24, 3), dtype=np.uint8))
    diffcodec.encode(image, "photo", "fast")  # loads what is loaded once
    data, encode_rooms, encode_doors = passed(lambda: diffcodec.encode(image, "photo", "fast"))
    _, decode_rooms, decode_doors = passed(lambda: diffcodec.decode(data))
    return {
        "modules": len(texts),
        "lines": sum(len(text.splitlines()) for text in texts.values()),
        "lines of code, no imports or docstrings": sum(map(lines_of_code, texts.values())),
        "folders": len({path.parent for path in PACKAGE.rglob("*.py")}) - 1,
        "files in circles of imports": len(in_circles(graph)),
        "folders in circles": len(in_circles(of_folders(graph))),
        "longest file, lines": max(len(text.splitlines()) for text in texts.values()),
        "longest function, lines": max(functions),
        "files that one encode enters": len(encode_rooms),
        "pairs of files that call each other there": encode_doors,
        "files that one decode enters": len(decode_rooms),
        "pairs of files that call each other in it": decode_doors,
    }


@click.command()
def main() -> None:
    """Print the floor plan's figures."""
    for name, figure in measure().items():
        click.echo(f"{name:44} {figure}")


if __name__ == "__main__":
    main()
