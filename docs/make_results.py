"""Write docs/results.md from benchmarks/results; with --check, say whether the page is current."""

import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from make_curves import section
from page import write_or_check

FOLDER = Path(__file__).parent
PAGE = FOLDER / "results.md"
RESULTS = FOLDER.parent / "benchmarks" / "results"
LINES, TEXT = RESULTS / "quality.jsonl", RESULTS / "head.md"
DEFAULT = "foreword context-tuning (default)"
LONGER = "foreword context-tuning, 96 tokens, 80 steps"
TEXTS = ("bare model", "best of 5 instructions in 2 places", "few-shot in context")
CHOOSING = tuple(f"{system}, likeliest label" for system in TEXTS)  # of tasks with labels

Result = dict[str, Any]


def render() -> str:
    """Return the page: a table of scores, what was to be reached, and one table for each task."""
    results = [json.loads(line) for line in LINES.read_text().splitlines()]
    tasks, systems = _names(results, "task"), _names(results, "system")
    parts = [TEXT.read_text(), "\n## Scores\n\n", _overview(results, tasks, systems)]
    parts += ["\n## What was to be reached\n\n", _reached(results, tasks, systems)]
    parts += [section()]
    parts += ["\n## Padding on the left\n\n", _padding(results)]
    parts += [f"\n## {task[0].upper()}{task[1:]}\n\n{_detail(results, task)}" for task in tasks]
    return "".join(parts)


def _names(results: Iterable[Result], key: str) -> list[str]:
    return list(dict.fromkeys(str(result[key]) for result in results))


def _scores(results: Iterable[Result], task: str, system: str) -> list[float]:
    return [r["score"] for r in results if (r["task"], r["system"]) == (task, system)]


def _mean(results: Iterable[Result], task: str, system: str) -> float | None:
    found = _scores(results, task, system)
    return statistics.mean(found) if found else None


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def _overview(results: list[Result], tasks: list[str], systems: list[str]) -> str:
    lines = _row(["percent", *tasks, "mean"]) + _row(["---"] * (len(tasks) + 2))
    best = {}
    for task in tasks:
        found = [mean for s in systems if (mean := _mean(results, task, s)) is not None]
        best[task] = max(found) if len(found) == len(_of_task(results, task, systems)) else None
    for system in systems:
        means = [_mean(results, task, system) for task in tasks]
        shown = [
            "" if m is None else f"**{m:.1%}**" if m == best[task] else f"{m:.1%}"
            for m, task in zip(means, tasks, strict=True)
        ]
        known = [mean for mean in means if mean is not None]
        whole = f"{statistics.mean(known):.1%}" if len(known) == len(tasks) else ""
        lines += _row([system, *(cell.replace("%", "") for cell in shown), whole.replace("%", "")])
    return lines


def _reached(results: list[Result], tasks: list[str], systems: list[str]) -> str:
    """Say task by task whether the default is ahead, of what, and in what time."""
    soft = [s for s in systems if s.startswith("PEFT p")]
    prompts = [s for s in systems if s.startswith("PEFT prompt tuning, text")]
    prefixes = [s for s in systems if s.startswith("PEFT prefix tuning, text")]
    leads = {
        "PEFT's best soft prompt": (DEFAULT, soft),
        "the best text (instruction or few-shot)": (
            DEFAULT,
            [s for s in systems if s in (*TEXTS, *CHOOSING)],
        ),
        "PEFT LoRA r=8": (DEFAULT, [s for s in systems if "LoRA" in s]),
        "96 tokens, 80 steps, against PEFT's best soft prompt": (LONGER, soft),
    }
    times = {
        "seconds, beside PEFT's prompt tuning": (DEFAULT, prompts),
        "beside PEFT's prefix tuning": (DEFAULT, prefixes),
        "96 tokens, 80 steps, beside PEFT's prompt tuning": (LONGER, prompts),
    }
    lines = _row(["foreword's default against", *tasks, "mean"])
    lines += _row(["---"] * (len(tasks) + 2))
    for name, (own, rivals) in leads.items():
        ahead = [_ahead(results, task, own, rivals) for task in tasks]
        lines += _row([name, *_cells(ahead, "+.1f")])
    for name, (own, rivals) in times.items():
        shares = [_time(results, task, own, rivals) for task in tasks]
        lines += _row([name, *_cells(shares, ".2f")])
    return lines + "\nPoints, and shares of the time.\n"


def _cells(values: list[float | None], form: str) -> list[str]:
    """Return each number, and their mean where all are there."""
    known = [value for value in values if value is not None]
    mean = statistics.mean(known) if len(known) == len(values) else None
    return ["" if value is None else f"{value:{form}}" for value in (*values, mean)]


def _ahead(results: list[Result], task: str, own: str, rivals: list[str]) -> float | None:
    """Return by how many points a system is ahead of the best of some others."""
    mine, rivals = _mean(results, task, own), _of_task(results, task, rivals)
    found = [mean for s in rivals if (mean := _mean(results, task, s)) is not None]
    is_whole = len(found) == len(rivals)  # a lead over some of them says nothing
    return 100 * (mine - max(found)) if mine is not None and is_whole else None


def _of_task(results: list[Result], task: str, systems: list[str]) -> list[str]:
    """Return the systems that answer a task: those that choose a label where there are labels."""
    return [s for s in systems if s not in CHOOSING or _scores(results, task, s)]


def _time(results: list[Result], task: str, own: str, rivals: list[str]) -> float | None:
    """Return a system's mean seconds as a share of others'."""

    def seconds(systems: Iterable[str]) -> list[float]:
        return [r["seconds"] for r in results if r["task"] == task and r["system"] in systems]

    mine, others = seconds([own]), seconds(rivals)
    return statistics.mean(mine) / statistics.mean(others) if mine and others else None


def _padding(results: list[Result]) -> str:
    lines = _row(["one prompt of PEFT's prompt tuning", "row by row", "batches of 32, padded"])
    lines += _row(["---"] * 3)
    for r in results:
        if "left_padded_score" in r:
            lines += _row([r["task"], f"{r['score']:.1%}", f"{r['left_padded_score']:.1%}"])
    return lines


def _detail(results: list[Result], task: str) -> str:
    lines = _row(["", "score", "deviation", "seeds", "s of training", "trained", "file"])
    lines += _row(["---"] * 7)
    for system in _names(results, "system"):
        found = [r for r in results if (r["task"], r["system"]) == (task, system)]
        if not found:
            continue
        scores = [r["score"] for r in found]
        spread = f"{100 * statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
        seconds = statistics.mean(r["seconds"] for r in found)
        lines += _row(
            [
                system + _choice(found),
                f"{statistics.mean(scores):.1%}",
                spread,
                str(len(scores)),
                f"{seconds:.0f}" if seconds else "",
                f"{found[0]['parameters']:,}" if found[0]["parameters"] else "",
                _size(found[0]["bytes"]),
            ]
        )
    return lines


def _choice(found: list[Result]) -> str:
    rate = found[0]["variant"]
    return f" ({rate:g})" if isinstance(rate, float) and found[0]["validation"] else ""


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1000:,.1f} kB" if num_bytes else ""


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, render(), "is not what was measured; run: make docs"))
