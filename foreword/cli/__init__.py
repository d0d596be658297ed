"""Command line: parses, calls the library and prints.

In: arguments. Out: text, files and an exit code. Knows no rule of the library. Each command is a
module of its own and imports torch only when it runs, so that help is instant.
"""

from typing import TYPE_CHECKING

from foreword.lazy import lazy_names

if TYPE_CHECKING:
    from foreword.cli.commands import app as app
    from foreword.cli.commands import main as main

__getattr__, __dir__ = lazy_names(__name__, commands="app main")
