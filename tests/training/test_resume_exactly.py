"""A run that is stopped and resumed ends bit for bit as one left alone, by every method."""

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import seq2seq_models
import tiny_models
import torch
from stopped_runs import events_until
from test_methods import ROWS, VARIANTS, config
from torch import Tensor

from foreword import Backbone, SoftPrompt, TrainEvent, train
from foreword.training import step
from foreword.training.checkpoint import STATE_FILE, read_state
from foreword.training.methods.method import Method
from foreword.training.start import begin
from foreword.training.state import TrainState

# What a run may begin with: the option's own start, or a prompt that lies in memory otherwise.
STARTS = ("own", "transposed")
# One head for keys and values; layers that recur; layers that differ in shape, or keep nothing.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "one head": ("llama", {"num_key_value_heads": 1}),
    "recurrent": ("falcon_h1", {}),
    "latent": ("deepseek_v3", {}),
    "shared layers": ("gemma3n", {}),
}
CASES = [
    *((shape, variant) for shape in ("llama", "one head") for variant in VARIANTS),
    *(
        (shape, variant)
        for shape in ("recurrent", "latent", "shared layers", "encoder")
        for variant in ("prompt-tuning", "prefix-tuning")
    ),
]
STOPS = (1, 2, 5)


@functools.cache
def base(shape: str) -> Backbone:
    if shape == "encoder":
        return Backbone(seq2seq_models.build("t5").float())
    family, changes = SHAPES[shape]
    return Backbone(tiny_models.build(family, dtype=torch.float32, **changes))


def initial(backbone: Backbone, variant: str, start: str) -> SoftPrompt | None:
    """Return a prompt whose memory is not in the order of its dimensions."""
    if start == "own":
        return None
    num_virtual = config(variant).num_virtual
    values = backbone.embed(torch.arange(3, 3 + num_virtual)).float().T.contiguous().T
    return SoftPrompt.from_embeddings(values)


def run(
    shape: str, variant: str, start: str, folder: Path, stop: int = 0, **changes: Any
) -> list[TrainEvent]:
    """Train from wherever the folder's state stands, up to a step."""
    backbone = base(shape)
    # Clipping lets a norm's last bit reach every value; every step is validated and kept.
    options = config(variant, max_grad_norm=1e-3, eval_every=1, save_every=1, **changes)
    events = train(
        backbone, ROWS, options, validation=ROWS[:2], checkpoint=folder, resume=True,
        initial=initial(backbone, variant, start),
    )  # fmt: skip
    return events_until(events, stop)


def curves(events: list[TrainEvent]) -> list[tuple[Any, ...]]:
    return [(e.step, e.loss, e.gradient_norm, e.learning_rate, e.validation) for e in events]


def bits(folder: Path) -> dict[str, bytes]:
    tensors = read_state(folder / STATE_FILE).tensors
    return {name: value.numpy().tobytes() for name, value in tensors.items()}


def said(folder: Path) -> dict[str, Any]:
    """Return what a state file says beside its tensors, the clock's word left out."""
    facts = dict(read_state(folder / STATE_FILE).facts)
    facts["progress"] = facts["progress"] | {"seconds": 0.0, "latest": 0.0}
    facts["facts"] = facts["facts"] | {"created": ""}
    return facts


@pytest.mark.parametrize(
    ("shape", "variant", "start"),
    [(*case, start) for case in CASES for start in STARTS],
)
def test_a_run_stopped_again_and_again_is_the_same_run(
    shape: str, variant: str, start: str, tmp_path: Path
) -> None:
    calm, left = tmp_path / "calm", tmp_path / "left"
    whole = run(shape, variant, start, calm)
    parts = [event for stop in (*STOPS, 0) for event in run(shape, variant, start, left, stop)]
    assert curves(parts) == curves(whole) and len(parts) == 6
    assert bits(left) == bits(calm)
    assert said(left) == said(calm)
    last, theirs = ({"": events[-1].prompt, **events[-1].task_prompts} for events in (parts, whole))
    for name, prompt in theirs.items():
        assert prompt is not None and last[name].content_hash == prompt.content_hash


