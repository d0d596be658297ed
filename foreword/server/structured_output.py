"""Structured output: from a JSON schema to the ids that may come next, through llguidance.

In: the schema of `response_format`. Out: a constraint for one request. A schema that cannot be
followed is refused before the request begins. Knows no model.
"""

import json
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foreword.errors import InputError

MAX_SCHEMA_BYTES = 65536
# As json.dumps writes: where any whitespace is allowed, small models never stop writing it.
FORM: Any = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}


class JsonConstraint:
    """The state of one answer in a grammar."""

    def __init__(self, matcher: Any, num_ids: int) -> None:
        self._matcher, self._num_ids = matcher, num_ids

    def copy(self) -> "JsonConstraint":
        """Return the same state for another answer, without reading the schema again."""
        return JsonConstraint(self._matcher.deep_copy(), self._num_ids)

    def allowed(self) -> Tensor:
        """Return the ids that may come next, bool `[V]`."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        return torch.from_numpy(
            np.unpackbits(bits, bitorder="little", count=self._num_ids).astype(bool)
        )

    def accept(self, chosen_id: int) -> bool:
        """Take note of the next id; return whether the answer is whole."""
        self._matcher.consume_token(chosen_id)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = str(self._matcher.get_error()).partition("<state>")[0]
            raise InputError(
                f"response_format: the schema cannot be followed ({_line(reason)}): make it simpler"
            )


class Grammars:
    """Makes constraints for one tokenizer, which is analysed once.

    Args:
        tokenizer: of the model.
        stop_ids: the ids at which an answer ends.
    """

    def __init__(self, tokenizer: Any, stop_ids: list[int]) -> None:
        self._tokenizer, self._stop_ids = tokenizer, stop_ids
        self._analysed: Any = None
        self._lock = threading.Lock()

    def constraint(self, schema: dict[str, Any]) -> JsonConstraint:
        """Return a constraint to a JSON schema.

        Raises:
            InputError: a schema that is too large, or that cannot be followed.
        """
        from llguidance import LLMatcher

        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA_BYTES:
            raise InputError(f"response_format: a schema of more than {MAX_SCHEMA_BYTES} bytes")
        try:
            grammar = LLMatcher.grammar_from_json_schema(text, defaults=FORM)
            tokenizer = self._analyse()
            matcher = LLMatcher(tokenizer, grammar, log_level=0)
        except Exception as error:
            raise InputError(f"response_format: {_line(error)}") from None
        if matcher.is_error():
            raise InputError(f"response_format: {_line(matcher.get_error())}")
        return JsonConstraint(matcher, tokenizer.vocab_size)

    def _analyse(self) -> Any:
        from llguidance.hf import from_tokenizer

        with self._lock:
            if self._analysed is None:
                self._analysed = from_tokenizer(self._tokenizer, eos_token=self._stop_ids or None)
            return self._analysed


def _line(reason: object) -> str:
    return (" ".join(str(reason).split()) or type(reason).__name__)[:300]
