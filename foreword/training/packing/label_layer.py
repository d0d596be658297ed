"""A decoder's last layer, run for the tokens before labels alone.

In: the last layer of a decoder that passes a line. Out: a layer that hands the keys and values of
all tokens to the cache, as before, and returns the output of the tokens before labels: nothing else
of it is ever read. It runs the family's own layer twice, first only up to its cache, and knows no
family: which arguments belong to tokens, it sees in the first line that it passes.
"""

from typing import Any

from torch.nn import Module
from transformers.cache_utils import Cache

from foreword.training.gradient_checkpointing import Wrapped
from foreword.training.packing import packed_sequence


class LabelLayer(Wrapped):
    """A last layer that returns `[B, labels, H]` for hidden states `[B, tokens, H]`."""

    def __init__(self, layer: Module) -> None:
        super().__init__(layer)
        # Learnt from a first line, whose length no other size of the model has.
        self.__dict__["of_tokens"] = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer for the keys of all tokens, then for what is before labels."""
        line, _ = packed_sequence.current()
        given: dict[int | str, Any] = {}
        given.update(enumerate(args))
        given.update(kwargs)
        if self.of_tokens is None:
            names = [name for name, value in given.items() if line.has_tokens(value)]
            self.__dict__["of_tokens"] = frozenset(names)
        name = next(name for name, value in given.items() if isinstance(value, Cache))
        cache = _Reading(given[name])
        try:
            result = self._run(given | {name: cache}, len(args))
        except _AllRead:
            few = {
                name: line.before_labels(value) if name in self.of_tokens else value
                for name, value in given.items()
            }
            with packed_sequence.in_line(line, is_narrow=True):
                return self._run(few | {name: _Read(cache)}, len(args))
        return line.before_labels(result)  # the layer reads another one's keys

    def _run(self, given: dict[int | str, Any], num_args: int) -> Any:
        args = [given[index] for index in range(num_args)]
        return self.layer(*args, **{n: value for n, value in given.items() if isinstance(n, str)})


class _AllRead(Exception):
    """The cache has the keys and values that a layer was run for."""


class _Reading:
    """A cache that ends the layer's run when it has its keys and values."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_cache"], name)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        self.found = self._cache.update(*args, **kwargs)
        raise _AllRead


class _Read:
    """A cache that shows a layer what it has been given before."""

    def __init__(self, reading: _Reading) -> None:
        self._cache, self._found = reading._cache, reading.found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_cache"], name)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        return self._found
