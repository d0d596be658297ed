"""Prompt store: named, versioned prompts, as `NAME/versions/VERSION` and `NAME/current`.

In: prompt directories. Out: entries, by `NAME`, `NAME@VERSION` or an alias. A version is the hash
of its two files and never changes; what appears under a name is whole and on the disk, or absent.
Writers take turns by a lock and clear what a writer that died has left, and nothing else; readers
need no lock. No name leads out of the directory, and no symbolic link is followed. Does not know
models or the values of prompts, and imports no torch.
"""

import contextlib
import hashlib
import itertools
import os
import re
import shutil
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from foreword.errors import ArtifactError, InputError, NotFoundError, StorageError
from foreword.os_calls import is_device
from foreword.prompt import alias_index, name_index, stored_prompt
from foreword.prompt.facts import open_regular, summary
from foreword.prompt.peft_format import FILES
from foreword.prompt.steady_files import steadily
from foreword.storage import path_of, replace, scratch_directory, storage_errors, sync

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62}[A-Za-z0-9_-])?")
VERSION = re.compile(r"[0-9a-f]{16}")
ASKED_VERSION = re.compile(r"[0-9a-f]{4,16}")
LOCK_SECONDS = 60.0
RECORD = ".foreword-scratch"
MAX_SUGGESTED = 20  # names in an error
BARE = "base"  # how metrics call the bare model


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

    @property
    def added(self) -> datetime:
        """When the version was added, in UTC: the last time, if more than once.

        Raises:
            NotFoundError: a writer has removed it.
        """
        try:
            return datetime.fromtimestamp(int(self.path.stat().st_mtime), UTC)
        except FileNotFoundError:
            raise NotFoundError(f"{self} is no more in the store") from None


