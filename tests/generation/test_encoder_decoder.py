"""Soft prompts on models with an encoder, each case against the oracle."""

import copy
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import contract
import pytest
import seq2seq_models
import seq2seq_oracle as oracle
import tiny_models
import torch
import transformers
from seq2seq_models import FAMILIES, FORMS, TEXT
from tiny_tokenizer import tiny_tokenizer
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from foreword import (
    Backbone,
    EncodingConfig,
    Example,
    Row,
    SoftPrompt,
    TrainConfig,
    chat,
    doctor,
    train,
)
from foreword.cli import train as cli_train
from foreword.data import batches, encoding
from foreword.data.encoding import Media
from foreword.errors import (
    ArtifactError,
    ForewordError,
    InputError,
    MismatchError,
    UnsupportedError,
)
from foreword.training.loss import score_labels
from foreword.training.rows import encode_rows

NUM_NEW = 6
GREEDY: dict[str, Any] = {"max_new_tokens": NUM_NEW, "do_sample": False}
# T5's norms round to float32 inside, where a bit decides over much.
TOLERANCES = {"t5": 1e-6, "mt5": 1e-5, "bart": 1e-9, "whisper": 1e-9}
ROWS = [tiny_models.ids(length) for length in (4, 11, 7)]
SOUNDS = [seq2seq_models.features(seed) for seed in (1, 2, 3)]
CASES = [(family, form) for family in FAMILIES for form in FORMS]


def rows_of(family: str) -> list[Tensor]:
    return ROWS if family in TEXT else SOUNDS


def inputs(family: str, rows: list[Tensor], side: str = "left") -> dict[str, Tensor]:
    """Return what a model's `generate` takes for rows."""
    if family not in TEXT:
        return {"input_features": torch.stack(rows)}
    ids, mask = contract.padded(rows, side)
    return {"input_ids": ids, "attention_mask": mask}


class World:
    """A family's model, a prompt of one form, rows."""

    def __init__(self, family: str, form: str, num_virtual: int = 5):
        self.family, self.model = family, seq2seq_models.shared(family)
        self.backbone = Backbone(self.model)
        self.prompt = FORMS[form](self.model, num_virtual)
        self.rows = rows_of(family)
        self.start = (self.model.config.decoder_start_token_id,)
        self.tolerance = TOLERANCES[family]

    def greedy(self, prompt: SoftPrompt | None, row: Tensor) -> list[int]:
        return oracle.greedy(self.model, prompt, row, NUM_NEW, self.start)

    def generate(self, prompt: Any = ..., side: str = "left", **kwargs: Any) -> Any:
        given = inputs(self.family, self.rows, side)
        return self.backbone.generate(self.prompt if prompt is ... else prompt, **given, **kwargs)

    def expect(self, output: Tensor, **kwargs: Any) -> None:
        """Assert that each row's sequences are what the oracle generates from it alone."""
        copies = len(output) // len(self.rows)
        for index, row in enumerate(self.rows):
            expected = oracle.generate(self.model, self.prompt, row, **kwargs)
            assert output[index * copies : (index + 1) * copies].tolist() == expected.tolist()


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def world(request: pytest.FixtureRequest) -> World:
    return World(*request.param)


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    error = ((found - expected).abs().max() / expected.abs().max()).item()
    assert error <= tolerance, f"differs by {error:.2e}"


# Generation


def test_one_row_and_the_logits_of_every_step(world: World) -> None:
    world.rows = world.rows[1:2]
    options = {"return_dict_in_generate": True, "output_logits": True}
    output = world.generate(**GREEDY, **options)
    expected = world.greedy(world.prompt, world.rows[0])
    assert output.sequences[0].tolist() == [*world.start, *expected]
    ids = output.sequences[0, :-1]
    slow = oracle.row_logits(world.model, world.prompt, world.rows[0], ids)
    close(torch.stack(output.logits, 1)[0].double(), slow, 1e-6)
    assert output.past_key_values is None


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch(world: World, side: str) -> None:
    output = world.generate(side=side, **GREEDY)
    assert output[:, -NUM_NEW:].tolist() == [world.greedy(world.prompt, row) for row in world.rows]


