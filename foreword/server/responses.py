"""Response formatting: answers in the format of OpenAI's API, whole or in chunks.

In: pieces of answers. Out: JSON-ready dictionaries. Does not know HTTP, or how the engine runs.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from foreword.data.detokenizer import Place, TextStream
from foreword.data.token_texts import TokenTexts, token_texts
from foreword.engine.sampling import Choice
from foreword.server.middleware import error_body
from foreword.server.streaming import Piece, StreamedAnswer
from foreword.server.tool_answers import CallsOfAnswers
from foreword.server.tool_use import ToolUse


@dataclass(frozen=True)
class Whole:
    """One whole answer: its text, its tokens, and where in the text they stand."""

    answer: StreamedAnswer
    text: str
    choices: list[Choice]
    places: list[Place]


def wholes(answers: Sequence[StreamedAnswer], pieces: Sequence[Piece]) -> list[Whole]:
    """Return each answer as a whole."""
    texts: list[list[str]] = [[] for _ in answers]
    found = [Whole(answer, "", [], []) for answer in answers]
    for piece in pieces:
        index = piece.answer.index
        texts[index].append(piece.text)
        found[index].choices.extend(piece.choices)
        found[index].places.extend(piece.places)
    return [replace(whole, text="".join(parts)) for whole, parts in zip(found, texts, strict=True)]


def usage(answers: Sequence[StreamedAnswer], copies: int) -> dict[str, Any]:
    """Return the tokens of a call; virtual tokens and reused ones are counted apart.

    A prompt with `copies` answers is counted once.
    """
    once = answers[::copies]
    given = sum(len(answer.handle.request.ids) for answer in once)
    new = sum(answer.num_tokens for answer in answers)
    prompts = [answer.handle.request.prompt for answer in once]
    cached = sum(answer.handle.num_reused for answer in once)
    virtual = sum(p.num_virtual_tokens for p in prompts if p is not None)
    return tokens_used(given, new, cached, virtual)


def tokens_used(given: int, new: int, cached: int, virtual: int) -> dict[str, Any]:
    """Return `usage` as answers have it: tokens that were given, new ones, and of the given ones
    those that were not read again; virtual tokens apart.
    """
    return {
        "prompt_tokens": given,
        "completion_tokens": new,
        "total_tokens": given + new,
        "prompt_tokens_details": {"cached_tokens": cached, "virtual_tokens": virtual},
    }


class ChatFormatter:
    """Formats chat answers; with tools, what calls one is told as a call and not as text."""

    end = "data: [DONE]\n\n"
    prefix, whole, part = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def __init__(
        self, model: str, tokenizer: Any, copies: int, tools: ToolUse | None = None
    ) -> None:
        self.kept = frozenset(tools.kept) if tools is not None else frozenset()
        self.texts, self.copies = token_texts(tokenizer, self.kept), copies
        self._calls = CallsOfAnswers(tools)
        self.head = {
            "id": self.prefix + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": model,
        }

    def opening(self, index: int) -> list[dict[str, Any]]:
        """Return an answer's first chunk."""
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return [{**self.head, "object": self.part, "choices": [choice]}]

    def chunks(self, piece: Piece, logprobs: bool) -> list[dict[str, Any]]:
        """Return chunks, or none where there is nothing to send: one with the text, two for each
        call, and the end of an answer behind its calls in one of its own.
        """
        answer = piece.answer
        deltas = self._calls.deltas(answer.index, piece.text, bool(answer.finish_reason))
        told = self._logprobs(piece.choices, piece.places) if logprobs and piece.choices else None
        has_calls = bool(deltas) and "tool_calls" in deltas[-1]
        if not deltas and told is None and not answer.finish_reason:
            return []
        if not deltas or (has_calls and answer.finish_reason):
            deltas.append({})
        choices: list[dict[str, Any]] = [
            {"index": answer.index, "delta": delta, "logprobs": None, "finish_reason": None}
            for delta in deltas
        ]
        choices[0]["logprobs"] = told
        choices[-1]["finish_reason"] = self._calls.reason(answer.index, answer.finish_reason)
        return [{**self.head, "object": self.part, "choices": [choice]} for choice in choices]

    def closing(self, answers: Sequence[StreamedAnswer], has_usage: bool) -> list[dict[str, Any]]:
        """Return the last chunk of a stream, where its usage is asked for."""
        last = {"object": self.part, "choices": [], "usage": usage(answers, self.copies)}
        return [self.head | last] if has_usage else []

    def failure(self, message: str, status: int) -> dict[str, Any]:
        """Return the last chunk of a stream that cannot go on."""
        return error_body(message, status)

    def body(
        self, answers: Sequence[StreamedAnswer], pieces: Sequence[Piece], logprobs: bool
    ) -> dict[str, Any]:
        """Return the whole answer."""
        choices = [
            {
                "index": one.answer.index,
                "message": {
                    "role": "assistant",
                    "content": None,
                    "refusal": None,
                    **self._calls.message(one.answer.index, one.text),
                },
                "logprobs": self._logprobs(one.choices, one.places) if logprobs else None,
                "finish_reason": self._calls.reason(one.answer.index, one.answer.finish_reason),
            }
            for one in wholes(answers, pieces)
        ]
        return {
            **self.head,
            "object": self.whole,
            "choices": choices,
            "usage": usage(answers, self.copies),
        }

    def _logprobs(self, choices: Sequence[Choice], places: Sequence[Place]) -> dict[str, Any]:
        return {"content": token_logprobs(self.texts, choices, places), "refusal": None}


