"""Training: the gradient is the obvious one, nothing of the base moves, and the loss falls."""

import dataclasses
from pathlib import Path

import oracle
import pytest
import tiny_models
import torch
from tiny_tokenizer import tiny_tokenizer
from torch import Tensor
from training_oracle import FAST, ROWS, check_gradient

from foreword import Backbone, EncodingConfig, Example, Row, SoftPrompt, TrainConfig, chat, train
from foreword.data.batches import collate
from foreword.errors import DataError, InputError, TrainingError
from foreword.prompt.prefix import Prefix, same_prefix
from foreword.training import compile_layers
from foreword.training import loss as loss_module
from foreword.training.checkpoint import STATE_FILE, read_state
from foreword.training.gradient_checkpointing import with_gradient_checkpointing
from foreword.training.step import accumulate, detached

CHAT = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize("micro_batch_size", [4, 2, 1])
@pytest.mark.parametrize("form", ["embeddings", "key_values"])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_gradient_equals_the_concatenated_form(
    family: str, form: str, micro_batch_size: int
) -> None:
    check_gradient(family, form, micro_batch_size)


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_gradient_of_recomputed_layers_equals_the_concatenated_form(family: str, form: str) -> None:
    for micro_batch_size in (4, 1) if family in ("llama", "gemma3", "qwen3") else (2,):
        check_gradient(family, form, micro_batch_size, with_gradient_checkpointing)


@pytest.mark.parametrize("family", ["llama", "gemma2", "granite"])
def test_a_head_in_chunks_keeps_no_logits_and_gives_the_same_gradient(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Backbone(tiny_models.build(family))
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 6))
    whole, chunked = ([detached(backbone.compile(prompt).states)] for _ in range(2))
    widths: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        widths.append(tensor.shape[-1] if tensor.ndim else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = accumulate(backbone, whole, [collate(ROWS, 0)])
        assert 97 in widths
        widths.clear()
        monkeypatch.setattr(loss_module, "MAX_LOGITS", 3 * 97)
        assert accumulate(backbone, chunked, [collate(ROWS, 0)]) == pytest.approx(loss, rel=1e-12)
        assert 32 in widths and 97 not in widths
    for ours, theirs in zip(chunked[0].tensors, whole[0].tensors, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3"])
def test_gradient_of_compiled_layers_equals_the_concatenated_form(
    family: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_layers, "BACKEND", "aot_eager")
    check_gradient(family, form, 2, compile_layers.with_compiled_layers)
    torch._dynamo.reset()


def kept_numbers(backbone: Backbone, form: str) -> int:
    """Return how many numbers a pass of rows keeps for its way back, the inputs of all included."""
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 6))
    if form == "key_values":
        prompt = SoftPrompt.from_key_values(backbone.compile(prompt).key_values)
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    states = backbone.prefill(prompt.trainable(torch.float32))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        backbone.hidden(same_prefix(Prefix(states, ""), 4), collate(ROWS, 0).input_ids, None)
    weights = {p.untyped_storage().data_ptr() for p in backbone.model.parameters()}
    return sum(size for pointer, size in sizes.items() if pointer not in weights)


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
def test_recomputed_layers_keep_little_and_leave_the_model_alone(form: str) -> None:
    model = tiny_models.build("llama", dtype=torch.float32, num_hidden_layers=8)
    before = [(name, id(part), part.training) for name, part in model.named_modules()]
    attributes = [dict(vars(part)) for part in model.modules()]
    backbone = Backbone(model)
    assert kept_numbers(with_gradient_checkpointing(backbone), form) < 0.3 * kept_numbers(
        backbone, form
    )
    assert [(name, id(part), part.training) for name, part in model.named_modules()] == before
    assert [dict(vars(part)).keys() for part in model.modules()] == [a.keys() for a in attributes]


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
def test_a_run_with_recomputed_layers_comes_to_the_same(form: str) -> None:
    backbone = Backbone(tiny_models.build("gemma3"))
    config = dataclasses.replace(FAST, form=form, micro_batch_size=2)
    plain = list(train(backbone, ROWS, config))
    recomputed = list(
        train(backbone, ROWS, dataclasses.replace(config, gradient_checkpointing=True))
    )
    for ours, theirs in zip(recomputed, plain, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-9)


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
def test_prompt_and_moments_stay_float32_over_a_bfloat16_base(form: str, tmp_path: Path) -> None:
    backbone = Backbone(tiny_models.build("llama", dtype=torch.bfloat16))
    config = dataclasses.replace(FAST, form=form, num_steps=20, learning_rate=0.05)
    events = list(train(backbone, ROWS, config, checkpoint=tmp_path))
    assert events[-1].loss < events[0].loss
    assert {t.dtype for t in events[-1].prompt.tensors} == {torch.float32}
    state = read_state(tmp_path / STATE_FILE).part("now")
    assert {t.dtype for t in state.values()} == {torch.float32}
    assert {name.split(".")[1] for name in state} == {"value", "step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
def test_loss_falls_and_the_base_does_not_move(form: str) -> None:
    model = tiny_models.build("llama", dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config = dataclasses.replace(FAST, form=form, num_steps=30, learning_rate=0.1)
    events = list(train(Backbone(model), ROWS, config))
    assert events[-1].loss < 0.5 * events[0].loss
    assert events[-1].prompt.form == form and events[-1].step == 30
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_training_is_reproducible() -> None:
    backbone = Backbone(tiny_models.build("llama", dtype=torch.float32))
    first, second = (list(train(backbone, ROWS, FAST))[-1].prompt for _ in range(2))
    assert first.content_hash == second.content_hash


def test_generate_train_generate_uses_the_new_prompt() -> None:
    backbone = Backbone(tiny_models.build("llama"))
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 4))
    ids = tiny_models.ids(5)[None]
    old = backbone.generate(prompt, ids, max_new_tokens=6, do_sample=False)
    config = dataclasses.replace(FAST, num_steps=8, learning_rate=0.3)
    *_, last = train(backbone, ROWS, config, initial=prompt)
    new = backbone.generate(last.prompt, ids, max_new_tokens=6, do_sample=False)
    assert new[0, 5:].tolist() == oracle.greedy(backbone.model, last.prompt, ids[0], 6)
    assert new.tolist() != old.tolist()
    again = backbone.generate(prompt, ids, max_new_tokens=6, do_sample=False)
    assert again.tolist() == old.tolist(), "training copies the prompt that it starts from"