def test_rows_behind_different_prompts(world: World) -> None:
    lengths = (3, 7, 5) if world.family != "bart" else (5, 5, 5)
    prompts: list[Any] = [
        FORMS[world.prompt.form](world.model, length, seed) for seed, length in enumerate(lengths)
    ]
    if world.family != "bart" or world.prompt.form == "embeddings":
        prompts[1] = None
    output = world.generate(prompts, **GREEDY)
    pairs = zip(prompts, world.rows, strict=True)
    assert output[:, -NUM_NEW:].tolist() == [world.greedy(prompt, row) for prompt, row in pairs]


@pytest.mark.parametrize("family", FAMILIES)
def test_both_forms_in_one_batch(family: str) -> None:
    world = World(family, "embeddings")
    prompts = [world.prompt, None, seq2seq_models.key_value_prompt(world.model, 5)]
    if family == "bart":  # its decoder counts slots
        prompts, world.rows = prompts[:2], world.rows[:2]
    output = world.generate(prompts, **GREEDY)
    pairs = zip(prompts, world.rows, strict=True)
    assert output[:, -NUM_NEW:].tolist() == [world.greedy(prompt, row) for prompt, row in pairs]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_prompt_is_the_bare_model(family: str) -> None:
    world = World(family, "embeddings")
    given = inputs(family, world.rows, "right")
    # With a cache, transformers wants a T5's decoder no deeper than its encoder.
    expected = world.model.generate(**given, **GREEDY, use_cache=False)
    assert world.generate(None, "right", **GREEDY).tolist() == expected.tolist()


BEAMS = {"max_new_tokens": NUM_NEW, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}


def test_beams(world: World) -> None:
    world.expect(world.generate(**BEAMS), **BEAMS)


def test_beams_behind_different_prompts(world: World) -> None:
    prompts = [FORMS[world.prompt.form](world.model, 5, seed) for seed in range(3)]
    output = world.generate(prompts, **BEAMS)
    for index, (prompt, row) in enumerate(zip(prompts, world.rows, strict=True)):
        expected = oracle.generate(world.model, prompt, row, **BEAMS)
        assert output[2 * index : 2 * index + 2].tolist() == expected.tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMS)
def test_eager_attention_and_what_it_shows(family: str, form: str) -> None:
    world = World(family, form)
    world.model = seq2seq_models.build(family)
    world.model.set_attn_implementation("eager")
    world.backbone = Backbone(world.model)
    shown = {"output_attentions": True, "output_hidden_states": True}
    output = world.generate(**GREEDY, **shown, return_dict_in_generate=True)
    expected = [world.greedy(world.prompt, row) for row in world.rows]
    assert output.sequences[:, -NUM_NEW:].tolist() == expected
    is_encoded = family in TEXT and form == "embeddings"
    if family in TEXT:
        assert output.encoder_hidden_states[0].shape[1] == 11 + 5 * is_encoded
    if not output.decoder_attentions[1]:  # older releases show none of a T5's
        return
    if family in TEXT:
        assert output.encoder_attentions[0].shape[-1] == 11 + 5 * is_encoded
    # The decoder's attentions keep the columns of virtual tokens, first.
    assert output.decoder_attentions[1][0].shape[-1] == 2 + 5 * (not is_encoded)


def test_sampling_and_several_sequences(world: World) -> None:
    options = {"max_new_tokens": NUM_NEW, "do_sample": True, "num_return_sequences": 3}
    world.rows = world.rows[:1]
    torch.manual_seed(0)
    output = world.generate(**options)
    torch.manual_seed(0)
    world.expect(output, **options)


def test_penalties(world: World) -> None:
    options = GREEDY | {"repetition_penalty": 1.7, "no_repeat_ngram_size": 2}
    world.expect(world.generate(**options), **options)


