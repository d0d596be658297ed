"""Write docs/families.md: every class that transformers registers, tried behind a prompt.

A tiny model of each class is built from its own configuration and run through the contract's core
cases in both forms of a prompt (`foreword.verification`): the same code that proves an untested
class when a model of it is loaded. Results lie in docs/families.json.

    python docs/make_families.py               every class; about ten minutes
    python docs/make_families.py llama t5      these model types only
    python docs/make_families.py --worse       every class; fails where one held and does no longer
    python docs/make_families.py --check       say whether the page is what the results say
"""

import copy
import functools
import json
import logging
import sys
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from page import write_or_check

FOLDER = Path(__file__).parent
PAGE, RESULTS = FOLDER / "families.md", FOLDER / "families.json"

GROUPS = {
    "causal": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "Causal language models"),
    "image-text": ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES", "Image-text models, text only"),
    "encoder-decoder": (
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        "Encoder-decoder models",
    ),
    "speech": ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES", "Speech-to-text models"),
}

# Configurations whose defaults are no causal language model, or cannot be built at all.
DECODERS = [
    "bert",
    "bert-generation",
    "big_bird",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "megatron-bert",
    "reformer",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roc_bert",
    "roformer",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
]
# Dotted names lead into a nested configuration, where the class has one.
ROPE = {"rope_type": "default", "rope_theta": 10000.0}
AXES = {"text_config.rope_parameters": {**ROPE, "mrope_section": [16, 24, 24]}}
HALF_AXES = {
    "text_config.rope_parameters": {
        **ROPE,
        "partial_rotary_factor": 0.5,
        "mrope_section": [8, 12, 12],
    }
}
SLIDING = {
    "text_config.layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 10,
    "text_config.rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE},
}
INDEXER = {
    "text_config.indexer_n_heads": 16,
    "text_config.indexer_kv_heads": 1,
    "text_config.indexer_head_dim": 128,
    "text_config.indexer_budget": 2048,
    "text_config.indexer_compress_ratio": 4,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    **{model_type: {"is_decoder": True} for model_type in DECODERS},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "hunyuan_vl": {
        "text_config.head_dim": 128,
        "text_config.rope_parameters": {**ROPE, "mrope_section": [16, 16, 16, 16]},
    },
    "ministral": {"head_dim": 128},
    "laguna": {"layer_types": (["full_attention"] + ["sliding_attention"] * 3) * 10},
    "mellum": {"layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 7},
    "moonshine_streaming": {"num_key_value_heads": 8},
    "nemotron": {"num_key_value_heads": 4},
    "bamba": {"attn_layer_indices": [9, 18, 27]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "deepseek_v2": {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 128, "n_shared_experts": 2, "num_experts_per_tok": 6},
    "dbrx": {
        "attn_config.rope_theta": 10000.0,
        "attn_config.kv_n_heads": 8,
        "attn_config.clip_qkv": 8.0,
    },
    "deepseek_ocr2": {
        "text_config.num_experts_per_tok": 6,
        "text_config.mlp_layer_types": ["dense"] + ["sparse"] * 31,
    },
    "qwen4_exp": INDEXER,
    "qwen4_exp_text": INDEXER,
    "cohere_compass": SLIDING,
    "cohere_compass_text": SLIDING,
    "step3p7": {
        "text_config.sliding_window": 512,
        "text_config.layer_types": (["full_attention"] + ["sliding_attention"] * 3) * 11
        + ["full_attention"],
        "text_config.rope_parameters": {"sliding_attention": ROPE, "full_attention": ROPE},
    },
    "granite4_vision": {"downsample_rate": "4/8", "deepstack_layer_map": [(0, 0), (1, 1)]},
    "diffusion_gemma": {
        "text_config.num_experts": 8,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 704,
    },
    "chameleon": {"vocabulary_map": {"<image>": 90}, "image_token_id": 90},
    "emu3": {
        "vocabulary_map": {"<image>": 90, "<|visual token 000000|>": 91},
        "image_token_id": 90,
    },
    "ernie4_5_vl_moe": {
        "text_config.rope_parameters": {**ROPE, "mrope_section": [22, 22, 20]},
    },
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm46v", "glmga", "glm_ocr"), HALF_AXES),
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni_thinker", "paddleocr_vl"),
        AXES,
    ),
}

# Why a class does not hold, by what was found: a heading, words of the reason, what it means.
WHY = (
    (
        "States of another kind",
        ("layers whose state", "cache of its own", "object has no attribute 'rnn_state'"),
        "Its layers keep something else than keys and values or a recurrent state: the keys of an "
        "indexer, a compressed history, a cache of the family's own. A prefix would have to hold "
        "that, too.",
    ),
    (
        "A recurrent state that several tokens do not continue",
        ("drop the recurrent state",),
        "Its code begins with an empty state wherever a pass has several tokens, so that rows "
        "behind a prefix forget it. transformers' own chunked prefill is wrong for it as well.",
    ),
    (
        "Images or sounds are required",
        ("pixel_values", "flattened_patches", "input_features", "Bbox", "qformer", "state'"),
        "The class takes no text alone.",
    ),
    (
        "Two models in one",
        ("models of their own", "no decoder apart from its head", "each layer", "whole language"),
        "Parts that foreword takes apart are one here, or two that are configured alone.",
    ),
    (
        "Rows or tokens that change each other",
        ("limited capacity", "both directions", "beside an encoder"),
        "Experts of a limited capacity give a token what the rest of the batch leaves; attention "
        "in both directions has no prefix; windows or rotary embeddings beside an encoder would "
        "need masks and positions of their own.",
    ),
    (
        "An interface of its own",
        ("raises",),
        "Its forward pass does not take what the library's other classes take.",
    ),
    (
        "Different numbers",
        ("differ",),
        "Its fast paths differ from its own slow one, in transformers or behind a prefix.",
    ),
    (
        "No tiny model",
        ("not built",),
        "The general rules built none from its default configuration: it was not tried here. A "
        "model of it proves itself when it is loaded.",
    ),
)


def registered() -> Iterator[tuple[str, str, str]]:
    """Yield group, model type and class of everything that the installed release registers."""
    from transformers.models.auto import modeling_auto

    for group, (mapping, _) in GROUPS.items():
        for model_type, names in getattr(modeling_auto, mapping).items():
            for name in [names] if isinstance(names, str) else names:
                yield group, model_type, name


def configuration(model_type: str, kind: Any) -> Any:
    """Return a class's own default configuration, made a causal language model's."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[model_type]()
    if not isinstance(config, kind.config_class):
        config = kind.config_class()
    for name, value in DEFAULTS.get(model_type, {}).items():
        *path, last = name.split(".")
        owner = functools.reduce(lambda found, part: getattr(found, part, found), path, config)
        setattr(owner, last, copy.deepcopy(value))
    return config


def measure(group: str, model_type: str, name: str) -> dict[str, Any]:
    """Return what a tiny model of a class does behind a prompt."""
    import transformers

    from foreword.backbone import Backbone
    from foreword.errors import UnsupportedError
    from foreword.model.capabilities import inspect_model
    from foreword.verification import proof, twin

    found = {"group": group, "type": model_type, "class": name}
    try:
        kind = getattr(transformers, name)
        model = twin.make_twin(kind, configuration(model_type, kind))
    except Exception as error:  # of whatever type a class raises
        return found | {"verdict": "not built", "reason": f"not built: {_line(error)}"}
    try:
        capabilities = inspect_model(model)
    except UnsupportedError as error:
        return found | {"verdict": "refused", "reason": _line(error).partition(": ")[2]}
    verdict = proof.examine_on(model, "twin", capabilities, Backbone.unproved)
    if verdict.variant is None:
        return found | {"verdict": "refused", "reason": verdict.reason}
    numbers = [error for error in verdict.errors.values() if not isinstance(error, str)]
    return found | {
        "verdict": "holds",
        "way": verdict.variant,
        "cases": len(numbers),
        "error": float(f"{max(numbers):.0e}"),
    }


def _line(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"[:160]


def run(only: list[str]) -> list[dict[str, Any]]:
    """Measure every class, or those of some model types, and say so line by line."""
    results = []
    for group, model_type, name in registered():
        if not only or model_type in only:
            results.append(measure(group, model_type, name))
            shown = results[-1]
            print(f"{model_type}: {name}: {shown['verdict']} {shown.get('reason', '')}", flush=True)
    return results


def worse(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    """Return the classes that held in old results and do not in new ones."""
    held = {(one["group"], one["class"]) for one in old if one["verdict"] == "holds"}
    return [
        f"{one['class']}: {one['verdict']}: {one['reason']}"
        for one in new
        if (one["group"], one["class"]) in held and one["verdict"] != "holds"
    ]


def render() -> str:
    """Return the page: how many hold, a table for each group, and what the reasons mean."""
    data = json.loads(RESULTS.read_text())
    results = data["classes"]
    parts = [HEAD.format(release=data["transformers"], torch=data["torch"]), _summary(results)]
    for group, (_, title) in GROUPS.items():
        parts.append(f"\n## {title}\n\n| model type | class | behind a prompt |\n|---|---|---|\n")
        own = sorted((one for one in results if one["group"] == group), key=lambda one: one["type"])
        parts += [f"| {one['type']} | `{one['class']}` | {_said(one)} |\n" for one in own]
    parts.append("\n## Why not\n")
    for title, _, text in WHY:
        parts.append(f"\n### {title}\n\n{text}\n")
    return "".join(parts)


HEAD = """\
# Families

This page lists every class that transformers {release} registers for causal language models,
image-text models, encoder-decoder models and speech-to-text models, and says whether it works
behind a prompt. A tiny model of each class is built from the class's default configuration in
float64 (windows of eight tokens, a layer of each kind, random weights). It is compared with its
own forward pass over one unpadded row, without a cache, in these cases: one row, padded and
mixed rows, generation, a static cache, chunked prefill, two turns, keys and values, gradients.
Image-text and speech models read only text here.

`holds` means that all of these are equal, up to the difference that is shown, as a share of the
logits' spread. "by slot": the class places tokens by their slots in the cache, so padded and mixed
rows run one length at a time. "its window unused": its code never reads the window that its
configuration names. "without a static cache": that cache is refused. A class that does not hold is
refused by name when a model of it is loaded, before anything is generated.

The page is written by `python docs/make_families.py` (torch {torch}, CPU). The same code proves a
class that the tests do not cover when a model of it is loaded, with that model's own options.

"""


def _summary(results: list[dict[str, Any]]) -> str:
    lines = ["| | classes | hold | refused | not built |\n|---|---|---|---|---|\n"]
    for group, (_, title) in GROUPS.items():
        verdicts = [one["verdict"] for one in results if one["group"] == group]
        counts = [verdicts.count(word) for word in ("holds", "refused", "not built")]
        lines.append(f"| {title} | {len(verdicts)} | {' | '.join(map(str, counts))} |\n")
    return "".join(lines)


def _said(one: dict[str, Any]) -> str:
    if one["verdict"] == "holds":
        way = "" if one["way"] == "as configured" else f" {one['way']};"
        return f"holds:{way} {one['cases']} cases, {one['error']:.0e}"
    found = [title for title, words, _ in WHY if any(word in one["reason"] for word in words)]
    assert found, f"no heading for: {one['reason']}"
    anchor = found[0].lower().replace(" ", "-")
    reason = one["reason"].replace("|", "/").replace("<", "").replace(">", "")
    word = "refused" if one["verdict"] == "refused" else "not built"
    return f"[{word}](#{anchor}): {reason.removeprefix('not built: ')}"


def main() -> int:
    """Measure what is asked for, write the results and the page; return an exit status."""
    options = [word for word in sys.argv[1:] if word.startswith("--")]
    only = [word for word in sys.argv[1:] if not word.startswith("--")]
    if "--check" not in options:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"classes": []}
        measured = run(only)
        if "--worse" in options:
            found = worse(known["classes"], measured)
            print("\n".join(found) or "no class is worse than in docs/families.json")
            return int(bool(found))
        names = {(one["group"], one["type"], one["class"]) for one in measured}
        kept = [
            one
            for one in known["classes"]
            if only and (one["group"], one["type"], one["class"]) not in names
        ]
        data = {
            "transformers": metadata.version("transformers"),
            "torch": metadata.version("torch").partition("+")[0],
            "classes": sorted(kept + measured, key=lambda one: (one["group"], one["type"])),
        }
        RESULTS.write_text(json.dumps(data, indent=1) + "\n")
    return write_or_check(PAGE, render(), "is not what was measured; run: make docs")


if __name__ == "__main__":
    sys.exit(main())
