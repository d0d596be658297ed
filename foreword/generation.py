"""Generation with prefixes through transformers' own `generate`, every strategy of it.

In: a model, a batch of prefixes, what `generate` takes. Out: what `generate` returns, as if the
virtual tokens did not exist. A call works on a *view*: an object of a subclass of the model's class
that shares its weights and has its own state, so that the model is never patched and threads do not
meet. The view translates each forward pass: real tokens to positions after the prefix, the
two-dimensional mask to masks by position. It knows ids only, no text.
"""

import functools
import logging
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

from foreword import arguments, caches, layout, media, recurrent, releases
from foreword.capabilities import Capabilities
from foreword.errors import InputError, UnsupportedError
from foreword.media import Reading
from foreword.placeholders import Item, Turn
from foreword.prefix import PrefixBatch

log = logging.getLogger("foreword")

# Processors that read a row's history: in a padded batch they would read its padding too.
HISTORY_PROCESSORS = (
    RepetitionPenaltyLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    NoBadWordsLogitsProcessor,
    SequenceBiasLogitsProcessor,
)
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def model_inputs(
    capabilities: Capabilities,
    batch: PrefixBatch,
    cache: Any,
    tokens: Tensor,
    attention_mask: Tensor | None,
    num_cached: int,
    dtype: torch.dtype,
    reading: Reading | None = None,
) -> dict[str, Any]:
    """Return positions, masks, cache and media for one pass of the model over `tokens` `[B, T]` or
    `[B, T, H]`.
    """
    if not capabilities.reaches:  # recurrent layers know neither positions nor masks
        return {capabilities.cache_argument: cache, "use_cache": True}
    num_new = tokens.shape[1]
    span = layout.Span(
        num_virtual=batch.num_virtual,
        num_slots=batch.num_slots,
        num_cached=num_cached,
        num_new=num_new,
        capacity=int(cache.get_mask_sizes(num_new, 0)[0]),
        unseen=batch.unseen,
    )
    items = _items(reading, attention_mask, num_cached, tokens) if reading else []
    blocks = None
    if reading is not None and items and capabilities.has_image_blocks:
        blocks = reading.blocks(attention_mask, num_cached + num_new, tokens.shape[0])
        blocks = blocks.to(tokens.device)
    positions, masks = layout.place(
        span, attention_mask, capabilities, dtype, tokens.device, blocks
    )
    layout.check_slots(span, attention_mask, positions, capabilities)
    positions = positions.expand(tokens.shape[0], -1)
    placed = {"attention_mask": masks, capabilities.cache_argument: cache, "use_cache": True}
    if reading is not None and items:
        placed |= reading.features(items)
        placed["input_ids"] = media.without_padding(reading, tokens, attention_mask)
    if capabilities.num_axes == 1:
        return placed | {"position_ids": positions}
    if reading is None:
        return placed | {"position_ids": positions[None].expand(capabilities.num_axes, -1, -1)}
    virtual = torch.tensor(batch.num_virtual, device=tokens.device)[:, None]
    return placed | {"position_ids": reading.positions(positions, virtual)}


def _items(
    reading: Reading, attention_mask: Tensor | None, num_cached: int, tokens: Tensor
) -> list[Item]:
    """Return the media of a pass over columns `num_cached` and on."""
    if not reading.items or num_cached >= reading.num_columns:
        return []
    rows, num_new = tokens.shape[:2]
    if attention_mask is None:
        return reading.read_in([num_cached] * rows, [num_cached + num_new] * rows)
    starts = attention_mask[:, :num_cached].sum(1)
    stops = starts + attention_mask[:, num_cached : num_cached + num_new].sum(1)
    return reading.read_in(starts.tolist(), stops.tolist())


def read_pass(run: Any, inputs: dict[str, Any]) -> Any:
    """Run a model or its decoder over one pass; say in one line where its media does not fit.

    Raises:
        InputError: what the model itself says of the media.
    """
    has_media = any(name in inputs for name in ("pixel_values", "input_features"))
    try:
        return run(**inputs)
    except ValueError as error:
        if not has_media:
            raise
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"the model cannot read the media of input_ids: {reason}; give what the processor "
            "returns, and let no generated token be a placeholder"
        ) from error


