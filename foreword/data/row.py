"""Row: the token ids of one example, and which of them are labels.

In: ids. Out: a `Row`. Knows no text and no tokenizer.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self, SupportsIndex

from foreword.data.processor import Media
from foreword.data.target import Target
from foreword.errors import DataError


@dataclass(frozen=True)
class Reward:
    """What a function says of an answer, and how much better it is than others to the same."""

    value: float
    advantage: float


@dataclass(frozen=True)
class Row:
    """The ids of one example; the last `num_labels` of them are its labels, at least one. `media`
    is what its placeholders stand for; `task` what it is a row of, where there are several;
    `is_text` whether it was read as plain text, and not as a conversation or by a row template;
    `is_truncated` whether something was cut; `target` what a teacher says at each label; `weight`
    how much each of its labels counts in the mean loss of a step; `rejected` the same with an
    answer that is liked less; `reference` the log probability of each label in a reference model,
    in nats; `reward` that of an answer which was drawn.
    """

    input_ids: tuple[int, ...]
    num_labels: int
    source: str
    media: Media | None = None
    task: str = ""
    is_text: bool = False
    is_truncated: bool = False
    target: Target | None = None
    weight: float = 1.0
    rejected: "Row | None" = None
    reference: tuple[float, ...] = ()
    reward: Reward | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.num_labels <= len(self.input_ids):
            raise DataError(
                f"{self.source}: no label left: expected 1 to {len(self.input_ids)} labels in "
                f"{len(self.input_ids)} tokens, got {self.num_labels}"
            )

        if self.target is not None and len(self.target) != self.num_labels:
            raise DataError(
                f"{self.source}: expected a target at each of {self.num_labels} labels, got "
                f"{len(self.target)}"
            )

        if not (0 < self.weight < math.inf):
            raise DataError(
                f"{self.source}: expected a weight above 0 and finite, got {self.weight}"
            )

    @property
    def num_tokens(self) -> int:
        """The tokens that are read of it, with the answer that is liked less if there is one."""
        return len(self.input_ids) + (self.rejected.num_tokens if self.rejected else 0)

    @classmethod
    def from_ids(
        cls, prompt_ids: Sequence[int], completion_ids: Sequence[int], source: str = "ids"
    ) -> Self:
        """A row of ids that are used as they are: no end token is added.

        Raises:
            DataError: one that is no whole number.
        """
        for one in (*prompt_ids, *completion_ids):
            if not isinstance(one, SupportsIndex) or isinstance(one, bool):
                raise DataError(f"{source}: expected token ids, got {one!r:.80}")
        return cls((*prompt_ids, *completion_ids), len(completion_ids), source)


def every(rows: Iterable[Row]) -> list[Row]:
    """Return each row by itself, and behind it the one that it is preferred to, if any."""
    alone = ((replace(row, rejected=None), row.rejected) for row in rows)
    return [one for both in alone for one in both if one is not None]
