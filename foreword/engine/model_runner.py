"""Passes of the model over rows of a batch, from and into their slots.

In: rows, and how many tokens each may read at most. Out: the rows that have read everything, and
the logits that choose their next id. Where the model fails, each row is passed alone, so that the
culprit alone fails.
"""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from foreword import compat
from foreword.backbone import Backbone
from foreword.engine import sampling
from foreword.engine.kv_cache import Pass, Slots
from foreword.engine.request_state import Row
from foreword.model.masks import place_in_slots

log = logging.getLogger("foreword.engine")
MAX_FAILURES = 8  # of passes one after the other, before the model itself is taken for broken

Ready = tuple[list[Row], Tensor]
"""Rows that have read everything, and their logits `[B, V]`."""


class RowPasses:
    """Lets rows read; counts the passes that fail one after the other."""

    def __init__(self, backbone: Backbone, slots: Slots) -> None:
        self.backbone, self.slots = backbone, slots
        self._num_failures = 0

    def read(self, rows: list[Row], limit: int) -> Ready | None:
        """Let rows read up to `limit` tokens each; return those that have read everything.

        Raises:
            Exception: the model fails whatever it is given.
        """
        if not rows:
            return None
        try:
            ready = self._pass(rows, limit)
        except Exception as error:
            self._num_failures += 1
            if self._num_failures > MAX_FAILURES:
                raise
            if len(rows) == 1:
                log.warning("a request failed in the model: %s", type(error).__name__)
                rows[0].handle.fail(error)
                return None
            return joined([self.read([row], limit) for row in rows])
        self._num_failures = 0
        return ready

    def _pass(self, rows: list[Row], limit: int) -> Ready | None:
        """Run the model once."""
        counts = [min(row.num_unread, limit) for row in rows]
        current = Pass([row.index for row in rows], [row.num_held for row in rows], counts)
        hidden = self.hidden(
            current, [row.ids[row.num_read : row.num_read + n] for row, n in _zip(rows, counts)]
        )
        for index, row in enumerate(rows):
            if row.handle.request.num_prompt_logprobs is not None:
                self._report(row, hidden[index, : counts[index]])
        done = [index for index, row in enumerate(rows) if row.num_unread == counts[index]]
        if current.num_new == 1 and len(done) == len(rows):
            logits = self.backbone.head(hidden[:, 0])
        elif done:
            logits = self.backbone.head(torch.stack([hidden[i, counts[i] - 1] for i in done]))
        for row, count in _zip(rows, counts):
            row.num_read += count
        return ([rows[index] for index in done], logits) if done else None

    def hidden(self, current: Pass, ids: list[list[int]]) -> Tensor:
        """Return the last hidden states `[B, T, H]` of one pass."""
        backbone, num_new = self.backbone, current.num_new
        padded = [row + row[-1:] * (num_new - len(row)) for row in ids]
        positions = current.positions(backbone.device)
        masks = place_in_slots(
            positions, current.width, backbone.capabilities, backbone.dtype, is_even=current.is_even
        )
        self.slots.begin(current, positions)
        with compat.grouped_heads(backbone.device.type == "cpu" and num_new > 1):
            output = backbone.decoder(
                input_ids=torch.tensor(padded, device=backbone.device),
                position_ids=positions,
                attention_mask=masks,
                past_key_values=self.slots.cache,
                use_cache=True,
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _report(self, row: Row, hidden: Tensor) -> None:
        """Note the log-probability of each id that followed the ones just read."""
        following = row.handle.request.ids[row.num_read + 1 : row.num_read + 1 + len(hidden)]
        if following:
            logits = self.backbone.head(hidden[: len(following)])
            chosen = torch.tensor(following, device=logits.device)
            num_top = row.handle.request.num_prompt_logprobs or 0
            row.handle.prompt_logprobs += sampling.report(logits, chosen, num_top)


def joined(parts: Sequence[Ready | None]) -> Ready | None:
    """Return what several passes made ready, as one; None where that is nothing."""
    found = [part for part in parts if part is not None]
    if len(found) < 2:
        return found[0] if found else None
    return [row for rows, _ in found for row in rows], torch.cat([logits for _, logits in found])


def _zip(rows: Sequence[Row], counts: Sequence[int]) -> list[tuple[Row, int]]:
    return list(zip(rows, counts, strict=True))
