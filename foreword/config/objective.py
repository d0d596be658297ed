"""Options of an objective: what a step of training lessens."""

from dataclasses import dataclass
from typing import Literal

from foreword.config.checks import above_zero, check_types
from foreword.config.declaring import option
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
        "of dpo and dpo-norm: the less, the farther from that start; default: 0.1, and 5 for "
        "dpo-norm",
    )

    def __post_init__(self) -> None:
        check_types(self)
        above_zero(self, "beta")
        if self.beta is not None and self.objective == "likelihood":
            raise InputError(f"--beta {self.beta:g} is of --objective dpo: give that, too")
