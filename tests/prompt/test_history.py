"""A run's curves: bounded in a prompt, the same after a resume, drawn in a line."""

import json
import math
import subprocess
import sys

import pytest

from foreword.prompt import history
from foreword.prompt.history import History, ValidationPoint


def of(num_steps: int, every: int = 0) -> History:
    steps = range(1, num_steps + 1)
    due = [step for step in steps if every and step % every == 0]
    validations = [ValidationPoint(step, 1 / step, 0.5, 0.75) for step in due]
    return History([1 / step for step in steps], [step / 8 for step in steps], validations)


def test_a_short_run_is_kept_step_by_step() -> None:
    assert of(2, 2).facts() == {
        "step": [1, 2], "loss": [1.0, 0.5], "learning_rate": [0.125, 0.25],
        "validation": {"step": [2], "loss": [0.5], "exact": [0.5], "agreement": [0.75]},
    }  # fmt: skip


def test_a_run_that_an_earlier_release_began_has_no_curve_of_agreement() -> None:
    run = of(4, 2)
    run.validations[0] = ValidationPoint(2, 0.5, 0.5)
    facts = run.facts()
    assert facts["validation"] == {"step": [2, 4], "loss": [0.5, 0.25], "exact": [0.5, 0.5]}
    assert history.wrong(facts) is None
    facts["validation"]["agreement"] = [0.5]
    assert "not equally long" in str(history.wrong(facts))


@pytest.mark.parametrize("num_steps", [200, 201, 5003])
def test_a_long_run_is_thinned_evenly_to_its_last_step(num_steps: int) -> None:
    facts = of(num_steps, 1).facts()
    steps = [0, *facts["step"]]
    gaps = {end - start for start, end in zip(steps, steps[1:], strict=False)}
    assert len(facts["loss"]) == 200 and steps[-1] == num_steps and max(gaps) - min(gaps) <= 1
    assert facts["validation"]["step"] == facts["step"] and history.wrong(facts) is None
    assert len(json.dumps(facts)) < 20_000


def test_a_point_is_the_mean_of_the_steps_since_the_one_before() -> None:
    facts = of(400).facts()
    losses = [facts["loss"][199], (1 / 399 + 1 / 400) / 2]
    assert math.isclose(*losses, rel_tol=1e-5) and facts["learning_rate"][199] == 50


def test_a_run_of_no_steps_has_no_history() -> None:
    assert History().facts() == {}


def test_an_outline_has_fewer_points_of_the_same_curve() -> None:
    thin = history.thinned(of(100, 10).facts(), 5)
    assert thin["step"] == [20, 40, 60, 80, 100] == thin["validation"]["step"]
    assert thin["validation"]["loss"][0] == 0.05
    assert thin["validation"]["agreement"] == [0.75] * 5
    assert math.isclose(thin["loss"][0], sum(1 / step for step in range(1, 21)) / 20, rel_tol=1e-5)


def test_a_line_has_bars_and_ends() -> None:
    facts = {"step": [1, 2, 3], "loss": [3, 2, 1.0], "learning_rate": [1, 1, 1]}
    assert history.line(facts) == "█▅▁  loss 3 to 1 in 3 steps"
    facts["validation"] = {"step": [2], "loss": [2.5], "exact": [0]}
    assert history.line(facts).endswith("in 3 steps, held out 2.5 to 2.5")


def test_a_level_curve_has_low_bars() -> None:
    facts = {"step": [1, 2], "loss": [2, 2], "learning_rate": [1, 1]}
    assert history.line(facts).startswith("▁▁ ")


def test_histories_import_no_torch() -> None:
    code = "import sys, foreword.prompt.history; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
