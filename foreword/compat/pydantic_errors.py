"""Errors of pydantic: what one of its errors says, in words of our own.

In: an error as pydantic tells it, a map of `type`, `msg`, `ctx` and `input`. Out: text without the
place: what was expected, and what was found. Imports no pydantic, which not every installation has.
"""

from collections.abc import Callable, Mapping
from typing import Any

MOST_SHOWN = 60  # characters of a value
KINDS = {
    "int": "an integer",
    "float": "a number",
    "decimal": "a number",
    "bool": "true or false",
    "string": "a string",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "an object",
    "mapping": "an object",
    "model": "an object",
    "model_attributes": "an object",
    "none": "null",
}
"""What a type of pydantic is called, by how the names of its errors begin."""
BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
    "too_short": ("at least", "min_length"),
    "string_too_short": ("at least", "min_length"),
    "too_long": ("at most", "max_length"),
    "string_too_long": ("at most", "max_length"),
    "multiple_of": ("a multiple of", "multiple_of"),
}
"""What a bound is called, and where an error holds it, by the error's type."""
OWN = ("value_error", "assertion_error")  # raised by a validator, with words of its own
THEIRS = ("Value error, ", "Assertion failed, ")
SHOULD_BE = "Input should be "


def said(error: Mapping[str, Any]) -> str:
    """Return what one of pydantic's errors says: expected, and got where the error knows it."""
    kind, told, context = str(error["type"]), str(error["msg"]), error.get("ctx") or {}
    for mark in THEIRS if kind in OWN else ():
        told = told.removeprefix(mark)
    name, got = kind.rpartition("_")[0], _got(error, kind_of)
    if kind == "missing":
        return "the field is missing"
    if kind == "extra_forbidden":
        return "no such field"
    is_shown = kind.endswith("_parsing") or isinstance(error.get("input"), float)
    if kind == "int_from_float" or (is_shown and name == "int"):
        return f"expected an integer{_got(error, shown)}"
    if kind.endswith("_parsing") and name in KINDS:
        return f"expected {KINDS[name]}{_got(error, shown)}"
    if kind.endswith("_type") and name in KINDS:
        return f"expected {KINDS[name]}{got}"
    if kind in BOUNDS and BOUNDS[kind][1] in context:
        words, bound = BOUNDS[kind][0], _plain(context[BOUNDS[kind][1]])
        if kind.startswith("string_"):
            unit = "character" if bound == "1" else "characters"
            return f"expected {words} {bound} {unit}{_got(error, _length)}"
        if kind.startswith("too_"):
            return f"expected {words} {bound}{_counted(error, context)}"
        return f"expected {words} {bound}{_got(error, shown)}"
    if kind in ("literal_error", "enum") and "expected" in context:
        return f"expected {context['expected']}{_got(error, shown)}"
    if kind == "string_pattern_mismatch" and "pattern" in context:
        return f"expected a string of the pattern {context['pattern']}{_got(error, shown)}"
    if kind not in OWN and told.startswith(SHOULD_BE):
        return f"expected {told.removeprefix(SHOULD_BE)}{got}"
    return told


def kind_of(value: Any) -> str:
    """Return what a value of JSON is called."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list | tuple) else "an object"


def shown(value: Any) -> str:
    """Return a short text or a number as it is; of all else what it is called."""
    if isinstance(value, str):
        return repr(value if len(value) <= MOST_SHOWN else f"{value[:MOST_SHOWN]}...")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if isinstance(value, int) and abs(value) >= 10**30:
            return "a number of many digits"
        return str(value)
    return kind_of(value)


def _plain(bound: Any) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def _got(error: Mapping[str, Any], words: Callable[[Any], str]) -> str:
    return f", got {words(error['input'])}" if "input" in error else ""


def _length(value: Any) -> str:
    return str(len(value)) if isinstance(value, str) else kind_of(value)


def _counted(error: Mapping[str, Any], context: Mapping[str, Any]) -> str:
    """Return how many there are; a count that ended early is known by what was given alone."""
    given, number = error.get("input"), context.get("actual_length")
    if isinstance(given, list | tuple | dict):
        number = len(given)
    return f", got {number}" if number is not None else ", got more"
