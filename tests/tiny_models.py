"""Tiny models of the true classes, built from configurations in milliseconds, in float64."""

import functools
from typing import Any

import torch
import transformers

COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
# Untied, so that random weights do not just repeat their input.
GEMMA = {
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "sliding_window": 8,
    "tie_word_embeddings": False,
}

CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**COMMON),
    "mistral": lambda: transformers.MistralConfig(**COMMON, head_dim=8, sliding_window=8),
    "qwen3": lambda: transformers.Qwen3Config(**COMMON, head_dim=8),
    "gemma2": lambda: transformers.Gemma2Config(**COMMON, **GEMMA),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **COMMON,
        **GEMMA,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=256, initializer_range=0.3,
        pad_token_id=0, bos_token_id=1, eos_token_id=None, tie_word_embeddings=False,
    ),
    "phi3": lambda: transformers.Phi3Config(**COMMON),
}  # fmt: skip
FAMILIES = tuple(CONFIGS)


def build(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """Return a new model of a family with random weights."""
    config = CONFIGS[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return model.eval()


@functools.cache
def shared(family: str) -> Any:
    """Return the family's model that tests read and never change."""
    return build(family)


def embeddings(model: Any, num_virtual: int, seed: int = 1) -> torch.Tensor:
    """Return a random embedding prompt `[P, H]` at the scale of the model's own embeddings."""
    generator = torch.Generator().manual_seed(seed)
    table = model.get_input_embeddings()(torch.arange(97))
    noise = torch.randn(num_virtual, table.shape[1], generator=generator, dtype=table.dtype)
    return noise * table.std()


def ids(length: int, seed: int = 2) -> torch.Tensor:
    """Return `[length]` random ids without padding."""
    generator = torch.Generator().manual_seed(seed + 1000 * length)
    return torch.randint(3, 97, (length,), generator=generator)


class ExactNorm(torch.nn.Module):
    """A root mean square norm in the model's dtype: transformers' own rounds to float32 inside."""

    def __init__(self, weight: torch.Tensor, epsilon: float):
        super().__init__()
        self.weight, self.epsilon = torch.nn.Parameter(weight), epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)


def with_exact_norms(model: Any) -> Any:
    """Replace a model's norms, so that gradients can be compared to 1e-9."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                shift = 1.0 if type(child).__name__.startswith("Gemma") else 0.0
                epsilon = getattr(child, "variance_epsilon", None) or child.eps
                setattr(module, name, ExactNorm(child.weight.detach() + shift, epsilon))
    return model
