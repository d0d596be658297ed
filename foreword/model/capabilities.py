"""Model capabilities: what a model is, by its configuration and cache layers, not its name.

In: a transformers model. Out: `Capabilities`, or an `UnsupportedError` that names what stands in
the way. Masks and caches are chosen from these alone, so a new family made of known parts needs no
change here. Knows no prompt.
"""

import inspect
import sys
from dataclasses import dataclass
from typing import Any, Literal

import torch

from foreword.compat import releases, transformers_api
from foreword.compat.error_lines import first_line
from foreword.compat.transformers_api import (
    KEYLESS_LAYER,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    PreTrainedModel,
)
from foreword.errors import UnsupportedError
from foreword.model.encoder_capabilities import EncoderCapabilities, inspect_encoder

# Families whose every case is compared with the oracle in the tests. Any other one, and any other
# class of them, proves itself when a model of it is loaded.
TESTED_MODEL_TYPES = frozenset(
    {
        "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text",
        "gemma3n_text", "gemma4_text", "phi3", "olmo3", "llama4_text", "gpt_oss", "granite",
        "deepseek_v3", "gpt2", "qwen3_next", "qwen3_5_text", "mamba2", "bamba", "falcon_h1", "lfm2",
        "granitemoehybrid",
        "qwen2_5_vl", "qwen3_vl", "gemma3", "glm4v", "glm4v_moe", "glm46v", "hunyuan_vl", "glmasr",
        "qwen2_audio", "t5", "mt5", "bart", "whisper",
    }
)  # fmt: skip

WITH_ENCODER = frozenset({"t5", "mt5", "bart", "whisper"})

# What a class may take beside text: a name, the argument that holds the features, the one that
# says how large each of them is, and others with one row for each.
KNOWN_MEDIA = (
    ("image", "pixel_values", "image_grid_thw", ("image_sizes",)),
    ("audio", "input_features", None, ("input_features_mask", "feature_attention_mask")),
)
TYPES = ("mm_token_type_ids", "token_type_ids")

STATE_KINDS = ("linear_attention", "conv")  # names of the masks of layers that do not attend

MaskName = Literal["full_attention", "sliding_attention", "chunked_attention"]


@dataclass(frozen=True)
class AttentionPattern:
    """Which of the tokens before it a layer's token attends to.

    Attributes:
        name: the layer's key in a dictionary of masks.
        size: positions of the window that slides, or of each chunk of the text; None where
            attention is full.
    """

    name: MaskName
    size: int | None = None


@dataclass(frozen=True)
class LayerKind:
    """What a layer keeps of the tokens before: keys and values, recurrent states, both, or nothing.

    Attributes:
        pattern: which of them it attends to; None where it keeps no keys and values.
        num_recurrences: recurrent states that it keeps, each with a window of its convolution.
    """

    pattern: AttentionPattern | None
    num_recurrences: int = 0


@dataclass(frozen=True)
class Modality:
    """One kind of media that a model takes in place of its placeholder tokens.

    Attributes:
        name: "image" or "audio".
        token_id: the id of a placeholder.
        features: the argument that holds the features, a row for each image or window of sound.
        grid: the argument that holds each image's patches in time, height and width; the features
            then have one row for each patch.
        others: more arguments with one row for each image or window.
    """

    name: str
    token_id: int
    features: str
    grid: str | None = None
    others: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """Every argument that belongs to it."""
        return (self.features, *([self.grid] if self.grid else []), *self.others)


