"""The next turn with a cache: what the whole conversation is without, or refused by name."""

from typing import Any

import oracle
import pytest
import tiny_models
import torch
import transformers
from contract import padded
from torch import Tensor

from foreword import Backbone, SoftPrompt
from foreword.errors import InputError, MismatchError, UnsupportedError

GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
IDS = tiny_models.ids(6)[None].clamp_min(1)
TURN = tiny_models.ids(3, seed=7).clamp_min(1)
# Attention alone, windows, slots for positions, and recurrent states of each kind.
FAMILIES = ("llama", "gemma3", "gpt2", "llama4", "bamba", "lfm2")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(tiny_models.shared("llama"))


def prompt_of(backbone: Backbone) -> SoftPrompt:
    return SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 5))


def begun(backbone: Backbone, **options: Any) -> Any:
    return backbone.generate(
        prompt_of(backbone), IDS, return_dict_in_generate=True, **GREEDY | options
    )


def with_turn(sequences: Tensor) -> Tensor:
    return torch.cat([sequences, TURN.repeat(len(sequences), 1)], 1)


def expected(backbone: Backbone, row: Tensor) -> list[int]:
    return oracle.greedy(backbone.model, prompt_of(backbone), row, 4)


@pytest.mark.parametrize("sides", [("right", "right"), ("right", "left"), ("left", "right")])
@pytest.mark.parametrize(
    ("family", "cache"),
    [(family, cache) for family in FAMILIES for cache in ("dynamic", "static")]
    + [("mamba2", "dynamic")],
)
def test_padding_on_either_side_of_either_turn(
    family: str, sides: tuple[str, str], cache: str
) -> None:
    backbone = Backbone(tiny_models.shared(family))
    prompt, mine = prompt_of(backbone), {}
    if cache == "static":
        config = backbone.model.config
        mine = {"past_key_values": transformers.StaticCache(config=config, max_cache_len=40)}
    ids, mask = padded([tiny_models.ids(n) for n in (3, 6, 1)], sides[0])
    found = backbone.generate(prompt, ids, mask, return_dict_in_generate=True, **GREEDY, **mine)
    for turn in range(2):
        more, more_mask = padded([tiny_models.ids(n, seed=turn) for n in (4, 1, 2)], sides[1])
        ids = torch.cat([found.sequences, more], 1)
        said = torch.ones(3, 4, dtype=torch.long)
        mask = torch.cat([mask, said, more_mask], 1)
        found = backbone.generate(
            prompt, ids, mask, past_key_values=found.past_key_values,
            return_dict_in_generate=True, **GREEDY,
        )  # fmt: skip
        for row, real, output in zip(ids, mask.bool(), found.sequences, strict=True):
            assert output[: ids.shape[1]].tolist() == row.tolist()
            assert output[ids.shape[1] :].tolist() == expected(backbone, row[real])


def test_the_same_cache_given_back_with_ids_that_it_holds(backbone: Backbone) -> None:
    for ids in (IDS, begun(backbone).sequences[:, :9]):
        first = begun(backbone)
        with pytest.raises(InputError, match="no attention_mask says whether they are new"):
            backbone.generate(
                prompt_of(backbone), ids, past_key_values=first.past_key_values, **GREEDY
            )
    whole = with_turn(first.sequences)
    backbone.generate(prompt_of(backbone), whole, past_key_values=first.past_key_values, **GREEDY)
    with pytest.raises(InputError, match="13 tokens were given and 16 are cached"):
        backbone.generate(
            prompt_of(backbone), whole, past_key_values=first.past_key_values, **GREEDY
        )


def test_a_single_id_is_the_next_token(backbone: Backbone) -> None:
    first = begun(backbone)
    output = backbone.generate(
        prompt_of(backbone),
        first.sequences[:, -1:],
        past_key_values=first.past_key_values,
        **GREEDY,
    )
    assert output[0, 1:].tolist() == expected(backbone, first.sequences[0])


