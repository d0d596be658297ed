"""Lazy imports: a package hands on names of its modules, each imported at its first use.

In: a package's name, and the module of each name. Out: the package's `__getattr__` and `__dir__`.
So that help, the store and the readers of data import no torch.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return what a package's `__init__` assigns to `__getattr__, __dir__`.

    Args:
        package: its `__name__`.
        modules: the module below it that each name is defined in.
    """

    def getattr_(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{modules[name]}"), name)

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return getattr_, dir_
