"""Which learning rate a run takes where it is asked to find one.

In: a method's own rate; then the loss that a short trial at each rate came to. Out: the rates to
try, and the one to take. Pure functions of numbers: the same data, seed and base find the same
rate. Trains nothing itself.
"""

import math
from collections.abc import Mapping
from typing import Any

from foreword.errors import DivergedError

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
