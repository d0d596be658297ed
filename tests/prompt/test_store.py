"""The store: immutable versions, whole or absent, for two writers and a crash in between."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from typer.testing import CliRunner

from foreword import SoftPrompt
from foreword.cli import app, prompts
from foreword.errors import ArtifactError, ForewordError, InputError, NotFoundError, StorageError
from foreword.prompt.peft_format import FILES
from foreword.prompt.store import RECORD, Entry, Store
from foreword.prompt.store_directory import store_directory
from foreword.vllm_plugin import settings


def saved(path: Path, seed: int = 0, num_virtual: int = 3) -> Path:
    torch.manual_seed(seed)
    SoftPrompt.from_embeddings(torch.randn(num_virtual, 8)).save(path)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_the_same_content_is_one_version_however_often_it_is_written(
    store: Store, tmp_path: Path
) -> None:
    facts = {"base": {"name": 'é\u2028\x7f\x1f"\\/', "revision": None}, "metrics": {"step": 3}}
    keys = [(torch.randn(2, 3, 4 + layer), torch.randn(2, 3, 4)) for layer in range(3)]
    for name, prompt in {
        "rows": SoftPrompt.from_embeddings(torch.randn(3, 8), facts=facts),
        "keys": SoftPrompt.from_key_values([one for one in keys], facts=facts),
    }.items():
        versions = set()
        for number in range(8):
            turned = SoftPrompt.load(tmp_path / name) if number else prompt
            turned.facts = dict(reversed(turned.facts.items()))
            turned.save(tmp_path / name)
            versions.add(store.add(name, tmp_path / name).version)
        assert len(versions) == 1
        read = SoftPrompt.load(store.verify(store.resolve(name)))
        assert read.content_hash == prompt.content_hash and read.facts["base"] == facts["base"]


def test_a_version_that_was_written_in_another_order_stays_readable(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr("foreword.prompt.artifact.sort_header", lambda _: None)
        entry = store.add("home", saved(tmp_path / "a"))
    assert SoftPrompt.load(store.verify(entry)).num_virtual_tokens == 3


def test_a_prompt_is_found_by_name_by_version_and_by_a_short_version(
    store: Store, tmp_path: Path
) -> None:
    entry = store.add("home", saved(tmp_path / "a"))
    assert store.names() == ["home"]
    assert store.resolve("home") == store.resolve(str(entry)) == entry
    assert store.resolve(f"home@{entry.version[:6]}") == entry
    loaded = SoftPrompt.load(store.verify(entry))
    assert loaded.content_hash == SoftPrompt.load(tmp_path / "a").content_hash


def test_adding_makes_current_and_keeps_the_old_version(store: Store, tmp_path: Path) -> None:
    old = store.add("home", saved(tmp_path / "a", 1))
    new = store.add("home", saved(tmp_path / "b", 2))
    assert store.resolve("home") == new and store.resolve(str(old)) == old
    assert store.versions("home") == [old, new]
    assert store.add("home", tmp_path / "a") == old == store.resolve("home")


def test_removing_the_current_version_falls_back_to_the_newest_left(
    store: Store, tmp_path: Path
) -> None:
    old = store.add("home", saved(tmp_path / "a", 1))
    new = store.add("home", saved(tmp_path / "b", 2))
    assert store.remove(str(new)) == [new]
    assert store.resolve("home") == old
    assert store.remove("home") == [old] and store.names() == []
    with pytest.raises(NotFoundError, match="it has none; add one: foreword prompts add NAME DIR"):
        store.remove("home")


def test_an_alias_follows_a_name_or_stays_at_a_version(store: Store, tmp_path: Path) -> None:
    old = store.add("home", saved(tmp_path / "a", 1))
    store.alias("follows", "home")
    store.alias("stays", str(old))
    new = store.add("home", saved(tmp_path / "b", 2))
    assert store.resolve("follows") == new and store.resolve("stays") == old
    with pytest.raises(InputError, match="alias 'stays' points to"):
        store.remove(str(old))
    with pytest.raises(InputError, match="alias 'follows' points to home"):
        store.remove("home")
    store.remove("follows")
    assert store.aliases() == {"stays": str(old)}
    with pytest.raises(InputError, match="an alias itself"):
        store.alias("other", "stays")
    with pytest.raises(InputError, match="is an alias"):
        store.add("stays", tmp_path / "a")
    with pytest.raises(InputError, match="own name"):
        store.alias("home", "home")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/etc", ".hidden", "a\0b", "a\n", "ä", "a" * 65, "a."]
)
def test_a_name_leads_nowhere_else(store: Store, tmp_path: Path, name: str) -> None:
    saved(tmp_path / "a")
    for call in (store.resolve, store.versions, store.remove, lambda n: store.alias(n, "x")):
        with pytest.raises(InputError, match="is not a name"):
            call(name)
    with pytest.raises(InputError, match="is not a name"):
        store.add(name, tmp_path / "a")


@pytest.mark.parametrize("version", ["zz", "../..", "abc", "*", "a" * 17])
def test_a_version_is_hexadecimal(store: Store, tmp_path: Path, version: str) -> None:
    store.add("home", saved(tmp_path / "a"))
    with pytest.raises(InputError, match="is not a version"):
        store.resolve(f"home@{version}")


def test_a_changed_file_is_told(store: Store, tmp_path: Path) -> None:
    entry = store.add("home", saved(tmp_path / "a"))
    tensors = entry.path / FILES[1]
    tensors.write_bytes(tensors.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(InputError, match="do not match their version"):
        store.verify(entry)


def test_links_are_never_followed(store: Store, tmp_path: Path) -> None:
    source = saved(tmp_path / "a")
    entry = store.add("home", source)
    (entry.path / FILES[0]).unlink()
    (entry.path / FILES[0]).symlink_to(source / FILES[0])
    with pytest.raises(InputError, match="is a symbolic link"):
        store.verify(entry)
    (store.directory / "linked").symlink_to(store.directory / "home")
    linked = store.directory / "linked" / "versions" / entry.version
    with pytest.raises(InputError, match="must lie in the store itself"):
        store.verify(type(entry)("linked", entry.version, linked))
    for file in FILES:
        (source / file).rename(tmp_path / file)
        (source / file).symlink_to(tmp_path / file)
    with pytest.raises(InputError, match="is a symbolic link"):
        store.add("other", source)
    assert store.names() == ["home", "linked"]


def test_a_device_or_a_directory_is_no_prompt_file(store: Store, tmp_path: Path) -> None:
    source = saved(tmp_path / "a")
    (source / FILES[1]).unlink()
    os.mkfifo(source / FILES[1])
    with pytest.raises(InputError, match="not a regular file"):
        store.add("home", source)
    assert not list(store.directory.glob(".scratch-*"))


def hostile(kind: str, path: Path) -> None:
    """Spoil a good prompt."""
    tensors = path / FILES[1]
    if kind == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-8])
    elif kind == "pickle in disguise":
        tensors.write_bytes(pickle.dumps({"prompt_embeddings": [1.0]}))
    elif kind == "huge shape":
        header = json.dumps(
            {"prompt_embeddings": {"dtype": "F32", "shape": [1 << 40, 8], "data_offsets": [0, 96]}}
        ).encode()
        tensors.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 96)
    elif kind == "huge header":
        tensors.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    elif kind == "NaN":
        save_file({"prompt_embeddings": np.full((3, 8), np.nan, np.float32)}, tensors)
    elif kind == "deep configuration":
        (path / FILES[0]).write_text("[" * 100_000)


@pytest.mark.parametrize(
    "kind",
    ["truncated", "pickle in disguise", "huge shape", "huge header", "NaN", "deep configuration"],
)
def test_a_hostile_file_is_refused_by_the_command_with_a_reason(
    kind: str, tmp_path: Path, store: Store
) -> None:
    hostile(kind, saved(tmp_path / "a"))
    arguments = ["prompts", "add", "x", str(tmp_path / "a"), "--prompts", str(store.directory)]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, ArtifactError)
    assert str(tmp_path / "a") in str(result.exception)
    assert store.names() == []


KILLED = """
import os, signal, sys
from foreword.prompt import store
point = sys.argv[1]
real = getattr(os, point)
def kill(*arguments, **options):
    if int(sys.argv[4]) == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    sys.argv[4] = str(int(sys.argv[4]) - 1)
    return real(*arguments, **options)
