"""Trains a policy: `python launch/train.py configs/quickstart.yaml [configs/algorithms/dapo.yaml] [key=value ...]`.

With --plan it prints what the run would take of this machine or of the running Ray cluster, with --plan cluster.yaml
of one that the file describes, and starts nothing.
"""

import sys

from rlaif.config.train import TrainConfig
from rlaif.running.cli import main


def body(config: TrainConfig) -> None:
    from actors.training.run import run_training  # seconds of imports: a mistake in the configuration is told before

    run_training(config)


def plan(config: TrainConfig, name: str, cluster_file: str | None) -> None:
    from actors.cluster.planning import show_plan

    show_plan(config, name, cluster_file)


if __name__ == "__main__":
    sys.exit(main(TrainConfig, __doc__, body, plan))
