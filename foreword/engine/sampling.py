"""Sampling: logits to the next id, for rows that each have their own settings.

In: logits `[B, V]` of one step and a `Sampler` for each row: its settings, the ids it has seen, its
own random numbers. Out: one `Choice` for each row, or None where the logits are not finite. The
order is that of transformers: penalties, bias and mask first, then temperature, top-k, top-p,
min-p. A row draws from its own seed only, so that its answer does not depend on its neighbours.
Knows no model and no text.
"""

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foreword.errors import InputError

GREEDY_BELOW = 1e-5  # of a temperature: a division by less overflows
NUM_CANDIDATES = 1024  # sorted first; all of V only where these do not hold enough probability


@dataclass(frozen=True)
class Sampling:
    """How one request's ids are drawn.

    Attributes:
        temperature: 0 is greedy.
        top_p: share of the probability that is kept, the likeliest first.
        top_k: ids that are kept, the likeliest first; 0 keeps all.
        min_p: ids less likely than this share of the likeliest are dropped.
        repetition_penalty: above 1, ids of the prompt and of the answer become less likely.
        presence_penalty: taken from the logit of each id of the answer.
        frequency_penalty: the same, for each time that it occurred.
        logit_bias: added to the logits of single ids.
        seed: of the random numbers; None draws one.
        num_logprobs: likeliest ids to report at each step; None reports nothing, not even the
            probability of the chosen one.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    num_logprobs: int | None = None

    def __post_init__(self) -> None:
        for name, is_right, expected in (
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0"),
            ("presence_penalty", math.isfinite(self.presence_penalty), "finite"),
            ("frequency_penalty", math.isfinite(self.frequency_penalty), "finite"),
            ("logit_bias", all(map(math.isfinite, self.logit_bias.values())), "finite"),
        ):
            if not is_right:
                raise InputError(f"{name} must be {expected}, got {getattr(self, name)}")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest id is taken, without a draw."""
        return self.temperature < GREEDY_BELOW

    @property
    def is_truncated(self) -> bool:
        """Whether some ids are dropped before the draw."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


@dataclass(frozen=True)
class Choice:
    """One step's id; natural logarithms of probabilities as the model gave them, if asked for."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """One row's settings, what it has seen, and its random numbers.

    Args:
        settings: how its ids are drawn.
        prompt_ids: the ids before the answer; virtual tokens have none.
    """

    def __init__(self, settings: Sampling, prompt_ids: Sequence[int] = ()) -> None:
        self.settings = settings
        # Python's generator takes a seed without its sign: -1 would draw what 1 draws.
        self.rng = random.Random(None if settings.seed is None else settings.seed % 2**64)
        self.seen = dict.fromkeys(prompt_ids) if settings.repetition_penalty != 1 else {}
        self.answered: Counter[int] = Counter()
        self.allowed: Tensor | None = None  # bool [V or fewer]: what a grammar allows next
        self._uniform: float | None = None

    @property
    def uniform(self) -> float:
        """The number between 0 and 1 that draws the next id: the same until an id is drawn, so that
        a choice that failed is made again with it.
        """
        if self._uniform is None:
            self._uniform = self.rng.random()
        return self._uniform

    def take_drawn(self) -> None:
        """Let the next id be drawn with another number."""
        self._uniform = None

    def record(self, chosen_id: int) -> None:
        """Remember an id of the answer."""
        if self.settings.repetition_penalty != 1:
            self.seen[chosen_id] = None
        if self.settings.presence_penalty or self.settings.frequency_penalty:
            self.answered[chosen_id] += 1


def choose(logits: Tensor, samplers: Sequence[Sampler]) -> list[Choice | None]:
    """Return each row's next id, or None for a row whose logits are NaN or infinite."""
    raw = logits.float()
    edited = edit(raw, samplers)
    best, greedy_ids = edited.max(-1)
    drawn = [i for i, sampler in enumerate(samplers) if not sampler.settings.is_greedy]
    ids, is_finite = greedy_ids.tolist(), torch.isfinite(best).tolist()
    drawn = [i for i in drawn if is_finite[i]]
    for part in (
        [i for i in drawn if samplers[i].settings.is_truncated],
        [i for i in drawn if not samplers[i].settings.is_truncated],
    ):
        if part:
            for row, drawn_id in zip(part, _draw(edited, samplers, part), strict=True):
                ids[row] = drawn_id
    reported = _logprobs(raw, samplers, ids)
    for row in drawn:
        samplers[row].take_drawn()
    return [
        reported.get(row, Choice(ids[row])) if is_finite[row] else None for row in range(len(ids))
    ]


