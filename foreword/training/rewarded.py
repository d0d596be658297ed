"""Training by rewards: a prompt, questions and a reward function in, events of training out.

In: a backbone, the prompt to start from, questions, a function, the options. Out: the iterator of
events of `train`, whose last one holds the prompt. The loop is that of labels; the rows of a step
are the model's own answers, and the objective is that of `policy`. Prints nothing.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from foreword import chat
from foreword.backbone import Backbone
from foreword.config import RewardConfig, TrainConfig
from foreword.data import encoding
from foreword.data.columns import as_query
from foreword.data.row import Row
from foreword.data.template_dates import dated
from foreword.errors import InputError
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.loop import TrainEvent
from foreword.training.policy import OwnSamples, PolicyGradient
from foreword.training.questions import Question
from foreword.training.rewards import RewardFunction
from foreword.training.rollouts import Rollouts
from foreword.training.seeds import SeedRun, stored_of, train_seeds

AnyQuestion = Question | Mapping[str, Any]
_DEFAULTS = RewardConfig()


def reward(
    backbone: Backbone,
    start: SoftPrompt,
    function: RewardFunction,
    questions: Sequence[AnyQuestion],
    config: RewardConfig = _DEFAULTS,
    training: TrainConfig | None = None,
    *,
    validation: Sequence[AnyQuestion] = (),
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> Iterator[TrainEvent]:
    """Train a prompt by what a function says of the model's own answers, one event per step; an
    event's `reward` is the mean of the step's answers.

    With validation questions the result is the prompt with the highest mean reward of greedy
    answers, else the last one. Takes and raises what `train` does, and:

    Args:
        backbone: with a tokenizer.
        start: the prompt that training starts from, which is the reference of `config.kl`, too.
        function: says how good answers are; see `RewardFunction`.
        questions: rows of a data file, whose answers, if any, are columns like others.
        config: how many answers are drawn to a question, and how they are compared.
        training: the run; a step has `batch_size` questions.

    Raises:
        TrainingError: the function fails, or returns something else; the state is written.
    """
    [run] = reward_seeds(
        backbone,
        start,
        function,
        questions,
        config,
        training or TrainConfig(),
        1,
        validation=validation,
        folder=checkpoint,
        resume=resume,
    )
    return run.events


def reward_seeds(
    backbone: Backbone,
    start: SoftPrompt,
    function: RewardFunction,
    questions: Sequence[AnyQuestion],
    config: RewardConfig,
    training: TrainConfig,
    count: int,
    *,
    validation: Sequence[AnyQuestion] = (),
    folder: str | os.PathLike[str] | None = None,
    resume: bool = False,
    clear: Callable[[], object] | None = None,
) -> Iterator[SeedRun]:
    """Yield the run of each of `count` seeds in turn; see `reward` and `train_seeds`."""
    training.check_one_prompt("reward")
    training.check_step(config.group)
    chat.check_template(backbone, start)
    asked, held_out = (
        [_question(backbone, start, one, f"{name} {number}") for number, one in enumerate(part, 1)]
        for name, part in (("question", questions), ("validation question", validation))
    )
    known: dict[str, Question] = {}
    for one in (*asked, *held_out):
        if known.setdefault(one.source, one) is not one:
            raise InputError(
                f"two questions have one source, {one.source!r:.200}: give each of them its own"
            )
    stored = stored_of(folder, training, count) if resume else None
    saved = dated(
        chat.encoding_of(start),
        backbone.tokenizer,
        backbone.processor,
        recorded=stored.encoding() if stored else None,
    )
    rollouts = Rollouts(backbone, known, saved, function, config)
    rows = rollouts.rows([*asked, *held_out])
    _check_room(backbone, start, rows, config)
    return train_seeds(
        backbone,
        rows[: len(asked)],
        training,
        count,
        validation=rows[len(asked) :],
        encoding_config=saved,
        initial=start,
        folder=folder,
        resume=resume,
        source=lambda seed: OwnSamples(rollouts, start, seed),
        objective=PolicyGradient(rollouts),
        clear=clear,
    )


def _check_room(
    backbone: Backbone, start: SoftPrompt, rows: Sequence[Row], config: RewardConfig
) -> None:
    """Refuse questions beside which an answer does not fit into the model's context, and answers
    that do not fit into the decoder behind an encoder.
    """
    context = backbone.capabilities.context_length
    if context is None:
        return
    if backbone.reads_apart:  # the decoder reads its start token, and keys and values before it
        room = context - 1 - (start.num_virtual_tokens if start.form == "key_values" else 0)
        if config.answer_tokens > room:
            raise InputError(
                f"--answer-tokens {config.answer_tokens}: the model's decoder has room for {room}: "
                "lower it"
            )
        return
    room = context - start.num_virtual_tokens - config.answer_tokens
    for row in rows:
        if row.num_tokens > room:
            raise InputError(
                f"{row.source}: {row.num_tokens} tokens, and beside {start.num_virtual_tokens} "
                f"virtual tokens and --answer-tokens {config.answer_tokens} the model's context "
                f"has room for {room}: lower --answer-tokens, or drop the row"
            )


def _question(backbone: Backbone, start: SoftPrompt, one: AnyQuestion, source: str) -> Question:
    """Return what a row asks, as the rows of the prompt's training were asked."""
    if isinstance(one, Mapping):
        one = Question(as_query(one, source).prompt, source, {str(k): v for k, v in one.items()})
    elif not isinstance(one, Question):
        raise InputError(
            f"{source}: expected a row of columns with a prompt, got {type(one).__name__}"
        )
    encoding.check_fields(one.asked, one.fields, backbone.tokenizer, chat.encoding_of(start))
    if isinstance(one.asked, str):
        typed = chat.typed(backbone, start, one.asked)
        return replace(one, asked=typed if isinstance(typed, str) else tuple(typed), told=one.asked)
    return one
