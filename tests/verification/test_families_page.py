"""docs/families.md says what the code does: a sample of its classes is tried again."""

import json
import sys
from importlib import metadata
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
sys.path.insert(0, str(DOCS))
import make_families  # noqa: E402

DATA = json.loads((DOCS / "families.json").read_text())
# Every ninth class, and those of a family that was wrong once.
ONCE_WRONG = ("bloom", "camembert", "gpt_neo", "led", "moshi", "mvp", "opt", "whisper", "jamba")
SAMPLE = [
    one for index, one in enumerate(DATA["classes"]) if index % 9 == 0 or one["type"] in ONCE_WRONG
]


@pytest.mark.skipif(
    metadata.version("transformers") != DATA["transformers"],
    reason="the page is of another release of transformers",
)
@pytest.mark.parametrize("one", SAMPLE, ids=[f"{one['group']} {one['class']}" for one in SAMPLE])
def test_a_class_is_what_the_page_says(one: dict[str, str]) -> None:
    found = make_families.measure(one["group"], one["type"], one["class"])
    kept = ("verdict", "way")
    assert {name: found.get(name) for name in kept} == {name: one.get(name) for name in kept}


def test_every_registered_class_is_on_the_page() -> None:
    if metadata.version("transformers") != DATA["transformers"]:
        pytest.skip("the page is of another release of transformers")
    listed = {(one["group"], one["type"], one["class"]) for one in DATA["classes"]}
    assert listed == set(make_families.registered())


def test_a_class_that_is_worse_is_named() -> None:
    old = [{"group": "causal", "class": "A", "verdict": "holds"}]
    new = [{"group": "causal", "class": "A", "verdict": "refused", "reason": "differ by 1"}]
    assert make_families.worse(old, new) == ["A: refused: differ by 1"]
    assert make_families.worse(new, old) == []
