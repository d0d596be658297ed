"""A decoder whose training batches run packed: in one sequence, without padding.

In: a backbone. Out: a view of it whose `label_states` are the same numbers, where that is proved on
the model at hand with a few tokens; else the backbone itself, and the log says why. The family's
own layers run, over one row of all tokens; their attention alone is led through `packed_sequence`.
The model is neither patched nor switched. Knows no loss and no optimizer.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.compat import transformers_api
from foreword.compat.transformers_api import ALL_ATTENTION_FUNCTIONS, Cache
from foreword.data.batches import Batch, collate
from foreword.data.encoding import Row
from foreword.model import checks, forward
from foreword.model.attention_view import own_attention, with_attention
from foreword.model.cache_layers import PassingLayer
from foreword.model.changed import check_settings
from foreword.model.decoder import Decoder
from foreword.model.passes import LabelStates
from foreword.model.view_proof import limit_of, objection, text_ids
from foreword.prompt.prefix import Prefix, PrefixBatch, no_prefixes, same_prefix
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import DeferredPrompt
from foreword.training import gradient_checkpointing
from foreword.training.packing import packed_sequence
from foreword.training.packing.packed_sequence import PackedSequence

log = logging.getLogger("foreword")

NAME = "foreword_packed"  # of the attention that takes a packed sequence apart
LENGTHS, NUM_VIRTUAL = ((3, 1), (6, 2), (6, 2), (6, 3), (4, 1)), 5  # of the proof: tokens, labels


def packed(backbone: Backbone) -> Backbone:
    """Return a view whose training batches run packed, or the backbone itself where that is not
    proved. What it comes to is a function of the model alone.
    """
    plain = backbone.passes
    if not (isinstance(plain, Decoder) and _may_pack(backbone)):
        return backbone
    view = with_attention(backbone.decoder, NAME)
    passes = PackedDecoder(plain.model, plain.capabilities, backbone.embed, view)
    if (reason := objection(lambda: _difference(backbone, passes))) is None:
        return backbone.with_passes(passes)
    log.info("training batches are padded: %s cannot run packed (%s)", backbone.name, reason)
    return backbone


def _may_pack(backbone: Backbone) -> bool:
    """Return whether a model's layers can be asked at all."""
    capabilities = backbone.capabilities
    return (
        backbone.device.type == "cpu"  # elsewhere, rows of many lengths would be many small kernels
        and not backbone.passes.is_sharded  # sharded layers are gathered around whole passes
        and not capabilities.is_recurrent
        and not capabilities.counts_slots
        and capabilities.slot_scale is None  # a slot of a packed sequence is no position
        and bool(capabilities.attention_patterns)
    )


