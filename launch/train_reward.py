"""Trains a slot model on explanations that an explainer wrote.

`python launch/train_reward.py configs/scenes_reward.yaml [key=value ...]`
"""

import sys

from rlaif.cli import main
from rlaif.config import RewardTrainConfig

if __name__ == "__main__":
    from actors.supervised import run_reward_training

    sys.exit(main(RewardTrainConfig, __doc__, run_reward_training))
