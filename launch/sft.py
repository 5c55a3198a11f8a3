"""Trains a policy or an explainer on examples: `python launch/sft.py configs/scenes_policy.yaml [key=value ...]`."""

import sys

from rlaif.config.train import SftConfig
from rlaif.running.cli import main


def body(config: SftConfig) -> None:
    from actors.fitting.sft import run_sft  # seconds of imports: a mistake in the configuration is told before

    run_sft(config)


if __name__ == "__main__":
    sys.exit(main(SftConfig, __doc__, body))
