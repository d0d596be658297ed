"""Recurrent rows: the states of one layer's recurrences for all requests in the batch, one a row.

In: passes of the model over some rows, all with equally many new tokens. Out: a layer that
transformers' recurrent decoders take, which holds the rows of the pass; what it holds afterwards is
written back once the whole pass has succeeded, so that one that fails changes nothing. A row that
has read nothing holds zeros, from which a recurrence begins. Knows nothing of requests.
"""

from typing import Any

from torch import Tensor

from foreword.compat.transformers_api import LinearAttentionLayer
from foreword.model.cache_layers import LASTING, RecurrentStates
from foreword.prompt.states import LayerState


class RecurrentRows(RecurrentStates, LinearAttentionLayer):
    """A layer of recurrent states.

    Attributes:
        rows: the states `[rows, ...]`: each window, followed by its state if it has one; empty
            until the first pass or prompt says their shapes.
    """

    def __init__(self, kv_cache: Any, num_recurrences: int) -> None:
        super().__init__(number_of_states=num_recurrences)
        self.kv_cache = kv_cache
        self.rows: list[Tensor] = []

    def take(self, rows: Tensor) -> None:
        """Hold the states of the next pass's rows, or nothing before anything has run."""
        LinearAttentionLayer.__init__(self, number_of_states=self.number_of_states)
        if self.rows:
            self.begin(tuple(tensor[rows] for tensor in self.rows))

    def make(self) -> None:
        """Make the rows after the first pass, which says their shapes."""
        self._make(tuple(tensor[0] for tensor in self.states()))

    def write_back(self, rows: Tensor) -> None:
        """Keep what the pass has made of its rows."""
        for whole, state in zip(self.rows, self.states(), strict=True):
            whole[rows] = state.to(whole.dtype)

    def put_row(self, row: int, states: LayerState) -> None:
        """Copy one row's states into a row; none: it has read nothing."""
        if states:
            self._make(states)
            for whole, state in zip(self.rows, states, strict=True):
                whole[row] = state
        else:
            for whole in self.rows:
                whole[row] = 0

    def get_row(self, row: int) -> LayerState:
        """Return a copy of a row's states."""
        return tuple(tensor[row].clone() for tensor in self.rows)

    def resize_rows(self, num_rows: int) -> None:
        """Take another number of rows, and keep those that are in both."""
        made = []
        for old in self.rows:
            with LASTING():
                new = old.new_zeros(num_rows, *old.shape[1:])
            new[: len(old)] = old[:num_rows]
            made.append(new)
        self.rows = made

    def _make(self, like: LayerState) -> None:
        if not self.rows:
            num_rows = self.kv_cache.target[0]
            with LASTING():
                self.rows = [tensor.new_zeros(num_rows, *tensor.shape) for tensor in like]
