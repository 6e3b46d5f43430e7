"""The run of a verb where torchrun or its like started several processes: one folder, which one of them writes."""

import os
from collections.abc import Mapping
from typing import Any

from embodied_wm.commands.errors import UsageError
from embodied_wm.commands.run import Run


def open_run(name: str, config: Mapping[str, Any]) -> Run:
    """Return the run of a verb; several processes share the folder that the main one makes.

    Raises:
        UsageError: The folder cannot be used, or several processes were started for a verb that is no training.
        TrainingError: Another run is going on in it.
    """
    run_dir, resume = config["run_dir"], config.get("resume", False)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Run(name, run_dir=run_dir, resume=resume)
    if name != "train":
        raise UsageError(f"{name} runs in one process, and {os.environ['WORLD_SIZE']} were started; only train shares")
    from embodied_wm.training.processes import start_processes

    processes = start_processes(config["trainer"].compute)
    run, problem = None, None
    if processes.is_main:
        try:
            run = Run(name, run_dir=run_dir, resume=resume)
        except (ValueError, RuntimeError, OSError) as error:
            problem = error  # the others wait for the folder, and must hear that there is none
    folder = processes.share(run.folder if run else None)
    if problem:
        raise problem
    if folder is None:
        raise UsageError("the main process could not open the run's folder; see its message")
    return run or Run(name, run_dir=run_dir, resume=resume, joins=folder)
