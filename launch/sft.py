"""Trains a policy or an explainer on examples: `python launch/sft.py configs/scenes_policy.yaml [key=value ...]`."""

import sys

from rlaif.cli import main
from rlaif.config import SftConfig

if __name__ == "__main__":
    from actors.supervised import run_sft

    sys.exit(main(SftConfig, __doc__, run_sft))
