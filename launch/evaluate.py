"""Measures how right a reward model is on judged rows, with its explanations.

`python launch/evaluate.py configs/scenes_evaluate.yaml [key=value ...]`
"""

import sys

from rlaif.config.reward import EvaluateConfig
from rlaif.running.cli import main


def body(config: EvaluateConfig) -> None:
    # Seconds of imports: a mistake in the configuration is told before.
    from actors.fitting.evaluating import run_evaluation

    run_evaluation(config)


if __name__ == "__main__":
    sys.exit(main(EvaluateConfig, __doc__, body))
