"""Prompt tuning and prefix tuning: the prompt's own values are what is trained.

In: a prompt. Out: the same, its tensors leaves that take a gradient. Lester et al. 2021
(arXiv:2104.08691) for embeddings; Li and Liang 2021 (arXiv:2101.00190), without their projection,
for keys and values.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import row_major


class Direct:
    """A prompt whose own values are trained.

    Args:
        shape: what lays the tensors out; see `SoftPrompt.layout`.
        leaves: the values, which take a gradient.
        facts: what the prompt says of itself.
    """

    name = "direct"

    def __init__(
        self, shape: Mapping[str, Any], leaves: Sequence[Tensor], facts: Mapping[str, Any]
    ) -> None:
        self.shape, self.facts = dict(shape), dict(facts)
        self.tensors = [row_major(tensor).requires_grad_() for tensor in leaves]
        self.constants = list[Tensor]()

    @classmethod
    def begin(cls, start: SoftPrompt, dtype: torch.dtype) -> "Direct":
        """Start from a copy of a prompt's values."""
        return cls(start.layout, [tensor.to(dtype) for tensor in start.tensors], start.facts)

    @property
    def layout(self) -> dict[str, Any]:
        """What lays the tensors out."""
        return {"name": self.name, "shape": self.shape}

    def prompt(self) -> SoftPrompt:
        """Return the prompt of these values."""
        return SoftPrompt(facts=self.facts, tensors=self.tensors, **self.shape)
