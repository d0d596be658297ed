"""Write the table of sizes in docs/systems.md: `python docs/make_systems.py [--check]`.

Parameters are counted on transformers' own classes, built without memory from the proportions of
the published checkpoints; bytes are arithmetic from them.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from page import write_or_check

from foreword.loading.checkpoint import model_class

PAGE = Path(__file__).parent / "systems.md"
BEGIN, END = "<!-- sizes: python docs/make_systems.py -->\n", "<!-- end of sizes -->\n"
NUM_VIRTUAL = 32
GB = 1e9

LLAMA_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
KIMI_K2 = {
    "vocab_size": 163840, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61,
    "num_attention_heads": 64, "num_key_value_heads": 64, "n_routed_experts": 384,
    "num_experts_per_tok": 8, "moe_intermediate_size": 2048, "n_shared_experts": 1,
    "first_k_dense_replace": 1, "q_lora_rank": 1536, "kv_lora_rank": 512, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip
QWEN2_7B = {
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4,
}  # fmt: skip
# System, configuration, and where its proportions come from.
SYSTEMS: list[tuple[str, Any, str]] = [
    ("Llama-3.1-8B-Instruct", transformers.LlamaConfig(**LLAMA_8B), "published"),
    ("AutoGLM-Phone-9B", transformers.Glm4vConfig(), "transformers' defaults"),
    ("Kimi-K2-Thinking", transformers.DeepseekV3Config(**KIMI_K2), "published"),
    ("GLM-4.6V", transformers.Glm4vMoeConfig(text_config={"head_dim": 128}), "published"),
    ("GLM-ASR-Nano-2512", transformers.GlmAsrConfig(), "transformers' defaults"),
    ("Spark-Formalizer-X1-7B", transformers.Qwen2Config(**QWEN2_7B), "a 7B qwen2, in its place"),
]


def num_parameters(config: Any) -> int:
    """Count a model's parameters without allocating any."""
    with torch.device("meta"):
        model = model_class(config).from_config(config, trust_remote_code=False)
    return sum(parameter.numel() for parameter in model.parameters())


def prefix_numbers(config: Any) -> int:
    """Count the numbers that all layers cache of one token."""
    text = config.get_text_config(decoder=True)
    if latent := getattr(text, "kv_lora_rank", None):
        return text.num_hidden_layers * (latent + text.qk_rope_head_dim)
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return text.num_hidden_layers * 2 * text.num_key_value_heads * size


def table() -> str:
    """Return the table between the two marks."""
    lines = [
        "| system | proportions | parameters | base in bfloat16 | prefix per virtual token "
        f"| prefix of {NUM_VIRTUAL} | training state of that, float32 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, config, source in SYSTEMS:
        count, numbers = num_parameters(config), prefix_numbers(config)
        lines.append(
            f"| {name} | {source} | {count / 1e9:,.1f}B | {2 * count / GB:,.0f} GB "
            f"| {2 * numbers / 1e3:,.0f} kB | {2 * numbers * NUM_VIRTUAL / 1e6:,.1f} MB "
            f"| {16 * numbers * NUM_VIRTUAL / 1e6:,.1f} MB |"
        )
    return BEGIN + "\n" + "\n".join(lines) + "\n\n" + END


def main() -> int:
    """Write the table, or say whether the page has it."""
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    new = before + table() + rest.split(END)[1]
    return write_or_check(PAGE, new, "has other sizes; run: python docs/make_systems.py")


if __name__ == "__main__":
    sys.exit(main())
