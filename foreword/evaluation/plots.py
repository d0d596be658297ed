"""Plots: scores with their intervals, panels of numbers, the curves of a run, as PNG files.

In: numbers. Out: a file. Needs the extra `plots` (matplotlib), which is imported when a picture is
drawn; knows no model.
"""

import importlib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.errors import DependencyError, InputError
from foreword.prompt.history import History
from foreword.storage import check_file, write_file

if TYPE_CHECKING:
    from foreword.evaluation.evaluation import Evaluation
    from foreword.evaluation.metrics import Metric

SIGNATURE = b"Software\0foreword"  # in the head of every picture
COLORS = ("#3b6ea5", "#8a8a8a")  # of prompts, and of what they are compared with


@dataclass(frozen=True)
class Map:
    """A matrix as a heat map; `axes` name its rows and its columns."""

    title: str
    values: Sequence[Sequence[float]]
    axes: tuple[str, str]


@dataclass(frozen=True)
class Lines:
    """Numbers over a common axis, a line for each name."""

    title: str
    series: Mapping[str, Sequence[float]]
    axis: str


Panel = Map | Lines


def check_matplotlib() -> None:
    """Refuse pictures where they cannot be drawn.

    Raises:
        DependencyError: the extra `plots` is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise DependencyError("pictures need an extra: pip install 'foreword[plots]'")


def check(path: str, option: str = "--png") -> None:
    """Refuse a picture that could not be drawn, before the work that it shows.

    Raises:
        DependencyError: the extra `plots` is not installed. InputError: no PNG file's name, a place
            that cannot be written, or a file of somebody else's.
    """
    check_matplotlib()
    if Path(path).suffix.lower() != ".png":
        raise InputError(f"{option}: expected the name of a .png file, got {path!r}")
    check_file(path, option, lambda head: SIGNATURE in head)


def draw_scores(path: str, results: "Sequence[Evaluation]", metrics: "Sequence[Metric]") -> None:
    """Draw a panel for each metric: a bar for each subject with its interval."""
    figure = _figure((1.5 + 3.2 * len(metrics), 1.2 + 0.45 * len(results)))
    names = [result.subject.name for result in results]
    colors = [COLORS[not result.subject.is_trained] for result in results]
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for panel, metric in zip(panels, metrics, strict=True):
        scale = 100 if metric.is_share else 1
        scores = [result.scores.get(metric.name) for result in results]
        # Labels by position: two subjects may end alike once shortened. A vote has no loss.
        panel.barh(range(len(names)), [scale * s.value if s else 0 for s in scores], color=colors)
        for row, score in enumerate(scores):
            if score and score.has_interval:
                ends = [scale * score.low, scale * score.high]
                panel.plot(ends, [row, row], color="black", linewidth=1.2)
        unit = "%" if metric.is_share else "nats"
        better = ", less is better" if metric.is_better_low else ""
        panel.set_xlabel(f"{metric.name} ({unit}{better})")
        panel.set_yticks(range(len(names)), [name[-32:] for name in names])
    panels[0].invert_yaxis()
    _save(_verbatim(figure), path)


def draw_panels(path: str, panels: Sequence[Panel]) -> None:
    """Draw panels one under another."""
    figure = _figure((8, 3.2 * len(panels)))
    parts = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for part, panel in zip(parts, panels, strict=True):
        part.set_title(panel.title)
        if isinstance(panel, Map):
            image = part.imshow(panel.values, aspect="auto", interpolation="nearest")
            figure.colorbar(image, ax=part)
            part.set_ylabel(panel.axes[0])
            part.set_xlabel(panel.axes[1])
        else:
            for name, values in panel.series.items():
                part.plot(values, label=name, marker="." if len(values) < 100 else None)
            part.set_xlabel(panel.axis)
            part.legend()
    _save(_verbatim(figure), path)


def draw_history(history: History, path: Path) -> None:
    """Draw loss, validation and learning rate over the steps of a run.

    Raises:
        DependencyError: matplotlib is not installed. StorageError: it cannot be written.
    """
    steps = range(1, len(history.losses) + 1)
    figure = _figure((8, 5))
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    losses.plot(steps, history.losses, color="tab:blue", alpha=0.3, label="training")
    losses.plot(steps, _smoothed(history.losses), color="tab:blue", label="training, smoothed")
    if history.validations:
        _draw_validations(losses, history)
    losses.set_ylabel("loss, nats per label")
    losses.legend()
    rates.plot(steps, history.rates, color="tab:gray")
    rates.set_ylabel("learning rate")
    rates.set_xlabel("optimizer step")
    _save(figure, path, dpi=120)


def _draw_validations(axes: Any, history: History) -> None:
    validated, losses = zip(*((one.step, one.loss) for one in history.validations), strict=True)
    axes.plot(validated, losses, color="tab:orange", marker="o", label="validation")
    best = min(range(len(losses)), key=losses.__getitem__)
    axes.plot(validated[best], losses[best], "*", color="tab:red", ms=14, label="best, kept")


def _verbatim(figure: Any) -> Any:
    """Let names be drawn as they are: matplotlib reads what stands between dollars as a formula."""
    for text in figure.findobj(importlib.import_module("matplotlib.text").Text):
        text.set_parse_math(False)
    return figure


def _smoothed(values: Sequence[float], share: float = 0.1) -> list[float]:
    """Return exponential means, unbiased at the start: each value weighs `share` of the mean."""
    found, total, weight = [], 0.0, 0.0
    for value in values:
        total = (1 - share) * total + share * value
        weight = (1 - share) * weight + share
        found.append(total / weight if weight else math.nan)
    return found


def _figure(size: tuple[float, float]) -> Any:
    check_matplotlib()
    # A figure of its own, without pyplot: no window, no state that threads share.
    return importlib.import_module("matplotlib.figure").Figure(figsize=size, layout="constrained")


def _save(figure: Any, path: str | Path, dpi: int = 150) -> None:
    signed = {"Software": "foreword"}
    write_file(path, lambda file: figure.savefig(file, format="png", dpi=dpi, metadata=signed))
