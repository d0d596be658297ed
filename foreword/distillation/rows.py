"""Rows of a lesson: queries with the teacher's answers, and which of them are set aside.

In: queries, what the teacher said, options. Out: rows with targets. Trains nothing.
"""

import random
from collections.abc import Sequence
from dataclasses import replace

from foreword import chat
from foreword.backbone import Backbone
from foreword.config import EncodingConfig
from foreword.data.row import Row
from foreword.distillation.teacher import Taught
from foreword.errors import InputError


def taught_row(
    backbone: Backbone, query: chat.Text, taught: Taught, config: EncodingConfig, source: str
) -> Row:
    """Return a query as the prompt is asked it, with the teacher's answer and targets."""
    ids, _ = chat.encode(backbone, query, config)
    row = Row.from_ids(ids, taught.ids, source)
    is_text = isinstance(query, str) and config.row_template is None
    return replace(row, target=taught.target, is_text=is_text)


def check_taught(taught: Sequence[Taught]) -> None:
    """Refuse answers from which nothing can be learned."""
    if all(len(one.ids) <= 1 for one in taught):
        raise InputError(
            "the model behind the text answers nothing to any query: ask what the text is about"
        )
    if len(taught) > 3 and len({one.ids for one in taught}) == 1:
        raise InputError(
            "the model behind the text gives every query the same answer: ask different things"
        )


def set_aside(
    rows: Sequence[Row], groups: Sequence[str | None], share: float, seed: int
) -> set[int]:
    """Return the numbers of the rows that are set aside: whole groups, where rows have them, and
    equal queries on one side.
    """
    members: dict[object, list[int]] = {}
    for index, (row, group) in enumerate(zip(rows, groups, strict=True)):
        members.setdefault(row.input_ids[: -row.num_labels] if group is None else group, []).append(
            index
        )
    keys = list(members)
    random.Random(seed).shuffle(keys)
    count = min(max(1, round(share * len(keys))), len(keys) - 1) if share else 0
    return {index for key in keys[:count] for index in members[key]}
