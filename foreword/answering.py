"""Answering: text in, text out, in one call, or piece by piece as the model says it.

In: a backbone, a prompt or none, texts or conversations. Out: what the command line and a server
answer to the same: a text is asked as the rows of the prompt's training were. Trains nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypedDict, Unpack, overload

from foreword import chat
from foreword.backbone import Backbone
from foreword.chat import Text
from foreword.config import SamplingConfig
from foreword.config.checks import check_known
from foreword.errors import InputError
from foreword.generation.answer_options import check_batch_size
from foreword.prompt.prefix import Prefix
from foreword.prompt.soft_prompt import SoftPrompt

BATCH_SIZE = 32


class AnswerOptions(TypedDict, total=False):
    """How an answer is drawn; what is left out is as in `foreword generate`.

    Attributes:
        max_new_tokens: longest answer in tokens.
        temperature: 0 takes the likeliest ids; above 0 draws.
        top_p: draw from the likeliest ids with this share together.
        repetition_penalty: above 1 repeats less; virtual tokens never count.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    repetition_penalty: float


@overload
def answer(
    backbone: Backbone,
    prompt: SoftPrompt | Prefix | None,
    texts: str,
    *,
    batch_size: int = ...,
    **sampling: Unpack[AnswerOptions],
) -> str: ...


@overload
def answer(
    backbone: Backbone,
    prompt: SoftPrompt | Prefix | None,
    texts: Sequence[Any],
    *,
    batch_size: int = ...,
    **sampling: Unpack[AnswerOptions],
) -> Any: ...


def answer(
    backbone: Backbone,
    prompt: SoftPrompt | Prefix | None,
    texts: Text | Sequence[Text],
    *,
    batch_size: int = BATCH_SIZE,
    **sampling: Unpack[AnswerOptions],
) -> Any:
    """Answer a text, or several, with a soft prompt or with the bare model (None).

    Args:
        backbone: with a tokenizer.
        prompt: a soft prompt, a prefix compiled from one, or None.
        texts: one text, one conversation (a list of messages with role and content), or a list of
            either.
        batch_size: texts answered at once.
        **sampling: max_new_tokens, temperature, top_p, repetition_penalty, see `AnswerOptions`.

    Returns:
        the answer, or a list of answers in the order of the texts.

    Raises:
        InputError: no tokenizer, a value that means nothing, or a prompt of another kind or base.
        DataError: a conversation that the chat template cannot take, or that is not what the
            prompt was trained on.
    """
    config = _sampling("answer", sampling)
    check_batch_size(batch_size)
    is_one = _is_text(texts)
    given = _several([texts] if is_one else texts)
    prefix = _prefix(backbone, prompt)
    asked = [chat.typed(backbone, prompt, one) if isinstance(one, str) else one for one in given]
    found = chat.answers(backbone, prefix, asked, batch_size=batch_size, **config.options())
    said = [one.text for one in found]
    return said[0] if is_one else said


def stream(
    backbone: Backbone,
    prompt: SoftPrompt | Prefix | None,
    text: Text,
    **sampling: Unpack[AnswerOptions],
) -> Iterator[str]:
    """Answer one text or conversation piece by piece; the pieces together are the answer that
    `answer` gives. Closing the iterator stops at the next token.

    Takes what `answer` takes, and raises what it raises, before the first piece.
    """
    config = _sampling("stream", sampling)
    [text] = _several([text])
    prefix = _prefix(backbone, prompt)
    asked = chat.typed(backbone, prompt, text) if isinstance(text, str) else text
    return chat.stream(backbone, prefix, asked, **config.options())


def _sampling(call: str, given: AnswerOptions) -> SamplingConfig:
    """Return how an answer is drawn.

    Raises:
        InputError: an option that there is not, or a value that means nothing.
    """
    check_known(call, given, AnswerOptions.__annotations__)
    return SamplingConfig(**given)


def _is_text(value: Any) -> bool:
    """Return whether a value is one text, or one conversation."""
    if isinstance(value, str):
        return True
    return isinstance(value, Sequence) and bool(value) and isinstance(value[0], Mapping)


def _several(texts: Any) -> Sequence[Any]:
    """Return texts and conversations.

    Raises:
        InputError: something else, or something else among them.
    """
    is_list = isinstance(texts, Sequence)
    wrong = [one for one in texts if not _is_text(one)] if is_list else [texts]
    if wrong:
        raise InputError(
            "expected a text, a conversation (a list of messages with role and content), or a list "
            f"of either, got {type(wrong[0]).__name__}"
        )
    for number, text in enumerate(texts, 1):
        for place, message in enumerate(() if isinstance(text, str) else text, 1):
            if (expected := _lacks(message)) is not None:
                raise InputError(f"text {number}, message {place}: expected {expected}")
    return texts  # type: ignore[no-any-return]


def _lacks(message: Any) -> str | None:
    """Return what a message should be and is not."""
    if not isinstance(message, Mapping):
        return f"a message with role and content, got {type(message).__name__}"
    if not isinstance(message.get("role"), str):
        return f"a role, got {message.get('role')!r:.80}"
    content = message.get("content")
    if isinstance(content, str) or (content is None and set(message) - {"role", "content"}):
        return None
    if not isinstance(content, list) or not content:
        return f"content of text or of parts, got {content!r:.80}"
    for part in content:
        is_typed = isinstance(part, Mapping) and isinstance(part.get("type"), str)
        if not is_typed or (part["type"] == "text" and not isinstance(part.get("text"), str)):
            return f"parts with a type, and texts in those of type 'text', got {part!r:.80}"
    return None


def _prefix(backbone: Backbone, prompt: SoftPrompt | Prefix | None) -> Prefix | None:
    """Return a prompt's prefix, once the tokenizer's and the prompt's own checks are over."""
    if backbone.tokenizer is None:
        raise InputError("text needs a tokenizer; give the backbone one, or generate from ids")
    prefix = None if prompt is None else backbone.compile(prompt)
    chat.check_template(backbone, prefix)
    return prefix
