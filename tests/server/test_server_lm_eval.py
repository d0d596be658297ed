"""lm-eval's API model against the server, unmodified."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import oracle
import pytest
import serving
import torch
from serving import config, expected, fill, running, tiny_backbone

from foreword.prompt.store import Store
from foreword.server.server import Server

models = pytest.importorskip("lm_eval.models.openai_completions")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    directory: Path = tmp_path_factory.mktemp("lm_eval")
    backbone, store = tiny_backbone(), Store(directory / "store")
    prompts = fill(store, backbone, directory)
    serving.TOKENIZER.save_pretrained(directory / "tokenizer")
    with running(Server(backbone, store, config())) as address:
        model = models.LocalCompletionsAPI(
            model="a",
            base_url=f"{address}/v1/completions",
            tokenizer=str(directory / "tokenizer"),
            tokenizer_backend="huggingface",
            max_length=200,
            batch_size=4,
        )
        yield SimpleNamespace(model=model, backbone=backbone, prompt=prompts["a"])


def asked(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments, arguments=arguments, task_name="t", doc_id=0)


@pytest.mark.filterwarnings("ignore")
def test_log_likelihoods_are_the_oracles(world: Any) -> None:
    pairs = [("one two", " three"), ("say", " yes"), ("a b c", " d")]
    found = world.model.loglikelihood([asked(*pair) for pair in pairs])
    for (context, rest), (logprob, is_greedy) in zip(pairs, found, strict=True):
        before = len(serving.TOKENIZER(context)["input_ids"])
        ids = torch.tensor(serving.TOKENIZER(context + rest)["input_ids"])
        logits = oracle.row_logits(world.backbone.model, world.prompt, ids)[before - 1 : -1]
        own = logits.log_softmax(-1).gather(1, ids[before:, None])
        assert logprob == pytest.approx(own.sum().item(), abs=1e-4)
        assert is_greedy == bool((logits.argmax(-1) == ids[before:]).all())


@pytest.mark.filterwarnings("ignore")
def test_generations_are_the_oracles(world: Any) -> None:
    until = {"until": ["never"], "max_gen_toks": 9, "do_sample": False, "temperature": 0}
    found = world.model.generate_until([asked(text, dict(until)) for text in ("say yes", "hi")])
    assert found == [expected(world.backbone, world.prompt, t, 9) for t in ("say yes", "hi")]


@pytest.mark.filterwarnings("ignore")
def test_generations_of_conversations_are_the_oracles(world: Any) -> None:
    model = models.LocalChatCompletion(
        model="a", base_url=world.model.base_url.replace("completions", "chat/completions")
    )
    asked_of = [{"role": "user", "content": "say yes"}]
    context = model.apply_chat_template(asked_of)
    until = {"until": ["never"], "max_gen_toks": 9, "do_sample": False, "temperature": 0}
    found = model.generate_until([asked(context, until)])
    assert found == [expected(world.backbone, world.prompt, asked_of, 9)]
