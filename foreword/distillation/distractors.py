"""Distractors: other prompts that stand beside the student in some rows of training, read only.

In: a folder of prompts, rows. Out: rows of which some name another prompt and its side; a view of
the backbone that puts its keys and values there, before or behind the student's, moved by rotation.
The teacher's answers stay those behind the context alone, so that the student learns to be heard
beside others (arXiv:2606.04557). Validation rows name none.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from foreword.backbone import Backbone
from foreword.data.batches import Batch
from foreword.data.encoding import Row
from foreword.distillation.composition import rotations_for
from foreword.errors import ForewordError, InputError
from foreword.model.passes import LabelStates
from foreword.model.rotation import Rotation, joined
from foreword.prompt.peft_format import CONFIG_FILE
from foreword.prompt.prefix import Prefix, PrefixBatch
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import DeferredPrompt, States
from foreword.prompt.store import Store

SIDES = ("before", "behind")


@dataclass(frozen=True, eq=False)
class Beside:
    """Another prompt's keys and values, and whether they stand before the student's."""

    states: States
    is_before: bool


def read_distractors(backbone: Backbone, folder: str, room: int) -> dict[str, Beside]:
    """Return the prompts of a folder or store at both sides, by what a row's task calls them.

    Args:
        backbone: their base.
        folder: with a prompt in each of its folders, or a store.
        room: tokens that the student and its longest row need.

    Raises:
        InputError: no prompts there, or one that leaves no room. MismatchError: one of another
            base. UnsupportedError: keys that cannot be moved on this model.
    """
    rotations_for(backbone)
    found: dict[str, Beside] = {}
    for place in _places(folder):
        try:
            prompt = SoftPrompt.load(place)
            states = backbone.compile(prompt).cached
        except ForewordError as error:
            raise type(error)(f"--distractors: {place}: {error}") from None
        context = backbone.capabilities.context_length
        if context is not None and prompt.num_virtual_tokens + room > context:
            raise InputError(
                f"--distractors: {place} has {prompt.num_virtual_tokens} virtual tokens, and the "
                f"student with its longest row {room}, more than the model's context of {context}"
            )
        for side in SIDES:
            found[f"{side} {prompt.content_hash}"] = Beside(states, side == SIDES[0])
    return found


def _places(folder: str) -> list[Path]:
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"--distractors: {folder}: no such directory; expected one of prompts")
    store = Store(path)
    found = [store.verify(store.resolve(name)) for name in store.names()]
    found += sorted(one for one in path.iterdir() if (one / CONFIG_FILE).is_file())
    if not found:
        raise InputError(f"--distractors: {folder} holds no prompts")
    return found


def placed(rows: Sequence[Row], names: Sequence[str], share: float, seed: int) -> list[Row]:
    """Return rows of which a share, drawn by seed, stand beside one of the named prompts each, all
    of them in turn.
    """
    chance = random.Random(seed)
    picked = chance.sample(range(len(rows)), round(share * len(rows)))
    order = chance.sample(names, len(names))
    tasks = {index: order[number % len(order)] for number, index in enumerate(picked)}
    return [replace(row, task=tasks.get(index, row.task)) for index, row in enumerate(rows)]


class BackboneBeside(Backbone):
    """A view of a backbone that scores labels of rows with others' keys and values beside theirs.

    Attributes:
        others: by the task of a row.
        rotations: of each layer.
    """

    others: Mapping[str, Beside]
    rotations: Sequence[Rotation]

    @classmethod
    def of(cls, backbone: Backbone, others: Mapping[str, Beside]) -> Self:
        """Return the view."""
        made = cls.__new__(cls)
        vars(made).update(vars(backbone))
        made.others, made.rotations = others, rotations_for(backbone)
        return made

    def label_states(self, prefixes: PrefixBatch, batch: Batch) -> LabelStates:
        """See `Backbone.label_states`; rows whose task names no other prompt stay as they are."""
        if not any(batch.tasks):
            return super().label_states(prefixes, batch)
        known: dict[tuple[int, str], Prefix | None] = {}
        for own, task in zip(prefixes.prefixes, batch.tasks, strict=True):
            if (id(own), task) not in known:
                known[id(own), task] = self._with(own, task)
        pairs = zip(prefixes.prefixes, batch.tasks, strict=True)
        found = tuple(known[id(own), task] for own, task in pairs)
        return super().label_states(PrefixBatch(found), batch)

    def _with(self, own: Prefix | None, task: str) -> Prefix | None:
        if own is None or not task or isinstance(own.states, DeferredPrompt):
            return own
        other = self.others[task]
        pair = (other.states, own.states) if other.is_before else (own.states, other.states)
        return Prefix(joined(*pair, self.rotations), f"{own.content_hash} {task}", own.facts)
