"""Both forms on every family that the plugin serves, in an engine without HTTP."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import served

from foreword import Backbone
from foreword.prompt.store import Store
from foreword.vllm_plugin.compatibility import SHOWN

NUM_NEW = 10
CHANGES: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": None}}
FORMS, LENGTHS = ("embeddings", "key_values"), (20, 32)


def prepare(family: str, directory: Path) -> dict[str, list[list[int]]]:
    """Save a family's model, prompts of both forms and rows; return the oracle's ids by name."""
    model = served.build(family, **CHANGES.get(family, {}))
    served.save(model, directory / "model")
    backbone = Backbone(model, served.TOKENIZER, name="tiny")
    store = Store(directory / "store")
    prompts: dict[str, Any] = {"base": None}
    for form, length in itertools.product(FORMS, LENGTHS):
        one = served.prompt(backbone, form, length, length)
        prompts[f"{form}-{length}"] = served.add(store, f"{form}-{length}", one, directory)
    rows = [served.ids_of(9), served.ids_of(40)]
    (directory / "rows.json").write_text(json.dumps(rows))
    return {
        name: [served.expected(model, one, ids, NUM_NEW) for ids in rows]
        for name, one in prompts.items()
    }


def test_every_family_answers_as_the_oracle(tmp_path: Path) -> None:
    families = *SHOWN, "llama31"  # and another rotation
    wanted = {str(tmp_path / family): prepare(family, tmp_path / family) for family in families}
    script = Path(__file__).parent / "one_engine.py"
    done = subprocess.run(
        [sys.executable, str(script), *wanted],
        env=served.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [one for one in done.stdout.splitlines() if one.startswith("FOUND")]
    found = dict(json.loads(line.removeprefix("FOUND")) for line in lines)
    assert found == wanted
