"""Help: each command tells its own defaults, and not of options that have no effect in it."""

import re
from typing import Any

import pytest
from test_cli import invoke

from foreword.cli import distill, reward
from foreword.config import OF_VALUES, RATES
from foreword.distillation.contexts import NUM_VIRTUAL
from foreword.distillation.distill import RATE
from foreword.training.policy import PolicyGradient


def help_of(command: str) -> str:
    return " ".join(invoke(command, "--help").replace("\u2502", " ").split())


@pytest.mark.parametrize(("command", "module"), [("distill", distill), ("reward", reward)])
def test_options_without_effect_are_left_out(command: str, module: Any) -> None:
    said = help_of(command)
    for name in module.WITHOUT_EFFECT:
        assert not re.search(rf"--{name.replace('_', '-')}[ ,]", said), name
    assert "--learning-rate" in said and "--method" in said


def test_defaults_are_those_of_the_command() -> None:
    assert f"default: {NUM_VIRTUAL}," in distill.TOLD["num_virtual_tokens"]
    rates = {method: RATE if method in OF_VALUES else rate for method, rate in RATES.items()}
    check_rates(distill.TOLD["learning_rate"], rates, 1.0)
    check_rates(reward.TOLD["learning_rate"], RATES, PolicyGradient.rate_share)
    assert "auto" not in reward.TOLD["learning_rate"] and "auto" in distill.TOLD["learning_rate"]
    assert "a tenth of that with --objective dpo" in help_of("train")


def check_rates(said: str, rates: Any, share: float) -> None:
    """Compare the number that stands before each method with its rate."""
    for method, rate in rates.items():
        if method != "multitask":  # of several prompts
            before = said[: said.rindex(method)]
            [*_, number] = re.findall(r"\d[\d.]*(?:e-\d)?", before)
            assert float(number) == pytest.approx(rate * share), method
