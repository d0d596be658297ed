"""Finding: one result of the doctor, and the exit status of a list of them.

In: names, statuses and details. Out: JSON and an exit status. Knows no model and no version.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["ok", "warning", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what was looked at, in a few words.
        status: "wrong" where results cannot be trusted here; "warning" where something else should
            be known, as what stock PEFT does.
        detail: what was found, in one line.
        cure: what to do, where there is something to do.
    """

    name: str
    status: Status
    detail: str
    cure: str | None = None


def exit_status(findings: Sequence[Finding]) -> int:
    """Return 1 where a finding is "wrong", else 0."""
    return int(any(finding.status == "wrong" for finding in findings))


def as_json(findings: Sequence[Finding], error: Exception | None = None) -> str:
    """Return the findings as a JSON object: the exit status, the list in the order found, and the
    error that ended it early, null where none did.
    """
    status = exit_status(findings)
    if error is not None:
        status = getattr(error, "exit_code", 1)
    report = {
        "exit_status": status,
        "findings": [asdict(finding) for finding in findings],
        "error": None if error is None else str(error) or type(error).__name__,
    }
    return json.dumps(report, indent=2, allow_nan=False)
