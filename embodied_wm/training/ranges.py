"""Ranges of numeric settings, checked where they are made: before anything is read or trained."""


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


__all__ = ["check_fractions", "check_least"]
