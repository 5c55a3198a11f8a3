"""FAKE: batches as the stages make them, from columns that are made once: what a batch holds costs nearly nothing."""

from __future__ import annotations

import functools

import numpy as np
import pyarrow as pa

from rlaif.batch import EXPLAINED, PROMPT, ROLLOUT, SCORED

__all__ = ["explained", "prompts", "rollouts", "scored"]

NUM_TOKENS = 64         # of a completion
_WORDS = "so the answer of the policy is here and it is as long as such answers are. "


def prompts(num_rows: int, num_tokens: int = 32) -> list[dict]:
    """Rows for rlaif.data.prompts.PromptStream."""
    return [{"prompt": f"prompt {number} {_WORDS}", "prompt_ids": list(range(num_tokens)), "reference": None,
             "source": "fake", "sample_weight": 1.0} for number in range(num_rows)]


def rollouts(prompts: pa.Table, group_size: int, version: int) -> pa.Table:
    """The ROLLOUT rows of whole groups: group_size completions of each prompt, by the weights of `version`."""
    num_rows = prompts.num_rows * group_size
    of_prompt = np.repeat(np.arange(prompts.num_rows), group_size)
    columns = dict(zip(PROMPT.names, prompts.take(pa.array(of_prompt)).columns, strict=True))
    columns |= _slice(_completions(num_rows), num_rows)
    columns["sample"] = pa.array(np.tile(np.arange(group_size, dtype=np.int32), prompts.num_rows))
    columns["policy_version"] = pa.array(np.full(num_rows, version, np.int64))
    versions = np.full(num_rows * NUM_TOKENS, version, np.int32)
    columns["policy_versions"] = _lists(versions, NUM_TOKENS, "policy_versions")
    return pa.table([columns[name] for name in ROLLOUT.names], schema=ROLLOUT)


def explained(batch: pa.Table) -> pa.Table:
    """The EXPLAINED rows of ROLLOUT rows."""
    more = _slice(_explanations(batch.num_rows), batch.num_rows)
    return pa.table([*batch.columns, *(more[name] for name in EXPLAINED.names[len(ROLLOUT.names):])], schema=EXPLAINED)


def scored(batch: pa.Table) -> pa.Table:
    """The SCORED rows of EXPLAINED rows; rewards differ within every group."""
    more = _slice(_scores(batch.num_rows), batch.num_rows)
    return pa.table([*batch.columns, *(more[name] for name in SCORED.names[len(EXPLAINED.names):])], schema=SCORED)


def _slice(columns: dict[str, pa.Array], num_rows: int) -> dict[str, pa.Array]:
    return {name: column[:num_rows] if len(column) != num_rows else column for name, column in columns.items()}


def _lists(flat: np.ndarray, size: int, name: str) -> pa.Array:
    offsets = np.arange(0, len(flat) + 1, size, dtype=np.int32)
    kind = ROLLOUT.field(name).type
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, kind.value_type), type=kind)


@functools.lru_cache(maxsize=8)
def _completions(num_rows: int) -> dict[str, pa.Array]:
    flat = num_rows * NUM_TOKENS
    return {
        "completion": pa.array([_WORDS * 4] * num_rows), "finish_reason": pa.array(["stop"] * num_rows),
        "completion_ids": _lists(np.zeros(flat, np.int32), NUM_TOKENS, "completion_ids"),
        "rollout_logprobs": _lists(np.full(flat, -0.5, np.float32), NUM_TOKENS, "rollout_logprobs")}


@functools.lru_cache(maxsize=8)
def _explanations(num_rows: int) -> dict[str, pa.Array]:
    return _arrays(EXPLAINED, {
        "explanations": [[_WORDS * 4]] * num_rows, "explanation_finish_reasons": [["stop"]] * num_rows,
        "num_explanation_tokens": [NUM_TOKENS] * num_rows})


@functools.lru_cache(maxsize=8)
def _scores(num_rows: int) -> dict[str, pa.Array]:
    rewards = [float(row % 7) for row in range(num_rows)]
    parts = [[("esfp", reward)] for reward in rewards]
    return _arrays(SCORED, {
        "slot_probabilities": [[0.5, 0.25, 0.25]] * num_rows, "slot_scores": [[0.5]] * num_rows,
        "slot_entropy": [[1.0]] * num_rows, "reward_parts": parts, "reward_terms": parts, "reward": rewards,
        "judge_verdicts": [[("gold", 1.0)]] * num_rows, "reward_version": ["fake"] * num_rows})


def _arrays(schema: pa.Schema, columns: dict[str, list]) -> dict[str, pa.Array]:
    return {name: pa.array(values, schema.field(name).type) for name, values in columns.items()}
