"""Prompt directories that are missing, damaged or hostile are refused in one clear line, and a
save that fails leaves what was there before.
"""

import errno
import fcntl
import json
import math
import os
import pickle
import random
import re
import shutil
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from foreword import SoftPrompt
from foreword.errors import ArtifactError, InputError, StorageError
from foreword.prompt import artifact, facts, steady_files, stored_prompt
from foreword.prompt.peft_format import CONFIG_FILE, TENSOR_FILE, TENSOR_NAME

EMBEDDINGS = torch.arange(24.0).view(3, 8)
PREFIX_CONFIG = {
    "peft_type": "PREFIX_TUNING",
    "num_layers": 2,
    "num_attention_heads": 2,
    "token_dim": 4,
}


def a_prompt(num_virtual: int = 3, width: int = 8, seed: int = 0) -> SoftPrompt:
    generator = torch.Generator().manual_seed(seed)
    return SoftPrompt.from_embeddings(torch.randn(num_virtual, width, generator=generator))


def foreign(
    directory: Path,
    *,
    config: Any = None,
    tensors: dict[str, Tensor] | None = None,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write a directory as another program would: PEFT's two files and nothing of ours."""
    given = {"peft_type": "PROMPT_TUNING"} if config is None else config
    text = given if isinstance(given, str) else json.dumps(given)
    (directory / CONFIG_FILE).write_text(text)
    save_file(tensors or {TENSOR_NAME: EMBEDDINGS}, directory / TENSOR_FILE, metadata=metadata)
    return directory


def refusal(directory: Path) -> str:
    """Return the one line with which a directory is refused; it names the directory."""
    with pytest.raises(ArtifactError) as caught:
        SoftPrompt.load(directory)
    message = str(caught.value)
    assert str(directory) in message and message.isprintable()
    return message


def test_a_well_made_foreign_directory_loads(tmp_path: Path) -> None:
    named = {"base_model_name_or_path": "some/base", "revision": "v2"}
    prompt = SoftPrompt.load(foreign(tmp_path, config={"peft_type": "CPT"} | named))
    assert torch.equal(prompt.embeddings, EMBEDDINGS)
    assert prompt.facts == {"base": {"name": "some/base", "revision": "v2"}, "method": "CPT"}


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    assert "no such directory" in refusal(tmp_path / "missing")
    assert "no such directory" in refusal(tmp_path / ("x" * 300))
    (tmp_path / "file").write_text("")
    assert "no such directory" in refusal(tmp_path / "file")


def test_a_directory_without_its_files_is_refused(tmp_path: Path) -> None:
    assert f"no {CONFIG_FILE}" in refusal(tmp_path)
    (foreign(tmp_path) / TENSOR_FILE).unlink()
    assert f"no {TENSOR_FILE}" in refusal(tmp_path)


CONFIGS = {
    "not JSON": ("{", "not readable as JSON"),
    "not text": ("\x00", "not readable as JSON"),
    "not an object": ("[]", "expected a JSON object, got list"),
    "huge": (" " * (facts.MAX_CONFIG_BYTES + 1), "larger than"),
    "deeply nested": ("[" * 100_000, "not readable as JSON"),
    "a number of 5000 digits": ('{"x": ' + "1" * 5000 + "}", "not readable as JSON"),
    "no type": ({}, "peft_type is None"),
    "LoRA": ({"peft_type": "LORA", "r": 8}, "peft_type is 'LORA'"),
    "multitask": ({"peft_type": "MULTITASK_PROMPT_TUNING"}, "expected one of PROMPT_TUNING"),
    "type is no string": ({"peft_type": ["PROMPT_TUNING"]}, "peft_type is ['PROMPT_TUNING']"),
    "encoder-decoder": (
        {"peft_type": "PROMPT_TUNING", "num_transformer_submodules": 2},
        "num_transformer_submodules is 2",
    ),
    "other number of tokens": (
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4},
        "shape [3, 8], but adapter_config.json says num_virtual_tokens = 4",
    ),
    "number of tokens is a string": (
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": "3"},
        "num_virtual_tokens = '3'",
    ),
    "base is a number": (
        {"peft_type": "PROMPT_TUNING", "base_model_name_or_path": 3},
        "base_model_name_or_path is 3",
    ),
    "revision is an object": (
        {"peft_type": "PROMPT_TUNING", "revision": {"a": "\n"}},
        "revision is {'a': '\\n'}",
    ),
    "no number of layers": (
        {"peft_type": "PREFIX_TUNING", "num_attention_heads": 2, "token_dim": 4},
        "expected positive integers num_layers",
    ),
    "negative number of layers": (PREFIX_CONFIG | {"num_layers": -2}, "got [-2, 2, 4]"),
    "heads are true": (PREFIX_CONFIG | {"num_attention_heads": True}, "got [2, True, 4]"),
    "number of tokens is true": (
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": True},
        "num_virtual_tokens = True",
    ),
    "number of parts is true": (
        {"peft_type": "PROMPT_TUNING", "num_transformer_submodules": True},
        "num_transformer_submodules is True",
    ),
    "own type without its tensors": (
        {"peft_type": "FOREWORD_ONLY", "tensors_per_layer": [1]},
        "no tensor 'foreword.0'",
    ),
    "columns do not divide": (PREFIX_CONFIG, "8 columns, expected num_layers * 2 * token_dim = 16"),
    "heads do not divide": (
        PREFIX_CONFIG | {"num_layers": 1, "num_attention_heads": 3},
        "a multiple of 3 heads",
    ),
}


