"""What the tests of the command line share: a tiny model on disk, rows, and one-line errors."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
from tiny_tokenizer import tiny_tokenizer

from foreword.cli import main


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_models.save_base(tmp_path_factory.mktemp("model"), tiny_tokenizer())


@pytest.fixture
def data(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"say {word}", "completion": word} for word in "abcdefghij"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must end in one line; return the line."""

    def run(*arguments: str, code: int | None = 2) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["foreword", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines and lines[-1].startswith("error: "), lines
        errors = [line for line in lines if not line.startswith("metrics: ")]
        assert len(errors) == 1, lines
        assert code is None or stopped.value.code == code, (stopped.value.code, lines)
        return lines[-1]

    return run