def token_logprobs(
    texts: TokenTexts, choices: Sequence[Choice], places: Sequence[Place]
) -> list[dict[str, Any]]:
    """Return tokens with their logprobs and bytes, and beside each the likeliest ones."""

    def token(token_id: int, logprob: float | None, is_first: bool) -> dict[str, Any]:
        return {
            "token": texts.name(token_id, is_first),
            "logprob": _finite(logprob),
            "bytes": list(texts.content(token_id, is_first)),
        }

    return [
        token(choice.id, choice.logprob, place.is_first)
        | {"top_logprobs": [token(*pair, place.is_first) for pair in choice.top]}
        for choice, place in zip(choices, places, strict=True)
    ]


MARK = "\u2e3b"  # a text that no template holds


class CompletionFormatter:
    """Formats plain completions; with `echo`, the prompt and its logprobs come first."""

    end = "data: [DONE]\n\n"
    prefix, whole = "cmpl-", "text_completion"
    kept: frozenset[int] = frozenset()

    def __init__(
        self,
        model: str,
        tokenizer: Any,
        copies: int,
        echoed: Sequence[str] | None,
        around: Sequence[int] = (),
    ) -> None:
        self.tokenizer, self.copies, self.echoed, self.around = tokenizer, copies, echoed, around
        self.texts = token_texts(tokenizer)
        self._begun: set[int] = set()  # answers whose prompt was told
        self.head = {
            "id": self.prefix + uuid.uuid4().hex,
            "object": self.whole,
            "created": int(time.time()),
            "model": model,
        }

    def opening(self, index: int) -> list[dict[str, Any]]:
        """Return nothing: a completion begins with its text."""
        return []

    def chunks(self, piece: Piece, logprobs: bool) -> list[dict[str, Any]]:
        """Return a chunk, or none where there is nothing to send."""
        answer = piece.answer
        is_first = self.echoed is not None and answer.index not in self._begun
        self._begun.add(answer.index)
        text = self._echo(answer) + piece.text if is_first else piece.text
        has_logprobs = logprobs and (is_first or bool(piece.choices))
        if not text and not answer.finish_reason and not has_logprobs:
            return []
        found = self._logprobs(answer, piece.choices, piece.places, is_first) if logprobs else None
        return [{**self.head, "choices": [self._choice(answer, text, found)]}]

    def closing(self, answers: Sequence[StreamedAnswer], has_usage: bool) -> list[dict[str, Any]]:
        """Return the last chunk of a stream, where its usage is asked for."""
        last = {"choices": [], "usage": usage(answers, self.copies)}
        return [self.head | last] if has_usage else []

    def failure(self, message: str, status: int) -> dict[str, Any]:
        """Return the last chunk of a stream that cannot go on."""
        return error_body(message, status)

    def body(
        self, answers: Sequence[StreamedAnswer], pieces: Sequence[Piece], logprobs: bool
    ) -> dict[str, Any]:
        """Return the whole answer."""
        choices = []
        for one in wholes(answers, pieces):
            found = (
                self._logprobs(one.answer, one.choices, one.places, self.echoed is not None)
                if logprobs
                else None
            )
            choices.append(self._choice(one.answer, self._echo(one.answer) + one.text, found))
        return {**self.head, "choices": choices, "usage": usage(answers, self.copies)}

    def _echo(self, answer: StreamedAnswer) -> str:
        return self.echoed[answer.index] if self.echoed is not None else ""

    def _choice(
        self, answer: StreamedAnswer, text: str, logprobs: dict[str, Any] | None
    ) -> dict[str, Any]:
        return {
            "index": answer.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": answer.finish_reason,
        }

    def _logprobs(
        self,
        answer: StreamedAnswer,
        choices: Sequence[Choice],
        places: Sequence[Place],
        with_prompt: bool,
    ) -> dict[str, Any]:
        """Return tokens and logprobs side by side; a prompt's first token has no logprob."""
        num_before = len(self._echo(answer))
        moved = [place._replace(offset=num_before + place.offset) for place in places]
        values: list[float | None] = [_finite(choice.logprob) for choice in choices]
        if with_prompt:
            request = answer.handle.request
            choices = [Choice(request.ids[0]), *answer.handle.prompt_logprobs, *choices]
            given = [_finite(choice.logprob) for choice in answer.handle.prompt_logprobs]
            values = [None, *given, *values]
            text = self._echo(answer)
            moved = [*prompt_places(request.ids, text, self.tokenizer, self.around), *moved]
        pairs = list(zip(choices, moved, strict=True))
        tops: list[dict[str, float] | None] = [
            _top(self.texts, choice, place.is_first) for choice, place in pairs
        ]
        if with_prompt:
            tops[0] = None
        return {
            "tokens": [self.texts.name(choice.id, place.is_first) for choice, place in pairs],
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": [place.offset for place in moved],
        }


