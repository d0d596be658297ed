"""Whatever a base's own generation configuration says, foreword answers with the likeliest ids."""

from collections.abc import Callable
from typing import Any

import oracle
import pytest
import seq2seq_models
import seq2seq_oracle
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer

from foreword import Backbone, EncodingConfig, Example, SoftPrompt, chat
from foreword.config import EvalConfig
from foreword.evaluation.ensembles import averaged, vote
from foreword.evaluation.evaluation import Subject, evaluate
from foreword.evaluation.inspection import attention_received
from foreword.evaluation.metrics import METRICS

TEXT, NUM_NEW = "aaaa", 6
HABITS: dict[str, dict[str, Any]] = {
    "repetition_penalty": {"repetition_penalty": 9.0},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "num_beams": {"num_beams": 4, "length_penalty": -3.0, "early_stopping": True},
    "num_return_sequences": {"num_return_sequences": 2, "num_beams": 2},
    "do_sample": {"do_sample": True, "temperature": 9.0, "top_k": 7},
    "bad_words_ids": {"bad_words_ids": [[index] for index in range(0, 262, 2)]},
    "suppress_tokens": {"suppress_tokens": list(range(0, 262, 2))},
    "begin_suppress_tokens": {"begin_suppress_tokens": list(range(200))},
    "sequence_bias": {"sequence_bias": [[[9], 99.0]]},
    "forced_eos_token_id": {"forced_eos_token_id": 9},
    "min_length": {"min_length": 90, "min_new_tokens": 80},
    "max_time": {"max_time": 1e-9},
    "stop_strings": {"stop_strings": ["a"]},
    "guidance_scale": {"guidance_scale": 3.0},
    "prompt_lookup_num_tokens": {"prompt_lookup_num_tokens": 3},
    "output_scores": {"return_dict_in_generate": True, "output_scores": True},
    "watermarking_config": {
        "watermarking_config": {"bias": 50.0, "greenlist_ratio": 0.1, "context_width": 1}
    },
}


def backbone() -> Backbone:
    tokenizer = tiny_tokenizer(chat_template=None)
    model = tiny_models.build("llama", vocab_size=len(tokenizer))
    model.set_attn_implementation("eager")
    return Backbone(model, tokenizer)


def prompt_of(model: Backbone) -> SoftPrompt:
    return SoftPrompt.from_embeddings(2 * tiny_models.embeddings(model.model, 4))


def set_habits(model: Backbone, habits: dict[str, Any]) -> None:
    for name, value in habits.items():
        setattr(model.model.generation_config, name, value)


def _lm_eval(model: Backbone) -> Any:
    pytest.importorskip("lm_eval", reason="needs: pip install 'foreword[lm-eval]'")
    from lm_eval.api.instance import Instance

    from foreword.evaluation.lm_eval import ForewordLM

    harness = ForewordLM.__new__(ForewordLM)
    harness.backbone, harness.tokenizer, harness.config = model, model.tokenizer, None
    harness.prompt, harness.batch_size, harness.max_gen_toks = prompt_of(model), 2, NUM_NEW
    harness.prefix = model.compile(harness.prompt)
    harness._rank = 0
    harness.cache_hook = type("Hook", (), {"add_partial": lambda *_: None})()
    asked = Instance("generate_until", {}, (TEXT, {"until": [], "max_gen_toks": NUM_NEW}), 0)
    return harness.generate_until([asked])


