import asyncio

import pytest

from actors.cluster.placement import refuse_too_large, within
from rlaif.config.checks import UserError
from rlaif.config.train import RoleConfig

ROLES = {"rollout": RoleConfig(num_actors=2, num_cpus=1.5, num_gpus=1),
         "learner": RoleConfig(num_actors=4, num_cpus=0.25)}


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"CPU": 3.0, "GPU": 2.0},
         "placement must fit into the cluster's 3 CPUs, got 4 (rollout 2 x 1.5 + learner 4 x 0.25); "
         "lower placement.*.num_actors or placement.*.num_cpus"),
        ({"CPU": 8.0, "GPU": 1.0},
         "placement must fit into the cluster's 1 GPUs, got 2 (rollout 2 x 1 + learner 4 x 0); "
         "lower placement.*.num_actors or placement.*.num_gpus"),
        ({"CPU": 8.0},
         "placement must fit into the cluster's 0 GPUs, got 2 (rollout 2 x 1 + learner 4 x 0); "
         "lower placement.*.num_actors or placement.*.num_gpus"),
    ],
)
def test_more_than_the_cluster_has_is_refused_with_the_sum_by_role(resources, message):
    with pytest.raises(UserError) as caught:
        refuse_too_large(ROLES, resources)
    assert str(caught.value) == message


def test_what_just_fits_is_placed_whatever_the_rounding():
    refuse_too_large(ROLES, {"CPU": 4.0, "GPU": 2.0})
    refuse_too_large({"slot": RoleConfig(num_actors=3, num_cpus=0.1)}, {"CPU": 0.3})    # 3 * 0.1 > 0.3


def test_work_that_is_late_is_told_in_one_line():
    async def late() -> None:
        await asyncio.sleep(9)

    with pytest.raises(UserError, match=r"judges must be ready in 0 s, got no answer; .*"):
        asyncio.run(within(late(), 0.01, "judges"))
    assert asyncio.run(within(asyncio.sleep(0, "done"), 5, "judges")) == "done"
