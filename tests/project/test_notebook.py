"""The notebook runs from its first cell to its last, and is kept without what it printed."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.launch import ROOT

NOTEBOOK = ROOT / "docs/tessera.ipynb"
SHORTER = 10  # than as it is: every line runs, and little is learned


def test_it_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


@pytest.mark.timeout(900)
def test_every_cell_runs(own_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed, which runs notebooks")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed, which a notebook runs in")
    import nbformat

    for name in ("TMPDIR", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(own_directory))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = re.sub(
            r"(?<=^  images: )\d+", lambda found: str(int(found[0]) // SHORTER), cell.source, flags=re.M
        )
    where = {"metadata": {"path": str(own_directory)}}
    nbclient.NotebookClient(notebook, timeout=800, kernel_name="python3", resources=where).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(text)))) for text in shown]
    assert [picture.shape for picture in pictures] == [(2 * 36, 12 * 36, 3)] * 3
    assert all(len(np.unique(picture.reshape(-1, 3), axis=0)) > 20 for picture in pictures)
    assert [run.name for run in own_directory.glob("tessera-*/runs/*/*")] == ["avatars", "avatars"]
