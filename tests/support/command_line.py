"""Options that keep commands on a tiny model short."""

FAST = (
    "--num-virtual-tokens", "4", "--init", "vocabulary", "--num-steps", "4", "--eval-every", "2",
)  # fmt: skip
QUICK = ("--limit", "3", "--max-new-tokens", "2", "--num-resamples", "20")
