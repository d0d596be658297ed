"""Rotary names: a checkpoint's rotary embedding under the names that older readers know, too.

In: the config.json of a checkpoint. Out: the same, with `rope_theta`, `rope_scaling` and their like
beside `rope_parameters`: a reader that does not know the latter takes a default without a word, and
answers otherwise. A name that a reader of today would read otherwise is left out. Knows no weights.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig

FULL, SLIDING = "full_attention", "sliding_attention"
THETA, PARTIAL = "rope_theta", "partial_rotary_factor"
# Families that had names of their own.
OTHERWISE = {"gpt_neox": {THETA: "rotary_emb_base", PARTIAL: "rotary_pct"}}


def complete(path: Path) -> None:
    """Write the older names into a config.json.

    Raises:
        OSError: it cannot be written.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters")
    if not isinstance(rope, Mapping):
        return
    for name, value in _older(rope, str(config.get("model_type"))):
        before = path.read_text(encoding="utf-8")
        config = json.loads(before)
        if config.get(name) is not None:
            continue
        _write(path, config | {name: value})
        if AutoConfig.from_pretrained(path.parent, trust_remote_code=False).rope_parameters != rope:
            path.write_text(before, encoding="utf-8")


def _older(rope: Mapping[str, Any], family: str) -> Iterator[tuple[str, Any]]:
    """Yield older names and their values; of several kinds of layers they are those of full
    attention, and the base of the others has a name of its own.
    """
    kinds = {name: one for name, one in rope.items() if isinstance(one, Mapping)}
    own = kinds.get(FULL, rope) if kinds else rope
    names = next((OTHERWISE[one] for one in OTHERWISE if family.startswith(one)), {})
    for name in (THETA, PARTIAL):
        if isinstance(own.get(name), int | float):
            yield names.get(name, name), own[name]
    if own.get("rope_type", "default") != "default":
        yield "rope_scaling", {key: value for key, value in own.items() if key != THETA}
    if THETA in kinds.get(SLIDING, {}):
        yield "rope_local_base_freq", kinds[SLIDING][THETA]


def _write(path: Path, config: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
