"""Tiny vision and audio models of the true classes, in float64, and rows of tokens with media.

Proportions that matter are kept: grouped heads, towers that merge patches, sections of the rotary
axes, windows, experts. Images are patches as processors lay them out; a sound is a spectrogram.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import tiny_models
import torch
import transformers
from torch import Tensor

IMAGE, VIDEO, AUDIO, START, END, NEWLINE = 90, 91, 92, 88, 89, 93
SPECIAL = (IMAGE, VIDEO, AUDIO, START, END, NEWLINE)
TEXT: dict[str, Any] = tiny_models.COMMON | {"tie_word_embeddings": False}
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
VISION: dict[str, Any] = {
    "depth": 2, "hidden_size": 16, "num_heads": 2, "in_channels": 3, "patch_size": 2,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32,
    "intermediate_size": 24, "initializer_range": 0.3,
}  # fmt: skip
IMAGE_IDS = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START,
    "vision_end_token_id": END, "tie_word_embeddings": False,
}  # fmt: skip
GLM_IDS = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "image_start_token_id": START,
    "image_end_token_id": END, "video_start_token_id": 86, "video_end_token_id": 87,
    "tie_word_embeddings": False,
}  # fmt: skip


def _glm4v_text() -> dict[str, Any]:
    return TEXT | {"head_dim": 8, "rope_parameters": ROPE | {"mrope_section": [1, 2, 1]}}


CONFIGS: dict[str, Any] = {
    "qwen2_5_vl": lambda: transformers.Qwen2_5_VLConfig(
        text_config=TEXT | {"rope_parameters": ROPE | {"mrope_section": [2, 1, 1]}},
        vision_config=VISION | {"window_size": 8, "fullatt_block_indexes": [1]},
        **IMAGE_IDS,
    ),
    # Features of an inner layer of the tower are added in the first layers of the decoder.
    "qwen3_vl": lambda: transformers.Qwen3VLConfig(
        text_config=TEXT
        | {
            "head_dim": 8,
            "rope_parameters": ROPE | {"mrope_section": [2, 1, 1], "mrope_interleaved": True},
        },
        vision_config=VISION | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        **IMAGE_IDS,
    ),
    "glm4v": lambda: transformers.Glm4vConfig(
        text_config=_glm4v_text(), vision_config=VISION | {"image_size": 8}, **GLM_IDS
    ),
    "glm4v_moe": lambda: transformers.Glm4vMoeConfig(
        text_config=_glm4v_text()
        | {
            "moe_intermediate_size": 24, "num_experts_per_tok": 2, "n_shared_experts": 1,
            "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
            "partial_rotary_factor": 1.0,
        },
        vision_config=VISION | {"image_size": 8},
        **GLM_IDS,
    ),
    "glm46v": lambda: transformers.Glm46VConfig(
        text_config=_glm4v_text() | {"model_type": "glm4v_text"},
        vision_config=VISION | {"image_size": 8, "model_type": "glm4v_vision"},
        **GLM_IDS,
    ),
    # Four axes of positions, and tokens of the tower's own around an image and after its rows.
    "hunyuan_vl": lambda: transformers.HunYuanVLConfig(
        text_config=TEXT
        | {"head_dim": 8, "rope_parameters": ROPE | {"mrope_section": [1, 1, 1, 1]}},
        vision_config={
            "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
            "num_key_value_heads": 2, "num_channels": 3, "num_hidden_layers": 2,
            "out_hidden_size": 32, "text_hidden_size": 32, "patch_size": 2,
            "spatial_merge_size": 2, "temporal_patch_size": 1, "img_max_token_num": 16,
            "max_image_size": 16, "min_image_size": 4, "max_vit_seq_len": 64,
        },
        image_token_id=IMAGE, im_start_id=START, im_end_id=END, im_newline_id=NEWLINE,
        tie_word_embeddings=False,
    ),
    # The tokens of one image see each other in both directions; windows of eight tokens.
    "gemma3": lambda: transformers.Gemma3Config(
        text_config=TEXT
        | tiny_models.GEMMA
        | {"layer_types": tiny_models.ALTERNATING, "model_type": "gemma3_text"},
        vision_config={
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 8, "patch_size": 2,
            "model_type": "siglip_vision_model",
        },
        mm_tokens_per_image=4, image_token_index=IMAGE, boi_token_index=START,
        eoi_token_index=END, tie_word_embeddings=False,
    ),
    "glmasr": lambda: transformers.GlmAsrConfig(
        text_config=TEXT | {"model_type": "llama", "head_dim": 8},
        audio_config={
            "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "num_mel_bins": 6,
            "max_position_embeddings": 32, "initializer_range": 0.3,
            "model_type": "glmasr_encoder",
        },
        audio_token_id=AUDIO,
        tie_word_embeddings=False,
    ),
    "qwen2_audio": lambda: transformers.Qwen2AudioConfig(
        text_config=TEXT | {"model_type": "qwen2"},
        audio_config={
            "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2,
            "encoder_ffn_dim": 24, "num_mel_bins": 6, "max_source_positions": 16,
            "model_type": "qwen2_audio_encoder",
        },
        audio_token_index=AUDIO,
    ),
}  # fmt: skip
FAMILIES = tuple(CONFIGS)
AUDIO_FAMILIES = ("glmasr", "qwen2_audio")
GRID_FAMILIES = tuple(f for f in FAMILIES if f not in (*AUDIO_FAMILIES, "gemma3"))
# How exactly logits agree in float64 where a family itself computes in float32, whatever its dtype.
TOLERANCES = {
    "glm4v_moe": 1e-5,  # the router: a product whose rounding depends on the number of tokens
}


def build(family: str, seed: int = 0, vocabulary: Any = None) -> Any:
    """Return a new model of a family with random weights, with the ids of a tokenizer if given."""
    torch.manual_seed(seed)
    config = CONFIGS[family]()
    if vocabulary is not None:
        config.get_text_config().vocab_size = 280
        config.image_token_id = vocabulary.convert_tokens_to_ids("<|image|>")
        config.audio_token_id = vocabulary.convert_tokens_to_ids("<|AUDIO|>")
        if family == "qwen2_audio":  # two seconds of sound
            config.audio_config.max_source_positions = 100
    model = transformers.AutoModelForMultimodalLM.from_config(config, dtype=torch.float64)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
        elif parameter.std() < 0.1:  # towers that start small would hardly be heard
            parameter.data += 0.2 * torch.randn_like(parameter)
    # Special ids are never what greedy decoding says.
    special = range(10) if vocabulary is not None else SPECIAL
    model.get_output_embeddings().weight.data[list(special)] = 0
    if model._can_set_experts_implementation():
        model.set_experts_implementation("batched_mm")  # the default has no float64
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = None
    return model.eval()


@functools.cache
def shared(family: str) -> Any:
    """Return the family's model that tests read and never change."""
    return build(family)


