"""Trains a policy: `python launch/train.py configs/quickstart.yaml [configs/algorithms/dapo.yaml] [key=value ...]`."""

import sys

from rlaif.config.train import TrainConfig
from rlaif.running.cli import main


def body(config: TrainConfig) -> None:
    from actors.run import run_training  # seconds of imports: a mistake in the configuration is told before

    run_training(config)


if __name__ == "__main__":
    sys.exit(main(TrainConfig, __doc__, body))