@pytest.mark.parametrize("variant", ["prefix-tuning", "residual"])
def test_a_run_that_went_back_is_the_same_run(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 5 diverges once in every life that comes to it, so that the good point is taken."""
    calm, left = tmp_path / "calm", tmp_path / "left"
    original, seen = step.check_gradient, set[tuple[Path, int]]()

    def lives(folder: Path, stops: tuple[int, ...]) -> list[TrainEvent]:
        def once(loss: float, norm: float, backbone: Backbone, number: int, **options: Any) -> None:
            if number == 4 and (folder, number) not in seen:
                seen.add((folder, number))
                loss = math.nan
            original(loss, norm, backbone, number, **options)

        monkeypatch.setattr(step, "check_gradient", once)
        return [event for stop in stops for event in run("llama", variant, "own", folder, stop)]

    monkeypatch.setattr("foreword.training.guards.GOOD_EVERY", 2)
    whole, parts = lives(calm, (0,)), lives(left, (1, 3, 0))
    assert curves(parts) == curves(whole)
    assert bits(left) == bits(calm) and said(left)["progress"]["num_returns"] == 1


def memory(tensors: list[Tensor]) -> list[tuple[tuple[int, ...], int, int]]:
    """Return how tensors lie: strides, offset, and distance from a cache line's start in bytes."""
    return [(one.stride(), one.storage_offset(), one.data_ptr() % 64) for one in tensors]


def moments(state: TrainState) -> list[Tensor]:
    return [one for leaf in state.optimizer.state.values() for one in leaf.values() if one.ndim]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("shape", "variant"), CASES)
def test_what_is_resumed_lies_in_memory_as_what_was_begun(
    shape: str, variant: str, start: str, tmp_path: Path
) -> None:
    backbone = base(shape)
    run(shape, variant, start, tmp_path, stop=1)
    stored = read_state(tmp_path / STATE_FILE)
    begun = begin(backbone, initial(backbone, variant, start), ROWS, config(variant))
    resumed = stored.method()
    for part in ("tensors", "constants"):
        assert memory(getattr(resumed, part)) == memory(getattr(begun, part))
    dense = [torch.empty(one.shape).stride() for one in begun.tensors]
    assert [one.stride() for one in begun.tensors] == dense
    assert memory(grads(resumed)) == memory(grads(begun))


def grads(method: Method) -> list[Tensor]:
    """Return the gradient of a sum of the prompt's values, as autograd lays it out."""
    torch.stack([tensor.sum() for tensor in method.prompt().tensors]).sum().backward()
    return [one.grad for one in method.tensors if one.grad is not None]


def test_moments_are_resumed_as_they_lie(tmp_path: Path) -> None:
    run("llama", "prefix-tuning", "own", tmp_path, stop=3)
    stored = read_state(tmp_path / STATE_FILE)
    begun, resumed = (
        TrainState(method, torch.optim.AdamW(method.tensors), 1)
        for method in (begin(base("llama"), None, ROWS, config("prefix-tuning")), stored.method())
    )
    resumed.take_over(stored, 1)
    for leaf in begun.method.tensors:
        leaf.grad = torch.ones_like(leaf)
    begun.optimizer.step()
    assert memory(moments(resumed)) == memory(moments(begun))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_best_prompt_lies_in_memory_as_one_read_from_its_file(
    variant: str, tmp_path: Path
) -> None:
    last = run("llama", variant, "own", tmp_path, num_steps=2)[-1].prompt
    assert last is not None
    stored = read_state(tmp_path / STATE_FILE).best()
    assert stored is not None and memory(stored.tensors) == memory(last.tensors)


def test_equal_prompts_compile_to_the_same_memory() -> None:
    generator = torch.Generator().manual_seed(0)
    dense = [torch.randn(2, 4, 8, generator=generator) for _ in range(6)]
    turned = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in dense]
    ours, theirs = (
        Backbone(tiny_models.build("llama", dtype=torch.float32)).compile(
            SoftPrompt("key_values", tensors)
        )
        for tensors in (dense, turned)
    )
    assert ours.content_hash == theirs.content_hash
    assert memory(ours.cached.tensors) == memory(theirs.cached.tensors)


@pytest.mark.parametrize("copied", ["detached", "trainable"])
def test_a_copy_of_a_prompt_is_in_row_major_order(copied: str) -> None:
    turned = SoftPrompt.from_embeddings(torch.arange(12.0).view(4, 3).T)
    (copy,) = getattr(turned, copied)().tensors
    assert copy.stride() == (4, 1) and torch.equal(copy, turned.embeddings)
