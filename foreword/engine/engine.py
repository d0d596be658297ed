"""Continuous batching: requests join and leave between steps, each behind its own prompt.

In: requests of ids, with settings and a stop rule each. Out: their ids, one at a time, as the
oracle would choose them whatever else is in the batch. One thread calls `step`; `submit` and
`Handle.cancel` may come from any other. What cannot be batched row by row is served alone, through
`Backbone.generate`, a token of it in each step. Knows no text, no names and no HTTP.
"""

import logging
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.engine import sampling
from foreword.engine.kv_cache import Slots
from foreword.engine.limits import EngineLimits
from foreword.engine.model_runner import Ready, RowPasses, joined
from foreword.engine.prefix_cache import Known, StateCache
from foreword.engine.request import Handle, PromptSource, Request
from foreword.engine.request_state import Row
from foreword.engine.sampling import Choice
from foreword.engine.scheduler import Waiting
from foreword.engine.unbatched import Alone
from foreword.errors import InputError, UnsupportedError

log = logging.getLogger("foreword.engine")


class Engine:
    """Many requests on one model.

    Args:
        backbone: the model.
        limits: how much to take on.
    """

    def __init__(self, backbone: Backbone, limits: EngineLimits | None = None) -> None:
        if backbone.capabilities.encoder is not None:
            raise UnsupportedError(
                f"{backbone.capabilities.model_type}: models with an encoder are not served; call "
                "Backbone.generate"
            )
        self.backbone, self.limits = backbone, limits or EngineLimits()
        self.slots = Slots(backbone.capabilities.num_layers)
        self.states = StateCache(self.limits.max_state_bytes)
        self.rows: list[Row] = []  # the first `num_decoding` decode, the others read
        self.num_decoding = 0
        self.num_prompt_tokens = self.num_reused_tokens = self.num_new_tokens = 0
        self._turns: deque[Row] = deque()  # of the rows that read
        self._waiting = Waiting(backbone.capabilities, self.limits)
        self.passes = RowPasses(backbone, self.slots)
        self._alone: Alone | None = None  # under way
        self._num_compiled = 0
        self._has_said_alone = False

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a row, or for their turn alone."""
        return len(self._waiting)

    @property
    def max_length(self) -> int:
        """Tokens of one request, virtual, given and new ones together."""
        return self._waiting.max_length

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self.rows or self._alone or self.num_waiting)

    def submit(self, request: Request) -> Handle:
        """Take a request on; from any thread. Raises as `submit_all`."""
        return self.submit_all([request])[0]

    def submit_all(self, requests: Sequence[Request]) -> list[Handle]:
        """Take all requests on, or none; from any thread. What is the same in them is read once.

        Raises:
            InputError: ids that the model does not have, or more tokens than it takes.
            BusyError: too many requests wait, or too large ones.
        """
        return self._waiting.add(requests)

    def check(self, request: Request) -> None:
        """Refuse a request that cannot be served.

        Raises:
            InputError: names what is wrong.
        """
        self._waiting.check(request)

    def step(self) -> bool:
        """Bring every request one step further; return whether there is more to do.

        Raises:
            Exception: the model fails whatever it is given; the engine cannot go on.
        """
        with torch.no_grad():
            self._admit()
            decoded = self._decode()
            read = self._read()
            self._sample(decoded, read)
            self._advance_alone()
            self._retire()
        return self.has_work

    def run(self) -> None:
        """Step until nothing is left to do."""
        while self.step():
            pass

    def close(self) -> None:
        """End the request that is served alone, whose thread would wait for its next token."""
        if self._alone is not None:
            self._alone.handle.cancel()
            self._advance_alone()

    # Admit --------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give rows to waiting requests, in order, while there is room.

        Prompts whose state is computed first count as what one step reads.
        """
        self._waiting.drop_cancelled()
        self._num_compiled = 0
        while self._num_compiled < self.limits.chunk_tokens:
            if (handle := self._waiting.next_for_row(self._has_room_for)) is None:
                return
            try:
                self._start(handle)
            except Exception as error:
                handle.fail(error)

    def _has_room_for(self, handle: Handle) -> bool:
        if not self.rows:
            return True
        capacity = max(handle.num_tokens, *(row.handle.num_tokens for row in self.rows))
        num_rows = len(self.rows) + 1
        return num_rows <= self.limits.max_rows and num_rows * capacity <= self.limits.max_slots

    def _start(self, handle: Handle) -> None:
        """Give a request a new row, which reads, or waits for one that reads the same."""
        row = Row(handle, len(self.rows))
        # Twice the rows, so that many that come together are not copied for each.
        num_rows = min(self.limits.max_rows, 1 << row.index.bit_length())
        self.slots.reserve(num_rows, handle.num_tokens)
        reading = (one for one in self._shared_with(row) if one in self._turns and not one.is_over)
        if (twin := next(filter(row.is_twin_of, reading), None)) is not None:
            twin.twins.append(row)
        else:
            self._lay(row)
            self._turns.append(row)
        self.num_prompt_tokens += len(row.ids)
        self.rows.append(row)

    def _lay(self, row: Row) -> None:
        """Fill a row with the state that saves the most reading: a kept one, or another row's; a
        prompt's own is computed where there is neither.
        """
        found = self.states.find(row.content_hash, row.ids)
        other = max(self._shared_with(row), key=row.num_shared, default=row)
        if (num_shared := row.num_shared(other)) > (found[1] if found else 0):
            row.begin_at(num_shared)
            self.slots.move(other.index, row.index, row.num_held)
        else:
            known, num_shared = found or (self._compiled(row.handle.request.prompt), 0)
            row.begin_at(num_shared)
            if known is not None:
                self.slots.put(row.index, known.state, row.num_held)
        self.num_reused_tokens += row.num_read

    def _shared_with(self, row: Row) -> list[Row]:
        """Return the rows whose reading may save a row its own: of its own call only, where nothing
        is to be kept, since others could tell by the time to a first token what was asked.
        """
        if self.limits.max_state_bytes:
            return self.rows
        return [one for one in self.rows if one.handle.call is row.handle.call]

    def _compiled(self, prompt: PromptSource | None) -> Known | None:
        """Compute a prompt's own state, and keep it."""
        if prompt is None:
            return None
        prefix = self.backbone.compile(prompt.load())
        if prefix.num_virtual_tokens != prompt.num_virtual_tokens:
            raise InputError("the prompt's file has changed since it was looked up; load it again")
        state = tuple(tuple(layer) for layer in prefix.key_values)
        if not all(bool(torch.isfinite(tensor).all()) for layer in state for tensor in layer):
            raise InputError("the prompt makes the model's numbers infinite; train it again")
        self._num_compiled += prefix.num_virtual_tokens
        none = np.empty(0, dtype=np.int64)
        known = Known(prompt.content_hash, prefix.num_virtual_tokens, none, state)
        self.states.add(known)
        return known

    # Decode and read ----------------------------------------------------------------------------

    def _decode(self) -> Ready | None:
        """Read the last id of every row that answers."""
        return self.passes.read(self.rows[: self.num_decoding], 1)

    def _read(self) -> Ready | None:
        """Read a chunk of the prompts whose turn it is; those that end decode from now on."""
        rows, limit = self._next_to_read()
        read = self.passes.read(rows, limit)
        for row in rows:
            self._turns.remove(row)
            if row.num_unread and not row.is_over:
                self._turns.append(row)
        for row in read[0] if read else []:
            self._let_decode(row)
        return self._with_twins(*read) if read else None

    def _with_twins(self, rows: list[Row], logits: Tensor) -> Ready:
        """Let the twins of rows that have read everything go on from the same state and logits."""
        places = list(range(len(rows)))
        for place, row in enumerate(list(rows)):
            for twin in [twin for twin in row.twins if not twin.is_over]:
                twin.follow(row)
                self.slots.move(row.index, twin.index, row.num_held)
                self._let_decode(twin)
                self.num_reused_tokens += twin.num_read
                places.append(place)
                rows.append(twin)
            row.twins = []
        return rows, logits[places] if len(places) > len(logits) else logits

    def _next_to_read(self) -> tuple[list[Row], int]:
        """Choose rows that need chunks of similar length, the one whose turn it is among them, and
        the length that brings the most of them to their end.
        """
        turns = [row for row in self._turns if not row.is_over]
        if not turns:
            return [], 0
        budget = self.limits.chunk_tokens
        least = min(turns[0].num_unread, budget)

        def near(limit: int) -> list[Row]:
            rows = [row for row in turns if 2 * min(row.num_unread, limit) >= limit]
            rows.sort(key=lambda row: row.num_unread > limit and row is not turns[0])
            return rows[: max(1, budget // limit)]

        def num_ending(limit: int) -> int:
            return sum(row.num_unread <= limit for row in near(limit))

        most = min(2 * least, budget)
        lengths = {row.num_unread for row in turns if least < row.num_unread <= most}
        limit = max([least, *sorted(lengths)], key=num_ending)
        return near(limit), limit

    def _let_decode(self, row: Row) -> None:
        """Move a row that has read everything behind the ones that decode."""
        other = self.rows[self.num_decoding]
        self.slots.swap(row.index, other.index, max(row.num_held, other.num_held))
        row.index, other.index = other.index, row.index
        self.rows[row.index], self.rows[other.index] = row, other
        self.num_decoding += 1

    # Alone --------------------------------------------------------------------------------------

    def _advance_alone(self) -> None:
        """Bring the request that is served alone one id further; the next one follows its end."""
        if self._alone is None and (handle := self._waiting.next_alone()) is not None:
            self._say_alone()
            self._alone = Alone(self.backbone, handle)
            self.num_prompt_tokens += len(handle.request.ids)
        if self._alone is not None:
            num_before = len(self._alone.handle.choices)
            self._alone.advance()
            self.num_new_tokens += len(self._alone.handle.choices) - num_before
            self._alone = None if self._alone.is_over else self._alone

    def _say_alone(self) -> None:
        if not self._has_said_alone:
            self._has_said_alone = True
            family = self.backbone.capabilities.model_type
            log.warning("%s: requests that cannot be batched exactly are served alone", family)

    # Sample and retire --------------------------------------------------------------------------

    def _sample(self, *ready: Ready | None) -> None:
        """Choose the next id of every row that has read everything."""
        if (found := joined(ready)) is None:
            return
        rows, logits = found
        for row in rows:
            _ask_constraint(row)
        choices = _choose(rows, logits)
        for row, choice in zip(rows, choices, strict=True):
            if row.is_over:
                continue
            row.handle.take(choice)
            if choice is not None:
                row.num_sound = row.num_read
                row.ids.append(choice.id)
                row.sampler.record(choice.id)
                self.num_new_tokens += bool(row.handle.choices)

    def _retire(self) -> None:
        """Free the rows of requests that are over, and all memory when none is left."""
        for row in [row for row in self.rows if row.is_over]:
            row.handle.end("cancelled")
            self._remember(row)
            self._free(row)
            self._pass_on(row.twins)
        if not self.rows and not self._waiting.is_row_awaited:
            self.slots.release()

    def _remember(self, row: Row) -> None:
        """Keep a row's state for the next turn, or clear what may not be finite."""
        if not row.is_filled:
            return
        if row.num_sound != row.num_read or row.handle.finish_reason == "error":
            self.slots.clear(row.index)
            return
        ids = np.asarray(row.ids[: row.num_read], dtype=np.int64)
        if self.states.wants(row.content_hash, ids, self.slots.token_bytes * row.num_held):
            state = self.slots.get(row.index, row.num_held)
            self.states.add(Known(row.content_hash, row.num_virtual, ids, state))

    def _pass_on(self, twins: list[Row]) -> None:
        """Let the first of a row's twins read in its place: it ended before it had."""
        live = [twin for twin in twins if not twin.is_over]
        if live:
            first, *first.twins = live
            try:
                self._lay(first)
                self._turns.append(first)
            except Exception as error:
                first.handle.fail(error)

    def _free(self, row: Row) -> None:
        """Close the gap: the last decoding row moves into it, then the last of all behind that."""
        if row in self._turns:
            self._turns.remove(row)
        hole = row.index
        if hole < self.num_decoding:
            self.num_decoding -= 1
            hole = self._fill(hole, self.num_decoding)
        self._fill(hole, len(self.rows) - 1)
        self.rows.pop()

    def _fill(self, hole: int, source: int) -> int:
        """Move the row at `source` into a hole; return the new hole."""
        if source != hole:
            moved = self.rows[source]
            self.slots.move(source, hole, moved.num_held)
            self.rows[hole], moved.index = moved, hole
        return source


def _ask_constraint(row: Row) -> None:
    constraint = row.handle.request.constraint
    if constraint is not None:
        try:
            row.sampler.allowed = constraint.allowed()
        except Exception as error:
            row.handle.fail(error)


def _choose(rows: list[Row], logits: Tensor) -> list[Choice | None]:
    """Choose for all rows at once; where that fails, for each alone, so that the culprit fails."""
    try:
        return sampling.choose(logits, [row.sampler for row in rows])
    except Exception as error:
        if len(rows) == 1:
            rows[0].handle.fail(error)
            return [None]
        return [_choose([row], logits[i : i + 1])[0] for i, row in enumerate(rows)]
