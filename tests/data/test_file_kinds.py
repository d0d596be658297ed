"""Files as people have them: compressed, in other encodings, with other delimiters and wrappers."""

import bz2
import csv
import gzip
import json
import logging
import lzma
import os
from pathlib import Path
from typing import Any

import pytest

from foreword.data import text_files
from foreword.data.examples import read_examples
from foreword.data.readers import read_rows
from foreword.errors import DataError

ROWS = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = "prompt,completion\na,b\nc,d\n"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def columns(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(path)]


def lines_of(path: Path) -> list[str]:
    return [source.removeprefix(str(path)) for source, _ in read_rows(path)]


def problem(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        columns(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message.removeprefix(f"{path.parent}/")


# --- compression -------------------------------------------------------------------------------


def zstd(data: bytes) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


PACK = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize(
    ("name", "text"),
    [("r.jsonl", LINES), ("r.json", json.dumps(ROWS)), ("r.csv", TABLE), ("R.TSV", "")],
)
def test_a_compressed_file_is_read_as_what_it_holds(
    tmp_path: Path, name: str, text: str, ending: str
) -> None:
    text = text or TABLE.replace(",", "\t")
    path = write(tmp_path, name + ending, PACK[ending](text.encode()))
    assert columns(path) == ROWS


@pytest.mark.parametrize("ending", PACK)
def test_compression_is_told_by_content_too_and_parts_add_up(tmp_path: Path, ending: str) -> None:
    first, second = (PACK[ending](line.encode()) for line in LINES.splitlines(keepends=True))
    path = write(tmp_path, "rows.jsonl", first + second)
    assert columns(path) == ROWS and lines_of(path) == [":1", ":2"]


@pytest.mark.parametrize("ending", PACK)
def test_a_damaged_or_falsely_named_file_is_one_line(tmp_path: Path, ending: str) -> None:
    packed = PACK[ending](LINES.encode())
    assert "a damaged" in problem(write(tmp_path, f"rows.jsonl{ending}", packed[:-6]))
    assert "found another kind of file" in problem(write(tmp_path, f"a.jsonl{ending}", LINES))
    assert "found an empty file" in problem(write(tmp_path, f"b.jsonl{ending}", b""))
    assert "found an empty file" in problem(write(tmp_path, f"c.jsonl{ending}", PACK[ending](b"")))


def test_a_name_that_says_another_compression_is_one_line(tmp_path: Path) -> None:
    said = problem(write(tmp_path, "rows.jsonl.gz", lzma.compress(LINES.encode())))
    assert "expected a gzip file, as its name says, found a xz file" in said
    assert "found '.parquet.gz'" in problem(write(tmp_path, "rows.parquet.gz", b"x"))
    assert "found '.gz'" in problem(write(tmp_path, "rows.gz", b"x"))


@pytest.mark.parametrize("ending", PACK)
def test_what_decompresses_past_the_limit_is_refused_by_it(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "FREE_BYTES", 1000)
    monkeypatch.setattr(text_files, "_CHUNK_BYTES", 100)
    path = write(tmp_path, f"rows.jsonl{ending}", PACK[ending](b" " * 1_000_000))
    limit = max(1000, 250 * path.stat().st_size)
    assert f"more than {limit:,}, the limit (250 times its size" in problem(path)
    monkeypatch.setattr(text_files, "FREE_BYTES", 2_000_000)
    assert "found an empty file" in problem(path)


# --- encodings and other kinds -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("r.csv", TABLE.encode("utf-16"), "found UTF-16: save as UTF-8"),
        ("r.jsonl", b"\xfe\xff" + LINES.encode("utf-16-be"), "found UTF-16: save as UTF-8"),
        ("r.json", json.dumps(ROWS).encode("utf-32"), "found UTF-32: save as UTF-8"),
        ("r.csv", TABLE.encode("utf-16-le"), "r.csv:1: expected UTF-8, found a NUL byte"),
        ("r.jsonl", b"{}\n\0", "r.jsonl:2: expected UTF-8, found a NUL byte"),
        ("r.csv", b"PAR1\x15\x04", "found a Parquet file: name it .parquet"),
        ("r.json", b"ARROW1\0\0", "found an Arrow file: name it .arrow"),
        ("r.csv", b"PK\x03\x04\x14\0", "found a ZIP archive or an Excel workbook"),
        ("r.csv", b"\xd0\xcf\x11\xe0\xa1", "found an Excel workbook"),
        ("r.jsonl", "version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
        ("r.parquet", "version https://git-lfs.github.com/spec/v1\n", "run git lfs pull"),
        ("r.parquet", b"ARROW1\0\0", "found an Arrow file: name it .arrow"),
        ("r.arrow", b"PAR1", "found a Parquet file: name it .parquet"),
        ("r.arrow", b"", "not an Arrow file"),
    ],
)
def test_another_kind_of_file_is_named(
    tmp_path: Path, name: str, content: str | bytes, expected: str
) -> None:
    if name.endswith(("parquet", "arrow")):
        pytest.importorskip("pyarrow")
    assert expected in problem(write(tmp_path, name, content))


# --- CSV ---------------------------------------------------------------------------------------


def test_a_cell_is_as_long_as_it_is(tmp_path: Path) -> None:
    limit = csv.field_size_limit(100)
    try:
        long = 'x"' * 100_000
        quoted = long.replace('"', '""')
        path = write(tmp_path, "rows.csv", f'prompt,completion\n"{quoted}",b\n')
        assert columns(path) == [{"prompt": long, "completion": "b"}]
    finally:
        csv.field_size_limit(limit)


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_header_tells_the_delimiter(tmp_path: Path, name: str, delimiter: str) -> None:
    content = f'"prompt"{delimiter}completion\n"a, {delimiter} ""b"""{delimiter}c, d; e\n'
    if delimiter in ",;":
        content = content.replace("c, d; e", '"c, d; e"')
    row = {"prompt": f'a, {delimiter} "b"', "completion": "c, d; e"}
    assert columns(write(tmp_path, name, content)) == [row]


def test_one_column_stays_one_and_two_delimiters_decide_nothing(tmp_path: Path) -> None:
    assert columns(write(tmp_path, "one.csv", "text\na;b\n")) == [{"text": "a;b"}]
    assert columns(write(tmp_path, "two.csv", "a;b|c\nd\n")) == [{"a;b|c": "d"}]


def test_excels_first_line_names_the_delimiter(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.csv", "\ufeffsep=;\r\nprompt;completion\r\na,b;c\r\n")
    assert columns(path) == [{"prompt": "a,b", "completion": "c"}]
    assert lines_of(path) == [":3"]


def test_spaces_around_names_of_a_header_do_not_count(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.csv", " prompt , completion\n a ,b\n")
    assert columns(path) == [{"prompt": " a ", "completion": "b"}]
    said = problem(write(tmp_path, "twice.csv", "prompt, prompt\na,b\n"))
    assert "twice.csv:1: expected different names" in said


@pytest.mark.parametrize(
    ("content", "line"), [('"prompt", "completion"\na,b\n', 1), ('prompt,completion\na, "b"\n', 2)]
)
def test_a_space_before_a_quote_is_refused_by_line(tmp_path: Path, content: str, line: int) -> None:
    said = problem(write(tmp_path, "rows.csv", content))
    assert f"rows.csv:{line}: expected quotes at both ends of a cell" in said


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_every_system_and_empty_lines_at_the_end(tmp_path: Path, end: str) -> None:
    table = write(tmp_path, "rows.csv", ("\ufeff" + TABLE + "\n \n").replace("\n", end))
    lines = write(tmp_path, "rows.jsonl", ("\ufeff" + LINES + "\n \n").replace("\n", end))
    assert columns(table) == columns(lines) == ROWS
    assert lines_of(table) == [":2", ":3"] and lines_of(lines) == [":1", ":2"]


# --- JSON --------------------------------------------------------------------------------------


def test_json_lines_in_a_json_file_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.json", LINES)
    assert columns(path) == ROWS and lines_of(path) == [":1", ":2"]
    assert "bad.json:3: expected one object" in problem(write(tmp_path, "bad.json", LINES + "{"))


@pytest.mark.parametrize("name", ["data", "train"])
def test_the_one_list_of_objects_of_an_object_is_read_and_said(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = {"version": "1", "tags": ["x"], name: ROWS, "about": {"by": [1]}}
    path = write(tmp_path, "rows.json", json.dumps(whole, indent=1))
    with caplog.at_level(logging.WARNING, "foreword"):
        assert columns(path) == ROWS
    assert caplog.messages == [f"{path}: reads the rows under {name!r}"]
    assert lines_of(path) == [":7", ":11"]


@pytest.mark.parametrize(
    "whole",
    [
        {"prompt": ["a", "c"], "completion": ["b", "d"]},
        {"prompt": {"0": "a", "1": "c"}, "completion": {"0": "b", "1": "d"}},
        {"columns": ["prompt", "completion"], "index": [0, 1], "data": [["a", "b"], ["c", "d"]]},
        {"columns": ["prompt", "completion"], "data": [["a", "b"], ["c", "d"]]},
    ],
)
def test_columns_as_pandas_writes_them_are_rows(tmp_path: Path, whole: Any) -> None:
    path = write(tmp_path, "rows.json", json.dumps(whole))
    assert columns(path) == ROWS and lines_of(path) == [" row 1", " row 2"]


def test_columns_of_conversations_are_rows(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write(tmp_path, "rows.json", json.dumps({"messages": [turns, turns]}))
    assert columns(path) == [{"messages": turns}] * 2


TURN = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("whole", "expected"),
    [
        ({"train": ROWS, "test": ROWS}, "found train, test: keep one"),
        ({"a": ["x"], "b": ["y", "z"]}, "expected columns of one length, found 1 in 'a', 2 in 'b'"),
        ({"meta": ROWS, "text": ["x", "y"]}, "found columns, one of them of objects, or rows"),
        ({"0": ROWS[0], "1": ROWS[1]}, 'to_json(..., orient="records")'),
        ({"a": {"0": 1}, "b": {"1": 1}}, 'to_json(..., orient="records")'),
        ({"messages": [TURN]}, "expected a list of objects, found an object: put it in []"),
        ({}, "expected"),
        (3, "expected a list of objects, found a number"),
    ],
)
def test_an_object_that_may_mean_several_things_is_refused(
    tmp_path: Path, whole: Any, expected: str
) -> None:
    assert expected in problem(write(tmp_path, "rows.json", json.dumps(whole)))


BAD = [
    ('{"a": NaN}', "NaN, which JSON does not have"),
    ('{"a": [{"b": -Infinity}]}', "-Infinity, which JSON does not have"),
    ('{"a": 1e999}', "1e999, past the range of numbers"),
    ('{"a": 1, "a": 2}', "the key 'a' twice in one object"),
    ('{"m": [{"a": 1, "b": 2, "a": 1}]}', "the key 'a' twice in one object"),
]


@pytest.mark.parametrize(("row", "expected"), BAD)
def test_what_json_leaves_open_is_refused_by_line(tmp_path: Path, row: str, expected: str) -> None:
    for name, content, line in (
        ("r.jsonl", f"{{}}\n{row}\n", 2),
        ("lines.json", f"{{}}\n{row}\n", 2),
        ("list.json", f"[{{}},\n{{\n}},\n{row}]", 4),
        ("object.json", f'{{"n": 1,\n "data":\n [{{}},\n{row}]}}', 4),
        ("beside.json", f'{{"n":\n {row},\n "data": [{{}}]}}', 2),
    ):
        said = problem(write(tmp_path, name, content))
        assert said.startswith(f"{name}:{line}: ") and expected in said


def test_a_key_twice_around_the_rows_is_refused_by_line(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.json", '{"data": [{"a": 1}],\n"data": [{"a": 2}]}')
    assert "rows.json:2: expected each key once, found 'data' twice" in problem(path)


@pytest.mark.parametrize("kind", ["pipe", "device", "nothing"])
def test_what_is_no_file_is_refused_and_not_left_out(tmp_path: Path, kind: str) -> None:
    write(tmp_path, "a.jsonl", LINES)
    odd = tmp_path / "b.jsonl"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to("/dev/zero" if kind == "device" else tmp_path / "gone")
    with pytest.raises(DataError, match=r"b\.jsonl: expected a file of rows"):
        columns(tmp_path)
    with pytest.raises(DataError, match=r"b\.jsonl: (expected a file|no such file)"):
        columns(odd)


def test_many_unused_columns_are_counted(tmp_path: Path) -> None:
    row = ROWS[0] | {f"c{number}": 1 for number in range(1000)}
    said: list[str] = []
    read_examples(write(tmp_path, "a.jsonl", json.dumps(row)), say=said.append)
    assert len(said) == 21 and "980 more such notes" in said[-1]
