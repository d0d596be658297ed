"""Alias index: which aliases stand for a prompt, found without reading those of all others.

In: a store's directory, aliases and the names they stand for. Out: the aliases that were noted for
a name: one empty file for each, in a folder called as the name. What it says is true only where
that alias still stands for the name, which the caller looks up. Knows nothing of prompts.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from foreword.prompt import index_folder
from foreword.storage import sync

FOLDER = ".targets"


def noted(directory: Path, name: str) -> list[str]:
    """Return the aliases noted for a name, sorted."""
    try:
        return sorted(os.listdir(directory / FOLDER / name))
    except OSError:
        return []


def note(directory: Path, name: str, alias: str) -> None:
    """Note an alias of a name, synced."""
    folder = directory / FOLDER / name
    folder.mkdir(exist_ok=True)
    (folder / alias).touch()
    sync(folder)


def forget(directory: Path, name: str, alias: str) -> None:
    """Forget an alias of a name, and the name's folder with the last one; neither need be there."""
    folder = directory / FOLDER / name
    with contextlib.suppress(OSError):
        (folder / alias).unlink()
        folder.rmdir()


def prepare(directory: Path, targets: Callable[[], Mapping[str, str]], scratch: Path) -> None:
    """Note all aliases of a directory that has no index yet, each with the name that it stands for;
    the index appears whole or not at all.

    Raises:
        InputError: a link stands where the index belongs.
    """

    def fill(new: Path) -> None:
        for alias, name in targets().items():
            (new / name).mkdir(exist_ok=True)
            (new / name / alias).touch()

    index_folder.prepare(directory / FOLDER, scratch, "aliases", fill)
