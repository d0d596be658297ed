"""The frozen model, as its self-test sees it: the part of a backbone that is to be proved."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from foreword.model.capabilities import Capabilities
from foreword.model.passes import ForwardPasses
from foreword.prompt.prefix import Prefix, PrefixBatch


class FrozenModel(Protocol):
    """What the self-test asks of a backbone."""

    capabilities: Capabilities
    passes: ForwardPasses

    @property
    def model(self) -> Any:
        """The transformers model."""
        ...

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the model's activations."""
        ...

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the embeddings that the model computes for ids."""
        ...

    def hidden(
        self,
        batch: PrefixBatch,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        media: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the last hidden states `[B, T, H]`."""
        ...

    def head(self, hidden: Tensor) -> Tensor:
        """Return the logits of hidden states."""
        ...

    def generate(
        self,
        prompt: Prefix | None,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> Any:
        """Generate as transformers does."""
        ...
