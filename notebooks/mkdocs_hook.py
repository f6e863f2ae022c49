"""Shows the committed notebooks as pages of the documentation, outputs included; nothing is executed.

`mkdocs.yml` names this file under `hooks`. Pages link notebooks as files of the repository,
`../notebooks/clustering.ipynb`, and notebooks link pages as `../docs/data.md`, so that both also work where the
repository is read; on the site both links lead to pages.
"""

import base64
import importlib
import json
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_FOLDER = Path(__file__).parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page for every notebook, and its pictures."""
    for notebook in sorted(_FOLDER.glob("*.ipynb")):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        pictures: dict[str, bytes] = {}
        text = "\n\n".join(_markdown(cell, notebook.stem, pictures) for cell in cells)
        for name, picture in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
        note = f"*A notebook of the repository, `notebooks/{notebook.name}`, with the outputs of one run.*"
        title, _, rest = text.partition("\n")
        page = re.sub(r"\]\(\.\./docs/", "](../", f"{title}\n\n{note}\n{rest}")
        page = re.sub(r"\]\((\w+)\.ipynb", r"](\1.md", page)
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=page))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to notebooks into links to their pages, `::: package.*` into names, and equations into MathML."""
    markdown = re.sub(r"^```math\n(.*?)\n```$", _equation, markdown, flags=re.MULTILINE | re.DOTALL)
    markdown = re.sub(r"^::: ([\w.]+)\.\*$", _exports, markdown, flags=re.MULTILINE)
    return re.sub(r"\]\(\.\./((?:\.\./)*notebooks/\w+)\.ipynb", r"](\1.md", markdown)


def _equation(match: re.Match[str]) -> str:
    return f'<div style="overflow-x: auto">{convert(match[1], display="block")}</div>'


def _exports(match: re.Match[str]) -> str:
    return "\n".join(f"::: {match[1]}.{name}" for name in importlib.import_module(match[1]).__all__)


def _markdown(cell: dict[str, Any], name: str, pictures: dict[str, bytes]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    parts = [f"```python\n{source}\n```"]
    for output in cell["outputs"]:
        data = output.get("data", {})
        kind = next((kind for kind in ("png", "jpeg") if f"image/{kind}" in data), None)
        if kind is not None:
            picture = f"{name}_{len(pictures)}.{kind}"
            parts.append(f"![Output of the code above]({picture})")
            pictures[picture] = base64.b64decode(data[f"image/{kind}"])
        else:
            text = "".join(output.get("text", data.get("text/plain", "")))
            parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts)
