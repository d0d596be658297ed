"""Directories as `datasets` and people write them, datasets on the Hub, and names of classes."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from foreword.data.readers import check_held_out, read_rows
from foreword.errors import DataError

datasets = pytest.importorskip("datasets")
parquet = pytest.importorskip("pyarrow.parquet")

ROWS = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
NAMED = [{"text": "a", "label": "pos"}, {"text": "b", "label": "neg"}]


@pytest.fixture(autouse=True)
def _no_bars() -> Any:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def labelled(rows: list[dict[str, Any]] = ROWS) -> Any:
    names = datasets.ClassLabel(names=["neg", "pos"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    return datasets.Dataset.from_list(rows, features=features)


def columns(path: Path | str) -> list[dict[str, Any]]:
    return [row for _, row in read_rows(Path(path))]


def texts(path: Path | str) -> str:
    return "".join(row["text"] for row in columns(path))


def problem(path: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        columns(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def fill(folder: Path, files: dict[str, str]) -> Path:
    """Write files of one row, whose text is given."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": text}) + "\n")
    return folder


# --- names of classes --------------------------------------------------------------------------


def test_classes_have_their_names_in_every_form_that_datasets_writes(tmp_path: Path) -> None:
    labelled().save_to_disk(tmp_path / "saved")
    labelled().to_parquet(tmp_path / "rows.parquet")
    [arrow] = (tmp_path / "saved").glob("*.arrow")
    for path in (tmp_path / "saved", tmp_path / "rows.parquet", arrow):
        assert columns(path) == NAMED


