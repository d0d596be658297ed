"""Start-up: what is wrong with the names that a command is given is said without torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROWS = "".join(
    json.dumps({"prompt": f"say {letter}", "completion": letter}) + "\n" for letter in "abcdef"
)
# A prompt's values are not read by these, nor a model.
CASES = {
    "prompts list": (0, ""),
    "prompts remove none": (2, "no prompt"),
    "prompts use none@0123": (2, "no prompt"),
    "prompts show none": (2, "no prompt"),
    "prompts alias other none": (2, "no prompt"),
    "train --data none.jsonl --output new": (2, "none.jsonl: no such file"),
    "train --data rows.jsonl --validation none.jsonl --output new": (2, "none.jsonl: no such"),
    "train --data rows.jsonl --model ./none --output new": (2, "'./none' does not exist"),
    "train --data rows.jsonl --init-prompt ./none --output new": (2, "none: no such directory"),
    "train --data rows.jsonl --output new --seeds 0": (2, "--seeds must be at least 1"),
    "distill --data none.jsonl --instruction a --output new": (2, "none.jsonl: no such file"),
    "distill --instruction a --model ./none --output new": (2, "'./none' does not exist"),
    "generate --prompt ./none a": (2, "none: no such directory"),
    "generate --prompt folder a": (2, "folder: no adapter_config.json"),
    "generate --model ./none a": (2, "'./none' does not exist"),
    "generate --model rows.jsonl a": (2, "rows.jsonl is a file"),
    "generate a": (2, "which model?"),
    "chat --model ./none": (2, "'./none' does not exist"),
    "eval --data none.jsonl": (2, "none.jsonl: no such file"),
    "eval --data rows.jsonl --prompt ./none": (2, "none: no such directory"),
    "compare ./none --data rows.jsonl": (2, "none: no such directory"),
    "show ./none": (2, "none: no such directory"),
    "doctor --prompt ./none": (2, "none: no such directory"),
    "export --prompt ./none --to mlx --model ./none --output new": (2, "none: no such directory"),
    "serve ./none": (2, "'./none' does not exist"),
    "serve smollm2-135m --prompts none": (2, "none: no such directory"),
}
# In one process: what is imported stays, so that the first that imports torch is told.
PROGRAM = """
import contextlib, io, json, sys
from foreword.cli import main
for case in sys.argv[1:]:
    said = io.StringIO()
    sys.argv = ["foreword", *case.split()]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
    slow = [name for name in ("torch", "transformers", "numpy") if name in sys.modules]
    print(json.dumps([case, code, said.getvalue().strip(), slow]))
"""


def test_what_is_not_there_is_said_without_torch(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "folder").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *CASES],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [case for case, *_ in lines] == list(CASES)
    for case, code, said, slow in lines:
        assert (code, slow) == (CASES[case][0], []), (case, said)
        assert CASES[case][1] in said and len(said.splitlines()) <= 1, (case, said)
    assert not (tmp_path / "new").exists()


def test_a_folder_of_a_prompt_and_names_of_the_hub_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from foreword.cli import early

    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "checkpoint-300").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-300" / "adapter_config.json").write_text("{}")
    (tmp_path / "splits" / "test").mkdir(parents=True)
    (tmp_path / "splits" / "test" / "rows.jsonl").write_text(ROWS)
    early.check(
        data=["splits", "splits/test", "splits:test", "owner/name:test", "hub:owner/name", None],
        prompts=["run", "owner/name", None],
        model="owner/name",
    )
