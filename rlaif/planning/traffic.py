"""Bytes that a step puts into Ray's object store."""

from __future__ import annotations

from dataclasses import dataclass

from rlaif.planning.seconds import Load

__all__ = ["Traffic", "traffic"]

_TEXT = 4.5     # bytes of text a token
_ROW = 200      # bytes of a row's small columns


@dataclass(frozen=True)
class Traffic:
    """Bytes a step. batches: as every stage stores them. read: by learners on other nodes. weights: of a sync."""

    batches: float
    read: float
    weights: float

    @property
    def stored(self) -> float:
        return self.batches + self.weights


def traffic(load: Load, *, num_learner_nodes: int, weight_bytes: float, backend: str) -> Traffic:
    """What the batches of a step weigh, each extending the last and stored anew, and the weights.

        ROLLOUT    n (4.5 + 4) prompt tokens + n (4.5 + 12) completion tokens + 200 n     ids, logprobs, versions: 4
        EXPLAINED  + 4.5 a token of an explanation;   SCORED as much again
        weights    once with sync.backend shared_memory, else straight from GPU to GPU
    """
    row = (_TEXT + 4) * load.prompt_tokens + (_TEXT + 12) * load.completion_tokens + _ROW
    rollouts = load.num_rows * row
    explained = rollouts + load.num_explanations * load.explanation_tokens * _TEXT
    batches = rollouts + explained * (2 if load.num_explanations else 1)
    return Traffic(batches, explained * max(0, num_learner_nodes), weight_bytes if backend == "shared_memory" else 0.0)
