"""Name index: which spelling of a name a store has, found without listing all of its names.

In: a store's directory and names. Out: the spelling that was noted for a name's letters, whatever
their case: one small file for each, called as the name in small letters. What it says is true only
where that name is still there, which the caller looks up. Knows nothing of prompts.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from foreword.prompt import index_folder
from foreword.storage import replace, sync

FOLDER = ".names"


def noted(directory: Path, name: str) -> str | None:
    """Return the spelling noted for a name; None where there is none."""
    try:
        return _place(directory, name).read_bytes()[:200].decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def note(directory: Path, name: str, scratch: Path) -> None:
    """Note a spelling, synced; `scratch` is a directory of the same file system."""
    new = scratch / "name"
    new.write_text(name + "\n", encoding="utf-8")
    replace(new, _place(directory, name))
    sync(directory / FOLDER)


def forget(directory: Path, name: str) -> None:
    """Forget a spelling; it need not be noted."""
    if noted(directory, name) == name:
        _place(directory, name).unlink(missing_ok=True)


def prepare(directory: Path, names: Callable[[], Iterable[str]], scratch: Path) -> None:
    """Note all names of a directory that has no index yet; the index appears whole or not at all.

    Raises:
        InputError: a link stands where the index belongs.
    """

    def fill(new: Path) -> None:
        for name in names():
            (new / name.lower()).write_text(name + "\n", encoding="utf-8")

    index_folder.prepare(directory / FOLDER, scratch, "names", fill)


def _place(directory: Path, name: str) -> Path:
    return directory / FOLDER / name.lower()
