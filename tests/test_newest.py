"""The run on newer releases says loudly what breaks, and fails for what should hold."""

import subprocess
from pathlib import Path
from typing import Any

import newest
import pytest

from foreword.compat.releases import NEWEST_TRANSFORMERS


@pytest.mark.parametrize(
    ("transformers", "tests", "status", "said"),
    [
        (None, 1, 0, "nothing newer than constraints.txt"),
        (f"{NEWEST_TRANSFORMERS.major + 1}.0.0", 1, 0, "breaks the contract"),
        (f"{NEWEST_TRANSFORMERS.major + 1}.0.0", 0, 0, "newer than constraints.txt: transformers"),
        ("tested", 1, 1, "newer than constraints.txt: transformers"),
    ],
)
def test_the_status_of_a_run(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    transformers: str | None,
    tests: int,
    status: int,
    said: str,
) -> None:
    known = newest._constraints()
    found = {"transformers": transformers or known["transformers"]}
    if transformers == "tested":  # a later patch of the newest tested release
        major, minor = NEWEST_TRANSFORMERS.major, NEWEST_TRANSFORMERS.minor - 1
        found["transformers"] = f"{major}.{minor}.99"
    monkeypatch.setattr(newest, "_newest", lambda report, pins: found)
    monkeypatch.setattr(newest, "_run", lambda *command: None)

    def run(command: list[str], **options: Any) -> Any:
        return subprocess.CompletedProcess(command, tests)

    monkeypatch.setattr(newest.subprocess, "run", run)
    monkeypatch.setattr(newest.sys, "argv", ["newest.py", str(tmp_path / "venv")])
    assert newest.main() == status
    assert said in capsys.readouterr().out
