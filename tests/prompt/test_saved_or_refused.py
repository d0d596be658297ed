"""What is saved can be loaded again, or is refused in one line and nothing is written: values and
facts that were changed since, paths that are none, places of other adapters; and a reader beside a
writer reads one of its prompts.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from foreword import SoftPrompt
from foreword.errors import ArtifactError, InputError
from foreword.prompt import artifact, directories, steady_files, stored_prompt
from foreword.prompt import store as store_module
from foreword.prompt.artifact import Artifact
from foreword.prompt.facts import summary
from foreword.prompt.peft_format import CONFIG_FILE, FILES, TENSOR_FILE, TENSOR_NAME
from foreword.prompt.prefix import Prefix
from foreword.prompt.states import DeferredPrompt
from foreword.prompt.store import Store
from foreword.storage import check_writable, write_file

VALUES = torch.arange(24.0).view(3, 8)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def a_prompt(num_virtual: int = 3, seed: int = 0, name: str = "some/base") -> SoftPrompt:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(num_virtual, 8, generator=generator)
    return SoftPrompt.from_embeddings(values, facts={"base": {"name": name, "revision": "v1"}})


def keys(num_virtual: int = 3) -> SoftPrompt:
    return SoftPrompt.from_key_values([(torch.ones(2, num_virtual, 4),) * 2] * 2)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def line_of(call: Callable[[], Any]) -> str:
    """Return the one line with which a call is refused."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable() and len(message) < 500
    return message


# Saving -----------------------------------------------------------------------------------------


def holding(value: float) -> Tensor:
    return VALUES.where(VALUES != 5, value)


CHANGED: dict[str, tuple[list[Any], str]] = {
    "NaN": ([holding(torch.nan)], "NaN or infinite"),
    "infinity": ([holding(torch.inf)], "NaN or infinite"),
    "integers": ([VALUES.int()], "got torch.int32"),
    "complex numbers": ([VALUES.to(torch.complex64)], "got torch.complex64"),
    "8 bits": ([VALUES.to(torch.float8_e4m3fn)], "got torch.float8_e4m3fn"),
    "another P": ([torch.ones(5, 8)], "expected embeddings of 3 virtual tokens, got shape [5, 8]"),
    "three dimensions": ([VALUES[None]], "expected embeddings of shape [P, H], got [1, 3, 8]"),
    "two tensors": ([VALUES, VALUES], "expected embeddings of shape [P, H]"),
    "none": ([], "expected tensors, got []"),
    "lists": ([[1.0]], "expected tensors"),
    "no values": ([VALUES.to("meta")], "on the device meta"),
    "sparse": ([VALUES.to_sparse()], "torch.sparse_coo"),
}


