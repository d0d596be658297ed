"""Questions: how a model is asked for them, what of its answer is the question, and which are kept.

In: a passage, a kind. Out: the words that ask for a question; the question in what was said; why it
is of no use. The kinds are those of Eyuboglu et al. 2025 (arXiv:2506.06266). Runs no model.
"""

import re

from foreword.backbone import Backbone
from foreword.data.tokenizing import token_ids
from foreword.distillation.queries import flat

QUESTIONS = {
    "structure": "Write one request to put something that it says in order, as a list or a table.",
    "summary": "Write one request to sum up something that it says.",
    "facts": "Write one question about one fact that it states.",
    "use": "Write one question of a person who wants to do something for which it is useful.",
    "paraphrase": "Write one request to say something that it states in other words.",
}
"""What is asked for about a passage, by kind."""
MESSAGES = {
    "common": "Write one message that a user would send to you, as most users do.",
    "short": "Write one very short message that a user would send to you.",
    "detailed": "Write one message that a user would send to you, with names, numbers or details.",
    "difficult": "Write one message of a user that is hard to answer by your instructions.",
    "outside": "Write one message of a user about something that your instructions do not name.",
}
"""What is asked for of a model with an instruction, by kind."""
NAMED = "Name what it is about: who answers does not see which passage you mean. Write only that."
ALONE = "Write only the message."
LABEL = "Question: {}\nAnswer:"  # a query to a base without a chat template
MIN_COPY = 6  # words of a passage that are no question of one's own

_MARK = re.compile(
    r"^(?:[-*#>\u2022]+\s*|\(?\d{1,3}[.):]\s+|\*\*|(?:question|request|message|query|user|q)\s*\d*\s*[:.]\s*)+",
    re.IGNORECASE,
)
_ANNOUNCED = re.compile(
    r"(?:sure|certainly|of course|okay|ok|here(?:'s|\u2019s| is| are))\b[^?]*$", re.IGNORECASE
)
_QUOTES = "\"'`*\u201c\u201d\u201e\u00ab\u00bb "


def asked_about(passage: str, instruction: str, is_instruction: bool, is_chat: bool) -> str:
    """Return the words that ask for a question.

    Args:
        passage: what it is to be about; an instruction whole.
        instruction: of a kind.
        is_instruction: whether a message is asked for, in place of a question.
        is_chat: whether a conversation is asked, and not a text to be continued.
    """
    if is_instruction:
        return f"{instruction} {ALONE}" if is_chat else f"{instruction}\nMessage:"
    if is_chat:
        return f"This is a passage of the text:\n\n{passage.strip()}\n\n{instruction} {NAMED}"
    return f"{passage.strip()}\n\n{instruction}\nQuestion:"


def asked_elsewhere(passage: str, instruction: str, is_instruction: bool) -> str:
    """Return the same for a model that has not read the text."""
    if not is_instruction:
        return asked_about(passage, instruction, False, True)
    return (
        f"These are the instructions of an assistant:\n\n{passage.strip()}\n\nSuppose that you are "
        f"this assistant. {instruction} {ALONE}"
    )


def question_in(said: str, is_message: bool, is_chat: bool) -> str:
    """Return the question in what a model said: the first line that is more than an announcement,
    or for a message all of it; without marks of a list and quotes around it.
    """
    said, is_thought, after = said.rpartition("</think>")
    said = after if is_thought or "<think>" not in after else ""  # thoughts that did not end
    lines = [line.strip() for line in said.strip().splitlines()]
    lines = [line for line in lines if line]
    while len(lines) > 1 and (lines[0].endswith(":") or _ANNOUNCED.match(lines[0])):
        del lines[0]
    if not lines:
        return ""
    text = "\n".join(lines) if is_message and is_chat else lines[0]
    return _MARK.sub("", text).strip(_QUOTES)


def why_dropped(backbone: Backbone, question: str, passage: str, max_tokens: int) -> str | None:
    """Return why a question is of no use; None where it is."""
    words = flat(question)
    if sum(one.isalpha() for one in words) < 2:
        return "empty"
    if "\0" in question or re.search("[\ud800-\udfff\ufffd]", question):
        return "not text"
    asked = [flat(one) for one in (*QUESTIONS.values(), *MESSAGES.values(), NAMED, ALONE)]
    if any(words in one or one in words for one in asked):
        return "repeating what they were asked for"
    whole = flat(passage)
    if whole in words or ("?" not in words and len(words.split()) >= MIN_COPY and words in whole):
        return "repeating the text"
    assert backbone.tokenizer is not None
    if len(token_ids(backbone.tokenizer, question, add_special_tokens=False)) > max_tokens:
        return "too long"
    return None
