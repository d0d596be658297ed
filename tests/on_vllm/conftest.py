"""vLLM in other processes, on a tiny model saved to disk; only where vLLM is installed."""

from importlib import metadata


def _has_vllm() -> bool:
    try:
        return bool(metadata.version("vllm"))
    except metadata.PackageNotFoundError:
        return False


collect_ignore_glob = [] if _has_vllm() else ["*"]
