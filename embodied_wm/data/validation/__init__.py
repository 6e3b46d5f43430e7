"""Find what in an episode store would harm training, and say where it is and what to do."""

from embodied_wm.data.validation.findings import Alignment, Finding, ValidationReport
from embodied_wm.data.validation.validate import validate_store

__all__ = ["Alignment", "Finding", "ValidationReport", "validate_store"]
