"""Calls of tools: how a template writes them is seen, and read back, whole or in pieces."""

import random
from typing import Any

import pytest
from tiny_tokenizer import CHATML, tiny_tokenizer
from tool_templates import HERMES, LISTED, LLAMA, PAIRS, SILENT, TEMPLATES

from foreword.config import EncodingConfig
from foreword.data.argument_format import ArgumentFormat
from foreword.data.call_format import CallFormat, call_format
from foreword.data.call_reader import CallReader, read_answer
from foreword.data.columns import as_examples
from foreword.data.encoding import decode, encode, encode_prompt
from foreword.data.tool_calls import ToolCall, calls_of
from foreword.errors import InputError

USER = {"role": "user", "content": "lamp"}
CALL = '{"name": "f", "arguments": {"a": [1, "é"]}}'
MARKED = (
    "<tool_call>\n<function=f>\n<parameter=a>\né\n</parameter>\n<parameter=b>\n2\n</parameter>\n"
    "</function>\n</tool_call>"
)
HERMES_CALL = f"<tool_call>\n{CALL}\n</tool_call>"
NAMES: dict[str, Any] = {"f": {}, "g": {}}


def form_of(name: str) -> CallFormat:
    return call_format(tiny_tokenizer(chat_template=TEMPLATES[name]), EncodingConfig())


def row(*calls: dict[str, Any], text: str = "") -> dict[str, Any]:
    made = [
        {"id": f"abcdefgh{number}", "type": "function", "function": call}
        for number, call in enumerate(calls)
    ]
    answer = {"role": "assistant", "content": text, "tool_calls": made}
    tools = [{"type": "function", "function": {"name": name}} for name in sorted(NAMES)]
    return {"messages": [USER, answer], "tools": tools}


def test_the_format_of_each_family_is_seen() -> None:
    hermes, llama, mistral, named, marks, pairs, listed = map(form_of, TEMPLATES)
    assert hermes.opening == "<tool_call>\n" and hermes.closing == "\n</tool_call>"
    assert hermes.is_each_marked and hermes.literals == ('{"name": "', '", "arguments": ', "}")
    assert llama.mark == "" and llama.joint is None and llama.paths["arguments"] == ("parameters",)
    assert (mistral.opening, mistral.joint, mistral.closing) == ("<|bos|>[", ", ", "]")
    assert mistral.holes == ("name", "arguments", "id") and not mistral.is_each_marked
    assert mistral.special_tokens(tiny_tokenizer()) == {0: "<|bos|>"}
    assert named.paths == {} and named.literals == ("", "[ARGS]", "") and named.is_each_marked
    assert (marks.opening, marks.literals) == ("<tool_call>\n<function=", ("", ">", ""))
    assert marks.closing == "\n</function>\n</tool_call>" and marks.is_each_marked
    words = ("True", "False", "None")
    assert marks.argument == ArgumentFormat("\n<parameter=", ">\n", "\n</parameter>", words)
    assert (pairs.opening, pairs.literals) == ("\n<tool_call>", ("", "", ""))
    assert pairs.argument is not None and pairs.argument.between == "</arg_key>\n<arg_value>"
    assert pairs.argument.words == ("true", "false", "null") and pairs.is_each_marked
    assert listed.joint == '\n</invoke>\n<invoke name="' and not listed.is_each_marked


