"""What can be wrong with a command line."""

import errno

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system reports where a disk is full, or a limit on file sizes is reached."""


class UsageError(ValueError):
    """Reports a command line that cannot be carried out; exit code 2."""
