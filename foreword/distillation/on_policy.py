"""On-policy distillation: a student learns from its own samples, scored by the teacher.

In: the rows of a step and the prompt as it is. Out: the same questions with answers that the model
behind the prompt has drawn, and what the model behind the whole text says of the student's
likeliest ids there; their loss is the reverse divergence (`training.loss.divergence`). With x a
question, c the whole text, s the prompt and y ~ q(. | s, x) a sample, a step lessens

    sum over t of KL( q(. | s, x, y_<t) || p(. | c, x, y_<t) )

without a gradient through the drawing of y (OPCD, arXiv:2602.12275). Takes no step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from foreword import chat
from foreword.backbone import Backbone
from foreword.config import DistillConfig, EncodingConfig
from foreword.data.encoding import Row
from foreword.distillation.teacher import reverse_targets, targets_of
from foreword.prompt.prefix import Prefix
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.distributed import Ranks
from foreword.training.sampling import drawing_from, question, seed_of, shared, with_answer


@dataclass(frozen=True)
class Asked:
    """How the teacher is asked a question, which ids end an answer, and which part of the text the
    teacher reads.
    """

    ids: tuple[int, ...]
    stop_ids: list[int]
    part: int = 0


@dataclass(frozen=True, eq=False)
class OnPolicy:
    """A source of rows that the student itself has answered.

    Attributes:
        backbone: the frozen model.
        teachers: the whole text, or each of its parts.
        questions: how the teacher is asked, by the ids of what the student is asked.
        config: how much of an answer is drawn and kept, and in which share of the steps.
        seed: of what is drawn.
    """

    backbone: Backbone
    teachers: Sequence[SoftPrompt]
    questions: Mapping[tuple[int, ...], Asked]
    config: DistillConfig
    seed: int

    group: ClassVar[int] = 1
    num_more: ClassVar[int] = 0  # an answer takes the place of another

    @property
    def share(self) -> float:
        """The share of the run's steps, its last ones, that take these rows."""
        return self.config.on_policy

    @property
    def identity(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one that began."""
        config = self.config
        names = ("on_policy", "top_k", "keep_mass", "answer_tokens", "answer_batch")
        return {name: getattr(config, name) for name in names} | {"seed": self.seed}

    def rows(self, prompt: SoftPrompt, rows: Sequence[Row], step: int, ranks: Ranks) -> list[Row]:
        """Return the rows of a step with the student's own answers; those that ask nothing stay,
        and those whose answer is that of the data.

        The same prompt, rows and step draw the same answers. Each process draws those of its share
        and tells the others; the targets of theirs it does not need.
        """
        size = self.config.answer_batch
        mine = [
            index
            for index in range(ranks.rank, len(rows), ranks.size)
            if question(rows[index]) in self.questions and not self._is_own(rows[index])
        ]
        found: dict[int, Row] = {}
        prefix = self.backbone.compile(prompt.detached())
        with drawing_from(seed_of(self.seed, step, ranks), self.backbone.device):
            for start in range(0, len(mine), size):
                part = mine[start : start + size]
                answered = self._answered(prefix, [rows[index] for index in part])
                found |= dict(zip(part, answered, strict=True))
        if ranks.size > 1:
            found = self._shared(found, rows, ranks)
        return [found.get(index, row) for index, row in enumerate(rows)]

    def _is_own(self, row: Row) -> bool:
        """Return whether a row's answer is that of the data; a teacher may be as certain of one."""
        is_certain = row.target is not None and row.target.is_certain
        return is_certain and row.weight == self.config.labels

    def _answered(self, prefix: Prefix, rows: Sequence[Row]) -> list[Row]:
        """Return questions with answers that are drawn behind a prefix, and their targets."""
        config, backbone = self.config, self.backbone
        asked = [self.questions[question(row)] for row in rows]
        answers = chat.answer_rows(
            backbone,
            prefix,
            [replace(row, input_ids=question(row), num_labels=1, target=None) for row in rows],
            [one.stop_ids for one in asked],
            max_new_tokens=config.answer_tokens,
            do_sample=True,
            temperature=1.0,
        )
        drawn = [answer.ids for answer in answers]
        own = [with_answer(row, ids) for row, ids in zip(rows, drawn, strict=True)]
        theirs = [Row.from_ids(one.ids, ids) for one, ids in zip(asked, drawn, strict=True)]
        likeliest = targets_of(backbone, prefix, own, config.top_k, config.keep_mass)
        teachers = [backbone.compile(self.teachers[one.part]) for one in asked]
        targets = reverse_targets(backbone, teachers, theirs, likeliest)
        return [replace(row, target=one) for row, one in zip(own, targets, strict=True)]

    def _shared(self, found: dict[int, Row], rows: Sequence[Row], ranks: Ranks) -> dict[int, Row]:
        """Let every process know the answers of all."""
        own = {index: row.input_ids[-row.num_labels :] for index, row in found.items()}
        answers = shared(own, len(rows), self.config.answer_tokens, ranks)
        others = {
            index: with_answer(rows[index], ids)
            for index, ids in answers.items()
            if index not in found
        }
        return found | others


def questions_of(
    backbone: Backbone,
    queries: Sequence[chat.Text],
    student: EncodingConfig,
    teachers: Sequence[SoftPrompt],
    places: Sequence[int],
) -> dict[tuple[int, ...], Asked]:
    """Return how the teacher is asked each query, by the ids of what the student is asked.

    Args:
        backbone: with a tokenizer.
        queries: texts or conversations.
        student: how rows are encoded behind the prompt that is trained.
        teachers: the text, or each of its parts.
        places: the part that each query is about.
    """
    return {
        tuple(chat.encode(backbone, query, student)[0]): Asked(
            tuple(chat.encode(backbone, query, chat.encoding_of(teachers[part]))[0]),
            chat.end_tokens(backbone, query, student),
            part,
        )
        for query, part in zip(queries, places, strict=True)
    }
