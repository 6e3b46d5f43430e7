"""Train a model for every combination of options, through Hydra's multirun and its launchers.

    python scripts/sweep.py -m data.path=push.zarr seed=0,1,2 trainer.predictor.learning_rate=1e-3,2e-3

One after the other by default. With `pip install hydra-joblib-launcher` several at once: `hydra/launcher=joblib
hydra.launcher.n_jobs=4`; with `pip install hydra-submitit-launcher` each as a SLURM job: `hydra/launcher=submitit_slurm
hydra.launcher.gpus_per_node=1` (tried with joblib, two at once, and with submitit's own stand-in for a cluster,
`hydra/launcher=submitit_local`). Options, groups and their meaning: `embodied-wm train --help`. Each run has a folder
below `hydra.sweep.dir` (runs/sweep/DATE-TIME), named by its number; `embodied-wm report FOLDER FOLDER` compares them.
"""

import os
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from embodied_wm.cli import instantiate_config
from embodied_wm.commands import verbs
from embodied_wm.commands.run import Run

os.environ.setdefault("HYDRA_FULL_ERROR", "1")


@hydra.main(config_path="pkg://configs", config_name="train", version_base="1.3")
def main(composed: DictConfig) -> None:
    """Train one model of the sweep; its folder is Hydra's, unless run_dir says another."""
    config = instantiate_config(composed)
    folder = config["run_dir"] or str(Path(HydraConfig.get().runtime.output_dir) / "run")
    with Run("train", run_dir=folder, resume=config["resume"]) as run:
        overrides = list(HydraConfig.get().overrides.task)
        run.start(f"sweep.py {' '.join(overrides)}", OmegaConf.to_yaml(composed, resolve=True), overrides)
        verbs.train(config, run)


if __name__ == "__main__":
    main()
