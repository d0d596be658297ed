"""Tiny twin: a small model of a class, with the options of a given configuration.

In: a model's class and its configuration. Out: a model of that class in float64 on the CPU: every
size cut down by general rules (a layer of each kind, windows of 8, few experts), every other option
as it was, random weights large enough that a prompt moves the logits. What is proved on a twin is
proved of the class and its options, in a second, whatever the size and the precision of the user's
weights. Knows no family.
"""

import copy
import dataclasses
import itertools
import math
import re
from typing import Any

import torch
from transformers import PretrainedConfig

from foreword.compat.transformers_api import code_refused

WINDOW = 8  # tokens of a sliding window, of a chunk, or that an indexer chooses
VOCABULARY = 96
POSITIONS = 160
HIDDEN, HEADS, HEAD = 64, 4, 16
LARGE = 20_000_000  # parameters; the rules missed a size of a twin that has more
SPREAD = 1.5  # of random weights, over the square root of what they sum up

# What becomes of a number, by its name: the first rule that fits decides. Other numbers stay.
SIZES: tuple[tuple[str, int, str], ...] = (
    ("equal", WINDOW, r"^sliding_window(_size)?$|^(keep_|local_)?window_size$|^local_attention$"),
    ("equal", WINDOW, r"^(local_)?attention_window(_size|_len)?$|attn_chunk_length$|^rel_extent$"),
    ("equal", WINDOW, r"^((mamba|attention)_)?chunk_size$|^block_size$|^index(_topk|er_budget)$"),
    ("most", WINDOW // 2, r"^local_radius$|^(global|index)_block_size$|^indexer_compress_ratio$"),
    ("stay", 0, r"^(floor_scale|log_scaling_n_floor)$|_period$|expansion|_mult"),
    ("equal", VOCABULARY, r"vocab_size|byte_group_vocab$"),
    ("equal", POSITIONS // 2, r"original_max_position"),
    ("equal", POSITIONS, r"max(_\w+)?_position|^n_positions$|^n_ctx$|^context_length$"),
    ("equal", POSITIONS, r"max_(seq|sequence)_len|^model_max_length$"),
    ("equal", 0, r"nextn_predict|mtp"),
    ("most", 2, r"(sparse_step|layer_interval|every_n_layers|topk_blocks)$"),
    ("most", 1, r"^(topk_group|n_groups?|num_expert_group|mamba_n_groups|num_groups)$|^depths$"),
    ("most", 2, r"experts_per_tok|top_?k$|^num_selected|^moe_k$|num_experts_per|router_top"),
    ("most", 1, r"shared_experts?$"),
    ("most", 4, r"experts?$|^num_experts|^zero_expert_num$"),
    ("equal", 2 * HEAD, r"^qk_head_dim$|^attention_head_dim$"),
    ("equal", HEAD, r"head_?(dim|size)$|d_head$|^d_kv$|^dim_head$|head_channels$|^kv_channels$"),
    ("equal", HEAD, r"rotary_dim$|^query_pre_attn_scalar$|lora_rank$|lowrank$|^laurel_rank$"),
    ("equal", 2 * HIDDEN // HEAD, r"^(n_)?(mamba|ssm)\w*heads$"),
    ("most", HEADS, r"heads?(_per_layer)?$|(time_step|dt)_rank$"),
    ("most", 16, r"(state_size|d_state)$"),
    ("stay", 0, r"conv_kernel"),
    ("equal", 8, r"per_layer_input$"),
    ("equal", 2 * HIDDEN, r"intermediate|ffn|feed_forward_(proj|size)|dense_size"),
    ("equal", 2 * HIDDEN, r"^d_?ff$|^dim_ff$|^n_inner$|^d_inner$|mlp_dim|d_ssm$"),
    ("equal", HIDDEN, r"hidden_size|^d_model$|^n_embd$|embedding_size$|^adapter_input_size$"),
    ("equal", HIDDEN, r"(^|_)(emb|embed|embedding|hidden|text|proj|projection|output|in|out)_dim$"),
    ("equal", HIDDEN, r"^dim$|^out_hidden|^lru_width$"),
    # Parts that read images and sounds.
    ("equal", 32, r"^(image|crop)_size$"),
    ("equal", 8, r"^patch_size$"),
    ("equal", HIDDEN, r"^upsample_groups$"),
    ("most", 4, r"^num_filters$"),
    ("most", 32, r"channels?$"),
    ("most", 64, r"^(codebook_size|num_embeddings)$"),
)
DEPTH = re.compile(  # numbers of layers
    r"^(num_(hidden_|encoder_|decoder_)?layers|n_layers?|num_layers_per_stack|num_blocks"
    r"|(en|de)coder_layers|depth|layers)$"
)
CHOSEN = re.compile(r"(layers?|_ids?|_idxs?|indices|indexe?s)$")  # layers by their numbers
FIRST = re.compile(r"^(num_|n_)?(dense_layers|first_k_dense_replace)$")  # the first so many layers
LAST = re.compile(r"kv_shared_layers$")  # the last so many
SECTION = re.compile(r"^n_\w+_layers$")  # so many, then so many of the next name, to the last layer
TOKENS = re.compile(r"_token_(id|index)$|_(token|start|end)_ids?$|_index$")
WIDTHS = re.compile(r"dims?$|(hidden|intermediate)_sizes?$|num_(heads|groups)$|^depths$|channels$")


@code_refused()
def make_twin(kind: Any, config: Any, seed: int = 0) -> Any:
    """Return a tiny model of class `kind` with the options of a configuration.

    Raises:
        ValueError: its small form is still large.
        Exception: of whatever other type the class raises where its small form cannot be built.
    """
    small = shrink(config)
    if (count := _count(kind, small)) is None:
        # A class may tie what layers of a kind share, and ask for two.
        double = shrink(config, copies=2)
        small = double if (count := _count(kind, double)) else small
    if count and count > LARGE:
        raise ValueError(f"its small form has {count:,} parameters, more than {LARGE:,}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(small).to(torch.float64).eval()
        _spread(model)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # other ones take no float64
    model.requires_grad_(False)
    return model if _takes_float64(model) else model.to(torch.float32)


def _count(kind: Any, config: Any) -> int | None:
    """Return how many parameters a model would have; None where that takes building it."""
    try:
        with torch.device("meta"):
            model = kind(copy.deepcopy(config))
    except Exception:  # of whatever type a class raises
        return None
    return sum(int(parameter.numel()) for parameter in model.parameters())


@torch.no_grad()
def _takes_float64(model: Any) -> bool:
    """Return whether a model runs in float64; some make numbers or constants of float32."""
    if model.config.is_encoder_decoder:
        return True
    try:
        model(input_ids=torch.arange(1, 4, device="cpu")[None], use_cache=False)
    except RuntimeError:
        return False
    return True


def shrink(config: Any, copies: int = 1) -> Any:
    """Return a copy of a configuration with every size cut down, and so many layers of a kind."""
    small = copy.deepcopy(config)
    for name in ("quantization_config", "dtype", "_name_or_path"):
        if getattr(small, name, None) is not None:
            vars(small).pop(name, None)
    _shrink(small, copies)
    return small


def _shrink(config: Any, copies: int) -> None:
    full = dict(vars(config))
    counted = next((full[name] for name in full if DEPTH.match(name) and _is_int(full[name])), 0)
    # Some configurations count a stack of layers as often as it is run.
    runs = counted // (full.get("num_layers_per_stack") or counted) if counted else 1
    num_layers = counted // runs
    choices = _choices(full, num_layers)
    kept = _kept(config, choices, num_layers, copies)
    next_id = VOCABULARY - 1
    for name, value in full.items():
        new: Any = value
        if isinstance(value, PretrainedConfig):
            _shrink(value, copies)
        elif name in choices:
            chosen = [index for index, old in enumerate(kept) if choices[name][old]]
            new = len(chosen) if _is_int(value) else type(value)(chosen)
        elif DEPTH.match(name) and _is_int(value):
            new = len(kept) if name == "num_layers_per_stack" else len(kept) * runs
        elif isinstance(value, list | tuple) and num_layers and len(value) == num_layers:
            new = type(value)(_sized(full, name, value[old]) for old in kept)
        elif TOKENS.search(name) and isinstance(value, int | list | tuple):
            if max([value] if isinstance(value, int) else value, default=0) >= VOCABULARY:
                new = next_id if isinstance(value, int) else [next_id]
                next_id -= 1
        elif isinstance(value, list | tuple) and value and all(map(_is_int, value)):
            if sum(value) == full.get("hidden_size"):  # its parts
                new = type(value)(one * HIDDEN // sum(value) for one in value)
            elif WIDTHS.search(name):
                new = type(value)(_sized(full, name, one) for one in value)
        elif name == "rope_parameters" and isinstance(value, dict):
            _shrink_rope(value)
        elif isinstance(value, dict) and "label" not in name:
            new = {key: _sized(value, str(key), one) for key, one in value.items()}
        elif hasattr(value, "per_layer_overrides"):  # what single layers have otherwise
            old_layers = [value.per_layer_overrides.get(old) for old in kept]
            layers = {
                index: {key: _sized(own, key, one) for key, one in own.items()}
                for index, own in enumerate(old_layers)
                if own is not None
            }
            new = dataclasses.replace(value, per_layer_overrides=layers)
        elif not name.startswith("_attn"):
            new = _sized(full, name, value)
        if new is not value:
            object.__setattr__(config, name, new)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sized(full: dict[str, Any], name: str, value: Any) -> Any:
    """Return what becomes of a value of a name, among all that a configuration holds."""
    if not _is_int(value) or value <= 0:
        return value
    if (related := _related(full, name, value)) is not None:
        return related
    for rule, size, pattern in SIZES:
        if re.search(pattern, name):
            return {"stay": value, "most": min(value, size), "equal": size}[rule]
    return value


def _related(full: dict[str, Any], name: str, value: int) -> int | None:
    """Return what becomes of a number that others determine."""
    if name == "num_heads" and "expand" in full:
        return int(full["expand"]) * HIDDEN // HEAD
    if name == "attention_hidden_size":
        return HIDDEN * value // int(full["hidden_size"])
    rotated = full.get("qk_rope_head_dim")
    if rotated and name in ("head_dim", "qk_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"):
        return HEAD * value // int(rotated)
    if name in ("keep_window_size", "index_topk"):  # may be more tokens than there ever are
        return POSITIONS if value >= full.get("max_position_embeddings", math.inf) else None
    if value > 1 and re.search(r"(key_value|kv)_(n_)?heads$|^n_head_kv$|key_heads$", name):
        queries = [
            other
            for one, other in full.items()
            if re.search(r"(attention|value)_heads$|^n_heads?$", one) and "key_value" not in one
        ]
        is_shared = not queries or any(_is_int(one) and one > value for one in queries)
        return HEADS // 2 if is_shared else HEADS
    return None


def _choices(full: dict[str, Any], num_layers: int) -> dict[str, list[bool]]:
    """Return for each value that chooses some of the layers, which."""
    layers, found = range(num_layers), {}
    counts = {one: full[one] for one in full if SECTION.match(one) and _is_int(full[one])}
    starts = list(itertools.accumulate(counts.values(), initial=0))
    for name, value in full.items():
        if name in counts and len(counts) > 1 and starts[-1] == num_layers:
            start = starts[list(counts).index(name)]
            found[name] = [start <= index < start + value for index in layers]
        elif FIRST.search(name) and _is_int(value) and value:
            found[name] = [index < value for index in layers]
        elif LAST.search(name) and _is_int(value) and value:
            found[name] = [index >= num_layers - value for index in layers]
        elif CHOSEN.search(name) and isinstance(value, list | tuple) and value:
            is_ascending = all(map(_is_int, value)) and sorted(set(value)) == [*value]
            if is_ascending and value[0] in layers and value[-1] in layers:
                found[name] = [index in value for index in layers]
    return found


def _kept(config: Any, choices: dict[str, list[bool]], num_layers: int, copies: int) -> list[int]:
    """Return the layers to keep: the first ones of each kind, and two at least."""
    full = vars(config)
    traits: list[Any] = [*choices.values()]
    for name, value in full.items():
        if name not in choices and isinstance(value, list | tuple) and len(value) == num_layers:
            traits.append(value)
        elif hasattr(value, "per_layer_overrides"):
            traits.append([value.per_layer_overrides.get(index) for index in range(num_layers)])
    kinds: list[Any] = [tuple(repr(one[index]) for one in traits) for index in range(num_layers)]
    names = (name for name in ("layers_block_type", "layer_types") if name not in full)
    computed = next((found for name in names if (found := getattr(config, name, None))), ())
    told = len(set(kinds))
    if len(computed) == num_layers:
        kinds = list(zip(kinds, computed, strict=True))
    groups: dict[Any, list[int]] = {}
    for index, kind in enumerate(kinds):
        groups.setdefault(kind, []).append(index)
    kept = sorted(index for group in groups.values() for index in group[:copies])
    # What a layer is may follow from its number, and be told by no list.
    if len(groups) > told or len(kept) < 2:
        return list(range(max([2, *(index + 1 for index in kept)]))) if num_layers != 1 else [0]
    return kept


def _shrink_rope(rope: dict[str, Any]) -> None:
    for group in [rope, *(group for group in rope.values() if isinstance(group, dict))]:
        if "original_max_position_embeddings" in group:
            group["original_max_position_embeddings"] = POSITIONS // 2
        if sections := group.get("mrope_section"):
            rotated = int(HEAD * group.get("partial_rotary_factor", 1.0)) // 2
            part, rest = divmod(rotated, len(sections))
            group["mrope_section"] = [part + (index < rest) for index in range(len(sections))]
        for name in ("short_factor", "long_factor"):
            if name in group:
                group[name] = group[name][: HEAD // 2]


@torch.no_grad()
def _spread(model: Any) -> None:
    """Make random weights large enough that every layer matters."""
    for name, tensor in model.named_parameters():
        if not torch.isfinite(tensor).all() or not tensor.any():
            tensor.normal_(0, 0.1)  # zeros would hide what a parameter does
        if tensor.ndim >= 2 and "norm" not in name and "A_log" not in name:
            is_table = "embed" in name or "wte" in name or "wpe" in name
            tensor.normal_(0, 1.0 if is_table else SPREAD / math.sqrt(tensor.shape[-1]))
