"""Training history: the curves of a run, recorded at each step and kept with the prompt.

In: losses, learning rates and validations. Out: data of bounded size for the prompt's facts, a
check of such data from an untrusted file, fewer points of it, and one line of text. Knows no model,
no prompt and no file; imports no torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MAX_POINTS = 200  # of a curve that a prompt keeps
LARGEST = 1e30
COLUMNS = ("step", "loss", "learning_rate")
VALIDATION_COLUMNS = ("step", "loss", "exact")
OPTIONAL_COLUMNS = ("agreement", "preferred", "reward")  # of a validation, where they were measured
BARS = "▁▂▃▄▅▆▇█"


class ValidationPoint(NamedTuple):
    """One validation: its step, loss and exact share, the share of labels that are said, the share
    of pairs whose preferred answer is ahead, and the mean reward.
    """

    step: int
    loss: float
    exact: float
    agreement: float | None = None
    preferred: float | None = None
    reward: float | None = None


@dataclass
class History:
    """Every step of a run.

    Attributes:
        losses: of each step, in nats.
        rates: the learning rate of each step.
        validations: one point each.
    """

    losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    validations: list[ValidationPoint] = field(default_factory=list)

    def forget_after(self, step: int) -> None:
        """Drop what came after a step that the run goes back to."""
        del self.losses[step:], self.rates[step:]
        self.validations = [one for one in self.validations if one.step <= step]

    def facts(self, num_points: int = MAX_POINTS) -> dict[str, Any]:
        """Return at most `num_points` of each curve, as a prompt keeps them; {} before any step.

        Where there are more steps, a point's loss is the mean over the steps since the point before
        it. Numbers have six digits.
        """
        if not self.losses:
            return {}
        ends = _ends(len(self.losses), num_points)
        found: dict[str, Any] = {
            "step": ends,
            "loss": _means(self.losses, ends),
            "learning_rate": [_short(self.rates[end - 1]) for end in ends],
        }
        if self.validations:
            kept = [self.validations[end - 1] for end in _ends(len(self.validations), num_points)]
            found["validation"] = {"step": [one.step for one in kept]}
            for name in (*VALIDATION_COLUMNS[1:], *OPTIONAL_COLUMNS):
                values = [getattr(one, name) for one in kept]
                if None not in values:
                    found["validation"][name] = [_short(value) for value in values]
        return found


def thinned(facts: Mapping[str, Any], num_points: int) -> dict[str, Any]:
    """Return at most `num_points` of each curve of facts that are not `wrong`."""
    found = _thinned(facts, COLUMNS, num_points)
    if facts.get("validation"):
        part = facts["validation"]
        found["validation"] = _thinned(part, _validation_columns(part), num_points)
    return found


def _validation_columns(part: Mapping[str, Any]) -> list[str]:
    return [*VALIDATION_COLUMNS, *(name for name in OPTIONAL_COLUMNS if name in part)]


def _thinned(facts: Mapping[str, Any], columns: Sequence[str], num_points: int) -> dict[str, Any]:
    ends = _ends(len(facts["step"]), num_points)
    found: dict[str, Any] = {name: [facts[name][end - 1] for end in ends] for name in columns}
    if "learning_rate" in found:
        found["loss"] = _means(facts["loss"], ends)
    return found


def wrong(facts: Any) -> str | None:
    """Return what is wrong with a prompt's history, compared with `History.facts`, or None."""
    if not isinstance(facts, dict):
        return f"history is {type(facts).__name__}, expected dict"
    found = _wrong_columns(facts, COLUMNS, "history")
    if found is None and facts.get("validation") is not None:
        part = facts["validation"]
        if not isinstance(part, dict):
            return f"history.validation is {type(part).__name__}, expected dict"
        found = _wrong_columns(part, _validation_columns(part), "history.validation")
    return found


def _wrong_columns(facts: dict[str, Any], columns: Sequence[str], where: str) -> str | None:
    for name in columns:
        values = facts.get(name)
        if not isinstance(values, list) or not 0 < len(values) <= MAX_POINTS:
            return f"{where}.{name} is no list of 1 to {MAX_POINTS} numbers"
        if not all(type(one) in (int, float) and abs(one) <= LARGEST for one in values):
            return f"{where}.{name} holds what is no finite number"
    steps = facts["step"]
    if any(type(one) is not int for one in steps) or steps[0] < 1 or sorted(set(steps)) != steps:
        return f"{where}.step does not rise from 1 on"
    if len({len(facts[name]) for name in columns}) > 1:
        return f"{where}: {', '.join(columns)} are not equally long"
    return None


def line(facts: Mapping[str, Any], width: int = 40) -> str:
    """Return a history in one line: bars for the loss, then its first and last values."""
    losses, steps = thinned(facts, width)["loss"], facts["step"]
    low, high = min(losses), max(losses)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    bars = "".join(BARS[round((loss - low) * scale)] for loss in losses)
    said = f"{bars}  loss {facts['loss'][0]:.3g} to {facts['loss'][-1]:.3g} in {steps[-1]} steps"
    held_out = (facts.get("validation") or {}).get("loss")
    if not held_out:
        return said
    return f"{said}, held out {held_out[0]:.3g} to {held_out[-1]:.3g}"


def _ends(count: int, num_points: int) -> list[int]:
    """Cut `count` steps into even parts, at most `num_points`; return each part's last step."""
    num_parts = min(count, num_points)
    return [(part + 1) * count // num_parts for part in range(num_parts)]


def _means(values: Sequence[float], ends: Sequence[int]) -> list[float]:
    starts = [0, *ends[:-1]]
    parts = [values[start:end] for start, end in zip(starts, ends, strict=True)]
    return [_short(math.fsum(part) / len(part)) for part in parts]


def _short(value: float) -> float:
    return float(f"{value:.6g}")
