"""Storage: files and directories that appear whole and synced, or not at all.

In: a path, and what writes it. Out: the new file in the place of the old one, or an error that says
what was kept. Knows nothing of what the files hold; imports no torch.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from foreword.compat.error_lines import first_line
from foreword.errors import ForewordError, InputError, StorageError
from foreword.os_calls import directory_lock, release_and_remove
from foreword.os_calls import sync as sync

SCRATCH = ".scratch-"
KEPT = "what was there before is kept"
# What numpy says of a write that was cut short: the system's own word is lost there.
CUT_SHORT = re.compile(r"\d+ requested and \d+ written")
NUM_HEAD = 512  # bytes of a file that tell whether it may be replaced


def path_of(given: object, what: str) -> Path:
    """Return a path that a user gave.

    Args:
        given: a text or a path.
        what: it is, for the error.

    Raises:
        InputError: neither of both, empty, or what no system takes for a path.
    """
    text = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if not isinstance(text, str):
        raise InputError(f"{what}: expected a path, got {type(given).__name__}")
    if not text:
        raise InputError(f"{what}: expected a path, got an empty text; '.' is the current folder")
    _check_path(text, what)
    return Path(text)


def _check_path(text: str, what: str) -> None:
    try:
        is_path = b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        is_path = False
    if not is_path:
        raise InputError(f"{what}: {ascii(text):.200} holds a character that no path may hold")


def check_writable(directory: str | os.PathLike[str]) -> None:
    """Make a directory and write to it once, before hours of work depend on it.

    Raises:
        InputError: the directory cannot be made or written. StorageError: no space is left.
    """
    target = path_of(directory, "the directory to write to")
    with storage_errors(target, kind=InputError):
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target) as file:
            file.write(b"\0")


def check_file(
    path: str,
    option: str,
    is_own: Callable[[bytes], bool],
    inputs: Iterable[str | None] = (),
) -> None:
    """Refuse a file that could not be written at the end, or that holds something else by now.

    Args:
        path: of the file; a device or a pipe is written to as it is.
        option: how the user names it.
        is_own: whether a file that begins with these bytes was written by the same option before.
        inputs: files that are read, and must not be written, and folders of such files.

    Raises:
        InputError: says what is in the way.
    """
    try:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise InputError(f"{option}: expected a file, and {path} is a directory")
        if not target.parent.is_dir():
            raise InputError(f"{option}: {path}: there is no such folder; make it first")
        for one in inputs:
            if one and Path(os.path.realpath(one)) in (target, target.parent):
                raise InputError(f"{option}: {path} is read, too; choose another file")
        if _is_special(target):
            return
        if target.exists():
            with target.open("rb") as file:
                head = file.read(NUM_HEAD)
            if head and not is_own(head):
                raise InputError(
                    f"{option}: {path} is there, and foreword did not write it; choose another "
                    "name, or remove it"
                )
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.") as file:
            file.write(b"\0")
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{option}: {path!r} cannot be written ({reason})") from None


def _is_others(lock: Path) -> bool:
    """Return whether something is there in the place of a lock's empty file."""
    try:
        status = os.lstat(lock)
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(status.st_mode) or status.st_size > 0


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file()


