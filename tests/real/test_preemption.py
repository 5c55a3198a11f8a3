"""A node's preemption as Ray announces it."""

from __future__ import annotations

import time

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from actors.faults import ending as module
from actors.faults.ending import Ending, draining_nodes
from tests.helpers.nodes import unnoted_cluster


@ray.remote(num_cpus=0, resources={"spot": 1})
class There:
    def ready(self) -> None:
        pass


def announce_the_end_of(cluster: Cluster, node_id: str) -> None:
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    is_accepted, why = ray._raylet.GcsClient(address=cluster.address).drain_node(
        node_id, reason, "spot", int((time.time() + 60) * 1000))
    assert is_accepted, why


def test_the_announced_end_of_a_node_with_an_actor_asks_the_run_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.2)
    cluster = unnoted_cluster(num_cpus=1)
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        idle, used = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1, resources={"spot": 1})
        cluster.wait_for_nodes()
        actor = There.remote()
        ray.get(actor.ready.remote())
        ending = Ending()
        with ending.watching():
            announce_the_end_of(cluster, idle.node_id)
            time.sleep(2)
            assert draining_nodes() == [] and ending.why is None, "a node that the run is not on"
            announce_the_end_of(cluster, used.node_id)
            deadline = time.monotonic() + 20
            while ending.why is None and time.monotonic() < deadline:
                time.sleep(0.1)
        assert ending.why == f"node {used.node_id[:12]} is about to be taken away"
    finally:
        ray.shutdown()
        cluster.shutdown()
