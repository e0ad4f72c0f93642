"""Run one small pretraining as its own program, to be killed or started by torchrun.

Usage: train_digits.py BETON FOLDER [learning_rate=value] [key=value of the computing settings ...]
"""

import sys
from pathlib import Path

import yaml
from workspace import TINY

from dhel_kcl.experiment.config import ComputeConfig, MonitorConfig
from dhel_kcl.experiment.grid import load_config
from dhel_kcl.training.pretrain import pretrain

RUN = "digits-dhel-temperature0.3-bs128-seed0"
EPOCHS = 4


def main(beton: str, folder: str, *settings: str) -> None:
    """Train, and leave the checkpoints for the test to inspect."""
    values = {"device": "cpu", "threads": 1, "checkpoint_every_steps": 3, "log_every_steps": 4, "tensorboard": False}
    values |= yaml.safe_load("{" + ", ".join(setting.replace("=", ": ") for setting in settings) + "}")
    run = load_config(TINY).run(RUN)
    dataset = run.dataset.model_copy(update={"epochs": EPOCHS})
    rate = values.pop("learning_rate", run.learning_rate)
    run = run.model_copy(update={"dataset": dataset, "learning_rate": rate})
    pretrain(run, ComputeConfig.model_validate(values), Path(beton), "settings", Path(folder), MonitorConfig())


if __name__ == "__main__":
    main(*sys.argv[1:])
