"""Generation with prefixes through transformers' own `generate`, every strategy of it.

In: a model, a batch of prefixes, what `generate` takes. Out: what `generate` returns, as if the
virtual tokens did not exist. Padding is moved to the left and back, media is found, and a view of
the model generates. It knows ids only, no text.
"""

from typing import Any

import torch
from torch import Tensor

from foreword.compat import transformers_api
from foreword.compat.transformers_api import GENERATE_CACHE
from foreword.errors import InputError, UnsupportedError
from foreword.generation.model_view import decoder_view, run_generate
from foreword.generation.padding import align_right, infer_mask, reorder, restore
from foreword.model import checks, media, prefixed_cache
from foreword.model.capabilities import Capabilities
from foreword.model.decoder import Decoder
from foreword.model.forward import read_media
from foreword.model.media import Reading
from foreword.model.placeholders import Turn
from foreword.prompt.prefix import PrefixBatch


def generate(
    passes: Decoder,
    batch: PrefixBatch,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    kwargs: dict[str, Any],
) -> Any:
    """Generate; sequences begin with the ids as they were given, whichever side their padding is
    on.
    """
    model, capabilities = passes.model, passes.capabilities
    checks.refuse_options(kwargs, model.generation_config)
    if capabilities.is_recurrent:
        checks.refuse_candidates(kwargs, model.generation_config, capabilities.model_type)
    cache = transformers_api.pop_cache(kwargs)
    checks.check_cache(cache)
    if cache is not None:
        kwargs[GENERATE_CACHE] = cache
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
        alone = decoder_view(model, capabilities, batch, reading=reading)
        return run_generate(alone, input_ids=input_ids, **kwargs)
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
        kwargs["inputs_embeds"] = reorder(kwargs["inputs_embeds"], order, seen)
    given = input_ids
    if input_ids is not None:
        input_ids = reorder(input_ids, order, seen)
    # The given tokens end where the mask ends; embeddings are no history.
    num_given = input_ids.shape[1] if input_ids is not None else 0
    kept = aligned[:, aligned.shape[1] - num_given :].bool()
    padded = decoder_view(model, capabilities, batch, kept, reading)
    output = run_generate(padded, input_ids=input_ids, attention_mask=aligned, **kwargs)
    return output if given is None else restore(output, given)


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


def _known(cache: Any) -> Any:
    """Return the prefixed cache behind a cache that the caller holds, or the cache itself."""
    return getattr(cache, prefixed_cache.MARK, cache)


def _num_cached(cache: Any) -> int:
    known = _known(cache)
    if isinstance(known, prefixed_cache.PrefixedCache):
        return known.get_seq_length()
    return prefixed_cache.num_held(known) if known is not None else 0
