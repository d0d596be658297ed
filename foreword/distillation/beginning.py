"""Beginning of a distillation: the moment from which on its folder is its own.

In: the folder, and what is kept in it that fits. Out: the day of the text written down, and where
the run begins anew, all removed that an earlier one kept and this one cannot use. Until then a run
that is refused has changed nothing.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from foreword.config import EncodingConfig
from foreword.distillation import context_date
from foreword.distillation.kept_work import ANSWERED, ASKED, remove
from foreword.distillation.teacher import kept_under
from foreword.training import distributed


@dataclass
class Beginning:
    """What happens once, before a distillation first writes to its folder.

    Attributes:
        folder: of its questions and answers; None: it keeps none.
        encoding: of its text.
        is_anew: whether what an earlier run kept is removed where it does not fit.
        asks: whether its questions are kept there, too.
        on_begin: is called first, in the process that writes.
        is_over: whether it has happened.
    """

    folder: str | os.PathLike[str] | None
    encoding: EncodingConfig
    is_anew: bool
    asks: bool
    on_begin: Callable[[], object]
    is_over: bool = False

    def __call__(self, keys: Mapping[Path, str] | None = None) -> None:
        """Let the run begin, unless it has; answers are kept that lie in one of the folders, under
        its key.

        Raises:
            StorageError: the folder cannot be written.
        """
        if self.is_over:
            return
        self.is_over = True
        if distributed.join().is_main:
            self.on_begin()
            if self.is_anew and self.folder is not None:
                fitting = keys or {}
                context_date.forget(Path(self.folder))
                remove(Path(self.folder), ANSWERED, lambda one: _fits(one, fitting))
                if not self.asks:
                    remove(Path(self.folder), ASKED)
        context_date.keep(self.folder, self.encoding)


def _fits(file: Path, keys: Mapping[Path, str]) -> bool:
    return file.parent in keys and kept_under(file) == keys[file.parent]
