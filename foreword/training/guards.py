"""Guards: divergence, vanished gradients and stalls, seen and put into words.

In: losses, gradients and validations so far. Out: None, or one sentence that says what was seen and
what becomes of it. Every verdict is a function of numbers that a training state keeps, so that a
resumed run comes to the same one. Moves no prompt and knows no rows.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foreword.errors import DivergedError, TrainingError

if TYPE_CHECKING:
    from foreword.backbone import Backbone
    from foreword.data.encoding import EncodingReport

GOOD_EVERY = 20  # steps between the points that a diverged run goes back to
MAX_RETURNS = 3  # how often it goes back, each time to half the rate
NUM_HIGH = 3  # losses in a row far above the good point's on the same rows: an explosion
NUM_RECENT = 10  # losses whose mean is the level of a run
STUCK_AFTER = 50  # steps past the warm-up after which a loss should have moved
STUCK_SHARE = 0.99  # of the first level: above it, the loss has not moved


def check_gradient(
    loss: float,
    norm: float,
    backbone: "Backbone | None" = None,
    step: int = 0,
    *,
    is_flat: bool = False,
) -> None:
    """Refuse to go on blindly: a dead gradient trains nothing, and nothing else would tell.

    Args:
        loss: of the step, in nats.
        norm: of the prompt's gradient.
        backbone: the base, where suspects are to be looked for.
        step: steps that are behind; a gradient that was alive once is not stopped by the base.
        is_flat: whether no gradient is to be expected, as where nothing is better than anything.

    Raises:
        DivergedError: a loss or norm that is not finite, or a gradient that has vanished.
        TrainingError: a zero gradient at the first step; names what is known to cause it.
    """
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise DivergedError(
            f"the loss is {loss:.4g} and the gradient's norm {norm:.4g}; lower --learning-rate, or "
            "load the base in float32 or bfloat16 instead of float16"
        )
    if norm != 0.0 or loss == 0.0 or is_flat:
        return
    if step:
        raise DivergedError(
            "the gradient has vanished: the prompt's values are so large that the model no longer "
            "reacts to them; lower --learning-rate"
        )
    raise TrainingError(
        f"the gradient of the prompt is zero: the base stops it ({_suspects(backbone)}); load "
        "it dequantized or without checkpointing"
    )


def _suspects(backbone: "Backbone | None") -> str:
    """Name what of the base is known to stop a gradient; in general, where nothing is found."""
    found = []
    if backbone is not None:
        method = getattr(backbone.model.config, "quantization_config", None)
        if getattr(backbone.model, "is_quantized", False) or method is not None:
            name = getattr(method, "quant_method", None) or "unknown"
            found.append(f"its weights are quantized, method {getattr(name, 'value', name)}")
        if any(getattr(part, "gradient_checkpointing", False) for part in backbone.model.modules()):
            found.append("its own gradient checkpointing is on, which drops the cache")
        if hooked := _hooked(backbone.model):
            found.append(f"hooks on {', '.join(hooked[:3])}")
    general = "weights under fake quantization, or gradient checkpointing that drops the cache"
    return "; ".join(found) or general


def _hooked(model: Any) -> list[str]:
    """Name the parts whose output somebody's hook may change; transformers' own change nothing."""
    return [
        name
        for name, part in model.named_modules()
        for hook in part._forward_hooks.values()
        if not (getattr(hook, "__module__", None) or "").startswith("transformers.")
    ]


def level(losses: Sequence[float]) -> float:
    """Return where a run stands: the mean of its latest losses, in nats."""
    recent = losses[-NUM_RECENT:]
    return sum(recent) / len(recent) if recent else math.inf


def is_sane(loss: float, good: float | None) -> bool:
    """Return whether a loss is not far above a good one."""
    return good is None or not loss > 2 * good + 1


def check_rise(num_high: int, good: float | None, loss: float) -> None:
    """Refuse a run whose latest losses were all far above those of its last good point.

    Args:
        num_high: latest steps in a row whose loss was far above that of the good point's prompt on
            the same rows.
        good: the latter, of the latest step.
        loss: of the latest step.

    Raises:
        DivergedError: names both losses.
    """
    if num_high >= NUM_HIGH:
        raise DivergedError(
            f"the loss rose from {good:.3g} to {loss:.3g} on the same rows; lower --learning-rate"
        )


def standstill(losses: Sequence[float], num_warmup: int) -> str | None:
    """Say, once, that the loss has not moved since the run began."""
    if len(losses) != num_warmup + STUCK_AFTER:
        return None
    first, latest = level(losses[:NUM_RECENT]), level(losses)
    if latest <= STUCK_SHARE * first:
        return None
    return (
        f"after {len(losses)} steps the loss is {latest:.3g}, it began at {first:.3g}: it does not "
        "move; the run goes on, but a higher --learning-rate or an --init-text may serve it better"
    )


def sameness(step: int, num_flat: int) -> str | None:
    """Say, once, that no answer since a run began was better than another to the same question.

    Args:
        step: that was taken last.
        num_flat: first steps of the run in which none was.
    """
    if step != NUM_RECENT or num_flat < NUM_RECENT:
        return None
    return (
        f"after {step} steps every answer has had the same reward as the others to its question: "
        "none is better than another, so that nothing is learned; start from a prompt that is "
        "right now and then, or let the reward tell more"
    )


def truncation(report: "EncodingReport") -> str | None:
    """Say how many rows lost their beginning."""
    if not report.num_truncated:
        return None
    return (
        f"{report.num_truncated} of {report.num_rows} rows were too long and lost their beginning; "
        "every label is whole"
    )
