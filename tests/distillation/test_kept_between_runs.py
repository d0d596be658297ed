"""What a distillation keeps: read again on a later day, and replaced where a run begins anew."""

import itertools
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import save_file
from tiny_tokenizer import CHATML, tiny_tokenizer
from transformers.utils import chat_template_utils

from foreword import Backbone, SoftPrompt, chat
from foreword.cli import evaluate
from foreword.config import DistillConfig
from foreword.data import template_dates
from foreword.distillation import embedding_starts, self_study, starts
from foreword.distillation import lesson as lessons
from foreword.distillation.lesson import Lesson, prepare
from foreword.errors import ArtifactError, InputError
from foreword.training.folders import STATE_FILE

DATED = "{{ strftime_now('%d %b %Y') }}" + CHATML
TEXT = "The lamp is red. The door is blue. The cat is called Ann."
QUERIES: list[Any] = [[{"role": "user", "content": text}] for text in ("a", "b", "c", "d e")]
CONFIG = DistillConfig(answer_tokens=3, answer_batch=2, top_k=8, questions=8, question_tokens=64)


def backbone(template: str = CHATML) -> Backbone:
    tokenizer = tiny_tokenizer(chat_template=template)
    model = tiny_models.build("llama", vocab_size=len(tokenizer), max_position_embeddings=1024)
    return Backbone(model, tokenizer)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    class Clock(template_dates.datetime):  # type: ignore[misc,name-defined]
        day = 1

        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls(2026, 1, cls.day)

    monkeypatch.setattr(template_dates, "datetime", Clock)
    return Clock


