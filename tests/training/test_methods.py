"""Methods: their formulas, gradients and folding, what they refuse, and that a run resumes."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle
import pytest
import seq2seq_models
import tiny_models
import torch
from oracle import given_cache
from peft import PeftModel
from safetensors.torch import save_file
from stopped_runs import events_until
from tiny_tokenizer import tiny_tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy, layer_norm, linear, relu
from transformers import DynamicCache

from foreword import Backbone, Row, SoftPrompt, TrainConfig, TrainEvent, train
from foreword.config import NUM_DEMONSTRATED
from foreword.data.batches import collate
from foreword.errors import ArtifactError, DataError, InputError, MismatchError, UnsupportedError
from foreword.training.checkpoint import METADATA_NAME, STATE_FILE, read_state
from foreword.training.initializers import demonstrations, label_embeddings
from foreword.training.methods.context import Context
from foreword.training.methods.method import Method, prefill, task_prompts
from foreword.training.start import _demonstrations, begin, initial_prompt, with_start
from foreword.training.step import _backward, accumulate, detached

ROWS = [
    Row.from_ids(tiny_models.ids(length).tolist(), tiny_models.ids(answer, seed=5).tolist())
    for length, answer in ((3, 2), (9, 1), (6, 5), (5, 2))
]
ROWS = [dataclasses.replace(row, task="ab"[i % 2]) for i, row in enumerate(ROWS)]
VARIANTS: dict[str, dict[str, Any]] = {
    "prompt-tuning": {"method": "prompt-tuning"},
    "prefix-tuning": {"method": "prefix-tuning"},
    "p-tuning mlp": {"method": "p-tuning", "encoder_size": 12},
    "p-tuning lstm": {"method": "p-tuning", "encoder": "lstm", "encoder_size": 6},
    "residual": {"method": "residual", "encoder_size": 8},
    "prefix-projection": {"method": "prefix-projection", "encoder_size": 10},
    "context-tuning": {"method": "context-tuning", "num_virtual_tokens": 14},
    "multitask": {"method": "multitask"},
}


def config(variant: str, **changes: Any) -> TrainConfig:
    fast = {"num_virtual_tokens": 4, "batch_size": 3, "num_steps": 6, "eval_every": 2}
    return TrainConfig(**(fast | VARIANTS[variant] | changes))


def moved(backbone: Backbone, variant: str) -> Method:
    """Return a method whose every leaf stands somewhere, not where a run begins."""
    method = begin(backbone, None, ROWS, config(variant))
    generator = torch.Generator().manual_seed(3)
    for leaf in method.tensors:
        noise = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
        leaf.data += 0.1 * noise
    return method


@pytest.fixture(scope="module")
def exact() -> Backbone:
    return Backbone(tiny_models.with_exact_norms(tiny_models.build("llama")))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(tiny_models.build("llama", dtype=torch.float32))


def mlp(inputs: Tensor, weights: list[Tensor]) -> Tensor:
    first, b1, second, b2, third, b3 = weights
    return linear(relu(linear(relu(linear(inputs, first, b1)), second, b2)), third, b3)


def lstm(inputs: Tensor, weights: list[Tensor]) -> Tensor:
    """Run both layers in both directions, one token at a time."""
    hidden = inputs
    for layer in range(2):
        sides = []
        for side in range(2):
            w_in, w_state, b_in, b_state = weights[(2 * layer + side) * 4 :][:4]
            tokens = hidden.flip(0) if side else hidden
            state = cell = hidden.new_zeros(w_state.shape[1])
            found = []
            for token in tokens:
                gates = linear(token, w_in, b_in) + linear(state, w_state, b_state)
                opened, kept, new, shown = gates.chunk(4)
                cell = kept.sigmoid() * cell + opened.sigmoid() * new.tanh()
                state = shown.sigmoid() * cell.tanh()
                found.append(state)
            sides.append(torch.stack(found[::-1] if side else found))
        hidden = torch.cat(sides, dim=1)
    w1, b1, w2, b2 = weights[16:]
    return linear(relu(linear(hidden, w1, b1)), w2, b2)


def residual(inputs: Tensor, weights: list[Tensor]) -> Tensor:
    down, b1, up, b2, gain, bias = weights
    encoded = linear(relu(linear(inputs, down, b1)), up, b2)
    return inputs + layer_norm(encoded, encoded.shape[-1:], gain, bias)


def projection(inputs: Tensor, weights: list[Tensor]) -> Tensor:
    first, b1, second, b2 = weights
    return linear(linear(inputs, first, b1).tanh(), second, b2)


FORMULAS: dict[str, Callable[[Tensor, list[Tensor]], Tensor]] = {
    "p-tuning mlp": mlp,
    "p-tuning lstm": lstm,
    "residual": residual,
    "prefix-projection": projection,
}


def obvious_prompts(variant: str, method: Method) -> dict[str, SoftPrompt]:
    """Compute the prompt of every task, or of all rows, by the papers' formulas."""
    leaves = method.tensors
    if variant in FORMULAS:
        flat = method.constants[0] + FORMULAS[variant](leaves[0], leaves[1:])
        if variant != "prefix-projection":
            return {"": SoftPrompt("embeddings", [flat])}
        states = flat.view(4, 3, 2, 2, 8)  # P, layers, keys and values, N, D
        tensors = [states[:, i, j].transpose(0, 1) for i in range(3) for j in range(2)]
        return {"": SoftPrompt("key_values", tensors)}
    if variant == "context-tuning":
        pairs = zip(method.constants, leaves, strict=True)
        return {"": SoftPrompt("key_values", [torch.cat(pair, dim=1) for pair in pairs])}
    if variant == "multitask":
        shared, u, v = leaves
        return {
            name: SoftPrompt("embeddings", [shared * (u[i][:, None] @ v[i][None])])
            for i, name in enumerate("ab")
        }
    return {"": method.prompt()}


