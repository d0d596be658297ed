"""Launch of the llama.cpp engine: from a GGUF file and options to a backbone and an engine.

In: a .gguf file, limits, the words after `--`. Out: a backbone without weights, which encodes text
and checks prompts, and the engine that runs them. Knows no HTTP.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from foreword.engine.limits import EngineLimits
from foreword.engine_llama.engine import LlamaEngine
from foreword.errors import InputError, MismatchError
from foreword.llama_cpp import base, library
from foreword.llama_cpp.base import UnloadedBackbone
from foreword.llama_cpp.model import ContextOptions, LlamaModel
from foreword.loading.gguf import ProgressCallback

BATCH_TOKENS = 16384  # the cache is made for them at once
_KNOWN = "--cache-type f32|f16, --flash-attention, --threads N"


def context_options(words: Sequence[str]) -> ContextOptions:
    """Return how a context computes, from the words after `--`.

    Raises:
        InputError: another option, or a value that it does not take.
        UnsupportedError: a quantized cache.
    """
    options, left = ContextOptions(), list(words)
    while left:
        name, _, value = left.pop(0).partition("=")
        if name == "--flash-attention" and not value:
            options = dataclasses.replace(options, has_flash_attention=True)
            continue
        if name not in ("--cache-type", "--threads"):
            raise InputError(f"{name!r:.80} is no option of --engine llama.cpp; known: {_KNOWN}")
        if not value:
            if not left:
                raise InputError(f"{name} needs a value; known: {_KNOWN}")
            value = left.pop(0)
        if name == "--cache-type":
            options = dataclasses.replace(options, cache_type=value)
        elif not value.isascii() or not value.isdigit() or not 0 < int(value) < 1024:
            raise InputError(f"--threads must be a whole number above 0, got {value!r:.80}")
        else:
            options = dataclasses.replace(options, num_threads=int(value))
    return options


def launch(
    gguf: str,
    limits: EngineLimits,
    options: ContextOptions,
    progress: ProgressCallback | None = None,
) -> tuple[UnloadedBackbone, LlamaEngine]:
    """Return a GGUF file's backbone, without weights, and an engine on it.

    Raises:
        DependencyError: no llama.cpp, or another one. InputError: no GGUF file that it loads.
        UnsupportedError: a family that is not known to be exact. ModelError: no memory.
    """
    library.load()
    backbone = base.unloaded(gguf, progress)
    model = LlamaModel(Path(gguf).expanduser())
    size, vocabulary = backbone.capabilities.hidden_size, backbone.capabilities.vocab_size
    if (model.hidden_size, model.vocab_size) != (size, vocabulary):
        raise MismatchError(
            f"{gguf}: llama.cpp reads hidden size {model.hidden_size} and {model.vocab_size} "
            f"tokens, transformers {size} and {vocabulary}"
        )
    return backbone, LlamaEngine(model, backbone.capabilities, limits, options)
