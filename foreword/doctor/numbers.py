"""Numbers: whether a base, and a prompt before it, are fit to be tested at all.

In: a trial. Out: one finding on the base's weights and on the logits of the bare model and behind
the prompt, all computed with transformers alone. What is wrong there is wrong with a file, and no
comparison of fast with slow would say so. Compares nothing.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.compat.error_lines import typed_line
from foreword.doctor.finding import Finding
from foreword.doctor.trial import Trial

NAME = "numbers"
WHOLE = "take the model's whole, unchanged checkpoint"
NOT_RUN = "what follows was not tested"
TOO_LARGE = 1e4  # of a prompt's numbers, as a multiple of the largest embedding's


def numbers_finding(trial: Trial, *, is_given: bool) -> tuple[Finding, bool]:
    """Look at the weights, then at the logits.

    Args:
        trial: on the base.
        is_given: whether the trial's prompt is the user's, not one that stands in.

    Returns:
        (the finding, whether there is anything that fast and slow can be compared on).
    """
    if (weights := not_finite_weights(trial.backbone)) is not None:
        detail = f"the base's weights are not finite: {weights}; {NOT_RUN}"
        return Finding(NAME, "wrong", detail, WHOLE), False
    if (problem := logits_problem(trial, is_given=is_given)) is not None:
        detail, cure = problem
        return Finding(NAME, "wrong", f"{detail}; {NOT_RUN}", cure), False
    said = "the base's weights and logits are finite, and so are the logits behind the prompt"
    if is_given and (large := too_large(trial)):
        cure = "train the prompt again with a lower --learning-rate"
        return Finding(NAME, "warning", f"{said}; {large}", cure), True
    return Finding(NAME, "ok", said), True


def logits_problem(trial: Trial, *, is_given: bool) -> tuple[str, str] | None:
    """Return what is wrong with the logits, bare or behind the prompt, and what to do."""
    if (problem := _bare_problem(trial)) is not None:
        return problem
    if trial.prompt.form not in ("embeddings", "key_values"):
        return None
    behind, raised = _logits(trial.prompted_logits)
    if behind is None:
        return f"behind the prompt, transformers itself raises {raised}", WHOLE
    if bool(behind.isfinite().all()):
        return None
    what = "the prompt" if is_given else "random virtual tokens"
    return (
        f"the bare model's logits are finite, and behind {what} {_share(behind)} of them are not: "
        f"{too_large(trial) or _most(trial)}",
        "train the prompt again with a lower --learning-rate, or load the base in float32 or "
        "bfloat16 instead of float16",
    )


def _bare_problem(trial: Trial) -> tuple[str, str] | None:
    """Return what is wrong with the logits of the bare model, and what to do."""
    bare, raised = _logits(trial.bare_logits)
    if bare is None:
        return f"the bare model raises, in transformers alone, {raised}", WHOLE
    if not bool(bare.isfinite().all()):
        kind = str(trial.backbone.dtype).removeprefix("torch.")
        detail = f"{_share(bare)} of the bare model's logits are not finite, in {kind}"
        is_half = trial.backbone.dtype == torch.float16
        return detail, "load the base in float32 or bfloat16" if is_half else WHOLE
    if bool((bare == bare[:, :1]).all()):
        zeros = [name for name, weight in _weights(trial.backbone) if not bool(weight.any())]
        more = f": {len(zeros)} of its weights are all 0, as {zeros[0]}" if zeros else ""
        return f"the bare model gives every id the same logit{more}", WHOLE
    return None


def not_finite_weights(backbone: Backbone) -> str | None:
    """Return which weight of a base is not finite first, and how many are; None where all are."""
    found = [(name, weight) for name, weight in _weights(backbone) if not _is_finite(weight)]
    if not found:
        return None
    name, weight = found[0]
    more = f" ({len(found)} such weights)" if len(found) > 1 else ""
    return f"{_share(weight)} of the numbers of {name} are not{more}"


def too_large(trial: Trial) -> str | None:
    """Say that an embedding prompt's numbers lie far beyond the embeddings', where they do."""
    if trial.prompt.form != "embeddings":
        return None
    largest, own = _largest(trial)
    return _most(trial) if largest > TOO_LARGE * own else None


def _most(trial: Trial) -> str:
    largest = max(float(tensor.abs().max()) for tensor in trial.prompt.tensors)
    if trial.prompt.form != "embeddings":
        return f"the prompt holds numbers up to {largest:.3g}"
    own = _largest(trial)[1]
    return f"the prompt holds numbers up to {largest:.3g}, the embeddings up to {own:.3g}"


def _largest(trial: Trial) -> tuple[float, float]:
    """Return the largest number of an embedding prompt, and of embeddings of the base."""
    size = trial.backbone.capabilities.vocab_size
    with torch.no_grad():
        rows = trial.backbone.embed(torch.arange(0, size, max(1, size // 4096), device="cpu"))
    return float(trial.prompt.embeddings.abs().max()), float(rows.abs().max())


def _weights(backbone: Backbone) -> list[tuple[str, Tensor]]:
    """Return the parameters that are in a memory and hold numbers."""
    return [
        (name, weight.detach())
        for name, weight in backbone.model.named_parameters()
        if weight.is_floating_point() and weight.numel() and not weight.is_meta
    ]


def _is_finite(weight: Tensor) -> bool:
    return bool(_finite(weight).all())


def _finite(tensor: Tensor) -> Tensor:
    return (tensor.half() if tensor.element_size() == 1 else tensor).isfinite()


def _share(tensor: Tensor) -> str:
    """Say how many numbers of a tensor are not finite."""
    return f"{int((~_finite(tensor)).sum()):,} of {tensor.numel():,}"


def _logits(compute: Callable[[], Tensor]) -> tuple[Tensor | None, str]:
    """Return logits `[T, V]`, or None and what was raised."""
    try:
        with torch.no_grad():
            return compute().float(), ""
    except Exception as error:  # whatever a model raises at odd files
        return None, typed_line(error)
