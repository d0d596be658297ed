"""Generation with prefixes through transformers' own `generate`, every strategy of it.

In: a model, a batch of prefixes, what `generate` takes. Out: what `generate` returns, as if the
virtual tokens did not exist. Padding is moved to the left and back, media is found, and a view of
the model generates. It knows ids only, no text.
"""

from typing import Any

from torch import Tensor

from foreword.compat import transformers_api
from foreword.compat.transformers_api import GENERATE_CACHE
from foreword.errors import UnsupportedError
from foreword.generation.call import Call
from foreword.generation.model_view import decoder_view, run_generate
from foreword.generation.padding import infer_mask
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
    model, capabilities, config = passes.model, passes.capabilities, passes.model.generation_config
    checks.refuse_options(kwargs, config)
    checks.check_forced_ids(kwargs, config, capabilities.vocab_size)
    if capabilities.is_recurrent:
        checks.refuse_candidates(kwargs, config, capabilities.model_type)
    cache = transformers_api.pop_cache(kwargs)
    checks.check_cache(cache)
    if cache is not None:
        kwargs[GENERATE_CACHE] = cache
    embeds: Tensor | None = kwargs.get("inputs_embeds")
    if capabilities.virtual_id is not None and embeds is not None:
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
    if attention_mask is None:
        attention_mask = infer_mask(model, capabilities, input_ids, kwargs)
    known = prefixed_cache.known(cache)
    call = Call.of(input_ids, embeds, attention_mask, known)
    call.check_cached(known, can_hide=not capabilities.is_recurrent)
    call.check_options(kwargs, config, getattr(model.config, "max_position_embeddings", None))
    columns = (call.num_cached, call.num_seen)
    reading = _read(model, capabilities, batch, input_ids, call.mask, columns, found, cache)
    view = decoder_view(model, capabilities, batch, call.given, reading)
    return call.restored(run_generate(view, **call.moved(kwargs)))


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
    memory = getattr(prefixed_cache.known(cache), "memory", None)
    turn = Turn(input_ids, attention_mask, *columns, batch.num_virtual, memory)
    return read_media(model, capabilities, turn, found)
