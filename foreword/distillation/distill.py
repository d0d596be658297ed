"""Distillation: train a small prompt to say what the model says behind a whole text.

In: a backbone, a text, queries without answers, the options. Out: an iterator of training events;
what the teacher said and how close the prompt comes, in numbers. The training loop is that of
labels (resume, guards, seeds); only the loss is another: the divergence from the teacher at each
token of its own answer. Snell et al. 2022 (arXiv:2209.15189); Eyuboglu et al. 2025
(arXiv:2506.06266). Prints nothing.
"""

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from foreword import chat
from foreword.backbone import Backbone
from foreword.config import DistillConfig, EncodingConfig, TrainConfig
from foreword.data import encoding
from foreword.data.encoding import Row
from foreword.data.media_parts import Message
from foreword.distillation.on_policy import OnPolicy, questions_of
from foreword.distillation.starts import start_of
from foreword.distillation.student import student_encoding
from foreword.distillation.teacher import Taught, targets_of, teach
from foreword.errors import InputError, UnsupportedError
from foreword.evaluation.forgetting import unrelated_text, windows
from foreword.named_text import text_prompt
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.loop import TrainEvent
from foreword.training.seeds import SeedRun, train_seeds

NUM_VIRTUAL = 64
FOLDER = "teacher"
WINDOW = 64  # tokens of a row of unrelated text
NUM_UNRELATED = 8  # rows of it that are not trained on, to tell what the prompt changes there


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is taught, ready to train on.

    Attributes:
        text: the whole text as a prompt.
        start: the prompt that training starts from.
        rows: the queries to train on, then the unrelated text.
        held_out: queries that are not trained on.
        unrelated: rows of unrelated text that are not trained on.
        encoding: how rows are encoded behind the prompt.
        mass: the mean share of the teacher's probability that the kept ids hold.
        num_kept: the mean number of ids that are kept at a token.
        seconds: that it took to read the text once.
        queries: those of `rows` and `held_out`.
        config: how much is kept of the answers, and what is set aside.
    """

    text: SoftPrompt
    start: SoftPrompt
    rows: list[Row]
    held_out: list[Row]
    unrelated: list[Row]
    encoding: EncodingConfig
    mass: float
    num_kept: float = 0.0
    seconds: float = 0.0
    queries: tuple[chat.Text, ...] = ()
    config: DistillConfig = DistillConfig()


def prepare(
    backbone: Backbone,
    text: str | Sequence[Message],
    queries: Sequence[chat.Text],
    num_virtual: int = NUM_VIRTUAL,
    config: DistillConfig | None = None,
    *,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    on_answer: Callable[[], object] = lambda: None,
) -> Lesson:
    """Read a text once, let the model behind it answer the queries, and lay out what is taught.

    Args:
        backbone: with a tokenizer.
        text: an instruction, a document, or turns of a conversation.
        queries: texts or conversations, without answers.
        num_virtual: P of the prompt that is trained.
        config: how much is kept of the answers, and what is set aside.
        seed: of what is set aside.
        folder: keeps the teacher's answers, so that none is computed twice.
        on_answer: is called after each answer.

    Raises:
        InputError: no queries, a text that is not longer than P, answers that teach nothing.
        DataError: a query that the text cannot stand before, or that holds the text itself.
    """
    config = config or DistillConfig()
    if backbone.capabilities.is_recurrent:
        raise UnsupportedError(
            f"{backbone.capabilities.model_type}: the state of a recurrent model cannot start from "
            "the first tokens of a text; put the text under a name (prompts add --text)"
        )
    if len(queries) < 2:
        raise InputError(f"expected at least 2 queries to learn from, got {len(queries)}: add some")
    whole = text_prompt(backbone, text)
    if whole.num_virtual_tokens <= num_virtual:
        raise InputError(
            f"the text has {whole.num_virtual_tokens} tokens, no more than --num-virtual-tokens "
            f"{num_virtual}: as it is, it is smaller and exact (foreword prompts add NAME --text)"
        )
    started = time.perf_counter()
    backbone.compile(whole)
    seconds = time.perf_counter() - started
    taught = []
    place = None if folder is None else Path(folder) / FOLDER
    for one in teach(backbone, whole, queries, config, place):
        taught.append(one)
        on_answer()
    _check_taught(taught)
    student = student_encoding(backbone, whole, queries)
    rows = [
        _row(backbone, query, one, student, f"query {number}")
        for number, (query, one) in enumerate(zip(queries, taught, strict=True), 1)
    ]
    rows, held_out = _set_aside(rows, config.held_out, seed)
    trained, kept = unrelated_rows(
        backbone, round(config.unrelated_share * len(rows)), config.top_k, config.keep_mass
    )
    mass = sum(one.target.mass for one in taught) / len(taught)
    num_kept = sum(one.target.num_kept for one in taught) / len(taught)
    asked = [
        _row(backbone, query, one, chat.encoding_of(whole), "a query behind the text")
        for query, one in zip(queries, taught, strict=True)
        if config.start == "attention"
    ]
    start = start_of(backbone, whole, num_virtual, config.start, asked, seed)
    return Lesson(
        whole, start, [*rows, *trained], held_out, kept, student, mass, num_kept, seconds,
        tuple(queries), config,
    )  # fmt: skip


def distill(
    backbone: Backbone,
    lesson: Lesson,
    config: TrainConfig | None = None,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> Iterator[TrainEvent]:
    """Train a prompt to say what the model says behind the whole text, one event per step.

    An event's loss is the divergence from the teacher; so is that of its validation, whose
    `agreement` is the share of the teacher's tokens on held-out queries that greedy decoding would
    say, and `exact` that of whole answers. Takes and raises what `train` does.
    """
    [run] = distill_seeds(
        backbone, lesson, config or TrainConfig(), 1, folder=checkpoint, resume=resume
    )
    return run.events


def distill_seeds(
    backbone: Backbone,
    lesson: Lesson,
    config: TrainConfig,
    count: int,
    *,
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> Iterator[SeedRun]:
    """Yield the run of each of `count` seeds in turn, all from the same start and rows; see
    `training.seeds.train_seeds`.
    """
    config = replace(config, num_virtual_tokens=lesson.start.num_virtual_tokens)
    return train_seeds(
        backbone,
        lesson.rows,
        config,
        count,
        validation=lesson.held_out,
        encoding_config=lesson.encoding,
        initial=lesson.start,
        folder=folder,
        resume=resume,
        source=lambda seed: _on_policy(backbone, lesson, seed),
    )


def _on_policy(backbone: Backbone, lesson: Lesson, seed: int) -> OnPolicy | None:
    """Return what makes the rows of the last steps, where some are the student's own."""
    if not lesson.config.on_policy:
        return None
    teacher = chat.encoding_of(lesson.text)
    questions = questions_of(backbone, lesson.queries, lesson.encoding, teacher)
    return OnPolicy(backbone, backbone.compile(lesson.text), questions, lesson.config, seed)


