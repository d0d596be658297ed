"""Extending: decorators that add a training method or an initializer, as docs/extending.md does.

In: a class or a function of another package. Out: the same, which `--method` and `--init` then take
by name.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from foreword.config import FORMS, RATES, Form, Initialization
from foreword.config.extensions import register
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.training.methods.method import Method

OWN_METHODS = frozenset(FORMS)
OWN_INITIALIZERS = frozenset(Initialization.__args__)  # type: ignore[attr-defined]


class NewMethod(Method, Protocol):
    """What a class that is registered as a method has, beside what every method has."""

    @classmethod
    def begin(cls, start: SoftPrompt, dtype: torch.dtype, seed: int) -> Self:
        """Return the method where a run begins: it folds to `start`, in `dtype`."""

    @classmethod
    def restored(
        cls,
        layout: Mapping[str, Any],
        tensors: Sequence[Tensor],
        constants: Sequence[Tensor],
        facts: Mapping[str, Any],
    ) -> Self:
        """Return the method that a training state holds."""


Initializer = Callable[[Tensor, int, torch.Generator], Tensor]
M = TypeVar("M", bound=type[NewMethod])


def register_method(name: str, *, form: Form, learning_rate: float) -> Callable[[M], M]:
    """Return a decorator that lets `--method` and `TrainConfig.method` take a class by name.

    Args:
        name: of the method.
        form: what it learns.
        learning_rate: its default.

    Raises:
        InputError: the name is one of foreword's own.
    """
    decorate = register("method", name, name in OWN_METHODS)
    FORMS[name] = form  # type: ignore[index]
    RATES[name] = learning_rate  # type: ignore[index]
    return decorate


def register_initializer(name: str) -> Callable[[Initializer], Initializer]:
    """Return a decorator that lets `--init` and `TrainConfig.init` take a function by name. The
    function gets the embedding table `[V, H]`, P and a generator, and returns `[P, H]`.

    Args:
        name: of the initializer.

    Raises:
        InputError: the name is one of foreword's own.
    """
    return register("init", name, name in OWN_INITIALIZERS)
