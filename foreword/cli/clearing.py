"""Clearing: what a run that begins anew removes of an earlier one in its output.

In: an output that the command has claimed. Out: the output without states, prompts, seeds, tasks,
options and kept answers of foreword's own. What another program wrote is kept, but for an adapter
in the place of the prompt, which the run would replace. Decides nothing: `run_output` does.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from foreword.cli import run_file
from foreword.prompt.peft_format import FILES
from foreword.storage import storage_errors
from foreword.training.folders import STATE_FILE, TASKS, seed_folders, task_folders


def clear(output: str, *, keeps_answers: bool = False) -> None:
    """Remove what an earlier run left in an output.

    Args:
        output: a directory.
        keeps_answers: the run itself removes kept questions and answers that it cannot use.

    Raises:
        StorageError: it cannot be removed.
    """
    from foreword.distillation import context_date, kept_work

    folder = Path(output)
    seeds = seed_folders(folder)
    with storage_errors(folder, kept="what was not removed yet is kept"):
        # States first: what stays where a kill ends this is then no run that goes on.
        _unlink(one / STATE_FILE for one in (folder, *seeds))
        _unlink(folder / name for name in FILES)
        for one in seeds:
            _clear_prompt(one)
        for one in (folder, *seeds):
            _clear_tasks(one)
        if run_file.is_own(folder / run_file.NAME):
            _unlink([folder / run_file.NAME])
        if not keeps_answers:
            if _is_date(folder / context_date.FILE):
                _unlink([folder / context_date.FILE])
            for kind in (kept_work.ANSWERED, kept_work.ASKED, kept_work.STARTED):
                kept_work.remove(folder, kind)
    kept_work.remove_empty([*seeds, *(one.parent for one in seeds)])


def _clear_tasks(folder: Path) -> None:
    from foreword.distillation import kept_work

    tasks = task_folders(folder)
    for one in tasks:
        _clear_prompt(one)
    kept_work.remove_empty([*tasks, folder / TASKS])


def _clear_prompt(folder: Path) -> None:
    """Remove a prompt of foreword's own."""
    from foreword.prompt.facts import is_own

    if is_own(folder):
        _unlink(folder / name for name in FILES)


def _is_date(file: Path) -> bool:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() == {"date"}


def _unlink(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
