"""Distillation targets: what a teacher says at each label, its likeliest ids and how likely.

In: ids and log probabilities. Out: a `Target`, for one row or for the labels of a batch. Knows no
model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Target:
    """A teacher's likeliest ids at each label.

    Attributes:
        ids: int64 `[labels, K]`. Where fewer are kept at a label, its first id fills the rest.
        log_probabilities: float32 `[labels, K]`, in nats, -inf where an id only fills; what is left
            of 1 is all other ids'.
        log_rest: of a target whose ids are the student's likeliest, the teacher's log probability
            of all others together, `[labels]`; NaN at labels whose ids are the teacher's. None:
            those of all are.
    """

    ids: Tensor
    log_probabilities: Tensor
    log_rest: Tensor | None = None

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

    @property
    def num_kept(self) -> float:
        """The mean number of ids that are kept at a label."""
        return (self.log_probabilities > -torch.inf).sum(-1).double().mean().item()

    @property
    def is_certain(self) -> bool:
        """Whether one id is kept at each label, and has all of the probability; see `certain`."""
        return self.ids.shape[-1] == 1 and bool((self.log_probabilities == 0).all())

    def part(self, index: slice | Tensor) -> "Target":
        """Return the targets of some of the labels."""
        rest = None if self.log_rest is None else self.log_rest[index]
        return Target(self.ids[index], self.log_probabilities[index], rest)

    def to(self, device: torch.device) -> "Target":
        """Return the same on a device."""
        rest = None if self.log_rest is None else self.log_rest.to(device)
        return Target(self.ids.to(device), self.log_probabilities.to(device), rest)

    def widened(self, width: int) -> "Target":
        """Return the same with room for `width` ids at each label."""
        more = width - self.ids.shape[-1]
        if more <= 0:
            return self
        ids = torch.cat([self.ids, self.ids[:, :1].expand(-1, more)], dim=-1)
        values = torch.nn.functional.pad(self.log_probabilities, (0, more), value=-torch.inf)
        return Target(ids, values, self.log_rest)


def together(targets: Sequence[Target]) -> Target:
    """Return the targets of labels one after another, as wide as the widest."""
    width = max(target.ids.shape[-1] for target in targets)
    wide = [target.widened(width) for target in targets]
    rests = [
        torch.full_like(one.log_probabilities[:, 0], torch.nan)
        if one.log_rest is None
        else one.log_rest
        for one in wide
    ]
    has_rest = any(one.log_rest is not None for one in wide)
    return Target(
        torch.cat([one.ids for one in wide]),
        torch.cat([one.log_probabilities for one in wide]),
        torch.cat(rests) if has_rest else None,
    )


def certain(labels: Sequence[int]) -> Target:
    """Return the target that is certain of each label: the divergence from it is the label's cross
    entropy.
    """
    ids = torch.tensor(labels, device="cpu")[:, None]
    return Target(ids, torch.zeros(ids.shape, device="cpu"))


def joined(targets: "tuple[Target, ...]", rows: Tensor) -> Target | None:
    """Return the targets of a batch's labels, in the order of the labels.

    Args:
        targets: of each row of the batch, in order; none where rows have none.
        rows: the row of each label, `[N]`; the labels of a row stand in order.
    """
    if not targets:
        return None
    return together(targets).part(in_order_of_labels(rows)).to(rows.device)


def in_order_of_labels(rows: Tensor) -> Tensor:
    """Return where, among the labels of row after row, each label of a batch stands `[N]`."""
    order = rows.cpu().argsort(stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device="cpu")
    return places