def obvious_loss(
    model: Any, prompts: dict[str, SoftPrompt], unseen: Callable[[Row], list[int]]
) -> Tensor:
    """Return the mean label loss, one unpadded row at a time."""
    losses = []
    for row in ROWS:
        ids, prompt = torch.tensor(row.input_ids), prompts.get(row.task, prompts.get(""))
        assert prompt is not None
        logits = oracle.row_logits(model, prompt, ids)
        if hidden := unseen(row):
            cache = DynamicCache()
            for index, (keys, values) in enumerate(prompt.key_values):
                cache.update(keys[None], values[None], index)
            seen = torch.ones(1, prompt.num_virtual_tokens + len(ids), dtype=torch.long)
            seen[0, hidden] = 0
            positions = torch.arange(prompt.num_virtual_tokens, seen.shape[1])[None]
            logits = model(
                ids[None],
                position_ids=positions,
                attention_mask=seen,
                **given_cache(model, cache),
            ).logits[0]
        logits = logits[-row.num_labels - 1 : -1]
        losses.append(cross_entropy(logits, ids[-row.num_labels :], reduction="none"))
    return torch.cat(losses).mean()


def own_demonstration(variant: str, row: Row) -> list[int]:
    if variant != "context-tuning":
        return []
    places = demonstrations([row.input_ids for row in ROWS], 14)
    return [slot for slot, (index, _) in enumerate(places) if ROWS[index] is row]


@pytest.mark.parametrize("micro_batch_size", [4, 1])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_equals_that_of_the_papers_formula(
    exact: Backbone, variant: str, micro_batch_size: int
) -> None:
    method = moved(exact, variant)
    states = prefill(exact, method)
    leaves = [detached(one) for one in states]
    batches = [collate(ROWS[i : i + micro_batch_size], 0) for i in range(0, 4, micro_batch_size)]
    loss = accumulate(exact, leaves, batches, sum(row.num_labels for row in ROWS), method)
    _backward(states, leaves)

    expected = obvious_loss(
        exact.model, obvious_prompts(variant, method), lambda row: own_demonstration(variant, row)
    )
    gradients = torch.autograd.grad(expected, method.tensors)
    assert loss == pytest.approx(expected.item(), rel=1e-9)
    for leaf, obvious in zip(method.tensors, gradients, strict=True):
        difference = (leaf.grad - obvious).norm() / obvious.norm().clamp_min(1e-12)
        assert difference < 1e-9


