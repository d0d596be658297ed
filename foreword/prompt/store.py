"""Prompt store: named, versioned prompts, as `NAME/versions/VERSION` and `NAME/current`.

In: prompt directories. Out: entries, by `NAME`, `NAME@VERSION` or an alias. A version is the hash
of its two files and never changes; what appears under a name is whole and on the disk, or absent.
Writers take turns by a lock and clear what a writer that died has left; readers need no lock. No
name leads out of the directory, and no symbolic link is followed. Does not know models or what the
files mean, and imports no torch.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from foreword.errors import InputError, NotFoundError, StorageError
from foreword.prompt.peft_format import FILES
from foreword.storage import replace, storage_errors, sync

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?")
VERSION = re.compile(r"[0-9a-f]{4,16}")
MAX_BYTES = 1 << 30  # of one prompt
LOCK_SECONDS = 60.0
SCRATCH = ".scratch-"


@dataclass(frozen=True)
class Entry:
    """One version of a prompt.

    Attributes:
        name: the prompt's own name, also where an alias led to it.
        version: the hash of its files, 16 hexadecimal digits.
        path: its directory.
    """

    name: str
    version: str
    path: Path

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class Store:
    """Prompts by name in a directory; it is made at the first write."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)

    # Reading ------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of all prompts, aliases apart."""
        found = self._listed(self.directory) if self.directory.is_dir() else []
        return sorted(name for name in found if self._current(name) is not None)

    def aliases(self) -> dict[str, str]:
        """Return each alias and what it stands for: `NAME` or `NAME@VERSION`."""
        folder = self.directory / ".aliases"
        found = sorted(self._listed(folder)) if folder.is_dir() else []
        return {name: text for name in found if (text := _read_word(folder / name)) is not None}

    def versions(self, name: str) -> list[Entry]:
        """Return all versions of a prompt, oldest first.

        Raises:
            NotFoundError: no such prompt.
        """
        folder = self.directory / check_name(name) / "versions"
        if not folder.is_dir() or folder.is_symlink():
            raise NotFoundError(f"no prompt {name!r} in {self.directory}; it has {self._known()}")
        paths = [path for path in folder.iterdir() if VERSION.fullmatch(path.name)]
        paths.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
        return [Entry(name, path.name, path) for path in paths]

    def resolve(self, reference: str) -> Entry:
        """Return the entry of `NAME`, of `NAME@VERSION`, or of an alias of either.

        A version may be shortened to four digits or more where that is unambiguous.

        Raises:
            NotFoundError: no such prompt or version.
            InputError: not a name.
        """
        name, _, version = reference.partition("@")
        alias = _read_word(self.directory / ".aliases" / check_name(name))
        if alias is not None and not version:
            name, _, version = alias.partition("@")
            check_name(name)
        if not version:
            current = self._current(name)
            if current is None:
                raise NotFoundError(
                    f"no prompt {name!r} in {self.directory}; it has {self._known()}"
                )
            return Entry(name, current, self.directory / name / "versions" / current)
        if not VERSION.fullmatch(version):
            raise InputError(f"{version!r} is not a version; expected 4 to 16 hexadecimal digits")
        found = [entry for entry in self.versions(name) if entry.version.startswith(version)]
        if len(found) != 1:
            known = ", ".join(entry.version for entry in self.versions(name))
            what = "no version" if not found else "several versions"
            raise NotFoundError(f"prompt {name!r} has {what} {version!r}; it has {known}")
        return found[0]

    def verify(self, entry: Entry) -> Path:
        """Return the directory of an entry whose files are what their version says.

        Raises:
            InputError: changed, truncated or missing files, or links.
        """
        for part in (self.directory / entry.name, entry.path.parent, entry.path):
            if part.is_symlink():
                raise InputError(
                    f"{part} is a symbolic link; a prompt must lie in the store itself"
                )
        if (found := _version_of(entry.path)) != entry.version:
            raise InputError(
                f"{entry.path}: the files do not match their version ({found}): they were changed; "
                "remove the version and add the prompt again"
            )
        return entry.path

    # Writing ------------------------------------------------------------------------------------

    def add(self, name: str, source: str | os.PathLike[str]) -> Entry:
        """Copy a prompt's directory into the store as the current version of a name.

        Adding what is there already makes it current again.

        Raises:
            InputError: not a name, or the directory is not a prompt's.
            StorageError: no space, no permission, or another writer holds the lock.
        """
        check_name(name)
        with self._writing() as scratch:
            if name in self.aliases():
                raise InputError(f"{name!r} is an alias; remove it first or choose another name")
            new = scratch / "new"
            new.mkdir()
            for file in FILES:
                _copy(Path(source) / file, new / file)
            version = _version_of(new)
            versions = self.directory / name / "versions"
            versions.mkdir(parents=True, exist_ok=True)
            target = versions / version
            if target.exists():
                os.utime(target)
            else:
                sync(new)
                new.chmod(0o755)
                os.rename(new, target)
                sync(versions)
            self._point(scratch, self.directory / name / "current", version)
        return Entry(name, version, target)

    def remove(self, reference: str) -> list[Entry]:
        """Remove a name with all its versions, one version, or an alias; return what is gone.

        Where the current version goes, the newest that is left becomes current.

        Raises:
            NotFoundError: nothing of that name. InputError: an alias points to it.
        """
        name, _, version = reference.partition("@")
        check_name(name)
        with self._writing() as scratch:
            if not version and name in self.aliases():
                (self.directory / ".aliases" / name).unlink()
                return []
            gone = [self.resolve(reference)] if version else self.versions(name)
            left = [entry for entry in self.versions(name) if entry not in gone]
            self._refuse_aliased({str(entry) for entry in gone} | (set() if left else {name}))
            if not left:
                os.rename(self.directory / name, scratch / "gone")
                return gone
            if self._current(name) == gone[0].version:
                self._point(scratch, self.directory / name / "current", left[-1].version)
            os.rename(gone[0].path, scratch / "gone")
        return gone

    def alias(self, alias: str, reference: str) -> Entry:
        """Let one more name stand for `NAME`, whatever its version, or for one `NAME@VERSION`.

        Raises:
            NotFoundError: no such prompt. InputError: the alias is a prompt's own name.
        """
        check_name(alias)
        with self._writing() as scratch:
            if self._current(alias) is not None:
                raise InputError(f"{alias!r} is a prompt's own name; choose another alias")
            if reference.partition("@")[0] in self.aliases():
                raise InputError(f"{reference!r} is an alias itself; name a prompt")
            entry = self.resolve(reference)
            folder = self.directory / ".aliases"
            folder.mkdir(exist_ok=True)
            self._point(scratch, folder / alias, str(entry) if "@" in reference else entry.name)
        return entry

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Path]:
        """Hold the lock; yield a scratch directory that is gone afterwards, whatever happens."""
        with storage_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(self.directory / ".lock", timeout=LOCK_SECONDS):
                    self._clear()
                    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=self.directory))
                    try:
                        yield scratch
                    finally:
                        shutil.rmtree(scratch, ignore_errors=True)
            except Timeout:
                raise StorageError(
                    f"{self.directory}: another writer has held the lock for {LOCK_SECONDS:.0f} "
                    "seconds; try again"
                ) from None

    def _clear(self) -> None:
        """Remove the scratch directory of a writer that died."""
        for left in self.directory.glob(f"{SCRATCH}*"):
            shutil.rmtree(left, ignore_errors=True)

    def _point(self, scratch: Path, path: Path, word: str) -> None:
        """Replace a file of one word, whole and synced."""
        new = scratch / "word"
        new.write_text(word + "\n")
        replace(new, path)
        sync(path.parent)

    def _refuse_aliased(self, gone: set[str]) -> None:
        for alias, target in self.aliases().items():
            if target in gone:
                raise InputError(f"alias {alias!r} points to {target}; remove the alias first")

    def _current(self, name: str) -> str | None:
        word = _read_word(self.directory / name / "current")
        return word if word is not None and VERSION.fullmatch(word) else None

    def _listed(self, folder: Path) -> list[str]:
        return [path.name for path in folder.iterdir() if NAME.fullmatch(path.name)]

    def _known(self) -> str:
        return ", ".join(self.names()) or "none"