setattr(os, point, kill)
store.Store(sys.argv[2]).add("home", sys.argv[3])
"""


@pytest.mark.parametrize(
    ("point", "after"), [("fsync", 0), ("fsync", 1), ("rename", 0), ("fsync", 3), ("replace", 0)]
)
def test_a_writer_killed_in_the_middle_loses_nothing(
    store: Store, tmp_path: Path, point: str, after: int
) -> None:
    old = store.add("home", saved(tmp_path / "a", 1))
    saved(tmp_path / "b", 2)
    arguments = [point, str(store.directory), str(tmp_path / "b"), str(after)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments])
    assert done.returncode == -signal.SIGKILL
    assert store.resolve("home") == old
    for entry in store.versions("home"):
        store.verify(entry)
    new = store.add("home", tmp_path / "b")
    assert store.resolve("home") == new and store.versions("home") == [old, new]
    assert not [path for path in store.directory.rglob(".scratch-*")]


def test_writers_take_turns(store: Store, tmp_path: Path) -> None:
    sources = [saved(tmp_path / str(seed), seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        entries = list(pool.map(lambda source: store.add("home", source), sources))
    assert sorted(map(str, store.versions("home"))) == sorted(map(str, entries))
    assert store.resolve("home") in entries


def test_a_lock_that_is_not_released_is_told(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foreword.prompt.store.LOCK_SECONDS", 0.0)
    source = saved(tmp_path / "a")
    with store._writing(), pytest.raises(StorageError, match="holds? the lock|held the lock"):
        store.add("home", source)


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="what was there before is kept"):
        Store(tmp_path / "file").add("home", saved(tmp_path / "a"))


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["prompts", *arguments])
    if isinstance(result.exception, ForewordError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_command_adds_lists_aliases_shows_and_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREWORD_PROMPTS", str(tmp_path / "store"))
    assert "no prompts" in invoke("list")
    added = invoke("add", "home", str(saved(tmp_path / "a"))).split()[1]
    invoke("alias", "assistant", "home")
    assert f"{added}  P=3  base not recorded" in invoke("list")
    assert "assistant -> home" in invoke("list")
    shown = json.loads(invoke("show", "assistant", "--json"))
    assert shown["virtual_tokens"] == 3 and shown["form"] == "embeddings"
    assert f"{shown['name']}@{shown['version']}" == added
    assert "removed alias assistant" in invoke("remove", "assistant")
    assert f"removed {added}" in invoke("remove", "home")
    with pytest.raises(NotFoundError, match="no prompt 'home'"):
        invoke("show", "home")


@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_every_command_finds_one_store_by_the_variable(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path / "store")
    monkeypatch.setenv("FOREWORD_PROMPTS", place + ending)
    invoke("add", "home", str(saved(tmp_path / "a")))
    assert Store(place).names() == ["home"] and "home@" in invoke("list")
    assert store_directory(None) == store_directory(place + ending) == place
    assert settings.store_of(SimpleNamespace(kv_transfer_config=None)).directory == Path(place)


@pytest.mark.parametrize("value", ["", " ", "\n", " \r\n"])
def test_an_empty_variable_names_no_store_for_any_command(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREWORD_PROMPTS", value)
    for ask in (
        lambda: invoke("list"),
        lambda: invoke("remove", "a"),
        lambda: store_directory(None),
        lambda: settings.store_of(SimpleNamespace(kv_transfer_config=None)),
    ):
        with pytest.raises(InputError, match="FOREWORD_PROMPTS is empty: name the store"):
            ask()
    monkeypatch.delenv("FOREWORD_PROMPTS")
    with pytest.raises(InputError, match="--prompts is empty"):
        invoke("list", "--prompts", value or " ")
    assert store_directory(None) is None


def test_the_command_shows_how_a_prompt_was_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREWORD_PROMPTS", str(tmp_path / "store"))
    curve = {"step": [1, 2], "loss": [3.0, 1.0], "learning_rate": [0.1, 0.1]}
    values = torch.ones(3, 4)
    SoftPrompt.from_embeddings(values, facts={"history": curve}).save(tmp_path / "a")
    invoke("add", "home", str(tmp_path / "a"))
    assert "█▁  loss 3 to 1 in 2 steps" in invoke("show", "home")
    assert json.loads(invoke("show", "home", "--json"))["history"] == curve
    invoke("add", "home", str(saved(tmp_path / "b")))
    assert re.search("history +not recorded", invoke("show", "home"))


def test_the_store_imports_no_torch() -> None:
    code = "import sys, foreword.prompt.store; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# What is not the store's own ---------------------------------------------------------------------


def foreign(folder: Path) -> list[Path]:
    """Put a directory, a file and a link by a scratch directory's name into a folder."""
    number = "0123456789abcdef" * 2
    (folder / f".scratch-{number}").mkdir(parents=True)
    (folder / ".scratch-x" / "deeper").mkdir(parents=True)
    (folder / ".scratch-x" / "deeper" / "notes").write_text("mine")
    (folder / ".scratch-file").write_text("mine")
    (folder / ".scratch-link").symlink_to(folder / ".scratch-x")
    return sorted(folder.rglob("*"))


