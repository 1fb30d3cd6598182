"""What the site has beside the pages of this folder, by mkdocs' hooks: notebooks as pages, pages of
other folders, links to both, and equations as MathML, which browsers show without a script."""

import base64
import json
import re
from html import unescape
from pathlib import Path
from posixpath import basename, dirname, join, normpath, relpath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ELSEWHERE = {  # where it lies in the repository: where in the site
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "reporting.md",
    "examples/README.md": "examples.md",
    "diffcodec/models/zoo/photo.md": "zoo/photo.md",
    "diffcodec/models/zoo/cifar10.md": "zoo/cifar10.md",
}
HOMES = {page: place for place, page in ELSEWHERE.items()}
LINK = re.compile(r"(?<=\]\()([^()#:\s]+)(?=[#)])")
EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The pages of other folders, and the notebooks."""
    for page, place in HOMES.items():
        files.append(File.generated(config, page, content=(ROOT / place).read_text()))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        for uri, content in notebook(file.src_uri, json.loads(file.content_string)).items():
            files.append(File.generated(config, uri, content=content))
    return files


def notebook(uri: str, cells: dict[str, Any]) -> dict[str, str | bytes]:
    """A page of a notebook's cells and what they print, and its pictures."""
    stem = uri.removesuffix(".ipynb")
    parts, pictures = [], {}
    for cell in cells["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text")})
            if "image/png" in data:
                name = f"{stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![What the cell shows]({basename(name)})")
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    return {f"{stem}.md": "\n\n".join(parts), **pictures}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as the site has them: in the repository a page links to where the other lies there."""
    uri = page.file.src_uri
    here = dirname(HOMES.get(uri, f"docs/{uri}"))

    def there(match: re.Match[str]) -> str:
        target = normpath(join(here, match[1]))
        target = ELSEWHERE.get(target, target.removeprefix("docs/"))
        return relpath(re.sub(r"\.ipynb$", ".md", target), dirname(uri) or ".")

    return LINK.sub(there, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Equations as MathML."""
    return EQUATION.sub(
        lambda match: convert(unescape(match[2]), "inline" if match[1] == "span" else "block"), html
    )
