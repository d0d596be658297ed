"""The example that trains a prompt to call tools and serves it, with two steps and two rows."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "tool_calls.py"


def test_the_example_trains_serves_and_asks(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "2", "2"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for expected in ("bare model", "prompt, served", "a call required", "Next:"):
        assert expected in done.stdout
    assert (tmp_path / "runs" / "tool-calls" / "prompt").is_dir()
