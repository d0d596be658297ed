"""The curves of a run: loss, validation and learning rate over its steps, as a picture.

In: a history of losses, rates and validations. Out: a PNG. Needs matplotlib, an extra.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foreword.errors import DependencyError
from foreword.prompt.history import History
from foreword.storage import replacing, storage_errors


def check_matplotlib() -> None:
    """Refuse to begin a run whose curves could not be drawn.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise DependencyError(
            "--curves needs matplotlib; install it with: pip install 'foreword[curves]'"
        ) from None


def draw(history: History, path: Path) -> None:
    """Write the curves of a run to a PNG, which takes an earlier one's place.

    Raises:
        DependencyError: matplotlib is not installed. StorageError: it cannot be written.
    """
    check_matplotlib()
    from matplotlib.figure import Figure

    steps = range(1, len(history.losses) + 1)
    figure = Figure(figsize=(8, 5), layout="constrained")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    losses.plot(steps, history.losses, color="tab:blue", alpha=0.3, label="training")
    losses.plot(steps, smoothed(history.losses), color="tab:blue", label="training, smoothed")
    if history.validations:
        _draw_validations(losses, history)
    losses.set_ylabel("loss, nats per label")
    losses.legend()
    rates.plot(steps, history.rates, color="tab:gray")
    rates.set_ylabel("learning rate")
    rates.set_xlabel("optimizer step")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=120)


def _draw_validations(axes: Any, history: History) -> None:
    validated, losses, _ = zip(*history.validations, strict=True)
    axes.plot(validated, losses, color="tab:orange", marker="o", label="validation")
    best = min(range(len(losses)), key=losses.__getitem__)
    axes.plot(validated[best], losses[best], "*", color="tab:red", ms=14, label="best, kept")


def smoothed(values: Sequence[float], share: float = 0.1) -> list[float]:
    """Return exponential means, unbiased at the start: each value weighs `share` of the mean."""
    found, total, weight = [], 0.0, 0.0
    for value in values:
        total = (1 - share) * total + share * value
        weight = (1 - share) * weight + share
        found.append(total / weight if weight else math.nan)
    return found
