"""What cannot be exact is refused by a typed error that says why, and a model that generated, or
refused to, is the model that it was.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tiny_models
import torch
import transformers
from oracle import given_cache
from torch import Tensor

import foreword
from foreword import Backbone, EncodingConfig, SoftPrompt, TrainConfig
from foreword.compat import releases
from foreword.compat.transformers_api import GENERATE_CACHE
from foreword.engine.engine import Engine
from foreword.engine.request import PromptSource, Request
from foreword.errors import (
    DependencyError,
    ForewordError,
    InputError,
    MismatchError,
    UnsupportedError,
)
from foreword.training.facts import describe

GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
IDS = tiny_models.ids(6)[None]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(tiny_models.shared("llama"))


@pytest.fixture(scope="module")
def other_base() -> Backbone:
    """Return a base of the same proportions and with other weights."""
    return Backbone(tiny_models.build("llama", seed=5), name="the other base")


def prompt_of(backbone: Backbone, num_virtual: int = 5, *, seed: int = 1) -> SoftPrompt:
    return SoftPrompt.from_embeddings(tiny_models.embeddings(backbone.model, num_virtual, seed))


def states_of(backbone: Backbone) -> list[tuple[Tensor, Tensor]]:
    return list(backbone.compile(prompt_of(backbone)).key_values)


def refuses(kind: type[ForewordError], part: str, run: Callable[[], Any]) -> None:
    """Assert that a call is refused, by a single line that says `part`."""
    with torch.no_grad(), pytest.raises(kind) as caught:
        run()
    message = str(caught.value)
    assert part in message and message.isprintable()


def refuses_prompt(backbone: Backbone, prompt: Any, kind: type[ForewordError], part: str) -> None:
    """Assert that every way to use a prompt refuses it alike."""
    refuses(kind, part, lambda: backbone.generate(prompt, IDS, **GREEDY))
    refuses(kind, part, lambda: backbone.logits(prompt, IDS))
    refuses(kind, part, lambda: backbone.logits([prompt], IDS))
    with torch.enable_grad(), pytest.raises(kind):
        backbone.logits(prompt, IDS)


# A prompt and its base.


def test_another_hidden_size(backbone: Backbone) -> None:
    prompt = SoftPrompt.from_embeddings(torch.ones(3, 16), facts={"base": {"name": "small"}})
    part = "the prompt has hidden size 16, llama has 32; it was made for small"
    refuses_prompt(backbone, prompt, MismatchError, part)
    refuses(MismatchError, part, lambda: backbone.compile(prompt))


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
def test_a_prompt_of_a_base_with_other_weights(
    backbone: Backbone, other_base: Backbone, form: str
) -> None:
    prompt = prompt_of(other_base)
    if form == "key_values":
        prompt = SoftPrompt.from_key_values(states_of(other_base))
    prompt.facts = describe(other_base, TrainConfig(), EncodingConfig(), rows=[])
    assert other_base.generate(prompt, IDS, **GREEDY).shape == (1, 10)
    part = "made for the other base, not for llama (they differ in embeddings, weights, tensors)"
    refuses_prompt(backbone, prompt, MismatchError, part)


def test_a_prefix_of_a_base_with_other_weights(backbone: Backbone, other_base: Backbone) -> None:
    prefix = other_base.compile(prompt_of(other_base))
    part = "not for llama (they differ in embeddings, weights, tensors)"
    refuses_prompt(backbone, prefix, MismatchError, part)
    refuses(MismatchError, part, lambda: backbone.compile(prefix))
    engine = Engine(backbone)
    handle = engine.submit(Request((1, 2, 3), prompt=PromptSource.of(prefix)))
    engine.run()
    assert isinstance(handle.error, MismatchError) and part in str(handle.error)


def _narrow_last_layer(states: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    keys, values = states[-1]
    return [*states[:-1], (keys[:1], values[:1])]


OTHER_STATES = {
    "layers": (lambda states: states[:2], "the prompt has 2 layers, llama has 3"),
    "heads": (
        lambda states: [(k[:1], v[:1]) for k, v in states],
        "layer 0: the prompt has keys of 1 heads of size 8 and values of 1 heads of size 8",
    ),
    "head size": (
        lambda states: [(k[..., :4], v[..., :4]) for k, v in states],
        "layer 0: the prompt has keys of 2 heads of size 4 and values of 2 heads of size 4",
    ),
    "heads of one layer": (_narrow_last_layer, "layer 2: the prompt has keys of 1 heads of size 8"),
    "size of values": (
        lambda states: [(k, v[..., :4]) for k, v in states],
        "layer 0: the prompt has keys of 2 heads of size 8 and values of 2 heads of size 4",
    ),
}


@pytest.mark.parametrize(("change", "part"), OTHER_STATES.values(), ids=OTHER_STATES)
def test_keys_and_values_of_other_shapes(
    backbone: Backbone, change: Callable[[Any], Any], part: str
) -> None:
    prompt = SoftPrompt.from_key_values(change(states_of(backbone)))
    refuses_prompt(backbone, prompt, MismatchError, part)


def test_another_number_of_prompts_than_rows(backbone: Backbone) -> None:
    prompt = prompt_of(backbone)
    for prompts, count in (([prompt, prompt], "2"), ([], "0"), ((None, prompt, None), "3")):
        part = f"{count} prompts for 1 rows; give one for all or one per row"
        refuses(InputError, part, lambda given=prompts: backbone.generate(given, IDS, **GREEDY))
        refuses(InputError, part, lambda given=prompts: backbone.logits(given, IDS))


@pytest.mark.parametrize("thing", ["my-prompt", torch.ones(1, 32), object(), 3])
def test_what_is_no_prompt(backbone: Backbone, thing: Any) -> None:
    part = f"expected a SoftPrompt, a Prefix or None, got {type(thing).__name__}"
    refuses_prompt(backbone, thing, InputError, part)
    refuses(InputError, part, lambda: backbone.compile(thing))


WRONG_VALUES = {
    "1-D": (lambda: SoftPrompt.from_embeddings(torch.ones(3)), "shape [P, H], got [3]"),
    "no tensor": (lambda: SoftPrompt.from_embeddings([[1.0]]), "shape [P, H], got list"),
    "no rows": (lambda: SoftPrompt.from_embeddings(torch.ones(0, 3)), "got [0, 3]"),
    "integers": (lambda: SoftPrompt.from_embeddings(torch.ones(2, 3).long()), "got torch.int64"),
    "NaN": (lambda: SoftPrompt.from_embeddings(torch.full((2, 3), torch.nan)), "NaN or infinite"),
    "no layers": (lambda: SoftPrompt.from_key_values([]), "one (keys, values) pair"),
    "no pairs": (lambda: SoftPrompt.from_key_values([3]), "one (keys, values) pair"),
    "2-D keys": (
        lambda: SoftPrompt.from_key_values([(torch.ones(2, 3),) * 2]),
        "layer 0: expected keys and values [N, P, D], got [2, 3]",
    ),
    "layers of other lengths": (
        lambda: SoftPrompt.from_key_values(
            [(torch.ones(1, 2, 4),) * 2, (torch.ones(1, 3, 4),) * 2]
        ),
        "layers differ in virtual tokens: [2, 3]",
    ),
    "two dtypes": (
        lambda: SoftPrompt.from_key_values([(torch.ones(1, 2, 4), torch.ones(1, 2, 4).double())]),
        "several dtypes: torch.float32, torch.float64",
    ),
    "another form": (lambda: SoftPrompt.from_embeddings(torch.ones(2, 3)).key_values, "no keys"),
}


@pytest.mark.parametrize(("make", "part"), WRONG_VALUES.values(), ids=WRONG_VALUES)
def test_wrong_values(make: Callable[[], Any], part: str) -> None:
    refuses(InputError, part, make)


# Arguments of generate and of logits.

CACHE = transformers.DynamicCache()
ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "positions": ({"position_ids": torch.arange(6)[None]}, "generate(position_ids=...)"),
    "guidance": ({"guidance_scale": 1.5}, "generate(guidance_scale=...)"),
    "guidance, configured": (
        {"generation_config": transformers.GenerationConfig(max_new_tokens=4, guidance_scale=1.5)},
        "generate(guidance_scale=...)",
    ),
    "negative prompt": ({"negative_prompt_ids": IDS}, "generate(negative_prompt_ids=...)"),
    "two names of a cache": (
        {"cache_params": CACHE, "past_key_values": CACHE},
        "past_key_values and cache_params are two names of one cache",
    ),
    "custom loop": ({"custom_generate": "some/repository"}, "generate(custom_generate=...)"),
    "beam groups": ({"num_beams": 4, "num_beam_groups": 2}, "generate(num_beam_groups=...)"),
    "contrastive search": ({"penalty_alpha": 0.6, "top_k": 4}, "generate(penalty_alpha=...)"),
    "layers contrasted": ({"dola_layers": "low"}, "generate(dola_layers=...)"),
    "forced words": (
        {"force_words_ids": [[4]], "num_beams": 2},
        "generate(force_words_ids=...)",
    ),
    "images": ({"pixel_values": torch.ones(1, 3, 8, 8)}, "pixel_values"),
    "a misspelt name": ({"temprature": 0.5}, "temprature"),
    "an unknown start": ({"forced_bos_token_id": 10**6}, "generate(forced_bos_token_id=1000000)"),
    "an unknown end": ({"forced_eos_token_id": [5, -1]}, "generate(forced_eos_token_id=-1)"),
    "an unknown end, configured": (
        {"generation_config": transformers.GenerationConfig(forced_eos_token_id=10**6)},
        "generate(forced_eos_token_id=1000000)",
    ),
}


@pytest.mark.parametrize(("arguments", "part"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_an_argument_that_cannot_be_right(
    backbone: Backbone, arguments: dict[str, Any], part: str
) -> None:
    options = {} if "generation_config" in arguments else GREEDY
    refuses(
        ForewordError,
        part,
        lambda: backbone.generate(prompt_of(backbone), IDS, **options, **arguments),
    )


def test_media_for_a_model_of_text(backbone: Backbone) -> None:
    refuses(
        UnsupportedError,
        "llama takes no pixel_values",
        lambda: backbone.logits(None, IDS, pixel_values=torch.ones(1, 3, 8, 8)),
    )


@pytest.mark.parametrize("ids", [IDS[0], IDS[:, :0], IDS[:0], IDS.tolist()])
def test_ids_of_another_shape(backbone: Backbone, ids: Any) -> None:
    part = "expected input_ids [B, T] with at least one token"
    refuses(InputError, part, lambda: backbone.generate(None, ids, **GREEDY))
    refuses(InputError, part, lambda: backbone.logits(None, ids))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8, torch.complex64])
def test_ids_that_are_no_whole_numbers(backbone: Backbone, dtype: torch.dtype) -> None:
    ids, part = IDS.to(dtype), f"expected input_ids of torch.int64, got {dtype}"
    refuses(InputError, part, lambda: backbone.generate(None, ids, **GREEDY))
    refuses(InputError, part, lambda: backbone.logits(None, ids))
    refuses(InputError, part, lambda: backbone.embed(ids))


def test_nothing_to_read(backbone: Backbone) -> None:
    prompt, embeds = prompt_of(backbone), backbone.embed(IDS)
    refuses(InputError, "got neither", lambda: backbone.generate(prompt, **GREEDY))
    refuses(InputError, "got neither", lambda: backbone.logits(prompt))
    needed = "needs input_ids here"
    refuses(InputError, needed, lambda: backbone.logits(prompt, inputs_embeds=embeds))


@pytest.mark.parametrize("shape", [(1, 4), (1, 9), (2, 6)])
def test_a_mask_of_another_shape(backbone: Backbone, shape: tuple[int, int]) -> None:
    prompt, mask = prompt_of(backbone), torch.ones(shape, dtype=torch.long)
    refuses(
        InputError, "attention_mask has", lambda: backbone.generate(prompt, IDS, mask, **GREEDY)
    )
    refuses(InputError, "attention_mask has", lambda: backbone.logits(prompt, IDS, mask))


# Caches.


def _first_turn(backbone: Backbone, prompt: Any, mask: Any = None, **options: Any) -> Any:
    return backbone.generate(prompt, IDS, mask, return_dict_in_generate=True, **GREEDY, **options)


def _next_ids(first: Any) -> Tensor:
    return torch.cat([first.sequences, IDS], dim=1)


def test_a_cache_that_was_filled_elsewhere(backbone: Backbone) -> None:
    cache = transformers.DynamicCache()
    backbone.model(input_ids=IDS, **given_cache(backbone.model, cache))
    refuses(
        MismatchError,
        "already holds 6 tokens read without this prompt",
        lambda: backbone.generate(
            prompt_of(backbone), torch.cat([IDS, IDS], 1), past_key_values=cache, **GREEDY
        ),
    )


def test_a_cache_of_another_prompt(backbone: Backbone) -> None:
    first = _first_turn(backbone, prompt_of(backbone))
    for other in (prompt_of(backbone, seed=3), None):
        refuses(
            MismatchError,
            "row 0: past_key_values was started from another prompt",
            lambda other=other: backbone.generate(
                other, _next_ids(first), past_key_values=first.past_key_values, **GREEDY
            ),
        )


def test_a_cache_with_a_prompt_given_to_the_bare_model(backbone: Backbone) -> None:
    first = _first_turn(backbone, prompt_of(backbone))
    refuses(
        UnsupportedError,
        "this cache starts with virtual tokens",
        lambda: backbone.model.generate(
            _next_ids(first), **{GENERATE_CACHE: first.past_key_values}, **GREEDY
        ),
    )


def test_a_cache_of_another_batch_size(backbone: Backbone) -> None:
    prompt = prompt_of(backbone)
    first = _first_turn(backbone, prompt)
    refuses(
        MismatchError,
        "past_key_values holds 1 rows, the call has 2",
        lambda: backbone.generate(
            prompt, _next_ids(first).repeat(2, 1), past_key_values=first.past_key_values, **GREEDY
        ),
    )


def test_a_cache_of_padded_rows_without_their_mask(backbone: Backbone) -> None:
    prompt, mask = prompt_of(backbone), torch.ones_like(IDS)
    mask[0, 0] = 0
    first = _first_turn(backbone, prompt, mask)
    for given, part in (
        (None, "holds padded rows"),
        (mask[:, :5], "has 5 columns in 1 rows, for 1 rows of 16 tokens"),
    ):
        refuses(
            InputError,
            part,
            lambda given=given: backbone.generate(
                prompt, _next_ids(first), given, past_key_values=first.past_key_values, **GREEDY
            ),
        )


def test_a_mask_of_other_values_than_0_and_1(backbone: Backbone) -> None:
    for mask in (torch.full_like(IDS, 2), torch.full_like(IDS, -1)):
        refuses(
            InputError,
            "other values than 0 and 1",
            lambda mask=mask: backbone.generate(prompt_of(backbone), IDS, mask, **GREEDY),
        )


@pytest.mark.parametrize("is_given", [True, False])
def test_a_static_cache_that_is_too_short_for_the_second_turn(
    backbone: Backbone, is_given: bool
) -> None:
    prompt, options = prompt_of(backbone), {"cache_implementation": "static"}
    if is_given:
        cache = transformers.StaticCache(config=backbone.model.config, max_cache_len=9)
        options = {"past_key_values": cache}
    first = _first_turn(backbone, prompt, **options)
    refuses(
        InputError,
        "the static cache holds 9 real tokens, this turn needs 19",
        lambda: backbone.generate(
            prompt, _next_ids(first), past_key_values=first.past_key_values, **GREEDY
        ),
    )


def test_a_cache_of_another_number_of_layers(backbone: Backbone) -> None:
    cache = transformers.cache_utils.Cache(layers=[transformers.cache_utils.DynamicLayer()])
    refuses(
        MismatchError,
        "past_key_values has 1 layers, the model has 3",
        lambda: _first_turn(backbone, prompt_of(backbone), past_key_values=cache),
    )


@pytest.mark.parametrize("mask", [None, torch.ones_like(IDS)])
def test_a_cache_that_is_no_decoders(backbone: Backbone, mask: Any) -> None:
    pair = (transformers.DynamicCache(), transformers.DynamicCache())
    for cache in (pair, transformers.EncoderDecoderCache(*pair)):
        refuses(
            UnsupportedError,
            f"past_key_values is of type {type(cache).__name__}",
            lambda cache=cache: _first_turn(
                backbone, prompt_of(backbone), mask, past_key_values=cache
            ),
        )


@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
def test_an_offloaded_cache_without_an_accelerator(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    refuses(
        UnsupportedError,
        "offloaded",
        lambda: _first_turn(backbone, prompt_of(backbone), cache_implementation=kind),
    )


# Lengths.


def test_more_tokens_than_the_model_has_positions() -> None:
    backbone = Backbone(tiny_models.build("gpt2", n_positions=16))
    prompt, long = prompt_of(backbone, 6), prompt_of(backbone, 17)
    assert backbone.generate(prompt, IDS, **GREEDY).shape == (1, 10)  # 6 + 6 + 4 positions fit
    refuses(
        InputError,
        "11 real and 6 virtual tokens make 17, but gpt2 has 16 positions",
        lambda: backbone.generate(prompt, IDS, max_new_tokens=5),
    )
    ids = tiny_models.ids(11)[None]
    refuses(InputError, "gpt2 has 16 positions", lambda: backbone.logits(prompt, ids))
    refuses(InputError, "gpt2 has 16 positions", lambda: backbone.compile(long))


ROPES = {
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "longrope": {
        "rope_type": "longrope", "factor": 16.0, "original_max_position_embeddings": 16,
        "short_factor": [1.0] * 4, "long_factor": [2.0] * 4,
    },
}  # fmt: skip


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES)
def test_more_tokens_than_the_rotation_is_constant_for(rope: dict[str, Any]) -> None:
    length = 16 if rope["rope_type"] == "dynamic" else 256
    changes = {"max_position_embeddings": length, "rope_parameters": rope | {"rope_theta": 1e4}}
    backbone = Backbone(tiny_models.build("llama", **changes))
    prompt, long, ids = prompt_of(backbone), prompt_of(backbone, 17), tiny_models.ids(12)[None]
    assert backbone.generate(prompt, IDS, **GREEDY).shape == (1, 10)
    part = "tokens pass 16, where the rotary embedding of llama changes"
    refuses(UnsupportedError, part, lambda: backbone.generate(prompt, IDS, max_new_tokens=6))
    refuses(UnsupportedError, part, lambda: backbone.logits(prompt, ids))
    refuses(UnsupportedError, part, lambda: backbone.compile(long))


# Models and releases.


def _two_models() -> Any:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    parts = [transformers.BertConfig(vocab_size=97, intermediate_size=16, **sizes)] * 2
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    return transformers.EncoderDecoderModel(config)


def _windows_beside_an_encoder() -> Any:
    config = transformers.MoonshineConfig(
        vocab_size=97, hidden_size=16, intermediate_size=16, encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1, encoder_num_attention_heads=2, decoder_num_attention_heads=2,
    )  # fmt: skip
    return transformers.AutoModelForSpeechSeq2Seq.from_config(config)


def _mamba() -> Any:
    torch.manual_seed(0)
    config = transformers.MambaConfig(
        vocab_size=97, hidden_size=16, num_hidden_layers=1, state_size=8, initializer_range=0.3
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def _jamba() -> Any:
    torch.manual_seed(0)
    config = transformers.JambaConfig(
        **tiny_models.COMMON, attn_layer_period=2, attn_layer_offset=1, num_experts=2,
        mamba_d_state=8,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config)


def _recurrent_gemma() -> Any:
    torch.manual_seed(0)
    config = transformers.RecurrentGemmaConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, lru_width=32,
        intermediate_size=48, attention_window_size=8, num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    return transformers.AutoModelForCausalLM.from_config(config)


def _flash() -> Any:
    model = tiny_models.build("llama")
    model.config._attn_implementation = "flash_attention_2"
    return model


def _headless() -> Any:
    return transformers.LlamaModel(tiny_models.CONFIGS["llama"]())


MODELS = {
    "two models": (_two_models, "encoder-decoder: an encoder and a decoder that are models of"),
    "rotation beside an encoder": (_windows_beside_an_encoder, "moonshine: windows or rotary"),
    "a state dropped by mamba": (
        _mamba,
        "mamba: MambaForCausalLM is not exact behind a prompt (one row",
    ),
    "a state dropped by jamba": (_jamba, "its code may drop the recurrent state between passes"),
    "a state that reads padding": (
        _recurrent_gemma,
        "recurrent_gemma: RecurrentGemmaForCausalLM is not exact",
    ),
    "flash attention": (_flash, "llama: attention implementation 'flash_attention_2'"),
    "without a head": (_headless, "llama: LlamaModel cannot generate"),
}


@pytest.mark.parametrize(("make", "part"), MODELS.values(), ids=MODELS)
def test_a_model_that_cannot_be_made_exact(make: Callable[[], Any], part: str) -> None:
    refuses(UnsupportedError, part, lambda: Backbone(make()))


@pytest.mark.parametrize("release", ["4.57.1", "5.0.0", "5.15.2"])
def test_a_release_of_transformers_older_than_the_range(
    monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    monkeypatch.setattr(releases.metadata, "version", lambda name: release)
    part = f"transformers {release} is older than the tested range"
    refuses(DependencyError, part, lambda: foreword.Backbone)
    refuses(DependencyError, "pip install 'transformers>=", lambda: foreword.train)


def test_a_newer_release_of_transformers_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(releases.metadata, "version", lambda name: "6.1.0")
    assert foreword.Backbone is Backbone
    assert foreword.train is not None
    assert caplog.text.count("transformers 6.1.0 is newer than the tested range") == 1


# The model afterwards.


def _snapshot(model: Any) -> dict[str, Any]:
    """Return everything about a model that a call could have changed."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "type": type(model),
        "attributes": sorted(vars(model)),
        "forward": [module.forward.__func__ for module in model.modules()],
        "hooks": [[dict(getattr(m, name)) for name in hooks] for m in model.modules()],
        "modules": [(name, id(module)) for name, module in model.named_modules()],
        "training": [module.training for module in model.modules()],
        "config": model.config.to_dict(),
        "generation_config": model.generation_config.to_dict(),
    }


