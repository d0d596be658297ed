"""Questions of a run by rewards: what is asked, and what the reward function is told of it.

In: the rows of a data file. Out: `Question`s. Imports no torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.config import DataConfig
from foreword.data.columns import as_query
from foreword.data.media_parts import Message
from foreword.data.problems import collected, none_in
from foreword.data.readers import read_rows


@dataclass(frozen=True)
class Question:
    """What is asked, and what the reward function is told of it.

    Attributes:
        asked: a text, or turns up to a question.
        source: where it stands, as "prompts.jsonl:12"; no two have the same.
        columns: the others of its row, by name.
    """

    asked: str | tuple[Message, ...]
    source: str
    columns: Mapping[str, Any]


def read_questions(path: str | Path, columns: DataConfig) -> list[Question]:
    """Return the question of each row of a data file; answers are not needed.

    Raises:
        DataError: the file or some of its rows cannot be used; tells all of them.
    """
    found = collected(
        read_rows(Path(path)),
        lambda source, row: Question(as_query(row, source, columns), source, row),
    )
    if not found:
        raise none_in(path)
    return found
