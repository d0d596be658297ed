"""The guards: each is seen to act, and says what it saw and did; none speaks of a healthy run."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, EncodingConfig, Row, TrainConfig, TrainEvent, train
from foreword.errors import DivergedError, TrainingError
from foreword.training import guards, out_of_memory, step
from foreword.training.checkpoint import STATE_FILE, read_state
from foreword.training.early_stopping import worsening
from foreword.training.guards import standstill

ROWS = [
    Row.from_ids(tiny_models.ids(length).tolist(), tiny_models.ids(2, seed=5).tolist())
    for length in (4, 9, 6, 5)
]
CONFIG = TrainConfig(
    form="embeddings", num_virtual_tokens=4, batch_size=2, num_steps=30, eval_every=0,
    learning_rate=0.01,
)  # fmt: skip


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(tiny_models.build("llama", dtype=torch.float32, num_hidden_layers=1))


def events_of(backbone: Backbone, **changes: Any) -> list[TrainEvent]:
    return list(train(backbone, ROWS, dataclasses.replace(CONFIG, **changes)))


def said(events: list[TrainEvent]) -> str:
    return "\n".join(notice for event in events for notice in event.notices)


def breaking(monkeypatch: pytest.MonkeyPatch, losses: dict[int, float], times: int = 1) -> None:
    """Let the `n`-th call of the step report a loss that it did not have."""
    step, calls = out_of_memory.train_step, [0]

    def changed(run: Any, state: Any, rows: Any) -> tuple[float, float]:
        loss, norm = step(run, state, rows)
        calls[0] += 1
        loss = losses.get(calls[0], loss)
        guards.check_gradient(loss, norm)
        return loss, norm

    monkeypatch.setattr(out_of_memory, "train_step", changed)


def test_a_healthy_run_says_nothing(backbone: Backbone) -> None:
    assert said(events_of(backbone)) == ""


def test_nan_goes_back_to_the_last_good_step_at_half_the_rate(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = events_of(backbone)
    breaking(monkeypatch, {25: math.nan})
    events = events_of(backbone)
    assert [e.step for e in events] == [*range(1, 25), *range(21, 31)]
    assert "near step 25 the loss is nan" in events[24].notices[0]
    assert "back to step 20, with 0.5 of the learning rate" in events[24].notices[0]
    assert events[24].loss == calm[20].loss, "the values are those of the good step"
    assert events[24].learning_rate == calm[20].learning_rate / 2
    assert said(events[25:]) == ""


def test_an_explosion_goes_back_too(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    breaking(monkeypatch, {step: 50.0 for step in (23, 24, 25)})
    events = events_of(backbone)
    assert "rose from" in said(events) and "back to step 20" in said(events)


def test_one_hard_batch_is_no_explosion(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, {23: 50.0, 24: 50.0})
    assert said(events_of(backbone)) == ""


def test_a_point_whose_loss_is_high_is_no_good_point(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, {21: 50.0, 25: math.nan})
    assert "back to step 0" in said(events_of(backbone))


def test_a_run_that_keeps_diverging_ends(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaking(monkeypatch, {step: math.nan for step in range(25, 99)})
    with pytest.raises(DivergedError, match="went back 3 times in vain"):
        events_of(backbone)


def test_a_run_that_went_back_resumes_and_goes_back_as_one_never_stopped(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        breaking(patch, {25: math.nan, 29: math.nan})
        calm = events_of(backbone)[-1].prompt
    with monkeypatch.context() as patch:
        breaking(patch, {25: math.nan})
        events = train(backbone, ROWS, CONFIG, checkpoint=tmp_path)
        for _ in range(27):
            next(events)
        events.close()
    stored = read_state(tmp_path / STATE_FILE)
    assert (stored.progress().step, stored.progress().num_returns) == (23, 1)
    breaking(monkeypatch, {1: math.nan})
    first, *_, last = train(backbone, ROWS, CONFIG, checkpoint=tmp_path, resume=True)
    assert "back to step 20, with 0.25 of" in first.notices[0]
    assert last.prompt.content_hash == calm.content_hash


def test_a_base_that_overflows_is_trained_at_a_lower_rate() -> None:
    model = tiny_models.build("llama", dtype=torch.float32, num_hidden_layers=1)

    def overflow(module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0] * (math.inf if inputs[0].abs().max() > 2.5 else 1.0), *inputs[1:])

    model.model.layers[0].register_forward_pre_hook(overflow)
    events = events_of(Backbone(model), learning_rate=0.3)
    assert "back to step" in said(events) and events[-1].step == 30
    assert events[-1].loss < 0.7 * events[0].loss


def test_patience_ends_the_run_and_keeps_the_best(backbone: Backbone) -> None:
    config = dataclasses.replace(CONFIG, learning_rate=0.5, eval_every=1, patience=2)
    held_out = [Row.from_ids([8, 9, 10], [90, 91])]
    events = list(train(backbone, ROWS, config, validation=held_out))
    losses = [event.validation.loss for event in events]
    assert len(events) < 30 and min(losses[-2:]) > min(losses)
    assert "with no better one in 2: stopped, the best is kept" in events[-1].notices[0]
    assert events[-1].prompt.facts["metrics"]["validation"]["loss"] == min(losses)


def test_an_early_end_stays_an_end(backbone: Backbone, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, learning_rate=0.5, eval_every=1, patience=1)
    held_out = [Row.from_ids([8, 9, 10], [90, 91])]
    first = list(train(backbone, ROWS, config, validation=held_out, checkpoint=tmp_path))
    (again,) = train(backbone, ROWS, config, validation=held_out, checkpoint=tmp_path, resume=True)
    assert again.step == first[-1].step < 30


def test_validations_that_worsen_are_spoken_of_once() -> None:
    worse = [(1, 2.0), (2, 1.0), (3, 1.1), (4, 1.2), (5, 1.3)]
    assert worsening(worse[:4], 2, 0) == (None, False)
    sentence, is_over = worsening(worse, 2, 0)
    assert "was 1 at step 2 and is 1.3 now" in str(sentence) and not is_over
    assert worsening([*worse, (6, 1.4)], 2, 0) == (None, False)


def test_a_loss_that_does_not_move_is_spoken_of_once() -> None:
    flat = [3.0, 3.1] * 40
    assert "it does not move" in str(standstill(flat[:60], 10))
    assert standstill(flat[:59], 10) is standstill(flat[:61], 10) is None
    falling = [3.0 - 0.01 * step for step in range(60)]
    assert standstill(falling, 10) is None


def test_a_run_that_does_not_move_says_so(backbone: Backbone) -> None:
    assert "it does not move" in said(events_of(backbone, num_steps=60, learning_rate=1e-9))


def test_rows_that_lost_their_beginning_are_counted() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_models.build("llama", dtype=torch.float32, vocab_size=len(tokenizer))
    rows = [{"prompt": "a" * 30, "completion": "b"}, {"prompt": "a", "completion": "b"}]
    encoding = EncodingConfig(max_length=10, truncate=True, plain=True)
    config = dataclasses.replace(CONFIG, num_steps=1)
    (event,) = train(Backbone(model, tokenizer), rows, config, encoding_config=encoding)
    assert "1 of 2 rows were too long and lost their beginning; every label" in event.notices[0]


def test_a_dead_gradient_names_its_suspects() -> None:
    model = tiny_models.build("llama")
    model.model.norm.register_forward_hook(lambda module, args, output: output * 0.0)
    with pytest.raises(TrainingError, match="gradient of the prompt is zero.*hooks on model.norm"):
        events_of(Backbone(model))


def test_memory_that_runs_out_halves_a_pass_and_not_the_step(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = Backbone(tiny_models.build("llama"))
    calm = events_of(exact, batch_size=4, num_steps=3)
    score, sizes = step.score_labels, []

    def hungry(backbone: Any, prefixes: Any, batch: Any) -> Any:
        sizes.append(len(batch.input_ids))
        scores = score(backbone, prefixes, batch)
        if len(sizes) == 2:
            scores.losses.sum().backward()  # half of a backward pass is behind
            raise torch.OutOfMemoryError("CUDA out of memory")
        if sizes[-1] > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to ...")
        return scores

    monkeypatch.setattr(step, "score_labels", hungry)
    events = events_of(exact, batch_size=4, num_steps=3)
    assert sizes == [4, 2, 1, 1, 1, 1] + [1] * 8
    assert "with 4 rows in a pass; it goes on with 2" in events[0].notices[0]
    assert "goes on with 1, and as many rows in a step" in events[0].notices[1]
    for ours, theirs in zip(events, calm, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-9)
        assert ours.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-9)


def test_one_row_that_does_not_fit_is_one_line(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step, "score_labels", full)
    with pytest.raises(TrainingError, match="with one row in a pass; use --gradient-checkpoint"):
        events_of(backbone)


def test_another_runtime_error_is_not_taken_for_memory(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: Any) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(step, "score_labels", wrong)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        events_of(backbone)
