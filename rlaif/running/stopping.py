"""Which evaluation of a run was the best so far, and when the run should end before its last step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from rlaif.config.checks import UserError
from rlaif.config.evaluation import EvaluationConfig


@dataclass(frozen=True)
class Evaluated:
    """What is remembered from one evaluation to the next: numbers, so that a checkpoint can hold it as JSON."""

    best: float | None = None               # select_by of the best evaluation; None before the first
    best_step: int | None = None
    num_since_best: int = 0                 # evaluations since
    peak_gold: float | None = None          # the highest gold so far, of the latest where several are equal
    proxy_at_peak: float | None = None      # the proxy of that evaluation
    num_diverged: int = 0                   # evaluations in a row that diverged from it


@dataclass(frozen=True)
class Verdict:
    """What an evaluation says of the weights it measured."""

    is_best: bool = False
    stop: str | None = None                 # why the run should end, in words; None: it goes on


def weigh(known: Evaluated, step: int, figures: Mapping[str, float], config: EvaluationConfig
          ) -> tuple[Evaluated, Verdict]:
    """What is known after the evaluation of `step`, and its verdict.

    With x the figure `config.select_by` and x* its best value so far, p the proxy, g the gold, and (p*, g*) those of
    the evaluation whose gold was highest:

        best        x > x*  (x < x* with better = lower): an equal value is no better
        patience    no best in the last `patience` evaluations
        KL          kl > kl_limit
        divergence  p > p* and g < g* - gold_drop, in the last `divergence` evaluations in a row

    figures: of this evaluation by name; floats, each in its own unit. Where several reasons to end hold, the first of
    divergence, KL, patience is told.
    Raises UserError for a figure that decides something and was not measured or is no number.

    Source: proxy up while gold goes down is overoptimisation as in Gao et al. 2022, Scaling Laws for Reward Model
    Overoptimization (arXiv 2210.10760), figure 1.
    """
    for option, name in config.figures_asked_for().items():
        _refuse_unknown(option, name, figures)
    known, is_best = _select(known, step, figures, config)
    known = _compare_with_peak(known, figures, config)
    return known, Verdict(is_best, _reason(known, figures, config))


def _refuse_unknown(option: str, name: str, figures: Mapping[str, float]) -> None:
    if name not in figures:
        cure = "set algorithm.kl_coefficient above 0" if name == "kl" else f"there are {', '.join(figures)}"
        raise UserError(f"evaluation.{option} must go by a figure that is measured, got {name!r}; {cure}")
    if math.isnan(figures[name]):
        raise UserError(f"evaluation.{option} must go by a number, got nan as {name}; look at that reward or judge")


def _select(known: Evaluated, step: int, figures: Mapping[str, float], config: EvaluationConfig
            ) -> tuple[Evaluated, bool]:
    if config.select_by is None:
        return known, False
    value = figures[config.select_by]
    sign = 1 if config.better == "higher" else -1
    if known.best is None or sign * value > sign * known.best:
        return replace(known, best=value, best_step=step, num_since_best=0), True
    return replace(known, num_since_best=known.num_since_best + 1), False


def _compare_with_peak(known: Evaluated, figures: Mapping[str, float], config: EvaluationConfig) -> Evaluated:
    stop = config.stop
    if stop.divergence is None:
        return known
    proxy, gold = figures[stop.proxy], figures[stop.gold]
    if known.peak_gold is None or known.proxy_at_peak is None or gold >= known.peak_gold:
        return replace(known, peak_gold=gold, proxy_at_peak=proxy, num_diverged=0)
    diverged = proxy > known.proxy_at_peak and gold < known.peak_gold - stop.gold_drop
    return replace(known, num_diverged=known.num_diverged + 1 if diverged else 0)


def _reason(known: Evaluated, figures: Mapping[str, float], config: EvaluationConfig) -> str | None:
    stop = config.stop
    if stop.divergence is not None and known.num_diverged >= stop.divergence:
        return (f"{stop.proxy} rose to {figures[stop.proxy]:.4g} from {known.proxy_at_peak:.4g} while {stop.gold} fell "
                f"to {figures[stop.gold]:.4g} from {known.peak_gold:.4g}, {known.num_diverged} evaluations in a row")
    if stop.kl_limit is not None and figures["kl"] > stop.kl_limit:
        return f"kl of {figures['kl']:.4g} nats is above evaluation.stop.kl_limit {stop.kl_limit:g}"
    if stop.patience is not None and known.num_since_best >= stop.patience:
        return (f"{config.select_by} was not {config.better} than {known.best:.4g} of step {known.best_step} in "
                f"{known.num_since_best} evaluations")
    return None