def test_writers_delete_nothing_that_only_looks_like_a_scratch_directory(
    store: Store, tmp_path: Path
) -> None:
    before = [*foreign(store.directory), *foreign(store.directory / "deeper" / "still")]
    old = store.add("home", saved(tmp_path / "a", 1))
    store.add("home", saved(tmp_path / "b", 2))
    store.alias("follows", "home")
    store.remove("follows")
    store.remove(str(old))
    store.remove("home")
    assert all(os.path.lexists(path) for path in before)
    assert (store.directory / ".scratch-x" / "deeper" / "notes").read_text() == "mine"


def test_only_the_scratch_directory_of_a_killed_writer_is_cleared(
    store: Store, tmp_path: Path
) -> None:
    saved(tmp_path / "a")
    arguments = ["rename", str(store.directory), str(tmp_path / "a"), "0"]
    assert subprocess.run([sys.executable, "-c", KILLED, *arguments]).returncode < 0
    (left,) = store.directory.glob(".scratch-*")
    copy = store.directory / ".scratch-copy"
    left.rename(copy)
    left.symlink_to(copy)
    store.add("home", tmp_path / "a")
    assert copy.is_dir() and left.is_symlink()


def test_a_foreign_file_in_the_place_of_the_record_is_kept(store: Store, tmp_path: Path) -> None:
    for word in ("mine", ".scratch-x", ".scratch-" + "g" * 32, "../" + "a" * 40):
        store.directory.mkdir(exist_ok=True)
        (store.directory / RECORD).write_text(word)
        with pytest.raises(StorageError, match="is not foreword's own file"):
            store.add("home", saved(tmp_path / "a"))
        assert (store.directory / RECORD).read_text() == word
    (store.directory / RECORD).unlink()
    (store.directory / RECORD).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="is not foreword's own file"):
        store.add("home", tmp_path / "a")
    assert not (tmp_path / "elsewhere").exists()


