"""Known routes: which one a request is of, and which one a request of none may mean.

In: an application's routes, a request's method and path. Out: the path of a route, or a line. Knows
no route by name.
"""

from collections.abc import Sequence
from typing import Any

from starlette.routing import BaseRoute, Match

from foreword.config.checks import did_you_mean

ALL = "GET /docs lists all"
MOST_SHOWN = 100  # characters of a path


def path_of(routes: Sequence[BaseRoute], scope: Any) -> str | None:
    """Return the path of the route that a request is of, whatever its method; None of none."""
    for one in routes:
        if one.matches(scope)[0] != Match.NONE:
            return getattr(one, "path", None)
    return None


def no_route(routes: Sequence[BaseRoute], method: str, path: str) -> str:
    """Say that there is no route of a path, and which one it may mean."""
    known = [found for one in routes if "{" not in (found := getattr(one, "path", "{"))]
    meant = did_you_mean(path[: 2 * MOST_SHOWN], known) or ";"
    return f"no route {method} {path[:MOST_SHOWN]}{meant} {ALL}"


def no_method(method: str, path: str, allowed: str) -> str:
    """Say that the route of a path does not take a method, and which ones it takes."""
    return f"no route {method} {path[:MOST_SHOWN]}: it takes {allowed}; {ALL}"