class _View(GenerationMixin):
    """What a view overrides of its model; see `view`."""

    _model: Any
    _capabilities: Capabilities
    _batch: PrefixBatch
    _num_padding: tuple[int, ...]
    _reading: Reading | None

    def forward(self, **inputs: Any) -> Any:
        """Run the model on real tokens, behind each row's prefix."""
        cache = inputs.pop("past_key_values", None)
        inputs.pop("cache_params", None)
        mask = inputs.pop("attention_mask", None)
        inputs.pop("position_ids", None)  # recomputed from the mask
        keep = inputs.pop("use_cache", None) is not False and cache is not None
        tokens = inputs.get("input_ids")
        if tokens is None:
            tokens = inputs["inputs_embeds"]
        if cache is not None and mask is not None and not cache.is_padded:
            cache.is_padded = not bool(mask.all())
        batch = self._batch.expanded(tokens.shape[0])
        num_cached = cache.get_seq_length() if cache is not None else 0
        model_cache = (
            cache.model_cache if cache is not None else caches.uncached(batch, self._capabilities)
        )
        if self._capabilities.is_recurrent and recurrent.has_padding(mask, tokens.shape[1]):
            output = self._read_groups(inputs, mask, batch, model_cache, num_cached)
        else:
            output = self._read(inputs, mask, batch, model_cache, num_cached)
        if cache is not None:
            cache.num_read += tokens.shape[1]
        if cache is not None and self._reading is not None:
            cache.memory = self._reading.memory.expanded(tokens.shape[0])
        if self._capabilities.cache_argument != "past_key_values":
            output = CausalLMOutputWithPast(logits=output.logits)
        output.past_key_values = cache if keep else None
        return output

    def _read(
        self,
        inputs: dict[str, Any],
        mask: Tensor | None,
        batch: PrefixBatch,
        cache: Any,
        num_cached: int,
    ) -> Any:
        """Run the model once over tokens that follow `num_cached` others behind their prefixes."""
        tokens = (
            inputs["input_ids"] if inputs.get("input_ids") is not None else inputs["inputs_embeds"]
        )
        placed = model_inputs(
            self._capabilities,
            batch,
            cache,
            tokens,
            mask,
            num_cached,
            self._model.dtype,
            self._reading,
        )
        # The tokens after a prefix need a mask, where the bare model's first pass needs none.
        with releases.grouped_heads(tokens.device.type == "cpu" and tokens.shape[1] > 1):
            return read_pass(self._model, inputs | placed)

    def _read_groups(
        self,
        inputs: dict[str, Any],
        mask: Tensor,
        batch: PrefixBatch,
        cache: Any,
        num_cached: int,
    ) -> Any:
        """Run the model over padded rows in groups of one length; logits of padding are zeros."""
        for name in ("output_attentions", "output_hidden_states"):
            if inputs.get(name):
                raise UnsupportedError(
                    f"generate({name}=True): rows of different lengths are read one length at a "
                    f"time by {self._capabilities.model_type}; give one row, or leave it out"
                )
        if self._reading is not None and self._reading.memory.has_media:
            raise UnsupportedError(
                f"{self._capabilities.model_type} reads rows of different lengths one length at a "
                "time, and no media with them; give one row at a time, or rows of one length"
            )
        _say_slower(self._model, self._capabilities)
        name = "input_ids" if inputs.get("input_ids") is not None else "inputs_embeds"
        num_rows, num_new = inputs[name].shape[:2]
        pairs, logits = [], None
        for group in recurrent.groups(mask, num_new):
            part = inputs | {name: inputs[name][group.rows, num_new - group.num_new :]}
            seen = mask[group.rows]
            seen = torch.cat([seen[:, :num_cached], seen[:, mask.shape[1] - group.num_new :]], 1)
            prefixes = recurrent.part_of(batch, group)
            num_empty = batch.num_slots - prefixes.num_slots
            own = recurrent.cache_of(cache, group, self._capabilities, num_empty)
            found = self._read(part, seen, prefixes, own, num_cached).logits
            pairs.append((group, own))
            if logits is None:
                num_kept = inputs.get("logits_to_keep") or num_new
                logits = found.new_zeros(num_rows, num_kept, found.shape[2])
            logits[group.rows, -found.shape[1] :] = found
        recurrent.lay_back(cache, pairs, num_rows, num_new)
        return CausalLMOutputWithPast(logits=logits)

    def _prepare_position_ids_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        """Return positions that nothing reads; a model's own way leaves a trace on the model."""
        return GenerationMixin._prepare_position_ids_for_generation(self, *args, **kwargs)

    def _supports_mm_encoder_outputs(self) -> bool:
        """False: each pass reads its media by ids."""
        return False

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Make the cache asked for, or take the caller's, and start it with the prefixes."""
        arguments.check_length(self._capabilities, max_cache_length + 1, self._batch.num_slots)
        self._refuse_cache(generation_config.cache_implementation)
        if getattr(generation_config, "use_mtp", None):
            raise UnsupportedError(
                "generate(use_mtp=...): drafts of multi-token prediction modules do not see the "
                "prompt; use assistant_model or prompt_lookup_num_tokens"
            )
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        cache = model_kwargs.get("past_key_values")
        if cache is None:
            return
        copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        batch = self._batch.expanded(len(self._batch.prefixes) * copies)
        model_kwargs["past_key_values"] = caches.start(
            cache, batch, self._capabilities, max_cache_length
        )

    def _refuse_cache(self, kind: str | None) -> None:
        if kind == "offloaded_static":
            raise UnsupportedError(
                "the offloaded static cache holds no prefix; use cache_implementation='offloaded'"
            )
        if kind == "quantized" and self._capabilities.is_recurrent:
            raise UnsupportedError(
                f"transformers' quantized cache holds no recurrent states, which "
                f"{self._capabilities.model_type} keeps; use another cache"
            )
        if kind == "quantized" and any(reach.size for reach in self._capabilities.reaches):
            raise UnsupportedError(
                f"transformers' quantized cache takes full attention only, and "
                f"{self._capabilities.model_type} has sliding or chunked layers; use another cache"
            )

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """Name arguments that the model does not take, as transformers does, in one line."""
        # Whatever a model calls its cache, the caller gives it by one name.
        others = {key: value for key, value in model_kwargs.items() if key != "past_key_values"}
        try:
            super()._validate_model_kwargs(others)
        except ValueError as error:
            raise InputError(" ".join(str(error).split())) from None

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        """Return transformers' processors; those that read history read each row without its
        padding.
        """
        processors = super()._get_logits_processor(*args, **kwargs)
        if not any(self._num_padding):
            return processors
        return LogitsProcessorList(
            UnpaddedHistory(p, self._num_padding) if _reads_padding(p) else p for p in processors
        )


