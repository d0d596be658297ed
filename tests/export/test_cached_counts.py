"""What llama-server says of its cache is a number, or the answer is refused."""

import pytest

from foreword.errors import UnavailableError
from foreword.export import llama_server


@pytest.mark.parametrize("found", [True, 1.0, "1", None, 0])
def test_what_is_no_number_of_cached_tokens_is_refused(found: object) -> None:
    with pytest.raises(UnavailableError, match="expected 1 or more"):
        llama_server.check_cached({"timings": {"cache_n": found}}, 1, "here")
    assert llama_server.check_cached({"timings": {"cache_n": 1}}, 1, "here") == 1
