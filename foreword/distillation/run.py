"""Distillation in one call: a text and queries in, events of training out.

In: a backbone, a text, rows or none, the options. Out: an iterator of training events, whose last
one holds the prompt. Where what is taught is to be looked at first, `lesson.prepare` and
`distill.distill` are its two halves. Prints nothing.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from foreword.backbone import Backbone
from foreword.config import DistillConfig, TrainConfig
from foreword.distillation import distill as training
from foreword.distillation.contexts import AnyContext
from foreword.distillation.input_checks import form_of
from foreword.distillation.lesson import AnyQuery, prepare
from foreword.training.folders import STATE_FILE
from foreword.training.loop import TrainEvent
from foreword.training.state_file import refuse_run


def distill(
    backbone: Backbone,
    context: AnyContext,
    rows: Sequence[AnyQuery] | None = None,
    config: TrainConfig | None = None,
    *,
    distill_config: DistillConfig | None = None,
    is_instruction: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = False,
) -> Iterator[TrainEvent]:
    """Train a small prompt to say what the model says with a long text before the query; one event
    per optimizer step, and the last event's `prompt` is the result.

    An event's loss is the mean divergence from the teacher at a token of its answers, in nats; a
    validation is on queries that were set aside.

    Args:
        backbone: with a tokenizer.
        context: the text, turns of a conversation, or a prompt, which needs `rows`.
        rows: queries as texts, turns, or rows of data whose answers are used by
            `distill_config.labels` only; None: the model asks itself.
        config: the run; `num_virtual_tokens` is P, 64 where it is not given; `form` or `method` say
            what is learned, keys and values where they do not.
        distill_config: what is kept of the teacher's answers, what is set aside, who asks.
        is_instruction: whether the text is an instruction, and not a document to ask about.
        checkpoint: directory that questions, answers and the training state are written to; one
            that holds a run is gone on with or refused, never begun anew.
        resume: go on with the state in `checkpoint`, bit for bit.

    Raises:
        InputError: a text that is not longer than P, too few queries, answers that teach nothing,
            or a `checkpoint` of another text, base, queries or options, or without `resume` of a
            run.
        MismatchError: a prompt of another base, or of rows by another chat template.
        DataError: a query that the text cannot stand before, or that holds the text itself.
        UnsupportedError: a model whose states cannot start from the first tokens of a text.
        UnavailableError: the endpoint that is to ask does not answer.
        StorageError: nothing can be written to `checkpoint`.
    """
    config = config or TrainConfig()
    if checkpoint is not None and not resume:
        refuse_run(Path(checkpoint) / STATE_FILE)
    lesson = prepare(
        backbone,
        context,
        rows,
        config.num_virtual_tokens,
        distill_config,
        form=form_of(config),
        seed=config.seed,
        folder=checkpoint,
        is_instruction=is_instruction,
    )
    return training.distill(backbone, lesson, config, checkpoint=checkpoint, resume=resume)