_told: weakref.WeakSet[Any] = weakref.WeakSet()


def _say_slower(model: Any, capabilities: Capabilities) -> None:
    """Say once for each model that its padded rows take several passes."""
    if model in _told:
        return
    _told.add(model)
    log.warning(
        "%s keeps recurrent states, which padding would change: rows of several lengths are read "
        "one length at a time, then decoded together",
        capabilities.model_type,
    )


def _reads_padding(processor: LogitsProcessor) -> bool:
    # Newer releases tell the repetition penalty where each row begins; it needs no help then.
    is_told = isinstance(getattr(processor, "prompt_ignore_length", None), Tensor)
    return type(processor) in HISTORY_PROCESSORS and not is_told


class UnpaddedHistory(LogitsProcessor):
    """Apply a processor row by row, each on its own tokens without the padding before them."""

    def __init__(self, inner: LogitsProcessor, num_padding: tuple[int, ...]) -> None:
        self.inner = inner
        self.num_padding = num_padding

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the processed scores `[B, V]`."""
        copies = input_ids.shape[0] // len(self.num_padding)
        rows = [
            self.inner(
                input_ids[row : row + 1, self.num_padding[row // copies] :], scores[row : row + 1]
            )
            for row in range(input_ids.shape[0])
        ]
        return torch.cat(rows)


@functools.cache
def _view_class(model_class: Any) -> Any:
    """Return the subclass of a model's class that views are of; its signature stays the model's."""
    forward = functools.wraps(model_class.forward)(
        lambda self, **inputs: _View.forward(self, **inputs)
    )
    # By their names, transformers would call the cache of some classes otherwise.
    name = model_class.__name__.replace("Mamba", "Recurrent")
    return type(name, (_View, model_class), {"forward": forward})


def view(
    model: Any,
    capabilities: Capabilities,
    batch: PrefixBatch,
    num_padding: tuple[int, ...],
    reading: Reading | None = None,
) -> Any:
    """Return an object that generates like `model`, each row behind its prefix; it shares the
    weights.
    """
    result = twin(model, _view_class(model.__class__))
    # Through the dictionary: a module set as an attribute would be registered as a submodule.
    result.__dict__.update(
        _model=model,
        _capabilities=capabilities,
        _batch=batch,
        _num_padding=num_padding,
        _reading=reading,
    )
    return result


def twin(model: Any, view_class: Any) -> Any:
    """Return an object of another class with a model's state and none of its hooks."""
    result: Any = object.__new__(view_class)
    result.__dict__.update(model.__dict__)
    result.__dict__.pop("forward", None)
    result.__dict__.update({name: OrderedDict() for name in HOOKS if name in model.__dict__})
    return result


