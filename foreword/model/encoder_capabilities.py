"""Encoder capabilities: what an encoder-decoder model is, by its configuration and signature.

In: a transformers encoder-decoder model. Out: `EncoderCapabilities`, which say where an embedding
prompt stands: before the encoder's text, or, where the encoder takes sounds or images, before the
decoder's tokens. Knows no prompt.
"""

import inspect
from dataclasses import dataclass
from typing import Any, Literal

from foreword.errors import UnsupportedError

# How a decoder learns where its tokens stand: told, by the distance of slots, by counting slots.
Placing = Literal["told", "distance", "counted"]


@dataclass(frozen=True)
class EncoderCapabilities:
    """What an encoder is, and how its decoder places tokens.

    Attributes:
        input_name: what the encoder's input is called; "input_ids" where it takes text.
        placing: how the decoder learns the positions of its tokens.
        context_length: tokens of text that the encoder can place, or None where there is no limit.
        start_id: the id that begins every decoded sequence.
        num_layers: of the decoder.
        decoder_length: tokens that the decoder can place, or None where there is no limit.
        head_input: the attribute of the model whose output its head takes.
    """

    input_name: str
    placing: Placing
    context_length: int | None
    start_id: int
    num_layers: int
    decoder_length: int | None
    head_input: str

    @property
    def reads_text(self) -> bool:
        """Whether an embedding prompt stands before the encoder's input."""
        return self.input_name == "input_ids"


def inspect_encoder(model: Any) -> EncoderCapabilities:
    """Return the encoder capabilities of an encoder-decoder model.

    Raises:
        UnsupportedError: it is not laid out as one configuration for an encoder and its decoder.
    """
    config = model.config
    placing: Placing = "counted"
    if "decoder_position_ids" in inspect.signature(type(model).forward).parameters:
        placing = "told"
    elif getattr(config, "relative_attention_num_buckets", None):
        placing = "distance"
    input_name = str(getattr(model.get_encoder(), "main_input_name", "input_ids"))
    is_limited = placing != "distance"
    encoder_length = _first(config, "max_encoder_position_embeddings", "max_position_embeddings")
    decoder_length = _first(
        config, "max_target_positions", "max_decoder_position_embeddings", "max_position_embeddings"
    )
    return EncoderCapabilities(
        input_name=input_name,
        placing=placing,
        context_length=encoder_length if is_limited and input_name == "input_ids" else None,
        start_id=_start_id(model),
        num_layers=_num_layers(config),
        decoder_length=decoder_length if is_limited else None,
        head_input=_head_input(model),
    )


def _first(config: Any, *names: str) -> int | None:
    """Return the first of a configuration's numbers that is there; families differ in its name."""
    found = [value for name in names if (value := getattr(config, name, None)) is not None]
    return int(found[0]) if found else None


def _num_layers(config: Any) -> int:
    found = _first(config, "decoder_layers", "num_decoder_layers", "num_hidden_layers")
    if found is not None:
        return found
    raise UnsupportedError(
        f"{config.model_type}: an encoder and a decoder that are models of their own; use a model "
        "with one configuration for both"
    )


def _head_input(model: Any) -> str:
    for name in (model.base_model_prefix, "decoder"):
        if name and hasattr(model, name):
            return str(name)
    raise UnsupportedError(
        f"{model.config.model_type}: {type(model).__name__} has no decoder apart from its head; "
        "load the family's model for conditional generation"
    )


def _start_id(model: Any) -> int:
    """Return the start id as transformers' `generate` finds it."""
    for config in (model.generation_config, model.config):
        for name in ("decoder_start_token_id", "bos_token_id"):
            if (found := getattr(config, name, None)) is not None:
                return int(found)
    return 0
