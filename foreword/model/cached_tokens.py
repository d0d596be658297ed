"""Cached tokens: which token each slot of a cache holds, so that a next turn is told from another.

In: the ids and the mask of each pass that fills a cache, and of the turn that goes on with it. Out:
the turn's mask in the order of the slots, or a refusal of a turn that the cache does not begin.
Knows no states and no prompt.
"""

import torch
from torch import Tensor

from foreword.errors import InputError, MismatchError

UNKNOWN = -1  # the id of a token that was given as an embedding


class CachedTokens:
    """What the slots of a cache's real tokens hold, `[rows, n]`.

    Attributes:
        mask: what of the slots is no padding, or None where all is; where it has fewer columns, no
            later slot is padding.
        columns: the column of the caller's ids that each of the first slots holds, or None where
            they are in the caller's order, as all further ones are.
    """

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self.columns: Tensor | None = None
        self._ids: list[Tensor] = []

    @property
    def ids(self) -> Tensor | None:
        """Their ids `[rows, n]`, `UNKNOWN` where they were embeddings; None before any pass."""
        if len(self._ids) > 1:
            self._ids = [torch.cat(self._ids, 1)]
        return self._ids[0] if self._ids else None

    def read(self, tokens: Tensor, mask: Tensor | None) -> None:
        """Take note of a pass over ids `[rows, T]` or embeddings `[rows, T, H]`."""
        ids = tokens
        if tokens.ndim == 3:
            ids = torch.full(tokens.shape[:2], UNKNOWN, device=tokens.device)
        self._ids.append(ids)
        if mask is not None:  # some models leave it out of passes over single tokens
            self.mask = mask

    def drop_last(self, count: int) -> None:
        """Forget the last slots."""
        if (ids := self.ids) is not None and count:
            self._ids = [ids[:, :-count]]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order."""
        if (ids := self.ids) is not None:
            self._ids = [ids[rows.to(ids.device)]]
        for name in ("mask", "columns"):
            if (own := getattr(self, name)) is not None:
                setattr(self, name, own[rows.to(own.device)])

    def order(self, num_rows: int, num_slots: int) -> Tensor:
        """Return the column of the caller's ids that each slot holds, `[num_rows, num_slots]`.

        Raises:
            InputError: some of these columns were dropped from the cache, and others were not.
        """
        order = torch.arange(num_slots, device="cpu").repeat(num_rows, 1)
        if self.columns is not None:
            known = self.columns[:: max(1, len(self.columns) // num_rows), :num_slots].cpu()
            if known.numel() and int(known.max()) >= num_slots:
                raise InputError(
                    "past_key_values was cropped inside a padded turn; start a new cache"
                )
            order[:, : known.shape[1]] = known
        return order

    def check_ids(self, given: Tensor, is_real: Tensor | None) -> None:
        """Refuse ids `[B, n]`, in the order of the slots, that are not those of the slots.

        Raises:
            MismatchError: names the first row and token that differ.
        """
        known = self.ids
        if known is None or len(known) % len(given):
            return  # as many rows as the cache holds are asked for where it is started
        copies = len(known) // len(given)
        known, given = known.cpu(), given.repeat_interleave(copies, 0).cpu()
        differs = (known[:, : given.shape[1]] != given) & (known[:, : given.shape[1]] != UNKNOWN)
        if is_real is not None:
            differs &= is_real.repeat_interleave(copies, 0).cpu()
        if not bool(differs.any()):
            return
        row, place = (int(index) for index in differs.nonzero()[0])
        raise MismatchError(
            f"row {row // copies}: past_key_values holds id {int(known[row, place])} as token "
            f"{place}, the call gives {int(given[row, place])}: it was filled by another "
            "conversation, or by other beams; start a new cache"
        )

    def check_mask(self, given: Tensor, *, can_hide: bool) -> None:
        """Refuse a mask bool `[B, n]`, in the order of the slots, that shows padding, or hides what
        later tokens have read.

        Args:
            given: what of the slots the turn takes as tokens.
            can_hide: whether the last tokens can be hidden: a recurrent state has read them.

        Raises:
            InputError: names the row.
        """
        given = given.cpu()
        held = torch.ones_like(given)
        if self.mask is not None:
            known = (
                self.mask[:: max(1, len(self.mask) // len(given)), : given.shape[1]].bool().cpu()
            )
            if len(known) != len(given):
                return  # refused where the cache is started
            held[:, : known.shape[1]] = known
        hidden = held & ~given
        wrong = (given & ~held).any(1)
        wrong |= (given & (hidden.cumsum(1) > 0)).any(1) if can_hide else hidden.any(1)
        if bool(wrong.any()):
            raise InputError(
                f"row {int(wrong.int().argmax())}: attention_mask takes other cached tokens than "
                "those that were read; give the mask of the turns before, followed by this turn's"
            )
