"""What a model is, read off its own configuration and cache layers: never off a list of names.

In: a transformers model. Out: `Capabilities`, or an `UnsupportedError` that names what stands in
the way. The layouts and caches are chosen from these facts alone, so a new family made of known
parts needs no change here.
"""

from dataclasses import dataclass
from typing import Any

import transformers
from packaging.version import Version
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from foreword.errors import DependencyError, UnsupportedError

OLDEST_TRANSFORMERS = Version("5.16")
NEWEST_TRANSFORMERS = Version("5.24")  # exclusive

# Families whose every case is compared with the oracle in the tests. Any other one proves itself
# on the user's model when it is loaded.
TESTED_MODEL_TYPES = frozenset(
    {"llama", "mistral", "qwen3", "gemma2", "gemma3_text", "gpt2", "phi3"}
)


@dataclass(frozen=True)
class Capabilities:
    """The facts that decide how a prefix reaches a model.

    Attributes:
        model_type: transformers' name of the family.
        windows: for each layer the number of positions it attends to, or None for all.
        mask_names: for each layer its key in a dictionary of masks.
        hidden_size: H.
        vocab_size: V.
        context_length: positions the model was made for, or None when its configuration is silent.
        is_context_hard: True where a position past the context cannot be computed at all.
        rope_switch: length in tokens past which the rotary embedding of *all* positions changes, or
            None.
        attention: the attention implementation, "sdpa" or "eager".
    """

    model_type: str
    windows: tuple[int | None, ...]
    mask_names: tuple[str, ...]
    hidden_size: int
    vocab_size: int
    context_length: int | None
    is_context_hard: bool
    rope_switch: int | None
    attention: str

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.windows)

    @property
    def is_tested(self) -> bool:
        """Whether this family is compared with the oracle, case by case, in the tests."""
        return self.model_type in TESTED_MODEL_TYPES


def check_transformers() -> None:
    """Refuse a release of transformers outside the tested range.

    Raises:
        DependencyError: names the release and the range.
    """
    found = Version(transformers.__version__)
    if not OLDEST_TRANSFORMERS <= found < NEWEST_TRANSFORMERS:
        raise DependencyError(
            f"transformers {found} is outside the tested range, "
            f">={OLDEST_TRANSFORMERS},<{NEWEST_TRANSFORMERS}; "
            f"install one of it: pip install 'transformers>={OLDEST_TRANSFORMERS},"
            f"<{NEWEST_TRANSFORMERS}'"
        )


def inspect_model(model: Any) -> Capabilities:
    """Read a model's capabilities.

    Raises:
        UnsupportedError: the model has a part that foreword cannot make exact, named.
    """
    check_transformers()
    config = model.config.get_text_config(decoder=True)
    name = getattr(config, "model_type", type(model).__name__)
    _refuse_unknown_parts(model, config, name)
    layers = DynamicCache(config=config).layers
    windows = tuple(getattr(layer, "sliding_window", None) for layer in layers)
    return Capabilities(
        model_type=name,
        windows=windows,
        mask_names=tuple("full_attention" if w is None else "sliding_attention" for w in windows),
        hidden_size=model.get_input_embeddings().weight.shape[-1],
        vocab_size=config.vocab_size,
        context_length=getattr(config, "max_position_embeddings", None),
        is_context_hard=not getattr(config, "rope_parameters", None),
        rope_switch=_rope_switch(config),
        attention=config._attn_implementation,
    )


def _refuse_unknown_parts(model: Any, config: Any, name: str) -> None:
    def refuse(what: str, instead: str) -> None:
        raise UnsupportedError(f"{name}: {what}; {instead}")

    if not isinstance(model, PreTrainedModel):
        refuse(
            f"{type(model).__name__} is not a transformers model itself",
            "give the model that it wraps, with adapters merged or unloaded",
        )
    if model.config.is_encoder_decoder:
        refuse("an encoder-decoder model", "use a decoder-only language model")
    if getattr(model.config, "vision_config", None) or getattr(model.config, "audio_config", None):
        refuse("images or audio beside text", "load its text-only class, if it has one")
    if not model.can_generate():
        refuse(f"{type(model).__name__} cannot generate", "load it as a causal language model")
    if config._attn_implementation not in ("sdpa", "eager"):
        refuse(
            f"attention implementation {config._attn_implementation!r}",
            "load the model with attn_implementation='sdpa' or 'eager'",
        )
    if getattr(config, "use_bidirectional_attention", None):
        refuse("attention in both directions", "use a causal language model")
    for layer in DynamicCache(config=config).layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            refuse(
                f"layers whose state is a {type(layer).__name__}",
                "use a model whose layers all keep keys and values",
            )
    sizes = {getattr(layer, "sliding_window", None) for layer in DynamicCache(config=config).layers}
    if len(sizes - {None}) > 1:
        refuse(f"windows of several sizes ({sizes - {None}})", "use a model with one")
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        refuse("chunked attention", "use a model with full or sliding attention")


def _rope_switch(config: Any) -> int | None:
    """Return the length past which "dynamic" and "longrope" change the rotation of old keys."""
    parameters = getattr(config, "rope_parameters", None) or {}
    groups = [parameters] if "rope_type" in parameters else list(parameters.values())
    for group in groups:
        if isinstance(group, dict) and group.get("rope_type") in ("dynamic", "longrope"):
            original = group.get("original_max_position_embeddings")
            return int(original or config.max_position_embeddings)
    return None
