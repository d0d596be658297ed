"""Context watch: says once of a call that its tokens pass what the model was made for.

In: how many tokens there are. Out: one warning, with numbers. A server refuses such requests; here
they are answered, as transformers answers them. Knows no text.
"""

import logging

log = logging.getLogger("foreword")


class ContextWatch:
    """Looks at the tokens of one call.

    Args:
        name: of the model.
        context_length: positions that it was made for; None: it does not say, or reads apart.
        num_virtual: virtual tokens before every row.
    """

    def __init__(self, name: str, context_length: int | None, num_virtual: int) -> None:
        self._name, self._context, self._num_virtual = name, context_length, num_virtual
        self._has_said = False

    def look(self, num_given: int, num_new: int = 0) -> None:
        """Take note of a row's given tokens, and of how many have been answered."""
        total = self._num_virtual + num_given + num_new
        if self._has_said or self._context is None or total <= self._context:
            return
        self._has_said = True
        log.warning(
            "%s was made for %d tokens, and here are %d (%d virtual, %d of the text, %d of the "
            "answer): expect nonsense past that, and a server to refuse it; shorten the text, or "
            "lower max_new_tokens",
            self._name, self._context, total, self._num_virtual, num_given, num_new,
        )  # fmt: skip
