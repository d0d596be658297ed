"""Agreement tables: what stands before a query, beside the model behind the whole text.

In: a comparison that is computed elsewhere. Out: a table, JSON, and how each number is written.
Computes no score itself.
"""

from typing import TYPE_CHECKING, Any

from rich.table import Table

from foreword.cli.console import one_line
from foreword.config import ResamplingConfig

if TYPE_CHECKING:
    from foreword.distillation.agreement import Agreement, Comparison
    from foreword.evaluation.bootstrap import Score, Share

TITLE = (
    "{count} queries, beside the model behind the whole text; in brackets {confidence:g}% "
    "intervals; KL in nats a token, over ids that hold {mass:.1%} of its probability; on unrelated "
    "text one start token makes {floor:.3f}"
)


def table(found: "Comparison", count: int, resampling: ResamplingConfig) -> Table:
    """Return one row for each subject, and the whole text with its cache kept and without."""
    from foreword.distillation.agreement import WHOLE

    title = TITLE.format(
        count=count,
        confidence=100 * resampling.confidence,
        mass=found.mass,
        floor=found.start_token,
    )
    columns = ("subject", "tokens agree", "answers agree", "KL", "KL on unrelated text",
               "first token", "cache")  # fmt: skip
    shown = Table(*columns, title=title)
    for name, one in found.agreements.items():
        cells = [percent(one.tokens), percent(one.answers), nats(one.divergence)]
        shown.add_row(one_line(name), *cells, *_cost(found, name))
    shown.add_row(WHOLE, "-", "-", "-", *_cost(found, WHOLE))
    elsewhere, _, _ = _cost(found, WHOLE)
    reading = f"{milliseconds(found.reading)}"
    shown.add_row(f"{WHOLE}, read each time", "-", "-", "-", elsewhere, reading, "-")
    return shown


def as_dict(found: "Comparison") -> dict[str, Any]:
    """Return a comparison, ready for JSON: seconds and bytes."""
    results = []
    for name, cost in found.costs.items():
        one: dict[str, Any] = {"subject": name}
        if (agreed := found.agreements.get(name)) is not None:
            one |= {
                "tokens": agreed.tokens.as_dict(),
                "answers": agreed.answers.as_dict(),
                "divergence": agreed.divergence.as_dict(),
            }
        results.append(
            one
            | {
                "unrelated_divergence": cost.unrelated,
                "first_token_seconds": cost.first_token,
                "cache_bytes": cost.cache_bytes,
                "num_virtual_tokens": cost.num_virtual,
            }
        )
    return {
        "results": results,
        "read_each_time_seconds": found.reading,
        "mass": found.mass,
        "start_token_divergence": found.start_token,
    }


def said(found: "Agreement") -> str:
    """Return an agreement in words."""
    return (
        f"{percent(found.tokens)} of the teacher's tokens, {percent(found.answers)} of whole "
        f"answers, KL {nats(found.divergence)}"
    )


def percent(score: "Score | Share") -> str:
    """Return a share in percent, with its interval where it has one."""
    return _with_interval(score, 100, 1, "%")


def nats(score: "Score | Share") -> str:
    """Return a divergence with its interval where it has one."""
    return _with_interval(score, 1, 3, "")


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds, or as seconds where they are many."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def megabytes(count: int) -> str:
    """Return bytes as megabytes."""
    return f"{count / 1e6:.2f} MB"


def _with_interval(score: "Score | Share", scale: int, digits: int, unit: str) -> str:
    values = [f"{value * scale:.{digits}f}" for value in (score.value, score.low, score.high)]
    if "nan" in values:
        return f"{values[0]}{unit}"
    return f"{values[0]}{unit} [{values[1]}, {values[2]}]"


def _cost(found: "Comparison", name: str) -> tuple[str, str, str]:
    cost = found.costs[name]
    return f"{cost.unrelated:.3f}", milliseconds(cost.first_token), megabytes(cost.cache_bytes)
