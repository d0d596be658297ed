"""Write docs/results-distill.md from benchmarks/results; --check says whether it is current."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from page import write_or_check

FOLDER = Path(__file__).parent
LINES = FOLDER.parent / "benchmarks" / "results" / "distill.jsonl"
HEAD = """\
# What a distilled context keeps

Made by `python docs/make_distill.py` from `benchmarks/results/distill.jsonl`; each line there is
one run of `python benchmarks/distill.py` (`--tasks`, `--systems`, `--sizes`, `--seeds`,
`--queries`, `--steps` choose what is measured; what is there is not measured again). CPU, one
thread, float32.

A context is an instruction and answered examples, as turns. The teacher is the model behind all of
it; what it says greedily to test queries, which nobody trains on, is what **agreement** counts: the
share of its tokens that greedy decoding would say. **Exact** is the share of whole answers,
**divergence** in nats a token, on these queries and on **unrelated** text beside the bare model.
**Score** is the task's own: right answers of classes, ROUGE-L elsewhere; where the whole context
scores low, the teacher is weak, and a score proves little. Seconds are the processor's, of the
teacher's answers to the queries that are learned from and of all that follows, and a busy machine
makes them more; **teacher** is its share of them. **One start token** before a text is what any
prefix does to unrelated text, which no longer begins at nothing. A cell is the mean of the seeds
that were measured. What is not measured has no line.
"""
COLUMNS = (
    "", "P", "seeds", "steps", "agreement", "exact", "score", "divergence", "unrelated", "kB",
    "s", "teacher",
)  # fmt: skip


def render() -> str:
    """Return the page: a table for each model and task."""
    results = [json.loads(line) for line in LINES.read_text().splitlines()]
    groups = dict.fromkeys((r["model"], r["task"]) for r in results)
    return HEAD + "".join(_table(results, *group) for group in groups)


def _table(results: list[dict[str, Any]], model: str, task: str) -> str:
    own = [r for r in results if (r["model"], r["task"]) == (model, task)]
    title = f"{task[0].upper()}{task[1:]}, {model}: {own[0]['context']} tokens of context"
    lines = f"\n## {title}\n\n{_row(COLUMNS)}{_row(['---'] * len(COLUMNS))}"
    for system, size in sorted(dict.fromkeys((r["system"], r["size"]) for r in own), key=_order):
        lines += _line([r for r in own if (r["system"], r["size"]) == (system, size)])
    return f"{lines}\n{own[0]['tests']} test queries.\n"


def _order(pair: tuple[str, int]) -> tuple[int, str]:
    return pair[1], pair[0]


def _line(found: list[dict[str, Any]]) -> str:
    def mean(name: str) -> float:
        return statistics.mean(r[name] for r in found)

    first, seconds = found[0], mean("seconds")
    return _row(
        [
            first["system"],
            str(first["size"] or ""),
            str(len(found)) if first["size"] else "",
            str(first["steps"] or ""),
            f"{mean('agreement'):.1%}",
            f"{mean('exact'):.1%}",
            f"{mean('score'):.1%}",
            f"{mean('divergence'):.3f}",
            f"{mean('unrelated'):.3f}",
            f"{mean('bytes') / 1000:,.0f}",
            f"{seconds:.0f}" if seconds else "",
            f"{mean('teacher_seconds') / seconds:.0%}" if seconds else "",
        ]
    )


def _row(cells: Any) -> str:
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    page = FOLDER / "results-distill.md"
    sys.exit(write_or_check(page, render(), "is not what was measured; run: make docs"))
