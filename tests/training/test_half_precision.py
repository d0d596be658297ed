"""Half precision: gradients and sums over a base in float16 or bfloat16 are those of float64."""

import copy
import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from torch import Tensor
from training_oracle import ROWS

from foreword import Backbone, Row, SoftPrompt, TrainConfig, train
from foreword.data.batches import collate
from foreword.engine import sampling
from foreword.engine.sampling import Sampler, Sampling
from foreword.evaluation import ensembles
from foreword.evaluation.losses import label_losses
from foreword.model.embedding_scale import applied_scale
from foreword.training import initializers, loss_scale, step
from foreword.training.checkpoint import STATE_FILE, read_state
from foreword.training.distributed import ALONE
from foreword.training.run import Run
from foreword.training.start import begin, start_state
from foreword.training.state import TrainState
from foreword.training.validation import validate

CONFIG = TrainConfig(
    num_virtual_tokens=4, batch_size=1, num_steps=1, learning_rate=0.01, max_grad_norm=0.0
)
FORMS = ("embeddings", "key_values")


@functools.cache
def base(dtype: torch.dtype, scale: float = 0.02) -> Backbone:
    """Return a model whose weights are numbers of float16 and bfloat16, whatever its dtype."""
    model = tiny_models.build("llama", dtype=torch.bfloat16, initializer_range=scale).half()
    return Backbone(copy.deepcopy(model).to(dtype))


def rows_of(count: int, num_labels: int) -> list[Row]:
    return [
        Row.from_ids(
            tiny_models.ids(5, seed=number).tolist(), tiny_models.ids(num_labels, number).tolist()
        )
        for number in range(count)
    ]


def standing(
    backbone: Backbone, form: str, rows: list[Row], size: int, **changes: Any
) -> tuple[Run, TrainState]:
    """Return a run and its state before the first step, all from one prompt."""
    config = dataclasses.replace(
        CONFIG, form=form, batch_size=len(rows), micro_batch_size=size, **changes
    ).resolved()
    start = SoftPrompt.from_embeddings(tiny_models.embeddings(base(torch.float64).model, 4))
    if form == "key_values":
        start = SoftPrompt.from_states(base(torch.float64).compile(start).states)
    run = Run(backbone, rows, [], config, ALONE, {})
    return run, start_state(run, begin(backbone, start, rows, config))


def gradient(backbone: Backbone, form: str, rows: list[Row], size: int) -> Tensor:
    """Return a step's gradient as one row of float64."""
    run, state = standing(backbone, form, rows, size)
    seen: list[Tensor] = []
    state.optimizer.step = lambda: seen.extend(  # type: ignore[method-assign,assignment]
        tensor.grad.double().flatten() for tensor in state.method.tensors
    )
    step.train_step(run, state, rows)
    return torch.cat(seen)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


