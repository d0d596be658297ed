"""Hub datasets: a dataset on the Hugging Face Hub, by its id, as a directory with its files.

In: `owner/name`, with a revision, a folder and a split where wanted. Out: a directory as it is on
the Hub, of files of rows alone. Runs no code: a dataset that is a script has no rows here.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from foreword import hub_files
from foreword.data.splits import DATA_ENDINGS
from foreword.data.text_files import COMPRESSIONS, TEXT_ENDINGS, ending_of
from foreword.errors import DataError, InputError

_REFERENCE = re.compile(
    r"(?P<prefix>hub:/{0,2})?(?P<repository>[\w.-]+(?:/[\w.-]+)?)(?P<folder>(?:/[\w.-]+)*)"
    r"(?:@(?P<revision>[\w./-]+))?(?::(?P<split>[\w.-]+))?",
    re.ASCII,
)
# Beside the files of rows, what tells a directory that `save_to_disk` wrote.
_NAMES = [f"*{ending}" for ending in DATA_ENDINGS] + [
    f"*{ending}{compression}" for ending in TEXT_ENDINGS for compression in COMPRESSIONS
]


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the Hub.

    Attributes:
        repository: owner/name.
        folder: of one of several datasets in it; "": the whole.
        revision: a branch, a tag or a commit; None: the newest.
        split: its name; None: the only one, or `train`.
    """

    repository: str
    folder: str = ""
    revision: str | None = None
    split: str | None = None


def named_by(text: str) -> HubDataset | None:
    """Return the dataset that a text names, where it is no path: `owner/name`, also with
    `@revision` and `:split`; with `hub:` before it also `owner/name/folder`. None: it names none.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None or any(part.startswith(".") for part in match["repository"].split("/")):
        return None
    is_sure = match["prefix"] is not None
    looks_like_path = match["folder"] or "/" not in match["repository"]
    if not is_sure and (looks_like_path or ending_of(Path(match["repository"])) in DATA_ENDINGS):
        return None
    if ".." in match["folder"].split("/"):
        return None
    folder = match["folder"].strip("/")
    return HubDataset(match["repository"], folder, match["revision"], match["split"])


def download(dataset: HubDataset) -> Path:
    """Return the directory of a dataset's files of rows; nothing else is downloaded.

    Raises:
        DataError: no such dataset, revision or folder, no access, or no network.
    """
    folder = f"{dataset.folder}/" if dataset.folder else ""
    names = [f"{folder}{name}" for name in _NAMES]
    try:
        found = hub_files.download(dataset.repository, "dataset", names, dataset.revision)
    except InputError as error:
        raise DataError(f"no such path here, and on the Hub {error}") from error
    if not (found / folder).is_dir():
        raise DataError(f"{dataset.repository}: no folder {dataset.folder} of files of rows in it")
    return found / folder