def test_a_prompt_changed_in_place_is_compiled_anew() -> None:
    backbone = Backbone(tiny_models.shared("llama"))
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 4))
    first = backbone.compile(prompt)
    assert backbone.compile(prompt) is first
    prompt.tensors[0].data.mul_(2)
    assert backbone.compile(prompt) is not first


def test_the_best_prompt_by_validation_is_the_result() -> None:
    backbone = Backbone(tiny_models.build("llama", dtype=torch.float32))
    config = dataclasses.replace(FAST, num_steps=6, eval_every=2, learning_rate=0.5)
    events = list(train(backbone, ROWS, config, validation=ROWS[:2]))
    validated = [event.validation.loss for event in events if event.validation]
    assert len(validated) == 3
    metrics = events[-1].prompt.facts["metrics"]
    assert metrics["validation"]["loss"] == min(validated)


def test_exact_match_is_what_greedy_decoding_answers() -> None:
    backbone = Backbone(tiny_models.build("llama", dtype=torch.float32))
    config = dataclasses.replace(FAST, num_steps=80, learning_rate=0.2, eval_every=0)
    *_, last = train(backbone, ROWS, config, validation=ROWS)
    answers, agreed = [], []
    for row in ROWS:
        ids = torch.tensor(row.input_ids)
        best = oracle.row_logits(backbone.model, last.prompt, ids).argmax(-1)
        agreed += (best[-row.num_labels - 1 : -1] == ids[-row.num_labels :]).tolist()
        new = oracle.greedy(backbone.model, last.prompt, ids[: -row.num_labels], row.num_labels)
        answers.append(new == list(row.input_ids[-row.num_labels :]))
    assert 0 < last.validation.exact == sum(answers) / len(ROWS)
    assert last.validation.agreement == sum(agreed) / len(agreed)


def test_a_dead_gradient_is_refused() -> None:
    model = tiny_models.build("llama")
    model.model.norm.register_forward_hook(lambda module, args, output: output * 0.0)
    with pytest.raises(TrainingError, match="gradient of the prompt is zero"):
        list(train(Backbone(model), ROWS, FAST))


def test_a_loss_that_is_not_finite_is_refused() -> None:
    model = tiny_models.build("llama")
    model.model.norm.register_forward_hook(lambda module, args, output: output * float("inf"))
    with pytest.raises(TrainingError, match="the loss is nan"):
        list(train(Backbone(model), ROWS, FAST))


def test_a_row_that_is_all_answer_is_refused() -> None:
    with pytest.raises(InputError, match="needs one token before its answer"):
        list(train(Backbone(tiny_models.shared("llama")), [Row.from_ids([], [1, 2])], FAST))


def test_examples_may_be_plain_rows_of_columns() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_models.build("llama", dtype=torch.float32, vocab_size=len(tokenizer))
    rows = [{"prompt": "a", "completion": "b"}, {"messages": CHAT}]
    *_, last = train(Backbone(model, tokenizer), rows, FAST)
    assert last.prompt.facts["training"]["num_rows"] == 2


def test_a_plain_row_that_cannot_be_used_is_numbered() -> None:
    model = tiny_models.build("llama", dtype=torch.float32, vocab_size=len(tiny_tokenizer()))
    with pytest.raises(DataError, match="example 1: expected column 'messages'"):
        list(train(Backbone(model, tiny_tokenizer()), [{"text": "a"}], FAST))


def test_a_prompt_knows_how_its_rows_were_read(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = Backbone(tiny_models.build("llama", vocab_size=len(tokenizer)), tokenizer)
    config = TrainConfig(method="prompt-tuning", num_virtual_tokens=4, num_steps=1, init="random")
    turn = ({"role": "user", "content": "say a"},)
    for asked, answer in (("say a", "a"), ("say a", " yes"), (turn, "a")):
        rows = [Example(asked, answer)]  # type: ignore[arg-type]
        *_, last = train(model, rows, config, encoding_config=EncodingConfig(plain=True))
        last.prompt.save(tmp_path)
        facts = SoftPrompt.load(tmp_path).facts["encoding"]
        is_text = isinstance(asked, str)
        assert (facts["is_text"], facts["is_spaced"]) == (is_text, answer == " yes")
        assert chat.reads_turns(model, last.prompt) is not is_text
    *_, last = train(model, [Example("say a", "a")], config)
    assert chat.reads_turns(model, last.prompt) and chat.reads_turns(model, None)