def test_numbers_stay_numbers_where_no_names_are_known(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    labelled().to_json(tmp_path / "rows.json")  # JSON lines, whatever the ending
    assert columns(tmp_path / "rows.parquet") == columns(tmp_path / "rows.json") == ROWS


def test_classes_inside_lists_and_objects_have_their_names(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["x", "y"])
    features = datasets.Features(
        {
            "tags": datasets.Sequence(names),
            "object": {"tag": names, "n": datasets.Value("int64")},
            "spans": [{"tag": names}],
            "grid": datasets.Sequence(datasets.Sequence(names)),
            "columns": datasets.Sequence({"tag": names}),
        }
    )
    row = {
        "tags": [1, 0], "object": {"tag": 1, "n": 1}, "spans": [{"tag": 0}],
        "grid": [[0], [1, 1]], "columns": {"tag": [0, 1]},
    }  # fmt: skip
    dataset = datasets.Dataset.from_list([row, dict.fromkeys(row)], features=features)
    dataset.save_to_disk(tmp_path / "saved")
    dataset.to_parquet(tmp_path / "rows.parquet")
    for path in (tmp_path / "saved", tmp_path / "rows.parquet"):
        named = columns(path)[0]
        assert named["tags"] == ["y", "x"] and named["object"] == {"tag": "y", "n": 1}
        assert named["spans"] == [{"tag": "x"}] and named["grid"] == [["x"], ["y", "y"]]
        assert named["columns"] == {"tag": ["x", "y"]}


def test_older_forms_of_the_metadata_name_classes_too(tmp_path: Path) -> None:
    import pyarrow

    label = {"names": ["x", "y"], "_type": "ClassLabel"}
    features = {
        "tags": {"feature": label, "length": -1, "_type": "Sequence"},
        "spans": [{"tag": label}],
        "columns": {"feature": {"tag": label, "other": None}, "_type": "Sequence"},
    }
    rows = {"tags": [[1]], "spans": [[{"tag": 1}]], "columns": [{"tag": [1], "other": [1]}]}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pyarrow.table(rows).replace_schema_metadata(metadata)
    parquet.write_table(table, tmp_path / "rows.parquet")
    assert columns(tmp_path / "rows.parquet") == [
        {"tags": ["y"], "spans": [{"tag": "y"}], "columns": {"tag": ["y"], "other": [1]}}
    ]


def test_a_row_without_a_class_is_null_and_an_unknown_class_is_refused(tmp_path: Path) -> None:
    import pyarrow

    labelled([{"text": "a", "label": -1}]).to_parquet(tmp_path / "rows.parquet")
    assert columns(tmp_path / "rows.parquet") == [{"text": "a", "label": None}]
    schema = parquet.read_schema(tmp_path / "rows.parquet")
    table = pyarrow.table({"text": ["a"], "label": [5]}, schema=schema)
    parquet.write_table(table, tmp_path / "rows.parquet")
    said = problem(tmp_path / "rows.parquet")
    assert "row 1: expected a class from 0 to 1, found 5, without a name" in said


def test_metadata_that_is_not_that_of_datasets_changes_nothing(tmp_path: Path) -> None:
    import pyarrow

    for metadata in ("[", "[]", "{}", '{"info": null}', '{"info": {"features": [1]}}'):
        table = pyarrow.table({"label": [1]}).replace_schema_metadata({"huggingface": metadata})
        parquet.write_table(table, tmp_path / "rows.parquet")
        assert columns(tmp_path / "rows.parquet") == [{"label": 1}]


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    import pyarrow

    table = pyarrow.table([[1], [2]], names=["a", "a"])
    parquet.write_table(table, tmp_path / "rows.parquet")
    assert "found 'a' twice" in problem(tmp_path / "rows.parquet")


# --- splits ------------------------------------------------------------------------------------


def test_the_only_split_is_read_whatever_its_name(tmp_path: Path) -> None:
    datasets.DatasetDict(odd=labelled()).save_to_disk(tmp_path)
    assert columns(tmp_path) == columns(tmp_path / "odd") == columns(f"{tmp_path}:odd") == NAMED


def test_of_several_splits_train_is_read_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = labelled([{"text": "z", "label": 0}])
    datasets.DatasetDict(test=other, train=labelled()).save_to_disk(tmp_path)
    with caplog.at_level(logging.WARNING, "foreword"):
        assert columns(tmp_path) == NAMED
    assert caplog.messages == [f"{tmp_path}: reads its split 'train', not test"]
    assert texts(tmp_path / "test") == texts(f"{tmp_path}:test") == "z"
    with pytest.raises(DataError, match="expected one split, found test, train: add one to the"):
        check_held_out(tmp_path)
    check_held_out(tmp_path / "test")
    check_held_out(f"{tmp_path}:test")


def test_of_several_splits_without_train_none_is_read(tmp_path: Path) -> None:
    datasets.DatasetDict(a=labelled(), b=labelled()).save_to_disk(tmp_path / "saved")
    fill(tmp_path / "files", {"dev.jsonl": "a", "test.jsonl": "b"})
    assert f"found a, b: add one to the path, as {tmp_path}/saved/a" in problem(tmp_path / "saved")
    assert "expected one split, found validation, test" in problem(tmp_path / "files")
    assert "expected a split 'x', found validation, test" in problem(f"{tmp_path}/files:x")


def test_a_saved_split_that_is_missing_is_named(tmp_path: Path) -> None:
    datasets.DatasetDict(train=labelled(), test=labelled()).save_to_disk(tmp_path)
    (tmp_path / "test" / "state.json").unlink()
    assert "found test without a saved dataset in it" in problem(tmp_path)


def test_a_row_that_its_library_cannot_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled().save_to_disk(tmp_path)

    def refuse(dataset: Any) -> Iterator[Any]:
        yield ROWS[0]
        raise ImportError("to decode it, install\nanother package")

    monkeypatch.setattr(datasets.Dataset, "__iter__", refuse)
    assert "row 2: cannot be read, ImportError: to decode it, install" in problem(tmp_path)


# --- folders of files --------------------------------------------------------------------------


def test_shards_of_the_hub_are_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("---\n---\n")
    (tmp_path / "dataset_infos.json").write_text("{}")
    for split, words in (("train", "abc"), ("test_sft", "z")):
        for index, word in enumerate(words):
            name = f"{split}-{index:05}-of-{len(words):05}.parquet"
            labelled([{"text": word, "label": 1}]).to_parquet(tmp_path / "data" / name)
    assert texts(tmp_path) == "abc" and texts(tmp_path / "test_sft") == "z"
    assert columns(tmp_path)[0]["label"] == "pos"
    (tmp_path / "data" / "train-00001-of-00003.parquet").unlink()
    said = problem(tmp_path)
    assert "expected 3 shards of 'train', found 2, without number 00001" in said


def test_splits_whose_names_share_a_word_stay_apart(tmp_path: Path) -> None:
    folder = fill(
        tmp_path,
        {"train_a-00000-of-00001.jsonl": "a", "train_b-00000-of-00001-0f3c.jsonl": "b"},
    )
    assert "found train_a, train_b" in problem(folder)
    assert texts(folder / "train_b") == "b"


def test_files_of_one_kind_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    fill(tmp_path, {"b.jsonl": "2", "a.jsonl": "1", "c.JSONL": "3", ".hidden.jsonl": "x"})
    (tmp_path / "notes.txt").write_text("no rows")
    assert texts(tmp_path) == "123"
    sources = [source for source, _ in read_rows(tmp_path)]
    assert sources[0] == f"{tmp_path}/a.jsonl:1"


def test_names_of_files_and_folders_tell_the_split(tmp_path: Path) -> None:
    named = fill(
        tmp_path / "named",
        {
            "my-train-1.jsonl": "a",
            "train_2.jsonl": "b",
            "valid.jsonl": "c",
            "test.jsonl": "d",
        },
    )
    assert [texts(named / split) for split in ("train", "validation", "test")] == ["ab", "c", "d"]
    assert texts(named) == "ab" and texts(f"{named}:dev") == "c"
    below = fill(
        tmp_path / "below", {"train/1.jsonl": "a", "train/2.jsonl": "b", "dev/1.jsonl": "c"}
    )
    assert texts(below) == "ab" and texts(f"{below}:dev") == texts(below / "dev") == "c"
    nested = fill(tmp_path / "nested", {"data/test/1.jsonl": "a"})
    assert texts(nested) == "a"


@pytest.mark.parametrize(
    ("read", "left"),
    [
        ("part1.jsonl", "sub/part2.jsonl"),
        ("train.jsonl", "train/part2.jsonl"),
        ("part1.jsonl", "a/b/part2.csv"),
        ("data/part1.jsonl", "data/sub/part2.jsonl"),
        ("data/part1.jsonl", "more/part2.jsonl"),
        ("train/part1.jsonl", "train/sub/part2.jsonl"),
        ("data/train/part1.jsonl", "more/part2.jsonl"),
    ],
)
def test_files_that_nobody_would_read_are_named(tmp_path: Path, read: str, left: str) -> None:
    fill(tmp_path, {read: "a", left: "b"})
    said = problem(tmp_path)
    assert f"found {read} and {left}: name one of them" in said


@pytest.mark.parametrize(
    "name",
    [".git/a.jsonl", "_old/a.jsonl", "run/adapter_config.json", "run/.output.lock", "run/run.yaml",
     "model/config.json", "notes/a.txt"],
)  # fmt: skip
def test_folders_of_something_else_are_passed_over(tmp_path: Path, name: str) -> None:
    for files in ({"part1.jsonl": "a"}, {"train/part1.jsonl": "a"}):
        beside = {name: "b", f"{name.partition('/')[0]}/questions/00000.json": "c"}
        folder = fill(tmp_path / next(iter(files)).replace("/", "-"), files | beside)
        if name == "notes/a.txt":
            (folder / "notes" / "questions" / "00000.json").unlink()
        assert texts(folder) == "a"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a.jsonl", "a.csv"], "expected files of one kind, found a.csv, a.jsonl"),
        (["rows.jsonl", "train.jsonl"], "found rows.jsonl beside train.jsonl: name one of them"),
        (
            ["train.csv", "train.csv.gz"],
            "expected each file once, found train.csv and train.csv.gz",
        ),
        (["train_test.csv", "train.csv"], "found train_test.csv beside train.csv"),
        (["a.jsonl", "data/b.jsonl"], "found a.jsonl and data/b.jsonl: name one of them"),
        (["cola/train.csv", "sst2/train.csv"], "expected one dataset, found folders cola, sst2"),
        (["notes.txt"], "found another directory: name one of the files in it"),
    ],
)
def test_files_that_do_not_belong_together_are_named(
    tmp_path: Path, files: list[str], expected: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert expected in problem(tmp_path)


# --- the Hub -----------------------------------------------------------------------------------


class FakeHub:
    """A Hub whose every repository is one local folder; keeps what it was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, [()]
        self.failure: Exception | None = None

    def snapshot_download(self, repo_id: str, **options: Any) -> str:
        self.asked.append((repo_id, options["repo_type"], options["revision"]))
        self.patterns = options["allow_patterns"]
        if self.failure:
            raise self.failure
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(fill(tmp_path / "repository", {"train.jsonl": "a", "test.jsonl": "b"}))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_an_id_that_is_no_path_is_a_dataset_on_the_hub(hub: FakeHub) -> None:
    assert texts("owner/name") == texts("hub:owner/name") == "a"
    assert texts("owner/name:test") == texts("hub:owner/name@v1:test") == "b"
    assert hub.asked[-2:] == [("owner/name", "dataset", None), ("owner/name", "dataset", "v1")]
    assert texts("hub:squad") == "a" and hub.asked[-1][0] == "squad"
    with pytest.raises(DataError, match="expected one split, found test, train"):
        check_held_out("owner/name")


def test_only_files_of_rows_are_downloaded(hub: FakeHub) -> None:
    texts("owner/name")
    assert {"*.parquet", "*.jsonl", "*.csv", "*.jsonl.gz"} <= set(hub.patterns)
    assert not any(pattern.endswith((".py", "*")) for pattern in hub.patterns)


def test_a_folder_of_a_repository_is_a_dataset_too(hub: FakeHub) -> None:
    fill(hub.folder, {"cola/train.jsonl": "c"})
    assert texts("hub:owner/name/cola") == "c" and "cola/*.parquet" in hub.patterns
    assert "no folder sst2" in problem("hub:owner/name/sst2")


def test_a_path_comes_before_the_hub(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "owner" / "name", {"rows.jsonl": "local"})
    assert texts("owner/name") == "local" and hub.asked == [()]


@pytest.mark.parametrize(
    "text", ["owner/rows.jsonl", "rows", "a/b/c", "/a/b", "../a", "a/../b", "hub:../a", "hub:"]
)
def test_what_is_no_id_does_not_ask_the_hub(hub: FakeHub, text: str) -> None:
    assert "no such file: check the path" in problem(text) and hub.asked == [()]


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (errors.OfflineModeIsEnabled("offline\nmode"), "the Hub is not reached"),
        (errors.LocalEntryNotFoundError("x"), "the Hub is not reached"),
        (ConnectionError("no\nroute"), "did not answer as expected, ConnectionError: no route"),
        (ValueError(""), "ValueError"),
    ],
)
def test_what_the_hub_does_not_do_is_one_line(
    hub: FakeHub, failure: Exception, expected: str
) -> None:
    hub.failure = failure
    said = problem("owner/name")
    assert said.startswith("no such path here, and on the Hub owner/name: ") and expected in said


def test_a_repository_without_rows_is_named(hub: FakeHub) -> None:
    for file in hub.folder.iterdir():
        file.unlink()
    (hub.folder / "name.py").write_text("raise SystemExit")
    assert "expected files of rows" in problem("owner/name")
