"""Chat: text in, text out, encoded as a prompt was trained, in batches of any size or as a stream.

In: a backbone with a tokenizer, a prompt, text or messages. Out: answers as text. Rows are encoded
as the prompt's training encoded them. Knows no files and prints nothing.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria

from foreword.backbone import Backbone
from foreword.config import EncodingConfig
from foreword.data import batches, encoding, held_text
from foreword.data.chat_template import ChatTemplate, Tools
from foreword.data.detokenizer import TextStream
from foreword.data.example import named
from foreword.data.media_parts import Message
from foreword.data.processor import Media
from foreword.data.special_tokens import special_tokens_of
from foreword.data.tokenizer_facts import differences
from foreword.errors import DataError, InputError, MismatchError, UnsupportedError
from foreword.generation import answer_options
from foreword.generation.answer_options import check_texts, settings
from foreword.generation.context_watch import ContextWatch
from foreword.generation.row_ends import RowEnds
from foreword.generation.token_stream import TokenStream
from foreword.model import autocast
from foreword.model.argument_types import ids_of
from foreword.prompt.prefix import Prefix
from foreword.prompt.soft_prompt import SoftPrompt

Text = str | Sequence[Message]
THE_TEXT = "the text"
"""What the only text of a call is called."""
OTHER_DTYPE = "load the base in float32 or bfloat16 instead of float16, or train the prompt again"


class OfTokenizer(Protocol):
    """A model with a tokenizer, by which rows are written."""

    def tokenizer_facts(self) -> Mapping[str, Any] | None:
        """Return what tells its tokenizer from another; None where none is known."""


@dataclass(frozen=True)
class Answer:
    """What the model said to one prompt.

    Attributes:
        text: without special tokens.
        num_tokens: generated, the end token included.
        is_finished: whether the model ended it, by an end token; False where the token limit did,
            or a stop string.
        ids: generated, the end token included.
    """

    text: str
    num_tokens: int
    is_finished: bool
    ids: tuple[int, ...] = ()


def saved_encoding(prompt: SoftPrompt | Prefix | None) -> dict[str, Any]:
    """Return all that a prompt says of how the rows of its training were read."""
    return dict(prompt.facts.get("encoding") or {}) if prompt is not None else {}


def encoding_of(prompt: SoftPrompt | Prefix | None) -> EncodingConfig:
    """Return how the rows of a prompt's training were encoded; where nothing says, as a model
    without a prompt is asked: behind the generation prompt of its chat template.
    """
    return EncodingConfig.saved(saved_encoding(prompt))


def check_template(backbone: OfTokenizer, prompt: SoftPrompt | Prefix | None) -> None:
    """Refuse a chat template that is not the one by which the rows of a prompt's training were
    written; rows of plain text and of a row template need none.

    Raises:
        MismatchError: names both.
    """
    saved = saved_encoding(prompt)
    own = saved.get("row_template") is not None or saved.get("chat_template") is not None
    if prompt is None or own or saved.get("is_text", True):
        return
    recorded = prompt.facts.get("tokenizer")
    if found := differences(recorded, backbone.tokenizer_facts(), "chat_template"):
        raise MismatchError(
            f"{found[0]} is not that of the prompt's training, so that texts would be encoded "
            "otherwise; load the tokenizer of its training, or give it that template"
        )


def reads_turns(backbone: Backbone, prompt: SoftPrompt | Prefix | None) -> bool:
    """Return whether a text is one turn of a conversation, as the rows of a prompt's training were:
    no row template, no text that was plain, and a tokenizer with a chat template.
    """
    if saved_encoding(prompt).get("is_text", False) is not False:  # None: some of them were plain
        return False
    config = encoding_of(prompt)
    return config.row_template is None and has_template(backbone, config)


def has_template(backbone: Backbone, config: EncodingConfig) -> bool:
    """Return whether there is a chat template for rows that are encoded so."""
    return ChatTemplate(backbone.tokenizer, given=config.chat_template).is_there


def typed(backbone: Backbone, prompt: SoftPrompt | Prefix | None, text: str) -> Text:
    """Return what a person types as a row of a prompt's training: one user turn, or text. A text
    that begins with a special token is a template that was filled already, as in training.
    """
    config = encoding_of(prompt)
    is_filled = config.held_text is None and begins_filled(backbone, config, text)
    is_turn = not is_filled and reads_turns(backbone, prompt)
    return [{"role": "user", "content": text}] if is_turn else text


def begins_filled(backbone: Backbone, config: EncodingConfig, text: str) -> bool:
    """Return whether a text is a template that was filled already: where no row template says how
    rows are written, one that begins with a special token.
    """
    is_open = config.row_template is None and backbone.tokenizer is not None
    return is_open and special_tokens_of(backbone.tokenizer, config.chat_template).begins(text)


def instructed(
    backbone: Backbone, turns: Sequence[Message], instruction: str, config: EncodingConfig
) -> list[Message]:
    """Return a conversation with an instruction before it, see `data.held_text.instructed`."""
    template = ChatTemplate(backbone.tokenizer, given=config.chat_template)
    return held_text.instructed(turns, instruction, template)


def shows_system_turn(backbone: Backbone, config: EncodingConfig) -> bool:
    """Return whether an instruction can be a turn of its own: whether there is a chat template, and
    it has a system turn.
    """
    template = ChatTemplate(backbone.tokenizer, given=config.chat_template)
    return template.is_there and template.shows_system_turn()


def answers(
    backbone: Backbone,
    prompt: SoftPrompt | Prefix | None,
    texts: Sequence[Text],
    config: EncodingConfig | None = None,
    *,
    tools: Sequence[Tools] = (),
    batch_size: int = 32,
    max_new_tokens: int | None = None,
    **options: Any,
) -> Iterator[Answer]:
    """Answer texts in left-padded batches, in order, with the likeliest ids unless `options` of
    `generate` say otherwise, or a `generation_config` among them; `tools` are shown to each text
    its own, or to none. An answer has at most 128 tokens where nothing else is said. Tokens past
    what the model was made for are said, once.

    Raises:
        InputError: no list of texts, tools of others, or an option that is none of an answer, or
            that would change nothing.
        MismatchError: a prompt of another chat template.
    """
    check_texts(texts, tools, batch_size)
    more = limited(backbone, options, max_new_tokens, 128)
    check_template(backbone, prompt)
    return _answers(backbone, prompt, texts, config, tools=tools, batch_size=batch_size, **more)


def check_options(
    backbone: Backbone, options: Mapping[str, Any], *, is_streamed: bool = False
) -> None:
    """Refuse options of `generate` that are none of an answer, or that would change nothing.

    Raises:
        InputError: names the option.
    """
    known_ends = ids_of(backbone.model.generation_config.eos_token_id)
    answer_options.check_options(options, known_ends, is_streamed=is_streamed)


def limited(
    backbone: Backbone,
    options: Mapping[str, Any],
    given: int | None,
    default: int,
    *,
    is_streamed: bool = False,
) -> dict[str, Any]:
    """Return options, checked, with the most tokens of an answer: those given, else those that the
    configuration of the call says, else the default.
    """
    more = dict(options) if given is None else {**options, "max_new_tokens": given}
    check_options(backbone, more, is_streamed=is_streamed)
    found = settings(more).get("max_new_tokens")
    return more | {"max_new_tokens": default if found is None else found}


def _answers(
    backbone: Backbone,
    prompt: SoftPrompt | Prefix | None,
    texts: Sequence[Text],
    config: EncodingConfig | None,
    *,
    tools: Sequence[Tools],
    batch_size: int,
    **options: Any,
) -> Iterator[Answer]:
    config = config or encoding_of(prompt)
    prefix = backbone.compile(prompt) if isinstance(prompt, SoftPrompt) else prompt
    watch = _watch(backbone, prefix)
    for start in range(0, len(texts), batch_size):
        part = texts[start : start + batch_size]
        shown = list(tools[start : start + batch_size]) if tools else [()] * len(part)
        pairs = list(zip(part, shown, strict=True))
        rows = [
            encode_row(backbone, text, config, own, place_of(number, texts))
            for number, (text, own) in enumerate(pairs, start + 1)
        ]
        stop_ids = [end_tokens(backbone, text, config, own) for text, own in pairs]
        watch.look(max(len(row.input_ids) for row in rows))
        found = answer_rows(backbone, prefix, rows, stop_ids, **options)
        for row, one in zip(rows, found, strict=True):
            watch.look(len(row.input_ids), one.num_tokens)
            yield one


def place_of(number: int, texts: Sequence[Text]) -> str:
    """Return which of some texts one is, in words."""
    return f"text {number}" if len(texts) > 1 else THE_TEXT


def answer_rows(
    backbone: Backbone,
    prefix: Prefix | Sequence[Prefix] | None,
    rows: Sequence[encoding.Row],
    stop_ids: Sequence[list[int]],
    *,
    max_new_tokens: int,
    **options: Any,
) -> Iterator[Answer]:
    """Answer rows, whose ids are all prompts, in left-padded batches, behind one prefix or one for
    each. A row's answer ends before the first of its `stop_ids`; rows that end alike are one batch.
    """
    alike: dict[tuple[int, ...], list[int]] = {}
    for index, own_ends in enumerate(stop_ids):
        alike.setdefault(tuple(own_ends), []).append(index)
    found: dict[int, Answer] = {}
    for ends, indices in alike.items():
        own = (
            prefix if prefix is None or isinstance(prefix, Prefix) else [prefix[i] for i in indices]
        )
        part = [rows[index] for index in indices]
        batch = _answer_batch(
            backbone, own, part, list(ends), max_new_tokens=max_new_tokens, **options
        )
        found |= dict(zip(indices, batch, strict=True))
    yield from (found[index] for index in range(len(rows)))


def _answer_batch(
    backbone: Backbone,
    prefix: Prefix | Sequence[Prefix] | None,
    rows: Sequence[encoding.Row],
    stop_ids: list[int],
    *,
    max_new_tokens: int,
    **options: Any,
) -> Iterator[Answer]:
    ids, mask = left_padded([list(row.input_ids) for row in rows], backbone.padding_id)
    more, ends = chosen(options), RowEnds()
    said = settings(options) if len(rows) > 1 else {}  # one row alone has nothing behind its end
    is_stopped = bool(said.get("stop_strings") or said.get("stopping_criteria"))
    is_searched = is_stopped and (said.get("num_beams") or 1) > 1
    if is_stopped and backbone.capabilities.encoder and not backbone.reads_apart:
        raise UnsupportedError(
            f"stop_strings, stopping_criteria: {backbone.capabilities.model_type} does not tell "
            "where each of several rows has ended; give batch_size=1"
        )
    if is_searched:
        more["return_dict_in_generate"] = True
    elif is_stopped:
        more["stopping_criteria"] = [*(options.get("stopping_criteria") or ()), ends]
    output = backbone.without_habits().generate(
        prefix,
        ids.to(backbone.device),
        mask.to(backbone.device),
        max_new_tokens=max_new_tokens,
        eos_token_id=stop_ids,
        pad_token_id=backbone.padding_id,
        **batches.collate_media(rows),
        **more,
    )
    # With an encoder, a sequence begins with the decoder's own start.
    num_given = 1 if backbone.capabilities.encoder else ids.shape[1]
    num_behind = ends.num_behind() or [0] * len(rows)
    if is_searched:
        num_behind, output = (output.beam_indices < 0).sum(1).tolist(), output.sequences
    for row, num in zip(output[:, num_given:].tolist(), num_behind, strict=True):
        yield read_answer(backbone, row[: len(row) - num], stop_ids)


def stream(
    backbone: Backbone,
    prompt: SoftPrompt | Prefix | None,
    text: Text,
    config: EncodingConfig | None = None,
    *,
    max_new_tokens: int | None = None,
    **options: Any,
) -> Iterator[str]:
    """Answer one text piece by piece: together the text of `answers`, as a server decodes it, but
    of up to 512 tokens where nothing else is said. Closing the iterator stops at the next token.
    Tokens past what the model was made for are said, once. An autocast around the call holds for
    all pieces.

    Raises:
        InputError: an option that is none of an answer, or that would change nothing.
        MismatchError: a prompt of another chat template.
    """
    cast = autocast.carried(backbone.device.type)
    return _stream(backbone, prompt, text, config, cast, max_new_tokens, options)


def _stream(
    backbone: Backbone,
    prompt: SoftPrompt | Prefix | None,
    text: Text,
    config: EncodingConfig | None,
    cast: AbstractContextManager[Any],
    max_new_tokens: int | None,
    options: dict[str, Any],
) -> Iterator[str]:
    more = limited(backbone, options, max_new_tokens, 512, is_streamed=True)
    check_template(backbone, prompt)
    config = config or encoding_of(prompt)
    row = encode_row(backbone, text, config)
    watch = _watch(backbone, prompt)
    watch.look(len(row.input_ids))
    ids = torch.tensor([row.input_ids], device=backbone.device)
    ends = end_tokens(backbone, text, config)
    streamer, stop = TokenStream(), _Stop()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            with cast:
                backbone.without_habits().generate(
                    prompt,
                    ids,
                    torch.ones_like(ids),
                    eos_token_id=ends,
                    pad_token_id=backbone.padding_id,
                    streamer=streamer,
                    stopping_criteria=[stop],
                    **batches.collate_media([row]),
                    **chosen(more),
                )
        except BaseException as error:
            failures.append(error)
            streamer.end()

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    try:
        ids_of_answer = _watched(streamer, watch, len(row.input_ids))
        yield from _pieces(backbone, ids_of_answer, ends)
    finally:
        stop.is_set = True
        worker.join()
    if failures:
        raise failures[0]


def _watch(backbone: Backbone, prompt: SoftPrompt | Prefix | None) -> ContextWatch:
    # An encoder and its decoder each have a context of their own.
    context = None if backbone.reads_apart else backbone.capabilities.context_length
    num_virtual = 0 if prompt is None else prompt.num_virtual_tokens
    return ContextWatch(backbone.name, context, num_virtual)


def _watched(ids: Iterable[int], watch: ContextWatch, num_given: int) -> Iterator[int]:
    for count, one in enumerate(ids, 1):
        watch.look(num_given, count)
        yield one


def _pieces(backbone: Backbone, ids: Iterable[int], ends: Sequence[int]) -> Iterator[str]:
    """Yield the text of ids, up to the first that ends an answer, as soon as it is certain."""
    text = TextStream(backbone.tokenizer)
    for one in ids:
        if one in ends:
            break
        if piece := text.put([one]):
            yield piece
    if rest := text.end():
        yield rest


def chosen(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return how ids are chosen: greedily unless `options` of `generate` say otherwise, and drawn
    from all ids where they name no `top_k`: transformers would take 50. Logits that are not finite
    are refused.
    """
    said = settings(options)
    own: dict[str, Any] = {"do_sample": said.get("do_sample") or False}
    if own["do_sample"] and said.get("top_k") is None:
        own["top_k"] = 0
    finite = LogitsProcessorList([_Finite(), *(options.get("logits_processor") or ())])
    return {**options, **own, "logits_processor": finite}


