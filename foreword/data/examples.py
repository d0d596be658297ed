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
from typing import Any

from foreword.config import DataConfig
from foreword.data import media_parts
from foreword.data.columns import as_examples
from foreword.data.example import Example as Example
from foreword.data.example import counted
from foreword.data.preferences import as_pair
from foreword.data.problems import collected, none_in
from foreword.data.readers import read_rows
from foreword.errors import BlankError

log = logging.getLogger("foreword")

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
    folder = Path(path).absolute()
    folder = folder if folder.is_dir() else folder.parent
    said: Counter[str] = Counter()

    def use(source: str, row: Mapping[str, Any]) -> list[Example]:
        try:
            if are_pairs:
                return [as_pair(row, source, config, said)]
            return as_examples(row, source, config, task_column, said)
        except BlankError:
            if not config.skip_blank:
                raise
            said["a blank text or answer: left out"] += 1
            return []

    found = collected(read_rows(Path(path)), use)
    examples = [_beside(example, folder) for row in found for example in row]
    if not examples:
        raise none_in(path)
    for what, count in list(said.items())[:MOST_SAID]:
        say(f"{path}: {what} ({counted(count)})")
    if len(said) > MOST_SAID:
        say(f"{path}: {len(said) - MOST_SAID} more such notes, as of other unused columns")
    return examples


def _beside(example: Example, folder: Path) -> Example:
    """Return an example whose relative paths of images and sounds start at its file's folder."""
    if example.rejected is not None:
        example = replace(example, rejected=_beside(example.rejected, folder))
    if isinstance(example.prompt, str) or not media_parts.has_media(example.prompt):
        return example
    turns = tuple(
        turn | {"content": [media_parts.beside(part, folder) for part in turn["content"]]}
        if isinstance(turn.get("content"), list)
        else turn
        for turn in example.prompt
    )
    return replace(example, prompt=turns)
