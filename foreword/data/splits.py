"""Splits: which files of a directory are the rows of which split, and which split is read.

In: a directory as `datasets` writes it (`save_to_disk`, `push_to_hub`) or as people fill it. Out:
the files of one split, in the order of their names. A directory with one split is read; of several,
the one that is named, else `train`, which is said; else none is, and they are named. Reads no rows.
"""

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from foreword.data.sources import listed
from foreword.data.tables import TABLE_ENDINGS
from foreword.data.text_files import TEXT_ENDINGS, ending_of
from foreword.errors import DataError

log = logging.getLogger("foreword")

DATA_ENDINGS = (*TEXT_ENDINGS, *TABLE_ENDINGS)
DEFAULT_SPLIT = "train"

_Splits = dict[str, list[Path]]
_WORDS = {  # a word of a file's name, and the split that it stands for, as datasets has it
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_SHARD = re.compile(r"(?P<split>.+)-(?P<index>\d{5})-of-(?P<total>\d{5})(?:-[0-9a-f]+)?")
MAX_DEPTH = 3  # of folders that are looked into for rows that nobody would read
# What a folder holds that is the output of a run, or a model.
_OTHERS = (
    "adapter_config.json", "training_state.safetensors", "run.yaml", ".output.lock", "config.json",
)  # fmt: skip
# Of a dataset, but without rows; as those that begin with a dot or an underscore.
_NO_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


def parts_of(directory: Path, split: str | None = None) -> list[Path]:
    """Return the files that hold the rows of one split, or the one directory that `save_to_disk`
    wrote of it.

    Args:
        directory: any; its own files count, else those in `data/`, else folders by split.
        split: its name; None: the only one, or `train`.

    Raises:
        DataError: no files of rows, several splits of which none is named or is `train`, files of
            several kinds, or a shard that is missing.
    """
    splits = splits_of(directory)
    if split is not None:
        name = split if split in splits else _WORDS.get(split.lower(), split)
        if name not in splits:
            raise DataError(f"{directory}: expected a split {split!r}, found {_said(splits)}")
    elif len(splits) == 1:
        [name] = splits
    elif DEFAULT_SPLIT in splits:
        name = DEFAULT_SPLIT
        others = listed([one for one in splits if one != name])
        log.warning("%s: reads its split %r, not %s", directory, name, others)
    else:
        raise _several(directory, splits)
    files = splits[name]
    if kinds := {ending_of(file) for file in files if file.is_file()}:
        _check_one_kind(directory, files, kinds)
        _check_distinct(directory, files)
        _check_complete(directory, files)
    return files


def refuse_several(directory: Path) -> None:
    """Refuse a directory of several splits, where `train` would be the wrong one to read.

    Raises:
        DataError: it has several; names them.
    """
    splits = splits_of(directory)
    if len(splits) > 1:
        raise _several(directory, splits)


def splits_of(directory: Path) -> _Splits:
    """Return the files, or the one saved directory, of each split by its name; "" is that of files
    whose names tell no split.

    Raises:
        DataError: there are none, or it is not to be seen which belong together.
    """
    try:
        splits = _splits_of(directory)
    except OSError as error:
        raise DataError(f"{directory}: cannot be read: {error.strerror}") from error
    _check_all_read(directory, splits)
    return splits


def _splits_of(directory: Path) -> _Splits:
    if (directory / "state.json").is_file():
        return {"": [directory]}
    if (directory / "dataset_dict.json").is_file():
        return _saved_splits(directory)
    own, below = _data_files(directory), directory / "data"
    shards = _data_files(below) if below.is_dir() else []
    if own and shards:
        raise DataError(
            f"{directory}: expected files of rows here or in data/, found {own[0].name} and "
            f"data/{shards[0].name}: name one of them"
        )
    if own or shards:
        return _by_names(directory, own or shards)
    return _by_folders(below if below.is_dir() else directory)


def _check_all_read(directory: Path, splits: _Splits) -> None:
    """Refuse a directory that has files of rows in folders which belong to no split.

    Raises:
        DataError: names a file that is read and one that would not be.
    """
    read = {file for files in splits.values() for file in files}
    if any(one.is_dir() for one in read):  # what `datasets` saved is whole
        return
    if left := next((one for one in _below(directory, MAX_DEPTH) if one not in read), None):
        first = min(read)
        raise DataError(
            f"{directory}: expected files of rows in one folder, or in folders by split, found "
            f"{first.relative_to(directory)} and {left.relative_to(directory)}: name one of them, "
            "or bring them together"
        )


def _below(directory: Path, depth: int) -> Iterator[Path]:
    """Yield the files of rows in the folders of a directory, as far as they can be read."""
    with contextlib.suppress(OSError):
        for folder in _folders(directory):
            yield from (one for one in sorted(folder.iterdir()) if _is_of_rows(one))
            if depth > 1:
                yield from _below(folder, depth - 1)


def _folders(directory: Path) -> list[Path]:
    """Return the folders in a directory that may hold rows: not a model, nor the output of a run,
    which may lie beside the rows that it reads.
    """
    return [
        entry
        for entry in sorted(directory.iterdir())
        if entry.is_dir()
        and not entry.name.startswith((".", "_"))
        and not any((entry / name).exists() for name in _OTHERS)
    ]


def _is_of_rows(path: Path) -> bool:
    """Return whether a file's name says that it holds rows."""
    is_named = ending_of(path) in DATA_ENDINGS and path.name not in _NO_ROWS
    return is_named and not path.name.startswith((".", "_")) and not path.is_dir()


def _saved_splits(directory: Path) -> _Splits:
    """Return the splits of a directory that `DatasetDict.save_to_disk` wrote."""
    try:
        names = json.loads((directory / "dataset_dict.json").read_text("utf-8"))["splits"]
        names = [name for name in names if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        names = sorted(entry.name for entry in directory.iterdir() if entry.is_dir())
    if missing := [name for name in names if not (directory / name / "state.json").is_file()]:
        raise DataError(
            f"{directory}: expected one split, found {listed(missing)} without a saved dataset in "
            "it: save it again"
        )
    if not names:
        raise DataError(f"{directory}: expected one split, found none: save it again")
    return {name: [directory / name] for name in names}


def _data_files(directory: Path) -> list[Path]:
    """Return the files of rows in a directory, in the order of their names.

    Raises:
        DataError: one of their names is a link to nothing, a pipe or a device.
    """
    found = sorted(path for path in directory.iterdir() if _is_of_rows(path))
    if odd := [path for path in found if not path.is_file()]:
        raise DataError(
            f"{odd[0]}: expected a file of rows, found a link to nothing, a pipe or a device: "
            "bring it here, or move it away"
        )
    return found


def _by_names(directory: Path, files: list[Path]) -> _Splits:
    """Return files by the split that their names tell: a shard's own word, else a known one."""
    splits: _Splits = {}
    for file in files:
        shard = _SHARD.fullmatch(_stem(file))
        words = re.split(r"[^a-z]+", _stem(file).lower())
        known = {_WORDS[word] for word in words if word in _WORDS}
        told = known.pop() if len(known) == 1 else ""
        splits.setdefault(shard["split"] if shard else told, []).append(file)
    if "" in splits and len(splits) > 1:
        named = next(files[0].name for name, files in splits.items() if name)
        raise DataError(
            f"{directory}: expected files of one split, or of splits that their names tell, found "
            f"{splits[''][0].name} beside {named}: name one of them"
        )
    return splits


def _by_folders(directory: Path) -> _Splits:
    """Return the splits of folders that are named after them, as train/ and test/."""
    folders = {one.name: files for one in _folders(directory) if (files := _data_files(one))}
    if not folders:
        raise DataError(
            f"{directory}: expected files of rows ({', '.join(DATA_ENDINGS)}) or a directory "
            "written by Dataset.save_to_disk, found another directory: name one of the files in it"
        )
    if not all(name.lower() in _WORDS for name in folders):
        found = listed(sorted(folders))
        raise DataError(f"{directory}: expected one dataset, found folders {found}: name one")
    splits: _Splits = {}
    for name, files in folders.items():
        splits.setdefault(_WORDS[name.lower()], []).extend(files)
    return splits


def _stem(file: Path) -> str:
    """Return a file's name without its endings."""
    name = file.name
    return name[: name.lower().rindex(ending_of(file))]


def _check_one_kind(directory: Path, files: list[Path], kinds: set[str]) -> None:
    if len(kinds) > 1:
        firsts = [next(f.name for f in files if ending_of(f) == kind) for kind in sorted(kinds)]
        raise DataError(
            f"{directory}: expected files of one kind, found {listed(firsts)}: name one of them"
        )


def _check_distinct(directory: Path, files: list[Path]) -> None:
    """Refuse a file that lies beside itself, compressed."""
    seen: dict[Path, Path] = {}
    for file in files:
        bare = file.parent / _stem(file)
        if bare in seen:
            raise DataError(
                f"{directory}: expected each file once, found {seen[bare].name} and {file.name}: "
                "remove one, or name one of them"
            )
        seen[bare] = file


def _check_complete(directory: Path, files: list[Path]) -> None:
    """Refuse shards that are not all there."""
    shards = [shard for file in files if (shard := _SHARD.fullmatch(_stem(file)))]
    for total in {shard["total"] for shard in shards}:
        indices = {int(shard["index"]) for shard in shards if shard["total"] == total}
        if missing := sorted(set(range(int(total))) - indices):
            raise DataError(
                f"{directory}: expected {int(total)} shards of {shards[0]['split']!r}, found "
                f"{len(indices)}, without number {missing[0]:05d}: download it again"
            )


def _several(directory: Path, splits: _Splits) -> DataError:
    return DataError(
        f"{directory}: expected one split, found {_said(splits)}: add one to the path, as "
        f"{directory}/{next(iter(splits))}"
    )


def _said(splits: _Splits) -> str:
    return listed([name or "files of no split" for name in splits])
