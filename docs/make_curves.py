"""Draw docs/curves.svg from benchmarks/results/budgets.jsonl; with --check, compare.

A panel for each base and task: score over processor seconds, a curve for each system. The section
of results.md that explains them is made here, too.
"""

import json
import math
import statistics
import sys
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from page import write_or_check

FOLDER = Path(__file__).parent
LINES = FOLDER.parent / "benchmarks" / "results" / "budgets.jsonl"
PICTURE = FOLDER / "curves.svg"
DEFAULT, LORA = "foreword context-tuning (default)", "PEFT LoRA r=8, best of 2 rates"
# From a palette that people who see few colors tell apart, and a shape of its own for each.
COLORS = {
    DEFAULT: "#0072b2", "foreword prefix-tuning": "#56b4e9", LORA: "#d55e00",
    "PEFT prefix tuning, text, best of 2 rates": "#8c6d1f",
}  # fmt: skip
DASHES = {DEFAULT: "", "foreword prefix-tuning": "6 3", LORA: "", "PEFT": "2 3"}
WIDTH, COLUMNS, PANEL, HEIGHT, LEFT, TOP = 860, 2, 410, 230, 44, 34
INK, GREY, LIGHT = "#1f2328", "#59636e", "#d1d9e0"

Result = dict[str, Any]


class Point(NamedTuple):
    """A number of steps: means over its seeds, and how much the score deviates between them."""

    steps: int
    seconds: float
    score: float
    deviation: float | None = None


def measured() -> list[Result]:
    """Return all results; none where nothing is measured yet."""
    lines = LINES.read_text().splitlines() if LINES.exists() else []
    return [json.loads(line) for line in lines]


def curves(results: Iterable[Result]) -> dict[tuple[str, str], dict[str, list[Point]]]:
    """Return for each base and task the points of each system, in the order of steps."""
    groups: dict[tuple[str, str], dict[str, dict[int, list[Result]]]] = {}
    for r in results:
        systems = groups.setdefault((r["model"], r["task"]), {})
        systems.setdefault(r["system"], {}).setdefault(r["steps"], []).append(r)
    return {
        group: {
            system: [
                Point(steps, _mean(found, "seconds"), _mean(found, "score"), _deviation(found))
                for steps, found in sorted(points.items())
            ]
            for system, points in systems.items()
        }
        for group, systems in groups.items()
    }


def _mean(found: list[Result], name: str) -> float:
    return statistics.mean(r[name] for r in found)


def _deviation(found: list[Result]) -> float | None:
    return statistics.stdev(r["score"] for r in found) if len(found) > 1 else None


def seconds_to(points: list[Point], score: float) -> float | None:
    """Return after how many seconds a curve first has a score, on a line between two points of it
    over the logarithm of seconds; None: it never has.
    """
    if points[0].score >= score:
        return points[0].seconds
    for one, then in zip(points, points[1:], strict=False):
        if one.score < score <= then.score:
            share = (score - one.score) / (then.score - one.score)
            before, after = math.log(one.seconds), math.log(then.seconds)
            return math.exp(before + share * (after - before))
    return None


def score_at(points: list[Point], seconds: float) -> float | None:
    """Return a curve's score after some seconds, on a line between two points of it over the
    logarithm of seconds; None: before its first point, or after its last.
    """
    for one, then in zip(points, points[1:], strict=False):
        if one.seconds <= seconds <= then.seconds:
            share = math.log(seconds / one.seconds) / math.log(then.seconds / one.seconds)
            return one.score + share * (then.score - one.score)
    return None


def section() -> str:
    """Return the part of results.md on budgets; nothing where none is measured."""
    groups = curves(measured())
    if not groups:
        return ""
    steps = sorted(
        {point.steps for one in groups.values() for found in one.values() for point in found}
    )
    lines = "\n## At every budget\n\n![Score over processor seconds](curves.svg)\n\n"
    lines += (
        "`python benchmarks/quality.py --budgets 20 80 320`: as many steps of 8 rows, each rate "
        "chosen anew\nby validation rows at each budget, with the first seed. One seed; where "
        "curves cross, the mean of two\nor three and their deviation. What is not measured has no "
        "cell. A step of LoRA's takes longer, so the\nlist below compares in equal time, too: on "
        "lines between the points over the logarithm of seconds,\nwhere both curves are measured."
        "\n\n"
    )
    lines += _row(["", "", *(f"{count} steps" for count in steps), "seconds"])
    lines += _row(["---"] * (len(steps) + 3))
    for (model, task), systems in groups.items():
        for system, points in sorted(systems.items(), key=lambda pair: list(COLORS).index(pair[0])):
            by_steps = {point.steps: _share(point) for point in points}
            seconds = " / ".join(f"{point.seconds:.0f}" for point in points)
            cells = [by_steps.get(count, "") for count in steps]
            lines += _row([f"{task}, {model}", system, *cells, seconds])
    said = "".join(_overtaken(*pair) for pair in groups.items())
    return lines + "\n" + said + _means(groups, steps)


def _share(point: Point) -> str:
    seeds = "" if point.deviation is None else f" ± {100 * point.deviation:.1f}"
    return f"{point.score:.1%}{seeds}"


