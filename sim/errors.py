"""Errors of the simulation layer."""


class RenderingError(RuntimeError):
    """Raised where MuJoCo cannot render on this machine; the message says what to install or set."""


class InstabilityError(RuntimeError):
    """Raised where MuJoCo warned of a diverging simulation; the message names task, seed and step."""
