"""A default device of the user's, on which nothing is: no tensor is made there unasked."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch
from contract import padded

from foreword import Backbone, Row, SoftPrompt, TrainConfig, train

GREEDY: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False}
IDS, MASK = padded([tiny_models.ids(n) for n in (5, 3)], "right")
TURN = tiny_models.ids(3).repeat(2, 1)
ROWS = [Row(tuple(range(3 + n, 9 + n)), 2, f"row {n}") for n in range(6)]


@pytest.fixture(scope="module", params=["llama", "bamba"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return Backbone(tiny_models.shared(request.param))


def prompts_of(backbone: Backbone) -> list[SoftPrompt]:
    return [SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, n)) for n in (4, 2)]


def logits(backbone: Backbone, prompts: list[SoftPrompt]) -> Any:
    return backbone.logits(prompts, IDS, MASK)


def generate(backbone: Backbone, prompts: list[SoftPrompt]) -> Any:
    return backbone.generate(prompts, IDS, MASK, repetition_penalty=1.3, **GREEDY)


def two_turns(backbone: Backbone, prompts: list[SoftPrompt]) -> Any:
    first = backbone.generate(prompts, IDS, MASK, return_dict_in_generate=True, **GREEDY)
    whole = torch.cat([first.sequences, TURN], 1)
    mask = torch.cat([MASK, MASK.new_ones(2, whole.shape[1] - MASK.shape[1])], 1)
    return backbone.generate(prompts, whole, mask, past_key_values=first.cache, **GREEDY)


def anew(backbone: Backbone, prompts: list[SoftPrompt]) -> Any:
    made = Backbone(backbone.model)
    assert made.fingerprint() == backbone.fingerprint()
    return made.logits(prompts[0], IDS, MASK)


def trained(method: str) -> Callable[[Backbone, list[SoftPrompt]], Any]:
    def run(backbone: Backbone, prompts: list[SoftPrompt]) -> Any:
        options: dict[str, Any] = {"num_steps": 1, "num_virtual_tokens": 4, "init": "random"}
        config = TrainConfig(method=method, **options)  # type: ignore[arg-type]
        *_, last = train(backbone, ROWS, config, validation=ROWS[:2])
        assert last.prompt is not None
        return last.prompt.tensors[0]

    return run


@pytest.mark.parametrize(
    "call",
    [logits, generate, two_turns, anew, *map(trained, ("prompt-tuning", "p-tuning"))],
)
def test_a_default_device_changes_nothing(
    backbone: Backbone, call: Callable[[Backbone, list[SoftPrompt]], Any]
) -> None:
    prompts = prompts_of(backbone)
    expected = call(backbone, prompts)
    with torch.device("meta"):
        found = call(backbone, prompts)
    assert torch.equal(found, expected)
