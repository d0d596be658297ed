"""Counted work: a bar on a terminal; elsewhere a line now and then.

In: what is done, and how many parts it has. Out: a function that counts one of them. Does no work.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from foreword.cli import options
from foreword.cli.console import one_line

COLUMNS = (
    TextColumn("{task.description}", markup=False),
    BarColumn(),
    TextColumn("{task.percentage:>3.0f}%", markup=False),
    TimeRemainingColumn(),
)


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[], object]]:
    """Show how far something is while the context is open; the function counts one part."""
    if options.errors.is_watched:
        with Progress(*COLUMNS, console=options.errors, transient=True) as progress:
            task = progress.add_task(one_line(what), total=total)
            yield lambda: progress.advance(task)
        return
    done = 0
    with options.errors.status(f"{what}: 0 of {total}") as status:

        def count() -> None:
            nonlocal done
            done += 1
            status.update(f"{what}: {done} of {total}")

        yield count
