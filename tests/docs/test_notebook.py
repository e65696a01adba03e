"""The example notebook runs from its first cell to its last, and its cells can be run twice."""

import os
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

nbformat = pytest.importorskip("nbformat", reason="pip install '.[dev]'")
nbclient = pytest.importorskip("nbclient", reason="pip install '.[dev]'")
pytest.importorskip("ipykernel", reason="pip install '.[dev]'")

NOTEBOOK = ROOT / "docs" / "examples" / "quickstart.ipynb"


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RDP_BENCH_CACHE", str(tmp_path / "cache"))
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    evaluation = next(cell for cell in notebook.cells if "rb.evaluate(" in cell.source)
    again = nbformat.v4.new_code_cell(evaluation.source.replace("result = ", "second = ").replace("\nresult", ""))
    check = nbformat.v4.new_code_cell(
        "frame = result.to_dataframe()\n"
        "assert frame.equals(second.to_dataframe())\n"
        "assert set(frame.status) == {'done'} and len(frame) == 20, result.failed"
    )
    edit = nbformat.v4.new_code_cell(
        evaluation.source.replace("Blur()", "Blur(7)").replace("result = ", "other = ").replace("\nresult", "")
    )
    edited = nbformat.v4.new_code_cell(
        "keys = [set(each.to_dataframe().query('defense == \"ours\"').eval_key) for each in (result, other)]\n"
        "assert not keys[0] & keys[1]"
    )
    notebook.cells += [again, check, edit, edited]
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(output.output_type == "error" for each in outputs for output in each)
    shown = next(cell for cell in notebook.cells if cell.source == evaluation.source).outputs[-1].data
    assert "ours" in shown["text/html"]
    plot = next(cell for cell in notebook.cells if cell.source == "result.plot()").outputs[-1].data
    assert "image/png" in plot
    assert notebook.cells[-5].outputs[-1].data["text/plain"] == "True"


def test_the_notebook_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
