"""What an engine's batches are like: the same whatever goes on beside them, and true of every token where a weight
update comes while they are written."""

from __future__ import annotations

import pyarrow as pa
import pytest
import ray

from rlaif.batch import ROLLOUT, check
from rlaif.learning.objectives import PolicyObjective, PolicyOptions
from rlaif.modeling.models import load_causal_lm
from tests.real.test_engine import POLICY, perturbed, rollout_actor, send
from tests.real.test_engine import prompts as _prompts

prompts = _prompts


@pytest.fixture(scope="module")
def engine(local_ray: None):
    with rollout_actor(POLICY, "rollout-together") as actor:
        send(load_causal_lm(POLICY, "float32"), 0, [actor])
        yield actor


def asked(engine, prompts: pa.Table, group_size: int, groups_per_batch: int, together: bool):
    return engine.generate.options(num_returns="streaming").remote(
        prompts, group_size, 7, groups_per_batch, False, together)


def batches(stream) -> list[pa.Table]:
    """Each before what is told of it."""
    answers = [ray.get(reference) for reference in stream]
    for batch, told in zip(answers[::2], answers[1::2], strict=True):
        assert told.group_ids == list(dict.fromkeys(batch["group_id"].to_pylist()))
        assert (told.num_rows, told.num_bytes) == (batch.num_rows, batch.nbytes)
    return [check(batch, ROLLOUT) for batch in answers[::2]]


def test_what_is_asked_together_leaves_in_the_same_batches_with_the_same_bytes(engine, prompts) -> None:
    """Alone, behind another call, and while a call that is not of its kind decodes beside it."""
    alone = batches(asked(engine, prompts, 4, 6, True))
    before, behind = asked(engine, prompts.slice(0, 9), 2, 2, True), asked(engine, prompts, 4, 6, True)
    assert len(batches(before)) == 5
    assert batches(behind) == alone
    assert sum(batch.num_rows for batch in alone) == 96 and len(alone) == 4


def test_every_token_is_of_the_version_that_it_is_said_to_be(engine, prompts) -> None:
    """An update comes while 960 completions are written: each token's logprob is that of the weights of its version,
    after all that was written before it."""
    start, moved = load_causal_lm(POLICY, "float32"), perturbed(3)
    stream = asked(engine, prompts, 40, 1, False)
    first, told = ray.get(next(stream)), ray.get(next(stream))
    send(moved, 1, [engine])
    rows = pa.concat_tables([first, *batches(stream)])
    assert told.num_rows == 40 and rows.num_rows == 960
    versions = rows["policy_versions"].to_pylist()
    assert all(found == sorted(found) and found[0] == oldest
               for found, oldest in zip(versions, rows["policy_version"].to_pylist(), strict=True))
    continued = sum(found[0] < found[-1] for found in versions)
    assert continued > 0 and versions[-1][-1] == 1, f"{continued} completions were under way"
    objective = PolicyObjective(PolicyOptions())
    under = [objective.logprobs(objective.module(model), rows) for model in (start, moved)]
    gaps = [abs(under[version][row][place] - logprob)
            for row, (found, logprobs) in enumerate(zip(versions, rows["rollout_logprobs"].to_pylist(), strict=True))
            for place, (version, logprob) in enumerate(zip(found, logprobs, strict=True))]
    assert max(gaps) <= 1e-4
