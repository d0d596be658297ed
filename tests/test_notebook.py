"""Notebook: a bar over a run, tables for prompts and results, and nothing anywhere else."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, Example, SoftPrompt, TrainConfig, notebook, train
from foreword.errors import FormError
from foreword.evaluation import Subject, evaluate
from foreword.prompt.prefix import Prefix

EXAMPLES = [Example(f"say {letter}", letter) for letter in "abcdefgh"]
CONFIG = TrainConfig(num_virtual_tokens=4, init="vocabulary", num_steps=4, eval_every=2)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    tokenizer = tiny_tokenizer()
    model = tiny_models.build(
        "llama", dtype=torch.float32, vocab_size=len(tokenizer), eos_token_id=2
    )
    return Backbone(model, tokenizer, name="<tiny>")


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a kernel of a notebook is given to draw, one picture after the other."""
    drawn: list[str] = []

    def draw(value: Any) -> None:
        drawn.append(value._repr_html_())

    def display(value: Any, display_id: bool) -> Any:
        assert display_id
        draw(value)
        return SimpleNamespace(update=draw)

    kernel, shell = ModuleType("IPython"), SimpleNamespace(kernel=object())
    kernel.get_ipython = lambda: shell  # type: ignore[attr-defined]
    screen = ModuleType("IPython.display")
    screen.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", screen)
    return drawn


def test_a_run_in_a_notebook_has_a_bar_to_its_end(backbone: Backbone, pictures: list[str]) -> None:
    events = list(train(backbone, EXAMPLES, CONFIG, validation=EXAMPLES[:2]))
    assert len(events) == 4 and events[-1].prompt is not None
    assert pictures[0].startswith('<progress value="1" max="4">')
    assert pictures[-1].startswith('<progress value="4" max="4">')
    assert "loss" in pictures[0] and "exact" in pictures[-1]


def test_a_run_that_is_left_early_is_closed(
    backbone: Backbone, pictures: list[str], tmp_path: Any
) -> None:
    events = train(backbone, EXAMPLES, CONFIG, checkpoint=tmp_path)
    next(events)
    events.close()  # type: ignore[attr-defined]
    resumed = list(train(backbone, EXAMPLES, CONFIG, checkpoint=tmp_path, resume=True))
    assert [event.step for event in resumed] == [2, 3, 4]


def test_a_terminal_and_a_plain_interpreter_draw_nothing(
    backbone: Backbone, pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for shell in (None, SimpleNamespace()):  # no IPython shell; IPython in a terminal
        sys.modules["IPython"].get_ipython = lambda shell=shell: shell  # type: ignore[attr-defined]
        assert not notebook.is_running()
        list(train(backbone, EXAMPLES, CONFIG))
    said = capsys.readouterr()
    assert not pictures and not said.out and not said.err


def test_prompts_and_results_are_tables(backbone: Backbone) -> None:
    *_, last = train(backbone, EXAMPLES, CONFIG, validation=EXAMPLES[:2])
    assert last.prompt is not None
    shown = last.prompt._repr_html_()
    assert "&lt;tiny&gt;" in shown and "<tiny>" not in shown and "validation loss" in shown
    assert "<td>4</td>" in backbone.compile(last.prompt)._repr_html_()
    assert "4 of 4" in last._repr_html_() and "validation exact" in last._repr_html_()
    result = evaluate(backbone, Subject("<a>", last.prompt), EXAMPLES[:4])
    assert "&lt;a&gt;, 4 examples" in result._repr_html_() and "loss" in result._repr_html_()


def views(kind: type) -> list[str]:
    return [name for name, one in vars(kind).items() if isinstance(one, property)]


def test_a_view_that_a_prompt_does_not_have_is_no_attribute(backbone: Backbone) -> None:
    written = SoftPrompt.from_embeddings(torch.ones(2, backbone.capabilities.hidden_size))
    cached = SoftPrompt.from_key_values([(torch.ones(1, 2, 4), torch.ones(1, 2, 4))])
    assert hasattr(written, "embeddings") and not hasattr(written, "key_values")
    assert hasattr(cached, "key_values") and not hasattr(cached, "embeddings")
    with pytest.raises(FormError, match="key/value prompt has no embeddings; use .key_values"):
        _ = cached.embeddings
    prefix = backbone.compile(written)
    for one in (written, cached, prefix, cached.states):
        for name in views(type(one)):
            getattr(one, name, None)  # raises nothing
    assert isinstance(prefix, Prefix) and hasattr(prefix, "key_values")
