"""Rollouts: answers to questions behind the prompt as it is, with what a reward function says.

In: questions, a reward function, a prompt. Out: rows with the model's own answers, and the reward
of each. A group of answers to a question is drawn in one batch with those to others, all behind one
prefix. Several processes share the questions; every one gets all answers. Takes no step.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from foreword import chat
from foreword.backbone import Backbone
from foreword.config import EncodingConfig, RewardConfig
from foreword.data.row import Row
from foreword.prompt.prefix import Prefix
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.distributed import Ranks
from foreword.training.questions import Question
from foreword.training.rewards import RewardFunction
from foreword.training.sampling import drawing_from, seed_of, shared

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # of an object, as its text shows it


@dataclass(frozen=True, eq=False)
class Rollouts:
    """Answers that are drawn, or the likeliest ones, and their rewards.

    Attributes:
        backbone: the frozen model, with a tokenizer.
        questions: by their source.
        encoding: how they are encoded behind the prompt.
        reward: says how good answers are.
        config: how many answers there are, and how long they may be.
    """

    backbone: Backbone
    questions: Mapping[str, Question]
    encoding: EncodingConfig
    reward: RewardFunction
    config: RewardConfig

    @cached_property
    def _blank(self) -> dict[str, Any]:
        """Every column that some question has, empty: what a step's own questions have of them
        does not tell which there are.
        """
        return dict.fromkeys(name for one in self.questions.values() for name in one.columns)

    @property
    def identity(self) -> dict[str, Any]:
        """What a run that goes on must have in common, as plain data."""
        told = [
            [one.source, {str(name): value for name, value in one.columns.items()}]
            for one in self.questions.values()
        ]
        digest = hashlib.sha256(json.dumps(told, default=_plain, sort_keys=True).encode())
        config = self.config
        names = ("group", "answer_tokens", "answer_batch")
        return {name: getattr(config, name) for name in names} | {
            "reward": self.reward.name,
            "columns": digest.hexdigest(),
        }

    def rows(self, questions: Sequence[Question]) -> list[Row]:
        """Return questions as rows, whose last token counts as a label until there is an answer."""
        found = []
        for one in questions:
            row = chat.encode_row(self.backbone, one.asked, self.encoding)
            found.append(replace(row, source=one.source))
        return found

    def draw(
        self, prompt: SoftPrompt, rows: Sequence[Row], seed: int, step: int, ranks: Ranks
    ) -> tuple[list[Row], list[float]]:
        """Return a group of answers to each question, and their rewards; the same prompt, rows,
        seed and step draw the same.
        """
        size = self.config.group
        with drawing_from(seed_of(seed, step, ranks), self.backbone.device):
            return self._answered(prompt, rows, size, ranks, do_sample=True, temperature=1.0)

    def likeliest(
        self, prompt: SoftPrompt, rows: Sequence[Row], ranks: Ranks
    ) -> tuple[list[Row], list[float]]:
        """Return the greedy answer to each question, and their rewards."""
        return self._answered(prompt, rows, 1, ranks)

    def _answered(
        self, prompt: SoftPrompt, rows: Sequence[Row], group: int, ranks: Ranks, **options: Any
    ) -> tuple[list[Row], list[float]]:
        """Return each row with `group` answers, one after another, and the reward of each."""
        prefix = self.backbone.compile(prompt.detached())
        whole = [row for row in rows for _ in range(group)]
        mine = [
            number for number in range(len(whole)) if number // group % ranks.size == ranks.rank
        ]
        said = dict(zip(mine, self._said(prefix, [whole[n] for n in mine], options), strict=True))
        rewards = torch.zeros(len(whole), dtype=torch.float64, device="cpu")
        if mine:
            told = [self.questions[whole[number].source] for number in mine]
            texts = [said[number].text for number in mine]  # an end of no special token is none
            asked = [one.asked if one.told is None else one.told for one in told]
            values = self.reward(asked, texts, [{**self._blank, **one.columns} for one in told])
            rewards[mine] = torch.tensor(values, dtype=torch.float64, device="cpu")
        ranks.add_up([rewards])
        own = {number: answer.ids for number, answer in said.items()}
        answers = shared(own, len(whole), self.config.answer_tokens, ranks)
        given = [
            replace(row, input_ids=(*row.input_ids, *ids), num_labels=len(ids))
            for row, ids in zip(
                whole, (answers[number] for number in range(len(whole))), strict=True
            )
        ]
        return given, rewards.tolist()

    def _said(
        self, prefix: Prefix, rows: Sequence[Row], options: Mapping[str, Any]
    ) -> Iterator[chat.Answer]:
        """Yield an answer to each question."""
        size = self.config.answer_batch
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            asked = [self.questions[row.source].asked for row in part]
            ends = [chat.end_tokens(self.backbone, one, self.encoding) for one in asked]
            yield from chat.answer_rows(
                self.backbone,
                prefix,
                part,
                ends,
                max_new_tokens=self.config.answer_tokens,
                **options,
            )


def _plain(value: Any) -> str:
    """Return what tells an object of a column from others, alike in every process: its text, and
    where that holds an address in memory its bytes, if it has some.
    """
    text = str(value)
    known = ADDRESS.sub("", text)
    if known != text and callable(getattr(value, "tobytes", None)):  # as a picture
        known += hashlib.sha256(value.tobytes()).hexdigest()
    return known