@pytest.mark.parametrize("use_cache", [False, None])
def test_no_cache(world: World, use_cache: bool | None) -> None:
    output = world.generate(use_cache=use_cache, **GREEDY)
    assert output[:, -NUM_NEW:].tolist() == [world.greedy(world.prompt, row) for row in world.rows]


def test_a_static_cache(world: World) -> None:
    output = world.generate(cache_implementation="static", **GREEDY)
    assert output[:, -NUM_NEW:].tolist() == [world.greedy(world.prompt, row) for row in world.rows]


def test_decoding_goes_on_from_given_ids(world: World) -> None:
    world.start = (*world.start, 7, 9, 11)
    given = torch.tensor([world.start] * 3)
    output = world.generate(decoder_input_ids=given, **GREEDY)
    if world.family != "whisper":  # which leaves out what it was given
        assert output[:, :-NUM_NEW].tolist() == given.tolist()
    assert output[:, -NUM_NEW:].tolist() == [world.greedy(world.prompt, row) for row in world.rows]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strategy", ["assisted", "prompt lookup"])
def test_candidates(family: str, strategy: str) -> None:
    world = World(family, "key_values")
    world.rows = world.rows[:1]
    options: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if strategy == "assisted":
        # As deep as its encoder: transformers' own cache for a T5 has no more layers.
        options = {"assistant_model": seq2seq_models.build(family, seed=1, num_decoder_layers=2)}
    output = world.generate(**options, **GREEDY)
    assert output[0, -NUM_NEW:].tolist() == world.greedy(world.prompt, world.rows[0])


@pytest.mark.parametrize("family", ["t5", "whisper"])
def test_threads_share_a_backbone(family: str) -> None:
    worlds = [World(family, form, num) for form, num in (("embeddings", 3), ("key_values", 6))]
    found: dict[int, Any] = {}

    def run(index: int) -> None:
        world = worlds[index % 2]
        found[index] = worlds[0].backbone.generate(
            world.prompt, **inputs(family, world.rows), **GREEDY
        )

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, output in found.items():
        world = worlds[index % 2]
        assert output[:, -NUM_NEW:].tolist() == [
            world.greedy(world.prompt, row) for row in world.rows
        ]


def test_the_model_stays_as_it_was(world: World) -> None:
    before = dict(world.model.__dict__)
    world.generate(**GREEDY)
    assert dict(world.model.__dict__) == before


# Logits, gradients, training


