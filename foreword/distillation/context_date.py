"""Date of a context: the day that a chat template printed when a text was first read.

In: the folder of a distillation. Out: the day on which it began, where its template prints one, so
that a run that goes on later reads the very text that its answers are to. Knows no text.
"""

import json
import os
from pathlib import Path

from foreword.config import EncodingConfig
from foreword.errors import ArtifactError
from foreword.storage import replacing, storage_errors
from foreword.training import distributed

FILE = "context.json"


def encoding_in(folder: str | os.PathLike[str] | None) -> EncodingConfig | None:
    """Return how a text is encoded that was read before; None where no day was printed.

    Raises:
        ArtifactError: the file that says so is damaged.
    """
    file = None if folder is None else Path(folder) / FILE
    if file is None or not file.exists():
        return None
    try:
        date = json.loads(file.read_text(encoding="utf-8"))["date"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{file}: damaged ({error}); remove it, and it is made again") from None
    return EncodingConfig.saved({"date": date})


def keep(folder: str | os.PathLike[str] | None, encoding: EncodingConfig) -> None:
    """Write down the day that a text was read with, where its template prints one.

    Raises:
        StorageError: it cannot be written.
    """
    if folder is None or encoding.date is None or not distributed.join().is_main:
        return
    file = Path(folder) / FILE
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            temporary.write_text(json.dumps({"date": encoding.date}), encoding="utf-8")


def forget(folder: Path) -> None:
    """Remove the day that another text was read with.

    Raises:
        StorageError: it cannot be removed.
    """
    with storage_errors(folder / FILE):
        (folder / FILE).unlink(missing_ok=True)
