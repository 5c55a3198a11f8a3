"""Trains a policy: `python launch/train.py configs/quickstart.yaml [key=value ...]`."""

import sys

from rlaif.cli import main
from rlaif.config import TrainConfig

if __name__ == "__main__":
    from actors.run import run_training

    sys.exit(main(TrainConfig, __doc__, run_training))
