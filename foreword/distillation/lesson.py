"""Lesson of a distillation: what a teacher says behind a whole text, laid out as rows to train on.

In: a backbone, a text, queries without answers, the options. Out: the teacher's answers and their
probabilities as rows, those that are set aside, unrelated text, and the prompt to start from.
Questions and answers are kept in a folder, where one is given. Takes no training step.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from foreword import chat
from foreword.backbone import Backbone
from foreword.config import DistillConfig, EncodingConfig, Form, TrainConfig
from foreword.data import encoding
from foreword.data.encoding import Row
from foreword.data.example import named
from foreword.distillation import context_date, contexts, distractors, embedding_starts, starts
from foreword.distillation.beginning import Beginning
from foreword.distillation.contexts import AnyContext
from foreword.distillation.kept_start import KeptStart
from foreword.distillation.labels import label_rows, mixed, toward_answer
from foreword.distillation.parts import counting, keys_of, nearest, teach_parts
from foreword.distillation.passages import Passage, passages_of
from foreword.distillation.queries import Query, as_queries, check_holds_no_text
from foreword.distillation.rows import check_taught, set_aside, taught_row
from foreword.distillation.self_study import Study, described, study
from foreword.distillation.student import student_encoding
from foreword.distillation.teacher import Taught
from foreword.distillation.unrelated import told_rows, written_rows
from foreword.evaluation.evaluation import room
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.facts import hash_rows

AnyQuery = Query | Mapping[str, Any] | chat.Text


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is taught, ready to train on.

    Attributes:
        text: the whole text as a prompt; the first part of a text that has several.
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
        teachers: the text as a prompt, or each of its parts.
        places: the part behind which each of the queries was answered.
        said: where the queries came from, and what is to be known of them, a sentence each.
        beside: other prompts that some rows stand beside, by what their task says.
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
    teachers: Sequence[SoftPrompt] = ()
    places: Sequence[int] = ()
    said: Sequence[str] = ()
    beside: Mapping[str, distractors.Beside] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """The tokens of the whole text."""
        return sum(one.num_virtual_tokens for one in self.teachers or [self.text])


def prepare(
    backbone: Backbone,
    text: AnyContext,
    queries: Sequence[AnyQuery] | None,
    num_virtual: int | None = None,
    config: DistillConfig | None = None,
    *,
    form: Form = "key_values",
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    is_instruction: bool = False,
    is_anew: bool = False,
    on_begin: Callable[[], object] = lambda: None,
    on_answer: Callable[[], object] = lambda: None,
    on_question: Callable[[], object] = lambda: None,
) -> Lesson:
    """Read a text once, let the model behind it answer the queries, and lay out what is taught.

    A text that is longer than the model's context is taught in parts, each its own teacher.

    Args:
        backbone: with a tokenizer.
        text: an instruction, a document, turns of a conversation, or a prompt.
        queries: texts, conversations or rows of data; None: the model asks them, see `self_study`.
        num_virtual: P of the prompt that is trained; None: see `contexts.read`.
        config: how much is kept of the answers, what is set aside, and who asks.
        form: of the prompt that is trained.
        seed: of what is set aside, and of asking.
        folder: keeps the questions, the teacher's answers and the start, so that none is computed
            twice.
        is_instruction: whether a text is an instruction, and not a document to ask about.
        is_anew: whether what the folder keeps of something else is removed.
        on_begin: is called once what can be checked is, before anything in the folder changes.
        on_answer: is called after each answer.
        on_question: is called after each question.

    Raises:
        InputError: too few queries, a text that is not longer than P, answers that teach nothing.
        DataError: a query that the text cannot stand before, or that holds the text itself.
        MismatchError: a prompt of another base. UnavailableError: the endpoint that is to ask does
            not answer.
    """
    config = config or DistillConfig()
    asked = None if queries is None else as_queries(queries)
    context = contexts.read(
        backbone,
        text,
        asked,
        num_virtual,
        config,
        form=form,
        is_instruction=is_instruction,
        encoding=None if is_anew else context_date.encoding_in(folder),
    )
    teachers, said, asked = context.teachers, context.said, context.queries
    whole, num_virtual = teachers[0], context.num_virtual
    _check_model(backbone, whole, num_virtual, config, form, seed)
    begin = Beginning(folder, chat.encoding_of(teachers[0]), is_anew, asked is None, on_begin)
    if asked is None:
        found = _asked(backbone, context, config, seed, folder, begin, on_question, is_anew=is_anew)
        asked = found.queries
        said.append(described(found, config))
    _check_queries(backbone, asked, context)
    places = nearest(backbone, teachers, asked)
    student = student_encoding(backbone, whole, [query.asked for query in asked])
    trained = TrainConfig(num_virtual_tokens=num_virtual, form=form)
    own = label_rows(backbone, asked, student, trained, config.labels)
    if folder is not None:
        begin(keys_of(backbone, teachers, asked, places, config, Path(folder)))
    taught = teach_parts(
        backbone, teachers, asked, places, config, folder, on_answer, is_anew=is_anew
    )
    check_taught(taught)
    pairs = list(zip(asked, taught, strict=True))
    rows = _rows(backbone, pairs, student)
    aside = set_aside(rows, [query.group for query in asked], config.held_out, seed)
    learned = _learned(rows, own, aside)
    beside: dict[str, distractors.Beside] = {}
    if own:
        weight = f"{config.labels:g}"
        said.append(f"{len(own)} of {len(asked)} rows have an answer, which weighs {weight}")
    if config.distractors is not None:
        longest = num_virtual + max(len(row.input_ids) for row in rows)
        learned, beside = _beside(backbone, learned, longest, config, seed, said)
    kept = KeptStart(backbone, folder, is_anew)
    count = round(config.unrelated_share * (len(rows) - len(aside)))
    unrelated, told = _unrelated(kept, count, rows, num_virtual, config, seed)
    first_part = [
        pair for index, pair in enumerate(pairs) if index not in aside and not places[index]
    ]
    matched = learned if form == "embeddings" else _matched(backbone, whole, config, first_part)
    begins = embedding_starts.begin if form == "embeddings" else starts.begin
    start, sentence = kept.prompt(
        [whole.content_hash, num_virtual, form, config.start, seed, hash_rows(matched)],
        lambda: begins(backbone, whole, num_virtual, config.start, matched, seed),
    )
    said.append(sentence)
    return Lesson(
        text=whole,
        start=start,
        rows=[*(toward_answer(row, config.answer_weight) for row in learned), *unrelated],
        held_out=[rows[index] for index in sorted(aside)],
        unrelated=told,
        encoding=student,
        mass=fmean(one.target.mass for one in taught),
        num_kept=fmean(one.target.num_kept for one in taught),
        seconds=context.seconds,
        queries=tuple(query.asked for query in asked),
        config=config,
        teachers=teachers,
        places=places,
        said=said,
        beside=beside,
    )


def _check_model(
    backbone: Backbone,
    whole: SoftPrompt,
    num_virtual: int,
    config: DistillConfig,
    form: Form,
    seed: int,
) -> None:
    """Refuse a start that is named and distractors that the model cannot have, before it answers:
    both are made again from the answers.
    """
    if config.distractors is not None:
        distractors.read_distractors(backbone, config.distractors, num_virtual)
    if config.start is None:
        return
    if form == "embeddings":
        embedding_starts.start_of(backbone, whole, num_virtual, config.start, seed)
    elif config.start != "attention":
        starts.start_of(backbone, whole, num_virtual, config.start, seed=seed)
    else:
        starts.movable(backbone)


def _asked(
    backbone: Backbone,
    context: contexts.ReadContext,
    config: DistillConfig,
    seed: int,
    folder: str | os.PathLike[str] | None,
    begin: Beginning,
    on_question: Callable[[], object],
    *,
    is_anew: bool,
) -> Study:
    """Let the model, or an endpoint, ask the queries."""
    return study(
        backbone,
        context.teachers,
        _passages(backbone, context),
        config,
        is_instruction=context.is_instruction,
        seed=seed,
        folder=folder,
        is_anew=is_anew,
        on_begin=begin,
        on_question=on_question,
    )


def _learned(rows: Sequence[Row], own: Mapping[int, Row], aside: Collection[int]) -> list[Row]:
    """Return the rows to train on: what was taught, and beside it a row's own answer."""
    return [
        one
        for index, row in enumerate(rows)
        if index not in aside
        for one in mixed(row, own.get(index))
    ]


