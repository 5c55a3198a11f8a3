"""A node's preemption as Ray announces it."""

from __future__ import annotations

import time

import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from actors import ending as module
from actors.ending import Ending, draining_nodes


def test_the_announced_end_of_a_node_asks_the_run_to_end(monkeypatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.2)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        assert draining_nodes() == []
        ending = Ending()
        with ending.watching():
            ray._raylet.GcsClient(address=cluster.address).drain_node(
                node.node_id, autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"), "spot",
                int((time.time() + 60) * 1000))
            deadline = time.monotonic() + 20
            while ending.why is None and time.monotonic() < deadline:
                time.sleep(0.1)
        assert ending.why == f"node {node.node_id[:12]} is about to be taken away"
    finally:
        ray.shutdown()
        cluster.shutdown()