def decoder_rows(world: World) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return decoder ids of three lengths and the same, right-padded."""
    rows = [torch.cat([torch.tensor(world.start), tiny_models.ids(n, 9)]) for n in (2, 6, 4)]
    return rows, *contract.padded(rows, "right")


def slow_logits(world: World, prompt: SoftPrompt | None) -> list[Tensor]:
    rows, _, _ = decoder_rows(world)
    pairs = zip(world.rows, rows, strict=True)
    return [oracle.row_logits(world.model, prompt, row, ids) for row, ids in pairs]


def fast_logits(world: World, prompt: Any) -> list[Tensor]:
    rows, ids, mask = decoder_rows(world)
    given = inputs(world.family, world.rows, "left")
    found = world.backbone.logits(
        prompt, **given, decoder_input_ids=ids, decoder_attention_mask=mask
    )
    return [found[index, : len(row)] for index, row in enumerate(rows)]


def test_logits_of_padded_rows(world: World) -> None:
    found = fast_logits(world, world.prompt)
    for one, expected in zip(found, slow_logits(world, world.prompt), strict=True):
        close(one, expected, world.tolerance)


def test_logits_behind_different_prompts(world: World) -> None:
    lengths = (3, 7, 5) if world.family != "bart" else (5, 5, 5)
    prompts = [FORMS[world.prompt.form](world.model, length) for length in lengths]
    rows, found = decoder_rows(world)[0], fast_logits(world, prompts)
    for prompt, row, ids, one in zip(prompts, world.rows, rows, found, strict=True):
        close(one, oracle.row_logits(world.model, prompt, row, ids), world.tolerance)


def test_the_gradient_is_that_of_the_slow_computation(world: World) -> None:
    fast, slow = world.prompt.trainable(torch.float64), world.prompt.trainable(torch.float64)
    for logits, prompt in ((fast_logits, fast), (slow_logits, slow)):
        torch.cat(logits(world, prompt)).log_softmax(-1)[:, 7].sum().backward()
    for found, expected in zip(fast.tensors, slow.tensors, strict=True):
        assert expected.grad is not None and found.grad is not None
        close(found.grad, expected.grad, max(world.tolerance, 1e-9))


@pytest.mark.parametrize("family", ["t5", "mt5"])
@pytest.mark.parametrize("form", FORMS)
def test_with_exact_norms_a_t5_agrees_to_the_last_digits(family: str, form: str) -> None:
    world = World(family, form)
    world.model = seq2seq_models.with_exact_norms(seq2seq_models.build(family))
    world.backbone, world.tolerance = Backbone(world.model), 1e-9
    test_logits_of_padded_rows(world)
    test_the_gradient_is_that_of_the_slow_computation(world)


def labelled(world: World) -> list[Row]:
    """Return rows whose labels are the decoder's, behind the text, or the decoder's start and what
    the encoder hears.
    """
    labels = [tiny_models.ids(n, 9).tolist() for n in (2, 6, 4)]
    if world.family in TEXT:
        return [Row.from_ids(text.tolist(), ids) for text, ids in zip(ROWS, labels, strict=True)]
    heard = inputs(world.family, world.rows)
    return [
        Row((2, 5, 9, *ids), len(ids), "row", Media({k: v[i : i + 1] for k, v in heard.items()}))
        for i, ids in enumerate(labels)
    ]


def test_the_loss_of_labels(world: World) -> None:
    rows = labelled(world)
    batch = batches.collate(rows, 0)
    prefixes = world.backbone.batch_of(world.prompt, 3)
    scores = score_labels(world.backbone, prefixes, batch)
    expected = []
    for index, row in enumerate(rows):
        given, labels = row.input_ids[: -row.num_labels], row.input_ids[-row.num_labels :]
        start = world.start if world.family in TEXT else given
        ids = torch.tensor([*start, *labels[:-1]])
        logits = oracle.row_logits(world.model, world.prompt, world.rows[index], ids)
        target = torch.tensor(labels)
        expected.append(
            torch.nn.functional.cross_entropy(logits[-len(labels) :], target, reduction="none")
        )
    close(scores.losses, torch.cat(expected), 1e-6)
    assert scores.rows.tolist() == [0] * 2 + [1] * 6 + [2] * 4


@pytest.mark.parametrize("family", [*TEXT, "whisper"])
@pytest.mark.parametrize("form", FORMS)
def test_training_lowers_the_loss(family: str, form: Any) -> None:
    world = World(family, form)
    config = TrainConfig(
        form=form, num_virtual_tokens=4, num_steps=25, batch_size=3, micro_batch_size=2,
        learning_rate=0.3, init="vocabulary",
    )  # fmt: skip
    events = list(train(world.backbone, labelled(world), config, validation=labelled(world)))
    assert events[-1].loss < 0.8 * events[0].loss
    assert events[-1].prompt is not None and events[-1].validation is not None


# Text


def closing_tokenizer() -> Any:
    """Return a tokenizer that closes every text, as T5's does."""
    return tiny_tokenizer("$A <|im_end|>", chat_template=None)


def test_text_and_answer_are_closed_as_the_tokenizer_closes_them() -> None:
    tokenizer = closing_tokenizer()
    backbone = Backbone(seq2seq_models.build("t5", vocab_size=len(tokenizer)), tokenizer)
    examples = [{"prompt": "ab", "completion": "yes"}]
    rows, _ = encode_rows(backbone, examples, TrainConfig(num_virtual_tokens=2), EncodingConfig())
    (row,) = rows
    text, answer = tokenizer("ab").input_ids, tokenizer("yes").input_ids
    assert row.input_ids == (*text, *answer) and row.num_labels == len(answer)
    assert text[-1] == answer[-1] == tokenizer.eos_token_id
    assert chat.encode(backbone, "ab", EncodingConfig())[0] == text


