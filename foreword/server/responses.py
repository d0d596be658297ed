"""Response formatting: answers in the format of OpenAI's API, whole or in chunks.

In: pieces of answers. Out: JSON-ready dictionaries. Does not know HTTP, or how the engine runs.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from foreword.engine.sampling import Choice
from foreword.server.streaming import Piece, StreamedAnswer


class Tokenizer(Protocol):
    """Turns ids into text."""

    def decode(self, ids: list[int], **options: Any) -> str:
        """Return the text of ids."""


def usage(answers: Sequence[StreamedAnswer], copies: int) -> dict[str, Any]:
    """Return the tokens of a call; virtual tokens and reused ones are counted apart.

    A prompt with `copies` answers is counted once.
    """
    once = answers[::copies]
    given = sum(len(answer.handle.request.ids) for answer in once)
    new = sum(answer.num_tokens for answer in answers)
    prompts = [answer.handle.request.prompt for answer in once]
    return {
        "prompt_tokens": given,
        "completion_tokens": new,
        "total_tokens": given + new,
        "prompt_tokens_details": {
            "cached_tokens": sum(answer.handle.num_reused for answer in once),
            "virtual_tokens": sum(p.num_virtual_tokens for p in prompts if p is not None),
        },
    }


class ChatFormatter:
    """Formats chat answers."""

    prefix, whole, part = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def __init__(self, model: str, tokenizer: Tokenizer, copies: int) -> None:
        self.tokenizer, self.copies = tokenizer, copies
        self.head = {
            "id": self.prefix + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": model,
        }

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return an answer's first chunk."""
        choice = {
            "index": index,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
        return {**self.head, "object": self.part, "choices": [choice]}

    def chunk(self, piece: Piece, logprobs: bool) -> dict[str, Any] | None:
        """Return a chunk; None where there is nothing to send."""
        answer = piece.answer
        if not piece.text and not answer.finish_reason and not (logprobs and piece.choices):
            return None
        choice = {
            "index": answer.index,
            "delta": {"content": piece.text} if piece.text else {},
            "logprobs": self._logprobs(piece.choices) if logprobs and piece.choices else None,
            "finish_reason": answer.finish_reason,
        }
        return {**self.head, "object": self.part, "choices": [choice]}

    def usage_chunk(self, answers: Sequence[StreamedAnswer]) -> dict[str, Any]:
        """Return the last chunk of a stream, with its usage."""
        return {
            **self.head,
            "object": self.part,
            "choices": [],
            "usage": usage(answers, self.copies),
        }

    def body(
        self, answers: Sequence[StreamedAnswer], pieces: Sequence[Piece], logprobs: bool
    ) -> dict[str, Any]:
        """Return the whole answer."""
        choices = []
        for answer in answers:
            own = [piece for piece in pieces if piece.answer is answer]
            chosen = [choice for piece in own for choice in piece.choices]
            text = "".join(piece.text for piece in own)
            choices.append(
                {
                    "index": answer.index,
                    "message": {"role": "assistant", "content": text, "refusal": None},
                    "logprobs": self._logprobs(chosen) if logprobs else None,
                    "finish_reason": answer.finish_reason,
                }
            )
        return {
            **self.head,
            "object": self.whole,
            "choices": choices,
            "usage": usage(answers, self.copies),
        }

    def _logprobs(self, choices: Sequence[Choice]) -> dict[str, Any]:
        return {
            "content": [
                self._token(choice.id, choice.logprob)
                | {"top_logprobs": [self._token(*pair) for pair in choice.top]}
                for choice in choices
            ],
            "refusal": None,
        }

    def _token(self, token_id: int, logprob: float | None) -> dict[str, Any]:
        text = self.tokenizer.decode([token_id])
        return {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode())}


class CompletionFormatter:
    """Formats plain completions; with `echo`, the prompt and its logprobs come first."""

    prefix, whole = "cmpl-", "text_completion"

    def __init__(
        self, model: str, tokenizer: Tokenizer, copies: int, echoed: Sequence[str] | None
    ) -> None:
        self.tokenizer, self.copies, self.echoed = tokenizer, copies, echoed
        self.head = {
            "id": self.prefix + uuid.uuid4().hex,
            "object": self.whole,
            "created": int(time.time()),
            "model": model,
        }

    def opening(self, index: int) -> dict[str, Any] | None:
        """Return nothing: a completion begins with its text."""
        return None

    def chunk(self, piece: Piece, logprobs: bool) -> dict[str, Any] | None:
        """Return a chunk; None where there is nothing to send."""
        answer = piece.answer
        is_first = answer.num_tokens <= 1 and self.echoed is not None
        text = (self.echoed[answer.index] if is_first and self.echoed else "") + piece.text
        if not text and not answer.finish_reason and not (logprobs and piece.choices):
            return None
        found = self._logprobs(answer, piece.choices, is_first) if logprobs else None
        return {**self.head, "choices": [self._choice(answer, text, found)]}

    def usage_chunk(self, answers: Sequence[StreamedAnswer]) -> dict[str, Any]:
        """Return the last chunk of a stream, with its usage."""
        return {**self.head, "choices": [], "usage": usage(answers, self.copies)}

    def body(
        self, answers: Sequence[StreamedAnswer], pieces: Sequence[Piece], logprobs: bool
    ) -> dict[str, Any]:
        """Return the whole answer."""
        choices = []
        for answer in answers:
            own = [piece for piece in pieces if piece.answer is answer]
            chosen = [choice for piece in own for choice in piece.choices]
            text = self.echoed[answer.index] if self.echoed is not None else ""
            text += "".join(piece.text for piece in own)
            found = self._logprobs(answer, chosen, self.echoed is not None) if logprobs else None
            choices.append(self._choice(answer, text, found))
        return {**self.head, "choices": choices, "usage": usage(answers, self.copies)}

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
        self, answer: StreamedAnswer, choices: Sequence[Choice], with_prompt: bool
    ) -> dict[str, Any]:
        """Return tokens and logprobs side by side; a prompt's first token has no logprob."""
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        if with_prompt:
            tokens.append(self.tokenizer.decode([answer.handle.request.ids[0]]))
            values.append(None)
            tops.append(None)
            choices = [*answer.handle.prompt_logprobs, *choices]
        for choice in choices:
            tokens.append(self.tokenizer.decode([choice.id]))
            values.append(_finite(choice.logprob))
            top: dict[str, float] = {}
            for token_id, logprob in (*choice.top, (choice.id, choice.logprob or 0.0)):
                text, value = self.tokenizer.decode([token_id]), _finite(logprob)
                top[text] = max(value, top.get(text, value))
            tops.append(top)
        offsets = [sum(map(len, tokens[:index])) for index in range(len(tokens))]
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        }


def _finite(logprob: float | None) -> float:
    """Return a logprob that JSON can hold."""
    return max(-9999.0, logprob if logprob is not None else -9999.0)
