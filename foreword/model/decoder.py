"""The passes of a decoder that stands alone, each row behind its own prefix.

In: a batch of prefixes, ids, what a processor made of images or sounds. Out: last hidden states, or
the state that an embedding prompt leaves. Applies no head, checks no ids and does not generate.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from foreword import compat
from foreword.model import cache_layers, checks, forward, prefixed_cache, recurrent
from foreword.model.capabilities import Capabilities
from foreword.model.media import Reading
from foreword.model.placeholders import Turn
from foreword.prompt.prefix import PrefixBatch, no_prefixes
from foreword.prompt.states import States


@dataclass(frozen=True, eq=False)
class Decoder:
    """One model's passes.

    Attributes:
        model: a transformers model without an encoder, frozen.
        facts: its capabilities.
    """

    model: Any
    facts: Capabilities

    @property
    def module(self) -> Any:
        """The model without its head."""
        return getattr(self.model, self.facts.decoder)

    def read_alone(self, embeddings: Tensor) -> tuple[States, Tensor]:
        """Run over embeddings `[P, H]`; return each layer's state, and hidden states `[1, P, H]`.

        Raises:
            InputError: more than the model has positions for.
        """
        checks.check_length(self.facts, 0, len(embeddings))
        cache = prefixed_cache.uncached(no_prefixes(1), self.facts)
        tokens = {"inputs_embeds": embeddings[None]}
        if self.facts.virtual_id is not None:
            ids = torch.full((1, len(embeddings)), self.facts.virtual_id, device=self.model.device)
            looked_up = self.module.embed_tokens_per_layer(ids)
            num_layers = self.module.config.num_hidden_layers
            tokens["per_layer_inputs"] = looked_up.unflatten(-1, (num_layers, -1))
        hidden = self._decode(no_prefixes(1), cache, None, None, **tokens)
        layers = tuple(
            tuple(tensor[0] for tensor in cache_layers.state_of(layer)) for layer in cache.layers
        )
        return States(layers, len(embeddings)), hidden

    def hidden(
        self,
        batch: PrefixBatch,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        media: Mapping[str, Tensor],
    ) -> Tensor:
        """Return the last hidden states `[B, T, H]` of real tokens.

        Raises:
            InputError: more tokens than the model has positions for, or media that does not fit the
                placeholders.
        """
        cache = prefixed_cache.uncached(batch, self.facts)
        longest = input_ids.shape[1] if attention_mask is None else int(attention_mask.sum(1).max())
        checks.check_length(self.facts, longest, batch.num_slots, is_cached=batch.num_slots > 0)
        if self.facts.is_recurrent:
            return self._decode_shifted(batch, cache, attention_mask, input_ids, media)
        reading = self._read_media(batch, attention_mask, input_ids, media)
        return self._decode(batch, cache, attention_mask, reading, input_ids=input_ids)

    def _read_media(
        self,
        batch: PrefixBatch,
        attention_mask: Tensor | None,
        input_ids: Tensor,
        media: Mapping[str, Tensor],
    ) -> Reading | None:
        if not self.facts.modalities:
            return None
        turn = Turn(input_ids, attention_mask, 0, 0, batch.num_virtual, None)
        return forward.read_media(self.model, self.facts, turn, media)

    def _decode_shifted(
        self,
        batch: PrefixBatch,
        cache: Cache,
        attention_mask: Tensor | None,
        input_ids: Tensor,
        media: Mapping[str, Tensor],
    ) -> Tensor:
        """Run one pass whose padding stands behind each row, where recurrent layers cannot see it
        in time; return `[B, T, H]` in the order given.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        order = recurrent.shift_left(mask.to(input_ids.device))
        ids, mask = input_ids.gather(1, order), mask.to(order.device).gather(1, order)
        # A pass of a single token writes into the states, which a gradient may still need.
        ids, mask = (torch.nn.functional.pad(t, (0, ids.shape[1] == 1)) for t in (ids, mask))
        reading = self._read_media(batch, mask, ids, media)
        hidden = self._decode(batch, cache, mask, reading, input_ids=ids)
        back = order.argsort(dim=1)[..., None].expand(-1, -1, hidden.shape[-1])
        return hidden.gather(1, back)

    def _decode(
        self,
        batch: PrefixBatch,
        cache: Cache,
        attention_mask: Tensor | None,
        reading: Reading | None,
        **tokens: Tensor,
    ) -> Tensor:
        """Run one pass over tokens and return `[B, T, H]`."""
        given = tokens["input_ids"] if "input_ids" in tokens else tokens["inputs_embeds"]
        placed = forward.model_inputs(
            self.facts, batch, cache, given, attention_mask, 0, self.model.dtype, reading
        )
        # The rows behind a prefix need a mask, where the bare model's first pass needs none.
        with compat.grouped_heads(given.device.type == "cpu" and given.shape[1] > 1):
            output = forward.read_pass(self.module, tokens | placed)
        hidden: Tensor = output.last_hidden_state
        return hidden
