"""The same run from several seeds: what it comes to on average, how far apart, and the best of it.

In: a configuration and how many seeds; then the prompts that the runs ended with. Out: a
configuration for each run; mean and deviation of what validation said, and the best prompt, which
knows them. Trains nothing itself.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from foreword.config import TrainConfig
from foreword.errors import InputError
from foreword.prompt.soft_prompt import SoftPrompt


def seeds_of(config: TrainConfig, count: int) -> list[TrainConfig]:
    """Return the configuration of each run: seeds from the given one on.

    Raises:
        InputError: fewer than one.
    """
    if count < 1:
        raise InputError(f"--seeds must be at least 1, got {count}")
    return [replace(config, seed=config.seed + index) for index in range(count)]


@dataclass(frozen=True, eq=False)
class Spread:
    """What several seeds came to, each at its best step.

    Attributes:
        best_seed: that of the lowest validation loss.
        best: its prompt, with this spread among its metrics.
        losses: validation loss of each seed, in nats.
        exact: share of validation rows that each seed answers right.
    """

    best_seed: int
    best: SoftPrompt
    losses: Mapping[int, float]
    exact: Mapping[int, float]

    def __str__(self) -> str:
        loss, exact = _summary(self.losses), _summary(self.exact)
        return (
            f"{len(self.losses)} seeds: validation loss {loss['mean']:.3f} +- "
            f"{loss['deviation']:.3f}, exact {exact['mean']:.1%} +- {exact['deviation']:.1%}; "
            f"the best is seed {self.best_seed}, loss {self.losses[self.best_seed]:.3f}"
        )


def spread(results: Mapping[int, SoftPrompt]) -> Spread:
    """Compare the prompts that runs of several seeds ended with.

    Raises:
        InputError: a prompt that was never validated.
    """
    found: dict[int, Mapping[str, float]] = {}
    for seed, prompt in results.items():
        validation = (prompt.facts.get("metrics") or {}).get("validation")
        if validation is None:
            raise InputError("--seeds keeps the best by validation: give --validation rows")
        found[seed] = validation
    losses = {seed: one["loss"] for seed, one in found.items()}
    exact = {seed: one["exact"] for seed, one in found.items()}
    best_seed = min(losses, key=lambda seed: (losses[seed], seed))
    best = results[best_seed].detached()
    seeds = {"best": best_seed, "loss": _summary(losses), "exact": _summary(exact)}
    best.facts["metrics"] = best.facts["metrics"] | {"seeds": seeds}
    return Spread(best_seed, best, losses, exact)


def _summary(values: Mapping[int, float]) -> dict[str, Any]:
    """Return mean and sample deviation, and the value of each seed."""
    numbers = list(values.values())
    deviation = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    each = {str(seed): value for seed, value in values.items()}
    return {"mean": statistics.fmean(numbers), "deviation": deviation, "each": each}
