"""Text in, text out: a prompt's own way of encoding, batches of any size, streaming.

In: a backbone with a tokenizer, a prompt, text or messages. Out: answers as text. Rows are encoded
as the prompt's training encoded them. Knows no files and prints nothing.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import StoppingCriteria, TextIteratorStreamer

from foreword import encoding
from foreword.backbone import Backbone
from foreword.config import EncodingConfig
from foreword.data import Message
from foreword.errors import InputError
from foreword.prefix import Prefix
from foreword.prompt import SoftPrompt
from foreword.training import padding_id

Text = str | Sequence[Message]


@dataclass(frozen=True)
class Answer:
    """What the model said to one prompt.

    Attributes:
        text: without special tokens.
        num_tokens: generated, the end token included.
        is_finished: whether the model ended it; False where the token limit did.
    """

    text: str
    num_tokens: int
    is_finished: bool


def encoding_of(prompt: SoftPrompt | Prefix | None) -> EncodingConfig:
    """Return how the rows of a prompt's training were encoded, the default if it does not say."""
    saved = dict(prompt.facts.get("encoding") or {}) if prompt is not None else {}
    known = {field.name for field in fields(EncodingConfig)}
    return EncodingConfig(**{name: value for name, value in saved.items() if name in known})


def reads_turns(backbone: Backbone, config: EncodingConfig) -> bool:
    """Return whether a row is a conversation: no row template, and a tokenizer with a chat one."""
    return config.row_template is None and bool(getattr(backbone.tokenizer, "chat_template", None))


def answers(
    backbone: Backbone,
    prompt: SoftPrompt | Prefix | None,
    texts: Sequence[Text],
    config: EncodingConfig | None = None,
    *,
    batch_size: int = 32,
    max_new_tokens: int = 128,
    **options: Any,
) -> Iterator[Answer]:
    """Answer texts in left-padded batches, in order; greedy unless `options` of `generate` say
    otherwise.
    """
    config = config or encoding_of(prompt)
    prefix = backbone.compile(prompt) if isinstance(prompt, SoftPrompt) else prompt
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        rows = [encode(backbone, text, config) for text in part]
        ends = end_tokens(backbone, part[0], config)
        yield from answer_rows(
            backbone, prefix, rows, ends, max_new_tokens=max_new_tokens, **options
        )


def answer_rows(
    backbone: Backbone,
    prefix: Prefix | None,
    rows: list[list[int]],
    ends: list[int],
    *,
    max_new_tokens: int,
    **options: Any,
) -> Iterator[Answer]:
    """Answer rows of ids in one left-padded batch; an answer ends before the first of `ends`."""
    ids, mask = _left_padded(rows, padding_id(backbone))
    output = backbone.generate(
        prefix,
        ids.to(backbone.device),
        mask.to(backbone.device),
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=padding_id(backbone),
        **({"do_sample": False} | options),
    )
    for row in output[:, ids.shape[1] :].tolist():
        yield _answer(backbone, row, ends)


def stream(
    backbone: Backbone,
    prompt: SoftPrompt | Prefix | None,
    text: Text,
    config: EncodingConfig | None = None,
    *,
    max_new_tokens: int = 512,
    **options: Any,
) -> Iterator[str]:
    """Answer one text piece by piece; closing the iterator stops at the next token."""
    config = config or encoding_of(prompt)
    ids = torch.tensor([encode(backbone, text, config)], device=backbone.device)
    streamer = TextIteratorStreamer(backbone.tokenizer, skip_prompt=True, skip_special_tokens=True)
    stop = _Stop()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            backbone.generate(
                prompt,
                ids,
                torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                eos_token_id=end_tokens(backbone, text, config),
                pad_token_id=padding_id(backbone),
                streamer=streamer,
                stopping_criteria=[stop],
                **({"do_sample": False} | options),
            )
        except BaseException as error:
            failures.append(error)
            streamer.end()

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        stop.is_set = True
        worker.join()
    if failures:
        raise failures[0]


def encode(backbone: Backbone, text: Text, config: EncodingConfig) -> list[int]:
    """Return the ids of a text as a row before its answer.

    Raises:
        InputError: the backbone has no tokenizer.
    """
    if backbone.tokenizer is None:
        raise InputError("text needs a tokenizer; give the backbone one, or generate from ids")
    return encoding.encode_prompt(text, backbone.tokenizer, config)


def end_tokens(backbone: Backbone, text: Text, config: EncodingConfig) -> list[int]:
    """Return the ids that end an answer: the encoding's own and the model's."""
    own = encoding.end_ids(text, backbone.tokenizer, config)[-1:]
    known = backbone.model.generation_config.eos_token_id
    model_ends = known if isinstance(known, list) else [known]
    return list(dict.fromkeys([*own, *(end for end in model_ends if end is not None)]))


class _Stop(StoppingCriteria):
    def __init__(self) -> None:
        self.is_set = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.is_set, device=input_ids.device)


def _left_padded(rows: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    length = max(len(row) for row in rows)
    ids = [[pad_id] * (length - len(row)) + row for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def _answer(backbone: Backbone, row: list[int], ends: list[int]) -> Answer:
    stops = [index for index, token in enumerate(row) if token in ends]
    length = stops[0] if stops else len(row)
    text = encoding.decode(row[:length], backbone.tokenizer)
    return Answer(text, length + bool(stops), bool(stops))
