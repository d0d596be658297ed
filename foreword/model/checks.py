"""Argument checks: ids, mask, cache, length and options, before anything runs.

In: the arguments of `generate` and `logits`. Out: nothing, or an error whose one line says what is
wrong and what to use instead. Knows no prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from foreword.compat.transformers_api import Cache, EncoderDecoderCache, StaticLayer
from foreword.errors import DataError, InputError, UnsupportedError
from foreword.model.capabilities import Capabilities

GUIDANCE = "the second pass of classifier-free guidance would run without the prompt; leave it out"
RESIZE = (
    "take the tokenizer that the model came with, or give the model embeddings for added tokens "
    "(resize_token_embeddings)"
)
OUTSIDE = "this strategy lives outside transformers and is not tested; use a built-in one"

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
        InputError: there are some; where ids lie on an accelerator, it would fail as a whole.
    """
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


def refuse_candidates(kwargs: dict[str, Any], default_config: Any, model_type: str) -> None:
    """Refuse strategies that propose candidates, where a layer cannot forget the rejected ones."""
    config = kwargs.get("generation_config") or default_config
    for name in ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit"):
        if kwargs.get(name, getattr(config, name, None)) is not None:
            raise UnsupportedError(
                f"generate({name}=...): the recurrent layers of {model_type} cannot forget "
                "rejected candidates; leave it out"
            )


def refuse_options(kwargs: dict[str, Any], default_config: Any) -> None:
    """Refuse options of `generate`, given by name or in a configuration, that cannot be exact."""
    for name, reason in REFUSED.items():
        if kwargs.get(name) is not None:
            raise UnsupportedError(f"generate({name}=...): {reason}")
    config = kwargs.get("generation_config") or default_config
    for name, (neutral, reason) in REFUSED_SETTINGS.items():
        if kwargs.get(name, getattr(config, name, None)) not in neutral:
            raise UnsupportedError(f"generate({name}=...): {reason}")


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
