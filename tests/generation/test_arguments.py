"""Arguments of `generate` that could mean another thing by padding, or by what a cache holds:
every row of a batch is what it is alone, or the argument is refused by name.
"""

import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import seq2seq_models
import tiny_models
import torch
import transformers
from contract import padded
from tiny_tokenizer import tiny_tokenizer
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from foreword import Backbone, SoftPrompt
from foreword.errors import InputError, UnsupportedError

PAGE = Path(__file__).parents[2] / "docs" / "arguments.md"
MODEL = tiny_models.shared("llama")
PROMPT = SoftPrompt.from_embeddings(tiny_models.embeddings(MODEL, 5))
ROWS = [tiny_models.ids(length, seed=length).clamp_min(1) for length in (1, 4, 9)]
SAID = [oracle.greedy(MODEL, PROMPT, row, 8) for row in ROWS]
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 8}
ENDS: dict[str, Any] = {"eos_token_id": SAID[0][2], "pad_token_id": 0}
FIRST = [said[0] for said in SAID]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(MODEL)


def test_the_page_names_every_argument_of_this_release() -> None:
    named = set(re.findall(r"`(\w+)`", PAGE.read_text()))
    settings = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    arguments = set(inspect.signature(GenerationMixin.generate).parameters) - {"self", "kwargs"}
    assert not (settings | arguments) - named, "decide what becomes of it, and test it"


def _marked(mark: float) -> Any:
    return transformers.WatermarkingConfig(greenlist_ratio=0.5, bias=mark, context_width=3)


# What could read or count padding, of an id that some of the words begin with.
RIGHT: dict[str, dict[str, Any]] = {
    "min_length": ENDS | {"min_length": 9},
    "min_new_tokens": ENDS | {"min_new_tokens": 5},
    "repetition_penalty": {"repetition_penalty": 2.5},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 50.0},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[int(ROWS[1][-1]), FIRST[1]], [FIRST[0], FIRST[0]]]},
    "sequence_bias": {
        "sequence_bias": {(int(ROWS[1][-1]), FIRST[1]): -50.0, (FIRST[0], FIRST[0]): -50.0}
    },
    "forced_bos_token_id": {"forced_bos_token_id": 7},
    "forced_eos_token_id": {"forced_eos_token_id": 7},
    "exponential_decay_length_penalty": ENDS | {"exponential_decay_length_penalty": (2, 3.0)},
    "suppress_tokens": {"suppress_tokens": FIRST},
    "begin_suppress_tokens": {"begin_suppress_tokens": FIRST},
    "begin_suppress_tokens behind a forced one": {
        "begin_suppress_tokens": [oracle.greedy(MODEL, PROMPT, torch.tensor([*ROWS[0], 7]), 1)[0]],
        "forced_bos_token_id": 7,
    },
    "watermarking_config": {"watermarking_config": _marked(8.0)},
    "watermarking_config, SynthID": {
        "watermarking_config": transformers.SynthIDTextWatermarkingConfig(keys=[6, 4], ngram_len=5)
    },
    "num_beams, length_penalty": {"num_beams": 3, "length_penalty": -3.0},
    "num_beams, early_stopping": ENDS | {"num_beams": 3, "early_stopping": True},
    "num_beams, forced_bos_token_id": {"num_beams": 2, "forced_bos_token_id": 7},
    "num_beams, min_length": ENDS | {"num_beams": 2, "min_length": 9},
    "num_return_sequences": {"num_beams": 3, "num_return_sequences": 2},
    "renormalize_logits": {"renormalize_logits": True},
    "remove_invalid_values": {"remove_invalid_values": True},
    "prefix_allowed_tokens_fn": {
        "prefix_allowed_tokens_fn": lambda row, ids: [(len(ids) * 5 + n) % 97 for n in range(9)]
    },
    "max_cache_len": {"cache_implementation": "static", "max_cache_len": 60},
    "use_cache": {"use_cache": False},
    "use_cache, num_beams": {"use_cache": False, "num_beams": 2},
    "use_cache, num_beams, num_return_sequences": {
        "use_cache": False,
        "num_beams": 3,
        "num_return_sequences": 2,
    },
    "use_cache, None": {"use_cache": None},
    "num_beams, num_return_sequences, None": {"num_beams": None, "num_return_sequences": None},
    "the default length": {"max_new_tokens": None},
}