@pytest.mark.parametrize(("config", "part"), CONFIGS.values(), ids=CONFIGS)
def test_a_wrong_configuration_is_refused(tmp_path: Path, config: Any, part: str) -> None:
    assert part in refusal(foreign(tmp_path, config=config))
    with pytest.raises(ArtifactError, match=re.escape(part)):  # lists believe it no more
        facts.summary(tmp_path)


TENSORS = {
    "another name": ({"weight": EMBEDDINGS}, "no tensor 'prompt_embeddings'; found 'weight'"),
    "a name with escapes": ({"a\n\x1b[31m": EMBEDDINGS}, r"found 'a\n\x1b[31m'"),
    "modules beside it": (
        {TENSOR_NAME: EMBEDDINGS, "base_model.lm_head.weight": EMBEDDINGS.clone()},
        "holds 'base_model.lm_head.weight' beside the prompt",
    ),
    "integers": ({TENSOR_NAME: EMBEDDINGS.long()}, "got I64"),
    "8-bit floats": ({TENSOR_NAME: EMBEDDINGS.to(torch.float8_e4m3fn)}, "got F8_E4M3"),
    "1-D": ({TENSOR_NAME: EMBEDDINGS[0]}, "has shape [8]"),
    "3-D": ({TENSOR_NAME: EMBEDDINGS[None]}, "has shape [1, 3, 8]"),
    "no rows": ({TENSOR_NAME: EMBEDDINGS[:0]}, "has shape [0, 8]"),
    "NaN": ({TENSOR_NAME: EMBEDDINGS.where(EMBEDDINGS != 5, torch.nan)}, "NaN or infinite"),
    "infinity": ({TENSOR_NAME: EMBEDDINGS.where(EMBEDDINGS != 5, -torch.inf)}, "NaN or infinite"),
}


@pytest.mark.parametrize(("tensors", "part"), TENSORS.values(), ids=TENSORS)
def test_a_wrong_tensor_is_refused(tmp_path: Path, tensors: dict[str, Tensor], part: str) -> None:
    message = refusal(foreign(tmp_path, tensors=tensors))
    assert part in message and TENSOR_FILE in message


def test_a_key_value_prompt_without_rows_is_refused(tmp_path: Path) -> None:
    tensors = {TENSOR_NAME: torch.zeros(0, 16)}
    assert "has shape [0, 16]" in refusal(foreign(tmp_path, config=PREFIX_CONFIG, tensors=tensors))


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 40, -24, -1])
def test_a_truncated_tensor_file_is_refused(tmp_path: Path, length: int) -> None:
    a_prompt().save(tmp_path)
    whole = (tmp_path / TENSOR_FILE).read_bytes()
    (tmp_path / TENSOR_FILE).write_bytes(whole[:length])
    assert f"{TENSOR_FILE}: truncated or not a safetensors file" in refusal(tmp_path)


