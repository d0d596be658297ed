"""A run that `checkpoint` holds is gone on with or refused: none is wiped by a second call."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, Row, SoftPrompt, TrainConfig, distill, train
from foreword.errors import InputError
from foreword.training.checkpoint import STATE_FILE, read_state
from foreword.training.rewarded import reward
from foreword.training.rewards import RewardFunction
from foreword.training.seeds import train_seeds

ROWS = [Row.from_ids([5, 6, 7 + number], [9, 2]) for number in range(4)]
CONFIG = TrainConfig(form="key_values", num_virtual_tokens=4, num_steps=2, batch_size=2)
QUESTIONS = [{"prompt": f"say {word}"} for word in "abcd"]
TEXT = "The lamp is red. The door is blue. The oven is hot. " * 3


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    tokenizer = tiny_tokenizer()
    size = len(tokenizer)
    return Backbone(tiny_models.build("llama", dtype=torch.float32, vocab_size=size), tokenizer)


def _trains(backbone: Backbone, folder: Path, **options: Any) -> Iterator[Any]:
    return train(backbone, ROWS, CONFIG, checkpoint=folder, **options)


def _distills(backbone: Backbone, folder: Path, **options: Any) -> Iterator[Any]:
    asked = ["what is red?", "what is blue?", "what is hot?"]
    return distill(backbone, TEXT, asked, CONFIG, checkpoint=folder, **options)


def _rewards(backbone: Backbone, folder: Path, **options: Any) -> Iterator[Any]:
    start = SoftPrompt.from_embeddings(torch.ones(4, 32))
    function = RewardFunction("ones", lambda prompts, completions: [1.0] * len(prompts))
    training = TrainConfig(num_steps=2, batch_size=2)
    return reward(
        backbone, start, function, QUESTIONS, training=training, checkpoint=folder, **options
    )


RUNS = {"train": _trains, "distill": _distills, "reward": _rewards}


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("begin", RUNS.values(), ids=RUNS)
def test_a_run_is_not_begun_over(
    backbone: Backbone, tmp_path: Path, begin: Callable[..., Any], num_steps: int
) -> None:
    events = begin(backbone, tmp_path)
    for _ in range(num_steps):
        next(events)
    events.close()
    before = (tmp_path / STATE_FILE).read_bytes()
    found = "a finished run of 2" if num_steps == 2 else "a run that stopped at step 1"
    with pytest.raises(InputError, match=f"{tmp_path} holds {found}.* by resume=True, .* remove"):
        begin(backbone, tmp_path)
    assert (tmp_path / STATE_FILE).read_bytes() == before
    *_, last = begin(backbone, tmp_path, resume=True)
    assert last.step == 2


def test_a_run_without_a_step_is_begun_again(backbone: Backbone, tmp_path: Path) -> None:
    for _ in range(2):
        _trains(backbone, tmp_path)
    assert len(list(_trains(backbone, tmp_path))) == 2


def test_what_is_there_is_cleared_once_all_is_checked(backbone: Backbone, tmp_path: Path) -> None:
    state = tmp_path / STATE_FILE
    list(_trains(backbone, tmp_path))
    wrong = Row.from_ids([5, 999_999], [2])
    with pytest.raises(InputError):
        train(backbone, [wrong], CONFIG, checkpoint=tmp_path, clear=state.unlink)
    assert read_state(state).progress().is_finished
    list(_trains(backbone, tmp_path, resume=True, clear=state.unlink))
    assert read_state(state).progress().is_finished
    _trains(backbone, tmp_path, clear=state.unlink)
    assert read_state(state).progress().step == 0


def test_seeds_are_cleared_before_the_first(backbone: Backbone, tmp_path: Path) -> None:
    cleared = []
    runs = train_seeds(
        backbone, ROWS, CONFIG, 2, validation=ROWS[:1], folder=tmp_path,
        clear=lambda: cleared.append(sorted(tmp_path.rglob(STATE_FILE))),
    )  # fmt: skip
    for one in runs:
        list(one.events)
    assert cleared == [[]]


UNBEGUN = """
import sys, torch, tiny_models
from foreword import Backbone, Row, TrainConfig, train
rows = [Row.from_ids([5, 6, 7], [9, 2])]
base = Backbone(tiny_models.build("llama", dtype=torch.float32))
events = train(base, rows, TrainConfig(form="embeddings", num_steps=2), checkpoint=sys.argv[1])
"""


@pytest.mark.parametrize("begun", ["", "next(events)\n"])
def test_events_that_nobody_ends_release_their_folder(tmp_path: Path, begun: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNBEGUN + begun, str(tmp_path)],
        capture_output=True, text=True, check=True,
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "ignored" not in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
    assert read_state(tmp_path / STATE_FILE).progress().step == bool(begun)


def test_events_that_nobody_has_any_more_release_their_folder(
    backbone: Backbone, tmp_path: Path
) -> None:
    events = _trains(backbone, tmp_path)
    del events
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]
