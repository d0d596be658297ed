"""Losses of several answers to a question are those of whole rows, and it is read once."""

from typing import Any

import pytest
import tiny_models
from contract import prompt_of

from foreword import Backbone, Row
from foreword.config import EvalConfig
from foreword.evaluation import choice_losses as module
from foreword.evaluation.choice_losses import choice_losses, num_shared
from foreword.evaluation.losses import mixed_losses

NUM_CHOICES, CONFIG = 3, EvalConfig(batch_size=4)


def row(ids: tuple[int, ...], num_labels: int) -> Row:
    return Row(ids, num_labels, "a row")


def rows_of(lengths: tuple[int, ...] = (14, 3, 30)) -> list[Row]:
    """Return rows of questions, each before the same three answers."""
    answers = [(7, 9), (7, 8, 5), (3,)]
    return [
        row((*tiny_models.ids(length, seed).tolist(), *answer), len(answer))
        for seed, length in enumerate(lengths)
        for answer in answers
    ]


@pytest.mark.parametrize("num_prompts", [0, 1, 2])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_losses_are_those_of_whole_rows(family: str, num_prompts: int) -> None:
    backbone, rows = Backbone(tiny_models.shared(family)), rows_of()
    prompts: list[Any] = [prompt_of(family, "embeddings", 3 + n) for n in range(num_prompts)]
    found = choice_losses(backbone, prompts or [None], rows, NUM_CHOICES, CONFIG)
    expected = [loss for loss, _ in mixed_losses(backbone, prompts or [None], rows, CONFIG)]
    tolerance = tiny_models.TOLERANCES.get(family, 1e-9)
    assert found == pytest.approx(expected, rel=tolerance)


def test_a_question_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, real = list[int](), module.mixed_losses

    def noted(backbone: Any, prompts: Any, rows: Any, config: Any) -> Any:
        sizes.extend(len(row.input_ids) for row in rows)
        return real(backbone, prompts, rows, config)

    monkeypatch.setattr(module, "mixed_losses", noted)
    choice_losses(Backbone(tiny_models.shared("llama")), [None], rows_of(), NUM_CHOICES, CONFIG)
    assert sizes == [3, 4, 2, 5, 6, 4, 3, 4, 2]  # those of the short question whole


def test_what_is_shared_ends_before_the_token_that_predicts_a_label() -> None:
    assert num_shared([row((1, 2, 3, 4, 5), 2), row((1, 2, 3, 4), 1)]) == 2
    assert num_shared([row((1, 2, 3, 4, 5), 2), row((1, 6, 3, 4), 1)]) == 1
    assert num_shared([row((1, 2), 1), row((1, 3), 1)]) == 0
    assert num_shared([row((1, 2), 2), row((1, 3), 1)]) == 0


def test_ids_that_an_answer_changes_are_not_shared() -> None:
    backbone = Backbone(tiny_models.shared("llama"))
    ids = tiny_models.ids(20, 1).tolist()
    rows = [row((*ids, 5), 1), row((*ids[:15], *(one + 1 for one in ids[15:]), 6), 1)]
    expected = [loss for loss, _ in mixed_losses(backbone, [None], rows, CONFIG)]
    assert choice_losses(backbone, [None], rows, 2, CONFIG) == pytest.approx(expected, rel=1e-9)
