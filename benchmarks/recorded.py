"""Recorded results: one line of JSON for each, added as soon as it is measured.

In: a file, results. Out: those that it holds. So a run that is stopped loses none of them.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def name_of(model: str) -> str:
    """Return what results call a base: a Hub id's or a file's own name."""
    return Path(model).name.removesuffix(".gguf")


def measured(file: Path) -> list[dict[str, Any]]:
    """Return every result so far."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


def write(path: Path, result: Mapping[str, Any]) -> None:
    """Add one result, in one write, and print it."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    print(json.dumps(result), flush=True)
