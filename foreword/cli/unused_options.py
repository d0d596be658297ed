"""Unused options: those that can have no effect beside a command's others.

In: configs as the command line made them. Out: nothing, or one line that names the first of them.
An option that keeps its default is not given: a file of `--config` names all.
"""

from dataclasses import fields
from typing import Any

from foreword.cli import options
from foreword.config import DataConfig, DistillConfig, EvalConfig
from foreword.errors import InputError


def check_distill(columns: DataConfig, config: DistillConfig, *, has_data: bool) -> None:
    """Refuse options of questions where there are queries, and of their rows where there are none.

    Raises:
        InputError: names the option.
    """
    if config.distractors is None and given(config, "distractor_share"):
        raise InputError("--distractor-share is of --distractors: give that, too")
    if config.distractors is not None and not config.distractor_share:
        raise InputError("--distractor-share 0 places none of --distractors: leave them out")
    if has_data:
        asking = given(config, "questions_from", "questions_model", "questions", "question_tokens")
        _refuse(asking, "is for asking questions, and --data has the queries")
        _refuse(given(columns, "learn"), "is for learning from answers, and the teacher answers")
    else:
        _refuse(given(columns), "is for rows of --data, which is not given")
        if config.labels:
            raise InputError(f"--labels {config.labels:g} is for rows with answers: give --data")


def check_reward(columns: DataConfig) -> None:
    """Refuse an option of answers where the model's own are learned from, and say of the column of
    a template's answers that it is not read.

    Raises:
        InputError: names the option.
    """
    _refuse(given(columns, "learn"), "is for learning from answers, and the model answers itself")
    for name in given(columns, "label_column"):
        options.note(f"{name} is not used: answers are not read")


def check_without_answers(config: EvalConfig) -> None:
    """Refuse options of a score where rows without answers are only laid beside a context.

    Raises:
        InputError: names the option.
    """
    _refuse(given(config, "choices", "metrics"), "is for a score, and the rows have no answers")


def given(config: Any, *names: str) -> list[str]:
    """Return the options of a config, or those of some names, that differ from their default."""
    return [
        f"--{one.name.replace('_', '-')}"
        for one in fields(config)
        if (not names or one.name in names) and getattr(config, one.name) != one.default
    ]


def _refuse(names: list[str], why: str) -> None:
    if names:
        raise InputError(f"{names[0]} {why}: leave it out")
