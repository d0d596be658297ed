"""Contract cases of a decoder: what is compared with the slow obvious computation, and how far off.

In: a model whose passes foreword runs. Out: for each case, the largest difference of its logits
from the reference, as a share of their spread. The reference is the model's own forward pass over
ids alone, virtual tokens included: one unpadded row, no cache, no mask, no positions. Generation is
forced along fixed ids, so that every step is compared. Knows no family.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from foreword.compat.transformers_api import GENERATE_CACHE
from foreword.model.capabilities import Capabilities
from foreword.prompt.prefix import Prefix
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import States
from foreword.verification.frozen_model import FrozenModel

LENGTHS = (9, 4, 12)  # of the rows of ids; the last is longer than a twin's window
NUM_VIRTUAL = (5, 3, 0)  # of their prompts; the last row has none
NUM_NEW = 5


class Forced(LogitsProcessor):
    """Let every row choose given ids `[B, N]`, one after another."""

    def __init__(self, ids: Tensor) -> None:
        self.ids, self.num_given = ids, -1

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores `[B, V]` that allow each row one id."""
        if self.num_given < 0:
            self.num_given = input_ids.shape[1]
        chosen = self.ids[:, input_ids.shape[1] - self.num_given, None].to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)


@dataclass(frozen=True, eq=False)
class Trials:
    """Fixed rows of ids behind prompts of several lengths.

    Attributes:
        backbone: the model, with the passes to be compared.
    """

    backbone: FrozenModel

    @cached_property
    def usable(self) -> Tensor:
        """Ids that stand for nothing but text, in an order that looks random."""
        taken = special_ids(self.backbone.model.config)
        size = self.backbone.capabilities.vocab_size
        ids = [number for number in range(1, size) if number not in taken]
        order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0), device="cpu")
        return torch.tensor(ids, device="cpu")[order].to(self.backbone.device)

    def ids(self, start: int, length: int) -> Tensor:
        """Return `[length]` ids."""
        index = torch.arange(start, start + length, device=self.usable.device)
        return self.usable[index % len(self.usable)]

    @cached_property
    def virtual(self) -> list[Tensor]:
        """The ids whose embeddings are each row's prompt, `[P]`."""
        found = [self.ids(40 + 7 * row, count) for row, count in enumerate(NUM_VIRTUAL)]
        virtual_id = self.backbone.capabilities.virtual_id
        if virtual_id is not None:
            found = [torch.full_like(ids, virtual_id) for ids in found]
        return found

    @cached_property
    def prompts(self) -> list[Prefix | None]:
        """Each row's prompt, compiled."""
        return [
            Prefix(self.backbone.passes.prefill(self.backbone.embed(ids)), f"proof-{len(ids)}")
            if len(ids)
            else None
            for ids in self.virtual
        ]

    @cached_property
    def rows(self) -> list[Tensor]:
        """The rows of ids, `[T]`."""
        return [self.ids(13 * row, length) for row, length in enumerate(LENGTHS)]

    @cached_property
    def following(self) -> Tensor:
        """The ids that every row goes on with, `[B, N]`."""
        return torch.stack([self.ids(70 + 11 * row, NUM_NEW) for row in range(len(LENGTHS))])

    def reference(self, row: int, ids: Tensor) -> Tensor:
        """Return the logits `[T, V]` of a row's ids behind its prompt, by the model itself."""
        whole = torch.cat([self.virtual[row], ids])[None]
        logits: Tensor = self.backbone.model(input_ids=whole, use_cache=False).logits
        return logits[0, len(self.virtual[row]) :]

    def padded(self, rows: Sequence[Tensor], *, is_left: bool) -> tuple[Tensor, Tensor]:
        """Return ids and mask `[B, T]`."""
        width = max(len(row) for row in rows)
        ids, mask = (
            self.usable[:1].repeat(len(rows), width),
            torch.zeros(len(rows), width, device="cpu"),
        )
        for index, row in enumerate(rows):
            place = slice(width - len(row), width) if is_left else slice(0, len(row))
            ids[index, place], mask[index, place] = row, 1
        return ids, mask.long().to(ids.device)

    def generate(self, order: Sequence[int], **options: Any) -> float:
        """Return how far forced generation of some rows, left-padded, is from the reference."""
        ids, mask = self.padded([self.rows[row] for row in order], is_left=True)
        output = self._forced(order, ids, mask, self.following[list(order)], **options)
        return self._compare(order, [self.rows[row] for row in order], output)

    def _forced(
        self, order: Sequence[int], ids: Tensor, mask: Tensor, forced: Tensor, **options: Any
    ) -> Any:
        return self.backbone.generate(
            [self.prompts[row] for row in order],
            ids,
            mask,
            max_new_tokens=forced.shape[1],
            logits_processor=LogitsProcessorList([Forced(forced)]),
            do_sample=False,
            num_beams=1,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
            use_cache=True,
            **options,
        )

    def _compare(self, order: Sequence[int], before: Sequence[Tensor], output: Any) -> float:
        """Return the distance of a generation's steps from the reference of each row, along the
        ids that were said: not every class lets them be forced.
        """
        steps, errors = torch.stack(output.logits, 1), []
        said = output.sequences[:, -steps.shape[1] :]
        for index, row in enumerate(order):
            whole = torch.cat([before[index], said[index, :-1]])
            expected = self.reference(row, whole)[len(before[index]) - 1 :]
            errors.append(distance(steps[index], expected))
        return max(errors)

    def two_turns(self) -> float:
        """Return the distance of a second, padded turn on the cache that the first returned."""
        order = (0, 1, 2)
        ids, mask = self.padded(self.rows, is_left=True)
        first = self._forced(order, ids, mask, self.following)
        turns = [self.ids(90 + row, 2 + row) for row in order]
        new, new_mask = self.padded(turns, is_left=True)
        whole = torch.cat([first.sequences, new], 1)
        seen = torch.cat([mask, torch.ones_like(self.following), new_mask], 1)
        forced = self.following.flip(1)
        second = self._forced(order, whole, seen, forced, past_key_values=first[GENERATE_CACHE])
        answers = first.sequences[:, ids.shape[1] :]
        before = [
            torch.cat([row, said, turn])
            for row, said, turn in zip(self.rows, answers, turns, strict=True)
        ]
        return self._compare(order, before, second)

    def logits(self) -> float:
        """Return the distance of a padded, mixed batch's logits."""
        ids, mask = self.padded(self.rows, is_left=False)
        found = self.backbone.logits(self.prompts, ids, mask)
        errors = [
            distance(found[row, mask[row].bool()], self.reference(row, ids))
            for row, ids in enumerate(self.rows)
        ]
        return max(errors)

    def key_values(self) -> float:
        """Return the distance of rows behind the same prompts as keys and values."""
        prefix = self.prompts[0]
        assert prefix is not None and isinstance(prefix.states, States)
        prompt = SoftPrompt.from_states(prefix.states)
        found = self.backbone.logits(prompt, self.rows[0][None])[0]
        return distance(found, self.reference(0, self.rows[0]))

    def gradient(self) -> float:
        """Return the distance of a loss's gradient to an embedding prompt's values."""
        backbone, row = self.backbone, self.rows[0]
        start = backbone.embed(self.virtual[0]).detach()
        weight = torch.randn(
            backbone.capabilities.vocab_size,
            generator=torch.Generator().manual_seed(0),
            device="cpu",
        ).to(start)
        with torch.enable_grad():
            own = start.clone().requires_grad_()
            prompt = SoftPrompt.from_embeddings(own)
            found = backbone.logits(prompt, row[None])[0]
            (found @ weight.to(found)).sum().backward()
            other = start.clone().requires_grad_()
            whole = torch.cat([other, backbone.embed(row)])[None]
            logits = backbone.model(inputs_embeds=whole, use_cache=False).logits[0]
            (logits[len(start) :] @ weight.to(logits)).sum().backward()
        assert own.grad is not None and other.grad is not None
        return distance(own.grad, other.grad)

    def rounding(self) -> float:
        """Return how far a row's logits move when its embeddings move by one unit of rounding."""
        backbone, row = self.backbone, self.rows[0]
        embedded = backbone.embed(torch.cat([self.virtual[0], row]))[None]
        unit = torch.finfo(embedded.dtype).eps
        sign = 1 - 2 * (torch.arange(embedded.shape[2], device=embedded.device) % 2)
        moved = embedded * (1 + unit * sign)
        one, other = (
            backbone.model(inputs_embeds=given, use_cache=False).logits[0]
            for given in (embedded, moved.to(embedded.dtype))
        )
        return distance(other, one)

    def strength(self) -> float:
        """Return how far a prompt moves the logits, measured as the cases are."""
        row = self.rows[0]
        alone = self.backbone.model(input_ids=row[None], use_cache=False).logits[0]
        return distance(self.reference(0, row), alone)