ANSWERS: dict[str, Callable[[Backbone], Any]] = {
    "answers": lambda model: list(
        chat.answers(model, prompt_of(model), [TEXT, "x"], max_new_tokens=NUM_NEW)
    ),
    "stream": lambda model: "".join(
        chat.stream(model, prompt_of(model), TEXT, max_new_tokens=NUM_NEW)
    ),
    "vote": lambda model: list(vote(model, [prompt_of(model)], [TEXT], max_new_tokens=NUM_NEW)),
    "averaged": lambda model: list(
        averaged(model, [prompt_of(model)] * 2, [TEXT], max_new_tokens=NUM_NEW)
    ),
    "evaluate": lambda model: evaluate(
        model, Subject("own", prompt_of(model)), [Example(TEXT, "b", "rows:1")],
        [METRICS["loss"], METRICS["exact"]], EvalConfig(max_new_tokens=NUM_NEW),
    ).answers,
    "lm_eval": _lm_eval,
    "attention_received": lambda model: attention_received(
        model, prompt_of(model), [70, 71, 72]
    ).tolist(),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("habits", HABITS.values(), ids=HABITS)
@pytest.mark.parametrize("way", ANSWERS)
def test_every_way_to_answer_is_free_of_a_bases_habits(way: str, habits: dict[str, Any]) -> None:
    plain, base = backbone(), backbone()
    set_habits(base, habits)
    expected = ANSWERS[way](plain)
    assert expected and ANSWERS[way](base) == expected
    assert ANSWERS[way](base) == expected  # once more, with what the first has left
    for name, value in habits.items():
        assert getattr(base.model.generation_config, name) == value


def test_an_answer_is_the_oracles() -> None:
    model = backbone()
    set_habits(model, HABITS["repetition_penalty"] | HABITS["num_beams"])
    ids, _ = chat.encode(model, TEXT, EncodingConfig())
    wished = oracle.greedy(model.model, prompt_of(model), torch.tensor(ids), NUM_NEW)
    (answer,) = chat.answers(model, prompt_of(model), [TEXT], max_new_tokens=NUM_NEW)
    said = wished[: answer.num_tokens - answer.is_finished]
    assert answer.text == model.tokenizer.decode(said, skip_special_tokens=True)


def test_options_of_the_call_still_count() -> None:
    model = backbone()
    set_habits(model, {"repetition_penalty": 9.0, "do_sample": True, "top_k": 1})
    ids, _ = chat.encode(model, TEXT, EncodingConfig())
    plain, prompt = backbone().model, prompt_of(model)
    for options in ({"repetition_penalty": 2.0}, {"do_sample": True, "temperature": 3.0}):
        torch.manual_seed(5)
        found = model.without_habits().generate(
            prompt, torch.tensor([ids]), max_new_tokens=NUM_NEW, **chat.chosen(options)
        )
        torch.manual_seed(5)
        wished = oracle.generate(
            plain, prompt, torch.tensor(ids), max_new_tokens=NUM_NEW,
            **({"top_k": 0} | options),
        )  # fmt: skip
        assert found.tolist() == wished.tolist()


def test_a_users_own_generate_obeys_the_base_as_transformers_does() -> None:
    model, prompt = backbone(), prompt_of(backbone())
    ids = torch.tensor(chat.encode(model, TEXT, EncodingConfig())[0])
    likeliest = oracle.greedy(model.model, prompt, ids, NUM_NEW)
    habits = {"suppress_tokens": likeliest[:1]}
    set_habits(model, habits)
    found = model.generate(prompt, ids[None], max_new_tokens=NUM_NEW)
    wished = oracle.generate(backbone().model, prompt, ids, max_new_tokens=NUM_NEW, **habits)
    assert found.tolist() == wished.tolist()
    assert found[0, len(ids) :].tolist() != likeliest


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_model_with_an_encoder_keeps_its_start_alone(family: str) -> None:
    tokenizer = tiny_tokenizer()
    model = Backbone(seq2seq_models.build(family, vocab_size=len(tokenizer)), tokenizer)
    set_habits(
        model,
        {"num_beams": 4, "no_repeat_ngram_size": 1, "forced_bos_token_id": 9, "max_length": 3}
        | {"forced_eos_token_id": 9, "min_length": 5, "early_stopping": True},
    )
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(model.model, 4))
    config = EncodingConfig(row_template="{prompt}")
    (answer,) = chat.answers(model, prompt, [TEXT], config, max_new_tokens=NUM_NEW)
    ids, _ = chat.encode(model, TEXT, config)
    start = (model.model.config.decoder_start_token_id,)
    wished = seq2seq_oracle.greedy(model.model, prompt, torch.tensor(ids), NUM_NEW, start)
    said = wished[: answer.num_tokens - answer.is_finished]
    assert answer.text == tokenizer.decode(said, skip_special_tokens=True)
