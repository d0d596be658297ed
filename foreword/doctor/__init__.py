"""What `foreword doctor` finds: versions, a model's parts, fast against slow, what PEFT does.

In: a backbone, a prompt, a directory; for the versions nothing. Out: lists of `Finding`s, their
JSON and an exit status. Nothing is printed, changed or downloaded, and no result is remembered.
What needs a model is imported at first use: versions can be judged where transformers is not right.
"""

import importlib
from typing import TYPE_CHECKING, Any

from foreword.doctor.finding import Finding, as_json, exit_status
from foreword.doctor.versions import SEED_FAILURE, environment, judge_peft

if TYPE_CHECKING:
    from foreword.doctor.model_report import capabilities_findings
    from foreword.doctor.selftest import self_test
    from foreword.doctor.stock_peft import peft_findings

_HOMES = {
    "capabilities_findings": "parts",
    "peft_findings": "stock_peft",
    "self_test": "selftest",
}
__all__ = [
    "SEED_FAILURE",
    "Finding",
    "as_json",
    "capabilities_findings",
    "environment",
    "exit_status",
    "judge_peft",
    "peft_findings",
    "self_test",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'foreword.doctor' has no attribute {name!r}")
    return getattr(importlib.import_module(f"foreword.doctor.{_HOMES[name]}"), name)
