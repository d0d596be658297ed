"""Index folder: notes on a store's names in a directory of their own, made once from what is there.

In: a directory that may be there, and what fills it. Out: the directory, whole and synced, or not
at all. Knows not what is noted.
"""

import os
from collections.abc import Callable
from pathlib import Path

from foreword.errors import InputError
from foreword.storage import sync


def prepare(folder: Path, scratch: Path, what: str, fill: Callable[[Path], object]) -> None:
    """Let `fill` fill a folder that is not there yet.

    Args:
        folder: beside a store's prompts.
        scratch: a directory of the same file system, where the folder is made.
        what: is noted, in words.
        fill: is given the new folder.

    Raises:
        InputError: a link stands where the folder belongs.
    """
    if folder.is_symlink():
        raise InputError(f"{folder} is a symbolic link; the {what} of a store must lie in itself")
    if folder.is_dir():
        return
    new = scratch / what
    new.mkdir()
    fill(new)
    sync(new)
    os.rename(new, folder)
    sync(folder.parent)
