"""Argument types: of what kind each argument of `generate` is, and what is said of another.

In: arguments by name. Out: nothing, or one line that names the first of another kind: transformers
would fail at it deep inside, or read it as something else. Knows no prompt and no model.
"""

import inspect
from collections.abc import Callable, Iterable
from numbers import Integral, Number, Real
from typing import Any

import numpy as np
from transformers import GenerationConfig, SynthIDTextWatermarkingConfig, WatermarkingConfig

from foreword.errors import InputError

Kind = tuple[Callable[[Any], bool], str]


def ids_of(value: Any) -> list[int]:
    """Return the ids of a setting of ids: one id, several in a list, tuple, array or tensor, or
    None for none.
    """
    if value is None:
        return []
    found = value.tolist() if hasattr(value, "tolist") else value
    return list(found) if isinstance(found, Iterable) else [found]


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _are_ids(value: Any) -> bool:
    return not isinstance(value, str | dict) and all(map(_is_whole, ids_of(value)))


def _is_id(value: Any) -> bool:
    return _is_whole(value.tolist() if hasattr(value, "tolist") else value)


def _are_biases(value: Any) -> bool:
    pairs = list(value.items()) if isinstance(value, dict) else value
    is_list = isinstance(pairs, list)
    return is_list and all(isinstance(one, list | tuple) and len(one) == 2 for one in pairs)


def _is_flag(value: Any) -> bool:
    return isinstance(value, Integral | np.bool_) and value in (0, 1)


def _are_texts(value: Any) -> bool:
    texts = [value] if isinstance(value, str) else value
    is_list = isinstance(texts, list | tuple) and bool(texts)
    return is_list and all(isinstance(text, str) and text for text in texts)


def _is_decay(value: Any) -> bool:
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    return is_pair and _is_whole(value[0]) and _is_number(value[1])


def _is_watermark(value: Any) -> bool:
    if isinstance(value, dict):
        return value.keys() <= inspect.signature(WatermarkingConfig).parameters.keys()
    return isinstance(value, WatermarkingConfig | SynthIDTextWatermarkingConfig)


def _at_least(least: int) -> Kind:
    expected = f"a whole number of at least {least}"
    return lambda one: _is_whole(one) and one >= least, expected


FLAG: Kind = (_is_flag, "True or False")
ONE_ID: Kind = (_is_id, "one id")
NUMBER: Kind = (_is_number, "a number")
IDS: Kind = (lambda one: _are_ids(one) and bool(ids_of(one)), "an id, or a list of ids")
SEVERAL_IDS: Kind = (lambda one: not _is_whole(one) and _are_ids(one), "a list of ids")

KINDS: dict[str, Kind] = {
    "generation_config": (lambda one: isinstance(one, GenerationConfig), "a GenerationConfig"),
    "logits_processor": (
        lambda one: isinstance(one, list) and all(map(callable, one)),
        "a list of logits processors",
    ),
    "stopping_criteria": (
        lambda one: isinstance(one, list) and all(map(callable, one)),
        "a list of stopping criteria",
    ),
    "prefix_allowed_tokens_fn": (callable, "a function of a row and its ids"),
    "streamer": (lambda one: hasattr(one, "put") and hasattr(one, "end"), "a streamer"),
    "assistant_model": (lambda one: hasattr(one, "generate"), "a model"),
    "use_cache": (lambda one: isinstance(one, bool), "True or False"),
    "early_stopping": (lambda one: one == "never" or _is_flag(one), "True, False or 'never'"),
    "max_time": (_is_number, "a number of seconds"),
    "stop_strings": (_are_texts, "a text, or a list of texts, none of them empty"),
    "bad_words_ids": (lambda one: isinstance(one, list), "a list of lists of ids"),
    "sequence_bias": (_are_biases, "biases by tuples of ids, or a list of pairs"),
    "exponential_decay_length_penalty": (_is_decay, "a pair (start, factor)"),
    "watermarking_config": (_is_watermark, "a WatermarkingConfig, or its arguments by name"),
    "pad_token_id": ONE_ID,
    "bos_token_id": ONE_ID,
    "forced_bos_token_id": ONE_ID,
    "eos_token_id": (_are_ids, "an id, or a list of ids"),
    "forced_eos_token_id": IDS,
    "decoder_start_token_id": IDS,
    "suppress_tokens": SEVERAL_IDS,
    "begin_suppress_tokens": SEVERAL_IDS,
}
KINDS |= dict.fromkeys(("num_beams", "num_return_sequences", "prefill_chunk_size"), _at_least(1))
KINDS |= dict.fromkeys(
    (
        *("max_new_tokens", "min_new_tokens", "max_length", "min_length", "max_cache_len"),
        *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "top_k"),
        *("prompt_lookup_num_tokens", "max_matching_ngram_size"),
    ),
    _at_least(0),
)
KINDS |= dict.fromkeys(
    (
        *("top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
        "length_penalty",
    ),
    NUMBER,
)
KINDS |= dict.fromkeys(
    (
        *("do_sample", "renormalize_logits", "remove_invalid_values", "output_scores"),
        *("output_logits", "output_attentions", "output_hidden_states"),
        "return_dict_in_generate",
    ),
    FLAG,
)


def check_kind(name: str, value: Any) -> None:
    """Refuse a value of an argument that is of another kind; None is of each.

    Raises:
        InputError: names the argument, what was expected and what was found.
    """
    if value is None or name not in KINDS:
        return
    fits, expected = KINDS[name]
    if not fits(value):
        is_short = isinstance(value, str | Number | list | tuple)
        found = repr(value) if is_short else type(value).__name__
        raise InputError(f"generate({name}=...): expected {expected}, got {found:.60}")
