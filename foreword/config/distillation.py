"""Options of distillation: how a text is taught to fewer virtual tokens."""

from dataclasses import dataclass
from typing import Literal

from foreword.config.addresses import check_endpoint
from foreword.config.checks import at_least_one, check_types
from foreword.config.declaring import option
from foreword.errors import InputError

DistillStart = Literal["first", "even", "attention", "vocabulary"]


@dataclass(frozen=True)
class DistillConfig:
    """How a text is distilled into fewer virtual tokens."""

    start: DistillStart | None = option(
        None,
        "keys and values that training starts from: those that the queries attend to most, with "
        "matched values (attention), the first P tokens of the text (first), P at even distances "
        "(even), or sampled vocabulary as a control; default: attention, and first on models whose "
        "keys cannot be moved",
    )
    top_k: int = option(20, "likeliest ids of the teacher that are kept at each token of an answer")
    keep_mass: float = option(
        0.9,
        "where --top-k ids hold less of the teacher's probability than this share, keep more, at "
        "most 16 times as many; 0: never",
    )
    answer_tokens: int = option(128, "longest answer of the teacher in tokens")
    answer_batch: int = option(16, "answers of the teacher that are generated at once")
    held_out: float = option(
        0.1, "share of the queries that is not trained on, to tell how it goes"
    )
    unrelated_share: float = option(
        0.25,
        "rows of unrelated text beside the queries, as a share of them, at which the prompt learns "
        "to change nothing; the base writes them itself",
    )
    on_policy: float = option(
        0.0,
        "the last share of the steps, in which the prompt learns from its own samples, scored by "
        "the teacher, instead of from the teacher's answers",
    )
    answer_weight: float = option(
        0.0,
        "weight of the teacher's answer itself, as a label, in each token's target; its "
        "probabilities have the rest",
    )
    labels: float = option(
        0.0,
        "weight of a row's own answer, where it has one, in the loss; the teacher's has the rest",
    )
    distractors: str | None = option(
        None,
        "folder or store of other prompts, which stand beside the student in some rows, read only, "
        "so that it can be composed with others",
    )
    distractor_share: float = option(0.25, "share of the rows in which one of --distractors stands")
    questions: int = option(256, "without --data: questions that are asked about the text")
    question_tokens: int = option(64, "longest question in tokens")
    questions_from: str | None = option(
        None,
        "OpenAI-compatible endpoint that asks them in place of the base, as https://host/v1; its "
        "key is read from FOREWORD_QUESTIONS_KEY",
    )
    questions_model: str | None = option(None, "model of --questions-from")

    def __post_init__(self) -> None:
        check_types(self)
        at_least_one(self, "top_k", "answer_tokens", "answer_batch")
        at_least_one(self, "questions", "question_tokens")
        for name in (
            "keep_mass",
            "held_out",
            "unrelated_share",
            "on_policy",
            "answer_weight",
            "labels",
            "distractor_share",
        ):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(
                    f"--{name.replace('_', '-')} must be in [0, 1), got {getattr(self, name)}"
                )
        if (self.questions_from is None) != (self.questions_model is None):
            raise InputError("--questions-from and --questions-model go together: give both")
        if self.questions_from is not None:
            check_endpoint(self.questions_from)
