import pytest

from rlaif.planning.cluster import GIB, GpuKind, Node
from rlaif.planning.fitting import Actor, gpu_load, host_load, shortages
from rlaif.planning.memory import ASLEEP, KV_CACHE, Item

NODE = Node("n", 8, 2, 100 * GIB, GpuKind("small", 40 * GIB, 1, 1))


def actor(role, number, gpus, *items, node=0):
    return Actor(role, number, node, gpus, tuple(Item(name, size * GIB, *rest) for name, size, *rest in items))


LEARNER = actor("learner", 0, (0,), ("weights", 10, "gpu"), ("activations", 20, "gpu", False, False),
                ("loading", 15, "host", False, False))
ENGINE = actor("rollout", 0, (0,), ("weights", 10, "gpu"), (KV_CACHE, 15, "gpu"), ("process", 2, "host", False))


def test_a_gpu_carries_everyone_on_it_at_once():
    assert gpu_load([LEARNER, ENGINE], 0, 0, False) == 55 * GIB
    assert gpu_load([LEARNER, ENGINE], 0, 0, False, known=True) == 35 * GIB
    assert gpu_load([LEARNER, ENGINE], 0, 1, False) == 0


def test_engines_that_sleep_take_turns_with_learners():
    # Awake beside what the learner keeps: 25 + 10; asleep beside all of it: 30 and what an engine keeps.
    assert gpu_load([LEARNER, ENGINE], 0, 0, True) == 35 * GIB
    hungry = actor("learner", 0, (0,), ("weights", 10, "gpu"), ("activations", 28, "gpu", False, False))
    assert gpu_load([hungry, ENGINE], 0, 0, True) == 38 * GIB + ASLEEP


def test_a_host_carries_everyone_on_its_node():
    assert host_load([LEARNER, ENGINE, actor("slot", 0, (), ("process", 1, "host"), node=1)], 0) == 17 * GIB


def test_what_does_not_fit_is_told_as_a_sum_with_its_largest_parts_cure():
    lack, = shortages([LEARNER, ENGINE], [NODE], False)
    assert not lack.is_known
    assert lack.told == (
        "GPU of n:0 must hold what lies on it, got learner (weights 10.0 + activations 20.0) + rollout (weights 10.0 + "
        "KV cache and working memory 15.0) = 55.0 of 40.0 GiB by estimate; try learner.activation_checkpointing=true, "
        "or fewer learner.micro_batch_tokens")


def test_what_is_known_is_told_without_the_estimates():
    lack, = shortages([LEARNER, ENGINE, actor("slot", 0, (0,), ("weights", 6, "gpu"))], [NODE], False)
    assert lack.is_known and "= 41.0 of 40.0 GiB; try a lower engine.gpu_memory_utilization" in lack.told
    assert "activations" not in lack.told


def test_equal_gpus_are_told_once():
    full = [actor("slot", number, (number,), ("weights", 50, "gpu")) for number in range(2)]
    lack, = shortages(full, [NODE], False)
    assert lack.told.startswith("GPU of n:0, n:1 must hold what lies on it, got slot (weights 50.0) = 50.0 of 40.0 GiB")


def test_actors_of_a_role_are_counted_in_the_sum():
    full = [actor("slot", number, (0,), ("weights", 25, "gpu")) for number in range(2)]
    assert "got 2 x slot (weights 25.0) = 50.0 of 40.0 GiB" in shortages(full, [NODE], False)[0].told


@pytest.mark.parametrize(("memory", "is_known"), [(16, False), (1, False), (1000, None)])
def test_a_nodes_own_memory_is_checked_too(memory, is_known):
    found = shortages([LEARNER, ENGINE], [Node("n", 8, 0, memory * GIB)], False)
    assert [lack.is_known for lack in found] == ([] if is_known is None else [is_known])
    assert all(lack.told.startswith("memory of n must hold what lies on it") for lack in found)
