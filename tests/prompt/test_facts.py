"""Hostile facts, at every key: refused at the door, or plain and bounded data for every reader; and
a prompt that was stored before the door was there hides no other one.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from foreword import SoftPrompt
from foreword.cli import app
from foreword.errors import ArtifactError, InputError
from foreword.prompt import artifact
from foreword.prompt import facts as facts_module
from foreword.prompt.facts import (
    FACT_TYPES,
    MAX_FACTS_BYTES,
    MAX_HEADER_BYTES,
    asked_as,
    summary,
)
from foreword.prompt.peft_format import CONFIG_FILE, TENSOR_FILE, TENSOR_NAME
from foreword.prompt.store import Store

VALUES = torch.arange(24.0).view(3, 8)


def nested(depth: int) -> Any:
    found: Any = 1
    for _ in range(depth):
        found = [found]
    return found


HOSTILE = {
    "half a character": "\ud800",
    "half a character in a key": {"\udfff": 1},
    "NaN": math.nan,
    "infinity": -math.inf,
    "NaN inside": {"loss": math.nan},
    "800 deep": nested(800),
    "800 dictionaries": json.loads('{"a":' * 800 + "1" + "}" * 800),
    "an integer of 400 digits": 10**400,
    "20 MB": ["x" * 1000] * 20_000,
    "a long text": "x" * (MAX_FACTS_BYTES + 1),
    "a terminal's escapes": "\x1b]0;owned\x07\x1b[2J\r\u202e",
    "true": True,
    "a number": 3,
    "a text": "x",
    "a list": [1],
    "nothing": None,
    "a dictionary": {"x": [1, {"y": "z"}]},
}


def keys_of(types: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every fact that has a type."""
    for name, kind in types.items():
        yield (*before, name)
        if isinstance(kind, dict):
            yield from keys_of(kind, (*before, name))


KEYS = [*keys_of(FACT_TYPES), ("history",), ("free",), ("name",), ("description",), ("\x1b[2J",)]
KEYS += [("metrics", "free"), ("base", "fingerprint", "encoder"), ("base", "free")]


def facts_with(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return facts with a value at a path of keys."""
    for key in reversed(path):
        value = {key: value}
    return {"format_version": 1} | value


def write(directory: Path, facts: Any = None, config: Any = None) -> Path:
    """Write a prompt's directory as no release of foreword would."""
    directory.mkdir(parents=True, exist_ok=True)
    given = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3} if config is None else config
    (directory / CONFIG_FILE).write_text(json.dumps(given))
    known = {"content_hash": artifact.content_hash([VALUES])}
    metadata = None if facts is None else {"foreword": json.dumps(known | facts)}
    save_file({TENSOR_NAME: VALUES}, directory / TENSOR_FILE, metadata=metadata)
    return directory


