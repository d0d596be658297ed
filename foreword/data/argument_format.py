"""Argument format: how a chat template writes a call's arguments one by one, as in XML.

In: a function that fills the template with one call. Out: what stands before, between and behind
the name and the value of an argument, and what is around all of them. Texts stand there as they
are, other values as JSON. Knows no tools and no answers.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_KEYS = ("foreword_key", "foreword_number")
_ARGUMENTS = {_KEYS[0]: "foreword_value", _KEYS[1]: 70707}
_WRITTEN = re.compile(
    rf"(?P<first>.*?){_KEYS[0]}(?P<between>.*?)foreword_value(?P<next>.*?)"
    rf"{_KEYS[1]}(?P<again>.*?)70707(?P<rest>.*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class ArgumentFormat:
    """How one argument is written.

    Attributes:
        opening: before its name.
        between: between its name and its value.
        closing: behind its value.
        words: how true, false and null are written.
    """

    opening: str
    between: str
    closing: str
    words: tuple[str, str, str]


@dataclass(frozen=True)
class PairedCall:
    """One answer with one call whose arguments are written one by one.

    Attributes:
        opening: before the tool's name.
        head: between the name and the first argument.
        behind: what follows the last argument.
        argument: how each is written.
    """

    opening: str
    head: str
    behind: str
    argument: ArgumentFormat


def paired_call(written: Callable[[dict[str, Any]], str], name: str) -> PairedCall | None:
    """Return how a call is written; None where its arguments do not stand one by one.

    Args:
        written: the text of an answer that calls the tool with some arguments.
        name: the tool's.
    """
    before, _, after = written(_ARGUMENTS).partition(name)
    found = _WRITTEN.fullmatch(after)
    if found is None or found["between"] != found["again"]:
        return None
    shared = os.path.commonprefix([found["first"][::-1], found["next"][::-1]])[::-1]
    opening = shared.lstrip(">")  # a bracket that only closes what is before it
    head = found["first"].removesuffix(opening)
    closing = found["next"].removesuffix(opening)
    marks = (opening, found["between"], closing)
    if not all(mark.strip() for mark in marks) or not found["rest"].startswith(closing):
        return None
    behind = found["rest"].removeprefix(closing)
    if written({}).split() != f"{before}{name}{head}{behind}".split():
        return None
    true = written({_KEYS[0]: True}).removeprefix(f"{before}{name}{head}{opening}{_KEYS[0]}")
    is_json = true.removeprefix(found["between"]).startswith("true")
    words = ("true", "false", "null") if is_json else ("True", "False", "None")
    return PairedCall(before, head, behind, ArgumentFormat(*marks, words))