def generate(
    model: Any,
    capabilities: Capabilities,
    batch: PrefixBatch,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    kwargs: dict[str, Any],
) -> Any:
    """Generate; sequences begin with the ids as they were given, whichever side their padding is
    on.
    """
    arguments.refuse_options(kwargs, model.generation_config)
    if capabilities.is_recurrent:
        arguments.refuse_candidates(kwargs, model.generation_config, capabilities.model_type)
    cache = kwargs.get("past_key_values")
    arguments.check_cache(cache)
    if capabilities.virtual_id is not None and kwargs.get("inputs_embeds") is not None:
        raise UnsupportedError(
            f"generate(inputs_embeds=...): {capabilities.model_type} looks up more than embeddings "
            "by id; give input_ids"
        )
    found, kwargs = media.split_media(capabilities, kwargs)
    if found and input_ids is None:
        raise UnsupportedError(
            f"generate(inputs_embeds=..., {', '.join(sorted(found))}=...): a model places media by "
            "ids; give input_ids"
        )
    inputs: Any = input_ids if input_ids is not None else kwargs.get("inputs_embeds")
    if attention_mask is None:
        attention_mask = infer_mask(model, capabilities, input_ids, kwargs)
    num_cached = _num_cached(cache)
    if attention_mask is None:
        if getattr(_known(cache), "is_padded", False):
            raise InputError(
                "past_key_values holds padded rows; give attention_mask for all tokens, "
                "cached ones included"
            )
        seen = num_cached if inputs.shape[1] > num_cached else 0
        reading = _read(
            model, capabilities, batch, input_ids, None, (num_cached, seen), found, cache
        )
        alone = view(model, capabilities, batch, (0,) * inputs.shape[0], reading)
        return alone.generate(input_ids=input_ids, **kwargs)
    order = align_right(attention_mask, inputs.shape[0], inputs.shape[1], num_cached)
    num_old = attention_mask.shape[1] - order.shape[1]
    aligned = torch.cat(
        [attention_mask[:, :num_old], attention_mask[:, num_old:].gather(1, order)], 1
    )
    seen = inputs.shape[1] - order.shape[1]  # tokens of the inputs that the cache already holds
    reading = _read(
        model, capabilities, batch, input_ids, attention_mask, (num_old, seen), found, cache
    )
    if kwargs.get("inputs_embeds") is not None:
        kwargs["inputs_embeds"] = _reorder(kwargs["inputs_embeds"], order, seen)
    given = input_ids
    if input_ids is not None:
        input_ids = _reorder(input_ids, order, seen)
    padding = tuple((aligned.long().cumsum(1) == 0).sum(1).tolist())
    padded = view(model, capabilities, batch, padding, reading)
    output = padded.generate(input_ids=input_ids, attention_mask=aligned, **kwargs)
    return output if given is None else _restore(output, given)