def write_file(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Let `write` fill a file that takes the place of `path` once it is whole.

    Raises:
        StorageError: it cannot be written; what was there is kept. InputError: it is no path.
    """
    place = path_of(path, "the file to write")
    target = Path(os.path.realpath(place))  # through a link: it stays one
    with storage_errors(target):
        if _is_special(target):
            write(target)
            return
        with replacing(target) as file:
            write(file)


@contextlib.contextmanager
def locked(path: Path, taken: str) -> Iterator[None]:
    """Hold the lock that a file stands for; the file is there only while somebody holds it.

    The system releases it with the process, however that ends.

    Raises:
        StorageError: `taken`: somebody else holds it; or another program's file stands there.
    """
    lock = FileLock(path, timeout=0, thread_local=False)
    with storage_errors(path):
        if _is_others(path):
            raise StorageError(f"{path} is not foreword's own file; move it away")
        try:
            lock.acquire()
            while not path.exists():  # its last holder removed it just before we had it
                lock.release()
                lock.acquire()
        except Timeout:
            raise StorageError(taken) from None
    try:
        yield
    finally:
        release_and_remove(lock, path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path` that takes its place, whole and synced, on success."""
    mark = f"-{secrets.token_hex(8)}"
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=mark)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace(new: Path, path: Path) -> None:
    """Let a file of the same file system take the place of `path`, synced, readable by all."""
    sync(new)
    new.chmod(0o644)
    os.replace(new, path)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of writes to `path` whose process was killed.

    Those are regular files with the random names that `replacing` gives, and no others.
    """
    temporary = re.compile(re.escape(f".{path.name}.") + "[a-z0-9_]{8}-[0-9a-f]{16}")
    with storage_errors(path):
        for leftover in path.parent.iterdir() if path.parent.is_dir() else ():
            if temporary.fullmatch(leftover.name) and leftover.is_file():
                leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def taking_turns(directory: Path) -> Iterator[None]:
    """Let the writers of a directory's files take turns, where the system can lock a directory.

    Nothing is left in the directory, and a writer that dies holds up nobody.
    """
    with directory_lock(directory):
        yield


@contextlib.contextmanager
def scratch_directory(parent: Path, record: str) -> Iterator[Path]:
    """Yield a new directory in `parent` that is gone afterwards, or next time after a kill.

    Its name is random and stands in the file `record` of `parent` before it is made: only what that
    file names is ever removed, never what merely looks alike. The caller holds a lock.

    Args:
        parent: a directory.
        record: the name of a file in it.

    Raises:
        StorageError: another program's file stands at `record`.
    """
    note = parent / record
    _remove_recorded(note)
    scratch = parent / f"{SCRATCH}{secrets.token_hex(16)}"
    note.write_text(scratch.name, encoding="utf-8")
    try:
        scratch.mkdir()
        yield scratch
    finally:
        _remove_recorded(note)


def _remove_recorded(note: Path) -> None:
    """Remove the scratch directory that a file names, then the file; there may be neither."""
    if not os.path.lexists(note):
        return
    is_file = note.is_file() and not note.is_symlink()
    name = note.read_bytes()[:100].decode("ascii", "replace") if is_file else "?"
    number = name.removeprefix(SCRATCH)
    if name and (name == number or len(number) != 32 or set(number) - set("0123456789abcdef")):
        raise StorageError(f"{note} is not foreword's own file; move it away; {KEPT}")
    scratch = note.with_name(name) if name else None
    if scratch is not None and scratch.is_dir() and not scratch.is_symlink():
        shutil.rmtree(scratch, ignore_errors=True)
    if scratch is None or not scratch.is_dir():
        note.unlink()


@contextlib.contextmanager
def storage_errors(
    target: Path, kept: str = KEPT, kind: type[ForewordError] = StorageError
) -> Iterator[None]:
    """Turn what the operating system says about a full or closed disk into one line.

    Args:
        target: what is written.
        kept: what became of what was there, and what else to do.
        kind: of an error that another directory mends.

    Raises:
        StorageError, or `kind`: in the place of every error of the system or of safetensors.
        InputError: the target is no path.
    """
    _check_path(str(target), "what is written")
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        said = str(error)
        if number == errno.ENOSPC or "No space left" in said or CUT_SHORT.fullmatch(said):
            reason = "no space left on the device; free some or choose another directory"
            kind = StorageError
        elif number in (errno.EACCES, errno.EPERM, errno.EROFS):
            reason = "not writable; choose another directory or change its permissions"
        elif number in (errno.ENOTDIR, errno.EEXIST):
            reason = "a file stands where a directory is needed; choose another directory"
        elif number == errno.EISDIR:
            place = getattr(error, "filename2", None) or getattr(error, "filename", target)
            reason = f"{place!s:.200} is a directory where a file is needed; move it away"
        elif number in (errno.ENAMETOOLONG, errno.ELOOP):
            reason, kind = os.strerror(number or 0), InputError
        else:
            reason = getattr(error, "strerror", None) or first_line(error)
        raise kind(f"{target!s:.200}: {reason}; {kept}") from None
