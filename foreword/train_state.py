"""All that the next step of a run depends on, beside the model, the rows and the options.

In: a prompt that is trained. Out: a `TrainState` that takes steps, goes back to its last good
point, and is written to one safetensors file from which another process goes on bit for bit. The
file is replaced as a whole: there is always one, of one moment. Tensors and JSON, no pickle. Knows
no model and computes no gradient.
"""

import contextlib
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from foreword import artifact, guards, methods
from foreword.errors import ArtifactError, InputError
from foreword.history import History
from foreword.methods import Method
from foreword.prompt import SoftPrompt

STATE_FILE = "training_state.safetensors"
STATE_VERSION = 2
ENVIRONMENT = "environment"  # of a run's identity: what may change between its processes
METADATA_NAME = "foreword_training_state"

CPU = torch.device("cpu")
Point = dict[str, Tensor]  # the leaves' values and the optimizer's moments at one step


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


class TrainState:
    """A prompt in training, its optimizer, and where the run stands.

    Args:
        method: leaves that take a gradient, and the prompt that they stand for.
        optimizer: over these leaves.
        micro_batch_size: rows per forward pass.
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
        self.good: Point = self._point()

    @property
    def prompt(self) -> SoftPrompt:
        """The prompt as it is now."""
        return self.method.prompt()

    @property
    def best_step(self) -> int:
        """The step of the best prompt by validation; 0 where nothing was validated."""
        return self.best.facts["metrics"]["step"] if self.best else 0

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

    def validated(self, result: dict[str, float]) -> None:
        """Count a validation's `loss` and `exact`, and keep the prompt if it is the best."""
        step, loss = self.progress.step, self.history.losses[-1]
        self.history.validations.append((step, result["loss"], result["exact"]))
        if self.best is None or result["loss"] < self.best.facts["metrics"]["validation"]["loss"]:
            metrics = {"step": step, "validation": result, "training_loss": loss}
            self.best, self.best_tasks = self.snapshot(metrics), self.task_snapshots(metrics)

    def point_if_due(self) -> Point | None:
        """Return this point every few steps: a good one, should the next loss turn out sane."""
        return self._point() if self.progress.step % guards.GOOD_EVERY == 0 else None

    def keep(self, point: Point | None) -> None:
        """Remember the point before the step just taken, unless its loss is suspiciously high."""
        progress, losses = self.progress, self.history.losses
        if point is not None and guards.is_sane(losses[-1], progress.good_level):
            self.good = point
            progress.good_step, progress.good_level = progress.step - 1, guards.level(losses)

    def go_back(self) -> None:
        """Return to the last good point, at half the rate."""
        self._restore(self.good)
        self.progress.step = self.progress.good_step
        self.progress.num_returns += 1
        self.progress.rate_scale /= 2
        self.history.forget_after(self.progress.step)

    def snapshot(self, metrics: dict[str, Any]) -> SoftPrompt:
        """Return a copy of the prompt as it is now, with its metrics."""
        return _with_metrics(self.prompt, metrics)

    def task_snapshots(self, metrics: dict[str, Any]) -> dict[str, SoftPrompt]:
        """Return a copy of each task's prompt as it is now, with the run's metrics."""
        return {n: _with_metrics(prompt, metrics) for n, prompt in self.method.tasks().items()}

    def result(self) -> SoftPrompt:
        """Return the best prompt so far by validation, or else the newest, with the history."""
        found = self.best if self.best is not None else self.snapshot(self._metrics())
        return _with_history(found, self.history)

    def task_results(self) -> dict[str, SoftPrompt]:
        """Return each task's prompt of the same step."""
        best = self.best_tasks if self.best is not None else self.task_snapshots(self._metrics())
        return {name: _with_history(prompt, self.history) for name, prompt in best.items()}

    def _metrics(self) -> dict[str, Any]:
        loss = self.history.losses[-1] if self.history.losses else None
        return {"step": self.progress.step, "training_loss": loss}

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
        for number, prompt in enumerate(self.best_tasks.values()):
            tensors |= {f"task.{number}": prompt.tensors[0]}
        tensors |= _named("constant", {str(i): t for i, t in enumerate(self.method.constants)})
        tensors["history.losses"] = torch.tensor(self.history.losses, dtype=torch.float64)
        tensors["history.rates"] = torch.tensor(self.history.rates, dtype=torch.float64)
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
        with artifact.storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with artifact.replacing(path) as file:
                save_file(tensors, file, metadata={METADATA_NAME: json.dumps(facts)})

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

    def take_over(self, stored: "StoredState", micro_batch_size: int) -> None:
        """Stand where a file left off, with at most `micro_batch_size` rows in a pass; the
        process's random states become the file's.

        Raises:
            ArtifactError: the file lacks something.
        """
        with _damage_named(stored.path):
            self._restore(stored.part("now"))
            self.good = stored.part("good")
            self.progress, self.history = stored.progress(), stored.history()
            self.best, self.best_tasks = stored.best(), stored.best_tasks()
            self.progress.micro_batch_size = min(self.progress.micro_batch_size, micro_batch_size)
            _set_random_state(stored.part("random"))


