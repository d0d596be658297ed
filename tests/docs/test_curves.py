"""Curves of budgets: where one overtakes another, and how soon a score is reached."""

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
import make_curves


def line(system: str, steps: int, seconds: float, score: float, seed: int = 0) -> dict[str, Any]:
    return {
        "model": "m", "task": "a & b", "system": system, "steps": steps, "seed": seed,
        "seconds": seconds, "score": score,
    }  # fmt: skip


@pytest.fixture
def two_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, theirs = make_curves.DEFAULT, make_curves.LORA
    found = [
        line(own, 20, 10, 0.5), line(own, 80, 40, 0.6, 0), line(own, 80, 40, 0.8, 1),
        line(theirs, 20, 20, 0.3), line(theirs, 80, 80, 0.75),
    ]  # fmt: skip
    monkeypatch.setattr(make_curves, "LINES", tmp_path / "budgets.jsonl")
    make_curves.LINES.write_text("\n".join(map(json.dumps, found)))


def test_the_section_says_where_lora_is_ahead_and_how_soon_its_score_is_reached(
    two_curves: None,
) -> None:
    said = make_curves.section()
    assert (
        "| a & b, m | foreword context-tuning (default) | 50.0% | 70.0% ± 14.1 | 10 / 40 |" in said
    )
    assert "LoRA is ahead at 80 steps, and never in equal time; the default does not reach" in said
    make_curves.LINES.write_text(
        make_curves.LINES.read_text().replace('"score": 0.75', '"score": 0.6')
    )
    # Halfway between .5 and .7 is halfway between 10 and 40 seconds over their logarithm: 20.
    assert "LoRA is never ahead in equal steps, and never in equal time; the default has" in (
        said := make_curves.section()
    )
    assert "has LoRA's score of 80 steps in 0.25 of its time" in said


def test_equal_time_is_where_both_curves_are_measured() -> None:
    own = [make_curves.Point(20, 10, 0.5), make_curves.Point(80, 40, 0.7)]
    assert make_curves.score_at(own, 20) == pytest.approx(0.6)  # halfway over the logarithm
    assert make_curves.score_at(own, 9) is make_curves.score_at(own, 41) is None
    theirs = [make_curves.Point(20, 20, 0.65), make_curves.Point(80, 80, 0.9)]
    assert make_curves._in_equal_time(own, theirs) == "in equal time at 20, 40 s"


def test_where_lora_is_ahead_is_a_matter_of_the_same_steps(two_curves: None) -> None:
    # A point between the others, as good as LoRA's at 80 steps in half of its time.
    between = line(make_curves.DEFAULT, 40, 20, 0.75)
    make_curves.LINES.write_text(make_curves.LINES.read_text() + "\n" + json.dumps(between))
    said = make_curves.section()
    assert "LoRA is ahead at 80 steps, and never in equal time; the default has LoRA's" in said
    assert "score of 80 steps in 0.25" in said


def test_a_mean_over_tasks_is_said_of_each_system_that_has_them_all(two_curves: None) -> None:
    own, theirs = make_curves.DEFAULT, make_curves.LORA
    assert "| mean of" not in make_curves.section()  # of one task there is none
    lines = [make_curves.LINES.read_text()]
    for system, steps, score in ((own, 20, 0.7), (own, 80, 0.9), (theirs, 80, 0.25)):
        lines.append(json.dumps(line(system, steps, 10 + steps, score) | {"task": "c"}))
    make_curves.LINES.write_text("\n".join(lines))
    said = make_curves.section()
    assert f"| mean of 2 tasks, m | {own} | 60.0% | 80.0% |" in said
    assert f"| mean of 2 tasks, m | {theirs} |  | 50.0% |" in said


def test_the_picture_is_xml_with_a_point_for_each_mean(two_curves: None) -> None:
    root = ElementTree.fromstring(make_curves.picture())
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == 4


def test_nothing_is_said_where_nothing_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_curves, "LINES", tmp_path / "none.jsonl")
    assert make_curves.section() == ""
