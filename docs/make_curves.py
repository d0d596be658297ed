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
from typing import Any

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
Point = tuple[int, float, float]
"""Steps, mean processor seconds and mean score."""


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
                (steps, _mean(found, "seconds"), _mean(found, "score"))
                for steps, found in sorted(points.items())
            ]
            for system, points in systems.items()
        }
        for group, systems in groups.items()
    }


def _mean(found: list[Result], name: str) -> float:
    return statistics.mean(r[name] for r in found)


def seconds_to(points: list[Point], score: float) -> float | None:
    """Return after how many seconds a curve first has a score, on a line between two points of it
    over the logarithm of seconds; None: it never has.
    """
    if points[0][2] >= score:
        return points[0][1]
    for (_, before, low), (_, after, high) in zip(points, points[1:], strict=False):
        if low < score <= high:
            share = (score - low) / (high - low)
            return math.exp(math.log(before) + share * (math.log(after) - math.log(before)))
    return None


def section() -> str:
    """Return the part of results.md on budgets; nothing where none is measured."""
    groups = curves(measured())
    if not groups:
        return ""
    steps = sorted(
        {point[0] for one in groups.values() for found in one.values() for point in found}
    )
    lines = "\n## At every budget\n\n![Score over processor seconds](curves.svg)\n\n"
    lines += (
        "`python benchmarks/quality.py --budgets 20 80 320`: as many steps of 8 rows, one seed, "
        "each\nrate chosen anew by validation rows at each budget. What is not measured has no "
        "cell.\n\n"
    )
    lines += _row(["", "", *(f"{count} steps" for count in steps), "seconds"])
    lines += _row(["---"] * (len(steps) + 3))
    for (model, task), systems in groups.items():
        for system, points in sorted(systems.items(), key=lambda pair: list(COLORS).index(pair[0])):
            by_steps = {count: f"{score:.1%}" for count, _, score in points}
            seconds = " / ".join(f"{one:.0f}" for _, one, _ in points)
            cells = [by_steps.get(count, "") for count in steps]
            lines += _row([f"{task}, {model}", system, *cells, seconds])
    said = "".join(_overtaken(*pair) for pair in groups.items())
    return lines + "\n" + said + _means(groups, steps)


def _means(groups: dict[tuple[str, str], dict[str, list[Point]]], steps: list[int]) -> str:
    """Say the mean over a model's tasks of the default and LoRA, at the budgets that all have."""
    lines = ""
    for model in dict.fromkeys(model for model, _ in groups):
        tasks = [systems for (own, _), systems in groups.items() if own == model]
        found = []
        for name in (DEFAULT, LORA):
            known = [{step: score for step, _, score in one.get(name, [])} for one in tasks]
            whole = [step for step in steps if all(step in one for one in known)]
            if len(tasks) > 1 and whole:
                shares = (f"{statistics.mean(one[step] for one in known):.1%}" for step in whole)
                found.append(f"{name} {' / '.join(shares)} ({' / '.join(map(str, whole))} steps)")
        if len(found) == 2:
            lines += f"- mean of {len(tasks)} tasks, {model}: {', '.join(found)}.\n"
    return lines


def _overtaken(group: tuple[str, str], systems: dict[str, list[Point]]) -> str:
    """Say where LoRA overtakes the default, and how long the default takes to LoRA's best score."""
    if DEFAULT not in systems or LORA not in systems:
        return ""
    model, task = group
    own, theirs = systems[DEFAULT], systems[LORA]
    ahead = [a[0] for a, b in zip(own, theirs, strict=False) if a[2] < b[2]]
    said = (
        f"LoRA is ahead at {', '.join(map(str, ahead))} steps" if ahead else "LoRA is never ahead"
    )
    last = theirs[-1]
    needed = seconds_to(own, last[2])
    reached = (
        f"the default has LoRA's score of {last[0]} steps in {needed / last[1]:.2f} of its time"
        if needed is not None
        else f"the default does not reach LoRA's score of {last[0]} steps"
    )
    return f"- {task}, {model}: {said}; {reached}.\n"


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
    low, high = (edge(p[1] for p in points) for edge in (min, max))
    width, height = PANEL - LEFT - 16, HEIGHT - 66
    span = max(math.log(high / low), 1e-9)

    def place(point: Point) -> tuple[float, float]:
        across = math.log(point[1] / low) / span
        return left + 6 + across * (width - 12), top + 8 + (1 - point[2]) * height

    parts = [_text(left, top - 4, f"{group[1]}, {group[0]}", INK, 'font-weight="600"')]
    for share in (0.0, 0.5, 1.0):
        y = top + 8 + (1 - share) * height
        parts.append(f'<path d="M{left} {y:.1f}h{width}" stroke="{LIGHT}"/>\n')
        parts.append(_text(left - 6, y + 4, f"{share:.0%}", GREY, 'text-anchor="end"'))
    for seconds, anchor in ((low, "start"), (high, "end")):
        x, _ = place((0, seconds, 0.0))
        parts.append(
            _text(x, top + height + 24, f"{seconds:.0f} s", GREY, f'text-anchor="{anchor}"')
        )
    for system in reversed(COLORS):
        if system in systems:
            parts.append(_line([place(point) for point in systems[system]], system))
            for point in systems[system]:
                x, y = place(point)
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
