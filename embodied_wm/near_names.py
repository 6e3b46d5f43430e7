"""Near names for what was probably meant, on the command line and in files."""

import difflib
from collections.abc import Iterable

MOST_LISTED = 30
"""Valid names that an error lists one by one."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return "; did you mean ...? Valid: ..." for a name that is not among the valid ones.

    Of many valid names (options of training) only those that begin alike are listed; --help shows all.
    """
    names = list(valid)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    if len(names) > MOST_LISTED:
        group = name.rpartition(".")[0]
        alike = [each for each in names if group and each.startswith(f"{group}.")] or sorted(
            {f"{first}.*" if rest else first for first, _, rest in (each.partition(".") for each in names)}
        )
        names = alike
    return f"{hint} Valid: {', '.join(names) or 'none'}"
