"""System calls: what only some operating systems have, each with what stands in for it elsewhere.

In: paths, sockets, an event loop. Out: the same effect, as far as the system has it. No other
module calls what POSIX alone has. Knows no file of foreword's.
"""

import asyncio
import contextlib
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, NoReturn

IS_WINDOWS = os.name == "nt"
PORTS = {f"{kind}{number}" for kind in ("com", "lpt") for number in range(10)}
DEVICES = {"con", "prn", "aux", "nul"} | PORTS  # on Windows, with any ending
HERE = ("/", "./", "../", "~")


# Names and paths --------------------------------------------------------------------------------


def is_device(name: str) -> bool:
    """Return whether Windows takes a file's name for a device."""
    return name.partition(".")[0].lower() in DEVICES


def is_path_here(name: str) -> bool:
    """Return whether a name is written as a path, of this or another system, and as no Hub id."""
    return name.startswith(HERE) or "\\" in name or bool(PureWindowsPath(name).drive)


# Files ------------------------------------------------------------------------------------------


def open_itself(path: Path) -> int:
    """Open a file for reading, never through a link and never waiting for a pipe's other end.

    Raises:
        OSError: there is none, or a link.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    if no_follow := getattr(os, "O_NOFOLLOW", 0):
        return os.open(path, flags | no_follow)
    before = os.lstat(path)
    if not stat.S_ISREG(before.st_mode):
        raise OSError(f"{path} is no regular file")
    handle = os.open(path, flags)
    if not os.path.samestat(before, os.fstat(handle)):  # a link took its place meanwhile
        os.close(handle)
        raise OSError(f"{path} was replaced")
    return handle


def sync(path: Path) -> None:
    """Bring a file's bytes, or the names in a directory, to the disk; Windows has no such call for
    directories, whose names it keeps in order itself.
    """
    is_directory = path.is_dir()
    if is_directory and IS_WINDOWS:
        return
    handle = os.open(path, os.O_RDWR if IS_WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory itself, where the system and its file system have such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def release_and_remove(lock: Any, path: Path) -> None:
    """Release a lock and remove its file: before others can take it, where an open file can be
    removed, else unless another has taken it.
    """
    if not IS_WINDOWS:
        path.unlink(missing_ok=True)
    lock.release()
    if IS_WINDOWS:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


# Processes --------------------------------------------------------------------------------------


def num_processors() -> int:
    """Return how many processors this process may use."""
    if (affinity := getattr(os, "sched_getaffinity", None)) is not None:
        return max(1, len(affinity(0)))
    return os.cpu_count() or 1


def max_open_files() -> int | None:
    """Return how many files the process may open; None where there is no such bound."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    number, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if number < 0 or number == resource.RLIM_INFINITY else int(number)


def become(arguments: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    """Replace this process by another program."""
    os.execvpe(arguments[0], list(arguments), dict(environment))


def at_hangup(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Call at each SIGHUP, where the system has that signal."""
    if (hangup := getattr(signal, "SIGHUP", None)) is not None:
        loop.add_signal_handler(hangup, call)


def held_hangups() -> Callable[[], bool]:
    """Let no SIGHUP end this process from now on, where the system has that signal and the call is
    in the main thread; return what says whether one has come.
    """
    found: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and (hangup := getattr(signal, "SIGHUP", None)) is not None:
        signal.signal(hangup, lambda number, _: found.append(number))
    return lambda: bool(found)


def take_port_again(one: socket.socket) -> None:
    """Let a port that a server has just left be taken again, and none that is in use."""
    # On Windows SO_REUSEADDR would take a port away from whoever listens there.
    option = getattr(socket, "SO_EXCLUSIVEADDRUSE", None) or socket.SO_REUSEADDR
    one.setsockopt(socket.SOL_SOCKET, option, 1)
