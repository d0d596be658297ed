"""Truncation: a row that is too long loses its oldest turns, then the start of its text.

In: an example, its whole row and a limit in tokens. Out: a row that fits, with its start token, its
system turn and all of its labels, or a `DataError` that says how long it may be. Knows no
tokenizer: how a part of an example is encoded is given.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import takewhile

from foreword.config import EncodingConfig
from foreword.data.example import Example
from foreword.data.row import Row
from foreword.errors import DataError

NO_LIMIT = 1 << 30
"""Tokens, where nothing bounds a row."""


def fit(
    example: Example,
    row: Row,
    config: EncodingConfig,
    context_length: int,
    encode: Callable[[Example], Row],
    fixed_ids: Callable[[Example], tuple[list[int], list[int]]],
) -> Row:
    """Return a row of at most `context_length` tokens, or of `config.max_length`.

    Args:
        example: what the row was encoded from.
        row: whole.
        config: says whether it may be cut.
        context_length: in tokens.
        encode: an example as a whole row.
        fixed_ids: of an example, the ids that stay where the start of its text is cut: those
            before it, and those between it and the labels.

    Raises:
        DataError: the row is too long and may not be cut, or what stays alone is too long.
    """
    limit = min(config.max_length or context_length, context_length)
    if len(row.input_ids) <= limit:
        return row
    _check(row, config, limit, context_length)
    part = example
    for part in _shorter(example):
        row = replace(encode(part), is_truncated=True)
        if len(row.input_ids) <= limit:
            return row
    return _cut(row, *fixed_ids(part), limit)


def fit_pair(row: Row, config: EncodingConfig, text_room: int, labels_room: int) -> Row:
    """Cut the start of the text that an encoder reads, where it is too long and may be cut; labels
    are never cut.

    Args:
        row: text, then labels.
        config: says how long a row may be, and whether it may be cut.
        text_room: what the encoder reads at most, in tokens.
        labels_room: what the decoder writes at most, in tokens.

    Raises:
        DataError: text or labels are too long.
    """
    labels, length = row.num_labels, len(row.input_ids) - row.num_labels
    if labels > labels_room:
        raise DataError(
            f"{row.source}: labels of {labels} tokens, at most {labels_room} fit: shorten "
            "the answer"
        )
    longest = (config.max_length or NO_LIMIT) - labels
    room = min(text_room, longest)
    if length <= room:
        return row
    longer = ", raise --max-length" if longest < text_room else ""
    if room < 1:
        raise DataError(f"{row.source}: labels of {labels} tokens leave no room for text{longer}")
    if not config.truncate:
        raise DataError(
            f"{row.source}: text of {length} tokens, at most {room} fit: shorten the row{longer} "
            "or cut the start of long rows with --truncate"
        )
    return replace(row, input_ids=row.input_ids[length - room :], is_truncated=True)


def _check(row: Row, config: EncodingConfig, limit: int, context_length: int) -> None:
    longer = ", raise --max-length" if limit < context_length else ""
    length = len(row.input_ids)
    if row.num_labels > limit:
        raise DataError(
            f"{row.source}: no label left: expected an answer of at most {limit} tokens, "
            f"got {row.num_labels}: shorten it{longer}"
        )
    if not config.truncate:
        raise DataError(
            f"{row.source}: expected at most {limit} tokens, got {length}: shorten the row{longer} "
            "or cut the start of long rows with --truncate"
        )
    if row.media is not None:
        raise DataError(
            f"{row.source}: expected at most {limit} tokens, got {length}, and a row with images "
            f"or sounds is not cut: shorten it{longer}"
        )


def _shorter(example: Example) -> Iterator[Example]:
    """Yield a conversation without its oldest turns, fewer each time, the last time with only the
    last question; the system turn stays.
    """
    if isinstance(example.prompt, str):
        return
    turns = list(example.prompt)
    system = [*takewhile(lambda turn: turn["role"] in ("system", "developer"), turns)]
    starts = [index for index, turn in enumerate(turns) if turn["role"] == "user"]
    for start in starts[1:]:
        yield replace(example, prompt=(*system, *turns[start:]))


def _cut(row: Row, start: list[int], end: list[int], limit: int) -> Row:
    """Cut the start of a row's text behind what stays before it, as far as that leaves what stays
    behind it, and the labels.
    """
    ids = row.input_ids
    kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, start, strict=False)))
    least = kept + len(end) + row.num_labels
    if least > limit:
        raise DataError(
            f"{row.source}: expected at most {limit} tokens, and without its text the row has "
            f"{least}: its start token, its system turn and its answer: shorten these"
        )
    rest = ids[len(ids) - (limit - kept) :]
    return replace(row, input_ids=(*ids[:kept], *rest), is_truncated=True)
