"""Kept start of a distillation: the unrelated rows and the prompt to start from, computed once.

In: the folder of a run, what they follow from, a call that computes them. Out: what the folder
keeps if it follows from the same, else what the call returns, which is then kept. So a run goes on
with the same bits where other kernels, or another release of torch, would draw other text and match
other values. Computes nothing itself.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.data.row import Row
from foreword.data.target import Target
from foreword.distillation.kept_work import STARTED
from foreword.errors import ArtifactError
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import row_major
from foreword.prompt.tensor_file import read_tensors, write_tensors
from foreword.storage import remove_leftovers, storage_errors
from foreword.training import distributed
from foreword.training.folders import STATE_FILE, seed_folders

T = TypeVar("T")

KEY, FACTS = "foreword_start", "facts"


@dataclass(frozen=True)
class KeptStart:
    """What a run starts from, in its folder.

    Attributes:
        backbone: the base of the run.
        folder: of the run; None: nothing is kept.
        is_anew: whether the run begins anew, so that a file that cannot be read is made again.

    What is kept of another start is replaced, but where the folder has a training state: that is of
    the run which began with it.
    """

    backbone: Backbone
    folder: str | os.PathLike[str] | None
    is_anew: bool = False

    def rows(self, follows_from: Sequence[object], compute: Callable[[], list[Row]]) -> list[Row]:
        """Return rows with targets.

        Args:
            follows_from: what decides what they are, beside the base.
            compute: makes them.

        Raises:
            ArtifactError: the file that keeps them is damaged.
            StorageError: it cannot be written.
        """
        found, keep = self._kept("unrelated", follows_from, _rows)
        if found is not None:
            return found
        rows = compute()
        keep(
            {
                f"{number}.{name}": value
                for number, row in enumerate(rows)
                for name, value in _tensors(row).items()
            },
            [[row.num_labels, row.source] for row in rows],
        )
        return rows

    def prompt(
        self, follows_from: Sequence[object], compute: Callable[[], tuple[SoftPrompt, str]]
    ) -> tuple[SoftPrompt, str]:
        """Return a prompt, and a sentence that says what it is; takes and raises what `rows`
        does.
        """
        found, keep = self._kept("prompt", follows_from, self._prompt)
        if found is not None:
            return found
        prompt, said = compute()
        keep({str(number): one for number, one in enumerate(prompt.tensors)}, [prompt.layout, said])
        return prompt, said

    def _prompt(self, tensors: Mapping[str, Tensor], facts: Any) -> tuple[SoftPrompt, str]:
        layout, said = facts
        values = [tensors[str(number)] for number in range(len(tensors))]
        base = {"base": self.backbone.identity()}
        return SoftPrompt(tensors=values, facts=base, **layout), str(said)

    def _kept(
        self,
        name: str,
        follows_from: Sequence[object],
        decode: Callable[[Mapping[str, Tensor], Any], T],
    ) -> tuple[T | None, Callable[[Mapping[str, Tensor], Any], None]]:
        """Return what a file keeps, if it follows from the same, and what keeps something there."""
        if self.folder is None:
            return None, lambda tensors, facts: None
        file, backbone = Path(self.folder) / STARTED / f"{name}.safetensors", self.backbone
        base = json.dumps(backbone.fingerprint(), sort_keys=True)
        parts = (base, backbone.dtype, *follows_from)
        key = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()

        def keep(tensors: Mapping[str, Tensor], facts: Any) -> None:
            if distributed.join().is_main and (self.is_anew or not self._has_state()):
                remove_leftovers(file)
                write_tensors(file, tensors, {KEY: key, FACTS: json.dumps(facts)})

        try:
            with storage_errors(file):
                stored = _read(file, key) if file.exists() else None
            found = None if stored is None else decode(*stored)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            if not self.is_anew:
                raise ArtifactError(
                    f"{file}: damaged ({error}); remove it, and it is made again"
                ) from None
            found = None
        return found, keep

    def _has_state(self) -> bool:
        """Return whether the folder holds a run that may go on."""
        folder = Path(self.folder or "")
        return any((one / STATE_FILE).exists() for one in (folder, *seed_folders(folder)))


def _read(file: Path, key: str) -> tuple[dict[str, Tensor], Any] | None:
    """Return the tensors and facts that a file keeps; None where it keeps those of another run."""
    found = read_tensors(file)
    if KEY not in found.metadata:
        raise ValueError("no start of a distillation")
    if found.metadata[KEY] != key:
        return None
    tensors = {name: row_major(value) for name, value in found.tensors.items()}
    return tensors, json.loads(found.metadata[FACTS])


def _tensors(row: Row) -> dict[str, Tensor]:
    assert row.target is not None
    return {
        "input_ids": torch.tensor(row.input_ids, device="cpu"),
        "ids": row.target.ids,
        "log_probabilities": row.target.log_probabilities,
    }


def _rows(tensors: Mapping[str, Tensor], facts: Any) -> list[Row]:
    return [
        Row(
            tuple(tensors[f"{number}.input_ids"].tolist()),
            num_labels,
            source,
            target=Target(tensors[f"{number}.ids"], tensors[f"{number}.log_probabilities"]),
        )
        for number, (num_labels, source) in enumerate(facts)
    ]
