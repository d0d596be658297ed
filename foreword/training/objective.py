"""Training objective: what an optimizer step lessens, and what a validation tells of it.

In: what the model says of a batch's labels. Out: the batch's share of the step's loss, summed, and
the number that the sum of all batches is divided by. The training loop knows of an objective only
this interface. Takes no step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from foreword.backbone import Backbone
from foreword.config import TrainConfig
from foreword.data.batches import Batch
from foreword.data.row import Row
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.distributed import Ranks
from foreword.training.loss import LabelScores
from foreword.training.validation import Validation, validate

Prompts = SoftPrompt | Mapping[str, SoftPrompt]
NAME = "objective"  # of an objective's identity


class Objective(Protocol):
    """What a run lessens.

    Attributes:
        has_pairs: whether a row holds two answers, of which one is preferred.
        has_answers: whether rows come with the answers that are learned.
        has_reference: whether rows are to know what the model says of them behind the prompt that
            training starts from.
        has_floor: whether its loss is never below 0, so that its level tells an explosion or a
            standstill.
    """

    has_pairs: ClassVar[bool]
    has_answers: ClassVar[bool]
    has_reference: ClassVar[bool]
    has_floor: ClassVar[bool]

    @property
    def rate_share(self) -> float:
        """The share of a method's own learning rate that is taken where nobody says one."""

    @property
    def identity(self) -> dict[str, Any]:
        """What a run that goes on must have in common, as plain data."""

    def check(self, config: TrainConfig, *, has_start: bool) -> None:
        """Refuse options that it is not defined for.

        Args:
            config: the options as given.
            has_start: whether there is a prompt to start from.

        Raises:
            InputError: names the option.
        """

    def size(self, rows: Sequence[Row]) -> float:
        """Return what the sum over these rows is divided by."""

    def summed(self, scores: LabelScores, batch: Batch) -> Tensor:
        """Return the loss of a batch before it is divided, in nats, with gradient."""

    def is_flat(self, rows: Sequence[Row]) -> bool:
        """Return whether nothing of these rows is better than anything, so that no gradient is to
        be expected.
        """

    def validate(
        self,
        backbone: Backbone,
        prompts: Prompts,
        rows: Sequence[Row],
        batch_size: int,
        ranks: Ranks,
    ) -> Validation:
        """Score held-out rows."""


@dataclass(frozen=True)
class Likelihood:
    """The mean cross entropy of a label, or its divergence from a teacher, each counting as its row
    weighs.

    Attributes:
        rate_share: of a method's own learning rate, where nobody says one.
    """

    rate_share: float = 1.0

    has_pairs: ClassVar[bool] = False
    has_answers: ClassVar[bool] = True
    has_reference: ClassVar[bool] = False
    has_floor: ClassVar[bool] = True

    @property
    def identity(self) -> dict[str, Any]:
        """Its name."""
        return {NAME: "likelihood"}

    def check(self, config: TrainConfig, *, has_start: bool) -> None:
        """Refuse nothing."""

    def size(self, rows: Sequence[Row]) -> float:
        """Return how many labels there are, each counting as its row weighs."""
        return sum(row.num_labels * row.weight for row in rows)

    def summed(self, scores: LabelScores, batch: Batch) -> Tensor:
        """Return the sum over labels, each times the weight of its row."""
        losses = scores.losses
        if batch.weights:
            losses = losses * losses.new_tensor(batch.weights)[scores.rows]
        return losses.sum()

    def is_flat(self, rows: Sequence[Row]) -> bool:
        """Return False: a label is better than all others."""
        return False

    def validate(
        self,
        backbone: Backbone,
        prompts: Prompts,
        rows: Sequence[Row],
        batch_size: int,
        ranks: Ranks,
    ) -> Validation:
        """Return the mean loss of a label, and what greedy decoding would say."""
        return validate(backbone, prompts, rows, batch_size, ranks)


LIKELIHOOD = Likelihood()
