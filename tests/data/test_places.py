"""Places: each row of a file has one of its own, and nothing takes two rows for one by a place."""

import json
from pathlib import Path
from typing import Any

import pytest

from foreword.cli import reward
from foreword.config import DataConfig
from foreword.data.columns import as_examples
from foreword.data.examples import read_examples
from foreword.data.readers import read_rows
from foreword.data.validation_split import split_examples
from foreword.errors import DataError


def conversation(number: int) -> dict[str, Any]:
    turns = [
        {"role": role, "content": f"{role} {turn} of {number}"}
        for turn in (1, 2)
        for role in ("user", "assistant")
    ]
    return {"messages": turns}


CONVERSATIONS = [conversation(number) for number in range(4)]
QUESTIONS = [{"prompt": f"say {word}", "word": word} for word in "abcdefghij"]

WRITTEN = {
    "one line": json.dumps,
    "indented": lambda rows: json.dumps(rows, indent=2),
    "a line each": lambda rows: "[" + ",\n".join(map(json.dumps, rows)) + "]",
    "two on a line": lambda rows: (
        f"[{json.dumps(rows[0])}, " + ",\n".join(map(json.dumps, rows[1:])) + "]"
    ),
    "in an object": lambda rows: json.dumps({"data": rows}),
    "columns": lambda rows: json.dumps({name: [row[name] for row in rows] for name in rows[0]}),
    "lines": lambda rows: "".join(json.dumps(row) + "\n" for row in rows),
}  # fmt: skip


def written(folder: Path, how: str, rows: list[dict[str, Any]]) -> str:
    path = folder / ("rows.jsonl" if how == "lines" else "rows.json")
    path.write_text(WRITTEN[how](rows))
    return str(path)


@pytest.mark.parametrize("how", WRITTEN)
def test_every_row_has_a_place_of_its_own(tmp_path: Path, how: str) -> None:
    places = [place for place, _ in read_rows(Path(written(tmp_path, how, QUESTIONS)))]
    assert len(set(places)) == len(QUESTIONS)
    if how == "two on a line":
        ends = [place.rpartition("rows.json")[2] for place in places]
        assert ends[:4] == [":1 (row 1)", ":1 (row 2)", ":2", ":3"]
    if how == "a line each":
        assert not any("(row" in place for place in places)


@pytest.mark.parametrize("how", WRITTEN)
def test_conversations_of_a_file_are_told_apart(tmp_path: Path, how: str) -> None:
    examples = read_examples(written(tmp_path, how, CONVERSATIONS))
    assert len({one.conversation for one in examples}) == len(CONVERSATIONS)
    kept, aside = split_examples(examples, 0.25, 0)
    assert (len(kept), len(aside)) == (6, 2)
    assert aside[0].conversation == aside[1].conversation


def test_rows_without_a_place_are_told_apart() -> None:
    examples = [one for row in CONVERSATIONS for one in as_examples(row)]
    assert len(split_examples(examples, 0.25, 0)[1]) == 2


@pytest.mark.parametrize("how", WRITTEN)
def test_questions_of_rewards_are_told_apart(tmp_path: Path, how: str) -> None:
    data = written(tmp_path, how, QUESTIONS)
    kept, aside = reward.read(data, "0.2", DataConfig(), 0)
    assert (len(kept), len(aside)) == (8, 2)
    words = [one.columns["word"] for one in (*kept, *aside)]
    assert sorted(words) == list("abcdefghij")
    assert len({one.source for one in (*kept, *aside)}) == 10


def test_each_problem_names_its_row(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": " "}, {"prompt": "b", "completion": "b"},
            {"prompt": "c", "completion": ""}]  # fmt: skip
    with pytest.raises(DataError, match=r"rows\.json:1 \(row 1\): .*rows\.json:1 \(row 3\): "):
        read_examples(written(tmp_path, "one line", rows))
