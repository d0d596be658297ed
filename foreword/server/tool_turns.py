"""Results of tools in a conversation: each stands where the call stands that its id names.

In: validated turns. Out: the same, results in the order of their calls, since many chat templates
show no ids; a result of no call is refused. Knows no template.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol, TypeVar


class ToolTurn(Protocol):
    """What is read of a turn."""

    role: Any
    tool_calls: Any
    tool_call_id: str | None


T = TypeVar("T", bound=ToolTurn)


def in_order(turns: Sequence[T]) -> list[T]:
    """Return turns with results in the order of the calls that they are of.

    Raises:
        ValueError: a result of no call, a second one, or ids in some results only.
    """
    made: list[T] = []
    for is_result, run in groupby(turns, key=lambda turn: turn.role == "tool"):
        own = list(run)
        made += _placed(own, made) if is_result else own
    return made


def _placed(results: list[T], before: list[T]) -> list[T]:
    number = len(before) + 1  # of the first result
    calls = [call.id for call in (before[-1].tool_calls if before else None) or ()]
    if not calls:
        raise ValueError(f"turn {number} is of role 'tool': the turn before it calls no tools")
    ids = [turn.tool_call_id or None for turn in results]
    if not any(ids):  # by their order
        if len(ids) > len(calls):
            raise ValueError(f"turn {number + len(calls)}: a result more than there are calls")
        return results
    if twice := next((one for one in calls if calls.count(one) > 1), None):
        raise ValueError(f"turn {number - 1}: two calls have the id {twice!r:.80}")
    for place, one in enumerate(ids):
        if one is None:
            raise ValueError(f"turn {number + place}: tool_call_id is missing: others have it")
        if one not in calls:
            raise ValueError(
                f"turn {number + place}: tool_call_id {one!r:.80} is of none of the calls before it"
            )
        if one in ids[:place]:
            raise ValueError(f"turn {number + place}: a second result of the call {one!r:.80}")
    return sorted(results, key=lambda turn: calls.index(turn.tool_call_id))