def test_a_record_that_was_cut_short_is_no_hindrance(store: Store, tmp_path: Path) -> None:
    store.directory.mkdir()
    (store.directory / RECORD).write_text("")
    assert store.add("home", saved(tmp_path / "a")) == store.resolve("home")


@pytest.mark.parametrize("place", ["", "versions", "versions/{version}"])
def test_a_name_with_other_files_in_it_is_not_removed(
    store: Store, tmp_path: Path, place: str
) -> None:
    entry = store.add("home", saved(tmp_path / "a"))
    notes = store.directory / "home" / place.format(version=entry.version) / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(InputError, match="'notes.txt', which is not the store's own"):
        store.remove("home")
    assert notes.read_text() == "mine" and store.resolve("home") == entry
    notes.unlink()
    assert store.remove("home") == [entry] and store.names() == []


def test_a_directory_that_is_no_prompt_is_not_removed(store: Store) -> None:
    release = store.directory / "docs" / "versions" / "2024"
    release.mkdir(parents=True)
    for reference in ("docs", "docs@2024"):
        with pytest.raises(NotFoundError):
            store.remove(reference)
    assert release.is_dir() and store.names() == []


def test_adding_a_damaged_version_again_makes_it_whole(store: Store, tmp_path: Path) -> None:
    entry = store.add("home", saved(tmp_path / "a"))
    (entry.path / FILES[1]).write_bytes(b"")
    assert store.add("home", tmp_path / "a") == entry
    assert store.verify(entry) == entry.path


