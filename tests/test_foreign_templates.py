"""A prompt whose rows were written by another chat template is refused by every way that writes
rows, and taken where none is needed.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_models
import pytest
import tiny_models
import torch
from own_cache import cache as cache
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, Example, SoftPrompt, chat
from foreword.config import DistillConfig
from foreword.distillation import agreement
from foreword.distillation.composition import compose
from foreword.errors import MismatchError
from foreword.evaluation.ensembles import averaged, vote
from foreword.evaluation.evaluation import Subject, evaluate
from foreword.evaluation.metrics import METRICS
from foreword.export import checkpoint, gguf_rows, mlx_cache
from foreword.model.base_model import Base, fingerprint_of, shapes_of_config
from foreword.prompt.store import Store
from foreword.server.catalog import Catalog

EXAMPLES = [Example("a", "b", "rows:1")]
LOSS = (METRICS["loss"],)
Route = Callable[[Backbone, SoftPrompt, Path], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base as a checkpoint and as a GGUF file."""
    folder, tokenizer = tmp_path_factory.mktemp("base"), tiny_tokenizer()
    model = tiny_models.build(
        "llama", dtype=torch.float32, vocab_size=len(tokenizer), eos_token_id=2
    )
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    gguf_models.write(folder / "base.gguf", model, tokenizer)
    return folder


def foreign(backbone: Backbone, **encoding: Any) -> SoftPrompt:
    facts = {
        "base": {"name": "base", "fingerprint": backbone.fingerprint()},
        "tokenizer": {**(backbone.tokenizer_facts() or {}), "chat_template": "0" * 64},
        "encoding": {"is_text": False, **encoding},
    }
    return SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 4), facts=facts)


def _subject(prompt: SoftPrompt) -> Subject:
    return Subject("soft prompt", prompt=prompt)


def _lm_eval(backbone: Backbone, prompt: SoftPrompt, folder: Path) -> None:
    harness = pytest.importorskip("foreword.evaluation.lm_eval", exc_type=ImportError)
    prompt.save(folder / "lm_eval")
    harness.ForewordLM(
        base=str(folder / "base"), prompt=str(folder / "lm_eval"), encoding="own", device="cpu"
    )


def _llama_state(backbone: Backbone, prompt: SoftPrompt, folder: Path) -> None:
    pytest.importorskip("xllamacpp")
    from foreword.export import llama_state

    llama_state.export(prompt, folder / "base.gguf", folder / "new.bin")


def _served(model: Any, prompt: SoftPrompt, folder: Path) -> None:
    store = Store(folder / "store")
    if not (folder / "store").exists():
        prompt.save(folder / "served")
        store.add("p", folder / "served")
    Catalog(model, store, "base").load("p")


def _vllm(backbone: Backbone, prompt: SoftPrompt, folder: Path) -> None:
    config, name = backbone.model.config, str(folder / "base")
    facts = backbone.tokenizer_facts()
    shapes = shapes_of_config(config)
    base = Base("base", config.hidden_size, shapes, fingerprint_of(name), tokenizer=facts)
    _served(base, prompt, folder)


ROUTES: dict[str, Route] = {
    "checkpoint": lambda b, p, f: checkpoint.export({"p": p}, str(f / "base"), f / "new"),
    "gguf": lambda b, p, f: gguf_rows.export({"p": p}, str(f / "base.gguf"), f / "new.gguf"),
    "llama-state": _llama_state,
    "mlx": lambda b, p, f: mlx_cache.export(p, str(f / "base"), f / "new.safetensors"),
    "lm-eval": _lm_eval,
    "loss": lambda b, p, f: evaluate(b, _subject(p), EXAMPLES, LOSS),
    "choices": lambda b, p, f: evaluate(b, _subject(p), EXAMPLES, LOSS, choices=("b", "c")),
    "members": lambda b, p, f: evaluate(b, Subject("both", members=(p, p)), EXAMPLES, LOSS),
    "vote": lambda b, p, f: list(vote(b, [p], ["a"], max_new_tokens=1)),
    "averaged": lambda b, p, f: list(averaged(b, [p], ["a"], max_new_tokens=1)),
    "a prefix": lambda b, p, f: list(vote(b, [b.compile(p)], ["a"], max_new_tokens=1)),
    "agreement": lambda b, p, f: agreement.compare(b, p, ["a"], [_subject(p)], DistillConfig()),
    "composed": lambda b, p, f: compose(b, p, p),
    "answers": lambda b, p, f: list(chat.answers(b, p, ["a"], max_new_tokens=1)),
    "stream": lambda b, p, f: list(chat.stream(b, p, "a", max_new_tokens=1)),
    "served": _served,
    "vllm": _vllm,
}


@pytest.mark.parametrize("route", ROUTES.values(), ids=ROUTES)
def test_every_way_refuses_a_prompt_of_another_template(route: Route, folder: Path) -> None:
    backbone = Backbone.load(str(folder / "base"))
    with pytest.raises(MismatchError, match="the chat template .* is not that of the prompt's"):
        route(backbone, foreign(backbone), folder)


@pytest.mark.parametrize("name", ["checkpoint", "mlx", "loss", "choices", "vote", "vllm"])
def test_rows_that_need_no_template_are_taken(name: str, folder: Path, tmp_path: Path) -> None:
    backbone = Backbone.load(str(folder / "base"))
    prompt = foreign(backbone, row_template="Q {prompt} A")
    (tmp_path / "base").symlink_to(folder / "base")
    ROUTES[name](backbone, prompt, tmp_path)
