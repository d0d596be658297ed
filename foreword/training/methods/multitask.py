"""Multitask prompts: one shared prompt, times a rank-one matrix for each task.

In: an embedding prompt and the tasks' names. Out: leaves `P* [P, H]`, `u [tasks, P]`, `v [tasks,
H]`; the prompt of task k is `P* o (u_k v_k^T)`, entry by entry. Wang et al. 2023
(arXiv:2303.02861), without their distillation from prompts of single tasks. Rows of all tasks train
in one step; each task's prompt is saved as a plain one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import row_major


class Multitask:
    """A shared prompt and each task's rank-one matrix.

    Args:
        names: of the tasks.
        leaves: P*, u and v.
        facts: what the prompts say of themselves.
    """

    name = "multitask"

    def __init__(
        self, names: Sequence[str], leaves: Sequence[Tensor], facts: Mapping[str, Any]
    ) -> None:
        self.names, self.facts = tuple(names), dict(facts)
        self.tensors = [row_major(tensor).requires_grad_() for tensor in leaves]
        self.shared, self.rows, self.columns = self.tensors
        self.constants = list[Tensor]()

    @classmethod
    def begin(cls, start: SoftPrompt, names: Sequence[str], dtype: torch.dtype) -> "Multitask":
        """Start with every task at the shared prompt: u and v are ones."""
        shared = start.embeddings.to(dtype)
        num_virtual, size = shared.shape
        ones = shared.new_ones(len(names), num_virtual), shared.new_ones(len(names), size)
        return cls(names, [shared, *ones], start.facts)

    @property
    def layout(self) -> dict[str, Any]:
        """What lays the tensors out."""
        return {"name": self.name, "names": list(self.names)}

    def prompt(self) -> SoftPrompt:
        """Return the shared prompt, from which a new task may start."""
        return SoftPrompt("embeddings", [self.shared], self.facts)

    def tasks(self) -> dict[str, SoftPrompt]:
        """Return the prompt of every task."""
        return {
            name: SoftPrompt(
                "embeddings",
                [self.shared * torch.outer(self.rows[index], self.columns[index])],
                self.facts | {"task": name},
            )
            for index, name in enumerate(self.names)
        }
