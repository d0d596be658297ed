"""Pictures of what was measured, as PNG files.

In: numbers. Out: a file. Needs the extra `plots` (matplotlib), which is imported when a picture is
drawn; knows no model and computes nothing.
"""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreword.errors import DependencyError, InputError, StorageError

if TYPE_CHECKING:
    from foreword.evaluation.evaluation import Evaluation
    from foreword.evaluation.metrics import Metric

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


def check(path: str) -> None:
    """Refuse a picture that could not be drawn, before the work that it shows.

    Raises:
        DependencyError: the extra `plots` is not installed. InputError: no PNG file's name.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise DependencyError("pictures need an extra: pip install 'foreword[plots]'")
    if Path(path).suffix.lower() != ".png":
        raise InputError(f"expected the name of a .png file, got {path!r}")
    if not Path(path).absolute().parent.is_dir():
        raise InputError(f"{path}: there is no such folder; make it first")


def draw_scores(path: str, results: "Sequence[Evaluation]", metrics: "Sequence[Metric]") -> None:
    """Draw a panel for each metric: a bar for each subject with its interval."""
    figure = _figure(path, (1.5 + 3.2 * len(metrics), 1.2 + 0.45 * len(results)))
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
    _save(figure, path)


def draw_panels(path: str, panels: Sequence[Panel]) -> None:
    """Draw panels one under another."""
    figure = _figure(path, (8, 3.2 * len(panels)))
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
    _save(figure, path)


def _figure(path: str, size: tuple[float, float]) -> Any:
    check(path)
    # A figure of its own, without pyplot: no window, no state that threads share.
    return importlib.import_module("matplotlib.figure").Figure(figsize=size, layout="constrained")


def _save(figure: Any, path: str) -> None:
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise StorageError(f"{path}: cannot write the picture ({error})") from error
