"""Training state: all that the next step depends on, beside the model, the rows and the options.

In: a prompt that is trained. Out: a `TrainState` that takes steps, goes back to its last good
point, and is written to one safetensors file from which another process goes on bit for bit
(`checkpoint` loads it). The file is replaced as a whole: there is always one, of one moment. Knows
no model and computes no gradient.
"""

import contextlib
import json
import math
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from foreword.prompt.history import History, ValidationPoint
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.storage import replacing, storage_errors
from foreword.training import guards
from foreword.training.checkpoint import Progress, StoredState, results_of, with_metrics
from foreword.training.methods.method import Method, task_prompts
from foreword.training.run import Run
from foreword.training.state_file import METADATA_NAME, STATE_VERSION, damage_named

Point = dict[str, Tensor]  # the leaves' values and the optimizer's moments at one step


class TrainState:
    """A prompt in training, its optimizer, and where the run stands.

    Args:
        method: leaves that take a gradient, and the prompt that they stand for.
        optimizer: over these leaves.
        micro_batch_size: rows per forward pass.

    Attributes:
        reference: what the reference model says of the run's rows, see `reference.every`; nothing
            where no objective asks.
    """

    def __init__(
        self, method: Method, optimizer: torch.optim.Optimizer, micro_batch_size: int
    ) -> None:
        self.method = method
        self.optimizer = optimizer
        self.progress = Progress(micro_batch_size=micro_batch_size)
        self.history = History()
        self.best: SoftPrompt | None = None
        self.best_tasks: dict[str, SoftPrompt] = {}
        self.reference = torch.empty(0, device="cpu")
        self.good: Point = self._point()

    @property
    def prompt(self) -> SoftPrompt:
        """The prompt as it is now."""
        return self.method.prompt()

    @property
    def best_point(self) -> tuple[int, float]:
        """The step of the best prompt by validation, and its loss; 0 where nothing was
        validated.
        """
        if self.best is None:
            return 0, math.nan
        metrics = self.best.facts["metrics"]
        return metrics["step"], metrics["validation"]["loss"]

    def latest(self) -> tuple[int, float, float, float]:
        """Return the number, loss and learning rate of the latest step, and its seconds."""
        history = self.history
        return self.progress.step, history.losses[-1], history.rates[-1], self.progress.latest

    def set_rate(self, rate: float) -> None:
        """Let the next step have this learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def record(self, loss: float, rate: float, seconds: float) -> None:
        """Count a step that was taken."""
        self.progress.step += 1
        self.progress.seconds += seconds
        self.progress.latest = seconds
        self.history.losses.append(loss)
        self.history.rates.append(rate)

    @property
    def is_flat_so_far(self) -> bool:
        """Whether in no step so far anything was better than anything."""
        return self.progress.num_flat == self.progress.step

    def validated(self, result: dict[str, float]) -> None:
        """Count a validation, as plain data, and keep the prompt if it is the best."""
        step, loss = self.progress.step, self.history.losses[-1]
        self.history.validations.append(ValidationPoint(step, **result))
        if self.best is None or result["loss"] < self.best_point[1]:
            metrics = {"step": step, "validation": result, "training_loss": loss}
            self.best, self.best_tasks = self.snapshot(metrics), self.task_snapshots(metrics)

    def point_if_due(self) -> Point | None:
        """Return this point every few steps: a good one, should the next loss turn out sane."""
        return self._point() if self.progress.step % guards.GOOD_EVERY == 0 else None

    def keep(self, point: Point | None) -> None:
        """Remember the point before the step just taken, unless its loss is suspiciously high."""
        progress, losses = self.progress, self.history.losses
        if point is not None and not progress.num_high:
            self.good = point
            progress.good_step, progress.good_level = progress.step - 1, guards.level(losses)

    @contextlib.contextmanager
    def at_good_point(self) -> Iterator[None]:
        """Let what is trained have the values of the last good point for a while."""
        now = [tensor.detach().clone() for tensor in self.method.tensors]
        for index, tensor in enumerate(self.method.tensors):
            tensor.data.copy_(self.good[f"{index}.value"])
        try:
            yield
        finally:
            for tensor, value in zip(self.method.tensors, now, strict=True):
                tensor.data.copy_(value)

    def go_back(self) -> None:
        """Return to the last good point, at half the rate."""
        self._restore(self.good)
        self.progress.step = self.progress.good_step
        self.progress.num_returns += 1
        self.progress.rate_scale /= 2
        self.progress.num_high = 0
        self.progress.num_flat = min(self.progress.num_flat, self.progress.step)
        self.history.forget_after(self.progress.step)

    def snapshot(self, metrics: dict[str, Any]) -> SoftPrompt:
        """Return a copy of the prompt as it is now, with its metrics."""
        return with_metrics(self.prompt, metrics)

    def task_snapshots(self, metrics: dict[str, Any]) -> dict[str, SoftPrompt]:
        """Return a copy of each task's prompt as it is now, with the run's metrics."""
        return {n: with_metrics(prompt, metrics) for n, prompt in task_prompts(self.method).items()}

    def result(self) -> SoftPrompt:
        """Return the best prompt so far by validation, or else the newest, with the history."""
        best = {"": self.best} if self.best is not None else {}
        return results_of(best, lambda: {"": self.prompt}, self.progress, self.history)[""]

    def task_results(self) -> dict[str, SoftPrompt]:
        """Return each task's prompt of the same step."""
        return results_of(
            self.best_tasks, lambda: task_prompts(self.method), self.progress, self.history
        )

    def save(self, path: Path, identity: dict[str, Any]) -> None:
        """Write everything to one file that takes the place of the earlier one, whole.

        Args:
            path: of the file; its directory is made.
            identity: what a run that goes on must have in common with this one, as plain data.

        Raises:
            StorageError: no space or no permission; the earlier file is kept.
        """
        tensors = _named("now", self._point()) | _named("good", self.good)
        tensors |= _named("random", _random_state())
        if self.best is not None:
            tensors |= _named("best", {str(i): t for i, t in enumerate(self.best.tensors)})
        if len(self.reference):
            tensors["reference.labels"] = self.reference
        for number, prompt in enumerate(self.best_tasks.values()):
            tensors |= {f"task.{number}": prompt.tensors[0]}
        tensors |= _named("constant", {str(i): t for i, t in enumerate(self.method.constants)})
        tensors["history.losses"] = torch.tensor(
            self.history.losses, dtype=torch.float64, device="cpu"
        )
        tensors["history.rates"] = torch.tensor(
            self.history.rates, dtype=torch.float64, device="cpu"
        )
        facts = {
            "version": STATE_VERSION,
            "identity": identity,
            "method": self.method.layout,
            "prompt": self.prompt.layout,
            "facts": self.method.facts,
            "progress": asdict(self.progress),
            "validations": self.history.validations,
            "best": self.best.facts["metrics"] if self.best else None,
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                save_file(tensors, file, metadata={METADATA_NAME: json.dumps(facts)})

    def save_for(self, run: Run) -> None:
        """Write everything to the file of a run that has one, in its first process."""
        if run.file is not None and run.ranks.is_main:
            self.save(run.file, run.identity)

    def _point(self) -> Point:
        found: Point = {}
        moments = self.optimizer.state_dict()["state"]
        for index, tensor in enumerate(self.method.tensors):
            values = {"value": tensor} | moments.get(index, {})
            found |= {f"{index}.{name}": one.detach().clone() for name, one in values.items()}
        return found

    def _restore(self, point: Point) -> None:
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in point.items():
            index, name = key.split(".", 1)
            if name == "value":
                self.method.tensors[int(index)].data.copy_(value)
            else:
                moments.setdefault(int(index), {})[name] = value.clone()
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.optimizer.zero_grad()

    def take_over(self, stored: StoredState, micro_batch_size: int) -> None:
        """Stand where a file left off, with at most `micro_batch_size` rows in a pass; the
        process's random states become the file's.

        Raises:
            ArtifactError: the file lacks something.
        """
        with damage_named(stored.path):
            self._restore(stored.part("now"))
            self.good = stored.part("good")
            self.progress, self.history = stored.progress(), stored.history()
            self.best, self.best_tasks = stored.best(), stored.best_tasks()
            self.progress.micro_batch_size = min(self.progress.micro_batch_size, micro_batch_size)
            _set_random_state(stored.part("random"))


def _named(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}.{name}": value for name, value in tensors.items()}


def _random_state() -> dict[str, Tensor]:
    # The order of rows comes from seed and epoch; these are for models that draw numbers.
    version, numbers, gauss = random.getstate()
    found = {
        "python": torch.tensor([version, *numbers], device="cpu"),
        "gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64, device="cpu"),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def _set_random_state(stored: dict[str, Tensor]) -> None:
    version, *numbers = stored["python"].tolist()
    gauss = stored["gauss"].tolist()
    random.setstate((version, tuple(numbers), gauss[0] if gauss else None))
    torch.set_rng_state(stored["torch"])
    if "cuda" in stored and torch.cuda.is_available():
        torch.cuda.set_rng_state(stored["cuda"])
