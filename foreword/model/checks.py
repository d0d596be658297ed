"""Argument checks: ids, mask, cache, length and options, before anything runs.

In: the arguments of `generate` and `logits`. Out: nothing, or an error whose one line says what is
wrong and what to use instead. Knows no prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from foreword.compat.transformers_api import Cache, EncoderDecoderCache, StaticLayer
from foreword.errors import DataError, InputError, UnsupportedError
from foreword.model.argument_types import KINDS, check_kind, ids_of
from foreword.model.capabilities import Capabilities

GUIDANCE = "the second pass of classifier-free guidance would run without the prompt; leave it out"
RESIZE = (
    "take the tokenizer that the model came with, or give the model embeddings for added tokens "
    "(resize_token_embeddings)"
)
OUTSIDE = "this strategy lives outside transformers and is not tested; use a built-in one"

ID_DTYPES = (torch.int64, torch.int32)  # those that an embedding table takes
DEFAULT_NEW_TOKENS = 20  # of transformers, where a call names no limit

# Arguments of `generate` that cannot be translated, each with what to use instead.
REFUSED = {
    "position_ids": "positions follow from attention_mask; leave position_ids out",
    "mm_encoder_outputs": "give what the processor returns instead of what a tower made of it",
    "custom_generate": "custom decoding loops are not tested; use the built-in strategies",
    "negative_prompt_ids": GUIDANCE,
    "negative_prompt_attention_mask": GUIDANCE,
}
# The same as settings, which a generation configuration may carry too: name, neutral values.
REFUSED_SETTINGS: dict[str, tuple[tuple[Any, ...], str]] = {
    "guidance_scale": ((None, 1), GUIDANCE),
    "num_beam_groups": ((None, 1), OUTSIDE),
    "penalty_alpha": ((None, 0), OUTSIDE),
    "dola_layers": ((None,), OUTSIDE),
    "force_words_ids": ((None,), OUTSIDE),
    "constraints": ((None,), OUTSIDE),
    "token_healing": ((None, False), "it writes the given ids anew; give healed ids"),
    "assistant_early_exit": ((None,), "it changes the model while it drafts; use assistant_model"),
    "speculation_type": ((None,), "this kind of draft is not tested; use assistant_model"),
    "assistant_ensemble_weight": (
        (None,),
        "answers would depend on a draft that does not see the prompt; leave it out",
    ),
    "is_assistant": ((None, False), "the model answers here, and drafts nothing; leave it out"),
    "use_mtp": (
        (None, False),
        "drafts of multi-token prediction modules do not see the prompt; use assistant_model or "
        "prompt_lookup_num_tokens",
    ),
}
# Settings that read or count the tokens before, the cached ones included: neutral values.
HISTORY_SETTINGS: dict[str, tuple[Any, ...]] = {
    "repetition_penalty": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1),
    "encoder_no_repeat_ngram_size": (None, 0),
    "bad_words_ids": (None,),
    "sequence_bias": (None,),
    "forced_bos_token_id": (None,),
    "watermarking_config": (None,),
    "stop_strings": (None,),
}


def check_inputs(input_ids: Any, vocab_size: int, name: str = "input_ids") -> None:
    """Refuse ids that are not `[B, T]` or not in the vocabulary, or embeddings not `[B, T, H]`."""
    shape, ndim = ("[B, T]", 2) if name == "input_ids" else ("[B, T, H]", 3)
    if not isinstance(input_ids, Tensor) or input_ids.ndim != ndim or not input_ids.numel():
        found = list(input_ids.shape) if isinstance(input_ids, Tensor) else type(input_ids).__name__
        raise InputError(f"expected {name} {shape} with at least one token, got {found}")
    if name == "input_ids":
        check_ids(input_ids, vocab_size)


def check_ids(input_ids: Tensor, vocab_size: int) -> None:
    """Refuse ids `[..., T]` for which the model has no embedding; name the first of them.

    Raises:
        InputError: there are some; where ids lie on an accelerator, it would fail as a whole. Or
            they are no whole numbers.
    """
    if input_ids.dtype not in ID_DTYPES:
        raise InputError(f"expected input_ids of torch.int64, got {input_ids.dtype}")
    if not input_ids.numel():
        return
    lowest, highest = int(input_ids.min()), int(input_ids.max())
    if 0 <= lowest <= highest < vocab_size:
        return
    is_unknown = (input_ids < 0) | (input_ids >= vocab_size)
    *row, token = is_unknown.nonzero()[0].tolist()
    place = "".join(f"row {number}, " for number in row) + f"token {token}"
    raise InputError(
        f"input_ids range from {lowest} to {highest}, expected 0 to {vocab_size - 1}; they are of "
        f"another tokenizer: {place} is {int(input_ids[is_unknown][0])}; {RESIZE}"
    )


def check_forced_ids(kwargs: Mapping[str, Any], config: Any, vocab_size: int) -> None:
    """Refuse to force an id that the model does not have.

    Raises:
        InputError: names the setting.
    """
    for name in ("forced_bos_token_id", "forced_eos_token_id"):
        for one in ids_of(setting(name, kwargs, config)):
            if not 0 <= one < vocab_size:
                raise InputError(f"generate({name}={one}): expected 0 to {vocab_size - 1}")


def check_row(row_ids: Sequence[int], source: str, vocab_size: int, tokenizer: Any = None) -> None:
    """Refuse a row of ids for which the model has no embedding.

    Args:
        row_ids: of one row.
        source: where it comes from, in words.
        vocab_size: V.
        tokenizer: that names the token, where there is one.

    Raises:
        DataError: names the row, and its first such token.
    """
    if not row_ids or 0 <= min(row_ids) <= max(row_ids) < vocab_size:
        return
    place, found = next((n, i) for n, i in enumerate(row_ids) if not 0 <= i < vocab_size)
    name = tokenizer.convert_ids_to_tokens(found) if tokenizer is not None and found >= 0 else None
    shown = f"{found} ({name!r})" if name else str(found)
    raise DataError(
        f"{source}: token {place} is {shown}, expected an id from 0 to {vocab_size - 1}; it is of "
        f"another tokenizer: {RESIZE}"
    )


def check_mask(attention_mask: Any, num_rows: int, num_tokens: int, num_cached: int = 0) -> None:
    """Refuse a mask without one column for each token: those of the call, or all so far."""
    fitting = {num_tokens, num_tokens + num_cached}
    is_mask = isinstance(attention_mask, Tensor) and attention_mask.ndim == 2
    if not is_mask or attention_mask.shape[0] != num_rows or attention_mask.shape[1] not in fitting:
        found = "no two dimensions"
        if is_mask:
            found = f"{attention_mask.shape[1]} columns in {attention_mask.shape[0]} rows"
        raise InputError(
            f"attention_mask has {found}, for {num_rows} rows of {num_tokens} tokens and "
            f"{num_cached} cached ones; expected one column for each token, cached ones included"
        )
    if not bool(((attention_mask == 0) | (attention_mask == 1)).all()):
        raise InputError("attention_mask holds other values than 0 and 1; give 1 for each token")
    if not bool(attention_mask.any(1).all()):
        row = int(attention_mask.any(1).int().argmin())
        raise InputError(f"row {row} of attention_mask has no token; leave the row out")


def check_cache(cache: Any) -> None:
    """Refuse a cache that is not a decoder's."""
    if cache is not None and (
        not isinstance(cache, Cache) or isinstance(cache, EncoderDecoderCache)
    ):
        raise UnsupportedError(
            f"past_key_values is of type {type(cache).__name__}; give a DynamicCache, a "
            "StaticCache or the cache that generate returned"
        )


