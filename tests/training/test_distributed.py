"""Two processes come to what one comes to; one that dies ends the run, and nothing is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from joined_runs import free_port
from tiny_tokenizer import tiny_tokenizer
from typer.testing import CliRunner

from foreword import SoftPrompt
from foreword.cli import app
from foreword.errors import TrainingError
from foreword.training.distributed import Ranks

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Train alone and together in every way, once for all tests."""
    script = Path(__file__).parents[1] / "support" / "joined_runs.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path_factory.mktemp("joined"))],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=600,  # processes that wait for each other would wait forever
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check_equal(
    alone: dict[str, Any], together: list[dict[str, Any]], tolerance: float = 1e-6
) -> None:
    assert [one["num_processes"] for one in together] == [2, 2]
    assert together[0]["hash"] == together[1]["hash"], "every process ends with the same prompt"
    assert together[0]["exact"] == alone["exact"]
    assert together[0]["agreement"] == alone["agreement"]
    for name in ("values", "losses", "validation"):
        assert together[0][name] == pytest.approx(alone[name], rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("form", ["embeddings", "key_values"])
def test_two_processes_come_to_what_one_does(runs: Any, form: str, dtype: str) -> None:
    # In float32, sums over other rows are rounded otherwise, and the optimizer divides by them.
    tolerance = 1e-6 if dtype == "float64" else 1e-5
    check_equal(runs[f"one {form} {dtype}"][0], runs[f"two {form} {dtype}"], tolerance)


@pytest.mark.parametrize("method", ["residual", "multitask", "context-tuning"])
def test_two_processes_learn_by_every_method_what_one_does(runs: Any, method: str) -> None:
    check_equal(runs[f"one {method}"][0], runs[f"two {method}"])
    assert method != "residual" or "learning rate" in runs["two residual"][0]["notices"][0]


def test_several_prompts_are_read_through_a_sharded_base(runs: Any) -> None:
    check_equal(runs["one multitask"][0], runs["sharded multitask"])


@pytest.mark.parametrize("how", ["two", "sharded"])
def test_pairs_and_their_reference_are_shared_out(runs: Any, how: str) -> None:
    check_equal(runs["one pairs"][0], runs[f"{how} pairs"])


def test_two_processes_draw_answers_that_both_know(runs: Any) -> None:
    (one, other), again = runs["rewards"], runs["rewards again"]
    assert one == other == again[0] and one["num_processes"] == 2
    assert len({*one["rewards"]}) == 3 and one["validation"] is not None


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
def test_a_sharded_base_comes_to_what_a_whole_one_does(runs: Any, form: str) -> None:
    check_equal(runs[f"one {form} float64"][0], runs[f"sharded {form}"])
    assert runs[f"sharded {form}"][0]["share_of_base"] < 0.65


def test_a_sharded_base_recomputes_its_layers(runs: Any) -> None:
    check_equal(runs["one embeddings float64"][0], runs["sharded recomputed"])


def test_a_process_that_dies_ends_the_run_with_an_error(runs: Any) -> None:
    survivor, dead = runs["dies"]
    assert dead is None
    assert "process 0 of 2 lost another one of them" in survivor["error"]
    assert "go on with --resume" in survivor["error"]


@pytest.mark.parametrize(
    ("says", "said"),
    [
        ("", "(RuntimeError)"),
        ("[gloo/pair.cc:1] Closed by peer. Aborting\nat x", "(Closed by peer)"),
    ],
)
def test_an_error_of_the_other_processes_is_one_line(
    says: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: torch.Tensor) -> None:
        raise RuntimeError(says)

    monkeypatch.setattr(torch.distributed, "all_reduce", fail)
    with pytest.raises(TrainingError) as caught:
        Ranks(0, 2).add_up([torch.zeros(2)])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_a_dead_process_left_is_resumed(runs: Any) -> None:
    assert runs["resumed"][0]["steps"] == [3, 4, 5, 6]
    assert runs["resumed"][0]["hash"] == runs["two key_values float64"][0]["hash"]


def test_processes_that_were_given_different_things_are_refused(runs: Any) -> None:
    for one in runs["apart"]:
        assert "the 2 processes of the run differ in data, options or training" in one["error"]


def test_every_process_takes_as_many_passes_as_the_others() -> None:
    rows = list(range(7))
    shares = [Ranks(rank, 3).micro_batches(rows, 2) for rank in range(3)]
    assert shares == [[[0, 3], [6]], [[1, 4], []], [[2, 5], []]]
    assert sorted(row for share in shares for part in share for row in part) == rows


@pytest.mark.parametrize("kind", [["--cpu"], ["--use_fsdp", "--fsdp_version", "2"]])
def test_the_command_runs_under_accelerate_launch(tmp_path: Path, kind: list[str]) -> None:
    model, data = str(tmp_path / "model"), tmp_path / "rows.jsonl"
    tokenizer = tiny_tokenizer()
    built = tiny_models.build(
        "llama", dtype=torch.float32, vocab_size=len(tokenizer), eos_token_id=2
    )
    built.save_pretrained(model), tokenizer.save_pretrained(model)
    rows = [{"prompt": f"say {word}", "completion": word} for word in "abcdefghij"]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["train", "--model", model, "--data", str(data), "--num-virtual-tokens", "4",
               "--num-steps", "3", "--batch-size", "5", "--output"]  # fmt: skip
    alone = CliRunner().invoke(app, [*command, str(tmp_path / "alone")], catch_exceptions=False)
    assert alone.exit_code == 0
    together = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *kind, "--num_processes", "2",
         "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no",
         "--main_process_port", str(free_port()), "-m", "foreword", *command,
         str(tmp_path / "together")],
        capture_output=True, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert together.returncode == 0, together.stderr
    assert together.stdout.count("saved to") == 1, "one process speaks for all"
    one, two = (SoftPrompt.load(tmp_path / name) for name in ("alone", "together"))
    for ours, theirs in zip(two.tensors, one.tensors, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
