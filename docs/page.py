"""A generated page: written, or with --check compared with what lies there."""

import sys
from pathlib import Path


def write_or_check(page: Path, text: str, complaint: str) -> int:
    """Write a page; with --check, say instead that it is not current, and return 1."""
    if "--check" not in sys.argv[1:]:
        page.write_text(text)
    elif page.read_text() != text:
        print(f"{page.name} {complaint}")
        return 1
    return 0