def refuse_static(cache: Cache, capabilities: Capabilities) -> None:
    """Refuse a static cache where the model's code would read its empty slots."""
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    is_static = any(isinstance(layer, StaticLayer) for layer in cache.layers)
    if is_static and not capabilities.takes_static_cache:
        raise UnsupportedError(
            f"{capabilities.model_type} reads the empty slots of a static cache; use the dynamic "
            "cache"
        )


def check_length(
    capabilities: Capabilities, num_real: int, num_virtual: int, *, is_cached: bool = True
) -> None:
    """Refuse more tokens than the model can place; `is_cached` where some outlive one pass.

    Raises:
        InputError: past the last position that the model has.
        UnsupportedError: past the length where old positions would be rotated anew.
    """
    total = num_real + num_virtual
    if (
        capabilities.is_context_hard
        and capabilities.context_length
        and total > capabilities.context_length
    ):
        raise InputError(
            f"{num_real} real and {num_virtual} virtual tokens make {total}, but "
            f"{capabilities.model_type} has {capabilities.context_length} positions; shorten "
            "the input or lower max_new_tokens"
        )
    if is_cached and capabilities.rope_switch is not None and total > capabilities.rope_switch:
        raise UnsupportedError(
            f"{total} tokens pass {capabilities.rope_switch}, where the rotary embedding of "
            f"{capabilities.model_type} changes for tokens that are cached already; stay below it"
        )


def setting(name: str, kwargs: Mapping[str, Any], default_config: Any) -> Any:
    """Return what `generate` takes a setting for: as the call names it, else of the configuration
    that it brings, else of the model's own.
    """
    if name in kwargs:
        return kwargs[name]
    own = getattr(kwargs.get("generation_config"), name, None)
    return own if own is not None else getattr(default_config, name, None)


CANDIDATES = ("assistant_model", "prompt_lookup_num_tokens")
"""Settings of strategies that propose candidates."""


