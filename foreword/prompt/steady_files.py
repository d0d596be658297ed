"""Steady files: a prompt's two files, read as one writer left them.

In: a directory, and what reads its files. Out: what was read. A writer may replace the files in the
meantime; readers take no lock, and read again instead. Knows nothing of what the files hold.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from foreword.errors import InputError
from foreword.prompt.peft_format import FILES

T = TypeVar("T")

NUM_TRIES = 20
NUM_SAME = 3  # refusals of the same files before they are final
PAUSE = 0.01  # seconds; the files of one save mostly take their places within less


def steadily(source: Path, read: Callable[[], T]) -> T:
    """Return what is read; again, a few times, while the files change.

    Args:
        source: the directory of a prompt's files.
        read: reads them. It may be called several times.

    Raises:
        InputError: as `read`, of files that stay as they are.
    """
    num_same = 0
    for _ in range(NUM_TRIES):
        before = _stamps(source)
        try:
            found = read()
        except InputError:
            time.sleep(PAUSE)  # a writer may be between the two files
            num_same = num_same + 1 if _stamps(source) == before else 0
            if num_same == NUM_SAME:
                raise
            continue
        if _stamps(source) == before:
            return found
    return read()


def _stamps(source: Path) -> list[tuple[int, ...] | None]:
    """Return what differs once a file is another."""
    return [_stamp(source / name) for name in FILES]


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
