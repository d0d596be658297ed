"""A call of `generate`: its tokens as the caller gives them, and as they lie in the cache.

In: ids or embeddings, a mask, and a cache that may hold tokens of the turns before. Out: what
transformers' `generate` is given, its padding before each row's tokens, and the caller's own ids at
the start of what it returns. What would read or count padding, or cached tokens that are not given,
is refused. Knows no prompt.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreword.errors import InputError
from foreword.generation.model_view import GivenTokens
from foreword.generation.padding import (
    StreamOfGiven,
    align_right,
    allowed_on_own_tokens,
    reorder,
    restore,
)
from foreword.model import checks, prefixed_cache
from foreword.model.prefixed_cache import PrefixedCache


@dataclass(frozen=True, eq=False)
class Call:
    """The tokens of a call.

    Attributes:
        input_ids: `[B, T]`, or None.
        embeds: `[B, T, H]`, or None.
        mask: as it is given or known, `[B, cached + new]`; None where nothing is padding.
        num_cached: tokens that the cache holds.
        num_seen: columns of the call's tokens that the cache holds: all of them, or 0.
        columns: the caller's column of each slot, `[B, cached + new]`; None without a mask.
    """

    input_ids: Tensor | None
    embeds: Tensor | None
    mask: Tensor | None
    num_cached: int
    num_seen: int
    columns: Tensor | None

    @classmethod
    def of(
        cls, input_ids: Tensor | None, embeds: Tensor | None, mask: Tensor | None, known: Any
    ) -> "Call":
        """Find out how a call's tokens follow those of a cache, prefixed or not, or of none.

        Raises:
            InputError: mask, tokens and cache do not fit together, or do not say what is new.
        """
        inputs = input_ids if input_ids is not None else embeds
        assert inputs is not None
        if embeds is not None and embeds.shape[:2] != inputs.shape[:2]:
            raise InputError(
                f"input_ids {list(inputs.shape)} and inputs_embeds {list(embeds.shape)} are not of "
                "the same tokens; give one of them"
            )
        if isinstance(known, PrefixedCache):
            known.check_whole()
        num_cached = _num_cached(known)
        if mask is None and getattr(known, "is_padded", False):
            raise InputError(
                "past_key_values holds padded rows; give attention_mask for all tokens, "
                "cached ones included"
            )
        if mask is None and inputs.shape[1] == 1 and num_cached:  # the next token
            mask = inputs.new_ones(len(inputs), num_cached + 1, dtype=torch.long)
        if mask is None:
            if inputs.shape[1] <= num_cached:
                raise InputError(
                    f"{inputs.shape[1]} tokens were given and {num_cached} are cached, and no "
                    "attention_mask says whether they are new; give the conversation so far and "
                    "the next turn, or attention_mask for all tokens, cached ones included"
                )
            return cls(input_ids, embeds, None, num_cached, num_cached, None)
        order = align_right(mask, len(inputs), inputs.shape[1], num_cached).cpu()
        mask = mask.long()  # tokens are counted by it
        num_seen = inputs.shape[1] - order.shape[1]
        if embeds is not None and num_seen < num_cached:
            raise InputError(
                f"inputs_embeds of new tokens alone, and {num_cached} are cached; give those of "
                "the conversation so far and the next turn"
            )
        held = torch.arange(num_cached, device="cpu").repeat(len(inputs), 1)
        if isinstance(known, PrefixedCache):
            held = known.tokens.order(len(inputs), num_cached)
        columns = torch.cat([held, order + num_cached], 1)
        return cls(input_ids, embeds, mask, num_cached, num_seen, columns)

    @property
    def aligned(self) -> Tensor | None:
        """The mask in the order of the slots."""
        if self.mask is None or self.columns is None:
            return None
        return reorder(self.mask, self.columns)

    @property
    def given(self) -> GivenTokens:
        """What a view of the model is told of the call."""
        aligned = self.aligned
        num_unseen = self.num_cached - self.num_seen
        if aligned is None:
            return GivenTokens(num_unseen=num_unseen)
        # The given tokens end where the mask ends; embeddings are no history.
        num_given = self.input_ids.shape[1] if self.input_ids is not None else 0
        kept = aligned[:, aligned.shape[1] - num_given :].bool()
        return GivenTokens(kept, self.columns, num_unseen)

    def check_cached(self, known: Any, *, can_hide: bool) -> None:
        """Refuse tokens that are not those which a cache holds.

        Raises:
            MismatchError: other ids.
            InputError: a mask that shows or hides others than were read.
        """
        if not isinstance(known, PrefixedCache) or not self.num_cached:
            return
        held, ids = self.aligned, self.input_ids
        if held is not None:
            held = held[:, : self.num_cached].bool()
            known.tokens.check_mask(held, can_hide=can_hide)
        if ids is not None and self.num_seen:
            ids = ids if self.columns is None else reorder(ids, self.columns)
            known.tokens.check_ids(ids[:, : self.num_seen], held)

    def check_options(self, kwargs: dict[str, Any], config: Any, context: int | None) -> None:
        """Refuse what would read or count padding, or tokens that are cached and not given.

        Raises:
            UnsupportedError: names it.
        """
        if self.num_seen < self.num_cached:
            checks.refuse_unseen_history(kwargs, config, self.num_cached - self.num_seen)
        inputs = self.input_ids if self.input_ids is not None else self.embeds
        assert inputs is not None
        if self.mask is not None and not bool(self.mask[:, -inputs.shape[1] :].all()):
            checks.refuse_padded_length(
                kwargs, config, inputs.shape[1], context, has_ids=self.input_ids is not None
            )

    def moved(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of transformers' `generate`, padding before each row's tokens."""
        kwargs = dict(kwargs)
        ids, embeds, given = self.input_ids, self.embeds, self.given
        if self.columns is not None:
            order = self.columns if self.num_seen else self.columns[:, self.num_cached :]
            order = order - (self.num_cached - self.num_seen)
            ids = None if ids is None else reorder(ids, order)
            embeds = None if embeds is None else reorder(embeds, order)
            kwargs["attention_mask"] = self.aligned
        if embeds is not None:
            kwargs["inputs_embeds"] = embeds
        if given.kept is not None and given.is_padded and self.input_ids is not None:
            if (allowed := kwargs.get("prefix_allowed_tokens_fn")) is not None:
                kwargs["prefix_allowed_tokens_fn"] = allowed_on_own_tokens(allowed, given.kept)
            if (streamer := kwargs.get("streamer")) is not None:
                kwargs["streamer"] = StreamOfGiven(streamer, self.input_ids)
        return kwargs | {"input_ids": ids}

    def restored(self, output: Any) -> Any:
        """Return what `generate` returns, its sequences beginning with the ids as given."""
        is_moved = self.columns is not None and self.input_ids is not None
        return restore(output, self.input_ids) if is_moved else output  # type: ignore[arg-type]


def _num_cached(known: Any) -> int:
    if isinstance(known, PrefixedCache):
        return known.get_seq_length()
    return prefixed_cache.num_held(known) if known is not None else 0
