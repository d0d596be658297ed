"""Which releases of transformers everything is tested with; outside them, nothing is promised.

In: nothing. Out: nothing, or an error that names the release. Imports neither torch nor
transformers, so that a wrong release is named before it fails in another way.
"""

from importlib import metadata

from packaging.version import Version

from foreword.errors import DependencyError

OLDEST_TRANSFORMERS = Version("5.16")
NEWEST_TRANSFORMERS = Version("5.24")  # exclusive


def check_transformers() -> None:
    """Refuse a release of transformers outside the tested range.

    Raises:
        DependencyError: names the release and the range.
    """
    found = Version(metadata.version("transformers"))
    if not OLDEST_TRANSFORMERS <= found < NEWEST_TRANSFORMERS:
        wanted = f">={OLDEST_TRANSFORMERS},<{NEWEST_TRANSFORMERS}"
        raise DependencyError(
            f"transformers {found} is outside the tested range, {wanted}; "
            f"install one of it: pip install 'transformers{wanted}'"
        )
