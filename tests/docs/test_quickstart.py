"""docs/quickstart.md: every block runs, in order, in one folder, and what is served is asked."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TICKETS = ROOT / "examples" / "tickets"
PAGE = (ROOT / "docs" / "quickstart.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SHELLS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
SECONDS = 600


class Reader:
    """Types the page's blocks in one folder, on a tiny model and a free port."""

    def __init__(self, folder: Path, model: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.places = {
            "foreword train": f"foreword train --model {model}",
            "foreword serve smollm2-135m": f"exec foreword serve {model} --port {self.port}",
            '"smollm2-135m"': f'"{model}"',
            ":8000": f":{self.port}",
        }

    def start(self, language: str, code: str) -> subprocess.Popen[str]:
        """Begin a block."""
        for shown, here in self.places.items():
            code = code.replace(shown, here)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return subprocess.Popen(
            [*SHELLS[language], code],
            cwd=self.folder,
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, language: str, code: str) -> str:
        """Run a block to its end; return what it printed."""
        started = self.start(language, code)
        said, complaints = started.communicate(timeout=SECONDS)
        assert started.returncode == 0 and said.strip(), f"{code}\n{complaints}"
        return said

    def wait(self, server: subprocess.Popen[str]) -> None:
        """Wait until the server takes requests."""
        deadline = time.monotonic() + SECONDS
        while server.poll() is None and time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready").close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(server.communicate()[1])


@pytest.fixture(scope="module")
def printed(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path
) -> Iterator[list[tuple[str, str]]]:
    """Run the page from its first block to its last; return each block with what it printed."""
    folder = tmp_path_factory.mktemp("tickets")
    for file in TICKETS.glob("*.csv"):
        shutil.copy(file, folder)
    reader = Reader(folder, tiny_model)
    server, found = None, []
    try:
        for language, code in BLOCKS:
            if code.startswith("foreword serve"):
                server = reader.start(language, code)
                reader.wait(server)
            elif language in SHELLS:
                found.append((code, reader.run(language, code)))
    finally:
        if server is not None:
            server.terminate()
            server.communicate(timeout=60)
    assert server is not None and server.returncode == 0
    yield found


def printed_by(printed: list[tuple[str, str]], words: str) -> str:
    """Return what the one block with these words printed."""
    (said,) = [said for code, said in printed if words in code]
    return said


def test_every_block_that_a_reader_types_is_run(printed: list[tuple[str, str]]) -> None:
    assert {language for language, _ in BLOCKS} == {"sh", "csv", "bash", "python", "text"}
    ran = [code for language, code in BLOCKS if language in SHELLS]
    assert len(printed) == len(ran) - 1  # the server's own block goes on
    (installs,) = [code for language, code in BLOCKS if language == "sh"]
    assert "pip install" in installs


def test_training_and_evaluation_say_what_the_page_shows(printed: list[tuple[str, str]]) -> None:
    assert "saved to my-prompt" in printed_by(printed, "foreword train")
    table = printed_by(printed, "foreword eval")
    assert all(word in table for word in ("bare model", "instruction", "soft prompt", "ece"))


def test_every_route_gives_the_same_answer(printed: list[tuple[str, str]]) -> None:
    by_curl = json.loads(printed_by(printed, "curl"))["choices"][0]["message"]["content"]
    assert printed_by(printed, "from openai").removesuffix("\n") == by_curl


def test_the_rows_that_are_shown_are_the_files_first() -> None:
    (rows,) = [code for language, code in BLOCKS if language == "csv"]
    assert len(rows.splitlines()) >= 10
    assert (TICKETS / "tickets.csv").read_text().startswith(rows)
