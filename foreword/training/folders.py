"""Folders of runs: where each seed's run lies, and the name of its training state.

In: the options of a run, and how many seeds. Out: paths, and the options of each run. Imports no
torch, so that a command can look before anything slow is imported.
"""

import os
from dataclasses import replace
from pathlib import Path

from foreword.config import TrainConfig
from foreword.errors import InputError
from foreword.prompt.facts import SEEDS as SEEDS
from foreword.prompt.facts import STATE_FILE as STATE_FILE

MOST_SEEDS = 1000
TASKS = "tasks"  # folder of several tasks, with the prompt of each


def seeds_of(config: TrainConfig, count: int) -> list[TrainConfig]:
    """Return the configuration of each run: seeds from the given one on.

    Raises:
        InputError: fewer than one, or more than anybody waits for.
    """
    if count < 1:
        raise InputError(f"--seeds must be at least 1, got {count}")
    if count > MOST_SEEDS:
        raise InputError(f"--seeds must be at most {MOST_SEEDS}, got {count}")
    return [replace(config, seed=config.seed + index) for index in range(count)]


def seed_folders(folder: Path) -> list[Path]:
    """Return the folders of seeds that there are in the folder of a run, whichever run's."""
    found = (folder / SEEDS).glob("*")
    return sorted(one for one in found if one.name.isdecimal() and _is_plain(one))


def task_folders(folder: Path) -> list[Path]:
    """Return the folders of tasks that there are in the folder of a run, whichever run's."""
    return sorted(one for one in (folder / TASKS).glob("*") if _is_plain(one))


def _is_plain(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink()


def folder_of(folder: str | os.PathLike[str] | None, seed: int, count: int) -> Path | None:
    """Return the folder of one seed's run: the given one itself where there is one seed."""
    if folder is None or count == 1:
        return None if folder is None else Path(folder)
    return Path(folder, SEEDS, str(seed))