def check_name(name: str) -> str:
    """Return a name, or refuse what could lead out of the directory.

    Raises:
        InputError: not 1 to 64 letters, digits, dots, dashes and underscores.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            f"{name[:80]!r} is not a name; expected 1 to 64 letters, digits, '.', '-' and '_', "
            "beginning with a letter or a digit"
        )
    return name


def facts_of(path: Path) -> dict[str, Any]:
    """Return what a prompt's files say of it, without its values: PEFT's configuration, then the
    facts, and the files' size under `num_bytes`. Unreadable files say nothing.
    """
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        found |= json.loads((path / FILES[0]).read_text(encoding="utf-8"))
        found["num_bytes"] = (path / FILES[1]).stat().st_size
        with (path / FILES[1]).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(size, 1 << 20)))
        found |= json.loads(header["__metadata__"]["foreword"])
    return found


def _version_of(directory: Path) -> str:
    """Return the hash of both files of a prompt: their sizes and bytes."""
    digest = hashlib.sha256()
    for name in FILES:
        with _open(directory / name) as file:
            digest.update(f"{name} {os.fstat(file.fileno()).st_size}\n".encode())
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def _open(path: Path) -> Any:
    """Open a regular file of bounded size, never through a link.

    Raises:
        InputError: missing, a link, a device, too large.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        reason = "is a symbolic link" if path.is_symlink() else f"cannot be read ({error.strerror})"
        raise InputError(f"{path} {reason}; expected a soft prompt's own file") from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
        os.close(handle)
        raise InputError(f"{path} is not a regular file of at most {MAX_BYTES:,} bytes")
    return os.fdopen(handle, "rb")


def _copy(source: Path, target: Path) -> None:
    with _open(source) as old, target.open("wb") as new:
        shutil.copyfileobj(old, new, 1 << 20)
    sync(target)
    target.chmod(0o644)


def _read_word(path: Path) -> str | None:
    """Return the one word of a small file; None where there is none."""
    try:
        with _open(path) as file:
            return str(file.read(200), "ascii").strip()
    except (InputError, UnicodeDecodeError):
        return None
