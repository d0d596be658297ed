"""Reward functions: a user's own Python function that says how good answers are.

In: `module:function`, prompts, answers, the other columns of their rows. Out: a finite number for
each answer. What goes wrong in such a function is one line. Knows no model and no tokens.
"""

import copy
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Complex, Real
from pathlib import Path
from typing import Any

from foreword.compat.error_lines import first_line
from foreword.errors import InputError, TrainingError

PROMPTS, COMPLETIONS = "prompts", "completions"
NO_LIST = (str, bytes, bytearray, Mapping, Set)
LARGEST = 1e30  # beyond which sums of squares are no float32 numbers
ANY = inspect.Parameter.VAR_KEYWORD


@dataclass(frozen=True)
class RewardFunction:
    """A function of answers, called by name: `function(prompts=..., completions=..., **columns)`,
    each a list with an entry for each answer, of which it gets those that it names, or all where it
    takes any.

    Attributes:
        name: as messages and a training state call it.
        function: returns a number for each answer.
    """

    name: str
    function: Callable[..., Any]

    def check(self, columns: Sequence[str]) -> None:
        """Refuse a function that wants what there is not.

        Args:
            columns: that every row has, beside its prompt.

        Raises:
            InputError: names the parameter.
        """
        known = (PROMPTS, COMPLETIONS, *columns)
        for one in self._parameters():
            is_needed = one.default is one.empty and one.kind not in (ANY, one.VAR_POSITIONAL)
            if one.kind is one.POSITIONAL_ONLY or (is_needed and one.name not in known):
                raise InputError(
                    f"--reward {self.name}: is called with {', '.join(known)} by name, and takes "
                    f"{one.name!r}: leave it out, or add such a column to every row"
                )

    def __call__(
        self, prompts: Sequence[Any], answers: Sequence[str], rows: Sequence[Mapping[str, Any]]
    ) -> list[float]:
        """Return the reward of each answer.

        Args:
            prompts: what each answers, as a text or turns.
            answers: texts.
            rows: the other columns of the row of each; the function gets copies.

        Raises:
            TrainingError: the function fails, or returns something else.
        """
        names = dict.fromkeys(name for row in rows for name in row)
        # Copies: the function may change what it is given, and the next call gets the rows as read.
        given = {name: [copy.deepcopy(row.get(name)) for row in rows] for name in names}
        given |= {PROMPTS: [copy.deepcopy(one) for one in prompts], COMPLETIONS: list(answers)}
        wanted = self._parameters()
        if all(one.kind is not ANY for one in wanted):
            given = {one.name: given[one.name] for one in wanted if one.name in given}
        try:
            found = self.function(**given)
            if isinstance(found, Iterator):  # a generator's code runs as it is read
                found = list(found)
        except (Exception, SystemExit) as error:
            raise TrainingError(f"--reward {self.name} failed: {_said(error)}") from error
        return self._checked(found, len(answers))

    def _checked(self, found: Any, count: int) -> list[float]:
        try:
            if isinstance(found, NO_LIST) or hasattr(found, "columns"):  # a table gives their names
                raise TypeError("in no order, or no numbers")
            values = [_number(value) for value in found]
        except Exception as error:  # what is returned is the user's code, too
            got = " ".join(_shown(found).split())
            raise TrainingError(
                f"--reward {self.name}: expected a list of {count} numbers, got {got:.80}"
            ) from error
        if len(values) != count:
            raise TrainingError(
                f"--reward {self.name}: expected a number for each of {count} answers, got "
                f"{len(values)}"
            )
        if wrong := [value for value in values if not abs(value) <= LARGEST]:
            raise TrainingError(
                f"--reward {self.name}: expected finite numbers of at most {LARGEST:g}, got "
                f"{wrong[0]}"
            )
        return values

    def _parameters(self) -> list[inspect.Parameter]:
        return list(inspect.signature(self.function).parameters.values())


def load_reward(spec: str) -> RewardFunction:
    """Return the function that `module:function` or `file.py:function` names; its module is run,
    and a module is looked for in the current directory first.

    Raises:
        InputError: no such module or function, or a module that cannot be run.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise InputError(
            f"--reward: expected module:function or file.py:function, got {spec!r:.200}"
        )
    try:
        module = _module(place)
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        raise InputError(f"--reward {spec}: cannot import {place}: {_said(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"--reward {spec}: {place} has no function {name!r}")
    try:
        inspect.signature(function)
    except (TypeError, ValueError):
        raise InputError(
            f"--reward {spec}: {name!r} does not say what it takes: wrap it in a function"
        ) from None
    return RewardFunction(spec, function)


def _number(value: Any) -> float:
    """Return a number of any kind; a text is none, whatever it spells, and neither is what float
    would cut down to its real part.
    """
    if isinstance(value, str | bytes):
        raise TypeError(f"{value!r} is text")
    if isinstance(value, Complex) and not isinstance(value, Real):
        raise TypeError(f"{value!r} has two parts")
    return float(value)


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        if "" not in sys.path and str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(place)
    known = importlib.util.spec_from_file_location(Path(place).stem, place)
    if known is None or known.loader is None:
        raise ImportError("no Python file")
    module = importlib.util.module_from_spec(known)
    sys.modules.setdefault(known.name, module)
    known.loader.exec_module(module)
    return module


def _shown(value: Any) -> str:
    try:
        return repr(value)
    except Exception:
        return f"a {type(value).__name__}"


def _said(error: BaseException) -> str:
    """Return an error in one line, with the place in the user's code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    line = first_line(error)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}{f': {line:.200}' if line else ''}{place}"
