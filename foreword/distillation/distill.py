"""Distillation: train a small prompt to say what the model says behind a whole text.

In: a backbone, a lesson: the teacher's answers to queries, as rows; the options of training. Out:
an iterator of training events. The training loop is that of labels (resume, guards, seeds); only
the loss is another: the divergence from the teacher at each token of its own answer. Snell et al.
2022 (arXiv:2209.15189); Eyuboglu et al. 2025 (arXiv:2506.06266). Prints nothing.
"""

import os
from collections.abc import Iterator
from dataclasses import replace

from foreword.backbone import Backbone
from foreword.config import OF_VALUES, RATES, TrainConfig
from foreword.distillation import distractors
from foreword.distillation.lesson import Lesson as Lesson
from foreword.distillation.lesson import prepare as prepare
from foreword.distillation.on_policy import OnPolicy, questions_of
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.loop import TrainEvent
from foreword.training.objective import LIKELIHOOD, Likelihood
from foreword.training.seeds import SeedRun, train_seeds
from foreword.training.start import settled

RATE = 5e-3  # peak, of keys and values that start close to the text: a sixth of that of labels
"""Methods that train these keys and values themselves, without a network."""


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
        distractors.BackboneBeside.of(backbone, lesson.beside) if lesson.beside else backbone,
        lesson.rows,
        config,
        count,
        validation=lesson.held_out,
        encoding_config=lesson.encoding,
        initial=lesson.start,
        folder=folder,
        resume=resume,
        source=lambda seed: _on_policy(backbone, lesson, seed),
        objective=_objective(lesson.start, config),
    )


def _objective(start: SoftPrompt, config: TrainConfig) -> Likelihood:
    """Return the objective: that of labels, at a lower rate where the start is near its end."""
    method = settled(config, start)[0].method
    if start.form != "key_values" or method not in OF_VALUES:
        return LIKELIHOOD
    return Likelihood(rate_share=RATE / RATES[method])


def _on_policy(backbone: Backbone, lesson: Lesson, seed: int) -> OnPolicy | None:
    """Return what makes the rows of the last steps, where some are the student's own."""
    if not lesson.config.on_policy:
        return None
    questions = questions_of(
        backbone, lesson.queries, lesson.encoding, lesson.teachers, lesson.places
    )
    return OnPolicy(backbone, lesson.teachers, questions, lesson.config, seed)
