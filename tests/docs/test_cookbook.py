"""The cookbook: every notebook runs from its first cell to its last, here on a tiny model."""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))
NOTEBOOKS = sorted((ROOT / "docs" / "cookbook").glob("*.ipynb"))


def cells(path: Path) -> list[dict[str, Any]]:
    found = json.loads(path.read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Copy what notebooks read to where they may write."""
    shutil.copytree(ROOT / "examples" / "tickets", tmp_path / "examples" / "tickets")
    folder = tmp_path / "docs" / "cookbook"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs(path: Path, copied: Path, tiny_model: Path) -> None:
    from make_cookbook import execute

    shutil.copy(path, copied)
    book = execute(copied / path.name, FOREWORD_COOKBOOK_MODEL=str(tiny_model))
    ran = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in ran)
    assert "error: " not in json.dumps([cell.outputs for cell in ran])  # of commands after a !


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_says_which_model(path: Path) -> None:
    assert "FOREWORD_COOKBOOK_MODEL" in "".join(cells(path)[0]["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_shown_came_out_of_one_run_and_names_no_machine(path: Path) -> None:
    code = cells(path)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert any(cell["outputs"] for cell in code)
    outputs = json.dumps([cell["outputs"] for cell in code])
    assert "stderr" not in outputs and '"error"' not in outputs
    assert not re.search(r"/(home|root|tmp|work|Users|usr|opt)/", outputs)
    assert path.stat().st_size < 60_000