@pytest.mark.parametrize(("tensors", "part"), CHANGED.values(), ids=CHANGED)
def test_tensors_that_could_not_be_loaded_are_not_saved(
    tmp_path: Path, tensors: list[Any], part: str
) -> None:
    prompt = a_prompt()
    prompt.save(tmp_path)
    before = contents(tmp_path)
    prompt.tensors = tensors
    said = line_of(lambda: prompt.save(tmp_path))
    assert f"{tmp_path}: not saved; " in said and part in said
    assert contents(tmp_path) == before
    line_of(lambda: prompt.save(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_layers_that_could_not_be_loaded_are_not_saved(tmp_path: Path) -> None:
    prompt = keys()
    for tensors in ([torch.ones(2, 4, 4)] * 4, prompt.tensors[:2], [torch.ones(3)] * 4):
        prompt.tensors = tensors
        assert "not saved" in line_of(lambda: prompt.save(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_layers_of_two_windows_are_no_keys_and_values(tmp_path: Path) -> None:
    prompt = SoftPrompt("key_values", [torch.ones(4, 3)] * 4, counts=(2, 2), num_virtual_tokens=5)
    prompt.save(tmp_path)
    loaded = SoftPrompt.load(tmp_path)
    assert (loaded.content_hash, loaded.num_virtual_tokens) == (prompt.content_hash, 5)


FACTS: dict[str, tuple[Any, str]] = {
    "nothing": (None, "facts are NoneType, expected dict"),
    "a list": ([1], "facts are list, expected dict"),
    "a base by its name": ({"base": "name"}, "base is str, expected dict"),
    "a fingerprint of text": ({"base": {"fingerprint": "x"}}, "base.fingerprint is str"),
    "NaN": ({"free": float("nan")}, "not plain data"),
    "a tensor": ({"free": VALUES}, "not plain data"),
}


@pytest.mark.parametrize(("facts", "part"), FACTS.values(), ids=FACTS)
def test_facts_that_could_not_be_loaded_are_not_saved(
    tmp_path: Path, facts: Any, part: str
) -> None:
    prompt = a_prompt()
    prompt.save(tmp_path)
    before = contents(tmp_path)
    prompt.facts = facts
    assert part in line_of(lambda: prompt.save(tmp_path))
    assert contents(tmp_path) == before


def test_a_prefix_that_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    for facts in ({"base": "name"}, {"base": {"fingerprint": "x"}}, [1]):
        for states in (keys().states, DeferredPrompt(VALUES)):
            prefix = Prefix(states, "0" * 64, facts)  # type: ignore[arg-type]
            line_of(lambda one=prefix: one.save(tmp_path / "new"))  # type: ignore[misc]
    broken = keys().states.map(lambda tensor: tensor / 0)
    assert "NaN or infinite" in line_of(lambda: Prefix(broken, "0" * 64).save(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_the_writer_asks_the_reader(tmp_path: Path) -> None:
    """Whatever is given to be written, by any route."""
    good = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}
    known = {"format_version": 1, "content_hash": artifact.content_hash([VALUES])}
    cases: dict[str, tuple[Any, Any, Any]] = {
        "peft_type is 'LORA'": ([VALUES], good | {"peft_type": "LORA"}, known),
        "num_virtual_tokens = 4": ([VALUES], good | {"num_virtual_tokens": 4}, known),
        "recorded hash": ([VALUES], good, known | {"content_hash": "0" * 64}),
        "NaN": ([holding(torch.nan)], good, known),
        "the form is": ([VALUES], good, known | {"form": "key_values"}),
    }
    for part, (tensors, config, facts) in cases.items():
        given = Artifact(tensors, config, facts)
        said = line_of(lambda given=given: artifact.write(tmp_path / "new", given))  # type: ignore[misc]
        assert part in said and "not saved" in said
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_well_is_saved_in_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    for number, prompt in enumerate((a_prompt(), keys())):
        whole = prompt.replaced([one.to(dtype).requires_grad_() for one in prompt.tensors])
        whole.save(tmp_path / str(number))
        assert SoftPrompt.load(tmp_path / str(number)).content_hash == whole.content_hash


ADAPTERS = {
    "LoRA": ('{"peft_type": "LORA"}', "peft_type 'LORA'"),
    "tasks": ('{"peft_type": "MULTITASK_PROMPT_TUNING"}', "'MULTITASK_PROMPT_TUNING'"),
    "no type": ("{}", "files of an adapter"),
    "no JSON": ("{", "files of an adapter"),
    "no configuration": (None, "files of an adapter"),
}


@pytest.mark.parametrize(("config", "part"), ADAPTERS.values(), ids=ADAPTERS)
def test_another_adapter_is_not_written_over(tmp_path: Path, config: str | None, part: str) -> None:
    if config is not None:
        (tmp_path / CONFIG_FILE).write_text(config)
    save_file({"layers.0.lora_A.weight": VALUES}, tmp_path / TENSOR_FILE)
    before = contents(tmp_path)
    said = line_of(lambda: a_prompt().save(tmp_path))
    assert str(tmp_path) in said and part in said and "not saved" in said
    assert contents(tmp_path) == before


@pytest.mark.parametrize("damage", ["nothing", "one of PEFT", "no JSON", "gone", "no tensors"])
def test_a_prompt_is_written_over(tmp_path: Path, damage: str) -> None:
    a_prompt().save(tmp_path)
    if damage == "one of PEFT":
        save_file({TENSOR_NAME: VALUES}, tmp_path / TENSOR_FILE)
    elif damage == "no JSON":
        (tmp_path / CONFIG_FILE).write_text("{")
    elif damage == "gone":
        (tmp_path / CONFIG_FILE).unlink()
    elif damage == "no tensors":
        (tmp_path / TENSOR_FILE).unlink()
    a_prompt(seed=1).save(tmp_path)
    assert SoftPrompt.load(tmp_path).content_hash == a_prompt(seed=1).content_hash


def test_a_store_takes_what_can_be_loaded(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    a_prompt().save(tmp_path / "a")
    content = bytearray((tmp_path / "a" / TENSOR_FILE).read_bytes())
    content[-4] ^= 1
    (tmp_path / "a" / TENSOR_FILE).write_bytes(content)
    said = line_of(lambda: store.add("home", tmp_path / "a"))
    assert f"{tmp_path / 'a'}: the values do not match" in said and store.names() == []
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / CONFIG_FILE).write_text('{"peft_type": "PROMPT_TUNING"}')
    save_file({TENSOR_NAME: holding(torch.nan)}, tmp_path / "b" / TENSOR_FILE)
    said = line_of(lambda: store.add("home", tmp_path / "b"))
    assert str(tmp_path / "b") in said and "NaN" in said and store.names() == []


# Paths and arguments ----------------------------------------------------------------------------

PATHS: dict[str, Any] = {
    "nothing": None, "empty": "", "a null": "a\0b", "half a character": "a\ud800", "a number": 3,
    "bytes": b"a", "a list": ["a"],
}  # fmt: skip
USES: dict[str, Callable[[Any], Any]] = {
    "save": lambda path: a_prompt().save(path),
    "save a prefix": lambda path: Prefix(keys().states, "0" * 64).save(path),
    "load": SoftPrompt.load,
    "read": stored_prompt.read,
    "copies": lambda path: directories.own_files(path).__enter__(),
    "plain files": lambda path: directories.plain_files(path).__enter__(),
    "a store": Store,
    "adding": lambda path: Store("store").add("home", path),
    "check_writable": check_writable,
    "write_file": lambda path: write_file(path, lambda file: file.write_text("x")),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_what_is_no_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Any, use: Callable[[Any], Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    said = line_of(lambda: use(path))
    assert "expected a path" in said or "holds a character that no path may hold" in said
    assert not list(tmp_path.iterdir())


def test_the_current_folder_is_named_by_a_dot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a_prompt().save(".")
    assert SoftPrompt.load(".").content_hash == a_prompt().content_hash


MADE: dict[str, tuple[Callable[[], Any], str]] = {
    "no embeddings": (lambda: SoftPrompt("embeddings", []), "expected tensors, got []"),
    "no layers": (lambda: SoftPrompt("key_values", []), "expected tensors, got []"),
    "nothing": (lambda: SoftPrompt("embeddings", None), "expected tensors, got None"),  # type: ignore[arg-type]
    "a form that is none": (lambda: SoftPrompt("x", [VALUES]), "got 'x'"),  # type: ignore[arg-type]
    "one row": (lambda: SoftPrompt("embeddings", [VALUES[0]]), "shape [P, H], got [8]"),
    "another P": (
        lambda: SoftPrompt("embeddings", [VALUES], num_virtual_tokens=4),
        "expected embeddings of 4 virtual tokens",
    ),
    "facts of a list": (
        lambda: SoftPrompt.from_embeddings(VALUES, facts=[1]),  # type: ignore[arg-type]
        "facts are list, expected dict",
    ),
    "meta": (lambda: SoftPrompt.from_embeddings(VALUES.to("meta")), "on the device meta"),
    "sparse": (lambda: SoftPrompt.from_embeddings(VALUES.to_sparse()), "torch.sparse_coo"),
    "meta keys": (
        lambda: SoftPrompt.from_key_values([(torch.ones(2, 3, 4, device="meta"),) * 2]),
        "on the device meta",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "part"), MADE.values(), ids=MADE)
def test_what_is_no_prompt_is_refused(make: Callable[[], Any], part: str) -> None:
    assert part in line_of(make)


# What two files say -----------------------------------------------------------------------------


def edit(folder: Path, **config: Any) -> None:
    found = json.loads((folder / CONFIG_FILE).read_text()) | config
    (folder / CONFIG_FILE).write_text(json.dumps(found))


def test_the_base_that_the_configuration_names_counts(tmp_path: Path) -> None:
    a_prompt().save(tmp_path)
    edit(tmp_path, base_model_name_or_path="moved/base", revision=None)
    prompt = SoftPrompt.load(tmp_path)
    assert prompt.facts["base"] == {"name": "moved/base", "revision": None}
    assert prompt.outline()["base"] == summary(tmp_path)["base"] == "moved/base"
    prompt.save(tmp_path / "again")
    assert SoftPrompt.load(tmp_path / "again").facts == prompt.facts
    edit(tmp_path, base_model_name_or_path="some/base", revision="v2")
    assert SoftPrompt.load(tmp_path).facts["base"] == {"name": "some/base", "revision": "v2"}
    edit(tmp_path, base_model_name_or_path=None, revision="v1")
    assert SoftPrompt.load(tmp_path).facts["base"] == {"name": "some/base", "revision": "v1"}


def test_a_base_that_moved_keeps_its_fingerprint(tmp_path: Path) -> None:
    base = {"name": "some/base", "fingerprint": {"embeddings": "x"}}
    SoftPrompt.from_embeddings(VALUES, facts={"base": base}).save(tmp_path)
    edit(tmp_path, base_model_name_or_path="/new/place")
    found = SoftPrompt.load(tmp_path).facts["base"]
    assert found == base | {"name": "/new/place", "revision": None}


@pytest.mark.parametrize("kind", ["embeddings", "key_values", "uneven"])
def test_a_number_of_tokens_that_is_another_is_believed_by_nobody(
    tmp_path: Path, kind: str
) -> None:
    uneven = SoftPrompt.from_key_values([(torch.ones(2, 3, 4), torch.ones(2, 3, 5))])
    {"embeddings": a_prompt(), "key_values": keys(), "uneven": uneven}[kind].save(tmp_path)
    assert summary(tmp_path)["virtual_tokens"] == 3
    edit(tmp_path, num_virtual_tokens=99)
    for read in (SoftPrompt.load, summary):
        with pytest.raises(ArtifactError, match="99"):
            read(tmp_path)


# A reader beside a writer -----------------------------------------------------------------------


class Writer:
    """Saves another prompt each time a reader is between the two files."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
        self.folder, self.times, self.number = folder, times, 0
        read = stored_prompt._read_arrays

        def read_arrays(source: Path, wanted: list[str]) -> Any:
            if self.number < self.times and source == folder:
                self.write()
            return read(source, wanted)

        monkeypatch.setattr(stored_prompt, "_read_arrays", read_arrays)
        self.write()

    def write(self) -> None:
        self.number += 1
        name = f"base/{self.number}"
        a_prompt(3 + self.number % 2, seed=self.number, name=name).save(self.folder)


@pytest.mark.parametrize("times", [1, 2, 3, 6])
def test_a_reader_beside_a_writer_reads_one_of_its_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    writer = Writer(tmp_path, monkeypatch, times)
    assert len(SoftPrompt.load(tmp_path).embeddings) == 3 + times % 2
    assert writer.number == times


def test_a_prompt_is_never_one_saves_values_under_another_ones_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_prompt(name="first/base").save(tmp_path)
    read = stored_prompt._read_arrays
    later = [a_prompt(seed=1, name="second/base")]

    def read_arrays(source: Path, wanted: list[str]) -> Any:
        if later:
            later.pop().save(tmp_path)
        return read(source, wanted)

    monkeypatch.setattr(stored_prompt, "_read_arrays", read_arrays)
    prompt = SoftPrompt.load(tmp_path)
    assert prompt.content_hash == a_prompt(seed=1).content_hash
    assert prompt.facts["base"]["name"] == "second/base"


def half_replace(folder: Path) -> None:
    """Leave `run` with the values of a later save, whose configuration still lies in `new`."""
    a_prompt(4).save(folder / "new")
    a_prompt(3).save(folder / "run")
    os.replace(folder / "new" / TENSOR_FILE, folder / "run" / TENSOR_FILE)


def test_a_reader_waits_for_the_second_file_of_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_replace(tmp_path)

    def pause(seconds: float) -> None:
        if (tmp_path / "new" / CONFIG_FILE).exists():
            os.replace(tmp_path / "new" / CONFIG_FILE, tmp_path / "run" / CONFIG_FILE)

    monkeypatch.setattr(steady_files.time, "sleep", pause)
    assert SoftPrompt.load(tmp_path / "run").num_virtual_tokens == 4


def test_files_of_two_saves_that_stay_are_refused_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_replace(tmp_path)
    pauses: list[float] = []
    monkeypatch.setattr(steady_files.time, "sleep", pauses.append)
    with pytest.raises(ArtifactError, match="the two files are not from one save"):
        SoftPrompt.load(tmp_path / "run")
    assert len(pauses) == 3 and sum(pauses) < 0.1


def test_a_writer_that_never_ends_is_refused_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steady_files, "PAUSE", 0.0)
    writer = Writer(tmp_path, monkeypatch, 1000)
    with pytest.raises(ArtifactError, match="the two files are not from one save"):
        SoftPrompt.load(tmp_path)
    assert writer.number < 100


@pytest.mark.parametrize("kind", ["what is pushed", "a store's"])
def test_copies_are_of_one_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    a_prompt(3).save(tmp_path / "run")
    a_prompt(4).save(tmp_path / "new")
    left = list(FILES)

    def replaced_before(copy: Callable[..., Any]) -> Callable[..., Any]:
        def copy_later(old: Path, new: Path) -> Any:
            while old.name == TENSOR_FILE and left:  # the configuration has been copied
                name = left.pop()
                os.replace(tmp_path / "new" / name, tmp_path / "run" / name)
            return copy(old, new)

        return copy_later

    if kind == "a store's":
        monkeypatch.setattr(store_module, "_copy", replaced_before(store_module._copy))
        found = Store(tmp_path / "store").add("home", tmp_path / "run").path
        assert SoftPrompt.load(found).num_virtual_tokens == 4
        return
    monkeypatch.setattr(shutil, "copyfile", replaced_before(shutil.copyfile))
    with directories.own_files(tmp_path / "run") as folder:
        assert stored_prompt.read(folder).num_virtual_tokens == 4


def test_files_take_their_places_after_both_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("place"), replace(*paths)))
    a_prompt().save(tmp_path)
    assert steps[:2] == ["sync", "sync"] and steps.count("place") == 2
