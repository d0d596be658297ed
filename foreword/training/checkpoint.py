"""Checkpoint: what the file of a training state holds, loaded again.

In: a file that `TrainState.save` wrote. Out: what was trained, how far, and its best prompt so far,
not yet tied to an optimizer; or what is damaged, or belongs to another run. Tensors and JSON: no
pickle, and nothing in it is executed.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from foreword.config import BEFORE, EncodingConfig, RewardConfig
from foreword.data.tokenizer_facts import NAMES, NUM_DIGITS
from foreword.errors import InputError
from foreword.model.fingerprint import as_known_to
from foreword.prompt.history import History, ValidationPoint
from foreword.prompt.soft_prompt import SoftPrompt
from foreword.prompt.states import row_major
from foreword.prompt.tensor_file import read_tensors
from foreword.training.folders import STATE_FILE as STATE_FILE
from foreword.training.methods.method import Method, restored, task_prompts
from foreword.training.objective import LIKELIHOOD, NAME
from foreword.training.state_file import METADATA_NAME as METADATA_NAME
from foreword.training.state_file import STATE_VERSION as STATE_VERSION
from foreword.training.state_file import Progress as Progress
from foreword.training.state_file import damage_named, facts_in

ENVIRONMENT = "environment"  # of a run's identity: what may change between its processes
LATER = ("the base's dtype", *NAMES.values())  # unknown to states of release 0.1
# What such runs began without.
NEWER = (
    "opening", "start_token", "special_tokens", "held_text", "held_tokens", "held_hash",
    "plain", "is_text",
)  # fmt: skip
BASE = "the base model"  # of a run's identity: its fingerprint
OBJECTIVE = "the objective"  # of a run's identity
SOURCE = "the source of rows"  # of a run's identity
COLUMNS = "columns"  # of the identity of a source of rows: the hash of what its function is told
ALGORITHMS = set(get_args(get_type_hints(RewardConfig)["algorithm"]))
FACTS = {one.name for one in fields(EncodingConfig) if one.metadata.get("is_fact")}

CPU = torch.device("cpu")


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
        with damage_named(self.path):
            values = [v for k, v in _in_order(self.part("now")) if k.endswith(".value")]
            constants = [v for _, v in _in_order(self.part("constant"))]
            return restored(
                self.facts["method"],
                [value.to(device) for value in values],
                [value.to(device) for value in constants],
                self.facts["facts"],
            )

    def prompt(self) -> SoftPrompt:
        """Return the prompt that was being trained."""
        method = self.method()
        with damage_named(self.path):
            return method.prompt().detached()

    def best(self) -> SoftPrompt | None:
        """Return the best prompt so far by validation, if there was one."""
        with damage_named(self.path):
            if self.facts["best"] is None:
                return None
            values = [value for _, value in _in_order(self.part("best"))]
            facts = self.facts["facts"] | {"metrics": self.facts["best"]}
            return SoftPrompt(tensors=values, facts=facts, **self.facts["prompt"])

    def best_tasks(self) -> dict[str, SoftPrompt]:
        """Return each task's prompt of the best step, where there were tasks and validations."""
        with damage_named(self.path):
            values = [value for _, value in _in_order(self.part("task"))]
            facts = self.facts["facts"] | {"metrics": self.facts["best"]}
            names = self.facts["method"].get("names", ())
            return {
                name: SoftPrompt("embeddings", [value], facts | {"task": name})
                for name, value in zip(names, values, strict=bool(values))
            }

    def reference(self) -> Tensor:
        """Return what the reference model says of the run's rows; nothing where none was asked."""
        return self.part("reference").get("labels", torch.empty(0, device="cpu"))

    def progress(self) -> Progress:
        """Return where the run stood."""
        with damage_named(self.path):
            return Progress(**self.facts["progress"])

    def history(self) -> History:
        """Return what the curves are drawn from."""
        with damage_named(self.path):
            losses, rates = (self.tensors[f"history.{name}"] for name in ("losses", "rates"))
            validations = [ValidationPoint(*one) for one in self.facts["validations"]]
            return History(losses.tolist(), rates.tolist(), validations)

    def rate_facts(self) -> dict[str, Any]:
        """Return the learning rate that was found, and what the trials of the others came to."""
        with damage_named(self.path):
            training = self.facts["facts"]["training"]
            return {"learning_rate": float(training["learning_rate"]), "probe": training["probe"]}

    def result(self) -> SoftPrompt:
        """Return the best prompt so far by validation, or else the newest, with the history."""
        best = {"": found} if (found := self.best()) is not None else {}
        return results_of(best, lambda: {"": self.prompt()}, self.progress(), self.history())[""]

    def task_results(self) -> dict[str, SoftPrompt]:
        """Return each task's prompt of the same step."""
        return results_of(
            self.best_tasks(),
            lambda: task_prompts(self.method()),
            self.progress(),
            self.history(),
        )

    def encoding(self) -> EncodingConfig:
        """Return how the rows of the run are encoded."""
        with damage_named(self.path):
            return EncodingConfig.saved(self.facts["facts"].get("encoding") or {})

    def going_on(self, config: EncodingConfig) -> EncodingConfig:
        """Return how rows are encoded where the run goes on: what there was no option for when it
        began is as it was.
        """
        with damage_named(self.path):
            said = self.facts["facts"].get("encoding") or {}
        return replace(config, **{key: old for key, old in BEFORE.items() if key not in said})

    def _recorded(self) -> dict[str, Any]:
        """Return the recorded identity; the tokenizer, where an earlier release kept it among the
        facts of the prompt.
        """
        with damage_named(self.path):
            tokenizer = self.facts["facts"].get("tokenizer") or {}
            kept = {name: tokenizer[key] for key, name in NAMES.items() if key in tokenizer}
            return {OBJECTIVE: LIKELIHOOD.identity} | kept | dict(self.facts["identity"])

    def check(self, identity: dict[str, Any]) -> None:
        """Refuse to go on with another base, tokenizer, rows or options.

        Raises:
            InputError: names all that differs, in one line.
        """
        differing, recorded = [], self._recorded()
        for name, ours in identity.items():
            if name == ENVIRONMENT or (name in LATER and name not in recorded):
                continue
            theirs = recorded.get(name)
            if name == BASE and isinstance(theirs, str):
                ours = _as_known_to(theirs, ours)
            if name == SOURCE and (theirs is None) != (ours is None):
                theirs, ours = _source_option(theirs, ours)
            if isinstance(ours, dict) and isinstance(theirs, dict):
                differing += _differing(theirs, ours)
            elif ours != theirs:
                differing.append(_differ(name, theirs, ours))
        if differing:
            raise InputError(
                f"{self.path}: cannot go on with this run: {'; '.join(dict.fromkeys(differing))}; "
                "give what it began with, or another --output"
            )

    def changed_environment(self, identity: dict[str, Any]) -> str | None:
        """Say what changed of that on which the last bits of every sum depend, and nothing else."""
        with damage_named(self.path):
            then, now = self.facts["identity"][ENVIRONMENT], identity[ENVIRONMENT]
            changed = [f"{k} was {then.get(k)}, is {v}" for k, v in now.items() if then.get(k) != v]
        if not changed:
            return None
        return f"{', '.join(changed)}: the run goes on, its last bits may differ"


