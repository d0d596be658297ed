"""Encoder-decoder forward passes: each row with its own prompt.

In: a batch of prefixes, the encoder's input, the decoder's ids. Out: hidden states of the decoder.
An embedding prompt runs with every row: before the encoder's text, because the encoder attends in
both directions; or, where the encoder takes sounds or images, before the decoder's tokens, behind
the row's encoder output. Keys and values are the start of the decoder's self-attention. Knows no
text and does not generate.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from foreword.compat.transformers_api import DynamicCache, EncoderDecoderCache
from foreword.data.batches import Batch
from foreword.errors import InputError, UnsupportedError
from foreword.model import checks, embedding_scale, forward, prefixed_cache, recurrent
from foreword.model.capabilities import Capabilities
from foreword.model.decoder import before_labels
from foreword.model.encoder_capabilities import EncoderCapabilities
from foreword.model.passes import LabelStates
from foreword.prompt.prefix import Prefix, PrefixBatch, no_prefixes
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import DeferredPrompt, States


class EncoderDecoder:
    """The passes of one encoder-decoder model, each row with its own prompt.

    Args:
        model: a transformers model with an encoder, frozen.
        capabilities: what it is, its encoder included.
    """

    is_sharded = False
    is_packed = False

    def __init__(self, model: Any, capabilities: Capabilities):
        assert capabilities.encoder is not None
        self.model, self.capabilities = model, capabilities
        self.encoder: EncoderCapabilities = capabilities.encoder
        self.embedding_scale = self._measure_scale()

    def over(self, model: Any) -> "EncoderDecoder":
        """Return the same passes over a view of the model."""
        other = copy.copy(self)
        other.model = model
        return other

    def start(self, embeddings: Tensor) -> DeferredPrompt:
        """Return an embedding prompt `[P, H]` as it is: it runs with each row."""
        return DeferredPrompt(embeddings)

    def can_defer(self, prompt: SoftPrompt, batch: Batch) -> bool:
        """False: `start` defers already what has to be deferred."""
        return False

    def prefill(self, embeddings: Tensor) -> States:
        """Return the decoder's state after embeddings `[P, H]`, behind an encoder output of
        zeros: initial keys and values at the scale of the model's own.
        """
        silence = embeddings.new_zeros(1, 1, self.capabilities.hidden_size)
        prefix = Prefix(DeferredPrompt(embeddings), "alone")
        found = self._prefill_deferred(PrefixBatch((prefix,)), [0], silence)
        return found[0].cached

    def encode(
        self,
        batch: PrefixBatch,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> tuple[Any, Tensor]:
        """Return the encoder's output over each row's text behind its embedding prompt, and the
        mask `[B, P + T]`; padding stands behind each row.

        Raises:
            InputError: a row longer than the encoder can place.
        """
        input_ids = input_ids.to(self.model.device)
        mask = torch.ones_like(input_ids)
        if attention_mask is not None:
            mask = attention_mask.to(input_ids.device).long()
            order = recurrent.shift_left(mask)  # the bias counts slots: no hole before a token
            input_ids, mask = input_ids.gather(1, order), mask.gather(1, order)
        prompts = [_deferred(prefix) for prefix in batch.prefixes]
        self._check_text(prompts, mask)
        encoder = self.model.get_encoder()
        if all(prompt is None for prompt in prompts):
            return encoder(input_ids=input_ids, attention_mask=mask, **options), mask
        embedded = self.model.get_input_embeddings()(input_ids) * self.embedding_scale
        rows = [
            torch.cat([row[:0] if prompt is None else prompt, row[:length]])
            for prompt, row, length in zip(prompts, embedded, mask.sum(1).tolist(), strict=True)
        ]
        whole = pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=whole.device)
        mask = (torch.arange(whole.shape[1], device=whole.device) < lengths[:, None]).long()
        return encoder(inputs_embeds=whole, attention_mask=mask, **options), mask

    def _measure_scale(self) -> float:
        """Find what the encoder multiplies the embeddings of ids by, and not given ones."""
        if not self.encoder.reads_text:
            return 1.0
        encoder: Any = self.model.get_encoder()
        ids = torch.arange(4, device=self.model.device)[None]
        mask = torch.ones_like(ids)

        def run(**tokens: Tensor) -> Tensor:
            hidden: Tensor = encoder(**tokens, attention_mask=mask).last_hidden_state
            return hidden

        return embedding_scale.applied_scale(
            getattr(encoder, "embed_scale", None),
            lambda: run(input_ids=ids),
            lambda by: run(inputs_embeds=self.model.get_input_embeddings()(ids) * by),
        )

    def _check_text(self, prompts: list[Tensor | None], mask: Tensor) -> None:
        limit = self.encoder.context_length
        counts = [0 if prompt is None else len(prompt) for prompt in prompts]
        for row, (num_virtual, num_real) in enumerate(
            zip(counts, mask.sum(1).tolist(), strict=True)
        ):
            if limit is not None and num_virtual + num_real > limit:
                raise InputError(
                    f"row {row}: {num_real} real and {num_virtual} virtual tokens, but the encoder "
                    f"of {self.capabilities.model_type} has {limit} positions; shorten the input"
                )

    def before_decoder(self, batch: PrefixBatch) -> PrefixBatch:
        """Return what stands before each row's decoded tokens, embeddings still deferred."""
        if not self.encoder.reads_text:
            return batch
        return PrefixBatch(
            tuple(None if _deferred(prefix) is not None else prefix for prefix in batch.prefixes)
        )

    def started(self, batch: PrefixBatch, hidden: Tensor) -> PrefixBatch:
        """Prefill deferred prompts behind each row's encoder output `[B, S, H]`; rows with equally
        many virtual tokens share a pass.

        Raises:
            UnsupportedError: prompts of several lengths, where the decoder counts slots.
        """
        groups: dict[int, list[int]] = {}
        for row, prefix in enumerate(batch.prefixes):
            if (embeddings := _deferred(prefix)) is not None:
                groups.setdefault(len(embeddings), []).append(row)
        if len(set(batch.num_virtual)) > 1 and self.encoder.placing == "counted":
            raise UnsupportedError(
                f"prompts of {sorted(set(batch.num_virtual))} tokens in one batch: the decoder of "
                f"{self.capabilities.model_type} counts the slots before a token; give rows behind "
                "prompts of one length together"
            )
        found: dict[int, Prefix] = {}
        for rows in groups.values():
            found |= self._prefill_deferred(batch, rows, hidden)
        return PrefixBatch(
            tuple(found.get(row, prefix) for row, prefix in enumerate(batch.prefixes))
        )

    def _prefill_deferred(
        self, batch: PrefixBatch, rows: list[int], hidden: Tensor
    ) -> dict[int, Prefix]:
        """Return the prefixes of some rows, with prompts of one length, after their prefill."""
        given = [prefix for row in rows if (prefix := batch.prefixes[row]) is not None]
        deferred = [_deferred(prefix) for prefix in given]
        embeddings = torch.stack([one for one in deferred if one is not None])
        checks.check_length(self.capabilities, 0, embeddings.shape[1])
        states = self.states_after(hidden[rows], inputs_embeds=embeddings)
        return {
            row: Prefix(found, prefix.content_hash, prefix.facts)
            for row, prefix, found in zip(rows, given, states, strict=True)
        }

    def states_after(self, hidden: Tensor, **tokens: Tensor) -> list[States]:
        """Return the decoder's state after each row's `input_ids` or `inputs_embeds`, behind its
        encoder output `[B, S, H]`.
        """
        bare = no_prefixes(len(hidden))
        cache = self.one_pass_cache(bare)
        self._run_decoder(bare, cache, hidden, None, None, **tokens)
        layers = [(layer.keys, layer.values) for layer in cache.self_attention_cache.layers]
        (given,) = tokens.values()
        return [
            States(tuple((keys[row], values[row]) for keys, values in layers), given.shape[1])
            for row in range(len(hidden))
        ]

    def one_pass_cache(self, batch: PrefixBatch) -> EncoderDecoderCache:
        """Return a cache for one pass that carries the prefixes' gradient."""
        return EncoderDecoderCache(
            prefixed_cache.uncached(batch, self.capabilities), DynamicCache()
        )

    def placed(
        self,
        batch: PrefixBatch,
        cache: EncoderDecoderCache,
        tokens: Tensor,
        mask: Tensor | None,
        num_cached: int,
    ) -> dict[str, Any]:
        """Return positions, mask and cache for one pass of the decoder over `tokens` `[B, T]`."""
        placed = forward.model_inputs(
            self.capabilities, batch, cache, tokens, mask, num_cached, self.model.dtype
        )
        if self.encoder.placing != "told":
            del placed["position_ids"]
        return placed

    def _run_decoder(
        self,
        batch: PrefixBatch,
        cache: EncoderDecoderCache,
        hidden: Tensor,
        encoder_mask: Tensor | None,
        mask: Tensor | None,
        **tokens: Tensor,
    ) -> Tensor:
        """Run the decoder without its head over one pass of tokens and return `[B, T, H]`."""
        (given,) = tokens.values()
        placed = self.placed(batch, cache, given, mask, 0)
        if encoder_mask is not None:
            placed["encoder_attention_mask"] = encoder_mask
        output = self.model.get_decoder()(**tokens, **placed, encoder_hidden_states=hidden)
        return output.last_hidden_state  # type: ignore[no-any-return]

    def num_rows(self, input_ids: Tensor | None, given: Mapping[str, Any]) -> int:
        """Return the rows of the encoder's input, or of the decoder's."""
        if input_ids is not None and self.encoder.reads_text:
            checks.check_inputs(input_ids, self.capabilities.vocab_size)
        return checks.num_rows({"input_ids": input_ids} | dict(given))

    def hidden(
        self,
        batch: PrefixBatch,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        given: Mapping[str, Tensor],
    ) -> Tensor:
        """Return the last hidden states `[B, T, H]` of the decoder's tokens.

        `input_ids` and their mask are the encoder's where it takes text, the decoder's where it
        does not; `given` holds the rest, by the names of transformers.

        Raises:
            InputError: no input for the encoder. UnsupportedError: an argument of another model.
        """
        rest = dict(given)
        ids, mask = rest.pop("decoder_input_ids", None), rest.pop("decoder_attention_mask", None)
        if not self.encoder.reads_text:
            if ids is None:
                ids, mask = input_ids, attention_mask
            hidden, encoder_mask = self.perceive(rest), None
        else:
            checks.check_inputs(input_ids, self.capabilities.vocab_size)
            assert input_ids is not None
            output, encoder_mask = self.encode(batch, input_ids, attention_mask)
            hidden = output.last_hidden_state
        if rest:
            raise UnsupportedError(
                f"{self.capabilities.model_type} takes no {', '.join(sorted(rest))}; leave it out"
            )
        if ids is None:
            ids = torch.full((hidden.shape[0], 1), self.encoder.start_id, device="cpu")
        return self.decoded(batch, hidden, encoder_mask, ids, mask)

    def perceive(self, given: dict[str, Any]) -> Tensor:
        """Take the encoder's input, or its output, out of `given`; return its output `[B, S, H]`.

        Raises:
            InputError: neither is there.
        """
        if (output := given.pop("encoder_outputs", None)) is not None:
            return output[0] if not isinstance(output, Tensor) else output
        name = self.encoder.input_name
        if name not in given:
            raise InputError(
                f"{self.capabilities.model_type} needs {name}; got {sorted(given) or 'none'}"
            )
        features = given.pop(name).to(self.model.device, self.model.dtype)
        return self.model.get_encoder()(features).last_hidden_state  # type: ignore[no-any-return]

    def decoded(
        self,
        batch: PrefixBatch,
        hidden: Tensor,
        encoder_mask: Tensor | None,
        decoder_input_ids: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        """Return the decoder's hidden states `[B, T, H]` over ids padded on the right, or anywhere
        where the decoder is told its positions.
        """
        ids = decoder_input_ids.to(self.model.device)
        checks.check_inputs(ids, self.capabilities.vocab_size)
        if mask is not None:
            checks.check_mask(mask, *ids.shape)
            self.check_padding(mask, is_right=True)
        batch = self.started(self.before_decoder(batch), hidden)
        longest = ids.shape[1] if mask is None else int(mask.sum(1).max())
        checks.check_length(self.capabilities, longest, batch.num_slots)
        cache = self.one_pass_cache(batch)
        return self._run_decoder(batch, cache, hidden, encoder_mask, mask, input_ids=ids)

    def check_padding(self, mask: Tensor, *, is_right: bool = False) -> None:
        """Refuse padding before a decoder's token where slots decide the positions."""
        if self.encoder.placing == "told":
            return
        steps = mask.int().diff(dim=1)
        if bool((steps > 0).any()) or not (is_right or bool(mask.all())):
            where = "before" if is_right else "among"
            raise UnsupportedError(
                f"padding {where} the decoder's tokens: {self.capabilities.model_type} places them "
                "by their slots; give rows whose decoder_input_ids are of one length"
            )

    def label_states(self, prefixes: PrefixBatch, batch: Batch) -> LabelStates:
        """Return the hidden states before the labels of a batch: where the encoder takes text,
        labels go to the decoder, and all other tokens to the encoder.
        """
        if not self.encoder.reads_text:
            mask = batch.attention_mask
            return before_labels(self.hidden(prefixes, batch.input_ids, mask, batch.media), batch)
        device = self.model.device
        input_ids, label_mask = batch.input_ids.to(device), batch.label_mask.to(device)
        order = recurrent.shift_left(label_mask.int())[:, : int(label_mask.sum(1).max())]
        labels, is_label = input_ids.gather(1, order), label_mask.gather(1, order)
        is_text = batch.attention_mask.to(device).bool() & ~label_mask
        width = max(1, int(is_text.sum(1).max()))
        output, encoder_mask = self.encode(prefixes, input_ids[:, :width], is_text[:, :width])
        start = labels.new_full((len(labels), 1), self.encoder.start_id)
        decoded = self.decoded(
            prefixes,
            output.last_hidden_state,
            encoder_mask,
            torch.cat([start, labels[:, :-1]], 1),
            is_label.long(),
        )
        return decoded[is_label], labels[is_label], is_label.nonzero()[:, 0]


def _deferred(prefix: Prefix | None) -> Tensor | None:
    """Return the embeddings `[P, H]` of a prefix that runs with each row."""
    if prefix is None or not isinstance(prefix.states, DeferredPrompt):
        return None
    return prefix.states.embeddings
