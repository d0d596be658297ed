"""Options of sampling: how an answer is drawn."""

from dataclasses import dataclass
from typing import Any

from foreword.config.checks import check_types
from foreword.config.declaring import option
from foreword.errors import InputError

COLDEST = 1e-6
"""The lowest temperature above 0: logits divided by less are no numbers any more."""


@dataclass(frozen=True)
class SamplingConfig:
    """How an answer is drawn; greedy unless a temperature is given."""

    max_new_tokens: int = option(256, "longest answer in tokens")
    temperature: float = option(0.0, "0 is greedy; higher is more varied")
    top_p: float = option(1.0, "sample from the likeliest tokens with this share together")
    repetition_penalty: float = option(1.0, "above 1: repeat less; virtual tokens never count")

    def __post_init__(self) -> None:
        check_types(self)
        if self.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens must be at least 1, got {self.max_new_tokens}")
        if self.temperature != 0 and self.temperature < COLDEST:
            raise InputError(
                f"--temperature must be 0 or at least {COLDEST}, got {self.temperature}"
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"--top-p must be in (0, 1], got {self.top_p}")
        if self.repetition_penalty < COLDEST:
            raise InputError(
                f"--repetition-penalty must be at least {COLDEST}, got {self.repetition_penalty}"
            )

        if self.top_p != 1 and not self.temperature:
            raise InputError(
                f"--top-p {self.top_p} is for sampling, and --temperature 0 is greedy: give a "
                "--temperature above 0, or leave --top-p out"
            )

    def options(self) -> dict[str, Any]:
        """Return the arguments of `generate`."""
        drawn = {"temperature": self.temperature, "top_p": self.top_p} if self.temperature else {}
        return {
            "max_new_tokens": self.max_new_tokens,
            "do_sample": bool(self.temperature),
            "repetition_penalty": self.repetition_penalty,
            **drawn,
        }