@pytest.mark.parametrize("family", ["gemma3", "qwen3"])
def test_a_hidden_demonstration_changes_the_loss_as_a_mask_does(family: str) -> None:
    backbone = Backbone(tiny_models.with_exact_norms(tiny_models.build(family)))
    method = begin(backbone, None, ROWS, config("context-tuning"))
    assert isinstance(method, Context) and method.own
    states = [detached(one) for one in prefill(backbone, method)]
    loss = accumulate(backbone, states, [collate(ROWS, 0)], None, method)
    prompts = {"": method.prompt()}
    hidden = obvious_loss(
        backbone.model, prompts, lambda row: own_demonstration("context-tuning", row)
    )
    assert loss == pytest.approx(hidden.item(), rel=1e-9)
    seen = obvious_loss(backbone.model, prompts, lambda row: [])
    assert abs(loss - seen.item()) > 1e-4


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_begins_at_the_prompt_it_is_given(exact: Backbone, variant: str) -> None:
    method = begin(exact, None, ROWS, config(variant))
    start = initial_prompt(exact, config(variant), ROWS)
    for prompt in (method.prompt(), *task_prompts(method).values()):
        for ours, given in zip(prompt.tensors, start.tensors, strict=True):
            torch.testing.assert_close(ours, given.double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS)
def test_folding_is_exact(exact: Backbone, variant: str, tmp_path: Path) -> None:
    method, ids = moved(exact, variant), tiny_models.ids(5)[None]
    for name, prompt in (task_prompts(method) or {"": method.prompt()}).items():
        unfolded = exact.logits(prompt, ids)
        prompt.save(tmp_path / name)
        folded = exact.logits(SoftPrompt.load(tmp_path / name), ids)
        torch.testing.assert_close(folded, unfolded, rtol=0, atol=1e-12)


def run(
    backbone: Backbone, variant: str, folder: Path | None = None, stop: int = 0, **changes: Any
) -> list[TrainEvent]:
    events = train(
        backbone, ROWS, config(variant, **changes), validation=ROWS[:2], checkpoint=folder,
        resume=folder is not None,
    )  # fmt: skip
    return events_until(events, stop)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_falls(backbone: Backbone, variant: str) -> None:
    events = run(backbone, variant, num_steps=12, batch_size=4, learning_rate=0.1, eval_every=0)
    assert events[-1].loss < 0.8 * events[0].loss


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_run_left_in_the_middle_goes_on_bit_for_bit(
    backbone: Backbone, variant: str, tmp_path: Path
) -> None:
    calm = run(backbone, variant)
    run(backbone, variant, tmp_path, stop=3)
    stored = read_state(tmp_path / STATE_FILE)
    assert stored.progress().step == 3 and stored.best() is not None
    rest = run(backbone, variant, tmp_path)
    assert [event.loss for event in rest] == [event.loss for event in calm[3:]]
    assert rest[-1].prompt.content_hash == calm[-1].prompt.content_hash
    hashes = [
        {name: prompt.content_hash for name, prompt in events[-1].task_prompts.items()}
        for events in (rest, calm)
    ]
    assert hashes[0] == hashes[1] and bool(hashes[0]) == (variant == "multitask")