def test_the_command_line_encodes_texts_the_same() -> None:
    tokenizer, config = closing_tokenizer(), TrainConfig(num_virtual_tokens=2)
    backbone = Backbone(seq2seq_models.build("t5", vocab_size=len(tokenizer)), tokenizer)
    examples = [Example("ab", "yes", "row 1")]
    rows = cli_train.encode(backbone, examples, config, EncodingConfig(), "training")
    assert rows == encode_rows(backbone, examples, config, EncodingConfig())[0]
    assert rows[0].num_labels == len(tokenizer("yes").input_ids)


def test_answers_begin_after_the_decoders_start() -> None:
    tokenizer = closing_tokenizer()
    model = seq2seq_models.build("t5", vocab_size=len(tokenizer))
    backbone, prompt = Backbone(model, tokenizer), seq2seq_models.embedding_prompt(model, 3)
    (answer,) = chat.answers(backbone, prompt, ["ab"], max_new_tokens=5)
    row = torch.tensor(tokenizer("ab").input_ids)
    expected = oracle.greedy(model, prompt, row, 5, (0,))
    assert tokenizer.eos_token_id not in expected and answer.num_tokens == 5
    assert answer.text == encoding.decode(expected, tokenizer)
    pieces = chat.stream(backbone, prompt, "ab", max_new_tokens=5)
    assert "".join(pieces) == answer.text


@pytest.mark.parametrize("family", ["t5", "whisper"])
def test_a_model_is_loaded_from_its_directory(family: str, tmp_path: Path) -> None:
    tokenizer = closing_tokenizer()
    model = seq2seq_models.build(family, vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    if family == "whisper":
        transformers.WhisperFeatureExtractor(feature_size=8).save_pretrained(tmp_path)
    backbone = Backbone.load(str(tmp_path), dtype=torch.float64, device="cpu")
    assert type(backbone.model) is type(model) and backbone.tokenizer is not None
    assert backbone.fingerprint() == Backbone(model).fingerprint()


# Whisper's own loop


def long_whisper() -> World:
    """Return a world whose generation configuration knows timestamps, as whisper's does."""
    world = World("whisper", "embeddings", 3)
    world.model = seq2seq_models.build("whisper")
    config = world.model.generation_config
    config.no_timestamps_token_id, config.eos_token_id = 79, 2
    config.is_multilingual, config.prev_sot_token_id = True, 5
    config.lang_to_id, config.task_to_id = {"<|en|>": 10, "<|fr|>": 11}, {"transcribe": 12}
    world.backbone = Backbone(world.model)
    return world


def long_sounds(lengths: Sequence[int]) -> dict[str, Tensor]:
    """Return features of as many frames, padded, and their mask."""
    generator, width = torch.Generator().manual_seed(4), max(lengths)
    sounds = torch.randn(len(lengths), 8, width, generator=generator, dtype=torch.float64)
    mask = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    return {"input_features": sounds * mask[:, None], "attention_mask": mask}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "options",
    [
        {"task": "transcribe"},
        {"language": "fr", "return_timestamps": True},
        {"temperature": (0.0, 0.5), "logprob_threshold": 0.0, "compression_ratio_threshold": 1.0},
        {"return_timestamps": True, "condition_on_prev_tokens": True, "lengths": (50, 34)},
    ],
    ids=["detected language", "timestamps", "fallback", "long form"],
)
def test_whispers_own_loop_behind_one_prompt(form: str, options: dict[str, Any]) -> None:
    world, options = long_whisper(), dict(options)
    prompt = FORMS[form](world.model, 3)
    given = long_sounds(options.pop("lengths", (20, 20)))
    torch.manual_seed(0)
    found = world.backbone.generate(prompt, **given, max_new_tokens=8, **options)
    torch.manual_seed(0)
    slow = oracle.oracle(world.model, prompt)
    expected = slow.generate(**given, max_new_tokens=8, use_cache=False, **options)
    assert found.tolist() == expected.tolist()


