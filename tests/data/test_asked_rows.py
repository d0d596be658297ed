"""Questions: a row asks the same whether its answer is learned or not."""

import json
from pathlib import Path
from typing import Any

import pytest

from foreword.config import DataConfig
from foreword.data.columns import as_examples, as_query
from foreword.distillation.queries import read_queries
from foreword.errors import DataError
from foreword.training.questions import read_questions

USER, SYSTEM = {"role": "user", "content": "Good?"}, {"role": "system", "content": "Be brief."}
ANSWER = {"role": "assistant", "content": "yes"}
ROWS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"prompt": "Good?", "completion": "yes"}, {}),
    ({"prompt": "Good?", "completion": "yes", "system": "Be brief."}, {}),
    ({"prompt": "Good?", "completion": "yes", "system_prompt": " "}, {}),
    ({"prompt": "[INST] Good?", "completion": "yes"}, {}),
    ({"prompt": json.dumps([USER]), "completion": "yes"}, {}),
    ({"prompt": [USER], "completion": [ANSWER], "system": "Be brief."}, {}),
    ({"instruction": "Sum up:", "input": "A text.", "output": "yes"}, {}),
    ({"instruction": "Sum up:", "input": "", "output": "yes"}, {}),
    ({"instruction": "Sum up:", "input": "A text.", "output": "yes", "system": "Be brief."}, {}),
    ({"query": "a", "text": "Good?", "label": "yes"}, {}),
    ({"prompt": "a", "question": "Good?", "answer": "yes"}, {}),
    ({"messages": [USER, ANSWER], "system": "Be brief."}, {}),
    ({"messages": [SYSTEM, USER, ANSWER], "system": "Be brief."}, {}),
    ({"messages": [USER, ANSWER, USER, ANSWER]}, {}),
    ({"messages": [USER, ANSWER], "tools": []}, {}),
    ({"a": "Good?", "b": "yes", "system": "S"}, {"prompt_column": "a", "completion_column": "b"}),
    ({"a": "Good?", "b": "yes", "system": "S"}, {"template": "{a}!", "label_column": "b"}),
    ({"talk": [USER, ANSWER], "system": "Be brief."}, {"messages_column": "talk"}),
    # The answer alone is named: what is asked is what training reads before it.
    ({"messages": [USER], "summary": "yes", "text": "raw"}, {"completion_column": "summary"}),
    ({"prompt": "Good?", "summary": "yes", "question": "a", "answer": "b"},
     {"completion_column": "summary"}),
    ({"prompt": "Good?", "s": "yes", "text": "a", "label": "b"}, {"completion_column": "s"}),
    ({"instruction": "Translate", "input": "cat", "completion": "yes"},
     {"prompt_column": "instruction"}),
    ({"instruction": "Translate", "input": "cat", "output": "yes"},
     {"prompt_column": "instruction", "completion_column": "output"}),
]  # fmt: skip


@pytest.mark.parametrize(("row", "options"), ROWS)
def test_a_row_asks_what_training_reads_before_its_last_answer(
    row: dict[str, Any], options: dict[str, Any]
) -> None:
    config = DataConfig(**options)
    found, learned = as_query(row, "rows.jsonl:1", config), as_examples(row, config=config)[-1]
    assert (found.prompt, found.fields) == (learned.prompt, learned.fields)


@pytest.mark.parametrize("row", [ROWS[1][0], ROWS[6][0], ROWS[8][0], ROWS[11][0]])
def test_a_row_without_its_answer_asks_the_same(row: dict[str, Any]) -> None:
    bare = {name: value for name, value in row.items() if name not in ("completion", "output")}
    bare |= {"messages": [USER]} if "messages" in row else {}
    assert as_query(bare) == as_query(row)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": [SYSTEM, USER], "system": "Be long."}, "different system turns"),
        ({"prompt": "a", "tools": [{"type": "function", "function": {}}]}, "without tools"),
        ({"messages": [ANSWER]}, "expected a question"),
        ({"answer": "a"}, "name it with --prompt-column"),
        ({"prompt": 3}, "expected text"),
    ],
)
def test_what_asks_nothing_is_refused_by_name(row: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=f"^rows.jsonl:1: .*{expected}"):
        as_query(row, "rows.jsonl:1")


@pytest.mark.parametrize("read", [read_queries, read_questions])
def test_blank_questions_are_left_out_where_asked_and_all_others_are_named(
    read: Any, tmp_path: Path
) -> None:
    rows = [{"prompt": "a"}, {"prompt": None}, {"prompt": " "}, {"prompt": "b"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read(str(path), DataConfig(skip_blank=True))
    assert [one.asked for one in found] == ["a", "b"]
    path.write_text("\n".join(map(json.dumps, [{"prompt": 1}, *rows, {"c": 2}])))
    with pytest.raises(DataError, match=r"3 problems: .*:1: .*:3: .*:6: "):
        read(str(path), DataConfig())


def test_images_of_questions_lie_beside_their_file(tmp_path: Path) -> None:
    turn = {"role": "user", "content": [{"type": "image", "path": "cat.png"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [turn]}))
    [found] = read_questions(str(tmp_path / "rows.jsonl"), DataConfig())
    assert found.asked[0]["content"][0]["path"] == str(tmp_path / "cat.png")


def test_a_question_says_what_training_says_of_its_row(tmp_path: Path) -> None:
    rows = [{"question": "a", "contxt": "b", "answer": "c"}, {"prompt": "q", "completion": 1.5}]
    path, said = tmp_path / "rows.jsonl", list[str]()
    path.write_text("\n".join(map(json.dumps, rows)))
    first, second = read_queries(str(path), DataConfig(), said.append)
    assert first.own is not None and second.own is None
    for expected in ("'question' and 'answer' are read as a pair", "'contxt' is not used",
                     "an answer is not used: "):  # fmt: skip
        assert any(expected in one for one in said), said