@pytest.mark.parametrize(
    "template",
    [
        CHATML, SILENT, HERMES.replace("tojson", "string"),
        PAIRS.replace("~ k ~", "~"),  # which argument it is cannot be seen
        LISTED.replace("~ k ~ '\">'", "~ k ~ '\" kind=' ~ v | length ~ '>'"),
    ],
)  # fmt: skip
def test_a_template_whose_calls_cannot_be_read_is_refused(template: str) -> None:
    with pytest.raises(InputError, match="^tools: the chat template"):
        call_format(tiny_tokenizer(chat_template=template), EncodingConfig())
    with pytest.raises(InputError, match="^tools: .* row template"):
        call_format(tiny_tokenizer(), EncodingConfig(row_template="{prompt}"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_labels_of_a_row_read_back_as_its_calls(name: str) -> None:
    """What is trained is what is served: the arguments may come first, or as text, in a file."""
    tokenizer, form = tiny_tokenizer(chat_template=TEMPLATES[name]), form_of(name)
    calls: list[dict[str, Any]] = [
        {"arguments": {"a": [1, "é"]}, "name": "f"},
        {"name": "g", "arguments": "{}"},
    ]
    calls = calls[:1] if name == "llama" else calls
    [example] = as_examples(row(*calls))
    encoded = encode(example, tokenizer, EncodingConfig(), 999)
    ids = encoded.input_ids[-encoded.num_labels : -1]
    text = decode(ids, tokenizer, form.special_tokens(tokenizer))
    found = read_answer(text, form, NAMES)
    assert found.text == "" and [call[:2] for call in found.calls] == [
        call[:2] for call in calls_of(example.answer)
    ]


@pytest.mark.parametrize(
    ("name", "said", "text", "num_calls"),
    [
        ("hermes", HERMES_CALL, "", 1),
        ("hermes", f"{HERMES_CALL}\n{HERMES_CALL} \n", "", 2),
        ("hermes", f"Wait.\n{HERMES_CALL}", "Wait.", 1),
        ("hermes", HERMES_CALL.replace("\n", ""), "", 1),  # as models write it that vary
        ("hermes", f"{HERMES_CALL} Done.", " Done.", 1),
        ("hermes", HERMES_CALL[:-12], "", 1),  # the end of the answer closes it, too
        ("hermes", HERMES_CALL[:-16], HERMES_CALL[:-16], 0),
        ("hermes", HERMES_CALL.replace('"f"', '"h"'), HERMES_CALL.replace('"f"', '"h"'), 0),
        ("hermes", f"<tool_call> {HERMES_CALL}", "<tool_call>", 1),
        ("hermes", f"{HERMES_CALL}<tool_c", "<tool_c", 1),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}, "x": 1}</tool_call>', None, 0),
        ("hermes", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>', None, 0),
        ("hermes", '<tool_call>{"name": ["f"], "arguments": {}}</tool_call>', None, 0),
        ("hermes", "  ", "  ", 0),
        ("llama", ' {"name": "f", "parameters": {}}\n', "", 1),
        ("llama", '{"name": "f", "parameters": {}} ok', None, 0),
        ("llama", 'See {"name": "f", "parameters": {}}', None, 0),
        ("llama", '{"a": 1}', None, 0),
        ("mistral", '<|bos|>[{"name": "f", "arguments": {}, "id": "abcdefghi"}', "", 1),
        ("mistral", '<|bos|>[{"name": "f", "arguments": {}}, {"name": "g"}]', None, 0),
        ("named", '[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]g[ARGS]{"a": "["}', "", 2),
        ("named", "[TOOL_CALLS]f[ARGS]", None, 0),
        ("named", "[TOOL_CALLS]f{}", None, 0),
        ("marks", f"{MARKED}\n{MARKED}", "", 2),
        ("marks", f"So.\n{MARKED} ", "So.", 1),
        ("marks", MARKED.replace("\n", ""), "", 1),
        ("marks", MARKED.replace("=f", "=h"), None, 0),
        ("marks", MARKED.replace("</parameter>", ""), None, 0),
        ("marks", MARKED.replace("</function>", ""), None, 0),
        ("marks", MARKED.replace("é", "</parameter> é"), "", 1),
        ("marks", MARKED.replace("<parameter=a>", "<parameter=>"), None, 0),
        ("marks", MARKED.replace("=b>", "=a>"), None, 0),  # which of both?
        ("marks", MARKED[:-24], "", 1),  # the end of the answer closes it, too
        ("pairs", "<tool_call>f</tool_call>\n<tool_call>g\n</tool_call>", "", 2),
        ("pairs", "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>.", ".", 1),
        ("pairs", "<tool_call>f<arg_key>a</arg_key></tool_call>", None, 0),
        (
            "listed",
            '<calls>\n<invoke name="f">\n</invoke><invoke name="g"></invoke></calls>',
            "",
            2,
        ),
        ("listed", '<calls><invoke name="f"></invoke>', None, 0),
    ],
)
def test_calls_are_read_and_all_else_is_text(
    name: str, said: str, text: str | None, num_calls: int
) -> None:
    form, rng = form_of(name), random.Random(said)
    found = read_answer(said, form, NAMES)
    assert found.text == (said if text is None else text) and len(found.calls) == num_calls
    for size in (1, 1, 3, 7):
        reader, events, rest = CallReader(form, NAMES), [], said
        while rest:
            cut = rng.randint(1, 2 * size - 1)
            events += reader.put(rest[:cut])
            rest = rest[cut:]
        events += reader.end()
        told = "".join(one for one in events if isinstance(one, str))
        assert told == found.text, "the borders of pieces change nothing"
        assert tuple(one for one in events if isinstance(one, ToolCall)) == found.calls


@pytest.mark.parametrize("name", ["marks", "pairs", "listed"])
@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, " two\nlines\n "),
        ({"type": "string"}, "7"),
        ({"type": "string"}, "</parameter> </arg_value> <tool_call>"),
        ({"type": "string"}, ""),
        ({"type": "integer"}, 7),
        ({"type": "number"}, 7.5),
        ({"type": "boolean"}, True),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, 7),
        ({"enum": [1, 2]}, 2),
        ({"enum": ["1", "2"]}, "2"),
        ({"const": "1"}, "1"),
        ({"type": "array", "items": {}}, [1, "é", {"b": False}]),
        ({"$ref": "#/$defs/place"}, {"room": "hall", "is_lit": True}),
        ({"$ref": "#/$defs/text"}, "7"),
        (None, 7),
        (None, "hall"),
        ({}, [True]),
    ],
)
def test_an_arguments_text_is_a_value_by_its_schema(name: str, schema: Any, value: Any) -> None:
    tokenizer, form = tiny_tokenizer(chat_template=TEMPLATES[name]), form_of(name)
    root = {"$defs": {"place": {"type": "object"}, "text": {"type": "string"}}}
    tools = {"f": root if schema is None else root | {"properties": {"a": schema}}}
    call = {"name": "f", "arguments": {"a": value, "b": "x"}}
    [example] = as_examples(row(call))
    encoded = encode(example, tokenizer, EncodingConfig(), 999)
    text = tokenizer.decode(encoded.input_ids[-encoded.num_labels : -1])
    assert read_answer(text, form, tools).calls == (ToolCall("f", call["arguments"]),)


