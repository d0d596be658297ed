"""The embedded model on vLLM, in float32, against the oracle in the same process as the test."""

from pathlib import Path

import served
import torch

from foreword import Backbone, SoftPrompt
from foreword.prompt.store import Store

NUM_NEW = 8
TEXTS = ("What is the capital of France?", "How do I boil an egg?")


def test_the_embedded_model_answers_as_the_oracle(tmp_path: Path) -> None:
    backbone = Backbone.load("smollm2-135m")
    assert backbone.dtype == torch.float32
    facts = {"base": {"name": backbone.name, "fingerprint": backbone.fingerprint()}}
    ids = torch.randint(100, 40_000, (32,), generator=torch.Generator().manual_seed(0))
    words = SoftPrompt.from_embeddings(backbone.embed(ids).clone(), facts=facts)
    keys = SoftPrompt.from_states(backbone.compile(words).states, facts=facts)
    store = Store(tmp_path / "store")
    prompts = {"base": None, "words": words, "keys": keys}
    for name in ("words", "keys"):
        served.add(store, name, prompts[name], tmp_path)
    has_effect = False
    with served.serving("smollm2-135m", store.directory, tmp_path / "log") as url:
        for text in TEXTS:
            messages = [{"role": "user", "content": text}]
            found = {}
            for name in prompts:
                body = {"model": name, "messages": messages, "max_tokens": NUM_NEW}
                body |= {"temperature": 0, "ignore_eos": True, "return_token_ids": True}
                status, answer = served.post(f"{url}/v1/chat/completions", body)
                assert status == 200, answer
                found[name] = answer["choices"][0]["token_ids"]
                row = answer["prompt_token_ids"]
                assert found[name] == served.expected(backbone.model, prompts[name], row, NUM_NEW)
            assert found["words"] == found["keys"]
            has_effect |= found["words"] != found["base"]
    assert has_effect
