"""Loss scaling: how a gradient passes a base in half precision without being rounded away.

In: the states that rows start from, and a run's progress, which holds the scale. Out: leaves in
float32 on which the gradient of all micro-batches adds up; powers of two, by which a step
multiplies and divides exactly. A gradient past float16's range has the step taken again at a lower
scale; every so often the scale rises. Bases in other dtypes are not scaled. Micikevicius et al.
2018 (arXiv:1710.03740), sections 3.2 and 3.3. Knows no rows.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from foreword.prompt.states import PrefixStates
from foreword.training.checkpoint import Progress

HIGHEST, LOWEST = 12, -24  # exponents of two
STEP_DOWN = 4
RAISE_EVERY = 100  # steps


def is_needed(dtype: torch.dtype) -> bool:
    """Return whether gradients of a base in this dtype round to zero or pass its range."""
    return dtype == torch.float16


def of_labels(dtype: torch.dtype, num_labels: float, exponent: int) -> float:
    """Return what the mean loss of a step's labels is multiplied by: the gradient of one label is
    then `2 ** exponent` times that of its own loss, however many there are.
    """
    return math.ldexp(1.0, exponent + round(math.log2(num_labels))) if is_needed(dtype) else 1.0


def of_prefix(dtype: torch.dtype, leaves: Sequence[PrefixStates], exponent: int) -> float:
    """Return what the gradient of the leaves is multiplied by on its way back through the prefix:
    its largest number is then about `2 ** exponent`. 1 where it is not finite, or nothing.
    """
    grads = [one.grad for states in leaves for one in states.tensors if one.grad is not None]
    if not is_needed(dtype) or not grads:
        return 1.0
    largest = max(grad.abs().max().item() for grad in grads)
    if not largest or not math.isfinite(largest):
        return 1.0
    return math.ldexp(1.0, exponent - math.frexp(largest)[1])


def unscale(tensors: Sequence[Tensor], scale: float) -> None:
    """Divide the gradient of what is trained by a power of two."""
    for tensor in tensors:
        if tensor.grad is not None and scale != 1:
            tensor.grad /= scale


def is_lowered(dtype: torch.dtype, progress: Progress, loss: float, norm: float) -> bool:
    """Return whether a step must be taken again, at a scale that is lower now: its loss is finite,
    and its gradient is not.
    """
    is_past = is_needed(dtype) and math.isfinite(loss) and not math.isfinite(norm)
    if not is_past or progress.scale_exponent <= LOWEST:
        return False
    progress.scale_exponent -= STEP_DOWN
    return True


def raise_if_due(progress: Progress) -> None:
    """Raise the scale a little every so many steps: gradients become smaller as a run goes on."""
    if progress.step and progress.step % RAISE_EVERY == 0:
        progress.scale_exponent = min(HIGHEST, progress.scale_exponent + 1)


def wide_leaves(states: PrefixStates) -> PrefixStates:
    """Return a detached copy in float32 at least, on which gradient can add up: many small numbers
    are lost on a sum in half precision.
    """
    return states.map(
        lambda one: one.detach().to(torch.promote_types(one.dtype, torch.float32)).requires_grad_()
    )


def as_given(leaves: PrefixStates, states: PrefixStates) -> PrefixStates:
    """Return leaves in the dtypes of the states that they copy, with gradient to the leaves."""
    dtypes = iter([one.dtype for one in states.tensors])
    return leaves.map(lambda leaf: leaf.to(next(dtypes)))
