"""Training methods: what is trained, and the plain prompt that it folds to.

In: the prompt that a run starts from. Out: a `Method`: leaves that take a gradient, and the
`SoftPrompt` that they stand for at this moment. Training, resuming and saving know only that
interface and the functions here; what a method needs while it trains is gone from what it saves.
Knows no optimizer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from foreword.backbone import Backbone
from foreword.config import extensions
from foreword.data.batches import Batch
from foreword.prompt.prefix import Prefix, PrefixBatch, same_prefix
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import PrefixStates
from foreword.training.methods.context import Context
from foreword.training.methods.direct import Direct
from foreword.training.methods.multitask import Multitask
from foreword.training.methods.reencoded import Reencoded


class Method(Protocol):
    """What is trained in a run.

    Attributes:
        tensors: leaves that take a gradient, in a fixed order.
        constants: further tensors that the prompt is computed from, and that never change.
        facts: what the prompt says of itself.
    """

    tensors: list[Tensor]
    constants: list[Tensor]
    facts: dict[str, Any]

    @property
    def layout(self) -> dict[str, Any]:
        """Plain data from which `restored` builds the method, given its tensors."""

    def prompt(self) -> SoftPrompt:
        """Return the prompt as it is now, with gradient to the tensors."""


def task_prompts(method: Method) -> dict[str, SoftPrompt]:
    """Return a prompt for every task, with gradient; {} where there is one prompt for all rows."""
    return method.tasks() if isinstance(method, Multitask) else {}


def unseen(method: Method, batch: Batch) -> Tensor | None:
    """Return which virtual tokens a row must not see while it is trained on, `[B, P]`."""
    return method.unseen(batch) if isinstance(method, Context) else None


def demonstrated(method: Method) -> Mapping[tuple[int, ...], Sequence[int]]:
    """Return the rows, by their ids, that the prompt holds, and the virtual tokens of each."""
    return method.own if isinstance(method, Context) else {}


def bind(method: Method, own: Mapping[tuple[int, ...], Sequence[int]]) -> None:
    """Tell a method that hides them which virtual tokens are which rows."""
    if isinstance(method, Context):
        method.own = own


def prefill(backbone: Backbone, method: Method) -> list[PrefixStates]:
    """Return what rows start from, with gradient to what is trained: one for each task in turn, or
    one for all rows.
    """
    prompts = task_prompts(method) or {"": method.prompt()}
    return [backbone.prefill(prompt) for prompt in prompts.values()]


def prefixes_of(method: Method, states: Sequence[PrefixStates], batch: Batch) -> PrefixBatch:
    """Return what `prefill` found as the prefixes of a batch's rows."""
    if not isinstance(method, Multitask):
        (alone,) = states
        rows = same_prefix(Prefix(alone, "training"), len(batch.input_ids))
        return PrefixBatch(rows.prefixes, unseen(method, batch))
    known = {
        name: Prefix(part, f"training {name}")
        for name, part in zip(method.names, states, strict=True)
    }
    return PrefixBatch(tuple(known[task] for task in batch.tasks))


def restored(
    layout: Mapping[str, Any],
    tensors: Sequence[Tensor],
    constants: Sequence[Tensor],
    facts: Mapping[str, Any],
) -> Method:
    """Build a method from what a training state holds of it.

    Raises:
        LookupError, TypeError, ValueError, RuntimeError: the parts do not fit each other.
    """
    rest = {name: value for name, value in layout.items() if name != "name"}
    match layout["name"]:
        case Direct.name:
            return Direct(rest["shape"], tensors, facts)
        case Context.name:
            return Context(rest["shape"], tensors, constants, facts)
        case Multitask.name:
            return Multitask(rest["names"], tensors, facts)
        case Reencoded.name:
            return Reencoded.restored(rest, tensors, constants, facts)
    if added := extensions.find("method", layout["name"]):
        return added.restored(rest, tensors, constants, facts)  # type: ignore[no-any-return]
    raise LookupError(f"no method {layout['name']!r}")