def test_a_network_is_in_the_state_and_not_in_the_prompt(
    backbone: Backbone, tmp_path: Path
) -> None:
    *_, last = run(backbone, "p-tuning mlp", tmp_path)
    assert len(read_state(tmp_path / STATE_FILE).method().tensors) == 7
    assert [list(tensor.shape) for tensor in last.prompt.tensors] == [[4, 32]]
    assert last.prompt.facts["method"] == "p-tuning"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"kind": "other"},
        {"sizes": [32, 10**9, 32]},
        {"sizes": [32, 12]},
        {"shape": {"form": "embeddings"}, "more": 1},
        {"shapes": None},
    ],
)
def test_a_damaged_layout_is_refused(
    backbone: Backbone, tmp_path: Path, change: dict[str, Any]
) -> None:
    run(backbone, "p-tuning mlp", tmp_path, stop=2)
    stored = read_state(tmp_path / STATE_FILE)
    facts = stored.facts | {"method": stored.facts["method"] | change}
    save_file(stored.tensors, tmp_path / STATE_FILE, {METADATA_NAME: json.dumps(facts)})
    with pytest.raises(ArtifactError, match="a damaged one") as refused:
        run(backbone, "p-tuning mlp", tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # PEFT's own
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@pytest.mark.parametrize("variant", ["residual", "prefix-projection", "context-tuning"])
def test_stock_peft_reads_what_is_saved(backbone: Backbone, variant: str, tmp_path: Path) -> None:
    prompt = run(backbone, variant, num_steps=2)[-1].prompt
    prompt.save(tmp_path)
    model = tiny_models.build("llama", dtype=torch.float32)
    ids = tiny_models.ids(5)[None]
    theirs = PeftModel.from_pretrained(model, str(tmp_path))(ids).logits[0, -5:]
    torch.testing.assert_close(theirs, backbone.logits(prompt, ids)[0], rtol=1e-4, atol=1e-4)


def test_the_first_token_of_a_context_never_moves(backbone: Backbone) -> None:
    start = initial_prompt(backbone, config("context-tuning"), ROWS)
    last = run(backbone, "context-tuning", learning_rate=0.1)[-1].prompt
    for before, after in zip(start.tensors, last.tensors, strict=True):
        assert torch.equal(before[:, :1], after[:, :1])
        assert not torch.equal(before[:, 1:], after[:, 1:])


def test_a_row_that_is_no_demonstration_sees_all(exact: Backbone) -> None:
    method = begin(exact, None, ROWS, config("context-tuning"))
    assert method.unseen(collate([Row.from_ids([5, 6], [7])], 0)) is None


def test_tasks_are_validated_each_with_its_own_prompt(exact: Backbone) -> None:
    events = list(train(exact, ROWS, config("multitask", num_steps=2), validation=ROWS))
    expected = obvious_loss(exact.model, dict(events[-1].task_prompts), lambda row: [])
    assert events[-1].validation is not None
    assert events[-1].validation.loss == pytest.approx(expected.item(), rel=1e-6)


# --- where a prompt starts ----------------------------------------------------------------------


def test_demonstrations_fill_all_virtual_tokens() -> None:
    rows = [[1, 2, 3], [4, 5, 6, 7, 8, 9], [10, 11]]
    assert demonstrations(rows, 6) == [(1, 5), (0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]
    assert demonstrations(rows[:1], 4) == [(0, 2), (0, 0), (0, 1), (0, 2)]


def test_keys_start_as_the_models_own_cache_of_demonstrations(exact: Backbone) -> None:
    prompt = initial_prompt(exact, config("context-tuning"), ROWS)
    places = demonstrations([row.input_ids for row in ROWS], 14)
    ids = torch.tensor([[ROWS[row].input_ids[position] for row, position in places]])
    cache = exact.model(ids, use_cache=True).past_key_values
    for layer, (keys, values) in zip(cache.layers, prompt.key_values, strict=True):
        torch.testing.assert_close(keys, layer.keys[0].float())
        torch.testing.assert_close(values, layer.values[0].float())


def test_labels_start_as_their_own_tokens() -> None:
    table = torch.arange(40.0).view(10, 4)
    found = label_embeddings(table, [[1, 2, 9], [3, 9], [1, 2, 9]], 4, torch.Generator())
    assert torch.equal(found[0], table[[1, 2]].mean(0)) and torch.equal(found[1], table[3])
    assert found.shape == (4, 4)
    # One answer ends as the whole of another: what is left tells them apart.
    found = label_embeddings(table, [[5, 1], [7, 5, 1]], 4, torch.Generator())
    assert torch.equal(found[0], table[5]) and torch.equal(found[1], table[[7, 5]].mean(0))


def test_labels_are_refused_where_answers_are_no_classes(backbone: Backbone) -> None:
    with pytest.raises(
        InputError, match="3 different answers and 2 virtual tokens: .* --init text"
    ):
        run(backbone, "prompt-tuning", init="labels", num_virtual_tokens=2)


@pytest.mark.parametrize("init", ["vocabulary", "random", "labels", "demonstrations"])
def test_no_start_is_off_the_tables_scale(backbone: Backbone, init: Any) -> None:
    start = initial_prompt(
        backbone, config("prompt-tuning", init=init, num_virtual_tokens=16), ROWS
    )
    table = backbone.embed(torch.arange(97))
    assert 0.5 < float(start.embeddings.std() / table.std()) < 2


def test_keys_may_start_from_another_tasks_embeddings(exact: Backbone) -> None:
    other = SoftPrompt.from_embeddings(tiny_models.embeddings(exact.model, 6))
    events = list(train(exact, ROWS, config("prefix-tuning", num_steps=1), initial=other))
    assert events[-1].prompt.num_virtual_tokens == 6
    assert events[-1].prompt.facts["training"]["num_virtual_tokens"] == 6
    assert "has 6 virtual tokens: so has this one, not 4" in events[0].notices[0]
    method = begin(exact, other, ROWS, config("prefix-tuning"))
    expected = exact.compile(other).states
    for ours, theirs in zip(method.tensors, expected.tensors, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prompt_of_another_base_is_no_start(backbone: Backbone, variant: str) -> None:
    other = Backbone(tiny_models.build("llama", seed=7, dtype=torch.float32))
    facts = {"base": {"name": "other", "fingerprint": other.fingerprint()}}
    theirs = SoftPrompt.from_embeddings(tiny_models.embeddings(other.model, 4), facts=facts)
    with pytest.raises(MismatchError, match="made for other"):
        train(backbone, ROWS, config(variant, num_virtual_tokens=4), initial=theirs)
    narrow = SoftPrompt.from_embeddings(torch.zeros(4, 6))
    with pytest.raises(MismatchError, match="hidden size 6"):
        train(backbone, ROWS, config(variant, num_virtual_tokens=4), initial=narrow)


def test_a_prompt_that_holds_no_rows_hides_none(exact: Backbone) -> None:
    other = SoftPrompt.from_embeddings(tiny_models.embeddings(exact.model, 14))
    method = begin(exact, other, ROWS, config("context-tuning"))
    assert isinstance(method, Context) and not method.own
    assert begin(exact, None, ROWS, config("context-tuning")).own  # type: ignore[attr-defined]
    small = SoftPrompt.from_embeddings(tiny_models.embeddings(exact.model, 3))  # no row fits
    short = config("context-tuning", num_virtual_tokens=3, num_steps=1)
    assert list(train(exact, ROWS, short, initial=small))[-1].prompt


def test_one_row_is_no_context(exact: Backbone) -> None:
    with pytest.raises(InputError, match="one row only .*give different rows, or --init-text"):
        train(exact, ROWS[:1] * 3, config("context-tuning"))


def test_a_row_that_its_own_demonstration_leaves_nothing_is_refused(exact: Backbone) -> None:
    own = Row.from_ids(range(10, 22), [30, 31], "rows.jsonl:3")
    rows = [own, *(Row.from_ids(range(40 + n, 60 + n), [90 + n], f"{n}") for n in range(3))]
    for size in (14, 15):  # the first virtual token is never trained
        with pytest.raises(InputError, match=f"rows.jsonl:3: .*fills the {size} virtual tokens, .*"
                           "raise --num-virtual-tokens"):  # fmt: skip
            train(exact, rows, config("context-tuning", num_virtual_tokens=size))
    changes: dict[str, Any] = {"num_virtual_tokens": 16, "batch_size": 1, "num_steps": 4}
    events = list(train(exact, rows, config("context-tuning", **changes)))
    assert all(event.gradient_norm > 0 for event in events)


def test_a_start_that_leaves_a_row_nothing_is_not_taken_unasked() -> None:
    model = Backbone(tiny_models.build("llama", num_hidden_layers=1, max_position_embeddings=512))
    short = [Row.from_ids([5, 6, one], [one]) for one in range(10, 40)]
    long = Row.from_ids([7] * (NUM_DEMONSTRATED - 2), [8, 9])
    for rows, method in ((short, "context-tuning"), ([long, *short], None)):
        found, _ = with_start(model, TrainConfig(), rows, [])
        assert found.method == method


def test_a_validation_row_of_an_unknown_task_is_refused(exact: Backbone) -> None:
    rare = dataclasses.replace(ROWS[0], task="rare", source="rows.jsonl:7")
    with pytest.raises(InputError, match="rows.jsonl:7: .*'rare'.* tasks with some: a, b"):
        train(exact, ROWS, config("multitask"), validation=[rare])


def test_an_instruction_starts_as_a_text_starts_once() -> None:
    tokenizer = tiny_tokenizer(adds="<|bos|> $A <|im_end|>")
    model = Backbone(tiny_models.build("llama", vocab_size=len(tokenizer)), tokenizer)
    start = initial_prompt(model, config("prompt-tuning", init_text="ab", num_virtual_tokens=6))
    a, b = tokenizer("ab", add_special_tokens=False).input_ids
    expected = model.embed(torch.tensor([0, a, b, a, b, a]))
    torch.testing.assert_close(start.embeddings, expected.float())


def test_two_starts_are_refused() -> None:
    with pytest.raises(InputError, match="--init vocabulary and --init-text name two starts"):
        TrainConfig(init="vocabulary", init_text="Name the topic.")


def test_a_prompt_to_start_from_decides_the_form(backbone: Backbone) -> None:
    other = SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 4).float())
    short = TrainConfig(num_virtual_tokens=4, num_steps=1)
    last = list(train(backbone, ROWS, short, initial=other))[-1].prompt
    assert last.form == "embeddings" and last.facts["method"] == "prompt-tuning"


# --- other bases --------------------------------------------------------------------------------


def test_hidden_demonstrations_stay_hidden_from_recomputed_layers(backbone: Backbone) -> None:
    plain, recomputed = (
        run(backbone, "context-tuning", num_steps=2, gradient_checkpointing=is_recomputed)
        for is_recomputed in (False, True)
    )
    for ours, theirs in zip(recomputed, plain, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)


@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "context-tuning"])
def test_models_with_an_encoder_learn_by_every_other_method(variant: str) -> None:
    model = seq2seq_models.with_exact_norms(seq2seq_models.build("t5"))
    events = run(Backbone(model), variant, num_steps=8, batch_size=4, learning_rate=0.1)
    assert events[-1].loss < events[0].loss


