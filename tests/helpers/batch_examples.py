"""Rows of every schema, for the tests that need some."""

from rlaif.batch import from_rows

ROW = {
    "prompt_id": 3, "epoch": 0, "group_id": 7, "prompt": "say so", "prompt_ids": [4, 5], "reference": None,
    "source": "scenes:prompts-train", "sample_weight": 1.0,
    "sample": 0, "completion": "so it is", "completion_ids": [6, 7, 1], "rollout_logprobs": [-0.5, -1.0, -0.25],
    "finish_reason": "stop", "policy_version": 2, "policy_versions": [2, 2, 2],
    "explanations": ["because"], "num_explanation_tokens": 2, "explanation_finish_reasons": ["stop"],
    "slot_probabilities": [0.75, 0.25], "slot_scores": [0.75], "slot_entropy": [0.5625],
    "reward_parts": [("esfp", 0.75)], "reward_terms": [("esfp", 0.75)], "judge_verdicts": [("gold", 1.0)],
    "reward": 0.75, "reward_version": "abcd",
    "part": "esfp", "value": 0.75,
    "chosen_ids": [6, 7, 1], "rejected_ids": [8, 1],
    "other": None, "other_explanations": [], "labels": [1], "preference": -1.0,
}


def row(schema, **changes):
    if "policy_versions" in schema.names and "completion_ids" in changes:
        changes = {"policy_versions": [2] * len(changes["completion_ids"])} | changes
    return {name: ROW[name] for name in schema.names} | changes


def table(schema, *changes):
    """A row of `schema` for each dict of changes; two plain ones where there is none."""
    return from_rows([row(schema, **change) for change in changes or ({}, {})], schema)
