"""Decoder-only forward passes: each row behind its own prefix.

In: a batch of prefixes, ids, what a processor made of images or sounds. Out: last hidden states, or
each layer's state after an embedding prompt. Applies no head and does not generate.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from foreword.compat import transformers_api
from foreword.compat.transformers_api import Cache
from foreword.data.batches import Batch
from foreword.errors import InputError, UnsupportedError
from foreword.model import cache_layers, checks, contiguous, forward, prefixed_cache, recurrent
from foreword.model.capabilities import Capabilities
from foreword.model.changed import check_settings
from foreword.model.embedding_scale import decoder_scale
from foreword.model.media import Reading, split_media
from foreword.model.passes import LabelStates
from foreword.model.placeholders import Turn
from foreword.prompt.prefix import Prefix, PrefixBatch, no_prefixes, same_prefix
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import States


@dataclass(frozen=True, eq=False)
class Decoder:
    """The forward passes of one decoder-only model.

    Attributes:
        model: a transformers model without an encoder, frozen.
        capabilities: what it is.
    """

    model: Any
    capabilities: Capabilities
    is_sharded = False
    is_packed = False

    @property
    def module(self) -> Any:
        """The model without its head."""
        return getattr(self.model, self.capabilities.decoder)

    @cached_property
    def embedding_scale(self) -> float:
        """What the decoder multiplies the embeddings of ids by, and not given ones."""
        return decoder_scale(self.model, self.capabilities)

    def over(self, model: Any) -> "Decoder":
        """Return the same passes over a view of the model."""
        return replace(self, model=model)

    def prefill(self, embeddings: Tensor) -> States:
        """Run over embeddings `[P, H]` alone; return each layer's state.

        Raises:
            InputError: more than the model has positions for.
        """
        return self.prefill_with_hidden(embeddings)[0]

    def start(self, embeddings: Tensor) -> States:
        """Return the state after an embedding prompt `[P, H]`, the same for every row."""
        return self.prefill(embeddings)

    def can_defer(self, prompt: SoftPrompt, batch: Batch) -> bool:
        """False: rows always start from states."""
        return False

    def prefill_with_hidden(self, embeddings: Tensor) -> tuple[States, Tensor]:
        """Run over embeddings `[P, H]`; return each layer's state, and hidden states `[1, P, H]`.

        Raises:
            InputError: more than the model has positions for.
        """
        checks.check_length(self.capabilities, 0, len(embeddings))
        cache = prefixed_cache.uncached(no_prefixes(1), self.capabilities)
        tokens = {"inputs_embeds": embeddings[None].clone()}  # some models write into them
        if self.capabilities.virtual_id is not None:
            ids = torch.full(
                (1, len(embeddings)), self.capabilities.virtual_id, device=self.model.device
            )
            looked_up = self.module.embed_tokens_per_layer(ids)
            num_layers = self.module.config.num_hidden_layers
            tokens["per_layer_inputs"] = looked_up.unflatten(-1, (num_layers, -1))
        hidden = self._forward(no_prefixes(1), cache, None, None, **tokens)
        layers = tuple(
            tuple(tensor[0] for tensor in cache_layers.state_of(layer)) for layer in cache.layers
        )
        return States(layers, len(embeddings)), hidden

    def prefill_row(
        self, prefix: Prefix | None, input_ids: Tensor, media: Mapping[str, Tensor]
    ) -> tuple[States, int]:
        """Run over the tokens `[1, T]` of one row and their media; return each layer's state after
        them, virtual tokens included, and by how much the rotary positions of all later tokens
        differ from their slots.
        """
        batch = no_prefixes(1) if prefix is None else same_prefix(prefix, 1)
        cache = prefixed_cache.uncached(batch, self.capabilities)
        reading = self._read_media(batch, None, input_ids, media)
        self._forward(batch, cache, None, reading, input_ids=input_ids)
        layers = tuple(
            tuple(tensor[0] for tensor in cache_layers.whole_state_of(layer))
            for layer in cache.layers
        )
        shifts = reading.shifts if reading is not None else None
        shift = 0 if shifts is None else int(shifts[0, 0, -1])
        return States(layers, batch.num_slots + input_ids.shape[1]), shift

    def num_rows(self, input_ids: Tensor | None, given: Mapping[str, Any]) -> int:
        """Check ids `[B, T]`, or `inputs_embeds` where there are none, and return B."""
        inputs = input_ids if input_ids is not None else given.get("inputs_embeds")
        if inputs is None:
            raise InputError("expected input_ids or inputs_embeds; got neither")
        name = "inputs_embeds" if input_ids is None else "input_ids"
        checks.check_inputs(inputs, self.capabilities.vocab_size, name)
        return len(inputs)

    def hidden(
        self,
        batch: PrefixBatch,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        given: Mapping[str, Any],
    ) -> Tensor:
        """Return the last hidden states `[B, T, H]` of real tokens.

        Raises:
            InputError: no ids, more tokens than the model has positions for, or media that does not
                fit the placeholders. UnsupportedError: an argument that the model does not take.
        """
        if input_ids is None:
            raise InputError(f"{self.capabilities.model_type} needs input_ids here; got none")
        input_ids = input_ids.to(self.model.device)
        media, others = split_media(self.capabilities, given)
        if others:
            known = ", ".join(["input_ids", "attention_mask", *sorted(self.capabilities.media)])
            raise UnsupportedError(
                f"{self.capabilities.model_type} takes no {', '.join(sorted(others))}; "
                f"give {known} only"
            )
        cache = prefixed_cache.uncached(batch, self.capabilities)
        longest = input_ids.shape[1] if attention_mask is None else int(attention_mask.sum(1).max())
        checks.check_length(
            self.capabilities, longest, batch.num_slots, is_cached=batch.num_slots > 0
        )
        if self.capabilities.counts_slots and not contiguous.is_contiguous(
            batch, cache, attention_mask
        ):
            return self._forward_contiguous(batch, attention_mask, input_ids, media)
        if self.capabilities.is_recurrent:
            return self._forward_shifted(batch, cache, attention_mask, input_ids, media)
        reading = self._read_media(batch, attention_mask, input_ids, media)
        return self._forward(batch, cache, attention_mask, reading, input_ids=input_ids)

    def label_states(self, prefixes: PrefixBatch, batch: Batch) -> LabelStates:
        """Return the hidden states before the labels of a padded batch."""
        return before_labels(
            self.hidden(prefixes, batch.input_ids, batch.attention_mask, batch.media), batch
        )

    def _read_media(
        self,
        batch: PrefixBatch,
        attention_mask: Tensor | None,
        input_ids: Tensor,
        media: Mapping[str, Tensor],
    ) -> Reading | None:
        if not self.capabilities.modalities:
            return None
        turn = Turn(input_ids, attention_mask, 0, 0, batch.num_virtual, None)
        return forward.read_media(self.model, self.capabilities, turn, media)

    def _forward_shifted(
        self,
        batch: PrefixBatch,
        cache: Cache,
        attention_mask: Tensor | None,
        input_ids: Tensor,
        media: Mapping[str, Tensor],
    ) -> Tensor:
        """Run one pass with each row's padding moved behind its tokens, where it changes none of
        their states; return `[B, T, H]` in the order given.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        order = recurrent.shift_left(mask.to(input_ids.device))
        ids, mask = input_ids.gather(1, order), mask.to(order.device).gather(1, order)
        # A pass of a single token writes into the states, which a gradient may still need.
        ids, mask = (torch.nn.functional.pad(t, (0, ids.shape[1] == 1)) for t in (ids, mask))
        reading = self._read_media(batch, mask, ids, media)
        hidden = self._forward(batch, cache, mask, reading, input_ids=ids)
        back = order.argsort(dim=1)[..., None].expand(-1, -1, hidden.shape[-1])
        return hidden.gather(1, back)

    def _forward_contiguous(
        self,
        batch: PrefixBatch,
        attention_mask: Tensor | None,
        input_ids: Tensor,
        media: Mapping[str, Tensor],
    ) -> Tensor:
        """Run one pass for the rows of each length, without holes; return `[B, T, H]`."""
        if media.keys() - {self.capabilities.types}:
            raise UnsupportedError(
                f"{self.capabilities.model_type} places tokens by their slots, and reads no media "
                "in padded or mixed rows; give rows of one length behind one prompt"
            )
        num_rows, num_new = input_ids.shape
        whole = None
        for group in contiguous.groups(batch, attention_mask, num_rows, 0, num_new):
            part, columns = recurrent.part_of(batch, group), group.columns.to(input_ids.device)
            ids = input_ids[group.rows].gather(1, columns)
            cache = prefixed_cache.uncached(part, self.capabilities)
            hidden = self._forward(part, cache, None, None, input_ids=ids)
            if whole is None:
                whole = hidden.new_zeros(num_rows, num_new, hidden.shape[-1])
            rows = torch.tensor(group.rows, device=columns.device)[:, None]
            whole = whole.index_put((rows, columns), hidden)
        assert whole is not None
        return whole

    def _forward(
        self,
        batch: PrefixBatch,
        cache: Cache,
        attention_mask: Tensor | None,
        reading: Reading | None,
        **tokens: Tensor,
    ) -> Tensor:
        """Run one forward pass over tokens and return `[B, T, H]`."""
        check_settings(self.model, self.capabilities)
        given = tokens["input_ids"] if "input_ids" in tokens else tokens["inputs_embeds"]
        placed = forward.model_inputs(
            self.capabilities, batch, cache, given, attention_mask, 0, self.model.dtype, reading
        )
        # The rows behind a prefix need a mask, where the bare model's first pass needs none.
        with transformers_api.grouped_heads(given.device.type == "cpu" and given.shape[1] > 1):
            output = forward.run_pass(self.module, tokens | placed)
        hidden: Tensor = output.last_hidden_state
        return hidden


def before_labels(hidden: Tensor, batch: Batch) -> LabelStates:
    """Take the states before labels out of those of all tokens of a batch, `[B, T, H]`."""
    input_ids, is_label = batch.input_ids.to(hidden.device), batch.label_mask.to(hidden.device)
    is_label = is_label[:, 1:]
    return hidden[:, :-1][is_label], input_ids[:, 1:][is_label], is_label.nonzero()[:, 0]
