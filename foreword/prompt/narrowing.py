"""Narrowing: a prompt's numbers in another dtype, or a refusal where that does not hold them.

In: a tensor and a dtype. Out: the same numbers, rounded, none of them infinite: float16 ends at
65,504, which a prompt of bfloat16 or float32 may pass. Knows no model and no file.
"""

import torch
from torch import Tensor

from foreword.errors import InputError


def narrowed(tensor: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """Return a tensor in another dtype.

    Args:
        tensor: of numbers that are finite. Where gradients flow to it, it is not looked at: a
            training looks at its losses.
        dtype: of 16, 32 or 64 bits.
        what: takes them, for the error.

    Raises:
        InputError: a number that the dtype does not hold.
    """
    found = tensor.to(dtype)
    most = torch.finfo(dtype).max
    is_learned = torch.is_grad_enabled() and tensor.requires_grad
    if is_learned or most >= torch.finfo(tensor.dtype).max:
        return found
    if not bool(torch.isfinite(found).all()):
        largest = float(tensor.detach().abs().max())
        name = str(dtype).removeprefix("torch.")
        raise InputError(
            f"the prompt holds {largest:.4g}, and {what} is of {name}, which ends at {most:.4g}: "
            "take the base in float32 or bfloat16, or train the prompt again"
        )
    return found