def _ended(ids: list[int]) -> list[int]:
    """Return new ids without what fills a row up after its end."""
    end = ENDS["eos_token_id"]
    return ids[: ids.index(end) + 1] if end in ids else ids


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", RIGHT.values(), ids=RIGHT)
def test_a_row_of_a_batch_is_what_it_is_alone(
    backbone: Backbone, options: dict[str, Any], side: str
) -> None:
    options = GREEDY | options
    ids, mask = padded(ROWS, side)
    ids[mask == 0] = FIRST[0]  # an id that matters
    found = backbone.generate(PROMPT, ids, mask, **options)[:, ids.shape[1] :].tolist()
    said = {name: value for name, value in options.items() if value is not None}
    alone = {name: value for name, value in said.items() if "cache" not in name}
    copies = options.get("num_return_sequences") or 1
    for index, row in enumerate(ROWS):
        expected = oracle.generate(MODEL, PROMPT, row, **alone)[:, len(row) :].tolist()
        ours = found[index * copies : (index + 1) * copies]
        assert list(map(_ended, ours)) == list(map(_ended, expected))


READS_HISTORY = (
    "min_length", "repetition_penalty", "no_repeat_ngram_size", "encoder_repetition_penalty",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "forced_bos_token_id",
    "watermarking_config",
)  # fmt: skip


@pytest.mark.parametrize("name", READS_HISTORY)
def test_a_second_turn_reads_the_first_where_it_is_given_and_is_refused_where_it_is_not(
    backbone: Backbone, name: str
) -> None:
    options, turn = GREEDY | RIGHT[name], tiny_models.ids(3, seed=2)
    first = backbone.generate(PROMPT, ROWS[1][None], **GREEDY, return_dict_in_generate=True)
    whole = torch.cat([first.sequences, turn[None]], 1)
    new = whole[:, first.past_key_values.get_seq_length() :]
    with pytest.raises(UnsupportedError, match=rf"generate\({name}\): it reads all tokens so far"):
        backbone.generate(
            PROMPT, new, torch.ones_like(whole), past_key_values=first.past_key_values, **options
        )
    found = backbone.generate(PROMPT, whole, past_key_values=first.past_key_values, **options)
    expected = oracle.generate(MODEL, PROMPT, whole[0], **options)
    assert found.tolist() == expected.tolist()


def test_words_of_one_id_need_no_history(backbone: Backbone) -> None:
    first = backbone.generate(PROMPT, ROWS[1][None], **GREEDY, return_dict_in_generate=True)
    mask = torch.ones(1, first.sequences.shape[1], dtype=torch.long)
    for options in ({"bad_words_ids": [[5]]}, {"sequence_bias": [[[5], -9.0]]}):
        output = backbone.generate(
            PROMPT,
            first.sequences[:, -1:],
            mask,
            past_key_values=first.past_key_values,
            max_new_tokens=1,
            do_sample=False,
            **options,
        )
        assert output.shape == (1, 2)
        first.past_key_values.crop(-1)


def test_stop_strings_do_not_begin_in_padding() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_models.build("llama", vocab_size=len(tokenizer))
    backbone, rows = Backbone(model), [torch.tensor([70]), torch.tensor([71, 72, 73])]
    expected = [oracle.greedy(model, None, row, 4) for row in rows]
    ids, mask = padded(rows, "left")
    ids[0, :2] = 80
    stop = tokenizer.decode([80, 80, 70, expected[0][0]])
    for end in (stop, tokenizer.decode([70, expected[0][0]])):
        output = backbone.generate(
            None, ids, mask, max_new_tokens=4, do_sample=False, tokenizer=tokenizer,
            stop_strings=[end], eos_token_id=262, pad_token_id=0,
        )  # fmt: skip
        found = output[:, 3:].tolist()
        assert found[1] == expected[1]
        assert found[0] == (expected[0] if end == stop else [expected[0][0], 0, 0, 0])


def test_a_function_of_allowed_tokens_is_told_each_rows_own_tokens(backbone: Backbone) -> None:
    told: list[tuple[int, list[int]]] = []

    def allowed(row: int, ids: Tensor) -> list[int]:
        told.append((row, ids.tolist()))
        return [3]

    ids, mask = padded(ROWS, "right")
    backbone.generate(
        PROMPT, ids, mask, do_sample=False, max_new_tokens=1, prefix_allowed_tokens_fn=allowed
    )
    assert told == [(index, row.tolist()) for index, row in enumerate(ROWS)]


