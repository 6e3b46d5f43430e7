"""LeRobot datasets, in (v2.0, v2.1 and v3.0) and out (v3.0): the only code that knows their format."""

from embodied_wm.data.lerobot.checks import LeRobotError
from embodied_wm.data.lerobot.read import import_lerobot
from embodied_wm.data.lerobot.write import ExportReport, export_lerobot

__all__ = ["ExportReport", "LeRobotError", "export_lerobot", "import_lerobot"]
