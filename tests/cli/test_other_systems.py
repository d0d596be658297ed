"""Other systems: the same files and commands where the calls of POSIX are missing.

Windows is faked: its missing calls are taken away, directories cannot be opened, a handle for
reading cannot be synced, and what is open can be neither removed nor moved.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import FAST
from typer.testing import CliRunner

from foreword import SoftPrompt, os_calls
from foreword.cli import app
from foreword.cli.progress import folder_name
from foreword.cli.run_output import claimed
from foreword.errors import InputError, StorageError
from foreword.loading import hub
from foreword.prompt.store import Store
from foreword.storage import locked, write_file

MISSING = ("O_NOFOLLOW", "O_NONBLOCK", "sched_getaffinity", "fork", "uname", "killpg")
MODULES = ("fcntl", "resource")
FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]|[ .]$')


def is_open(path: Any) -> bool:
    """Whether this process has a file open, or one below a directory."""
    place = os.path.realpath(path)
    held = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            held.append(os.readlink(f"/proc/self/fd/{number}"))
    return any(one == place or one.startswith(place + os.sep) for one in held)


class Without:
    """A module without some of its names."""

    def __init__(self, module: Any, *missing: str) -> None:
        self.module, self.missing = module, missing

    def __getattr__(self, name: str) -> Any:
        if name in self.missing:
            raise AttributeError(name)
        return getattr(self.module, name)


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls of POSIX are gone, and files behave as there.

    Calls are gone for foreword's own module of them alone, as other packages have their own for
    each system; no other module of foreword has any (tests/test_structure.py).
    """
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(os_calls, "os", Without(os, *MISSING))
    monkeypatch.setattr(os_calls, "signal", Without(signal, "SIGHUP"))
    monkeypatch.setattr(os_calls, "IS_WINDOWS", True)
    monkeypatch.setattr(shutil, "_use_fd_functions", False)
    opened, synced = os.open, os.fsync

    def open_file(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if os.path.isdir(path) and not flags & getattr(os, "O_TMPFILE", 0):
            raise PermissionError(errno.EACCES, "a directory", str(path))
        return opened(path, flags, *rest, **more)

    def sync(handle: int) -> None:
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "opened for reading")
        synced(handle)

    def guarded(call: Any) -> Any:
        def moved(path: Any, *rest: Any, **more: Any) -> Any:
            if is_open(path) or (rest and is_open(rest[0])):
                raise PermissionError(errno.EACCES, "in use", str(path))
            return call(path, *rest, **more)

        return moved

    monkeypatch.setattr(os, "open", open_file)
    monkeypatch.setattr(os, "fsync", sync)
    for name in ("replace", "rename", "unlink"):
        monkeypatch.setattr(os, name, guarded(getattr(os, name)))
    monkeypatch.setattr(Path, "unlink", guarded(Path.unlink))


def a_prompt(value: float) -> SoftPrompt:
    return SoftPrompt.from_embeddings(torch.full((3, 8), value))


def check_names(folder: Path) -> None:
    """Every name that was made is one on Windows, and no two differ in case alone."""
    for path in folder.rglob("*"):
        assert not FORBIDDEN.search(path.name) and not os_calls.is_device(path.name), path
        same = [one.name for one in path.parent.iterdir() if one.name.lower() == path.name.lower()]
        assert same == [path.name]


def test_the_fake_refuses_what_windows_refuses(windows: None, tmp_path: Path) -> None:
    with pytest.raises(PermissionError):
        os.open(tmp_path, os.O_RDONLY)
    file = tmp_path / "file"
    file.write_text("a", encoding="utf-8")
    with file.open(encoding="utf-8") as held:
        for refused in (file.unlink, lambda: os.replace(file, tmp_path / "other")):
            with pytest.raises(PermissionError):
                refused()
        with pytest.raises(OSError, match="opened for reading"):
            os.fsync(held.fileno())
    with pytest.raises(ImportError):
        import resource  # noqa: F401