def _row(
    backbone: Backbone, query: chat.Text, taught: Taught, config: EncodingConfig, source: str
) -> Row:
    """Return a query as the prompt is asked it, with the teacher's answer and targets."""
    ids, _ = chat.encode(backbone, query, config)
    row = Row.from_ids(ids, taught.ids, source)
    return replace(row, target=taught.target, is_text=isinstance(query, str))


def _check_taught(taught: Sequence[Taught]) -> None:
    """Refuse answers from which nothing can be learned."""
    if all(len(one.ids) <= 1 for one in taught):
        raise InputError(
            "the model behind the text answers nothing to any query: ask what the text is about"
        )
    if len(taught) > 3 and len({one.ids for one in taught}) == 1:
        raise InputError(
            "the model behind the text gives every query the same answer: ask different things"
        )


def _set_aside(rows: list[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Return the rows to train on and those set aside, equal queries on one side."""
    groups: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(row.input_ids, []).append(row)
    keys = list(groups)
    random.Random(seed).shuffle(keys)
    count = min(max(1, round(share * len(keys))), len(keys) - 1) if share else 0
    aside = {key for key in keys[:count]}
    return (
        [row for row in rows if row.input_ids not in aside],
        [row for row in rows if row.input_ids in aside],
    )


def unrelated_rows(
    backbone: Backbone, count: int, top_k: int, keep_mass: float = 0.0
) -> tuple[list[Row], list[Row]]:
    """Return rows of unrelated text, whose teacher is the model without any prompt: `count` to
    train on, the same again where the text has fewer, and its last ones, which are not trained on.
    """
    size = WINDOW + len(encoding.start_ids(backbone.tokenizer))
    whole = [row for row in windows(backbone, unrelated_text(), size) if len(row.input_ids) == size]
    kept = whole[-min(NUM_UNRELATED, len(whole) // 2 + 1) :]
    trained = whole[: min(count, len(whole) - len(kept))]
    found = [
        replace(row, target=target)
        for row in (*trained, *kept)
        for target in targets_of(backbone, None, [row], top_k, keep_mass)
    ]
    trained, kept = found[: len(trained)], found[len(trained) :]
    return [trained[index % len(trained)] for index in range(count if trained else 0)], kept
