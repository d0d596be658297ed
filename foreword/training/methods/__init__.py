"""How a prompt is learned: what is trained, and what it folds to.

In: the prompt that a run starts from. Out: a `Method`: leaves that take a gradient, and the plain
`SoftPrompt` that they stand for at this moment. Training, resuming and saving know only that
interface; what a method needs while it trains is gone from what it saves. Knows no optimizer and no
rows, but for whose demonstrations a prompt holds.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from foreword.backbone import Backbone
from foreword.data.batches import Batch
from foreword.prompt.prefix import Prefix, PrefixBatch, same_prefix
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import States, joined, parted
from foreword.training.methods.context import Context
from foreword.training.methods.direct import Direct
from foreword.training.methods.multitask import Multitask
from foreword.training.methods.reencoded import Reencoded

__all__ = [
    "Context",
    "Direct",
    "Method",
    "Multitask",
    "Reencoded",
    "behind",
    "read",
    "restored",
]


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
        ...

    def prompt(self) -> SoftPrompt:
        """Return the prompt as it is now, with gradient to the tensors."""
        ...

    def tasks(self) -> dict[str, SoftPrompt]:
        """Return a prompt for every task, where a run trains several."""
        ...

    def unseen(self, batch: Batch) -> Tensor | None:
        """Return which virtual tokens a row must not see while it is trained on, `[B, P]`."""
        ...


def read(backbone: Backbone, method: Method) -> States:
    """Return the state that rows start from, with gradient to what is trained; several tasks' one
    after another.
    """
    prompts = method.tasks() or {"": method.prompt()}
    return joined([backbone.read(prompt) for prompt in prompts.values()])


def behind(method: Method, states: States, batch: Batch) -> PrefixBatch:
    """Return what `read` found as the prefixes of a batch's rows."""
    if not isinstance(method, Multitask):
        return PrefixBatch(
            same_prefix(Prefix(states, "training"), len(batch.input_ids)).prefixes,
            method.unseen(batch),
        )
    parts = parted(states, len(method.names))
    known = {
        name: Prefix(part, f"training {name}")
        for name, part in zip(method.names, parts, strict=True)
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
    kinds = {kind.name: kind for kind in (Direct, Reencoded, Context, Multitask)}
    rest = {name: value for name, value in layout.items() if name != "name"}
    method: Method = kinds[layout["name"]].restored(rest, tensors, constants, facts)
    return method
