"""Agreement: how close whatever stands before a query comes to the model behind a whole text.

In: a backbone, a text as a prompt, queries, subjects to compare. Out: for each subject how many of
the teacher's tokens and whole answers greedy decoding would say, with intervals, the divergence on
the queries and on unrelated text, the time to the first token and the bytes of the cache. Needs no
expected answers. Draws no table.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from foreword import chat
from foreword.backbone import Backbone
from foreword.chat import Text
from foreword.config import DistillConfig, ResamplingConfig
from foreword.data.row import Row
from foreword.distillation.teacher import Taught, teach
from foreword.distillation.unrelated import start_token, told_rows
from foreword.errors import DataError, InputError
from foreword.evaluation.bootstrap import Score, Share, score, share
from foreword.evaluation.evaluation import Subject, read_as, room
from foreword.evaluation.first_token import ROUNDS, median_seconds
from foreword.evaluation.losses import check_losses
from foreword.evaluation.metrics import METRICS, Outcome
from foreword.prompt.prefix import Prefix
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.distributed import ALONE, Ranks
from foreword.training.validation import score_rows, validate

NUM_TIMED = 5  # queries whose first token is waited for
WHOLE = "whole text"
_RESAMPLING = ResamplingConfig()


@dataclass(frozen=True)
class Agreement:
    """How close a prompt comes to its teacher on rows.

    Attributes:
        tokens: share of the teacher's tokens that greedy decoding would say, given those before;
            the interval is over resampled rows, whose tokens go together.
        answers: share of rows whose whole greedy answer is the teacher's.
        divergence: mean of a token, in nats, over the teacher's kept ids and the rest.
    """

    tokens: Score
    answers: Share
    divergence: Score


@dataclass(frozen=True, eq=False)
class Cost:
    """What a subject takes, and what it changes elsewhere.

    Attributes:
        first_token: median seconds from a query to the first token of its answer, the cache of
            what stands before being there already.
        cache_bytes: of what stands before a query, for one row.
        num_virtual: P.
        unrelated: divergence from the bare model on unrelated text, in nats a token; NaN where none
            fits behind some subject.
    """

    first_token: float
    cache_bytes: int
    num_virtual: int
    unrelated: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """Subjects beside the model behind the whole text.

    Attributes:
        agreements: by the name of the subject; the whole text itself has none.
        costs: by the name of the subject, the whole text among them.
        reading: median seconds to the first token where the whole text is read with the query.
        mass: mean share of the teacher's probability that the kept ids hold.
        start_token: divergence on unrelated text that one start token before it makes.
    """

    agreements: Mapping[str, Agreement]
    costs: Mapping[str, Cost]
    reading: float
    mass: float
    start_token: float


def agreement(
    backbone: Backbone,
    prompt: SoftPrompt | Prefix | None,
    rows: Sequence[Row],
    batch_size: int = 16,
    resampling: ResamplingConfig = _RESAMPLING,
    ranks: Ranks = ALONE,
) -> Agreement:
    """Return how close a prompt, or the bare model, comes to the teacher on rows with targets.

    Raises:
        InputError: no rows, or a model whose numbers are not finite.
    """
    if not rows:
        raise InputError("no queries to compare on; give at least one")
    found = score_rows(backbone, prompt, rows, batch_size, ranks)
    check_losses(backbone, found.losses.tolist(), [row.source for row in rows])
    mean = METRICS["loss"]  # a mean over tokens, whatever is summed of them
    labels = [int(count) for count in found.num_labels.tolist()]

    def of(sums: list[float]) -> Score:
        pairs = zip(sums, labels, strict=True)
        outcomes = [Outcome("", loss=value, num_labels=count) for value, count in pairs]
        return score(mean, outcomes, resampling)

    exact = int((found.num_best == found.num_labels).sum())
    return Agreement(
        of(found.num_best.tolist()),
        share(exact, len(rows), resampling.confidence),
        of(found.losses.tolist()),
    )


def compare(
    backbone: Backbone,
    text: SoftPrompt,
    queries: Sequence[Text],
    subjects: Sequence[Subject],
    config: DistillConfig,
    resampling: ResamplingConfig = _RESAMPLING,
    *,
    rounds: int = ROUNDS,
    on_answer: Callable[[], Any] = lambda: None,
) -> Comparison:
    """Lay subjects beside the model behind the whole text, on queries without answers.

    Args:
        text: see `named_text.text_prompt`.
        subjects: each with one prompt, an instruction, or nothing.
        config: how long the teacher answers, in batches of how many, and how much of it counts.
        rounds: over which times are taken.
        on_answer: is called after each of the teacher's answers.

    Raises:
        DataError: a query that the text cannot stand before, or that leaves no room for its answer.
        MismatchError: a prompt of another base, or of another chat template.
    """
    for one in (text, *(prompt for subject in subjects for prompt in subject.prompts)):
        chat.check_template(backbone, one)
    whole = Subject(WHOLE, prompt=text)
    asked = [read_as(backbone, whole, query) for query in queries]
    taught = []
    for answered in teach(backbone, text, asked, config):
        taught.append(answered)
        on_answer()
    agreements = {
        subject.name: agreement(
            backbone,
            subject.prompts[0],
            _rows(backbone, subject, queries, taught),
            config.answer_batch,
            resampling,
        )
        for subject in subjects
    }
    every = [*subjects, whole]
    times = _times(backbone, every, text, queries[:NUM_TIMED], rounds)
    left = min(room(backbone, subject.prompts[0]) for subject in every)
    unrelated = told_rows(backbone, config, left)

    def elsewhere(prompt: SoftPrompt | Prefix | None) -> float:
        if not unrelated:
            return math.nan
        return validate(backbone, prompt, unrelated, config.answer_batch).loss

    costs = {}
    for subject in every:
        prefix = _prefix(backbone, subject)
        costs[subject.name] = Cost(
            times[subject.name],
            prefix.num_bytes if prefix is not None else 0,
            prefix.num_virtual_tokens if prefix is not None else 0,
            elsewhere(prefix),
        )
    mass = sum(one.target.mass for one in taught) / len(taught)
    floor = elsewhere(start_token(backbone))
    return Comparison(agreements, costs, times[READING], mass, floor)


READING = "the whole text, read with the query"


def first_tokens(
    backbone: Backbone,
    text: SoftPrompt,
    prompt: SoftPrompt,
    queries: Sequence[Text],
    rounds: int = ROUNDS,
) -> tuple[float, float, float]:
    """Return the median seconds to the first token where a whole text is read with the query, where
    its cache is kept, and behind a prompt.
    """
    subjects = [Subject(WHOLE, prompt=text), Subject("prompt", prompt=prompt)]
    times = _times(backbone, subjects, text, queries[:NUM_TIMED], rounds)
    return times[READING], times[WHOLE], times["prompt"]


def _times(
    backbone: Backbone,
    subjects: Sequence[Subject],
    text: SoftPrompt,
    queries: Sequence[Text],
    rounds: int,
) -> dict[str, float]:
    """Return the median seconds to the first token of a query, for each subject and for one that
    reads the whole text with the query.
    """
    whole = Subject(WHOLE, prompt=text)

    def begin(subject: Subject) -> Callable[[], object]:
        prefix = _prefix(backbone, subject)
        rows = [_asked(backbone, subject, query) for query in queries]

        def one() -> None:
            for row in rows:
                list(chat.answer_rows(backbone, prefix, [row], [[]], max_new_tokens=1))

        return one

    answer = begin(whole)

    def read() -> None:
        # What a request without a kept cache pays, once for each query.
        with torch.no_grad():
            for _ in queries:
                backbone.prefill(text)
        answer()

    ways = {subject.name: begin(subject) for subject in subjects} | {READING: read}
    return {name: seconds / len(queries) for name, seconds in median_seconds(ways, rounds).items()}


def _prefix(backbone: Backbone, subject: Subject) -> Prefix | None:
    [prompt] = subject.prompts
    return backbone.compile(prompt) if prompt is not None else None


def _asked(backbone: Backbone, subject: Subject, query: Text) -> Row:
    return chat.encode_row(backbone, read_as(backbone, subject, query), subject.config)


def _rows(
    backbone: Backbone, subject: Subject, queries: Sequence[Text], taught: Sequence[Taught]
) -> list[Row]:
    """Return queries as a subject is asked them, with the teacher's answers and targets."""
    limit, rows = room(backbone, subject.prompts[0]), []
    for number, (query, one) in enumerate(zip(queries, taught, strict=True), 1):
        row = _asked(backbone, subject, query)
        ids = (*row.input_ids, *one.ids)
        if len(ids) > limit:
            raise DataError(
                f"query {number}: expected at most {limit} tokens with its answer for "
                f"{subject.name}, got {len(ids)}: shorten it, or leave it out"
            )
        rows.append(replace(row, input_ids=ids, num_labels=len(one.ids), target=one.target))
    return rows
