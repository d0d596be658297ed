"""Every case of the contract with images or sounds, for every family and both prompt forms."""

import pytest
from media_contract import CASES, world_of
from tiny_media import FAMILIES


@pytest.mark.parametrize("form", ["embeddings", "key_values"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_equals_the_oracle(case: str, family: str, form: str) -> None:
    CASES[case](world_of(family, form))
