"""Arguments that are written one by one are held to their tool's schema, or refused by name."""

from typing import Any

import pytest
from tiny_tokenizer import tiny_tokenizer
from tool_templates import TEMPLATES

from foreword.config import EncodingConfig
from foreword.data.call_format import call_format
from foreword.data.call_reader import read_answer
from foreword.errors import InputError
from foreword.server.structured_output import Grammars
from foreword.server.tool_grammar import CallableTool, call_grammar

NAMES = ("marks", "pairs", "listed")
TOKENIZERS = {name: tiny_tokenizer(chat_template=TEMPLATES[name]) for name in NAMES}
FORMS = {name: call_format(TOKENIZERS[name], EncodingConfig()) for name in NAMES}
GRAMMARS = {name: Grammars(one, one.eos_token_id) for name, one in TOKENIZERS.items()}


def written(name: str, arguments: dict[str, Any]) -> str:
    """Return a call as its template writes it."""
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    whole = TOKENIZERS[name].apply_chat_template(turns, tokenize=False)
    assert isinstance(whole, str)
    return whole.rpartition("assistant\n")[2].removesuffix("<|im_end|>\n")


def is_allowed(name: str, schema: dict[str, Any], text: str) -> bool:
    """Return whether a text is a whole answer by a tool's grammar."""
    tools = [CallableTool("f", {"type": "object"} | schema)]
    grammar = call_grammar(FORMS[name], tools, {}, is_forced=True, has_one=True)
    state = GRAMMARS[name].of_tools(grammar)
    for token in TOKENIZERS[name](text, add_special_tokens=False)["input_ids"]:
        if not state.allowed()[token]:
            return False
        state.accept(token)
    return bool(state.allowed()[TOKENIZERS[name].eos_token_id])


PLACE = {"type": "object", "properties": {"room": {"type": "string"}}, "required": ["room"]}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "string"}, "two\nlines é", None),
        ({"type": "string", "minLength": 2, "maxLength": 3}, "abc", "abcd"),
        ({"enum": ["hall", "attic"]}, "attic", "cellar"),
        ({"const": "on"}, "on", "off"),
        ({"type": "integer", "minimum": 3}, 7, 2),
        ({"type": "number"}, 7.5, "x"),
        ({"type": "boolean"}, True, "yes"),
        ({"type": "array", "items": {"type": "integer"}}, [1, 2], ["a"]),
        ({"$ref": "#/$defs/place"}, {"room": "hall"}, {"room": "hall", "other": 1}),
        ({"anyOf": [{"type": "integer"}, {"enum": ["auto"]}]}, "auto", "no"),
        ({"anyOf": [{"type": "integer"}, {"enum": ["auto"]}]}, 3, 3.5),
        ({"description": "anything"}, "any text", None),
    ],
)
def test_what_follows_the_schema_is_allowed_and_all_else_is_not(
    name: str, schema: dict[str, Any], right: Any, wrong: Any
) -> None:
    known = {"properties": {"a": schema, "b": {"type": "string"}}, "required": ["a"]}
    root = known | {"$defs": {"place": PLACE}, "title": "F"}
    for arguments in ({"a": right}, {"a": right, "b": "x"}):
        text = written(name, arguments)
        assert is_allowed(name, root, text)
        [call] = read_answer(text, FORMS[name], {"f": root}).calls
        assert call.arguments == arguments
    assert not is_allowed(name, root, written(name, {"b": "x"})), "a is required"
    assert not is_allowed(name, root, written(name, {"a": right, "c": 1})), "c is none"
    if wrong is not None:
        assert not is_allowed(name, root, written(name, {"a": wrong}))


@pytest.mark.parametrize("name", NAMES)
def test_a_text_holds_no_mark_that_ends_it(name: str) -> None:
    form, root = FORMS[name].argument, {"properties": {"a": {"type": "string"}}}
    assert form is not None
    assert not is_allowed(name, root, written(name, {"a": f"x{form.closing}y"}))


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"properties": {"a": {"type": "string", "pattern": "x+"}}}, "f.a: .*'pattern'"),
        ({"properties": {"a": {"type": "string", "format": "date"}}}, "f.a: .*'format'"),
        ({"properties": {"a": {}}, "minProperties": 1}, "f: .*'minProperties'"),
        ({"properties": {}, "required": ["a"]}, "f: .*'a'"),
        ({"properties": {"a>\nb": {}}}, "an argument called"),
        ({"properties": {"": {}}}, "an argument called ''"),
        ({"properties": {"a": {"const": "x\n</parameter>\n<parameter=b>y"}}}, "f: .*which ends an"),
        (
            {"properties": {"a": {"type": "array", "items": {"enum": ["x</parameter>"]}}}},
            "f: .*which ends an",
        ),
        (
            {"properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"const": "</parameter>"}}},
            "f: .*which ends an",
        ),
        ({"properties": {"a": {"type": "string", "enum": [1]}}}, "f.a: a text, and none"),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(schema: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=f"^tools: .*{expected}"):
        is_allowed("marks", schema, "")
