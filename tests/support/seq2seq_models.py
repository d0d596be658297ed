"""Tiny encoder-decoder models of the true classes, in float64, and rows for them."""

import functools
from typing import Any

import tiny_models
import torch
import transformers
from torch import Tensor

from foreword import SoftPrompt

T5: dict[str, Any] = {
    "vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2,
    "num_decoder_layers": 3, "num_heads": 4, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16, "pad_token_id": 0, "eos_token_id": 1,
    "decoder_start_token_id": 0,
}  # fmt: skip
BART: dict[str, Any] = {
    "vocab_size": 97, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "init_std": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 2,
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "t5": lambda: transformers.T5Config(**T5),
    "mt5": lambda: transformers.MT5Config(
        **T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    ),
    "bart": lambda: transformers.BartConfig(
        **BART, max_position_embeddings=40, scale_embedding=True, forced_eos_token_id=None
    ),
    "whisper": lambda: transformers.WhisperConfig(
        **BART, max_target_positions=40, max_source_positions=10, num_mel_bins=8,
        suppress_tokens=None, begin_suppress_tokens=None,
    ),
}  # fmt: skip
FAMILIES = tuple(CONFIGS)
TEXT = ("t5", "mt5", "bart")


def build(family: str, *, seed: int = 0, **changes: Any) -> Any:
    """Return a new model of a family with random weights that has no end token."""
    config = CONFIGS[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    auto = transformers.AutoModelForSeq2SeqLM
    if family == "whisper":
        auto = transformers.AutoModelForSpeechSeq2Seq
    model = auto.from_config(config, dtype=torch.float64)
    for parameter in model.parameters():  # norms, biases: what starts as a constant hides
        noise = torch.randn_like(parameter)
        parameter.data += (0.1 if parameter.ndim == 1 else 0.2) * noise
    model.generation_config.eos_token_id = None
    model.generation_config.max_length = None
    model.config.max_length = None
    return model.eval()


def with_exact_norms(model: Any) -> Any:
    """Replace a T5's norms, which round to float32 inside."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("T5LayerNorm"):
                setattr(module, name, tiny_models.ExactNorm(child))
    return model


@functools.cache
def shared(family: str) -> Any:
    """Return the family's model that tests read and never change."""
    return build(family)


def features(seed: int = 5) -> Tensor:
    """Return the features `[mel bins, frames]` of one row of audio."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(8, 20, generator=generator, dtype=torch.float64)


def embedding_prompt(model: Any, num_virtual: int, seed: int = 1) -> SoftPrompt:
    """Return a random embedding prompt at the scale of the model's own embeddings."""
    generator = torch.Generator().manual_seed(seed)
    table = model.get_input_embeddings()(torch.arange(97))
    noise = torch.randn(num_virtual, 32, generator=generator, dtype=torch.float64)
    return SoftPrompt.from_embeddings(noise * table.std())


def key_value_prompt(model: Any, num_virtual: int, seed: int = 1) -> SoftPrompt:
    """Return random keys and values for each layer of the decoder."""
    generator = torch.Generator().manual_seed(seed)
    shape = 4, num_virtual, 8
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(6)]
    return SoftPrompt.from_key_values(list(zip(tensors[::2], tensors[1::2], strict=True)))


FORMS = {"embeddings": embedding_prompt, "key_values": key_value_prompt}