SHAPE_BEYOND_MEMORY = json.dumps(
    {TENSOR_NAME: {"dtype": "F32", "shape": [2**30, 2**30], "data_offsets": [0, 2**62]}}
).encode()
HEADERS = {
    "garbage": b"\x80" * 200,
    "a length beyond the file": struct.pack("<Q", 10_000_000) + b"{}",
    "a length beyond memory": struct.pack("<Q", 2**63) + b"{}",
    "not JSON": struct.pack("<Q", 2) + b"{]",
    "a shape beyond memory": struct.pack("<Q", len(SHAPE_BEYOND_MEMORY)) + SHAPE_BEYOND_MEMORY,
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS)
def test_a_hostile_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (foreign(tmp_path) / TENSOR_FILE).write_bytes(content)
    assert "truncated or not a safetensors file" in refusal(tmp_path)


def test_a_file_far_larger_than_its_header_says_is_not_read(tmp_path: Path) -> None:
    a_prompt().save(tmp_path)
    os.truncate(tmp_path / TENSOR_FILE, 1 << 42)  # with a hole: it takes no space
    assert "truncated or not a safetensors file" in refusal(tmp_path)


def test_a_file_larger_than_the_memory_is_refused(tmp_path: Path) -> None:
    size = 1 << 42
    part = {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, size]}
    header = json.dumps({TENSOR_NAME: part}).encode()
    path = foreign(tmp_path) / TENSOR_FILE
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    os.truncate(path, 8 + len(header) + size)
    assert "it is larger than the memory" in refusal(tmp_path)


def test_what_a_header_names_is_looked_up_once(tmp_path: Path) -> None:
    """Many names against many wanted ones: their product is not gone through."""

    class Counted(str):
        num_compared = 0

        def __eq__(self, other: object) -> bool:
            Counted.num_compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    own = [Counted(f"foreword.{index}") for index in range(300)]
    foreign(tmp_path, tensors={f"t{index}": torch.ones(1) for index in range(300)})
    with pytest.raises(ArtifactError, match=r"no tensor 'foreword\.0'; found 't0', 't1'"):
        stored_prompt._read_arrays(tmp_path, list(own))
    assert Counted.num_compared < 3_000


@pytest.mark.parametrize("parts", [2, None])
@pytest.mark.parametrize("number", [{"num_virtual_tokens": None}, {}])
def test_twice_as_many_rows_as_nobody_counted_are_refused(
    tmp_path: Path, number: dict[str, None], parts: int | None
) -> None:
    """PEFT keeps a second half for a decoder; what does not say P cannot tell it."""
    config = {"peft_type": "PROMPT_TUNING", "task_type": "SEQ_2_SEQ_LM", **number}
    config |= {"num_transformer_submodules": parts}
    assert "num_virtual_tokens is None" in refusal(foreign(tmp_path, config=config))
    tensors = {TENSOR_NAME: torch.ones(6, 8)}
    for count, is_read in ((3, parts == 2), (6, parts is None), (4, False)):
        foreign(tmp_path, config=config | {"num_virtual_tokens": count}, tensors=tensors)
        if is_read:
            assert SoftPrompt.load(tmp_path).num_virtual_tokens == count
        else:
            assert f"num_virtual_tokens = {count}" in refusal(tmp_path)


@pytest.mark.parametrize("number", [{}, {"a": 1}, [4], "4", 4.5, True, 3.0])
def test_a_number_of_virtual_tokens_that_is_none_is_refused(tmp_path: Path, number: Any) -> None:
    """Also where PEFT keeps a second half for a decoder."""
    encoder = {"task_type": "SEQ_2_SEQ_LM", "num_transformer_submodules": 2}
    for more in ({}, encoder):
        config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": number, **more}
        assert "num_virtual_tokens" in refusal(foreign(tmp_path, config=config))


