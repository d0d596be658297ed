"""Real processors around a tokenizer of 270 tokens, with the tiny models that they feed.

Pictures are drawn and sounds are computed here; nothing is downloaded.
"""

import functools
import math
import wave
from pathlib import Path
from typing import Any

import numpy
import pytest
import tiny_media
import transformers
from PIL import Image, ImageDraw
from tiny_tokenizer import MERGES
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from foreword.loading.processor import without_video

RATE = 16000
VISION_TOKENS = {
    "image_token": "<|image|>", "image_start_token": "<|begin_of_image|>",
    "image_end_token": "<|end_of_image|>", "video_token": "<|video|>",
    "boi_token": "<|begin_of_image|>", "eoi_token": "<|end_of_image|>",
}  # fmt: skip
SPECIAL = [
    "<|pad|>", "<|im_start|>", "<|im_end|>", "<|image|>", "<|begin_of_image|>",
    "<|end_of_image|>", "<|video|>", "<|begin_of_video|>", "<|end_of_video|>", "<|AUDIO|>",
]  # fmt: skip
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE{% elif part['type'] == 'audio' %}<|AUDIO|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FAMILIES = (
    "glm4v",
    "glm46v",
    "qwen2_5_vl",
    "qwen3_vl",
    "hunyuan_vl",
    "gemma3",
    "glmasr",
    "qwen2_audio",
)


def tokenizer(family: str) -> Any:
    """Return the tokenizer; an image of gemma3 is its start token in text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *alphabet, *(left + right for left, right in MERGES)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    whole = "<|begin_of_image|><|image|><|end_of_image|>"
    image = "<|begin_of_image|>" if family == "gemma3" else whole
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        extra_special_tokens=VISION_TOKENS,
        chat_template=TEMPLATE.replace("IMAGE", image),
    )


def processor(family: str) -> Any:
    """Return the family's own processor class, over small patches."""
    text = tokenizer(family)
    template = text.chat_template
    small = {"patch_size": 2, "merge_size": 2, "size": {"shortest_edge": 16, "longest_edge": 64}}
    if family in ("glmasr", "qwen2_audio"):
        features = transformers.WhisperFeatureExtractor(feature_size=6, chunk_length=2)
        name = "GlmAsrProcessor" if family == "glmasr" else "Qwen2AudioProcessor"
        kind = getattr(transformers, name)
        return kind(features, text, chat_template=template, audio_token="<|AUDIO|>")
    if family == "gemma3":
        images = transformers.Gemma3ImageProcessorPil(size={"height": 8, "width": 8})
        return transformers.Gemma3Processor(images, text, template, image_seq_length=4)
    images_of = {
        "glm4v": ("Glm4vImageProcessorPil", "Glm4vProcessor"),
        "glm46v": ("Glm46VImageProcessorPil", "Glm46VProcessor"),
        "qwen2_5_vl": ("Qwen2VLImageProcessorPil", "Qwen2_5_VLProcessor"),
        "qwen3_vl": ("Qwen2VLImageProcessorPil", "Qwen3VLProcessor"),
        "hunyuan_vl": ("HunYuanVLImageProcessorPil", "HunYuanVLProcessor"),
    }
    image_name, name = images_of[family]
    images, kind = or_skip(image_name)(**small), getattr(transformers, name)
    if family == "hunyuan_vl":
        return kind(image_processor=images, tokenizer=text, chat_template=template)
    return without_video(kind, images, text, template)


def or_skip(name: str) -> Any:
    """Return a class of transformers; skip where its release needs torchvision for it."""
    try:
        found = getattr(transformers, name)
        found.__mro__[0].from_pretrained  # noqa: B018
    except ImportError:
        pytest.skip(f"this release of transformers has no {name} without torchvision")
    return found


def picture(width: int, height: int, text: str = "") -> Image.Image:
    """Draw a page: a white one with a line of text and a box."""
    page = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(page)
    draw.rectangle((1, 1, width // 2, height // 2), fill=(200, 30, 60))
    draw.text((1, height // 2), text, fill="black")
    return page


def tone(path: Path, seconds: float = 0.5, hertz: float = 440.0, rate: int = RATE) -> Path:
    """Write a sine wave as .wav and return its path."""
    time = numpy.arange(int(seconds * rate)) / rate
    samples = (20000 * numpy.sin(2 * math.pi * hertz * time)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


@functools.cache
def shared(family: str) -> tuple[Any, Any]:
    """Return a tiny model whose ids are the tokenizer's, and the processor."""
    known = processor(family)
    return tiny_media.build(family, vocabulary=known.tokenizer), known