@pytest.mark.parametrize("is_masked", [True, False])
def test_a_conversation_that_the_cache_does_not_begin(backbone: Backbone, is_masked: bool) -> None:
    first = begun(backbone)
    edited = with_turn(first.sequences)
    edited[0, 2] += 1
    mask = torch.ones_like(edited) if is_masked else None
    held, given = int(IDS[0, 2]), int(edited[0, 2])
    with pytest.raises(MismatchError, match=f"row 0: .* holds id {held} as token 2, .* {given}:"):
        backbone.generate(
            prompt_of(backbone), edited, mask, past_key_values=first.past_key_values, **GREEDY
        )


@pytest.mark.parametrize("family", [*FAMILIES, "mamba2", "qwen3_5"])
@pytest.mark.parametrize("modes", [(True, False), (False, True)])
def test_a_turn_goes_on_in_and_out_of_inference_mode(family: str, modes: tuple[bool, bool]) -> None:
    backbone = Backbone(tiny_models.shared(family))
    with torch.inference_mode(modes[0]):
        first = begun(backbone)
    ids = with_turn(first.sequences)
    with torch.inference_mode(modes[1]):
        found = backbone.generate(
            prompt_of(backbone), ids, past_key_values=first.past_key_values, **GREEDY
        )
    assert found[0, ids.shape[1] :].tolist() == expected(backbone, ids[0])


def test_a_cache_of_other_beams_than_were_returned(backbone: Backbone) -> None:
    first = begun(backbone, num_beams=3)
    with pytest.raises(MismatchError, match="or by other beams"):
        backbone.generate(
            prompt_of(backbone), with_turn(first.sequences),
            past_key_values=first.past_key_values, num_beams=3, **GREEDY,
        )  # fmt: skip


def test_a_turn_after_candidates_were_taken_back(backbone: Backbone) -> None:
    first = begun(backbone, assistant_model=tiny_models.build("llama", seed=4))
    whole = with_turn(first.sequences)
    output = backbone.generate(
        prompt_of(backbone), whole, past_key_values=first.past_key_values, **GREEDY
    )
    assert output[0, whole.shape[1] :].tolist() == expected(backbone, whole[0])


def test_padding_after_an_end_is_hidden_where_no_state_has_read_it(backbone: Backbone) -> None:
    rows = [tiny_models.ids(n, seed=n).clamp_min(1) for n in (4, 6)]
    end = expected(backbone, rows[0])[1]
    assert end not in expected(backbone, rows[1])
    ids, mask = padded(rows, "left")
    for family in ("llama", "bamba"):
        own = Backbone(tiny_models.shared(family))
        ends = {"eos_token_id": end if family == "llama" else expected(own, rows[0])[1]}
        first = own.generate(
            prompt_of(own),
            ids,
            mask,
            return_dict_in_generate=True,
            pad_token_id=0,
            **ends,
            **GREEDY,
        )
        said = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
        whole = with_turn(first.sequences)
        seen = torch.cat([mask, said, torch.ones(2, 3, dtype=torch.long)], 1)
        again = {"past_key_values": first.past_key_values, **GREEDY}
        if family == "bamba":
            with pytest.raises(InputError, match="row 0: attention_mask takes other cached tokens"):
                own.generate(prompt_of(own), whole, seen, **again)
            continue
        output = own.generate(prompt_of(own), whole, seen, **again)
        for row, real, found in zip(whole, seen.bool(), output, strict=True):
            assert found[whole.shape[1] :].tolist() == expected(own, row[real])


@pytest.mark.parametrize("column", [0, 2], ids=["padding is shown", "a read token is hidden"])
def test_a_mask_of_other_cached_tokens_than_were_read(backbone: Backbone, column: int) -> None:
    ids, mask = padded([IDS[0, :4], IDS[0]], "left")
    first = backbone.generate(
        prompt_of(backbone), ids, mask, return_dict_in_generate=True, **GREEDY
    )
    whole = with_turn(first.sequences)
    seen = torch.cat([mask, torch.ones(2, 7, dtype=torch.long)], 1)
    seen[0, column] = 1 - seen[0, column]
    with pytest.raises(InputError, match="row 0: attention_mask takes other cached tokens"):
        backbone.generate(
            prompt_of(backbone), whole, seen, past_key_values=first.past_key_values, **GREEDY
        )


