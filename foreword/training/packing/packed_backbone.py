"""A view of a backbone that passes the rows of a batch in one line, without padding, and a prompt's
virtual tokens with them.

In: a backbone. Out: a view of it whose `label_states` are the same numbers, where that is proved on
the user's model with a few tokens; else the backbone itself. The family's own layers run, over one
row of all tokens; their attention alone is led through `lines`. The user's model is neither patched
nor switched. Knows no loss and no training.
"""

import copy
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from foreword import compat
from foreword.backbone import Backbone
from foreword.data.batches import Batch, collate
from foreword.data.encoding import Row
from foreword.model import checks, forward
from foreword.model.cache_layers import PassingLayer
from foreword.prompt.prefix import Prefix, PrefixBatch, no_prefixes, same_prefix
from foreword.prompt.states import Unread
from foreword.training import gradient_checkpointing
from foreword.training.packing import packed_sequence
from foreword.training.packing.label_layer import LabelLayer
from foreword.training.packing.packed_sequence import Line

NAME = "foreword_line"  # of the attention that takes a line apart
LENGTHS, NUM_VIRTUAL = ((3, 1), (6, 2), (6, 2), (6, 3), (4, 1)), 5  # of the proof: tokens, labels


def packed(backbone: Backbone) -> Backbone:
    """Return a view that passes rows in one line, or the backbone itself where that is not proved.

    What it comes to is a function of the model alone.
    """
    if not _may_line(backbone):
        return backbone
    for is_narrow in (True, False):
        try:
            lining = Lining(backbone, _view(backbone, is_narrow), is_narrow)
            is_proved = _is_proved(backbone, lining)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a family's code may do anything with arguments that it does not expect
            is_proved = False
        if is_proved:
            view = copy.copy(backbone)
            view.lining = lining
            return view
    return backbone


def _may_line(backbone: Backbone) -> bool:
    """Return whether a model's layers can be asked at all."""
    facts = backbone.capabilities
    return (
        backbone.device.type == "cpu"  # elsewhere, rows of many lengths would be many small kernels
        and backbone.seq2seq is None
        and backbone.tie is None  # sharded layers are gathered around whole passes
        and not facts.is_recurrent
        and facts.slot_scale is None  # a slot of a line is no position
        and bool(facts.reaches)
    )


