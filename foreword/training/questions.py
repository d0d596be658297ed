"""Questions of a run by rewards: what is asked, and what the reward function is told of it.

In: the rows of a data file. Out: `Question`s. Imports no torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.config import DataConfig
from foreword.data.columns import as_query
from foreword.data.examples import beside, folder_of, log, read_each
from foreword.data.media_parts import Message


@dataclass(frozen=True)
class Question:
    """What is asked, and what the reward function is told of it.

    Attributes:
        asked: a text, or turns up to a question.
        source: where it stands, as "prompts.jsonl:12"; no two have the same.
        columns: the others of its row, by name.
        told: what the reward function is told was asked, as the row has it; None: `asked`.
        fields: texts of columns that a template was filled with, to make what is asked.
    """

    asked: str | tuple[Message, ...]
    source: str
    columns: Mapping[str, Any]
    told: str | tuple[Message, ...] | None = None
    fields: tuple[str, ...] = ()


def read_questions(
    path: str | Path, columns: DataConfig, say: Callable[[str], None] = log.warning
) -> list[Question]:
    """Return the question of each row of a data file; answers are not needed.

    Raises:
        DataError: the file or some of its rows cannot be used; tells all of them.
    """
    folder = folder_of(path)

    def read(row: Mapping[str, Any], source: str, said: Any) -> Question:
        found = as_query(row, source, columns)
        return Question(beside(found.prompt, folder), source, row, fields=found.fields)

    return read_each(path, read, columns, say)
