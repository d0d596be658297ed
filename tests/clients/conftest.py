"""Clients of other projects, unmodified, against a server in a process of its own; only where they
are installed, which is an environment of theirs (`make test-clients`)."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest


def _has_clients() -> bool:
    try:
        return bool(metadata.version("pydantic-ai-slim"))
    except metadata.PackageNotFoundError:
        return False


collect_ignore_glob = [] if _has_clients() else ["test_*"]


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Start the server with the Python that `FOREWORD_PYTHON` names; yield its address."""
    served = Path(__file__).with_name("served.py")
    python = os.environ.get("FOREWORD_PYTHON", sys.executable)
    with subprocess.Popen(
        [python, str(served)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        found = process.stdout.readline().strip()
        assert found.startswith("http://"), found
        yield found
        process.stdin.close()
        assert process.wait(120) == 0
