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

from foreword.backbone import Backbone
from foreword.config import EncodingConfig
from foreword.data import batches, encoding
from foreword.data.examples import Message
from foreword.data.media_parts import has_media
from foreword.errors import InputError
from foreword.prompt.prefix import Prefix
from foreword.prompt.soft_prompt import SoftPrompt

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


def saved_encoding(prompt: SoftPrompt | Prefix | None) -> dict[str, Any]:
    """Return all that a prompt says of how the rows of its training were read."""
    return dict(prompt.facts.get("encoding") or {}) if prompt is not None else {}


def encoding_of(prompt: SoftPrompt | Prefix | None) -> EncodingConfig:
    """Return how the rows of a prompt's training were encoded, the default if it does not say."""
    saved = saved_encoding(prompt)
    known = {field.name for field in fields(EncodingConfig)}
    return EncodingConfig(**{name: value for name, value in saved.items() if name in known})


def reads_turns(backbone: Backbone, prompt: SoftPrompt | Prefix | None) -> bool:
    """Return whether a text is one turn of a conversation, as the rows of a prompt's training were:
    no row template, no plain text, and a tokenizer with a chat template.
    """
    saved = saved_encoding(prompt)
    if saved.get("row_template") is not None or saved.get("is_text"):
        return False
    return bool(getattr(backbone.tokenizer, "chat_template", None))


def typed(backbone: Backbone, prompt: SoftPrompt | Prefix | None, text: str) -> Text:
    """Return what a person types as a row of a prompt's training: one user turn, or text."""
    return [{"role": "user", "content": text}] if reads_turns(backbone, prompt) else text


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
        rows = [encode_row(backbone, text, config) for text in part]
        ends = end_tokens(backbone, part[0], config)
        yield from answer_rows(
            backbone, prefix, rows, ends, max_new_tokens=max_new_tokens, **options
        )


def answer_rows(
    backbone: Backbone,
    prefix: Prefix | Sequence[Prefix] | None,
    rows: Sequence[encoding.Row],
    ends: list[int],
    *,
    max_new_tokens: int,
    **options: Any,
) -> Iterator[Answer]:
    """Answer rows, whose ids are all prompts, in one left-padded batch, behind one prefix or one
    for each; an answer ends before the first of `ends`.
    """
    ids, mask = left_padded([list(row.input_ids) for row in rows], backbone.padding_id)
    output = backbone.generate(
        prefix,
        ids.to(backbone.device),
        mask.to(backbone.device),
        max_new_tokens=max_new_tokens,
        eos_token_id=ends,
        pad_token_id=backbone.padding_id,
        **batches.collate_media(rows),
        **({"do_sample": False} | options),
    )
    # With an encoder, a sequence begins with the decoder's own start.
    num_given = 1 if backbone.capabilities.encoder else ids.shape[1]
    for row in output[:, num_given:].tolist():
        yield read_answer(backbone, row, ends)


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
    row = encode_row(backbone, text, config)
    ids = torch.tensor([row.input_ids], device=backbone.device)
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
                pad_token_id=backbone.padding_id,
                streamer=streamer,
                stopping_criteria=[stop],
                **batches.collate_media([row]),
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
    is_closed = backbone.reads_apart
    return encoding.encode_prompt(text, backbone.tokenizer, config, is_closed=is_closed)


def encode_row(backbone: Backbone, text: Text, config: EncodingConfig) -> encoding.Row:
    """Return a text before its answer, with its images and sounds, as a row.

    Raises:
        InputError: the backbone has no tokenizer, or no processor for media.
    """
    if isinstance(text, str) or not has_media(text):
        ids, media = encode(backbone, text, config), None
    else:
        ids, media = encoding.encode_turns(text, backbone.tokenizer, config, backbone.processor)
    return encoding.Row(tuple(ids), 1, "prompt", media)


def end_tokens(backbone: Backbone, text: Text, config: EncodingConfig) -> list[int]:
    """Return the ids that end an answer: the encoding's own and the model's."""
    own = encoding.end_ids(text, backbone.tokenizer, config, backbone.processor)[-1:]
    known = backbone.model.generation_config.eos_token_id
    model_ends = known if isinstance(known, list) else [known]
    return list(dict.fromkeys([*own, *(end for end in model_ends if end is not None)]))


class TextStream:
    """One answer's ids, one at a time, to text: never half a character, never a stop string.

    Args:
        tokenizer: what the ids are of.
        stop: strings at which the answer ends, without them.

    Attributes:
        is_stopped: whether a stop string came; nothing follows then.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, tuple(stop)
        self.is_stopped = False
        self._ids: list[int] = []  # a window: some whose text is out, then new ones
        self._border = 0  # where the new ones begin
        self._num_told = 0  # characters of the window's text that are out
        self._held = ""  # may be the beginning of a stop string

    def put(self, ids: Sequence[int]) -> str:
        """Take the next ids; return the text that is certain now."""
        self._ids += ids
        whole = encoding.decode(self._ids, self.tokenizer)
        # Up to three replacement characters may be the first bytes of one that is not whole yet.
        num_broken = min(3, len(whole) - len(whole.rstrip("\ufffd")))
        new = whole[self._num_told : len(whole) - num_broken]
        self._num_told += len(new)
        if new and not num_broken:
            self._ids, self._border = self._ids[self._border :], len(self._ids) - self._border
            self._num_told = len(encoding.decode(self._ids, self.tokenizer))
        return self._release(new)

    def end(self) -> str:
        """Return what was held back, now that nothing follows."""
        rest = encoding.decode(self._ids, self.tokenizer)[self._num_told :]
        self._ids, self._border, self._num_told = [], 0, 0
        text = self._release(rest)
        if not self.is_stopped:
            text, self._held = text + self._held, ""
        return text

    def _release(self, text: str) -> str:
        if self.is_stopped:
            return ""
        text = self._held + text
        found = [index for stop in self.stop if (index := text.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        longest = max((_overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - longest :]
        return text[: len(text) - longest]


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of a text begin a stop string."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)


class _Stop(StoppingCriteria):
    def __init__(self) -> None:
        self.is_set = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.is_set, device=input_ids.device)


def left_padded(rows: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows as ids `[B, T]` that end together, and their mask."""
    length = max(len(row) for row in rows)
    ids = [[pad_id] * (length - len(row)) + row for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def read_answer(backbone: Backbone, row: list[int], ends: list[int]) -> Answer:
    """Return generated ids as an answer, up to the first of `ends`."""
    stops = [index for index, token in enumerate(row) if token in ends]
    length = stops[0] if stops else len(row)
    text = encoding.decode(row[:length], backbone.tokenizer)
    return Answer(text, length + bool(stops), bool(stops))