def _check_queries(
    backbone: Backbone, asked: Sequence[Query], context: contexts.ReadContext
) -> None:
    """Refuse queries that hold the text itself, and those that its encoding cannot write."""
    check_holds_no_text(asked, context.texts)
    written = chat.encoding_of(context.teachers[0])
    for query in asked:
        with named(query.source):
            encoding.check_fields(query.asked, query.fields, backbone.tokenizer, written)


def _matched(
    backbone: Backbone,
    whole: SoftPrompt,
    config: DistillConfig,
    pairs: Sequence[tuple[Query, Taught]],
) -> list[Row]:
    """Return the rows whose attention the keys and values to start from match, as they stand behind
    the whole text; none where another start is named.
    """
    is_matched = config.start in (None, "attention")
    return _rows(backbone, pairs if is_matched else (), chat.encoding_of(whole))


def _rows(
    backbone: Backbone, pairs: Sequence[tuple[Query, Taught]], encoding: EncodingConfig
) -> list[Row]:
    """Return queries with what they were taught, as rows of an encoding."""
    return [taught_row(backbone, query.asked, one, encoding, query.source) for query, one in pairs]


def _beside(
    backbone: Backbone,
    learned: list[Row],
    longest: int,
    config: DistillConfig,
    seed: int,
    said: list[str],
) -> tuple[list[Row], dict[str, distractors.Beside]]:
    """Place a share of the rows beside other prompts; return the rows, and these prompts."""
    assert config.distractors is not None
    beside = distractors.read_distractors(backbone, config.distractors, longest)
    learned = distractors.placed(learned, list(beside), config.distractor_share, seed)
    num_beside = sum(bool(row.task) for row in learned)
    said.append(
        f"{num_beside} of {len(learned)} rows stand beside one of {len(beside) // 2} other prompts"
    )
    return learned, beside


def _unrelated(
    kept: KeptStart,
    count: int,
    rows: Sequence[Row],
    num_virtual: int,
    config: DistillConfig,
    seed: int,
) -> tuple[list[Row], list[Row]]:
    """Return rows of unrelated text to train on, asked as the others, and those that tell."""
    backbone = kept.backbone
    left = room(backbone, num_virtual)
    is_text = all(row.is_text for row in rows)
    written = kept.rows(
        [count, seed, left, config.top_k, config.keep_mass, config.answer_batch],
        lambda: written_rows(backbone, count, config, seed, left),
    )
    return [replace(row, is_text=is_text) for row in written], told_rows(backbone, config, left)


def _passages(backbone: Backbone, context: contexts.ReadContext) -> list[Passage]:
    if context.is_instruction:
        return [Passage(context.texts[0], 0, "the instruction")]
    return passages_of(context.texts, backbone.capabilities.context_length, counting(backbone))