def edit(logits: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """Return logits `[B, V]` after each row's penalties, bias and mask; the given ones are kept."""
    edits = [(i, s) for i, s in enumerate(samplers) if _has_edits(s)]
    if not edits:
        return logits
    logits = logits.clone()
    for index, sampler in edits:
        _edit_row(logits[index], sampler)
    return logits


def _has_edits(sampler: Sampler) -> bool:
    return bool(
        sampler.seen
        or sampler.answered
        or sampler.settings.logit_bias
        or sampler.allowed is not None
    )


def _edit_row(row: Tensor, sampler: Sampler) -> None:
    settings, device = sampler.settings, row.device
    if sampler.seen:
        ids = torch.tensor(list(sampler.seen), device=device)
        old, penalty = row[ids], settings.repetition_penalty
        row[ids] = torch.where(old < 0, old * penalty, old / penalty)
    if sampler.answered:
        ids = torch.tensor(list(sampler.answered), device=device)
        counts = torch.tensor(list(sampler.answered.values()), device=device, dtype=row.dtype)
        row[ids] -= settings.presence_penalty + settings.frequency_penalty * counts
    if settings.logit_bias:
        ids = torch.tensor(list(settings.logit_bias), device=device)
        row[ids] += torch.tensor(list(settings.logit_bias.values()), device=device, dtype=row.dtype)
    if sampler.allowed is not None:
        allowed = sampler.allowed.to(device)[: len(row)]
        row[: len(allowed)].masked_fill_(~allowed, -math.inf)
        row[len(allowed) :] = -math.inf


def candidates(logits: Tensor, settings: Sequence[Sampling]) -> tuple[Tensor, Tensor]:
    """Return the ids that rows with a temperature may draw, `[B, K]`, and their probabilities.

    Dropped ids have probability 0. The likeliest come first where any row drops some.
    """
    scaled = logits / _column(logits, [one.temperature for one in settings])
    num_ids = logits.shape[-1]
    if not any(one.is_truncated for one in settings):
        return torch.arange(num_ids, device=logits.device).expand_as(scaled), scaled.softmax(-1)
    top_k = _column(logits, [one.top_k or num_ids for one in settings]).long()
    top_p = _column(logits, [one.top_p for one in settings])
    min_p = _column(logits, [one.min_p for one in settings])
    size = min(num_ids, max(NUM_CANDIDATES, *(2 * one.top_k for one in settings)))
    total = scaled.logsumexp(-1, keepdim=True)
    while True:
        values, ids = likeliest(scaled, size)
        border = values.gather(1, top_k.clamp(max=size) - 1)
        is_kept = values >= border
        probabilities = (values - total).exp() * is_kept
        # After top-k the rest is all there is; without it, the candidates' share of everything.
        share = probabilities.sum(-1, keepdim=True)
        share = torch.where(top_k <= size, share, torch.ones_like(share))
        probabilities = probabilities / share
        before = probabilities.cumsum(-1) - probabilities
        is_kept &= (before < top_p) & (probabilities >= min_p * probabilities[:, :1])
        is_kept[:, 0] = True
        if size == num_ids or not bool(is_kept[:, -1].any()):
            probabilities = probabilities * is_kept
            return ids, probabilities / probabilities.sum(-1, keepdim=True)
        size = num_ids


def likeliest(scores: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Return the `num` largest scores of each row `[B, K]` and their ids, the largest first and of
    equal ones the lowest id: so the first of them are the same however many a neighbour needs.
    `topk` leaves the order of equal ones open, and in half precision many are equal.
    """
    if num >= scores.shape[-1]:
        return scores.sort(dim=-1, descending=True, stable=True)
    values, ids = scores.topk(num + 1, dim=-1)
    following, values, ids = values[:, num:], values[:, :num], ids[:, :num]
    is_cut = (values[:, -1:] == following).any(-1)
    if bool(is_cut.any()):  # some of those that equal the last one are left out: the highest ids
        is_last = (values == values[:, -1:]) & is_cut[:, None]
        rows, equal = (scores[is_cut] == values[is_cut, -1:]).nonzero(as_tuple=True)
        place = torch.arange(len(rows), device=rows.device) - torch.searchsorted(rows, rows)
        ids[is_last] = equal[place < is_last[is_cut].sum(-1)[rows]]
    ids = ids.sort(dim=-1).values
    values, order = scores.gather(1, ids).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _draw(logits: Tensor, samplers: Sequence[Sampler], rows: list[int]) -> list[int]:
    """Draw by the inverse of the cumulative distribution, one uniform number for each row."""
    part = logits if len(rows) == len(logits) else logits[rows]
    ids, probabilities = candidates(part, [samplers[row].settings for row in rows])
    cumulative = probabilities.double().cumsum(-1)
    uniform = torch.tensor(
        [[samplers[row].uniform] for row in rows], device=logits.device, dtype=torch.double
    )
    # To the right of equal sums: an id of probability 0 is never drawn.
    found = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    chosen: list[int] = ids.gather(1, found.clamp(max=ids.shape[1] - 1))[:, 0].tolist()
    return chosen


def _logprobs(logits: Tensor, samplers: Sequence[Sampler], ids: Sequence[int]) -> dict[int, Choice]:
    asked = [i for i, sampler in enumerate(samplers) if sampler.settings.num_logprobs is not None]
    if not asked:
        return {}
    most = max(samplers[row].settings.num_logprobs or 0 for row in asked)
    chosen = torch.tensor([ids[row] for row in asked], device=logits.device)
    found = report(logits[asked], chosen, most)
    return {
        row: Choice(one.id, one.logprob, one.top[: samplers[row].settings.num_logprobs])
        for row, one in zip(asked, found, strict=True)
    }


def report(logits: Tensor, chosen: Tensor, num_top: int) -> list[Choice]:
    """Return the log-probabilities of chosen ids `[T]`, and the likeliest, by logits `[T, V]`."""
    logprobs = logits.float().log_softmax(-1)
    values, top_ids = likeliest(logprobs, num_top)
    own = logprobs.gather(1, chosen[:, None])[:, 0].tolist()
    return [
        Choice(one, value, tuple(zip(ids, tops, strict=True)))
        for one, value, ids, tops in zip(
            chosen.tolist(), own, top_ids.tolist(), values.tolist(), strict=True
        )
    ]


def _column(like: Tensor, values: Sequence[float]) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=like.dtype)[:, None]