@pytest.fixture
def questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a model without sense ask: questions are not what is tested here."""
    count = itertools.count()
    said = lambda *args: [f"is it {next(count)} or what?" for _ in args[2]]  # noqa: E731
    monkeypatch.setattr(self_study, "_said", said)


def lesson(base: Backbone, queries: Any, folder: Path | None, **options: Any) -> Lesson:
    text = options.pop("text", TEXT)
    return prepare(base, text, queries, 8, CONFIG, folder=folder, **options)


@pytest.mark.usefixtures("questions")
@pytest.mark.parametrize("queries", [QUERIES, None])
def test_a_run_that_goes_on_another_day_reads_the_same_text(
    queries: Any, clock: Any, tmp_path: Path
) -> None:
    base = backbone(DATED)
    first = lesson(base, queries, tmp_path)
    clock.day = 2
    again = lesson(base, queries, tmp_path)
    assert again.text.content_hash == first.text.content_hash
    assert chat.encoding_of(again.text).date == "2026-01-01"
    assert again.rows == first.rows and again.encoding == first.encoding
    anew = lesson(base, queries, tmp_path, is_anew=True)
    assert chat.encoding_of(anew.text).date == "2026-01-02"
    assert anew.text.content_hash != first.text.content_hash


@pytest.mark.parametrize("recorded", [{}, {"encoding": {"is_text": False, "date": None}}])
def test_a_run_from_a_prompt_without_a_day_reads_the_same_rows_on_another(
    clock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: dict[str, Any]
) -> None:
    monkeypatch.setattr(chat_template_utils, "datetime", clock)
    base = backbone(DATED)
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(base.model, 12), facts=recorded)
    first = lesson(base, QUERIES, tmp_path, text=prompt)
    clock.day = 2
    again = lesson(base, QUERIES, tmp_path, text=prompt)
    assert again.rows == first.rows and again.encoding == first.encoding
    assert again.encoding.date == "2026-01-01"


def test_a_prompt_s_own_day_is_that_of_its_rows(clock: Any, tmp_path: Path) -> None:
    base = backbone(DATED)
    facts = {"encoding": {"is_text": False, "date": "2025-12-24"}}
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(base.model, 12), facts=facts)
    assert lesson(base, QUERIES, tmp_path, text=prompt).encoding.date == "2025-12-24"


@pytest.mark.usefixtures("questions")
@pytest.mark.parametrize("queries", [QUERIES, None])
def test_what_is_of_another_text_is_replaced_only_where_a_run_begins_anew(
    queries: Any, tmp_path: Path
) -> None:
    base, other = backbone(), TEXT.replace("red", "green")
    lesson(base, queries, tmp_path)
    with pytest.raises(InputError, match="begin anew with --overwrite"):
        lesson(base, queries, tmp_path, text=other)
    replaced = lesson(base, queries, tmp_path, text=other, is_anew=True)
    kept = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.*")}
    again = lesson(base, queries, tmp_path, text=other, is_anew=True)  # what fits is not made anew
    assert kept == {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.*")}
    assert again.rows == replaced.rows and torch.equal(*_starts(again, replaced))


@pytest.mark.parametrize("form", ["key_values", "embeddings"])
def test_what_a_run_starts_from_is_computed_once(
    form: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = backbone()
    first = lesson(base, QUERIES, tmp_path, form=form)
    kept = _times(tmp_path)
    # As where another release of torch, or other kernels, would draw and match otherwise.
    draw = lessons.written_rows
    monkeypatch.setattr(lessons, "written_rows", lambda *args: draw(*args[:3], 1, *args[4:]))
    for module in (starts, embedding_starts):
        monkeypatch.setattr(module, "begin", partial(_doubled, module.begin))
    other = lesson(base, QUERIES, None, form=form)
    assert other.rows != first.rows and not torch.equal(*_starts(other, first))
    again = lesson(base, QUERIES, tmp_path, form=form)
    assert again.rows == first.rows and torch.equal(*_starts(again, first))
    assert again.start.layout == first.start.layout and again.said == first.said
    assert again.start.facts == first.start.facts
    # Of other options nothing fits; what a run that may go on began with is not replaced.
    (tmp_path / STATE_FILE).touch()
    less = lesson(base, QUERIES, tmp_path, form=form, seed=2)
    assert less.rows != first.rows and _times(tmp_path).items() >= kept.items()
    (tmp_path / STATE_FILE).unlink()
    lesson(base, QUERIES, tmp_path, form=form, seed=2)
    changed = {name for name, time in _times(tmp_path).items() if time != kept[name]}
    assert changed == {"prompt.safetensors", "unrelated.safetensors"}


@pytest.mark.parametrize("name", ["prompt", "unrelated"])
def test_a_damaged_start_is_named(name: str, tmp_path: Path) -> None:
    base = backbone()
    lesson(base, QUERIES, tmp_path)
    file = tmp_path / "start" / f"{name}.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match=rf"{name}\.safetensors: damaged .*remove it"):
        lesson(base, QUERIES, tmp_path)
    save_file({"a": torch.ones(1)}, file)
    with pytest.raises(ArtifactError, match=r"no start of a distillation.*remove it"):
        lesson(base, QUERIES, tmp_path)
    lesson(base, QUERIES, tmp_path, is_anew=True)
    lesson(base, QUERIES, tmp_path)


def _doubled(begin: Any, *args: Any) -> tuple[SoftPrompt, str]:
    prompt, said = begin(*args)
    return prompt.replaced([2 * one for one in prompt.tensors], prompt.facts), said


def _times(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.rglob("*.*")}


def _starts(*lessons: Lesson) -> Any:
    return [one.start.tensors[0] for one in lessons]


def test_eval_reads_the_text_on_the_day_of_the_prompt(clock: Any) -> None:
    base = backbone(DATED)
    first = lesson(base, QUERIES, None)
    prompt = first.start.replaced(first.start.tensors, {"encoding": asdict(first.encoding)})
    clock.day = 2
    whole = evaluate._whole(base, TEXT, prompt)
    assert whole is not None and whole.content_hash == first.text.content_hash
    today = evaluate._whole(base, TEXT, None)
    assert today is not None and today.content_hash != first.text.content_hash
    assert evaluate._whole(backbone(), TEXT, prompt) is not None
