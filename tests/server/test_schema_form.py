"""Malformed JSON schemas are refused by their place, wherever a request holds one."""

from typing import Any

import pytest
from pydantic import ValidationError

from foreword.errors import InputError
from foreword.server.protocol import JsonSchema
from foreword.server.response_request import FunctionTool, TextFormat
from foreword.server.schema_form import (
    COUNTS,
    NAMED,
    NUMBERS,
    ONE,
    SEVERAL,
    TEXTS,
    pattern_size,
    well_formed,
)
from foreword.server.structured_output import _check_multiples
from foreword.server.tools import ToolFunction

WRONG: list[tuple[Any, str]] = [
    ({"properties": ["a"]}, "properties: expected schemas by name"),
    ({"properties": {"a": {}}, "required": 5}, "required: expected a list of names"),
    ({"properties": {"a": {}}, "required": [["x"]]}, "required: expected a list of names"),
    ({"definitions": {"a": {"properties": ["q"]}}}, "definitions.a.properties: expected schemas"),
    ({"properties": {"a": {"type": 5}}}, "properties.a.type: expected the name of a type"),
    ({"properties": {"a": {"type": [[]]}}}, "properties.a.type: expected the name of a type"),
    ({"properties": {"a": {"enum": 5}}}, "properties.a.enum: expected a list of values"),
    ({"properties": {"a": {"enum": "abc"}}}, "properties.a.enum: expected a list of values"),
    ({"properties": {"a": {"anyOf": 5}}}, "properties.a.anyOf: expected a list of schemas"),
    ({"properties": {"a": {"anyOf": [3]}}}, r"properties.a.anyOf\[0\]: expected a schema"),
    ({"properties": {"a": {"items": "b"}}}, "properties.a.items: expected a schema"),
    ({"properties": {"a": {"$ref": 3}}}, r"properties.a.\$ref: expected text"),
    ({"properties": {"a": {"minLength": -1}}}, "properties.a.minLength: expected a whole number"),
    ({"properties": {"a": {"maximum": "5"}}}, "properties.a.maximum: expected a number"),
]
RIGHT: list[Any] = [
    {},
    {"type": ["string", "null"], "properties": {"a": True, "b": {"items": [{}, False]}}},
    {"$defs": {"a": {"enum": [1, None]}}, "$ref": "#/$defs/a", "required": []},
    {"properties": {"type": {"const": 5}, "required": {"minimum": 0.5, "minItems": 2.0}}},
    {"anything": 5, "default": [], "examples": "x"},
]


@pytest.mark.parametrize(("schema", "expected"), WRONG)
def test_what_is_no_schema_is_named(schema: Any, expected: str) -> None:
    for make in (
        lambda: JsonSchema(name="x", schema=schema),
        lambda: ToolFunction(name="f", parameters=schema),
        lambda: FunctionTool(type="function", name="f", parameters=schema),
        lambda: TextFormat(type="json_schema", name="x", schema=schema),
    ):
        with pytest.raises(ValidationError, match=expected):
            make()


HUGE = 10**400  # no float holds it
VALUES: list[Any] = [
    HUGE, -HUGE, 1e308, -1e308, 0, -0.0, 0.5, True, None, "", "(", [], [HUGE], {}, {"a": HUGE},
]  # fmt: skip
KEYWORDS = sorted(
    {"type", "required", "enum", "const"} | COUNTS | NAMED | NUMBERS | ONE | SEVERAL | TEXTS
)


@pytest.mark.parametrize("keyword", KEYWORDS)
def test_any_value_of_any_keyword_is_taken_or_refused_by_its_place(keyword: str) -> None:
    for value in VALUES:
        try:
            JsonSchema(name="x", schema={"properties": {"a": {keyword: value}}})
        except ValidationError as error:
            assert f"properties.a.{keyword}" in str(error)


@pytest.mark.parametrize("keyword", sorted(COUNTS))
def test_counts_that_no_grammar_reads_are_refused(keyword: str) -> None:
    assert well_formed({keyword: 2**64 - 1}) and well_formed({keyword: 5.0})
    for value in (2**64, HUGE, 1e300):
        with pytest.raises(ValueError, match=f"{keyword}: expected a whole number from 0 to"):
            well_formed({keyword: value})


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("", 0),
        ("abc", 3),
        (r"a\(b", 3),
        ("[a-z]{1,20}", 20),
        ("[(){9}]{2}", 2),
        ("(ab{3}){4}", 16),
        ("((a{10}){10}){100}", 10_000),
        ("a{2,}b", 3),
        ("(a|b)*c?", 3),
        ("^(a{1000}){1000}$", 1_000_002),
        (r"\d{3}-\d{4}", 8),
        ("a{99999999999999999999}", 999_999_999),
        (")a(", 2),
    ],
)
def test_a_pattern_counts_its_repetitions(pattern: str, size: int) -> None:
    assert pattern_size(pattern) == size


@pytest.mark.parametrize(
    "schema", [{"pattern": "(a{200}){200}"}, {"patternProperties": {"(a{200}){200}": {}}}]
)
def test_patterns_without_bound_are_refused(schema: Any) -> None:
    with pytest.raises(ValueError, match="at most 10000 characters, repetitions written out"):
        well_formed({"properties": {"a": schema}})


@pytest.mark.parametrize("schema", RIGHT)
def test_schemas_pass_as_they_are(schema: Any) -> None:
    assert well_formed(schema) is schema


def test_a_schema_as_deep_as_a_body_may_be_is_read() -> None:
    schema: Any = {}
    for _ in range(5000):
        schema = {"items": schema}
    assert well_formed(schema) is schema


@pytest.mark.parametrize(
    ("text", "is_right"),
    [
        ('{"multipleOf": 5}', True),
        ('{"multipleOf": 0.01}', True),
        ('{"multipleOf": 999983}', False),
        ('{"multipleOf": 1e6}', False),
        ('{"multipleOf":1e400}', False),
        ('{"allOf": [{"multipleOf": 997}, {"multipleOf": 991}]}', False),
        ('{"const": "\\"multipleOf\\": 999983"}', True),
    ],
)
def test_grammars_of_many_remainders_are_refused_before_they_are_made(
    text: str, is_right: bool
) -> None:
    if is_right:
        _check_multiples("response_format", text)
        return
    with pytest.raises(InputError, match="response_format: multipleOf"):
        _check_multiples("response_format", text)
