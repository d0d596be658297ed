"""Generation behind prompts on models with an encoder, through transformers' own `generate`.

In: the passes of a model, a batch of prefixes, what `generate` takes. Out: what `generate` returns.
What cannot be exact beside an encoder is refused here. Knows ids and features, no text.
"""

from typing import Any

from torch import Tensor

from foreword.compat import transformers_api
from foreword.compat.transformers_api import GENERATE_CACHE
from foreword.errors import InputError, UnsupportedError
from foreword.generation.model_view import encoder_decoder_view, is_single, run_generate
from foreword.model import checks
from foreword.model.encoder_decoder import EncoderDecoder
from foreword.prompt.prefix import PrefixBatch

CACHE = "a decoder's cache belongs to one encoder output; leave past_key_values out"
PLACED = "a prompt before the decoder's tokens moves them; leave it out"
TIMES = "times of tokens are read off attention, which the prompt takes part in; leave it out"
# Arguments that cannot be translated, each with what to use instead.
REFUSED = {
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
    if (decoded := kwargs.get("decoder_input_ids")) is not None:
        checks.check_inputs(decoded, passes.capabilities.vocab_size)
    checks.refuse_options(kwargs, passes.model.generation_config)
    checks.check_forced_ids(kwargs, passes.model.generation_config, passes.capabilities.vocab_size)
    if transformers_api.pop_cache(kwargs) is not None:
        raise UnsupportedError(f"generate(past_key_values=...): {CACHE}")
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
        if attention_mask is not None:
            attention_mask = attention_mask.long()  # tokens are counted by it
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
    view = encoder_decoder_view(passes, passes.before_decoder(batch))
    output = run_generate(view, **kwargs)
    if not isinstance(output, Tensor) and GENERATE_CACHE in output:
        output[GENERATE_CACHE] = None  # it could not be given back
    return output


def _refuse_padding(
    passes: EncoderDecoder, input_ids: Tensor, attention_mask: Tensor | None, kwargs: dict[str, Any]
) -> None:
    """Refuse padding that is not named, and what would read it."""
    if attention_mask is not None:
        checks.check_mask(attention_mask, *input_ids.shape)
    config = passes.model.generation_config
    pad = checks.setting("pad_token_id", kwargs, config)
    if attention_mask is None and pad is not None and bool((input_ids == pad).any()):
        raise InputError(
            f"input_ids hold the padding id {pad} and there is no attention_mask; give it"
        )
    for name, neutral in ENCODER_PROCESSORS.items():
        is_padded = attention_mask is not None and not bool(attention_mask.all())
        if is_padded and checks.setting(name, kwargs, config) not in neutral:
            raise UnsupportedError(
                f"generate({name}=...): it would read the padding of the encoder's rows; give rows "
                "of one length"
            )


def _refuse_loops(passes: EncoderDecoder, batch: PrefixBatch, kwargs: dict[str, Any]) -> None:
    """Refuse what decodes rows in other batches than the one given, where their prompts differ."""
    if is_single(batch):
        return
    config = passes.model.generation_config
    found = [
        name
        for name, neutral in LOOPS.items()
        if checks.setting(name, kwargs, config) not in neutral
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
