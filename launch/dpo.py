"""Trains a policy on pairs of completions: `python launch/dpo.py configs/scenes_dpo.yaml [key=value ...]`."""

import sys

from rlaif.config.dpo import DpoConfig
from rlaif.running.cli import main


def body(config: DpoConfig) -> None:
    from actors.fitting.dpo import run_dpo  # seconds of imports: a mistake in the configuration is told before

    run_dpo(config)


if __name__ == "__main__":
    sys.exit(main(DpoConfig, __doc__, body))
