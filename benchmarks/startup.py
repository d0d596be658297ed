"""How long commands take before they do anything, and until they say what is wrong.

    python benchmarks/startup.py [--rounds 5]

Each is a whole process, the median of some rounds: seconds of the clock, and of the processors.
The last lines compare `generate`'s imports with those of torch and one model class of transformers,
which nothing that runs a model can do without.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FLOOR = "import torch; from transformers import LlamaForCausalLM"
GENERATE = (
    "from foreword.backbone import Backbone; from foreword import chat; "
    "from foreword.prompt.soft_prompt import SoftPrompt; from transformers import LlamaForCausalLM"
)
LIMITS = {"prompts": 0.7, "wrong": 1.0}
COMMANDS = {
    "prompts list": "prompts",
    "prompts remove none": "prompts",
    "prompts add home prompt": "prompts",
    "train --data none.jsonl --output new": "wrong",
    "train --data bad.jsonl --output new": "wrong",
    "train --data rows.jsonl --output prompt": "wrong",
    "reward --prompt prompt --data bad.jsonl --reward a:b --output new": "wrong",
    "distill --data bad.jsonl --instruction a --output new": "wrong",
    "eval --data bad.jsonl": "wrong",
    "eval --data none.jsonl": "wrong",
    "generate --prompt ./none text": "wrong",
    "generate --model ./none text": "wrong",
    "serve ./none": "wrong",
}


def seconds(arguments: list[str], folder: str) -> tuple[float, float]:
    """Return the clock's and the processors' seconds of one process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run(arguments, cwd=folder, capture_output=True)
    clock = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return clock, spent


def lay_out(folder: Path) -> None:
    """Make the files that the commands name."""
    import torch

    from foreword import SoftPrompt

    row = '{"prompt": "a", "completion": "b"}\n'
    (folder / "rows.jsonl").write_text(row * 20)
    (folder / "bad.jsonl").write_text(row * 19 + "{\n")
    SoftPrompt.from_embeddings(torch.ones(32, 576)).save(folder / "prompt")


def main(rounds: int) -> None:
    """Measure everything in turn, round by round, and print medians."""
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    )
    calls = {name: [sys.executable, "-m", "foreword", *name.split()] for name in COMMANDS}
    calls["torch and one model class"] = [sys.executable, "-c", FLOOR]
    calls["what generate imports"] = [sys.executable, "-c", GENERATE]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    with tempfile.TemporaryDirectory() as folder:
        lay_out(Path(folder))
        for _ in range(rounds):
            for name, call in calls.items():
                found[name].append(seconds(call, folder))
    print(f"{'':<68} clock  processor  limit")
    spent = {}
    for name, both in found.items():
        clock, spent[name] = (statistics.median(part) for part in zip(*both, strict=True))
        limit = LIMITS.get(COMMANDS.get(name, ""), "")
        print(f"{name:<68} {clock:5.2f}  {spent[name]:9.2f}  {limit}")
    ratio = spent["what generate imports"] / spent["torch and one model class"]
    print(f"generate's imports: {ratio:.2f} times those of torch and one model class (limit 1.5)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    main(parser.parse_args().rounds)
