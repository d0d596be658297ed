"""Launch of the llama.cpp engine: from a GGUF file and options to a backbone and an engine.

In: a .gguf file, limits, options. Out: a backbone without weights, which encodes text
and checks prompts, and the engine that runs them. Knows no HTTP.
"""

from pathlib import Path

from foreword.engine.limits import EngineLimits
from foreword.engine_llama.engine import LlamaEngine
from foreword.errors import MismatchError
from foreword.llama_cpp import base, library
from foreword.llama_cpp.base import UnloadedBackbone
from foreword.llama_cpp.model import ContextOptions, LlamaModel
from foreword.loading.gguf import ProgressCallback

BATCH_TOKENS = 16384  # the cache is made for them at once


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