def _differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Say which options differ, each by its name on the command line, and what a run records beside
    them in words.
    """
    found = []
    for name in {**ours, **theirs}:
        is_newer = name not in theirs and name in NEWER
        if is_newer or theirs.get(name) == ours.get(name):
            continue
        if name == COLUMNS:
            found.append(_differ("the columns of the questions", theirs.get(name), ours.get(name)))
            continue
        said = f"--{name.replace('_', '-')}"
        if name in FACTS:
            said = f"the {name.replace('_', ' ')}"
        elif name == NAME and {theirs.get(name), ours.get(name)} & ALGORITHMS:
            is_both = {theirs.get(name), ours.get(name)} <= ALGORITHMS
            said = "--algorithm" if is_both else "the objective"
        found.append(f"{said} was {_said(theirs, name)}, is {_said(ours, name)}")
    return found


def _source_option(
    theirs: dict[str, Any] | None, ours: dict[str, Any] | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return of two sources of rows, of which one is none, the option alone that asks for the
    other; both as they are where no option does.
    """
    known = theirs or ours or {}
    asked: dict[str, Any] = {name: known[name] for name in ("on_policy", "reward") if name in known}
    if not asked:
        return theirs, ours
    return (asked, {}) if ours is None else ({}, asked)


def _differ(name: str, theirs: Any, ours: Any) -> str:
    return f"{name} differ (expected {_short(theirs)}, got {_short(ours)})"


def _said(options: Mapping[str, Any], name: str) -> str:
    return repr(options[name]) if name in options else "not given"


def read_state(path: Path) -> StoredState:
    """Read a state file; nothing in it is executed.

    Raises:
        ArtifactError: damaged, or another kind of file.
    """
    with damage_named(path):
        found = read_tensors(path)
        tensors = {name: row_major(value) for name, value in found.tensors.items()}
    return StoredState(path, facts_in(found.metadata, path), tensors)


def _as_known_to(theirs: str, ours: str) -> str:
    """Return the base's fingerprint as the version of a state's would have it."""
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        return json.dumps(as_known_to(json.loads(theirs), json.loads(ours)), sort_keys=True)
    return ours


def results_of(
    best: Mapping[str, SoftPrompt],
    newest: Callable[[], Mapping[str, SoftPrompt]],
    progress: Progress,
    history: History,
) -> dict[str, SoftPrompt]:
    """Return the best prompts by validation, or else the newest, with the history of their run."""
    losses = history.losses
    metrics = {"step": progress.step, "training_loss": losses[-1] if losses else None}
    found = best or {name: with_metrics(prompt, metrics) for name, prompt in newest().items()}
    return {name: with_history(prompt, history) for name, prompt in found.items()}


def with_metrics(prompt: SoftPrompt, metrics: dict[str, Any]) -> SoftPrompt:
    copy = prompt.detached()
    copy.facts["metrics"] = metrics
    return copy


def with_history(prompt: SoftPrompt, history: History) -> SoftPrompt:
    known = {"history": facts} if (facts := history.facts()) else {}
    return prompt.replaced(prompt.tensors, prompt.facts | known)


def _short(value: Any) -> str:
    """Return a recorded value, a hash by its first digits, a fingerprint by a hash of its own."""
    text = str(value)
    if text.startswith("{"):
        text = hashlib.sha256(text.encode()).hexdigest()
    return text[:NUM_DIGITS]


def _in_order(tensors: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    return sorted(tensors.items(), key=lambda item: int(item[0].split(".")[0]))
