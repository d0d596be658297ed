"""A cache folder of a module's own: what its tests convert or download is nobody else's."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOREWORD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
