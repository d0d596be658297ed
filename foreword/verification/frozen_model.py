"""The frozen model, as its self-test sees it: the part of a backbone that is to be proved."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from foreword.model.capabilities import Capabilities
from foreword.model.passes import ForwardPasses


class FrozenModel(Protocol):
    """What the self-test asks of a backbone; see the methods of `Backbone`."""

    passes: ForwardPasses

    @property
    def capabilities(self) -> Capabilities: ...
    @property
    def model(self) -> Any: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...
    def embed(self, input_ids: Tensor) -> Tensor: ...
    def head(self, hidden: Tensor) -> Tensor: ...
    def logits(
        self, prompt: Any, input_ids: Tensor | None = None, attention_mask: Any = None, **media: Any
    ) -> Tensor: ...
    @property
    def generate(self) -> Callable[..., Any]: ...
