"""A distillation of two processes comes to what one comes to; a killed one goes on bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Distil in every way, once for all tests."""
    script = Path(__file__).parents[1] / "support" / "distilled_runs.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path_factory.mktemp("distilled"))],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=600,  # processes that wait for each other would wait forever
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_two_processes_share_the_answers_and_come_to_what_one_does(runs: Any) -> None:
    [alone], both = runs["one"], runs["two"]
    assert [one["num_processes"] for one in both] == [2, 2]
    assert both[0]["hash"] == both[1]["hash"] and both[0]["files"] == alone["files"]
    assert len(alone["files"]) == 3, "one file for each batch of answers, and nothing beside"
    for name in ("values", "losses"):
        assert both[0][name] == pytest.approx(alone[name], rel=1e-6, abs=1e-6)


def test_two_processes_tell_each_other_their_own_samples(runs: Any) -> None:
    first, again = runs["two of their own"], runs["two of their own again"]
    assert first[0]["hash"] == first[1]["hash"] == again[0]["hash"] != runs["two"][0]["hash"]
    assert first[0]["losses"][:3] == runs["two"][0]["losses"][:3], "the first steps are the same"


def test_a_run_that_is_killed_at_any_moment_goes_on_bit_for_bit(runs: Any) -> None:
    killed = {name: one for name, one in runs.items() if name.startswith("killed: ")}
    calm = killed.pop("killed: calm")
    assert len(killed) == 5
    for name, one in killed.items():
        assert one["num_deaths"] == 1, f"{name}: it was not killed"
        assert one["hash"] == calm["hash"] and one["files"] == calm["files"], name
