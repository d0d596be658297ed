"""Adapter for transformers: what foreword needs of a release beyond its documented interface.

In: the installed release. Out: the names of a cache, the cache's classes and layers, attention's
and outputs' classes. How a release differs is read off its signatures and attributes, not its
number: releases up to 5.23 call a cache `past_key_values` or `cache_params`, later ones `cache`.
The three hooks of `generate` that are overridden are in `generation.model_view`. Knows no prompt.
"""

import contextlib
import dataclasses
import inspect
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from typing import Any

from foreword.compat.releases import RANGE
from foreword.errors import DependencyError, InputError

try:
    from transformers import (
        DynamicCache,
        EncoderDecoderCache,
        GenerationMixin,
        PreTrainedModel,
        cache_utils,
        dynamic_module_utils,
    )
    from transformers.cache_utils import (
        Cache,
        CacheLayerMixin,
        DynamicLayer,
        DynamicSlidingWindowLayer,
        LinearAttentionAndFullAttentionLayer,
        LinearAttentionAndStaticFullAttentionLayer,
        LinearAttentionLayer,
        StaticLayer,
    )
    from transformers.modeling_outputs import (
        BaseModelOutput,
        BaseModelOutputWithPast,
        CausalLMOutputWithPast,
    )
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
except ImportError as error:
    raise DependencyError(
        f"transformers {metadata.version('transformers')}: {error}; install a tested release: "
        f"pip install 'transformers{RANGE}'"
    ) from error

__all__ = [
    "ALL_ATTENTION_FUNCTIONS",
    "BaseModelOutput",
    "BaseModelOutputWithPast",
    "Cache",
    "CacheLayerMixin",
    "CausalLMOutputWithPast",
    "DynamicCache",
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "EncoderDecoderCache",
    "GenerationMixin",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndStaticFullAttentionLayer",
    "LinearAttentionLayer",
    "PreTrainedModel",
    "StaticLayer",
]

# Cache layers without keys of their own; older releases leave such layers out of the cache.
KEYLESS_LAYER: Any = getattr(cache_utils, "DummyLayer", ())
CACHE_NAMES = ("cache", "past_key_values", "cache_params")  # the newest first
GROUPED_HEADS = "TRANSFORMERS_SDPA_FORCE_GQA"
_loading = threading.RLock()


def _named(function: Callable[..., Any], default: str) -> str:
    arguments = inspect.signature(function).parameters
    return next((name for name in CACHE_NAMES if name in arguments), default)


# What `generate` calls a cache between passes and in what it returns.
GENERATE_CACHE = _named(GenerationMixin.prepare_inputs_for_generation, CACHE_NAMES[0])


def cache_argument(forward: Callable[..., Any]) -> str:
    """Return what a forward pass calls its cache; where it does not say, what the release does."""
    return _named(forward, GENERATE_CACHE)


def pop_cache(arguments: dict[str, Any]) -> Any:
    """Take the cache out of a call's arguments, whichever of its names the caller uses.

    Raises:
        InputError: two caches.
    """
    found = {name: arguments.pop(name, None) for name in CACHE_NAMES}
    given = {name: value for name, value in found.items() if value is not None}
    if len(given) > 1:
        raise InputError(f"{' and '.join(given)} are two names of one cache; give one")
    return next(iter(given.values()), None)


def set_cache(output: Any, cache: Any) -> Any:
    """Put a cache into what a forward pass of `generate` returns, and return that."""
    if GENERATE_CACHE not in {field.name for field in dataclasses.fields(output)}:
        output = CausalLMOutputWithPast(logits=output.logits)
    if cache is None:  # as an attribute, None would leave what is there; as an item, be reordered
        return type(output)(**{k: one for k, one in output.items() if k != GENERATE_CACHE})
    output[GENERATE_CACHE] = cache
    return output


def view_signature(forward: Callable[..., Any]) -> inspect.Signature:
    """Return a model's signature as a view of it shows it to `generate`.

    `generate` prepares what a forward pass takes by its signature. Positions and features that a
    view computes itself are left out, and the cache goes by the name that `generate` gives it.
    """
    signature = inspect.signature(forward)
    left_out = {*CACHE_NAMES, "position_ids", "mm_encoder_outputs"}
    kept = [one for one in signature.parameters.values() if one.name not in left_out]
    cache = inspect.Parameter(GENERATE_CACHE, inspect.Parameter.KEYWORD_ONLY, default=None)
    is_last = bool(kept) and kept[-1].kind is inspect.Parameter.VAR_KEYWORD
    place = len(kept) - 1 if is_last else len(kept)
    return signature.replace(parameters=[*kept[:place], cache, *kept[place:]])


def keeps_recurrent_states() -> bool:
    """Return whether this release's recurrent layers keep what they read before."""
    return hasattr(Cache, "get_conv_state")


@contextlib.contextmanager
def grouped_heads(is_wanted: bool) -> Iterator[None]:
    """Keep transformers from repeating keys and values for every query head under a mask.

    On a CPU, grouped attention gives the same bits in half the time. transformers uses it without
    a mask only, unless this variable says so; older releases do not know it. It is the process's: a
    forward pass of another thread meanwhile gets the same bits too. A user's own setting stays.
    """
    if not is_wanted or os.environ.get(GROUPED_HEADS):
        yield
        return
    os.environ[GROUPED_HEADS] = "1"
    try:
        yield
    finally:  # emptied, not removed: another thread may be going through the variables
        os.environ[GROUPED_HEADS] = ""


def are_heads_grouped() -> bool:
    """Return whether `grouped_heads`, or the user, asks for grouped attention now."""
    return bool(os.environ.get(GROUPED_HEADS))


@contextlib.contextmanager
def code_refused() -> Iterator[None]:
    """Let transformers refuse a checkpoint's code where it would ask on the terminal whether to run
    it: some of its classes load parts by others, to which they pass no `trust_remote_code` on.
    """
    with _loading:
        seconds = getattr(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 15)
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds to an answer; 0: there is none
        try:
            yield
        finally:
            dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds


def response_parser(tokenizer: Any, before: str, tools: Sequence[dict[str, Any]]) -> Any | None:
    """Return transformers' parser of a tokenizer's answers, behind the text before one; None where
    the tokenizer has no response template.
    """
    if getattr(tokenizer, "response_template", None) is None:
        return None
    return tokenizer.get_response_parser(prefix=before, tools=list(tools) or None)


def num_parsed(parser: Any) -> int:
    """Return how many characters a response parser is certain of, of all that it has."""
    return int(parser._pos)


def num_given(parser: Any) -> int:
    """Return how many characters a response parser has, those before the answer included."""
    return len(parser._buffer)
