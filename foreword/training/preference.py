"""Preference optimization: of two answers to the same, one is to become likelier than the other.

In: pairs of rows, each label's log probability in the reference model, which is the frozen model
behind the prompt that training starts from. Out: the loss of a pair. With x what is asked, w the
answer that is preferred, l the other, q the model behind the prompt as it is, p the reference, and
r(y) = log q(y | x) - log p(y | x), a step lessens the mean over pairs of

    -log sigmoid(beta * (r(w) - r(l)))                dpo: Rafailov et al. 2023 (arXiv:2305.18290)
    -log sigmoid(beta * (r(w) / |w| - r(l) / |l|))    dpo-norm, |y| labels of y, its end included:
                                                      Lambert et al. 2024 (arXiv:2411.15124)

and, with a weight a, - a * log q(w | x) / |w|: Pang et al. 2024 (arXiv:2404.19733), eq. 1.

A reference costs no second model: it is the same weights behind another prompt.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from foreword.backbone import Backbone
from foreword.config import ObjectiveConfig, TrainConfig, check_for_pairs
from foreword.data.batches import Batch
from foreword.data.row import Row, every
from foreword.data.target import in_order_of_labels
from foreword.errors import InputError
from foreword.training.distributed import Ranks
from foreword.training.loss import LabelScores
from foreword.training.objective import LIKELIHOOD, NAME, Objective, Prompts
from foreword.training.validation import Validation, score_rows

BETAS = {"dpo": 0.1, "dpo-norm": 5.0}  # those of the papers


@dataclass(frozen=True)
class Preference:
    """Direct preference optimization.

    Attributes:
        beta: a smaller value lets a preference move the prompt farther from the reference.
        is_normalized: whether an answer's log probability is that of a mean label.
        chosen_weight: of the preferred answers' own loss, at a mean label, beside it.
    """

    beta: float = BETAS["dpo"]
    is_normalized: bool = False
    chosen_weight: float = 0.0

    def __post_init__(self) -> None:
        for name, lowest in (("beta", "above 0"), ("chosen_weight", "0 or more")):
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and math.isfinite(value)
            if not is_number or value < 0 or (value == 0 and name == "beta"):
                raise InputError(f"{name}: expected a number {lowest}, got {value!r}")

    has_pairs: ClassVar[bool] = True
    has_answers: ClassVar[bool] = True
    has_reference: ClassVar[bool] = True
    has_floor: ClassVar[bool] = True
    rate_share: ClassVar[float] = 0.1

    @property
    def identity(self) -> dict[str, Any]:
        """What a run that goes on must have in common."""
        found = {NAME: "dpo-norm" if self.is_normalized else "dpo", "beta": self.beta}
        if self.chosen_weight:
            found["chosen_weight"] = self.chosen_weight
        return found

    def check(self, config: TrainConfig, *, has_start: bool) -> None:
        """Refuse a run without a prompt to compare with, and methods that rows of one answer need.

        Raises:
            InputError: names the option.
        """
        check_for_pairs(self.identity[NAME], config, has_start=has_start)

    def size(self, rows: Sequence[Row]) -> float:
        """Return how many pairs there are."""
        return sum(row.rejected is not None for row in rows)

    def summed(self, scores: LabelScores, batch: Batch) -> Tensor:
        """Return the sum over pairs; rows are the preferred answers, then the others."""
        reference = [one for row in batch.rows for one in row.reference]
        known = scores.losses.new_tensor(reference)
        if reference:
            known = known[in_order_of_labels(scores.rows).to(known.device)]
        by_row = torch.stack([scores.losses, known])
        losses, known = by_row.new_zeros(2, len(batch.rows)).index_add(1, scores.rows, by_row)
        num_labels = losses.new_tensor([row.num_labels for row in batch.rows]).view(2, -1)
        margins = self.margins((-losses - known).view(2, -1), num_labels)
        return self._losses(margins, losses.view(2, -1)[0] / num_labels[0]).sum()

    def margins(self, ahead: Tensor, num_labels: Tensor) -> Tensor:
        """Return how far the preferred answer of each of n pairs is ahead of the other, in nats.

        Args:
            ahead: log probability of each answer beyond that in the reference, `[2, n]`: the
                preferred ones, and the others.
            num_labels: of each answer, `[2, n]`.
        """
        ahead = ahead / num_labels if self.is_normalized else ahead
        return ahead[0] - ahead[1]

    def _losses(self, margins: Tensor, chosen: Tensor) -> Tensor:
        """Return the loss of each pair; `chosen` is that of a mean label of its preferred
        answer.
        """
        return -logsigmoid(self.beta * margins) + self.chosen_weight * chosen

    def is_flat(self, rows: Sequence[Row]) -> bool:
        """Return False: of two answers, one is better."""
        return False

    def validate(
        self,
        backbone: Backbone,
        prompts: Prompts,
        rows: Sequence[Row],
        batch_size: int,
        ranks: Ranks,
    ) -> Validation:
        """Return the mean loss of a pair, the share of pairs whose preferred answer is ahead of the
        other, and what greedy decoding would say of the preferred answers.
        """
        answers = every(rows)
        scores = score_rows(backbone, prompts, answers, batch_size, ranks)
        known = torch.tensor(
            [sum(row.reference) for row in answers], dtype=torch.float64, device="cpu"
        )
        both = torch.stack([-scores.losses - known, scores.num_labels]).view(2, -1, 2)
        margins = self.margins(*both.transpose(1, 2))
        chosen = (scores.losses / scores.num_labels)[::2]
        return replace(
            scores.part(slice(None, None, 2)).whole(),
            loss=self._losses(margins, chosen).mean().item(),
            preferred=(margins > 0).double().mean().item(),
        )


def objective_of(config: ObjectiveConfig) -> Objective:
    """Return the objective that options ask for."""
    if config.objective == "likelihood":
        return LIKELIHOOD
    beta = BETAS[config.objective] if config.beta is None else config.beta
    return Preference(beta, config.objective == "dpo-norm", config.chosen_weight)
