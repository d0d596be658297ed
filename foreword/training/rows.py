"""Training rows: examples as rows of token ids that fit behind the prompt.

In: a backbone, examples or encoded rows, the options. Out: rows, and what became of the examples.
Draws no batch and holds no prompt.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from foreword.backbone import Backbone
from foreword.config import EncodingConfig, TrainConfig
from foreword.data import batches, encoding
from foreword.data.class_names import written_otherwise
from foreword.data.columns import as_examples
from foreword.data.encoding import NO_LIMIT, EncodingReport, Row
from foreword.data.example import Example, counted
from foreword.data.preferences import as_pair
from foreword.data.row import every
from foreword.errors import DataError, InputError
from foreword.training import guards

AnyExample = Example | Row | Mapping[str, Any]


def task_names(rows: Sequence[Row]) -> list[str]:
    """Return the names of the rows' tasks, sorted.

    Raises:
        InputError: a row names none.
    """
    names = sorted({row.task for row in rows})
    if "" in names:
        source = next(row.source for row in rows if not row.task)
        raise InputError(f"--method multitask: {source} names no task: give --task-column")
    return names


def check_tasks(rows: Sequence[Row], held_out: Sequence[Row]) -> None:
    """Refuse held-out rows of a task that is not trained.

    Raises:
        InputError: names the task and the first of its rows.
    """
    trained = set(task_names(rows))
    if unknown := [row for row in held_out if row.task not in trained]:
        raise InputError(
            f"{unknown[0].source}: a validation row of task {unknown[0].task!r}, of which there is "
            f"no training row; tasks with some: {', '.join(sorted(trained))}"
        )


def encode_rows(
    backbone: Backbone,
    examples: Sequence[AnyExample],
    config: TrainConfig,
    encoding_config: EncodingConfig,
    *,
    are_pairs: bool = False,
    has_answers: bool = True,
) -> tuple[list[Row], list[str]]:
    """Return examples as rows of ids that fit behind the prompt, and what there is to say of them;
    rows pass as they are.

    Args:
        are_pairs: whether each has two answers, of which one is preferred.
        has_answers: whether the labels of rows are their answers; else a row is all that is asked.
    """
    counts: Counter[str] = Counter()
    texts: list[Example] = []
    for number, example in enumerate(examples, 1):
        if isinstance(example, Mapping):
            source, task = f"example {number}", config.task_column
            if are_pairs:
                texts.append(as_pair(example, source, said=counts))
            else:
                texts += as_examples(example, source, task_column=task, said=counts)
        elif isinstance(example, Example):
            texts.append(_checked(example))
        elif not isinstance(example, Row):
            raise InputError(
                f"example {number}: expected columns by name, an Example or a Row, got "
                f"{type(example).__name__} (of a DataFrame give df.to_dict('records'))"
            )
    said = [f"{what} ({counted(count)})" for what, count in counts.items()]
    rows = [row for row in examples if isinstance(row, Row)]
    if texts:
        encoded, report = encode_texts(backbone, texts, config, encoding_config)
        rows += encoded
        doubts = [guards.truncation(report), None if are_pairs else _classes(texts)]
        said += [*report.notes, *filter(None, doubts)]
    for row in rows:
        if (row.rejected is not None) != are_pairs:
            expected = "two answers, one preferred" if are_pairs else "one answer"
            found = "one" if are_pairs else "two: --objective dpo learns from both"
            raise InputError(f"{row.source}: expected {expected}, found {found}")
        if row.rejected is not None:
            _check_answers(row, row.rejected)
    batches.row_targets(rows)  # all have one, or none
    context = _context(backbone, config)
    for row in every(rows):
        backbone.check_row(row)
        if has_answers and row.num_labels >= len(row.input_ids):
            raise InputError(
                f"{row.source}: every token is a label; a row needs one token before its answer"
            )
        if len(row.input_ids) > context:
            raise InputError(f"{row.source}: {len(row.input_ids)} tokens, at most {context} fit")
        if backbone.reads_apart:
            _check_apart(backbone, row, row.num_labels if has_answers else 0, config)
    return rows, said


def _classes(examples: Sequence[Example]) -> str | None:
    """Say which answers are one class written in several ways, where all are short texts."""
    if any(example.is_beyond_text for example in examples):
        return None
    return written_otherwise([example.completion for example in examples])


def _checked(example: Example) -> Example:
    """Refuse an example whose parts are not what they should be.

    Raises:
        InputError: names it.
    """
    is_asked = isinstance(example.prompt, str | tuple | list)
    if not is_asked or not isinstance(example.completion, str):
        wrong = example.completion if is_asked else example.prompt
        raise InputError(
            f"{example.source}: expected an Example of a text or turns and a text, got "
            f"{type(wrong).__name__}"
        )
    return example


def _check_answers(row: Row, rejected: Row) -> None:
    """Refuse a pair with more than two answers to the same, of which one is preferred.

    Raises:
        InputError: they are to different texts, or the same, or hold what no pair counts by.
    """
    if row.input_ids[: -row.num_labels] != rejected.input_ids[: -rejected.num_labels]:
        raise InputError(
            f"{row.source}: expected two answers to the same, found different ids before them: "
            "drop the row"
        )
    if row.input_ids == rejected.input_ids and row.media is None:
        raise InputError(f"{row.source}: its two answers are the same ids: drop the row")
    for one in (row, rejected):
        if one.weight != 1 or one.target is not None:
            what = f"a weight of {one.weight:g}" if one.target is None else "a teacher's target"
            raise InputError(
                f"{row.source}: expected two answers, one preferred, found {what} beside them: "
                "pairs count alike, by their labels; leave it out"
            )


def encode_texts(
    backbone: Backbone,
    examples: Sequence[Example],
    config: TrainConfig,
    encoding_config: EncodingConfig,
) -> tuple[list[Row], EncodingReport]:
    """Encode examples as the backbone reads them, and say what became of them.

    Raises:
        InputError: the backbone has no tokenizer. DataError: an example that cannot be encoded.
    """
    if backbone.tokenizer is None:
        raise InputError(
            "text examples need a tokenizer; give the backbone one, or pass rows of ids"
        )
    rows, report = _encoded(backbone, examples, config, encoding_config)
    others = [one.rejected for one in examples if one.rejected is not None]
    if not others:
        return rows, report
    rejected, more = _encoded(backbone, others, config, encoding_config)
    return list(map(_paired, rows, rejected)), report.beside(more)


def _paired(row: Row, rejected: Row) -> Row:
    """Return two answers to the same as one row.

    Raises:
        DataError: they are not to the same any more, since something was cut.
    """
    asked = {one.input_ids[: -one.num_labels] for one in (row, rejected)}
    if (row.is_truncated or rejected.is_truncated) and len(asked) > 1:
        raise DataError(
            f"{row.source}: too long, and its two answers leave room for different parts of what "
            "is before them: shorten it, or drop the row"
        )
    if row.input_ids == rejected.input_ids and row.media is None:
        raise DataError(
            f"{row.source}: 'chosen' and 'rejected' become the same tokens: drop the row"
        )
    return replace(row, rejected=rejected)


def _encoded(
    backbone: Backbone,
    examples: Sequence[Example],
    config: TrainConfig,
    encoding_config: EncodingConfig,
) -> tuple[list[Row], EncodingReport]:
    is_literal = encoding_config.plain or backbone.reads_apart
    return encoding.encode_examples(
        examples,
        backbone.tokenizer,
        replace(encoding_config, is_text=None if is_literal else False),
        _context(backbone, config),
        backbone.processor,
        are_pairs=backbone.reads_apart,
        pair_rooms=_pair_rooms(backbone, config) if backbone.reads_apart else (NO_LIMIT, NO_LIMIT),
    )


def _context(backbone: Backbone, config: TrainConfig) -> int:
    """Return how many tokens fit behind the prompt; where text and labels are read apart, each has
    a room of its own.
    """
    if backbone.reads_apart or backbone.capabilities.context_length is None:
        return NO_LIMIT
    left = backbone.capabilities.context_length - config.num_virtual
    if left < 2:
        raise InputError(
            f"--num-virtual-tokens {config.num_virtual} leaves no room for a row: the model's "
            f"context has {backbone.capabilities.context_length} tokens"
        )
    return left


def _check_apart(backbone: Backbone, row: Row, num_labels: int, config: TrainConfig) -> None:
    """Refuse a row whose text does not fit into the encoder, or its labels into the decoder."""
    counts = (len(row.input_ids) - num_labels, num_labels)
    rooms = _pair_rooms(backbone, config)
    for what, count, room in zip(("text", "labels"), counts, rooms, strict=True):
        if count > room:
            raise InputError(f"{row.source}: {what} of {count} tokens, at most {room} fit")


def _pair_rooms(backbone: Backbone, config: TrainConfig) -> tuple[int, int]:
    """Return how many tokens of text fit into the encoder and of labels into the decoder, beside
    the virtual tokens that one of the two reads.
    """
    is_read = config.resolved().form == "embeddings"
    encoder, num_virtual = backbone.capabilities.encoder, config.num_virtual
    assert encoder is not None
    return (
        (encoder.context_length or NO_LIMIT) - is_read * num_virtual,
        (encoder.decoder_length or NO_LIMIT) - (not is_read) * num_virtual,
    )


MOST_NAMED = 5  # rows


def contradicted(rows: Sequence[Row], *, by_task: bool = False) -> str | None:
    """Say which rows ask what an earlier row asks, of their own task where each has its prompt, and
    answer it in another way.
    """
    first: dict[tuple[str, tuple[int, ...]], Row] = {}
    found = []
    for row in rows:
        if row.media is None and row.target is None:
            known = first.setdefault(_asked(row, by_task), row)
            if known.input_ids != row.input_ids:
                found.append(row.source)
    if not found:
        return None
    return (
        f"{len(found)} of {len(rows)} training rows have the prompt of an earlier row and another "
        f"answer: it can learn no more than how often each is given ({_named(found)})"
    )


def overlap(
    rows: Sequence[Row],
    held_out: Sequence[Row],
    *,
    by_task: bool = False,
    has_answers: bool = True,
) -> str | None:
    """Say which validation rows, or what comes before their answers, are training rows' too.

    Args:
        rows: to train on.
        held_out: to validate with.
        by_task: whether each task has a prompt of its own, so that its rows alone count.
        has_answers: whether the labels of rows are their answers; else a row is all that is asked.
    """
    texts = [row for row in held_out if row.media is None]
    trained = [row for row in rows if row.media is None]
    known = {_asked(row, by_task, has_answers) for row in trained}
    asked = [row.source for row in texts if _asked(row, by_task, has_answers) in known]
    if not asked:
        return None
    whole = {_asked(row, by_task, has_answer=False) for row in trained}
    same = sum(_asked(row, by_task, has_answer=False) in whole for row in texts)
    answered = f", {same} of them with the same answer" if has_answers else ""
    return (
        f"{len(asked)} of {len(held_out)} validation rows have the prompt of a training row"
        f"{answered}: what they measure was trained on ({_named(asked)})"
    )


def _asked(row: Row, by_task: bool, has_answer: bool = True) -> tuple[str, tuple[int, ...]]:
    """Return what a row asks, and of which prompt."""
    ids = row.input_ids[: -row.num_labels] if has_answer else row.input_ids
    return row.task if by_task else "", ids


def _named(sources: Sequence[str]) -> str:
    """Return where the first of some rows stand, and how many more there are."""
    rest = len(sources) - MOST_NAMED
    return ", ".join(sources[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")
