"""The notebooks of the tutorial, made from the scripts beside them and executed.

python docs/tutorial/make.py [NAME ...]      (needs the extra docs)
"""

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent


def read_cells(script: str) -> list[nbformat.NotebookNode]:
    """The cells of a script in the percent format."""
    cells = []
    for kind, text in re.findall(r"^# %%( \[markdown\])?\n(.*?)(?=^# %%|\Z)", script, re.M | re.S):
        if kind:
            source = re.sub(r"^# ?", "", text, flags=re.M).strip()
            cells.append(nbformat.v4.new_markdown_cell(source))
        else:
            cells.append(nbformat.v4.new_code_cell(text.strip()))
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
    return cells


def make(script: Path) -> nbformat.NotebookNode:
    """A notebook, executed in the folder of its script."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=read_cells(script.read_text()), metadata=kernel)
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": HERE}})
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ each time
    return notebook


if __name__ == "__main__":
    names = sys.argv[1:] or [path.stem for path in sorted(HERE.glob("[0-9]*.py"))]
    for name in names:
        nbformat.write(make(HERE / f"{name}.py"), HERE / f"{name}.ipynb")
        print(f"{name}.ipynb")
