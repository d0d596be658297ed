"""State file: what a training state says beside its tensors, read without torch.

In: a file that `TrainState.save` wrote. Out: its facts, and how far the run has come. Nothing in it
is executed. `checkpoint` reads the tensors, too.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.errors import ArtifactError, InputError
from foreword.prompt.tensor_file import read_metadata

STATE_VERSION = 2
METADATA_NAME = "foreword_training_state"


@dataclass
class Progress:
    """The numbers of a run, as plain data.

    Attributes:
        step: finished optimizer steps.
        micro_batch_size: rows per forward pass; smaller than asked for where memory ran out.
        rate_scale: what the schedule's learning rate is multiplied by.
        num_returns: how often the run went back to a good point.
        good_step: the step of that point.
        good_level: the loss there, in nats; None before the first step.
        seconds: that the steps took, those of earlier processes included.
        latest: seconds that the latest step took.
        is_finished: no step is left, or the run was stopped early.
        scale_exponent: of the loss scale, over a base in float16; see `loss_scale`.
        num_high: latest steps in a row whose loss was far above that of the good point's prompt on
            the same rows.
        num_flat: first steps of the run in which nothing was better than anything, so that the
            prompt is where it began.
    """

    step: int = 0
    micro_batch_size: int = 1
    rate_scale: float = 1.0
    num_returns: int = 0
    good_step: int = 0
    good_level: float | None = None
    seconds: float = 0.0
    latest: float = 0.0
    is_finished: bool = False
    scale_exponent: int = 12
    num_high: int = 0
    num_flat: int = 0

    def __str__(self) -> str:
        if self.is_finished:
            return f"a finished run of {self.step} steps"
        return f"a run that stopped at step {self.step}"


def read_progress(path: Path) -> Progress:
    """Return where the run of a state file stood.

    Raises:
        ArtifactError: damaged, or another kind of file.
    """
    with damage_named(path):
        return Progress(**facts_in(read_metadata(path), path)["progress"])


def refuse_run(path: Path) -> None:
    """Refuse to begin where a state file holds a run that has taken a step.

    Raises:
        InputError: says what is there, and how to go on. ArtifactError: the file is damaged.
    """
    if not path.exists():
        return
    progress = read_progress(path)
    if progress.step or progress.is_finished:
        raise InputError(
            f"{path.parent} holds {progress}: go on with it by resume=True, give another "
            f"checkpoint, or remove {path.name} there"
        )


def facts_in(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """Return the facts in a state file's metadata.

    Raises:
        ArtifactError: damaged, or of another version.
    """
    with damage_named(path):
        facts: dict[str, Any] = json.loads(metadata[METADATA_NAME])
        if facts["version"] == STATE_VERSION:
            return facts
    raise ArtifactError(
        f"{path}: state version {facts['version']!r}, expected {STATE_VERSION}; go on with the "
        "release of foreword that wrote it"
    )


@contextlib.contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Raise what damaged facts or tensors end in as one line.

    Raises:
        ArtifactError: names the file.
    """
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError,
            RecursionError, RuntimeError) as error:  # fmt: skip
        raise ArtifactError(
            f"{path}: not a training state of foreword, or a damaged one ({error!r}); remove it "
            "and begin anew"
        ) from None
