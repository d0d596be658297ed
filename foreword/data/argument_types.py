"""Argument types: what the text of one argument stands for, by the JSON schema of its tool.

In: a schema, and text in which only texts stand as they are. Out: the types that a value may have,
and the value. What is of none of these types stays text. Knows no template.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from foreword.data.json_files import STRICT

_WORDS = {"True": True, "False": False, "None": None}  # as templates in Python's manner write them
_NAMES = ("object", "array", "string", "boolean", "integer", "number", "null")
_DEPTH = 16  # of references and unions


def types_of(schema: Any, root: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the types that a schema says, in its order; none where it says nothing.

    Args:
        schema: of a value.
        root: in which its references lie.
    """
    return tuple(dict.fromkeys(_types(schema, root, _DEPTH)))


def resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """Return what a schema refers to in its root; itself where it refers to nothing there."""
    for _ in range(_DEPTH):
        path = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(path, str) or not path.startswith("#/"):
            return schema
        found: Any = root
        for key in path[2:].split("/"):
            found = found.get(key) if isinstance(found, Mapping) else None
        schema = found
    return schema


def value_of(text: str, types: tuple[str, ...]) -> Any:
    """Return the value that a text stands for; where no types are known, of any that it has."""
    if types == ("string",):
        return text
    try:
        value = _WORDS[text] if text in _WORDS else STRICT.decode(text)
    except (ValueError, RecursionError):
        return text
    if "integer" in types and isinstance(value, float) and value.is_integer():
        value = int(value)
    is_taken = not isinstance(value, str) and (not types or is_of(value, types))
    return value if is_taken else text


def is_of(value: Any, types: tuple[str, ...]) -> bool:
    """Return whether a JSON value has one of some types."""
    if isinstance(value, float) and not math.isfinite(value):
        return False
    kind = type_of(value)
    return kind in types or (kind == "integer" and "number" in types)


def type_of(value: Any) -> str:
    """Return the type of a JSON value, as schemas call it."""
    if isinstance(value, bool):
        return "boolean"
    kinds = {dict: "object", list: "array", str: "string", int: "integer", float: "number"}
    return kinds.get(type(value), "null")


def _types(schema: Any, root: Mapping[str, Any], depth: int) -> Iterator[str]:
    schema = resolved(schema, root)
    if not isinstance(schema, Mapping) or not depth:
        return
    said = schema.get("type")
    if said is not None:
        yield from (one for one in ([said] if isinstance(said, str) else said) if one in _NAMES)
    elif "enum" in schema or "const" in schema:
        yield from map(type_of, schema.get("enum") or [schema.get("const")])
    else:
        for key in ("anyOf", "oneOf", "allOf"):
            for one in schema.get(key) or ():
                yield from _types(one, root, depth - 1)
