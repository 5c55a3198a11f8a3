"""Trains a slot model on explanations that an explainer wrote.

`python launch/train_reward.py configs/scenes_reward.yaml [key=value ...]`
"""

import sys

from rlaif.cli import main
from rlaif.config import RewardTrainConfig


def body(config: RewardTrainConfig) -> None:
    from actors.supervised import (
        run_reward_training,  # seconds of imports: a mistake in the configuration is told before
    )

    run_reward_training(config)


if __name__ == "__main__":
    sys.exit(main(RewardTrainConfig, __doc__, body))
