"""Closed schemas: objects hold what the schema names, and what it says of the rest stays."""

from typing import Any

import pytest

from foreword.server.closed_schema import closed

LIGHT: dict[str, Any] = {"type": "object", "properties": {"area": {"enum": ["hall"]}}}
OPEN = [
    {"type": "object"},
    {"type": "object", "properties": {}},
    LIGHT | {"additionalProperties": True},
    LIGHT | {"additionalProperties": {"type": "integer"}},
    LIGHT | {"required": ["area", "state"]},
    LIGHT | {"minProperties": 2},
    LIGHT | {"patternProperties": {"^x": {"type": "integer"}}},
    {"allOf": [LIGHT, {"type": "object", "properties": {"state": {"enum": ["on"]}}}]},
    LIGHT | {"anyOf": [{"type": "object", "properties": {"state": {"enum": ["on"]}}}]},
    {"$defs": {"light": LIGHT}, "$ref": "#/$defs/light", "properties": {"state": {}}},
]


@pytest.mark.parametrize("schema", OPEN, ids=str)
def test_what_a_schema_says_of_further_properties_stays(schema: dict[str, Any]) -> None:
    assert closed(schema) == schema


@pytest.mark.parametrize(
    "around",
    [
        lambda one: one,
        lambda one: {"type": "array", "items": one},
        lambda one: closed({"type": "object", "properties": {"first": one}}),
        lambda one: {"anyOf": [{"type": "null"}, one]},
        lambda one: {"$defs": {"light": one}, "type": "array", "items": {"$ref": "#/$defs/light"}},
    ],
)
def test_objects_are_closed_wherever_they_stand(around: Any) -> None:
    assert closed(around(LIGHT)) == around(LIGHT | {"additionalProperties": False})
    assert "additionalProperties" not in LIGHT
