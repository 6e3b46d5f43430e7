"""Ranges of numeric settings, checked where they are made: before anything is read, trained or measured."""

from collections.abc import Sequence
from typing import TypeGuard


def is_number(value: object) -> TypeGuard[float]:
    """Tell whether a value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_least(config: object, **least: float) -> None:
    """Raise ValueError unless these attributes of a configuration are at least as much; NaN is not.

    Args:
        config: Has the attributes.
        **least: Attribute to the least that it may be.
    """
    for name, bound in least.items():
        value = getattr(config, name)
        if not value >= bound:
            raise ValueError(f"{name}={value}: expected {bound:g} or more")


def check_fractions(config: object, **ends: str) -> None:
    """Raise ValueError unless these attributes of a configuration lie between 0 and 1.

    Args:
        config: Has the attributes.
        **ends: Attribute to the interval, whose brackets say which ends belong to it: "[0, 1]", "(0, 1]" or the like.
    """
    for name, interval in ends.items():
        value = getattr(config, name)
        is_within = 0 < value < 1 or (value == 0 and interval[0] == "[") or (value == 1 and interval[-1] == "]")
        if not is_within:
            raise ValueError(f"{name}={value}: expected a part in {interval}")


def check_counts(**counts: int | Sequence[int]) -> None:
    """Raise ValueError, which shows all of them, if a count, or one of several, is below 1 or a sequence is empty."""
    if any(not each or min(each) < 1 for each in ([c] if isinstance(c, int) else list(c) for c in counts.values())):
        shown = ", ".join(f"{name}={count}" for name, count in counts.items())
        raise ValueError(f"{shown}: expected at least 1{' each' if len(counts) > 1 else ''}")


__all__ = ["check_counts", "check_fractions", "check_least", "is_number"]