# Files


def described(world: World) -> SoftPrompt:
    base = {"name": "tiny", "fingerprint": world.backbone.fingerprint()}
    return world.prompt.replaced(world.prompt.tensors, {"base": base})


def test_a_saved_prompt_comes_back(world: World, tmp_path: Path) -> None:
    prompt = described(world)
    prompt.save(tmp_path / "prompt")
    loaded = SoftPrompt.load(tmp_path / "prompt")
    assert loaded.content_hash == prompt.content_hash and loaded.form == prompt.form
    assert world.generate(loaded, **GREEDY).tolist() == world.generate(prompt, **GREEDY).tolist()


def test_a_compiled_prompt_is_used_and_saved(world: World, tmp_path: Path) -> None:
    prompt = described(world)
    prefix = world.backbone.compile(prompt)
    assert world.generate(prefix, **GREEDY).tolist() == world.generate(prompt, **GREEDY).tolist()
    prefix.save(tmp_path)
    assert SoftPrompt.load(tmp_path).content_hash == prompt.content_hash


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("family", TEXT)
def test_peft_reads_an_embedding_prompt_and_generates_the_same(family: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    world = World(family, "embeddings")
    model = seq2seq_models.build(family, num_layers=3)
    prompt = described(world)
    prompt.save(tmp_path)
    stock = peft.PeftModel.from_pretrained(copy.deepcopy(model), tmp_path).eval()
    output = stock.generate(input_ids=ROWS[1][None], **GREEDY)
    expected = oracle.greedy(model, prompt, ROWS[1], NUM_NEW, world.start)
    assert output[0, 1:].tolist() == expected


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", FORMS)
def test_what_peft_would_place_wrongly_it_refuses(family: str, form: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    if family in TEXT and form == "embeddings":
        return
    world = World(family, form)
    described(world).save(tmp_path)
    with pytest.raises(KeyError, match="FOREWORD_ONLY"):
        peft.PeftModel.from_pretrained(copy.deepcopy(world.model), tmp_path)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
@pytest.mark.parametrize("num_parts", [1, 2])
def test_a_prompt_of_stock_peft_acts_as_in_peft(num_parts: int, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = seq2seq_models.build("t5", num_layers=3)
    config = peft.PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, num_transformer_submodules=num_parts
    )
    stock = peft.get_peft_model(copy.deepcopy(model), config).eval()
    stock.save_pretrained(tmp_path)
    prompt = SoftPrompt.load(tmp_path)
    output = stock.generate(input_ids=ROWS[1][None], **GREEDY)
    found = Backbone(model).generate(prompt, ROWS[1][None], **GREEDY)
    assert prompt.num_virtual_tokens == 4 and found.tolist() == output.tolist()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
def test_keys_and_values_of_stock_peft_are_refused(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4)
    peft.get_peft_model(seq2seq_models.build("t5", num_layers=3), config).save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="a PREFIX_TUNING adapter with task_type SEQ_2_SEQ_LM"):
        SoftPrompt.load(tmp_path)


# Refusals


def test_a_prompt_of_a_decoder_alone_is_another_bases(tmp_path: Path) -> None:
    decoder = Backbone(tiny_models.shared("llama"))
    prompt = SoftPrompt.from_embeddings(
        torch.ones(3, 32), facts={"base": {"fingerprint": decoder.fingerprint()}}
    )
    with pytest.raises(MismatchError, match="encoder"):
        World("t5", "embeddings").backbone.compile(prompt)
    with pytest.raises(MismatchError, match="encoder"):
        decoder.compile(described(World("t5", "embeddings")))


REFUSED: dict[str, tuple[type[ForewordError], dict[str, Any]]] = {
    "past_key_values": (
        UnsupportedError,
        {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())},
    ),
    "decoder_position_ids": (UnsupportedError, {"decoder_position_ids": torch.zeros(3, 1).long()}),
    "decoder_inputs_embeds": (UnsupportedError, {"decoder_inputs_embeds": torch.zeros(3, 1, 32)}),
    "decoder_attention_mask": (
        UnsupportedError,
        {
            "decoder_input_ids": torch.tensor([[2, 4]] * 3),
            "decoder_attention_mask": torch.tensor([[0, 1], [1, 1], [1, 1]]),
        },
    ),
    "return_token_timestamps": (UnsupportedError, {"return_token_timestamps": True}),
    "cache_implementation='quantized'": (UnsupportedError, {"cache_implementation": "quantized"}),
    "cache_implementation='offloaded'": (UnsupportedError, {"cache_implementation": "offloaded"}),
    "guidance_scale": (UnsupportedError, {"guidance_scale": 2.0}),
}