@dataclass(frozen=True)
class Capabilities:
    """What decides how a prefix reaches a model.

    Attributes:
        model_type: transformers' name of the family.
        layers: what each layer that keeps a state keeps. Layers without keys of their own may
            follow them; these use the keys of an earlier one.
        hidden_size: H.
        vocab_size: V.
        context_length: positions the model was made for, or None when its configuration is silent.
        is_context_hard: True where a position past the context cannot be computed at all.
        rope_switch: length in tokens past which the rotary embedding of *all* positions changes, or
            None.
        attention: the attention implementation, "sdpa" or "eager".
        decoder: the attribute under which the model keeps its decoder, apart from its head.
        window_sizes: what its configuration said of windows and chunks.
        virtual_id: the id of every virtual token where the model looks up more than embeddings, or
            None.
        slot_scale: slots from which on queries are scaled by their slot, not their position, or
            None.
        cache_argument: what the model's forward pass calls its cache.
        first_position: what the model calls the position of a row's first token.
        counts_slots: whether the model places tokens by their slots, whatever positions it is
            given: its rows run without holes between their tokens.
        takes_static_cache: whether its code keeps empty slots of a cache out of every step.
        modalities: what the model takes beside text.
        types: the argument that tells placeholders from text, token by token, or None.
        num_axes: A, the axes of a rotary position: 1, or those of the model's own rope index.
        has_image_blocks: whether the tokens of one image attend to each other in both directions.
        encoder: the encoder whose output the decoder attends to, if there is one. All other
            attributes are the decoder's.
    """

    model_type: str
    layers: tuple[LayerKind, ...]
    hidden_size: int
    vocab_size: int
    context_length: int | None
    is_context_hard: bool
    rope_switch: int | None
    attention: str
    decoder: str
    window_sizes: tuple[int | None, ...] = ()
    virtual_id: int | None = None
    slot_scale: int | None = None
    cache_argument: str = "past_key_values"
    first_position: int = 0
    counts_slots: bool = False
    takes_static_cache: bool = True
    modalities: tuple[Modality, ...] = ()
    types: str | None = None
    num_axes: int = 1
    has_image_blocks: bool = False
    encoder: EncoderCapabilities | None = None

    @property
    def num_layers(self) -> int:
        """L: the layers that keep a state."""
        return len(self.layers)

    @property
    def attention_patterns(self) -> tuple[AttentionPattern, ...]:
        """What each layer that attends, attends to."""
        return tuple(layer.pattern for layer in self.layers if layer.pattern is not None)

    @property
    def has_stateless_layers(self) -> bool:
        """Whether a layer among the others keeps nothing of text."""
        return any(layer == LayerKind(None) for layer in self.layers)

    @property
    def is_recurrent(self) -> bool:
        """Whether any layer keeps a state that padding would change."""
        return any(layer.num_recurrences for layer in self.layers)

    @property
    def media(self) -> frozenset[str]:
        """The arguments that carry media, token types included."""
        named = {name for modality in self.modalities for name in modality.arguments}
        return frozenset(named | ({self.types} if self.types else set()))

    @property
    def is_tested(self) -> bool:
        """Whether this class is compared with the oracle, case by case, in the tests, on this
        release of transformers.
        """
        is_class = (self.encoder is not None) == (self.model_type in WITH_ENCODER)
        return is_class and self.model_type in TESTED_MODEL_TYPES and releases.is_tested()


def inspect_model(model: Any) -> Capabilities:
    """Return a model's capabilities.

    Raises:
        UnsupportedError: the model has a part that foreword cannot make exact, named.
    """
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedError(
            f"{type(model).__name__} is not a transformers model itself; give the model that it "
            "wraps, with adapters merged or unloaded"
        )
    try:
        return _inspect(model)
    except (UnsupportedError, torch.OutOfMemoryError):
        raise
    except Exception as failure:  # of whatever type a class raises that names its parts otherwise
        reason = first_line(failure)
        raise UnsupportedError(
            f"{type(model).__name__}: raises {type(failure).__name__} ({reason}) where its parts "
            "are looked up as those of known families; this family cannot be made exact yet"
        ) from failure


def _inspect(model: Any) -> Capabilities:
    config: Any = model.config.get_text_config(decoder=True)
    name = getattr(model.config, "model_type", type(model).__name__)
    _refuse_unknown_parts(model, config, name)
    if model.config.is_encoder_decoder:
        return _with_encoder(model, config, name)
    decoder = _decoder(model, name)
    arguments = set(inspect.signature(getattr(model, decoder).forward).parameters)
    modalities = _modalities(model.config, arguments)
    if modalities and _virtual_id(config) is not None:
        raise UnsupportedError(
            f"{name}: images or audio beside embeddings for each layer; "
            "load its text-only class, if it has one"
        )
    types = next((argument for argument in TYPES if argument in arguments), None)
    first_position = _first_position(model, config)
    return Capabilities(
        model_type=name,
        layers=_layers(model, config, name),
        hidden_size=model.get_input_embeddings().weight.shape[-1],
        vocab_size=config.vocab_size,
        context_length=_context_length(config, first_position),
        is_context_hard=_is_context_hard(model, config),
        rope_switch=_rope_switch(config),
        attention=config._attn_implementation,
        decoder=decoder,
        window_sizes=window_sizes(config),
        virtual_id=_virtual_id(config),
        slot_scale=_slot_scale(config),
        cache_argument=transformers_api.cache_argument(type(model).forward),
        first_position=first_position,
        modalities=modalities,
        types=types if modalities else None,
        num_axes=_num_axes(getattr(model, decoder)),
        has_image_blocks=bool(modalities) and types == "token_type_ids",
    )


