"""Counts that must be at least 1, refused by name before anything is done with them."""

from collections.abc import Sequence


def check_counts(**counts: int | Sequence[int]) -> None:
    """Raise ValueError, which shows all of them, if a count, or one of several, is below 1 or a sequence is empty."""
    if any(not each or min(each) < 1 for each in ([c] if isinstance(c, int) else list(c) for c in counts.values())):
        shown = ", ".join(f"{name}={count}" for name, count in counts.items())
        raise ValueError(f"{shown}: expected at least 1{' each' if len(counts) > 1 else ''}")
