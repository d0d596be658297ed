"""Early stopping (`--patience`): whether a run ends since validations find nothing better."""

from collections.abc import Sequence

NUM_WORSE = 3  # validations in a row without a better one, of which the run speaks


def worsening(
    validations: Sequence[tuple[int, float]], best: tuple[int, float], patience: int
) -> tuple[str | None, bool]:
    """Return what to say of validations since the best one, and whether to stop.

    Args:
        validations: step and loss of each, in order.
        best: step and loss of the best, which may be of before the run went back.
        patience: validations without a better one after which the run ends; 0: never.
    """
    best_step, least = best
    worse = [loss for step, loss in validations if step > best_step]
    seen = (
        f"the validation loss was {least:.3g} at step {best_step} and is {worse[-1]:.3g} now"
        if worse
        else ""
    )
    if patience and len(worse) >= patience:
        return f"{seen}, with no better one in {len(worse)}: stopped, the best is kept", True
    if not patience and len(worse) == NUM_WORSE:
        return f"{seen}: the best is kept, the run goes on; --patience would end it", False
    return None, False
