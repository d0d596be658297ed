"""Numbers that a dtype does not hold are refused wherever a prompt is cast, and never infinite."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch

from foreword import Backbone, SoftPrompt
from foreword.errors import InputError
from foreword.prompt.narrowing import narrowed
from foreword.vllm_plugin.tensor_parallel import part_of

F16, BF16, F32, F64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
LARGE = {F16: 1e5, BF16: 1e39, F32: 1e39}


@pytest.mark.parametrize("dtype", [F16, BF16, F32])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_a_dtype_does_not_hold_is_refused_with_its_end(dtype: Any, sign: int) -> None:
    plain = torch.ones(2, 3, dtype=F64)
    assert torch.equal(narrowed(plain, dtype, "it"), plain.to(dtype))
    plain[1, 2] = sign * LARGE[dtype]
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(InputError, match=rf"holds 1e\+\d+, and it is of {name}, which ends at"):
        narrowed(plain, dtype, "it")
    assert narrowed(plain, F64, "it") is plain


def test_where_gradients_flow_training_looks_itself() -> None:
    learned = torch.full((1, 2), 1e5, requires_grad=True)
    assert not narrowed(learned, F16, "it").isfinite().all()
    with torch.no_grad(), pytest.raises(InputError):
        narrowed(learned, F16, "it")


def of_embeddings(value: float) -> SoftPrompt:
    rows = tiny_models.embeddings(tiny_models.shared("llama"), 3).float()
    rows[1, 2] = value
    return SoftPrompt.from_embeddings(rows)


def of_keys(value: float) -> SoftPrompt:
    base = Backbone(tiny_models.shared("llama"))
    states = base.compile(SoftPrompt.from_embeddings(tiny_models.embeddings(base.model, 3))).cached
    prompt = SoftPrompt.from_states(states.map(lambda one: one.float().clone()))
    prompt.tensors[1][0, 1, 2] = value
    return prompt


def half() -> Backbone:
    return Backbone(tiny_models.build("llama", dtype=F32).half())


IDS = torch.tensor([[5, 6]])
CASTS: dict[str, tuple[Callable[[float], SoftPrompt], Callable[[SoftPrompt], Any]]] = {
    "compiled embeddings": (of_embeddings, lambda one: half().compile(one)),
    "compiled keys": (of_keys, lambda one: half().compile(one)),
    "learned embeddings": (
        lambda value: of_embeddings(value).trainable(), lambda one: half().compile(one)),
    "an answer": (of_embeddings, lambda one: half().generate(one, IDS, max_new_tokens=1)),
    "an answer behind keys": (of_keys, lambda one: half().generate(one, IDS, max_new_tokens=1)),
    "a copy to learn": (of_embeddings, lambda one: one.trainable(F16)),
    "vLLM's cache": (of_keys, lambda one: part_of(one.key_values, [0, 1], slice(0, 2), F16)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASTS)
def test_every_cast_of_a_prompt_is_looked_at(name: str) -> None:
    make, cast = CASTS[name]
    cast(make(2.0))
    with pytest.raises(InputError, match=r"the prompt holds 1e\+05, and .* is of float16"):
        cast(make(1e5))
