"""A run: what stays the same from its first step to its last: model, rows, options, schedule.

In: everything that `train` was given, made ready. Out: the rows and the learning rate of any step,
as functions of its number. Holds nothing that changes and computes no gradient.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import get_cosine_schedule_with_warmup

from foreword.backbone import Backbone
from foreword.config import TrainConfig
from foreword.data.batches import epoch_order
from foreword.data.encoding import Row
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.distributed import Ranks
from foreword.training.objective import LIKELIHOOD, Objective


class RowSource(Protocol):
    """Rows that depend on the prompt as it is, for the last share of a run's steps."""

    @property
    def share(self) -> float:
        """The share of the steps."""

    @property
    def group(self) -> int:
        """How many rows it makes of one."""

    @property
    def num_more(self) -> int:
        """By how many tokens a row that it makes may be longer than the one it is made of."""

    @property
    def identity(self) -> dict[str, Any]:
        """What a run that goes on must have in common, as plain data."""

    def rows(self, prompt: SoftPrompt, rows: Sequence[Row], step: int, ranks: Ranks) -> list[Row]:
        """Return what a step takes instead of its rows: a function of what is given."""


@dataclass(frozen=True, eq=False)
class Run:
    """What stays the same from the first step of a run to the last.

    Attributes:
        backbone: the frozen model.
        rows: to train on.
        held_out: to validate with.
        config: resolved.
        ranks: the processes that share the work.
        identity: what a run that goes on must have in common with this one.
        file: where the training state is written; None: nowhere.
        source: makes the rows of the last steps; None: they are as those before.
        objective: what a step lessens.
    """

    backbone: Backbone
    rows: list[Row]
    held_out: list[Row]
    config: TrainConfig
    ranks: Ranks
    identity: dict[str, Any]
    file: Path | None = None
    source: RowSource | None = None
    objective: Objective = LIKELIHOOD
    _epoch: dict[int, list[list[Row]]] = field(default_factory=dict)  # the one in progress

    @property
    def num_steps(self) -> int:
        """Optimizer steps from the first to the last."""
        config = self.config
        return config.num_steps or math.ceil(config.num_epochs * self._steps_of_epoch)

    @property
    def _steps_of_epoch(self) -> int:
        return math.ceil(len(self.rows) / self.config.batch_size)

    @property
    def num_warmup(self) -> int:
        """Steps in which the learning rate rises."""
        return round(self.config.warmup_share * self.num_steps)

    def is_due(self, step: int) -> bool:
        """Whether the prompt is validated after a step."""
        every = self.config.eval_every
        return step == self.num_steps or (every > 0 and step % every == 0)

    def is_save_due(self, step: int) -> bool:
        """Whether the training state is written after a step."""
        every = self.config.save_every
        return self.is_due(step) if every is None else step % every == 0

    def rows_of(self, step: int) -> list[Row]:
        """Return the rows of all processes after `step` steps, epoch after epoch.

        They depend on the seed and the step alone, so that the step is all there is to remember.
        """
        size = self.config.batch_size
        epoch, position = divmod(step, self._steps_of_epoch)
        if epoch not in self._epoch:
            self._epoch.clear()
            self._epoch[epoch] = epoch_order(self.rows, size, self.config.seed, epoch)
        return self._epoch[epoch][position]

    def rows_behind(self, prompt: SoftPrompt, step: int) -> list[Row]:
        """Return the rows after `step` steps, made by the source where it is its turn."""
        rows = self.rows_of(step)
        if self.source is None or not self.is_made(step):
            return rows
        return self.source.rows(prompt, rows, step, self.ranks)

    def is_made(self, step: int) -> bool:
        """Whether the source makes the rows after `step` steps, so that their loss may be another
        one.
        """
        if self.source is None:
            return False
        return step >= self.num_steps - max(1, round(self.source.share * self.num_steps))

    def rate_of(self, step: int) -> float:
        """Return the scheduled learning rate after `step` steps."""
        rate = self.config.learning_rate
        assert rate is not None and not isinstance(rate, str)  # resolved, and chosen
        return rate * self._shape(step)

    @cached_property
    def _shape(self) -> Callable[[int], float]:
        unused = torch.optim.SGD([torch.zeros(1, device="cpu")])
        schedule = get_cosine_schedule_with_warmup(unused, self.num_warmup, self.num_steps)
        shape: Callable[[int], float] = schedule.lr_lambdas[0]
        return shape
