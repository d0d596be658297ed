"""Encoding: examples as token ids, by chat template and tokenizer, with labels marked.

In: `Example`s; a tokenizer, or a processor for images and sounds. Out: `Row`s. A row begins with
exactly the ids that `encode_prompt` gives at generation; the ids after them are its labels: the
answer and what closes it. Labels are counted, never told by their ids, so that a padding id equal
to the end id is harmless. Special tokens are those that a template writes; what the text of a row
spells is plain text. Knows no model and no virtual tokens.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from foreword.config import EncodingConfig
from foreword.data import media_parts, token_bounds, truncation
from foreword.data.chat_template import Tools, around
from foreword.data.example import Example, counted, message_text, named
from foreword.data.held_text import behind
from foreword.data.media_parts import Message
from foreword.data.probes import PROBE
from foreword.data.processor import Media, read
from foreword.data.row import Row as Row
from foreword.data.row_text import RowText
from foreword.data.special_tokens import shown
from foreword.data.tokenizing import token_ids
from foreword.data.unsaid_answers import unsaid
from foreword.errors import DataError, InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

NO_LIMIT = truncation.NO_LIMIT


@dataclass(frozen=True)
class EncodingReport:
    """What became of the examples; lengths in tokens, virtual tokens not counted. `notes` name what
    of the messages the chat template does not read, and answers that the labels do not hold.
    """

    num_rows: int
    num_truncated: int
    num_tokens: int
    num_label_tokens: int
    notes: tuple[str, ...] = ()

    def beside(self, other: "EncodingReport") -> "EncodingReport":
        """Return what became of rows that have a second answer each, given what became of these."""
        return EncodingReport(
            self.num_rows,
            max(self.num_truncated, other.num_truncated),
            self.num_tokens + other.num_tokens,
            self.num_label_tokens + other.num_label_tokens,
            tuple(dict.fromkeys((*self.notes, *other.notes))),
        )

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
    tools: Tools = (),
    is_closed: bool = False,
    max_tokens: int | None = None,
) -> list[int]:
    """The ids of everything before the answer, in training and in generation.

    Plain text gets the special tokens that the tokenizer adds at the start of a text. One that
    begins with a special token is a filled template: its special tokens are read, and its start
    token is not doubled. Any other special token that a text or a message spells is plain text,
    unless `config.special_tokens`. `is_closed`: plain text also gets the end token that the
    tokenizer adds, as an encoder expects. `max_tokens`: what has certainly more is refused before
    it is tokenized; None tokenizes all.

    Raises:
        InputError: messages, but neither a row template nor a chat template; too long a text.
        DataError: messages that the template cannot take, or does not show.
    """
    text = RowText(tokenizer, config, tools=tools)
    prompt = text.as_asked(prompt)
    before = text.before(text.whole(prompt))
    if max_tokens is not None:
        token_bounds.check_length(shown(before), tokenizer, max_tokens + config.held_tokens)
    ids = _ids(before, _begins_plain(prompt, config), text, is_closed=is_closed)
    return behind(ids, config)


def encode_turns(
    prompt: str | Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    config: EncodingConfig,
    processor: "ProcessorMixin | None" = None,
    *,
    tools: Tools = (),
    is_closed: bool = False,
    max_tokens: int | None = None,
) -> tuple[list[int], Media | None]:
    """The ids of everything before the answer, and the images and sounds between them.

    Raises:
        InputError: certainly more than `max_tokens`.
        DataError: a file that cannot be read, media that the processor cannot take, or no
            processor.
    """
    if isinstance(prompt, str) or not media_parts.has_media(prompt):
        ids = encode_prompt(
            prompt, tokenizer, config, tools=tools, is_closed=is_closed, max_tokens=max_tokens
        )
        return ids, None
    text = RowText(tokenizer, config, processor, tools)
    text.check_media(prompt)
    assert processor is not None  # `check_media` has refused
    opened, behind = text.before_media(prompt)
    if max_tokens is not None:
        token_bounds.check_length(opened, tokenizer, max_tokens)
    ids, media = read(prompt, processor, text.media_template)
    return [*ids, *text.special.read_behind(behind)], media


def encode_begun(
    turns: Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    config: EncodingConfig,
    *,
    tools: Tools = (),
    max_tokens: int | None = None,
) -> list[int]:
    """The ids of a conversation that ends with the beginning of an answer, which is to go on: those
    that a row of training with such an answer begins with.

    Raises:
        InputError: certainly more than `max_tokens`.
        DataError: the last turn is no answer, or there are images or sounds.
    """
    if not turns or turns[-1]["role"] != "assistant":
        raise DataError("expected a last message of the assistant, which the answer goes on from")
    if media_parts.has_media(turns):
        raise DataError("an answer that has begun cannot go on beside images or sounds")
    *asked, last = turns
    text, said = RowText(tokenizer, config, tools=tools), message_text(last)
    whole = text.whole(text.as_asked(asked))
    is_plain = _begins_plain(whole, config)
    before = text.before(whole)
    begun = text.answer(Example(whole, said), said, before)
    if max_tokens is not None:
        most = max_tokens + config.held_tokens
        token_bounds.check_length(shown(before + begun), tokenizer, most)
    prompt_ids, ids = _ids(before, is_plain, text), _ids(before + begun, is_plain, text)
    is_cut = ids[: len(prompt_ids)] != prompt_ids  # by a token across the border
    return behind([*prompt_ids, *text.special.read_behind(begun)] if is_cut else ids, config)


def end_ids(
    prompt: str | Sequence[Message],
    tokenizer: "PreTrainedTokenizerBase",
    config: EncodingConfig,
    processor: "ProcessorMixin | None" = None,
    tools: Tools = (),
) -> list[int]:
    """The ids that close the answer to a prompt; generation stops at the last of them.

    A chat template's own: what it puts after an answer up to the first special token. Where it
    puts none, and for text, the tokenizer's end token. A text that is a filled template is closed
    as the chat template closes an answer.
    """
    text = RowText(tokenizer, config, processor, tools)
    ids = text.special.read_behind(text.after(text.as_asked(prompt)))
    added = tokenizer.added_tokens_decoder
    for count, token_id in enumerate(ids, 1):
        if token_id == tokenizer.eos_token_id or (token_id in added and added[token_id].special):
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

    def whole(part: Example) -> Row:
        return _encode_whole(part, tokenizer, config, processor)

    def fixed(part: Example) -> tuple[list[int], list[int]]:
        return _fixed_ids(part, tokenizer, config)

    with named(example.source):
        text = RowText(tokenizer, config, processor, example.tools)
        asked = text.as_asked(example.prompt)
    example = replace(example, prompt=asked if isinstance(asked, str) else tuple(asked))
    return truncation.fit(example, whole(example), config, context_length, whole, fixed)


def encode_examples(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    config: EncodingConfig,
    context_length: int,
    processor: "ProcessorMixin | None" = None,
    *,
    are_pairs: bool = False,
    pair_rooms: tuple[int, int] = (NO_LIMIT, NO_LIMIT),
) -> tuple[list[Row], EncodingReport]:
    """Every example as a row, in the order given, and what became of them; see `encode`.

    `are_pairs`: what is before the answer is for an encoder and the answer for a decoder: each is
    a text of its own, with the special tokens that the tokenizer adds.
    """
    if are_pairs:
        rows = [
            truncation.fit_pair(_encode_pair(example, tokenizer, config), config, *pair_rooms)
            for example in examples
        ]
    else:
        rows = [
            encode(example, tokenizer, config, context_length, processor) for example in examples
        ]
    return rows, EncodingReport(
        num_rows=len(rows),
        num_truncated=sum(row.is_truncated for row in rows),
        num_tokens=sum(len(row.input_ids) for row in rows),
        num_label_tokens=sum(row.num_labels for row in rows),
        notes=(*_unused(examples, tokenizer, config), *unsaid(examples, rows, tokenizer)),
    )


def start_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids that the tokenizer puts before a text by itself."""
    return _added_ids(tokenizer)[0]


