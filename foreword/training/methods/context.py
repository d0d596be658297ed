"""Context tuning: keys and values that start as the model's own cache of demonstrations.

In: such a prompt, and which of its virtual tokens belong to which row. Out: leaves for all tokens
but the first, which stays as it is: attention rests on it. While a row is trained on, it does not
see the demonstrations in which its answer stands. Lu et al. 2025 (CT-KV, arXiv:2507.04221); the
frozen first token is of Eyuboglu et al. 2025 (arXiv:2506.06266). Their token dropout is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foreword.data.batches import Batch
from foreword.errors import UnsupportedError
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import row_major


class Context:
    """Keys and values of which all but the first token's are trained.

    Args:
        shape: what lays the tensors out; see `SoftPrompt.layout`.
        rest: keys and values of the tokens after the first, `[N, P - 1, D]`: the leaves.
        first: those of the first, `[N, 1, D]`.
        facts: what the prompt says of itself.

    Attributes:
        own: for the ids of a row, the virtual tokens of demonstrations that hold its answer.
    """

    name = "context"

    def __init__(
        self,
        shape: Mapping[str, Any],
        rest: Sequence[Tensor],
        first: Sequence[Tensor],
        facts: Mapping[str, Any],
    ) -> None:
        self.shape, self.facts = dict(shape), dict(facts)
        self.tensors = [row_major(tensor).requires_grad_() for tensor in rest]
        self.constants = [row_major(tensor) for tensor in first]
        self.own: Mapping[tuple[int, ...], Sequence[int]] = {}

    @classmethod
    def begin(cls, start: SoftPrompt, dtype: torch.dtype) -> "Context":
        """Start from a copy of a prompt's keys and values.

        Raises:
            UnsupportedError: the model keeps recurrent states, out of which nothing can be hidden;
                or there is no token after the first.
        """
        if start.states.is_recurrent:
            raise UnsupportedError(
                "context-tuning hides a row's own demonstration from it, and recurrent layers "
                "cannot forget what they have read; use --method prefix-tuning"
            )
        if start.num_virtual_tokens < 2:
            raise UnsupportedError(
                "context-tuning trains the tokens after the first: give --num-virtual-tokens 2 or "
                "more"
            )
        values = [tensor.to(dtype) for tensor in start.tensors]
        rest, first = (
            [tensor[:, part] for tensor in values] for part in (slice(1, None), slice(1))
        )
        return cls(start.layout, rest, first, start.facts)

    @property
    def layout(self) -> dict[str, Any]:
        """What lays the tensors out."""
        return {"name": self.name, "shape": self.shape}

    def prompt(self) -> SoftPrompt:
        """Return all keys and values, the first token's as they were."""
        pairs = zip(self.constants, self.tensors, strict=True)
        tensors = [torch.cat([first.to(rest), rest], dim=1) for first, rest in pairs]
        return SoftPrompt(facts=self.facts, tensors=tensors, **self.shape)

    def unseen(self, batch: Batch) -> Tensor | None:
        """Return `[B, P]`: the tokens of the demonstrations that hold a row's own answer, or None
        where none does.
        """
        hidden = torch.zeros(
            len(batch.input_ids), self.shape["num_virtual_tokens"], device="cpu"
        ).bool()
        for row, (ids, mask) in enumerate(zip(batch.input_ids, batch.attention_mask, strict=True)):
            hidden[row, list(self.own.get(tuple(ids[mask.bool()].tolist()), ()))] = True
        return hidden if bool(hidden.any()) else None
