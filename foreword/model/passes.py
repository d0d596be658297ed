"""Model protocol: the forward passes that a backbone asks of its model.

In: prefixes, ids, what a processor returns. Out: each layer's state, or hidden states. `Decoder`
and `EncoderDecoder` implement it; a backbone picks one of them when it is made. Training wraps it:
for sharded layers, or for packed rows. Knows no head, no loss and no text.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from foreword.data.batches import Batch
from foreword.model.capabilities import Capabilities
from foreword.prompt.prefix import PrefixBatch
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import PrefixStates, States

LabelStates = tuple[Tensor, Tensor, Tensor]
"""Hidden states before labels `[N, H]`, the labels `[N]`, and the row of each, `[N]`."""


class ForwardPasses(Protocol):
    """The forward passes of one frozen model, each row behind its own prefix."""

    @property
    def model(self) -> Any:
        """The transformers model that they run."""

    @property
    def capabilities(self) -> Capabilities:
        """What that model is."""

    @property
    def embedding_scale(self) -> float:
        """What the model multiplies the embeddings of ids by, and not given ones."""

    @property
    def is_sharded(self) -> bool:
        """Whether several processes must take the same passes in step."""

    @property
    def is_packed(self) -> bool:
        """Whether the rows of a training batch run in one sequence, without padding."""

    def over(self, model: Any) -> "ForwardPasses":
        """Return the same passes over a view of the model."""

    def prefill(self, embeddings: Tensor) -> States:
        """Run over embeddings `[P, H]` alone; return each layer's state, with gradient."""

    def start(self, embeddings: Tensor) -> PrefixStates:
        """Return what rows start from behind an embedding prompt `[P, H]`, with gradient."""

    def can_defer(self, prompt: SoftPrompt, batch: Batch) -> bool:
        """Return whether a prompt's embeddings can run in one pass with a batch of its rows."""

    def num_rows(self, input_ids: Tensor | None, given: Mapping[str, Any]) -> int:
        """Check the ids or embeddings that a call gives, and return their rows.

        Raises:
            InputError: there are none, or ids that the model does not have.
        """

    def hidden(
        self,
        batch: PrefixBatch,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        given: Mapping[str, Any],
    ) -> Tensor:
        """Return the last hidden states `[B, T, H]` of real tokens; `given` holds what a processor
        returns beside ids and mask.

        Raises:
            UnsupportedError: an argument that the model does not take.
            InputError: media that does not fit the placeholders, or too many tokens.
        """

    def label_states(self, prefixes: PrefixBatch, batch: Batch) -> LabelStates:
        """Return the hidden states before the labels of a batch, with the labels and their rows."""
