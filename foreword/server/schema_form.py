"""JSON schema form: whether each keyword of a schema holds a value of its kind.

In: a JSON schema of a request. Out: the same, or an error that names the place. What a schema means
is the grammar's business. Knows no grammar library.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from foreword.server.fields import small_map

ONE = {
    "additionalItems", "additionalProperties", "contains", "else", "if", "not", "propertyNames",
    "then", "unevaluatedItems", "unevaluatedProperties",
}  # fmt: skip
"""Keywords of a schema."""
SEVERAL = {"allOf", "anyOf", "oneOf", "prefixItems"}
NAMED = {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}
TEXTS = {"$anchor", "$dynamicRef", "$id", "$ref", "format", "pattern"}
COUNTS = {
    "maxContains", "maxItems", "maxLength", "maxProperties", "minContains", "minItems", "minLength",
    "minProperties",
}  # fmt: skip
NUMBERS = {"exclusiveMaximum", "exclusiveMinimum", "maximum", "minimum", "multipleOf"}
MAX_COUNT = 2**64 - 1  # the largest that the grammar library reads
MAX_PATTERN = 10_000
PIECES = re.compile(
    r"\\.|\[(?:\\.|[^\]\\])*\]|\{(?P<least>\d+)(?:,(?P<most>\d*))?\}|.", re.DOTALL | re.ASCII
)
MAX_PLACE = 100  # characters of a place in a message


def well_formed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema as it is.

    Raises:
        ValueError: a keyword holds what it cannot hold, anywhere in it; names the place.
    """
    left: list[tuple[str, Any]] = [("", schema)]
    while left:
        place, one = left.pop()
        if isinstance(one, bool):
            continue
        if not isinstance(one, Mapping):
            raise _wrong(place, "a schema", one)
        for key, value in one.items():
            left += _parts(f"{place}.{key}" if place else str(key), key, value)
    return schema


def _parts(place: str, key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the schemas that a keyword holds."""
    is_list = isinstance(value, list)
    if key in ONE or (key == "items" and not is_list):
        yield place, value
    elif key in SEVERAL or key == "items":
        if not is_list or (not value and key != "items"):
            raise _wrong(place, "a list of schemas", value)
        yield from ((f"{place}[{number}]", one) for number, one in enumerate(value))
    elif key in NAMED:
        if not isinstance(value, Mapping):
            raise _wrong(place, "schemas by name", value)
        if key == "patternProperties":
            for name in value:
                _check_size(place, str(name))
        yield from ((f"{place}.{name}", one) for name, one in value.items())
    elif key == "pattern" and isinstance(value, str):
        _check_size(place, value)
    elif not _is_right(key, value):
        raise _wrong(place, _expected(key), value)


def _check_size(place: str, pattern: str) -> None:
    if (size := pattern_size(pattern)) > MAX_PATTERN:
        raise ValueError(
            f"{place}: expected a pattern of at most {MAX_PATTERN} characters, repetitions written "
            f"out, got {size}"
        )


def pattern_size(pattern: str) -> int:
    """Return how many characters and classes of characters a regular expression has, each as often
    as a `{m,n}` behind it or around it lets it stand; what a grammar of it takes grows with that.
    """
    sizes, last = [0], 0  # of the open groups, the newest last; of what a repetition would repeat
    for found in PIECES.finditer(pattern):
        piece, most = found[0], found["most"] or found["least"]
        if piece == "(":
            sizes.append(0)
            last = 0
        elif piece == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif most is not None:
            sizes[-1] += last * (min(int(most[:9]), 10**9) - 1) if int(most[:9]) else 0
            last *= max(1, int(most[:9]))
        elif piece not in ("*", "+", "?", "|"):
            last = 1
            sizes[-1] += 1
    return sum(sizes)


def _is_right(key: str, value: Any) -> bool:
    is_list_of_texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
    if key == "type":
        return isinstance(value, str) or (is_list_of_texts and bool(value))
    if key == "required":
        return is_list_of_texts
    if key == "enum":
        return isinstance(value, list) and bool(value)
    if key in TEXTS:
        return isinstance(value, str)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if key in COUNTS:
        is_whole = isinstance(value, int) or (is_number and value.is_integer())
        return is_number and is_whole and 0 <= value <= MAX_COUNT
    return key not in NUMBERS or is_number


def _expected(key: str) -> str:
    if key == "type":
        return "the name of a type, or a list of names"
    if key == "required":
        return "a list of names"
    if key == "enum":
        return "a list of values"
    counted = f"a whole number from 0 to {MAX_COUNT}"
    return "text" if key in TEXTS else counted if key in COUNTS else "a number"


def _wrong(place: str, expected: str, value: Any) -> ValueError:
    shown = place if len(place) <= MAX_PLACE else f"...{place[-MAX_PLACE:]}"
    return ValueError(f"{shown}: expected {expected}, got {value!r:.80}")


WrittenSchema = Annotated[dict[str, Any], small_map(1000), AfterValidator(well_formed)]
"""The field of a request that holds a JSON schema."""