@dataclass(frozen=True, eq=False)
class PackedDecoder(Decoder):
    """A decoder whose training batches run packed.

    Attributes:
        embed: ids to the embeddings that the model computes for them.
        view: of the model without its head; its attention takes packed sequences apart.
    """

    embed: Callable[[Tensor], Tensor]
    view: Any
    is_packed = True

    def can_defer(self, prompt: SoftPrompt, batch: Batch) -> bool:
        """Return whether a prompt's virtual tokens can stand at the head of a packed sequence."""
        has_ids = self.capabilities.virtual_id is not None
        return prompt.form == "embeddings" and not has_ids and self._is_text(batch)

    def label_states(self, prefixes: PrefixBatch, batch: Batch) -> LabelStates:
        """Return the hidden states before labels, in the order of the packed sequence; of a padded
        batch where the rows cannot be packed.
        """
        prefix = prefixes.prefixes[0]
        is_one = prefix is not None and all(one is prefix for one in prefixes.prefixes)
        if not is_one or prefixes.unseen is not None or not self._is_text(batch):
            return super().label_states(prefixes, batch)
        assert prefix is not None
        sequence = self.pack(prefix, batch)
        hidden = self.run(sequence, prefix)[sequence.places]
        return hidden, sequence.labels, sequence.rows.to(hidden.device)

    def _is_text(self, batch: Batch) -> bool:
        """Return whether rows are text alone, each with a label and a token before."""
        counts = batch.label_mask.sum(1)
        is_whole = (counts > 0) & (counts < batch.attention_mask.sum(1))
        special = [modality.token_id for modality in self.capabilities.modalities]
        has_media = bool(batch.media) or bool(
            torch.isin(batch.input_ids, torch.tensor(special, dtype=torch.long, device="cpu")).any()
        )
        return not has_media and bool(is_whole.all())

    def pack(self, prefix: Prefix, batch: Batch) -> PackedSequence:
        """Pack the rows of a batch behind one prefix.

        Raises:
            InputError: a row has more tokens than the model has positions for.
        """
        count, longest = prefix.num_virtual_tokens, int(batch.attention_mask.sum(1).max())
        checks.check_length(self.capabilities, longest, count)
        is_deferred = isinstance(prefix.states, DeferredPrompt)
        return packed_sequence.pack(
            batch, count, is_deferred, self.capabilities, self.model.dtype, self.model.device
        )

    def run(self, sequence: PackedSequence, prefix: Prefix) -> Tensor:
        """Return the last hidden states of a packed sequence, `[tokens, H]`."""
        capabilities = self.capabilities
        check_settings(self.model, capabilities)
        tokens = {"input_ids": sequence.input_ids[None]}
        batch = same_prefix(prefix, 1)
        if isinstance(prefix.states, DeferredPrompt):
            embedded = [prefix.states.embeddings, self.embed(sequence.input_ids)]
            tokens, batch = {"inputs_embeds": torch.cat(embedded)[None]}, no_prefixes(1)
        num_layers = capabilities.num_layers
        states = [batch.layer(i) if batch.num_slots else () for i in range(num_layers)]
        axes = (capabilities.num_axes,) if capabilities.num_axes > 1 else ()
        placed = {
            "position_ids": sequence.positions.expand(*axes, 1, -1),
            "attention_mask": self._markers(),
            capabilities.cache_argument: Cache(layers=[PassingLayer(state) for state in states]),
            "use_cache": True,
        }
        is_cpu = self.model.device.type == "cpu"
        with transformers_api.grouped_heads(is_cpu), packed_sequence.running(sequence):
            output = forward.run_pass(self.view, tokens | placed)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _markers(self) -> Any:
        """Return empty masks of the right rank; their last size tells attention the pattern."""
        dtype = torch.bool if self.capabilities.attention == "sdpa" else self.model.dtype
        markers = {
            pattern.name: torch.empty(1, 1, 0, index + 1, dtype=dtype, device=self.model.device)
            for index, pattern in enumerate(packed_sequence.patterns_of(self.capabilities))
        }
        return markers if len(markers) > 1 else next(iter(markers.values()))


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **kwargs: Any
) -> tuple[Tensor, None]:
    """Let each row of a packed sequence attend with the family's own attention."""
    sequence = packed_sequence.current()
    pattern = attention_mask.shape[-1] - 1
    sequence.seen.append(pattern)
    own = own_attention(module)

    def run(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        output: Tensor = own(module, query, key, value, mask, **kwargs)[0]
        return output

    return sequence.attend(run, query, key, value, pattern), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)


def _difference(backbone: Backbone, passes: PackedDecoder) -> str | None:
    """Say how a few rows differ between a packed sequence and a padded batch; None: not at all."""
    capabilities, ids = backbone.capabilities, iter(text_ids(backbone.capabilities))
    rows = [
        Row(tuple(next(ids) for _ in range(length)), count, "proof") for length, count in LENGTHS
    ]
    batch = collate(rows, 0)
    embeddings = backbone.embed(torch.tensor([next(ids) for _ in range(NUM_VIRTUAL)], device="cpu"))
    with torch.no_grad():
        prefix = Prefix(backbone.passes.prefill(embeddings), "proof")
        expected = backbone.label_states(same_prefix(prefix, len(rows)), batch)
        tried = [prefix]
        if capabilities.virtual_id is None:
            tried.append(Prefix(DeferredPrompt(embeddings), "proof"))
        found = [_how_different(passes, one, batch, expected) for one in tried]
    return next((one for one in found if one is not None), None)


def _how_different(
    passes: PackedDecoder, prefix: Prefix, batch: Batch, expected: LabelStates
) -> str | None:
    sequence = passes.pack(prefix, batch)
    hidden = passes.run(sequence, prefix)[sequence.places]
    states, labels, rows = expected
    order = torch.cat([(rows == row).nonzero()[:, 0] for row in sequence.order])
    kinds = packed_sequence.patterns_of(passes.capabilities)
    attention_patterns = [
        kinds.index(pattern) for pattern in passes.capabilities.attention_patterns
    ]
    # Layers without keys of their own may follow those that keep some.
    num_layers = len(gradient_checkpointing.layers_of(passes.view))
    if (
        sequence.seen[: len(attention_patterns)] != attention_patterns
        or len(sequence.seen) != num_layers
    ):
        return "not every layer asks for its attention by name"
    limit = limit_of(passes.model.dtype)
    difference, scale = (hidden.float() - states[order].float()).norm(), states.float().norm()
    if not bool((sequence.labels == labels[order]).all()):
        return "its labels are others"
    share = (difference / scale).item()
    return None if share <= limit else f"its hidden states differ by {share:.2g}"
