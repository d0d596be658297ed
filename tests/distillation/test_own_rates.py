"""The learning rate of a distillation where nobody says one: the method's own, or a lower one."""

from dataclasses import replace
from typing import Any

import pytest
from test_distill import CONFIG, QUERIES, TEXT, backbone

from foreword import TrainConfig
from foreword.config import FORMS, RATES, extensions
from foreword.distillation.distill import _objective, distill
from foreword.distillation.lesson import prepare
from foreword.training.lr_search import rates


@pytest.mark.parametrize(
    ("method", "rate"),
    [
        ("prefix-tuning", 1e-2),  # twice 5e-3: the values of this base are large
        ("context-tuning", 1e-2),
        ("prefix-projection", 1e-3),
        ("residual", 5e-3),
        ("p-tuning", 3e-3),
    ],
)
def test_keys_of_the_text_are_trained_at_a_lower_rate_and_all_else_at_the_method_s_own(
    method: Any, rate: float
) -> None:
    model = backbone()
    lesson = prepare(model, TEXT, QUERIES, 4, CONFIG, form=FORMS[method])
    short = TrainConfig(method=method, num_steps=1, warmup_share=0.0)
    *_, last = distill(model, lesson, short)
    assert last.learning_rate == rate
    if FORMS[method] == "key_values":
        *_, last = distill(model, lesson, replace(short, learning_rate="auto"))
        assert last.prompt is not None
        tried = [one for one, _ in last.prompt.facts["training"]["probe"]]
        assert tried == rates(rate)


def test_a_registered_method_keeps_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extensions._registered["method"], "another", object())
    monkeypatch.setitem(FORMS, "another", "key_values")  # type: ignore[misc]
    monkeypatch.setitem(RATES, "another", 0.2)  # type: ignore[misc]
    model = backbone()
    lesson = prepare(model, TEXT, QUERIES, 4, CONFIG)
    config = TrainConfig(method="another")  # type: ignore[arg-type]
    assert _objective(lesson.start, config).rate_share == 1