@dataclass(frozen=True, eq=False)
class MediaRow:
    """One unpadded row: ids `[T]`, and the media that its placeholders stand for."""

    ids: Tensor
    media: dict[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: "MediaRow") -> "MediaRow":
        """Append a turn."""
        return MediaRow(torch.cat([self.ids, other.ids]), joined([self, other]))


def text(length: int, seed: int = 2) -> MediaRow:
    """Return a row of `length` random ids that are no special ones."""
    return MediaRow(3 + (tiny_models.ids(length, seed) - 3) % 80)


def image(family: str, height: int = 2, width: int = 2, seed: int = 0) -> MediaRow:
    """Return the tokens of one image of merged patches, or of one sound, and its features."""
    generator = torch.Generator().manual_seed(100 * height + 10 * width + seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if family in AUDIO_FAMILIES:
        return _sound(family, height * width + 1, noise)
    if family == "gemma3":
        count, media = 4, {"pixel_values": noise(1, 3, 8, 8)}
    else:
        size = 12 if family == "hunyuan_vl" else 24
        grid = torch.tensor([[1, 2 * height, 2 * width]])
        media = {"pixel_values": noise(4 * height * width, size), "image_grid_thw": grid}
        count = height * width
        if family == "hunyuan_vl":
            count = height * (width + 1) + 2
    ids = torch.tensor([START, *[IMAGE] * count, END])
    return MediaRow(ids, media)


def _sound(family: str, num_tokens: int, noise: Any) -> MediaRow:
    """Return a sound; glmasr reads a long one in windows of at most 4 tokens."""
    size, frames = (4, 8) if family == "glmasr" else (8, 4)  # tokens, frames of each token
    lengths = [min(size, num_tokens - start) for start in range(0, num_tokens, size)]
    mask = torch.zeros(len(lengths), 32, dtype=torch.long)
    for window, length in enumerate(lengths):
        mask[window, : frames * length] = 1
    name = "input_features_mask" if family == "glmasr" else "feature_attention_mask"
    media = {"input_features": noise(len(lengths), 6, 32), name: mask}
    return MediaRow(torch.tensor([START, *[AUDIO] * num_tokens, END]), media)


def joined(rows: Sequence[MediaRow]) -> dict[str, Tensor]:
    """Return the media of rows, one after another, as processors do."""
    names = {name: None for row in rows for name in row.media}
    return {name: torch.cat([r.media[name] for r in rows if name in r.media]) for name in names}