def encode(
    backbone: Backbone,
    text: Text,
    config: EncodingConfig,
    max_tokens: int | None = None,
    tools: Tools = (),
) -> tuple[list[int], Media | None]:
    """Return the ids of a text before its answer, and the images and sounds between them; the chat
    template shows the tools.

    Raises:
        InputError: the backbone has no tokenizer, or no processor for media; a text that has
            certainly more than `max_tokens`.
    """
    if backbone.tokenizer is None:
        raise InputError("text needs a tokenizer; give the backbone one, or generate from ids")
    return encoding.encode_turns(
        text,
        backbone.tokenizer,
        config,
        backbone.processor,
        tools=tools,
        is_closed=backbone.reads_apart,
        max_tokens=max_tokens,
    )


def encode_begun(
    backbone: Backbone,
    turns: Sequence[Message],
    config: EncodingConfig,
    max_tokens: int | None = None,
    tools: Tools = (),
) -> list[int]:
    """Return the ids of a conversation whose last turn is an answer that has begun.

    Raises:
        InputError: a text that has certainly more than `max_tokens`. DataError: no such turn.
    """
    return encoding.encode_begun(
        turns, backbone.tokenizer, config, tools=tools, max_tokens=max_tokens
    )


def encode_row(
    backbone: Backbone,
    text: Text,
    config: EncodingConfig,
    tools: Tools = (),
    place: str = THE_TEXT,
) -> encoding.Row:
    """Return a text before its answer as a row.

    Raises:
        DataError: a text without a token, or that cannot be encoded; names its `place`.
    """
    with named(place) if place != THE_TEXT else nullcontext():
        ids, media = encode(backbone, text, config, tools=tools)
    if not ids:
        raise DataError(
            f"{place} is empty: expected at least one token before its answer, got none; give it "
            "some text, or leave it out"
        )
    row = encoding.Row(tuple(ids), 1, "prompt", media)
    backbone.check_row(row)
    return row


def end_tokens(
    backbone: Backbone, text: Text, config: EncodingConfig, tools: Tools = ()
) -> list[int]:
    """Return the ids that end an answer: the encoding's own and the model's."""
    own = encoding.end_ids(text, backbone.tokenizer, config, backbone.processor, tools)[-1:]
    model_ends = ids_of(backbone.model.generation_config.eos_token_id)
    return list(dict.fromkeys([*own, *model_ends]))


class _Finite(LogitsProcessor):
    """Refuses logits of which none is the largest number."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not scores.amax(-1).isfinite().all():
            raise InputError(
                f"the model's logits are not finite, so that there is no next token; {OTHER_DTYPE}"
            )
        return scores


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
    return torch.tensor(ids, device="cpu"), torch.tensor(mask, device="cpu")


def read_answer(backbone: Backbone, row: list[int], stop_ids: list[int]) -> Answer:
    """Return generated ids as an answer, up to the first of `stop_ids`."""
    stops = [index for index, token in enumerate(row) if token in stop_ids]
    length = stops[0] if stops else len(row)
    text = encoding.decode(row[:length], backbone.tokenizer)
    ids = tuple(row[: length + bool(stops)])
    return Answer(text, len(ids), bool(stops), ids)
