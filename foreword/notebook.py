"""Notebook: what prompts and results look like in one, and a bar while a run goes on.

In: facts by name, or the events of a run. Out: HTML, and the same events. Anywhere but in a
notebook events pass as they are. Needs no widgets. Knows no prompt and no model.
"""

import html
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

SECONDS_BETWEEN = 0.3  # two pictures of a bar
E = TypeVar("E")


class Bar(NamedTuple):
    """How far a run is: steps behind it, steps in all, and what there is to say."""

    step: int
    num_steps: int
    text: str

    def _repr_html_(self) -> str:
        said = html.escape(f"{self.step}/{self.num_steps} {self.text}")
        return f'<progress value="{self.step}" max="{self.num_steps}"></progress> {said}'


def table(title: str, facts: Mapping[str, Any]) -> str:
    """Return facts as an HTML table of two columns."""
    return columns(title, [], [(name, shown(value)) for name, value in facts.items()])


def columns(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows of cells as an HTML table, with a header where there are names."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    header = f"<thead><tr>{head}</tr></thead>" if names else ""
    caption = f"<caption>{html.escape(title)}</caption>"
    return f"<table>{caption}{header}<tbody>{body}</tbody></table>"


def shown(value: Any) -> str:
    """Return a fact as a cell."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def is_running() -> bool:
    """Return whether this process is the kernel of a notebook."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return hasattr(shell, "kernel")


def watched(events: Iterator[E], bar: Callable[[E], Bar]) -> Iterator[E]:
    """Return events under a bar where this is a notebook; elsewhere, as they are."""
    return _under_bar(events, bar) if is_running() else events


def _under_bar(events: Iterator[E], bar: Callable[[E], Bar]) -> Iterator[E]:
    from IPython.display import display  # type: ignore[import-not-found, unused-ignore]

    place, drawn = None, 0.0
    try:
        for event in events:
            now, is_last = time.monotonic(), (found := bar(event)).step >= found.num_steps
            if place is None:
                place = display(found, display_id=True)
            elif is_last or now - drawn >= SECONDS_BETWEEN:
                place.update(found)
            drawn = now if now - drawn >= SECONDS_BETWEEN else drawn
            yield event
    finally:
        if close := getattr(events, "close", None):
            close()
