"""Texts: every option that takes one takes @FILE, and what of it is not used is said."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import FAST

from foreword import config as configs
from foreword.cli import main, options
from foreword.errors import InputError

KINDS = [kind for name in dir(configs) if isinstance(kind := getattr(configs, name), type)]
TEXTS = [
    field
    for kind in KINDS
    if dataclasses.is_dataclass(kind)
    for field in dataclasses.fields(kind)
    if field.metadata.get("is_text")
]


def test_these_options_are_texts() -> None:
    assert {field.name for field in TEXTS} == {"init_text", "template", "row_template"}


@pytest.mark.parametrize("field", TEXTS, ids=lambda field: field.name)
def test_a_text_may_lie_in_a_file(field: Any, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("one\ntwo {a}")
    assert options._text_option(field, f"@{tmp_path}/text") == "one\ntwo {a}"
    assert options._text_option(field, "as it is") == "as it is"
    assert "@FILE" in field.metadata["help"]


def test_a_file_that_is_not_there_is_named(refused: Any, data: str, tmp_path: Path) -> None:
    call = ["train", "--data", data, "--output", str(tmp_path / "new"), "--init-text", "@none"]
    assert "--init-text: cannot read none as text" in refused(*call)


def test_a_start_text_is_read_from_its_file_and_what_is_cut_is_said(
    model: str,
    data: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from foreword import Backbone, SoftPrompt

    (tmp_path / "start.txt").write_text("You repeat a letter.")
    call = ["train", "--data", data, "--model", model, "--output", str(tmp_path / "new")]
    call += [word for word in FAST if word not in ("--init", "vocabulary")]
    call += ["--form", "embeddings", "--learning-rate", "1e-12"]
    call += ["--init-text", f"@{tmp_path}/start.txt"]
    monkeypatch.setattr(sys, "argv", ["foreword", *call])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert "note: --init-text has 20 tokens, and 4 virtual tokens hold the first 4: raise" in said
    backbone = Backbone.load(model)
    ids = backbone.tokenizer("You ", return_tensors="pt").input_ids[0]
    found = SoftPrompt.load(tmp_path / "new").embeddings
    assert (found - backbone.embed(ids)).abs().max() < 1e-6


@pytest.mark.parametrize("option", ["--instruction", "--context", "--choices", "--init-text"])
def test_a_file_is_read_as_text_or_refused_by_name(option: str, tmp_path: Path) -> None:
    def read(content: bytes) -> str:
        (tmp_path / "text").write_bytes(content)
        return options.text_of(f"@{tmp_path}/text", option)

    assert read(b"\xef\xbb\xbfone\r\ntwo\r\n") == "one\ntwo\n"  # as editors of Windows write it
    for content, expected in (
        (b"", "text is blank"),
        (b"\xef\xbb\xbf \r\n", "text is blank"),
        (b"\xff\xfeo\0n\0e\0", "as text"),
        (b"one\0two", "zero byte"),
        (b"\x80PNG", "as text"),
    ):
        with pytest.raises(InputError, match=f"^{option}: .*{expected}"):
            read(content)
    with pytest.raises(InputError, match=f"^{option}: cannot read .* as text .*directory"):
        options.text_of(f"@{tmp_path}", option)
    with pytest.raises(InputError, match=f"^{option}: cannot read /dev/zero as text"):
        options.text_of("@/dev/zero", option)
