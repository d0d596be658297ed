"""Each system's architecture in miniature: its own model class, and its own processor class, with
random weights. Where the weights are at hand, nothing of this file is needed.

`checkpoint("glm4v")` writes one into a temporary directory, as `save_pretrained` does, and returns
its path: from there on it is loaded like any other.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

SPECIAL = [
    "<|pad|>", "<|im_start|>", "<|im_end|>", "<|image|>", "<|begin_of_image|>",
    "<|end_of_image|>", "<|video|>", "<|begin_of_video|>", "<|end_of_video|>", "<|audio|>",
]  # fmt: skip
SPEECH = [f"<|speech_{index}|>" for index in range(32)]  # what GLM-TTS emits
MARKS = ["<|begin_of_audio|>", "<|end_of_audio|>"]
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), *SPEECH, *MARKS]
IDS = {token: index for index, token in enumerate(TOKENS)}
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|begin_of_image|><|image|><|end_of_image|>{% elif part['type'] == 'audio' %}<|audio|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT: dict[str, Any] = {
    "vocab_size": len(TOKENS), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 4096, "initializer_range": 0.15, "pad_token_id": 0,
    "bos_token_id": None, "eos_token_id": IDS["<|im_end|>"], "tie_word_embeddings": False,
}  # fmt: skip
NO_HEAD_DIM = {key: value for key, value in TEXT.items() if key != "head_dim"}
EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 32, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
VISION: dict[str, Any] = {
    "depth": 2, "hidden_size": 32, "num_heads": 2, "in_channels": 3, "patch_size": 4,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 64,
    "intermediate_size": 64, "initializer_range": 0.15, "image_size": 32,
}  # fmt: skip
GLM_IDS = {
    "image_token_id": IDS["<|image|>"], "video_token_id": IDS["<|video|>"],
    "image_start_token_id": IDS["<|begin_of_image|>"],
    "image_end_token_id": IDS["<|end_of_image|>"],
    "video_start_token_id": IDS["<|begin_of_video|>"],
    "video_end_token_id": IDS["<|end_of_video|>"], "tie_word_embeddings": False,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
YARN = {
    "rope_type": "yarn", "rope_theta": 50000.0, "factor": 64.0, "beta_fast": 1.0, "beta_slow": 1.0,
    "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 64,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 512,
}  # fmt: skip


def _glm_text(**more: Any) -> dict[str, Any]:
    return TEXT | {"rope_parameters": ROPE | {"mrope_section": [2, 3, 3]}} | more


CONFIGS: dict[str, Any] = {
    "llama": lambda: transformers.LlamaConfig(**TEXT | {"rope_parameters": LLAMA3}),
    "qwen2": lambda: transformers.Qwen2Config(**NO_HEAD_DIM),
    # Latents of 16 numbers and rotated keys of 8 are all that is cached; four heads read them.
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **NO_HEAD_DIM | EXPERTS | {
            "num_key_value_heads": 4, "kv_lora_rank": 16, "q_lora_rank": 24,
            "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16,
            "num_mtp_layers": 0, "rope_parameters": YARN,
        }
    ),
    "glm4v": lambda: transformers.Glm4vConfig(
        text_config=_glm_text(), vision_config=VISION, **GLM_IDS
    ),
    "glm4v_moe": lambda: transformers.Glm4vMoeConfig(
        text_config=_glm_text(**EXPERTS, partial_rotary_factor=1.0),
        vision_config=VISION,
        **GLM_IDS,
    ),
    "hunyuan_vl": lambda: transformers.HunYuanVLConfig(
        text_config=TEXT | {"rope_parameters": ROPE | {"mrope_section": [2, 2, 2, 2]}},
        vision_config={
            "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2,
            "num_key_value_heads": 2, "num_channels": 3, "num_hidden_layers": 2,
            "out_hidden_size": 64, "text_hidden_size": 64, "patch_size": 4,
            "spatial_merge_size": 2, "temporal_patch_size": 1, "img_max_token_num": 64,
            "max_image_size": 64, "min_image_size": 8, "max_vit_seq_len": 256,
        },
        image_token_id=IDS["<|image|>"], im_start_id=IDS["<|begin_of_image|>"],
        im_end_id=IDS["<|end_of_image|>"], im_newline_id=IDS["<|video|>"],
        tie_word_embeddings=False,
    ),
    "glmasr": lambda: transformers.GlmAsrConfig(
        text_config=TEXT | {"model_type": "llama"},
        audio_config={
            "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "num_mel_bins": 16,
            "max_position_embeddings": 128, "initializer_range": 0.15,
            "model_type": "glmasr_encoder",
        },
        audio_token_id=IDS["<|audio|>"],
        tie_word_embeddings=False,
    ),
}  # fmt: skip


def checkpoint(kind: str) -> str:
    """Write a model of a kind, its tokenizer and its processor; return the directory."""
    directory = Path(tempfile.mkdtemp(prefix=f"tiny-{kind}-"))
    torch.manual_seed(0)
    config = CONFIGS[kind]()
    auto = (
        transformers.AutoModelForMultimodalLM
        if getattr(config, "vision_config", None) or getattr(config, "audio_config", None)
        else transformers.AutoModelForCausalLM
    )
    auto.from_config(config, trust_remote_code=False).save_pretrained(directory)
    for part in _parts(kind):
        part.save_pretrained(directory)
    return str(directory)


def _tokenizer() -> Any:
    backend = Tokenizer(models.BPE(vocab=IDS, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = [*SPECIAL, *SPEECH, *MARKS]
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        extra_special_tokens={
            "image_token": "<|image|>", "video_token": "<|video|>", "audio_token": "<|audio|>",
            "image_start_token": "<|begin_of_image|>", "image_end_token": "<|end_of_image|>",
        },
        chat_template=TEMPLATE,
    )  # fmt: skip


def _parts(kind: str) -> list[Any]:
    """Return what turns text, images and sounds into inputs: small patches, short windows."""
    small = {"patch_size": 4, "merge_size": 2, "size": {"shortest_edge": 64, "longest_edge": 4096}}
    text = _tokenizer()
    if kind == "glmasr":
        features = transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
        kwargs = {"chat_template": TEMPLATE, "audio_token": "<|audio|>"}
        return [transformers.GlmAsrProcessor(features, text, **kwargs)]
    if kind == "hunyuan_vl":
        images = transformers.HunYuanVLImageProcessorPil(**small)
        return [transformers.HunYuanVLProcessor(images, text, chat_template=TEMPLATE)]
    if kind in ("glm4v", "glm4v_moe"):
        return [transformers.Glm4vImageProcessorPil(**small), text]
    return [text]