def window_sizes(config: Any) -> tuple[int | None, ...]:
    """Return what a configuration says of the sizes of windows and chunks."""
    return tuple(getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))


def _modalities(config: Any, arguments: set[str]) -> tuple[Modality, ...]:
    """Return the known media among the arguments of a decoder's class."""
    found = []
    for name, features, grid, others in KNOWN_MEDIA:
        token_id = getattr(config, f"{name}_token_id", None)
        if features in arguments and isinstance(token_id, int):
            found.append(
                Modality(
                    name,
                    token_id,
                    features,
                    grid if grid in arguments else None,
                    tuple(other for other in others if other in arguments),
                )
            )
    return tuple(found)


def _num_axes(decoder: Any) -> int:
    """Ask a decoder how many axes the positions have that it computes for images itself."""
    if not hasattr(decoder, "get_rope_index"):
        return 1
    token = torch.zeros(1, 1, dtype=torch.long, device="cpu")
    try:
        positions, _ = decoder.get_rope_index(token, mm_token_type_ids=token)
    except (TypeError, ValueError):
        return 1  # a configuration without axes
    return int(positions.shape[0])


def _refuse_unknown_parts(model: Any, config: Any, name: str) -> None:
    def refuse(what: str, instead: str) -> None:
        raise UnsupportedError(f"{name}: {what}; {instead}")

    if not model.can_generate():
        refuse(f"{type(model).__name__} cannot generate", "load it as a causal language model")
    if config._attn_implementation not in ("sdpa", "eager"):
        refuse(
            f"attention implementation {config._attn_implementation!r}",
            "load the model with attn_implementation='sdpa' or 'eager'",
        )
    if getattr(config, "expert_capacity", None):
        refuse(
            "experts of a limited capacity, so that the rows of a batch change each other",
            "use a model whose experts take every token",
        )
    # "vision" means images alone.
    if getattr(config, "use_bidirectional_attention", None) not in (None, False, "vision"):
        refuse("attention in both directions", "use a causal language model")


def _with_encoder(model: Any, config: Any, name: str) -> Capabilities:
    encoder = inspect_encoder(model)
    # A state that is not keys of all tokens would need masks and positions of its own.
    if getattr(config, "sliding_window", None) or getattr(config, "rope_parameters", None):
        raise UnsupportedError(
            f"{name}: windows or rotary embeddings beside an encoder; use a model whose decoder "
            "attends to every token"
        )
    return Capabilities(
        model_type=name,
        layers=(LayerKind(AttentionPattern("full_attention")),) * encoder.num_layers,
        hidden_size=model.get_input_embeddings().weight.shape[-1],
        vocab_size=config.vocab_size,
        context_length=encoder.decoder_length,
        is_context_hard=encoder.decoder_length is not None,
        rope_switch=None,
        attention=config._attn_implementation,
        decoder=encoder.head_input,
        window_sizes=window_sizes(config),
        cache_argument=transformers_api.cache_argument(type(model).forward),
        encoder=encoder,
    )


def _layers(model: Any, config: Any, name: str) -> tuple[LayerKind, ...]:
    """Return what each layer keeps, by the model's own cache layers."""
    layers = list(DynamicCache(config=config).layers)
    # The decoder of an encoder-decoder family has layers of its own number.
    layers = layers[: getattr(config, "decoder_layers", None) or len(layers)]
    while layers and isinstance(layers[-1], KEYLESS_LAYER):
        layers.pop()
    # Layers that attend to the output of an encoder of images keep nothing of text.
    crossing = set(getattr(config, "cross_attention_layers", None) or ())
    for layer in layers:
        is_recurrent = isinstance(layer, LinearAttentionLayer)
        if isinstance(layer, KEYLESS_LAYER):
            continue
        if not is_recurrent and type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise UnsupportedError(
                f"{name}: layers whose state is a {type(layer).__name__}; "
                "use a model whose layers keep keys and values or a recurrent state"
            )
        if is_recurrent and not transformers_api.keeps_recurrent_states():
            raise UnsupportedError(
                f"{name}: its recurrent layers drop what they read before in this release of "
                "transformers; upgrade it"
            )
    patterns = _attention_patterns(model, config, name, layers)
    kinds = []
    for index, (layer, pattern) in enumerate(zip(layers, patterns, strict=True)):
        keeps_keys = isinstance(layer, DynamicLayer) and index not in crossing
        kinds.append(LayerKind(pattern if keeps_keys else None, _num_recurrences(layer)))
    return tuple(kinds)