def test_a_store_does_all_that_it_does(windows: None, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for value in (1.0, 2.0):
        a_prompt(value).save(tmp_path / "prompt")
        latest = store.add("home", tmp_path / "prompt")
    first, second = sorted(store.versions("home"), key=lambda one: one == latest)
    store.alias("assistant", str(first))
    assert store.use(str(first)) == first == store.resolve("home")
    assert SoftPrompt.load(store.verify(second)).tensors[0][0, 0] == 2
    (second.path / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert store.add("home", tmp_path / "prompt") == latest and store.verify(latest)
    with pytest.raises(InputError, match="in case alone"):
        store.add("Home", tmp_path / "prompt")
    with pytest.raises(InputError, match="device on Windows"):
        store.add("con", tmp_path / "prompt")
    check_names(tmp_path)
    store.remove("assistant")
    assert store.remove(str(first)) == [first] and store.remove("home") == [latest]
    assert not store.names()


def test_a_link_in_the_place_of_a_file_is_refused(windows: None, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    a_prompt(1.0).save(tmp_path / "prompt")
    (tmp_path / "config").write_bytes((tmp_path / "prompt" / "adapter_config.json").read_bytes())
    (tmp_path / "prompt" / "adapter_config.json").unlink()
    (tmp_path / "prompt" / "adapter_config.json").symlink_to(tmp_path / "config")
    with pytest.raises(InputError, match="symbolic link"):
        store.add("home", tmp_path / "prompt")


def test_a_file_that_is_replaced_while_it_is_opened_is_refused(
    windows: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("asked", "other"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    opened = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: opened(tmp_path / "other", *rest))
    with pytest.raises(OSError, match="was replaced"):
        os_calls.open_itself(tmp_path / "asked")


def test_a_lock_is_held_by_one_and_leaves_nothing(windows: None, tmp_path: Path) -> None:
    place = tmp_path / "lock"
    with locked(place, "taken"), pytest.raises(StorageError, match="taken"), locked(place, "taken"):
        pass
    assert not place.exists()
    with locked(place, "taken"):
        pass
    write_file(tmp_path / "file", lambda path: path.write_text("whole", encoding="utf-8"))
    with claimed(
        str(tmp_path / "run"), [tmp_path / "run"], resume=False, overwrite=False, is_main=True
    ):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "run"]


def test_a_prompt_is_trained_stored_and_asked(
    windows: None, model: str, data: str, tmp_path: Path
) -> None:
    output, store = str(tmp_path / "out"), str(tmp_path / "store")
    for call in (
        ["train", "--model", model, "--data", data, "--output", output, *FAST],
        ["train", "--model", model, "--data", data, "--output", output, *FAST, "--resume"],
        ["prompts", "add", "home", output, "--prompts", store],
        ["generate", "--prompt", output, "--model", model, "say a", "--max-new-tokens", "2"],
    ):
        CliRunner().invoke(app, call, catch_exceptions=False)
    assert Store(store).names() == ["home"]
    check_names(tmp_path / "out")


@pytest.mark.parametrize("task", ["con", "AUX", "nul.txt", "lpt1", "a:b", "a/b", "ends.", "é "])
def test_a_tasks_name_makes_a_folders_name(task: str) -> None:
    name = folder_name(task)
    assert not FORBIDDEN.search(name) and not os_calls.is_device(name)


PATHS = {
    r"C:\models\tiny": True,
    r"d:tiny": True,
    r".\tiny": True,
    r"..\tiny": True,
    r"\\server\share\tiny": True,
    "/models/tiny": True,
    "~/tiny": True,
    "owner/name": False,
    "smollm2-135m": False,
    "hub:owner/name": False,
}


@pytest.mark.parametrize("name", PATHS)
def test_a_path_of_any_system_is_no_hub_id(name: str) -> None:
    assert os_calls.is_path_here(name) == PATHS[name]
    refuses = pytest.raises(InputError, match="does not exist")
    with refuses if PATHS[name] else contextlib.nullcontext():
        hub.check_name(name)


def test_counts_are_there_without_the_calls(windows: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert os_calls.num_processors() == os.cpu_count()
    assert os_calls.max_open_files() is None
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert os_calls.num_processors() == 1


def test_a_port_in_use_is_never_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """There SO_REUSEADDR would take it away from whoever listens."""
    asked: list[tuple[int, ...]] = []

    class Recorded:
        def setsockopt(self, *option: int) -> None:
            asked.append(option)

    monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", -5, raising=False)
    os_calls.take_port_again(Recorded())  # type: ignore[arg-type]
    assert asked == [(socket.SOL_SOCKET, -5, 1)]