@pytest.mark.parametrize("family", ["t5", "whisper"])
@pytest.mark.parametrize("part", REFUSED)
def test_what_is_not_exact_is_refused_by_name(family: str, part: str) -> None:
    kind, options = REFUSED[part]
    with pytest.raises(kind) as caught:
        World(family, "key_values").generate(**options, **GREEDY)
    assert part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"inputs_embeds": torch.zeros(3, 2, 32)}, "inputs_embeds"),
        ({"encoder_outputs": (torch.zeros(3, 2, 32),)}, "encoder_outputs"),
        ({"encoder_repetition_penalty": 1.5}, "encoder_repetition_penalty"),
        ({"encoder_no_repeat_ngram_size": 2}, "encoder_no_repeat_ngram_size"),
        ({"input_features": torch.zeros(3, 8, 20)}, "input_features"),
    ],
)
def test_what_an_encoder_of_text_cannot_take(options: dict[str, Any], part: str) -> None:
    with pytest.raises(ForewordError, match=part):
        World("t5", "embeddings").generate(**options, **GREEDY)


def test_padding_without_a_mask_is_refused() -> None:
    world = World("t5", "embeddings")
    ids = inputs("t5", ROWS)["input_ids"]
    with pytest.raises(InputError, match="padding id 0 and there is no attention_mask"):
        world.backbone.generate(world.prompt, ids, **GREEDY)


def test_a_decoder_that_counts_slots_takes_one_length() -> None:
    world = World("bart", "key_values")
    prompts = [world.prompt, None, world.prompt]
    with pytest.raises(UnsupportedError, match=r"prompts of \[0, 5\] tokens in one batch"):
        world.generate(prompts, **GREEDY)


@pytest.mark.parametrize("family", ["bart", "whisper"])
def test_more_tokens_than_the_decoder_has_positions(family: str) -> None:
    world = World(family, "key_values", 30)
    with pytest.raises(InputError, match="40 positions"):
        world.generate(max_new_tokens=20)
    given, ids = inputs(family, world.rows), tiny_models.ids(11).expand(3, -1)
    with pytest.raises(InputError, match="40 positions"):
        world.backbone.logits(world.prompt, **given, decoder_input_ids=ids)


def test_more_text_than_the_encoder_has_positions() -> None:
    with pytest.raises(InputError, match="row 1: 11 real and 30 virtual tokens"):
        World("bart", "embeddings", 30).generate(**GREEDY)


def test_padding_before_the_decoders_tokens_in_one_pass() -> None:
    world = World("t5", "key_values")
    ids, mask = torch.tensor([[2, 4]] * 3), torch.tensor([[0, 1], [1, 1], [1, 1]])
    with pytest.raises(UnsupportedError, match="padding before the decoder's tokens"):
        world.backbone.logits(
            world.prompt, *inputs("t5", ROWS).values(), decoder_input_ids=ids,
            decoder_attention_mask=mask,
        )  # fmt: skip


