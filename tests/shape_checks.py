"""The type checker of tests: beartype on the annotations that name an array's shape, and on no others."""

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def check[F: Callable[..., Any]](function: F) -> F:
    """Return the function with its shape annotations checked at every call.

    Other annotations are pyright's business; beartype cannot read all of them (`Self` in a method, protocols).
    """
    every = getattr(function, "__annotations__", {})
    shapes = {name: hint for name, hint in every.items() if _names_shape(hint)}
    if not shapes:
        return function
    function.__annotations__ = shapes
    checked = beartype(function)
    function.__annotations__ = checked.__annotations__ = every
    return checked


def _names_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_names_shape(inner) for inner in get_args(hint))
