"""Views of a model: objects of subclasses of its class that generate behind prefixes.

In: a model, a batch of prefixes. Out: an object that shares the model's weights and has its own
state, so that the model is never patched and threads do not meet. It translates each forward pass
of transformers' `generate`: real tokens to positions after the prefix, the two-dimensional mask to
masks by position, padded rows of recurrent models to passes of one length; with an encoder, the
decoder's self-attention starts with what stands before each row's tokens. Knows ids only, no text.
"""

import functools
import inspect
import logging
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    StoppingCriteriaList,
)

from foreword.compat import transformers_api
from foreword.compat.error_lines import unused_arguments
from foreword.compat.transformers_api import (
    GENERATE_CACHE,
    CausalLMOutputWithPast,
    DynamicCache,
    EncoderDecoderCache,
    GenerationMixin,
)
from foreword.config.checks import check_known
from foreword.errors import InputError, UnsupportedError
from foreword.generation import padding
from foreword.generation.row_ends import recorded
from foreword.model import checks, contiguous, prefixed_cache, recurrent
from foreword.model.argument_types import ids_of
from foreword.model.capabilities import Capabilities
from foreword.model.changed import check_settings
from foreword.model.encoder_decoder import EncoderDecoder
from foreword.model.forward import model_inputs, run_pass
from foreword.model.media import Reading
from foreword.prompt.prefix import PrefixBatch

log = logging.getLogger("foreword")

# Of these None says nothing, as where they are left out; transformers would go on half by each.
LEFT_OUT = frozenset({"length_penalty", "num_beams", "num_return_sequences", "use_cache"})
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


@dataclass(frozen=True)
class GivenTokens:
    """How the tokens of a call lie behind one another, and behind those that are cached.

    Attributes:
        kept: what of the call's ids is no padding, bool `[B, T]`; None where nothing is known of.
        columns: the caller's column of each slot after the first pass, `[B, cached + new]`; None
            where none has moved.
        num_unseen: cached tokens that are not among the call's ids.
    """

    kept: Tensor | None = None
    columns: Tensor | None = None
    num_unseen: int = 0

    @property
    def is_padded(self) -> bool:
        """Whether any of the call's ids is padding."""
        return self.kept is not None and not bool(self.kept.all())