def _num_recurrences(layer: Any) -> int:
    return int(layer.number_of_states) if isinstance(layer, LinearAttentionLayer) else 0


def _attention_patterns(
    model: Any, config: Any, name: str, layers: list[Any]
) -> list[AttentionPattern]:
    types = getattr(config, "layer_types", None) or [None] * len(layers)
    has_window = getattr(config, "sliding_window", None) is not None
    # Some configurations carry a window that the family's code never looks at.
    can_chunk, can_slide = (_code_says(model, word) for word in ("chunked", "sliding_window"))
    patterns = []
    for layer, kind in zip(layers, types, strict=False):
        size = getattr(layer, "sliding_window", None)
        is_chunked = kind == "chunked_attention" or (kind is None and not has_window)
        if size is None or not (can_chunk if is_chunked else can_slide):
            patterns.append(AttentionPattern("full_attention"))
        else:
            patterns.append(
                AttentionPattern("chunked_attention" if is_chunked else "sliding_attention", size)
            )
    sizes = {pattern.size for pattern in patterns} - {None}
    if len(sizes) > 1:
        raise UnsupportedError(
            f"{name}: windows or chunks of several sizes ({sizes}); use a model with one"
        )
    return patterns


def _code_says(model: Any, word: str) -> bool:
    """Return whether the code of a model's own classes holds a word; True where it is not
    readable.
    """
    classes = {kind for part in model.modules() for kind in type(part).__mro__}
    for name in {kind.__module__ for kind in classes}:
        package = name.split(".")[0]
        if package in ("builtins", "torch") or (
            package == "transformers" and not name.startswith("transformers.models.")
        ):
            continue
        try:
            code = inspect.getsource(sys.modules[name])
        except (KeyError, OSError, TypeError):
            return True
        if word in code:
            return True
    return False


def _decoder(model: Any, name: str) -> str:
    """Find the part of a model that holds the input embeddings; what a class calls it varies."""
    embeddings = model.get_input_embeddings()
    for attribute, child in model.named_children():
        if isinstance(child, PreTrainedModel) and any(m is embeddings for m in child.modules()):
            if child.get_output_embeddings() is not None:
                raise UnsupportedError(
                    f"{name}: {type(model).__name__} wraps {type(child).__name__}, a whole "
                    "language model; load the family's text-only class"
                )
            return str(attribute)
    raise UnsupportedError(
        f"{name}: {type(model).__name__} has no decoder apart from its head; load the family's "
        "causal language model"
    )


def _first_position(model: Any, config: Any) -> int:
    """Return the position of a row's first token: after the padding's, where that has one."""
    length = getattr(config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        is_table = isinstance(module, torch.nn.Embedding) and "position" in name
        if is_table and module.num_embeddings == length and module.padding_idx is not None:
            return int(module.padding_idx) + 1
    return 0


def _context_length(config: Any, first_position: int) -> int | None:
    found = getattr(config, "max_position_embeddings", None)
    return None if found is None else found - first_position


def _is_context_hard(model: Any, config: Any) -> bool:
    """Return whether positions are looked up in a table: there are none past its end."""
    if getattr(config, "rope_parameters", None):
        return False
    return "position_ids" in inspect.signature(type(model).forward).parameters


def _virtual_id(config: Any) -> int | None:
    """Return the padding id for a model with per-layer embeddings.

    These are looked up by id, and a virtual token has none. The padding id is what such models give
    the soft tokens of images.
    """
    if not getattr(config, "hidden_size_per_layer_input", None):
        return None
    return int(config.pad_token_id or 0)


def _slot_scale(config: Any) -> int | None:
    """Return the length from which llama4's attention temperature differs from 1."""
    if not getattr(config, "attn_temperature_tuning", None):
        return None
    return int(config.floor_scale)


def _rope_switch(config: Any) -> int | None:
    """Return the length past which "dynamic" and "longrope" change the rotation of old keys."""
    parameters = getattr(config, "rope_parameters", None) or {}
    groups = [parameters] if "rope_type" in parameters else list(parameters.values())
    for group in groups:
        if isinstance(group, dict) and group.get("rope_type") in ("dynamic", "longrope"):
            original = group.get("original_max_position_embeddings")
            return int(original or config.max_position_embeddings)
    return None
