"""View proof: whether a view of a model computes what the model itself does, on a few tokens.

In: a comparison of the two. Out: why the view is not taken, if there is a reason. Makes no view.
"""

from collections.abc import Callable

import torch

from foreword.compat.error_lines import typed_line
from foreword.model.capabilities import Capabilities

NUM_IDS = 79


def objection(difference: Callable[[], str | None]) -> str | None:
    """Return why a view is not taken: what a comparison says, or raises; None: nothing speaks
    against it.
    """
    try:
        return difference()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a family's code may do anything with what it does not expect
        return typed_line(error)


def text_ids(capabilities: Capabilities) -> list[int]:
    """Return different-looking ids to compare on, none of which stands for an image or a sound."""
    special = {modality.token_id for modality in capabilities.modalities}
    found = ((7919 * number) % capabilities.vocab_size for number in range(1, NUM_IDS + 1))
    return [one for one in found if one not in special]


def limit_of(dtype: torch.dtype) -> float:
    """Return the share of its norm by which a hidden state may differ in a dtype."""
    return 1e-3 if dtype in (torch.float32, torch.float64) else 0.05
