"""Distillation targets: what a teacher says at each label, its likeliest ids and how likely.

In: ids and log probabilities. Out: a `Target`, for one row or for the labels of a batch. Knows no
model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

NOTHING = -1e4  # nats: the exponential is 0 in every dtype, and 0 times it is 0


@dataclass(frozen=True, eq=False)
class Target:
    """A teacher's likeliest ids at each label.

    Attributes:
        ids: int64 `[labels, K]`.
        log_probabilities: float32 `[labels, K]`, in nats; what is left of 1 is all other ids'.
    """

    ids: Tensor
    log_probabilities: Tensor

    def __len__(self) -> int:
        """The number of labels."""
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        """Whether both say the same."""
        return (
            isinstance(other, Target)
            and torch.equal(self.ids, other.ids)
            and torch.equal(self.log_probabilities, other.log_probabilities)
        )

    def __hash__(self) -> int:
        return hash((self.ids.shape, self.log_probabilities.shape))

    @property
    def mass(self) -> float:
        """The mean share of the probability that the kept ids hold."""
        return self.log_probabilities.double().exp().sum(-1).mean().item()

    def part(self, index: slice | Tensor) -> "Target":
        """Return the targets of some of the labels."""
        return Target(self.ids[index], self.log_probabilities[index])

    def to(self, device: torch.device) -> "Target":
        """Return the same on a device."""
        return Target(self.ids.to(device), self.log_probabilities.to(device))


def certain(labels: Sequence[int], num_kept: int) -> Target:
    """Return the target that is certain of each label: the divergence from it is the label's cross
    entropy.

    Args:
        labels: N ids.
        num_kept: K of the targets that it stands beside; ids beyond the first are the label again,
            at a probability that is 0.
    """
    ids = torch.tensor(labels)[:, None].expand(-1, num_kept).contiguous()
    log_probabilities = torch.full(ids.shape, NOTHING)
    log_probabilities[:, 0] = 0
    return Target(ids, log_probabilities)


def joined(targets: "tuple[Target, ...]", rows: Tensor) -> Target | None:
    """Return the targets of a batch's labels, in the order of the labels.

    Args:
        targets: of each row of the batch, in order; none where rows have none.
        rows: the row of each label, `[N]`; the labels of a row stand in order.
    """
    if not targets:
        return None
    order = rows.cpu().argsort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order))
    whole = Target(
        torch.cat([target.ids for target in targets]),
        torch.cat([target.log_probabilities for target in targets]),
    )
    return whole.part(places).to(rows.device)
