"""Encoding: examples as token ids, by chat template and tokenizer, with labels marked.

In: `Example`s; a tokenizer, or a processor for images and sounds. Out: `Row`s. A row begins with
exactly the ids that `encode_prompt` gives at generation; the ids after them are its labels: the
answer and what closes it. Labels are counted, never told by their ids, so that a padding id equal
to the end id is harmless. Knows no model and no virtual tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from foreword.config import EncodingConfig
from foreword.data import media_parts
from foreword.data.examples import Example, message_text, named
from foreword.data.media_parts import Message
from foreword.data.processor import Media, read, refusal_of, render
from foreword.errors import DataError, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

_PROBE = "foreword-probe"  # stands for an answer, to see what a chat template puts after one


@dataclass(frozen=True)
class Row:
    """The ids of one example; the last `num_labels` of them are its labels, at least one. `media`
    is what its placeholders stand for; `task` what it is a row of, where there are several;
    `is_text` whether it was read as plain text, and not as a conversation or by a row template.
    """

    input_ids: tuple[int, ...]
    num_labels: int
    source: str
    media: Media | None = None
    task: str = ""
    is_text: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_labels <= len(self.input_ids):
            raise DataError(
                f"{self.source}: no label left: expected 1 to {len(self.input_ids)} labels in "
                f"{len(self.input_ids)} tokens, got {self.num_labels}"
            )

    @classmethod
    def from_ids(
        cls, prompt_ids: Sequence[int], completion_ids: Sequence[int], source: str = "ids"
    ) -> Self:
        """A row of ids that are used as they are: no end token is added."""
        return cls((*prompt_ids, *completion_ids), len(completion_ids), source)


@dataclass(frozen=True)
class EncodingReport:
    """What became of the examples; lengths in tokens, virtual tokens not counted."""

    num_rows: int
    num_truncated: int
    num_tokens: int
    num_label_tokens: int

    def __str__(self) -> str:
        return (
            f"{self.num_rows} rows, {self.num_truncated} truncated, {self.num_tokens} tokens, "
            f"{self.num_label_tokens} of them labels"
        )


def encode_prompt(
    prompt: str | Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    config: EncodingConfig,
    *,
    is_closed: bool = False,
) -> list[int]:
    """The ids of everything before the answer, in training and in generation.

    Text without a row template gets the special tokens that the tokenizer adds at the start of a
    text. A row template or a chat template gets exactly the special tokens that it spells out.
    `is_closed`: plain text also gets the end token that the tokenizer adds, as an encoder expects.

    Raises:
        InputError: messages, but neither a row template nor a chat template.
        DataError: messages that the template cannot take.
    """
    return _token_ids(*_prompt_text(prompt, tokenizer, config), tokenizer, is_closed=is_closed)


def encode_turns(
    prompt: str | Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    config: EncodingConfig,
    processor: "ProcessorMixin | None" = None,
    *,
    is_closed: bool = False,
) -> tuple[list[int], Media | None]:
    """The ids of everything before the answer, and the images and sounds between them.

    Raises:
        DataError: a file that cannot be read, media that the processor cannot take, or no
            processor.
    """
    if not media_parts.has_media(prompt):
        return encode_prompt(prompt, tokenizer, config, is_closed=is_closed), None
    assert not isinstance(prompt, str)
    if config.row_template is not None:
        kind = media_parts.first_media(prompt)
        raise DataError(
            f"expected text only for --row-template, found a part of type {kind!r}: leave it out"
        )
    if processor is None:
        kind = media_parts.first_media(prompt)
        raise DataError(
            f"expected text only, found a part of type {kind!r}, and there is no processor that "
            "reads it: load the model with Backbone.load, pass Backbone(..., processor=...), or "
            "leave the part out"
        )
    return read(prompt, processor)


def end_ids(
    prompt: str | Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    config: EncodingConfig,
    processor: "ProcessorMixin | None" = None,
) -> list[int]:
    """The ids that close the answer to a prompt; generation stops at the last of them.

    A chat template's own: what it puts after an answer up to the first special token. Where it
    puts none, and for text, the tokenizer's end token.
    """
    if config.row_template is None and not isinstance(prompt, str):
        answer = {"role": "assistant", "content": _PROBE}
        whole = [*prompt, answer]
        if media_parts.has_media(prompt):
            text = render(whole, processor, is_open=False)
        else:
            text = _render(whole, tokenizer, is_open=False)
        _, shown, after = text.rpartition(_PROBE)
        if not shown:
            raise InputError("the chat template does not show an answer: use --row-template")
        ids = _token_ids(after, False, tokenizer)
        added = tokenizer.added_tokens_decoder
        for count, token_id in enumerate(ids, 1):
            if token_id == tokenizer.eos_token_id or (
                token_id in added and added[token_id].special
            ):
                return ids[:count]
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end token: set its eos_token")
    return [tokenizer.eos_token_id]


def encode(
    example: Example,
    tokenizer: "PreTrainedTokenizerBase",
    config: EncodingConfig,
    context_length: int,
    processor: "ProcessorMixin | None" = None,
) -> Row:
    """One example as a row of at most `context_length` tokens, virtual tokens not counted.

    Raises:
        DataError: the row is too long and not to be truncated, or no label is left of it.
    """
    row = _fit(_encode_whole(example, tokenizer, config, processor), config, context_length)
    return replace(row, task=example.task)


def encode_examples(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    config: EncodingConfig,
    context_length: int,
    processor: "ProcessorMixin | None" = None,
    *,
    are_pairs: bool = False,
) -> tuple[list[Row], EncodingReport]:
    """Every example as a row, in the order given, and what became of them; see `encode`.

    `are_pairs`: what is before the answer is for an encoder and the answer for a decoder: each is
    a text of its own, with the special tokens that the tokenizer adds.
    """
    rows, num_truncated = [], 0
    for example in examples:
        whole = (
            _encode_pair(example, tokenizer, config)
            if are_pairs
            else _encode_whole(example, tokenizer, config, processor)
        )
        rows.append(replace(_fit(whole, config, context_length), task=example.task))
        num_truncated += len(rows[-1].input_ids) < len(whole.input_ids)
    return rows, EncodingReport(
        num_rows=len(rows),
        num_truncated=num_truncated,
        num_tokens=sum(len(row.input_ids) for row in rows),
        num_label_tokens=sum(row.num_labels for row in rows),
    )


def start_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids that the tokenizer puts before a text by itself."""
    whole: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
    plain: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    starts = (cut for cut in range(len(whole)) if whole[cut : cut + len(plain)] == plain)
    return whole[: next(starts, 0)]


