"""The cases of the contract, each against the oracle, for any subject that generates behind one
prompt.

A case returns when the subject's result equals the oracle's and raises otherwise. The tests run
them on foreword; the table in docs/contract.md runs the same ones on stock PEFT too.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import oracle
import tiny_models
import torch
import transformers
from torch import Tensor

from foreword import Backbone, SoftPrompt

NUM_NEW = 8
GREEDY: dict[str, Any] = {"max_new_tokens": NUM_NEW, "do_sample": False}


class Subject(Protocol):
    """What generates: foreword, or stock PEFT with the same prompt."""

    def generate(self, ids: Tensor, mask: Tensor | None = None, **kwargs: Any) -> Any: ...

    def logits(self, ids: Tensor, mask: Tensor | None = None) -> Tensor: ...

    def generate_mixed(self, prompts: Sequence[Any], ids: Tensor, mask: Tensor) -> Tensor: ...


@dataclass
class World:
    """One model, one prompt and how exactly logits must agree."""

    model: Any
    prompt: SoftPrompt | None
    tolerance: float = 1e-9

    def greedy(self, ids: Tensor, num_new: int = NUM_NEW) -> list[int]:
        return oracle.greedy(self.model, self.prompt, ids, num_new)

    def expect(self, sequences: Tensor, ids: Tensor, **kwargs: Any) -> None:
        """Assert that the subject's sequences are what the oracle generates from one row."""
        expected = oracle.generate(self.model, self.prompt, ids, **kwargs)
        assert sequences.tolist() == expected.tolist()


