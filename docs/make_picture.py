"""Draw docs/picture.svg from benchmarks/results/padding.jsonl; with --check, compare.

Above: the first held-out command that foreword answers rightly, asked of the bare model, of the
prompt through foreword, and of the same file through stock PEFT. Below: how many of all commands
each answers rightly, one at a time and in left-padded batches.
"""

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

from page import write_or_check

FOLDER = Path(__file__).parent
LINES, PICTURE = FOLDER.parent / "benchmarks" / "results" / "padding.jsonl", FOLDER / "picture.svg"
WIDTH, MARGIN, LINE, MAX_ANSWER = 860, 24, 26, 62
BAR_LEFT, BAR_WIDTH = 390, 350
INK, GREY, RIGHT, WRONG = "#1f2328", "#59636e", "#1a7f37", "#cf222e"
MONOSPACE = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"

Result = dict[str, Any]


def render() -> str:
    """Return the picture."""
    results = sorted(_lines(), key=lambda r: _release(r["transformers"]))
    parts, y = _answers({r["system"]: r["first"] for r in results}, MARGIN + 8)
    bars, height = _bars(_shown(results), y + 40)
    label = "One command asked three ways, and the share of right calls of each way"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="14" fill="{INK}">\n'
        f"<title>{label}</title>\n"
        f'<rect width="{WIDTH}" height="{height}" rx="10" fill="#ffffff" stroke="#d1d9e0"/>\n'
        + "".join(parts + bars)
        + "</svg>\n"
    )


def _lines() -> list[Result]:
    return [json.loads(line) for line in LINES.read_text().splitlines()]


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def _shown(results: list[Result]) -> list[Result]:
    """Return the bars: PEFT's under every release, then foreword's under the newest."""
    kept = {
        (r["system"], r["transformers"] if r["system"] == "PEFT" else "", r["batch_size"]): r
        for r in results
        if r["system"] != "bare"
    }
    return sorted(kept.values(), key=lambda r: r["system"] == "foreword")


def _answers(said: dict[str, Any], y: int) -> tuple[list[str], int]:
    """Return one command and what three systems say to it, in the newest of their results."""
    order = next(i for i, (_, call, text) in enumerate(said["foreword"]) if _same(text, call))
    command, call, _ = said["foreword"][order]
    parts = [_text(MARGIN, y, "You say", GREY), _text(180, y, command, INK, 'font-weight="600"')]
    for name, system in (("bare model", "bare"), ("foreword", "foreword"), ("stock PEFT", "PEFT")):
        y += LINE
        text = said[system][order][2]
        is_right = _same(text, call)
        parts.append(_text(MARGIN, y, name, GREY))
        shown = " ".join(text.split())
        shown = shown if len(shown) <= MAX_ANSWER else shown[: MAX_ANSWER - 1] + "…"
        mark, color = ("✓", RIGHT) if is_right else ("✗", WRONG)
        parts.append(_text(180, y, mark, color))
        parts.append(_text(202, y, shown, INK, f'font-family="{MONOSPACE}" font-size="13"'))
    return parts, y


def _same(text: str, call: str) -> bool:
    try:
        return bool(json.loads(text) == json.loads(call))
    except ValueError:
        return False


def _bars(results: list[Result], y: int) -> tuple[list[str], int]:
    """Return a bar for each result, and the height of the picture."""
    commands, top = max(r["commands"] for r in results), max(r["exact"] for r in results)
    parts = [_text(MARGIN, y, f"{commands} unseen commands, one prompt file: right calls", GREY)]
    for result in results:
        y += LINE
        share, size = result["exact"], result["batch_size"]
        width = round(BAR_WIDTH * share / top) if top else 0
        color = RIGHT if share == top else WRONG
        bar = f'x="{BAR_LEFT}" y="{y - 13}" width="{width}" height="16" rx="3" fill="{color}"'
        batch = "one by one" if size == 1 else f"padded, {size} at once"
        parts.append(_text(MARGIN, y, _name(result)))
        parts.append(_text(BAR_LEFT - 14, y, batch, GREY, 'text-anchor="end" font-size="12"'))
        parts.append(f"<rect {bar}/>\n")
        count = "" if result["commands"] == commands else f" of the first {result['commands']}"
        parts.append(_text(BAR_LEFT + width + 8, y, f"{share:.1%}{count}"))
    return parts, y + MARGIN


def _name(result: Result) -> str:
    if result["system"] == "foreword":
        return "foreword"
    return f"PEFT {result['peft']}, transformers {result['transformers']}"


def _text(x: int, y: int, text: str, color: str = INK, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" fill="{color}" {more}>{escape(text)}</text>\n'


if __name__ == "__main__":
    sys.exit(write_or_check(PICTURE, render(), "is not what padding.jsonl says: run make docs"))