class _Hostile:
    """A pickle that acts on whoever opens it: it creates a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


PICKLES = {
    "adapter_model.bin": "adapter_model.bin is a pickle and is never read",
    TENSOR_FILE: "not a safetensors file",
    CONFIG_FILE: "not readable as JSON",
}


@pytest.mark.parametrize(("name", "part"), PICKLES.items(), ids=PICKLES)
def test_a_pickle_is_never_opened(tmp_path: Path, name: str, part: str) -> None:
    trace = tmp_path / "opened"
    (foreign(tmp_path) / TENSOR_FILE).unlink()
    (tmp_path / name).write_bytes(pickle.dumps(_Hostile(trace)))
    assert part in refusal(tmp_path)
    assert not trace.exists()
    pickle.loads((tmp_path / name).read_bytes())
    assert trace.exists(), "the pickle would have acted"


def _history(**changes: Any) -> dict[str, Any]:
    return {"step": [1, 2], "loss": [2.0, 1.0], "learning_rate": [0.1, 0.1]} | changes


def _facts(**facts: Any) -> dict[str, str]:
    known = {"format_version": 1, "content_hash": artifact.content_hash([EMBEDDINGS])}
    return {"foreword": json.dumps(known | facts)}


METADATA = {
    "not JSON": ({"foreword": "{"}, "is not a JSON object"),
    "not an object": ({"foreword": "[1]"}, "is not a JSON object"),
    "deeply nested": ({"foreword": "[" * 100_000}, "is not a JSON object"),
    "a number of 5000 digits": ({"foreword": "1" * 5000}, "is not a JSON object"),
    "no version": ({"foreword": "{}"}, "format version None, expected 1"),
    "a later version": (_facts(format_version=2), "format version 2, expected 1"),
    "version is true": (_facts(format_version=True), "format version True, expected 1"),
    "no hash": (_facts(content_hash=None), "has no content_hash, expected the SHA-256"),
    "facts under another name": (
        {"forewore": _facts()["foreword"]},
        "stand in the metadata under 'forewore', expected 'foreword'",
    ),
    "another form": (_facts(form="key_values"), "the form is 'key_values' in the metadata, but"),
    "no form": (_facts(form="nonsense"), "the form is 'nonsense' in the metadata, but"),
    "another hash": (_facts(content_hash="0" * 64), "do not match their recorded hash"),
    "hash is a number": (_facts(content_hash=3), "has no content_hash"),
    "base is a number": (_facts(base=3), "base is int, expected dict"),
    "base is empty text": (_facts(base=""), "base is str, expected dict"),
    "name is a list": (_facts(base={"name": ["x"]}), "base.name is list, expected str"),
    "fingerprint is text": (_facts(base={"fingerprint": "x"}), "base.fingerprint is str"),
    "metrics are text": (_facts(metrics="x"), "metrics is str, expected dict"),
    "validation is a number": (_facts(metrics={"validation": 1.5}), "metrics.validation is float"),
    "training is a list": (_facts(training=[]), "training is list, expected dict"),
    "length is text": (_facts(encoding={"max_length": "9"}), "encoding.max_length is str"),
    "method is a number": (_facts(method=1), "method is int, expected str"),
    "history is a list": (_facts(history=[1]), "history is list, expected dict"),
    "history has no loss": (_facts(history=_history(loss=None)), "history.loss is no list"),
    "history is empty": (_facts(history=_history(step=[])), "history.step is no list of 1 to 200"),
    "history is huge": (_facts(history=_history(loss=[1.0] * 201)), "history.loss is no list"),
    "history holds NaN": (_facts(history=_history(loss=[1.0, math.nan])), "no finite number"),
    "history holds 10**400": (_facts(history=_history(loss=[1.0, 10**400])), "no finite number"),
    "history holds text": (_facts(history=_history(learning_rate=[1, "2"])), "no finite number"),
    "history holds true": (_facts(history=_history(loss=[1.0, True])), "no finite number"),
    "history goes back": (_facts(history=_history(step=[5, 5])), "history.step does not rise"),
    "history begins at 0": (_facts(history=_history(step=[0, 5])), "history.step does not rise"),
    "history is uneven": (_facts(history=_history(loss=[1.0])), "are not equally long"),
    "validation is text": (_facts(history=_history(validation="x")), "history.validation is str"),
    "validation is uneven": (
        _facts(history=_history(validation={"step": [1], "loss": [2.0], "exact": []})),
        "history.validation.exact is no list",
    ),
}


@pytest.mark.parametrize(("metadata", "part"), METADATA.values(), ids=METADATA)
def test_wrong_metadata_is_refused(tmp_path: Path, metadata: dict[str, str], part: str) -> None:
    assert part in refusal(foreign(tmp_path, metadata=metadata))
    if "match their recorded hash" not in part:  # lists read no values
        with pytest.raises(ArtifactError, match=re.escape(part)):
            facts.summary(tmp_path)


@pytest.mark.parametrize("kind", ["own", "key_values", "foreign", "uneven"])
def test_a_loaded_prompt_is_not_its_file(tmp_path: Path, kind: str) -> None:
    layers = [[torch.randn(2, 3, 4)] * 2, [torch.randn(2, 3, 4 if kind == "key_values" else 5)] * 2]
    if kind == "own":
        a_prompt().save(tmp_path)
    elif kind == "foreign":
        foreign(tmp_path)
    else:
        SoftPrompt.from_key_values(layers).save(tmp_path)
    prompt = SoftPrompt.load(tmp_path)
    before = [tensor.clone() for tensor in prompt.tensors]
    with (tmp_path / TENSOR_FILE).open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.write(b"\x11" * size)
        file.flush()
        assert all(map(torch.equal, prompt.tensors, before))
        file.truncate(0)  # under tensors that are mapped, this ends the process
    assert all(map(torch.equal, prompt.tensors, before))


def test_unknown_and_empty_facts_are_kept(tmp_path: Path) -> None:
    foreign(tmp_path, metadata=_facts(base=None, encoding={}, later=[1]))
    facts = SoftPrompt.load(tmp_path).facts
    assert facts.pop("content_hash") == artifact.content_hash([EMBEDDINGS])
    assert facts == {"format_version": 1, "base": None, "encoding": {}, "later": [1]}


def test_changed_values_are_refused(tmp_path: Path) -> None:
    a_prompt().save(tmp_path)
    content = bytearray((tmp_path / TENSOR_FILE).read_bytes())
    content[-4] ^= 1  # the lowest bit of the last value
    (tmp_path / TENSOR_FILE).write_bytes(content)
    assert "do not match their recorded hash" in refusal(tmp_path)


def test_damaged_bytes_load_the_same_values_or_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steady_files, "PAUSE", 0.0)
    prompt, draw = a_prompt(), random.Random(0)
    prompt.save(tmp_path)
    whole = {name: (tmp_path / name).read_bytes() for name in (CONFIG_FILE, TENSOR_FILE)}
    outcomes = set()
    for _ in range(400):
        name = draw.choice(list(whole))
        damaged = bytearray(whole[name])
        damaged[draw.randrange(len(damaged))] = draw.choice([draw.randrange(256), *b'"{}[],09'])
        (tmp_path / name).write_bytes(damaged)
        try:
            outcomes.add(SoftPrompt.load(tmp_path).content_hash)
        except ArtifactError as error:
            assert str(error).isprintable()
            outcomes.add("refused")
        (tmp_path / name).write_bytes(whole[name])
    assert outcomes == {prompt.content_hash, "refused"}


@pytest.mark.parametrize("below", ["file", "file/deeper"])
def test_saving_below_a_file_says_so(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError, match="a file stands where a directory is needed"):
        a_prompt().save(tmp_path / below)
    assert (tmp_path / "file").read_text() == "mine"


def _raise(error: BaseException) -> Callable[..., Any]:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise error

    return fail


FULL = OSError(errno.ENOSPC, "No space left on device")
FULL_TO_SAFETENSORS = SafetensorError("I/O error: No space left on device (os error 28)")
FAILURES = {
    "full, writing the tensor": ("foreword.prompt.artifact.save_file", FULL, "no space left"),
    "full, says safetensors": (
        "foreword.prompt.artifact.save_file",
        FULL_TO_SAFETENSORS,
        "no space left",
    ),
    "full, writing the config": ("pathlib.Path.write_text", FULL, "no space left"),
    "full, syncing": ("os.fsync", FULL, "no space left"),
    "full, replacing": ("os.replace", FULL, "no space left"),
    "not writable": ("tempfile.mkstemp", PermissionError(errno.EACCES, "denied"), "not writable"),
    "read-only": ("tempfile.mkstemp", OSError(errno.EROFS, "read-only"), "not writable"),
    "broken disk": ("os.fsync", OSError(errno.EIO, "Input/output error"), "Input/output error"),
}


@pytest.mark.parametrize(("where", "error", "part"), FAILURES.values(), ids=FAILURES)
def test_a_failed_save_keeps_the_old_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception, part: str
) -> None:
    old = a_prompt(num_virtual=3)
    old.save(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(StorageError) as caught:
        patched.setattr(where, _raise(error))
        a_prompt(num_virtual=5).save(tmp_path)
    message = str(caught.value)
    assert part in message and str(tmp_path) in message and message.isprintable()
    assert SoftPrompt.load(tmp_path).content_hash == old.content_hash
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG_FILE, TENSOR_FILE}


def test_an_interrupted_save_keeps_the_old_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half of")
        raise KeyboardInterrupt

    old = a_prompt(num_virtual=3)
    old.save(tmp_path)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("foreword.prompt.artifact.save_file", interrupt)
        a_prompt(num_virtual=5).save(tmp_path)
    assert SoftPrompt.load(tmp_path).content_hash == old.content_hash
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG_FILE, TENSOR_FILE}


@pytest.mark.parametrize("facts", [{"x": object()}, {"x": {1: "a", "b": 2}}, {"x": EMBEDDINGS}])
def test_facts_that_are_not_plain_data_are_not_saved(tmp_path: Path, facts: Any) -> None:
    a_prompt().save(tmp_path)
    with pytest.raises(InputError, match="facts are not plain data"):
        SoftPrompt.from_embeddings(EMBEDDINGS, facts=facts).save(tmp_path)
    assert SoftPrompt.load(tmp_path).content_hash == a_prompt().content_hash


def test_facts_of_wrong_types_are_refused_at_once() -> None:
    with pytest.raises(InputError, match="base.name is int, expected str"):
        SoftPrompt.from_embeddings(EMBEDDINGS, facts={"base": {"name": 3}})


def test_keys_and_values_that_share_memory_are_saved(tmp_path: Path) -> None:
    same = torch.ones(2, 3, 4)
    other = torch.ones(1, 3, 4)
    SoftPrompt.from_key_values([(same, same), (other, other)]).save(tmp_path)
    assert torch.equal(SoftPrompt.load(tmp_path).tensors[1], same)


def _states(num_layers: int, num_heads: int, size: int) -> SoftPrompt:
    pairs = [(torch.randn(num_heads, 3, size), torch.randn(num_heads, 3, size))]
    return SoftPrompt.from_key_values(pairs * num_layers)


OTHERS = {
    "the same shape": lambda: a_prompt(seed=1),
    "other virtual tokens": lambda: a_prompt(num_virtual=4),
    "another form": lambda: _states(1, 2, 2),
    "other layers, as many columns": lambda: _states(2, 1, 2),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("first", OTHERS.values(), ids=OTHERS)
def test_files_of_two_saves_never_load_as_a_third_prompt(
    tmp_path: Path, first: Callable[[], SoftPrompt], other: Callable[[], SoftPrompt]
) -> None:
    prompts = first(), other()
    for prompt, name in zip(prompts, "ab", strict=True):
        prompt.save(tmp_path / name)
    shutil.copy(tmp_path / "b" / CONFIG_FILE, tmp_path / "a" / CONFIG_FILE)
    try:
        loaded = SoftPrompt.load(tmp_path / "a")
    except ArtifactError:
        return
    for mine, theirs in zip(loaded.tensors, prompts[0].tensors, strict=True):
        assert torch.equal(mine, theirs)


def test_no_other_writer_comes_between_the_two_files_of_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, held = os.replace, []

    def replace_and_look(*paths: Any) -> None:
        replace(*paths)
        other = os.open(tmp_path, os.O_RDONLY)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held.append(False)
        except BlockingIOError:
            held.append(True)
        finally:
            os.close(other)

    monkeypatch.setattr(os, "replace", replace_and_look)
    a_prompt().save(tmp_path)
    assert held == [True, True]


def test_two_writers_leave_one_of_their_prompts_or_a_refusal(tmp_path: Path) -> None:
    prompts = [a_prompt(num_virtual=3), a_prompt(num_virtual=4)]
    whole = {prompt.content_hash for prompt in prompts}
    prompts[0].save(tmp_path)
    outcomes = []

    def load() -> None:
        try:
            outcomes.append(SoftPrompt.load(tmp_path).content_hash in whole)
        except ArtifactError as error:
            outcomes.append("are not from one save" in str(error))

    def write(prompt: SoftPrompt) -> None:
        for _ in range(20):
            prompt.save(tmp_path)
            load()

    writers = [threading.Thread(target=write, args=(prompt,)) for prompt in prompts]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    load()
    assert len(outcomes) == 41 and all(outcomes)
    assert SoftPrompt.load(tmp_path).content_hash in whole
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG_FILE, TENSOR_FILE}
