"""Supported releases: those of transformers that everything is tested with.

In: nothing. Out: nothing, an error that names a release older than the range, or one warning for a
newer one. Imports neither torch nor transformers, so that a wrong release is named before it fails
in another way.
"""

import functools
import logging
from importlib import metadata

from packaging.version import Version

from foreword.errors import DependencyError

OLDEST_TRANSFORMERS = Version("5.16")
NEWEST_TRANSFORMERS = Version("5.25")  # exclusive
RANGE = f">={OLDEST_TRANSFORMERS},<{NEWEST_TRANSFORMERS}"

log = logging.getLogger("foreword")


def check_transformers() -> None:
    """Refuse a release of transformers older than the tested range; say once that one is newer.

    On a newer release every family proves itself when a model of it is loaded
    (`foreword.verification`): what differs from the slow computation is refused by name.

    Raises:
        DependencyError: names the release and the range.
    """
    found = installed_transformers()
    if found < OLDEST_TRANSFORMERS:
        raise DependencyError(
            f"transformers {found} is older than the tested range, {RANGE}; "
            f"install one of it: pip install 'transformers{RANGE}'"
        )
    if is_newer(found):
        _say_untested(found)


def installed_transformers() -> Version:
    """Return the release of transformers that is installed."""
    return Version(metadata.version("transformers"))


def is_tested() -> bool:
    """Return whether the installed release of transformers is in the tested range."""
    found = installed_transformers()
    return found >= OLDEST_TRANSFORMERS and not is_newer(found)


def is_newer(release: Version) -> bool:
    """Return whether a release is newer than the tested range, as a pre-release of the next is."""
    return release.release >= NEWEST_TRANSFORMERS.release


@functools.cache
def _say_untested(found: Version) -> None:
    log.warning(
        "transformers %s is newer than the tested range (<%s): every model proves itself when it "
        "is loaded, and what is not exact is refused",
        found,
        NEWEST_TRANSFORMERS,
    )
