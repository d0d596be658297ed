"""Distractors: other prompts stand beside the student in some rows, moved, and without gradient."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from test_distill import CONFIG, QUERIES, TEXT, TRAIN, backbone
from test_prompt_contexts import prompt_of

from foreword import Backbone, compose
from foreword.data.batches import collate
from foreword.distillation.distill import distill
from foreword.distillation.distractors import BackboneBeside
from foreword.distillation.lesson import prepare
from foreword.errors import InputError, MismatchError
from foreword.prompt.prefix import Prefix, same_prefix
from foreword.training.loss import score_labels
from foreword.training.packing import packed_decoder

HALF = replace(CONFIG, held_out=0.0, distractor_share=0.5, start="first")


def folder_of(model: Backbone, folder: Path) -> str:
    for name, seed in (("one", 3), ("two", 4)):
        prompt_of(model, 5 + seed, seed).save(folder / name)
    return str(folder)


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_row_beside_another_prompt_is_scored_behind_both(tmp_path: Path, is_packed: bool) -> None:
    model = backbone()
    lesson = prepare(model, TEXT, QUERIES, 6, replace(HALF, distractors=folder_of(model, tmp_path)))
    tasks = [row.task for row in lesson.rows]
    assert sum(map(bool, tasks)) == 4 and {one.split(" ")[0] for one in tasks if one}
    others = {prompt.content_hash: prompt for prompt in
              (prompt_of(model, 5 + seed, seed) for seed in (3, 4))}  # fmt: skip
    view: Backbone = BackboneBeside.of(model, lesson.beside)
    view = packed_decoder.packed(view) if is_packed else view
    student = lesson.start.trainable(torch.float64)
    prefix = Prefix(view.prefill(student), "training")
    batch = collate(lesson.rows, model.padding_id)
    found = score_labels(view, same_prefix(prefix, len(lesson.rows)), batch)
    for index, row in enumerate(lesson.rows):
        whole = lesson.start
        if row.task:
            side, hashed = row.task.split(" ")
            pair = (others[hashed], whole) if side == "before" else (whole, others[hashed])
            whole = compose(model, *pair)
        alone = collate([replace(row, task="")], model.padding_id)
        expected = score_labels(model, same_prefix(model.compile(whole), 1), alone)
        torch.testing.assert_close(found.losses[found.rows == index], expected.losses, atol=1e-6,
                                   rtol=1e-6)  # fmt: skip
    found.losses.sum().backward()  # type: ignore[no-untyped-call]
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in student.tensors)


def test_a_run_with_distractors_goes_on_bit_for_bit_and_not_with_others(tmp_path: Path) -> None:
    model = backbone(torch.float32)
    config = replace(HALF, distractors=folder_of(model, tmp_path / "others"))
    *_, whole = distill(model, prepare(model, TEXT, QUERIES, 6, config), TRAIN)
    run = tmp_path / "run"
    events = distill(model, prepare(model, TEXT, QUERIES, 6, config), TRAIN, checkpoint=run)
    next(events), next(events)
    events.close()
    lesson = prepare(model, TEXT, QUERIES, 6, config)
    *_, last = distill(model, lesson, TRAIN, checkpoint=run, resume=True)
    assert whole.prompt is not None and last.prompt is not None
    assert whole.prompt.content_hash == last.prompt.content_hash
    *_, plain = distill(model, prepare(model, TEXT, QUERIES, 6, replace(config, distractors=None)),
                        TRAIN)  # fmt: skip
    assert plain.prompt is not None and plain.prompt.content_hash != last.prompt.content_hash
    prompt_of(model, 8, 9).save(tmp_path / "others" / "one")
    other = prepare(model, TEXT, QUERIES, 6, config)
    with pytest.raises(InputError, match="rows"):
        list(distill(model, other, TRAIN, checkpoint=run, resume=True))


def test_what_cannot_stand_beside_is_refused_in_a_line(tmp_path: Path) -> None:
    model = backbone()
    (tmp_path / "empty").mkdir()
    foreign = Backbone(tiny_models.build("llama", seed=7, vocab_size=263), model.tokenizer)
    prompt_of(foreign).save(tmp_path / "foreign" / "one")
    prompt_of(model, 240).save(tmp_path / "long" / "one")
    own = folder_of(model, tmp_path / "own")
    cases: tuple[tuple[Any, Any, str], ...] = (
        ({"distractors": str(tmp_path / "none")}, InputError, "no such directory"),
        ({"distractors": str(tmp_path / "empty")}, InputError, "holds no prompts"),
        ({"distractors": str(tmp_path / "foreign")}, MismatchError, "foreign/one: the prompt was"),
        ({"distractors": str(tmp_path / "long")}, InputError, "has 240 virtual tokens, and the"),
        ({"distractors": own, "on_policy": 0.5}, InputError, "exclude each other"),
    )
    for options, error, said in cases:
        with pytest.raises(error, match=said):
            prepare(model, TEXT, QUERIES, 6, replace(HALF, **options))
    with pytest.raises(InputError, match="leave out --form embeddings"):
        prepare(model, TEXT, QUERIES, 6, replace(HALF, distractors=own), form="embeddings")
