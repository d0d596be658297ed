"""Row ends: at which step each row of a batch has ended, where its ids alone do not tell.

In: the stopping criteria of a call. Out: how many ids behind each row are no answer: transformers
goes on with an ended row until the last has ended, with padding or with ids that nobody asked for.
Knows no text.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList


class RowEnds(StoppingCriteria):
    """Ends no row, and is told at which step each of them ended; of one call, without beams."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.steps: Tensor | None = None  # of each row's end, `[B]`; 0 where it has not ended

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return that no row ends."""
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def record(self, has_ended: Tensor) -> None:
        """Take note of which rows have ended after one more step, bool `[B]`."""
        self.num_steps += 1
        known = torch.zeros_like(has_ended, dtype=torch.long) if self.steps is None else self.steps
        self.steps = known.masked_fill(has_ended & (known == 0), self.num_steps)

    def num_behind(self) -> list[int]:
        """Return how many ids stand behind each row's end."""
        if self.steps is None:
            return []
        return [self.num_steps - step if step else 0 for step in self.steps.tolist()]


class Recorded(StoppingCriteriaList):
    """Criteria, and what is told of the rows that they end."""

    def __init__(self, criteria: StoppingCriteriaList, ends: RowEnds) -> None:
        super().__init__(criteria)
        self.ends = ends

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """Return which rows have ended, bool `[B]`."""
        has_ended = super().__call__(input_ids, scores, **kwargs)
        self.ends.record(has_ended)
        return has_ended


def recorded(criteria: StoppingCriteriaList) -> StoppingCriteriaList:
    """Return criteria of which a `RowEnds` among them is told."""
    ends = next((one for one in criteria if isinstance(one, RowEnds)), None)
    return criteria if ends is None else Recorded(criteria, ends)
