"""Generation behind prompts on models with an encoder, through transformers' own `generate`.

In: the passes of a model, a batch of prefixes, what `generate` takes. Out: what `generate` returns.
As for decoders alone, a call works on a view that shares the weights; here it starts the decoder's
self-attention with what stands before each row's tokens. It knows ids and features, no text.
"""

import functools
from typing import Any

from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, GenerationMixin

from foreword.errors import InputError, UnsupportedError
from foreword.generation.model_view import twin
from foreword.model import checks, prefixed_cache
from foreword.model.encoder_decoder import EncoderDecoder
from foreword.prompt.prefix import PrefixBatch

CACHE = "a decoder's cache belongs to one encoder output; leave past_key_values out"
PLACED = "a prompt before the decoder's tokens moves them; leave it out"
TIMES = "times of tokens are read off attention, which the prompt takes part in; leave it out"
# Arguments that cannot be translated, each with what to use instead.
REFUSED = {
    "past_key_values": CACHE,
    "decoder_position_ids": PLACED,
    "decoder_inputs_embeds": "give decoder_input_ids",
    "inputs_embeds": "the prompt is read before ids; give input_ids",
    "return_token_timestamps": TIMES,
}
# Processors that read the encoder's ids, padding included: names and neutral values.
ENCODER_PROCESSORS = {
    "encoder_repetition_penalty": (None, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
}
# What makes whisper decode its rows in other batches than it was given: names and neutral values.
LOOPS: dict[str, tuple[Any, ...]] = {
    "return_timestamps": (None, False),
    "compression_ratio_threshold": (None,),
    "logprob_threshold": (None,),
    "no_speech_threshold": (None,),
    "condition_on_prev_tokens": (None, False),
}


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


class _View(GenerationMixin):
    """What a view overrides of its model; see `generation.view`."""

    _model: Any
    _passes: EncoderDecoder
    _batch: PrefixBatch

    def forward(self, **inputs: Any) -> Any:
        """Run the model on real tokens, behind what stands before each row's."""
        cache = inputs.pop("past_key_values", None)
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
        output.past_key_values = cache if keep else None
        return output

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
        cache = model_kwargs.get("past_key_values")
        if cache is None:
            return
        # transformers makes some with as many layers as the encoder has.
        own = cache.self_attention_cache
        own.layers = (own.layers * capabilities.num_layers)[: capabilities.num_layers]
        cache = EncoderDecoderCache(own, DynamicCache())
        copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        batch = self._started(model_kwargs["encoder_outputs"][0], copies)
        prefixed_cache.fill(own, batch, capabilities, max_cache_length)
        model_kwargs["past_key_values"] = DecoderCache(cache, batch)

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """Name arguments that the model does not take, as transformers does, in one line."""
        try:
            super()._validate_model_kwargs(model_kwargs)
        except ValueError as error:
            raise InputError(" ".join(str(error).split())) from None


def is_single(batch: PrefixBatch) -> bool:
    """Whether all rows stand behind one prompt, or behind none."""
    return all(prefix is batch.prefixes[0] for prefix in batch.prefixes)


@functools.cache
def _view_class(model_class: Any) -> Any:
    """Return the subclass of a model's class that views are of; its signature stays the model's."""
    forward = functools.wraps(model_class.forward)(
        lambda self, **inputs: _View.forward(self, **inputs)
    )
    return type(model_class.__name__, (_View, model_class), {"forward": forward})


def view(passes: EncoderDecoder, batch: PrefixBatch) -> Any:
    """Return an object that generates like the model, behind what stands before each row's decoded
    tokens; it shares the weights.
    """
    result = twin(passes.model, _view_class(passes.model.__class__))
    result.__dict__.update(_model=passes.model, _passes=passes, _batch=batch)
    return result


def num_rows(passes: EncoderDecoder, input_ids: Tensor | None, kwargs: dict[str, Any]) -> int:
    """Return the rows of the encoder's input, or of the decoder's.

    Raises:
        InputError: ids that are none of the model.
    """
    if input_ids is not None and passes.encoder.reads_text:
        checks.check_inputs(input_ids, passes.capabilities.vocab_size)
    return checks.num_rows({"input_ids": input_ids} | kwargs)


def generate(
    passes: EncoderDecoder,
    batch: PrefixBatch,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    kwargs: dict[str, Any],
) -> Any:
    """Generate; sequences begin as transformers' own do, and hold no cache to go on with."""
    if input_ids is not None and not passes.encoder.reads_text:
        is_ids = not input_ids.is_floating_point()
        kwargs["decoder_input_ids" if is_ids else passes.encoder.input_name] = input_ids
    checks.refuse_options(kwargs, passes.model.generation_config)
    for name, reason in REFUSED.items():
        if kwargs.get(name) is not None:
            raise UnsupportedError(f"generate({name}=...): {reason}")
    if (mask := kwargs.get("decoder_attention_mask")) is not None and not bool(mask.all()):
        raise UnsupportedError(
            "generate(decoder_attention_mask=...): padding among the decoder's tokens; give rows "
            "whose decoder_input_ids are of one length"
        )
    if passes.encoder.reads_text:
        if input_ids is None:
            raise InputError("generate needs the encoder's input_ids; got none")
        _refuse_padding(passes, input_ids, attention_mask, kwargs)
        options = {name: kwargs.get(name) for name in ("output_attentions", "output_hidden_states")}
        options = {name: value for name, value in options.items() if value is not None}
        if kwargs.get("encoder_outputs") is not None:
            raise UnsupportedError("generate(encoder_outputs=...): give input_ids alone")
        encoded, attention_mask = passes.encode(batch, input_ids, attention_mask, **options)
        kwargs |= {"encoder_outputs": encoded, "input_ids": input_ids.to(passes.model.device)}
    elif kwargs.get(passes.encoder.input_name) is None and kwargs.get("encoder_outputs") is None:
        raise InputError(f"generate needs {passes.encoder.input_name}; got none")
    else:
        _refuse_loops(passes, batch, kwargs)
    if attention_mask is not None:
        kwargs["attention_mask"] = attention_mask
    output = view(passes, passes.before_decoder(batch)).generate(**kwargs)
    if not isinstance(output, Tensor) and "past_key_values" in output:
        output["past_key_values"] = None  # it could not be given back
    return output


def _refuse_padding(
    passes: EncoderDecoder, input_ids: Tensor, attention_mask: Tensor | None, kwargs: dict[str, Any]
) -> None:
    """Refuse padding that is not named, and what would read it."""
    if attention_mask is not None:
        checks.check_mask(attention_mask, *input_ids.shape)
    config = kwargs.get("generation_config") or passes.model.generation_config
    pad = kwargs.get("pad_token_id", config.pad_token_id)
    if attention_mask is None and pad is not None and bool((input_ids == pad).any()):
        raise InputError(
            f"input_ids hold the padding id {pad} and there is no attention_mask; give it"
        )
    for name, neutral in ENCODER_PROCESSORS.items():
        is_padded = attention_mask is not None and not bool(attention_mask.all())
        if is_padded and kwargs.get(name, getattr(config, name, None)) not in neutral:
            raise UnsupportedError(
                f"generate({name}=...): it would read the padding of the encoder's rows; give rows "
                "of one length"
            )


def _refuse_loops(passes: EncoderDecoder, batch: PrefixBatch, kwargs: dict[str, Any]) -> None:
    """Refuse what decodes rows in other batches than the one given, where their prompts differ."""
    if is_single(batch):
        return
    config = kwargs.get("generation_config") or passes.model.generation_config
    found = [
        name
        for name, neutral in LOOPS.items()
        if kwargs.get(name, getattr(config, name, None)) not in neutral
    ]
    if isinstance(kwargs.get("temperature"), list | tuple):
        found.append("temperature")
    features = kwargs.get(passes.encoder.input_name)
    limit = getattr(passes.model.config, "max_source_positions", None)
    if features is not None and limit is not None and features.shape[-1] > 2 * limit:
        found.append(f"{passes.encoder.input_name} of {features.shape[-1]} frames")
    if found:
        raise UnsupportedError(
            f"generate({', '.join(found)}): rows are decoded in changing batches, and their "
            "prompts differ; give rows behind one prompt together"
        )
