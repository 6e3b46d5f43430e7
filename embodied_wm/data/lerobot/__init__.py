"""Import of LeRobot datasets, v2.0, v2.1 and v3.0: the only code that knows their format."""

from embodied_wm.data.lerobot.read import ImportReport, import_lerobot
from embodied_wm.data.lerobot.source import LeRobotError

__all__ = ["ImportReport", "LeRobotError", "import_lerobot"]
