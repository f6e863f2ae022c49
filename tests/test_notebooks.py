"""Notebooks run from top to bottom in a fresh kernel, and what is committed of them reads well."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
# Jupyter keeps copies of its own beside those that are open.
FILES = sorted(file for file in NOTEBOOKS.rglob("*.ipynb") if ".ipynb_checkpoints" not in file.parts)
NAMES = [str(file.relative_to(NOTEBOOKS)) for file in FILES]


def test_there_are_notebooks() -> None:
    assert FILES


@pytest.mark.timeout(1500)  # seconds alone, but two share the cores
@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_notebook_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The user's own kernels, start-up files and history stay out of it.
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    notebook = nbformat.read(file, as_version=4)
    if "SUPERCM_DATA" in file.read_text(encoding="utf-8") and not os.environ.get("SUPERCM_DATA"):
        pytest.skip("SUPERCM_DATA is not set")
    # Raises what a cell raised, with the cell and its traceback.
    NotebookClient(
        notebook, timeout=800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()


@pytest.mark.parametrize("file", FILES, ids=NAMES)
def test_committed_outputs_are_of_one_clean_run(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs
    for output in outputs:
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.get("text")
        assert "text/html" not in output.get("data", {}), "a progress bar"
        text = output.get("text", "") + str(output.get("data", {}).get("text/plain", ""))
        assert not re.search(r"(^|[\s'\"(])(/\w+/|[A-Za-z]:\\)", text), f"a path of one machine: {text}"
    assert file.stat().st_size < 500_000, "pictures of this size weigh on every clone: draw them smaller"
