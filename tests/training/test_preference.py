"""Preference optimization: its gradient is the obvious one, and its reference is the start."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import oracle
import pytest
import tiny_models
import torch
from stopped_runs import events_until
from tiny_tokenizer import tiny_tokenizer
from torch import Tensor
from training_oracle import ROWS

from foreword import Backbone, Row, SoftPrompt, TrainConfig, TrainEvent, train
from foreword.config import ObjectiveConfig
from foreword.data.batches import collate
from foreword.data.row import every
from foreword.errors import InputError
from foreword.training import setup
from foreword.training.checkpoint import STATE_FILE, read_state
from foreword.training.distributed import ALONE, Ranks
from foreword.training.micro_batches import micro_batches
from foreword.training.objective import LIKELIHOOD
from foreword.training.packing.packed_decoder import packed
from foreword.training.preference import Preference, objective_of
from foreword.training.reference import log_probabilities, with_reference
from foreword.training.step import accumulate, detached

PLAIN = [Preference(0.3), Preference(2.0, is_normalized=True)]
OBJECTIVES = [*PLAIN, *(replace(one, chosen_weight=0.7) for one in PLAIN)]
PAIRS = [
    replace(row, rejected=Row.from_ids(row.input_ids[: -row.num_labels], other.tolist()))
    for row, other in zip(ROWS, (tiny_models.ids(n, seed=n) for n in (2, 6, 1, 4)), strict=True)
]
CONFIG = TrainConfig(
    form="key_values", num_virtual_tokens=4, init="vocabulary", batch_size=2, num_steps=6,
    eval_every=1, save_every=1, learning_rate=0.05,
)  # fmt: skip


def said(model: Any, prompt: SoftPrompt, row: Row) -> Tensor:
    """Return the log probability of each label of one concatenated row."""
    ids = torch.tensor(row.input_ids)
    logits = oracle.row_logits(model, prompt, ids)[-row.num_labels - 1 : -1]
    return logits.log_softmax(-1).gather(-1, ids[-row.num_labels :, None])[:, 0]


def obvious(model: Any, prompt: SoftPrompt, start: SoftPrompt, how: Preference) -> Tensor:
    """Return the mean loss of the pairs as the papers write it, one row at a time."""
    losses = []
    for pair in PAIRS:
        assert pair.rejected is not None
        ahead = []
        for row in (pair, pair.rejected):
            with torch.no_grad():
                reference = said(model, start, row).sum()
            ratio = said(model, prompt, row).sum() - reference
            ahead.append(ratio / row.num_labels if how.is_normalized else ratio)
        losses.append(-torch.log(1 / (1 + torch.exp(-how.beta * (ahead[0] - ahead[1])))))
        losses[-1] = losses[-1] - how.chosen_weight * said(model, prompt, pair).mean()
    return torch.stack(losses).mean()


@pytest.mark.parametrize("size", [4, 2, 1])
@pytest.mark.parametrize("how", OBJECTIVES)
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "qwen3"])
def test_loss_and_gradient_are_those_of_the_formula(
    family: str, how: Preference, size: int
) -> None:
    model = tiny_models.with_exact_norms(tiny_models.build(family))
    backbone = Backbone(model)
    start = SoftPrompt.from_states(
        backbone.compile(SoftPrompt.from_embeddings(tiny_models.embeddings(model, 6))).states
    )
    moved = start.replaced([one + 0.3 * torch.randn_like(one) for one in start.tensors])
    rows = with_reference(PAIRS, log_probabilities(backbone, start, every(PAIRS), 3))
    theirs = moved.trainable(torch.float64)
    expected = obvious(model, theirs, start, how)
    expected.backward()
    for change in (lambda one: one, packed):
        leaves = detached(moved.trainable(torch.float64).states)
        batches = [collate(rows[i : i + size], 0) for i in range(0, len(rows), size)]
        loss = accumulate(change(backbone), [leaves], batches, objective=how)
        tolerance = tiny_models.GRADIENT_TOLERANCES.get(family, 1e-9)
        assert loss == pytest.approx(expected.item(), rel=tolerance)
        for mine, obvious_one in zip(leaves.tensors, theirs.tensors, strict=True):
            difference = (mine.grad - obvious_one.grad).norm() / obvious_one.grad.norm()
            assert difference < tolerance
    held_out = how.validate(backbone, moved, rows, 3, ALONE)
    assert held_out.loss == pytest.approx(expected.item(), rel=1e-6)


def test_the_reference_is_each_labels_log_probability() -> None:
    model = tiny_models.build("llama")
    backbone = Backbone(model)
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(model, 5))
    found = log_probabilities(backbone, prompt, every(PAIRS), 3)
    for row in every(with_reference(PAIRS, found)):
        expected = said(model, prompt, row)
        torch.testing.assert_close(torch.tensor(row.reference, dtype=torch.float64), expected)


def test_a_process_without_rows_adds_nothing() -> None:
    backbone = Backbone(tiny_models.build("llama"))
    start = SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 5))
    rows = with_reference(PAIRS, log_probabilities(backbone, start, every(PAIRS)))
    leaves = detached(backbone.compile(start).states)
    batches = micro_batches(backbone, Ranks(1, 2), rows[:1], 1)
    assert accumulate(backbone, [leaves], batches, 1, objective=OBJECTIVES[0]) == 0
    assert all(not one.grad.any() for one in leaves.tensors if one.grad is not None)


def curves(events: list[TrainEvent]) -> list[tuple[Any, ...]]:
    return [(e.step, e.loss, e.gradient_norm, e.learning_rate, e.validation) for e in events]


@pytest.mark.parametrize("how", PLAIN)
def test_the_preferred_answers_come_ahead_from_an_even_start(how: Preference) -> None:
    backbone = Backbone(tiny_models.build("llama"))
    config = replace(CONFIG, num_steps=40, batch_size=4, warmup_share=0.0)
    events = list(train(backbone, PAIRS, config, validation=PAIRS, objective=how))
    first, last = events[0], events[-1].prompt
    assert first.loss == pytest.approx(math.log(2), abs=1e-6)
    assert first.num_tokens == sum(len(row.input_ids) for row in every(PAIRS))
    assert last is not None
    found = last.facts["metrics"]["validation"]
    assert found["loss"] < 0.2 and found["preferred"] == 1
    assert last.facts["training"]["objective"] == how.identity["objective"]
    assert last.facts["history"]["validation"]["preferred"][-1] == 1


@pytest.mark.parametrize("how", OBJECTIVES)
def test_a_run_that_was_stopped_goes_on_bit_for_bit_with_the_reference_of_its_start(
    how: Preference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone(tiny_models.build("llama", dtype=torch.float32))

    def run(folder: Path, stop: int = 0) -> list[TrainEvent]:
        events = train(
            backbone, PAIRS, CONFIG, validation=PAIRS[:2], checkpoint=folder, resume=True,
            objective=how,
        )  # fmt: skip
        return events_until(events, stop)

    whole = run(tmp_path / "calm")
    parts = run(tmp_path / "left", 2)
    monkeypatch.setattr(setup, "log_probabilities", None)  # it is kept, and not computed again
    parts += run(tmp_path / "left", 5) + run(tmp_path / "left")
    assert curves(parts) == curves(whole) and len(parts) == 6
    states = [read_state(tmp_path / name / STATE_FILE) for name in ("calm", "left")]
    for name, value in states[0].tensors.items():
        assert torch.equal(value, states[1].tensors[name]), name
    count = sum(row.num_labels for row in every([*PAIRS, *PAIRS[:2]]))
    assert states[0].reference().shape == (count,)


def test_a_run_is_not_gone_on_with_by_another_objective(tmp_path: Path) -> None:
    backbone = Backbone(tiny_models.build("llama", dtype=torch.float32))

    def run(objective: Any) -> Any:
        rows = ROWS if objective is LIKELIHOOD else PAIRS
        events = train(
            backbone, rows, CONFIG, checkpoint=tmp_path, resume=True, objective=objective
        )
        return events_until(events, 1)

    run(Preference(0.3))
    with pytest.raises(InputError, match="--beta was 0.3, is 0.5"):
        run(Preference(0.5))
    with pytest.raises(InputError, match="--chosen-weight was not given, is 0.2"):
        run(Preference(0.3, chosen_weight=0.2))
    with pytest.raises(InputError, match="--objective was 'dpo', is 'dpo-norm'"):
        run(Preference(0.3, is_normalized=True))
    with pytest.raises(InputError, match="--objective was 'dpo', is 'likelihood'"):
        run(LIKELIHOOD)


def test_a_run_is_not_gone_on_with_without_the_weight_that_it_began_with(tmp_path: Path) -> None:
    backbone = Backbone(tiny_models.build("llama", dtype=torch.float32))

    def run(how: Preference) -> Any:
        events = train(backbone, PAIRS, CONFIG, checkpoint=tmp_path, resume=True, objective=how)
        return events_until(events, 1)

    run(Preference(0.3, chosen_weight=0.2))
    with pytest.raises(InputError, match="--chosen-weight was 0.2, is not given"):
        run(Preference(0.3))


def test_options_become_an_objective() -> None:
    assert objective_of(ObjectiveConfig()) is LIKELIHOOD
    assert objective_of(ObjectiveConfig("dpo")) == Preference(0.1)
    assert objective_of(ObjectiveConfig("dpo-norm")) == Preference(5.0, is_normalized=True)
    assert objective_of(ObjectiveConfig("dpo", beta=0.4)) == Preference(0.4)
    assert objective_of(ObjectiveConfig("dpo", chosen_weight=1)) == Preference(chosen_weight=1)
    with pytest.raises(InputError, match="--beta 0.4 is of --objective dpo"):
        ObjectiveConfig(beta=0.4)
    with pytest.raises(InputError, match="--chosen-weight 1 is of --objective dpo"):
        ObjectiveConfig(chosen_weight=1)
    with pytest.raises(InputError, match="chosen.weight"):
        ObjectiveConfig("dpo", chosen_weight=-1)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"init": "text"}, "--init-prompt DIR or --init-text"),
        ({"init": "text", "form": None, "method": "multitask", "init_text": "a"}, "multitask"),
        ({"form": None, "method": "context-tuning", "init": "demonstrations"}, "context-tuning"),
    ],
)
def test_a_start_that_cannot_be_compared_with_is_refused(
    changes: dict[str, Any], named: str
) -> None:
    backbone = Backbone(tiny_models.build("llama"), tiny_tokenizer())
    with pytest.raises(InputError, match=named):
        train(backbone, PAIRS, replace(CONFIG, **changes), objective=OBJECTIVES[0])


def test_rows_of_the_other_kind_are_refused() -> None:
    backbone = Backbone(tiny_models.build("llama"))
    with pytest.raises(InputError, match="expected two answers, one preferred, found one"):
        train(backbone, ROWS, CONFIG, objective=OBJECTIVES[0])
    with pytest.raises(InputError, match="expected one answer, found two: --objective dpo"):
        train(backbone, PAIRS, CONFIG)


def test_rows_of_columns_are_read_and_a_rate_is_found() -> None:
    model = tiny_models.build("llama", dtype=torch.float32, vocab_size=len(tiny_tokenizer()))
    backbone = Backbone(model, tiny_tokenizer())
    rows = [{"prompt": f"say {n}", "chosen": f"{n}", "rejected": f"{n} {n}"} for n in range(6)]
    config = replace(CONFIG, learning_rate="auto", num_steps=4)
    events = list(train(backbone, rows, config, validation=rows[:2], objective=OBJECTIVES[0]))
    assert any("learning rate" in notice for notice in events[0].notices)
    assert events[-1].validation is not None and events[-1].validation.preferred is not None
    prompt = events[-1].prompt
    assert prompt is not None and json.dumps(prompt.facts["training"])