def test_a_context_is_refused_beside_an_encoder() -> None:
    with pytest.raises(UnsupportedError, match="reads a row's text and its answer apart"):
        run(Backbone(seq2seq_models.shared("t5")), "context-tuning")


# --- refusals -----------------------------------------------------------------------------------


def test_embeddings_cannot_start_from_keys(backbone: Backbone) -> None:
    keys = initial_prompt(backbone, config("prefix-tuning"))
    with pytest.raises(InputError, match="residual learns embeddings, .* keys and values"):
        list(train(backbone, ROWS, config("residual"), initial=keys))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "residual", "form": "key_values"}, "residual learns embeddings, not --form"),
        ({"task_column": "job"}, "--task-column is of --method multitask"),
        ({"encoder": "lstm"}, "--encoder lstm is of --method p-tuning"),
        ({"encoder_size": 8}, "--encoder-size is of --method p-tuning, residual"),
        ({"method": "residual", "encoder_size": 0}, "--encoder-size must be at least 1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        TrainConfig(**options)
    assert "\n" not in str(refused.value)


def test_demonstrations_that_do_not_fit_are_refused(backbone: Backbone) -> None:
    with pytest.raises(InputError, match="the shortest row has 5 tokens .* 4 virtual tokens"):
        run(backbone, "context-tuning", num_virtual_tokens=4)


@pytest.mark.parametrize("variant", ["context-tuning", "prefix-projection"])
def test_recurrent_layers_are_refused(variant: str) -> None:
    with pytest.raises(UnsupportedError, match=r"recurrent .* use --method prefix-tuning"):
        run(Backbone(tiny_models.shared("qwen3_next")), variant)


def test_plain_rows_name_their_tasks_in_a_column() -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_models.build("llama", dtype=torch.float32, vocab_size=len(tokenizer))
    rows = [{"prompt": "a", "completion": "b", "job": job} for job in ("x", "y")]
    short = config("multitask", task_column="job", num_steps=1)
    *_, last = train(Backbone(model, tokenizer), rows, short)
    assert list(last.task_prompts) == ["x", "y"]
    with pytest.raises(DataError, match="example 1: expected column 'job'"):
        list(train(Backbone(model, tokenizer), [{"prompt": "a", "completion": "b"}], short))


def test_rows_without_a_task_are_refused(backbone: Backbone) -> None:
    rows = [Row.from_ids([3, 4], [5], "rows.jsonl:1")]
    with pytest.raises(InputError, match="rows.jsonl:1 names no task: give --task-column"):
        list(train(backbone, rows, config("multitask")))


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_a_row_sees_no_demonstration_in_which_its_answer_stands(
    exact: Backbone, order: tuple[int, ...]
) -> None:
    """As in a conversation of several answers, whose later rows hold the earlier ones."""
    rows = [
        Row.from_ids([5, 6], [7, 2]),
        Row.from_ids([5, 6, 7, 2, 3, 8, 9], [10, 2]),
        Row.from_ids([5, 11], [12, 2]),
    ]
    given, options = [rows[index] for index in order], config("context-tuning")
    method = begin(exact, None, given, options)
    assert isinstance(method, Context)
    places = _demonstrations(given, options)
    for row in given:
        hidden = method.unseen(collate([row], 0))
        assert hidden is not None
        seen = [slot for slot in range(len(places)) if not hidden[0, slot]]
        assert seen  # something is left to learn from
        shown = [given[places[slot][0]].input_ids[places[slot][1]] for slot in seen]
        text, asked = " ".join(map(str, shown)), " ".join(map(str, row.input_ids[:-1]))
        assert asked not in text