def strict(text: str) -> Any:
    """Read JSON as a reader does that knows no NaN, and send it on as UTF-8."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    found = json.loads(text, parse_constant=refuse)
    json.dumps(found, ensure_ascii=False, allow_nan=False).encode()
    return found


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert not [c for c in result.stdout if ord(c) < 32 and c != "\n"], "raw control characters"
    return result.stdout


@pytest.mark.parametrize("path", KEYS, ids=lambda path: ascii(".".join(path)))
def test_hostile_facts_are_refused_at_the_door_or_harmless(
    tmp_path: Path, path: tuple[str, ...]
) -> None:
    store = Store(tmp_path / "store")
    for index, (kind, value) in enumerate(HOSTILE.items()):
        source = write(tmp_path / f"p{index}", facts_with(path, value))
        try:
            prompt = SoftPrompt.load(source)
        except ArtifactError as error:
            assert str(error).isprintable() and len(str(error)) < 500, kind
            with pytest.raises(ArtifactError):
                store.add("home", source)
            continue
        assert len(json.dumps(prompt.facts, allow_nan=False)) <= MAX_FACTS_BYTES, kind
        strict(json.dumps(prompt.facts))
        entry = store.add("home", source)
        assert len(json.dumps(summary(entry.path))) < 1 << 17, kind
        arguments = ("--prompts", str(store.directory))
        strict(invoke("prompts", "list", "--json", *arguments))
        invoke("prompts", "list", *arguments)
        invoke("prompts", "show", "home", *arguments)
        strict(invoke("show", str(source), "--json"))
        invoke("show", str(source))


ALWAYS = ["half a character", "half a character in a key", "NaN", "infinity", "NaN inside",
          "800 deep", "800 dictionaries", "an integer of 400 digits", "20 MB",
          "a long text"]  # fmt: skip


@pytest.mark.parametrize("kind", ALWAYS)
def test_what_no_reader_takes_is_refused_in_facts_that_are_free(tmp_path: Path, kind: str) -> None:
    facts = {"free": HOSTILE[kind]}
    with pytest.raises(ArtifactError, match="plain data|larger than|not a JSON object"):
        SoftPrompt.load(write(tmp_path / "p", {"format_version": 1} | facts))
    with pytest.raises(InputError, match="plain data|bytes"):
        SoftPrompt.from_embeddings(VALUES, facts=facts).save(tmp_path / "q")
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize("kind", ALWAYS[:8])
def test_what_no_reader_takes_is_refused_in_the_configuration(tmp_path: Path, kind: str) -> None:
    config = {"peft_type": "PROMPT_TUNING", "free": HOSTILE[kind]}
    with pytest.raises(ArtifactError, match="not plain data"):
        SoftPrompt.load(write(tmp_path, config=config))


def test_a_base_with_a_name_of_a_megabyte_is_refused(tmp_path: Path) -> None:
    config = {"peft_type": "CPT", "base_model_name_or_path": "x" * 100_000}
    with pytest.raises(ArtifactError, match="base_model_name_or_path takes more than"):
        SoftPrompt.load(write(tmp_path, config=config))


HEADERS = {
    "no object": b"[1]", "metadata is a list": b'{"__metadata__": [1]}',
    "metadata is no text": b'{"__metadata__": {"foreword": 3}}', "no JSON": b"{",
    "a part is a list": b'{"prompt_embeddings": []}', "deep": b"[" * 100_000,
    "a shape is text": b'{"prompt_embeddings": {"shape": "3", "data_offsets": [0, 0]}}',
    "an end is text": b'{"prompt_embeddings": {"shape": [3], "data_offsets": [0, "9"]}}',
    "no tensor": b"{}", "too short": b'{"x": {"shape": [3], "data_offsets": [0, 9]}}',
}  # fmt: skip


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_summary_refuses_a_hostile_header(tmp_path: Path, header: bytes) -> None:
    path = write(tmp_path) / TENSOR_FILE
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ArtifactError, match="not a safetensors file|no tensor") as caught:
        summary(tmp_path)
    assert str(tmp_path) in str(caught.value) and str(caught.value).isprintable()


def test_a_summary_reads_no_device_no_link_and_no_huge_header(tmp_path: Path) -> None:
    path = write(tmp_path) / TENSOR_FILE
    path.write_bytes((MAX_HEADER_BYTES + 1).to_bytes(8, "little"))
    with pytest.raises(ArtifactError, match="a header of"):
        summary(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ArtifactError, match="not a regular file"):
        summary(tmp_path)


def test_a_prompt_without_facts_is_added_and_listed(tmp_path: Path) -> None:
    arguments = ("--prompts", str(tmp_path / "store"))
    config = {"peft_type": "PROMPT_TUNING", "base_model_name_or_path": "some/base"}
    invoke("prompts", "add", "plain", str(write(tmp_path / "p", config=config)), *arguments)
    assert "P=3  base some/base" in invoke("prompts", "list", *arguments)
    shown = json.loads(invoke("prompts", "show", "plain", "--json", *arguments))
    assert (shown["form"], shown["virtual_tokens"]) == ("PROMPT_TUNING", 3)


def test_versions_are_shown_with_the_time_that_each_was_added(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    facts = [{"format_version": 1, "metrics": {"step": n}} for n in range(2)]
    entries = [store.add("home", write(tmp_path / f"p{n}", one)) for n, one in enumerate(facts)]
    for entry, seconds in zip(entries, (1_700_000_000, 1_800_000_000), strict=True):
        os.utime(entry.path, (seconds, seconds))
    old, new = (entry.version for entry in entries)
    arguments = ("prompts", "show", "home", "--prompts", str(store.directory))
    both = f"{old} (2023-11-14 22:13:20 UTC), {new} (2027-01-15 08:00:00 UTC)"
    assert both in invoke(*arguments)
    shown = json.loads(invoke(*arguments, "--json"))
    assert shown["versions"] == [old, new]
    assert shown["added"][old] == "2023-11-14T22:13:20+00:00"


@pytest.mark.parametrize("kind", [*ALWAYS, "truncated", "gone", "changed", "current", "version"])
def test_a_damaged_prompt_is_listed_with_its_reason_and_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    store = Store(tmp_path / "store")
    store.add("good", write(tmp_path / "good"))
    facts = {"format_version": 1, "metrics": {"free": HOSTILE.get(kind)}}
    with monkeypatch.context() as patch:  # as a release did that had no such check
        patch.setattr("foreword.prompt.store.summary", lambda *_: {})
        patch.setattr("foreword.prompt.stored_prompt.read", lambda *_: None)
        entry = store.add("bad", write(tmp_path / "bad", facts))
    tensors = entry.path / TENSOR_FILE
    content = tensors.read_bytes()
    if kind == "truncated":
        tensors.write_bytes(content[:-4])
    elif kind == "gone":
        tensors.unlink()
    elif kind == "changed":
        tensors.write_bytes(content[:-1] + b"\1")
    elif kind == "current":
        (store.directory / "bad" / "current").write_text("\x1b[2J")
    elif kind == "version":
        entry.path.rename(entry.path.with_name("0" * 16))
    arguments = ("--prompts", str(store.directory))
    listed = strict(invoke("prompts", "list", "--json", *arguments))["prompts"]
    assert [row["name"] for row in listed] == ["bad", "good"]
    assert len(listed[0]["damaged"]) > 20 and "damaged" not in listed[1]
    said = invoke("prompts", "list", *arguments).splitlines()
    assert len(said) == 2 and "damaged: " in said[0] and "P=3" in said[1]


def test_long_facts_of_ones_own_are_saved_and_read(tmp_path: Path) -> None:
    facts = {
        "training": {"init_text": "word " * 20_000},
        "metrics": {"step": 3, "free": [1.5] * 99},
    }
    SoftPrompt.from_embeddings(VALUES, facts=facts).save(tmp_path)
    loaded = SoftPrompt.load(tmp_path).facts
    assert {name: loaded[name] for name in facts} == facts
    assert summary(tmp_path)["metrics"] == facts["metrics"]


def test_summaries_import_no_torch() -> None:
    code = f"import sys, {facts_module.__name__}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("encoding", "tokenizer", "said"),
    [
        ({"row_template": "Q: {prompt}\nA:"}, {}, "the row template 'Q: {prompt}\\nA:'"),
        ({"row_template": "Q" * 300 + "{prompt}"}, {}, f"the row template {'Q' * 200!r} …"),
        ({"is_text": True}, {"chat_template": "hash"}, "plain text, without a template"),
        ({"is_text": False}, {"chat_template": "hash"}, "one turn of the chat template"),
        ({"is_text": False}, None, "as it is given"),
        ({"is_text": None}, {"chat_template": "hash"}, "as it is given: rows of both kinds"),
        ({"is_text": False, "chat_template": "{{ x }}"}, {}, "that the prompt holds"),
        ({}, {"chat_template": "hash"}, None),
        (None, None, None),
    ],
)
def test_how_a_question_is_asked_is_said_where_it_is_recorded(
    encoding: Any, tokenizer: Any, said: str | None
) -> None:
    found = asked_as({"encoding": encoding, "tokenizer": tokenizer})
    assert (found is None) if said is None else (found is not None and said in found)