def refuse_candidates(kwargs: dict[str, Any], default_config: Any, model_type: str) -> None:
    """Refuse strategies that propose candidates, where a layer cannot forget the rejected ones."""
    for name in CANDIDATES:
        if setting(name, kwargs, default_config) is not None:
            raise UnsupportedError(
                f"generate({name}=...): the recurrent layers of {model_type} cannot forget "
                "rejected candidates; leave it out"
            )


def refuse_options(kwargs: dict[str, Any], default_config: Any) -> None:
    """Refuse options of `generate`, given by name or in a configuration, that cannot be exact, or
    that are no options.

    Raises:
        InputError: an argument of another type.
        UnsupportedError: an option that cannot be exact.
    """
    own = kwargs.get("generation_config")
    for name in KINDS:
        check_kind(name, setting(name, kwargs, default_config))
        check_kind(name, getattr(own, name, None))
    for name, reason in REFUSED.items():
        if kwargs.get(name) is not None:
            raise UnsupportedError(f"generate({name}=...): {reason}")
    for name, (neutral, reason) in REFUSED_SETTINGS.items():
        if setting(name, kwargs, default_config) not in neutral:
            raise UnsupportedError(f"generate({name}=...): {reason}")
    if setting("cache_implementation", kwargs, default_config) == "paged":
        raise UnsupportedError(
            "generate(cache_implementation='paged'): the continuous batching of transformers knows "
            "no prompt; use another cache, or foreword's own engine"
        )
    if setting("use_cache", kwargs, default_config) is False:
        for name in CANDIDATES:
            if setting(name, kwargs, default_config) is not None:
                raise InputError(
                    f"generate({name}=...): candidates are verified with the cache, and use_cache "
                    "is False, by the call or the model's own configuration; give use_cache=True"
                )
    ends = ids_of(setting("eos_token_id", kwargs, default_config))
    if setting("exponential_decay_length_penalty", kwargs, default_config) and not ends:
        raise InputError(
            "generate(exponential_decay_length_penalty=...): expected an end id that becomes "
            "likelier, got none; give eos_token_id"
        )


def refuse_padded_length(
    kwargs: dict[str, Any], config: Any, num_given: int, context: int | None, *, has_ids: bool
) -> None:
    """Refuse a limit that counts the padding of rows of `num_given` columns, for a shorter row.

    Args:
        context: `max_position_embeddings` of the model, to which transformers cuts its default.
        has_ids: False where embeddings alone are given, whose padding is counted for `min_length`.
    """
    wrong = []
    if setting("max_new_tokens", kwargs, config) is None:
        if setting("max_length", kwargs, config) is not None:
            wrong.append("max_length")
        elif context is not None and num_given + DEFAULT_NEW_TOKENS > context:
            wrong.append(f"max_new_tokens=None, of which {context} positions leave fewer than 20")
    is_least = setting("min_new_tokens", kwargs, config) is None
    if not has_ids and is_least and setting("min_length", kwargs, config) not in (None, 0):
        wrong.append("min_length")
    if wrong:
        raise UnsupportedError(
            f"generate({', '.join(wrong)}): it would count the padding of shorter rows; give "
            "max_new_tokens and min_new_tokens"
        )


def refuse_unseen_history(kwargs: dict[str, Any], config: Any, num_unseen: int) -> None:
    """Refuse what would count or read cached tokens that are not among the ids of the call."""
    names = [name for name in HISTORY_SETTINGS if _reads_history(name, kwargs, config)]
    for total, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        is_used = setting(new, kwargs, config) is None
        if is_used and setting(total, kwargs, config) not in (None, 0):
            names.append(total)
    if names:
        raise UnsupportedError(
            f"generate({', '.join(names)}): it reads all tokens so far, and {num_unseen} of them "
            "are cached and not given; give the conversation so far and the next turn"
        )


def _reads_history(name: str, kwargs: dict[str, Any], config: Any) -> bool:
    value = setting(name, kwargs, config)
    if name in ("bad_words_ids", "sequence_bias") and value is not None:
        # Pairs are another form of the same; words of one id need no history.
        is_paired = name == "sequence_bias" and isinstance(value, list)
        words = [one[0] for one in value] if is_paired else value
        return any(len(word) > 1 for word in words)
    return value not in HISTORY_SETTINGS[name]


def num_rows(given: Mapping[str, Any]) -> int:
    """Return the number of rows that an encoder-decoder model is given, by the first that has any.

    Raises:
        InputError: nothing has rows.
    """
    for value in given.values():
        first = value[0] if isinstance(value, tuple | Mapping) and len(value) else value
        if isinstance(first, Tensor) and first.ndim > 1:
            return first.shape[0]
    raise InputError(f"no rows are given; got {sorted(given) or 'nothing'}")
