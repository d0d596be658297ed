"""Examples: what comes before an answer, and the answer, from the rows of a data file.

In: a path and the options that name its columns. Out: `Example`s, in the order of the file. Every
problem is one `DataError` line that names file and line. Parts of a message that are not text pass
through; relative paths in them start at the file's folder. Knows no tokenizer, no token ids and no
torch.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from foreword.config import DataConfig
from foreword.data import media_parts
from foreword.data.columns import as_examples
from foreword.data.example import Example as Example
from foreword.data.example import counted
from foreword.data.media_parts import Message
from foreword.data.preferences import as_pair
from foreword.data.problems import all_of, of_table
from foreword.data.readers import read_rows
from foreword.errors import BlankError, DataError

log = logging.getLogger("foreword")

T = TypeVar("T")

MOST_SAID = 20  # notes on the rows of one file

_DEFAULT_COLUMNS = DataConfig()


def read_examples(
    path: str | Path,
    config: DataConfig = _DEFAULT_COLUMNS,
    task_column: str | None = None,
    say: Callable[[str], None] = log.warning,
    *,
    are_pairs: bool = False,
) -> list[Example]:
    """Read every row of a data file, or of a directory that `datasets` wrote; docs/data.md says
    what a row may be.

    Args:
        path: of the file or directory.
        config: names columns and says which answers of a conversation are learned.
        task_column: names the task of each row, where there are several.
        say: is told, in a sentence each, what of the rows was not used or was guessed.
        are_pairs: whether each row has two answers, of which one is preferred.

    Raises:
        DataError: the file or some of its rows cannot be used; tells all of them.
        DependencyError: Parquet or a directory, without the extra that reads them.
    """
    folder = folder_of(path)

    def read(row: Mapping[str, Any], source: str, said: Counter[str]) -> list[Example]:
        if are_pairs:
            return [_beside(as_pair(row, source, config, said), folder)]
        found = as_examples(row, source, config, task_column, said)
        return [_beside(example, folder) for example in found]

    return [one for many in read_each(path, read, config, say) for one in many]


def read_each(
    path: str | Path,
    read: Callable[[Mapping[str, Any], str, "Counter[str]"], T],
    config: DataConfig = _DEFAULT_COLUMNS,
    say: Callable[[str], None] = log.warning,
) -> list[T]:
    """Return what a function makes of every row of a data file: of its columns and its place; what
    it counts is said.

    Raises:
        DataError: the file or some of its rows cannot be used, or it has none; tells all of them.
    """
    said: Counter[str] = Counter()
    found: list[T] = []
    wrong: list[DataError] = []
    row_count = 0
    rows = read_rows(Path(path))
    try:
        for source, row in rows:
            row_count += 1
            try:
                found.append(read(row, str(source), said))
            except BlankError as error:
                if config.skip_blank:
                    said["a blank text or answer: left out"] += 1
                else:
                    wrong.append(error)
            except DataError as error:
                wrong.append(of_table(error, source))
    except DataError as error:  # the file's own, at its end or where it cannot be read further
        wrong.append(error)
    if wrong:
        raise all_of(wrong, row_count)
    if not found:
        raise DataError(f"{path}: expected rows, found none: add at least one")
    for what, count in list(said.items())[:MOST_SAID]:
        say(f"{path}: {what} ({counted(count)})")
    if len(said) > MOST_SAID:
        say(f"{path}: {len(said) - MOST_SAID} more such notes, as of other unused columns")
    return found


def folder_of(path: str | Path) -> Path:
    """Return the folder at which relative paths in a data file start."""
    place = Path(path).absolute()
    return place if place.is_dir() else place.parent


def _beside(example: Example, folder: Path) -> Example:
    """Return an example whose relative paths of images and sounds start at its file's folder."""
    if example.rejected is not None:
        example = replace(example, rejected=_beside(example.rejected, folder))
    return replace(example, prompt=beside(example.prompt, folder))


def beside(prompt: str | tuple[Message, ...], folder: Path) -> str | tuple[Message, ...]:
    """Return what is asked with its relative paths of images and sounds behind a folder."""
    if isinstance(prompt, str) or not media_parts.has_media(prompt):
        return prompt
    return tuple(
        turn | {"content": [media_parts.beside(part, folder) for part in turn["content"]]}
        if isinstance(turn.get("content"), list)
        else turn
        for turn in prompt
    )
