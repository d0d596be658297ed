"""Tiny models of the true classes, built from configurations in milliseconds, in float64."""

import functools
from pathlib import Path
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
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]
# One dense layer, then experts; keys and values cached as latents of different sizes.
LATENT = {
    "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 6, "first_k_dense_replace": 1, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_mtp_layers": 0,
}  # fmt: skip
# Embeddings for each layer, and a tail of layers that read the keys of earlier ones.
PER_LAYER = {
    "num_hidden_layers": 5, "head_dim": 8, "sliding_window": 8, "tie_word_embeddings": False,
    "hidden_size_per_layer_input": 4, "vocab_size_per_layer_input": 97, "num_kv_shared_layers": 2,
    "layer_types": [*ALTERNATING, "sliding_attention", "full_attention"],
}  # fmt: skip

# Linear attention with gated delta rule: two key heads for four value heads.
DELTA = {
    "head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4,
}  # fmt: skip
MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 2, "mamba_d_state": 8,
    "mamba_d_conv": 4, "mamba_expand": 2, "mamba_chunk_size": 4,
}  # fmt: skip

CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**COMMON),
    "mistral": lambda: transformers.MistralConfig(**COMMON, head_dim=8, sliding_window=8),
    "qwen3": lambda: transformers.Qwen3Config(**COMMON, head_dim=8),
    "gemma2": lambda: transformers.Gemma2Config(**COMMON, **GEMMA),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **COMMON,
        **GEMMA,
        layer_types=ALTERNATING,
    ),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=97, n_embd=32, n_layer=3, n_head=4, n_positions=256, initializer_range=0.3,
        pad_token_id=0, bos_token_id=1, eos_token_id=None, tie_word_embeddings=False,
    ),
    "phi3": lambda: transformers.Phi3Config(**COMMON),
    "llama31": lambda: transformers.LlamaConfig(
        **COMMON,
        rope_parameters={
            "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        },
    ),
    "qwen2": lambda: transformers.Qwen2Config(**COMMON),
    "granite": lambda: transformers.GraniteConfig(
        **COMMON, embedding_multiplier=3.0, attention_multiplier=0.2, residual_multiplier=0.5,
        logits_scaling=2.0,
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **COMMON, num_local_experts=4, num_experts_per_tok=2
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **COMMON, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
        norm_topk_prob=True,
    ),
    "olmo3": lambda: transformers.Olmo3Config(
        **COMMON, sliding_window=8, layer_types=ALTERNATING
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **COMMON, head_dim=8, sliding_window=8, layer_types=ALTERNATING, num_local_experts=4,
        num_experts_per_tok=2,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0,
            "beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 8,
        },
    ),
    # Two layers that divide the text into chunks, one full layer without rotation.
    "llama4": lambda: transformers.Llama4TextConfig(
        **COMMON, head_dim=8, attention_chunk_size=8, no_rope_layers=[1, 0, 1],
        num_local_experts=4, moe_layers=[1], intermediate_size_mlp=48,
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **COMMON | LATENT, n_group=2, topk_group=1
    ),
    # Kimi-K2's proportions: one group of experts, and a yarn rotation.
    "kimi_k2": lambda: transformers.DeepseekV3Config(
        **COMMON | LATENT, n_group=1, topk_group=1,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 50000.0, "factor": 64.0, "beta_fast": 1.0,
            "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4,
        },
    ),
    "gemma3n": lambda: transformers.Gemma3nTextConfig(
        **COMMON | PER_LAYER, laurel_rank=4, altup_num_inputs=2,
        activation_sparsity_pattern=[0.5, 0.0, 0.0, 0.0, 0.0],
    ),
    "gemma4": lambda: transformers.Gemma4TextConfig(**COMMON | PER_LAYER, global_head_dim=16),
    # The larger ones have experts, one matrix for keys and values, and no per-layer embeddings.
    "gemma4_moe": lambda: transformers.Gemma4TextConfig(
        **COMMON, head_dim=8, sliding_window=8, tie_word_embeddings=False, global_head_dim=16,
        num_global_key_value_heads=1, attention_k_eq_v=True, hidden_size_per_layer_input=0,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        enable_moe_block=True, num_experts=4, top_k_experts=2, moe_intermediate_size=24,
        use_bidirectional_attention="vision",
    ),
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **COMMON, **DELTA, layer_types=["linear_attention", "full_attention", "linear_attention"],
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24,
        shared_expert_intermediate_size=24,
    ),
    "qwen3_5": lambda: transformers.Qwen3_5TextConfig(
        **COMMON, **DELTA, layer_types=["linear_attention", "linear_attention", "full_attention"],
    ),
    "mamba2": lambda: transformers.Mamba2Config(
        vocab_size=97, hidden_size=32, num_heads=8, head_dim=8, state_size=8, n_groups=2,
        chunk_size=4, num_hidden_layers=3, initializer_range=0.3, pad_token_id=0, bos_token_id=1,
        eos_token_id=None, tie_word_embeddings=False,
    ),
    "bamba": lambda: transformers.BambaConfig(**COMMON, **MAMBA, attn_layer_indices=[1]),
    # Every layer keeps both; embeddings of ids are scaled, given ones are not.
    "falcon_h1": lambda: transformers.FalconH1Config(
        **COMMON, **MAMBA, mamba_d_ssm=64, head_dim=8, embedding_multiplier=3.0
    ),
    "lfm2": lambda: transformers.Lfm2Config(
        **COMMON, layer_types=["conv", "full_attention", "conv"]
    ),
    "granitemoehybrid": lambda: transformers.GraniteMoeHybridConfig(
        **COMMON, **MAMBA, layer_types=["mamba", "attention", "mamba"], num_local_experts=4,
        num_experts_per_tok=2, shared_intermediate_size=24, embedding_multiplier=3.0,
        position_embedding_type="rope",
    ),
}  # fmt: skip
FAMILIES = tuple(CONFIGS)
# Recurrent layers, whose states keep no single token.
RECURRENT = (
    "qwen3_next", "qwen3_5", "mamba2", "bamba", "falcon_h1", "lfm2", "granitemoehybrid",
)  # fmt: skip
# How exactly logits agree in float64 where a family itself computes in float32, whatever its dtype.
TOLERANCES = {
    "gemma2": 1e-5,  # the softmax of its eager attention
    "deepseek_v3": 1e-5,  # the router: a product whose rounding depends on the number of tokens
    "kimi_k2": 1e-5,  # the same
    "llama4": 1e-5,  # the rotation: a key between two float32 numbers may become either
    # Decays and recurrent states are float32, and sums of chunks differ from sums of steps.
    **dict.fromkeys(("qwen3_next", "qwen3_5"), 1e-4),
    **dict.fromkeys(("mamba2", "bamba", "falcon_h1", "granitemoehybrid"), 1e-4),
}
# The same for gradients, relative: on their way back they pass more that is in float32.
GRADIENT_TOLERANCES = {
    "gemma2": 1e-5,  # the softmax of its eager attention
    "llama4": 1e-6,  # the rotation and the router's sigmoid
    "gemma3n": 1e-6,  # the tanh that mixes its streams
    # the softmax or sigmoid of a router
    **dict.fromkeys(("mixtral", "qwen3_moe", "deepseek_v3", "kimi_k2", "gemma4_moe"), 1e-6),
    # recurrent states and their decays
    **dict.fromkeys(("mamba2", "bamba", "falcon_h1", "granitemoehybrid"), 1e-5),
    **dict.fromkeys(("qwen3_next", "qwen3_5"), 1e-4),
}


def build(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """Return a new model of a family with random weights."""
    config = CONFIGS[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    for parameter in model.parameters():  # norms, biases, gates: what starts as a constant hides
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("batched_mm")  # the default has no float64
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return model.eval()


def save_base(folder: Path, tokenizer: Any) -> str:
    """Write a small llama of a tokenizer's size and the tokenizer; return the folder."""
    options: dict[str, Any] = {
        "dtype": torch.float32,
        "vocab_size": len(tokenizer),
        "eos_token_id": 2,
    }
    build("llama", **options).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


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

    def __init__(self, norm: Any):
        super().__init__()
        self.epsilon = getattr(norm, "variance_epsilon", None) or norm.eps
        weight = getattr(norm, "weight", torch.ones(()).double()).detach()
        # What a norm makes of ones tells whether its weight counts from zero, as some do.
        ones = torch.ones(weight.shape or (8,), dtype=torch.float64)
        self.weight = torch.nn.Parameter(weight + (norm(ones) - weight).mean().round())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)


def with_exact_norms(model: Any) -> Any:
    """Replace a model's norms, so that gradients can be compared to 1e-9."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith(("RMSNorm", "L2Norm")):
                setattr(module, name, ExactNorm(child))
    return model