def test_embeddings_of_a_next_turn_alone(backbone: Backbone) -> None:
    first = begun(backbone)
    whole = with_turn(first.sequences)
    again = {"past_key_values": first.past_key_values, **GREEDY}
    for length, mask in ((4, torch.ones_like(whole)), (1, None)):
        with pytest.raises(InputError, match="inputs_embeds of new tokens alone"):
            backbone.generate(
                prompt_of(backbone), None, mask,
                inputs_embeds=backbone.embed(whole[:, -length:]), **again,
            )  # fmt: skip
    output = backbone.generate(prompt_of(backbone), inputs_embeds=backbone.embed(whole), **again)
    assert output[0].tolist() == expected(backbone, whole[0])


@pytest.mark.parametrize(
    ("family", "part"),
    [("gpt2", "gpt2 has 20 positions"), ("llama", "the static cache holds 14 real tokens")],
)
def test_new_tokens_alone_need_room_for_the_cached_ones(family: str, part: str) -> None:
    changes = {"n_positions": 20} if family == "gpt2" else {}
    backbone = Backbone(tiny_models.build(family, **changes))
    config = backbone.model.config
    mine = transformers.StaticCache(config=config, max_cache_len=14) if family == "llama" else None
    first = begun(backbone, past_key_values=mine)
    whole = with_turn(first.sequences)
    with pytest.raises(InputError, match=part):
        backbone.generate(
            prompt_of(backbone), whole[:, 9:], torch.ones_like(whole),
            past_key_values=first.past_key_values, **GREEDY,
        )  # fmt: skip


CACHES: dict[str, Any] = {
    "returned": lambda config: None,
    "dynamic": lambda config: transformers.DynamicCache(),
    "of the configuration": lambda config: transformers.DynamicCache(config=config),
    "static": lambda config: transformers.StaticCache(config=config, max_cache_len=40),
}


@pytest.mark.parametrize(
    ("family", "kind"),
    [(family, kind) for family in ("llama", "gemma3", "bamba") for kind in CACHES]
    + [("mamba2", "returned")],
)
def test_a_cache_that_was_reset_begins_with_its_prompts_again(family: str, kind: str) -> None:
    backbone = Backbone(tiny_models.shared(family))
    prompt, other = (
        prompt_of(backbone),
        SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 3, seed=8)),
    )
    prefix = backbone.compile(prompt)
    before = [tensor.clone() for tensor in prefix.states.tensors]
    cache = CACHES[kind](backbone.model.config)
    first = begun(backbone, past_key_values=cache)
    cache = cache if cache is not None else first.past_key_values
    for one in (prompt, other, None):
        cache.reset()
        again = backbone.generate(
            one, IDS, past_key_values=cache, return_dict_in_generate=True, **GREEDY
        )
        wished = oracle.greedy(backbone.model, one, IDS[0], 4)
        assert again.sequences[0, 6:].tolist() == wished
        whole = with_turn(again.sequences)
        output = backbone.generate(one, whole, past_key_values=cache, **GREEDY)
        wished = oracle.greedy(backbone.model, one, whole[0], 4)
        assert output[0, whole.shape[1] :].tolist() == wished
    assert all(map(torch.equal, prefix.states.tensors, before))


@pytest.mark.parametrize("family", ["llama", "gemma3", "bamba"])
def test_a_cache_whose_layers_were_taken_away_begins_with_its_prompts_again(family: str) -> None:
    backbone = Backbone(tiny_models.shared(family))
    cache = transformers.DynamicCache(config=backbone.model.config)
    for prompt in (prompt_of(backbone), None, prompt_of(backbone)):
        first = backbone.generate(prompt, IDS, past_key_values=cache, **GREEDY)
        assert first[0, 6:].tolist() == oracle.greedy(backbone.model, prompt, IDS[0], 4)
        cache.layers = transformers.DynamicCache(config=backbone.model.config).layers


