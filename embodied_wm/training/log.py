"""The log of a training's metrics, one JSON object a line."""

import json
import os
from pathlib import Path
from typing import Any

from embodied_wm.training.processes import Metrics
from embodied_wm.training.state import TrainingError

METRICS = "metrics.jsonl"
"""File of a folder that was trained in: a line of metrics for each logged step."""


class MetricsLog:
    """Append metrics to a file of JSON lines, and drop those that a resumed stage will write again.

    Attributes:
        last: The stage's last metrics that an earlier call has logged.
    """

    def __init__(self, path: Path, stage: str, step: int, *, is_writer: bool = True) -> None:
        self.path, self.is_writer = path, is_writer
        self.last: Metrics = {}
        if not path.is_file():
            return
        content = path.read_bytes()
        lines = content.split(b"\n")[:-1]  # what follows the last line break was cut short
        records = [json.loads(line) for line in lines]
        kept = [
            line for line, each in zip(lines, records, strict=True) if each["stage"] != stage or each["step"] <= step
        ]
        whole = b"".join(line + b"\n" for line in kept)
        if whole != content and is_writer:
            part = path.with_name(path.name + ".part")
            part.write_bytes(whole)
            os.replace(part, path)
        for record in (json.loads(line) for line in kept):
            if record["stage"] == stage:
                self.last = {key: value for key, value in record.items() if key not in ("stage", "step")}

    def append(self, record: dict[str, Any]) -> None:
        """Write one line.

        Raises:
            TrainingError: If the file cannot be written.
        """
        if not self.is_writer:
            return
        line = json.dumps(record).encode() + b"\n"
        try:
            with self.path.open("ab", buffering=0) as file:
                num_written = file.write(line)
        except OSError as error:
            raise TrainingError(f"{self.path} could not be written: {error}. Free space and resume the run.") from error
        if num_written != len(line):
            raise TrainingError(f"{self.path} could not be written: the disk is full. Free space and resume the run.")
