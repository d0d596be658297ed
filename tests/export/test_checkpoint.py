"""Prompts as rows of a checkpoint's vocabulary: stock transformers answers as the oracle."""

import copy
import json
from pathlib import Path
from typing import Any

import oracle
import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from foreword import Backbone, EncodingConfig, SoftPrompt
from foreword.chat import encode
from foreword.errors import ForewordError, InputError, MismatchError, UnsupportedError
from foreword.export import chat_templates, checkpoint, rotary_names
from foreword.export.chat_templates import CONVERSATIONS
from foreword.export.vocabulary_rows import losing_row
from foreword.named_text import text_prompt

# Tied and untied, with a scaled table, with a factor of the model's own, with learned positions.
FAMILIES = ("llama", "gemma3", "granite", "gpt2", "qwen3", "mistral")


def saved(family: str, directory: Path, **changes: Any) -> str:
    tokenizer = tiny_tokenizer()
    model = tiny_models.build(
        family, dtype=torch.float32, vocab_size=len(tokenizer), eos_token_id=2, **changes
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def prompt_of(backbone: Backbone, seed: int = 1, num: int = 5, **encoding: Any) -> SoftPrompt:
    values = tiny_models.embeddings(backbone.model, num, seed)
    facts: dict[str, Any] = {"base": {"fingerprint": backbone.fingerprint()}}
    if encoding:
        facts["encoding"] = encoding
    return SoftPrompt.from_embeddings(values, facts=facts)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_tied", [True, False])
def test_plain_generate_answers_as_the_oracle(family: str, is_tied: bool, tmp_path: Path) -> None:
    name = saved(family, tmp_path / "base", tie_word_embeddings=is_tied)
    backbone = Backbone.load(name)
    prompts = {"home": prompt_of(backbone), "other": prompt_of(backbone, 2, 3)}
    checkpoint.export(prompts, name, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    asked = [("home", "say a"), ("other", "what is the longer one?"), ("base", "x")]
    rows, expected = [], []
    for which, text in asked:
        turns = [{"role": "user", "content": text}]
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, prompt=which)
        rows.append(ids if isinstance(ids, list) else ids["input_ids"])
        prompt = prompts.get(which)
        own = encode(backbone, turns, EncodingConfig.saved({}))[0]
        expected.append(oracle.greedy(backbone.model, prompt, torch.tensor(own), 8))
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    for cache in (None, "static"):
        found = model.generate(
            ids, attention_mask=mask, max_new_tokens=8, do_sample=False, eos_token_id=None,
            pad_token_id=0, cache_implementation=cache,
        )  # fmt: skip
        assert found[:, longest:].tolist() == expected


def test_the_first_prompt_is_taken_where_none_is_named_and_others_are_refused(
    tmp_path: Path,
) -> None:
    name = saved("llama", tmp_path / "base")
    backbone = Backbone.load(name)
    one, two = prompt_of(backbone), prompt_of(backbone, 2)
    facts = checkpoint.export({"home": one, "other": two}, name, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    turns = [{"role": "user", "content": "a"}]
    home, other = (part["ids"] for part in facts["prompts"])
    assert tokenizer.apply_chat_template(turns)["input_ids"][:5] == home
    assert tokenizer.apply_chat_template(turns, prompt="other")["input_ids"][:5] == other
    with pytest.raises(Exception, match="there is home, other"):
        tokenizer.apply_chat_template(turns, prompt="none")
    told = json.loads((tmp_path / "out" / checkpoint.SIDECAR).read_text())
    assert told == facts and told["base"]["fingerprint"] == backbone.fingerprint()
    assert told["prompts"][0]["content_hash"] == one.content_hash


def test_rows_are_written_as_the_prompt_was_trained(tmp_path: Path) -> None:
    name = saved("llama", tmp_path / "base")
    backbone = Backbone.load(name)
    own = "{{- '<<' ~ messages[-1]['content'] ~ '>>' }}{%- if add_generation_prompt %}!{% endif %}"
    prompts = {
        "row": prompt_of(
            backbone, 1, row_template="Q\\u: {prompt}\nA: {x} \U0001f642é", is_text=True
        ),
        "own": prompt_of(backbone, 2, chat_template=own, opening="generation", is_text=False),
    }
    checkpoint.export(prompts, name, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    turns = [{"role": "user", "content": "is it {raining}?"}]
    for which, prompt in prompts.items():
        config = EncodingConfig.saved(prompt.facts["encoding"])
        found = tokenizer.apply_chat_template(turns, add_generation_prompt=True, prompt=which)
        assert found["input_ids"][5:] == encode(backbone, turns, config)[0]
    with pytest.raises(Exception, match="takes one message"):
        tokenizer.apply_chat_template([*turns, *turns], prompt="row")


def test_tokens_that_the_base_keeps_for_later_are_used_and_leave_its_head_alone(
    tmp_path: Path,
) -> None:
    name = saved("llama", tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.add_tokens([f"<|reserved_special_token_{n}|>" for n in range(7)], special_tokens=True)
    tokenizer.save_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(name)
    backbone = Backbone.load(name)
    facts = checkpoint.export({"home": prompt_of(backbone)}, name, tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert facts["reserved_tokens"] and found.config.vocab_size == len(tokenizer)
    before, after = (one.get_output_embeddings().weight for one in (backbone.model, found))
    assert torch.equal(before, after)
    ids = facts["prompts"][0]["ids"]
    assert ids == list(range(len(tokenizer) - 5, len(tokenizer)))
    assert found.generation_config.suppress_tokens == ids


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("num_spare", [2, 8])
def test_spare_rows_that_become_tokens_are_never_said(
    num_spare: int, is_tied: bool, tmp_path: Path
) -> None:
    """The base may have trained them: their rows of its head would win."""
    tokenizer = tiny_tokenizer()
    model = tiny_models.build(
        "llama", dtype=torch.float32, vocab_size=len(tokenizer) + num_spare, eos_token_id=2,
        tie_word_embeddings=is_tied,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    prompt = prompt_of(Backbone.load(str(tmp_path / "base")), num=4)
    facts = checkpoint.export({"home": prompt}, str(tmp_path / "base"), tmp_path / "out")
    assert "never the greedy choice" in facts["head"]
    ids = facts["prompts"][0]["ids"]
    assert ids[0] < model.get_input_embeddings().weight.shape[0]
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    table = written.get_input_embeddings().weight[ids]
    assert torch.equal(table, prompt.tensors[0].to(table.dtype))
    hidden = torch.randn(2000, 32, generator=torch.Generator().manual_seed(0))
    greedy = (hidden @ written.get_output_embeddings().weight.T).argmax(-1)
    assert not torch.isin(greedy, torch.tensor(ids)).any()


def test_a_row_of_means_is_never_the_greedy_choice() -> None:
    torch.manual_seed(0)
    head, hidden = torch.randn(50, 16), torch.randn(1000, 16)
    logits = hidden @ torch.cat([head, losing_row(head)[None].float()]).T
    assert (logits.argmax(-1) < 50).all()


def test_a_generation_config_that_transformers_would_not_save_is_kept(tmp_path: Path) -> None:
    name = saved("llama", tmp_path / "base")
    path = tmp_path / "base" / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": 2, "temperature": 0.6, "top_p": 0.9}))
    checkpoint.export({"home": prompt_of(Backbone.load(name))}, name, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (found["eos_token_id"], found["temperature"], found["top_p"]) == (2, 0.6, 0.9)
    assert len(found["suppress_tokens"]) == 5 and "do_sample" not in found


def test_a_base_with_several_chat_templates_is_refused_by_name(tmp_path: Path) -> None:
    name = saved("llama", tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.chat_template = {"default": tokenizer.chat_template, "rag": "x"}
    tokenizer.save_pretrained(name)
    prompt = prompt_of(Backbone.load(name), row_template="{prompt}")
    with pytest.raises(UnsupportedError, match=r"several chat templates \(default, rag\)"):
        checkpoint.export({"home": prompt}, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_half_precision_stays_what_it_is(tmp_path: Path) -> None:
    name = saved("llama", tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16).save_pretrained(name)
    backbone = Backbone.load(name)
    prompt = prompt_of(backbone)
    facts = checkpoint.export({"home": prompt}, name, tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert found.dtype == torch.bfloat16
    rows = found.get_input_embeddings().weight[facts["prompts"][0]["ids"]]
    assert torch.equal(rows, prompt.embeddings.to(torch.bfloat16))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]


LONG = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SCALED: dict[str, Any] = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
}
LAYERS: dict[str, Any] = {
    "full_attention": LONG | {"rope_theta": 5e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
}
HALF = {"rope_type": "default", "rope_theta": 3e4, "partial_rotary_factor": 0.5}
ROTARY: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {}, {"rope_theta": 10000.0}),
    ("llama31", {}, {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3"}}),
    ("gpt_oss", {}, {"rope_theta": 150000.0, "rope_scaling": {"rope_type": "yarn"}}),
    ("gemma3", {}, {"rope_theta": 1e6, "rope_local_base_freq": 1e4}),
    ("gemma3", {"rope_parameters": SCALED}, {"rope_theta": 1e6, "rope_local_base_freq": 2e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    ("olmo3", {"rope_parameters": LAYERS}, {"rope_theta": 5e5, "rope_scaling": LONG}),
    ("phi3", {"rope_parameters": HALF}, {"rope_theta": 3e4, "partial_rotary_factor": 0.5}),
    ("glm4", {"rope_parameters": HALF, "head_dim": 8}, {"rope_theta": 3e4,
        "partial_rotary_factor": 0.5}),
    ("stablelm", {"rope_parameters": HALF}, {"rope_theta": 3e4, "partial_rotary_factor": 0.5}),
    ("gpt_neox", {"rope_parameters": HALF}, {"rotary_emb_base": 3e4, "rotary_pct": 0.5}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes", "older"), ROTARY)
def test_old_and_new_readers_find_the_rotary_embedding(
    family: str, changes: dict[str, Any], older: dict[str, Any], tmp_path: Path
) -> None:
    if family in tiny_models.FAMILIES:
        config = tiny_models.build(family).config
        for name, value in changes.items():
            setattr(config, name, copy.deepcopy(value))
    else:
        config = AutoConfig.for_model(family, **tiny_models.COMMON, **copy.deepcopy(changes))
    config.save_pretrained(tmp_path)
    bare = AutoConfig.from_pretrained(tmp_path).to_dict()
    rotary_names.complete(tmp_path / "config.json")
    found = json.loads((tmp_path / "config.json").read_text())
    for name, value in older.items():
        said = found[name]
        assert said.items() >= value.items() if isinstance(value, dict) else said == value
    assert "rope_theta" not in found.get("rope_scaling", {})
    assert found["rope_parameters"] == bare["rope_parameters"]
    told = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert told["rope_parameters"] == bare["rope_parameters"]
    assert {name: told[name] for name in bare} == bare


def test_an_older_name_that_readers_of_today_read_otherwise_is_left_out(tmp_path: Path) -> None:
    kinds = {
        "full_attention": HALF,
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = tiny_models.build("gemma4").config
    config.rope_parameters = copy.deepcopy(kinds)
    config.save_pretrained(tmp_path)
    bare = AutoConfig.from_pretrained(tmp_path).rope_parameters
    rotary_names.complete(tmp_path / "config.json")
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == bare


TURN = "{% for m in messages %}{{ m['role'] ~ ': ' ~ m['content'] ~ '<|im_end|>' }}{% endfor %}"
OPENED = "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
SPACED = {
    "nothing": TURN + OPENED,
    "a space at the end": TURN + OPENED + " ",
    "two breaks at the end": TURN + OPENED + "\n\n",
    "one break at the end": TURN + OPENED + "\n",
    "a break and spaces at the end": TURN + OPENED + "\n  ",
    "text and a break at the end": TURN + OPENED + "x\n",
    "a break at the beginning": "\n" + TURN + OPENED,
    "breaks and spaces at the beginning": "\n\n  " + TURN + OPENED,
    "spaces before a block": "  " + TURN + OPENED,
    "spaces before text": "  x" + TURN + OPENED,
    "a tab before a value": "\t{{ 'x' }}" + TURN + OPENED,
    "a comment at the end": TURN + OPENED + " {# done #}",
    "a comment at the beginning": "{# begins #}\n " + TURN + OPENED,
    "cut off": "{%- if true %}" + TURN + OPENED + "{%- endif -%}",
    "a value of the same name": "{% set prompt = 'x' %}" + TURN + OPENED,
    "a macro": "{% macro r(m) %}{{ m['content'] }}{% endmacro %}\n{{ r(messages[0]) }}" + TURN,
}


@pytest.mark.parametrize("name", SPACED)
def test_the_bare_models_template_writes_what_it_wrote(name: str, tmp_path: Path) -> None:
    base = saved("llama", tmp_path / "base")
    own = AutoTokenizer.from_pretrained(base)
    own.chat_template = SPACED[name]
    own.save_pretrained(base)
    backbone = Backbone.load(base)
    prompts = {
        "home": prompt_of(backbone, row_template="Q: {prompt} A:"),
        "turns": prompt_of(backbone, 2, is_text=False, opening="generation"),
    }
    facts = checkpoint.export(prompts, base, tmp_path / "out")
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    tokens = "".join(facts["prompts"][1]["tokens"])
    for turns in CONVERSATIONS:
        for is_open in (True, False):
            options: Any = {"add_generation_prompt": is_open, "tokenize": False}
            plain = own.apply_chat_template(list(turns), **options)
            assert exported.apply_chat_template(list(turns), prompt="base", **options) == plain
            found = exported.apply_chat_template(list(turns), prompt="turns", **options)
            assert found == f"{tokens}{plain}"


def test_a_bare_model_that_would_be_asked_otherwise_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = saved("llama", tmp_path / "base")
    prompt = prompt_of(Backbone.load(base), row_template="Q: {prompt}")
    monkeypatch.setattr(chat_templates, "verbatim", lambda text: text + "{{ ' ' }}")
    with pytest.raises(UnsupportedError, match="base: the chat template"):
        checkpoint.export({"home": prompt}, base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_numbers_that_the_base_does_not_hold_are_refused(tmp_path: Path) -> None:
    name = saved("llama", tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(name, dtype=torch.float16).save_pretrained(name)
    prompt = prompt_of(Backbone.load(name))
    prompt.tensors[0].data[0, 0] = 1e5
    with pytest.raises(InputError, match=r"holds 1e\+05, and the checkpoint's table is of float16"):
        checkpoint.export({"home": prompt}, name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["keys", "base", "there", "name", "held", "recurrent", "disk"])
def test_what_cannot_be_exported_is_refused_in_a_line_and_leaves_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = saved("llama", tmp_path / "base")
    backbone = Backbone.load(name)
    prompt, called, error, said = prompt_of(backbone), "home", InputError, ""
    if kind == "keys":
        prompt = SoftPrompt.from_states(backbone.compile(prompt).cached, facts=prompt.facts)
        said = "--form embeddings"
    elif kind == "base":
        other = Backbone.load(saved("llama", tmp_path / "other", hidden_size=48))
        prompt, error = prompt_of(other), MismatchError
    elif kind == "there":
        (tmp_path / "out").mkdir()
        said = "is there already"
    elif kind == "name":
        called, said = "../up", "is not a name"
    elif kind == "held":
        prompt = text_prompt(backbone, "Be brief.")
        said = "write the text itself"
    elif kind == "recurrent":
        name = saved("gemma3n", tmp_path / "layers")
        prompt, error = prompt_of(Backbone.load(name)), UnsupportedError
        said = "for each layer"
    else:
        monkeypatch.setattr(
            rotary_names,
            "complete",
            lambda _: (_ for _ in ()).throw(OSError(28, "full")),
        )
        error, said = ForewordError, "nothing was kept"
    with pytest.raises(error, match=said or None):
        checkpoint.export({called: prompt}, name, tmp_path / "out")
    left = {path.name for path in tmp_path.iterdir()} - {"base", "other", "layers"}
    assert left == ({"out"} if kind == "there" else set())
