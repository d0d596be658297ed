"""Write docs/results-distill.md from benchmarks/results; --check says whether it is current."""

import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from page import write_or_check

FOLDER = Path(__file__).parent
RESULTS = FOLDER.parent / "benchmarks" / "results"
LINES, FIRST_TOKENS = RESULTS / "distill.jsonl", RESULTS / "distill-first-token.jsonl"
TEXT = RESULTS / "distill-head.md"
OURS, WHOLE, HARD, START = (
    "divergence (default)", "whole context", "hard labels", "one start token",
)  # fmt: skip
SIZE = 32  # P of the table in short
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
that were measured, with their standard deviation behind it. What is not measured has no line.
"""
COLUMNS = (
    "", "P", "seeds", "steps", "agreement", "exact", "score", "divergence", "unrelated", "kB",
    "s", "teacher",
)  # fmt: skip


def render() -> str:
    """Return the page: a table for each model and task."""
    results = [json.loads(line) for line in LINES.read_text().splitlines()]
    groups = dict.fromkeys((r["model"], r["task"]) for r in results)
    parts = [HEAD, TEXT.read_text(), "\n", _in_short(results, groups), _first_tokens()]
    return "".join(parts) + "".join(_table(results, *group) for group in groups)


def _in_short(results: list[dict[str, Any]], groups: Iterable[tuple[str, str]]) -> str:
    """Return a line for each context: the default beside the whole context and hard labels."""
    columns = (
        "", "tokens", "fewer", "agreement", "of hard labels", "score", "of the whole",
        "unrelated", "of hard labels", "of one start token", "of the whole",
    )  # fmt: skip
    lines = _row(columns) + _row(["---"] * len(columns))
    for model, task in groups:
        own = [r for r in results if (r["model"], r["task"]) == (model, task)]
        found = {
            name: [r for r in own if r["system"] == name and r["size"] in (0, SIZE)]
            for name in (OURS, WHOLE, HARD, START)
        }
        if not found[OURS]:
            continue
        tokens = own[0]["context"]
        cells = [f"{task}, {model}", f"{tokens:,}", f"{tokens / SIZE:.0f}x"]
        cells += [_share(found[name], "agreement") for name in (OURS, HARD)]
        cells += [_share(found[name], "score") for name in (OURS, WHOLE)]
        cells += [_nats(found[name]) for name in (OURS, HARD, START, WHOLE)]
        lines += _row(cells)
    return lines


def _share(found: list[dict[str, Any]], name: str) -> str:
    """Return a mean in percent, with the deviation where several seeds were measured."""
    values = [r[name] for r in found]
    if not values:
        return ""
    behind = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1%}{behind}"


def _nats(found: list[dict[str, Any]]) -> str:
    return f"{statistics.mean(r['unrelated'] for r in found):.2f}" if found else ""


def _first_tokens() -> str:
    """Return the table of first tokens, in milliseconds."""
    if not FIRST_TOKENS.exists():
        return ""
    columns = ("ms", "P", "read each time", "its cache kept", "behind the prompt", "of the cache")
    lines = f"\n## The first token\n\n{_row(columns)}{_row(['---'] * len(columns))}"
    for line in FIRST_TOKENS.read_text().splitlines():
        found = json.loads(line)
        times = [f"{1000 * found[name]:,.0f}" for name in ("read", "kept", "prompt")]
        share = f"{found['prompt'] / found['kept']:.2f}"
        title = f"{found['task']}, {found['model']}, {found['context']} tokens"
        lines += _row([title, str(found["size"]), *times, share])
    return lines


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
            *(_share(found, name) for name in ("agreement", "exact", "score")),
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