class ForewordSubject:
    """foreword on a model, always behind one prompt."""

    def __init__(self, model: Any, prompt: SoftPrompt | None):
        self.backbone, self.prompt = Backbone(model), prompt

    def generate(self, ids: Tensor, mask: Tensor | None = None, **kwargs: Any) -> Any:
        return self.backbone.generate(self.prompt, ids, mask, **kwargs)

    def logits(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            return self.backbone.logits(self.prompt, ids, mask)

    def generate_mixed(self, prompts: Sequence[Any], ids: Tensor, mask: Tensor) -> Tensor:
        return self.backbone.generate(prompts, ids, mask, **GREEDY)


def padded(rows: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Return ids and mask `[B, T]` of rows padded on one side."""
    length = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        part = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[index, part], mask[index, part] = row, 1
    return ids, mask


ROWS = [tiny_models.ids(length) for length in (4, 11, 7)]
ROW = ROWS[1]


def _expect_greedy(world: World, output: Tensor, ids: Tensor) -> None:
    assert output[:, : ids.shape[1]].tolist() == ids.tolist(), "sequences begin with the given ids"
    assert output[:, ids.shape[1] :].tolist() == [world.greedy(row) for row in ROWS]


def one_row(subject: Subject, world: World) -> None:
    """Greedy decoding of one row, and the logits of every step."""
    output = subject.generate(ROW[None], **GREEDY, return_dict_in_generate=True, output_logits=True)
    assert output.sequences[0].tolist() == ROW.tolist() + world.greedy(ROW)
    expected = oracle.row_logits(world.model, world.prompt, output.sequences[0, :-1])
    steps = torch.stack(output.logits, 1)[0]
    torch.testing.assert_close(steps.double(), expected[-NUM_NEW:].double(), rtol=1e-5, atol=1e-4)


def _logits_of_padded_rows(subject: Subject, world: World, side: str) -> None:
    ids, mask = padded(ROWS, side)
    logits = subject.logits(ids, mask)
    for index, row in enumerate(ROWS):
        expected = oracle.row_logits(world.model, world.prompt, row)
        error = (logits[index][mask[index].bool()] - expected).abs().max().item()
        assert error <= world.tolerance, f"row {index}: logits differ by {error:.2e}"


def logits_padded_left(subject: Subject, world: World) -> None:
    """One forward pass over rows of three lengths, padded on the left."""
    _logits_of_padded_rows(subject, world, "left")


def logits_padded_right(subject: Subject, world: World) -> None:
    """One forward pass over rows of three lengths, padded on the right."""
    _logits_of_padded_rows(subject, world, "right")


def batch_padded_left(subject: Subject, world: World) -> None:
    """Greedy decoding of rows of three lengths, padded on the left."""
    ids, mask = padded(ROWS, "left")
    _expect_greedy(world, subject.generate(ids, mask, **GREEDY), ids)


def batch_padded_right(subject: Subject, world: World) -> None:
    """Greedy decoding of rows of three lengths, padded on the right."""
    ids, mask = padded(ROWS, "right")
    _expect_greedy(world, subject.generate(ids, mask, **GREEDY), ids)


def batch_without_padding(subject: Subject, world: World) -> None:
    """Greedy decoding of five rows of one length."""
    rows = torch.stack([tiny_models.ids(9, seed) for seed in range(5)])
    output = subject.generate(rows, **GREEDY)
    assert output[:, 9:].tolist() == [world.greedy(row) for row in rows]


def static_cache(subject: Subject, world: World) -> None:
    """The left-padded batch with `cache_implementation="static"`."""
    ids, mask = padded(ROWS, "left")
    _expect_greedy(world, subject.generate(ids, mask, **GREEDY, cache_implementation="static"), ids)


def quantized_cache(subject: Subject, world: World) -> None:
    """One row with a 4-bit cache: the first step is exact, the others are close."""
    config = {"backend": "quanto", "nbits": 4, "q_group_size": 8, "residual_length": 64}
    options = {"cache_implementation": "quantized", "cache_config": config}
    found, expected = [], []
    for row in ROWS:
        output = subject.generate(
            row[None], **GREEDY, **options, return_dict_in_generate=True, output_logits=True
        )
        found.append(torch.stack(output.logits, 1)[0].double())
        logits = oracle.row_logits(world.model, world.prompt, output.sequences[0, :-1])
        expected.append(logits[-NUM_NEW:].double())
        # The first step reads what was not quantized yet; the later ones what a 4-bit cache kept.
        torch.testing.assert_close(found[-1][0], expected[-1][0], rtol=1e-5, atol=1e-4)
    # Over all rows: rounding may send single tokens to other experts.
    assert (torch.cat(found) - torch.cat(expected)).norm() < 0.5 * torch.cat(expected).norm()


def without_cache(subject: Subject, world: World) -> None:
    """The left-padded batch with `use_cache=False`."""
    ids, mask = padded(ROWS, "left")
    _expect_greedy(world, subject.generate(ids, mask, **GREEDY, use_cache=False), ids)


def given_dynamic_cache(subject: Subject, world: World) -> None:
    """The left-padded batch with an empty dynamic cache of the caller's."""
    ids, mask = padded(ROWS, "left")
    for cache in (
        transformers.DynamicCache(),
        transformers.DynamicCache(config=world.model.config),
    ):
        _expect_greedy(world, subject.generate(ids, mask, **GREEDY, past_key_values=cache), ids)


def given_static_cache(subject: Subject, world: World) -> None:
    """The left-padded batch with an empty static cache of the caller's."""
    ids, mask = padded(ROWS, "left")
    cache = transformers.StaticCache(config=world.model.config, max_cache_len=40)
    _expect_greedy(world, subject.generate(ids, mask, **GREEDY, past_key_values=cache), ids)


def sampling(subject: Subject, world: World) -> None:
    """One row, sampled with temperature and top-p from the oracle's random state."""
    options = {"max_new_tokens": NUM_NEW, "do_sample": True, "temperature": 1.3, "top_p": 0.9}
    torch.manual_seed(7)
    output = subject.generate(ROW[None], **options)
    torch.manual_seed(7)
    world.expect(output, ROW, **options)


def beam_search(subject: Subject, world: World) -> None:
    """One row with three beams."""
    options = {"max_new_tokens": NUM_NEW, "num_beams": 3, "do_sample": False}
    world.expect(subject.generate(ROW[None], **options), ROW, **options)


def beam_search_padded(subject: Subject, world: World) -> None:
    """The left-padded batch with two beams."""
    options = {"max_new_tokens": NUM_NEW, "num_beams": 2, "do_sample": False}
    ids, mask = padded(ROWS, "left")
    output = subject.generate(ids, mask, **options)
    for index, row in enumerate(ROWS):
        world.expect(output[index : index + 1, -len(row) - NUM_NEW :], row, **options)


def beam_sampling(subject: Subject, world: World) -> None:
    """One row with three sampled beams, from the oracle's random state."""
    options = {"max_new_tokens": NUM_NEW, "num_beams": 3, "do_sample": True}
    torch.manual_seed(7)
    output = subject.generate(ROW[None], **options)
    torch.manual_seed(7)
    world.expect(output, ROW, **options)


def num_return_sequences(subject: Subject, world: World) -> None:
    """Three sampled sequences of one row, from the oracle's random state."""
    options = {"max_new_tokens": NUM_NEW, "do_sample": True, "num_return_sequences": 3}
    torch.manual_seed(7)
    output = subject.generate(ROW[None], **options)
    torch.manual_seed(7)
    world.expect(output, ROW, **options)


def _count_passes(model: Any, run: Callable[[], Tensor]) -> tuple[Tensor, int]:
    passes = []
    embedding = model.get_input_embeddings()
    hook = embedding.register_forward_hook(lambda *_: passes.append(1))
    try:
        run()  # the hook is new to the model: the prompt is read anew once
        passes.clear()
        return run(), len(passes)
    finally:
        hook.remove()


def assisted_decoding(subject: Subject, world: World) -> None:
    """Greedy decoding of one row with candidates of the same model without the prompt."""
    family = next(f for f in tiny_models.FAMILIES if tiny_models.shared(f) is world.model)
    assistant = tiny_models.build(family)
    output = subject.generate(ROW[None], **GREEDY, assistant_model=assistant)
    assert output[0, len(ROW) :].tolist() == world.greedy(ROW)


def prompt_lookup(subject: Subject, world: World) -> None:
    """Rows that hold their own continuation, so that candidates are proposed and accepted."""
    was_accepted = False
    for seed in range(40):
        start = tiny_models.ids(4, seed)
        row = torch.cat([start, torch.tensor(world.greedy(start, 10)), start])
        row = torch.cat([row, torch.tensor(world.greedy(row, 10))])
        row = torch.cat([row, row[-2:], row[-4:]])
        output, passes = _count_passes(
            world.model,
            # With a mask: a generated id may be the padding id.
            lambda row=row: subject.generate(
                row[None], torch.ones_like(row[None]), **GREEDY, prompt_lookup_num_tokens=3
            ),
        )
        assert output[0, len(row) :].tolist() == world.greedy(row)
        was_accepted |= passes < NUM_NEW
        if was_accepted:
            return
    raise AssertionError("no candidate was ever accepted: the case tested nothing")


def repetition_penalty(subject: Subject, world: World) -> None:
    """The left-padded batch with a repetition penalty."""
    options = GREEDY | {"repetition_penalty": 2.5}
    ids, mask = padded(ROWS, "left")
    output = subject.generate(ids, mask, **options)
    for index, row in enumerate(ROWS):
        world.expect(output[index : index + 1, -len(row) - NUM_NEW :], row, **options)


def ngram_penalty(subject: Subject, world: World) -> None:
    """The left-padded batch without any token twice (`no_repeat_ngram_size=1`)."""
    options = GREEDY | {"no_repeat_ngram_size": 1}
    ids, mask = padded(ROWS, "left")
    output = subject.generate(ids, mask, **options)
    for index, row in enumerate(ROWS):
        world.expect(output[index : index + 1, -len(row) - NUM_NEW :], row, **options)


class _Recorder(transformers.LogitsProcessor):  # type: ignore[misc]
    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append(input_ids[0].tolist())
        return scores.roll(1, dims=-1)


def logits_processors(subject: Subject, world: World) -> None:
    """One row with the caller's logits processor, which sees real ids only."""
    ours, theirs = _Recorder(), _Recorder()
    output = subject.generate(ROW[None], **GREEDY, logits_processor=[ours])
    world.expect(output, ROW, **GREEDY, logits_processor=[theirs])
    assert ours.seen == theirs.seen


def stopping_criteria(subject: Subject, world: World) -> None:
    """One row with the caller's stopping criterion."""

    class Stop(transformers.StoppingCriteria):  # type: ignore[misc]
        def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= len(ROW) + 3)

    output = subject.generate(ROW[None], **GREEDY, stopping_criteria=[Stop()])
    assert output[0].tolist() == ROW.tolist() + world.greedy(ROW, 3)


def end_token(subject: Subject, world: World) -> None:
    """One row that stops at its end token."""
    expected = world.greedy(ROW)
    output = subject.generate(ROW[None], **GREEDY, eos_token_id=expected[3])
    assert output[0, len(ROW) :].tolist() == expected[: expected.index(expected[3]) + 1]


def streamer(subject: Subject, world: World) -> None:
    """One row, streamed id by id."""

    class Collect:
        def __init__(self) -> None:
            self.ids: list[int] = []

        def put(self, value: Tensor) -> None:
            self.ids += value.flatten().tolist()

        def end(self) -> None:
            self.ids.append(-1)

    collect = Collect()
    subject.generate(ROW[None], **GREEDY, streamer=collect)
    assert collect.ids == [*ROW.tolist(), *world.greedy(ROW), -1]


def chunked_prefill(subject: Subject, world: World) -> None:
    """The left-padded batch, read in chunks of three tokens."""
    ids, mask = padded(ROWS, "left")
    _expect_greedy(world, subject.generate(ids, mask, **GREEDY, prefill_chunk_size=3), ids)


def multi_turn(subject: Subject, world: World) -> None:
    """The returned cache, given back with the whole conversation so far and the next turn."""
    first = subject.generate(ROW[None], **GREEDY, return_dict_in_generate=True)
    turn = torch.cat([first.sequences, tiny_models.ids(5)[None]], dim=1)
    second = subject.generate(
        turn, torch.ones_like(turn), **GREEDY, past_key_values=first.past_key_values
    )
    assert second[0].tolist() == turn[0].tolist() + world.greedy(turn[0])


def multi_turn_padded(subject: Subject, world: World) -> None:
    """Two turns of a batch whose rows differ in length in both."""
    ids, mask = padded(ROWS, "left")
    first = subject.generate(ids, mask, **GREEDY, return_dict_in_generate=True)
    more, more_mask = padded([tiny_models.ids(n) for n in (3, 1, 5)], "right")
    turn = torch.cat([first.sequences, more], 1)
    turn_mask = torch.cat([mask, torch.ones(3, NUM_NEW, dtype=torch.long), more_mask], 1)
    second = subject.generate(turn, turn_mask, **GREEDY, past_key_values=first.past_key_values)
    for index in range(3):
        row = turn[index][turn_mask[index].bool()]
        assert second[index, turn.shape[1] :].tolist() == world.greedy(row)


def threads(subject: Subject, world: World) -> None:
    """Six threads that generate on one model at once."""
    results: dict[int, list[int]] = {}

    def run(index: int) -> None:
        row = ROWS[index % 3]
        results[index] = subject.generate(row[None], **GREEDY)[0, len(row) :].tolist()

    workers = [threading.Thread(target=run, args=(index,)) for index in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [results.get(i) for i in range(6)] == [world.greedy(ROWS[i % 3]) for i in range(6)]


def mixed_prompts(subject: Subject, world: World) -> None:
    """Rows behind prompts of different lengths and forms, and one behind none."""
    bare = Backbone(world.model)
    short = SoftPrompt.from_embeddings(tiny_models.embeddings(world.model, 3, seed=9))
    states = SoftPrompt.from_states(bare.compile(short).states)
    prompts = [world.prompt, None, short, states]
    rows = [*ROWS, ROWS[0]]
    ids, mask = padded(rows, "left")
    output = subject.generate_mixed(prompts, ids, mask)
    for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        expected = oracle.greedy(world.model, prompt, row, NUM_NEW)
        assert output[index, ids.shape[1] :].tolist() == expected


def compiled_forward(subject: Subject, world: World) -> None:
    """The static cache under a model whose forward pass is compiled."""
    plain = world.model.forward
    world.model.forward = torch.compile(plain, backend="eager")
    try:
        ids, mask = padded(ROWS, "left")
        output = subject.generate(ids, mask, **GREEDY, cache_implementation="static")
    finally:
        del world.model.forward
        torch._dynamo.reset()
    _expect_greedy(world, output, ids)


CASES: dict[str, Callable[[Subject, World], None]] = {
    case.__name__: case
    for case in (
        one_row, logits_padded_left, logits_padded_right, batch_padded_left, batch_padded_right,
        batch_without_padding, static_cache, quantized_cache, without_cache, given_dynamic_cache,
        given_static_cache, sampling, beam_search, beam_search_padded, beam_sampling,
        num_return_sequences, assisted_decoding, prompt_lookup, repetition_penalty, ngram_penalty,
        logits_processors, stopping_criteria, end_token, streamer, chunked_prefill, multi_turn,
        multi_turn_padded, threads, mixed_prompts, compiled_forward,
    )
}  # fmt: skip


def prompt_of(family: str, form: str, num_virtual: int = 6) -> SoftPrompt:
    """Return the prompt of a family's world: random embeddings, or keys and values that no text
    has.
    """
    model = tiny_models.shared(family)
    prompt = SoftPrompt.from_embeddings(tiny_models.embeddings(model, num_virtual))
    if form == "embeddings":
        return prompt
    torch.manual_seed(3)
    states = Backbone(model).compile(prompt).states
    return SoftPrompt.from_states(states.map(lambda t: t + 0.3 * torch.randn_like(t)))


def world_of(family: str, form: str) -> World:
    """Return a family's tiny model behind a prompt of one form."""
    model = tiny_models.shared(family)
    return World(model, prompt_of(family, form), tiny_models.TOLERANCES.get(family, 1e-9))
