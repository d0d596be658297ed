"""Lazy imports: a package hands on names of its modules, each imported at its first use.

In: a package's name, and the names in each of its modules. Out: the package's `__getattr__` and
`__dir__`. So help, the store and the readers of data import no torch.
"""

import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy_names(
    package: str, **modules: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return what a package's `__init__` assigns to `__getattr__, __dir__`.

    Args:
        package: its `__name__`.
        **modules: names, with spaces between, by the module below it that defines them.
    """
    homes = {name: module for module, names in modules.items() for name in names.split()}

    def getattr_(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return getattr_, lambda: sorted({*vars(sys.modules[package]), *homes})
