"""Nothing is lost: a killed run goes on bit for bit, and no other run is taken for it."""

import dataclasses
import errno
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from foreword import Backbone, Row, SoftPrompt, TrainConfig, TrainEvent, train
from foreword.errors import ArtifactError, InputError, StorageError
from foreword.training import state
from foreword.training.checkpoint import METADATA_NAME, STATE_FILE, StoredState, read_state

ROWS = [
    Row.from_ids(tiny_models.ids(length).tolist(), tiny_models.ids(2, seed=5).tolist())
    for length in (4, 9, 6, 5)
]
CONFIG = TrainConfig(
    form="embeddings", num_virtual_tokens=4, batch_size=3, num_steps=6, eval_every=2,
    learning_rate=0.1,
)  # fmt: skip


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(tiny_models.build("llama", dtype=torch.float32))


def trained(backbone: Backbone, folder: Path | None, **changes: Any) -> list[TrainEvent]:
    config = dataclasses.replace(CONFIG, **changes)
    return list(
        train(backbone, ROWS, config, validation=ROWS[:2], checkpoint=folder, resume=bool(folder))
    )


def stopped(backbone: Backbone, folder: Path, step: int, **changes: Any) -> StoredState:
    """Leave a run after a step; return the state that it left."""
    config = dataclasses.replace(CONFIG, **changes)
    events = train(backbone, ROWS, config, validation=ROWS[:2], checkpoint=folder)
    for event in events:
        if event.step == step:
            events.close()  # type: ignore[attr-defined]
    return read_state(folder / STATE_FILE)


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Kill runs in every way, once for all tests."""
    script = Path(__file__).parents[1] / "support" / "killed_runs.py"
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path_factory.mktemp("lives"))],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
@pytest.mark.parametrize("kind", ["mkstemp", "state", "prompt", "fsync", "replace", "moments"])
def test_a_killed_run_ends_as_one_never_killed(lives: Any, form: str, kind: str) -> None:
    calm = lives[f"{form}: calm"]["hashes"]
    killed = {k: v for k, v in lives.items() if k.startswith(form) and f" {kind} " in k}
    assert killed and sum(life["num_deaths"] for life in killed.values()) >= len(killed)
    assert [name for name, life in killed.items() if life["hashes"] != calm] == []


def test_a_state_file_changes_nothing_of_the_run(backbone: Backbone, tmp_path: Path) -> None:
    without, with_file = trained(backbone, None)[-1], trained(backbone, tmp_path)[-1]
    assert without.prompt.content_hash == with_file.prompt.content_hash


@pytest.mark.parametrize("save_every", [None, 1, 5])
def test_a_run_left_at_any_step_goes_on_from_there(
    backbone: Backbone, tmp_path: Path, save_every: int | None
) -> None:
    calm = trained(backbone, None)
    assert stopped(backbone, tmp_path, 3, save_every=save_every).progress().step == 3
    rest = trained(backbone, tmp_path, save_every=save_every)
    assert [event.step for event in rest] == [4, 5, 6]
    assert [event.loss for event in rest] == [event.loss for event in calm[3:]]
    assert rest[-1].prompt.content_hash == calm[-1].prompt.content_hash


def test_the_saved_history_is_that_of_the_run_never_left(
    backbone: Backbone, tmp_path: Path
) -> None:
    calm = trained(backbone, None)[-1].prompt.facts["history"]
    left = stopped(backbone, tmp_path, 3).result().facts["history"]
    assert left["loss"] == calm["loss"][:3] and left["validation"]["step"] == [2]
    (*_, last) = trained(backbone, tmp_path)
    last.prompt.save(tmp_path)
    assert SoftPrompt.load(tmp_path).facts["history"] == calm
    assert calm["step"] == [1, 2, 3, 4, 5, 6] and calm["validation"]["step"] == [2, 4, 6]


def test_a_finished_run_yields_its_end_again(backbone: Backbone, tmp_path: Path) -> None:
    last = trained(backbone, tmp_path)[-1]
    (again,) = trained(backbone, tmp_path)
    assert again.step == 6 and again.prompt.content_hash == last.prompt.content_hash


def test_best_and_last_are_both_kept(backbone: Backbone, tmp_path: Path) -> None:
    trained(backbone, tmp_path, learning_rate=0.5)
    stored = read_state(tmp_path / STATE_FILE)
    validations = {one.step: one.loss for one in stored.history().validations}
    assert stored.best().facts["metrics"]["step"] == min(validations, key=validations.get)
    assert stored.progress().step == 6


def test_random_states_belong_to_the_state(backbone: Backbone, tmp_path: Path) -> None:
    stopped(backbone, tmp_path, 3)
    expected = torch.rand(3).tolist(), random.random()
    torch.manual_seed(123), random.seed(123)
    next(train(backbone, ROWS, CONFIG, validation=ROWS[:2], checkpoint=tmp_path, resume=True))
    assert (torch.rand(3).tolist(), random.random()) == expected


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 0.2}, "--learning-rate was 0.1, is 0.2"),
        ({"seed": 1}, "--seed was 0, is 1"),
        ({"num_steps": 9}, "--num-steps was 6, is 9"),
        ({"form": "key_values"}, "--form was 'embeddings', is 'key_values'"),
    ],
)
def test_other_options_are_refused_by_name(
    backbone: Backbone, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    stopped(backbone, tmp_path, 3)
    with pytest.raises(InputError, match=named) as refused:
        trained(backbone, tmp_path, **changes)
    assert "\n" not in str(refused.value)


def test_another_base_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    stopped(backbone, tmp_path, 3)
    other = Backbone(tiny_models.build("llama", dtype=torch.float32, seed=1))
    with pytest.raises(InputError, match="the base model differ"):
        trained(other, tmp_path)


@pytest.mark.parametrize(
    ("rows", "held_out", "named"),
    [
        (ROWS[:3], ROWS[:2], "the training rows differ"),
        (ROWS, ROWS[:1], "the validation rows differ"),
        ([*ROWS[:3], Row.from_ids([9, *ROWS[3].input_ids[1:5]], [5, 5])], ROWS[:2], "training"),
    ],
)
def test_other_rows_are_refused(
    backbone: Backbone, tmp_path: Path, rows: list[Row], held_out: list[Row], named: str
) -> None:
    stopped(backbone, tmp_path, 3)
    with pytest.raises(InputError, match=named):
        list(train(backbone, rows, CONFIG, validation=held_out, checkpoint=tmp_path, resume=True))


def test_another_first_prompt_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    stopped(backbone, tmp_path, 3)
    other = SoftPrompt.from_embeddings(torch.ones(4, 32))
    with pytest.raises(InputError, match="the prompt to start from"):
        list(train(backbone, ROWS, CONFIG, validation=ROWS[:2], initial=other,
                   checkpoint=tmp_path, resume=True))  # fmt: skip


def test_another_number_of_threads_is_said(backbone: Backbone, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    stopped(backbone, tmp_path, 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 999)
    first = next(iter(trained(backbone, tmp_path)))
    assert "is 999: the run goes on" in first.notices[0]


def test_fewer_rows_in_a_pass_are_no_other_run(backbone: Backbone, tmp_path: Path) -> None:
    calm = trained(backbone, None)[-1].prompt
    stopped(backbone, tmp_path, 3)
    *_, last = rest = trained(backbone, tmp_path, micro_batch_size=1, gradient_checkpointing=True)
    assert "--micro-batch-size was None, is 1" in rest[0].notices[0]
    assert "--gradient-checkpointing was False, is True" in rest[0].notices[0]
    assert read_state(tmp_path / STATE_FILE).progress().micro_batch_size == 1
    torch.testing.assert_close(last.prompt.embeddings, calm.embeddings, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fails", ["save_file", "fsync", "replace"])
def test_a_full_disk_keeps_the_earlier_state(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    events = train(backbone, ROWS, CONFIG, validation=ROWS[:2], checkpoint=tmp_path)
    next(events), next(events)
    monkeypatch.setattr(state if fails == "save_file" else os, fails, full)
    with pytest.raises(StorageError, match="no space left .* what was there before is kept"):
        list(events)
    monkeypatch.undo()
    assert read_state(tmp_path / STATE_FILE).progress().step == 2
    assert os.listdir(tmp_path) == [STATE_FILE], "no half of a file is left"
    assert trained(backbone, tmp_path)[-1].step == 6


def damage(path: Path, **facts: Any) -> None:
    tensors = load_file(path)
    found = read_state(path).facts | facts
    save_file(tensors, path, metadata={METADATA_NAME: json.dumps(found)})


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"version": 99}, "state version 99"),
        ({"progress": {"step": 1, "other": 2}}, "damaged"),
        ({"progress": None}, "damaged"),
        ({"validations": [[1]]}, "damaged"),
        ({"facts": {"base": 3}}, "damaged|base"),
    ],
)
def test_a_damaged_state_is_refused(
    backbone: Backbone, tmp_path: Path, facts: dict[str, Any], message: str
) -> None:
    stopped(backbone, tmp_path, 3)
    damage(tmp_path / STATE_FILE, **facts)
    with pytest.raises((ArtifactError, InputError), match=message):
        trained(backbone, tmp_path)


def test_a_truncated_state_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    stopped(backbone, tmp_path, 3)
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="a damaged one"):
        trained(backbone, tmp_path)


def test_a_state_that_was_read_is_not_its_file(backbone: Backbone, tmp_path: Path) -> None:
    stored = stopped(backbone, tmp_path, 2)
    before = {name: tensor.clone() for name, tensor in stored.tensors.items()}
    with (tmp_path / STATE_FILE).open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        file.write(b"\x11" * size)
        file.flush()
        assert all(torch.equal(stored.tensors[name], before[name]) for name in before)
        file.truncate(0)  # under tensors that are mapped, this ends the process
    assert all(torch.equal(stored.tensors[name], before[name]) for name in before)


def test_resume_needs_a_directory(backbone: Backbone) -> None:
    with pytest.raises(InputError, match="resume needs checkpoint"):
        list(train(backbone, ROWS, CONFIG, resume=True))


def test_two_runs_do_not_share_a_folder(backbone: Backbone, tmp_path: Path) -> None:
    events = train(backbone, ROWS, CONFIG, validation=ROWS[:2], checkpoint=tmp_path)
    for is_begun in (False, True):
        if is_begun:
            next(events)
        with pytest.raises(StorageError, match=f"{tmp_path}: another run"):
            train(backbone, ROWS, CONFIG, validation=ROWS[:2], checkpoint=tmp_path, resume=True)
    events.close()  # type: ignore[attr-defined]
    assert [event.step for event in trained(backbone, tmp_path)] == [2, 3, 4, 5, 6]
    assert os.listdir(tmp_path) == [STATE_FILE]