def test_whispers_loop_behind_different_prompts_is_refused() -> None:
    world = long_whisper()
    prompts = [seq2seq_models.embedding_prompt(world.model, 3, seed) for seed in (1, 2, 3)]
    with pytest.raises(UnsupportedError, match="return_timestamps"):
        world.generate(prompts, return_timestamps=True, max_new_tokens=4)
    world.rows = [torch.cat([sound] * 2, dim=1) for sound in SOUNDS]
    with pytest.raises(UnsupportedError, match="input_features of 40 frames"):
        world.generate(prompts, max_new_tokens=4)


def test_an_encoder_that_hears_needs_features() -> None:
    world = World("whisper", "embeddings")
    with pytest.raises(InputError, match="input_features"):
        world.backbone.generate(world.prompt, ROWS[0][None], **GREEDY)
    with pytest.raises(InputError, match="input_features"):
        list(train(world.backbone, [Row.from_ids([2], [3])], TrainConfig(num_virtual_tokens=2)))


def test_a_row_too_long_for_its_place_is_named() -> None:
    world, config = (
        World("bart", "embeddings"),
        TrainConfig(num_virtual_tokens=30, form="embeddings"),
    )
    with pytest.raises(InputError, match="ids: text of 11 tokens, at most 10 fit"):
        list(train(world.backbone, labelled(world), config))


def test_a_family_that_no_test_covers_proves_itself() -> None:
    config = transformers.PegasusConfig(
        **seq2seq_models.BART, max_position_embeddings=40, scale_embedding=True
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float64).eval()
    backbone, prompt = Backbone(model), seq2seq_models.embedding_prompt(model, 4)
    assert not backbone.capabilities.is_tested
    text = backbone.embed(ROWS[1])  # this family scales embeddings of ids, but not given ones
    whole = torch.cat([prompt.embeddings, text])[None]
    hidden = model.get_encoder()(inputs_embeds=whole).last_hidden_state
    expected = oracle.decoded(model, None, hidden, torch.tensor([2, 7, 9]))
    found = backbone.logits(prompt, ROWS[1][None], decoder_input_ids=torch.tensor([[2, 7, 9]]))
    close(found[0], expected, 1e-9)
    alone = model(input_ids=ROWS[1][None], decoder_input_ids=torch.tensor([[2, 7, 9]])).logits
    plain = model.get_encoder()(inputs_embeds=text[None]).last_hidden_state
    close(oracle.decoded(model, None, plain, torch.tensor([2, 7, 9])), alone[0], 1e-9)


# The doctor


def test_the_self_test_agrees(world: World) -> None:
    prompt = world.prompt if world.prompt.form == "key_values" else None
    found = doctor.self_test(world.backbone, prompt, num_new=5)
    assert [finding.status for finding in found] == ["ok"] * len(found), found
    assert {"cached generation", "left-padded batch", "gradient"} <= {f.name for f in found}


def test_the_self_test_sees_a_decoder_behind_another_prompt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, other = Backbone.generate, FORMS[world.prompt.form](world.model, 5, 9)
    monkeypatch.setattr(
        Backbone, "generate", lambda self, _, *a, **k: generate(self, other, *a, **k)
    )
    found = {
        finding.name: finding
        for finding in doctor.self_test(world.backbone, world.prompt, num_new=4)
    }
    assert found["cached generation"].status == found["left-padded batch"].status == "wrong"


def test_the_doctor_says_what_the_encoder_reads(world: World) -> None:
    found = {f.name: f for f in doctor.capabilities_findings(world.backbone)}
    assert world.backbone.capabilities.encoder is not None
    assert world.backbone.capabilities.encoder.input_name in found["encoder"].detail
    assert found["model"].status == "ok"


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
def test_the_doctor_measures_stock_peft(world: World, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    described(world).save(tmp_path)
    found = doctor.peft_findings(world.backbone, tmp_path, num_new=4)
    assert found and all(finding.status in ("ok", "warning") for finding in found)
