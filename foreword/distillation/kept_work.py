"""Kept work: the files in which a distillation keeps questions, answers and what it starts from.

In: the folder of a distillation. Out: which files these are, and the removal of those that a run
which begins anew cannot use. Reads no question and no answer; imports no torch.
"""

import contextlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from foreword.storage import storage_errors

ANSWERED = "teacher"  # folder of the teacher's answers, with one for each part of a long text
ASKED = "questions"  # folder of what was asked
STARTED = "start"  # folder of what the first step started from
_NAMES = {
    ANSWERED: re.compile(r"(?:part-\d{3,}/)?\d{5,}\.safetensors"),
    ASKED: re.compile(r"\d{5,}\.json"),
    STARTED: re.compile(r"(?:unrelated|prompt)\.safetensors"),
}


def part_of(folder: Path, part: int, num_parts: int) -> Path:
    """Return where the answers of one part of a text are kept."""
    return folder / ANSWERED / f"part-{part:03}" if num_parts > 1 else folder / ANSWERED


def files_of(folder: Path, kind: str) -> list[Path]:
    """Return the files of kept answers, questions or starts, in order."""
    place = folder / kind
    known = _NAMES[kind]
    found = (path for path in place.rglob("*") if path.is_file())
    return sorted(path for path in found if known.fullmatch(path.relative_to(place).as_posix()))


def remove(folder: Path, kind: str, fits: Callable[[Path], bool] = lambda file: False) -> None:
    """Remove the kept files of one kind that do not fit, and the folders that are empty then.

    Raises:
        StorageError: they cannot be removed.
    """
    with storage_errors(folder / kind):
        for file in files_of(folder, kind):
            if not fits(file):
                file.unlink(missing_ok=True)
    remove_empty([*(folder / kind).glob("part-*"), folder / kind])


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of some folders that hold nothing."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
