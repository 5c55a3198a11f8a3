"""Trains a reward model on explanations that an explainer wrote.

`python launch/train_reward.py configs/scenes_reward.yaml [key=value ...]`
"""

import sys

from rlaif.config.reward import RewardTrainConfig
from rlaif.running.cli import main


def body(config: RewardTrainConfig) -> None:
    # Seconds of imports: a mistake in the configuration is told before.
    from actors.fitting.reward_training import run_reward_training

    run_reward_training(config)


if __name__ == "__main__":
    sys.exit(main(RewardTrainConfig, __doc__, body))