def special_ids(config: Any) -> set[int]:
    """Return every id that a configuration names for something else than text."""
    found: set[int] = set()
    for name, value in config.to_dict().items():
        if isinstance(value, dict):
            sub = getattr(config, name, None)
            if hasattr(sub, "to_dict"):
                found |= special_ids(sub)
        elif "token" in name or name.endswith(("_id", "_ids")):
            values = value if isinstance(value, list | tuple) else [value]
            found |= {one for one in values if isinstance(one, int)}
    return found


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the spread of what was expected."""
    found, expected = found.detach().double(), expected.detach().double()
    is_number = expected.abs() < 1e30  # some classes forbid ids by the lowest number there is
    if bool((is_number != (found.abs() < 1e30)).any()):
        return math.inf
    found, expected = found[is_number], expected[is_number]
    spread = expected.std().clamp_min(1e-12)
    return float((found - expected).abs().max() / spread)


Case = Callable[[Trials], float]

# What every class must hold to be accepted, what fails most often first.
CORE: dict[str, Case] = {
    "one row": lambda trials: trials.generate((0,)),
    "padded and mixed rows": Trials.logits,
    "left-padded, mixed generation": lambda trials: trials.generate((0, 1, 2)),
    "static cache": lambda trials: trials.generate((1, 2), cache_implementation="static"),
    "chunked prefill": lambda trials: trials.generate((2, 1), prefill_chunk_size=5),
    "two turns": Trials.two_turns,
    "keys and values": Trials.key_values,
    "gradient": Trials.gradient,
}


def core(capabilities: Capabilities) -> dict[str, Case]:
    """Return the cases of a decoder."""
    # Where more than embeddings is looked up, the reference of a gradient would need that, too.
    return {
        name: case
        for name, case in CORE.items()
        if name != "gradient" or capabilities.virtual_id is None
    }