def test_an_add_looks_at_no_other_prompt(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads(name: str) -> int:
        opened: list[Path] = []
        real = os.open
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", lambda p, *a, **k: opened.append(p) or real(p, *a, **k))
            store.add(name, tmp_path / "a")
        return len(opened)

    saved(tmp_path / "a")
    store.add("zero", tmp_path / "a")
    first = reads("first")
    for index in range(30):
        store.add(f"p{index}", tmp_path / "a")
        store.alias(f"a{index}", f"p{index}")
    assert reads("last") == first


# Names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["con", "Nul", "aux.v1", "COM1", "lpt9.x"])
def test_a_name_of_a_device_on_windows_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    store.add("home", saved(tmp_path / "a"))
    for add in (lambda: store.add(name, tmp_path / "a"), lambda: store.alias(name, "home")):
        with pytest.raises(InputError, match="choose another name"):
            add()
    assert store.names() == ["home"] and store.aliases() == {}


@pytest.mark.parametrize("name", ["base", "Base"])
def test_the_command_gives_no_prompt_the_name_of_the_bare_model(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("FOREWORD_PROMPTS", str(store.directory))
    store.add("home", saved(tmp_path / "a"))
    for arguments in (("add", name, str(tmp_path / "a")), ("alias", name, "home")):
        with pytest.raises(InputError, match="stands for the bare model"):
            invoke(*arguments)
    assert store.names() == ["home"] and store.aliases() == {}


def test_a_name_that_differs_in_case_alone_is_refused(store: Store, tmp_path: Path) -> None:
    store.add("home", saved(tmp_path / "a", 1))
    store.alias("Other", "home")
    for name in ("Home", "HOME", "other"):
        for add in (lambda n: store.add(n, tmp_path / "a"), lambda n: store.alias(n, "home")):
            with pytest.raises(InputError, match="in case alone"):
                add(name)
    store.add("home", saved(tmp_path / "b", 2))
    assert store.names() == ["home"]


def test_a_name_is_added_without_a_list_of_all(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path / "a")
    store.add("home", source)
    listed: list[str] = []
    real = os.listdir, os.scandir
    monkeypatch.setattr(os, "listdir", lambda path: listed.append(str(path)) or real[0](path))
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(str(path)) or real[1](path))
    for name in ("other", "home"):
        store.add(name, source)
    store.alias("third", "home")
    assert not {*listed} & {str(store.directory), str(store.directory / ".aliases")}
    with pytest.raises(InputError, match="in case alone"):
        store.add("THIRD", source)


def test_a_name_is_removed_without_reading_the_aliases_of_others(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tmp_path / "a")
    for name in ("home", "other"):
        store.add(name, source)
    for alias in ("first", "second"):
        store.alias(alias, "other")
    store.alias("mine", "home")
    store.alias("mine", "other")  # from now on
    looked: list[str] = []
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *a, **k: looked.append(str(path)) or real(path, *a, **k)
    )
    listed = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: looked.append(str(path)) or listed(path))
    store.remove("home")
    aliases = store.directory / ".aliases"
    assert not {*looked} & {str(aliases), str(aliases / "first"), str(aliases / "second")}
    with pytest.raises(InputError, match="alias 'first' points to other"):
        store.remove("other")
    for alias in ("first", "second", "mine"):
        store.remove(alias)
    store.remove("other")


def test_a_store_from_before_the_index_of_aliases_gets_one(store: Store, tmp_path: Path) -> None:
    entry = store.add("home", saved(tmp_path / "a"))
    store.add("other", tmp_path / "a")
    store.alias("follows", "home")
    store.alias("stays", str(entry))
    shutil.rmtree(store.directory / ".targets")
    with pytest.raises(InputError, match="points to home"):
        store.remove("home")
    store.remove("follows")
    with pytest.raises(InputError, match="'stays' points to"):
        store.remove(str(entry))
    store.remove("other")


