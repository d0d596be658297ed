"""Diagnostics: what `foreword doctor` finds of versions, a model, fast against slow, and PEFT.

In: a backbone, a prompt, a directory; for the versions nothing. Out: lists of `Finding`s, their
JSON and an exit status. Prints, changes and downloads nothing, and remembers no result. What needs
a model is imported at first use: versions can be judged where transformers is not right.
"""

from typing import TYPE_CHECKING

from foreword.lazy import lazy_names

if TYPE_CHECKING:
    from foreword.doctor.finding import Finding, as_json, exit_status
    from foreword.doctor.model_report import capabilities_findings
    from foreword.doctor.selftest import self_test
    from foreword.doctor.stock_peft import peft_findings
    from foreword.doctor.versions import SEED_FAILURE, environment, judge_peft

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

_MODULES = {
    "SEED_FAILURE": "versions",
    "Finding": "finding",
    "as_json": "finding",
    "capabilities_findings": "model_report",
    "environment": "versions",
    "exit_status": "finding",
    "judge_peft": "versions",
    "peft_findings": "stock_peft",
    "self_test": "selftest",
}
__getattr__, __dir__ = lazy_names(__name__, _MODULES)
