"""Columns: every column and key of a row is used, named as unused, or refused."""

import json
from collections import Counter
from typing import Any

import numpy
import pytest

from foreword.config import DataConfig
from foreword.data.columns import as_examples
from foreword.data.example import Example, message_text
from foreword.data.validation_split import split_examples
from foreword.errors import DataError, InputError

pandas = pytest.importorskip("pandas")
USER = {"role": "user", "content": "Good?"}
ANSWER = {"role": "assistant", "content": "yes"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}


def read(row: dict[str, Any], **options: Any) -> list[Example]:
    return as_examples(row, "rows.jsonl:1", DataConfig(**options))


def said(row: dict[str, Any], **options: Any) -> list[str]:
    counts: Counter[str] = Counter()
    as_examples(row, "rows.jsonl:1", DataConfig(**options), said=counts)
    return list(counts)


# --- what a row says beside its answer ----------------------------------------------------------


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL])])
def test_tools_go_with_the_conversation(tools: Any) -> None:
    [example] = read({"messages": [USER, ANSWER], "tools": tools})
    assert example.tools == (TOOL,)
    [pair] = read({"prompt": "a", "completion": "b", "tools": tools})
    assert (pair.prompt, pair.tools) == (({"role": "user", "content": "a"},), (TOOL,))


def test_functions_are_tools() -> None:
    row = {"messages": [USER, ANSWER], "functions": [TOOL["function"]]}
    assert read(row)[0].tools == (TOOL,)


@pytest.mark.parametrize("tools", ["none", [1], {"a": 1}, "[1"])
def test_tools_of_another_kind_are_refused(tools: Any) -> None:
    with pytest.raises(DataError, match="^rows.jsonl:1: expected a list .*'tools'"):
        read({"messages": [USER, ANSWER], "tools": tools})


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_a_system_column_is_the_system_turn(name: str) -> None:
    turn = {"role": "system", "content": "Be brief."}
    assert read({"messages": [USER, ANSWER], name: "Be brief."})[0].prompt == (turn, USER)
    assert read({"messages": [turn, USER, ANSWER], name: "Be brief."})[0].prompt == (turn, USER)
    asked = {"role": "user", "content": "a"}
    assert read({"prompt": "a", "completion": "b", name: "Be brief."})[0].prompt == (turn, asked)
    with pytest.raises(DataError, match="different system turns"):
        read({"messages": [turn | {"content": "x"}, USER, ANSWER], name: "Be brief."})
    for blank in ("", None, float("nan")):
        assert read({"prompt": "a", "completion": "b", name: blank})[0].prompt == "a"


def test_other_columns_are_named_once_as_unused() -> None:
    row = {"messages": [USER, ANSWER], "id": 7, "prompt": "a", "empty": None}
    assert said(row) == ["column 'id' is not used", "column 'prompt' is not used"]


# --- answers ------------------------------------------------------------------------------------

TWICE = [USER, ANSWER, {"role": "user", "content": "Sure?"}, ANSWER | {"content": "no"}]