def test_a_cache_of_a_call_that_failed_inside_the_model(backbone: Backbone) -> None:
    is_full = []

    def fail(*_: Any) -> None:
        if is_full:
            raise MemoryError

    # Before the prompt is read: it is read anew behind another hook.
    hook = backbone.model.model.layers[1].register_forward_hook(fail)
    first = begun(backbone)
    whole = with_turn(first.sequences)
    again = {"past_key_values": first.past_key_values, **GREEDY}
    is_full.append(True)
    with pytest.raises(MemoryError):
        backbone.generate(prompt_of(backbone), whole, **again)
    is_full.clear()
    for ids in (whole, with_turn(whole)):
        with pytest.raises(InputError, match="half filled by a call that failed"):
            backbone.generate(prompt_of(backbone), ids, **again)
    first.past_key_values.reset()
    output = backbone.generate(prompt_of(backbone), whole, **again)
    assert output[0, whole.shape[1] :].tolist() == expected(backbone, whole[0])
    hook.remove()


@pytest.mark.parametrize("kind", ["returned", "given"])
@pytest.mark.parametrize("rows", [[1, 0], [1, 1], [1], [0, 1, 1]])
def test_the_rows_of_a_cache_are_chosen_with_their_prompts(
    backbone: Backbone, kind: str, rows: list[int]
) -> None:
    """Of one text behind two prompts, so that its ids do not tell the rows apart."""
    other = SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, 5, seed=9))
    prompts = [prompt_of(backbone), other]
    mine = {"past_key_values": transformers.DynamicCache()} if kind == "given" else {}
    first = backbone.generate(
        prompts,
        IDS.repeat(2, 1),
        return_dict_in_generate=True,
        **GREEDY | {"max_new_tokens": 1} | mine,
    )
    cache = mine.get("past_key_values", first.cache)
    cache.batch_select_indices(torch.tensor(rows))
    turn = with_turn(IDS.repeat(len(rows), 1))
    options: dict[str, Any] = {"past_key_values": cache}
    chosen = [prompts[row] for row in rows]
    with pytest.raises(MismatchError, match="another prompt|the call has 2"):
        backbone.generate(prompts, with_turn(IDS.repeat(2, 1)), **options, **GREEDY)
    found = backbone.generate(chosen, turn, **options, **GREEDY)
    for row, prompt in zip(found, chosen, strict=True):
        assert row[-4:].tolist() == oracle.greedy(backbone.model, prompt, turn[0], 4)


def test_a_cache_whose_rows_were_repeated(backbone: Backbone) -> None:
    first = begun(backbone)
    first.cache.batch_repeat_interleave(3)
    turn = with_turn(first.sequences.repeat(3, 1))
    found = backbone.generate(prompt_of(backbone), turn, past_key_values=first.cache, **GREEDY)
    assert found[:, -4:].tolist() == [expected(backbone, turn[0])] * 3


def test_rows_of_a_static_cache_stay(backbone: Backbone) -> None:
    first = begun(backbone, cache_implementation="static")
    for move in (
        lambda: first.cache.batch_select_indices(torch.tensor([0])),
        lambda: first.cache.batch_repeat_interleave(2),
    ):
        with pytest.raises(UnsupportedError, match="cannot be chosen or repeated"):
            move()


@pytest.mark.parametrize("is_another", [False, True])
def test_a_cache_of_other_weights(is_another: bool) -> None:
    model = tiny_models.build("llama")
    backbone = Backbone(model)
    first = begun(backbone)
    prompt, turn = prompt_of(backbone), with_turn(first.sequences)
    if is_another:
        backbone = Backbone(tiny_models.build("llama", seed=5))
    else:
        model.model.layers[0].mlp.down_proj.weight.data.mul_(2)
    with pytest.raises(MismatchError, match="another model, or by other weights"):
        backbone.generate(prompt, turn, past_key_values=first.cache, **GREEDY)
