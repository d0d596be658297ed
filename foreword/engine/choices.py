"""Choices: the next ids of requests of which nothing is pending, from their logits.

In: states of requests, logits `[B, V]`. Out: one choice for each, or None where its logits are not
finite or its request has failed: what a grammar or a sampler raises is one request's own failure.
"""

from collections.abc import Sequence

from torch import Tensor

from foreword.engine import sampling
from foreword.engine.request_state import RequestState
from foreword.engine.sampling import Choice


def choose_all(states: Sequence[RequestState], logits: Tensor) -> list[Choice | None]:
    """Choose for all at once; where that fails, for each alone, so that the culprit fails."""
    for state in states:
        _ask_constraint(state)
    try:
        return [*sampling.choose(logits, [state.sampler for state in states])]
    except Exception:
        return [_choose_alone(state, logits, index) for index, state in enumerate(states)]


def _ask_constraint(state: RequestState) -> None:
    constraint = state.handle.request.constraint
    if constraint is not None and not state.is_over:
        try:
            state.sampler.allowed = constraint.allowed()
        except Exception as error:
            state.handle.fail(error)


def _choose_alone(state: RequestState, logits: Tensor, index: int) -> Choice | None:
    try:
        (choice,) = sampling.choose(logits[index : index + 1], [state.sampler])
    except Exception as error:
        state.handle.fail(error)
        return None
    return choice
