"""Learning-rate search (`--lr auto`): short trials at a few rates around the method's own.

In: a run whose rate is not known. Out: the rate with the lowest loss, as facts that a prompt keeps,
and a sentence. The same data, seed and base find the same rate. Leaves the run as it was, and
writes no file.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from foreword.data.encoding import Row
from foreword.errors import DivergedError
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.methods.method import Method, demonstrated, task_prompts
from foreword.training.out_of_memory import step_that_fits
from foreword.training.run import Run
from foreword.training.start import begin, default_rate, start_state

FACTORS = (0.1, 0.3, 1.0, 3.0)  # of the method's own rate
NUM_JUDGED = 64  # rows whose loss decides
MOST_STEPS = 20  # of one trial
SHARE = 0.1  # of the run's steps that one trial takes


def rates(default: float) -> list[float]:
    """Return the learning rates to try around a method's own, the lowest first."""
    return [float(f"{default * factor:.3g}") for factor in FACTORS]


def num_steps(whole: int) -> int:
    """Return how many steps a trial takes, given those of the run."""
    return min(whole, MOST_STEPS, max(4, round(SHARE * whole)))


def chosen(losses: Mapping[float, float], steps: int) -> tuple[dict[str, Any], str]:
    """Return the rate with the lowest loss, as facts that a prompt keeps, and say it.

    Raises:
        DivergedError: every trial diverged.
    """
    finite = {rate: loss for rate, loss in losses.items() if math.isfinite(loss)}
    if not finite:
        raise DivergedError(
            f"--lr auto: all of {', '.join(f'{rate:g}' for rate in losses)} diverged within "
            f"{steps} steps; give a lower --learning-rate"
        )
    best = min(finite, key=lambda rate: (finite[rate], rate))
    shown = ", ".join(f"{rate:g}: {loss:.3g}" for rate, loss in losses.items())
    facts = {
        "learning_rate": best,
        "probe": [[rate, finite.get(rate)] for rate in losses],
    }
    return facts, f"learning rate {best:g}, by the loss after {steps} steps at {shown}"


def search(run: Run, initial: SoftPrompt | None) -> tuple[dict[str, Any], str]:
    """Train a copy for a few steps at each of a few rates; return the best rate with all losses,
    and say so. Takes no file and leaves the run as it was.
    """
    count, losses = num_steps(run.num_steps), {}
    share = run.objective.rate_share
    for rate in rates(share * default_rate(run.backbone, run.config)):
        config = replace(run.config, learning_rate=rate, num_steps=count)
        trial = replace(run, config=config, file=None, _epoch={})
        state = start_state(trial, begin(run.backbone, initial, run.rows, config))
        try:
            for step in range(count):
                state.set_rate(trial.rate_of(step))
                loss, _ = step_that_fits(trial, state, trial.rows_of(step), [])
                state.record(loss, rate, 0.0)
            prompts = task_prompts(state.method) or state.prompt
            size = state.progress.micro_batch_size
            judged = _judged(run, state.method)[:NUM_JUDGED]
            found = run.objective.validate(run.backbone, prompts, judged, size, run.ranks)
            losses[rate] = found.loss
        except DivergedError:
            losses[rate] = math.inf
    return chosen(losses, count)


def _judged(run: Run, method: Method) -> list[Row]:
    """Return rows that can tell rates apart: held-out ones, else those that the prompt holds none
    of, where there are any.
    """
    own = demonstrated(method)
    return run.held_out or [row for row in run.rows if row.input_ids not in own] or run.rows