def _read(
    model: Any,
    capabilities: Capabilities,
    batch: PrefixBatch,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    columns: tuple[int, int],
    found: dict[str, Tensor],
    cache: Any,
) -> Reading | None:
    """Find out what media a call reads; `columns` are those that are cached, and those of them that
    are given again.
    """
    if input_ids is None or not capabilities.modalities:
        return None
    memory = getattr(_known(cache), "memory", None)
    turn = Turn(input_ids, attention_mask, *columns, batch.num_virtual, memory)
    return read_media(model, capabilities, turn, found)


def read_media(
    model: Any, capabilities: Capabilities, turn: Turn, found: Mapping[str, Tensor]
) -> Reading:
    """Find out what media a call reads, on the device and in the precision of the model."""
    moved = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else None)
        for name, value in found.items()
    }
    return media.read(getattr(model, capabilities.decoder), capabilities, turn, moved)


def _known(cache: Any) -> Any:
    """Return the prefixed cache behind a cache that the caller holds, or the cache itself."""
    return getattr(cache, caches.MARK, cache)


def infer_mask(
    model: Any, capabilities: Capabilities, input_ids: Tensor | None, kwargs: dict[str, Any]
) -> Tensor | None:
    """Infer the mask from padding ids, as transformers does: where they mean nothing else.

    Raises:
        InputError: the padding id is also a placeholder's.
    """
    config = kwargs.get("generation_config") or model.generation_config
    pad = kwargs.get("pad_token_id", config.pad_token_id)
    eos = kwargs.get("eos_token_id", config.eos_token_id)
    ends = eos if isinstance(eos, list) else [eos]
    if input_ids is None or pad is None or pad in ends or not bool((input_ids == pad).any()):
        return None
    if any(pad == modality.token_id for modality in capabilities.modalities):
        raise InputError(
            f"id {pad} pads and stands for media too; give attention_mask to tell them apart"
        )
    return input_ids.ne(pad).long()


def _num_cached(cache: Any) -> int:
    known = _known(cache)
    if isinstance(known, caches.PrefixedCache):
        return known.get_seq_length()
    return caches.num_held(known) if known is not None else 0


def align_right(attention_mask: Tensor, num_rows: int, num_inputs: int, num_cached: int) -> Tensor:
    """Return the order that moves each row's padding before its new tokens, `[B, T new]`."""
    arguments.check_mask(attention_mask, num_rows, num_inputs, num_cached)
    is_whole = attention_mask.shape[1] == num_inputs
    num_new = num_inputs - num_cached if is_whole else num_inputs
    if num_new < 1:
        raise InputError(
            f"{num_inputs} tokens were given and {num_cached} are cached: there is no new one; "
            "give the conversation so far and the next turn"
        )
    return torch.argsort(attention_mask[:, -num_new:].bool().int(), dim=1, stable=True)


def _reorder(inputs: Tensor, order: Tensor, seen: int) -> Tensor:
    index = order if inputs.ndim == 2 else order[..., None].expand(-1, -1, inputs.shape[2])
    return torch.cat([inputs[:, :seen], inputs[:, seen:].gather(1, index)], dim=1)


def _restore(output: Any, given: Tensor) -> Any:
    """Put the ids back as they were given, at the start of every returned sequence."""
    sequences = output if isinstance(output, Tensor) else output.sequences
    copies = sequences.shape[0] // given.shape[0]
    restored = torch.cat(
        [given.repeat_interleave(copies, 0).to(sequences.device), sequences[:, given.shape[1] :]], 1
    )
    if isinstance(output, Tensor):
        return restored
    output.sequences = restored
    return output