def test_a_streamer_is_told_the_ids_as_they_are_given(backbone: Backbone) -> None:
    told: list[Any] = []

    class Collect:
        def put(self, value: Tensor) -> None:
            told.append(value.tolist())

        def end(self) -> None:
            told.append("end")

    ids, mask = padded(ROWS, "right")
    output = backbone.generate(PROMPT, ids, mask, **GREEDY, streamer=Collect())
    assert told[0] == ids.tolist() and told[-1] == "end"
    assert told[1:-1] == output[:, ids.shape[1] :].T.tolist()


@pytest.mark.parametrize("spelt", [tuple, torch.tensor, np.array], ids=["tuple", "tensor", "array"])
def test_ends_are_read_however_they_are_spelt(backbone: Backbone, spelt: Any) -> None:
    ids = torch.tensor(
        [[0, 0, *ROWS[1]], [5, 6, *ROWS[1]]]
    )  # the padding id is an end too: no mask
    for ends in ([0, 2], [1, 2]):
        expected = backbone.generate(PROMPT, ids, **GREEDY, pad_token_id=0, eos_token_id=ends)
        found = backbone.generate(PROMPT, ids, **GREEDY, pad_token_id=0, eos_token_id=spelt(ends))
        assert found.tolist() == expected.tolist()
    with pytest.raises(InputError, match=r"generate\(forced_eos_token_id=97\)"):
        backbone.generate(PROMPT, ids, forced_eos_token_id=spelt([5, 97]))


REFUSED: dict[str, dict[str, Any]] = {
    "max_length": {"max_length": 14},
    "max_length, configured": {"generation_config": GenerationConfig(max_length=14)},
    "max_length, of a search": {"max_length": 14, "num_beams": 2},
    "max_length, with forced_eos_token_id": {"max_length": 14, "forced_eos_token_id": 7},
}


@pytest.mark.parametrize("options", REFUSED.values(), ids=REFUSED)
def test_a_limit_that_would_count_padding(backbone: Backbone, options: dict[str, Any]) -> None:
    for side in ("left", "right"):
        with pytest.raises(UnsupportedError, match=r"generate\(max_length\).*max_new_tokens"):
            backbone.generate(PROMPT, *padded(ROWS, side), **options)
    row = ROWS[1][None]  # without padding it counts what it should
    assert backbone.generate(PROMPT, row, **options).shape == (1, 14)


def test_the_default_length_where_the_context_would_cut_it_for_all_rows() -> None:
    backbone = Backbone(tiny_models.build("llama", max_position_embeddings=24))
    with pytest.raises(UnsupportedError, match="max_new_tokens=None"):
        backbone.generate(None, *padded(ROWS, "left"), do_sample=False)
    embeds = backbone.embed(padded(ROWS, "left")[0])
    with pytest.raises(UnsupportedError, match=r"generate\(min_length\)"):
        backbone.generate(
            None,
            None,
            padded(ROWS, "left")[1],
            inputs_embeds=embeds,
            min_length=3,
            max_new_tokens=2,
        )


def test_a_setting_of_the_model_holds_beneath_a_configuration_of_the_call() -> None:
    backbone = Backbone(tiny_models.build("llama"))
    backbone.model.generation_config.guidance_scale = 1.5
    for options in ({}, {"generation_config": GenerationConfig(max_new_tokens=2)}):
        with pytest.raises(UnsupportedError, match="guidance_scale"):
            backbone.generate(None, ROWS[1][None], **options)
    output = backbone.generate(None, ROWS[1][None], guidance_scale=None, max_new_tokens=2)
    assert output.shape == (1, 6)


ALWAYS_REFUSED: dict[str, Any] = {
    "token_healing": True, "assistant_early_exit": 1, "speculation_type": "dflash",
    "assistant_ensemble_weight": 0.5, "is_assistant": True, "use_mtp": True,
    "cache_implementation": "paged",
}  # fmt: skip


@pytest.mark.parametrize("name", ALWAYS_REFUSED)
def test_what_cannot_be_exact_is_refused_and_the_model_stays_as_it_was(
    backbone: Backbone, name: str
) -> None:
    before = MODEL.config.to_dict()
    with pytest.raises(UnsupportedError, match=name):
        backbone.generate(PROMPT, ROWS[1][None], **GREEDY, **{name: ALWAYS_REFUSED[name]})
    assert MODEL.config.to_dict() == before


