"""Preference pairs: the columns that datasets have them in, and one line for each bad row."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from foreword.config import DataConfig
from foreword.data.examples import read_examples
from foreword.data.preferences import as_pair
from foreword.errors import DataError, InputError

ASKED = {"role": "user", "content": "Hi?"}
YES, NO = ({"role": "assistant", "content": text} for text in ("Yes.", "No."))
TURNS = ((ASKED,), "Yes.", "No.")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}, ("Hi?", "Yes.", "No.")),
        ({"prompt": [ASKED], "chosen": [YES], "rejected": [NO]}, TURNS),
        ({"prompt": [ASKED], "chosen": "Yes.", "rejected": "No."}, TURNS),
        ({"prompt": "Hi?", "chosen": [YES], "rejected": [NO]}, TURNS),
        ({"chosen": [ASKED, YES], "rejected": [ASKED, NO]}, TURNS),
        ({"prompt": "Hi?", "chosen": [ASKED, YES], "rejected": [ASKED, NO]}, TURNS),
        ({"chosen": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes."}],
          "rejected": '[{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "No."}]'},
         TURNS),
        ({"system": "Be.", "prompt": "Hi?", "chosen": "Yes.", "rejected": "No."},
         (({"role": "system", "content": "Be."}, ASKED), "Yes.", "No.")),
    ],
)  # fmt: skip
def test_pairs_are_read_as_datasets_have_them(row: dict[str, Any], expected: Any) -> None:
    found = as_pair(row, "pairs:1")
    assert found.rejected is not None and found.rejected.prompt == found.prompt
    assert (found.prompt, found.completion, found.rejected.completion) == expected
    assert found.source == found.rejected.source == "pairs:1"


def test_columns_that_are_not_used_are_named() -> None:
    row = {"prompt": "Hi?", "prompt_id": "1", "chosen": [ASKED, YES], "rejected": [ASKED, NO],
           "messages": [ASKED, YES], "score_chosen": 5.0, "note": None}  # fmt: skip
    said: Counter[str] = Counter()
    as_pair(row, said=said)
    names = ("prompt", "prompt_id", "messages", "score_chosen")
    assert dict(said) == {f"column {name!r} is not used": 1 for name in names}
    said.clear()
    question = {"question": "Hi?", "chosen": "Yes.", "rejected": "No."}
    found = as_pair(question, config=DataConfig(prompt_column="question"), said=said)
    assert found.prompt == "Hi?" and not said


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"prompt": "Hi?", "chosen": "Yes."}, "'rejected' is missing"),
        ({"prompt": "Hi?", "chosen": "Yes.", "rejected": None}, "'rejected' is missing"),
        ({"chosen": "Yes.", "rejected": "No."}, "expected column 'prompt' beside answers alone"),
        ({"prompt": "Hi?", "chosen": "Yes.", "rejected": "Yes."}, "are the same answer"),
        ({"prompt": "Hi?", "chosen": "Yes.", "rejected": " "}, "found blank text"),
        ({"prompt": "Hi?", "chosen": "Yes.", "rejected": 1.5}, "expected text"),
        ({"prompt": 3, "chosen": "Yes.", "rejected": "No."}, "expected text"),
        ({"chosen": [ASKED, YES], "rejected": [ASKED, YES, ASKED, NO]}, "different turns before"),
        ({"chosen": [ASKED, YES], "rejected": [ASKED]}, "end with an answer"),
        ({"chosen": [], "rejected": []}, "found"),
        ({"chosen": [{"role": "x"}], "rejected": [ASKED, NO]}, "expected a role"),
    ],
)
def test_a_bad_row_is_one_line(row: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=named) as refused:
        as_pair(row, "pairs.jsonl:7")
    said = str(refused.value)
    assert said.startswith("pairs.jsonl:7: ") and said.count("pairs.jsonl") == 1
    assert "\n" not in said and len(said) < 300


def test_options_of_other_rows_are_refused() -> None:
    config = DataConfig(messages_column="turns")
    with pytest.raises(InputError, match="leave --messages-column out"):
        as_pair({"prompt": "Hi?", "chosen": "a", "rejected": "b"}, config=config)


def test_images_beside_a_file_are_found_for_both_answers(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text(
        '{"prompt": [{"role": "user", "content": [{"type": "image", "path": "a.png"}]}], '
        '"chosen": "Yes.", "rejected": "No."}\n'
    )
    [found] = read_examples(tmp_path / "pairs.jsonl", are_pairs=True)
    assert found.rejected is not None and found.rejected.prompt == found.prompt
    [part] = found.prompt[0]["content"]  # type: ignore[index]
    assert part["path"] == str(tmp_path / "a.png")


def test_blank_pairs_are_left_out_where_asked(tmp_path: Path) -> None:
    whole = {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}
    blank = [whole | {name: value} for name in whole for value in (None, " ")]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [whole, *blank]))
    found = read_examples(str(path), DataConfig(skip_blank=True), are_pairs=True)
    assert [one.prompt for one in found] == ["Hi?"]
