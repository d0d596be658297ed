"""Problems of a file: all in one go, the first ten and a count; blank rows left out if asked."""

import json
from pathlib import Path
from typing import Any

import pytest

from foreword.config import DataConfig
from foreword.data.examples import read_examples
from foreword.distillation.queries import read_queries
from foreword.errors import DataError
from foreword.training.questions import read_questions

GOOD = {"prompt": "say a", "completion": "a"}


def written(path: Path, rows: list[Any]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines))
    return path


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    rows = [GOOD, "{", {"prompt": "a"}, GOOD, {"prompt": "a", "completion": " "}, "[1]", {"x": 1}]
    with pytest.raises(DataError) as found:
        read_examples(written(tmp_path / "rows.jsonl", rows))
    said = str(found.value)
    assert said.startswith("5 problems: ") and len(found.value.problems) == 5
    for line in (2, 3, 5, 6, 7):
        assert f"rows.jsonl:{line}: " in said, line


def test_what_several_rows_have_is_said_once(tmp_path: Path) -> None:
    rows = [GOOD, {"x": 1}, {"prompt": "a", "completion": 1.5}, {"x": 2}, {"x": 3}]
    path = written(tmp_path / "rows.jsonl", rows)
    with pytest.raises(DataError) as found:
        read_examples(path)
    said = str(found.value)
    assert (
        said.startswith(f"4 problems: {path}:2: expected column") and said.count("found 'x'") == 1
    )
    assert said.endswith(f"; {path}:4: the same; {path}:5: the same") and f"; {path}:3: " in said


def test_one_problem_reads_as_it_did(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^[^ ]*rows.jsonl:2: expected one object per line"):
        read_examples(written(tmp_path / "rows.jsonl", [GOOD, "{"]))


def test_of_many_the_first_ten_and_a_count(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [*[{"prompt": "a", "completion": 1.5}] * 25, GOOD])
    with pytest.raises(DataError) as found:
        read_examples(path)
    said = str(found.value)
    assert said.startswith("25 problems: ") and said.endswith("; and 15 more")
    assert (
        "rows.jsonl:10: the same; and" in said and "rows.jsonl:11" not in said and "\n" not in said
    )


def test_what_all_rows_have_is_said_of_the_first_with_their_number(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": 1.5}] * 25)
    with pytest.raises(DataError) as found:
        read_examples(path)
    assert str(found.value).startswith(f"{path}:1: expected text")
    assert str(found.value).endswith("; the same in all 25 rows")
    assert len(found.value.problems) == 25


def table(path: Path, columns: dict[str, list[Any]]) -> Path:
    """Write a table in the format that its name ends in."""
    if path.suffix == ".json":
        path.write_text(json.dumps(columns))
    elif path.suffix == ".parquet":
        parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
        parquet.write_table(arrow.table(columns), path)
    else:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        lines = [columns, *zip(*columns.values(), strict=True)]
        path.write_text("".join(f"{delimiter.join(line)}\n" for line in lines))
    return path


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "parquet"])
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (DataConfig(prompt_column="bodi", completion_column="team"), "'bodi'"),
        (DataConfig(prompt_column="body", completion_column="temm"), "'temm'"),
        (DataConfig(template="{subjct} {body}", label_column="team"), "'subjct'"),
        (DataConfig(), "'messages', or 'prompt' and 'completion'"),
    ],
)
def test_a_column_that_a_table_has_not_is_said_once(
    ending: str, config: DataConfig, expected: str, tmp_path: Path
) -> None:
    columns = {name: ["x", "y", "z"] for name in ("subject", "body", "team")}
    path = table(tmp_path / f"rows.{ending}", columns)
    with pytest.raises(DataError) as found:
        read_examples(path, config)
    said = str(found.value)
    assert said.startswith(f"{path}: expected column {expected}, found 'subject', 'body', 'team'")
    assert said.count("expected") == 1 and "the same" not in said and not found.value.problems


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_queries(str(path), DataConfig()),
        lambda path: read_questions(str(path), DataConfig()),
        lambda path: read_examples(path, are_pairs=True),
        lambda path: read_examples(path, DataConfig(completion_column="body"), "task"),
    ],
)
def test_every_reader_of_tables_says_it_once(read: Any, tmp_path: Path) -> None:
    columns = {name: ["x", "y"] for name in ("subject", "body", "rejected")}
    path = table(tmp_path / "rows.csv", columns)
    with pytest.raises(DataError, match=rf"^{path}: expected (a )?column[^;]*$"):
        read(path)


def test_other_problems_of_a_table_stand_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("body,team\na,b\nc\nd,e\n")
    with pytest.raises(DataError, match=rf"^2 problems: {path}: .*; {path}:3: expected 2 cells"):
        read_examples(path)


def test_nulls_of_a_table_are_problems_of_their_rows(tmp_path: Path) -> None:
    columns = {"messages": [None, None], "body": ["a", "b"]}
    path = table(tmp_path / "rows.parquet", columns)
    with pytest.raises(DataError, match=rf"^{path} row 1: .*; the same in all 2 rows$"):
        read_examples(path)


def test_each_table_of_a_folder_is_named(tmp_path: Path) -> None:
    for name in ("a", "b"):
        table(tmp_path / f"{name}.csv", {name: ["x", "y"]})
    with pytest.raises(DataError, match=r"^2 problems: .*/a.csv: [^;]*'a'.*; .*/b.csv: .*'b'"):
        read_examples(tmp_path)


def test_a_table_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("prompt,completion\na,b\nc\nd,e,f\ng,h\n")
    missing, beyond = r"rows.csv:3: expected 2 .*fill in", r"rows.csv:4: expected 2 .*put quotes"
    with pytest.raises(DataError, match=rf"2 problems: .*{missing}.*{beyond}"):
        read_examples(path)


def test_blank_rows_are_left_out_and_counted(tmp_path: Path) -> None:
    blank = [
        {"prompt": "a", "completion": ""}, {"prompt": None, "completion": "a"},
        {"prompt": " ", "completion": "a"}, {"question": "a", "answer": None},
    ]  # fmt: skip
    path = written(tmp_path / "rows.jsonl", [GOOD, *blank, GOOD])
    said: list[str] = []
    found = read_examples(path, DataConfig(skip_blank=True), say=said.append)
    assert len(found) == 2
    assert any("a blank text or answer: left out (4 rows)" in one for one in said)
    with pytest.raises(DataError, match=r"3 problems: .*--skip-blank"):  # a blank prompt is a text
        read_examples(path)


def test_other_problems_stay_problems(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", [GOOD, {"prompt": "a", "completion": ""}, "{"])
    with pytest.raises(DataError, match=r"^[^ ]*rows.jsonl:3: "):
        read_examples(path, DataConfig(skip_blank=True))
