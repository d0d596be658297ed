"""Turns: a conversation as a data file holds it, as messages, and which of its answers are labels.

In: a list of objects with a role and content, in OpenAI's schema or in ShareGPT's. Out: messages as
chat templates take them, and the places of the answers that are to be learned. Problems are
`DataError`s that do not name the row: the caller does. Knows no tokenizer.
"""

import math
import re
from typing import Any

from foreword.data.media_parts import Message
from foreword.data.readers import kind_of
from foreword.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")

# ShareGPT's names for them, beside the roles themselves.
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant"}
_SPEAKERS |= {"observation": "tool", "function_response": "tool", "ipython": "tool"}
# What files write beside a turn to say whether it is learned.
_IS_LEARNED = ("weight", "train", "training", "trainable", "loss", "loss_mask", "loss_weight")

HALF_SURROGATE = re.compile("[\ud800-\udfff]")


def read_turns(value: Any, place: str) -> tuple[list[Message], list[bool | None]]:
    """Return the messages of a conversation, and for each whether the file says that it is learned;
    None where it does not say.

    Raises:
        DataError: a turn cannot be read; names it, not the row.
    """
    if not isinstance(value, list):
        raise DataError(f"expected a list of messages in {place}, found {kind_of(value)}")
    messages, learned = [], []
    for number, turn in enumerate(value, 1):
        if turn is None:
            continue
        message, is_learned = _turn(turn, f"message {number}")
        messages.append(message)
        learned.append(is_learned)
    return messages, learned


def answers_to_learn(
    messages: list[Message], learned: list[bool | None], which: str, start: int = 0
) -> list[int]:
    """Return the places of the answers to learn, from `start` on.

    Args:
        messages: a conversation.
        learned: what the file says of each message, see `read_turns`.
        which: "all" of them, or the "last".

    Raises:
        DataError: there is none.
    """
    answers = [
        index
        for index, message in enumerate(messages)
        if message["role"] == "assistant" and index >= max(start, 1)
    ]
    if not answers:
        raise DataError(
            "expected messages that end with an answer of the assistant after at least one other, "
            f"found {_summary(messages)}"
        )
    chosen = [index for index in answers if learned[index] is not False]
    if not chosen:
        raise DataError(
            f"expected an answer to learn, found {len(answers)} of weight 0: drop the row"
        )
    if learned[-1] is None and messages[-1]["role"] != "assistant":
        raise DataError(
            "expected messages that end with an answer of the assistant, found "
            f"{_summary(messages)}: drop what follows the last answer"
        )
    return chosen[-1:] if which == "last" else chosen


def text_in(value: Any, place: str) -> str:
    """Return a value that is text, and Unicode.

    Raises:
        DataError: it is not.
    """
    if not isinstance(value, str):
        raise DataError(f"expected text in {place}, found {kind_of(value)}: write it as text")
    if HALF_SURROGATE.search(value):
        raise DataError(f"expected Unicode text in {place}, found half a surrogate pair: mend it")
    return value


def without_nulls(value: Any) -> Any:
    """Return a value without the entries of objects that are null, and the nulls among objects: a
    column of a table holds one for each key that is not there.
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return [without_nulls(item) for item in value if item is not None]
    return value


def described(tool: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a tool as a chat template is given it, whoever wrote it: without
    nulls, its keys in OpenAI's order, and without what a server alone is told: `strict`.
    """
    tool = without_nulls(tool)
    function = tool.get("function")
    if not isinstance(function, dict):
        return tool
    ordered = _first(function, "name", "description", "parameters")
    ordered.pop("strict", None)
    return _first(tool, "type") | {"function": ordered}


def _first(value: dict[str, Any], *names: str) -> dict[str, Any]:
    """Return an object with some of its keys before the others."""
    return {name: value[name] for name in names if name in value} | value


def native(value: Any) -> Any:
    """Return a value as JSON has it, at every depth, where numpy, pandas or a tuple holds it; the
    numbers of an image or a sound stay in their array.
    """
    package = type(value).__module__.partition(".")[0]
    if package == "numpy" and (not value.shape or value.dtype == object):
        # As it is written: 1.1 of 32 bits is not 1.1 of 64.
        value = float(str(value)) if value.dtype.kind == "f" else value.tolist()
    if package == "pandas" and type(value).__name__ in ("NAType", "NaTType"):
        return None
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {name: native(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [native(one) for one in value]
    return value


def _summary(messages: list[Message]) -> str:
    return f"{len(messages)} ending with {messages[-1]['role']!r}" if messages else "none"


def _turn(value: Any, place: str) -> tuple[Message, bool | None]:
    if not isinstance(value, dict):
        raise DataError(
            f"{place}: expected an object with role and content, found {kind_of(value)}"
        )
    turn = _with_role(without_nulls(value), place)
    is_learned = _learned(turn, place)
    turn = {key: item for key, item in turn.items() if key not in _IS_LEARNED}
    role, content = turn["role"], turn.get("content")
    if isinstance(content, list):
        turn["content"] = [_part(part, place) for part in content]
    elif not (content is None and role == "assistant" and turn.get("tool_calls")):
        text_in(content, f"{place} content")
    calls = turn.get("tool_calls", [])
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise DataError(
            f"{place}: expected calls of tools as a list of objects, found {calls!r:.60}"
        )
    return turn, is_learned


def _with_role(turn: dict[str, Any], place: str) -> Message:
    """Return a turn by role and content, from ShareGPT's names too."""
    if "role" not in turn and isinstance(turn.get("from"), str) and "value" in turn:
        rest = {key: item for key, item in turn.items() if key not in ("from", "value")}
        turn = {"role": turn["from"], "content": turn["value"], **rest}
    role = turn.get("role")
    role = _SPEAKERS.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        names = ", ".join(map(repr, turn)) or "no keys"
        found = repr(role) if isinstance(role, str) else f"{kind_of(role)} in {names}"
        raise DataError(f"{place}: expected a role of {', '.join(ROLES)}, found {found}: rename it")
    return {**turn, "role": role}


def _learned(turn: Message, place: str) -> bool | None:
    """Return whether the file says that a turn is learned, by any of the keys in use."""
    said = {key: turn[key] for key in _IS_LEARNED if key in turn}
    for key, value in said.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise DataError(f"{place}: expected {key} 0 or 1, found {value!r:.40}: choose one")
    if len(set(map(bool, said.values()))) > 1:
        raise DataError(f"{place}: {' and '.join(said)} say different things: leave one of them")
    if not said:
        return None
    is_learned = bool(next(iter(said.values())))
    if is_learned and turn["role"] != "assistant":
        raise DataError(
            f"{place}: a turn of role {turn['role']!r} is to be learned, and only answers of the "
            f"assistant are: leave out {next(iter(said))}"
        )
    return is_learned


def _part(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        raise DataError(
            f"{place}: expected parts that are objects with a type, found {value!r:.60}"
        )
    if value["type"] == "text":
        text_in(value.get("text"), f"{place} text part")
    return value