def test_a_store_from_before_the_index_of_names_gets_one(store: Store, tmp_path: Path) -> None:
    source = saved(tmp_path / "a")
    store.add("home", source)
    store.alias("Other", "home")
    shutil.rmtree(store.directory / ".names")
    for name in ("HOME", "other"):
        with pytest.raises(InputError, match="in case alone"):
            store.add(name, source)
    assert store.add("home", source) == store.resolve("home")


def test_a_name_is_free_again_once_it_is_removed_whatever_its_case(
    store: Store, tmp_path: Path
) -> None:
    source = saved(tmp_path / "a")
    store.add("home", source)
    store.remove("home")
    store.add("Home", source)
    shutil.rmtree(store.directory / "Home")  # not by the store: what was noted is not believed
    store.add("HOME", source)
    assert store.names() == ["HOME"]


def test_an_error_names_a_few_of_many_prompts(store: Store, tmp_path: Path) -> None:
    for number in range(30):
        (store.directory / f"p{number}" / "versions").mkdir(parents=True)
        (store.directory / f"p{number}" / "current").write_text("0" * 16)
    with pytest.raises(NotFoundError, match="others, ") as found:
        store.resolve("missing")
    assert str(found.value).count(", p") < 30


LOOKALIKES = ["h\u043eme", "home\u200b", "\u212aey", "home@x", "home ", "ho\tme"]


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_name_that_looks_like_another_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="is not a name"):
        store.add(name, saved(tmp_path / "a"))


def test_a_store_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="a file; expected the directory of a store"):
        Store(tmp_path / "file").names()
    assert Store(tmp_path / "none").names() == []