def decode(ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> str:
    """The text of generated ids, without special tokens."""
    text = tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _encode_whole(
    example: Example,
    tokenizer: "PreTrainedTokenizerBase",
    config: EncodingConfig,
    processor: "ProcessorMixin | None" = None,
) -> Row:
    media = None
    with named(example.source):
        if media_parts.has_media(example.prompt):
            expanded_ids, media = encode_turns(example.prompt, tokenizer, config, processor)
            assert not isinstance(example.prompt, str)
            text, is_plain = render(example.prompt, processor, is_open=True), False
        else:
            text, is_plain = _prompt_text(example.prompt, tokenizer, config)
        prompt_ids = _token_ids(text, is_plain, tokenizer)
        whole_ids = _token_ids(text + example.completion, is_plain, tokenizer)
        # A token across the border cannot be generated: there the answer is tokenized alone.
        completion_ids = whole_ids[len(prompt_ids) :]
        if whole_ids[: len(prompt_ids)] != prompt_ids:
            completion_ids = _token_ids(example.completion, False, tokenizer)
        if not completion_ids:
            raise DataError("no label left: the tokenizer knows nothing in the completion")
        closing_ids = end_ids(example.prompt, tokenizer, config, processor)
    if completion_ids[-len(closing_ids) :] != closing_ids:
        completion_ids += closing_ids
    if media is not None:  # in the text, one placeholder stands for an image's many
        prompt_ids = expanded_ids
    length = len(completion_ids)
    return Row((*prompt_ids, *completion_ids), length, example.source, media, is_text=is_plain)


def _encode_pair(
    example: Example, tokenizer: "PreTrainedTokenizerBase", config: EncodingConfig
) -> Row:
    with named(example.source):
        prompt_ids = encode_prompt(example.prompt, tokenizer, config, is_closed=True)
        target = tokenizer(text_target=example.completion, verbose=False)
        completion_ids: list[int] = list(target["input_ids"])
        closing_ids = end_ids(example.prompt, tokenizer, config)
    if completion_ids[-len(closing_ids) :] != closing_ids:
        completion_ids += closing_ids
    is_text = config.row_template is None and isinstance(example.prompt, str)
    row = Row.from_ids(prompt_ids, completion_ids, example.source)
    return replace(row, is_text=is_text)


def _fit(row: Row, config: EncodingConfig, context_length: int) -> Row:
    limit = min(config.max_length or context_length, context_length)
    length = len(row.input_ids)
    if length <= limit:
        return row
    longer = ", raise --max-length" if limit < context_length else ""
    if row.num_labels > limit:
        raise DataError(
            f"{row.source}: no label left: expected an answer of at most {limit} tokens, "
            f"got {row.num_labels}: shorten it{longer}"
        )
    if not config.truncate:
        raise DataError(
            f"{row.source}: expected at most {limit} tokens, got {length}: shorten the row{longer} "
            "or cut the start of long rows with --truncate"
        )
    if row.media is not None:
        raise DataError(
            f"{row.source}: expected at most {limit} tokens, got {length}, and a row with images "
            f"or sounds is not cut: shorten it{longer}"
        )
    return replace(row, input_ids=row.input_ids[length - limit :])


def _prompt_text(
    prompt: str | Sequence[Message], tokenizer: "PreTrainedTokenizerBase", config: EncodingConfig
) -> tuple[str, bool]:
    """The text before the answer, and whether it is plain: without special tokens of its own."""
    if config.row_template is not None:
        return config.row_template.replace("{prompt}", _only_text(prompt)), False
    if isinstance(prompt, str):
        return prompt, True
    return _render(prompt, tokenizer, is_open=True), False


def _only_text(prompt: str | Sequence[Message]) -> str:
    if isinstance(prompt, str):
        return prompt
    roles = [message["role"] for message in prompt]
    if roles != ["user"]:
        raise DataError(
            f"expected one user message for --row-template, found {', '.join(roles) or 'none'}: "
            "leave out the others, or use the chat template"
        )
    return message_text(prompt[0])


def _render(
    messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", is_open: bool
) -> str:
    """The chat template's text of a conversation; open: up to where the next answer begins."""
    if tokenizer.chat_template is None:
        raise InputError("the tokenizer has no chat template for messages: use --row-template")
    if not messages:
        raise DataError("expected at least one message, found none")
    # Templates of text models print a list of parts as Python code.
    plain = [{**message, "content": message_text(message)} for message in messages]
    try:
        text = tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=is_open)
    except Exception as error:  # a template is a program: messages can make it raise anything
        raise refusal_of(error) from error
    assert isinstance(text, str)
    return text


def _token_ids(
    text: str, is_plain: bool, tokenizer: "PreTrainedTokenizerBase", *, is_closed: bool = False
) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=is_plain, verbose=False)["input_ids"]
    # A tokenizer that closes every text by itself would close it before the answer.
    if is_plain and not is_closed and tokenizer.eos_token_id in tokenizer("a")["input_ids"][-1:]:
        return ids[:-1]
    return ids