def _means(groups: dict[tuple[str, str], dict[str, list[Point]]], steps: list[int]) -> str:
    """Return a table of the means over a model's tasks, of each system that has them all."""
    lines = ""
    for model in dict.fromkeys(model for model, _ in groups):
        tasks = [systems for (own, _), systems in groups.items() if own == model]
        for name in COLORS:
            known = [{one.steps: one.score for one in systems.get(name, [])} for systems in tasks]
            shares = [
                f"{statistics.mean(one[step] for one in known):.1%}"
                if all(step in one for one in known)
                else ""
                for step in steps
            ]
            if len(tasks) > 1 and any(shares):
                lines += _row([f"mean of {len(tasks)} tasks, {model}", name, *shares])
    if not lines:
        return ""
    header = _row(["", "", *(f"{count} steps" for count in steps)])
    return "\n" + header + _row(["---"] * (len(steps) + 2)) + lines


def _overtaken(group: tuple[str, str], systems: dict[str, list[Point]]) -> str:
    """Say where LoRA overtakes the default, in equal steps and in equal time, and how long the
    default takes to LoRA's best score.
    """
    if DEFAULT not in systems or LORA not in systems:
        return ""
    model, task = group
    own, theirs = systems[DEFAULT], systems[LORA]
    scores = {point.steps: point.score for point in own}
    ahead = [b.steps for b in theirs if scores.get(b.steps, 1.0) < b.score]
    said = (
        f"LoRA is ahead at {', '.join(map(str, ahead))} steps"
        if ahead
        else "LoRA is never ahead in equal steps"
    )
    last = theirs[-1]
    needed = seconds_to(own, last.score)
    reached = (
        f"the default has LoRA's score of {last.steps} steps in "
        f"{needed / last.seconds:.2f} of its time"
        if needed is not None
        else f"the default does not reach LoRA's score of {last.steps} steps"
    )
    return f"- {task}, {model}: {said}, and {_in_equal_time(own, theirs)}; {reached}.\n"


def _in_equal_time(own: list[Point], theirs: list[Point]) -> str:
    """Say at which points of both curves LoRA is ahead of the default in the same seconds."""
    ahead = [
        one.seconds
        for one in own
        if (score := score_at(theirs, one.seconds)) is not None and score > one.score
    ]
    ahead += [
        one.seconds
        for one in theirs
        if (score := score_at(own, one.seconds)) is not None and score < one.score
    ]
    if not ahead:
        return "never in equal time"
    return f"in equal time at {', '.join(f'{seconds:.0f}' for seconds in sorted(ahead))} s"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def picture() -> str:
    """Return the picture."""
    groups = curves(measured())
    num_rows = -(-len(groups) // COLUMNS)
    height = TOP + num_rows * HEIGHT + 16
    parts, x = list[str](), 24
    for system in COLORS:
        if any(system in systems for systems in groups.values()):
            parts.append(_line([(x, 20), (x + 26, 20)], system))
            name = system.partition(", ")[0].removesuffix(" (default)")
            parts.append(_text(x + 32, 24, name, GREY))
            x += 60 + 7 * len(name)
    for index, (group, systems) in enumerate(groups.items()):
        left = LEFT + index % COLUMNS * (PANEL + 10)
        parts += _panel(group, systems, left, TOP + 22 + index // COLUMNS * HEIGHT)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}">\n'
        "<title>Score over processor seconds of training, for each task</title>\n"
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#ffffff" stroke="{LIGHT}"/>\n'
        + "".join(parts)
        + "</svg>\n"
    )


def _panel(
    group: tuple[str, str], systems: dict[str, list[Point]], left: int, top: int
) -> list[str]:
    points = [point for found in systems.values() for point in found]
    low, high = (edge(one.seconds for one in points) for edge in (min, max))
    width, height = PANEL - LEFT - 16, HEIGHT - 66
    span = max(math.log(high / low), 1e-9)

    def place(seconds: float, score: float) -> tuple[float, float]:
        across = math.log(seconds / low) / span
        return left + 6 + across * (width - 12), top + 8 + (1 - score) * height

    parts = [_text(left, top - 4, f"{group[1]}, {group[0]}", INK, 'font-weight="600"')]
    for share in (0.0, 0.5, 1.0):
        y = top + 8 + (1 - share) * height
        parts.append(f'<path d="M{left} {y:.1f}h{width}" stroke="{LIGHT}"/>\n')
        parts.append(_text(left - 6, y + 4, f"{share:.0%}", GREY, 'text-anchor="end"'))
    for seconds, anchor in ((low, "start"), (high, "end")):
        x, _ = place(seconds, 0.0)
        parts.append(
            _text(x, top + height + 24, f"{seconds:.0f} s", GREY, f'text-anchor="{anchor}"')
        )
    for system in reversed(COLORS):
        if system in systems:
            places = [place(one.seconds, one.score) for one in systems[system]]
            parts.append(_line(places, system))
            for x, y in places:
                parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{COLORS[system]}"/>\n')
    return parts


def _line(points: list[tuple[float, float]], system: str) -> str:
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dash = DASHES.get(system, DASHES["PEFT"])
    more = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path d="M{path}" fill="none" stroke="{COLORS[system]}" stroke-width="2"{more}/>\n'


def _text(x: float, y: float, text: str, color: str = INK, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{color}" {more}>{escape(text)}</text>\n'


if __name__ == "__main__":
    if not measured():
        sys.exit(0)
    sys.exit(write_or_check(PICTURE, picture(), "is not what budgets.jsonl says: run make docs"))