def prompt_places(
    ids: Sequence[int], text: str, tokenizer: Any, around: Sequence[int] = ()
) -> list[Place]:
    """Return where a prompt's tokens stand in the text that was given for it.

    What an encoding adds around the text stands at its start or at its end.

    Args:
        ids: of the prompt.
        text: that was given.
        tokenizer: of the model.
        around: ids of `MARK`, encoded as the text is: they tell where it begins, though what stands
            before it may hold the same text.
    """
    for keeps_special in (False, True):
        stream = TextStream(tokenizer, keeps_special=keeps_special)
        decoded = stream.put(ids) + stream.end()
        other = TextStream(tokenizer, keeps_special=keeps_special)
        before = max(0, (other.put(around) + other.end()).find(MARK))
        if (start := decoded.find(text, before if text != decoded else 0)) >= 0:
            break
    start = max(0, start)
    return [
        place._replace(offset=min(max(0, place.offset - start), len(text)))
        for place in stream.take_places()
    ]


def _top(texts: TokenTexts, choice: Choice, is_first: bool) -> dict[str, float]:
    """Return the likeliest tokens and the chosen one, each by a name of its own.

    Of several tokens with one name, the chosen or the likeliest has it; the others go by their ids.
    """
    names = {texts.name(choice.id, is_first): choice.id}
    found: dict[str, float] = {}
    for token_id, logprob in (*choice.top, (choice.id, choice.logprob or 0.0)):
        name = texts.name(token_id, is_first)
        if names.setdefault(name, token_id) != token_id:
            name = f"token_id:{token_id}"
        found[name] = _finite(logprob)
    return found


def _finite(logprob: float | None) -> float:
    """Return a logprob that JSON can hold."""
    return max(-9999.0, logprob if logprob is not None else -9999.0)
