"""mlx-lm's prompt cache: mlx-lm itself answers behind the file as the oracle."""

import json
from pathlib import Path
from typing import Any

import oracle
import pytest
import tiny_models
import torch
from safetensors import safe_open
from test_checkpoint import prompt_of, saved

from foreword import Backbone, SoftPrompt
from foreword.chat import encode
from foreword.cli import export as export_command
from foreword.config import EncodingConfig
from foreword.errors import InputError, MismatchError, UnsupportedError
from foreword.export import mlx_cache, rotary_names


def prompts_of(backbone: Backbone) -> dict[str, SoftPrompt]:
    embedded = prompt_of(backbone)
    states = backbone.compile(prompt_of(backbone, 2)).cached
    return {"embeddings": embedded, "keys": SoftPrompt.from_states(states, facts=embedded.facts)}


@pytest.mark.parametrize("form", ["embeddings", "keys"])
def test_the_file_holds_the_prompts_own_cache(form: str, tmp_path: Path) -> None:
    name = saved("llama", tmp_path / "base")
    backbone = Backbone.load(name)
    prompt = prompts_of(backbone)[form]
    mlx_cache.export(prompt, name, tmp_path / "p.safetensors")
    with safe_open(tmp_path / "p.safetensors", "pt") as file:
        metadata, names = file.metadata(), set(file.keys())
        states = backbone.compile(prompt).cached.key_values
        for index, (keys, values) in enumerate(states):
            assert torch.equal(file.get_tensor(f"{index}.0"), keys[None])
            assert torch.equal(file.get_tensor(f"{index}.1"), values[None])
            assert int(file.get_tensor(f"{index}.2")) == 5
    assert len(names) == 3 * len(states)
    told = json.loads(metadata["0.foreword"])
    assert told["content_hash"] == prompt.content_hash
    assert told["base"]["fingerprint"] == backbone.fingerprint()


@pytest.mark.parametrize("kind", ["base", "there", "name", "window", "recurrent"])
def test_what_cannot_be_exported_is_refused(kind: str, tmp_path: Path) -> None:
    output, error = tmp_path / "p.safetensors", InputError
    family = {"window": "gemma3", "recurrent": "mamba2"}.get(kind, "llama")
    name = saved(family, tmp_path / "base")
    prompt = prompt_of(Backbone.load(name))
    if kind in ("window", "recurrent"):
        error = UnsupportedError
    elif kind == "base":
        prompt = prompt_of(Backbone.load(saved("llama", tmp_path / "other", hidden_size=48)))
        error = MismatchError
    elif kind == "there":
        output.write_text("mine")
    else:
        output = tmp_path / "p.bin"
    with pytest.raises(error):
        mlx_cache.export(prompt, name, output)
    assert not output.exists() or output.read_text() == "mine"


def test_the_command_prints_python_that_reads_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = saved("llama", tmp_path / "base")
    prompt = prompts_of(Backbone.load(name))["keys"]
    output = str(tmp_path / "it's [p].safetensors")
    capsys.readouterr()
    export_command._mlx(prompt, name, output)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"wrote {output}: ")
    compile("\n".join(lines), "printed", "exec")
    assert f"load_prompt_cache({output!r})" in "\n".join(lines)
    assert f"load({name!r})" in "\n".join(lines)


def greedy(model: Any, ids: list[int], cache: Any, num_new: int) -> list[int]:
    import mlx.core as mx

    found, given = [], ids
    for _ in range(num_new):
        logits = model(mx.array([given]), cache=cache)
        found.append(int(mx.argmax(logits[0, -1]).item()))
        given = found[-1:]
    return found


@pytest.mark.parametrize("form", ["embeddings", "keys"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_mlx_lm_answers_behind_it(family: str, form: str, tmp_path: Path) -> None:
    pytest.importorskip("mlx.core", reason="make test-export has mlx-lm")
    cache = pytest.importorskip("mlx_lm.models.cache", reason="make test-export has mlx-lm")
    from mlx_lm.utils import load_model

    name = saved(family, tmp_path / "base")
    rotary_names.complete(tmp_path / "base" / "config.json")  # mlx-lm reads rope_theta alone
    backbone = Backbone.load(name)
    prompt = prompts_of(backbone)[form]
    mlx_cache.export(prompt, name, tmp_path / "p.safetensors")
    model, _ = load_model(tmp_path / "base")
    for text in ("say a", "what is the longest of all of them?"):
        turns = [{"role": "user", "content": text}]
        ids = encode(backbone, turns, EncodingConfig.saved({}))[0]
        restored = cache.load_prompt_cache(str(tmp_path / "p.safetensors"))
        expected = oracle.greedy(backbone.model, prompt, torch.tensor(ids), 6)
        assert greedy(model, ids, restored, 6) == expected
        bare = cache.make_prompt_cache(model)
        assert greedy(model, ids, bare, 6) == oracle.greedy(
            backbone.model, None, torch.tensor(ids), 6
        )


def test_tiny_models_differ_behind_a_prompt(tmp_path: Path) -> None:
    backbone = Backbone.load(saved("llama", tmp_path / "base"))
    ids = tiny_models.ids(6)
    prompt = prompt_of(backbone)
    assert oracle.greedy(backbone.model, prompt, ids, 8) != oracle.greedy(
        backbone.model, None, ids, 8
    )