class DecoderView(GenerationMixin):
    """What a view overrides of a decoder alone; see `decoder_view`."""

    _model: Any
    _capabilities: Capabilities
    _batch: PrefixBatch
    _given: GivenTokens
    _reading: Reading | None

    def forward(self, **inputs: Any) -> Any:
        """Run the model on real tokens, behind each row's prefix."""
        cache = transformers_api.pop_cache(inputs)
        mask = inputs.pop("attention_mask", None)
        keep = inputs.pop("use_cache", None) is not False and cache is not None
        tokens = inputs.get("input_ids")
        if tokens is None:
            tokens = inputs["inputs_embeds"]
        batch = self._batch.expanded(tokens.shape[0])
        num_cached = cache.get_seq_length() if cache is not None else 0
        model_cache = (
            cache.model_cache
            if cache is not None
            else prefixed_cache.uncached(batch, self._capabilities)
        )
        if self._capabilities.counts_slots:
            is_grouped = not contiguous.is_contiguous(batch, model_cache, mask)
        else:
            is_padded = recurrent.has_padding(mask, tokens.shape[1])
            is_grouped = self._capabilities.is_recurrent and is_padded
        if cache is not None:
            cache.is_whole = False
        if is_grouped:
            output = self._read_groups(inputs, mask, batch, model_cache, num_cached)
        else:
            output = self._read(inputs, mask, batch, model_cache, num_cached)
        if cache is not None:
            cache.read(tokens, mask)
        if cache is not None and self._reading is not None:
            cache.memory = self._reading.memory.expanded(tokens.shape[0])
        return transformers_api.set_cache(output, cache if keep else None)

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
        check_settings(self._model, self._capabilities)
        if inputs.get("output_attentions") and self._capabilities.attention != "eager":
            raise UnsupportedError(
                f"output_attentions: {self._capabilities.attention} attention computes no weights; "
                "load the model with attn_implementation='eager'"
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
        with transformers_api.grouped_heads(tokens.device.type == "cpu" and tokens.shape[1] > 1):
            return run_pass(self._model, inputs | placed)

    def _read_groups(
        self,
        inputs: dict[str, Any],
        mask: Tensor | None,
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
        for group, own, seen, num_before in self._groups(
            mask, batch, cache, num_rows, num_cached, num_new
        ):
            part = inputs | {name: inputs[name][group.rows, num_new - group.num_new :]}
            prefixes = recurrent.part_of(batch, group)
            found = self._read(part, seen, prefixes, own, num_before).logits
            pairs.append((group, own))
            if logits is None:
                num_kept = inputs.get("logits_to_keep") or num_new
                logits = found.new_zeros(num_rows, num_kept, found.shape[2])
            logits[group.rows, -found.shape[1] :] = found
        recurrent.lay_back(cache, pairs, num_rows, num_new)
        return CausalLMOutputWithPast(logits=logits)

    def _groups(
        self,
        mask: Tensor | None,
        batch: PrefixBatch,
        cache: Any,
        num_rows: int,
        num_cached: int,
        num_new: int,
    ) -> Iterator[tuple[recurrent.LengthGroup, Any, Tensor | None, int]]:
        """Yield the groups of a pass, each with a cache of its own, its mask, and how many real
        tokens are cached.
        """
        if self._capabilities.counts_slots:
            for group in contiguous.groups(batch, mask, num_rows, num_cached, num_new):
                own = contiguous.cache_of(cache, group, self._capabilities)
                yield group, own, None, group.num_cached
            return
        assert mask is not None
        for length in recurrent.groups(mask, num_new):
            seen = mask[length.rows]
            seen = torch.cat([seen[:, :num_cached], seen[:, mask.shape[1] - length.num_new :]], 1)
            num_empty = batch.num_slots - recurrent.part_of(batch, length).num_slots
            own = recurrent.cache_of(cache, length, self._capabilities, num_empty)
            yield length, own, seen, num_cached

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Make the cache asked for, or take the caller's, and start it with the prefixes."""
        max_cache_length += self._given.num_unseen
        checks.check_length(self._capabilities, max_cache_length + 1, self._batch.num_slots)
        self._refuse_cache(generation_config.cache_implementation)
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        cache = model_kwargs.get(GENERATE_CACHE)
        if cache is None:
            return
        checks.refuse_static(cache, self._capabilities)
        copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        batch = self._batch.expanded(len(self._batch.prefixes) * copies)
        started = prefixed_cache.start(cache, batch, self._capabilities, max_cache_length)
        if self._given.columns is not None:
            started.tokens.columns = self._given.columns.repeat_interleave(copies, 0)
        model_kwargs[GENERATE_CACHE] = started

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
        if kind == "quantized" and any(
            reach.size for reach in self._capabilities.attention_patterns
        ):
            raise UnsupportedError(
                f"transformers' quantized cache takes full attention only, and "
                f"{self._capabilities.model_type} has sliding or chunked layers; use another cache"
            )

    def _get_logits_processor(
        self, generation_config: Any, *args: Any, **kwargs: Any
    ) -> LogitsProcessorList:
        """Return transformers' processors; those that read or count history read each row without
        its padding.
        """
        processors = super()._get_logits_processor(generation_config, *args, **kwargs)
        given, kept = kwargs.get("encoder_input_ids"), self._given.kept
        if given is None or kept is None or not self._given.is_padded:
            return processors
        is_forced = generation_config.forced_bos_token_id is not None
        return LogitsProcessorList(
            # The padded length is part of a least number of new tokens.
            one
            if isinstance(one, MinLengthLogitsProcessor) and generation_config.min_new_tokens
            else padding.on_own_tokens(one, given, kept, is_start_forced=is_forced)
            for one in processors
        )

    def _get_stopping_criteria(self, *args: Any, **kwargs: Any) -> StoppingCriteriaList:
        """Return transformers' criteria; stop strings read each row without its padding."""
        criteria = super()._get_stopping_criteria(*args, **kwargs)
        kept = self._given.kept
        if kept is None or not self._given.is_padded:
            return recorded(criteria)
        own = (padding.criterion_on_own_tokens(one, kept) for one in criteria)
        return recorded(StoppingCriteriaList(own))


_told: weakref.WeakSet[Any] = weakref.WeakSet()


def _say_slower(model: Any, capabilities: Capabilities) -> None:
    """Say once for each model that its padded rows take several passes."""
    if model in _told:
        return
    _told.add(model)
    log.warning(
        "%s %s: rows of several lengths run one length at a time%s",
        capabilities.model_type,
        *(
            ("places tokens by their slots, which padding would move", "")
            if capabilities.counts_slots
            else ("keeps recurrent states, which padding would change", ", then decode together")
        ),
    )


class DecoderCache(EncoderDecoderCache):
    """A cache of real tokens, as `generate` sees it, over `model_cache`, as the model sees it."""

    def __init__(self, model_cache: EncoderDecoderCache, batch: PrefixBatch) -> None:
        super().__init__(model_cache.self_attention_cache, model_cache.cross_attention_cache)
        self.model_cache, self.batch = model_cache, batch

    @property
    def is_compileable(self) -> bool:
        """False: `generate` hands the two-dimensional mask on."""
        return False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of real tokens."""
        return max(int(super().get_seq_length(layer_idx)) - self.batch.num_slots, 0)


class EncoderDecoderView(GenerationMixin):
    """What a view overrides of a model with an encoder; see `encoder_decoder_view`."""

    _model: Any
    _passes: EncoderDecoder
    _batch: PrefixBatch

    def forward(self, **inputs: Any) -> Any:
        """Run the model on real tokens, behind what stands before each row's."""
        cache = transformers_api.pop_cache(inputs)
        mask = inputs.pop("decoder_attention_mask", None)
        inputs.pop("decoder_position_ids", None)  # recomputed from the mask
        keep = inputs.pop("use_cache", None) is not False and cache is not None
        tokens, passes = inputs["decoder_input_ids"], self._passes
        if inputs.get("encoder_outputs") is None:  # as where whisper detects a language
            inputs["encoder_outputs"] = (passes.perceive(inputs),)
        if mask is not None:
            passes.check_padding(mask)
        if cache is not None:
            batch, model_cache = cache.batch, cache.model_cache
        else:
            batch = self._started(inputs["encoder_outputs"][0])
            model_cache = passes.one_pass_cache(batch)
        num_cached = cache.get_seq_length() if cache is not None else 0
        placed = passes.placed(batch, model_cache, tokens, mask, num_cached)
        for name in ("attention_mask", "position_ids"):
            if name in placed:
                placed[f"decoder_{name}"] = placed.pop(name)
        output = self._model(**inputs, **placed)
        return transformers_api.set_cache(output, cache if keep else None)

    def _get_stopping_criteria(self, *args: Any, **kwargs: Any) -> StoppingCriteriaList:
        """Return transformers' criteria, which tell of the ends of rows where that is asked for."""
        return recorded(super()._get_stopping_criteria(*args, **kwargs))

    def _started(self, hidden: Tensor, copies: int = 1) -> PrefixBatch:
        """Return the states before each row of an encoder output `[rows * copies, S, H]`."""
        hidden, batch = hidden[::copies], self._batch
        if is_single(batch):  # whisper leaves out rows that are finished
            batch = PrefixBatch(batch.prefixes[:1] * len(hidden))
        read = self._passes.started(batch.expanded(len(hidden)), hidden)
        return read.expanded(len(hidden) * copies)

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Make the cache asked for and start it with what stands before each row's tokens."""
        capabilities, kind = self._passes.capabilities, generation_config.cache_implementation
        if kind not in (None, "dynamic", "static"):
            raise UnsupportedError(
                f"generate(cache_implementation={kind!r}): it holds no prefix beside an encoder; "
                "use the dynamic or static cache"
            )
        checks.check_length(capabilities, max_cache_length + 1, self._batch.num_slots)
        super()._prepare_cache_for_generation(
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        cache = model_kwargs.get(GENERATE_CACHE)
        if cache is None:
            return
        checks.refuse_static(cache, capabilities)
        # transformers makes some with as many layers as the encoder has.
        own = cache.self_attention_cache
        own.layers = (own.layers * capabilities.num_layers)[: capabilities.num_layers]
        cache = EncoderDecoderCache(own, DynamicCache())
        copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        batch = self._started(model_kwargs["encoder_outputs"][0], copies)
        prefixed_cache.fill(own, batch, capabilities, max_cache_length)
        model_kwargs[GENERATE_CACHE] = DecoderCache(cache, batch)


def run_generate(view: Any, **kwargs: Any) -> Any:
    """Call `generate` of a view.

    Raises:
        InputError: what transformers says of the arguments, in one line.
    """
    given = {name: one for name, one in kwargs.items() if one is not None or name not in LEFT_OUT}
    if "eos_token_id" in given and not ids_of(given["eos_token_id"]):
        given["eos_token_id"] = None  # a search takes no empty list
    try:
        return view.generate(**given)
    except ValueError as error:
        check_known("generate", unused_arguments(error), _arguments(view))
        raise InputError(" ".join(str(error).split())) from error


def _arguments(view: Any) -> set[str]:
    """Return what `generate` of a view takes by name."""
    names = {*vars(GenerationConfig()), *inspect.signature(view.generate).parameters}
    return {name for name in names - {"kwargs"} if not name.startswith("_")}


def is_single(batch: PrefixBatch) -> bool:
    """Whether all rows stand behind one prompt, or behind none."""
    return all(prefix is batch.prefixes[0] for prefix in batch.prefixes)


@functools.cache
def _view_class(model_class: Any, base: Any) -> Any:
    """Return the subclass of a model's class that views are of."""
    forward: Any = functools.wraps(model_class.forward)(
        lambda self, **inputs: base.forward(self, **inputs)
    )
    forward.__signature__ = transformers_api.view_signature(model_class.forward)
    # By their names, transformers would call the cache of some classes otherwise.
    name = model_class.__name__.replace("Mamba", "Recurrent")
    return type(name, (base, model_class), {"forward": forward})


def decoder_view(
    model: Any,
    capabilities: Capabilities,
    batch: PrefixBatch,
    given: GivenTokens = GivenTokens(),
    reading: Reading | None = None,
) -> Any:
    """Return an object that generates like a decoder alone, each row behind its prefix; it shares
    the weights.
    """
    return _view(
        model,
        DecoderView,
        _model=model,
        _capabilities=capabilities,
        _batch=batch,
        _given=given,
        _reading=reading,
    )


def encoder_decoder_view(passes: EncoderDecoder, batch: PrefixBatch) -> Any:
    """Return an object that generates like a model with an encoder, behind what stands before each
    row's decoded tokens; it shares the weights.
    """
    return _view(
        passes.model, EncoderDecoderView, _model=passes.model, _passes=passes, _batch=batch
    )


def _view(model: Any, base: Any, **own: Any) -> Any:
    """Return an object of a subclass of a model's class, with its state and none of its hooks."""
    result: Any = object.__new__(_view_class(model.__class__, base))
    # Through the dictionary: a module set as an attribute would be registered as a submodule.
    result.__dict__.update(model.__dict__)
    # What would run the model's own forward pass in place of the view's.
    for name in ("forward", "_compiled_call_impl"):
        result.__dict__.pop(name, None)
    result.__dict__.update({name: OrderedDict() for name in HOOKS if name in model.__dict__})
    result.__dict__.update(own)
    return result