def _added_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before a text by itself, and those that it puts behind it."""
    whole = token_ids(tokenizer, "a", add_special_tokens=True)
    plain = token_ids(tokenizer, "a", add_special_tokens=False)
    starts = (cut for cut in range(len(whole)) if whole[cut : cut + len(plain)] == plain)
    start = next(starts, 0)
    return whole[:start], whole[start + len(plain) :]


def decode(
    ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase", kept: Collection[int] = ()
) -> str:
    """The text of generated ids, without special tokens but for those that are kept."""
    has_kept = not frozenset(kept).isdisjoint(ids)
    if has_kept:
        added = tokenizer.added_tokens_decoder
        special = {one for one, token in added.items() if token.special} - {*kept}
        ids = [one for one in ids if one not in special]
    text = tokenizer.decode(
        list(ids), skip_special_tokens=not has_kept, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text


# --- an example as ids --------------------------------------------------------------------------


def _encode_whole(
    example: Example,
    tokenizer: "PreTrainedTokenizerBase",
    config: EncodingConfig,
    processor: "ProcessorMixin | None" = None,
) -> Row:
    prompt, media = example.prompt, None
    is_plain = _begins_plain(prompt, config)
    text = RowText(tokenizer, config, processor, example.tools)
    with named(example.source):
        _check_fields(example.prompt, example.fields, text)
        expanded_ids: list[int] | None = None
        whole = text.whole(prompt)
        if isinstance(prompt, str) or not media_parts.has_media(prompt):
            before = text.before(whole)
        else:
            expanded_ids, media = encode_turns(
                prompt, tokenizer, config, processor, tools=example.tools
            )
            before = "".join(text.before_media(prompt))
        closing_ids = end_ids(prompt, tokenizer, config, processor, example.tools)
        completion = _without_end(example.completion, closing_ids, text)
        answer = text.answer(replace(example, prompt=whole), completion, before)
        prompt_ids = _ids(before, is_plain, text)
        whole_ids = _ids(before + answer, is_plain, text)
        # A token across the border cannot be generated: there the answer is tokenized alone.
        completion_ids = whole_ids[len(prompt_ids) :]
        if whole_ids[: len(prompt_ids)] != prompt_ids:
            completion_ids = text.special.read_behind(answer)
        if not completion_ids:
            raise DataError("no label left: the tokenizer knows nothing in the completion")
        # In the text, one placeholder stands for an image's many.
        ids = behind(prompt_ids, config) if expanded_ids is None else expanded_ids
    row = Row.from_ids(ids, [*completion_ids, *closing_ids], example.source)
    is_text = isinstance(prompt, str) and is_plain and not text.begins_filled(prompt)
    return replace(row, media=media, task=example.task, is_text=is_text)


def _encode_pair(
    example: Example, tokenizer: "PreTrainedTokenizerBase", config: EncodingConfig
) -> Row:
    text = RowText(tokenizer, config)
    with named(example.source):
        _check_fields(example.prompt, example.fields, text)
        if example.is_beyond_text:
            raise DataError(
                "the answer holds a call of tools or reasoning, which a decoder behind an encoder "
                "is not taught: leave it out"
            )
        prompt_ids = encode_prompt(
            example.prompt, tokenizer, config, tools=example.tools, is_closed=True
        )
        closing_ids = end_ids(example.prompt, tokenizer, config, tools=example.tools)
        completion = _without_end(example.completion, closing_ids, text)
        is_literal = not config.special_tokens and text.special.spells(completion)
        options = {"split_special_tokens": True} if is_literal else {}
        completion_ids = token_ids(tokenizer, completion, is_target=True, **options)
    if completion_ids[-len(closing_ids) :] != closing_ids:
        completion_ids += closing_ids
    row = Row.from_ids(prompt_ids, completion_ids, example.source)
    return replace(row, task=example.task, is_text=_begins_plain(example.prompt, config))


def check_fields(
    prompt: str | Sequence[Message],
    fields: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    config: EncodingConfig,
) -> None:
    """Refuse a template with special tokens whose columns spell some, too: nothing tells the two
    apart once it is filled.

    Args:
        prompt: the filled template.
        fields: texts that it was filled with.
        tokenizer: knows the special tokens.
        config: how the prompt is encoded.

    Raises:
        DataError: a column spells one.
    """
    if fields:
        _check_fields(prompt, fields, RowText(tokenizer, config))


def _check_fields(prompt: str | Sequence[Message], fields: Sequence[str], text: RowText) -> None:
    config = text.config
    if not isinstance(prompt, str) or config.special_tokens or config.row_template is not None:
        return
    if text.is_filled(prompt) and any(map(text.special.spells, fields)):
        raise DataError(
            "a column spells a special token inside a --template that begins with one: leave it "
            "out, or give --special-tokens"
        )


def _begins_plain(prompt: str | Sequence[Message], config: EncodingConfig) -> bool:
    """Return whether a row is plain text, without a template of any kind."""
    return config.row_template is None and isinstance(prompt, str)


def _ids(written: str, is_plain: bool, text: RowText, *, is_closed: bool = False) -> list[int]:
    """The ids of what was written, whose marks are plain text, with the start token that it should
    have.
    """
    tokenizer, config = text.tokenizer, text.config
    start, end = _added_ids(tokenizer)
    if is_plain and not text.special.spells(shown(written)):
        ids = token_ids(tokenizer, written, add_special_tokens=True)
        # A tokenizer that closes every text by itself would close it before the answer.
        return ids if is_closed else ids[: len(ids) - len(end)]
    ids = text.special.read(written)
    if is_plain or (config.row_template is not None and config.start_token):
        ids = ids if ids[: len(start)] == start else [*start, *ids]
    is_ended = ids[len(ids) - len(end) :] == end
    return [*ids, *end] if is_plain and is_closed and not is_ended else ids


def _without_end(completion: str, closing_ids: list[int], text: RowText) -> str:
    """Return an answer without the end that it spells out itself."""
    spelled = text.special.end_of(completion)
    ends = (closing_ids[-1], text.tokenizer.eos_token_id)
    if not spelled or text.tokenizer.convert_tokens_to_ids(spelled) not in ends:
        return completion
    return completion.rstrip().removesuffix(spelled)


def _fixed_ids(
    example: Example, tokenizer: "PreTrainedTokenizerBase", config: EncodingConfig
) -> tuple[list[int], list[int]]:
    """The ids that stay where the start of a text is cut: the start token and what a template
    writes before the text, and what it writes between the text and the answer.
    """
    text = RowText(tokenizer, config, tools=example.tools)
    if config.row_template is not None:
        start, _, rest = config.row_template.partition("{prompt}")
        end = "" if "{prompt}" in rest else rest
        return _ids(start, False, text), text.special.read_behind(end)
    if isinstance(example.prompt, str):
        return start_ids(tokenizer), []
    *first, last = example.prompt
    turns = text.whole([*first, {**last, "content": PROBE}])
    assert not isinstance(turns, str)
    with named(example.source):
        try:
            start, end = around(PROBE, text.template.opened(turns, config.opening))
        except InputError:
            raise DataError(
                "too long, and the chat template does not show where the last turn begins: shorten "
                "the row"
            ) from None
    return text.special.read(start)[config.held_tokens :], text.special.read_behind(end)


def _unused(
    examples: Sequence[Example], tokenizer: "PreTrainedTokenizerBase", config: EncodingConfig
) -> tuple[str, ...]:
    """Say what of messages the chat template does not show, each with a number of rows."""
    counts: Counter[str] = Counter()
    for example in examples:
        if not isinstance(example.prompt, str):
            counts.update(RowText(tokenizer, config, tools=example.tools).unused(example))
    return tuple(f"{what} is not used ({counted(count)})" for what, count in counts.items())
