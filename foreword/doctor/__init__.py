"""Diagnostics: what `foreword doctor` finds of versions, a model, fast against slow, and PEFT.

In: a backbone, a prompt, a directory; for the versions nothing. Out: lists of `Finding`s, their
JSON and an exit status. Prints, changes and downloads nothing, and remembers no result. What needs
a model is imported at first use: versions can be judged where transformers is not right.
"""

from typing import TYPE_CHECKING

from foreword.lazy import lazy_names

if TYPE_CHECKING:
    from foreword.doctor.finding import Finding as Finding
    from foreword.doctor.finding import as_json as as_json
    from foreword.doctor.finding import exit_status as exit_status
    from foreword.doctor.model_report import capabilities_findings as capabilities_findings
    from foreword.doctor.selftest import self_test as self_test
    from foreword.doctor.stock_peft import peft_findings as peft_findings
    from foreword.doctor.versions import SEED_ERROR as SEED_ERROR
    from foreword.doctor.versions import SEED_FAILURE as SEED_FAILURE
    from foreword.doctor.versions import environment as environment
    from foreword.doctor.versions import judge_peft as judge_peft

__getattr__, __dir__ = lazy_names(
    __name__,
    versions="SEED_ERROR SEED_FAILURE environment judge_peft",
    finding="Finding as_json exit_status",
    model_report="capabilities_findings",
    stock_peft="peft_findings",
    selftest="self_test",
)
