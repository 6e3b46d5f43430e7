"""Import of LeRobot datasets, v2.0, v2.1 and v3.0: the only code that knows their format."""

from embodied_wm.data.lerobot.checks import LeRobotError
from embodied_wm.data.lerobot.read import Finding, ImportReport, import_lerobot

__all__ = ["Finding", "ImportReport", "LeRobotError", "import_lerobot"]
