"""Output of a run: the directory that training writes to, claimed before anything is loaded.

In: the directory, and whether a run goes on in it or begins anew. Out: a lock that is held until
the command ends, or a refusal that says what is there. Knows no model and takes no step.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from foreword.errors import InputError
from foreword.prompt.peft_format import FILES
from foreword.storage import check_writable, locked
from foreword.training.folders import SEEDS, TASKS

LOCK_FILE = ".output.lock"
PICKLE = "adapter_model.bin"  # of an adapter that PEFT wrote without safetensors
INNER = (SEEDS, TASKS)  # folders of an output, with one for each seed or task
TAKEN = "{}: another run writes to it; wait for its end, or choose another --output"
OF_PROMPTS = "--distractors"  # reads the prompts in all folders of one
ANEW = "choose another --output, or begin anew with --overwrite"


def check_apart(output: str, reads: Mapping[str, str | None]) -> None:
    """Refuse an output in which a command reads, too: what it writes there it would read the next
    time, and what it begins anew it would remove.

    Args:
        output: what the user named.
        reads: what is read, by the option that names it.

    Raises:
        InputError: the output is a folder that is read, or holds one, or lies in one of prompts.
    """
    from foreword.data.readers import folder_read

    target = Path(os.path.realpath(output))
    for option, given in reads.items():
        if given is None or (folder := folder_read(given)) is None:
            continue
        place, how = Path(os.path.realpath(folder)), None
        if place == target:
            how = "is"
        elif target in place.parents:
            how = "holds"
        elif place in target.parents and option == OF_PROMPTS:
            how = "lies in"
        if how is not None:
            raise InputError(
                f"--output {output} {how} the folder that {option} reads, {folder}: choose another "
                "--output"
            )


@contextlib.contextmanager
def claimed(
    output: str, folders: Sequence[Path], *, resume: bool, overwrite: bool, is_main: bool
) -> Iterator[None]:
    """Hold a directory for one command, and refuse one whose files would be lost.

    Args:
        output: what the user named.
        folders: of its runs, one for each seed; `output` itself where there is one.
        resume: the runs go on, where they have begun.
        overwrite: what is there may be lost, once the run begins.
        is_main: of several processes, the one that writes.

    Raises:
        InputError: says what is there, and how to go on or to begin anew.
        StorageError: it cannot be written, or another run writes to it.
    """
    if resume and overwrite:
        raise InputError("--resume goes on and --overwrite begins anew: leave one of them out")
    check_writable(output)
    with contextlib.ExitStack() as locks:
        if is_main:
            _refuse_inner(output)
            for folder in dict.fromkeys([Path(output), *folders]):
                if folder == Path(output) or folder.is_dir():
                    locks.enter_context(locked(folder / LOCK_FILE, TAKEN.format(folder)))
            if overwrite:
                _refuse_held(output, folders)
        if not overwrite:
            has_begun = resume and any(map(_has_state, folders))
            for folder in dict.fromkeys([*folders, Path(output)]):
                goes_on = resume and (_has_state(folder) or (folder not in folders and has_begun))
                if in_the_way := _found(folder, goes_on=goes_on):
                    raise InputError(in_the_way)
            _refuse_others(output, folders, goes_on=has_begun)
        yield


def _refuse_inner(output: str) -> None:
    """Refuse the folder of a seed or a task of another run that is still going on.

    Raises:
        StorageError: names the output of that run.
    """
    place = Path(os.path.realpath(output))
    while place.parent.name in INNER:
        place = place.parent.parent
        if (place / LOCK_FILE).exists():
            with locked(place / LOCK_FILE, TAKEN.format(place)):
                pass


def _refuse_held(output: str, folders: Sequence[Path]) -> None:
    """Refuse to clear the folder of a seed in which another run is still going on.

    Raises:
        StorageError: names that folder.
    """
    from foreword.training.folders import seed_folders

    for folder in seed_folders(Path(output)):
        if folder not in folders:
            with locked(folder / LOCK_FILE, TAKEN.format(folder)):
                pass


def _refuse_others(output: str, folders: Sequence[Path], *, goes_on: bool) -> None:
    """Refuse an output of one run for several seeds, or of seeds for one run, and seeds beside
    which others would stand; a run that goes on may have more seeds or fewer.

    Raises:
        InputError: says what is there.
    """
    from foreword.training.folders import STATE_FILE, seed_folders
    from foreword.training.state_file import read_progress

    whole = Path(output)
    seeds = [] if goes_on and whole not in folders else seed_folders(whole)
    for folder in (whole, *seeds):
        if folder not in folders and _has_state(folder):
            progress = read_progress(folder / STATE_FILE)
            raise InputError(f"{folder} holds {progress}, and this command has other seeds; {ANEW}")


def _has_state(folder: Path) -> bool:
    from foreword.training.folders import STATE_FILE

    return (folder / STATE_FILE).exists()


def _found(folder: Path, *, goes_on: bool) -> str | None:
    """Say which files of a directory a run would replace, and what to do; None where there are
    none. A run that goes on replaces foreword's own, and may have been begun beside others.
    """
    from foreword.training.folders import STATE_FILE

    if _has_state(folder) and not goes_on:
        from foreword.training.state_file import read_progress

        progress = read_progress(folder / STATE_FILE)
        on = "" if progress.is_finished else "go on with it with --resume, "
        return f"{folder} holds {progress}; {on}{ANEW}"
    for place in (folder, *(() if goes_on else sorted(folder.glob(f"{TASKS}/*")))):
        kind = _adapter(place, FILES if goes_on else (*FILES, PICKLE))
        if kind and not (goes_on and kind == "a soft prompt of foreword's"):
            return f"{place} holds {kind}, and this run would replace it; {ANEW}"
    if not goes_on and (folder / "config.json").exists():
        return (
            f"{folder} holds a model (config.json), which transformers would load together with a "
            f"prompt beside it; {ANEW}"
        )
    return None


def _adapter(folder: Path, names: Sequence[str]) -> str | None:
    """Say what kind of adapter a directory holds, by its files; None where it holds none."""
    from foreword.prompt.facts import is_own

    if not any((folder / name).exists() for name in names):
        return None
    if is_own(folder):
        return "a soft prompt of foreword's"
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        kind = json.loads((folder / FILES[0]).read_text(encoding="utf-8"))["peft_type"]
        return f"an adapter that PEFT wrote ({str(kind)[:40]})"
    return "files of an adapter"
