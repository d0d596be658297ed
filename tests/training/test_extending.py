"""Extending: the page's own method trains, resumes, and is a name on the command line."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, SoftPrompt, TrainConfig, train
from foreword.config import FORMS, RATES, extensions
from foreword.errors import InputError
from foreword.training.extending import register_initializer, register_method

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text()
CODE = PAGE.split("```python\n")[1].split("```")[0]
ROWS = [{"prompt": f"say {letter}", "completion": letter} for letter in "abcdefgh"]


@pytest.fixture(scope="module", autouse=True)
def other_tests_know_nothing_of_it() -> Iterator[None]:
    tables: list[dict[Any, Any]] = [FORMS, RATES, *extensions._registered.values()]
    before = [dict(table) for table in tables]
    yield
    for table, known in zip(tables, before, strict=True):
        table.clear()
        table.update(known)


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "page"}
    exec(CODE, names)
    return names


def backbone() -> Backbone:
    tokenizer = tiny_tokenizer()
    model = tiny_models.build(
        "llama", dtype=torch.float32, vocab_size=len(tokenizer), eos_token_id=2
    )
    return Backbone(model, tokenizer)


def config(**changes: Any) -> TrainConfig:
    given = {"method": "gains", "init": "mean", "num_virtual_tokens": 3, "num_steps": 6}
    return TrainConfig(**given | {"batch_size": 4} | changes)


def test_the_page_is_short(page: dict[str, Any]) -> None:
    lines = [line for line in CODE.splitlines() if line.strip()]
    assert len(lines) <= 30 and {"Gains", "mean"} <= page.keys()


def test_the_pages_method_trains_and_folds_to_a_plain_prompt(
    page: dict[str, Any], tmp_path: Path
) -> None:
    model = backbone()
    *_, last = train(model, ROWS, config(num_steps=20))
    assert last.prompt is not None and last.prompt.facts["method"] == "gains"
    assert last.prompt.facts["training"]["learning_rate"] == 0.01
    table = model.embed(torch.arange(model.capabilities.vocab_size))
    start = page["mean"](table, 3, None)
    assert not torch.allclose(last.prompt.embeddings, start)
    last.prompt.save(tmp_path)
    assert torch.equal(SoftPrompt.load(tmp_path).embeddings, last.prompt.embeddings)


def test_a_run_that_was_stopped_goes_on_bit_for_bit(page: dict[str, Any], tmp_path: Path) -> None:
    *_, whole = train(backbone(), ROWS, config())
    events = train(backbone(), ROWS, config(), checkpoint=tmp_path)
    for _ in range(3):
        next(events)
    events.close()  # type: ignore[attr-defined]
    *_, resumed = train(backbone(), ROWS, config(), checkpoint=tmp_path, resume=True)
    assert whole.prompt is not None and resumed.prompt is not None
    assert whole.prompt.content_hash == resumed.prompt.content_hash


def test_unknown_names_and_foreword_own_are_refused(page: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--method must be one of prompt-tuning.*, gains, got 'x'"):
        TrainConfig(method="x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--init must be one of .*, mean, got 'x'"):
        TrainConfig(init="x")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--method 'residual' is foreword's own"):
        register_method("residual", form="embeddings", learning_rate=1.0)
    with pytest.raises(InputError, match="--init 'text' is foreword's own"):
        register_initializer("text")
    with pytest.raises(InputError, match="learns embeddings, not --form key_values"):
        TrainConfig(method="gains", form="key_values")  # type: ignore[arg-type]


def test_an_initializer_of_another_shape_is_refused() -> None:
    register_initializer("short")(lambda table, num_virtual, generator: table[:1])
    with pytest.raises(InputError, match=r"--init short: expected \[3, .*\], got \[1, "):
        train(backbone(), ROWS, config(method="prompt-tuning", init="short"))


def test_an_installed_package_is_a_name_on_the_command_line(tmp_path: Path) -> None:
    model = backbone()
    model.model.save_pretrained(tmp_path / "model")
    model.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    site = tmp_path / "site"
    (site / "gains-1.dist-info").mkdir(parents=True)
    (site / "gains.py").write_text(CODE)
    (site / "gains-1.dist-info" / "METADATA").write_text("Name: gains\nVersion: 1\n")
    (site / "gains-1.dist-info" / "entry_points.txt").write_text(
        "[foreword.methods]\ngains = gains\n[foreword.initializers]\nmean = gains\n"
    )
    call = ["train", "--data", "rows.jsonl", "--model", "./model", "--output", "new"]
    call += ["--method", "gains", "--init", "mean", "--num-virtual-tokens", "3", "--num-steps", "2"]
    path = os.pathsep.join([str(site), str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "foreword", *call],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert SoftPrompt.load(tmp_path / "new").facts["method"] == "gains"
