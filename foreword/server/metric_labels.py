"""Metric labels: their bound and the buckets of histograms, shared by server and vLLM plugin.

In: names that are served. Out: their labels. Knows no metrics library, and imports nothing.
"""

MAX_LABELS = 256
OTHER = "(other)"  # no prompt has a name with brackets
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Labels:
    """The labels given out so far."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def of(self, soft_prompt: str) -> str:
        """Return the label of a served name; `OTHER` where there are too many."""
        if soft_prompt not in self._known and len(self._known) >= MAX_LABELS:
            return OTHER
        self._known.add(soft_prompt)
        return soft_prompt
