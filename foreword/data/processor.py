"""Multimodal processor: conversations with images or sounds as text, or as ids and features.

In: messages, and a processor of transformers. Out: their text, or their ids and what the processor
made of the media. Knows no answers and no labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jinja2 import TemplateError
from torch import Tensor

from foreword.compat.error_lines import first_line
from foreword.data import media_parts
from foreword.data.chat_template import refusal
from foreword.data.media_parts import Message
from foreword.errors import DataError

if TYPE_CHECKING:
    from transformers import ProcessorMixin


@dataclass(frozen=True, eq=False)
class Media:
    """What a processor made of one row's images and sounds, by the model's argument names."""

    tensors: Mapping[str, Tensor]

    @property
    def num_bytes(self) -> int:
        """Size in bytes."""
        return sum(value.nbytes for value in self.tensors.values())

    def __eq__(self, other: object) -> bool:
        """Whether both hold the same numbers."""
        return (
            isinstance(other, Media)
            and self.tensors.keys() == other.tensors.keys()
            and all(torch.equal(value, other.tensors[name]) for name, value in self.tensors.items())
        )

    def __hash__(self) -> int:
        return hash(tuple((name, value.shape) for name, value in sorted(self.tensors.items())))


def read(
    messages: Sequence[Message], processor: "ProcessorMixin", chat_template: str | None = None
) -> tuple[list[int], Media]:
    """Return the ids of everything before the answer, and the images and sounds between them.

    Raises:
        DataError: a file that cannot be read, or messages that the processor cannot take.
    """
    rate = getattr(getattr(processor, "feature_extractor", None), "sampling_rate", None)
    turns = media_parts.load(messages, rate)
    try:
        found = processor.apply_chat_template(
            turns,
            chat_template=chat_template,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
        )
    except TemplateError as error:
        raise refusal(error) from error
    except Exception as error:  # a processor meets sizes and files here that nobody tried before
        is_said = isinstance(error, ValueError | TypeError | KeyError | IndexError)
        reason = first_line(error) if is_said else type(error).__name__
        raise DataError(f"the processor cannot take the messages: {reason}") from error
    # Token types follow from the ids, and are computed from them for the forward pass.
    media = {
        name: value
        for name, value in found.items()
        if name not in ("input_ids", "attention_mask") and not name.endswith("token_type_ids")
    }
    return found["input_ids"][0].tolist(), Media(media)


def render(
    messages: Sequence[Message],
    processor: "ProcessorMixin | None",
    chat_template: str | None = None,
    *,
    is_open: bool = False,
) -> str:
    """Return the text of a conversation by the chat template of the processor, or by the one that
    is given.
    """
    assert processor is not None  # `RowText.check_media` has refused
    turns = [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]
    try:
        text = processor.apply_chat_template(
            turns, chat_template=chat_template, tokenize=False, add_generation_prompt=is_open
        )
    except Exception as error:  # a template is a program, and does what it likes
        raise refusal(error) from error
    assert isinstance(text, str)
    return text
