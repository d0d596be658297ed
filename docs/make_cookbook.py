"""Run the notebooks of docs/cookbook, and keep what their cells gave.

    python docs/make_cookbook.py [NAME ...]

`execute` is what the tests use, on a tiny model. Not kept: standard error, which says how fast a
machine is and where things lie on it, and the plain text of what is shown as HTML.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent / "cookbook"
SECONDS = 7200  # for one cell


def execute(path: Path, **variables: str) -> Any:
    """Run a notebook in its own folder, under variables of the environment; return it.

    Raises:
        CellExecutionError: a cell failed.
    """
    book = nbformat.read(path, as_version=4)
    path_of = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {**os.environ, "PATH": path_of, "PYTHONWARNINGS": "ignore", **variables}
    client = NotebookClient(
        book, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": path.parent}}
    )
    client.execute(env=environment)
    for cell in book.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                del output.data["text/plain"]
    return book


def main(names: list[str]) -> None:
    """Run the named notebooks, or all, as on their first run."""
    shutil.rmtree(FOLDER / "runs", ignore_errors=True)
    for path in sorted(FOLDER.glob("*.ipynb")):
        if not names or path.stem in names:
            nbformat.write(execute(path), path)


if __name__ == "__main__":
    main(sys.argv[1:])
