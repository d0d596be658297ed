"""Options of the test suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add how long the soak is."""
    parser.addoption("--soak", type=int, default=2000, help="requests of the server's soak")
