"""Run the contract on the newest releases that the package index has, whatever constraints say.

    python tests/support/newest.py VENV

Where the index has nothing newer than constraints.txt, the tests of `make test` are these already
and nothing is installed. Otherwise the newest set goes into VENV, except torch, whose build stays.
A failure counts where transformers is in the tested range; beyond it, it is printed loudly: the
next release has changed something, and foreword refuses there what does not hold.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.version import Version

from foreword.compat.releases import NEWEST_TRANSFORMERS

ROOT = Path(__file__).parent.parent.parent
TESTS = ["tests/generation/test_contract.py", "tests/verification", "tests/model", "tests/engine"]
WATCHED = ("transformers", "accelerate", "datasets", "gguf", "lm-eval", "openai", "fastapi", "peft")
LOUD = "!" * 100


def main() -> int:
    """Return an exit status: 0 where nothing is newer, or only an untested release fails."""
    venv = Path(sys.argv[1])
    constraints = _constraints()
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "torch.txt"
        pins.write_text(f"torch=={constraints['torch']}\n")
        newest = _newest(Path(folder) / "report.json", pins)
        newer = {
            name: f"{constraints[name]} -> {newest[name]}"
            for name in WATCHED
            if name in newest and Version(newest[name]) > Version(constraints[name])
        }
        if not newer:
            print("the index has nothing newer than constraints.txt: make test covers it")
            return 0
        print("newer than constraints.txt:", ", ".join(f"{k} {v}" for k, v in newer.items()))
        _run(sys.executable, "-m", "venv", str(venv))
        python = str(venv / "bin" / "python")
        install = ("-m", "pip", "install", "-qq", "--upgrade", "--constraint", str(pins))
        _run(python, *install, "--editable", ".[dev]")
    status = subprocess.run([python, "-m", "pytest", "-q", *TESTS], cwd=ROOT).returncode
    if status and Version(newest["transformers"]) >= NEWEST_TRANSFORMERS:
        print(f"{LOUD}\ntransformers {newest['transformers']} breaks the contract:")
        print(f"see the failures above; the tested range ends before it\n{LOUD}")
        return 0
    return status


def _constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if "==" in line]
    return {name.replace("_", "-"): version for name, version in pairs}


def _newest(report: Path, pins: Path) -> dict[str, str]:
    """Return what pip would install without constraints: names and versions."""
    _run(
        *(sys.executable, "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed"),
        *("--report", str(report), "--constraint", str(pins), ".[dev]"),
    )
    found = json.loads(report.read_text())["install"]
    return {
        one["metadata"]["name"].lower().replace("_", "-"): one["metadata"]["version"]
        for one in found
    }


def _run(*command: str) -> None:
    subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "PIP_NO_INPUT": "1"})


if __name__ == "__main__":
    sys.exit(main())