USES: dict[str, dict[str, Any]] = {
    "greedy": GREEDY,
    "beam search": {"max_new_tokens": 4, "num_beams": 2},
    "static cache": GREEDY | {"cache_implementation": "static"},
    "no cache": GREEDY | {"use_cache": False},
    "prompt lookup": GREEDY | {"prompt_lookup_num_tokens": 2},
    "refused": GREEDY | {"position_ids": IDS},
    "refused late": {"max_new_tokens": 4, "pixel_values": IDS},
}


@pytest.mark.parametrize("options", USES.values(), ids=USES)
def test_the_model_is_unpatched_and_usable_afterwards(options: dict[str, Any]) -> None:
    model = tiny_models.build("llama")
    backbone = Backbone(model)
    expected = model.generate(IDS, **GREEDY)
    before, state = _snapshot(model), copy.deepcopy(model.state_dict())
    try:
        backbone.generate(prompt_of(backbone), IDS, **options)
        backbone.logits(prompt_of(backbone), IDS)
    except ForewordError:
        assert "position_ids" in options or "pixel_values" in options
    assert _snapshot(model) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.generate(IDS, **GREEDY), expected)


def test_a_generation_that_fails_inside_the_model_leaves_it_usable() -> None:
    model = tiny_models.build("llama")
    backbone, before = Backbone(model), _snapshot(model)
    expected = model.generate(IDS, **GREEDY)

    def fail(input_ids: Tensor, scores: Tensor) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        backbone.generate(prompt_of(backbone), IDS, **GREEDY, logits_processor=[fail])
    assert _snapshot(model) == before
    assert torch.equal(model.generate(IDS, **GREEDY), expected)


def test_ids_of_another_tokenizer(backbone: Backbone) -> None:
    ids = torch.tensor([[5, 97]])
    part = "input_ids range from 5 to 97, expected 0 to 96"
    refuses(InputError, part, lambda: backbone.generate(None, ids, **GREEDY))
    refuses(InputError, part, lambda: backbone.logits(None, ids))


def test_a_row_without_a_token(backbone: Backbone) -> None:
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1] = 0
    part = "row 1 of attention_mask has no token"
    refuses(InputError, part, lambda: backbone.generate(None, IDS.repeat(2, 1), mask, **GREEDY))


def test_a_base_that_was_tuned_behind_the_same_embeddings() -> None:
    tuned = tiny_models.build("llama")
    for parameter in tuned.model.layers.parameters():
        parameter.data += 0.1
    prompt = prompt_of(Backbone(tiny_models.shared("llama")))
    prompt.facts = describe(
        Backbone(tiny_models.shared("llama")), TrainConfig(), EncodingConfig(), rows=[]
    )
    refuses(MismatchError, "they differ in weights", lambda: Backbone(tuned).compile(prompt))


def test_what_is_no_model() -> None:
    refuses(UnsupportedError, "object is not a transformers model", lambda: Backbone(object()))