# Rows, labels of each, rows in a pass.
LABELS = {1: (1, 1, 1), 64: (16, 4, 16), 640: (16, 40, 16), 6_400: (32, 200, 32)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_labels", LABELS)
def test_a_gradient_in_float16_does_not_fade_with_many_labels(form: str, num_labels: int) -> None:
    count, each, size = LABELS[num_labels]
    rows = rows_of(count, each)
    assert sum(row.num_labels for row in rows) == num_labels
    expected = gradient(base(torch.float64), form, rows, size)
    assert error(gradient(base(torch.float16), form, rows, size), expected) < 2e-3


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_micro_batches_add_up_as_one_does(form: str, dtype: torch.dtype) -> None:
    """Their own rounding apart: that of a sum would grow with them."""
    rows = [*rows_of(1, 3)] * 128
    one = gradient(base(dtype), form, rows[:1], 1)
    assert error(gradient(base(dtype), form, rows, 1), one) < 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_a_gradient_past_the_range_of_float16_is_taken_again(form: str) -> None:
    rows, rough = rows_of(16, 40), base(torch.float16, 0.3)
    run, state = standing(rough, form, rows, 16)
    state.progress.scale_exponent = 24
    loss, norm = step.train_step(run, state, rows)
    assert state.progress.scale_exponent < 24
    run, calm = standing(base(torch.float64, 0.3), form, rows, 16)
    assert (loss, norm) == pytest.approx(step.train_step(run, calm, rows), rel=0.02)


def test_a_loss_that_is_not_finite_lowers_no_scale() -> None:
    progress = standing(base(torch.float16), "embeddings", ROWS, 4)[1].progress
    for loss, norm in ((math.nan, math.nan), (math.inf, math.inf), (1.0, 2.0)):
        assert not loss_scale.is_lowered(torch.float16, progress, loss, norm)
    assert not loss_scale.is_lowered(torch.float32, progress, 1.0, math.inf)
    progress.scale_exponent = loss_scale.LOWEST
    assert not loss_scale.is_lowered(torch.float16, progress, 1.0, math.inf)


def test_a_scale_rises_again_up_to_its_highest() -> None:
    progress = standing(base(torch.float16), "embeddings", ROWS, 4)[1].progress
    assert progress.scale_exponent == loss_scale.HIGHEST
    progress.scale_exponent, found = loss_scale.HIGHEST - 2, []
    for number in range(1, 401):
        progress.step = number
        loss_scale.raise_if_due(progress)
        found.append(progress.scale_exponent)
    assert [found[place] for place in (98, 99, 198, 199, 399)] == [10, 11, 11, 12, 12]


@pytest.mark.parametrize("form", FORMS)
def test_a_run_in_float16_goes_on_bit_for_bit(form: str, tmp_path: Path) -> None:
    config = dataclasses.replace(
        CONFIG, form=form, num_steps=6, batch_size=3, micro_batch_size=2, max_grad_norm=0.1
    )
    rough = base(torch.float16, 0.3)
    calm = list(train(rough, ROWS, config, checkpoint=tmp_path / "calm"))
    for stop in (2, 4, 6):
        for event in (run := train(rough, ROWS, config, checkpoint=tmp_path, resume=True)):
            if event.step == stop:
                run.close()  # type: ignore[attr-defined]
    stored, whole = (read_state(path / STATE_FILE) for path in (tmp_path, tmp_path / "calm"))
    assert stored.history().losses == [event.loss for event in calm]
    assert stored.result().content_hash == whole.result().content_hash
    assert stored.progress().scale_exponent == whole.progress().scale_exponent


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_bases_are_not_scaled(dtype: torch.dtype) -> None:
    assert loss_scale.of_labels(dtype, 640, 12) == 1
    states = base(dtype).compile(SoftPrompt.from_embeddings(torch.ones(2, 32))).cached
    leaves = loss_scale.wide_leaves(states)
    assert loss_scale.as_given(leaves, states).tensors[0] is leaves.tensors[0]
    assert leaves.tensors[0].dtype == dtype


# --- sums ---------------------------------------------------------------------------------------

HALF = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


@HALF
def test_a_random_start_has_the_tables_own_moments(dtype: torch.dtype) -> None:
    table = (torch.randn(4096, 6, generator=torch.Generator().manual_seed(0)) * 3 + 2).to(dtype)
    found = initializers.random_embeddings(table, 3, torch.Generator().manual_seed(1))
    noise = torch.randn(3, 6, generator=torch.Generator().manual_seed(1)).double()
    wide = table.double()
    torch.testing.assert_close(
        found.double(), wide.mean(0) + noise * wide.std(0), rtol=1e-5, atol=1e-5
    )


@HALF
def test_a_labels_start_is_the_mean_of_its_tokens(dtype: torch.dtype) -> None:
    table = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    (found,) = initializers.label_embeddings(table, [range(1, 30)], 1, torch.Generator())
    torch.testing.assert_close(found.double(), table[1:30].double().mean(0), rtol=1e-5, atol=1e-6)


@HALF
def test_mean_probabilities_are_those_of_float64(dtype: torch.dtype) -> None:
    scores = (torch.randn(4, 5000, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    found = ensembles._Mean(2)(torch.zeros(4, 1), scores)
    expected = scores.double().softmax(-1).unflatten(0, (2, 2)).mean(1).log()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[::2].double(), expected, rtol=1e-5, atol=1e-5)


@HALF
@pytest.mark.parametrize("form", FORMS)
def test_a_validation_loss_is_that_of_float64_logits(dtype: torch.dtype, form: str) -> None:
    backbone, rows = base(dtype), rows_of(40, 60)
    run, state = standing(backbone, form, rows, 8)
    prompt, losses = state.prompt.detached(), []
    with torch.no_grad():
        for batch in step.micro_batches(backbone, ALONE, rows, 8):
            prefixes = backbone.batch_of(prompt, len(batch.input_ids))
            states, labels, _ = backbone.label_states(prefixes, batch)
            logits = backbone.head(states).double()
            losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    found = validate(backbone, prompt, rows, 8)
    assert found.loss == pytest.approx(torch.cat(losses).mean().item(), rel=1e-6)


@HALF
def test_row_losses_are_those_of_float64_logits(dtype: torch.dtype) -> None:
    backbone, rows = base(dtype), rows_of(6, 60)
    found = label_losses(backbone, None, rows)
    with torch.no_grad():
        states, labels, of = backbone.label_states(
            backbone.batch_of(None, 6), collate(rows, backbone.padding_id)
        )
        logits = backbone.head(states).double()
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    for number, (loss, _) in enumerate(found):
        assert loss == pytest.approx(losses[of == number].sum().item(), rel=1e-6)


@HALF
def test_logprobs_of_the_engine_are_those_of_float64(dtype: torch.dtype) -> None:
    logits = (torch.randn(2, 5000, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    expected = logits.double().log_softmax(-1)
    for row, one in enumerate(sampling.report(logits, torch.tensor([7, 9]), 3)):
        assert one.logprob == pytest.approx(expected[row, one.id].item(), rel=1e-5)
    asked = Sampling(temperature=0.8, top_p=0.9, seed=1, num_logprobs=1)
    wide, found = (
        sampling.choose(one, [Sampler(asked), Sampler(asked)]) for one in (logits.double(), logits)
    )
    assert [one and one.id for one in found] == [one and one.id for one in wide]


def test_an_embedding_scale_is_found_past_the_range_of_float16() -> None:
    """A difference whose norm float16 cannot hold is no tie."""
    plain, scaled = torch.full((64, 64), 6e4).half(), torch.full((64, 64), 3e4).half()
    assert applied_scale(2.0, lambda: torch.zeros(64, 64).half(),
                         lambda by: plain if by == 1 else scaled) == 2.0  # fmt: skip
