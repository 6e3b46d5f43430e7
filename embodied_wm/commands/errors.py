"""What can be wrong with a command line, and near names for what was probably meant."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """Reports a command line that cannot be carried out; exit code 2."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return "; did you mean ...? Valid: ..." for a name that is not among the valid ones."""
    names = list(valid)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return f"{hint} Valid: {', '.join(names) or 'none'}"
