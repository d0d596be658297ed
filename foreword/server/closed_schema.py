"""Closed JSON schemas: objects without properties that nobody has named.

In: a JSON schema. Out: a narrower one; what follows it follows the first. A schema that says
nothing of further properties allows any, and a small model that may write one more never stops.
Knows no grammar library.
"""

from collections.abc import Mapping
from typing import Any

# Where these say what an object holds, closing one of them would forbid what others name.
JOINED = {"allOf", "if", "not", "dependentSchemas", "$dynamicRef"}
BESIDE = {"$ref", "anyOf", "oneOf", "patternProperties"}
CHOSEN = {"additionalProperties", "unevaluatedProperties", "minProperties"}
LISTS = {"anyOf", "oneOf", "prefixItems"}
NAMED = {"properties", "$defs", "definitions"}


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema whose objects hold the properties that it names and no others, wherever it
    names some and does not say what else there may be; as it is where it joins several schemas.
    """
    return dict(schema) if _joins(schema) else _closed(schema)


def _closed(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return schema
    found = {key: _part(key, value) for key, value in schema.items()}
    named = schema.get("properties") or {}
    if named and not schema.keys() & CHOSEN and set(schema.get("required") or ()) <= named.keys():
        found["additionalProperties"] = False
    return found


def _part(key: str, value: Any) -> Any:
    if key in NAMED and isinstance(value, Mapping):
        return {name: _closed(part) for name, part in value.items()}
    if key in LISTS and isinstance(value, list):
        return [_closed(part) for part in value]
    return _closed(value) if key == "items" else value


def _joins(schema: Any) -> bool:
    """Whether several schemas say together what one object holds, anywhere."""
    if isinstance(schema, Mapping):
        keys = schema.keys()
        is_joined = keys & JOINED or ("properties" in keys and keys & BESIDE)
        return bool(is_joined) or any(map(_joins, schema.values()))
    return isinstance(schema, list) and any(map(_joins, schema))