WRONG: dict[str, Any] = {
    "generation_config": {}, "logits_processor": 3, "stopping_criteria": "end", "streamer": 3,
    "prefix_allowed_tokens_fn": 3, "max_new_tokens": "5", "num_beams": "2", "assistant_model": "x",
    "prefill_chunk_size": True, "use_cache": 0, "num_return_sequences": 0, "do_sample": "a",
    "suppress_tokens": 5, "begin_suppress_tokens": 5, "max_time": "a", "eos_token_id": "a",
    "forced_eos_token_id": True, "pad_token_id": (1,), "bos_token_id": "a", "top_k": "a",
    "exponential_decay_length_penalty": 3, "watermarking_config": {"a": 1}, "stop_strings": [""],
    "sequence_bias": [[]], "early_stopping": [], "no_repeat_ngram_size": True, "top_p": "a",
    "length_penalty": "a", "output_hidden_states": 1.5, "prompt_lookup_num_tokens": "a",
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_an_argument_of_another_type(backbone: Backbone, name: str) -> None:
    ways: list[dict[str, Any]] = [{name: WRONG[name]}]
    if hasattr(GenerationConfig(), name) and name != "watermarking_config":
        own = GenerationConfig()
        setattr(own, name, WRONG[name])
        ways.append({"generation_config": own})
    for options in ways:
        with pytest.raises(InputError, match=rf"generate\({name}=.*expected") as caught:
            backbone.generate(PROMPT, ROWS[1][None], **options)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 2}, {"assistant_model": MODEL}])
def test_candidates_need_the_cache(backbone: Backbone, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(InputError, match=rf"generate\({name}=.*give use_cache=True"):
        backbone.generate(PROMPT, ROWS[1][None], **GREEDY, **options, use_cache=False)
    backbone.generate(PROMPT, ROWS[1][None], **GREEDY, **options, use_cache=True)


def test_a_number_that_is_too_small_is_named(backbone: Backbone) -> None:
    for name in ("num_beams", "num_return_sequences", "prefill_chunk_size"):
        with pytest.raises(InputError, match=rf"generate\({name}=.*of at least 1, got 0"):
            backbone.generate(PROMPT, ROWS[1][None], **{name: 0})
    with pytest.raises(InputError, match=r"generate\(max_new_tokens=.*of at least 0, got -1"):
        backbone.generate(PROMPT, ROWS[1][None], max_new_tokens=-1)


def test_a_penalty_of_length_needs_an_end(backbone: Backbone) -> None:
    with pytest.raises(InputError, match="expected an end id .* give eos_token_id"):
        backbone.generate(
            PROMPT, ROWS[1][None], exponential_decay_length_penalty=(2, 1.5), eos_token_id=None
        )


def test_a_search_without_an_end(backbone: Backbone) -> None:
    options = GREEDY | {"num_beams": 2}
    expected = backbone.generate(PROMPT, ROWS[1][None], **options, eos_token_id=None)
    found = backbone.generate(PROMPT, ROWS[1][None], **options, eos_token_id=[])
    assert found.tolist() == expected.tolist()


def test_ids_and_embeddings_of_other_tokens(backbone: Backbone) -> None:
    with pytest.raises(InputError, match=r"input_ids \[1, 4\] and inputs_embeds \[1, 9, 32\]"):
        backbone.generate(PROMPT, ROWS[1][None], inputs_embeds=backbone.embed(ROWS[2][None]))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "mamba2", "lfm2", "t5"])
def test_a_mask_counts_tokens_in_every_dtype(family: str, dtype: torch.dtype) -> None:
    is_apart = family == "t5"
    model = seq2seq_models.build("t5") if is_apart else tiny_models.build(family)
    backbone = Backbone(model)
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(model, 3))
    rows = [tiny_models.ids(length, seed=length).clamp_min(3) for length in (300, 3)]
    for side in ("left", "right"):
        ids, mask = padded(rows, side)
        options: Any = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
        expected = backbone.generate(prompt, ids, mask, **options)
        assert backbone.generate(prompt, ids, mask.to(dtype), **options).tolist() == (
            expected.tolist()
        )
        more = {"decoder_input_ids": torch.tensor([[0, 5], [0, 6]])} if is_apart else {}
        with torch.no_grad():
            wished = backbone.logits(prompt, ids, mask, **more)
            found = backbone.logits(prompt, ids, mask.to(dtype), **more)
        kept = torch.ones_like(wished[..., 0], dtype=torch.bool) if is_apart else mask.bool()
        assert torch.equal(found[kept], wished[kept])
