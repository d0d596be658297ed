"""Names in pictures are drawn as they are, whatever matplotlib would make of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from foreword.evaluation.metrics import METRICS

pytest.importorskip("matplotlib")
from foreword.evaluation import plots

NAMES = ["runs/$x_{$", "$a$", "100 $ and \\$"]


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Keep the figures that are saved."""
    found: list[Any] = []
    save = plots._save

    def keep(figure: Any, *rest: Any) -> None:
        found.append(figure)
        save(figure, *rest)

    monkeypatch.setattr(plots, "_save", keep)
    return found


def test_a_subjects_name_is_no_formula(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn(monkeypatch)
    score = SimpleNamespace(value=0.5, has_interval=False)
    results: list[Any] = [
        SimpleNamespace(
            subject=SimpleNamespace(name=name, is_trained=True), scores={"exact": score}
        )
        for name in NAMES
    ]
    plots.draw_scores(str(tmp_path / "scores.png"), results, [METRICS["exact"]])
    labels = figures[0].axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == NAMES
    assert not any(label.get_parse_math() for label in labels)


def test_titles_axes_and_series_are_no_formulas(tmp_path: Path) -> None:
    panels = [
        plots.Map("$x_{$", [[0.5]], ("$y_{$", "$")),
        plots.Lines("$x_{$", {"$z_{$": [1.0]}, "$x_{$"),
    ]  # fmt: skip
    plots.draw_panels(str(tmp_path / "panels.png"), panels)
    assert (tmp_path / "panels.png").read_bytes().startswith(b"\x89PNG")
