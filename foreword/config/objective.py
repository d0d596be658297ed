"""Options of an objective: what a step of training lessens."""

from dataclasses import dataclass
from typing import Literal

from foreword.config.checks import above_zero, at_least_one, check_types, not_negative
from foreword.config.declaring import option
from foreword.config.training import TrainConfig
from foreword.errors import InputError

ObjectiveName = Literal["likelihood", "dpo", "dpo-norm"]


@dataclass(frozen=True)
class ObjectiveConfig:
    """What a step of training lessens."""

    objective: ObjectiveName = option(
        "likelihood",
        "what is lessened: the loss of answers (likelihood), or that of pairs of a chosen and a "
        "rejected answer beside the model behind the prompt that training starts from (dpo; "
        "dpo-norm goes by a mean token)",
    )
    beta: float | None = option(
        None,
        "of dpo and dpo-norm: a smaller value lets the prompt move farther from where it starts; "
        "default: 0.1, and 5 for dpo-norm",
    )
    chosen_weight: float = option(
        0.0,
        "of dpo and dpo-norm: weight of the loss of the chosen answers themselves, at a mean token",
    )

    def __post_init__(self) -> None:
        check_types(self)
        above_zero(self, "beta")
        not_negative(self, "chosen_weight")
        for name, value in (("--beta", self.beta), ("--chosen-weight", self.chosen_weight)):
            if value and self.objective == "likelihood":
                raise InputError(f"{name} {value:g} is of --objective dpo: give that, too")

    def check(self, config: TrainConfig, *, has_start: bool) -> None:
        """Refuse a run that the objective is not defined for.

        Args:
            config: the options of the run.
            has_start: whether there is a prompt to start from.

        Raises:
            InputError: names the option.
        """
        if self.objective != "likelihood":
            check_for_pairs(self.objective, config, has_start=has_start)


def check_for_pairs(objective: str, config: TrainConfig, *, has_start: bool) -> None:
    """Refuse a run on pairs of answers without a prompt to compare with, and methods that rows of
    one answer need.

    Raises:
        InputError: names the option.
    """
    name = f"--objective {objective}"
    if not has_start and config.init == "text" and not config.init_text:
        raise InputError(
            f"{name} changes what a prompt already says, and keeps to it: say where it starts, "
            "with --init-prompt DIR or --init-text 'an instruction'"
        )
    if config.method == "multitask":
        raise InputError(f"{name} trains one prompt: leave --method multitask out")
    if not has_start and config.method == "context-tuning" and not config.init_text:
        raise InputError(
            f"{name} reads two answers to the same, and context-tuning would show one of them "
            "to the other: use --method prefix-tuning, or --init-text"
        )


@dataclass(frozen=True)
class RewardConfig:
    """How a prompt learns from rewards of the model's own answers."""

    algorithm: Literal["rloo", "grpo"] = option(
        "rloo",
        "how much better an answer is than others to the same question: than their mean (rloo), or "
        "in deviations of the group, and by a mean token (grpo)",
    )
    group: int = option(8, "answers that are drawn to each question of a step")
    kl: float = option(
        0.0, "weight of the divergence from the model behind the prompt that training starts from"
    )
    answer_tokens: int = option(128, "longest answer in tokens")
    answer_batch: int = option(64, "answers that are drawn at once")

    def __post_init__(self) -> None:
        check_types(self)
        at_least_one(self, "answer_tokens", "answer_batch")
        not_negative(self, "kl")
        if self.group < 2:
            raise InputError(
                f"--group must be at least 2 answers, which are compared, got {self.group}"
            )
