"""Engine settings: what an engine was started with, read off vLLM's configuration objects.

In: a `VllmConfig`, and the groups of its KV cache where they are known. Out: an `EngineSetup`, and
the store. Imports no vLLM.
"""

from typing import Any

from foreword.errors import InputError
from foreword.prompt.store import Store
from foreword.prompt.store_directory import VARIABLE as VARIABLE
from foreword.prompt.store_directory import store_directory
from foreword.vllm_plugin.compatibility import EngineSetup


def setup_of(config: Any, cache_groups: Any = None) -> EngineSetup:
    """Return the setup of an engine."""
    model, parallel = config.model_config, config.parallel_config
    transfer = config.kv_transfer_config
    text = model.hf_text_config
    kinds = set(getattr(text, "layer_types", None) or ())
    has_window = bool(getattr(text, "sliding_window", None)) and bool(
        getattr(text, "use_sliding_window", True)
    )
    num_groups = len(cache_groups) if cache_groups is not None else 1
    return EngineSetup(
        model_type=text.model_type,
        takes_embeddings=bool(model.enable_prompt_embeds),
        connector=transfer.kv_connector if transfer is not None else None,
        recomputes=transfer is not None and transfer.kv_load_failure_policy != "fail",
        cache_dtype=str(config.cache_config.cache_dtype),
        is_latent=bool(model.use_mla),
        is_hybrid=has_window or bool(kinds - {"full_attention"}) or num_groups > 1,
        rotation=_rotation_of(text),
        reads_media=bool(getattr(model, "is_multimodal_model", False)),
        speculates=config.speculative_config is not None,
        num_context_ranks=max(
            getattr(parallel, "decode_context_parallel_size", 1),
            getattr(parallel, "prefill_context_parallel_size", 1),
        ),
    )


def _rotation_of(text: Any) -> str:
    found = getattr(text, "rope_parameters", None) or {}
    return str(found.get("rope_type") or found.get("type") or "default")


def store_of(config: Any) -> Store:
    """Return the store of an engine: its connector's option `prompts`, or the variable.

    Raises:
        InputError: neither is given, or it is empty.
    """
    transfer = config.kv_transfer_config
    extra = transfer.kv_connector_extra_config if transfer is not None else {}
    directory = store_directory(extra.get("prompts"))
    if directory is None:
        raise InputError(f"which prompts? set {VARIABLE} to the directory of the store")
    return Store(directory)
