"""The demo goes on where it was interrupted: killed before a validation, after one, stopped."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

ROOT = Path(__file__).parents[2]
# The script itself over a tiny model and a few rows; what comes after the training is left out.
PROGRAM = """
import importlib.util, json, os, sys
from dataclasses import replace
from foreword.demo.home_commands import HomeCommands
script, model, at, number, steps = sys.argv[1:]
spec = importlib.util.spec_from_file_location("demo", script)
demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo)
demo.MODEL, plain = model, demo.train
demo.CONFIG = demo.TrainConfig(
    num_virtual_tokens=4, init="vocabulary", batch_size=4, eval_every=20, save_every=10,
    num_steps=int(steps),
)
command = demo.Command("turn on the lamp", "{}", "turn on the lamp")
rows = [replace(command, text=f"turn on lamp {number}") for number in range(16)]
demo.home_commands = lambda *given, **options: HomeCommands(rows[:12], rows[12:14], rows[14:])
demo.compare = lambda *given: []
demo.show_examples = lambda *given: None

def train(*given, **options):
    events = plain(*given, **options)
    def watched():
        for event in events:
            print(json.dumps(["step", event.step]), flush=True)
            if event.step == int(at):
                os.kill(os.getpid(), int(number))
            yield event
    return watched()

demo.train = train
demo.main(int(steps), 4)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    directory, tokenizer = tmp_path_factory.mktemp("model"), tiny_tokenizer()
    made = tiny_models.build("llama", dtype=torch.float32, vocab_size=len(tokenizer))
    made.config.max_position_embeddings = 2048
    made.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def life(folder: Path, model: str, at: int, number: int, steps: int = 30) -> Any:
    """Run the demo, which gets a signal after a step; return its exit code, steps and words."""
    script = str(ROOT / "examples" / "home_commands.py")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, script, model, str(at), str(number), str(steps)],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    lines = done.stdout.splitlines()
    return (
        done.returncode,
        [json.loads(x)[1] for x in lines if x.startswith('["step"')],
        done.stdout,
    )


def test_killed_before_and_after_the_first_validation_it_goes_on(
    model: str, tmp_path: Path
) -> None:
    code, steps, _ = life(tmp_path, model, 13, 9)
    assert code == -9 and steps == list(range(1, 14))
    code, steps, _ = life(tmp_path, model, 25, 9)
    assert code == -9 and steps == list(range(11, 26))  # saved at step 10
    code, steps, said = life(tmp_path, model, 0, 0)
    assert code == 0 and steps == list(range(21, 31)) and "Next:" in said
    code, steps, said = life(tmp_path, model, 0, 0)  # it has ended: nothing is trained again
    assert code == 0 and steps == [30]
    code, steps, said = life(tmp_path, model, 0, 0, steps=2)  # another run
    assert code == 0 and steps == [1, 2] and "begins anew: " in said


def test_stopped_by_control_c_it_says_so_and_goes_on(model: str, tmp_path: Path) -> None:
    code, steps, said = life(tmp_path, model, 3, 2)
    assert code == 130 and steps == [1, 2, 3] and "make demo goes on" in said
    code, steps, _ = life(tmp_path, model, 0, 0)
    assert code == 0 and steps == list(range(4, 31))