class Store:
    """Prompts by name in a directory; it is made at the first write."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = path_of(directory, "the store's directory")

    # Reading ------------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse what is no directory to read prompts from.

        Raises:
            InputError: missing, or a file.
        """
        if not os.path.isdir(self.directory):
            what = "a file" if os.path.exists(self.directory) else "no such directory"
            raise InputError(
                f"{self.directory}: {what}; expected the directory of a store, as "
                "`foreword prompts add NAME DIR --prompts DIRECTORY` makes it"
            )

    def names(self) -> list[str]:
        """Return the names of all prompts, damaged ones too, aliases apart.

        Raises:
            InputError: the store is a file.
        """
        if not os.path.lexists(self.directory):
            return []
        self.check()
        return sorted(name for name in self._listed(self.directory) if self.has(name))

    def has(self, name: str) -> bool:
        """Return whether there is a prompt of a name, damaged or not."""
        return os.path.lexists(self.directory / name / "current")

    def aliases(self) -> dict[str, str]:
        """Return each alias and what it stands for: `NAME` or `NAME@VERSION`."""
        found = sorted(self._listed(self.directory / ".aliases"))
        return {name: text for name in found if (text := self._alias(name)) is not None}

    def versions(self, name: str) -> list[Entry]:
        """Return all versions of a prompt, oldest first.

        Raises:
            NotFoundError: no such prompt.
        """
        folder = self.directory / check_name(name) / "versions"
        if not folder.is_dir() or folder.is_symlink():
            raise self._missing(name)
        try:
            found = [path for path in folder.iterdir() if VERSION.fullmatch(path.name)]
            paths = [path for path in found if path.is_dir() and not path.is_symlink()]
            paths.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
        except FileNotFoundError:  # a writer removed one meanwhile
            return self.versions(name)
        return [Entry(name, path.name, path) for path in paths]

    def resolve(self, reference: str) -> Entry:
        """Return the entry of `NAME`, of `NAME@VERSION`, or of an alias of either.

        A version may be shortened to four digits or more where that is unambiguous.

        Raises:
            NotFoundError: no such prompt or version.
            InputError: not a name, or the file that says the current version is damaged.
        """
        name, version = split_reference(reference)
        alias = self._alias(check_name(name))
        if alias is not None:
            if version:
                raise InputError(f"{name!r} is an alias of {alias}: name a version of the prompt")
            name, version = split_reference(alias)
            check_name(name)
        if not version:
            current = self._current(name)
            if current is None:
                place = self.directory / name / "current"
                if os.path.lexists(place):
                    raise InputError(f"{place} names no version; add the prompt again")
                raise self._missing(name)
            return Entry(name, current, self.directory / name / "versions" / current)
        if not ASKED_VERSION.fullmatch(version):
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
            InputError: changed, truncated, missing or unreadable files, or links.
        """
        _refuse_links(self.directory / entry.name, entry.path.parent, entry.path)
        try:
            found = _version_of(entry.path)
        except OSError as error:
            raise InputError(f"{entry.path} cannot be read ({error.strerror})") from None
        if found != entry.version:
            raise InputError(
                f"{entry.path}: the files do not match their version ({found}): they were changed; "
                "remove the version and add the prompt again"
            )
        return entry.path

    def stamp(self, entry: Entry) -> object:
        """Return what differs once an entry's files are others, at the cost of a look at each."""
        try:
            found = [os.lstat(entry.path / file) for file in FILES]
        except OSError:
            return object()  # equal to none
        return [(one.st_mtime_ns, one.st_size, one.st_ino) for one in found]

    # Writing ------------------------------------------------------------------------------------

    def add(self, name: str, source: str | os.PathLike[str]) -> Entry:
        """Copy a prompt's directory into the store as the current version of a name.

        Adding what is there already makes it current again, and whole again if it was damaged.

        Raises:
            InputError: not a name that a prompt may have, or the directory is not a prompt's.
            StorageError: no space, no permission, or another writer holds the lock.
        """
        given = path_of(source, "the prompt's directory")
        with self._writing() as scratch:
            self._check_free(name, scratch)
            versions = self.directory / name / "versions"
            _refuse_links(self.directory / name, versions)
            new = scratch / "new"
            new.mkdir()
            steadily(given, lambda: _copy_checked(given, new))
            version = _version_of(new)
            versions.mkdir(parents=True, exist_ok=True)
            target = versions / version
            if target.is_dir() and self._is_whole(Entry(name, version, target)):
                os.utime(target)
            else:
                if os.path.lexists(target):
                    os.rename(target, scratch / "damaged")
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
            NotFoundError: nothing of that name.
            InputError: an alias points to it, or other files than the store's own lie in it.
        """
        name, version = split_reference(reference)
        check_name(name)
        with self._writing() as scratch:
            if not version and (target := self._alias(name)) is not None:
                (self.directory / ".aliases" / name).unlink()
                name_index.forget(self.directory, name)
                alias_index.forget(self.directory, target.partition("@")[0], name)
                return []
            _refuse_links(self.directory / name)
            gone = [self.resolve(reference)] if version else self.versions(name)
            if not gone and not self.has(name):
                raise NotFoundError(f"{self.directory / name} is no prompt of the store")
            left = [entry for entry in self.versions(name) if entry not in gone]
            known = {str(entry) for entry in gone} | (set() if left else {name})
            self._refuse_aliased(name, known, scratch)
            for entry in gone:
                _refuse_others(entry.path, FILES)
            if not left:
                _refuse_others(self.directory / name, ("versions", "current"))
                _refuse_others(
                    self.directory / name / "versions", [entry.version for entry in gone]
                )
                os.rename(self.directory / name, scratch / "gone")
                name_index.forget(self.directory, name)
                return gone
            if self._current(name) == gone[0].version:
                self._point(scratch, self.directory / name / "current", left[-1].version)
            os.rename(gone[0].path, scratch / "gone")
        return gone

    def check_all(self, names: Iterable[str]) -> None:
        """Refuse names before any of them is added.

        Raises:
            InputError: not a name that a prompt may have here, or two that differ in case alone.
        """
        known: dict[str, str] = {}
        with self._writing() as scratch:
            for name in names:
                self._check_free(name, scratch)
                if (other := known.setdefault(name.lower(), name)) != name:
                    raise InputError(
                        f"{name!r} differs from {other!r} in case alone; choose another name"
                    )

    def _check_free(self, name: str, scratch: Path) -> None:
        check_name(name)
        if self._alias(name) is not None:
            raise InputError(f"{name!r} is an alias; remove it first or choose another name")
        self._check_new(name, scratch)

    def alias(self, alias: str, reference: str) -> Entry:
        """Let one more name stand for `NAME`, whatever its version, or for one `NAME@VERSION`.

        Raises:
            NotFoundError: no such prompt.
            InputError: the alias is a prompt's own name.
        """
        check_name(alias)
        with self._writing() as scratch:
            if self.has(alias):
                raise InputError(f"{alias!r} is a prompt's own name; choose another alias")
            self._check_new(alias, scratch)
            target = check_name(split_reference(reference)[0])
            if self._alias(target) is not None:
                raise InputError(f"{reference!r} is an alias itself; name a prompt")
            entry = self.resolve(reference)
            folder = self.directory / ".aliases"
            _refuse_links(folder)
            folder.mkdir(exist_ok=True)
            alias_index.note(self.directory, entry.name, alias)
            self._point(scratch, folder / alias, str(entry) if "@" in reference else entry.name)
        return entry

    def use(self, reference: str) -> Entry:
        """Make a version that the store holds the current one of its name, as after `add`.

        Raises:
            NotFoundError: no such prompt or version.
            InputError: no version is named, or its files are not what it says.
        """
        name, version = split_reference(reference)
        if not version:
            raise InputError(f"{name!r} names no version: expected NAME@VERSION")
        with self._writing() as scratch:
            if self._alias(check_name(name)) is not None:
                raise InputError(f"{name!r} is an alias; name the prompt itself")
            entry = self.resolve(reference)
            self.verify(entry)
            self._point(scratch, self.directory / name / "current", entry.version)
        return entry

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Path]:
        """Hold the lock; yield a scratch directory that is gone afterwards, whatever happens."""
        with storage_errors(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            try:
                with (
                    FileLock(self.directory / ".lock", timeout=LOCK_SECONDS),
                    scratch_directory(self.directory, RECORD) as scratch,
                ):
                    yield scratch
            except Timeout:
                raise StorageError(
                    f"{self.directory}: another writer has held the lock for {LOCK_SECONDS:.0f} "
                    "seconds; try again"
                ) from None

    def _check_new(self, name: str, scratch: Path) -> None:
        """Refuse a new name that would be confused with another, here or on another system, and
        note its spelling; no more than a few files are read, however many names there are, once the
        store has its indices.

        Raises:
            InputError: it differs from a name or an alias in case alone, or it is reserved.
        """
        folders = (self.directory, self.directory / ".aliases")
        is_there = [os.path.lexists(folder / name) for folder in folders]
        if not any(is_there) and is_device(name):
            raise InputError(f"{name!r} is a device on Windows; choose another name")
        name_index.prepare(self.directory, lambda: self._every(folders), scratch)
        self._prepare_aliases(scratch)
        other = name_index.noted(self.directory, name)
        if other is None and any(is_there):  # put there by hand, or under another case
            same = [one for one in self._every(folders) if one.lower() == name.lower()]
            other = name if name in same else next(iter(same), None)
        if other == name:
            return
        if other is not None and any(os.path.lexists(folder / other) for folder in folders):
            raise InputError(f"{name!r} differs from {other!r} in case alone; choose another name")
        name_index.note(self.directory, name, scratch)

    def _point(self, scratch: Path, path: Path, word: str) -> None:
        """Replace a file of one word, whole and synced."""
        new = scratch / "word"
        new.write_text(word + "\n", encoding="utf-8")
        replace(new, path)
        sync(path.parent)

    def _refuse_aliased(self, name: str, gone: set[str], scratch: Path) -> None:
        self._prepare_aliases(scratch)
        for alias in alias_index.noted(self.directory, name):
            if (target := self._alias(alias)) in gone:
                raise InputError(f"alias {alias!r} points to {target}; remove the alias first")

    def _prepare_aliases(self, scratch: Path) -> None:
        def targets() -> dict[str, str]:
            plain = ((alias, text.partition("@")[0]) for alias, text in self.aliases().items())
            return {alias: name for alias, name in plain if NAME.fullmatch(name)}

        alias_index.prepare(self.directory, targets, scratch)

    def _current(self, name: str) -> str | None:
        word = _read_word(self.directory / name / "current")
        return word if word is not None and VERSION.fullmatch(word) else None

    def _alias(self, name: str) -> str | None:
        folder = self.directory / ".aliases"
        return None if folder.is_symlink() else _read_word(folder / name)

    def _is_whole(self, entry: Entry) -> bool:
        try:
            self.verify(entry)
        except InputError:
            return False
        return True

    def _listed(self, folder: Path) -> list[str]:
        names = os.listdir(folder) if folder.is_dir() else ()
        return [name for name in names if NAME.fullmatch(name)]

    def _every(self, folders: Iterable[Path]) -> list[str]:
        return [name for folder in folders for name in self._listed(folder)]

    def _missing(self, name: str) -> NotFoundError:
        """Return the error of a name that the store does not have, with what to do."""
        known = self._known() or "none; add one: foreword prompts add NAME DIR"
        return NotFoundError(f"no prompt {name!r} in {self.directory}; it has {known}")

    def _known(self) -> str:
        """Return the names in words, or some of them: a store may have thousands."""
        if not self.directory.is_dir():
            return ", ".join(self.names())
        with os.scandir(self.directory) as found:
            known = (one.name for one in found if NAME.fullmatch(one.name) and self.has(one.name))
            some = [*itertools.islice(known, MAX_SUGGESTED + 1)]
        more = "others, " if len(some) > MAX_SUGGESTED else ""
        return more + ", ".join(sorted(some[:MAX_SUGGESTED]))


def check_free(name: str) -> None:
    """Refuse to give a prompt the name that stands for the bare model.

    Raises:
        InputError: choose another one.
    """
    if name.lower() == BARE:
        raise InputError(f"{name!r} stands for the bare model; choose another name")


def check_name(name: str) -> str:
    """Return a name, or refuse what could lead out of the directory.

    Raises:
        InputError: not 1 to 64 letters, digits, dots, dashes and underscores.
    """
    if not NAME.fullmatch(name):
        raise InputError(
            f"{name[:80]!r} is not a name; expected 1 to 64 letters, digits, '.', '-' and '_', "
            "beginning with a letter or a digit, and not ending with a dot"
        )
    return name


def _refuse_links(*parts: Path) -> None:
    """Refuse to read or write through a symbolic link, which may lead out of the store.

    Raises:
        InputError: names the first one.
    """
    for part in parts:
        if part.is_symlink():
            raise InputError(f"{part} is a symbolic link; a prompt must lie in the store itself")


def split_reference(reference: str) -> tuple[str, str]:
    """Return the name and the version of a reference; "" where it names no version.

    Raises:
        InputError: an "@" with nothing behind it, which could mean any version.
    """
    name, at, version = reference.partition("@")
    if at and not version:
        raise InputError(f"{reference!r:.80} names no version: expected NAME or NAME@VERSION")
    return name, version


def _refuse_others(folder: Path, own: Collection[str]) -> None:
    """Refuse to remove a directory in which anything lies but what the store made.

    Raises:
        InputError: names the first other file.
    """
    if others := sorted(path.name for path in folder.iterdir() if path.name not in own):
        raise InputError(
            f"{folder} holds {ascii(others[0])}, which is not the store's own: move it away first; "
            "nothing was removed"
        )


def _version_of(directory: Path) -> str:
    """Return the hash of both files of a prompt: their sizes and bytes."""
    digest = hashlib.sha256()
    for name in FILES:
        with open_regular(directory / name) as file:
            digest.update(f"{name} {os.fstat(file.fileno()).st_size}\n".encode())
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def _copy_checked(source: Path, target: Path) -> None:
    """Copy a prompt's files, and refuse what lists could not show or no reader would take."""
    for file in FILES:
        _copy(source / file, target / file)
    summary(target, source)
    try:
        stored_prompt.read(target)
    except ArtifactError as error:
        raise ArtifactError(str(error).replace(str(target), str(source))) from None


def _copy(source: Path, target: Path) -> None:
    with open_regular(source) as old, target.open("wb") as new:
        shutil.copyfileobj(old, new, 1 << 20)
    sync(target)
    target.chmod(0o644)


def _read_word(path: Path) -> str | None:
    """Return the one word of a small file; None where there is none."""
    try:
        with open_regular(path) as file:
            return str(file.read(200), "ascii").strip()
    except (InputError, UnicodeDecodeError):
        return None
