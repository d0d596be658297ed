"""Words: what stands after `--` on the command line, as options of llama.cpp's context.

In: words. Out: options, or what is wrong with them. Imports no torch, and loads no library.
"""

import dataclasses
from collections.abc import Sequence

from foreword.errors import InputError
from foreword.llama_cpp.model import ContextOptions

_KNOWN = "--cache-type f32|f16, --flash-attention, --threads N"


def context_options(words: Sequence[str]) -> ContextOptions:
    """Return how a context computes, from the words after `--`.

    Raises:
        InputError: another option, or a value that it does not take.
        UnsupportedError: a quantized cache.
    """
    options, left = ContextOptions(), list(words)
    while left:
        name, equals, value = left.pop(0).partition("=")
        if name == "--flash-attention":
            if equals:
                raise InputError(f"--flash-attention takes no value, got {value!r:.80}")
            options = dataclasses.replace(options, has_flash_attention=True)
            continue
        if name not in ("--cache-type", "--threads"):
            raise InputError(f"{name!r:.80} is no option of --engine llama.cpp; known: {_KNOWN}")
        if not value:
            if equals or not left or left[0].startswith("--"):
                raise InputError(f"{name} needs a value; known: {_KNOWN}")
            value = left.pop(0)
        if name == "--cache-type":
            value = value.lower()
            options = dataclasses.replace(options, cache_type=value)
        elif not value.isascii() or not value.isdigit() or not 0 < int(value) < 1024:
            raise InputError(f"--threads must be a whole number above 0, got {value!r:.80}")
        else:
            options = dataclasses.replace(options, num_threads=int(value))
    return options
