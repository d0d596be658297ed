"""Reading rows: every form and kind of file, and one line per mistake that names file and line."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foreword.config import DataConfig
from foreword.data.columns import as_examples
from foreword.data.example import Example, message_text, named
from foreword.data.examples import read_examples
from foreword.data.validation_split import split_examples
from foreword.errors import DataError, DependencyError, InputError

USER = {"role": "user", "content": "Good?"}
ANSWER = {"role": "assistant", "content": "yes"}
PAIR = '{"prompt": "a", "completion": "b"}'


def read(folder: Path, name: str, content: str | bytes, **options: Any) -> list[Example]:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_examples(path, DataConfig(**options))


def problem(folder: Path, name: str, content: str | bytes, **options: Any) -> str:
    """The one line that a mistake is told in, without the folder."""
    with pytest.raises(DataError) as caught:
        read(folder, name, content, **options)
    message = str(caught.value)
    assert message.startswith(f"{folder}/{name}") and "\n" not in message
    return message.removeprefix(f"{folder}/")


def examples(*prompts: str) -> list[Example]:
    return [Example(prompt, str(index), "") for index, prompt in enumerate(prompts)]


# --- forms of a row ----------------------------------------------------------------------------


def test_messages_become_the_turns_before_the_answer_and_the_answer(tmp_path: Path) -> None:
    [row] = read(tmp_path, "rows.jsonl", json.dumps({"messages": [USER, ANSWER], "id": 7}))
    assert row == Example((USER,), "yes", f"{tmp_path}/rows.jsonl:1")


def test_messages_come_before_prompt_and_completion(tmp_path: Path) -> None:
    row = {"messages": [USER, ANSWER], "prompt": "a", "completion": "b"}
    assert read(tmp_path, "rows.jsonl", json.dumps(row))[0].completion == "yes"


def test_prompt_and_completion_are_kept_as_written(tmp_path: Path) -> None:
    [row] = read(tmp_path, "rows.jsonl", '{"prompt": "", "completion": " b\u2028\\n"}')
    assert (row.prompt, row.completion) == ("", " b\u2028\n")


@pytest.mark.parametrize("completion", [[ANSWER], "yes"])
def test_a_prompt_of_messages_takes_an_answer_as_message_or_text(
    tmp_path: Path, completion: Any
) -> None:
    row = json.dumps({"prompt": [USER], "completion": completion})
    [example] = read(tmp_path, "rows.jsonl", row)
    assert (example.prompt, example.completion) == ((USER,), "yes")


def test_a_template_fills_columns_and_leaves_other_braces(tmp_path: Path) -> None:
    template = '{"in": "{text}", "n": {n}} {}'
    text = json.dumps({"text": "{n}", "n": 3, "label": "pos", "messages": []})
    [row] = read(tmp_path, "rows.jsonl", text, template=template, label_column="label")
    assert (row.prompt, row.completion) == ('{"in": "{n}", "n": 3} {}', "pos")


def test_columns_can_be_named(tmp_path: Path) -> None:
    names = {"prompt_column": "q", "completion_column": "a b"}
    assert read(tmp_path, "rows.csv", "q,a b\n1,2\n", **names)[0].completion == "2"


def test_media_parts_pass_through_and_nulls_of_a_table_go(tmp_path: Path) -> None:
    image = {"type": "image", "url": "x.png"}
    text = {"type": "text", "text": "what?"}
    parts = [{**image, "text": None}, {**text, "url": None}]
    turns = [{"role": "user", "content": parts, "tool_calls": None}, ANSWER]
    [row] = read(tmp_path, "rows.jsonl", json.dumps({"messages": turns}))
    found = image | {"url": str(tmp_path / "x.png")}
    assert row.prompt == ({"role": "user", "content": [found, text]},)


def test_an_answer_of_text_parts_is_their_text(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "y"}, {"type": "text", "text": "es"}]
    turns = [USER, {"role": "assistant", "content": parts}]
    [row] = read(tmp_path, "rows.jsonl", json.dumps({"messages": turns}))
    assert row.completion == "y\nes"


def test_an_earlier_turn_may_only_call_tools(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    row = json.dumps({"messages": [USER, call, {"role": "tool", "content": "4"}, ANSWER]})
    [example] = read(tmp_path, "rows.jsonl", row, learn="last")
    assert example.prompt[1] == {"role": "assistant", "tool_calls": [{"id": "1"}]}
    assert message_text(example.prompt[1]) == ""


# --- kinds of file -----------------------------------------------------------------------------


def test_jsonl_lines_are_counted_through_blank_lines_crlf_and_bom(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf\r\n" + PAIR.encode() + b"\r\n  \r\n" + PAIR.encode()
    sources = [row.source for row in read(tmp_path, "rows.ndjson", content)]
    assert sources == [f"{tmp_path}/rows.ndjson:2", f"{tmp_path}/rows.ndjson:4"]


def test_json_rows_stand_on_the_line_that_they_start_on(tmp_path: Path) -> None:
    content = f"\n[ {PAIR}, {PAIR}\n,\n{json.dumps(json.loads(PAIR), indent=1)},\n {PAIR}]\n"
    rows = read(tmp_path, "rows.json", content)
    assert [row.source.rpartition(":")[2] for row in rows] == ["2 (row 1)", "2 (row 2)", "4", "8"]


def test_csv_rows_stand_on_the_physical_line_that_they_start_on(tmp_path: Path) -> None:
    content = '\ufeffprompt,completion\r\n"a, ""b""\r\nc",1\r\n\r\nd,2\r\n'
    rows = read(tmp_path, "rows.CSV", content)
    assert [row.prompt for row in rows] == ['a, "b"\r\nc', "d"]
    assert [row.source.rpartition(":")[2] for row in rows] == ["2", "5"]


def test_tsv_cells_may_hold_commas(tmp_path: Path) -> None:
    [row] = read(tmp_path, "rows.tsv", "prompt\tcompletion\na,b\tc\n")
    assert (row.prompt, row.completion) == ("a,b", "c")


def test_parquet_and_a_saved_dataset_give_numbered_rows(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(
        [{"messages": [USER, ANSWER]}, {"messages": [{**USER, "name": "x"}, ANSWER]}]
    )
    table.save_to_disk(tmp_path / "saved")
    table.to_parquet(tmp_path / "rows.parquet")
    for name in ("saved", "rows.parquet"):
        rows = read_examples(tmp_path / name)
        assert [row.source for row in rows] == [f"{tmp_path / name} row {n}" for n in (1, 2)]
        assert [row.prompt for row in rows] == [(USER,), ({**USER, "name": "x"},)]


def test_a_missing_extra_prints_its_install_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DependencyError, match=r"pip install 'foreword\[data\]'"):
        read(tmp_path, "rows.parquet", "")


def test_reading_imports_no_torch() -> None:
    code = "import sys, foreword.data.examples; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


# --- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rows.txt", "a", "rows.txt: expected a file name that ends in .jsonl, .ndjson, .json,"),
        ("rows", "a", "found 'no ending'"),
        ("rows.jsonl", " \n", "rows.jsonl: expected rows, found an empty file"),
        ("rows.json", "[]", "rows.json: expected rows, found none"),
        ("rows.csv", "prompt,completion\n", "rows.csv: expected rows, found none"),
        ("rows.jsonl", b"{}\n\xe9", "rows.jsonl:2: expected UTF-8, found byte 0xe9"),
        ("rows.jsonl", PAIR + "\n{'a'}", "rows.jsonl:2: expected one object per line"),
        ("rows.jsonl", "[" * 100_000, "rows.jsonl:1: expected one object per line"),
        ("rows.jsonl", PAIR + "\n3", "rows.jsonl:2: expected an object of columns, found a number"),
        ("rows.json", PAIR, "rows.json:1: expected a list of objects, found an object"),
        ("rows.json", f"{PAIR}\n3", "rows.json:2: expected an object of columns, found a number"),
        ("rows.json", f"[{PAIR},\n[]]", "rows.json:2: expected an object of columns, found a list"),
        ("rows.csv", "prompt,prompt\na,b", "rows.csv:1: expected different names"),
        ("rows.csv", "prompt,completion\na,b,c", "rows.csv:2: expected 2 cells"),
        ("rows.csv", 'prompt,completion\na,b\nc,"d\ne', "rows.csv:3: unexpected end of data"),
        ("rows.parquet", "prompt", "rows.parquet: not a Parquet file"),
    ],
)
def test_a_bad_file_is_one_line_with_its_place(
    tmp_path: Path, name: str, content: str | bytes, expected: str
) -> None:
    assert expected in problem(tmp_path, name, content)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"text": "a", "id": 1},
            "expected column 'messages', or 'prompt' and 'completion', found",
        ),
        ({"text": "a", "label": 1.5}, "expected text in the completion, found a number"),
        ({}, "found no columns"),
        ({"prompt": "a", "answer": "b"}, "expected column 'completion', found 'prompt', 'answer'"),
        ({"prompt": 3, "completion": "b"}, "expected text in column 'prompt', found a number"),
        ({"prompt": "a", "completion": None}, "expected column 'completion', found null"),
        ({"prompt": "a", "completion": " \n"}, "expected a completion, found blank text"),
        ({"prompt": "\ud800", "completion": "b"}, "found half a surrogate pair"),
        ({"prompt": [USER], "completion": [USER]}, "found 2 ending with 'user'"),
        ({"prompt": [ANSWER], "completion": [USER]}, "found 2 ending with 'user'"),
        ({"prompt": [], "completion": [ANSWER]}, "found 1 ending with 'assistant'"),
        ({"messages": []}, "expected messages that end with an answer"),
        ({"messages": "hi"}, "expected a list of messages in column 'messages', found text"),
        ({"messages": [USER]}, "found 1 ending with 'user'"),
        ({"messages": [USER, "hi"]}, "message 2: expected an object with role and content"),
        ({"messages": [{"role": 1}]}, "message 1: expected a role of system, developer, user"),
        ({"messages": [{"from": "x"}]}, "found null in 'from'"),
        ({"messages": [{"role": "critic", "content": "a"}]}, "found 'critic'"),
        ({"messages": [{"role": "user"}]}, "expected text in message 1 content, found null"),
        ({"messages": [{"role": "user", "content": ["a"]}]}, "expected parts that are objects"),
        (
            {"messages": [{"role": "user", "content": [{"type": 1}]}]},
            "objects with a type, found {",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            "expected text in message 1 text part, found null",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"type": "image"}]}]},
            "found a part of type 'image'",
        ),
        ({"messages": [USER, {**ANSWER, "tool_calls": [1]}]}, "message 2: expected calls of"),
    ],
)
def test_a_bad_row_is_one_line_with_its_place(tmp_path: Path, row: Any, expected: str) -> None:
    message = problem(tmp_path, "rows.jsonl", f"{PAIR}\n\n{json.dumps(row)}")
    assert message.startswith("rows.jsonl:3: ") and expected in message


@pytest.mark.parametrize(
    ("template", "label", "expected"),
    [
        ("{texts}?", "label", "expected column 'texts', found 'text', 'label', 'flag'"),
        ("{text}?", "labels", "expected column 'labels', found 'text', 'label', 'flag'"),
        ("{text}?", "flag", "expected text in the completion, found a truth value"),
        ("{flag}?", "label", "expected text in column 'flag', found a truth value"),
    ],
)
def test_a_template_that_does_not_fit_is_one_line(
    tmp_path: Path, template: str, label: str, expected: str
) -> None:
    row = '{"text": "a", "label": 1, "flag": true}'
    message = problem(tmp_path, "rows.jsonl", row, template=template, label_column=label)
    assert message.startswith(f"rows.jsonl:1: {expected}")


def test_a_template_needs_a_column_and_a_label() -> None:
    with pytest.raises(InputError, match="--template must contain a {column}"):
        DataConfig(template="{ } {}", label_column="label")
    with pytest.raises(InputError, match="give --label-column for the answers"):
        as_examples({"text": "x", "label": "y"}, config=DataConfig(template="{text}"))
    with pytest.raises(InputError, match="--label-column is of --template"):
        DataConfig(label_column="label")


@pytest.mark.parametrize("name", ["Ticket (subject)", "a/b", "(a)", "a,b", "-a", "a:b"])
def test_a_column_that_no_field_can_name_is_refused(name: str) -> None:
    row = {name: "printer", "text": "broken", "label": "it"}
    config = DataConfig(template=f"{{{name}}}: {{text}}", label_column="label")
    with pytest.raises(DataError, match="has the name of a column.*: rename the column") as caught:
        as_examples(row, config=config)
    assert f"{{{name}}}" in str(caught.value)
    [example] = as_examples({"text": "broken", "label": "it"}, config=config)
    assert example.prompt == f"{{{name}}}: broken"  # braces of no column are text


def test_braces_of_no_column_are_text() -> None:
    config = DataConfig(template='{"a": {text}, "b": {}, "c": {"d": 1}}', label_column="label")
    [example] = as_examples({"text": "x", "label": "y", "": 3, "d": 4}, config=config)
    assert example.prompt == '{"a": x, "b": {}, "c": {"d": 1}}'


def test_a_missing_file_and_an_unreadable_one_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="none.csv: no such file"):
        read_examples(tmp_path / "none.csv")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert problem(tmp_path, "rows.csv", "a") == "rows.csv: cannot be read: Permission denied"


def test_a_directory_must_be_one_split_of_a_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a directory written by Dataset.save_to_disk"):
        read_examples(tmp_path)
    (tmp_path / "dataset_dict.json").write_text("{}")
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="expected one split, found test"):
        read_examples(tmp_path)


@pytest.mark.parametrize("state", ["", "{}", "[]"])
def test_a_damaged_dataset_is_one_line(tmp_path: Path, state: str) -> None:
    pytest.importorskip("datasets")
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_text(state)
    with pytest.raises(DataError, match="^[^\n]*: the dataset is damaged, [^\n]*$"):
        read_examples(tmp_path)


def test_only_data_errors_are_named() -> None:
    with pytest.raises(InputError, match="^x$"), named("rows.csv:1"):
        raise InputError("x")


# --- splitting ---------------------------------------------------------------------------------


def test_a_split_is_deterministic_complete_and_in_order() -> None:
    rows = examples(*map(str, range(20)))
    rest, aside = split_examples(rows, 0.25, seed=1)
    assert (rest, aside) == split_examples(rows, 0.25, seed=1)
    assert aside != split_examples(rows, 0.25, seed=2)[1]
    assert len(aside) == 5 and rest == [row for row in rows if row not in aside]
    assert aside == [row for row in rows if row in aside]


def test_identical_prompts_stay_on_one_side() -> None:
    rows = examples(*"aabbccddee")
    for seed in range(10):
        rest, aside = split_examples(rows, 0.4, seed)
        assert len(aside) == 4 and not {r.prompt for r in rest} & {r.prompt for r in aside}


def test_messages_with_the_same_content_are_the_same_prompt() -> None:
    rows = [Example((dict(USER),), "a", ""), Example((dict(reversed(USER.items())),), "b", "")]
    for seed in range(10):
        rest, aside = split_examples([*rows, *examples(*"xyz")], 0.4, seed)
        assert rows in ([r for r in rest if r in rows], [r for r in aside if r in rows])


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_neither_side_of_a_split_is_empty(share: float) -> None:
    for prompts in ("ab", "aaab", "aabb"):
        rest, aside = split_examples(examples(*prompts), share, seed=0)
        assert rest and aside


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(DataError, match="at least 2 different prompts to split, found 1 in 3"):
        split_examples(examples("a", "a", "a"), 0.5, seed=0)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(DataError, match="between 0 and 1"):
            split_examples(examples("a", "b"), share, seed=0)


def test_a_split_leaves_rows_of_every_task() -> None:
    rows = [Example(f"row {n}", "x", f"f:{n}", task="common") for n in range(8)]
    rare = Example("row 8", "x", "f:8", task="rare")
    for seed in range(20):
        rest, aside = split_examples([*rows, rare], 0.5, seed)
        assert rare in rest and len(aside) == 4
    with pytest.raises(DataError, match="2 different prompts of some task"):
        split_examples([rows[0], rare], 0.5, seed=0)