@pytest.mark.parametrize("place", ["home", "home/versions", ".aliases"])
def test_nothing_is_written_or_removed_through_a_link(
    store: Store, tmp_path: Path, place: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    path = store.directory / place
    if place == ".aliases":
        store.add("home", saved(tmp_path / "first"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside)
    with pytest.raises(InputError, match="is a symbolic link"):
        if place == ".aliases":
            store.alias("assistant", "home")
        else:
            store.add("home", saved(tmp_path / "first"))
    assert list(outside.iterdir()) == []


def test_a_version_is_not_removed_through_a_link(store: Store, tmp_path: Path) -> None:
    entry = store.add("home", saved(tmp_path / "first"))
    store.add("home", saved(tmp_path / "second", seed=1))
    (store.directory / "home").rename(tmp_path / "elsewhere")
    (store.directory / "home").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a symbolic link"):
        store.remove(f"home@{entry.version}")
    assert (tmp_path / "elsewhere" / "versions" / entry.version).is_dir()


def test_a_directory_in_the_place_of_a_file_is_named(store: Store, tmp_path: Path) -> None:
    (store.directory / "home" / "current").mkdir(parents=True)
    with pytest.raises(StorageError, match="home/current is a directory where a file is needed"):
        store.add("home", saved(tmp_path / "first"))


@pytest.mark.parametrize("as_json", [True, False])
def test_a_list_goes_on_where_a_prompt_is_removed_meanwhile(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    """Of three prompts one goes before it is looked at, one after, and one gets a new version."""
    for name in ("gone", "going", "renewed"):
        first = store.add(name, saved(tmp_path / "first"))
    second, describe = saved(tmp_path / "second", seed=1), prompts.describe

    def later(found: Store, entry: Entry) -> dict[str, Any]:
        if entry.name == "gone":
            found.remove("gone")
        if entry == first:
            found.add("renewed", second)
            found.remove(str(entry))
        known = describe(found, entry)
        if entry.name == "going":
            found.remove("going")
        return known

    monkeypatch.setattr(prompts, "describe", later)
    arguments = ["prompts", "list", "--prompts", str(store.directory)]
    ended = CliRunner().invoke(app, [*arguments, "--json"] if as_json else arguments)
    assert ended.exit_code == 0 and "damaged" not in ended.output
    assert "going" in ended.output and "gone" not in ended.output
    assert store.resolve("renewed").version in ended.output


def test_an_at_sign_with_nothing_behind_it_names_no_version(store: Store, tmp_path: Path) -> None:
    store.add("a", saved(tmp_path / "a"))
    for call in (store.resolve, store.remove, lambda name: store.alias("b", name)):
        with pytest.raises(InputError, match="'a@' names no version: expected NAME or NAME@VER"):
            call("a@")
    assert store.names() == ["a"]


# Rolling back -----------------------------------------------------------------------------------


def test_an_older_version_is_made_current_again(store: Store, tmp_path: Path) -> None:
    old = store.add("a", saved(tmp_path / "1", 1))
    new = store.add("a", saved(tmp_path / "2", 2))
    store.alias("follows", "a")
    store.alias("stays", str(new))
    assert (
        store.use(f"a@{old.version[:6]}") == old == store.resolve("a") == store.resolve("follows")
    )
    assert store.resolve("stays") == new
    assert store.use(str(new)) == new == store.resolve("a")


def test_only_a_whole_version_that_is_named_is_made_current(store: Store, tmp_path: Path) -> None:
    old = store.add("a", saved(tmp_path / "1", 1))
    new = store.add("a", saved(tmp_path / "2", 2))
    store.alias("other", "a")
    (old.path / "adapter_model.safetensors").write_bytes(b"cut")
    for reference, said in (
        ("a", "names no version"),
        (f"other@{old.version}", "is an alias"),
        ("a@0000", "has no version"),
        (str(old), "were changed"),
        ("../a@0000", "is not a name"),
    ):
        with pytest.raises(InputError, match=said):
            store.use(reference)
    assert store.resolve("a") == new


def test_the_commands_roll_back_and_add_many_at_once(tmp_path: Path) -> None:
    directory = str(tmp_path / "store")

    def invoke(*arguments: str, fails: bool = False) -> str:
        result = CliRunner().invoke(app, ["prompts", *arguments, "--prompts", directory])
        assert bool(result.exit_code) == fails, result.output
        return str(result.exception) if fails else result.output

    for number, name in enumerate(("home", "garden"), 1):
        saved(tmp_path / "runs" / name, number)
    said = invoke("add-all", str(tmp_path / "runs" / "home"), f"{tmp_path}/runs/garden/")
    assert said.count("added") == 2 and "garden@" in said
    old = Store(directory).resolve("home")
    new = Store(directory).add("home", saved(tmp_path / "3", 3))
    assert f"current: {old}, instead of {new.version}" in invoke("use", str(old))
    assert "it was already" in invoke("use", str(old))
    assert f"whichever version is current: now {old.version}" in invoke("alias", "a", "home")
    assert "stays at this version" in invoke("alias", "b", str(new))
    assert "stays at this version" in invoke("list")
    # All are checked before the first is added.
    (tmp_path / "no prompt").mkdir()
    saved(tmp_path / "runs" / "third", 4)
    invoke("add-all", str(tmp_path / "runs" / "third"), str(tmp_path / "no prompt"), fails=True)
    saved(tmp_path / "more" / "home", 5)
    both = (str(tmp_path / "runs" / "home"), str(tmp_path / "more" / "home"))
    assert "both called home" in invoke("add-all", *both, fails=True)
    for name, said in (("HOME", "in case alone"), ("a", "'a' is an alias"), ("T", "in case alone")):
        saved(tmp_path / "wrong" / name, 6)
        both = (str(tmp_path / "new" / "t"), str(tmp_path / "wrong" / name))
        saved(tmp_path / "new" / "t", 7)
        assert said in invoke("add-all", *both, fails=True)
    assert Store(directory).names() == ["garden", "home"]
    # A prompt that lies one level down is added as `add` adds it.
    saved(tmp_path / "nest" / "inner", 8)
    assert "added nest@" in invoke("add-all", str(tmp_path / "nest"))


def test_a_damaged_current_version_is_told_and_mended_by_another(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = store.add("t", saved(tmp_path / "1", 1))
    store.alias("z", "t")
    (tmp_path / "store" / "t" / "current").write_text("none\n")
    place = ("--prompts", str(tmp_path / "store"))
    for reference, said in (("t", "names no version"), ("t@zzzz", "is not a version")):
        with pytest.raises(InputError, match=said):
            invoke("compose", "both", reference, reference, "--model", "m", *place)
    assert "instead of none" in invoke("use", str(first), *place)
    assert store.resolve("t") == first
    with pytest.raises(InputError, match="'z' is an alias of t: name a version of the prompt"):
        invoke("show", f"z@{first.version}", *place)