@pytest.mark.parametrize("word", ["null", "None"])
def test_an_argument_may_be_null_where_its_schema_says_so(word: str) -> None:
    for types, value in ((["string", "null"], None), (["string"], word)):
        tools = {"f": {"properties": {"a": {"anyOf": [{"type": kind} for kind in types]}}}}
        [call] = read_answer(MARKED.replace("é", word), form_of("marks"), tools).calls
        assert call.arguments["a"] == value


def test_a_text_that_is_of_no_type_of_its_schema_stays_text() -> None:
    tools = {"f": {"properties": {"a": {"type": "integer"}, "b": {"type": "array"}}}}
    [call] = read_answer(MARKED, form_of("marks"), tools).calls
    assert call.arguments == {"a": "é", "b": "2"}


def test_text_that_is_certain_does_not_wait() -> None:
    reader = CallReader(form_of("hermes"), NAMES)
    assert reader.put("So <to") == ["So"] and reader.put("y> it") == [" <toy> it"]
    assert CallReader(form_of("llama"), NAMES).put("So") == ["So"]


def test_a_long_call_is_read_in_linear_time() -> None:
    reader, num_reads = CallReader(form_of("hermes"), NAMES), 0
    whole = HERMES_CALL.replace("é", "x" * 20_000)
    read = reader._read

    def counted(**options: Any) -> Any:
        nonlocal num_reads
        num_reads += 1
        return read(**options)

    reader._read = counted  # type: ignore[method-assign]
    found = [event for char in whole for event in reader.put(char)] + reader.end()
    assert len(found) == 1 and num_reads < 200


def test_descriptions_are_shown_alike_whoever_wrote_them() -> None:
    parameters = {"type": "object", "properties": {"a": {"type": "string", "default": None}}}
    function = {"strict": True, "parameters": parameters, "name": "f", "description": None}
    [example] = as_examples(
        row()
        | {"tools": [{"function": function, "type": "function"}]}
        | {"messages": [USER, {"role": "assistant", "content": "No."}]}
    )
    [tool] = example.tools
    assert list(tool) == ["type", "function"] and list(tool["function"]) == ["name", "parameters"]
    tokenizer = tiny_tokenizer(chat_template=LLAMA)
    ids = encode_prompt([USER], tokenizer, EncodingConfig(), tools=example.tools)
    assert '{"type": "function", "function": {"name": "f", "parameters": ' in tokenizer.decode(ids)