def test_every_answer_of_a_conversation_is_learned_behind_the_turns_before_it() -> None:
    first, second = read({"messages": TWICE})
    assert (first.prompt, first.completion) == ((USER,), "yes")
    assert (second.prompt, second.completion) == (tuple(TWICE[:3]), "no")
    assert [e.source for e in (first, second)] == ["rows.jsonl:1 answer 1", "rows.jsonl:1 answer 2"]
    assert read({"messages": TWICE}, learn="last") == [
        Example(tuple(TWICE[:3]), "no", "rows.jsonl:1")
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [("weight", 0), ("weight", 0.0), ("train", False), ("loss_mask", 0), ("loss", False)],
)
def test_an_answer_of_no_weight_is_no_label_but_is_read(key: str, value: Any) -> None:
    turns = [USER, ANSWER | {key: value}, *TWICE[2:]]
    [example] = read({"messages": turns})
    assert (example.prompt, example.completion) == (tuple(TWICE[:3]), "no")
    last = [*TWICE[:3], TWICE[3] | {key: value}]
    assert [e.completion for e in read({"messages": last})] == ["yes"]
    with pytest.raises(DataError, match="an answer to learn, found 1 of weight 0"):
        read({"messages": [USER, ANSWER | {key: value}]})


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (ANSWER | {"weight": 0.5}, "message 2: expected weight 0 or 1, found 0.5"),
        (ANSWER | {"train": "no"}, "message 2: expected train 0 or 1, found 'no'"),
        (ANSWER | {"weight": 1, "train": False}, "weight and train say different things"),
        (USER | {"train": True}, "message 2: a turn of role 'user' is to be learned"),
    ],
)
def test_other_weights_are_refused(turn: Any, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read({"messages": [USER, turn, ANSWER]})


def test_an_answer_with_nothing_before_it_is_not_learned() -> None:
    row = {"messages": [ANSWER, *TWICE[:2]]}
    assert [e.prompt for e in read(row)] == [(ANSWER, USER)]
    assert said(row) == ["an answer with nothing before it is not learned"]


def test_a_call_of_tools_is_an_answer() -> None:
    turns = [USER, CALL, {"role": "tool", "content": "4"}, ANSWER]
    called, told = read({"messages": turns, "tools": [TOOL]})
    assert (called.prompt, called.completion, called.answer) == ((USER,), "", CALL)
    assert (told.prompt, told.completion, told.answer) == (tuple(turns[:3]), "yes", None)


def test_only_the_answers_of_a_completion_are_learned() -> None:
    [example] = read({"prompt": TWICE[:3], "completion": [TWICE[3]]})
    assert (example.prompt, example.completion) == (tuple(TWICE[:3]), "no")


def test_nulls_before_a_completion_hide_none_of_its_answers() -> None:
    question, last = {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}
    row = {"prompt": [USER], "completion": [ANSWER, question, last]}
    for before in ([USER, None], [None, USER], [None, USER, None, None]):
        found = as_examples(row | {"prompt": before})
        assert [one.completion for one in found] == ["yes", "d"]
        assert [one.prompt for one in found] == [one.prompt for one in as_examples(row)]


def test_answers_of_one_conversation_stay_on_one_side() -> None:
    rows = [
        {"messages": [{"role": "user", "content": str(n // 2)}, ANSWER, USER, ANSWER]}
        for n in range(20)
    ]
    examples = [e for n, row in enumerate(rows) for e in as_examples(row, f"row {n}")]
    train, held_out = split_examples(examples, 0.3, seed=0)
    opening = lambda side: {e.prompt[0]["content"] for e in side}  # noqa: E731
    assert train and held_out and not opening(train) & opening(held_out)


# --- nulls and names ----------------------------------------------------------------------------


@pytest.mark.parametrize("null", [None, float("nan")])
def test_a_null_is_not_given(null: Any) -> None:
    row = {"messages": null, "prompt": "a", "completion": "b", "tools": null}
    assert read(row) == [Example("a", "b", "rows.jsonl:1")]
    other = {"messages": [USER, ANSWER], "prompt": null, "completion": null}
    assert [e.completion for e in read(other)] == ["yes"]


def test_nulls_inside_messages_are_not_given() -> None:
    call = {"id": None, "function": {"name": "f", "arguments": {"a": 1, "b": None}}}
    turns = [USER | {"name": None}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    tools = [{"type": "function", "function": {"name": "f", "x": None}}]
    [example] = read({"messages": turns, "tools": tools})
    assert example.prompt == (USER,)
    assert example.answer is not None
    assert example.answer["tool_calls"] == [{"function": {"name": "f", "arguments": {"a": 1}}}]
    assert example.tools == ({"type": "function", "function": {"name": "f"}},)


def test_a_named_column_is_read() -> None:
    row = {"messages": [USER, ANSWER], "prompt": "a", "completion": "b", "summary": "c", "q": "d"}
    found = read(row, completion_column="summary")
    assert [(e.prompt, e.completion) for e in found] == [("a", "c")]
    found = read(row, prompt_column="q")
    assert [(e.prompt, e.completion) for e in found] == [("d", "b")]
    assert [e.completion for e in read(row, messages_column="messages")] == ["yes"]
    turns = {"messages": [USER], "summary": "c"}
    assert [(e.prompt, e.completion) for e in read(turns, completion_column="summary")] == [
        ((USER,), "c")
    ]


def test_names_that_exclude_each_other_are_refused() -> None:
    both = {"messages_column": "messages", "completion_column": "summary"}
    with pytest.raises(DataError, match="'messages' and 'summary' are both named"):
        read({"messages": [USER, ANSWER], "prompt": "a", "summary": "c"}, **both)
    assert read({"messages": None, "prompt": "a", "summary": "c"}, **both)[0].completion == "c"
    assert read({"messages": [USER, ANSWER], "summary": None}, **both)[0].completion == "yes"
    with pytest.raises(InputError, match="--template .* leave out --prompt-column"):
        DataConfig(template="{a}", label_column="b", prompt_column="c")


# --- schemas ------------------------------------------------------------------------------------


def test_conversations_in_the_other_schema_are_read() -> None:
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Good?"},
        {"from": "gpt", "value": "yes"},
    ]
    [example] = read({"conversations": turns})
    assert example.prompt == ({"role": "system", "content": "Be brief."}, USER)
    assert example.completion == "yes"
    assert read({"messages": json.dumps([USER, ANSWER])})[0].completion == "yes"


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"instruction": "a", "input": "b", "output": "c"}, "a\n\nb", "c"),
        ({"instruction": "a", "input": "", "output": "c"}, "a", "c"),
        ({"question": "a", "answer": "b"}, "a", "b"),
        ({"prompt": "a", "response": "b"}, "a", "b"),
        ({"text": "a", "label": 1}, "a", "1"),
        ({"text": "a", "label": "good"}, "a", "good"),
    ],
)
def test_well_known_pairs_are_read_and_said(
    row: dict[str, Any], prompt: str, completion: str
) -> None:
    [example] = read(row)
    assert (example.prompt, example.completion) == (prompt, completion)
    [sentence] = said(row)
    assert sentence.endswith("are read as a pair")


# --- values as numpy and pandas hold them, and cells of text ------------------------------------


def _array(*values: Any) -> Any:
    array = numpy.empty(len(values), dtype=object)
    array[:] = values
    return array


@pytest.mark.parametrize(
    "messages",
    [
        _array(USER, ANSWER),
        (USER, ANSWER),
        _array({"role": "user", "content": _array({"type": "text", "text": "Good?"})}, ANSWER),
        [USER | {"name": float("nan")}, ANSWER | {"weight": numpy.int64(1), "id": pandas.NA}],
        [None, USER, ANSWER],
        [{"role": "user", "content": [None, {"type": "text", "text": "Good?"}]}, ANSWER],
    ],
)
def test_a_conversation_may_be_as_numpy_and_pandas_hold_it(messages: Any) -> None:
    [example] = read({"messages": messages, "tools": _array(TOOL), "when": pandas.NaT})
    assert message_text(example.prompt[0]) == "Good?"  # type: ignore[arg-type]
    assert set(example.prompt[0]) == {"role", "content"}  # type: ignore[arg-type]
    assert (example.completion, example.answer, example.tools) == ("yes", None, (TOOL,))


@pytest.mark.parametrize("null", [pandas.NA, pandas.NaT, numpy.float32("nan")])
def test_a_null_of_pandas_is_not_given(null: Any) -> None:
    [example] = read({"messages": null, "prompt": "a", "completion": numpy.int64(3)})
    assert (example.prompt, example.completion) == ("a", "3")


def test_a_number_of_numpy_fills_a_template_as_it_is_written() -> None:
    row = {"x": numpy.float32(1.1), "y": "b"}
    [example] = read(row, template="{x}", label_column="y")
    assert example.prompt == "1.1"


def test_numbers_of_media_stay_in_their_array() -> None:
    wave = numpy.zeros(3)
    part = {"type": "audio", "audio": {"array": wave, "sampling_rate": 8}}
    [example] = read({"messages": [{"role": "user", "content": [part]}, ANSWER]})
    assert example.prompt[0]["content"][0]["audio"]["array"] is wave  # type: ignore[index]


def test_turns_may_be_json_in_the_cells_of_a_pair() -> None:
    [example] = read({"prompt": json.dumps([USER]), "completion": json.dumps([ANSWER])})
    assert (example.prompt, example.completion) == ((USER,), "yes")
    for text in ("[1, 2]", "[INST] a", "[]"):
        assert read({"prompt": text, "completion": "[1]"}) == [Example(text, "[1]", "rows.jsonl:1")]


@pytest.mark.parametrize("cell", ['[{"role": "user", "role": "user"}]', '[{"role": NaN}]'])
def test_json_in_a_cell_is_read_as_strictly_as_a_file(cell: str) -> None:
    with pytest.raises(DataError, match="invalid JSON: .*(twice|NaN)"):
        read({"messages": cell})


def test_a_completion_without_turns_is_refused() -> None:
    with pytest.raises(DataError, match="expected a completion, found an empty list"):
        read({"prompt": [USER, ANSWER], "completion": []})


def test_other_keys_of_an_answer_are_kept_and_make_it_no_more_than_text() -> None:
    [example] = read({"messages": [USER, ANSWER | {"name": "Ann"}]})
    assert example.answer == ANSWER | {"name": "Ann"}
    assert not example.is_beyond_text