@dataclass(frozen=True, eq=False)
class Lining:
    """What passes rows in one line.

    Attributes:
        backbone: whose embeddings and capabilities count.
        decoder: a view of its decoder whose attention takes lines apart.
        is_narrow: whether its last layer returns what is before labels alone.
    """

    backbone: Backbone
    decoder: Any
    is_narrow: bool

    def can_read(self, prompt: Any, batch: Batch) -> bool:
        """Return whether a prompt's virtual tokens can stand at the head of a line."""
        has_ids = self.backbone.capabilities.virtual_id is not None
        return prompt.form == "embeddings" and not has_ids and self._is_text(batch)

    def label_states(
        self, prefixes: PrefixBatch, batch: Batch
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return what `Backbone.label_states` does, in the line's order; None where the rows cannot
        be passed so.
        """
        prefix = prefixes.prefixes[0]
        is_one = prefix is not None and all(one is prefix for one in prefixes.prefixes)
        if not is_one or prefixes.unseen is not None or not self._is_text(batch):
            return None
        assert prefix is not None
        line = self._line(prefix, batch)
        hidden = self._pass(line, prefix)
        hidden = hidden if self.is_narrow else hidden[line.places]
        return hidden, line.labels, line.rows.to(hidden.device)

    def _is_text(self, batch: Batch) -> bool:
        """Return whether rows are text alone, each with a label and a token before."""
        counts = batch.label_mask.sum(1)
        is_whole = (counts > 0) & (counts < batch.attention_mask.sum(1))
        special = [modality.token_id for modality in self.backbone.capabilities.modalities]
        has_media = bool(batch.media) or bool(
            torch.isin(batch.input_ids, torch.tensor(special, dtype=torch.long)).any()
        )
        return not has_media and bool(is_whole.all())

    def _line(self, prefix: Prefix, batch: Batch) -> Line:
        backbone, count = self.backbone, prefix.num_virtual_tokens
        longest = int(batch.attention_mask.sum(1).max())
        checks.check_length(backbone.capabilities, longest, count)
        is_unread = isinstance(prefix.states, Unread)
        return packed_sequence.lay(
            batch, count, is_unread, backbone.capabilities, backbone.dtype, backbone.device
        )

    def _pass(self, line: Line, prefix: Prefix) -> Tensor:
        """Return the last hidden states of a line, `[tokens, H]` or those before labels."""
        backbone, facts = self.backbone, self.backbone.capabilities
        tokens = {"input_ids": line.input_ids[None]}
        batch = same_prefix(prefix, 1)
        if isinstance(prefix.states, Unread):
            embedded = [prefix.states.embeddings, backbone.embed(line.input_ids)]
            tokens, batch = {"inputs_embeds": torch.cat(embedded)[None]}, no_prefixes(1)
        states = [batch.layer(i) if batch.num_slots else () for i in range(facts.num_layers)]
        layers = [PassingLayer(state) for state in states]
        axes = (facts.num_axes,) if facts.num_axes > 1 else ()
        placed = {
            "position_ids": line.positions.expand(*axes, 1, -1),
            "attention_mask": _markers(backbone),
            facts.cache_argument: Cache(layers=layers),
            "use_cache": True,
        }
        with compat.grouped_heads(backbone.device.type == "cpu"), packed_sequence.in_line(line):
            output = forward.read_pass(self.decoder, tokens | placed)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden


def _markers(backbone: Backbone) -> Any:
    """Return empty masks of the right rank, whose last size tells attention the layer's reach."""
    dtype = torch.bool if backbone.capabilities.attention == "sdpa" else backbone.dtype
    markers = {
        reach.name: torch.empty(1, 1, 0, index + 1, dtype=dtype, device=backbone.device)
        for index, reach in enumerate(packed_sequence.reaches_of(backbone.capabilities))
    }
    return markers if len(markers) > 1 else next(iter(markers.values()))


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **kwargs: Any
) -> tuple[Tensor, None]:
    """Let each row of a line attend with the family's own attention."""
    line, is_narrow = packed_sequence.current()
    reach = attention_mask.shape[-1] - 1
    line.seen.append(reach)
    names = vars(sys.modules[type(module).__module__])
    table = names.get("ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
    own = table.get_interface(module.config.line_attention, names.get("eager_attention_forward"))

    def run(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        output: Tensor = own(module, query, key, value, mask, **kwargs)[0]
        return output

    return line.attend(run, query, key, value, reach, is_narrow), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attend)


def _view(backbone: Backbone, is_narrow: bool) -> Any:
    """Return a view of a decoder whose attention takes lines apart."""
    view = _with_attention(backbone.decoder, {})
    layers = gradient_checkpointing.layers_of(view)
    if is_narrow:
        last = layers[-1]
        last = last.layer if isinstance(last, gradient_checkpointing.Recomputed) else last
        layers[-1] = LabelLayer(last)
    return view


def _with_attention(module: Module, configs: dict[int, Any]) -> Any:
    """Return a copy of a tree of modules over the same weights, whose configurations name the
    attention of lines.
    """
    children = {
        name: child and _with_attention(child, configs) for name, child in module._modules.items()
    }
    config = module.__dict__.get("config")
    if config is None and not children:
        return module
    view = copy.copy(module)
    view.__dict__["_modules"] = children
    if config is not None:
        if id(config) not in configs:
            changed = copy.copy(config)
            changed.line_attention = config._attn_implementation
            changed.__dict__["_attn_implementation_internal"] = NAME
            configs[id(config)] = changed
        view.__dict__["config"] = configs[id(config)]
    return view


def _is_proved(backbone: Backbone, lining: Lining) -> bool:
    """Return whether a few rows come to the same in a line and in a padded batch."""
    size = backbone.capabilities.vocab_size
    special = {modality.token_id for modality in backbone.capabilities.modalities}
    plain = [(7919 * number) % size for number in range(1, 60)]
    ids = iter([one for one in plain if one not in special])
    rows = [
        Row(tuple(next(ids) for _ in range(length)), count, "proof") for length, count in LENGTHS
    ]
    batch = collate(rows, 0)
    embeddings = backbone.embed(torch.tensor([next(ids) for _ in range(NUM_VIRTUAL)]))
    with torch.no_grad():
        prefix = Prefix(backbone.read_embeddings(embeddings), "proof")
        expected = backbone.label_states(same_prefix(prefix, len(rows)), batch)
        tried = [prefix]
        if backbone.capabilities.virtual_id is None:
            tried.append(Prefix(Unread.of(embeddings), "proof"))
        return all(_is_same(lining, one, batch, expected) for one in tried)


def _is_same(
    lining: Lining, prefix: Prefix, batch: Batch, expected: tuple[Tensor, Tensor, Tensor]
) -> bool:
    facts = lining.backbone.capabilities
    line = lining._line(prefix, batch)
    hidden = lining._pass(line, prefix)
    hidden = hidden if lining.is_narrow else hidden[line.places]
    states, labels, rows = expected
    order = torch.cat([(rows == row).nonzero()[:, 0] for row in line.order])
    kinds = packed_sequence.reaches_of(facts)
    reaches = [kinds.index(reach) for reach in facts.reaches]
    # Layers without keys of their own may follow those that keep some.
    has_seen = line.seen[: len(reaches)] == reaches
    has_seen &= len(line.seen) == len(gradient_checkpointing.layers_of(lining.decoder))
    limit = 1e-3 if lining.backbone.dtype in (torch.float32, torch.float64) else 0.05
    difference = (hidden.float() - states[order].float()).norm()
    is_near = bool(difference <= limit * states.float().norm())
    return has_seen and is_near and bool((line.labels == labels[order]).all())