@dataclass(frozen=True, eq=False)
class StoredState:
    """What a state file holds, not yet tied to an optimizer."""

    path: Path
    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of one part, by their names in it."""
        prefix = f"{name}."
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def method(self, device: torch.device = CPU) -> Method:
        """Return what was being trained, its tensors on a device."""
        with _damage_named(self.path):
            values = [v for k, v in _in_order(self.part("now")) if k.endswith(".value")]
            constants = [v for _, v in _in_order(self.part("constant"))]
            return methods.restored(
                self.facts["method"],
                [value.to(device) for value in values],
                [value.to(device) for value in constants],
                self.facts["facts"],
            )

    def prompt(self) -> SoftPrompt:
        """Return the prompt that was being trained."""
        method = self.method()
        with _damage_named(self.path):
            return method.prompt().detached()

    def best(self) -> SoftPrompt | None:
        """Return the best prompt so far by validation, if there was one."""
        with _damage_named(self.path):
            if self.facts["best"] is None:
                return None
            values = [value for _, value in _in_order(self.part("best"))]
            facts = self.facts["facts"] | {"metrics": self.facts["best"]}
            return SoftPrompt(tensors=values, facts=facts, **self.facts["prompt"])

    def best_tasks(self) -> dict[str, SoftPrompt]:
        """Return each task's prompt of the best step, where there were tasks and validations."""
        with _damage_named(self.path):
            values = [value for _, value in _in_order(self.part("task"))]
            facts = self.facts["facts"] | {"metrics": self.facts["best"]}
            names = self.facts["method"].get("names", ())
            return {
                name: SoftPrompt("embeddings", [value], facts | {"task": name})
                for name, value in zip(names, values, strict=bool(values))
            }

    def progress(self) -> Progress:
        """Return where the run stood."""
        with _damage_named(self.path):
            return Progress(**self.facts["progress"])

    def history(self) -> History:
        """Return what the curves are drawn from."""
        with _damage_named(self.path):
            losses, rates = (self.tensors[f"history.{name}"] for name in ("losses", "rates"))
            validations = [(step, loss, exact) for step, loss, exact in self.facts["validations"]]
            return History(losses.tolist(), rates.tolist(), validations)

    def rate_facts(self) -> dict[str, Any]:
        """Return the learning rate that was found, and what the trials of the others came to."""
        with _damage_named(self.path):
            training = self.facts["facts"]["training"]
            return {"learning_rate": float(training["learning_rate"]), "probe": training["probe"]}

    def result(self) -> SoftPrompt:
        """Return the best prompt so far by validation, or else the newest, with the history."""
        found = self.best() or _with_metrics(self.prompt(), self._metrics())
        return _with_history(found, self.history())

    def task_results(self) -> dict[str, SoftPrompt]:
        """Return each task's prompt of the same step."""
        newest = self.method().tasks() if self.best() is None else {}
        found = self.best_tasks() or {
            name: _with_metrics(prompt, self._metrics()) for name, prompt in newest.items()
        }
        return {name: _with_history(prompt, self.history()) for name, prompt in found.items()}

    def _metrics(self) -> dict[str, Any]:
        losses = self.history().losses
        return {"step": self.progress().step, "training_loss": losses[-1] if losses else None}

    def check(self, identity: dict[str, Any]) -> None:
        """Refuse to go on with another base, other rows or other options.

        Raises:
            InputError: names all that differs, in one line.
        """
        differing = []
        for name, ours in identity.items():
            if name == ENVIRONMENT:
                continue
            theirs = self.facts["identity"].get(name)
            if isinstance(ours, dict) and isinstance(theirs, dict):
                differing += [
                    f"--{option.replace('_', '-')} was {theirs.get(option)!r}, is {value!r}"
                    for option, value in ours.items()
                    if theirs.get(option) != value
                ]
            elif ours != theirs:
                differing.append(f"{name} differ")
        if differing:
            raise InputError(
                f"{self.path}: cannot go on with this run: {'; '.join(differing)}; give what it "
                "began with, or another --output"
            )

    def changed_environment(self, identity: dict[str, Any]) -> str | None:
        """Say what changed of that on which the last bits of every sum depend, and nothing else."""
        with _damage_named(self.path):
            then, now = self.facts["identity"][ENVIRONMENT], identity[ENVIRONMENT]
            changed = [f"{k} was {then.get(k)}, is {v}" for k, v in now.items() if then.get(k) != v]
        if not changed:
            return None
        return f"{', '.join(changed)}: the run goes on, its last bits may differ"


def read_state(path: Path) -> StoredState:
    """Read a state file; nothing in it is executed.

    Raises:
        ArtifactError: damaged, or another kind of file.
    """
    with _damage_named(path):
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[METADATA_NAME])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if facts["version"] == STATE_VERSION:
            return StoredState(path, facts, tensors)
    raise ArtifactError(
        f"{path}: state version {facts['version']!r}, expected {STATE_VERSION}; go on with the "
        "release of foreword that wrote it"
    )


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError,
            RecursionError, RuntimeError) as error:  # fmt: skip
        raise ArtifactError(
            f"{path}: not a training state of foreword, or a damaged one ({error!r}); remove it "
            "and begin anew"
        ) from None


def _with_metrics(prompt: SoftPrompt, metrics: dict[str, Any]) -> SoftPrompt:
    copy = prompt.detached()
    copy.facts["metrics"] = metrics
    return copy


def _with_history(prompt: SoftPrompt, history: History) -> SoftPrompt:
    known = {"history": facts} if (facts := history.facts()) else {}
    return prompt.replaced(prompt.tensors, prompt.facts | known)


def _named(part: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}.{name}": value for name, value in tensors.items()}


def _in_order(tensors: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    return sorted(tensors.items(), key=lambda item: int(item[0].split(".")[0]))


def _random_state() -> dict[str, Tensor]:
    # The order of rows comes from seed and epoch; these are for models that draw numbers.
    version, numbers, gauss = random.getstate()
    found = {
        "python": torch.tensor([version, *numbers]),
        "gauss": torch.tensor([] if gauss is None else [gauss], dtype=torch.float64),
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
