"""What `foreword doctor` finds: versions, a model's parts, fast against slow, what PEFT does.

In: a backbone, a prompt, a directory; for the versions nothing. Out: lists of `Finding`s, their
JSON and an exit status. Nothing is printed, changed or downloaded, and no result is remembered.
"""

from foreword.doctor.finding import Finding, as_json, exit_status
from foreword.doctor.parts import capabilities_findings
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
