"""What was asked for, on a command line or in a call, in one form; a value that stands alone means a list of one."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

MAX_SIDE = 8192


def whole_number(value: Any) -> int | None:
    """Return a whole number; None for what is none, as 2.0 and True are."""
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def asked_numbers(asked: Any, name: str, error: type[ValueError]) -> list[int]:
    """Return a list of whole numbers, in the order given; ranges are checked elsewhere.

    Raises:
        ValueError: `error`: it is something else.
    """
    found = [whole_number(value) for value in _listed(asked)]
    numbers = [number for number in found if number is not None]
    if len(numbers) < len(found):
        raise error(f"{name}={_short(asked)}: expected whole numbers, counted from 0, such as [0,1,2].")
    return numbers


def asked_cameras(asked: Any, error: type[ValueError]) -> list[str]:
    """Return a list of names of cameras, in the order given.

    Raises:
        ValueError: `error`: it is something else.
    """
    names = _listed(asked)
    if not all(isinstance(name, str) for name in names):
        raise error(f"cameras={_short(asked)}: expected names, such as [observation.images.top].")
    return names


def asked_size(asked: Any, error: type[ValueError]) -> tuple[int, int]:
    """Return (height, width) in pixels.

    Raises:
        ValueError: `error`: it is something else, or a side is none that frames can have.
    """
    sides = [whole_number(side) for side in _listed(asked)]
    if len(sides) == 2:
        height, width = sides
        if height is not None and width is not None and 1 <= min(height, width) <= max(height, width) <= MAX_SIDE:
            return height, width
    raise error(f"image_size={_short(asked)}: expected [height, width], each 1 to {MAX_SIDE} pixels, whole numbers.")


def _listed(asked: Any) -> list[Any]:
    return list(asked) if isinstance(asked, Iterable) and not isinstance(asked, str | bytes) else [asked]


def _short(asked: Any) -> str:
    text = repr(list(asked) if isinstance(asked, Sequence) and not isinstance(asked, str | bytes) else asked)
    return text if len(text) <= 100 else f"{text[:97]}..."
