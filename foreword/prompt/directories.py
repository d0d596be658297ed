"""Prompt directories: from a folder or a Hub id to the directory whose two files are the prompt.

In: what a user calls a prompt. Out: a directory with `adapter_config.json` in it, where there is
one. A folder that holds one prompt in a folder of its own, as PEFT and Trainer write them, stands
for it. Of a repository only a prompt's own files are downloaded. Reads none of them.
"""

import contextlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from foreword import hub_files
from foreword.errors import ArtifactError, InputError
from foreword.prompt.peft_format import CONFIG_FILE, FILES
from foreword.prompt.steady_files import steadily
from foreword.storage import path_of

log = logging.getLogger("foreword")

MAX_DEPTH = 2  # as checkpoint-300/default
_HUB_ID = re.compile(rf"(?:hub:/{{0,2}})?({hub_files.REPOSITORY.pattern})(?:@([\w./-]+))?")


def find(prompt: str | os.PathLike[str], say: Callable[[str], object] = log.warning) -> Path:
    """Return the directory of a prompt's files.

    Args:
        prompt: a directory; one that holds a prompt in a folder, which is said; or, where there is
            no such path, a Hub id, as `owner/name` or `owner/name@revision`.
        say: is told of such a folder.

    Returns:
        the directory; where nothing is found in a path, the path itself.

    Raises:
        ArtifactError: a folder of several prompts, which are named, or a Hub id without one.
        InputError: no path at all.
    """
    path = path_of(prompt, "the prompt's directory")
    if os.path.isdir(path):
        return _inside(path, say)
    match = _HUB_ID.fullmatch(os.fspath(prompt))
    if match is None or os.path.lexists(path):
        return path
    return _downloaded(match[1], match[2], say)


def is_prompts_name(value: str) -> bool:
    """Return whether what a user names can be a prompt and no file: a directory, or a Hub id where
    there is no such path.
    """
    return os.path.isdir(value) or (
        not os.path.lexists(value) and _HUB_ID.fullmatch(value) is not None
    )


@contextlib.contextmanager
def own_files(prompt: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary directory with copies of a prompt's two files and nothing else: what is
    checked there is what is passed on, whatever becomes of the prompt meanwhile.

    Raises:
        ArtifactError: as `find`, or a file is missing or cannot be read.
    """
    source = find(prompt)
    with tempfile.TemporaryDirectory(prefix="foreword-") as folder:
        copies = Path(folder)
        steadily(source, lambda: _copy(source, copies))
        yield copies


@contextlib.contextmanager
def plain_files(prompt: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield the directory of a prompt; of one from the Hub, whose cache holds links, with copies.

    Raises:
        ArtifactError: as `find` and `own_files`.
    """
    found = find(prompt)
    if os.path.isdir(prompt) or found == Path(prompt):
        yield found
    else:
        with own_files(found) as copies:
            yield copies


def _copy(source: Path, target: Path) -> None:
    for name in FILES:
        try:
            shutil.copyfile(source / name, target / name)
        except OSError as error:
            raise ArtifactError(
                f"{source / name}: cannot be read ({error.strerror}); expected a soft prompt's "
                "own file"
            ) from None


def _inside(directory: Path, say: Callable[[str], object]) -> Path:
    """Return a directory, or the only one with a prompt in it."""
    for depth in range(MAX_DEPTH + 1):
        found = _prompts(directory, depth)
        if len(found) == 1:
            if depth:
                say(f"{directory}: reads the prompt in {found[0]}")
            return directory / found[0]
        if found:
            raise ArtifactError(
                f"{directory}: found prompts in {', '.join(map(str, found))}: name one of them"
            )
    return directory


def _prompts(directory: Path, depth: int) -> list[Path]:
    """Return the folders with a prompt's files, that many below a directory, in order."""
    if depth == 0:
        return [Path()] if any((directory / name).exists() for name in FILES) else []
    places = (
        path.parent.relative_to(directory) for path in directory.glob("*/" * depth + CONFIG_FILE)
    )
    shown = (place for place in places if not any(part.startswith(".") for part in place.parts))
    return sorted(shown, key=lambda place: [_by_number(part) for part in place.parts])


def _by_number(name: str) -> tuple[str, int]:
    """Return a key by which checkpoint-90 comes before checkpoint-300."""
    digits = re.search(r"\d{1,18}$", name)
    return (name[: digits.start()], int(digits[0])) if digits else (name, -1)


def _downloaded(repository: str, revision: str | None, say: Callable[[str], object]) -> Path:
    for names in (FILES, [f"*/{name}" for name in FILES]):  # the second only without the first
        try:
            folder = hub_files.download(repository, "model", names, revision)
        except InputError as error:
            raise ArtifactError(f"no such directory here, and on the Hub {error}") from error
        found = _inside(folder, say)
        if (found / CONFIG_FILE).exists():
            return found
    raise ArtifactError(
        f"{repository}: no {CONFIG_FILE} on the Hub; this repository holds no soft prompt"
    )
