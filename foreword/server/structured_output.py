"""Structured output: from a JSON schema to the ids that may come next, through llguidance.

In: the schema of `response_format`, or the grammar of calls of tools, and the ids that end an
answer. Out: a constraint for one request. A schema that cannot be followed is refused before the
request begins. Knows no model.
"""

import json
import re
import threading
from collections.abc import Callable, Collection
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foreword.errors import InputError
from foreword.server.closed_schema import closed

MAX_SCHEMA_BYTES = 65536
MAX_MULTIPLE = 10_000  # states of a grammar of numbers
MULTIPLE = re.compile(r'"multipleOf":\s*(-?[0-9][0-9.eE+-]*)')
# As json.dumps writes: where any whitespace is allowed, small models never stop writing it.
FORM: Any = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}


class JsonConstraint:
    """The state of one answer in a grammar.

    Args:
        matcher: llguidance's state.
        tokenizer: llguidance's view of the vocabulary; it ends texts by ids of its own.
        field: of the request, for errors.
        ends: ids that end this answer: each is allowed where the grammar may end, and no other is.
    """

    def __init__(self, matcher: Any, tokenizer: Any, field: str, ends: Collection[int]) -> None:
        self._matcher, self._tokenizer, self._field = matcher, tokenizer, field
        self._ends = frozenset(one for one in ends if 0 <= one < tokenizer.vocab_size)

    def copy(self, ends: Collection[int]) -> "JsonConstraint":
        """Return the same state for another answer, without reading the schema again.

        Args:
            ends: ids that end the other answer.
        """
        return JsonConstraint(self._matcher.deep_copy(), self._tokenizer, self._field, ends)

    def allowed(self) -> Tensor:
        """Return the ids that may come next, bool `[V]`.

        Raises:
            InputError: the schema cannot be followed.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        size = self._tokenizer.vocab_size
        found = np.unpackbits(bits, bitorder="little", count=size).astype(bool)
        own = list(self._tokenizer.eos_tokens)
        may_end = bool(found[own].any())
        found[own] = False
        if may_end:
            found[list(self._ends)] = True
        return torch.from_numpy(found)

    def accept(self, chosen_id: int) -> bool:
        """Take note of the next id; return whether the answer is whole.

        Raises:
            InputError: the schema cannot be followed.
        """
        if chosen_id in self._ends:
            return True
        self._matcher.consume_token(chosen_id)
        self._check()
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = str(self._matcher.get_error()).partition("<state>")[0]
            raise InputError(
                f"{self._field}: the schema cannot be followed ({_line(reason)}): make it simpler"
            )


class Grammars:
    """Makes constraints for one tokenizer, which is analysed once.

    Args:
        tokenizer: of the model.
        end_id: a token that no text spells, for llguidance; requests say where their answers end.
    """

    def __init__(self, tokenizer: Any, end_id: int) -> None:
        self._tokenizer, self._end_id = tokenizer, end_id
        self._analysed: Any = None
        self._lock = threading.Lock()

    def constraint(self, schema: dict[str, Any]) -> JsonConstraint:
        """Return a constraint to a JSON schema; objects hold the properties that it names.

        Raises:
            InputError: a schema that is too large, or that cannot be followed.
        """
        from llguidance import LLMatcher

        def read(text: str) -> str:
            return str(LLMatcher.grammar_from_json_schema(text, defaults=FORM))

        return self._made("response_format", json.dumps(closed(schema)), read)

    def of_tools(self, grammar: str) -> JsonConstraint:
        """Return a constraint to the grammar of an answer that may call tools.

        Raises:
            InputError: schemas that are too large, or that cannot be followed.
        """
        from llguidance import LLMatcher

        return self._made("tools", grammar, LLMatcher.grammar_from_lark)

    def _made(self, field: str, text: str, read: Callable[[str], str]) -> JsonConstraint:
        from llguidance import LLMatcher

        if len(text) > MAX_SCHEMA_BYTES:
            raise InputError(f"{field}: a schema of more than {MAX_SCHEMA_BYTES} bytes")
        _check_multiples(field, text)
        try:
            tokenizer = self._analyse()
            matcher = LLMatcher(tokenizer, read(text), log_level=0)
        except Exception as error:
            raise InputError(f"{field}: {_line(error)}") from None
        if matcher.is_error():
            raise InputError(f"{field}: {_line(matcher.get_error())}")
        return JsonConstraint(matcher, tokenizer, field, tokenizer.eos_tokens)

    def _analyse(self) -> Any:
        from llguidance.hf import from_tokenizer

        with self._lock:
            if self._analysed is None:
                self._analysed = from_tokenizer(self._tokenizer, eos_token=self._end_id)
            return self._analysed


def _check_multiples(field: str, text: str) -> None:
    """Refuse `multipleOf` of large numbers: a grammar has a state for each remainder.

    Raises:
        InputError: the numbers of a schema, multiplied, are too many.
    """
    product = 1
    for found in MULTIPLE.findall(text):
        parts = Decimal(found).as_tuple()
        digits = int("".join(map(str, parts.digits)))
        assert isinstance(parts.exponent, int)  # JSON has no infinity
        product *= digits * 10 ** min(max(parts.exponent, 0), 9)
        if product > MAX_MULTIPLE:
            raise InputError(
                f"{field}: multipleOf, all multiplied and decimals as whole numbers, may be "
                f"{MAX_MULTIPLE} at most: check it in the answer"
            )


def _line(reason: object) -> str:
    return (" ".join(str(reason).split()) or type(reason).__name__)[:300]
